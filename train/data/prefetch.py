"""The next step's batch, read while this one trains: one thread, one batch ahead.

A batch is a pure function of the step, so reading it early changes nothing, and nothing about a resume. numpy's copies
and page faults release the interpreter lock. On CUDA the thread enqueues its copy to the device on the same stream as
the step's kernels (a thread's current stream is the default one), so no event is needed between them.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from train.data.loader import Batch, Loader


class Ahead:
    """`batch` of a loader, mostly there when it is asked for. Valid until the next one, as the loader's."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.thread = ThreadPoolExecutor(1, "batch")  # ends when it is no longer referred to
        self.pending: dict[tuple[int, bool], Future[Batch]] = {}  # one at most

    def batch(self, step: int, documents: bool = False) -> Batch:
        """What the loader's `batch` returns, or raises: an error is that of the step that needs the batch."""
        asked = self.pending.pop((step, documents), None) or self.thread.submit(self.loader.batch, step, documents)
        self.pending.clear()  # of another step: dropped with its error, if it has one
        batch = asked.result()
        self.pending[step + 1, documents] = self.thread.submit(self.loader.batch, step + 1, documents)
        return batch
