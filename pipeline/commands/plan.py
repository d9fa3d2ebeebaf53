"""The dry run: what is cached, what would run and why, and what the recipe would give: tokens, mix, disk, time.

Nothing is written but to a temporary folder. What is not built yet is predicted from a small sample of each source.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.commands.estimate import PACKS, Survey, disk, forecast, list_sources, pool, pretrain_takes, seconds
from pipeline.commands.report import grid
from pipeline.engine.context import Context, drive
from pipeline.engine.graph import find_stage
from pipeline.errors import NotBuilt, UserError
from stages.errors import DataError
from stages.evals.stage import EVALS
from stages.pack.mixture import capacity, largest_remainder, shares_asked, solve, weights
from stages.recipe import Recipe
from train.config import ModelConfig

WIDTH = 100  # where the output is no terminal
MANY = 32  # workers for which a time is named, beside this machine's


def explore(context: Context, target: str) -> str:
    """Walk the graph as far as the store knows it. Returns why it stopped, or nothing."""
    try:
        drive(context, context.stage(find_stage(target)))
    except NotBuilt as error:
        return f"stages after {error.stage} follow from what it will write"
    except (DataError, UserError) as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def survey_of(context: Context, target: str) -> tuple[Survey, str]:
    """The sources, listed, and why the walk towards `target` stopped: units are known, and nothing is read yet."""
    survey = Survey()
    list_sources(context, survey)
    context.listed = survey.units
    return survey, explore(context, target) if len(survey.units) == len(context.recipe.sources) else ""


def stage_rows(context: Context, target: str) -> list[tuple[Any, ...]]:
    """One row a stage: units known, cached, to run, and why."""
    rows: list[tuple[Any, ...]] = []
    blocked = False
    for stage in find_stage(target).upstream():
        state = context.states.get(stage.name)
        if context.built(stage) is not None and not context.state(stage.name).units:
            rows.append((stage.name, 0, 0, 0, "nothing to do"))
            continue
        if state is None or (not state.units and not state.reasons):
            why = "not reached: waits for the stages above" if blocked else "waits until every source can be listed"
            rows.append((stage.name, "?", "-", "?", why))
            blocked = True
            continue
        why = (
            ", ".join(f"{reason} ({n})" if n > 1 else reason for reason, n in state.reasons.most_common(3)) or "cached"
        )
        rows.append((stage.name, len(state.units), state.done, state.reasons.total(), why))
        blocked = blocked or bool(state.reasons)
    return rows


def about(n: float) -> str:
    """A count that is predicted, to three digits: ~1.25 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= size * 0.9995:
            return f"~{n / size:.3g}{unit}"
    return f"~{n:.0f}"


def source_rows(context: Context, survey: Survey) -> list[tuple[Any, ...]]:
    """One row a source: what it holds, and what it gives to training."""
    rows = []
    for name, config in context.recipe.sources.items():
        specs = survey.units.get(name)
        listed = (name, config.kind, len(specs) if specs is not None else "?")
        size = f"{sum(spec.weight for spec in specs) / 1e6:,.1f}" if specs is not None else "?"
        found = survey.forecasts.get(name)
        if found is None:
            rows.append((*listed, size, "?", "?", "?", "?", "?"))
            continue
        show = (lambda n: f"{n:,.0f}") if found.counted else about
        kept = f"{found.kept_text / found.text:.1%}" if found.text else "-"
        tokens = show(found.tokens) + ("" if found.counted else f" ± {found.error:.0%}")
        each = f"{found.kept_text / found.tokens:.2f}" if found.tokens else "-"
        length = f"{found.tokens / found.documents:,.0f}" if found.documents else "-"
        rows.append((*listed, size, show(found.documents), kept, each, tokens, length))
    return rows


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


