"""The tokenizer, seen from each source: bytes a token, what splits, and tokens that say something of the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from markupsafe import Markup

from pipeline.report.charts import Axes, percent, plot, round_ticks
from pipeline.report.facts import Facts
from pipeline.report.markup import SHORT_TEXT, decimal, escape, number, omitted, share, title_of
from stages.review.sample import Sample, read_texts
from stages.tokenizer.encoder import Encoder, open_encoder
from stages.tokenizer.spec import open_vocabulary
from train.tokenizer.vocabulary import Vocabulary

IN_FULL = 12  # sources with a chart and texts
ENCODED_BYTES = 2_000_000  # of text of a source whose tokens are counted by their bytes
LONGEST = 12  # bytes of a token, from which on they are one bar
ODD = (
    ("longest", "Longest"),
    ("blank", "Nothing but white space"),
    ("one_character", "One character over and over"),
    ("cut_characters", "Cut inside a character, as bytes"),
    ("hardly_used", "Hardly used in the sample"),
)
Floats = npt.NDArray[np.float64]


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    rates = {name: each.kept_bytes / each.tokens for name, each in facts.accounts.items() if each.tokens}
    if facts.tokenizer is None or not facts.tokenizer_file or not rates:
        return {"lead": Markup("No tokenizer is built yet, or nothing is tokenized with it."), "rows": None}
    vocabulary = open_vocabulary(facts.tokenizer_file)
    encoder = open_encoder(facts.tokenizer_file)
    ranked = sorted(rates, key=lambda name: (-facts.accounts[name].kept_bytes, name))[:IN_FULL]
    ranges = {name: rates_of(facts, facts.samples[name]) for name in rates}
    high = max([float(np.quantile(each, 0.95)) for each in ranges.values() if len(each)] + [*rates.values()]) * 1.1
    return {
        "lead": lead(facts, rates),
        "rows": [range_row(name, rate, ranges[name], high) for name, rate in sorted(rates.items(), key=lambda r: r[1])],
        "ticks": [(percent(value / high), f"{value:g}") for value in round_ticks(high, 5)],
        "sections": [section(facts, name, encoder, vocabulary) for name in rates if name in ranked],
        "odd": [
            (title, list(chips(facts.tokenizer[key], vocabulary))) for key, title in ODD if facts.tokenizer.get(key)
        ],
        "vocabulary": vocabulary,
        "unused": facts.tokenizer["unused"]["count"],
        "specials": list(vocabulary.special_ids),
    }


def lead(facts: Facts, rates: dict[str, float]) -> Markup:
    """Return the answer in sentences."""
    tokenizer = facts.tokenizer or {}
    text = Markup("It has <b>{} ids</b>, and needs one token for {} bytes of this corpus.").format(
        number(tokenizer["vocab_size"]),
        decimal(
            sum(each.kept_bytes for each in facts.accounts.values())
            / sum(each.tokens for each in facts.accounts.values()),
            2,
        ),
    )
    if len(rates) > 1:
        worst, best = min(rates, key=lambda n: (rates[n], n)), max(rates, key=lambda n: (rates[n], n))
        text += Markup(
            " The same bytes of <b>{}</b> need {} more tokens than those of <b>{}</b>: {} a token against {}."
        )
        text = text.format(
            worst, share(rates[best] / rates[worst] - 1), best, decimal(rates[worst], 2), decimal(rates[best], 2)
        )
    return text


def rates_of(facts: Facts, sample: Sample) -> Floats:
    """Return bytes a token of each document that is kept, by its text as it was tokenized."""
    chosen = np.flatnonzero(sample.kept & (sample.tokens > 0))
    if not sample.edited:
        return sample.sizes[chosen] / sample.tokens[chosen]
    sizes: dict[tuple[str, int], int] = {}
    for artifact in facts.build.deduplicated.get(sample.source, []):
        table = facts.reader.table(artifact, ["source_file", "source_row", "text"])
        columns = (table["source_file"], table["source_row"], pc.binary_length(table["text"]))
        sizes.update({(file, row): size for file, row, size in zip(*(c.to_pylist() for c in columns), strict=True)})
    edited = np.array([sizes.get((sample.files[i], int(sample.file_row[i])), 0) for i in chosen.tolist()], float)
    return edited / sample.tokens[chosen]


def range_row(name: str, rate: float, rates: Floats, high: float) -> dict[str, Any]:
    """Return a source's row of the chart of ranges: 90 of 100 documents, the middle half, all text together."""
    ends = [float(value) for value in np.quantile(rates, (0.05, 0.25, 0.75, 0.95))] if len(rates) else [rate] * 4

    def place(value: float) -> str:
        return percent(min(1.0, value / high))

    return {
        "name": name,
        "outer": (place(ends[0]), place(ends[3] - ends[0])),
        "inner": (place(ends[1]), place(ends[2] - ends[1])),
        "all": place(rate),
        "label": f"{decimal(rate, 2)}; half within {decimal(ends[1], 2)} to {decimal(ends[2], 2)}",
    }


