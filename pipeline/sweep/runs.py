"""What a sweep runs, all through one engine: the text of its base, its trials, and their scores on the same text."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engine import quarantine
from pipeline.engine.context import Context
from pipeline.engine.locks import suppress_read_only
from pipeline.sweep.config import Sweep
from pipeline.sweep.notes import Notes, known_points, point_text
from pipeline.sweep.recipes import (
    Size,
    Trial,
    held_out_recipe,
    keys_of,
    mixture_of,
    scored_sources,
    sizes_of,
    trial,
    with_tokenizer,
)
from stages.compare.scored import ScoredRun, read_scored
from stages.errors import DataError, NotBuilt
from stages.pack.mixture import capacity, exact, shares_asked
from stages.recipe import Recipe
from stages.sweep import build
from stages.sweep.build import SourceText
from stages.sweep.space import Point, Space, design, rounded
from stages.task import Artifact

NEW_POINTS = 3  # with a source that no earlier point has, beside half as many as there are sources


@dataclass(frozen=True)
class Prepared:
    """A sweep, and all that is known of it once the text of its base is tokenized."""

    sweep: Sweep
    notes: Notes
    data: Context  # of the base, with the tokenizer that is kept
    held_out: str  # the manifest of what all runs are scored on
    files: list[Artifact] | None  # its files; None in a dry run where they are not there
    text: dict[str, SourceText]  # of each source of the mixture
    weights: dict[str, float]  # of each source that is scored
    proxy: Size
    confirm: Size
    space: Space
    base: dict[str, float]  # the base's shares
    points: list[Point]

    def shares(self, point: Point) -> dict[str, float]:
        """Return the share of each source at a point: the base's, where they do not vary."""
        return dict(zip(self.space.sources, point.shares, strict=True)) or self.base

    def trial(self, size: Size, point: Point, seed: int) -> Trial:
        """Return one run of a point."""
        return trial(self.sweep, self.data.recipe, size, point, self.shares(point), seed)

    def trials(self) -> list[Trial]:
        """Return the proxies: the base with several seeds, every other point with one."""
        base, *others = self.points
        seeds = [(base, seed) for seed in range(self.sweep.seeds)] + [(point, 0) for point in others]
        return [self.trial(self.proxy, point, seed) for point, seed in seeds]

    def mean(self, losses: Mapping[str, float]) -> float:
        """Return the weighted mean of the scored sources' losses."""
        return sum(weight * losses[name] for name, weight in self.weights.items())


@dataclass(frozen=True)
class Result:
    """A trial that was trained and scored."""

    trial: Trial
    run: ScoredRun
    losses: dict[str, float]  # bits per byte of each scored source


# ---------------------------------------------------------------------------------------------------------------------
# The text


async def keep_tokenizer(context: Context, notes: Notes) -> str | None:
    """Return the file of the tokenizer that all runs of the sweep share, made at its first run and kept from then on.

    None where the base takes one as it is. Else a change of one source would make another tokenizer, and all evidence
    with it void. Raises NotBuilt in a dry run before the first.
    """
    config = context.recipe.tokenizer
    if config.source is not None:
        return None
    keys = config.model_dump(mode="json")
    kept = sorted(notes.file.parent.glob("tokenizer.*"))
    if kept and notes.tokenizer == keys:
        return str(kept[0].absolute())
    if context.dry:
        raise NotBuilt("its tokenizer")
    artifact = await build.build_tokenizer(context)
    for stale in kept:
        stale.unlink()
    notes.tokenizer = keys
    notes.write()
    file = notes.file.parent / f"tokenizer{Path(artifact.path).suffix}"
    shutil.copyfile(context.artifact_path(artifact), file)
    return str(file.absolute())


async def open_text(context: Context, notes: Notes) -> Context:
    """Return the context of the base with the tokenizer that is kept. Raises NotBuilt as `keep_tokenizer` does."""
    try:
        tokenizer = await keep_tokenizer(context, notes)
    finally:
        quarantine.publish(context)
    data = context.with_recipe(with_tokenizer(context.recipe, tokenizer))
    data.listed = context.listed
    return data


async def prepare(data: Context, sweep: Sweep, notes: Notes) -> Prepared:
    """Build the text of the base, and choose the points. Raises NotBuilt in a dry run where the text is not there."""
    base, mixture = data.recipe, mixture_of(sweep, data.recipe)
    try:
        text = await build.tokenize(data, base.mixtures[mixture].sources)
    finally:
        quarantine.publish(data)
    finish(data)
    held_out, files = data.with_recipe(held_out_recipe(sweep, base)), None
    try:
        files = await build.hold_out(held_out, mixture)
        finish(held_out)
    except NotBuilt:
        pass  # what a run is trained on is known all the same
    sizes = sizes_of(sweep, base)
    space, shares = space_of(sweep, base, {name: own.tokens for name, own in text.items()}, sizes)
    kept = known_points(space, notes.points)
    count = sweep.number_of_points(len(space.sources))
    if kept and any(not any(point.shares[i] for point in kept) for i in range(len(space.sources))):
        count = max(count, len(kept) + NEW_POINTS + max(3, math.ceil(len(space.sources) / 2)))
    return Prepared(
        sweep=sweep,
        notes=notes,
        data=data,
        held_out=f"{held_out.folder(mixture)}/manifest.json",
        files=files,
        text=text,
        weights=scored_sources(sweep, base),
        proxy=sizes[0],
        confirm=sizes[1],
        space=space,
        base=shares,
        points=design(space, count, kept, sweep.seed),
    )


