"""What `plan` shows, as rows and lines: counts are as they are, and what is predicted is to three digits."""

from __future__ import annotations

import statistics

from pipeline.engine.context import Context
from pipeline.engine.graph import find_stage
from pipeline.errors import UserError
from stages.estimate.forecast import Forecast, Survey, disk, text_through
from stages.estimate.mixtures import shared_sources, source_shares
from stages.recipe import Recipe
from train.config import ModelConfig

Row = tuple[object, ...]  # of a table: whole numbers are shown with separators, all else as it is

UNKNOWN = "?"
ENOUGH_UNITS = 4  # below which a rate may be that of compilation
SOURCE_HEADER = (
    "source",
    "from",
    "units",
    "MB",
    "documents",
    "kept",
    "bytes/token",
    "tokens to train on",
    "tokens/doc",
)
MIXTURE_HEADER = ("source", "asked", "tokens", "available", "cap", "epochs", "documents/window")
SHARED_HEADER = ("source", "pretrain", "anneal", "together", "seen", "of anneal seen before")
PHASE_HEADER = ("phase", "mixture", "steps", "tokens trained", "mixture holds", "epochs", "")


def stage_rows(context: Context, target: str) -> list[Row]:
    """Return a row for each stage: units known, cached, to run, and why."""
    rows: list[Row] = []
    blocked = False
    for stage in find_stage(target).upstream():
        state = context.states.get(stage.name)
        if context.built(stage) is not None and not context.state(stage.name).units:
            rows.append((stage.name, 0, 0, 0, "nothing to do"))
        elif state is None or (not state.units and not state.reasons):
            why = "not reached: waits for the stages above" if blocked else "waits until every source can be listed"
            rows.append((stage.name, UNKNOWN, "-", UNKNOWN, why))
            blocked = True
        else:
            reasons = [f"{reason} ({n})" if n > 1 else reason for reason, n in state.reasons.most_common(3)]
            why = ", ".join(reasons) or "cached"
            rows.append((stage.name, len(state.units), state.done, state.reasons.total(), why))
            blocked = blocked or bool(state.reasons)
    return rows


