"""A build of FineWeb-Edu's size, counted from the constants in the code: units, requests, bytes moved, driver memory.

Nothing is run. Stages and sizes are those of `stages/`, and each figure stands beside the line of arithmetic that
gives it. The two columns differ in one thing: whether tokenised units are merged into ranges of positions before
shards read them (`stages/tokenize/regroup.py`).

    python -m benchmarks.scale [--tokens 1.3e12] [--shards 10000] [--nodes 100] [--bytes-per-token 3.9]
                               [--document-tokens 1000]
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks import measure
from stages.dedup.stage import ENTRIES, PAIRS, ranges_for
from stages.sources.base import UNIT_BYTES
from stages.tokenize.regroup import MERGED_UNITS, MOST_UNITS
from stages.tokenize.stage import MOST_BYTES
from stages.tokenize.token_file import ROW_GROUP

# Bytes a row of a parquet table takes on disk, and of a spec an artifact takes; seen on 100 MB of real text.
TOKENIZED_ROW, ROWS_ROW, ARTIFACT = 62, 70, 420
BANDS, ALIKE, ROUNDS = 14, 0.1, 3  # keys a document; share of documents with a like one, and rounds of joins: guesses
OPENS_PER_FILE = 2  # a parquet footer and its row groups, or a map and its pages: requests to an object store


def build(tokens: float, shards: int, bytes_per_token: float, document_tokens: float, merged: bool) -> dict[str, Any]:
    """Counts of one build with one source, no repeats."""
    text = tokens * bytes_per_token
    documents = tokens / document_tokens
    parts = round(text / UNIT_BYTES)
    units = round(text / MOST_BYTES)
    groups = units // MERGED_UNITS if merged and units > MOST_UNITS else 0
    merges, sums, read = groups * MERGED_UNITS, -(-units // MOST_UNITS), units - groups * MERGED_UNITS
    # A shard is 1 / shards of the positions, a merged file 1 / MERGED_UNITS; a border in it costs one file more.
    files = read + groups * (1 + MERGED_UNITS / shards)
    rows_of_unit, rows_of_shard = documents / units, documents / shards
    # Whole row groups are read: a slice of few rows costs one.
    merge_rows = min(rows_of_unit, rows_of_unit / MERGED_UNITS + ROW_GROUP)
    slice_rows = min(rows_of_unit, rows_of_shard / max(1, files) + ROW_GROUP)
    matches = ranges_for(round(documents), ENTRIES) + ranges_for(round(BANDS * documents), ENTRIES)
    joins = ranges_for(round(2 * BANDS * ALIKE * documents), PAIRS)
    table: dict[str, dict[str, float]] = {
        "units": {
            "download, measure, filter": 3 * parts,
            "dedup": 2 * parts + matches + (ROUNDS + 1) * joins,
            "tokenize": units,
            "merge": merges,
            "histograms, held-out, cut": 3 * sums,
            "shards": shards,
        },
        "files opened": {
            "dedup": (2 + matches) * parts + joins * (matches + (ROUNDS - 1) * joins),
            "tokenize": 2 * units,
            "merge": merges * MERGED_UNITS * 2,
            "histograms, held-out, cut": 4 * units,
            "shards": round(shards * files * 2),
        },
        "bytes read": {
            "tokenize": text,
            "merge": merges * MERGED_UNITS * merge_rows * TOKENIZED_ROW + (2 * tokens if groups else 0),
            "histograms, held-out, cut": units * (131_072 + 2 * rows_of_unit * TOKENIZED_ROW),
            "shards": 2 * tokens + shards * files * slice_rows * TOKENIZED_ROW,
        },
        "bytes written": {
            "tokenize": 2 * tokens + documents * TOKENIZED_ROW,
            "merge": (2 * tokens + documents * TOKENIZED_ROW) if groups else 0,
            "shards": 2 * tokens + documents * (ROWS_ROW + 12),
        },
        "bytes of specs the driver sends": {
            "dedup": (2 + matches) * parts * ARTIFACT,
            "tokenize": units * 2 * ARTIFACT,
            "merge": merges * MERGED_UNITS * 2 * ARTIFACT,
            "shards": round(shards * files * 2 * ARTIFACT),
        },
    }
    return {what: {stage: round(n) for stage, n in row.items()} for what, row in table.items()}


def driver_bytes() -> float | None:
    """Bytes a unit takes in the driver, from the newest result of `benchmarks.driver`."""
    found = sorted(measure.RESULTS.glob("*-driver.json"))
    if not found:
        return None
    run = json.loads(found[-1].read_text())["first"]
    return float((run["peak_rss_mb"] - run["rss_before_mb"]) * 2**20 / run["units"])


def human(n: float) -> str:
    """1,234, or 5.6 M, or 7.8 T."""
    for size, name in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M")):
        if n >= size:
            return f"{n / size:,.3g}{name}"
    return f"{n:,.0f}"


def main() -> None:
    """Print both columns and save them."""
    options = measure.parser(
        __doc__, tokens=1.3e12, shards=10_000, nodes=100, bytes_per_token=3.9, document_tokens=1000.0
    ).parse_args()
    sizes = (options.tokens, options.shards, options.bytes_per_token, options.document_tokens)
    with_merge, without = build(*sizes, merged=True), build(*sizes, merged=False)
    rows = []
    for what in with_merge:
        rows.append((what, human(sum(without[what].values())), human(sum(with_merge[what].values()))))
        rows += [(f"  {stage}", human(without[what][stage]), human(n)) for stage, n in with_merge[what].items()]
    found: dict[str, Any] = {"asked": vars(options), "with": with_merge, "without": without}
    per_unit = driver_bytes()
    for name, column in (("without", without), ("with", with_merge)):
        moved = sum(column["bytes read"].values()) + sum(column["bytes written"].values())
        opened = sum(column["files opened"].values()) * OPENS_PER_FILE
        found[name] |= {"bytes moved a node": moved / options.nodes, "requests a node": opened / options.nodes}
        if per_unit:
            found[name]["driver MB"] = round(per_unit * sum(column["units"].values()) / 2**20)
    for what in [k for k in found["with"] if not isinstance(found["with"][k], dict)]:
        rows.append((what, human(found["without"][what]), human(found["with"][what])))
    measure.show(("", "without merging", "with merging"), rows)
    measure.save("scale", found)


if __name__ == "__main__":
    main()
