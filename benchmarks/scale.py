"""Builds of 10 B, 350 B, 1.3 T and 13 T tokens in a bucket, counted from the constants in the code. Nothing is run.

For each stage: units, requests, bytes, what the driver sends, and the time that the slowest of processors, network and
waiting for requests takes. Sizes and numbers of files are those of `stages/`; speeds a core are those of
`benchmarks.stages`; the driver's are those of `benchmarks.driver` and `benchmarks.ray_share`. What is assumed is an
option: the text, the machines, and the list prices of a store and of a machine.

    python -m benchmarks.scale [--tokens 1.3e12 --shards 10000 --nodes 100] [--cores 32] [--gigabits 10] ...

hours = sum over stages of max(core seconds / cores, bytes / bandwidth, requests x latency / requests at a time, units x
driver seconds); dollars = nodes x hours x node_dollars + requests + a month of what is stored.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import measure
from stages.dedup.arrays import READERS
from stages.dedup.clusters import PAIR
from stages.dedup.keys import EXACT, NEAR, RUN
from stages.dedup.stage import ENTRIES, GROUP, MOST_PARTS, PAIRS, ranges_for
from stages.sources.base import UNIT_BYTES
from stages.tokenize.regroup import MERGED_UNITS, MOST_UNITS
from stages.tokenize.stage import MOST_BYTES
from train.bucket import PART

SIZES = ((1e10, 100, 1), (3.5e11, 2_700, 20), (1.3e12, 10_000, 100), (1.3e13, 100_000, 100))  # tokens, shards, nodes
BANDS, ROUNDS = 14, 3  # keys a document, and rounds of joins
# Bytes of a document in files, and of an artifact in a spec; seen on 100 MB of real text.
MEASURES_ROW, KEPT_ROW, TOKENIZED_ROW, ROWS_ROW, DROPS_ROW, ID, ARTIFACT = 150, 40, 62, 70, 60, 16, 420
BY_RANGE = ("match", "join", "list drops")  # whose units ask for several ranges at a time
SOURCE_READS = 4  # requests for the part of a source file that a unit reads: footer and row groups
SEARCHES = 1.5  # requests for a range of pairs, which do not lie evenly
DRIVER_SECONDS, DRIVER_BYTES = 0.009, 5e7  # of the driver's processor a unit, and bytes of specs it makes a second
IN_FLIGHT, SENT_BYTES = 2, 800  # lists of inputs that units in flight share, and the driver's bytes for each of them
# MB of text a second and core, of docs/measured.md. Where there is none a stage moves bytes and does little else.
SPEED = {"download": 43, "filter": 30, "sign": 62, "drop": 83, "tokenize": 51, "shards": 254}
MOVING = 300  # MB a second and core of what is only sorted and copied: a guess


@dataclass
class Stage:
    """What a stage takes in all."""

    units: float
    gets: float  # beside a look for each unit's record
    puts: float  # beside each unit's record
    bytes_read: float
    bytes_written: float
    sent: float  # bytes of specs
    core_seconds: float


def puts_of(size: float) -> float:
    """Return the requests that an upload of `size` bytes takes."""
    return 1 if size <= PART else math.ceil(size / PART) + 2


@dataclass(frozen=True)
class Size:
    """A build with one source and no repeats."""

    tokens: float
    documents: float
    text: float  # bytes
    raw: float  # bytes before the filter
    stored: float  # bytes in a file for each of text
    alike: float
    parts: int
    shards: int


def size_of(asked: argparse.Namespace) -> Size:
    """Return the size of what is asked for."""
    text = asked.tokens * asked.bytes_per_token
    raw = text / asked.kept
    documents = asked.tokens / asked.document_tokens
    parts = math.ceil(raw / UNIT_BYTES)
    return Size(asked.tokens, documents, text, raw, asked.stored, asked.alike, parts, asked.shards)


def stages_of(size: Size) -> dict[str, Stage]:
    """Return the stages of a build, in their order."""
    return {**text_stages(size), **duplicate_stages(size), **token_stages(size)}


def text_stages(size: Size) -> dict[str, Stage]:
    """Return the stages that move text."""
    parts, raw, text = size.parts, size.raw * size.stored, size.text * size.stored
    raw_puts, puts = parts * puts_of(raw / parts), parts * puts_of(text / parts)

    def cpu(name: str, size: float) -> float:
        return size / 1e6 / SPEED[name]

    download, measures = cpu("download", size.raw), MEASURES_ROW * size.documents * size.raw / size.text
    return {
        "download": Stage(parts, parts * SOURCE_READS, raw_puts, raw, raw, parts * 2 * ARTIFACT, download),
        "measure": Stage(parts, parts, parts, raw, measures, parts * ARTIFACT, cpu("filter", size.raw)),
        "filter": Stage(parts, parts, 2 * parts, measures, KEPT_ROW * size.documents, parts * ARTIFACT, 0),
        "drop duplicates": Stage(parts, 3 * parts, puts, raw, text, parts * 3 * ARTIFACT, cpu("drop", size.text)),
    }


def duplicate_stages(size: Size) -> dict[str, Stage]:
    """Return the stages that find duplicates."""
    parts, documents = size.parts, size.documents
    near, ids = BANDS * documents, documents * ID
    keys = documents * EXACT.itemsize + near * NEAR.itemsize
    groups = parts // GROUP if parts > MOST_PARTS else 0
    files = groups + parts - groups * GROUP
    runs = files * max(1, near / files / RUN)
    of_exact, of_near = ranges_for(round(documents), ENTRIES), ranges_for(round(near), ENTRIES)
    matches = of_exact + of_near
    # Four standard deviations at either end of a range of evenly spread keys.
    margins = 4 * of_exact * math.sqrt(documents * files) * EXACT.itemsize
    margins += 4 * of_near * math.sqrt(near * runs) * NEAR.itemsize
    pairs = 2 * BANDS * size.alike * documents
    joins = min(ranges_for(round(pairs), PAIRS), parts)
    pair_bytes = pairs * PAIR.itemsize
    joined = joins * (matches + (ROUNDS - 1) * joins)  # files that all units of all rounds read
    sign_puts = parts * (2 + puts_of(near / parts * NEAR.itemsize))
    merge_puts = groups * (2 + puts_of(keys / groups)) if groups else 0
    match_puts = matches * puts_of(pair_bytes / matches)
    text, signing = size.raw * size.stored, size.text / 1e6 / SPEED["sign"]
    merged = (keys + ids) * bool(groups)
    listed = joins * (of_exact + files)

    def moving(size: float) -> float:
        return size / 1e6 / MOVING

    return {
        "keys": Stage(parts, 2 * parts, sign_puts, text, keys + ids, parts * 2 * ARTIFACT, signing),
        "merge keys": Stage(
            groups, 3 * groups * GROUP, merge_puts, merged, merged, 3 * groups * GROUP * ARTIFACT, moving(merged)
        ),
        "match": Stage(
            matches, of_exact * files + of_near * runs, match_puts, keys + margins, pair_bytes,
            matches * files * ARTIFACT, moving(keys),
        ),
        "join": Stage(
            ROUNDS * joins, SEARCHES * joined, ROUNDS * joins, SEARCHES * ROUNDS * pair_bytes, ROUNDS * pair_bytes,
            joined * ARTIFACT, moving(ROUNDS * pair_bytes),
        ),
        "list drops": Stage(
            joins, SEARCHES * listed, 2 * joins, joins * ids, size.alike * documents * DROPS_ROW, listed * ARTIFACT,
            moving(joins * ids) / 4,
        ),
    }  # fmt: skip


def token_stages(size: Size) -> dict[str, Stage]:
    """Return the stages that move tokens."""
    units, tokens, shards = math.ceil(size.text / MOST_BYTES), 2 * size.tokens, size.shards
    docs = size.documents * TOKENIZED_ROW
    groups = units // MERGED_UNITS if units > MOST_UNITS else 0
    merged, read = groups * MERGED_UNITS, units - groups * MERGED_UNITS
    # A shard is 1 / shards of the positions, a merged file 1 / MERGED_UNITS; a border in it costs one file more.
    slices = shards * (read + groups * (1 + MERGED_UNITS / shards))
    # Tables of documents are read whole, tokens by their bytes.
    merge_read = (tokens + MERGED_UNITS * docs) * bool(groups)
    token_puts = units * (2 + puts_of(tokens / units))
    merge_puts = merged * (1 + puts_of(tokens / merged)) if merged else 0
    shard_puts = shards * (2 + puts_of(tokens / shards)) + 3 * shards  # published by a copy of each
    rows = size.documents * (ROWS_ROW + 12)
    text = size.text * size.stored
    encoding, packing = (size.text / 1e6 / SPEED[name] for name in ("tokenize", "shards"))
    return {
        "tokenize": Stage(units, 2 * units, token_puts, text, tokens + docs, units * 2 * ARTIFACT, encoding),
        "merge tokens": Stage(
            merged, 2 * merged * MERGED_UNITS, merge_puts, merge_read, (tokens + docs) * bool(groups),
            2 * merged * MERGED_UNITS * ARTIFACT, merge_read / 1e6 / MOVING,
        ),
        "shards": Stage(
            shards, 2 * slices, shard_puts, tokens + slices * docs / units, tokens + rows, 2 * slices * ARTIFACT,
            packing,
        ),
    }  # fmt: skip


def hours_of(name: str, stage: Stage, asked: argparse.Namespace) -> tuple[float, str]:
    """Return the hours that the stage called `name` takes, and what bounds it."""
    slots = min(asked.nodes * asked.cores, stage.units or 1)
    requests = stage.gets + stage.puts + 2 * stage.units
    bounds = {
        "processors": stage.core_seconds / slots,
        "network": 8 * (stage.bytes_read + stage.bytes_written) / (min(asked.nodes, slots) * asked.gigabits * 1e9),
        "requests": requests * asked.latency / (slots * (READERS if name in BY_RANGE else 1)),
        "driver": stage.units * DRIVER_SECONDS + stage.sent / DRIVER_BYTES,
    }
    what = max(bounds, key=lambda name: bounds[name])
    return bounds[what] / 3600, what


def account(asked: argparse.Namespace) -> dict[str, Any]:
    """Return all of it for one size."""
    size = size_of(asked)
    stages = stages_of(size)
    rows = {name: asdict(stage) for name, stage in stages.items()}
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    for name, stage in stages.items():
        rows[name]["hours"], rows[name]["bound by"] = hours_of(name, stage, asked)
    hours = sum(row["hours"] for row in rows.values())
    gets, puts = total["gets"] + total["units"], total["puts"] + total["units"]
    prices = {
        "nodes": asked.nodes * hours * asked.node_dollars,
        "requests": gets / 1e6 * asked.get_dollars + puts / 1e6 * asked.put_dollars,
        "a month in the store": total["bytes_written"] / 1e9 * asked.month_dollars,
    }
    near = BANDS * size.documents
    near_of_range = near / ranges_for(round(near), ENTRIES)
    most_inputs = max(stage.sent / ARTIFACT / stage.units for stage in stages.values() if stage.units)
    return {
        "tokens": asked.tokens,
        "nodes": asked.nodes,
        "total": {**total, "gets": gets, "puts": puts, "hours": hours},
        "dollars": {**prices, "all": sum(prices.values())},
        # Sorted, and the order beside them: some four times the keys of a range.
        "match, worker MB": 4 * near_of_range * NEAR.itemsize / 2**20,
        "shard, worker MB": 3 * 2 * asked.tokens / asked.shards / 2**20,
        "driver MB": (driver_bytes() * total["units"] + IN_FLIGHT * SENT_BYTES * most_inputs) / 2**20,
        "stages": rows,
    }


def driver_bytes() -> float:
    """Return the bytes that a unit takes in the driver, from the newest result of `benchmarks.driver`."""
    run = json.loads(sorted(measure.RESULTS.glob("*-driver.json"))[-1].read_text())["first"]
    return float((run["peak_rss_mb"] - run["rss_before_mb"]) * 2**20 / run["units"])


def human(n: float) -> str:
    """Return 1,234, or 5.6 M, or 7.8 T."""
    for size, name in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M")):
        if n >= size:
            return f"{n / size:,.3g}{name}"
    return f"{n:,.0f}" if n >= 10 else f"{n:,.2g}"


def show(found: dict[str, Any]) -> None:
    """Print the account of one size."""
    print(f"\n{human(found['tokens'])} tokens on {found['nodes']} nodes")
    header = ("stage", "units", "GET", "PUT", "read", "written", "sent", "hours", "bound by")
    names = ("units", "gets", "puts", "bytes_read", "bytes_written", "sent", "hours")
    rows = {**found["stages"], "all": {**found["total"], "bound by": ""}}
    measure.show(header, [(name, *(human(row[key]) for key in names), row["bound by"]) for name, row in rows.items()])
    prices = ", ".join(f"{name} {dollars:,.0f}" for name, dollars in found["dollars"].items())
    memory = ", ".join(f"{name[:-3]} {found[name]:,.0f} MB" for name in found if name.endswith(" MB"))
    print(f"dollars: {prices}; memory: {memory}")


def main() -> None:
    """Print the accounts and save them."""
    parser = measure.parser(
        __doc__, tokens=0.0, shards=10_000, nodes=100, cores=32, gigabits=10.0, latency=0.03, bytes_per_token=3.9,
        document_tokens=1000.0, kept=0.5, stored=0.4, alike=0.1, node_dollars=1.5, get_dollars=0.4, put_dollars=5.0,
        month_dollars=0.023,
    )  # fmt: skip
    options = parser.parse_args()
    found = []
    for tokens, shards, nodes in [(options.tokens, options.shards, options.nodes)] if options.tokens else SIZES:
        asked = argparse.Namespace(**{**vars(options), "tokens": tokens, "shards": shards, "nodes": nodes})
        found.append(account(asked))
        show(found[-1])
    measure.save("scale", {"asked": vars(options), "builds": measure.rounded(found, 4)})


if __name__ == "__main__":
    main()
