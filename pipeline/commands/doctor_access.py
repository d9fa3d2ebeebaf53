"""What `doctor` looks at beyond this machine: Ray, the bucket of results, addresses, sources of a recipe, clocks."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from pipeline.commands.doctor_machine import Finding, existing_folder, gigabytes
from pipeline.engine.context import Context
from pipeline.engine.leases import has_conditional_writes
from pipeline.engine.object_store import ObjectStore
from pipeline.errors import UserError
from pipeline.executors.ray_probe import probe
from stages.errors import DataError, TransientError
from stages.estimate.deadline import call_all
from stages.estimate.forecast import SAMPLING, disk, forecast, list_sets, list_sources, size_alone
from stages.paths import is_remote
from stages.registry import STAGES
from stages.sources.files import list_files, open_source
from stages.sources.hub import PROTOCOL
from stages.task import Artifact
from stages.tokenizer.external import locate

Clocks = dict[str, float]  # whose clock -> seconds that this machine is ahead of it

HUB = "the hub"
PATIENCE = 45.0  # seconds that a bucket or an address may take
AHEAD, FAR_AHEAD = 60.0, 300.0  # seconds: the one is odd, beyond the other stores refuse what is signed here


def ray(cluster: str | None, executor: str) -> Iterator[Finding]:
    """Say whether a Ray of our own starts here, or whether the one at `cluster` has the same packages on each node."""
    if cluster is None and executor in ("local", "inline"):
        yield Finding("ok", "ray", f"not needed: the recipe's executor is {executor}")
        return
    began = time.monotonic()
    try:
        answer = probe(cluster)
    except UserError as error:
        mend = "give run the option --executor local" if cluster is None else ""
        yield Finding("wrong", "ray", str(error).removesuffix("; try --executor local"), mend)
        return
    where = f"cluster at {cluster}" if cluster else "starts here"
    text = f"{where}: {answer['cluster']}, asked in {time.monotonic() - began:.0f} s"
    if answer["different"]:
        mend = "python -m pip install -r requirements.lock, there"
        yield Finding("wrong", "ray", f"{text}; {'; '.join(answer['different'])}", mend)
    else:
        yield Finding("ok", "ray", f"{text}; every node has the packages of this machine")


def bucket(out: str, clocks: Clocks) -> Iterator[Finding]:
    """Say whether results can be kept in the bucket of `out`, if it is in one, and note its clock."""
    if is_remote(out):
        yield from answered("bucket", out, lambda: _write_there(out, clocks))


def _write_there(out: str, clocks: Clocks) -> Finding:
    """Write, read, and delete an object below `out`."""
    store = ObjectStore(out)
    path, contents = f"{store.root}/doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    began = time.monotonic()
    store.bucket.put(path, contents)
    try:
        clocks[out] = time.time() - store.bucket.head(path).modified.timestamp()
        if store.bucket.get(path) != contents:
            return Finding("wrong", "bucket", f"{out} gives back other bytes than it was given", "ask who runs it")
        seconds = time.monotonic() - began
        alone = "" if has_conditional_writes(store, path) else "; ignores conditional writes: one run at a time"
    finally:
        store.bucket.delete([path])
    state: Any = "warning" if alone else "ok"
    return Finding(state, "bucket", f"{out}: written, read and deleted in {seconds:.1f} s{alone}")


def address(place: str, clocks: Clocks) -> Iterator[Finding]:
    """Say whether the files at an address, or a path, can be read."""
    yield from answered("address", place, lambda: _read_there(place, clocks))


def _read_there(place: str, clocks: Clocks) -> Finding:
    """List the files at `place` and read the first byte of one."""
    began = time.monotonic()
    files = list_files(place, ("",))
    _first_byte(files[0][0])
    _ask_clock(place, clocks)
    return Finding("ok", "address", f"{place}: {many(len(files))}, read in {time.monotonic() - began:.1f} s")


def _first_byte(file: Artifact | str, options: dict[str, Any] | None = None) -> None:
    with open_source(file, options) as stream:
        stream.read(1)


def _ask_clock(place: str, clocks: Clocks) -> None:
    """Note the clock of the hub, where an address is one of its."""
    if not place.startswith(PROTOCOL) or HUB in clocks:
        return
    from huggingface_hub import constants, get_session

    date = get_session().head(constants.ENDPOINT, timeout=10).headers.get("date")
    if date:
        clocks[HUB] = time.time() - parsedate_to_datetime(date).timestamp()


def answered(check: str, place: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    """Yield what `look` finds, or why it finds nothing within PATIENCE. Raises what it raises, but for OSError."""
    try:
        yield call_all({place: look}, PATIENCE)[place].result()
    except OSError as error:  # those of our own clients say what to do
        yield Finding("wrong", check, str(error) if place in str(error) else f"{place}: {error}")


def needs(context: Context, clocks: Clocks) -> Iterator[Finding]:
    """Say of each thing that the recipe reads whether it can be, and whether there is room for what it makes."""
    recipe = context.recipe
    survey = list_sources(context, identify=size_alone)
    for name, config in recipe.sources.items():
        units = survey.units.get(name)
        if units is None:
            yield Finding("wrong", "source", f"{name}: {survey.problems[name]}")
            continue
        files = [file for unit in units for file in unit.inputs]
        remote = [file for file in files if is_remote(file.path) and "dataset" not in units[0].params]
        text = f"{many(len(files))}, {gigabytes(sum(unit.weight for unit in units))}"
        if remote:
            options = getattr(config, "storage_options", None)
            yield from opened("source", name, partial(next, iter(remote)), text, options)
            _ask_clock(remote[0].path, clocks)
        else:
            yield Finding("ok", "source", f"{name}: {text}")
    for name, units_of in list_sets(recipe, size_alone).items():
        yield from opened("evals", name, lambda: units_of()[0].inputs[0], "can be read")  # noqa: B023 - called at once
    if recipe.tokenizer.source is not None:
        yield Finding("ok", "tokenizer", f"{recipe.tokenizer.source}: {locate(recipe.tokenizer.source).bytes:,} bytes")
    if not survey.problems and not is_remote(context.store.out):
        forecast(context, survey)
        yield room(context, sum(disk(context, survey, list(STAGES)).values()))


def opened(
    check: str, name: str, find: Callable[[], Artifact], text: str, options: dict[str, Any] | None = None
) -> Iterator[Finding]:
    """Yield that a file which `find` names can be read, or why it cannot."""
    try:
        call_all({name: lambda: _first_byte(find(), options)}, SAMPLING)[name].result()
        yield Finding("ok", check, f"{name}: {text}")
    except (DataError, TransientError, OSError) as error:
        yield Finding("wrong", check, f"{name}: {error}")


def many(files: int) -> str:
    """Return a number of files in words."""
    return f"{files:,} file{'s' * (files != 1)}"


def room(context: Context, needed: float) -> Finding:
    """Return whether what the recipe makes, some of which may be there, has room on the disk of --out."""
    folder = existing_folder(context.store.out)
    free = shutil.disk_usage(folder).free
    text = f"the recipe makes {gigabytes(needed)}, checkpoints aside; {gigabytes(free)} are free in {folder}"
    if needed <= free:
        return Finding("ok", "room", text)
    built = any(context.was_built(stage) for stage in STAGES.values())
    return Finding("warning" if built else "wrong", "room", text, f"free some ({folder}), or --out FOLDER")


def clock(out: str, clocks: Clocks) -> Iterator[Finding]:
    """Compare this machine's clock with those of the disk of `out` and of all that was asked."""
    if not is_remote(out):
        folder = existing_folder(out)
        mark = folder / f".doctor-{uuid.uuid4().hex}"
        try:
            mark.touch()
            clocks[f"the disk of {folder}"] = time.time() - mark.stat().st_mtime
            mark.unlink()
        except OSError:
            pass  # which is said of the disk
    if not clocks:
        yield Finding("ok", "clock", f"{time.strftime('%F %T %z')}; nothing to compare it with")
        return
    whose = max(clocks, key=lambda name: abs(clocks[name]))
    off = clocks[whose]
    words = f"{abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} {whose}"
    text, mend = f"{time.strftime('%F %T %z')}, {words}", "timedatectl set-ntp true, or ask who runs the machine"
    if abs(off) > FAR_AHEAD:
        yield Finding("wrong", "clock", f"{text}: stores refuse what is signed at another time", mend)
    elif abs(off) > AHEAD:
        yield Finding("warning", "clock", text, mend)
    else:
        yield Finding("ok", "clock", f"{time.strftime('%F %T %z')}, within {AHEAD:.0f} s of {', '.join(clocks)}")
