"""`sweep`: small models that try what a recipe varies, what they say of it, and the runs that decide."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.commands.compare import print_one
from pipeline.commands.plan_rows import duration
from pipeline.commands.report import TextConsole, grid
from pipeline.engine.context import Context, drive
from pipeline.engine.locks import store_lock
from pipeline.make_context import make_context
from pipeline.options import given_options
from pipeline.sweep.config import Sweep, load_sweep, phase_of
from pipeline.sweep.notes import Notes, describe_point, read_notes
from pipeline.sweep.outcome import Outcome, as_csv, as_values, confirm, score_rows
from pipeline.sweep.page import write_page
from pipeline.sweep.recipes import changed, keys_of, mixture_of, scored_sources, sizes_of
from pipeline.sweep.runs import Prepared, Status, look, open_text, prepare, run_trials
from pipeline.sweep.texts import fit_lines, next_text, recipe_text, score_table, verdict
from stages.errors import NotBuilt
from stages.estimate.forecast import check_inputs, list_sources
from stages.paths import is_remote
from stages.proposal.scale import machine_speed
from stages.recipe import Recipe
from stages.registry import STAGES
from train.files import write_atomic

BASE = "base.yaml"  # the base as the sweep has it, for other commands on its text
START_SECONDS = 15.0  # of a run beside its steps, before one was measured
TOKENS_A_PARAMETER = 20  # below which a proxy's ranks are less sure to be the target's


def sweep_command(
    file: Path,
    out: str,
    to: str | None,
    dry: bool,
    executor: str | None,
    address: str | None,
    workers: int | None,
    parallel: int,
    debug: bool,
) -> None:
    """Plan a sweep, or run it and say what came of it. Raises UserError."""
    sweep, base = load_sweep(file)
    given = base.to_dict()
    for key in keys_of(sweep, base)[0]:
        for value in key.values:
            changed(base, base.name, {key.name: value}, f"{file}: keys")
    base = changed(base, sweep.name, {}, str(file))
    folder = Path(to or (f"sweep-{sweep.name}" if is_remote(out) else f"{out}/{sweep.name}/sweep"))
    console, notes = TextConsole(), read_notes(folder)
    context = make_context("train", base, None, out, executor, address, workers, dry=dry, quiet=dry, debug=debug)
    context.options = given_options(str(folder / BASE), out)
    print_head(console, sweep, base)
    if dry:
        print_plan(console, context, sweep, notes)
        console.print(
            f"{'run it':10} python -m pipeline sweep {shlex.quote(str(file))}{given_options('quickstart', out)}"
        )
        return
    write_text(folder / BASE, recipe_text(base.to_dict()))
    with store_lock(context.store):
        context.listed = check_inputs(context, [stage for stage in STAGES if stage != "train"])
        outcome = drive(context, whole(context, sweep, notes, parallel))
    write_results(console, Recipe.model_validate(given), outcome)


async def whole(context: Context, sweep: Sweep, notes: Notes, parallel: int) -> Outcome:
    """Run a sweep from its text to the runs that confirm."""
    prepared = await prepare(await open_text(context, notes), sweep, notes)
    described = [describe_point(prepared.space, point) for point in prepared.points]
    notes.points = [*described, *(point for point in notes.points if point not in described)]
    notes.write()
    write_text(notes.file.with_name(BASE), recipe_text(prepared.data.recipe.to_dict()))
    trials = prepared.trials()
    context.say(f"{len(trials)} proxies; killed, the same command continues with those that are not done")
    return await confirm(prepared, await run_trials(prepared, trials, parallel), parallel)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def print_head(console: TextConsole, sweep: Sweep, base: Recipe) -> None:
    """Print what varies, what is measured, and what is trained for it."""
    mixture, phase = base.mixtures[mixture_of(sweep, base)], phase_of(sweep, base)
    varied = [f"shares of {', '.join(mixture.sources)}"] if sweep.ratios else []
    varied += [f"{key.name} {', '.join(map(str, key.values))}" for key in keys_of(sweep, base)[0]]
    weights = scored_sources(sweep, base)
    equal = len(set(weights.values())) == 1
    target = ", ".join(name if equal else f"{name} {weight:.0%}" for name, weight in weights.items())
    points = sweep.number_of_points(len(mixture.sources) if sweep.ratios else 0)
    console.print(f"sweep {sweep.name}, phase {phase}: the base is {sweep.recipe}, {mixture.tokens:,} tokens")
    for i, line in enumerate(varied):
        console.print(f"{'' if i else 'vary':10} {line}")
    console.print(f"{'target':10} mean bits per byte of {target}; {sweep.held_out:,} held-out tokens of each at most")
    proxy, last = sizes_of(sweep, base)
    runs = points - 1 + sweep.seeds
    console.print(f"{'proxies':10} {runs} runs of {proxy}: {runs * proxy.trained:,} tokens")
    console.print(f"{'':10} {points} points, the base with {sweep.seeds} seeds and each other with one")
    console.print(
        f"{'epochs':10} those of the target: a proxy's mixture draws on {float(proxy.subsample):.2%} of each source, "
        f"always the same documents"
    )
    sides = sweep.confirm.seeds
    console.print(f"{'confirm':10} {2 * sides} to {3 * sides} runs of {last}, with fresh seeds")
    if proxy.trained < TOKENS_A_PARAMETER * proxy.parameters:
        console.print(
            f"{'warning':10} a proxy gets {proxy.trained / proxy.parameters:.1f} tokens a parameter; below "
            f"{TOKENS_A_PARAMETER} its order of mixes is less sure to be a large model's"
        )


def print_plan(console: TextConsole, context: Context, sweep: Sweep, notes: Notes) -> None:
    """Print which runs there would be, which are kept, why others run, and how long that takes."""
    context.listed = list_sources(context).units
    text = context

    async def explore() -> tuple[Prepared, list[Status]] | None:
        nonlocal text
        try:
            text = await open_text(context, notes)
            prepared = await prepare(text, sweep, notes)
        except NotBuilt as error:
            console.print(f"{'text':10} not all built yet ({error.stage}); which points, is known then")
            return None
        return prepared, [await look(prepared, trial) for trial in prepared.trials()]

    known = drive(context, explore())
    if known is None:
        print_changed(console, text, notes)
        print_time(console, context.recipe, sweep, [])
        return
    prepared, states = known
    print_sources(console, prepared, states)
    number = Counter(status.state for status in states)
    console.print(
        f"{'evidence':10} {len(states)} runs: {number['kept']} kept, {number['score']} to be scored again, "
        f"{number['train']} to train"
    )
    for why, count in Counter(status.why for status in states if status.why).most_common():
        console.print(f"{'':10} {count}: {why}")
    print_time(console, context.recipe, sweep, states)


def print_changed(console: TextConsole, context: Context, notes: Notes) -> None:
    """Print what of the text has to be built, and which runs that may touch."""
    for name, state in context.states.items():
        for why, count in state.reasons.most_common(3):
            console.print(f"{'':10} {name}: {count} units, {why}")
    if notes.runs:
        console.print(
            f"{'evidence':10} {len(notes.runs)} runs are there; those stay that have no share of a source whose text "
            "comes out changed, and the plan names the others once the text is built:"
        )
        console.print(f"{'':10} {context.command('run tokenize')}")


def print_sources(console: TextConsole, prepared: Prepared, states: Sequence[Status]) -> None:
    """Print the table of sources: what there is, what a mix may have of it, what the base has."""
    rows = []
    target = prepared.data.recipe.mixtures[mixture_of(prepared.sweep, prepared.data.recipe)].tokens
    for i, (name, share) in enumerate(prepared.base.items()):
        tokens = prepared.text[name].tokens
        cap = f"{prepared.space.caps[i]:.1%}" if prepared.space.sources else "-"
        drawn = int(tokens * prepared.proxy.subsample)
        with_it = sum(name in status.trial.sources for status in states)
        epochs = share * target / max(1, tokens)
        rows.append((name, tokens, cap, f"{share:.1%}", f"{epochs:.2f}", drawn, with_it))
    header = ("source", "tokens", "share at most", "in the base", "epochs", "a proxy draws on", "runs with it")
    console.print()
    console.print(grid("Sources", header, rows))
    console.print()


def print_time(console: TextConsole, base: Recipe, sweep: Sweep, states: Sequence[Status]) -> None:
    """Print how long the runs take: at the pace of those that are there, or of this machine."""
    proxy, last = sizes_of(sweep, base)
    measured = [status.seconds for status in states if status.seconds is not None]
    times = last.operations / proxy.operations
    if measured:
        one, how = float(np.median(measured)), "at the pace of those that are there"
    else:
        speed = machine_speed(None, None)
        one, how = START_SECONDS + proxy.operations / speed.flops, speed.how
    varied = base.mixtures[mixture_of(sweep, base)].sources if sweep.ratios else ()
    runs = sweep.number_of_points(len(varied)) - 1 + sweep.seeds
    to_train = sum(status.state == "train" for status in states) if states else runs
    each = START_SECONDS + max(1.0, one - START_SECONDS) * times
    confirming = [sides * sweep.confirm.seeds * each for sides in (2, 3)]
    console.print(
        f"{'time':10} proxies {duration(to_train * one)}, confirming {duration(confirming[0])} to "
        f"{duration(confirming[1])}, one after another, {how}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The results


def write_results(console: TextConsole, given: Recipe, outcome: Outcome) -> None:
    """Print what came of a sweep, and write its files. `given`: its base, under its own name."""
    table, lines = score_table(outcome), verdict(outcome)
    console.print()
    console.print(grid("Points, bits per byte of held-out text", table[0], table[1:]))
    console.print()
    for line in fit_lines(outcome):
        console.print(line)
    if outcome.confirmed is not None:
        console.print()
        print_one(console, outcome.confirmed, outcome.prepared.sweep.interest)
    console.print()
    for line in lines:
        console.print(line)
    folder, values = outcome.prepared.notes.file.parent, as_values(outcome) | {"verdict": lines}
    write_text(folder / "next.yaml", next_text(given, outcome))
    write_text(folder / "scores.csv", as_csv(score_rows(outcome)))
    write_text(folder / "result.json", json.dumps(values, indent=1, sort_keys=True, default=str) + "\n")
    write_page(folder, outcome, values, table)
    console.print()
    console.print(f"{'recipe':10} {folder}/next.yaml: python -m pipeline run train --recipe {folder}/next.yaml")
    console.print(f"{'page':10} {folder}/index.html; runs in scores.csv, all of it in result.json beside it")


def write_text(path: Path, text: str) -> None:
    """Write a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
