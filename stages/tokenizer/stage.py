"""Train the tokenizer: byte-level BPE on a capped sample of the curated text, every source by its share.

A tokenizer that somebody else trained is taken as it is (`tokenizer.from`; see `stages.tokenizer.external`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.decontaminate.stage import DECONTAMINATE
from stages.errors import DataError
from stages.exclude.stage import EXCLUDE
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact
from stages.tokenizer import external, measure, report, sample, sentencepiece_work, words
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.words import LongWords, long_words_line
from stages.tokenizer.work import adopt, work

UNIT_BYTES = 32 << 20  # text that a unit reads, of the sample, or of the parts whose candidates it lists


@dataclass(frozen=True)
class Parts:
    """Consecutive parts of a source that one unit reads, and how many documents of each are in the sample."""

    source: str
    label: str
    parts: list[Artifact]
    taken: list[int]
    weight: int  # bytes of text


async def build(context: BuildContext) -> Record:
    """Build the one tokenizer of the recipe. Its outputs are all in the record of the last unit, which reports."""
    exclude, config = context.recipe.exclude, context.recipe.tokenizer
    retrains = exclude.asked and exclude.retrain_tokenizer
    curated = (await context.stage(EXCLUDE)).docs if retrains else (await context.stage(DECONTAMINATE)).docs
    context.check_quarantine()
    chosen = await choose_sample(context, curated)
    sampled = [unit for name, parts in curated.items() for unit in sampled_parts(name, parts, chosen)]
    if config.source is not None:
        made = await take(context, config, sampled)
    elif config.kind == "sentencepiece":
        made = await train_pieces(context, config, curated, chosen)
    else:
        made = await train(context, config, sampled)
    tokenizer = made.output("tokenizer")
    vocab_size = tokenizer.meta["vocab_size"]
    measured = await context.map(
        BUILD_TOKENIZER,
        (
            Unit(
                measure.work,
                {"taken": unit.taken, "vocab_size": vocab_size},
                [tokenizer, *unit.parts],
                f"measure {unit.label}",
                unit.source,
                unit.weight,
            )
            for unit in sampled
        ),
    )
    params = {
        "sources": [[name, sum(unit.source == name for unit in sampled)] for name in curated],
        "vocab_size": vocab_size,
    }
    inputs = [tokenizer, made.output("origin"), *(record.output("measured") for record in measured)]
    record = await context.run(BUILD_TOKENIZER, Unit(report.work, params, inputs, "report"))
    return replace(record, outputs=[*made.outputs, *record.outputs, *chosen.outputs])


async def choose_sample(context: BuildContext, curated: Mapping[str, Sequence[Artifact]]) -> Record:
    """Return the record of `sample.choose`. Lists more candidates where a source's first ones are too small.

    Raises DataError when nothing can be sampled.
    """
    sizes = {name: sum(map(text_bytes, parts)) for name, parts in curated.items()}
    total = max(1, sum(sizes.values()))
    shares = {name: min(size, context.recipe.tokenizer.sample * size // total) for name, size in sizes.items()}
    parts = {name: [*batches(curated[name], list(map(text_bytes, curated[name])))] for name in curated}
    # A quarter more than the share asks for, as a fraction of 2^64.
    bounds = {name: (5 << 64) * shares[name] // (4 * max(1, sizes[name])) for name in curated}
    while True:
        units = [
            Unit(
                sample.list_candidates,
                {"highest": max(0, min(bounds[name], 1 << 64) - 1)},
                batch,
                f"sample {i + 1} of {len(batches_of)}",
                name,
                sum(map(text_bytes, batch)) * shares[name] // max(1, sizes[name]),
            )
            for name, batches_of in parts.items()
            for i, batch in enumerate(batches_of)
        ]
        records = await context.map(BUILD_TOKENIZER, units)
        params = {"sources": [[name, shares[name], [len(batch) for batch in parts[name]]] for name in curated]}
        candidates = [record.output("candidates") for record in records]
        record = await context.run(BUILD_TOKENIZER, Unit(sample.choose, params, candidates, "sample"))
        short = [name for name in record.output("sample").meta["short"] if bounds[name] < 1 << 64]
        if not short:
            break
        bounds |= {name: max(16 * bounds[name], 1 << 50) for name in short}
    if not record.output("sample").rows:
        raise DataError("the tokenizer's sample is empty: no document outside validation; add text")
    return record


def text_bytes(part: Artifact) -> int:
    """Return the size of a part's text."""
    return int(part.meta.get("text_bytes", 0))


def batches(parts: Sequence[Artifact], sizes: Sequence[int]) -> Iterator[list[Artifact]]:
    """Yield consecutive parts, at most UNIT_BYTES of `sizes` at a time where one is not larger by itself."""
    batch: list[Artifact] = []
    total = 0
    for part, size in zip(parts, sizes, strict=True):
        if batch and total + size > UNIT_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += size
    if batch:
        yield batch


