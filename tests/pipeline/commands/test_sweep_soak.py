"""A sweep over four sources of real text and one of shuffled words: killed twice, compared, and one source changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from commands import REPO, cli
from stage_harness import SHARED, needs_shared

pytestmark = [needs_shared, pytest.mark.slow, pytest.mark.soak]

WAIT = 3600  # seconds for one run of the command, on a machine that serves others too
REAL = ("proofs", "sums", "pages", "books")
RECIPE = {
    "name": "five",
    "sources": {
        "proofs": {"from": "parquet", "path": f"{SHARED}/math/openwebmath_schema_planetmath.parquet"},
        "sums": {"from": "jsonl", "path": "sums", "template": "Question: {question}\nAnswer: {answer}"},
        "pages": {"from": "parquet", "path": f"{SHARED}/web/mdn_archived.parquet"},
        "books": {"from": "parquet", "path": f"{SHARED}/web/classic_books_00000.parquet"},
        "bad": {"from": "jsonl", "path": "bad.jsonl"},
    },
    "tokenizer": {"vocab_size": 1024, "sample": "4MB"},
    "mixtures": {
        "pretrain": {"tokens": 8_000_000, "ratios": dict.fromkeys([*REAL, "bad"], 0.2), "max_epochs": 4},
    },
    "model": {"dim": 256, "n_layers": 6, "n_heads": 8, "max_seq_len": 128, "sliding_window": 64},
    "train": {
        "pretrain": {
            **{"steps": 3900, "batch_size": 16, "seq_len": 128, "schedule": {"warmup": 10}},
            **{"muon": {"lr": 0.01}, "adamw": {"lr": 0.01}, "log_every": 50},
        }
    },
}
SWEEP = {
    **{"name": "mix", "recipe": "five.yaml", "points": 15, "held_out": "20k", "weights": dict.fromkeys(REAL, 1)},
    "confirm": {"seeds": 3},
    "proxy": {
        **{"model.dim": 64, "model.n_layers": 2, "model.n_heads": 2, "train.pretrain.steps": 80},
        "train.pretrain.batch_size": 8,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = Path(os.environ.get("SWEEP_SOAK") or tmp_path_factory.mktemp("sweep"))
    (home / "sums").mkdir(exist_ok=True)
    shutil.copy(SHARED / "qa/gsm8k/train.jsonl.zst", home / "sums")
    rng, lines = random.Random(0), []
    for text in pq.read_table(SHARED / "web/python311_docs.parquet", columns=["text"])["text"].to_pylist():
        words = text.split()
        rng.shuffle(words)
        pieces = [words[start : start + 400] for start in range(0, len(words), 400)]
        lines += [json.dumps({"text": " ".join(piece)}) for piece in pieces]
    (home / "bad.jsonl").write_text("\n".join(lines))
    (home / "five.yaml").write_text(yaml.safe_dump(RECIPE))
    (home / "mix.yaml").write_text(yaml.safe_dump(SWEEP))
    return home


def notes(folder: Path) -> dict:
    file = folder / "build/mix/sweep/notes.json"
    return json.loads(file.read_text()) if file.exists() else {"runs": {}}


def sweep(folder: Path, until: int | None = None) -> None:
    """Run the sweep, to its end or until so many runs are done, when it is killed and nothing can tidy up."""
    command = [sys.executable, "-m", "pipeline", "sweep", str(folder / "mix.yaml"), "--out", str(folder / "build")]
    end = time.monotonic() + WAIT
    with (folder / "said.txt").open("a") as said:
        process = subprocess.Popen(command, cwd=REPO, stdout=said, stderr=said, start_new_session=True)
    try:
        while process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.5)
            if until is not None and len(notes(folder)["runs"]) >= until:
                time.sleep(5)  # into the next run
                break
    finally:
        killed = process.poll() is None
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert killed if until is not None else process.returncode == 0, (folder / "said.txt").read_text()[-3000:]


def runs(folder: Path) -> dict[str, str]:
    """Name of a recipe -> the folder of the run that stands for it, which has its key."""
    return {
        link.parents[1].name: str(link.resolve()) for link in folder.glob("build/mix-*/train/pretrain") if link.exists()
    }


def records(folder: Path) -> dict[str, int]:
    """Records of finished units of training and scoring, and when each was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("build/store/train/*/*/record.json")}


def differences(result: dict, which: str) -> Iterator[str]:
    for row in result[which]["rows"]:
        said = row["recipes"]
        yield f"{which} {row['name']}: {said['value']:+.4f} [{said['low']:+.4f}, {said['high']:+.4f}]"


def test_junk_gets_nothing_kills_cost_nothing_and_a_changed_source_costs_its_own_runs(folder):
    sweep(folder, until=3)
    before = records(folder)
    sweep(folder, until=9)
    between = records(folder)
    sweep(folder)
    after = records(folder)
    assert len(before) >= 6 and before.items() <= between.items() <= after.items(), "no finished unit ran again"
    result = json.loads((folder / "build/mix/sweep/result.json").read_text())
    print(*result["verdict"], *differences(result, "confirmed"), sep="\n")
    assert result["fit"]["best"]["shares"].get("bad", 0) <= 0.02 and "bad" in result["left_out"]
    if result["beyond_leaving_out"]:
        print(*differences(result, "beyond_leaving_out"), sep="\n")
    else:
        assert "all of the difference is that" in result["verdict"][-1]
    assert not result["is_the_base"] and "bad" not in result["next"]["shares"]
    planned = cli(
        "plan", "train", "--recipe", str(folder / "build/mix/sweep/next.yaml"), "--out", str(folder / "build")
    )
    assert planned.returncode == 0, planned.stdout + planned.stderr

    old = runs(folder)
    shares = {row["run"]: row["share.bad"] for row in result["trials"]}
    rng = random.Random(1)
    more = [" ".join(rng.choices(["all", "of", "this", "is", "new", "and", "bad"], k=200)) for _ in range(300)]
    with (folder / "bad.jsonl").open("a") as file:
        file.writelines(f"\n{json.dumps({'text': text})}" for text in more)
    built = cli(
        "run", "tokenize", "--recipe", str(folder / "build/mix/sweep/base.yaml"), "--out", str(folder / "build")
    )
    assert built.returncode == 0, built.stderr
    planned = cli("sweep", str(folder / "mix.yaml"), "--out", str(folder / "build"), "--dry-run")
    with_it = {name for name, share in shares.items() if share}
    kept = len(shares) - len(with_it)
    said = f"{len(shares)} runs: {kept} kept, 0 to be scored again, {len(with_it)} to train"
    assert said in planned.stdout and f"{len(with_it)}: bad changed" in planned.stdout, planned.stdout + planned.stderr
    sweep(folder)
    new = runs(folder)
    assert {name for name in shares if new[name] != old[name]} == with_it and 3 <= len(with_it) < len(shares) - 3
    assert records(folder).items() >= after.items(), "nor did any that is kept"
