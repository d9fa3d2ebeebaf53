"""The work of `build_scores`: one linear model over hashed words, from good and bad documents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.hashing import draw
from stages.schemas import utf8_bytes
from stages.task import Task

TAG_HELD_OUT, TAG_EXAMPLE = 0xA24BAED4963EE407, 0x9FB21C651E98DF25  # of `stages.hashing.draw`
HELD_OUT = 0.1  # of the examples, to test the model on
LEAST = 20  # examples of a kind
MOST_BYTES = 1 << 30  # of text
EPOCHS, RATE = 5, 0.5
SHOWN, SHOWN_FROM, SEEN = 20, 1000, 5  # words in the report; held-out documents they are from, at least so often


def work(task: Task) -> None:
    """Train a model. Inputs: parts of good documents, then of bad ones. Params: name; good, how many parts are.

    Outputs: `model`, float32 weights (.npy), the bias last; `report`, what it does on examples that were held out.
    """
    from stages.kernels.linear import score, train

    tables = [pq.read_table(task.path(part), columns=["document_id", "text"]) for part in task.inputs]
    n_good = sum(map(len, tables[: task.params["good"]]))
    table = pa.concat_tables(tables).combine_chunks()
    check_examples(task.params["name"], n_good, len(table) - n_good, utf8_bytes(table["text"]))
    is_good = np.arange(len(table)) < n_good
    ids, texts = table["document_id"].chunk(0), table["text"].chunk(0)
    held_out = draw(TAG_HELD_OUT, ids) < np.uint64(HELD_OUT * 2**64)
    labels = np.where(is_good, 0.5 / n_good, -0.5 / (len(table) - n_good)) * len(table)  # both kinds count alike
    order = np.argsort(draw(TAG_EXAMPLE, ids), kind="stable")
    weights, losses = train(texts, labels, order[~held_out[order]], EPOCHS, RATE)
    path = task.output("model.npy")
    np.save(path, weights)
    task.add("model", path)
    tested = pa.array(held_out)
    held_out_scores = describe(score(texts.filter(tested), weights), is_good[held_out])
    report = {
        "examples": {"good": n_good, "bad": len(table) - n_good},
        "text bytes": utf8_bytes(table["text"]),
        "loss by epoch": [round(loss, 4) for loss in losses],
        "held out": held_out_scores,
        "words": heaviest_words(texts.filter(tested).slice(0, SHOWN_FROM), weights),
    }
    path = task.output("report.json")
    Path(path).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add("report", path, **held_out_scores)
    task.count("examples", len(table))


def check_examples(name: str, good: int, bad: int, text_bytes: int) -> None:
    """Raise DataError where there are too few examples, or more text than is trained on at once."""
    for kind, n in (("good", good), ("bad", bad)):
        if n < LEAST:
            raise DataError(f"scores.{name}.{kind} has {n:,} documents; some hundreds are needed, and {LEAST} at least")
    if text_bytes > MOST_BYTES:
        raise DataError(
            f"scores.{name}: the examples are {text_bytes / 1e9:.1f} GB of text, and a model is trained on at most "
            f"{MOST_BYTES / 1e9:.1f} GB; set scores.{name}.good.max_bytes and .bad.max_bytes to 500MB each"
        )


def describe(scores: npt.NDArray[np.float64], is_good: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return how well scores tell good documents from bad ones.

    `auc`: of a good and a bad document drawn at random, how often the good one scores higher; a tie counts half.
    """
    good, bad = scores[is_good], np.sort(scores[~is_good])
    if not len(good) or not len(bad):
        return {"good": len(good), "bad": len(bad)}
    below = (np.searchsorted(bad, good) + np.searchsorted(bad, good, "right")) / 2
    return {
        "good": len(good),
        "bad": len(bad),
        "auc": round(float(below.mean() / len(bad)), 4),
        "good above 0.5": round(float((good > 0.5).mean()), 4),
        "bad above 0.5": round(float((bad > 0.5).mean()), 4),
    }


def heaviest_words(texts: pa.Array, weights: npt.NDArray[np.float32]) -> dict[str, list[str]]:
    """Return the words of some texts that speak most for good and for bad: what the model looks at."""
    from stages.kernels.linear import BITS
    from stages.kernels.words import ngram_hash, split_words, word_hash

    times = Counter(word for text in texts.to_pylist() for word in set(split_words(text)))
    common = sorted(word for word, n in times.items() if n >= SEEN)
    weight = {word: float(weights[ngram_hash([word_hash(word)]) >> (64 - BITS)]) for word in common}
    ranked = sorted(common, key=lambda word: -weight[word])
    return {"good": ranked[:SHOWN], "bad": ranked[::-1][:SHOWN]}
