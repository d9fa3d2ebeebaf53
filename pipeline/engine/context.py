"""The engine: keys, reuse, retries, a bounded window of units in flight, and the dry run.

`Context` is what a stage's `build` sees. It turns "run this work on these inputs" into a key, looks the key
up in the store, and only then asks the executor. The driver holds no truth: whatever it knew, the records
say again after it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

from pipeline.engine import fingerprint, quarantine
from pipeline.engine.changes import Units, fact_digest, reason
from pipeline.engine.graph import order
from pipeline.engine.locks import run_lock
from pipeline.engine.progress import Progress
from pipeline.engine.signals import Stops
from pipeline.engine.state import StageState, slim
from pipeline.engine.store import UNITS, Store
from pipeline.errors import NotBuilt, Stopped, UnitFailed
from pipeline.executors.choose import Executor, WorkerLost
from pipeline.recipe import Recipe
from stages.base import Artifact, Record, Stage, Task, work_name
from stages.registry import STAGES
from stages.sources.base import UnitSpec
from stages.sources.registry import describe
from train.data.manifest import SourceFile

RETRIES = 5  # transient errors: 1, 2, 4, 8, 16 s and then give up
LOST_RETRIES = 3  # a unit that kills its worker four times will do so again
NEWS_EVERY = 10.0  # seconds between the lines of a long unit
WINDOW = 256  # units prepared ahead of the executor; bounds the driver's memory


class Context:
    """One build of one recipe: what stages call, and what the command line reports on."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        executor: Callable[[], Executor],
        progress: Progress,
        *,
        dry: bool = False,
        force: frozenset[str] = frozenset(),
        debug: bool = False,
    ):
        self.recipe, self.store, self.progress = recipe, store, progress
        self.dry, self.force, self.debug = dry, force, debug
        self.states: dict[str, StageState] = {}
        self.listed: dict[str, list[UnitSpec]] = {}  # units of sources that a plan has listed already
        self._make_executor = executor
        self._executor: Executor | None = None
        self._slots: asyncio.Semaphore | None = None
        self._stages: dict[str, asyncio.Task[Any]] = {}
        self._flying: dict[str, asyncio.Future[Record]] = {}  # key -> a unit that is being looked up or run
        self._codes: dict[tuple[str, str], str] = {}  # (stage, work) -> fingerprint
        self._files: dict[str, set[tuple[str, int, str]]] = {}  # source -> files its download units read
        self._fatal: UnitFailed | None = None
        self.published: list[str] = []  # folders that this run changed
        self.folders: list[str] = []  # folders that it stands behind
        self.warnings: list[str] = []
        self.lock = run_lock(store, " ".join(sys.argv))
        self.stops = Stops()
        self.complete = False  # whether the build came to its end
        self._before: dict[str, Units] = {}  # of the last build, read when a unit has to run

    # -- what stages call ----------------------------------------------------------------------------

    async def stage(self, name: str) -> Any:
        """The result of another stage's build; each is built once."""
        if name not in self._stages:
            self._stages[name] = asyncio.ensure_future(self._build(STAGES[name]))
        return await asyncio.shield(self._stages[name])

    async def _build(self, stage: Stage) -> Any:
        self.state(stage.name)
        result = await stage.build(self)
        if stage.publish and not self.dry:
            for folder, files in stage.publish(result).items():
                self.folders.append(folder)
                if self.store.publish(self.recipe.name, folder, files):
                    self.published.append(folder)
        if stage.check:
            stage.check(self, result)
        return result

    def warn(self, text: str) -> None:
        """Say once what a person should know; the run goes on, and its report says it again."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.line(f"warning: {text}")

    def identify(self, path: str) -> tuple[str, int]:
        """(digest of the contents, bytes) of a source file."""
        return self.store.identify(path, remember=not self.dry)

    def folder(self, name: str) -> str:
        """The published folder `name` of this recipe."""
        return f"{self.store.out}/{self.recipe.name}/{name}"

    def code_digest(self, stage: str) -> str:
        """One digest of all the code that `stage` and the stages before it ran."""
        names = {s.name for s in order(stage)}
        used = sorted((work, digest) for (name, work), digest in self._codes.items() if name in names)
        return fact_digest(used)

    def modules(self, stage: str) -> dict[str, str]:
        """Digest of every project module that units of `stage` and of the stages before it ran."""
        names = {s.name for s in order(stage)}
        found: dict[str, str] = {}
        for name, work in self._codes:
            if name in names:
                found |= fingerprint.modules_of(work.partition(":")[0])
        return dict(sorted(found.items()))

    def source_files(self, name: str) -> list[SourceFile]:
        """Every file that was read for source, or evaluation set, `name`, by name."""
        return [SourceFile(*file) for file in sorted(self._files.get(name, ()))]

    def versions(self, stage: str) -> dict[str, str]:
        """Versions of the libraries that `stage` and the stages before it declare."""
        libraries = {library for s in order(stage) for library in s.libraries}
        return fingerprint.versions(tuple(sorted(libraries)))

    def describe_source(self, name: str) -> dict[str, str]:
        """origin, revision and license of a source, for the manifest."""
        return describe(self.recipe.sources[name])

    def fingerprint(self, module: str) -> str:
        """Fingerprint of a module that a unit runs without importing it in the driver."""
        return fingerprint.fingerprint(module)

    def artifact_path(self, artifact: Artifact) -> str:
        """A local path for a small result that `build` itself must read, such as a solved mixture."""
        return self.store.fetch(artifact)

    async def gather(self, awaitables: Iterable[Awaitable[Any]]) -> list[Any]:
        """Await many units, a window at a time, in order.

        A unit that failed on its input gives None while `quarantine.files` allows for it; the rest goes on,
        and the first failure beyond that is raised once all have ended. In a dry run every unit is looked at
        before NotBuilt is raised.
        """
        window = asyncio.Semaphore(WINDOW)
        results: list[Any] = []
        errors: dict[bool, NotBuilt | UnitFailed] = {}  # the first that might be tolerated, the first that is not
        faults: list[Exception] = []
        alive: set[asyncio.Task[None]] = set()

        async def one(place: int, awaitable: Awaitable[Any]) -> None:
            try:
                results[place] = await awaitable
            except (NotBuilt, UnitFailed) as error:
                lost = isinstance(error, UnitFailed) and error.stage == "download" and not error.fatal
                errors.setdefault(lost, error)
            except Exception as error:
                faults.append(error)
            finally:
                window.release()

        for awaitable in awaitables:
            await window.acquire()
            # A task of its own, so that it ends cleanly when it is cancelled before its turn.
            unit = asyncio.ensure_future(awaitable)
            task = asyncio.ensure_future(one(len(results), unit))
            results.append(None)
            alive.add(task)
            task.add_done_callback(alive.discard)
            if faults or self._fatal:
                break
        while alive and not faults:
            await asyncio.wait(alive, return_when=asyncio.FIRST_COMPLETED)
        if faults:
            raise faults[0]
        for lost, error in errors.items():
            if not lost or len(self.states["download"].failed) > self.recipe.quarantine.files:
                raise error
        return results

    def check_quarantine(self) -> None:
        """Stop when more rows were bad than the recipe tolerates. Raises UserError."""
        quarantine.check(self)

    def counts(self, stage: str, source: str | None = None) -> dict[str, int]:
        """The sum of a stage's counters over its records, of one source or of all."""
        counts = self.state(stage).counts
        total: Counter[str] = Counter()
        for counted in counts.values() if source is None else [counts.get(source, total)]:
            total.update(counted)
        return dict(total)

    async def run(
        self,
        stage: str,
        work: Callable[[Task], None],
        params: dict[str, Any],
        inputs: list[Artifact],
        label: str,
        source: str | None = None,
        weight: int = 0,
        places: dict[str, str] | None = None,
    ) -> Record:
        """Run one unit, or find its record. `weight` is its input in bytes, for progress.

        `places` are paths the work needs that say nothing about its result, so they stay out of the key.
        Raises UnitFailed, or NotBuilt in a dry run.
        """
        if self._fatal:
            raise self._fatal
        label = f"{source} {label}" if source else label
        libraries = STAGES[stage].libraries
        facts: dict[str, Any] = {
            "stage": stage,
            "work": work_name(work),
            "code": fingerprint.fingerprint(work.__module__),
            "versions": fingerprint.versions(libraries),
            "params": params,
            "inputs": [a.digest for a in inputs],
        }
        self._codes[stage, facts["work"]] = facts["code"]
        if stage in ("download", "evals") and source:
            self._files.setdefault(source, set()).update((a.name, a.bytes, a.digest) for a in inputs)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        while key in self._flying:
            record = await asyncio.shield(self._flying[key])
            if self.state(stage).units.key(label) == key:
                return record  # else it is found under its own name, and counted there
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._flying[key] = future
        try:
            record = await self._resolve(stage, key, facts, inputs, label, weight, places or {})
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # it is raised here; nobody else may be waiting
            raise
        finally:
            del self._flying[key]
        future.set_result(record)
        return record

    # -- how it is done ------------------------------------------------------------------------------

    def state(self, stage: str) -> StageState:
        """What this run knows of `stage`."""
        return self.states.setdefault(stage, StageState())

    async def _resolve(
        self,
        stage: str,
        key: str,
        facts: dict[str, Any],
        inputs: list[Artifact],
        label: str,
        weight: int,
        places: dict[str, str],
    ) -> Record:
        state = self.state(stage)
        again = state.units.key(label) == key  # asked for and seen before: counted once
        state.units.add(label, key, facts)
        force = stage in self.force and not again
        if force and not self.dry:
            self.store.forget(stage, key)
        found, there = (None, False) if force else await self._look(stage, key)
        if found is not None:
            record = slim(found, label, cached=True)
            if not again:
                state.finished(record)
                self.progress.finished(stage, record, weight)
            return record
        why = "--force" if force else reason(label, state.units, self._last(stage), there)
        state.reasons[why] += not again
        self.progress.planned(stage, label, weight)
        if self.dry:
            raise NotBuilt(stage)
        spec = {
            **facts,
            "key": key,
            "label": label,
            "out": self.store.uri,
            "places": places,
            "cpus": STAGES[stage].cpus,
            "inputs": [{**a.to_dict(), "path": self.store.absolute(a)} for a in inputs],
        }
        try:
            record = slim(await self._submit(spec), label)
        except UnitFailed as error:
            state.failed.append(error)
            self.progress.failed(stage, label, error.message)
            if error.fatal:
                self._fatal = error
            raise
        state.finished(record)
        self.progress.finished(stage, record, weight)
        return record

    async def _look(self, stage: str, key: str) -> tuple[Record | None, bool]:
        """`Store.look`, many at a time where each is a request over a network."""
        if self.store.local:
            return self.store.look(stage, key)
        return await asyncio.to_thread(self.store.look, stage, key)

    def _last(self, stage: str) -> Units:
        """The units of the last build of `stage`."""
        if stage not in self._before:
            self._before[stage] = Units(self.store.read_state(self.recipe.name, f"{UNITS}/{stage}.json"))
        return self._before[stage]

    async def _submit(self, spec: dict[str, Any]) -> Record:
        stage, label = spec["stage"], spec["label"]
        await asyncio.sleep(0)  # let the window fill: `auto` chooses by the bytes planned so far
        if self._executor is None:
            self._executor = self._make_executor()
            self.lock.__enter__()
            self._slots = asyncio.Semaphore(self._executor.slots)
            self.progress.line(f"executor {self._executor.name}, {self._executor.slots} slots")
        assert self._slots is not None
        spec["executor"] = self._executor.name
        transient = lost = 0
        while True:
            try:
                async with self._slots:
                    if self._fatal:
                        raise self._fatal
                    if self.stops.asked:
                        raise Stopped(f"a signal came before {stage} {label}; the same command continues there")
                    self.progress.started(stage, label)
                    with self._following(spec):
                        reply = await self._executor.submit(spec)
            except WorkerLost as error:
                lost += 1
                if lost > LOST_RETRIES:
                    raise UnitFailed(stage, label, f"its worker died {lost} times; last: {error}") from None
                self.progress.line(f"{stage} {label}: {error}; trying again")
                continue
            if "record" in reply:
                return Record.from_dict(reply["record"])
            fault = reply["error"]
            if self.debug:
                self.progress.line(fault["trace"])
            if fault["kind"] == "unfinished" or self.stops.asked:
                raise Stopped(f"{stage} {label}: {fault['message']}; the same command continues")
            if fault["kind"] != "transient" or transient >= RETRIES:
                raise UnitFailed(stage, label, fault["message"], fatal=fault["kind"] == "fatal")
            pause = 2**transient * (0.5 + random.random())
            transient += 1
            self.progress.line(f"{stage} {label}: {fault['message']}; trying again in {pause:.0f} s")
            await asyncio.sleep(pause)

    @contextlib.contextmanager
    def _following(self, spec: dict[str, Any]) -> Iterator[None]:
        """Ask a unit to stop when we are, and pass on what it says of itself; a local one has our terminal."""
        stage = STAGES[spec["stage"]]
        folder = self.store.folder(spec["stage"], spec["key"])
        told = self.stops.told(spec, folder) if stage.stops else contextlib.nullcontext()
        news = stage.news
        if news is None or self._executor is None or self._executor.name == "local":
            with told:
                yield
            return

        async def follow() -> None:
            said = ""
            while True:
                await asyncio.sleep(NEWS_EVERY)
                text = news(folder, spec["params"])
                if text and text != said:
                    said = text
                    self.progress.line(f"{spec['stage']} {spec['label']}: {text}")

        task = asyncio.ensure_future(follow())
        try:
            with told:
                yield
        finally:
            task.cancel()

    def close(self) -> None:
        """Stop the executor, if one was started."""
        if self._executor is not None:
            self._executor.close()
            self.lock.__exit__(None, None, None)

    def built(self, stage: str) -> Any:
        """What the build of `stage` returned, or None if it did not run to its end here."""
        task = self._stages.get(stage)
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    @property
    def started_executor(self) -> bool:
        """Whether anything had to run."""
        return self._executor is not None

    def save_state(self) -> None:
        """Remember which units the results refer to: `clean`, `status` and the dry run's reasons read it.

        A build that was cut short has not seen all its units, so what it knows is added to what was known.
        """
        for name, state in self.states.items():
            units = state.units if self.complete else self._last(name).merged(state.units)
            failed = {error.label: error.message for error in state.failed}
            if len(units) or failed:
                self.store.write_state(self.recipe.name, f"{UNITS}/{name}.json", {**units.to_dict(), "failed": failed})


def drive(context: Context, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a build to its end, and stop the executor whatever happens."""

    async def main() -> Any:
        try:
            result = await coroutine
            context.complete = True
            return result
        finally:
            pending = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in pending:
                task.cancel()
            context.close()

    started = time.monotonic()
    try:
        with context.stops.listening():
            return asyncio.run(main())
    finally:
        context.progress.close(time.monotonic() - started)
