"""MB of text a second on one core, for every stage, from the records of one run over real text.

    python -m benchmarks.stages [--data ../shared/data] [--keep FOLDER]

One recipe reads the folder's web pages (parquet, FineWeb's four rule sets), mathematics (parquet), papers (jsonl.zst)
and questions (one JSON array), and goes through `run pack_pretrain` with one worker; before it a few documents go the
same way, so that machine code is on disk. Seconds are those of the units' records, by the clock, on the one worker:
on a machine that does other things, they are too many. Text is what goes into a step, in bytes of UTF-8; of packing,
what its tokens stand for. Whatever units ran are listed, by stage and step.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.processes import records, run_pipeline
from stages.stage import Record

SAMPLE, TOKENS = "40MB", "30M"
FEW = 60  # documents of each source, to begin with
NAME = "stages"
LIBRARIES = ("numba", "numpy", "pyarrow", "tokenizers")
DEDUP_STEPS = ("sign", "match", "join", "drops", "report")


class Row(NamedTuple):
    """A line of the table."""

    stage: str
    step: str
    units: int
    seconds: float
    text_mb: float
    peak_mb: float

    def rate(self) -> float:
        """MB/s."""
        return self.text_mb / self.seconds if self.seconds else 0.0


def recipe(data: Path) -> dict[str, Any]:
    """The recipe over a folder laid out as ../shared/data."""
    return {
        "name": NAME,
        "sources": {
            "web": {
                "from": "parquet",
                "path": f"{data}/web/*.parquet",
                "rules": ["gopher_repetition", "gopher_quality", "c4", "fineweb"],
            },
            "mathematics": {"from": "parquet", "path": f"{data}/math/*.parquet"},
            "papers": {"from": "jsonl", "path": f"{data}/math/*.jsonl.zst"},
            "questions": {
                "from": "json_array",
                "path": f"{data}/qa/metamathqa_schema/*.json",
                "template": "{query}\n\n{response}",
            },
        },
        "evals": {"arc": {"from": "ai2_arc", "path": f"{data}/qa/ai2_arc/*/validation-*.parquet"}},
        "dedup": {"priority": ["questions", "mathematics", "papers", "web"]},
        "tokenizer": {"vocab_size": 8192, "sample": SAMPLE},
        "shard_tokens": "10M",
        "mixtures": {"pretrain": {"tokens": TOKENS, "ratios": {"web": "70%", "papers": "25%", "mathematics": "5%"}}},
    }


def source_of(record: Record, names: list[str]) -> str:
    """The source a unit's label begins with, or nothing."""
    first = record.label.split()[0]
    return first if first in names else ""


def step_of(record: Record, raw: dict[str, Any]) -> str:
    """What a unit does within its stage."""
    name = source_of(record, list(raw["sources"]))
    words = record.label.removeprefix(name).split()
    if record.stage == "download":
        path = raw["sources"][name]["path"]
        return f"{raw['sources'][name]['from']}{'.zst' if path.endswith('.zst') else ''}"
    if record.stage in ("measure", "filter"):
        rules = "four rule sets" if raw["sources"][name].get("rules") else "no rules"
        return "sample of what was dropped" if words in (["choose"], ["dropped"]) else rules
    if record.stage == "dedup":
        step = words[0] if words[0] in DEDUP_STEPS else "apply"
        return f"match {words[1]}" if step == "match" else step
    return "" if record.stage in ("tokenize", "build_tokenizer") else words[0] if not words[0].isdigit() else ""


def rows(found: list[Record], raw: dict[str, Any]) -> list[Row]:
    """The table: text, seconds and peak memory of each step's units."""
    names = list(raw["sources"])
    text: dict[str, Counter[str]] = {
        stage: Counter() for stage in ("download", "measure", "filter", "dedup", "tokenize")
    }
    tokens = 0
    for record in found:
        if record.stage in text:
            text[record.stage][source_of(record, names)] += record.counts.get("text_bytes", 0)
            tokens += record.counts.get("tokens", 0) if record.stage == "tokenize" else 0
    before = {"measure": "download", "filter": "download", "dedup": "filter", "decontaminate": "dedup"}
    steps: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(found, key=lambda r: r.started):
        steps.setdefault((record.stage, step_of(record, raw)), []).append(record)
    table = []
    for (stage, step), mine in steps.items():
        if step == "index":  # of the evaluation sets
            size = 0.0
        elif stage in before:
            sources = {source_of(record, names) for record in mine}
            chosen = names if sources == {""} else sources  # a unit of no source is about all of them
            size = sum(text[before[stage]][name] for name in chosen)
        elif stage.startswith("pack"):
            size = sum(text["tokenize"].values()) / tokens * packed(mine)
        else:
            size = sum(record.counts.get("text_bytes", 0) for record in mine)
        seconds, peak = sum(r.seconds for r in mine), max(r.peak_mb for r in mine)
        table.append(Row(stage, step, len(mine), round(seconds, 3), round(size / 1e6, 1), peak))
    return table


def packed(found: list[Record]) -> int:
    """Tokens in the shards that units wrote."""
    return sum(artifact.tokens for record in found for artifact in record.outputs)


def show(table: list[Row]) -> None:
    """Print the table."""
    header = ("stage", "step", "units", "seconds", "MB of text", "MB/s a core", "peak MB")
    measure.show(header, [(*row[:5], round(row.rate(), 1), round(row.peak_mb)) for row in table])


def main() -> None:
    """Run, print, save."""
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, default=measure.SHARED.parent)
    parser.add_argument("--keep", type=Path, help="build here, and leave it")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"error: no folder {options.data}; name one laid out as ../shared/data with --data")
    machine, raw = measure.machine(LIBRARIES), recipe(options.data.resolve())
    with tempfile.TemporaryDirectory() as name:
        few = {**raw, "tokenizer": {"vocab_size": 512, "sample": "1MB"}}
        few["sources"] = {source: {**value, "max_documents": FEW} for source, value in raw["sources"].items()}
        few["mixtures"] = {"pretrain": {"tokens": "10k", "ratios": {"papers": "100%"}}}
        run_pipeline("pack_pretrain", few, Path(name) / "few", "--workers", "1")
        out = options.keep or Path(name) / "all"
        seen = run_pipeline("pack_pretrain", raw, out, "--workers", "1")
        found = records(out)
    table = rows(found, raw)
    show(table)
    result = {
        "machine": machine,
        "seconds of the whole command": round(seen.seconds, 1),
        "processor seconds": round(seen.waited, 1),
        "seconds in units, by the clock": round(sum(row.seconds for row in table), 1),
        "steps": [{**row._asdict(), "MB/s": round(row.rate(), 1)} for row in table],
    }
    print(f"{result['seconds of the whole command']} s in all, {result['processor seconds']} s of processor")
    measure.save("stages", result)


if __name__ == "__main__":
    main()
