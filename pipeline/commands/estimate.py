"""What a recipe would take and give before anything is downloaded: tokens, disk and time, from samples.

Sources are listed and sampled in threads that nobody waits for beyond a deadline, so that a network that does not
answer cannot hang a plan. What a finished build has counted replaces what a sample predicts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.context import Context
from stages.download.stage import DOWNLOAD, Kept, within_budget
from stages.errors import DataError, TransientError
from stages.estimate import Estimate, Sample, estimate, sample_source
from stages.hashing import VALIDATION_THRESHOLD
from stages.pack.mixture import largest_remainder, weights
from stages.paths import is_remote
from stages.recipe import Recipe
from stages.registry import STAGES
from stages.sources.base import SourceUnit
from stages.sources.registry import SOURCES
from stages.task import Artifact
from stages.tokenize.stage import TOKENIZE
from stages.tokenizer import external
from stages.tokenizer import work as bpe
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.encoder import open_encoder
from stages.tokenizer.spec import SPECIALS, token_bytes

LISTING, SAMPLING = 60.0, 30.0  # seconds that all sources may take to be listed, and to be sampled
BYTES_PER_TOKEN = 4.0  # where a sample cannot say: an 8192 BPE on English text
BPE_BYTES = 50  # of text for each id, below which a tokenizer trained on it says little
BPE_MOST = 4 << 20  # of text to train on
TRAINED = 1 - float(VALIDATION_THRESHOLD) / 2**64  # share of documents that is not held out
ROW_BYTES = 70  # of a document's row and index entry, beside its tokens
STORED = 0.4  # bytes in the store per byte of text, where no sample says
PACK_SECONDS = 1e-7  # a token, where no record says
NO_FILE = Artifact("", "")
PACKS = {"pack_pretrain": "pretrain", "pack_anneal_mix": "anneal"}  # stage -> mixture


@dataclass(frozen=True)
class Forecast:
    """What one source gives to training. Counted in a finished build, or predicted with a relative error."""

    documents: int  # kept
    text: float  # bytes, downloaded
    kept_text: float
    tokens: int  # to train on, held-out documents aside
    error: float = 0.0  # 95 %
    counted: bool = False
    share: float = 1.0  # of the source that its budget takes


@dataclass
class Survey:
    """All that a plan knows of the sources."""

    units: dict[str, list[SourceUnit]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # source -> why it cannot be listed or sampled
    samples: dict[str, Sample] = field(default_factory=dict)
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    tokenizer: str = ""  # what bytes per token are measured with
    seconds: dict[str, float] = field(default_factory=dict)  # see Tokens


def in_time(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Future[Any]]:
    """Each call in a thread of its own; those still at it after `seconds` are left behind, with a TimeoutError.

    The threads are daemons: a pool's would keep the process from ending.
    """
    futures: dict[str, Future[Any]] = {name: Future() for name in calls}

    def work(call: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    for name, future in futures.items():
        threading.Thread(target=work, args=(calls[name], future), daemon=True).start()
    deadline = time.monotonic() + seconds
    for name, future in list(futures.items()):
        try:
            future.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            futures[name] = Future()
            futures[name].set_exception(DataError(f"no answer within {seconds:.0f} s; check the network"))
    return futures


def list_sources(context: Context, survey: Survey) -> None:
    """Fill in the units of each source, or why they cannot be known."""

    def call(config: Any) -> Callable[[], list[SourceUnit]]:
        return lambda: SOURCES[config.kind].units(config, context.identify)

    sources = context.recipe.sources
    for name, future in in_time({name: call(config) for name, config in sources.items()}, LISTING).items():
        error = future.exception()
        if error is None:
            survey.units[name] = future.result()
        elif isinstance(error, DataError | TransientError | OSError):
            survey.problems[name] = str(error)
        else:
            raise error


def sample_sources(context: Context, survey: Survey, names: list[str], folder: Path) -> None:
    """Sample the sources `names`: local ones in turn, so that their times can be measured, remote ones together."""

    def call(name: str) -> Callable[[], Sample]:
        place = folder / name
        place.mkdir()
        return lambda: sample_source(context.recipe.sources[name], survey.units[name], place)

    remote = [n for n in names if any(is_remote(a.path) for spec in survey.units[n] for a in spec.inputs)]
    batches = [[n] for n in names if n not in remote] + ([remote] if remote else [])
    for batch in batches:
        for name, future in in_time({name: call(name) for name in batch}, SAMPLING).items():
            error = future.exception()
            if error is None:
                survey.samples[name] = future.result()
            elif isinstance(error, DataError | TransientError | OSError):
                survey.problems[name] = f"no sample: {error}"
            else:
                raise error


@dataclass(frozen=True)
class Tokens:
    """Tokens of each document of each sample, BOS included, with the relative error of the tokenizer itself."""

    counts: dict[str, NDArray[np.float64]]
    error: float
    how: str
    seconds: dict[str, float]  # per byte of text, by stage; to train, per square root of the bytes


def count_tokens(context: Context, samples: dict[str, Sample], folder: Path) -> Tokens:
    """Tokens by the recipe's tokenizer where there is one, else by one trained on the samples, else by bytes."""
    texts = {name: sample.texts for name, sample in samples.items()}
    config = context.recipe.tokenizer
    try:
        path, how = known_tokenizer(context, folder)
        if path:
            counts, seconds = encoded(path, texts)
            return Tokens(counts, 0.0, how, {"tokenize": seconds})
        chosen = stratified(samples)
        total = sum(len(text.encode()) for text in chosen)
        if config.vocab_size is None or total < BPE_BYTES * config.vocab_size:
            raise DataError(f"{total / 1e6:.2f} MB of sample are too little to train {config.vocab_size:,} ids on")
        started = time.perf_counter()
        whole = trained(chosen, config, folder / "all.json")
        spent = time.perf_counter() - started
        half = trained(chosen[::2], config, folder / "half.json")
    except DataError as error:
        counts = {name: sample.sizes / BYTES_PER_TOKEN + 1 for name, sample in samples.items()}
        return Tokens(counts, 0.25, f"{BYTES_PER_TOKEN:g} bytes a token assumed: {error}", {})
    # A tokenizer compresses the text that it was trained on better than other text; the true one lies between.
    unseen = {"": chosen[1::2]}
    most, least = (float(encoded(file, unseen)[0][""].sum()) for file in (half, whole))
    worse = max(1.0, most / least)
    counts, seconds = encoded(whole, texts)
    return Tokens(
        {name: n * (1 + worse) / 2 for name, n in counts.items()},
        (worse - 1) / (worse + 1),
        f"tokens counted with a tokenizer trained on {total / 1e6:.1f} MB of the sample",
        {"tokenize": seconds, "build_tokenizer": spent / math.sqrt(total)},
    )


