"""Checkpoints written while training goes on.

At a save the first rank copies all tensors to host memory, which makes them of one moment; a thread then does the rest:
write, hash, flush, rename (train/checkpoint/checkpoint.py). One write is under way at most: the next save waits for it,
and says so when that took long. What a thread could not write is raised by `wait`, which every save begins with.

On CUDA the copies go to page-locked buffers behind the step's kernels and nobody waits for them but the thread. The
buffers are kept from the first save to the end and used again, as locking pages takes longer than filling them. So it
costs as much host memory as a checkpoint is long, on the first rank: 12 bytes a parameter under AdamW, 8 for what Muon
takes, 4 more for each average (650 MB for 54 million); not locked where the device is no GPU.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from train.config import TrainError


class BackgroundWriter:
    """The thread that writes, when there is one, and the buffers that it reads."""

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        """after: is called in the thread once a write is done."""
        self.after = after
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.buffers: dict[tuple[int, str], Tensor] = {}  # by group and name

    def copy_to_host(self, *groups: Mapping[str, Tensor]) -> tuple[list[dict[str, Tensor]], Callable[[], None]]:
        """Copy each group of tensors to the host. Call it after `wait` only.

        A name stands for the same shape in every call. Returns the copies, and a function that waits until they are
        complete.
        """
        copies: list[dict[str, Tensor]] = []
        on_cuda = False
        for number, group in enumerate(groups):
            for name, tensor in group.items():
                on_cuda |= tensor.is_cuda
                self._buffer(number, name, tensor).copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            copies.append({name: self.buffers[number, name] for name in group})
        if not on_cuda:
            return copies, lambda: None
        copied = torch.cuda.Event(blocking=True)
        copied.record()
        return copies, copied.synchronize

    def _buffer(self, group: int, name: str, tensor: Tensor) -> Tensor:
        if (group, name) not in self.buffers:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self.buffers[group, name] = buffer
        return self.buffers[group, name]

    def start(self, work: Callable[[], None]) -> None:
        """Begin a write, which waits for the one before it and is left out where that failed."""
        before = self.thread

        def guarded() -> None:
            if before is not None:
                before.join()
            if self.error is not None:
                return
            try:
                work()
                self.after()
            except BaseException as error:  # whatever it is, `wait` raises it where somebody listens
                self.error = error

        self.thread = threading.Thread(target=guarded, name="checkpoint")
        self.thread.start()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise."""
        return self.error is not None

    def wait(self) -> float:
        """Wait until nothing is being written. Returns the seconds that took, and raises what the thread met.

        That is a TrainError mostly.
        """
        started = time.perf_counter()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error is not None:
            raise error
        return time.perf_counter() - started

    def close(self) -> None:
        """Wait as `wait` does, where something else went wrong already: a failure is printed and not raised."""
        try:
            self.wait()
        except TrainError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
