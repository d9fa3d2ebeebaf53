"""What `doctor` looks at on this machine: Python, packages, memory, devices, disks, limits, the cache of kernels."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pipeline.engine.fingerprint import ROOT
from stages.paths import is_remote, local_path
from stages.recipe import Recipe
from train.distributed.launch_env import cores

INSTALL = "python -m pip install -r requirements.lock"
WORKER_BYTES = 1e9  # of memory, that a worker may need (docs/measured.md)
LEAST_ROOM, LITTLE_ROOM = 0.5e9, 5e9  # bytes of disk: below the one nothing runs, below the other little does
TEMPORARY_ROOM = 0.3e9  # bytes: copies of remote files, samples, Ray's logs
SPEED_BYTES, PIECE = 64 << 20, 4 << 20  # written to see how fast a disk is, and at a time
SLOW = 20e6  # bytes a second, below which the disk is what a build waits for
LEAST_DESCRIPTORS, FEW_DESCRIPTORS = 64, 1024
GPU_FREE = 0.5  # share of a GPU's memory, below which somebody else is on it


@dataclass(frozen=True)
class Finding:
    """What was found of one thing that a run needs."""

    state: Literal["ok", "warning", "wrong"]
    check: str
    text: str
    mend: str = ""  # what to do; a whole command where there is one


def gigabytes(size: float) -> str:
    """Return bytes as people say them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def requirements() -> tuple[str, list[str]]:
    """Return the versions of Python and the packages that are asked for, extras left out, as pyproject.toml says."""
    file = ROOT / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    installed = metadata.metadata("shardmill")
    wanted = [line for line in metadata.requires("shardmill") or [] if "extra ==" not in line]
    return installed["Requires-Python"], wanted


def python_version() -> Iterator[Finding]:
    """Say whether this Python is one that is supported."""
    from packaging.specifiers import SpecifierSet

    wanted, version = requirements()[0], platform.python_version()
    where = f"{version}, {sys.executable}"
    if version not in SpecifierSet(wanted):
        mend = "make setup PYTHON=python3.12"
        yield Finding("wrong", "python", f"{where}: {wanted} is needed", mend)
    elif sys.maxsize < 2**32:
        yield Finding("wrong", "python", f"{where}: 32 bits are too few for torch; use a Python of 64", "make setup")
    else:
        yield Finding("ok", "python", where)


def packages() -> Iterator[Finding]:
    """Say which packages are missing, or of a version outside the range that pyproject.toml asks for."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requirements()[1]]
    wrong = []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version:
            wrong.append((requirement, f"{requirement.name} is not installed"))
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, f"{requirement.name} is {version}, {requirement.specifier} is needed"))
    if wrong:
        names = " ".join(f'"{requirement}"' for requirement, _ in wrong)
        text = "; ".join(text for _, text in wrong)
        yield Finding("wrong", "packages", text, f"python -m pip install {names}")
    else:
        yield Finding("ok", "packages", f"all {len(wanted)} are there, in the ranges of pyproject.toml")


def memory() -> Iterator[Finding]:
    """Say whether there is memory for a worker on each core."""
    import torch

    from train.distributed.hardware import available_bytes

    free, workers = available_bytes(torch.device("cpu")), cores()
    text = f"{gigabytes(free)} free for {workers} workers"
    enough = max(1, int(free / WORKER_BYTES))
    if free >= workers * WORKER_BYTES:
        yield Finding("ok", "memory", text)
    else:
        state: Literal["warning", "wrong"] = "warning" if free >= WORKER_BYTES else "wrong"
        least = f"{text}, and each may need {gigabytes(WORKER_BYTES)}"
        yield Finding(state, "memory", least, f"python -m pipeline run train --workers {enough}")


def torch_devices(recipe: Recipe | None) -> Iterator[Finding]:
    """Say what torch computes on, and whether it is enough for the processes of the recipe."""
    import torch

    ranks = recipe.ranks if recipe else 1
    version = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        yield _without_cuda(f"{version}, no CUDA: trains on {cores()} cores", ranks)
        return
    there = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(there)}))
    text = f"{version}, CUDA {torch.version.cuda}, {there} GPUs ({names})"
    if ranks > there:
        mend = f"--set ranks={there}"
        yield Finding("wrong", "torch", f"{text}; the recipe's ranks are {ranks}, one a GPU", mend)
    for i in range(there):
        free, total = torch.cuda.mem_get_info(i)
        a = torch.ones(256, 256, device=f"cuda:{i}", dtype=torch.bfloat16)
        if float((a @ a)[0, 0]) != 256:
            yield Finding("wrong", "torch", f"GPU {i} multiplies wrongly", "nvidia-smi -q -d ECC; take it out of use")
        elif free < GPU_FREE * total:
            text += f"; GPU {i} has {gigabytes(free)} of {gigabytes(total)} free: somebody else is on it"
            yield Finding("warning", "torch", text, "nvidia-smi says who")
            return
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        text += "; torch.compile needs a C compiler, and there is none"
        yield Finding("warning", "torch", text, "apt-get install gcc, or --set train.PHASE.compile=false")
    elif ranks <= there:
        yield Finding("ok", "torch", text)


def _without_cuda(text: str, ranks: int) -> Finding:
    """Return what is found where torch has no CUDA: a GPU that is not used, or more processes than cores."""
    import torch

    if Path("/dev/nvidia0").exists():
        why = "this torch has no CUDA in it" if torch.version.cuda is None else "its CUDA does not find it"
        mend = "python -m pip install --force-reinstall torch" if torch.version.cuda is None else "nvidia-smi says why"
        return Finding("wrong", "torch", f"{text}, but there is a GPU: {why}", mend)
    if ranks > cores():
        return Finding("wrong", "torch", f"{text}; the recipe's ranks are {ranks}", f"--set ranks={cores()}")
    return Finding("ok", "torch", text)


def existing_folder(path: str) -> Path:
    """Return the folder `path`, or the nearest above it that is there."""
    folder = Path(os.path.abspath(local_path(path)))  # noqa: PTH100 - links stay
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def disk(out: str) -> Iterator[Finding]:
    """Say whether results can be kept in `out`: by its permissions, its room, its speed, and what links it has."""
    if is_remote(out):
        out = "."  # records of training go to a local folder first
    folder = existing_folder(out)
    free = shutil.disk_usage(folder).free
    text, elsewhere = f"{folder}: {gigabytes(free)} free", "--out FOLDER, on a disk that has it"
    if free < LEAST_ROOM:
        mend = f"free some ({folder}), or {elsewhere}"
        yield Finding("wrong", "disk", f"{text}; a small build needs {gigabytes(LEAST_ROOM)}", mend)
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            speed = write_speed(Path(scratch))
            lacking = what_lacks(Path(scratch))
    except OSError as error:
        yield Finding(
            "wrong", "disk", f"{folder} cannot be written ({error.strerror})", f"--out FOLDER, or {elsewhere}"
        )
        return
    text += f", {speed / 1e6:,.0f} MB/s written"
    if lacking:
        yield Finding("wrong", "disk", f"{text}; its file system has no {lacking}, which results need", elsewhere)
    elif free < LITTLE_ROOM or speed < SLOW:
        what = "little room" if free < LITTLE_ROOM else "slow: a build would wait for it"
        yield Finding("warning", "disk", f"{text}: {what}", elsewhere)
    else:
        yield Finding("ok", "disk", text)


def write_speed(folder: Path) -> float:
    """Return the bytes a second at which a file of SPEED_BYTES is written to the disk itself."""
    piece = os.urandom(PIECE)
    began = time.perf_counter()
    with (folder / "speed").open("wb") as file:
        for _ in range(SPEED_BYTES // PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return SPEED_BYTES / (time.perf_counter() - began)


def what_lacks(folder: Path) -> str:
    """Return which of the things that a store needs a file system lacks: links of both kinds, locks; "" for none."""
    file = folder / "speed"
    try:
        os.link(file, folder / "link")
    except OSError:
        return "hard links"
    try:
        (folder / "symlink").symlink_to("speed")
    except OSError:
        return "symbolic links"
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return "locks"
    return ""


def temporary_folder() -> Iterator[Finding]:
    """Say whether there is room for temporary files, of which Ray has some too."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {gigabytes(free)} free"
    if free < TEMPORARY_ROOM:
        text += f", and {gigabytes(TEMPORARY_ROOM)} are needed for copies of remote files"
        yield Finding("wrong", "temporary", text, "export TMPDIR=FOLDER")
    else:
        yield Finding("ok", "temporary", text)


