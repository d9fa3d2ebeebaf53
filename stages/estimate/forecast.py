"""What a recipe would take and give before anything is downloaded, from samples: documents, tokens and disk.

Sources are listed and sampled in threads that nobody waits for beyond a deadline, so that a network that does not
answer cannot hang a plan. What a finished build has counted replaces what a sample predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD, KeptPart, in_hash_order, parts_in_budget
from stages.errors import DataError, TransientError
from stages.estimate.deadline import call_all
from stages.estimate.sample import Estimate, Sample, estimate, sample_source
from stages.estimate.tokens import count_tokens
from stages.evals.stage import EVALS, units_of
from stages.filter.parse import parse_rules
from stages.filter.stage import FILTER, MEASURE, edits_texts
from stages.filter.verdict import LANGUAGE
from stages.filter.where import named_columns
from stages.hashing import VALIDATION_THRESHOLD
from stages.pack.stage import PACK
from stages.paths import escaped, is_remote, local_path
from stages.recipe import Recipe
from stages.sources.base import BaseConfig, Identify, SourceUnit
from stages.sources.files import with_notes
from stages.sources.registry import SOURCES
from stages.stage import BuildContext, Stage
from stages.task import Artifact
from stages.tokenize.stage import TOKENIZE
from stages.tokenizer.stage import BUILD_TOKENIZER
from train.data.tokens import token_dtype

LISTING, SAMPLING = 60.0, 30.0  # seconds that all sources may take to be listed, and remote ones to be sampled
TRAIN_STAGE = "train"
TOKENIZER_STAGE = BUILD_TOKENIZER.name
TRAINED = 1 - float(VALIDATION_THRESHOLD) / 2**64  # share of documents that is not held out
ROW_BYTES = 70  # of a document's row and index entry, beside its tokens
MEASURE_BYTES, KEPT_BYTES = 150, 40  # of a document, its text aside
STORED = 0.4  # bytes in the store per byte of text, where no sample says
NO_FILE = Artifact("", "")


@dataclass(frozen=True)
class Forecast:
    """What one source gives to training. Counted in a finished build, or predicted with a relative error."""

    documents: int  # kept
    text: float  # bytes, downloaded
    kept_text: float
    tokens: int  # to train on, held-out documents aside
    error: float = 0.0  # 95 %
    counted: bool = False
    held_out: bool | None = None  # whether validation takes any of its documents; None: nobody knows yet


@dataclass
class Survey:
    """All that a plan knows of the sources."""

    units: dict[str, list[SourceUnit]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # source -> why it cannot be listed or sampled
    samples: dict[str, Sample] = field(default_factory=dict)
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    tokenizer: str = ""  # what tokens are counted with, for people
    no_tokenizer: str = ""  # why the recipe's tokenizer cannot be trained, where that is certain


def list_sources(context: BuildContext, identify: Identify | None = None) -> Survey:
    """Return a survey that holds the units of each source, or why they cannot be known.

    identify: in the place of the context's, which reads local files whole to know their digest.
    """
    know = identify or context.identify

    def lister(config: BaseConfig) -> Callable[[], tuple[list[SourceUnit], list[str]]]:
        return lambda: with_notes(lambda: SOURCES[config.kind].units(config, know))

    survey = Survey()
    calls = {name: lister(config) for name, config in context.recipe.sources.items()}
    for name, future in call_all(calls, LISTING).items():
        try:
            survey.units[name], notes = future.result()
        except (DataError, TransientError, OSError) as error:
            survey.problems[name] = escaped(str(error))
            continue
        for text in notes:
            context.warn(f"source {name}: {text}")
    return survey


def check_inputs(context: BuildContext, stages: list[str]) -> dict[str, list[SourceUnit]]:
    """Return the units of each source. Raises DataError that says all that is wrong with what `stages` will read.

    These are files that are not there or lack a column, and phases that train longer than they are allowed to. What a
    network does not answer is left to the run, which tries again.
    """
    recipe = context.recipe
    sets = list_sets(recipe, context.identify) if EVALS.name in stages else {}
    sources = recipe.sources if DOWNLOAD.name in stages else {}
    calls: dict[str, Callable[[], list[SourceUnit]]]
    calls = {f"source {name}: ": partial(SOURCES[c.kind].units, c, context.identify) for name, c in sources.items()}
    calls |= sets
    units: dict[str, list[SourceUnit]] = {}
    problems = []
    with ThreadPoolExecutor(8) as pool:
        listed = [(title, pool.submit(with_notes, call)) for title, call in calls.items()]
    for title, future in listed:
        try:
            found, notes = future.result()
        except TransientError:
            continue
        except (DataError, OSError) as error:
            problems.append(escaped(f"{title if title not in sets else ''}{error}"))
            continue
        if title not in sets:
            units[title.removeprefix("source ").removesuffix(": ")] = found
            for text in notes:
                context.warn(f"{title}{text}")
    if TRAIN_STAGE in stages:
        problems += too_long_phases(recipe)
    if problems:
        raise DataError("\n".join(problems))
    return units


def size_alone(path: str) -> tuple[str, int]:
    """Return no digest, and the bytes, of a local file: a digest would mean to read it whole."""
    return "", Path(local_path(path)).stat().st_size


def list_sets(recipe: Recipe, identify: Identify) -> dict[str, Callable[[], list[SourceUnit]]]:
    """Return, for each evaluation set that the recipe reads, what lists its units. Which raises DataError."""
    sets: dict[str, Any] = {**recipe.evals, **recipe.decontaminate.against}
    return {name: partial(units_of, name, config, identify) for name, config in sets.items()}


def too_long_phases(recipe: Recipe) -> list[str]:
    """Return a line for each phase that trains on more tokens than its mixture and its epochs allow."""
    lines = []
    for phase, config in recipe.train.items():
        name = config.mixture or phase
        epochs = config.steps * config.batch_size * config.seq_len / recipe.mixtures[name].tokens
        if config.epochs is not None and epochs > config.epochs:
            lines.append(
                f"train.{phase}: {config.steps:,} steps of {config.batch_size} x {config.seq_len} tokens are "
                f"{epochs:.3f} epochs of mixture {name}, and train.{phase}.epochs allows {config.epochs:g}; lower the "
                f"steps, raise the epochs, or pack more tokens"
            )
    return lines


def sample_sources(context: BuildContext, survey: Survey, folder: Path, tell: Callable[[str], None]) -> None:
    """Sample all sources that are listed: local ones in turn, for as long as they take, and remote ones together."""
    from stages.kernels.jit import cache_folder

    def sampler(name: str) -> Callable[[], Sample]:
        scratch = folder / name
        scratch.mkdir()
        return lambda: sample_source(context.recipe.sources[name], survey.units[name], scratch)

    def take(name: str, sample: Callable[[], Sample]) -> None:
        try:
            survey.samples[name] = sample()
        except (DataError, TransientError, OSError) as error:
            survey.problems[name] = escaped(f"no sample: {error}")

    remote = [
        name
        for name, units in survey.units.items()
        if any(is_remote(artifact.path) for unit in units for artifact in unit.inputs)
    ]
    local = [name for name in survey.units if name not in remote]
    code = cache_folder()
    note = "" if code and any(Path(code).iterdir()) else "; rules are compiled, once on this machine"
    for number, name in enumerate(local, 1):
        tell(f"reading a sample of {name} ({number} of {len(survey.units)} sources{note})")
        take(name, sampler(name))
    if remote:
        tell(f"reading samples of {', '.join(remote)}")
        for name, future in call_all({name: sampler(name) for name in remote}, SAMPLING).items():
            take(name, future.result)


def from_records(context: BuildContext, name: str) -> Forecast:
    """Return what a finished build has counted of a source."""
    totals = context.counts(TOKENIZE, name)
    return Forecast(
        documents=totals.get("documents", 0),
        text=context.counts(DOWNLOAD, name).get("text_bytes", 0),
        kept_text=totals.get("text_bytes", 0),
        tokens=totals.get("train_tokens", 0),
        counted=True,
        held_out=totals.get("val_tokens", 0) > 0,
    )


def from_sample(
    config: BaseConfig, units: list[SourceUnit], sample: Sample, guess: Estimate, tokenizer_error: float
) -> Forecast:
    """Return a source's estimate, cut to the units that its budget takes, in the order in which a run takes them."""
    share, error = 1.0, guess.error + tokenizer_error
    parts = predicted_parts(config, units, guess) if config.has_budget else []
    enough = parts_in_budget(config, [KeptPart(NO_FILE, round(documents), round(text)) for documents, text in parts])
    if enough is not None:
        share = sum(text for _, text in parts[:enough]) / max(1.0, guess.kept_text)
        if share * (1 + guess.error) < 1:  # the budget decides, whatever the source holds beyond
            error = tokenizer_error + parts[enough - 1][1] / max(1.0, share * guess.kept_text) / 2
    return Forecast(
        documents=round(guess.kept * share),
        text=guess.text * share,
        kept_text=guess.kept_text * share,
        tokens=int(guess.tokens * share * TRAINED),
        error=error,
        held_out=sample.held_out > 0 if sample.whole and share == 1 else None,
    )


