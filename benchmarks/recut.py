"""A changed threshold on a gigabyte of text: `filter` again, with what was measured, against from nothing.

    python -m benchmarks.recut [--megabytes 1000] [--data FOLDER]

Real text, repeated with a word in a hundred changed until it is large enough, in FILES files. Timed are whole commands,
`python -m pipeline run filter --executor local --workers 2`: with nothing there; with the threshold of one rule
changed; with a share of the source asked for by a measure; and the changed threshold in an empty folder. The tables of
kept rows must be the same as there, digest by digest. What the records say is beside it: seconds by stage. At last, for
one core: MB/s at which a score is trained and given, and how much longer a part takes to measure with one.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import measure
from benchmarks.curate import WORKERS, copies, write
from benchmarks.filter import GROUP, RULES
from benchmarks.processes import records, run_pipeline
from stages.filter.measure import measure_column
from stages.filter.parse import parse_rules
from stages.filter.verdict import measured_rules
from stages.kernels.linear import score, train

FILES = 8
BASE_MB = 50.0  # of real text that is repeated
EXAMPLE_MB = 20.0
NEEDED = 3  # bytes on disk for a byte of text
LIBRARIES = ("numba", "numpy", "pyarrow")
CHANGED = [
    {name: {"min_words": 400, "min_alphabetic_words": 0.9} if name == "gopher_quality" else {}} for name in RULES
]
SHARE = [*CHANGED, {"where": {"gopher_alphabetic": {"top": "80%"}}}]


def run(folder: Path, out: Path, rules: list[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Run `filter` on the files in `folder`.

    Returns what the command took, with its units' seconds by stage, and the digest of each table of kept, dropped and
    sampled rows that it left.
    """
    raw = {"name": "recut", "sources": {"web": {"from": "parquet", "path": f"{folder}/*.parquet", "rules": rules}}}
    before = {record.key for record in records(out)} if out.exists() else set()
    seen = run_pipeline("filter", raw, out, "--workers", str(WORKERS))
    ran = [record for record in records(out) if record.key not in before]
    stages = dict.fromkeys(record.stage for record in ran)
    result = {
        "seconds": round(seen.seconds, 2),
        "processor seconds": round(seen.sampled, 2),
        "units": {stage: sum(record.stage == stage for record in ran) for stage in stages},
        "seconds of units": {stage: round(sum(r.seconds for r in ran if r.stage == stage), 2) for stage in stages},
        "kept": sum(record.counts.get("kept", 0) for record in ran),
        "documents": sum(record.counts.get("rows_in", 0) for record in ran if record.stage == "filter"),
    }
    print(f"{out.name}: {result}", flush=True)
    outputs = [(r.label, artifact) for r in ran if r.stage == "filter" for artifact in r.outputs]
    return result, {f"{label} {artifact.name}": artifact.digest for label, artifact in outputs}


def scores(texts: list[str]) -> dict[str, Any]:
    """Return what training a score and giving it take on one core, beside the rules."""
    some = measure.spread(texts, EXAMPLE_MB)
    columns = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    examples, size = pa.array(some), measure.megabytes(some)
    labels = np.where(np.arange(len(some)) % 2, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(some))
    weights, _ = train(examples, labels, order, 1, 0.5)
    rules = measured_rules(parse_rules(RULES))
    rates = measure.rates(
        {
            "training, an epoch": (size, lambda: train(examples, labels, order, 1, 0.5)),
            "scores": (measure.megabytes(texts), lambda: [score(column, weights) for column in columns]),
            "the four rule sets": (
                measure.megabytes(texts),
                lambda: [measure_column(column, None, rules) for column in columns],
            ),
        }
    )
    return {"MB/s a core": measure.medians(rates, 1)}


def main() -> None:
    """Run the benchmark."""
    parser = measure.parser(__doc__, megabytes=1000.0, data=None)
    options = parser.parse_args()
    machine = measure.machine(LIBRARIES)
    texts = measure.corpus(min(BASE_MB, options.megabytes), options.data)
    random.Random(1).shuffle(texts)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        needed, free = options.megabytes * NEEDED * 1e6, shutil.disk_usage(scratch).free
        if free < needed:
            raise SystemExit(f"error: {needed / 1e9:.0f} GB needed in {scratch}, {free / 1e9:.0f} free; set TMPDIR")
        few = write(texts[:200], scratch / "few", WORKERS)
        run(scratch / "few", scratch / "warm", RULES)  # machine code
        size = write(
            copies(texts, max(1, round(options.megabytes / measure.megabytes(texts)))), scratch / "text", FILES
        )
        print(f"{size:,.0f} MB of text; {few:.1f} MB to load the machine code", flush=True)
        result: dict[str, Any] = {"machine": machine, "MB": round(size, 1)}
        result["from nothing"], _ = run(scratch / "text", scratch / "out", RULES)
        result["a changed threshold"], recut = run(scratch / "text", scratch / "out", CHANGED)
        result["a share by a measure"], _ = run(scratch / "text", scratch / "out", SHARE)
        stored = {
            stage: list((scratch / "out" / "store" / stage).rglob("*.parquet")) for stage in ("download", "measure")
        }
        result["MB on disk"] = {
            stage: round(sum(file.stat().st_size for file in files) / 1e6, 1) for stage, files in stored.items()
        }
        shutil.rmtree(scratch / "out")
        result["the changed threshold, from nothing"], fresh = run(scratch / "text", scratch / "fresh", CHANGED)
        result["the same tables"] = recut == fresh
    measure.use_one_core()
    result["scores"] = scores(texts)
    measure.report("recut", result)
    if not result["the same tables"]:
        raise SystemExit("error: the re-cut differs from a run from nothing")


if __name__ == "__main__":
    main()
