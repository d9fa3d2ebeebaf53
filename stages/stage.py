"""What a stage is made of in the driver: units of work, the records they leave, and the context that runs them.

A *stage* is a name, the stages it needs, and an async function `build(context)` that cuts its work into units and
awaits their records. The same `build` serves `run` and the dry run of `plan`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from stages.task import Artifact, Work

if TYPE_CHECKING:
    from stages.recipe import Recipe
    from stages.sources.base import SourceUnit
    from train.data.manifest import SourceFile

Result = TypeVar("Result")
Folders = Mapping[str, Mapping[str, Artifact] | str]  # folder for people -> its files by name, or a folder of the store


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work before it runs."""

    work: Work
    params: dict[str, Any]
    inputs: Sequence[Artifact]
    label: str  # unique in its stage, together with `source`
    source: str = ""  # the source, or evaluation set, that it belongs to; "" for none
    weight: int = 0  # bytes of its input, for progress
    places: Mapping[str, str] = field(default_factory=dict)  # paths that say nothing about its result: not in its key


@dataclass(frozen=True, slots=True)
class Record:
    """What a finished unit leaves behind. `outputs` name files; `counts` are sums, folded over units."""

    key: str
    stage: str
    label: str
    inputs: list[str]  # digests
    outputs: list[Artifact]
    counts: dict[str, int]
    seconds: float
    peak_mb: float
    versions: dict[str, str]
    started: float
    finished: float
    attempt: str
    node: str = ""  # the host that ran it, and of a cluster the node's id: host/id
    tries: list[str] = field(default_factory=list)  # why earlier attempts of the same run came to nothing
    cached: bool = False  # found, not run; never stored

    def output(self, name: str) -> Artifact:
        """Return the output called `name`. Raises KeyError."""
        for artifact in self.outputs:
            if artifact.name == name:
                return artifact
        raise KeyError(f"{self.stage} {self.label} has no output {name!r}")

    def named(self, prefix: str) -> list[Artifact]:
        """Return all outputs whose name starts with `prefix`, in the order they were written."""
        return [artifact for artifact in self.outputs if artifact.name.startswith(prefix)]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        value = {name: getattr(self, name) for name in self.__slots__ if name != "cached"}
        return {**value, "outputs": [artifact.to_dict() for artifact in self.outputs]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Record:
        """Build the record that `to_dict` described. Names that repeat in every record are kept once in memory."""
        outputs = [Artifact(**{**artifact, "name": sys.intern(artifact["name"])}) for artifact in value["outputs"]]
        counts = {sys.intern(name): n for name, n in value["counts"].items()}
        return cls(**{**value, "outputs": outputs, "counts": counts})


@dataclass(frozen=True)
class Table:
    """A table that people read. Whole numbers are shown with separators, all else as it is."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: Sequence[str] = ()  # columns that are left-aligned: the first, where none is named


ReportGroup = Sequence[Table | str]  # tables and lines that stand together, an empty line behind them


class BuildContext(Protocol):
    """One build of one recipe, as a stage's `build` sees it. `pipeline.engine.context.Context` is the engine's."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that is built."""

    @property
    def dry(self) -> bool:
        """Whether this is the dry run of `plan`, in which nothing runs and NotBuilt is raised for what is missing."""

    @property
    def local_store(self) -> bool:
        """Whether results are kept in a local folder, and not in an object store."""

    @property
    def listed(self) -> Mapping[str, list[SourceUnit]]:
        """Units of sources that have been listed already, by source."""

    def stage(self, stage: Stage[Result]) -> Coroutine[Any, Any, Result]:
        """Return what `stage` built; each stage is built once. It must be among `after` of the stage that asks."""

    def built(self, stage: Stage[Result]) -> Result | None:
        """Return what `stage` built, or None if it was not built to its end in this run."""

    def run(self, stage: Stage[Any], unit: Unit) -> Coroutine[Any, Any, Record]:
        """Run one unit of `stage`, or find its record in the store."""

    def map(self, stage: Stage[Any], units: Iterable[Unit]) -> Coroutine[Any, Any, list[Record]]:
        """Run many units of `stage`, a window at a time; their records come in the order of `units`."""

    def gather(self, awaitables: Iterable[Awaitable[Result]]) -> Coroutine[Any, Any, list[Result]]:
        """Await many results that hold units, a window at a time, in order.

        A source's file that cannot be read is left out while the recipe's `quarantine.files` allows for it.
        """

    def was_built(self, stage: Stage[Any]) -> bool:
        """Whether a build before this one left results of `stage`."""

    def say(self, text: str) -> None:
        """Print a line, above the display."""

    def warn(self, text: str) -> None:
        """Say once what a person should know; the report at the end says it again."""

    def identify(self, path: str) -> tuple[str, int]:
        """Return the digest of a source file's contents and its size in bytes."""

    def counts(self, stage: Stage[Any], source: str | None = None) -> dict[str, int]:
        """Return the sums of a stage's counters over its records: of one source, or of all."""

    def check_quarantine(self) -> None:
        """Stop the build when more rows were bad than the recipe tolerates."""

    def lost_files(self, source: str) -> int:
        """Return how many files of `source` could not be read and were left out."""

    def artifact_path(self, artifact: Artifact) -> str:
        """Return a local path for a small result that `build` itself must read, such as a solved mixture."""

    def published_file(self, folder: str, name: str) -> str | None:
        """Return a local path for a file of the published folder `folder` of this recipe; None if it is not there."""

    def temporary_folder(self) -> AbstractContextManager[Path]:
        """Give a new local folder, which is deleted at the end, and with this process however that ends."""

    def place(self, artifact: Artifact) -> str:
        """Return the full path of an artifact, or its address in a bucket."""

    def command(self, words: str) -> str:
        """Return the whole command line of another command on this recipe's results, to be typed as it is."""

    def folder(self, name: str) -> str:
        """Return the path of the published folder `name` of this recipe."""

    def fingerprint(self, module: str) -> str:
        """Return the fingerprint of a module that a unit runs without importing it."""

    def source_files(self, name: str) -> list[SourceFile]:
        """Return every file that was read for source, or evaluation set, `name`, by name."""

    def code_digest(self, stage: Stage[Any]) -> str:
        """Return one digest of all the code that `stage` and the stages before it ran."""

    def modules(self, stage: Stage[Any]) -> dict[str, str]:
        """Return the digest of every project module that `stage` and the stages before it ran."""

    def versions(self, stage: Stage[Any]) -> dict[str, str]:
        """Return the versions of the libraries that `stage` and the stages before it declare."""


@dataclass(frozen=True, eq=False)
class Stage(Generic[Result]):
    """A named step of the graph. `build(context)` awaits its units and returns what later stages need."""

    name: str
    reads: str  # one line for `pipeline list`
    writes: str
    build: Callable[[BuildContext], Awaitable[Result]]
    after: tuple[Stage[Any], ...] = ()  # the stages whose results `build` may ask for; the graph is said here alone
    libraries: tuple[str, ...] = ()  # whose versions are part of every unit's key
    publish: Callable[[Result], Folders] | None = None
    # Raises DataError for a result that no later stage can use; it is published before, for people to look at.
    check: Callable[[BuildContext, Result], None] | None = None
    # What the report at the end of a run says of the stage, beside the account of documents in `stages.report`.
    report: Callable[[BuildContext, Result], Iterable[ReportGroup]] | None = None
    # What a long unit says of itself while it runs: (its folder, its params) -> a line, or "".
    news: Callable[[str, dict[str, Any]], str] | None = None
    reads_files: bool = False  # inputs are files of a source or an evaluation set, which manifests list
    may_lose_units: bool = False  # a unit that fails on its input is tolerated within the recipe's `quarantine`
    drops_documents: bool = False  # its counters `dropped.<reason>` are documents that left the corpus
    stops: bool = False  # a unit looks for the file places["stop"]; when it is there it saves and raises Unfinished
    keeps_runs: bool = False  # a unit's folder holds more than its outputs, and only `clean --force` deletes it
    cpus: int = 1  # that a unit keeps busy itself; 0 when it only starts a job that asks for its own

    def upstream(self) -> list[Stage[Any]]:
        """Return this stage and every stage it needs, in an order in which they can be built."""
        ordered: dict[str, Stage[Any]] = {}

        def visit(stage: Stage[Any]) -> None:
            if stage.name not in ordered:
                for needed in stage.after:
                    visit(needed)
                ordered[stage.name] = stage

        visit(self)
        return list(ordered.values())
