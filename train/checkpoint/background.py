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


class Writer:
    """The thread that writes, when there is one, and the buffers that it reads."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.held: dict[tuple[int, str], Tensor] = {}

    def copied(self, *groups: Mapping[str, Tensor]) -> tuple[list[dict[str, Tensor]], Callable[[], None]]:
        """Each group of tensors on the host, and what waits until they are there. Only after `wait`.

        A name stands for the same shape in every call.
        """
        copies: list[dict[str, Tensor]] = []
        cuda = False
        for number, group in enumerate(groups):
            for name, tensor in group.items():
                key = number, name
                if key not in self.held:
                    self.held[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self.held[key].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                cuda |= tensor.is_cuda
            copies.append({name: self.held[number, name] for name in group})
        if not cuda:
            return copies, lambda: None
        copied = torch.cuda.Event(blocking=True)
        copied.record()
        return copies, copied.synchronize

    def start(self, work: Callable[[], None]) -> None:
        """Begin a write. Only after `wait`."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, `wait` raises it where somebody listens
                self.error = error

        self.thread = threading.Thread(target=guarded, name="checkpoint")
        self.thread.start()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise."""
        return self.error is not None

    def wait(self) -> float:
        """Until nothing is being written; the seconds that took. Raises what the thread met: TrainError mostly."""
        started = time.perf_counter()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error is not None:
            raise error
        return time.perf_counter() - started

    def close(self) -> None:
        """`wait` where something else went wrong already: a failure is only said."""
        try:
            self.wait()
        except TrainError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
