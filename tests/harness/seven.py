"""Small files in the exact schemas of the seven datasets, under their real names, for a hub on the loopback.

The words are made up. Types, columns, nesting and file names are the datasets' own.
"""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from loopback_hub import Dataset

FINEWEB = pa.schema(
    [(name, pa.string()) for name in ("text", "id", "dump", "url", "file_path", "language")]
    + [
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
        ("score", pa.float64()),
        ("int_score", pa.int64()),
    ]
)
OPEN_WEB_MATH = pa.schema(
    [("url", pa.string()), ("text", pa.string()), ("date", pa.timestamp("ms")), ("metadata", pa.string())]
)
MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
NUMINA = pa.schema(
    [("source", pa.string()), ("problem", pa.string()), ("solution", pa.string()), ("messages", MESSAGES)]
)
COSMOPEDIA = pa.schema(
    [("prompt", pa.string()), ("text_token_length", pa.int64())]
    + [(name, pa.string()) for name in ("text", "seed_data", "format", "audience")]
)
COSMOPEDIA_V2 = pa.schema(
    [("prompt", pa.string()), ("text", pa.string()), ("token_length", pa.int64())]
    + [(name, pa.string()) for name in ("audience", "format", "seed_data")]
)
CHOICES = pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])
ARC = pa.schema([("id", pa.string()), ("question", pa.string()), ("choices", CHOICES), ("answerKey", pa.string())])

SYLLABLES = [a + b for a in "bdfgklmnprstv" for b in "aeiou"]
LEXICON = ["".join(random.Random(n).choices(SYLLABLES, k=random.Random(-n).randint(1, 4))) for n in range(900)]


def words(rng: random.Random, n: int) -> str:
    """A sentence of `n` words."""
    return " ".join(rng.choices(LEXICON, k=n)).capitalize() + "."


def parquet(schema: pa.Schema, rows: list[dict[str, Any]], group: int = 20) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out, row_group_size=group, compression="zstd")
    return out.getvalue()


def web(rng: random.Random, n: int, junk: int = 0) -> list[dict[str, Any]]:
    """Rows of FineWeb-Edu; `junk` bytes that do not compress in a column that no source needs."""
    rows = []
    for i in range(n):
        score = 2.6 + i % 20 / 10
        where = {"url": f"https://example.org/{i}", "file_path": "s3://x", "dump": "CC-MAIN-2024-10"}
        about = {"language": "en", "language_score": 0.9, "score": score, "int_score": round(score)}
        text = f"{words(rng, 50)} It is of the kind that they have with it."
        rows.append({"text": text, "id": rng.randbytes(junk).hex(), "token_count": len(text) // 4, **where, **about})
    return rows


def arc(n: int, rng: random.Random) -> list[dict[str, Any]]:
    """Questions, some labelled 1 to 4."""
    rows = []
    for i in range(n):
        labels = ["1", "2", "3", "4"] if i % 5 == 0 else ["A", "B", "C", "D", "E"][: 4 + i % 2]
        choices = {"text": [words(rng, 3) for _ in labels], "label": labels}
        rows.append({"id": f"q{i}", "question": words(rng, 12), "choices": choices, "answerKey": labels[i % 4]})
    return rows


def seven(n: int = 60) -> dict[str, Dataset]:
    """The datasets by their names on the hub, `n` rows a file."""
    rng = random.Random(1)
    maths = [{"url": f"https://m.org/{i}", "text": words(rng, 50), "date": i, "metadata": "{}"} for i in range(n)]
    numina = []
    for _ in range(n):
        problem, solution = words(rng, 20), words(rng, 30)
        talk = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
        numina.append({"source": "olympiads", "problem": problem, "solution": solution, "messages": talk})
    asked = [
        {"type": "GSM_AnsAug", "query": words(rng, 20), "original_question": "q", "response": words(rng, 20)}
        for _ in range(n)
    ]
    papers = [
        {
            "text": words(rng, 90),
            "meta": {"timestamp": "", "yymm": "0704", "arxiv_id": f"{i}", "url": f"https://a.org/{i}"},
        }
        for i in range(n)
    ]
    lines = "".join(json.dumps(paper) + "\n" for paper in papers).encode()
    book = {"prompt": "Write.", "seed_data": "s", "format": "textbook", "audience": "all"}
    books = [{**book, "text": words(rng, 60), "text_token_length": 80} for _ in range(n)]
    stories = [{**book, "text": words(rng, 60), "token_length": 80} for _ in range(n)]
    files = {
        "HuggingFaceFW/fineweb-edu": {
            **{f"sample/10BT/{i:03d}_00000.parquet": parquet(FINEWEB, web(rng, 3 * n)) for i in range(3)},
            "data/CC-MAIN-2024-10/train-00000-of-00001.parquet": parquet(FINEWEB, web(rng, n)),
            "README.md": b"# FineWeb-Edu",
        },
        "open-web-math/open-web-math": {"data/train-00000-of-00114-5c8fc1.parquet": parquet(OPEN_WEB_MATH, maths)},
        "AI-MO/NuminaMath-CoT": {
            "data/train-00000-of-00005.parquet": parquet(NUMINA, numina),
            "data/test-00000-of-00001.parquet": parquet(NUMINA, numina[:3]),
        },
        "meta-math/MetaMathQA": {"MetaMathQA-395K.json": json.dumps(asked, indent=4).encode()},
        "EleutherAI/proof-pile-2": {"arxiv/train/arXiv_000.jsonl.zst": zstandard.compress(lines)},
        "HuggingFaceTB/cosmopedia": {"data/stanford/train-00000-of-00013.parquet": parquet(COSMOPEDIA, books)},
        "HuggingFaceTB/smollm-corpus": {"cosmopedia-v2/train-00000-of-00104.parquet": parquet(COSMOPEDIA_V2, stories)},
        "allenai/ai2_arc": {
            f"ARC-{kind}/{split}-00000-of-00001.parquet": parquet(ARC, arc(n, rng))
            for kind in ("Easy", "Challenge")
            for split in ("train", "validation")
        },
    }
    return {name: Dataset(found) for name, found in files.items()}
