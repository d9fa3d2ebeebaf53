"""Decontamination: the search, one core, against datatrove's n-gram filter on the same documents; and what it finds.

    python -m benchmarks.decontaminate [--megabytes 150] [--peer-megabytes 2] [--rounds 3] [--data FOLDER]

The sets are ARC's validation questions, and as many of GSM8K's as its test split has, from the shared data. Timed in
turn, several rounds, processor seconds of this process: the unit `find_hits`, parquet in and hits out; the search alone
over arrow columns; the readable search and datatrove's filter (12-grams of its own words, its index from ours) over a
share of the same documents, evenly spaced. Then what is found when 50 items are planted whole and 50 with light edits,
over several ways of writing an item and many draws; and every hit in the documents of all files but ARC's.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.filter import write_part
from stages.decontaminate.ngrams import find_readably, frequent_words, passages_of, readable_ngrams
from stages.decontaminate.search import NgramIndex, find_hits, index_ngrams, text_between
from stages.evals.passages import PASSAGES_OF
from stages.kernels.ngrams import NgramSearch
from stages.sources.questions import ITEMS
from stages.task import Artifact, Task

GROUP = 1000  # documents in a column
LIBRARIES = ("numba", "numpy", "pyarrow", "datatrove")
NGRAM, SHORT, COMMON = 13, 8, 10
TEST = 1319  # questions in GSM8K's test split
DRAWS = 20


def arc(data: Path) -> list[dict[str, Any]]:
    """ARC's validation questions, as rows of ITEMS."""
    found = []
    for file in sorted(data.glob("qa/ai2_arc/*/validation-*.parquet")):
        for i, row in enumerate(pq.read_table(file).to_pylist()):
            answer = row["choices"]["label"].index(row["answerKey"])
            identity = f"{file.parent.name}{i:>8}"[-16:].rjust(16).encode()
            choices = json.dumps(row["choices"]["text"], ensure_ascii=False)
            facts = {"item_id": identity, "question": row["question"], "choices": choices, "answer": answer}
            found.append({**facts, "text": "", "source_file": file.parent.name, "source_row": i})
    return found


def gsm8k(data: Path) -> list[dict[str, Any]]:
    """As many of GSM8K's questions as its test split has, as rows of PASSAGES_OF."""
    rows = next(measure.rows_of(data / "qa/gsm8k/train.jsonl.zst"))[-TEST:]
    texts = [json.dumps({"question": r["question"], "answer": r["answer"]}, ensure_ascii=False) for r in rows]
    return [
        {"item_id": f"{i:>16}".encode(), "passages": text, "source_file": "test", "source_row": i}
        for i, text in enumerate(texts)
    ]


def run(folder: Path, work: Callable[[Task], None], params: dict[str, Any], inputs: list[Artifact]) -> Task:
    """One unit, as the engine runs it."""
    task = Task(params, inputs, folder, f"{work.__name__}{len(list(folder.iterdir()))}", lambda a: a.path)
    work(task)
    return task


def indexed(folder: Path, sets: dict[str, list[dict[str, Any]]]) -> list[Artifact]:
    """`passages` and `grams` of some sets."""
    inputs = []
    for name, rows in sets.items():
        schema = ITEMS if "question" in rows[0] else PASSAGES_OF
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
        inputs.append(Artifact(str(folder / f"{name}.parquet"), name))
    return run(
        folder, index_ngrams, {"sets": list(sets), "ngram": NGRAM, "short": SHORT, "common": COMMON}, inputs
    ).outputs


