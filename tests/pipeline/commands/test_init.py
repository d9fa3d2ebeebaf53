"""`init`: five unlike folders and a dataset of the hub give recipes that `run train` takes unchanged."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from commands import cli, python
from loopback_hub import Dataset, Hub

from stages.proposal.look import look

pytestmark = pytest.mark.slow

PROSE = list(dict.fromkeys(text for topic in topics.values() for text in topic.split("\n\n") if len(text) > 60))
ARTICLES = ["\n\n".join(PROSE[i : i + 2]) for i in range(0, 1200, 2)]
QUESTIONS = [(f"What is said of item {i}, which begins {text.split()[0]}?", text) for i, text in enumerate(PROSE[:700])]


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def texts() -> dict[str, bytes]:
    """Notes in folders, of two endings, and what lies beside them."""
    files = {f"notes/{i}.txt": "\n\n".join(ARTICLES[40 * i : 40 * i + 40]).encode() for i in range(10)}
    files |= {f"notes/more/{i}.md": "\n\n".join(ARTICLES[40 * i : 40 * i + 40]).encode() for i in range(10, 15)}
    return files | {"README.md": b"What this is.", "notes/.hidden": b"\x00", "notes/scan.pdf": b"%PDF-1.7 ..."}


def odd_names() -> dict[str, bytes]:
    """JSON lines, packed, whose text is called what nobody expects; a few have none."""
    rows: list[dict[str, Any]] = [
        {"nr": i, "art": "a", "Titel": text[:30], "Fliesstext": text, "link": f"https://example.org/{i}"}
        for i, text in enumerate(ARTICLES)
    ]
    rows[7]["Fliesstext"] = None
    return {f"part-{i}.jsonl.gz": gzip.compress(lines_of(rows[300 * i : 300 * i + 300])) for i in range(2)}


def hub_layout() -> dict[str, bytes]:
    """Parquet as the hub has it, with a split for evaluation."""
    rows = [
        {"id": str(i), "text": text, "meta": {"url": f"https://example.org/{i}"}} for i, text in enumerate(ARTICLES)
    ]
    files = {f"data/train-0000{i}-of-00002.parquet": parquet_of(rows[250 * i : 250 * i + 250]) for i in range(2)}
    return files | {
        "data/test-00000-of-00001.parquet": parquet_of(rows[500:]),
        "README.md": b"---\nlicense: mit\n---\n",
    }


def mixed() -> dict[str, bytes]:
    """A spreadsheet cut at semicolons, zstd, HTML and an archive side by side."""
    table = io.StringIO()
    writer = csv.writer(table, delimiter=";")
    writer.writerows([["id", "heading", "article"], *([i, text[:20], text] for i, text in enumerate(ARTICLES[:300]))])
    packed = zstandard.compress(lines_of([{"content": text, "score": 1} for text in ARTICLES[300:]]))
    return {
        "sheet.csv": table.getvalue().encode(),
        "crawl.jsonl.zst": packed,
        "page.html": b"<!doctype html><p>Text</p>",
        "old.zip": b"PK\x03\x04....",
    }


def questions() -> dict[str, bytes]:
    """Pairs under names of another language in one array, and questions with choices."""
    pairs = [{"frage": question, "antwort": answer} for question, answer in QUESTIONS]
    asked = [
        {"question": question, "choices": ["yes", "no"], "answer": i % 2}
        for i, (question, _) in enumerate(QUESTIONS[:9])
    ]
    return {"pairs/all.json": json.dumps(pairs, indent=1).encode(), "exam/asked.jsonl": lines_of(asked)}


PAIR = "Question: {frage}\n\nAnswer: {antwort}"
EXPECTED: dict[str, tuple[Any, dict[str, dict[str, Any]], list[str]]] = {
    "texts": (texts, {"notes": {"from": "text", "path": "texts/notes", "document": "paragraph"}}, ["scan.pdf"]),
    "odd_names": (odd_names, {"odd_names": {"from": "jsonl", "path": "odd_names", "text": "Fliesstext"}}, []),
    "hub_layout": (
        hub_layout,
        {"data": {"from": "parquet", "path": "hub_layout/data/train*.parquet", "text": "text"}},
        ["hub_layout/data/test-00000-of-00001.parquet: for evaluation"],
    ),
    "mixed": (
        mixed,
        {
            "mixed": {"from": "jsonl", "path": "mixed", "text": "content"},
            "mixed_2": {"from": "csv", "path": "mixed", "delimiter": ";", "text": "article"},
        },
        ["page.html: is a page of HTML; extract its text first", "old.zip: is a zip archive; unpack it first"],
    ),
    "questions": (
        questions,
        {
            "pairs": {
                "from": "json_array",
                "path": "questions/pairs",
                "template": "Question: {frage}\n\nAnswer: {antwort}",
            }
        },
        [],
    ),
}


SOAK = ("texts", "odd_names", "hub_layout", "mixed")  # a run of each of the five takes a minute and more of a core


def make(folder: str, parent: Path) -> None:
    """Write one of the folders."""
    for name, contents in EXPECTED[folder][0]().items():
        file = parent / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)


@pytest.mark.parametrize("folder", EXPECTED)
def test_what_lies_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    make(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    seen = look(folder, folder)
    keys = [found.keys for found in seen.found if not found.held_out and not found.asks]
    assert sorted(keys, key=str) == sorted(EXPECTED[folder][1].values(), key=str)


@pytest.mark.parametrize(
    "folder", [pytest.param(name, marks=pytest.mark.soak if name in SOAK else ()) for name in EXPECTED]
)
def test_a_folder(tmp_path: Path, folder: str) -> None:
    _, sources, left_out = EXPECTED[folder]
    make(folder, tmp_path)
    done = cli("init", folder, "--minutes", "0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((tmp_path / f"{folder}.yaml").read_text())
    chosen = {name: {key: value for key, value in s.items() if key != "rules"} for name, s in recipe["sources"].items()}
    assert chosen == sources
    assert all(text in done.stdout for text in left_out), done.stdout
    assert recipe.get("evals") == (
        {"exam_questions": {"from": "jsonl", "path": "questions/exam"}} if folder == "questions" else None
    )
    train = ["-m", "pipeline", "run", "train", "--recipe", f"{folder}.yaml"]
    ran = python(train, tmp_path, seconds=600)  # a busy machine takes long to begin
    assert ran.returncode == 0, ran.stderr
    metrics = (tmp_path / f"build/{folder}/train/pretrain/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics]
    assert max(steps) == recipe["train"]["pretrain"]["steps"]


def test_each_line_has_its_reason_and_no_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of([{"text": text} for text in ARTICLES]))
    arguments = ("init", "a.jsonl", "--minutes", "60", "--gpus", "8", "--gpu", "H100 80GB HBM3", "--name", "big")
    assert cli(*arguments, cwd=tmp_path).returncode == 0
    text = (tmp_path / "big.yaml").read_text()
    recipe = yaml.safe_load(text)
    bare = [
        line for line, above in zip(text.splitlines()[1:], text.splitlines(), strict=False) if "#" not in line + above
    ]
    assert {line.strip().partition(":")[0] for line in bare} <= {
        *("", "sources", "mixtures", "pretrain", "train", "dim", "n_layers", "n_heads", "mlp_hidden", "seq_len")
    }, "a group, or a number that the reason of its group is about"
    assert recipe["ranks"] == 8 and recipe["train"]["pretrain"]["batch_size"] % 8 == 0
    assert "the text allows no more" in text or "the text gives" in text
    again = cli(*arguments, cwd=tmp_path)
    assert again.returncode == 2 and "big.yaml is there" in again.stderr
    assert (tmp_path / "big.yaml").read_text() == text
    assert cli(*arguments, "--force", cwd=tmp_path).returncode == 0


def test_a_recipe_elsewhere_of_a_folder_that_holds_results(tmp_path: Path) -> None:
    """Paths are meant from the recipe's file, and a build is no source."""
    for folder in ("here", "here/build/store/filter"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_bytes(lines_of([{"text": text} for text in ARTICLES]))
    (tmp_path / "recipes").mkdir()
    done = cli("init", ".", "--file", "../recipes/mine.yaml", "--minutes", "2", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((tmp_path / "recipes/mine.yaml").read_text())
    assert [source["path"] for source in recipe["sources"].values()] == ["../here/a.jsonl"]
    assert cli("plan", "train", "--recipe", "recipes/mine.yaml", cwd=tmp_path).returncode == 0


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    books = ["\n\n".join(PROSE[200 * i : 200 * i + 200]) for i in range(6)]
    (tmp_path / "few.jsonl").write_bytes(lines_of([{"text": book} for book in books]))
    (tmp_path / "short.jsonl").write_bytes(lines_of([{"text": text} for text in ARTICLES[:6]]))
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    assert "no files match" in cli("init", "nowhere", cwd=tmp_path).stderr
    numbers = cli("init", "numbers.csv", cwd=tmp_path)
    assert numbers.returncode == 1 and "none of its fields is running text (a, b)" in numbers.stderr
    assert "tokens of text are too little" in cli("init", "short.jsonl", cwd=tmp_path).stderr
    few = cli("init", "few.jsonl", "--minutes", "2", cwd=tmp_path)
    assert few.returncode == 1 and "held out" in few.stderr, few.stderr


def test_a_dataset_of_the_hub(tmp_path: Path) -> None:
    with Hub({"owner/name": Dataset(hub_layout())}) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "hf")}
        done = cli("init", "owner/name", "--minutes", "2", cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        recipe = yaml.safe_load((tmp_path / "name.yaml").read_text())
        assert recipe["sources"]["data"]["path"] == "hf://datasets/owner/name/data/train*.parquet"
        ran = cli("run", "pack_pretrain", "--recipe", "name.yaml", cwd=tmp_path, **environment)
        assert ran.returncode == 0, ran.stderr