def space_of(
    sweep: Sweep, base: Recipe, tokens: Mapping[str, int], sizes: Sequence[Size]
) -> tuple[Space, dict[str, float]]:
    """Return what varies, and the base's shares. Raises DataError where the base's mixture is beyond its own caps.

    tokens: to train on, of each source. A source's cap is the least that the target and the small models allow for.
    """
    mixture = base.mixtures[mixture_of(sweep, base)]
    pools = [(mixture.tokens, exact(1)), *((size.packed, size.subsample) for size in sizes)]
    caps = tuple(
        min(1.0, *(capacity(int(tokens[name] * share), mixture.cap(name)) / total for total, share in pools))
        for name in mixture.sources
    )
    asked = shares_asked(mixture, tokens)
    shares = rounded(np.array([asked[name] for name in mixture.sources]), np.array(caps))
    if shares is None or any(abs(share - asked[name]) > 0.01 for name, share in zip(asked, shares, strict=True)):
        room = ", ".join(f"{name} {cap:.1%}" for name, cap in zip(mixture.sources, caps, strict=True))
        raise DataError(f"the base's mixture takes more than max_epochs allows, which is at most {room}; mend it first")
    keys, levels = keys_of(sweep, base)
    varied = (tuple(mixture.sources), shares, caps) if sweep.ratios else ((), (), ())
    return Space(*varied, keys, levels), dict(zip(mixture.sources, shares, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Trials


def finish(context: Context) -> None:
    """Note which units a build refers to, so that `clean` keeps them."""
    if not context.dry:
        context.complete = True
        with suppress_read_only():
            context.save_state()


async def run_trial(prepared: Prepared, one: Trial) -> Result:
    """Train and score one trial, or find it done. Raises NotBuilt in a dry run where it is not."""
    context, notes = prepared.data.with_recipe(one.recipe), prepared.notes
    record = await build.train(context)
    if prepared.files is None:
        raise NotBuilt("what is held out")
    rows = await build.score_run(context, record, prepared.files, prepared.held_out)
    finish(context)
    if not context.dry:
        notes.runs[one.name] = {name: prepared.text[name].digest for name in one.sources}
        notes.write()
    run_file = Path(context.artifact_path(record.output("run.json")))
    run = read_scored(one.name, run_file, Path(context.artifact_path(rows)), "run the sweep again")
    run.facts["manifest"] = str(Path(prepared.held_out).absolute())
    return Result(one, run, losses_of(run, prepared.weights))


def losses_of(run: ScoredRun, sources: Mapping[str, float]) -> dict[str, float]:
    """Return the bits per byte of each scored source. Raises DataError where nothing is held out of one."""
    nats, size = dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 0)
    alone = next(iter(sources)) if len(sources) == 1 else ""
    for document in run.documents.values():
        name = document.source if document.source in nats else alone
        nats[name] += document.nats
        size[name] += document.bytes
    if empty := [name for name, count in size.items() if not count]:
        raise DataError(f"no document of {', '.join(empty)} is held out to score it by; leave it out of weights")
    return {name: nats[name] / math.log(2) / size[name] for name in sources}


async def run_trials(prepared: Prepared, trials: Sequence[Trial], parallel: int) -> list[Result]:
    """Train and score trials, so many at a time. Says how each went. The first failure is raised."""
    turn, done = asyncio.Semaphore(parallel), 0

    async def one(each: Trial) -> Result:
        nonlocal done
        async with turn:
            result = await run_trial(prepared, each)
        done += 1
        mix = point_text(prepared.space, each.point)
        prepared.data.say(
            f"{done} of {len(trials)}  {each.name} seed {each.seed}  {mix}  {prepared.mean(result.losses):.4f}"
        )
        return result

    return list(await asyncio.gather(*(one(each) for each in trials)))


@dataclass(frozen=True)
class Status:
    """What a plan knows of one trial."""

    trial: Trial
    state: str  # kept | score | train
    why: str
    seconds: float | None  # that its training took


async def look(prepared: Prepared, one: Trial) -> Status:
    """Say whether a trial is in the store, and if not, why it must run. The context is one of a dry run."""
    context = prepared.data.with_recipe(one.recipe)
    seconds = None
    try:
        seconds = (await build.train(context)).seconds
        await run_trial(prepared, one)
        return Status(one, "kept", "", seconds)
    except NotBuilt:
        if seconds is not None:
            return Status(one, "score", "what is held out changed", seconds)
    before = prepared.notes.runs.get(one.name)
    if before is None:
        return Status(one, "train", "new", None)
    moved = [name for name in one.sources if before.get(name) != prepared.text[name].digest]
    why = f"{', '.join(moved)} changed" if moved else "code, versions or keys changed"
    return Status(one, "train", why, None)
