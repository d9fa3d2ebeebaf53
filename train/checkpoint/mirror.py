"""A run's folder in a bucket: a folder of this machine that is copied there as it grows.

The layout is that of a folder on a disk. A checkpoint goes there with its tensors first, then its state.json, and at
last `checkpoints/latest`, which names it: a reader that follows `latest` never sees half a checkpoint. Of several runs
that write to one address the one that started last is the owner: `latest` holds a word of its own, and is replaced only
where it is still as we left it, so the others end at their next checkpoint.

Small files, such as metrics.jsonl, are copied when they have changed: with each checkpoint, and every EVERY seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from train.bucket import Bucket, UnavailableError
from train.checkpoint.checkpoint import (
    BEST,
    DECAY_START,
    LATEST,
    SCORE,
    STATE,
    TENSOR_FILES,
    checkpoint_name,
    list_checkpoints,
    read_checkpoint,
    step_of,
)
from train.config import ConfigError, TrainConfig, TrainError
from train.data.manifest import path_below
from train.data.shard_cache import default_cache
from train.distributed.runtime import Runtime
from train.monitor.text import printable

EVERY = 30.0  # seconds
NONE = "-"  # stands in `latest` for the name of a checkpoint before there is one
LOCK = ".mirror"
CHECKPOINTS = "checkpoints"


class Mirror:
    """The folder here, and what of it is in the bucket."""

    def __init__(self, address: str, root: str | None):
        """Make a folder here with what a run needs to go on from `address`. root: train.cache.

        Raises BucketError, UnavailableError, OSError.
        """
        self.bucket, self.address = Bucket(address), address.rstrip("/")
        runs = (Path(root) if root else default_cache()) / "runs"
        delete_abandoned(runs)
        self.folder = runs.absolute() / uuid.uuid4().hex[:16]
        (self.folder / CHECKPOINTS).mkdir(parents=True)
        self.lock_file = (self.folder / LOCK).open("w")
        fcntl.flock(self.lock_file, fcntl.LOCK_EX)
        self.owner = uuid.uuid4().hex
        self.stamp = ""  # of `latest` in the bucket, as we left it
        self.named = NONE  # the checkpoint in `latest` there
        self.sent: dict[str, tuple[int, int]] = {}  # size and time of what is in the bucket, by its name in the folder
        self.there: set[str] = set()  # checkpoints in the bucket, whole or not
        self.sending = threading.Lock()
        self.ended = threading.Event()
        self.keeper = threading.Thread(target=self._keep, daemon=True, name="mirror")
        self._pull()

    # -- from the bucket -----------------------------------------------------------------------------

    def _pull(self) -> None:
        """Copy the newest whole checkpoint here, of the others what tells of them, and all small files."""
        names = [found.path.removeprefix(f"{self.address}/") for found in self.bucket.objects(self.address)]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        by_step: dict[int, list[str]] = {}
        for name in names:
            folder, _, rest = name.removeprefix(f"{CHECKPOINTS}/").partition("/")
            if not name.startswith(f"{CHECKPOINTS}/"):
                self._get(name)
            elif rest and (step := step_of(folder)) is not None:
                self.there.add(folder)
                by_step.setdefault(step, []).append(name)
        latest = self._latest()[0] if f"{CHECKPOINTS}/{LATEST}" in names else NONE
        newest = step_of(latest)
        found = False
        for step in sorted(by_step, reverse=True):
            folder = f"{CHECKPOINTS}/{checkpoint_name(step)}"
            if newest is None or step > newest or f"{folder}/{STATE}" not in by_step[step]:
                continue  # begun, and never finished
            small = {f"{folder}/{STATE}", f"{folder}/{SCORE}"}
            for name in by_step[step]:
                if not found or name in small:
                    self._get(name)
            with contextlib.suppress(TrainError):
                read_checkpoint(self.folder / folder)
                found = True
        for pointer in (BEST, DECAY_START):
            if f"{CHECKPOINTS}/{pointer}" in names:
                self._get(f"{CHECKPOINTS}/{pointer}")

    def _get(self, name: str) -> None:
        path = path_below(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bucket.download(f"{self.address}/{name}", path)
        self.sent[name] = state_of(path)

    def _latest(self) -> tuple[str, str]:
        """Return the name and the owner in `latest`, and note its stamp. Raises FileNotFoundError."""
        path = f"{self.address}/{CHECKPOINTS}/{LATEST}"
        self.stamp = self.bucket.head(path).stamp
        name, *owner = self.bucket.get(path).decode(errors="replace").split() or [NONE]
        return name, " ".join(owner)

    # -- to the bucket -------------------------------------------------------------------------------

    def explain(self, error: TrainError) -> TrainError:
        """Return an error about the folder here as one about the address."""
        return type(error)(str(error).replace(str(self.folder), self.address))

    def own(self) -> None:
        """Take the address over from whoever wrote there before, and begin to copy small files.

        Raises TrainError where another run starts there at the same time.
        """
        name = NONE
        with contextlib.suppress(FileNotFoundError):
            name, _ = self._latest()
        self._put_latest(name)
        self.keeper.start()

    def _put_latest(self, name: str) -> None:
        path, text = f"{self.address}/{CHECKPOINTS}/{LATEST}", f"{name} {self.owner}\n"
        try:
            self.stamp = self.bucket.put(path, text.encode(), create=not self.stamp, replaces=self.stamp)
        except NotImplementedError:  # such a store cannot tell who was first
            self.bucket.put(path, text.encode())
        except FileExistsError:
            if self._latest() != (name, self.owner):  # else it is ours, and the answer was lost
                raise TrainError(
                    f"{self.address}: another start of this run, or another run, took over; this one ends here"
                ) from None
        self.named = name

    def push(self) -> None:
        """Copy what is new here: small files, checkpoints, and `latest` after them; delete what was pruned here.

        A store that does not answer is told of, and all of it goes with the next push. Raises TrainError when another
        run has taken over.
        """
        try:
            with self.sending:
                self._push_small_files()  # first: the lines of metrics.jsonl up to a checkpoint belong to it
                self._push_checkpoints()
        except UnavailableError as error:
            print(f"warning: not in the bucket yet: {printable(str(error))}", file=sys.stderr, flush=True)

    def _push_checkpoints(self) -> None:
        here = list_checkpoints(self.folder / CHECKPOINTS)
        for checkpoint in reversed(here):
            for file in (*TENSOR_FILES, STATE, SCORE):
                self._put(checkpoint / file)
            self.there.add(checkpoint.name)
        for pointer in (DECAY_START, BEST):
            self._put(self.folder / CHECKPOINTS / pointer)
        if here and self.named != here[0].name:
            self._put_latest(here[0].name)
        for name in sorted(self.there - {checkpoint.name for checkpoint in here}):
            folder = f"{self.address}/{CHECKPOINTS}/{name}"
            files = [found.path for found in self.bucket.objects(folder)]
            self.bucket.delete(sorted(files, key=lambda path: (not path.endswith(STATE), path)))
            self.there.discard(name)

    def _push_small_files(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            if path.is_file() and parts[0] not in (CHECKPOINTS, "wandb") and not path.name.startswith("."):
                self._put(path)

    def _put(self, path: Path) -> None:
        """Copy a file, if it is there and has changed."""
        name = path.relative_to(self.folder).as_posix()
        try:
            state = state_of(path)
            if self.sent.get(name) != state:
                is_tensors = path.name in TENSOR_FILES
                # what may grow meanwhile is read first
                self.bucket.put(f"{self.address}/{name}", path if is_tensors else path.read_bytes())
                self.sent[name] = state
        except FileNotFoundError:
            return

    def _keep(self) -> None:
        while not self.ended.wait(EVERY):
            try:
                with self.sending:
                    self._push_small_files()
            except OSError as error:  # said at the end, if it stays so
                print(f"warning: not in the bucket yet: {printable(str(error))}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Copy the rest and delete the folder here. Raises TrainError where it could not be copied: then it is kept."""
        self.ended.set()
        if self.keeper.ident:
            self.keeper.join()
        try:
            with self.sending:
                if self.keeper.ident:  # else nothing was begun
                    self._push_small_files()
                    self._push_checkpoints()
        except OSError as error:
            (self.folder / LOCK).unlink()
            raise TrainError(
                f"{error}\nwhat is not in the bucket is in {self.folder}: copy it to {self.address}, {LATEST} last"
            ) from None
        except TrainError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock_file.close()