def predicted_parts(config: BaseConfig, units: list[SourceUnit], guess: Estimate) -> list[tuple[float, float]]:
    """Return (documents, bytes of text) kept of each part that a source with a budget may take, in order."""
    weight = sum(unit.weight for unit in units) or 1
    parts = []
    for unit in in_hash_order(units):
        share = unit.weight / weight
        number = max(1, -int(-share * guess.text // config.cut_bytes()))
        parts += [(share * guess.kept / number, share * guess.kept_text / number)] * number
    return parts


def forecast(context: BuildContext, survey: Survey, tell: Callable[[str], None] = lambda _: None) -> None:
    """Fill in what each source gives: as counted, or from a sample.

    `tell` is called with what is done, before each thing that takes seconds.
    """
    sources = context.recipe.sources
    if context.built(TOKENIZE) is not None:
        survey.forecasts = {name: from_records(context, name) for name in sources}
        survey.tokenizer = "counted in the store"
        return
    warn_of_scores(context)
    with context.temporary_folder() as folder:
        sample_sources(context, survey, folder, tell)
        if not survey.samples:
            return
        tell("counting tokens of the samples")
        tokens = count_tokens(context, survey.samples, folder)
    survey.tokenizer, survey.no_tokenizer = tokens.how, tokens.impossible
    for name, sample in survey.samples.items():
        guess = estimate(sample, tokens.by_source[name])
        survey.forecasts[name] = from_sample(sources[name], survey.units[name], sample, guess, tokens.error)


def warn_of_scores(context: BuildContext) -> None:
    """Warn of what rules ask of models, which no estimate knows before sources are measured."""
    for name, config in context.recipe.sources.items():
        columns = {column for _, column in named_columns(parse_rules(config.rules))}
        if unknown := sorted(columns & {*context.recipe.scores, *LANGUAGE}):
            context.warn(
                f"source {name}: what its rules ask of {', '.join(unknown)} is not in the estimate; "
                f"`{context.command('run measure')}` measures it"
            )


def disk(context: BuildContext, survey: Survey, stages: list[str]) -> dict[str, float]:
    """Return the bytes that the outputs of each of `stages` take in the store when all is built."""
    sizes = dict.fromkeys(stages, 0.0)
    itemsize = token_dtype(context.recipe.tokenizer.vocab_size or 0).itemsize  # a given tokenizer may say nothing here
    for name, source in survey.forecasts.items():
        stored = survey.samples[name].stored if name in survey.samples else STORED
        tokens = itemsize * source.tokens / TRAINED + ROW_BYTES * source.documents
        by_stage: dict[Stage[Any], float] = {DOWNLOAD: source.text * stored, TOKENIZE: tokens}
        measures: float = MEASURE_BYTES * source.documents
        if edits_texts(context.recipe.sources[name]):
            measures += source.text * stored
        by_stage |= {MEASURE: measures, FILTER: KEPT_BYTES * source.documents, DEDUP: source.kept_text * stored}
        for stage, size in by_stage.items():
            if stage.name in sizes:
                sizes[stage.name] += size
    for name, mixture in context.recipe.mixtures.items():
        if PACK[name].name in sizes:
            sizes[PACK[name].name] = float(itemsize * mixture.tokens)
    return sizes


def text_through(survey: Survey) -> dict[str, float]:
    """Return the bytes of text that each stage of documents reads or writes, whichever its counter `text_bytes` is."""
    kept = sum(source.kept_text for source in survey.forecasts.values())
    text = sum(source.text for source in survey.forecasts.values())
    return {DOWNLOAD.name: text, MEASURE.name: text, **{stage.name: kept for stage in (FILTER, DEDUP, TOKENIZE)}}


def question_sets(context: BuildContext) -> dict[str, int | None]:
    """Return how many questions each of the recipe's `evals` has; None of all while they have not been read."""
    records = context.built(EVALS) or {}
    return {name: records[name].output("items").rows if name in records else None for name in context.recipe.evals}