def mixture_rows(context: Context, name: str, survey: Survey) -> tuple[list[tuple[Any, ...]], list[str]]:
    """What is asked of each source, what it has, and what binds (or why that cannot be known)."""
    mixture = context.recipe.mixtures[name]
    window = context.recipe.window_of(name)
    known = all(s in survey.forecasts for s in mixture.sources)
    have = pool(context, name, {s: f.tokens for s, f in survey.forecasts.items()}) if known else {}
    wanted = shares = None
    if known or mixture.temperature is None:
        share = weights(mixture, have)
        wanted = largest_remainder(mixture.tokens, share) if any(share.values()) else None
        shares = shares_asked(mixture, have)
    rows: list[tuple[Any, ...]] = []
    for source in mixture.sources:
        found = survey.forecasts.get(source)
        has = "?" if source not in have or not found else f"{have[source]:,}" if found.counted else about(have[source])
        repeat = f"{wanted[source] / have[source]:.3f}" if wanted and have.get(source) else "?"
        length = found.tokens / found.documents if found and found.documents else 0.0
        fit = f"{window / length:.2f}" if window and length else "?"
        tokens = wanted[source] if wanted else "?"
        ratio = f"{shares[source]:.2%}" if shares else "?"
        rows.append((source, ratio, tokens, has, f"{mixture.cap(source):g}", repeat, fit))
    if not known:
        unknown = ", ".join(s for s in mixture.sources if s not in survey.forecasts)
        return rows, [f"cannot be solved yet: nothing is known of {unknown}"]
    verdict = judge(context, name, survey, have)
    return rows, [verdict, *loader_note(context.recipe, name)]


def judge(context: Context, name: str, survey: Survey, have: Mapping[str, int]) -> str:
    """Whether the mixture fits, also at the low end of what was predicted, and what binds."""
    mixture = context.recipe.mixtures[name]
    predicted = not all(survey.forecasts[s].counted for s in mixture.sources)
    try:
        wanted = solve(mixture, have)
    except DataError as error:
        return f"{'would not fit, by the estimate' if predicted else 'does not fit'}: {error}"
    low = {s: int(n * max(0.0, 1 - survey.forecasts[s].error)) for s, n in have.items()}
    try:
        solve(mixture, low)
    except DataError as error:
        return f"fits by the estimate, but not if the sources give as little as the sample allows for: {error}"
    used = {s: wanted[s] / max(1, capacity(have[s], mixture.cap(s))) for s in wanted}
    binding = max(used, key=lambda s: used[s])
    most = wanted[binding] / max(1, capacity(low[binding], mixture.cap(binding)))
    doubt = f" (at most {most:.0%})" if predicted else ""
    return f"fits; the cap that binds first is {binding}'s, {used[binding]:.0%} used{doubt}"


def loader_note(recipe: Recipe, name: str) -> list[str]:
    """A warning where a shard is shorter than the step that llm.c's loader takes from one: world * B * T + 1 tokens."""
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


def together_rows(context: Context, survey: Survey) -> list[tuple[Any, ...]]:
    """One row a source that both mixtures take: its epochs in each, in all, and what anneal repeats of pretrain."""
    recipe = context.recipe
    have = {s: f.tokens for s, f in survey.forecasts.items()}
    pretrain, anneal = recipe.mixtures["pretrain"], recipe.mixtures["anneal"]
    if not all(have.get(s) for s in (*pretrain.sources, *anneal.sources)):
        return []
    first = pretrain_takes(context, have)
    second = largest_remainder(anneal.tokens, weights(anneal, pool(context, "anneal", have)))
    rows = []
    for source in recipe.sources:
        a, b = first.get(source, 0), second.get(source, 0)
        if a and b:
            n = have[source]
            how = anneal.seen.get(source, "any")
            shown = min(1.0, a / n)
            again = {"any": shown, "prefer": min(1.0, a / min(b, n)), "exclude": 0.0}[how]
            epochs = (f"{x / n:.3f}" for x in (a, b, a + b))
            rows.append((source, *epochs, how, f"{again:.0%}"))
    return rows


def phase_rows(recipe: Recipe) -> list[tuple[Any, ...]]:
    """Tokens each phase trains on, and the epochs that makes of its mixture."""
    rows = []
    for phase, config in recipe.train.items():
        mixture = recipe.mixtures[config.mixture or phase]
        used = config.steps * config.batch_size * config.seq_len
        epochs = used / mixture.tokens
        note = f"above train.{phase}.epochs = {config.epochs}" if epochs > config.epochs else "ok"
        rows.append((phase, config.mixture or phase, config.steps, used, mixture.tokens, f"{epochs:.3f}", note))
    return rows


def parameters(recipe: Recipe) -> str:
    """The model's parameter count, asserted against expect_params where the recipe states it."""
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
    """Bytes by stage, of those that `stages` names."""
    sizes = {k: n for k, n in disk(context, survey, stages).items() if n}
    parts = ", ".join(f"{name} {megabytes(n)}" for name, n in sizes.items())
    return f"Disk: {megabytes(sum(sizes.values()))} in all ({parts}){missing(survey, context.recipe)}"


