"""Where a run runs: processes, device, signals. The same under torchrun, srun with the same variables, and Ray Train.

The launcher says who we are in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without
RANK it is one process. A process group that exists already (Ray Train makes one) is used and left alone.
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
from train.manifest import ManifestError

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
            except (TrainError, ManifestError) as error:
                box[1] = error
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextlib.contextmanager
def processes() -> Iterator[Runtime]:
    """Join the other processes, and leave them at the end."""
    launched = "RANK" in os.environ
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1") if launched else "1")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif launched:
        # torchrun sets OMP_NUM_THREADS=1: share the cores this machine gives us instead
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        torch.set_num_threads(max(1, cores() // local))
    ours = launched and world > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield Runtime(rank, world, device, dist.new_group(backend="gloo") if world > 1 else None)
    finally:
        if ours:
            dist.destroy_process_group()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
