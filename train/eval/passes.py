"""The forward passes of an evaluation: dealt to the ranks in turn, and given up when the run is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Pass = TypeVar("Pass")


class EvaluationStoppedError(Exception):
    """The run was asked to stop while it was scored. Raised on all ranks."""


def passes_of_rank(
    passes: Sequence[Pass], rank: int, world_size: int, should_stop: Callable[[], bool] | None = None
) -> Iterator[Pass]:
    """Yield the passes that are `rank`'s.

    should_stop: asked before each, on every rank equally often, so it may wait for the other ranks' answer. Raises
    EvaluationStoppedError when it says yes.
    """
    for first in range(0, len(passes), world_size):
        if should_stop is not None and should_stop():
            raise EvaluationStoppedError
        if first + rank < len(passes):
            yield passes[first + rank]
