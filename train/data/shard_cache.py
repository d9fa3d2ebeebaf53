"""Copies of a build's files on this machine: fetched from a bucket ahead of training, in the order of need.

    <cache>/<hash of the manifest>/<file>          whole and checked: it gets this name once its sha256 was compared
                                   .<file>.part    on its way
                                   .<file>.lock    held by whoever fetches it
                                   .used           held by every process that reads the build

All processes of a machine share the folder, whatever run they belong to: each file is fetched once, and several
processes fetch several files. The locks are the kernel's, so a process that is killed leaves none. Where room is
needed, builds that nobody uses go first, the one that was used longest ago before others; then, of our own build, the
shards that are needed last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from train.bucket import Bucket, UnavailableError
from train.config import TrainConfig, TrainError
from train.data.manifest import Manifest, ManifestError, path_below
from train.files import sha256_file

FETCHING = 4  # files that a process fetches at a time ahead of training
USED = ".used"
SHARE = 0.5  # of the room on the disk that a cache of no given size takes


class CachedFile(NamedTuple):
    """What a file must be to be taken for whole. Of some neither is known."""

    sha256: str
    bytes: int | None = None


class ShardCache:
    """The files of one build. `fetch` copies one that is asked for, `fetch_ahead` those that training will ask for."""

    def __init__(
        self, bucket: Bucket, build: str, name: str, files: Mapping[str, CachedFile], again: Callable[[], str]
    ):
        """build: the address of its folder. name: of its folder in the cache. again: says what makes it anew."""
        self.bucket, self.build, self.name, self.files, self.again = bucket, build, name, files, again
        self._folder: Path | None = None
        self.limit = 0
        self.step = 0  # 0-based, that is read now
        self.closed = threading.Event()
        self.threads: list[threading.Thread] = []
        self.order: Callable[[int], Iterable[str]] = lambda step: ()  # files as the steps from `step` on need them
        self._used: IO[str] | None = None  # locked until this process ends

    def use(self, root: str | None, gigabytes: float | None) -> None:
        """Use the cache in `root`, the user's own by default, for files of at most so many gigabytes.

        Raises TrainError where the folder cannot be made.
        """
        folder = Path(root) if root else default_cache()
        self._folder = folder.absolute() / self.name
        try:
            self._used = hold_used(self._folder)
        except OSError as error:
            raise TrainError(
                f"{folder}: shards cannot be kept there ({error.strerror}); name a folder with --set train.cache=FOLDER"
            ) from None
        self.limit = int(gigabytes * 1e9) if gigabytes else default_limit(folder)

    @property
    def folder(self) -> Path:
        """Where the copies lie."""
        if self._folder is None:
            self.use(None, None)
        assert self._folder is not None
        return self._folder

    def path(self, relative: str) -> Path:
        """Return where a file lies once it is here. Raises ManifestError where the name leads out of the build."""
        return path_below(self.folder, relative)

    def has(self, relative: str) -> bool:
        """Return whether a file is here and as long as it must be."""
        size = self.files[relative].bytes if relative in self.files else None
        try:
            return size in (None, self.path(relative).stat().st_size)
        except FileNotFoundError:
            return False

    def fetch(self, relative: str) -> Path:
        """Return the path of a file, whole; waits for it where it has to be copied first. Raises ManifestError."""
        if not self.has(relative):
            with self._locked(relative):
                if not self.has(relative):
                    self._make_room(relative, ahead=False)
                    self._download(relative)
        return self.path(relative)

    def drop_damaged(self, relatives: Iterable[str]) -> None:
        """Delete those of the files here whose sha256 is not the manifest's."""
        for relative in relatives:
            if self.has(relative):
                with self._locked(relative):
                    if self.has(relative) and sha256_file(self.path(relative)) != self.files[relative].sha256:
                        self.path(relative).unlink()

    def describe(self) -> str:
        """Return a line for people: where the copies are, and how many shards are there already."""
        shards = [relative for relative, file in self.files.items() if file.bytes is not None]
        here = sum(map(self.has, shards))
        return (
            f"{here:,} of {len(shards):,} shards are in {self.folder}, which holds {self.limit / 1e9:.3g} GB at most; "
            "others are copied as they are needed"
        )

    # -- ahead of training ---------------------------------------------------------------------------

    def fetch_ahead(self, order: Callable[[int], Iterable[str]], step: int) -> None:
        """Begin to fetch files in the background: those that `order` gives for `step`, in its order, as room allows."""
        self.order, self.step = order, step
        self.threads = [threading.Thread(target=self._fill, daemon=True, name="shards") for _ in range(FETCHING)]
        for thread in self.threads:
            thread.start()

    def begin_step(self, step: int) -> None:
        """Hear which 0-based step is read now."""
        self.step = step

    def stop(self) -> None:
        """End fetching ahead."""
        self.closed.set()
        for thread in self.threads:
            thread.join()

    def close(self) -> None:
        """End using the build's folder."""
        self.stop()
        if self._used is not None:
            self._used.close()

    def _fill(self) -> None:
        pause = 0.0
        while not self.closed.wait(pause):
            pause, missing = 1.0, False
            for relative in self.order(self.step):
                if self.closed.is_set():
                    return
                if self.has(relative):
                    continue
                missing = True
                try:
                    with self._locked(relative, wait=False) as is_ours:
                        if is_ours and not self.has(relative):
                            if not self._make_room(relative, ahead=True):
                                break
                            self._download(relative, self.closed.is_set)
                except InterruptedError:
                    return
                except ManifestError:  # `fetch` says it, where the file is needed
                    break
            if not missing:
                return

    # -- one file ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, relative: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of one file; gives False where another holds it and we do not wait."""
        path = self.path(relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _download(self, relative: str, stops: Callable[[], bool] = lambda: False) -> None:
        """Copy one file here and compare its sha256; a wrong one is asked for once more. Raises ManifestError."""
        path, address = self.path(relative), f"{self.build}/{relative}"
        part = path.with_name(f".{path.name}.part")
        wanted = self.files[relative].sha256 if relative in self.files else ""
        try:
            for _ in range(2):
                self.bucket.download(address, part, stops)
                if not wanted or sha256_file(part) == wanted:
                    part.replace(path)
                    return
        except FileNotFoundError:
            raise ManifestError(
                f"{address}: not there, and the manifest names it; bring it back: {self.again()}"
            ) from None
        except UnavailableError as error:
            raise ManifestError(f"{error}; the same command with train.resume=auto goes on") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ManifestError(f"{part}: the disk is full; free some, or name another folder: train.cache") from None
        finally:
            part.unlink(missing_ok=True)
        raise ManifestError(f"{address}: damaged: its sha256 is not the manifest's; bring it back: {self.again()}")

    # -- room ----------------------------------------------------------------------------------------

    def _make_room(self, relative: str, ahead: bool) -> bool:
        """Delete what is not needed until `relative` fits. False where it does not, `ahead` of need.

        Ahead of need only what is needed later than `relative` goes. Raises ManifestError where all is not enough.
        """
        size = self.files[relative].bytes or 0 if relative in self.files else 0
        with (self.folder.parent / ".room").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            over = bytes_below(self.folder.parent) + size - self.limit
            if over > 0:
                over -= delete_unused(self.folder.parent, over, self.folder)
            # a step ago first: another process may still be there
            order = list(self.order(max(0, self.step - 1)))
            kept = order.index(relative) + 1 if ahead else 0
            for victim in (other for other in reversed(order[kept:]) if self.has(other)):
                if over <= 0:
                    break
                over -= self.path(victim).stat().st_size
                self.path(victim).unlink()
        if over > 0 and not ahead:
            raise ManifestError(
                f"{self.build}/{relative}: {size / 1e9:.3g} GB do not fit into the cache of {self.limit / 1e9:.3g} GB, "
                f"{self.folder.parent}; make it larger: --set train.cache_gb=GIGABYTES"
            )
        return over <= 0


def hold_used(folder: Path) -> IO[str]:
    """Make the folder of a build, and mark it as used until the file that is returned is closed. Raises OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        used = (folder / USED).open("a")
        fcntl.flock(used, fcntl.LOCK_SH)
        if (folder / USED).exists():  # it was not deleted between the two
            os.utime(used.fileno())
            return used
        used.close()


def default_limit(root: Path) -> int:
    """Return the bytes that a cache of no given size may take: SHARE of what it has and what is free on its disk."""
    return int(SHARE * (shutil.disk_usage(root).free + bytes_below(root)))


def delete_unused(root: Path, wanted: int, spared: Path) -> int:
    """Delete folders of a cache that no process uses, but `spared`, until so many bytes are free. Returns how many."""
    freed = 0
    others = [used for used in root.glob(f"*/{USED}") if used.parent != spared]
    for used in sorted(others, key=lambda path: path.stat().st_mtime):
        if freed >= wanted:
            break
        with used.open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed += bytes_below(used.parent)
            shutil.rmtree(used.parent, ignore_errors=True)
    return freed


def check_size(manifest: Manifest, cfg: TrainConfig, limit: int) -> None:
    """Raise TrainError where a cache of so many bytes cannot hold what a step may read."""
    sizes = [shard.bytes for shard in manifest.split("train")]
    needed = sum(sizes) if cfg.order == "shuffled" else 2 * max(sizes, default=0)
    needed += sum(shard.bytes for shard in manifest.shards if shard.split == "val")
    if needed > limit:
        why = "a step reads from any shard" if cfg.order == "shuffled" else "the next shard comes while one is read"
        raise TrainError(
            f"train.cache_gb: {limit / 1e9:.3g} GB, and {needed / 1e9:.3g} GB of {manifest.folder} must "
            f"be here ({why})\nmake room: --set train.cache=FOLDER train.cache_gb={1.05 * needed / 1e9 + 0.001:.3g}"
        )


def default_cache() -> Path:
    """Return the folder for copies where none is named: shardmill/shards in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardmill" / "shards"


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder; those that go meanwhile are left out."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_size
    return total
