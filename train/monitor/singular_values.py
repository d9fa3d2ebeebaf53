"""The rank-loss alarm over singular values: does a matrix that Muon trains lose a direction for good?

Round robin: each ceil(`every` / matrices) steps the next matrix is copied, which one is a function of the step alone,
and a thread of the first rank computes its extreme singular values, smin and smax. Where rcond = smin / smax < `floor`,
that is an event (docs/trainer-math.md, "Singular-value alarm"). No weight is touched and no step waits. A matrix with
smax < 1e-6 is passed over: zero where it started, it has nothing to lose yet.

A step costs nothing, a measurement a copy of one matrix and some 40 ms of one core for 512 x 2048: the eigenvalues of
its Gram matrix in fp64, which resolve rcond down to 1e-8 (in fp32: 3e-4, which is above the floor), in numpy, whose
threads are not those that train (train/main.py holds them at one). svdvals is 4 times slower.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import RankLossConfig, TrainError

ZERO = 1e-6  # largest singular value of a matrix that is passed over
LINE = 8  # copies that may wait for the thread


class SingularValues(NamedTuple):
    """The extreme singular values of the matrix `name` after `step` updates."""

    step: int
    name: str
    smin: float
    smax: float

    @property
    def rcond(self) -> float:
        """smin / smax: 0 for a matrix without full rank, 1 for an orthogonal one."""
        return self.smin / self.smax


class SingularValueWatch:
    """The watch over `matrices`, by name; over none, as on all ranks but the first, it does nothing."""

    def __init__(self, matrices: dict[str, Tensor], cfg: RankLossConfig) -> None:
        self.cfg = cfg
        self.matrices = list(matrices.items()) if cfg.every else []
        self.interval = -(-cfg.every // max(1, len(matrices)))
        self.worker = ThreadPoolExecutor(1, "rank_loss")  # starts its thread at the first matrix
        self.waiting: list[Future[SingularValues | None]] = []
        self.measured: list[SingularValues] = []  # not read yet
        self.lost: list[SingularValues] = []  # below the floor
        self.warned = False

    def after_step(self, step: int) -> None:
        """Send the matrix whose turn it is after `step` updates, from 1, if any, to be measured."""
        if not self.matrices or step % self.interval:
            return
        if len(self.waiting) >= LINE:
            if not self.warned:
                print(
                    f"warning: rank loss: at step {step} {LINE} matrices wait to be measured: some are left out; raise "
                    f"train.rank_loss.every ({self.cfg.every})",
                    file=sys.stderr,
                    flush=True,
                )
            self.warned = True
            return
        name, matrix = self.matrices[(step // self.interval - 1) % len(self.matrices)]
        copy = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=matrix.is_cuda)
        copy.copy_(matrix.detach(), non_blocking=True)
        ready = None
        if matrix.is_cuda:
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(matrix.device))
        self.waiting.append(self.worker.submit(_measure, step, name, copy, ready))

    def stops(self, wait: bool) -> bool:
        """Return whether the run shall end by what is known now; `wait`: by all matrices that were sent."""
        self._collect(wait)
        return self.cfg.policy == "stop" and bool(self.lost)

    def read(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return what has come since the last reading: figures for metrics.jsonl, and events."""
        self._collect(False)
        figures: dict[str, float] = {}
        events: list[dict[str, Any]] = []
        for values in self.measured:
            extremes = {"smin": values.smin, "smax": values.smax, "rcond": values.rcond}
            figures |= {f"sentinel/{values.name}/{key}": value for key, value in extremes.items()}
            if values in self.lost:
                events.append({"step": values.step, "event": "rank loss", "matrix": values.name, **extremes})
        self.measured.clear()
        return figures, events

    def check(self, folder: object) -> None:
        """Raise TrainError where `stops`."""
        if self.stops(False):
            values = self.lost[0]
            raise TrainError(
                f"step {values.step}: rank loss: {values.name} has rcond {values.rcond:.1e}, below "
                f"train.rank_loss.floor {self.cfg.floor:g}; everything is saved in {folder}\n"
                "go on with train.resume=auto train.rank_loss.policy=warn; or give an earlier checkpoint's weights "
                "(train.init_from) to a run with a lower train.muon.lr or a higher train.muon.weight_decay"
            )

    def close(self) -> None:
        """End the thread; what was not begun is dropped."""
        self.worker.shutdown(wait=False, cancel_futures=True)

    def _collect(self, wait: bool) -> None:
        """Take what the thread has measured, in order; `wait`: until all is."""
        while self.waiting and (wait or self.waiting[0].done()):
            values = self.waiting.pop(0).result()
            if values is None:
                continue
            self.measured.append(values)
            if values.rcond < self.cfg.floor:
                self.lost.append(values)


def extreme_singular_values(matrix: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return the smallest and the largest singular value of a finite matrix (m, n)."""
    a = matrix.astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a)
    smin, smax = np.sqrt(np.maximum(eigenvalues[[0, -1]], 0.0)).tolist()
    return smin, smax


def _measure(step: int, name: str, copy: Tensor, ready: torch.cuda.Event | None) -> SingularValues | None:
    """In the thread. None: passed over; what is not finite is the other sentinel's."""
    if ready is not None:
        ready.synchronize()
    matrix = copy.numpy()
    if not np.isfinite(matrix).all():
        return None
    smin, smax = extreme_singular_values(matrix)
    return SingularValues(step, name, smin, smax) if smax >= ZERO else None
