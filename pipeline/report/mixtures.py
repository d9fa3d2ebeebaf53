"""What a mixture holds: asked and got, the shares along its shards, and which document a token is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pipeline.report.charts import Axes, data_script, plot
from pipeline.report.facts import Facts
from pipeline.report.markup import counted, escape, listed, plain, share, short, title_of
from stages.lineage.rows import rows_table
from stages.review.sample import read_texts
from train.data.manifest import Manifest, Shard

LOOKED_UP = 50_000  # rows of all shards; of more, every k-th
BEGINS = 80  # characters of a document's text that are shown with a token
PIECES, MOST_PIECES = 40, 240  # along a shard, along a mixture
CHARTED, LISTED = 12, 12  # sources with a chart, shards in an open table
Int64s = npt.NDArray[np.int64]


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    tables = {
        (mixture, shard.path): rows_table(manifest, shard)
        for mixture, manifest in facts.manifests.items()
        for shard in manifest.shards
    }
    rows = sum(len(table) for table in tables.values())
    every = max(1, -(-rows // LOOKED_UP))
    return {
        "lead": lead(facts),
        "mixtures": [section(name, manifest, tables) for name, manifest in facts.manifests.items()],
        "shards": [
            (key_of(mixture, i), shard.path)
            for mixture, manifest in facts.manifests.items()
            for i, shard in enumerate(manifest.shards)
        ],
        "data": data_script("rows", lookup(facts, tables, every)) if tables else "",
        "every": every,
        "rows": rows,
        "example": f"build/{facts.name}/{next(iter(facts.manifests), '')}",
    }


def key_of(mixture: str, number_of_shard: int) -> str:
    """Return the name of a shard in a link: `mixture.html#token=pretrain0:123`."""
    return f"{mixture}{number_of_shard}"


def lead(facts: Facts) -> Markup:
    """Return the answer in sentences."""
    if not facts.manifests:
        return escape("No shard is packed yet.")
    sentences = []
    for name, manifest in facts.manifests.items():
        off = max(manifest.sources, key=lambda source: (abs(source.ratio_got - source.ratio_asked), source.name))
        apart = abs(off.ratio_got - off.ratio_asked)
        as_asked = "as it was asked" if apart < 0.0005 else f"but {off.name} is {share(apart)} off what was asked"
        mixed = listed(f"{share(source.ratio_got)} {source.name}" for source in manifest.sources[:4])
        more = len(manifest.sources) - 4
        others = f" and {counted(more, 'other source')}" if more > 0 else ""
        sentences.append(
            Markup("<b>{}</b> holds {} tokens in {}: {}{}, {}.").format(
                name, short(manifest.tokens), counted(len(manifest.split("train")), "shard"), mixed, others, as_asked
            )
        )
    return Markup(" ").join(sentences)


def section(name: str, manifest: Manifest, tables: Mapping[tuple[str, str], pa.Table]) -> dict[str, Any]:
    """Return a mixture's tables and charts."""
    train = manifest.split("train")
    shards = [{"number": i, "shard": shard, "held": shard.split != "train"} for i, shard in enumerate(manifest.shards)]
    return {
        "name": name,
        "manifest": manifest,
        "charts": charts(manifest, train, [tables[name, shard.path] for shard in train]),
        "pieces": pieces_of(train),
        "uncharted": max(0, len(manifest.sources) - CHARTED),
        "open": shards[:LISTED],
        "folded": shards[LISTED:],
    }


def pieces_of(train: list[Shard]) -> int:
    """Return into how many pieces a mixture is cut for its charts."""
    return min(MOST_PIECES, PIECES * len(train))