def known_tokenizer(context: Context, folder: Path) -> tuple[Path | None, str]:
    """The tokenizer that the recipe takes as it is, or that its last build made. Raises DataError."""
    config = context.recipe.tokenizer
    if config.source is not None:
        source: str = config.source
        call = {"": lambda: external.read(external.locate(source))}
        path = folder / "own.json"
        path.write_bytes(in_time(call, SAMPLING)[""].result())
        return path, f"tokens counted with {source}"
    built = Path(context.folder("tokenizer")) / "tokenizer.json"
    if built.is_file() and len(token_bytes(str(built))) == config.vocab_size:
        return built, "tokens counted with the tokenizer of the last build"
    return None, ""


def stratified(samples: dict[str, Sample]) -> list[str]:
    """Texts to train on, of each source by its share of the kept text, as the stage takes them."""
    kept = {name: estimate(sample, sample.sizes).kept_text for name, sample in samples.items()}
    have = {name: float((sample.sizes * sample.kept).sum()) for name, sample in samples.items()}
    scale = min([BPE_MOST / max(1.0, sum(kept.values())), *(have[n] / kept[n] for n in kept if kept[n])])
    found = []
    for name, sample in samples.items():
        left = kept[name] * scale
        for i in np.flatnonzero(sample.kept):
            if left <= 0:
                break
            found.append(sample.texts[i])
            left -= float(sample.sizes[i])
    return found


def trained(texts: list[str], config: TokenizerConfig, path: Path) -> Path:
    """The file of a tokenizer trained on `texts` as the recipe says. Raises DataError when they support too few ids."""
    specials = [*SPECIALS, *config.reserved_names()]
    tokenizer = bpe.train(texts, config.vocab_size or 0, config.split, config.digits, specials)
    path.write_text(bpe.canonical(tokenizer), encoding="utf-8")
    return path


def encoded(path: Path, texts: dict[str, list[str]]) -> tuple[dict[str, NDArray[np.float64]], float]:
    """(tokens of each text, BOS included, seconds per byte of text)."""
    encoder = open_encoder(str(path))
    started = time.perf_counter()
    counts = {name: encoder.encode(some)[1].astype(np.float64) + 1 for name, some in texts.items()}
    spent = time.perf_counter() - started
    return counts, spent / max(1, sum(len(t.encode()) for some in texts.values() for t in some))


def counted(context: Context) -> bool:
    """Whether every unit up to `tokenize` is in the store, so that nothing needs to be predicted."""
    states = [context.states.get(name) for name in ("download", "filter", "dedup", "build_tokenizer", "tokenize")]
    return all(state is not None and state.done and not state.reasons for state in states)


def from_records(context: Context, name: str) -> Forecast:
    """What a finished build has counted of a source."""
    totals = context.counts(TOKENIZE, name)
    return Forecast(
        documents=totals.get("documents", 0),
        text=context.counts(DOWNLOAD, name).get("text_bytes", 0),
        kept_text=totals.get("text_bytes", 0),
        tokens=totals.get("train_tokens", 0),
        counted=True,
    )