def section(facts: Facts, name: str, encoder: Encoder, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a source's tokens by their bytes, and two texts with their tokens in turn."""
    sample = facts.samples[name]
    candidates = np.flatnonzero(sample.kept & ~sample.hidden & (sample.tokens > 0))
    rates = sample.sizes[candidates] / sample.tokens[candidates]
    ordered = candidates[np.argsort(rates, kind="stable")].tolist()
    chosen = (
        {ordered[len(ordered) // 2]: "a median document", ordered[0]: "most tokens for its bytes"} if ordered else {}
    )
    before = np.cumsum(sample.sizes[candidates]) - sample.sizes[candidates]
    counted = candidates[before < ENCODED_BYTES].tolist()
    counts = np.zeros(LONGEST + 1, np.int64)
    lengths = np.array(vocabulary.token_bytes, np.int64)
    texts: dict[int, str] = {}
    for i, text in read_texts(facts.reader, sample, sorted({*counted, *chosen})):
        if i in chosen:
            texts[i] = text
        if before[np.searchsorted(candidates, i)] < ENCODED_BYTES:
            ids, _ = encoder.encode([text[:ENCODED_BYTES]])
            counts += np.bincount(np.minimum(lengths[ids], LONGEST), minlength=LONGEST + 1)
    return {
        "name": name,
        "chart": by_bytes(name, counts),
        "tokens": number(int(counts.sum())),
        "documents": [
            {
                "title": title_of(texts[i]),
                "value": f"{label}, {decimal(sample.sizes[i] / sample.tokens[i], 2)} bytes a token",
                "meta": f"{sample.files[i]} row {sample.file_row[i]}",
                "text": colored(texts[i], encoder, vocabulary),
                "anchor": "",
            }
            for i, label in chosen.items()
        ],
    }


def by_bytes(name: str, counts: npt.NDArray[np.int64]) -> Markup:
    """Return the share of tokens by their bytes."""
    parts = counts[1:] / max(1, counts[1:].sum())
    top = float(parts.max()) or 1.0
    axes = Axes(0.5, LONGEST + 0.5, 0, top * 1.1)
    levels = round_ticks(top, 2)
    boxes = [
        axes.box(i + 0.55, i + 1.45, 0, float(part), "area" if i > 1 else "area hot") for i, part in enumerate(parts)
    ]
    labels = [
        axes.ticks_below(
            [(i, f"{i}+" if i == LONGEST else str(i)) for i in range(1, LONGEST + 1) if i % 3 == 0 or i == 1]
        ),
        axes.ticks_left([(level, share(level)) for level in levels]),
    ]
    summary = f"Tokens of {name} by their bytes: {share(float(parts[:2].sum()))} have one or two"
    return plot([axes.grid(levels[1:]), *boxes], labels, summary, 110)


def colored(text: str, encoder: Encoder, vocabulary: Vocabulary) -> Markup:
    """Return the beginning of a text, token by token; those of one and two bytes have a class of their own."""
    begin = text[:SHORT_TEXT]
    ids, _ = encoder.encode([begin])
    pieces = [
        Markup('<i class="b{}">{}</i>' if len(spelled) <= 2 else "<i>{1}</i>").format(
            len(spelled), shown_bytes(spelled)
        )
        for spelled in vocabulary.spell(ids.tolist())
        if spelled
    ]
    return Markup("").join([*pieces, omitted(len(text) - len(begin), "more")])


def shown_bytes(token: bytes) -> Markup:
    """Return the text of a token, or its bytes where it is cut inside a character."""
    try:
        return escape(token.decode())
    except UnicodeDecodeError:
        return Markup('<span class="unseen">⟨{}⟩</span>').format(token.hex(" "))


def chips(entries: Sequence[dict[str, Any]], vocabulary: Vocabulary) -> Iterator[tuple[Markup, str]]:
    """Yield the text of each token, its white space made visible, and how often it occurs."""
    for entry in entries:
        token = vocabulary.texts.get(entry["id"], b"")
        text = shown_bytes(token)
        if not token.strip():
            text = escape(token.decode(errors="replace").replace(" ", "␣").replace("\n", "␊").replace("\t", "␉"))
        yield text, number(entry["times"])
