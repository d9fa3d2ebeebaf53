"""Where a run runs: processes, device, signals. The same under torchrun, srun, mpirun and Ray Train.

The launcher says who we are (train/distributed/launch_env.py); without one it is one process. A process group that
exists already (Ray Train makes one) is used and left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from train.config import TrainError
from train.data.manifest import ManifestError
from train.distributed.launch_env import Place, place_of

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill


@dataclass(frozen=True)
class Runtime:
    """This process among the others. `control` is a gloo group: small CPU messages that never wait for a GPU."""

    rank: int
    world: int
    device: torch.device
    control: Any

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def say(self, text: str = "") -> None:
        """Print on the first rank, at once."""
        if self.first:
            print(text, flush=True)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks in place, on the device."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is up; every rank gets the same answer. A CPU message."""
        if self.world == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, group=self.control)
        return bool(value)

    def firsts(self, value: float) -> float:
        """The first rank's value. A CPU message."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return float(tensor)

    def agreed(self, work: Callable[[], T]) -> T:
        """`work` done by rank 0 alone, its result or its error (for people) had by all."""
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except (TrainError, ManifestError, OSError) as error:
                box[1] = error
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextlib.contextmanager
def processes() -> Iterator[Runtime]:
    """Join the other processes, and leave them at the end. Raises TrainError for a launcher's half set variables."""
    place = place_of(os.environ)
    rank, world = (place.rank, place.world) if place else (0, 1)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", _gpu(place)) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif place:
        torch.set_num_threads(place.threads)  # torchrun sets OMP_NUM_THREADS=1
    ours = place is not None and world > 1 and not dist.is_initialized()
    if place is not None and ours:
        backend, bound = ("nccl", device) if cuda else ("gloo", None)
        dist.init_process_group(backend, init_method=place.meet, rank=rank, world_size=world, device_id=bound)
    try:
        yield Runtime(rank, world, device, dist.new_group(backend="gloo") if world > 1 else None)
    finally:
        if ours:
            dist.destroy_process_group()


def _gpu(place: Place | None) -> int:
    """The number of this process's GPU among those it sees, which is one where srun gives each task its own."""
    seen, local = torch.cuda.device_count(), place.local if place else 0
    if 1 < seen <= local:
        raise TrainError(f"{seen} GPUs for more processes than that on this machine; start one process a GPU")
    return local if seen > 1 else 0


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM or SIGUSR1 came. Outside the main thread (Ray Train) it never does."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in STOP_SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
