"""Whether a mixture can be had from what its sources give, as counted or as predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.errors import DataError
from stages.estimate.forecast import TRAIN_STAGE, Survey, forecast
from stages.pack.mixture import capacity, exact, largest_remainder, shares_asked, solve, weights
from stages.pack.stage import PACK
from stages.recipe import Recipe
from stages.stage import BuildContext
from stages.tokenize.stage import TOKENIZE

DOES_NOT_FIT = ("would not fit, by the estimate", "does not fit")  # how a verdict begins that is a no
FEW_DOCUMENTS = 300  # of a mixture, below which more than one in twenty has none held out
SLACK = 2.0  # times what a sample allows for, beyond which a mixture cannot fit


@dataclass(frozen=True)
class SourceShare:
    """What one mixture asks of one source. None stands for what cannot be known yet."""

    source: str
    cap: float  # epochs, at most
    ratio: float | None = None  # of the mixture's tokens
    tokens: int | None = None
    available: int | None = None
    epochs: float | None = None
    documents_per_window: float | None = None


@dataclass(frozen=True)
class SharedSource:
    """A source that both mixtures take."""

    source: str
    pretrain_epochs: float
    anneal_epochs: float
    seen: str  # the mixture anneal's `seen` of it
    seen_before: float  # share of anneal's tokens of it that pretrain showed


def packed_mixtures(recipe: Recipe, stages: list[str]) -> list[str]:
    """Return the recipe's mixtures that the stages called `stages` pack."""
    return [name for name, stage in PACK.items() if name in recipe.mixtures and stage.name in stages]


def tokens_of(survey: Survey) -> dict[str, int]:
    """Return the tokens to train on of each source that something is known of."""
    return {name: source.tokens for name, source in survey.forecasts.items()}