def sampled_parts(source: str, parts: Sequence[Artifact], chosen: Record) -> list[Parts]:
    """Return the parts of a source of which documents are in the sample, as units read them."""
    meta = chosen.output("sample").meta
    taken, sizes = meta["taken"][source], meta["bytes"][source]
    rows = [i for i, number in enumerate(taken) if number]
    units: list[Parts] = []
    first = 0
    for batch in batches([parts[i] for i in rows], [sizes[i] for i in rows]):
        own = rows[first : first + len(batch)]
        units.append(Parts(source, f"{own[0]:05d}", batch, [taken[i] for i in own], sum(sizes[i] for i in own)))
        first += len(batch)
    return units


async def train(context: BuildContext, config: TokenizerConfig, sampled: Sequence[Parts]) -> Record:
    """Train a byte-level BPE on the counts of words of all units. Warns of words that were cut."""
    split = {"split": config.split, "digits": config.digits}
    counted = await context.map(
        BUILD_TOKENIZER,
        (
            Unit(
                words.work,
                {**split, "taken": unit.taken},
                unit.parts,
                f"words {unit.label}",
                unit.source,
                unit.weight,
            )
            for unit in sampled
        ),
    )
    files = [record.output("words") for record in counted]
    cuts = [LongWords(*file.meta["cut"]) for file in files]
    cut = LongWords(sum(found.number for found in cuts), max((found.longest for found in cuts), default=0))
    params = {**split, "vocab_size": config.vocab_size, "reserved": config.reserved_names(), "cut": list(cut)}
    unit = Unit(work, params, files, str(config.vocab_size), weight=sum(file.bytes for file in files))
    record = await context.run(BUILD_TOKENIZER, unit)
    if cut.number:
        context.warn(long_words_line(*cut))
    return record


async def train_pieces(
    context: BuildContext, config: TokenizerConfig, curated: Mapping[str, Sequence[Artifact]], chosen: Record
) -> Record:
    """Train a SentencePiece model on the sample."""
    meta = chosen.output("sample").meta
    params = {
        "vocab_size": config.vocab_size,
        "model_type": config.model_type,
        "reserved": config.reserved_names(),
        "package": metadata.version("sentencepiece"),
        "sources": [meta["taken"][name] for name in curated],
    }
    parts = [part for parts in curated.values() for part in parts]
    weight = sum(sum(sizes) for sizes in meta["bytes"].values())
    unit = Unit(sentencepiece_work.work, params, parts, str(config.vocab_size), weight=weight)
    return await context.run(BUILD_TOKENIZER, unit)


async def take(context: BuildContext, config: TokenizerConfig, sampled: Sequence[Parts]) -> Record:
    """Take a tokenizer as it is. Warns where it changes the front of a text, or its BOS was guessed."""
    assert config.source is not None
    file = await asyncio.to_thread(external.locate, config.source)
    own = None if config.bos else await asyncio.to_thread(external.own_bos, file)
    parts = [part for unit in sampled for part in unit.parts]
    taken = [number for unit in sampled for number in unit.taken]
    params: dict[str, Any] = {"vocab_size": config.vocab_size, "bos": config.bos, "taken": taken}
    params |= {"own_bos": own} if own else {}
    record = await context.run(BUILD_TOKENIZER, Unit(adopt, params, [file, *parts], config.source))
    if record.counts.get("front_blank_lost"):
        context.warn(
            f"tokenizer.from: {config.source} puts a blank in front of a text that has none there, so that a text with "
            "one comes back without it"
        )
    if not (config.bos or own):
        context.warn(
            f"tokenizer.from: {config.source} does not say which token begins a document, so id "
            f"{record.output('tokenizer').meta['bos_id']} was taken; name another with tokenizer.bos"
        )
    return record


def publish(record: Record) -> dict[str, dict[str, Artifact]]:
    """Publish `tokenizer/`: its file, report.json, and beside a tokenizer.json what `transformers` needs to load it."""
    names = ("tokenizer", "report", "tokenizer_config", "special_tokens_map")
    files = [output for output in record.outputs if output.name in names]
    return {"tokenizer": {f"{file.name}{Path(file.path).suffix}": file for file in files}}


BUILD_TOKENIZER = Stage(
    name="build_tokenizer",
    reads="a sample of decontaminate's or exclude's documents, validation documents left out",
    writes="tokenizer/: tokenizer.json, a report, and what transformers needs to load it",
    build=build,
    after=(DECONTAMINATE, EXCLUDE),
    libraries=("pyarrow", "numpy", "tokenizers"),
    publish=publish,
)
