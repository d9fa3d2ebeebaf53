"""The next step's batch, read while this one trains: one thread, one batch ahead.

A batch is a pure function of the step, so reading it early changes nothing, and nothing about a resume. numpy's copies
and page faults release the interpreter lock. On CUDA the thread enqueues its copy to the device on the same stream as
the step's kernels (a thread's current stream is the default one), so no event is needed between them.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from train.data.loader import Batch, Loader


class Prefetcher:
    """A loader whose batches are mostly there when they are asked for. A batch is valid until the next one."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.thread = ThreadPoolExecutor(1, "batch")  # ends when it is no longer referred to
        self.pending: dict[tuple[int, bool], Future[Batch]] = {}  # one at most

    def batch(self, step: int, document_mask: bool = False) -> Batch:
        """Return what the loader's `batch` returns, and begin to read the next one.

        An error in reading is raised in the step that needs the batch.
        """
        future = self.pending.pop((step, document_mask), None)
        if future is None:
            future = self.thread.submit(self.loader.batch, step, document_mask)
        self.pending.clear()  # of another step: dropped with its error, if it has one
        batch = future.result()
        self.pending[step + 1, document_mask] = self.thread.submit(self.loader.batch, step + 1, document_mask)
        return batch
