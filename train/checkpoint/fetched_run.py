"""A checkpoint of a run in a bucket, copied to this machine for those who only read it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from pathlib import Path
from typing import IO

from train.bucket import Bucket
from train.checkpoint.checkpoint import BEST, DECAY_START, LATEST, STATE, first_word, step_of
from train.config import TrainError
from train.data.manifest import path_below
from train.data.shard_cache import bytes_below, default_cache, default_limit, delete_unused, hold_used
from train.sealed import parse_sealed

_held: list[IO[str]] = []  # marks of the folders that this process reads, until it ends


def fetch_run(address: str, name: str = LATEST, root: str | None = None) -> Path:
    """Return a folder of this machine with run.json and one checkpoint of the run at `address`, as a run's folder.

    address: of the run, of its checkpoints/, of one checkpoint, or `<out>/<recipe>/train/<phase>`. name: which
    checkpoint. root: the folder for copies, `train.cache`. It is fetched once a machine.
    Raises TrainError where there is none; BucketError and UnavailableError.
    """
    bucket = Bucket(address)
    run, step = resolve(bucket, address, name)
    checkpoint = f"{run}/checkpoints/{step}"
    files = {found.path.removeprefix(f"{run}/"): found.size for found in bucket.objects(checkpoint)}
    try:
        state = bucket.get(f"{checkpoint}/{STATE}")
    except FileNotFoundError:
        steps = [other for other in bucket.names(f"{run}/checkpoints") if step_of(other) is not None]
        there = f"there are {', '.join(sorted(steps))}" if steps else "there is none"
        raise TrainError(f"{address}: no checkpoint {step or name!r} there; {there}") from None
    cache = Path(root) if root else default_cache()
    folder = cache.absolute() / hashlib.sha256(run.encode() + state).hexdigest()[:16]
    _held.append(hold_used(folder))
    delete_unused(cache, bytes_below(cache) + sum(files.values()) - default_limit(cache), folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file, size in files.items():
            path = path_below(folder, file)
            if not path.exists() or path.stat().st_size != size:
                _download(bucket, f"{run}/{file}", path)
        with contextlib.suppress(FileNotFoundError):
            _download(bucket, f"{run}/run.json", folder / "run.json")
    return folder


def _download(bucket: Bucket, address: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    bucket.download(address, part)
    part.replace(path)


def resolve(bucket: Bucket, address: str, name: str) -> tuple[str, str]:
    """Return the address of a run, and the name of the checkpoint's folder that `address` and `name` stand for."""
    run, _, inside = address.rstrip("/").partition("/checkpoints")
    name = inside.strip("/") or name
    with contextlib.suppress(FileNotFoundError, ValueError):
        run = str(parse_sealed(bucket.get(f"{run}.json"))["run"])
    if name in (LATEST, BEST, DECAY_START):
        try:
            name = first_word(bucket.get(f"{run}/checkpoints/{name}"))
        except FileNotFoundError:
            return run, ""
    return run, name
