"""Where a run runs: processes, device, signals. The same under torchrun, srun, mpirun and Ray Train.

The launcher says who we are (train/distributed/launch_env.py); without one it is one process. A process group that
exists already (Ray Train makes one) is used and left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from train.config import TrainError
from train.data.manifest import ManifestError
from train.distributed.launch_env import ProcessInfo, process_info
from train.monitor.text import printable

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of schedulers before they kill, and of people
# A user's are left as they are.
ALLOCATOR_SETTINGS = {f"PYTORCH_{kind}ALLOC_CONF" for kind in ("", "CUDA_", "HIP_")}
SAME_CTRL_C = 1.0  # seconds in which SIGINT twice is one press: a terminal and a launcher may both send it


class PeerLostError(TrainError):
    """Another process of the run has ended. Ours must end too, without waiting for it."""


@dataclass(frozen=True)
class Runtime:
    """This process among the others. `control` is a gloo group: small CPU messages that never wait for a GPU."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None  # None where there is one process

    @property
    def is_rank0(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def print_rank0(self, text: str = "") -> None:
        """Print `text` at once, on rank 0 alone."""
        if self.is_rank0:
            print(printable(text), flush=True)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all ranks in place, on the device, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag of any rank is up: the same answer on every rank. A CPU message."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, group=self.control)
        return bool(value)

    def raise_if_any(self, error: Exception | None) -> None:
        """Raise the first rank's error on all ranks, if one has one. Every rank calls it."""
        errors: list[Exception | None] = [error]
        if self.world_size > 1:
            errors = [None] * self.world_size
            dist.all_gather_object(errors, error, group=self.control)
        for of_rank in errors:
            if of_rank is not None:
                raise of_rank

    def broadcast_value(self, value: float) -> float:
        """Return rank 0's `value` on every rank. A CPU message."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return float(tensor)

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone, and return its result on every rank.

        Raises on every rank what it raised there, if that is an error for people.
        """
        outcome: list[Any] = [None, None]  # the result and the error
        if self.is_rank0:
            try:
                outcome[0] = work()
            except (TrainError, ManifestError, OSError) as error:
                outcome[1] = error
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result


@contextlib.contextmanager
def join_processes() -> Iterator[Runtime]:
    """Join the other processes, and leave them at the end. Raises TrainError for a launcher's half set variables."""
    info = process_info(os.environ)
    rank, world_size = (info.rank, info.world_size) if info else (0, 1)
    if not ALLOCATOR_SETTINGS & os.environ.keys():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # read at the first allocation
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda", _gpu_number(info)) if has_cuda else torch.device("cpu")
    if has_cuda:
        torch.cuda.set_device(device)
    elif info:
        torch.set_num_threads(info.threads)  # torchrun sets OMP_NUM_THREADS=1
    makes_group = info is not None and world_size > 1 and not dist.is_initialized()
    if info is not None and makes_group:
        dist.init_process_group(
            backend="nccl" if has_cuda else "gloo",
            init_method=info.init_method,
            rank=rank,
            world_size=world_size,
            device_id=device if has_cuda else None,
        )
    try:
        control = dist.new_group(backend="gloo") if world_size > 1 else None
        yield Runtime(rank, world_size, device, control)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        makes_group = False  # leaving would wait for the one that is gone
        raise PeerLostError(
            "another process of this run has ended, and what it said tells why; the same command with "
            f"train.resume=auto goes on from the last checkpoint ({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        if makes_group:
            dist.destroy_process_group()


def _gpu_number(info: ProcessInfo | None) -> int:
    """Return the number of this process's GPU among those it sees: one alone where srun gives each task its own."""
    visible = torch.cuda.device_count()
    local_rank = info.local_rank if info else 0
    if 1 < visible <= local_rank:
        raise TrainError(f"{visible} GPUs for more processes than that on this machine; start one process a GPU")
    return local_rank if visible > 1 else 0


@contextlib.contextmanager
def stop_requests(ends_process: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM, SIGUSR1 or Ctrl-C came. Outside the main thread it never does.

    Ctrl-C a second time raises KeyboardInterrupt. torchrun passes the first on to processes that have it already.
    ends_process: once all is done and saved, the signals are ignored: Python itself takes time to end, and the exit
    status is known. After an error they act as before, so that torchrun can end us.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    interrupted = 0.0  # when Ctrl-C came first

    def handle(number: int, frame: object) -> None:
        nonlocal interrupted
        requested.set()
        if number != signal.SIGINT:
            return
        if interrupted and time.monotonic() > interrupted + SAME_CTRL_C:
            raise KeyboardInterrupt
        if not interrupted and os.environ.get("RANK", "0") == "0":
            # not print: the signal may have come inside another write
            os.write(2, b"stopping: this step is finished and saved; Ctrl-C again ends at once\n")
        interrupted = interrupted or time.monotonic()

    # What ignores Ctrl-C was started in the background, or by a driver that answers it.
    ignored = {signal.SIGINT} if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else set()
    handlers_before = {number: signal.signal(number, handle) for number in STOP_SIGNALS if number not in ignored}
    handlers_after: dict[signal.Signals, Any] = handlers_before
    try:
        yield requested.is_set
        if ends_process:
            handlers_after = dict.fromkeys(handlers_before, signal.SIG_IGN)
    finally:
        for number, handler in handlers_after.items():
            signal.signal(number, handler)