@contextlib.contextmanager
def mirrored(rt: Runtime, cfg: TrainConfig) -> Iterator[Mirror | None]:
    """Give the mirror of a run whose train.out is an address, on rank 0; None elsewhere. Copies the rest at the end.

    Raises TrainError where that cannot be done, BucketError and UnavailableError.
    """
    out, held = cfg.out, []
    if out is not None and is_remote_out(out):
        rt.broadcast_from_rank0(lambda: held.append(Mirror(out, cfg.cache)))
    if not held:
        yield None
        return
    (mirror,) = held
    try:
        yield mirror
    except BaseException:
        try:
            mirror.close()
        except TrainError as error:  # beside the one that ends the run
            print(f"warning: {printable(str(error))}", file=sys.stderr, flush=True)
        raise
    mirror.close()


def is_remote_out(out: str) -> bool:
    """Return whether `train.out` is an address. Raises ConfigError for one that lacks a slash."""
    scheme, colon, rest = out.partition(":")
    if colon and scheme in ("s3", "gs", "az") and not rest.startswith("//"):
        raise ConfigError(f"train.out={out}: an address in a bucket is {scheme}://BUCKET/FOLDER")
    return "://" in out


def state_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file does: its bytes, and the time of its last change in ns."""
    info = path.stat()
    return info.st_size, info.st_mtime_ns


def delete_abandoned(runs: Path) -> None:
    """Delete the folders here of runs that were killed: what counts of them is in their buckets."""
    for lock in runs.glob(f"*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