def descriptors(recipe: Recipe | None) -> Iterator[Finding]:
    """Say how many files a process may open: each shard that the trainer maps is one."""
    from train.data.loader import max_mapped_shards

    mapped = max_mapped_shards()  # lifts the limit as far as it may, as a run does
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    text = "any number of files may be open" if limit < 0 else f"{limit:,} files may be open"
    shards = sum(-(-m.tokens // recipe.shard_tokens) for m in recipe.mixtures.values()) if recipe else 0
    mend = "ulimit -Hn 65536, or LimitNOFILE of the service, nofile of the container"
    if 0 <= limit < LEAST_DESCRIPTORS:
        yield Finding("wrong", "descriptors", f"{text}, fewer than a worker opens", mend)
    elif 0 <= limit < FEW_DESCRIPTORS or shards > mapped:
        what = f"the {shards:,} shards of the recipe" if shards > mapped else f"{FEW_DESCRIPTORS:,}"
        yield Finding("warning", "descriptors", f"{text}, too few for {what}: reading is slower", mend)
    else:
        yield Finding("ok", "descriptors", text)


def shared_memory() -> Iterator[Finding]:
    """Say whether /dev/shm holds Ray's objects; where it does not, they go to a disk, and NCCL fails."""
    from pipeline.executors.ray import OBJECT_STORE_BYTES

    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding("ok", "shared memory", "no /dev/shm on this system; Ray takes files")
        return
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {gigabytes(free)} free"
    if free < OBJECT_STORE_BYTES:
        text += f"; Ray asks for {gigabytes(OBJECT_STORE_BYTES)}, and several GPUs exchange gradients there"
        yield Finding(
            "warning", "shared memory", text, "docker run --shm-size=8g, or mount -o remount,size=8g /dev/shm"
        )
    else:
        yield Finding("ok", "shared memory", text)


def kernel_cache() -> Iterator[Finding]:
    """Say where compiled rules are kept."""
    with contextlib.redirect_stderr(io.StringIO()):  # what it says of a folder that cannot be written is said here
        from stages.kernels.jit import cache_folder, folders

        folder = cache_folder()
    if folder is None:
        where = " nor ".join(map(str, folders()))
        text = f"{where} cannot be written: every process compiles the rules anew, 17 s of a core each"
        yield Finding("warning", "kernel cache", text, "export NUMBA_CACHE_DIR=FOLDER")
        return
    kept = sum(1 for _ in Path(folder).iterdir())
    yield Finding("ok", "kernel cache", f"{folder}: {f'{kept} files' if kept else 'the first run compiles the rules'}")