def megabytes(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def time_line(context: Context, survey: Survey, stages: list[str]) -> str:
    """Seconds by stage, and of the whole on this machine and on a larger one."""
    spent = seconds(context, survey, stages)
    if not spent:
        return (
            "Time: nothing left to do" if not survey.problems else f"Time: not known{missing(survey, context.recipe)}"
        )
    parts = ", ".join(f"{stage} {duration(t)}" for stage, t in spent.items() if t >= 1) or "no stage takes a second"
    alone = spent.get("build_tokenizer", 0.0)  # one unit
    cores = os.cpu_count() or 1
    spread = [f"{duration(alone + (sum(spent.values()) - alone) / n)} on {n} workers" for n in (cores, MANY)]
    return (
        f"Time: {duration(sum(spent.values()))} of work ({parts}): {', '.join(spread)}{missing(survey, context.recipe)}"
    )


def missing(survey: Survey, recipe: Recipe) -> str:
    """That some sources are not in a figure."""
    lacking = [name for name in recipe.sources if name not in survey.forecasts]
    named = ", ".join(lacking) if survey.forecasts else "all that the sources need"
    return f"; without {named}" if lacking else ""


def duration(spent: float) -> str:
    """Seconds as people say them."""
    if spent < 100:
        return f"{spent:.0f} s" if spent >= 1 else "under 1 s"
    return f"{spent / 60:.0f} min" if spent < 6000 else f"{spent / 3600:.1f} h"


def print_sources(console: Console, context: Context, survey: Survey) -> None:
    """The table of sources, how it came about, and why some are not in it."""
    read = sum(sample.read for sample in survey.samples.values())
    console.print()
    columns = len(SOURCE_HEADER) if survey.forecasts else 4  # the others would be unknown
    console.print(grid("Sources", SOURCE_HEADER[:columns], [row[:columns] for row in source_rows(context, survey)]))
    if survey.samples:
        console.print(
            f"~ predicted from {read / 1e6:,.1f} MB read, for 95 % of such samples within ±; duplicates not deducted",
            markup=False,
        )
    if survey.tokenizer:
        console.print(survey.tokenizer, markup=False)
    for name, problem in survey.problems.items():
        console.print(f"{name}: {problem}", markup=False)


def print_plan(context: Context, target: str) -> None:
    """The plan of `target`, on standard output. Raises UserError for a model that is not what it says."""
    console = Console(highlight=False, soft_wrap=True)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = WIDTH
    recipe = context.recipe
    console.print(f"recipe {recipe.name}, target {target}, results in {context.folder('')}", markup=False)
    survey, stopped = survey_of(context, target)
    console.print()
    table = grid("Graph", ("stage", "units", "cached", "to run", "why"), stage_rows(context, target))
    table.columns[-1].justify = "left"
    console.print(table)
    if stopped:
        console.print(f"Not known yet: {stopped}", markup=False)
    with tempfile.TemporaryDirectory(prefix="shardmill-plan-", ignore_cleanup_errors=True) as folder:
        forecast(context, survey, Path(folder))
    print_sources(console, context, survey)
    stages = [stage.name for stage in find_stage(target).upstream()]
    names = [n for stage, n in PACKS.items() if stage in stages and n in recipe.mixtures]
    for name in names:
        rows, said = mixture_rows(context, name, survey)
        title = f"Mixture {name}: {recipe.mixtures[name].tokens:,} tokens"
        header = ("source", "asked", "tokens", "available", "cap", "epochs", "documents/window")
        console.print()
        console.print(grid(title, header, rows))
        for line in said:
            console.print(line, markup=False)
    if "anneal" in names and "pretrain" in recipe.mixtures and (both := together_rows(context, survey)):
        columns = ("source", "pretrain", "anneal", "together", "seen", "of anneal seen before")
        console.print()
        console.print(grid("Epochs over both mixtures", columns, both))
    console.print()
    console.print(disk_line(context, survey, stages), markup=False)
    console.print(time_line(context, survey, stages), markup=False)
    console.print(f"Model: {parameters(recipe)}", markup=False)
    if recipe.evals:
        known = context.built(EVALS) or {}
        sets = (f"{n} ({known[n].output('items').rows:,} items)" if n in known else n for n in recipe.evals)
        console.print(f"Asked while training: {', '.join(sets)}", markup=False)
    if recipe.train:
        console.print()
        header = ("phase", "mixture", "steps", "tokens trained", "mixture holds", "epochs", "")
        console.print(grid("Training", header, phase_rows(recipe)))
