"""The dry run: what is cached, what would run and why, the mixture solved or what is missing to solve it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console

from pipeline.engine import Context, drive
from pipeline.errors import NotBuilt, UserError
from pipeline.graph import order
from pipeline.recipe import Recipe
from pipeline.report import grid
from stages.base import DataError
from stages.mixture import asked, capacity, largest_remainder, solve
from stages.sources.registry import SOURCES
from train.config import ModelConfig
from train.model import count_parameters

BYTES_PER_TOKEN = 4.0  # an 8192 BPE on English text, until this recipe's own records say better


def explore(context: Context, target: str) -> str:
    """Walk the graph as far as the store knows it. Returns why it stopped, or nothing."""
    try:
        drive(context, context.stage(target))
    except NotBuilt as error:
        return f"stages after {error.stage} follow from what it will write"
    except (DataError, UserError) as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def unlisted(recipe: Recipe, context: Context) -> list[tuple[Any, ...]]:
    """One row a source: how many units it has, or why that cannot be known yet."""

    def look(name: str) -> tuple[Any, ...]:
        config = recipe.sources[name]
        try:
            specs = SOURCES[config.kind].units(config, context.identify)
        except (DataError, OSError) as error:
            return name, config.kind, "?", "?", str(error)
        size = sum(spec.weight for spec in specs)
        return name, config.kind, len(specs), f"{size / 1e6:,.1f}", "listed"

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(look, recipe.sources))


def stage_rows(context: Context, target: str) -> list[tuple[Any, ...]]:
    """One row a stage: units known, cached, to run, and why."""
    rows: list[tuple[Any, ...]] = []
    blocked = False
    for stage in order(target):
        state = context.states.get(stage.name)
        if state is None or (not state.units and not state.reasons):
            why = "not reached: waits for the stages above" if blocked else "nothing known yet"
            rows.append((stage.name, "?", "-", "?", why))
            blocked = True
            continue
        reasons = Counter(state.reasons.values())
        why = ", ".join(f"{reason} ({n})" if n > 1 else reason for reason, n in reasons.most_common(3)) or "cached"
        rows.append((stage.name, len(state.units), len(state.records), len(state.reasons), why))
        blocked = blocked or bool(reasons)
    return rows


def mixture_rows(context: Context, name: str) -> tuple[list[tuple[Any, ...]], str]:
    """What is asked of each source, what it has, and what binds (or why that cannot be known)."""
    mixture = context.recipe.mixtures[name]
    rows: list[tuple[Any, ...]] = []
    have: dict[str, int | None] = {}
    wanted = largest_remainder(mixture.tokens, mixture.ratios or mixture.counts)
    for source in mixture.sources:
        counts = context.counts("tokenize", source)
        state = context.states.get("tokenize")
        complete = state is not None and state.records and not state.reasons
        have[source] = counts["train_tokens"] if complete and "train_tokens" in counts else None
        has = have[source]
        known = "unknown until it is tokenised" if has is None else f"{has:,}"
        cap = mixture.cap(source)
        repeat = f"{wanted[source] / has:.3f}" if has else "?"
        rows.append((source, f"{asked(mixture, wanted)[source]:.2%}", wanted[source], known, f"{cap:g}", repeat))
    if any(n is None for n in have.values()):
        return rows, "cannot be solved yet: exact token counts exist only after tokenize"
    known_counts = {s: n or 0 for s, n in have.items()}
    try:
        solve(mixture, known_counts)
    except DataError as error:
        return rows, f"does not fit: {error}"
    used = {s: wanted[s] / max(1, capacity(known_counts[s], mixture.cap(s))) for s in wanted}
    binding = max(used, key=lambda s: used[s])
    return rows, f"fits; the cap that binds first is {binding}'s, {used[binding]:.0%} used"


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


def disk(recipe: Recipe, names: list[str]) -> str:
    """Bytes that packed shards will take: 2 a token, and about 60 a document for index and rows."""
    total = sum(recipe.mixtures[n].tokens for n in names)
    return f"{2 * total / 1e6:,.1f} MB of shards for {total:,} tokens (2 bytes each), plus index and rows"


def parameters(recipe: Recipe) -> str:
    """The model's parameter count, asserted against expect_params where the recipe states it."""
    model: ModelConfig = recipe.model
    if recipe.tokenizer.vocab_size is None:
        return f"parameters follow from the vocabulary of {recipe.tokenizer.source}; tokenizer.vocab_size can state it"
    count = count_parameters(model, recipe.tokenizer.vocab_size)
    expected = model.expect_params
    if expected is not None and expected != count:
        raise UserError(f"model has {count:,} parameters, expect_params says {expected:,}; mend one of them")
    return f"{count:,} parameters" + (" (expect_params agrees)" if expected else "")


def predicted(context: Context, target: str) -> str:
    """Seconds of work ahead, from the rates of this store's own records."""
    ahead, unknown = 0.0, []
    for stage in order(target):
        state = context.states.get(stage.name)
        if state is None or not state.reasons:
            if state is None or not state.records:
                unknown.append(stage.name)
            continue
        seconds = [r.seconds for r in state.records]
        if seconds:
            ahead += len(state.reasons) * sum(seconds) / len(seconds)
        else:
            unknown.append(stage.name)
    text = f"{ahead:.0f} s of work in units whose like has run here"
    return text + (f"; no record yet to predict {', '.join(unknown)} from" if unknown else "")


def print_plan(context: Context, target: str) -> None:
    """The plan of `target`, on standard output. Raises UserError for a model that is not what it says."""
    console = Console(highlight=False, soft_wrap=True)
    recipe = context.recipe
    stopped = explore(context, target)
    console.print(f"recipe {recipe.name}, target {target}, results in {context.folder('')}", markup=False)
    console.print()
    table = grid("Graph", ("stage", "units", "cached", "to run", "why"), stage_rows(context, target))
    table.columns[-1].justify = "left"
    console.print(table)
    if not context.state("download").units:
        table = grid("Sources", ("source", "from", "units", "MB", ""), unlisted(recipe, context))
        table.columns[-1].justify = "left"
        console.print()
        console.print(table)
        console.print("Units, keys and all that follows cannot be known before every source is listed.")
    elif stopped:
        console.print(f"Not known yet: {stopped}", markup=False)
    console.print()
    wanted = {s.name for s in order(target)}
    names = [n for n, s in (("pretrain", "pack_pretrain"), ("anneal", "pack_anneal_mix")) if s in wanted]
    names = [n for n in names if n in recipe.mixtures]
    for name in names:
        rows, verdict = mixture_rows(context, name)
        title = f"Mixture {name}: {recipe.mixtures[name].tokens:,} tokens"
        console.print(grid(title, ("source", "asked", "tokens", "available", "cap", "epochs"), rows))
        console.print(verdict, markup=False)
        console.print()
    if names:
        console.print(f"Disk: {disk(recipe, names)}", markup=False)
    console.print(f"Time: {predicted(context, target)}", markup=False)
    console.print(f"Model: {parameters(recipe)}", markup=False)
    if recipe.train:
        console.print()
        header = ("phase", "mixture", "steps", "tokens trained", "mixture holds", "epochs", "")
        console.print(grid("Training", header, phase_rows(recipe)))
