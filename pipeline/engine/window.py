"""Awaiting many results, some of them at a time: the driver's memory does not grow with their number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import TypeVar

from pipeline.errors import UnitFailed
from stages.errors import NotBuilt

WINDOW = 256  # results awaited at a time, at least

Result = TypeVar("Result")


class Missing(Enum):
    """What stands for a result that is not there (yet)."""

    MISSING = 0


async def gather(
    awaitables: Iterable[Awaitable[Result]],
    is_over: Callable[[], bool],
    may_be_lost: Callable[[NotBuilt | UnitFailed], bool],
    slots: Callable[[], int],
) -> tuple[list[Result], dict[bool, NotBuilt | UnitFailed]]:
    """Await many results that hold units, some at a time; no more are begun once `is_over`.

    At a time: twice the executor's `slots`, which may change, so that all of them are used, and WINDOW at least.
    Returns those that came, in order, and of the units that did not the first error of those that may be lost and of
    the others, in the order in which they came. Any other error is raised, and nothing more is awaited.
    """
    ended = asyncio.Event()
    results: list[Result | Missing] = []
    errors: dict[bool, NotBuilt | UnitFailed] = {}
    faults: list[Exception] = []
    running: set[asyncio.Task[None]] = set()

    async def wait_for(number: int, awaitable: Awaitable[Result]) -> None:
        try:
            results[number] = await awaitable
        except (NotBuilt, UnitFailed) as error:
            errors.setdefault(may_be_lost(error), error)
        except Exception as error:
            faults.append(error)

    def forget(task: asyncio.Task[None]) -> None:
        running.discard(task)
        ended.set()

    for number, awaitable in enumerate(awaitables):
        while len(running) >= max(WINDOW, 2 * slots()):
            ended.clear()
            await ended.wait()
        # A task of its own, so that it ends cleanly when it is cancelled before its turn.
        inner = asyncio.ensure_future(awaitable)
        results.append(Missing.MISSING)
        task = asyncio.ensure_future(wait_for(number, inner))
        running.add(task)
        task.add_done_callback(forget)
        if faults or is_over():
            break
    while running and not faults:
        ended.clear()
        await ended.wait()
    if faults:
        raise faults[0]
    return [result for result in results if not isinstance(result, Missing)], errors