def about(n: float) -> str:
    """Return a count that is predicted, to three digits: ~1.25 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= size * 0.9995:
            return f"~{n / size:.3g}{unit}"
    return f"~{n:.0f}"


def count(n: float, counted: bool) -> str:
    """Return a count as it is, or one that is predicted to three digits."""
    return f"{n:,.0f}" if counted else about(n)


def source_rows(context: Context, survey: Survey) -> list[Row]:
    """Return a row for each source: what it holds, and what it gives to training."""
    rows: list[Row] = []
    for name, config in context.recipe.sources.items():
        units = survey.units.get(name)
        number = len(units) if units is not None else UNKNOWN
        size = f"{sum(unit.weight for unit in units) / 1e6:,.1f}" if units is not None else UNKNOWN
        source = survey.forecasts.get(name)
        gives = forecast_cells(source) if source else [UNKNOWN] * (len(SOURCE_HEADER) - 4)
        rows.append((name, config.kind, number, size, *gives))
    return rows


def forecast_cells(source: Forecast) -> list[str]:
    """Return what a source gives, as cells: documents, share kept, bytes a token, tokens, tokens a document."""
    tokens = count(source.tokens, source.counted)
    return [
        count(source.documents, source.counted),
        f"{source.kept_text / source.text:.1%}" if source.text else "-",
        f"{source.kept_text / source.tokens:.2f}" if source.tokens else "-",
        tokens if source.counted else f"{tokens} ± {source.error:.0%}",
        f"{source.tokens / source.documents:,.0f}" if source.documents else "-",
    ]


def shown(value: float | None, form: str) -> str:
    """Return `value` in the format `form`, or a question mark where it is not known."""
    return UNKNOWN if value is None else format(value, form)


def mixture_rows(recipe: Recipe, name: str, survey: Survey) -> list[Row]:
    """Return a row for each source of a mixture: what is asked of it, and what it has."""
    rows: list[Row] = []
    for share in source_shares(recipe, name, survey):
        available = UNKNOWN
        if share.available is not None:
            available = count(share.available, survey.forecasts[share.source].counted)
        rows.append(
            (
                share.source,
                shown(share.ratio, ".2%"),
                shown(share.tokens, ",d"),
                available,
                f"{share.cap:g}",
                shown(share.epochs, ".3f"),
                shown(share.documents_per_window, ".2f"),
            )
        )
    return rows


def loader_note(recipe: Recipe, name: str) -> list[str]:
    """Return a warning where a shard is shorter than what llm.c's loader takes from one for a step.

    That is world * B * T + 1 tokens.
    """
    phase = recipe.train.get(recipe.phase_of(name))
    if phase is None:
        return []
    tokens = recipe.mixtures[name].tokens
    shard = tokens // -(-tokens // recipe.shard_tokens)
    batch = phase.micro_batch or max(1, phase.batch_size // recipe.ranks)
    step = recipe.ranks * batch * phase.seq_len + 1
    if shard >= step:
        return []
    return [
        f"llm.c's loader could not read it: a shard has about {shard:,} tokens, and {recipe.ranks} x {batch} x "
        f"{phase.seq_len} + 1 = {step:,} must fit; lower the micro-batch or raise shard_tokens or the mixture's tokens"
    ]


def shared_rows(recipe: Recipe, survey: Survey) -> list[Row]:
    """Return a row for each source that both mixtures take: its epochs in each, in all, and what anneal repeats."""
    rows: list[Row] = []
    for shared in shared_sources(recipe, survey):
        epochs = (shared.pretrain_epochs, shared.anneal_epochs, shared.pretrain_epochs + shared.anneal_epochs)
        rows.append((shared.source, *(f"{n:.3f}" for n in epochs), shared.seen, f"{shared.seen_before:.0%}"))
    return rows


def phase_rows(recipe: Recipe) -> list[Row]:
    """Return a row for each phase: the tokens it trains on, and the epochs that makes of its mixture."""
    rows: list[Row] = []
    for phase, config in recipe.train.items():
        mixture = recipe.mixtures[config.mixture or phase]
        used = config.steps * config.batch_size * config.seq_len
        epochs = used / mixture.tokens
        note = f"above train.{phase}.epochs = {config.epochs}" if epochs > config.epochs else "ok"
        rows.append((phase, config.mixture or phase, config.steps, used, mixture.tokens, f"{epochs:.3f}", note))
    return rows


def parameters(recipe: Recipe) -> str:
    """Return the model's parameter count. Raises UserError where the recipe's expect_params says another."""
    from train.model.transformer import count_parameters  # loads torch, which nothing else here needs

    model: ModelConfig = recipe.model
    if recipe.tokenizer.vocab_size is None:
        return f"parameters follow from the vocabulary of {recipe.tokenizer.source}; tokenizer.vocab_size can state it"
    count = count_parameters(model, recipe.tokenizer.vocab_size)
    expected = model.expect_params
    if expected is not None and expected != count:
        raise UserError(f"model has {count:,} parameters, expect_params says {expected:,}; mend one of them")
    return f"{count:,} parameters" + (" (expect_params agrees)" if expected else "")


def disk_line(context: Context, survey: Survey, stages: list[str]) -> str:
    """Return the bytes that `stages` take, by stage."""
    sizes = {name: size for name, size in disk(context, survey, stages).items() if size}
    by_stage = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    return f"Disk: {megabytes(sum(sizes.values()))} in all ({by_stage}){left_out(survey, context.recipe)}"


def megabytes(size: float) -> str:
    """Return bytes as people say them."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def left_out(survey: Survey, recipe: Recipe) -> str:
    """Say that some sources are not in a figure; "" where all are."""
    lacking = [name for name in recipe.sources if name not in survey.forecasts]
    named = ", ".join(lacking) if survey.forecasts else "all that the sources need"
    return f"; without {named}" if lacking else ""


def seconds_ahead(context: Context, survey: Survey) -> dict[str, float]:
    """Return seconds of work on one worker for each stage of documents that has units cached and units to run.

    The rate is the median of the stage's own records: the first units of a machine compile their loops too.
    """
    seconds = {}
    for name, text in text_through(survey).items():
        state = context.states.get(name)
        if state is None or not state.reasons or len(state.text_rates) < ENOUGH_UNITS:
            continue
        seconds[name] = state.reasons.total() / len(state.units) * text * statistics.median(state.text_rates)
    return seconds


def time_line(context: Context, survey: Survey) -> str:
    """Return seconds by stage, of stages that have run in part; "" where there are none."""
    by_stage = ", ".join(f"{stage} {duration(spent)}" for stage, spent in seconds_ahead(context, survey).items())
    return f"Time on one worker, at the rate of what is cached: {by_stage}" if by_stage else ""


def duration(spent: float) -> str:
    """Return seconds as people say them."""
    if spent < 100:
        return f"{spent:.0f} s" if spent >= 1 else "under 1 s"
    return f"{spent / 60:.0f} min" if spent < 6000 else f"{spent / 3600:.1f} h"
