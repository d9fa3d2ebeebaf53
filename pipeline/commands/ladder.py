"""`ladder`: a recipe trained at several small sizes, what they say of a larger one, and whether its rates transfer."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.plan_rows import duration
from pipeline.commands.report import TextConsole, grid
from pipeline.engine import quarantine
from pipeline.engine.context import Context, drive
from pipeline.engine.graph import find_stage
from pipeline.engine.locks import store_lock, suppress_read_only
from pipeline.errors import UsageError, UserError
from pipeline.recipe import parse_recipe
from pipeline.sweep.recipes import changed
from pipeline.sweep.texts import recipe_text
from stages.errors import DataError
from stages.estimate.forecast import check_inputs
from stages.ladder.law import NOISE, Optimum, Prediction, best_rate, predict
from stages.ladder.scale import Rung, rung_of
from stages.paths import is_remote
from stages.proposal.scale import machine_speed
from stages.recipe import Recipe
from stages.registry import STAGES
from train.config import TrainError
from train.files import write_atomic
from train.keys import ConfigError

TRAIN = find_stage("train")
STEP = 2.0  # between the rates that are tried
APART = 1.5  # factor between two best rates, beyond their intervals, from which rates do not transfer
# a run is scored at its start and its end alone, and writes no samples
QUIET = {"eval_every": 0, "sample_tokens": 0}


@dataclass(frozen=True)
class Trial:
    """One training run of a ladder."""

    rung: Rung
    rate: float  # times the rule's rates
    recipe: Recipe


@dataclass(frozen=True)
class Loss:
    """What a trial was scored at, on the held-out text."""

    nats: float  # a token
    bits_per_byte: float


def phase_of(recipe: Recipe, phase: str | None) -> str:
    """Return the phase that a ladder is of: the recipe's first, if none is named. Raises UsageError."""
    if not recipe.train:
        raise UsageError(f"{recipe.name} has no train: phases; a ladder trains one at several sizes")
    if phase is not None and phase not in recipe.train:
        raise UsageError(f"--phase {phase}: the phases of {recipe.name} are {', '.join(recipe.train)}")
    return phase or next(iter(recipe.train))