def pretrain_tokens(recipe: Recipe, available: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that the mixture pretrain asks of each source."""
    pretrain = recipe.mixtures["pretrain"]
    return largest_remainder(pretrain.tokens, weights(pretrain, available))


def available_tokens(recipe: Recipe, name: str, available: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that mixture `name` may take of each source: for `seen: exclude`, less what pretrain takes."""
    mixture = recipe.mixtures[name]
    taken = pretrain_tokens(recipe, available) if "exclude" in mixture.seen.values() else {}
    pools = {s: int(n * exact(mixture.subsample)) for s, n in available.items()}
    return {s: n - (min(n, taken.get(s, 0)) if mixture.seen.get(s) == "exclude" else 0) for s, n in pools.items()}


def unknown_sources(recipe: Recipe, name: str, survey: Survey) -> list[str]:
    """Return the sources of mixture `name` that nothing is known of."""
    return [source for source in recipe.mixtures[name].sources if source not in survey.forecasts]


def source_shares(recipe: Recipe, name: str, survey: Survey) -> list[SourceShare]:
    """Return what mixture `name` asks of each source, as far as it is known."""
    mixture, window = recipe.mixtures[name], recipe.window_of(name)
    known = not unknown_sources(recipe, name, survey)
    available = available_tokens(recipe, name, tokens_of(survey)) if known else {}
    tokens: dict[str, int] = {}
    ratios: dict[str, float] = {}
    if known or mixture.temperature is None:
        shares = weights(mixture, available)
        ratios = shares_asked(mixture, available)
        if any(shares.values()):
            tokens = largest_remainder(mixture.tokens, shares)
    rows = []
    for source in mixture.sources:
        forecast = survey.forecasts.get(source)
        epochs = per_window = None
        if tokens and available.get(source):
            epochs = tokens[source] / available[source]
        if window and forecast and forecast.documents and forecast.tokens:
            per_window = window / (forecast.tokens / forecast.documents)
        rows.append(
            SourceShare(
                source,
                cap=mixture.cap(source),
                ratio=ratios.get(source),
                tokens=tokens.get(source),
                available=available.get(source),
                epochs=epochs,
                documents_per_window=per_window,
            )
        )
    return rows


def verdict(recipe: Recipe, name: str, survey: Survey) -> str:
    """Say whether mixture `name` fits, also at the low end of what was predicted, and what binds."""
    if unknown := unknown_sources(recipe, name, survey):
        return f"cannot be solved yet: nothing is known of {', '.join(unknown)}"
    mixture = recipe.mixtures[name]
    available = available_tokens(recipe, name, tokens_of(survey))
    predicted = not all(survey.forecasts[source].counted for source in mixture.sources)
    try:
        tokens = solve(mixture, available)
    except DataError as error:
        return f"{DOES_NOT_FIT[0] if predicted else DOES_NOT_FIT[1]}: {error}"
    low = {s: int(n * max(0.0, 1 - survey.forecasts[s].error)) for s, n in available.items()}
    try:
        solve(mixture, low)
    except DataError as error:
        return f"fits by the estimate, but not if the sources give as little as the sample allows for: {error}"
    used = {s: tokens[s] / max(1, capacity(available[s], mixture.cap(s))) for s in tokens}
    binding = max(used, key=lambda s: used[s])
    most = tokens[binding] / max(1, capacity(low[binding], mixture.cap(binding)))
    doubt = f" (at most {most:.0%})" if predicted else ""
    return f"fits; the cap that binds first is {binding}'s, {used[binding]:.0%} used{doubt}"


def cannot_fit(recipe: Recipe, name: str, survey: Survey) -> str:
    """Return why mixture `name` does not fit, were there twice as much as its sources were read to hold, whole.

    "" where it might: what a sample says of large sources is only a doubt.
    """
    if unknown_sources(recipe, name, survey):
        return ""
    if any(survey.forecasts[source].held_out is None for source in recipe.mixtures[name].sources):
        return ""
    available = available_tokens(recipe, name, tokens_of(survey))
    most = {s: int(n * (1 + survey.forecasts[s].error) * SLACK) for s, n in available.items()}
    try:
        solve(recipe.mixtures[name], most)
    except DataError:
        return verdict(recipe, name, survey)
    return ""


def held_out_note(recipe: Recipe, name: str, survey: Survey) -> tuple[str, bool]:
    """Say where nothing may be held out of mixture `name` for validation, and whether that is certain; "" if not."""
    if unknown_sources(recipe, name, survey):
        return "", False
    forecasts = [survey.forecasts[source] for source in recipe.mixtures[name].sources]
    documents = sum(source.documents for source in forecasts)
    certain = not any(source.held_out is not False for source in forecasts)
    if not certain and (documents >= FEW_DOCUMENTS or any(source.held_out for source in forecasts)):
        return "", False
    what = "none" if certain else "few, or none,"
    text = (
        f"mixture {name}: of its {documents:,} documents {what} will be held out, which takes one in a hundred, and "
        "training is scored on these; add documents, or cut long ones into several (`from: text` with "
        "`document: paragraph`, a row each elsewhere)"
    )
    return text, certain


def check_mixtures(context: BuildContext, stages: list[str]) -> None:
    """Hold the mixtures that `stages` pack against samples of the sources, and warn of what does not seem to fit.

    For a first build alone: a later one knows the counts. The sources are those listed. Raises DataError, with all that
    is wrong, for what is certain.
    """
    names = packed_mixtures(context.recipe, stages)
    if not names or not context.listed or context.was_built(TOKENIZE):
        return
    context.say("looking at a sample of each source: do the mixtures fit?")
    survey = Survey(units=dict(context.listed))
    forecast(context, survey)
    for name, problem in survey.problems.items():
        context.warn(f"source {name}: {problem}")
    wrong = [f"tokenizer: {survey.no_tokenizer}"] if survey.no_tokenizer else []
    for name in names:
        if why := cannot_fit(context.recipe, name, survey):
            wrong.append(f"mixture {name}: {why}")
        elif (doubt := verdict(context.recipe, name, survey)).startswith(DOES_NOT_FIT):
            context.warn(f"mixture {name}: {doubt}")
        note, certain = held_out_note(context.recipe, name, survey)
        if certain and TRAIN_STAGE in stages:
            wrong.append(note)
        elif note:
            context.warn(note)
    if wrong:
        raise DataError("\n".join(wrong))


def shared_sources(recipe: Recipe, survey: Survey) -> list[SharedSource]:
    """Return what anneal repeats of pretrain, of each source that both take; nothing while a source is unknown."""
    tokens = tokens_of(survey)
    pretrain, anneal = recipe.mixtures["pretrain"], recipe.mixtures["anneal"]
    if not all(tokens.get(source) for source in (*pretrain.sources, *anneal.sources)):
        return []
    first = pretrain_tokens(recipe, tokens)
    second = largest_remainder(anneal.tokens, weights(anneal, available_tokens(recipe, "anneal", tokens)))
    rows = []
    for source in recipe.sources:
        a, b, n = first.get(source, 0), second.get(source, 0), tokens.get(source, 0)
        if a and b:
            seen = anneal.seen.get(source, "any")
            before = {"any": min(1.0, a / n), "prefer": min(1.0, a / min(b, n)), "exclude": 0.0}[seen]
            rows.append(SharedSource(source, a / n, b / n, seen, before))
    return rows
