"""The engine: keys, reuse, a bounded window of units in flight, and the dry run.

`Context` is what a stage's `build` sees. It turns "run this work on these inputs" into a key, looks the key
up in the store, and only then asks the executor. The driver holds no truth: whatever it knew, the records
say again after it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engine import fingerprint, quarantine, window
from pipeline.engine.changes import Facts, KeyHistory, reason_to_run, short_digest
from pipeline.engine.dispatch import Dispatcher
from pipeline.engine.executor import Executor, UnitSpec, work_name
from pipeline.engine.progress import Progress
from pipeline.engine.state import StageState, compact_record, read_last_build
from pipeline.engine.store import UNITS, Store
from pipeline.errors import UnitFailed, UserError
from stages.errors import NotBuilt
from stages.recipe import Recipe
from stages.sources.base import SourceUnit
from stages.stage import Record, Stage, Unit
from stages.task import Artifact
from train.data.manifest import RECIPE, SourceFile
from train.redact import without_secrets

Result = TypeVar("Result")
BUILDING: ContextVar[Stage[Any] | None] = ContextVar("building", default=None)  # the stage whose `build` runs


class Context:
    """One build of one recipe: what stages call (`stages.stage.BuildContext`), and what commands report on."""

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
        options: str = "",
        recipe_file: str = "",
        settings: Sequence[str] = (),
    ):
        self.recipe, self.store, self.progress = recipe, store, progress
        self.dry, self.force = dry, force
        self.options = options  # `--recipe` and `--out` as the user gave them, for commands that messages suggest
        self.recipe_file = recipe_file  # "" where the recipe comes from elsewhere
        self.settings = [without_secrets(setting) for setting in settings]  # of --set
        self.dispatcher = Dispatcher(executor, store, progress, without_secrets(" ".join(sys.argv)), debug)
        self.states: dict[str, StageState] = {}
        self.listed: dict[str, list[SourceUnit]] = {}  # units of sources that a plan has listed already
        self.published: list[str] = []  # folders that this run changed
        self.folders: list[str] = []  # folders that it stands behind
        self.warnings: list[str] = []
        self.complete = False  # whether the build came to its end
        self.shows_cached = True  # units that were found count in the progress
        self._stages: dict[str, asyncio.Task[Any]] = {}
        self._flying: dict[str, asyncio.Future[Record]] = {}  # key -> a unit that is being looked up or run
        self._codes: dict[tuple[str, str], str] = {}  # (stage, work) -> fingerprint
        self._files: dict[str, set[tuple[str, int, str]]] = {}  # source or evaluation set -> files its units read
        self._lists: dict[str, asyncio.Future[None]] = {}  # of a stage's outputs in a bucket
        self._last_sent: tuple[Sequence[Artifact], list[dict[str, Any]]] = ((), [])
        self._last_units: dict[str, KeyHistory] = {}  # of the last build, read when a unit has to run

    def with_recipe(self, recipe: Recipe) -> Context:
        """Return the context of another recipe on the same store, executor and display, for builds that run together.

        A unit that both need is run once, and shown once; so is a warning.
        """
        other = copy.copy(self)
        other.recipe, other.recipe_file, other.complete = recipe, "", False
        other.listed = self.listed if recipe.sources == self.recipe.sources else {}
        other.states, other._stages, other._codes, other._files, other._last_units = {}, {}, {}, {}, {}
        other.published, other.folders, other.shows_cached = [], [], False
        return other

    # -- what stages call ----------------------------------------------------------------------------

    async def stage(self, stage: Stage[Result]) -> Result:
        """Return what `stage` built; each stage is built once."""
        asking = BUILDING.get()
        assert asking is None or stage in asking.after, f"{asking.name} asks for {stage.name}, not in its `after`"
        if stage.name not in self._stages:
            task = self._stages[stage.name] = asyncio.ensure_future(self._build(stage))
            # Of two stages that fail, one is told of. Python would print the other's trace.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        result: Result = await asyncio.shield(self._stages[stage.name])
        return result

    async def _build(self, stage: Stage[Result]) -> Result:
        BUILDING.set(stage)  # this task's own
        self.state(stage.name)
        result = await stage.build(self)
        if stage.publish and not self.dry:
            for folder, files in stage.publish(result).items():
                self.publish(folder, files)
        if stage.check:
            stage.check(self, result)
        return result

    async def run(self, stage: Stage[Any], unit: Unit) -> Record:
        """Run one unit, or find its record. Raises UnitFailed, or NotBuilt in a dry run."""
        if self.dispatcher.fatal:
            raise self.dispatcher.fatal
        label = f"{unit.source} {unit.label}" if unit.source else unit.label
        facts: Facts = {
            "stage": stage.name,
            "work": work_name(unit.work),
            "code": fingerprint.fingerprint(unit.work.__module__),
            "versions": fingerprint.versions(stage.libraries),
            "params": unit.params,
            "inputs": [artifact.digest for artifact in unit.inputs],
        }
        self._codes[stage.name, facts["work"]] = facts["code"]
        if stage.reads_files and unit.source:
            files = self._files.setdefault(unit.source, set())
            files.update((artifact.name, artifact.bytes, artifact.digest) for artifact in unit.inputs)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        while key in self._flying:
            record = await asyncio.shield(self._flying[key])
            if self.state(stage.name).units.key(label) == key:
                return record  # else it is found under its own name, and counted there
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._flying[key] = future
        try:
            record = await self._resolve(stage, unit, label, key, facts)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # it is raised here; nobody else may be waiting
            raise
        finally:
            del self._flying[key]
        future.set_result(record)
        return record

    async def map(self, stage: Stage[Any], units: Iterable[Unit]) -> list[Record]:
        """Run many units of `stage`, a window at a time; their records come in the order of `units`."""
        return await self.gather(self.run(stage, unit) for unit in units)

    async def gather(self, awaitables: Iterable[Awaitable[Result]]) -> list[Result]:
        """Await many results that hold units, a window at a time, in order.

        A unit of a source that failed on its input is left out while `quarantine.files` allows for it; the rest goes
        on, and the first failure beyond that is raised once all have ended. In a dry run every unit is looked at
        before NotBuilt is raised.
        """
        dispatcher = self.dispatcher
        results, errors = await window.gather(
            awaitables, lambda: dispatcher.fatal is not None, quarantine.may_be_lost, lambda: dispatcher.slots
        )
        for lost, error in errors.items():
            if not lost or len(quarantine.lost_units(self)) > self.recipe.quarantine.files:
                raise error
        return results

    def was_built(self, stage: Stage[Any]) -> bool:
        """Whether a build before this one left results of `stage`."""
        return len(self._units_before(stage.name)) > 0

    def say(self, text: str) -> None:
        """Print a line, above the display."""
        self.progress.line(text)

    def warn(self, text: str) -> None:
        """Say once what a person should know; the run goes on, and its report says it again."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.line(f"warning: {text}")

    def identify(self, path: str) -> tuple[str, int]:
        """Return the digest of a source file's contents and its size in bytes."""
        return self.store.identify(path, remember=not self.dry)

    def counts(self, stage: Stage[Any], source: str | None = None) -> dict[str, int]:
        """Return the sums of a stage's counters over its records: of one source, or of all."""
        by_source = self.state(stage.name).counts
        total: Counter[str] = Counter()
        for counts in by_source.values() if source is None else [by_source.get(source, Counter())]:
            total.update(counts)
        return dict(total)

    def check_quarantine(self) -> None:
        """Stop when more rows were bad than the recipe tolerates. Raises UserError."""
        quarantine.check(self)

    def lost_files(self, source: str) -> int:
        """Return how many files of `source` could not be read and were left out."""
        return sum(error.label.split(" ")[0] == source for error in quarantine.lost_units(self))

    def artifact_path(self, artifact: Artifact) -> str:
        """Return a local path for a small result that `build` itself must read, such as a solved mixture."""
        return self.store.fetch(artifact)

    def published_file(self, folder: str, name: str) -> str | None:
        """Return a local path for a file of the published folder `folder` of this recipe; None if it is not there."""
        path = self.store.published(self.recipe.name, folder).get(name)
        return None if path is None else self.store.local_copy(path)

    def temporary_folder(self) -> contextlib.AbstractContextManager[Path]:
        """Give a new local folder, which is deleted at the end, and with this process however that ends."""
        return self.store.scratch.temporary_folder()

    def place(self, artifact: Artifact) -> str:
        """Return the full path of an artifact, or its address in a bucket."""
        return self.store.absolute(artifact)

    @property
    def local_store(self) -> bool:
        """Whether results are kept in a local folder, and not in an object store."""
        return self.store.local

    def command(self, words: str) -> str:
        """Return the whole command line of another command on this recipe's results, to be typed as it is."""
        return f"python -m pipeline {words}{self.options}"

    def folder(self, name: str) -> str:
        """Return the path of the published folder `name` of this recipe."""
        return f"{self.store.out}/{self.recipe.name}/{name}"

    def fingerprint(self, module: str) -> str:
        """Return the fingerprint of a module that a unit runs without importing it in the driver."""
        return fingerprint.fingerprint(module)

    def source_files(self, name: str) -> list[SourceFile]:
        """Return every file that was read for source, or evaluation set, `name`, by name."""
        return [SourceFile(*file) for file in sorted(self._files.get(name, ()))]

    def code_digest(self, stage: Stage[Any]) -> str:
        """Return one digest of all the code that `stage` and the stages before it ran."""
        names = {upstream.name for upstream in stage.upstream()}
        return short_digest(sorted((work, digest) for (name, work), digest in self._codes.items() if name in names))

    def modules(self, stage: Stage[Any]) -> dict[str, str]:
        """Return the digest of every project module that `stage` and the stages before it ran."""
        names = {upstream.name for upstream in stage.upstream()}
        modules: dict[str, str] = {}
        for name, work in self._codes:
            if name in names:
                modules |= fingerprint.modules_of(work.partition(":")[0])
        return dict(sorted(modules.items()))

    def versions(self, stage: Stage[Any]) -> dict[str, str]:
        """Return the versions of the libraries that `stage` and the stages before it declare."""
        libraries = {library for upstream in stage.upstream() for library in upstream.libraries}
        return fingerprint.versions(tuple(sorted(libraries)))

    # -- how it is done ------------------------------------------------------------------------------

    def state(self, stage: str) -> StageState:
        """Return what this run knows of `stage`."""
        return self.states.setdefault(stage, StageState())

    def publish(self, folder: str, files: Mapping[str, Artifact] | str) -> None:
        """Make `files`, name to artifact or a folder of the store, appear as this recipe's `folder`."""
        self.folders.append(folder)
        if self.store.publish(self.recipe.name, folder, files):
            self.published.append(folder)

    async def _resolve(self, stage: Stage[Any], unit: Unit, label: str, key: str, facts: Facts) -> Record:
        """Find the record of a unit, or run it. `label` has its source."""
        state = self.state(stage.name)
        known = state.units.key(label) == key  # asked for and seen before: counted once
        state.units.add(label, key, facts)
        force = stage.name in self.force and not known
        if force and not self.dry:
            self.store.forget(stage.name, key)
        stored, had_record = (None, False) if force else await self._look(stage.name, key)
        if stored is not None:
            record = compact_record(stored, label, cached=True)
            if not known:
                state.add_record(record)
                if self.shows_cached:
                    self.progress.finished(stage.name, record, unit.weight)
            return record
        if not known:
            why = "--force" if force else reason_to_run(label, state.units, self._units_before(stage.name), had_record)
            state.reasons[why] += 1
        self.progress.planned(stage.name, label, unit.weight)
        if self.dry:
            raise NotBuilt(stage.name)
        spec: UnitSpec = {
            **facts,
            "key": key,
            "label": label,
            "out": self.store.out,
            "places": {**unit.places, "folder": self.store.folder(stage.name, key)},
            "cpus": stage.cpus,
            "inputs": self._sent(unit.inputs),
        }
        try:
            record = compact_record(await self.dispatcher.submit(spec), label)
        except UnitFailed as error:
            state.failed.append(error)
            # A failure that is not allowed for ends the run, whose last line says it.
            self.progress.failed(
                stage.name,
                label,
                error.message if self.recipe.quarantine.files and quarantine.may_be_lost(error) else "",
            )
            raise
        state.add_record(record)
        self.progress.finished(stage.name, record, unit.weight)
        return record

    def _sent(self, inputs: Sequence[Artifact]) -> list[dict[str, Any]]:
        """Return inputs as a spec has them: made once for units that share a list, which may have thousands."""
        if self._last_sent[0] is not inputs:
            sent = [{**artifact.to_dict(), "path": self.store.absolute(artifact)} for artifact in inputs]
            self._last_sent = (inputs, sent)
        return self._last_sent[1]

    async def _look(self, stage: str, key: str) -> tuple[Record | None, bool]:
        """Look a unit up in the store, many at a time where each is a request over a network."""
        if self.store.local:
            return self.store.look(stage, key)
        if stage not in self._lists:
            self._lists[stage] = asyncio.ensure_future(asyncio.to_thread(self.store.list_outputs, stage))
        await asyncio.shield(self._lists[stage])
        return await asyncio.to_thread(self.store.look, stage, key)

    def _units_before(self, stage: str) -> KeyHistory:
        """Return the units of the last build of `stage`."""
        if stage not in self._last_units:
            try:
                last = read_last_build(self.store, self.recipe.name, stage)
            except UserError:  # damaged: this build writes it anew
                last = None
            self._last_units[stage] = last.units if last else KeyHistory()
        return self._last_units[stage]

    def built(self, stage: Stage[Result]) -> Result | None:
        """Return what `stage` built, or None if it was not built to its end in this run."""
        task = self._stages.get(stage.name)
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    def recipe_from_store(self) -> str:
        """Return the recipe's file as state says it: from a local store, so that a copy of both agrees."""
        return os.path.relpath(self.recipe_file, self.store.out) if self.store.local else self.recipe_file

    def save_state(self) -> None:
        """Remember which units the results refer to: `clean`, `status` and the dry run's reasons read it.

        A build that was cut short has not seen all its units, so what it knows is added to what was known.
        """
        if self.recipe_file:
            self.store.write_state(self.recipe.name, RECIPE, {"file": self.recipe_from_store(), "set": self.settings})
        for name, state in self.states.items():
            units = state.units if self.complete else self._units_before(name).merged(state.units)
            failed = {error.label: error.message for error in state.failed}
            if len(units) or failed:
                self.store.write_state(self.recipe.name, f"{UNITS}/{name}.json", {**units.to_dict(), "failed": failed})


def drive(context: Context, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a build to its end, and stop the executor whatever happens."""

    async def main() -> Result:
        """Run it; at its end, cancel what is under way and close the executor."""
        how = "ended"
        try:
            result = await coroutine
            context.complete = True
            return result
        except BaseException as error:
            text = str(error).splitlines() or [type(error).__name__]
            how = f"ended early: {context.dispatcher.signals.last or text[0]}"
            raise
        finally:
            pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in pending:
                task.cancel()
            context.dispatcher.close(how)

    started = time.monotonic()
    try:
        with context.dispatcher.signals.handled():
            return asyncio.run(main())
    finally:
        context.progress.close(time.monotonic() - started)
