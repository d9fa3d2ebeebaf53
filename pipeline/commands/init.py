"""`init`: a recipe for what lies in a folder or on the hub, and for the time and the machine that there are."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.commands.plan import doing
from pipeline.errors import UsageError, UserError
from pipeline.make_context import make_context
from pipeline.options import DEFAULT_OUT
from pipeline.recipe import load_recipe, parse_recipe, resolve_paths
from stages.estimate.forecast import Survey, forecast, list_sources, size_alone
from stages.estimate.mixtures import DOES_NOT_FIT, held_out_note, verdict
from stages.paths import escaped, is_remote
from stages.proposal.look import HUB_NAME, Found, look
from stages.proposal.mix import budget, rules_for, shares
from stages.proposal.page import Line, page
from stages.proposal.scale import (
    CAP,
    STEPS,
    TOKENS_PER_PARAMETER,
    Scale,
    Speed,
    learning_rate,
    machine_speed,
    scale_of,
    vocabulary,
)
from train.monitor.text import printable

DRAFT_IDS = 512  # of the tokenizer with which text is measured before it is known how much there is
EVALS = ("ai2_arc", "jsonl")  # sources whose questions with choices are asked while training
MIXTURE = "pretrain"
BYTES_PER_ID = 5000  # of text that a tokenizer is trained on, at most
EMPTY = Line(0, "")


@dataclass
class Proposal:
    """What the recipe will say, as it becomes known."""

    name: str
    file: Path  # from whose folder its paths are meant
    found: dict[str, Found] = field(default_factory=dict)  # sources
    asked: dict[str, Found] = field(default_factory=dict)  # evals
    left_out: list[str] = field(default_factory=list)
    rules: dict[str, tuple[list[Any], str]] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    bad: float = 0.0  # share of rows that cannot be read, of the source that has most
    vocab_size: int = DRAFT_IDS
    vocab_reason: str = ""


def propose(places: list[str], file: Path, name: str, minutes: float, gpus: int | None, gpu: str | None) -> None:
    """Look at `places` and write a recipe to `file` that trains for so many minutes. Raises UserError, DataError."""
    with doing("init") as tell:
        tell("looking at the files")
        proposal = Proposal(name, file)
        for place in places:
            take_in(proposal, place)
        if not proposal.found:
            why = "; ".join(proposal.left_out) or "nothing is there"
            raise UserError(f"{', '.join(places)}: no text to train on ({why})")
        tell("reading a sample of each source")
        survey = measure(proposal)
        tell("measuring how fast this machine trains" if gpus is None and gpu is None else "reckoning")
        speed = machine_speed(gpus, gpu)
        fill_in(proposal, survey, speed.flops * 60 * minutes)
        tell(f"counting tokens with {proposal.vocab_size:,} ids")
        survey = measure(proposal)
    given = survey.forecasts
    tokens = {source: forecast.tokens for source, forecast in given.items()}
    length = sum(tokens.values()) / max(1, sum(forecast.documents for forecast in given.values()))
    scale = scale_of(sum(tokens.values()), length, proposal.vocab_size, speed, 60 * minutes)
    mixture = shares(tokens, scale.tokens)
    for source, share in mixture.items():
        remote = any(is_remote(file.path) for unit in survey.units[source] for file in unit.inputs)
        limit = budget(given[source].kept_text, tokens[source], share * scale.tokens, remote)
        if limit is not None:
            proposal.budgets[source] = limit
    for source in [source for source in proposal.found if source not in mixture]:
        proposal.left_out.append(f"{source}: {tokens.get(source, 0):,} tokens are too few for a share")
        del proposal.found[source]
    file.write_text(page(lines_of(proposal, survey, scale, speed, mixture, minutes)), encoding="utf-8")
    say(proposal, survey, scale, file)


def recipe_name_for(name: str | None, place: str) -> str:
    """Return the name of the recipe: the one that is given, or one made from a place. Raises UsageError."""
    base = Path(place.rstrip("/")).resolve().name if not is_remote(place) else place.rstrip("/").rpartition("/")[2]
    made = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"(\.\w{1,7})+$", "", base)).strip("_-")
    chosen = name or made or "text"
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", chosen) or chosen == "store":
        raise UsageError(f"--name {chosen}: write letters, digits, _ and -, a letter or digit first, and not store")
    return chosen


def take_in(proposal: Proposal, place: str) -> None:
    """Add what lies at a place."""
    is_name = is_remote(place) or (HUB_NAME.fullmatch(place) and not Path(place).exists())
    shown = place if is_name or Path(place).is_absolute() else os.path.relpath(place, proposal.file.resolve().parent)
    seen = look(place, shown)
    proposal.left_out += seen.left_out
    for found in seen.found:
        where = found.keys.get("path", found.name)
        if found.asks and found.keys["from"] in EVALS and (found.held_out or found.keys["from"] == "jsonl"):
            proposal.asked[unused(f"{found.name}_questions", proposal)] = found
        elif found.held_out:
            proposal.left_out.append(f"{where}: for evaluation, by its name")
        else:
            proposal.found[unused(found.name, proposal)] = found


def unused(name: str, proposal: Proposal) -> str:
    """Return a name that no source has, made from `name`."""
    taken, number = {*proposal.found, *proposal.asked}, 2
    while name in taken:
        name, number = f"{re.sub('_[0-9]+$', '', name)}_{number}", number + 1
    return name


def measure(proposal: Proposal) -> Survey:
    """Return what samples say of the sources, with the rules and the tokenizer as they are. Raises UserError."""
    while True:
        sources = {
            name: {**found.keys, "rules": proposal.rules.get(name, ([], ""))[0]}
            for name, found in proposal.found.items()
        }
        raw: dict[str, Any] = {
            "name": proposal.name,
            "sources": sources,
            "tokenizer": {"vocab_size": proposal.vocab_size},
            "mixtures": {MIXTURE: {"tokens": 1, "temperature": 1}},
        }
        resolve_paths(raw, proposal.file)
        context = make_context("train", parse_recipe(raw, "init"), None, DEFAULT_OUT, dry=True, quiet=True)
        survey = list_sources(context, identify=size_alone)
        if not survey.problems:
            forecast(context, survey)
        if survey.no_tokenizer and proposal.vocab_size > 300:
            proposal.vocab_size = max(300, proposal.vocab_size // 2)
            proposal.vocab_reason = "as many as its text gives"
            continue
        if not survey.problems:
            return survey
        for name, problem in survey.problems.items():
            proposal.left_out.append(f"{name}: {problem}")
            del proposal.found[name]
        if not proposal.found:
            raise UserError(f"no text to train on: {'; '.join(proposal.left_out)}")


def fill_in(proposal: Proposal, survey: Survey, operations: float) -> None:
    """Choose rules and the number of ids by the samples, and note how many rows cannot be read.

    operations: of training, that the time allows for.
    """
    for name, found in proposal.found.items():
        sample = survey.samples[name]
        if "template" not in found.keys and found.keys["from"] != "ai2_arc":
            proposal.rules[name] = rules_for(sample.texts)
        rows = sample.bad.total() + len(sample.texts)
        proposal.bad = max(proposal.bad, sample.bad.total() / rows)
    text = sum(given.kept_text for given in survey.forecasts.values())
    if not proposal.vocab_reason:
        proposal.vocab_size, proposal.vocab_reason = vocabulary(text, operations)


def lines_of(
    proposal: Proposal, survey: Survey, scale: Scale, speed: Speed, mixture: dict[str, float], minutes: float
) -> Iterator[Line]:
    """Yield the lines of the recipe."""
    yield remark("Written by `python -m pipeline init` from a sample of each source; change what you like.")
    for text in proposal.left_out:
        yield remark(f"left out: {text}")
    yield Line(0, "name", proposal.name, f"names the folder of the results, build/{proposal.name}")
    yield Line(0, "seed", 0, "decides every shuffle and the first weights")
    yield EMPTY
    yield Line(0, "sources")
    for name, found in proposal.found.items():
        yield from source_lines(name, found, proposal, survey)
    if proposal.asked:
        yield EMPTY
        yield Line(0, "evals", None, "asked while training, and kept out of its text")
    for name, found in proposal.asked.items():
        yield Line(1, name)
        yield Line(2, "from", found.keys["from"], found.reasons["from"])
        yield Line(2, "path", found.keys["path"])
    yield EMPTY
    yield Line(0, "dedup", {"exact": True}, "equal documents are kept once, over all sources")
    kept = sum(given.kept_text for given in survey.forecasts.values())
    sample = f"{max(1, round(min(kept, BYTES_PER_ID * proposal.vocab_size) / 1e6))}MB"
    yield Line(0, "tokenizer", {"vocab_size": proposal.vocab_size, "sample": sample}, proposal.vocab_reason)
    if proposal.bad > 0:
        tolerated = round(min(1.0, 2 * proposal.bad + 0.01), 3)
        reason = f"of a sample's rows {proposal.bad:.1%} cannot be read; such rows are set aside"
        yield Line(0, "quarantine", {"tolerate": tolerated}, reason)
    yield EMPTY
    yield from mixture_lines(survey, scale, mixture)
    yield EMPTY
    yield from model_lines(scale, speed)
    yield EMPTY
    yield from training_lines(scale, speed, minutes)


def remark(text: str) -> Line:
    """Return a line that says something and sets nothing."""
    return Line(0, "", None, text)


def source_lines(name: str, found: Found, proposal: Proposal, survey: Survey) -> Iterator[Line]:
    """Yield the lines of one source."""
    given = survey.forecasts[name]
    held = f"about {short(given.documents)} documents, {short(given.kept_text)} bytes of text"
    yield Line(1, name, None, held)
    for key, value in found.keys.items():
        yield Line(2, key, value, found.reasons.get(key, ""))
    rules, reason = proposal.rules.get(name, ([], "none: questions and answers are not prose"))
    yield Line(2, "rules", rules, reason)
    if name in proposal.budgets:
        yield Line(2, "max_tokens", proposal.budgets[name], "bytes / 4: there is time for no more, so no more is read")


def mixture_lines(survey: Survey, scale: Scale, mixture: dict[str, float]) -> Iterator[Line]:
    """Yield the lines of the mixture."""
    yield Line(0, "mixtures")
    yield Line(1, MIXTURE)
    yield Line(2, "tokens", scale.packed, f"what the steps below take: {scale.passes:.2g} passes over the text")
    yield Line(2, "ratios", None, "by the square root of what each source has, so that small ones are heard")
    for name, share in mixture.items():
        have = survey.forecasts[name].tokens
        passes = share * scale.tokens / max(1, have)
        yield Line(3, name, f"{100 * share:.1f}%", f"about {passes:.2g} passes over its {short(have)} tokens")
    yield Line(2, "max_epochs", CAP, "more than that asks for: there may be duplicates")


def model_lines(scale: Scale, speed: Speed) -> Iterator[Line]:
    """Yield the lines of the model."""
    bound = "the time" if scale.bound == "time" else "the text"
    each = scale.tokens / scale.parameters
    why = f"the largest of a ladder that gets 20 tokens each; {bound} allows no more"
    if each < TOKENS_PER_PARAMETER * 0.95:
        why = f"the smallest of a ladder; {bound} gives {each:.2g} tokens each, and 20 would be right"
    yield Line(0, "model", None, f"{scale.parameters:,} parameters: {why}")
    reasons = {
        "max_seq_len": "not far beyond a document, and what the machine has time for",
        "sliding_window": "a quarter of it, in every second layer",
    }
    for key, value in scale.model.items():
        yield Line(1, key, value, reasons.get(key, ""))
    if speed.ranks > 1:
        yield Line(0, "ranks", speed.ranks, "one a GPU")


def training_lines(scale: Scale, speed: Speed, minutes: float) -> Iterator[Line]:
    """Yield the lines of the training."""
    rate, whose = learning_rate(scale.model["dim"])
    schedule = {"kind": "wsd", "warmup": max(1, min(100, scale.steps // 10)), "decay_frac": 0.2}
    a_step = f"{scale.batch_size * scale.seq_len:,} tokens a step, which makes {STEPS:,} steps if there are enough"
    yield Line(0, "train")
    yield Line(1, MIXTURE)
    yield Line(2, "steps", scale.steps, f"about {scale.seconds / 60:.2g} of {minutes:g} minutes ({speed.how})")
    yield Line(2, "batch_size", scale.batch_size, a_step)
    yield Line(2, "seq_len", scale.seq_len)
    yield Line(2, "muon", {"lr": rate}, whose)
    yield Line(2, "adamw", {"lr": rate}, "the same")
    yield Line(2, "schedule", schedule, "a tenth to rise, 100 steps at most; the last fifth to fall")


def short(n: float) -> str:
    """Return a count to three digits, as people say it."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def say(proposal: Proposal, survey: Survey, scale: Scale, file: Path) -> None:
    """Print what was written and what to do next. Raises UserError where the recipe, read as it stands, cannot run."""
    recipe = load_recipe(str(file))
    fits = verdict(recipe, MIXTURE, survey)
    note, certain = held_out_note(recipe, MIXTURE, survey)
    for name in proposal.found:
        given = survey.forecasts[name]
        print(f"{name}: about {short(given.documents)} documents, {short(given.tokens)} tokens")
    for text in proposal.left_out:
        print(printable(escaped(f"left out: {text}")))
    print(f"{scale.parameters:,} parameters, {scale.steps:,} steps, about {scale.seconds / 60:.2g} minutes")
    print(f"{file}: {len(proposal.found)} sources, each line with its reason; next:")
    print(f"python -m pipeline run train --recipe {shlex.quote(str(file))}")
    if certain or fits.startswith(DOES_NOT_FIT):
        raise UserError(f"{file}: it cannot be run yet: {note if certain else fits}")