def from_sample(config: Any, specs: list[SourceUnit], guess: Estimate, tokenizer_error: float) -> Forecast:
    """A source's estimate, cut to the units that its budget takes, in the order in which a run takes them."""
    share, error = 1.0, guess.error + tokenizer_error
    if config.has_budget:
        weight = sum(spec.weight for spec in specs) or 1
        parts = []
        for spec in sorted(specs, key=lambda s: (s.order, s.name)):
            part = spec.weight / weight
            number = max(1, -int(-part * guess.text // config.cut_bytes()))
            parts += [(part * guess.kept / number, part * guess.kept_text / number)] * number
        enough = within_budget(config, [Kept(NO_FILE, round(documents), round(text)) for documents, text in parts])
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
        share=share,
    )


def forecast(context: Context, survey: Survey, folder: Path) -> None:
    """Fill in what each source gives: as counted, or from a sample. `folder` is scratch space."""
    sources = context.recipe.sources
    if counted(context):
        survey.forecasts = {name: from_records(context, name) for name in sources}
        survey.tokenizer = "counted in the store"
        return
    sample_sources(context, survey, list(survey.units), folder)
    if not survey.samples:
        return
    tokens = count_tokens(context, survey.samples, folder)
    survey.tokenizer, survey.seconds = tokens.how, tokens.seconds
    for name, sample in survey.samples.items():
        guess = estimate(sample, tokens.counts[name])
        survey.forecasts[name] = from_sample(sources[name], survey.units[name], guess, tokens.error)


def pool(context: Context, name: str, available: Mapping[str, int]) -> dict[str, int]:
    """Training tokens that mixture `name` may take: for `seen: exclude`, less what pretrain takes."""
    seen = context.recipe.mixtures[name].seen
    taken = pretrain_takes(context, available) if "exclude" in seen.values() else {}
    return {s: n - (min(n, taken.get(s, 0)) if seen.get(s) == "exclude" else 0) for s, n in available.items()}


def pretrain_takes(context: Context, available: Mapping[str, int]) -> dict[str, int]:
    """Tokens that the mixture pretrain asks of each source."""
    pretrain = context.recipe.mixtures["pretrain"]
    return largest_remainder(pretrain.tokens, weights(pretrain, available))


def packs(recipe: Recipe) -> dict[str, str]:
    """The stages that pack, by the mixture that each packs, of those that the recipe has."""
    return {stage: name for stage, name in PACKS.items() if name in recipe.mixtures}


def disk(context: Context, survey: Survey, stages: list[str]) -> dict[str, float]:
    """Bytes that the outputs of each of `stages` take in the store when all is built."""
    out = dict.fromkeys(stages, 0.0)
    for name, found in survey.forecasts.items():
        stored = survey.samples[name].stored if name in survey.samples else STORED
        sizes = {
            "download": found.text * stored,
            "filter": found.kept_text * stored,
            "dedup": found.kept_text * stored,
            "tokenize": 2 * found.tokens / TRAINED + ROW_BYTES * found.documents,
        }
        for stage in out.keys() & sizes.keys():
            out[stage] += sizes[stage]
    for stage in out.keys() & packs(context.recipe).keys():
        out[stage] = 2.0 * context.recipe.mixtures[PACKS[stage]].tokens
    return out


def seconds(context: Context, survey: Survey, stages: list[str]) -> dict[str, float]:
    """Seconds of work ahead on one worker, for each of `stages` whose rate is known and that is not all cached.

    A rate comes from this recipe's records in the store, else from the sample; packing has none before it ran.
    """
    recipe = context.recipe
    text, kept = (sum(getattr(f, what) for f in survey.forecasts.values()) for what in ("text", "kept_text"))
    amounts = {"download": text, "filter": kept, "dedup": kept, "tokenize": kept}
    amounts["build_tokenizer"] = min(kept, recipe.tokenizer.sample)
    out = {}
    for stage in stages:
        state = context.states.get(stage)
        ahead = state.reasons.total() / len(state.units) if state and state.units else 1.0
        text = context.counts(STAGES[stage]).get("text_bytes", 0)
        if not ahead:
            continue
        if stage in packs(recipe):
            out[stage] = recipe.mixtures[PACKS[stage]].tokens * PACK_SECONDS
        elif state and text:
            out[stage] = ahead * amounts[stage] * state.text_seconds / text
        elif stage in survey.seconds:
            # Merging dominates, and works on distinct words, which grow as the square root of a text (Heaps' law).
            amount = math.sqrt(amounts[stage]) if stage == "build_tokenizer" else amounts[stage]
            out[stage] = ahead * amount * survey.seconds[stage]
        elif survey.samples and all(stage in s.seconds for s in survey.samples.values()):
            spent = sum(survey.forecasts[n].text * s.seconds[stage] for n, s in survey.samples.items())
            out[stage] = ahead * spent
    return out