def charts(manifest: Manifest, train: list[Shard], tables: list[pa.Table]) -> list[dict[str, Any]]:
    """Return for each source its share along all training shards, one behind the other."""
    total = sum(shard.tokens for shard in train)
    if not total:
        return []
    edges = np.linspace(0, total, pieces_of(train) + 1)
    borders = np.cumsum([shard.tokens for shard in train]).tolist()
    ranked = sorted(manifest.sources, key=lambda source: (-source.ratio_got, source.name))[:CHARTED]
    highest = max(source.ratio_got for source in ranked)
    made = []
    for source in ranked:
        held = np.diff(tokens_before(edges, source.name, train, tables)) / np.diff(edges)
        top = min(1.0, max(float(held.max()), highest) * 1.15)
        axes = Axes(0, total, 0, top)
        points = [(x, float(y)) for a, b, y in zip(edges, edges[1:], held, strict=False) for x in (float(a), float(b))]
        shapes = [
            axes.grid([]),
            axes.line([(0, source.ratio_asked), (total, source.ratio_asked)], "line asked"),
            axes.line(points),
            *(axes.upright(border, "grid") for border in borders[:-1]),
        ]
        labels = [
            axes.ticks_below([(0, "0"), (total, f"{short(total)} tokens")]),
            axes.ticks_left([(0, "0"), (source.ratio_asked, share(source.ratio_asked))]),
        ]
        summary = (
            f"Share of {source.name} along {counted(len(train), 'shard')}: from {share(float(held.min()))} to "
            f"{share(float(held.max()))}, {share(source.ratio_asked)} was asked"
        )
        made.append({"source": source, "chart": plot(shapes, labels, summary, 90)})
    return made


def tokens_before(
    edges: npt.NDArray[np.float64], source: str, train: list[Shard], tables: list[pa.Table]
) -> npt.NDArray[np.float64]:
    """Return how many tokens of a source lie before each edge, of all shards one behind the other."""
    places, sums, offset, count = [0.0], [0.0], 0, 0.0
    for shard, table in zip(train, tables, strict=True):
        mine = table.filter(pc.equal(table["source"], source))
        for start, length in zip(mine["token_start"].to_pylist(), mine["token_count"].to_pylist(), strict=True):
            places += [offset + start, offset + start + length]
            sums += [count, count + length]
            count += length
        offset += shard.tokens
    places.append(float(offset))
    sums.append(count)
    return np.interp(edges, places, sums)


def lookup(facts: Facts, tables: Mapping[tuple[str, str], pa.Table], every: int) -> dict[str, Any]:
    """Return the rows of all shards for the script: columns of whole numbers, names by their place in a list."""
    begins = beginnings(facts)
    files: dict[str, int] = {}
    sources: dict[str, int] = {}
    shards: dict[str, Any] = {}
    for mixture, manifest in facts.manifests.items():
        for i, shard in enumerate(manifest.shards):
            rows = tables[mixture, shard.path]
            rows = rows.take(pa.array(np.arange(0, len(rows), every))).to_pylist()
            shards[key_of(mixture, i)] = {
                "name": shard.path,
                "mixture": mixture,
                "number": i,
                "tokens": shard.tokens,
                "documents": len(tables[mixture, shard.path]),
                "start": [row["token_start"] for row in rows],
                "count": [row["token_count"] for row in rows],
                "id": [row["document_id"].hex() for row in rows],
                "row": [row["source_row"] for row in rows],
                "source": [sources.setdefault(row["source"], len(sources)) for row in rows],
                "file": [files.setdefault(row["source_file"], len(files)) for row in rows],
                "text": [begins.get((row["source"], row["source_file"], row["source_row"]), "") for row in rows],
            }
    return {
        "folder": f"build/{facts.name}",
        "every": every,
        "files": [plain(name) for name in files],
        "sources": list(sources),
        "shards": shards,
    }


def beginnings(facts: Facts) -> dict[tuple[str, str, int], str]:
    """Return how documents that are kept begin, of the first LOOKED_UP of the samples."""
    begins: dict[tuple[str, str, int], str] = {}
    for name, sample in facts.samples.items():
        left = LOOKED_UP - len(begins)
        numbers = np.flatnonzero(sample.kept & ~sample.hidden)[:left].tolist()
        for i, text in read_texts(facts.reader, sample, numbers):
            begins[name, sample.files[i], int(sample.file_row[i])] = plain(title_of(text)[:BEGINS])
    return begins
