"""All that the pages are made of, read once from a finished build: its records, tables, manifests and runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.open_build import open_build
from pipeline.commands.stored_records import StoredRecords
from pipeline.engine.store import Store
from pipeline.errors import UserError
from stages.errors import DataError
from stages.recipe import Recipe
from stages.review.account import Account, StoredBuild, account, read_build
from stages.review.sample import Sample, draw_sample
from stages.sources.registry import describe
from train.config import TrainError
from train.data.manifest import Manifest
from train.monitor.metrics import read_json_lines
from train.sealed import read_run_file

Say = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """Where a source comes from, as the recipe and the manifests say."""

    kind: str
    origin: str
    revision: str
    license: str


@dataclass(frozen=True)
class RunFacts:
    """One training run, as its folder says."""

    phase: str
    run: dict[str, Any]
    steps: list[dict[str, Any]]  # metrics.jsonl
    events: list[dict[str, Any]]
    summary: dict[str, Any]  # empty before its end


@dataclass(frozen=True)
class Facts:
    """A build of one recipe."""

    name: str
    options: str  # of commands on it, as they are shown
    recipe: dict[str, Any]
    reader: StoredRecords
    build: StoredBuild
    accounts: dict[str, Account]  # by source, in the recipe's order
    samples: dict[str, Sample]
    origins: dict[str, Origin]
    manifests: dict[str, Manifest]  # by mixture
    runs: list[RunFacts]
    duplicates: dict[str, Any] | None  # duplicates/report.json
    tokenizer: dict[str, Any] | None  # tokenizer/report.json
    tokenizer_file: str  # on this machine, "" where there is none

    @property
    def documents(self) -> int:
        """Documents read."""
        return sum(each.read for each in self.accounts.values())

    @property
    def drawn(self) -> int:
        """Documents of the samples."""
        return sum(len(sample) for sample in self.samples.values())

    @property
    def whole(self) -> bool:
        """Whether the samples are all documents."""
        return all(sample.whole for sample in self.samples.values())

    @property
    def may_show_pairs(self) -> bool:
        """Whether texts may be shown of which nobody knows whether they were taken down."""
        return not any(self.recipe.get("exclude", {}).get(name) for name in ("ids", "urls", "domains"))


def read_facts(store: Store, recipe: Recipe, options: str, shown: str, documents: int, say: Say) -> Facts:
    """Read a build; `documents` is how many are drawn of all sources together. Raises UserError where none is there.

    `options` are those of commands on it; `shown` the same on pages, which name no folder of this machine.
    """
    reader = StoredRecords(store, recipe.name)
    say("reading records")
    build = read_build(reader)
    if not any(build.downloaded.values()):
        raise UserError(
            f"{recipe.name}: nothing is built in {store.out}; build it with `python -m pipeline run train{options}`"
        )
    if reader.missing:
        stage, label = min(reader.missing)
        raise UserError(
            f"{recipe.name}: {len(reader.missing):,} units of the last build are missing or damaged ({stage} {label}); "
            f"`python -m pipeline run {stage}{options}` makes them again"
        )
    value = recipe.to_dict()
    accounts = {name: account(build, name) for name in recipe.sources}
    sizes = {name: each.read - each.quarantined for name, each in accounts.items()}
    limits = limits_of(sizes, documents)
    samples: dict[str, Sample] = {}
    for number, (name, size) in enumerate(sizes.items(), 1):
        say(f"reading documents of {name}, source {number} of {len(sizes)}")
        samples[name] = draw_sample(reader, build, value, name, size, limits[name])
    check_recipe(samples, recipe.name, options)
    manifests = {}
    for mixture in recipe.mixtures:
        if "manifest.json" in store.published(recipe.name, mixture):
            manifests[mixture] = open_build(f"{store.out}/{recipe.name}/{mixture}")
    tokenizer_files = store.published(recipe.name, "tokenizer")
    tokenizer = next((tokenizer_files[n] for n in ("tokenizer.model", "tokenizer.json") if n in tokenizer_files), "")
    return Facts(
        name=recipe.name,
        options=shown,
        recipe=value,
        reader=reader,
        build=build,
        accounts=accounts,
        samples=samples,
        origins={name: origin_of(name, recipe, manifests) for name in recipe.sources},
        manifests=manifests,
        runs=[run for phase in recipe.train if (run := read_run(store, recipe.name, phase))],
        duplicates=read_json(store, recipe.name, "duplicates"),
        tokenizer=read_json(store, recipe.name, "tokenizer"),
        tokenizer_file=store.local_copy(tokenizer) if tokenizer else "",
    )


def limits_of(sizes: Mapping[str, int], documents: int) -> dict[str, int]:
    """Return how many documents are drawn of each source: as many of each, and what small ones leave goes to others."""
    limits: dict[str, int] = {}
    left = documents
    for number, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        limits[name] = min(size, left // (len(sizes) - number))
        left -= limits[name]
    return limits


def check_recipe(samples: Mapping[str, Sample], name: str, options: str) -> None:
    """Raise UserError where the recipe's rules are not those that the build was made with."""
    for source, sample in samples.items():
        if sample.stale:
            raise UserError(
                f"{name}: the recipe's rules of {source} are not those of the last build, and would drop other "
                f"documents; build it again with `python -m pipeline run filter{options}`"
            )


def origin_of(name: str, recipe: Recipe, manifests: Mapping[str, Manifest]) -> Origin:
    """Return where a source comes from: as a manifest says, or the recipe."""
    for manifest in manifests.values():
        for source in manifest.sources:
            if source.name == name:
                return Origin(source.kind, without_folders(source.origin), source.revision, source.license)
    try:
        described = describe(recipe.sources[name])
    except DataError:
        described = {}
    origin, revision, license_name = (described.get(key, "") for key in ("origin", "revision", "license"))
    return Origin(recipe.sources[name].kind, without_folders(origin), revision, license_name)


def without_folders(origin: str) -> str:
    """Return an origin in which paths of this machine are names: a page says no more of a disk than of a user."""
    return ", ".join(Path(each).name if each.startswith("/") else each for each in origin.split(", "))


def read_json(store: Store, recipe: str, folder: str) -> dict[str, Any] | None:
    """Return the report in a published folder, None where there is none."""
    path = store.published(recipe, folder).get("report.json")
    return json.loads(store.read(path)) if path else None


def read_run(store: Store, recipe: str, phase: str) -> RunFacts | None:
    """Return what the folder of a phase's run says, None where there is none that began."""
    files = store.published(recipe, f"train/{phase}")
    if "run.json" not in files:
        return None
    try:
        run = read_run_file(Path(store.local_copy(files["run.json"])))
    except (TrainError, ValueError) as error:
        raise UserError(f"{files['run.json']} is damaged ({error}); train {phase} again") from error
    steps, events = (
        read_json_lines(Path(store.local_copy(files[name]))) if name in files else []
        for name in ("metrics.jsonl", "events.jsonl")
    )
    summary = json.loads(store.read(files["summary.json"])) if "summary.json" in files else {}
    return RunFacts(phase, run, steps, events, summary)