def trials_of(recipe: Recipe, phase: str, rungs: Sequence[Rung], with_rates: bool) -> list[Trial]:
    """Return the runs: one a size, and with rates the smallest and the middle size at lower and higher ones too."""
    checked = (rungs[0], rungs[len(rungs) // 2]) if with_rates else ()
    factors = [(rung, factor) for rung in rungs for factor in ((1 / STEP, 1.0, STEP) if rung in checked else (1.0,))]
    return [Trial(rung, factor, at_size(recipe, phase, rung, factor)) for rung, factor in factors]


def at_size(recipe: Recipe, phase: str, rung: Rung, rate: float = 1.0) -> Recipe:
    """Return the recipe of one phase at a size, with its mixture alone. rate: times the rule's learning rates."""
    settings = {key: value * rate if key.endswith(".lr") else value for key, value in rung.settings.items()}
    name = f"{recipe.name}-{rung.layers}-layers" + ("" if rate == 1 else f"-rates-{rate:g}")
    raw = changed(recipe, name, settings, f"{rung.layers} layers").to_dict()
    mixture = raw["train"][phase]["mixture"] or phase
    raw["mixtures"] = {mixture: raw["mixtures"][mixture]}
    raw["train"] = {phase: raw["train"][phase] | QUIET}
    return parse_recipe(raw, f"{rung.layers} layers")


def check_tokens(recipe: Recipe, phase: str, rungs: Sequence[Rung]) -> None:
    """Raise UserError where the mixture is smaller than what the largest size trains on."""
    cfg = recipe.train[phase]
    name, most = cfg.mixture or phase, rungs[-1]
    there = int(recipe.mixtures[name].tokens * cfg.epochs)
    if most.tokens > there:
        raise UserError(
            f"{most.layers} layers train on {most.tokens:,} tokens, and mixtures.{name}.tokens allows {there:,}: raise "
            "it (--set), leave the largest size out, or lower --tokens-per-weight"
        )


def ladder(
    context: Context, phase: str | None, layers: Sequence[int], target: int, per_weight: float | None, rates: bool
) -> None:
    """Plan a ladder, and unless the context is a dry one train it and print what it says. Raises UserError."""
    recipe, console = context.recipe, TextConsole()
    phase = phase_of(recipe, phase)
    sizes = sorted(set(layers))
    if len(sizes) < 3:
        raise UsageError("a ladder takes three sizes or more: python -m pipeline ladder 4 6 8 --target 12")
    if target <= sizes[-1]:
        raise UsageError(f"--target {target}: it is to be larger than the sizes that are trained, {sizes[-1]} layers")
    try:
        *rungs, goal = (rung_of(recipe, phase, number, per_weight) for number in (*sizes, target))
        trials = trials_of(recipe, phase, rungs, rates)
        at_goal = at_size(recipe, phase, goal)
    except (DataError, ConfigError, TrainError) as error:
        raise UserError(f"{recipe.name}: {error}") from error
    check_tokens(recipe, phase, rungs)
    print_plan(console, context, phase, trials, goal)
    if context.dry:
        return
    with store_lock(context.store):
        context.listed = check_inputs(context, [stage for stage in STAGES if stage != TRAIN.name])
        try:
            losses = drive(context, run_trials(context, phase, trials))
        finally:
            quarantine.publish(context)
    write_results(console, context, phase, trials, losses, goal, at_goal)


async def run_trials(context: Context, phase: str, trials: Sequence[Trial]) -> list[Loss]:
    """Train all sizes one after another, or find them done, and return their scores."""
    losses = []
    for trial in trials:
        own = context.with_recipe(trial.recipe)
        records = await own.stage(TRAIN)
        own.complete = True
        with suppress_read_only():
            own.save_state()
        summary = records[phase].output("summary.json")
        after = json.loads(await asyncio.to_thread(Path(own.artifact_path(summary)).read_text))["after"]
        losses.append(Loss(after["nats"], after["bits_per_byte"]))
        context.say(f"{said(trial)}: {after['nats']:.4f} nats a token")
    return losses


def said(trial: Trial) -> str:
    """Name a trial for people."""
    return f"{trial.rung.layers} layers" + ("" if trial.rate == 1 else f", {trial.rate:g} times the rates")


# ---------------------------------------------------------------------------------------------------------------------
# What is printed and written


def print_plan(console: TextConsole, context: Context, phase: str, trials: Sequence[Trial], goal: Rung) -> None:
    """Print each size with what the rule makes of it, and how long all of them take."""
    base = context.recipe.train[phase]
    keys = [key for key in goal.settings if key.endswith((".lr", ".weight_decay"))]
    rows = []
    for rung in (*dict.fromkeys(trial.rung for trial in trials), goal):
        shown = f"{rung.layers}{' (target)' if rung is goal else ''}"
        sizes = (shown, rung.width, rung.weights, rung.tokens, f"{rung.batch_size} x {base.seq_len}", rung.steps)
        rows.append((*sizes, *(f"{rung.settings[key]:g}" for key in keys), f"{rung.compute:.2g}"))
    short = [key.removeprefix(f"train.{phase}.") for key in keys]
    header = ("layers", "width", "weights", "tokens", "batch", "steps", *short, "operations")
    console.print(grid(f"Ladder of {context.recipe.name}, phase {phase}", header, rows))
    smallest = trials[0].rung
    console.print(
        f"{smallest.tokens / smallest.weights:.3g} tokens a weight; weights are those that multiply once a token"
    )
    speed = machine_speed(None, None)
    seconds = sum(trial.rung.compute for trial in trials) / speed.flops
    console.print(f"{len(trials)} runs, about {duration(seconds)} of training ({speed.how})")


def transfer(trials: Sequence[Trial], losses: Sequence[Loss]) -> list[tuple[Rung, Optimum | None]]:
    """Return the best rate of each size that was tried at three, times the rule's."""
    found = []
    for rung in dict.fromkeys(trial.rung for trial in trials):
        own = [loss.nats for trial, loss in zip(trials, losses, strict=True) if trial.rung == rung]
        if len(own) == 3:
            found.append((rung, best_rate(own, STEP)))
    return found


def transfer_lines(found: Sequence[tuple[Rung, Optimum | None]], goal: Rung) -> tuple[list[str], float]:
    """Return what the rates tried say, and what the rule's rates are to be multiplied by at the target."""
    lines = []
    for rung, best in found:
        at = (
            f"best at {best.factor:.2f} times the rule's ({best.low:.2f} to {best.high:.2f})"
            if best
            else (f"the best is not between {1 / STEP:g} and {STEP:g} times the rule's")
        )
        lines.append(f"rates at {rung.layers} layers: {at}")
    known = [(rung, best) for rung, best in found if best is not None]
    if len(known) < 2:
        return [*lines, "whether rates transfer is not known"] if found else [], 1.0
    (small, low), (large, high) = known
    ratio = math.log(high.factor / low.factor)
    spread = math.hypot(math.log(low.high / low.factor), math.log(high.high / high.factor))
    if abs(ratio) <= spread + math.log(APART):
        return [
            *lines,
            f"they transfer, as far as these can tell: {math.exp(ratio):.2f} times from one to the other",
        ], 1.0
    slope = ratio / math.log(large.width / small.width)
    factor = high.factor * (goal.width / large.width) ** slope
    return [
        *lines,
        f"they do not transfer: the best goes with width ^ {slope:.2f} beside the rule, so the target has "
        f"{factor:.2f} times the rule's rates",
    ], factor


def prediction_lines(goal: Rung, largest: Rung, nats: Prediction, bytes_per_token: float) -> Iterator[str]:
    """Say what the target's loss will be."""
    low, middle, high = (value / bytes_per_token / math.log(2) for value in (nats.low, nats.middle, nats.high))
    yield (
        f"{goal.layers} layers: {nats.middle:.2f} nats a token, {nats.low:.2f} to {nats.high:.2f} (95 %); "
        f"{middle:.2f} bits a byte, {low:.2f} to {high:.2f}"
    )
    yield (
        f"{nats.decades:.1f} decades of compute beyond {largest.layers} layers; of held-out text like that trained on, "
        "and of nothing else"
    )


def write_results(
    console: TextConsole,
    context: Context,
    phase: str,
    trials: Sequence[Trial],
    losses: Sequence[Loss],
    goal: Rung,
    at_goal: Recipe,
) -> None:
    """Print losses, the prediction and the check of the rates; write the target's recipe and all figures."""
    rows = [
        (said(trial), f"{trial.rung.compute:.2g}", f"{loss.nats:.4f}", f"{loss.bits_per_byte:.4f}")
        for trial, loss in zip(trials, losses, strict=True)
    ]
    console.print(grid("Scores on the held-out text", ("size", "operations", "nats", "bits per byte"), rows))
    plain = [(trial.rung, loss) for trial, loss in zip(trials, losses, strict=True) if trial.rate == 1]
    nats = predict([rung.compute for rung, _ in plain], [loss.nats for _, loss in plain], goal.compute)
    bytes_per_token = plain[0][1].nats / math.log(2) / plain[0][1].bits_per_byte
    rate_lines, factor = transfer_lines(transfer(trials, losses), goal)
    lines = [*prediction_lines(goal, plain[-1][0], nats, bytes_per_token), *rate_lines]
    for line in lines:
        console.print(line)
    name = f"ladder-{context.recipe.name}"
    folder = Path(name if is_remote(context.store.out) else f"{context.store.out}/{context.recipe.name}/ladder")
    folder.mkdir(parents=True, exist_ok=True)
    if factor != 1:
        at_goal = at_size(context.recipe, phase, goal, factor)
    head = "".join(f"# {line}\n" for line in (f"Written by `python -m pipeline ladder`, {goal.layers} layers", *lines))
    write_atomic(folder / f"{goal.layers}-layers.yaml", head + recipe_text(at_goal.to_dict()))
    values: dict[str, Any] = {
        "phase": phase,
        "target": asdict(goal) | {"compute": goal.compute, "rates": factor},
        "prediction": asdict(nats) | {"noise": NOISE},
        "runs": [
            asdict(trial.rung) | asdict(loss) | {"compute": trial.rung.compute, "rate": trial.rate}
            for trial, loss in zip(trials, losses, strict=True)
        ],
        "said": lines,
    }
    write_atomic(folder / "result.json", json.dumps(values, indent=1, sort_keys=True) + "\n")
    console.print(f"written: {folder}/{goal.layers}-layers.yaml, the recipe of the target, and result.json")
