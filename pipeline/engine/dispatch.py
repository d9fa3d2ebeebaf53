"""Sending units to the executor. It starts with the first unit that must run; what fails in passing is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator

from pipeline.engine.executor import Executor, Fault, NodeLost, UnitSpec, WorkerLost
from pipeline.engine.journal import Journal
from pipeline.engine.locks import run_lock
from pipeline.engine.progress import Progress
from pipeline.engine.signals import StopSignals
from pipeline.engine.store import Store
from pipeline.errors import Stopped, UnitFailed
from stages.registry import STAGES
from stages.stage import Record

RETRIES = 5  # of transient errors, after pauses of 1, 2, 4, 8 and 16 s
FORGIVEN = 600.0  # seconds that a unit has worked, after which its earlier transient errors do not count
LOST_RETRIES = 3  # a unit that kills its worker four times will do so again
NODE_RETRIES = 50  # nodes die for reasons of their own
LOOK_EVERY = 1.0  # seconds between two looks at the executor's slots
NEWS_EVERY = 10.0  # seconds between the lines of a long unit


class Dispatcher:
    """The executor of one run, and the rules by which units are tried again."""

    def __init__(
        self, make_executor: Callable[[], Executor], store: Store, progress: Progress, command: str, debug: bool
    ):
        self.store, self.progress, self.debug = store, progress, debug
        self.signals = StopSignals(progress.line)
        self.fatal: UnitFailed | None = None  # ends the run: no other unit is started
        self._make_executor = make_executor
        self._journal = Journal(store, command)
        self._executor: Executor | None = None
        self._follower: asyncio.Task[None] | None = None
        self._busy = 0  # units in flight
        self._turn = asyncio.Condition()  # to be one
        self._lock = contextlib.ExitStack()  # holds the run's lock while there is an executor
        self._command = command

    @property
    def started(self) -> bool:
        """Whether anything had to run."""
        return self._executor is not None

    @property
    def slots(self) -> int:
        """Units that may be in flight; 0 before the executor was started."""
        return self._executor.slots if self._executor else 0

    def _start(self) -> Executor:
        if self._executor is None:
            self._lock.enter_context(run_lock(self.store, self._command))
            self._executor = self._make_executor()
            self.progress.line(f"executor {self._executor.name}, {self._executor.slots} slots")
            self._follower = asyncio.ensure_future(self._follow_slots(self._executor))
        return self._executor

    async def _follow_slots(self, executor: Executor) -> None:
        """Let units in as the executor gets more slots."""
        slots = executor.slots
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if executor.slots != slots:
                slots = executor.slots
                async with self._turn:
                    self._turn.notify_all()

    @contextlib.asynccontextmanager
    async def _slot(self, executor: Executor) -> AsyncIterator[None]:
        """Wait until a unit may be in flight, and be one inside."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._busy < executor.slots)
            self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            async with self._turn:
                self._turn.notify()

    async def submit(self, spec: UnitSpec) -> Record:
        """Run one unit to its record. Raises UnitFailed when it failed for good, and Stopped after a signal."""
        stage, label = spec["stage"], spec["label"]
        await asyncio.sleep(0)  # let the window fill: `auto` chooses the executor by the bytes planned so far
        executor = self._start()
        spec["executor"] = executor.name
        tries = spec["tries"] = []
        transient = lost = nodes = 0
        while True:
            try:
                async with self._slot(executor):
                    if self.fatal:
                        raise self.fatal
                    if self.signals.received:
                        raise Stopped(f"a signal came before {stage} {label}; the same command continues there")
                    self.progress.started(stage, label)
                    began = time.monotonic()
                    with self._following(spec):
                        reply = await executor.submit(spec)
            except WorkerLost as error:
                tries.append(str(error))
                nodes, lost = (nodes + 1, lost) if isinstance(error, NodeLost) else (nodes, lost + 1)
                if lost > LOST_RETRIES or nodes > NODE_RETRIES:
                    raise UnitFailed(stage, label, f"its worker died {len(tries)} times; last: {error}") from None
                self.progress.line(f"{stage} {label}: {error}; trying again")
                continue
            if "record" in reply:
                return Record.from_dict(reply["record"])
            fault = reply["error"]
            transient = 0 if time.monotonic() > began + FORGIVEN else transient
            self._raise_if_final(spec, fault, transient)
            pause = 2**transient * (0.5 + random.random())
            transient += 1
            tries.append(fault["message"])
            self.progress.line(f"{stage} {label}: {fault['message']}; trying again in {pause:.0f} s")
            await asyncio.sleep(pause)

    def _raise_if_final(self, spec: UnitSpec, fault: Fault, transient: int) -> None:
        """Raise unless the unit is to be tried again, after `transient` earlier retries."""
        stage, label = spec["stage"], spec["label"]
        if self.debug:
            self.progress.line(fault["trace"])
        if fault["kind"] == "unfinished" or self.signals.received:
            raise Stopped(f"{stage} {label}: {fault['message']}; the same command continues")
        if fault["kind"] != "transient" or transient >= RETRIES:
            failure = UnitFailed(stage, label, fault["message"], fatal=fault["kind"] == "fatal")
            if failure.fatal:
                self.fatal = failure
            raise failure

    @contextlib.contextmanager
    def _following(self, spec: UnitSpec) -> Iterator[None]:
        """Ask a unit to stop when the run is, and pass on what it says of itself; a local one has our terminal."""
        stage = STAGES[spec["stage"]]
        folder = self.store.folder(spec["stage"], spec["key"])
        news = stage.news

        async def follow() -> None:
            shown = ""
            while news is not None:
                await asyncio.sleep(NEWS_EVERY)
                line = news(folder, spec["params"])
                if line and line != shown:
                    shown = line
                    self.progress.line(f"{spec['stage']} {spec['label']}: {line}")

        remote = self._executor is not None and self._executor.name != "local"
        follower = asyncio.ensure_future(follow()) if news and remote else None
        try:
            with self.signals.stop_file(spec, folder) if stage.stops else contextlib.nullcontext():
                yield
        finally:
            if follower:
                follower.cancel()

    def note(self, event: str) -> None:
        """Say what befell the run, and keep it for `status`."""
        self.progress.line(event)
        self._journal.note(event)

    def close(self, how: str) -> None:
        """Stop the executor, if one was started. `how` says in a word or two how the run ended."""
        if self._follower is not None:
            self._follower.cancel()
        if self._executor is not None:
            self._executor.close()
        self._journal.close(how)
        self._lock.close()