def datatrove_filter(passages: list[str]) -> Callable[[str], bool]:
    """datatrove's filter with an index of the passages: text -> whether the text stays."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams as word_ngrams
    from datatrove.utils.text import simplify_text

    config = NGramsDecontConfig()
    one = NGramsDecontFilter("memory://none", config)
    hashed = one.hash_func
    one.hash_func = lambda text: hashed(text.encode())  # xxhash 4 takes bytes alone
    one._index_hashes = {}
    for text in passages:  # as its indexer does, which wants lighteval
        given = one.tokenizer.word_tokenize(simplify_text(text, config.norm_config))
        for gram in word_ngrams(given, config.n_grams):
            one._index_hashes[one.hash_func(" ".join(gram))] = "sets"
    return lambda text: one.filter(Document(text=text, id="")) is True


def speeds(texts: list[str], sets: dict[str, Any], peer_megabytes: float, rounds: int) -> dict[str, Any]:
    """MB/s of each, medians over rounds, and the ratios."""
    columns = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    size, some = measure.megabytes(texts), measure.spread(texts, peer_megabytes)
    some_size = measure.megabytes(some)
    passages = [p for rows in sets.values() for row in rows for p in passages_of(row, NGRAM, SHORT)]
    grams: dict[tuple[str, ...], int] = {}
    frequent = frequent_words(passages, COMMON)
    for passage in passages:
        for gram in readable_ngrams(passage, frequent):
            grams.setdefault(gram, len(grams))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = indexed(folder, sets)
        part, search = write_part(texts, folder), NgramIndex(*(a.path for a in known)).search(SHORT)
        candidates: dict[str, tuple[float, Callable[[], Any]]] = {
            "unit look, parquet to hits": (
                size,
                lambda: run(folder, find_hits, {"ngram": NGRAM, "short": SHORT}, [part, *known]),
            ),
            "search over arrow": (size, lambda: [search.find(column) for column in columns]),
            "readable": (some_size, lambda: [find_readably(text, grams, SHORT) for text in some]),
        }
        try:
            theirs = datatrove_filter([" ".join(p.words) for p in passages if p.name in ("question", "answer")])
            candidates["datatrove"] = (some_size, lambda: [theirs(text) for text in some])
        except ImportError as error:
            print(f"datatrove's filter is not timed: {error}")
        for amount, call in candidates.values():
            if amount == size:
                call()  # machine code is loaded
        rates = measure.rates(candidates, rounds)
    medians = measure.medians(rates, 3)
    ratios = {
        f"{name} / datatrove": round(medians[name] / medians["datatrove"], 1)
        for name in list(candidates)[:2]
        if "datatrove" in medians
    }
    return {"n-grams": len(grams), "MB/s": medians, "rounds, MB/s": measure.rounded(rates, 3), **ratios}


def recall(rows: list[dict[str, Any]], search: NgramSearch, index: NgramIndex) -> dict[str, Any]:
    """Of 50 items planted whole and 50 edited, how many are found: least and mean over draws, by way of writing."""
    from planting import EDITS, WAYS, edited

    found: dict[str, Any] = {}
    for way, write in WAYS.items():
        whole, light = [], []
        for draw in range(DRAWS):
            rng = random.Random(draw)
            chosen = rng.sample(range(len(rows)), 100)
            texts = []
            for i, number in enumerate(chosen):
                text = write(rows[number]["question"], json.loads(rows[number]["choices"]), rows[number]["answer"])
                text = text if i < 50 else edited(text, EDITS[i % len(EDITS)], rng)
                texts.append(f"The weather was fine that day. {text} So they went home.")
            right = set()
            for row, gram, *_ in search.find(pa.array(texts)).tolist():
                items = {index.passages["item"][p].as_py() for _, p in index.items(gram)}
                right |= {row} if chosen[row] in items else set()
            whole.append(sum(i < 50 for i in right))
            light.append(sum(i >= 50 for i in right))
        found[way] = {
            "whole of 50, least and mean": [min(whole), round(sum(whole) / DRAWS, 1)],
            "edited of 50, least and mean": [min(light), round(sum(light) / DRAWS, 1)],
        }
    return found


def clean_hits(folder: Path, search: NgramSearch, index: NgramIndex) -> dict[str, Any]:
    """Every hit of ARC's validation questions in all the shared text that is not ARC."""
    documents, hit, examples = 0, Counter[str](), []
    for file, texts in documents_of(folder):
        documents += len(texts)
        column = pa.array(texts)
        rows = set()
        for row, gram, start, stop in search.find(column).tolist():
            if row not in rows:
                words = " ".join(index.words(int(index.first_row[gram])))
                examples.append([file, words, text_between(column, row, start, stop)])
            rows.add(row)
        hit[file] += len(rows)
    return {"documents": documents, "hit": sum(hit.values()), "by file": dict(hit), "examples": examples}


def documents_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(file, documents): text as a source reads it, or the strings of a row of questions together."""
    for file in sorted(f for f in folder.rglob("*.parquet") if "ai2_arc" not in f.parts):
        names = pq.read_schema(file).names
        columns = ["text"] if "text" in names else ["problem", "solution"]
        for batch in pq.ParquetFile(file).iter_batches(GROUP, columns=columns):
            yield file.name, ["\n".join(row.values()) for row in batch.to_pylist()]
    for file in sorted(folder.rglob("*.json*")):
        wanted = ("text", "question", "answer", "query", "response")
        for rows in measure.rows_of(file):
            yield file.name, ["\n".join(row[name] for name in wanted if name in row) for row in rows]


def main() -> None:
    """Run it."""
    parser = measure.parser(__doc__, megabytes=150.0, peer_megabytes=2.0, rounds=3, data=None)
    options = parser.parse_args()
    data = Path(options.data) if options.data else measure.SHARED.parent
    if not (data / "qa/ai2_arc").is_dir():
        raise SystemExit(f"error: no ARC in {data}; name the folder of the shared test data with --data")
    measure.import_harness()
    measure.use_one_core()
    machine = measure.machine(measure.installed(*LIBRARIES))
    rows = arc(data)
    result: dict[str, Any] = {"machine": machine}
    result |= speeds(
        measure.corpus(options.megabytes, str(data / "web")),
        {"arc": rows, "gsm8k": gsm8k(data)},
        options.peer_megabytes,
        options.rounds,
    )
    with tempfile.TemporaryDirectory() as name:
        index = NgramIndex(*(a.path for a in indexed(Path(name), {"arc": rows})))
    search = index.search(SHORT)
    result |= {"planted": recall(rows, search, index), "clean": clean_hits(data, search, index)}
    print(json.dumps({k: v for k, v in result.items() if k != "rounds, MB/s"}, indent=1))
    measure.save("decontaminate", result)


def installed(name: str) -> bool:
    """Whether a library is."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
