"""Tokenize: each slice of a curated part becomes a unit of tokens, in the order in which mixtures read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from stages.exclude.stage import EXCLUDE
from stages.stage import BuildContext, Record, ReportGroup, Stage, Table, Unit
from stages.task import Artifact
from stages.tokenize.work import work
from stages.tokenizer.stage import BUILD_TOKENIZER

# Text in a unit: 1/64 of the source, as a power of two between these, so that a small corpus keeps many cores busy
# and a large one does not drown in units.
LEAST_BYTES, MOST_BYTES = 8 << 20, 128 << 20


class TokenizedUnit:
    """What a unit left: `docs`, `tokens` and `histogram`, kept as one text because the driver holds many."""

    __slots__ = ("text",)

    def __init__(self, record: Record):
        outputs = {artifact.name: list(artifact.to_dict().values()) for artifact in record.outputs}
        self.text = json.dumps(outputs, separators=(",", ":")).encode()

    def output(self, name: str) -> Artifact:
        """Return the output called `name`."""
        return Artifact(*json.loads(self.text)[name])


async def build(context: BuildContext) -> dict[str, list[TokenizedUnit]]:
    """Build the tokenized units of each source, in the order of its parts."""
    curated = (await context.stage(EXCLUDE)).docs
    tokenizer = (await context.stage(BUILD_TOKENIZER)).output("tokenizer")
    params = {
        "seed": context.recipe.seed,
        "shard_tokens": context.recipe.shard_tokens,
        "bos_id": tokenizer.meta["bos_id"],
        "vocab_size": tokenizer.meta["vocab_size"],
    }
    slices = [(name, *part_slice) for name, parts in curated.items() for part_slice in slices_of(parts)]

    async def tokenize(name: str, label: str, part: Artifact, number: int, of: int) -> TokenizedUnit:
        inputs = [part, tokenizer]
        weight = part.meta.get("text_bytes", 0) // of
        unit = Unit(work, {**params, "slice": [number, of]}, inputs, label, name, weight)
        return TokenizedUnit(await context.run(TOKENIZE, unit))

    results = await context.gather(tokenize(*part_slice) for part_slice in slices)
    units: dict[str, list[TokenizedUnit]] = {name: [] for name in curated}
    for (name, *_), unit in zip(slices, results, strict=True):
        units[name].append(unit)
    return units


def slices_of(parts: Sequence[Artifact]) -> Iterator[tuple[str, Artifact, int, int]]:
    """Yield (label, part, number, of how many) for each slice of each part of a source."""
    sizes = [part.meta.get("text_bytes", 0) for part in parts]
    unit_bytes = min(MOST_BYTES, max(LEAST_BYTES, 1 << (sum(sizes) // 64).bit_length()))
    for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        of = max(1, round(size / unit_bytes))
        for number in range(of):
            label = f"{i:05d} {number + 1} of {of}" if of > 1 else f"{i:05d}"
            yield label, part, number, of


def report(context: BuildContext, _: Mapping[str, Sequence[TokenizedUnit]]) -> Iterator[ReportGroup]:
    """Report bytes per token by source, and which engines encoded."""
    tokenizer = context.built(BUILD_TOKENIZER)
    if tokenizer and context.counts(TOKENIZE):
        vocab_size = tokenizer.output("tokenizer").meta["vocab_size"]
        yield [tokens_table(context, vocab_size), *engine_lines(context)]


def tokens_table(context: BuildContext, vocab_size: int) -> Table:
    """Return bytes per token, by source."""
    rows = []
    for source in context.recipe.sources:
        counts = context.counts(TOKENIZE, source)
        text_bytes, tokens = counts.get("text_bytes", 0), counts.get("tokens", 0)
        bytes_per_token = f"{text_bytes / tokens:.3f}" if tokens else "-"
        train_tokens, val_tokens = counts.get("train_tokens", 0), counts.get("val_tokens", 0)
        rows.append((source, text_bytes, tokens, bytes_per_token, train_tokens, val_tokens))
    header = ("source", "text bytes", "tokens", "bytes/token", "to train on", "held out")
    return Table(f"Tokens ({vocab_size:,} ids)", header, rows)


def engine_lines(context: BuildContext) -> Iterator[str]:
    """Yield a line for each engine that encoded, and why faster ones did not."""
    prefix = "encoded_by."
    counts = context.counts(TOKENIZE)
    units = {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}
    total = sum(units.values())
    for engine, n in sorted(units.items(), key=lambda item: -item[1]):
        share = f" ({n:,} of {total:,} units)" if len(units) > 1 else ""
        proof = (
            "" if engine.startswith("sentencepiece") else ", proven equal to tokenizers at the start of each process"
        )
        yield f"Encoded by {engine}{share}{proof}"


TOKENIZE = Stage(
    name="tokenize",
    reads="exclude, build_tokenizer",
    writes="tokens of each part, in the order of the mixture, with their documents",
    build=build,
    after=(EXCLUDE, BUILD_TOKENIZER),
    libraries=("pyarrow", "numpy", "tokenizers"),
    report=report,
)
