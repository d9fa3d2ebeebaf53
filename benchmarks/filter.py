"""Filtering: the four rule sets of FineWeb, compiled, against datatrove's filters on the same documents; one core.

    python -m benchmarks.filter [--megabytes 150] [--peer-megabytes 2] [--rounds 3] [--of-each 60] [--data FOLDER]
    python -m benchmarks.filter --prove [--data FOLDER]

Timed in turn, several rounds, processor seconds of this process (what else the machine does is in neither figure): the
compiled rules over arrow columns, with both ways to count words; the readable rules and datatrove's four filters, as
shipped and with words that blanks separate, over a share of the same documents, evenly spaced; the stage `filter`,
parquet in and parquet out. Then, in new processes, the first call with nothing cached and with machine code on disk.
Beside the ratio stands how often ours and datatrove decide differently: the four in a row on the documents that were
timed, and each rule alone on `--of-each` documents of every file (`benchmarks.agreement`).

`--prove` compares compiled and readable rules on every document of every file and on 20,000 hostile strings, and exits
with 1 on any difference.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import measure
from benchmarks.agreement import RULES, Filters, agreement, datatrove_in_a_row, documents
from stages.filter.apply import apply_to_column
from stages.filter.document import Document
from stages.filter.measure import text_hashes
from stages.filter.measure import work as measure_part
from stages.filter.parse import parse_rules
from stages.filter.rules import ParsedRule, apply_rules
from stages.filter.verdict import measured_rules
from stages.filter.work import work
from stages.sources.base import Row
from stages.sources.writer import write_parts
from stages.task import Artifact, Task

GROUP = 1000  # documents in a column
LIBRARIES = ("numba", "numpy", "pyarrow", "datatrove", "spacy")
HOSTILE = 20_000
COLD = """
import time; start = time.process_time()
import pyarrow as pa
from stages.filter.parse import parse_rules
from stages.filter.apply import apply_to_column
from stages.filter.measure import text_hashes
texts = pa.array(["The cat sat on the mat. "])
apply_to_column(texts, None, parse_rules(%r)); text_hashes(texts)
print(time.process_time() - start)
"""


def family(reason: str | None) -> str | None:
    """The rule set a reason of ours belongs to."""
    if not reason:
        return None
    if reason.startswith(("gopher_repeated", "gopher_top")):
        return "gopher_repetition"
    return "gopher_quality" if reason.startswith("gopher") else reason.split("_")[0]


def disagreements(texts: list[str], theirs: Filters) -> dict[str, Any]:
    """How often ours and theirs decide differently, the four in a row."""
    ours, left = apply_to_column(pa.array(texts), None, parse_rules(RULES))
    pairs: Counter[str] = Counter()
    same_text = both = 0
    for text, reason, kept in zip(texts, ours, left.to_pylist(), strict=True):
        found, edited = theirs(text)
        pairs[f"ours {family(reason) or 'keeps'}, datatrove {found or 'keeps'}"] += 1
        if not reason and not found:
            both, same_text = both + 1, same_text + (kept == edited)
    differ = sum(n for pair, n in pairs.items() if ("ours keeps" in pair) != ("datatrove keeps" in pair))
    return {
        "documents": len(texts),
        "kept by one alone": differ,
        "kept by both": both,
        "of those with the same text": same_text,
        "pairs": dict(pairs.most_common()),
    }


def write_part(texts: list[str], folder: Path) -> Artifact:
    """The documents as a download leaves them."""
    task = Task({}, [], folder, "download", lambda a: a.path)
    write_parts(task, (Row("file", i, text) for i, text in enumerate(texts)))
    return next(a for a in task.outputs if a.name.startswith("part-"))


def stage(part: Artifact) -> None:
    """The stages `measure` and `filter` on one part."""
    with tempfile.TemporaryDirectory() as folder:
        rules = parse_rules(RULES)
        measured = Task({"rules": measured_rules(rules)}, [part], Path(folder), "measure", lambda a: a.path)
        measure_part(measured)
        measures = next(a for a in measured.outputs if a.name == "measures")
        work(Task({"rules": rules}, [measures], Path(folder), "filter", lambda a: a.path))


def cold_start() -> dict[str, float]:
    """Processor seconds from the start of Python to the first decision: with nothing cached, and with machine code."""
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for name in ("compiled anew", "cached"):
            command = [sys.executable, "-c", COLD % (RULES,)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, cwd=measure.ROOT
            )
            seconds[name] = round(float(done.stdout), 2)
    return seconds


def compare(texts: list[str], peer_megabytes: float, rounds: int) -> dict[str, Any]:
    """MB/s of each, medians over rounds, and the ratios."""
    rules, with_blanks = parse_rules(RULES), parse_rules(RULES, "blanks")
    columns = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    size, some = measure.megabytes(texts), measure.spread(texts, peer_megabytes)
    some_size = measure.megabytes(some)
    alone = {name: parse_rules([name]) for name in RULES}
    theirs, theirs_with_blanks = datatrove_in_a_row(), datatrove_in_a_row("blanks")
    with tempfile.TemporaryDirectory() as folder:
        part = write_part(texts, Path(folder))

        def compiled(programs: list[ParsedRule]) -> Callable[[], Any]:
            return lambda: [apply_to_column(column, None, programs) for column in columns]

        candidates: dict[str, tuple[float, Callable[[], Any]]] = {
            "compiled": (size, compiled(rules)),
            "compiled, words: blanks": (size, compiled(with_blanks)),
            **{f"compiled, {name} alone": (size, compiled(alone[name])) for name in RULES},
            "text hash": (size, lambda: [text_hashes(column) for column in columns]),
            "stage filter, parquet to parquet": (size, lambda: stage(part)),
            "readable": (some_size, lambda: [apply_rules(Document(text), rules) for text in some]),
            "datatrove": (some_size, lambda: [theirs(text) for text in some]),
            "datatrove with blanks": (some_size, lambda: [theirs_with_blanks(text) for text in some]),
        }
        apply_to_column(columns[0], None, rules), text_hashes(columns[0]), theirs(texts[0])
        speeds = measure.rates(candidates, rounds)
    rates = measure.medians(speeds, 3)
    return {
        "MB/s": rates,
        "rounds, MB/s": measure.rounded(speeds, 3),
        "compiled / datatrove": round(measure.ratio(speeds["compiled"], speeds["datatrove"]), 1),
        "compiled, words: blanks / datatrove with blanks": round(
            measure.ratio(speeds["compiled, words: blanks"], speeds["datatrove with blanks"]), 1
        ),
        "compiled / compiled, words: blanks": round(
            measure.ratio(speeds["compiled"], speeds["compiled, words: blanks"]), 2
        ),
        "stage / datatrove": round(rates["stage filter, parquet to parquet"] / rates["datatrove"], 1),
        "decisions": disagreements(some, theirs),
    }


def prove(folder: Path) -> bool:
    """Compare compiled and readable rules on everything; print what was compared. True if nothing differs."""
    measure.import_harness()
    from rules_harness import PARSED, differences, hostile

    rng = random.Random(1)
    faults, compared, size = 0, 0, 0.0
    for start in range(0, HOSTILE, GROUP):
        faults += len(differences([hostile(rng) for _ in range(min(GROUP, HOSTILE - start))], PARSED))
    print(f"{HOSTILE:,} hostile strings under {len(PARSED)} programs: {faults} differences")
    programs = [parse_rules([name]) for name in RULES] + [parse_rules(RULES)]
    for name, texts in measure.every_text(folder):
        differing = differences(texts, programs)
        faults, compared = faults + len(differing), compared + len(texts)
        size += measure.megabytes(texts)
        for rules, text, *both in differing[:3]:
            print(f"differs: {name}: {rules}: {text[:80]!r}: {both}")
    print(f"{compared:,} strings, {size:.1f} MB, of {folder}: {faults} differences in all")
    return not faults


def main() -> None:
    """Run the benchmark or the proof."""
    parser = measure.parser(__doc__, megabytes=150.0, peer_megabytes=2.0, rounds=3, of_each=60, data=None, prove=False)
    options = parser.parse_args()
    if options.prove:
        sys.exit(not prove(Path(options.data) if options.data else measure.SHARED.parent))
    measure.use_one_core()
    machine = measure.machine(LIBRARIES)
    texts = measure.corpus(options.megabytes, options.data)
    result = compare(texts, options.peer_megabytes, options.rounds)
    of_every_file = documents(Path(options.data) if options.data else measure.SHARED.parent, options.of_each)
    result |= {"each rule alone": agreement(of_every_file or texts[: options.of_each])}
    result = {"machine": machine, "cold start, processor seconds": cold_start(), **result}
    measure.report("filter", result, without="rounds, MB/s")


if __name__ == "__main__":
    main()
