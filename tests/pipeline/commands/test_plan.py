"""`plan`: what it predicts is near what the run then counts, it is bounded in time, and it leaves nothing behind."""

import re
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_harness import REPO, Work

from pipeline.commands.plan_rows import about, loader_note, time_line
from pipeline.recipe import load_recipe
from stages.errors import DataError
from stages.estimate.deadline import call_all
from stages.estimate.forecast import Forecast, Survey

SHARED = REPO / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: the shared test data is not here")


def listing(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


def table(text: str, title: str) -> dict[str, list[str]]:
    """The cells of each row of a printed table, by its first cell."""
    lines = text.split(f"\n{title}")[1].split("\n\n")[0].splitlines()[2:]
    rows = (re.split(r"\s{2,}", line.strip()) for line in lines)
    return {cells[0]: cells[1:] for cells in rows if len(cells) > 3}


def test_what_hangs_is_left_behind() -> None:
    stuck = threading.Event()
    started = time.monotonic()
    found = call_all({"quick": lambda: 3, "stuck": stuck.wait, "wrong": lambda: 1 / 0}, 0.3)
    assert time.monotonic() - started < 5
    assert found["quick"].result() == 3
    assert isinstance(found["wrong"].exception(), ZeroDivisionError)
    with pytest.raises(DataError, match="no answer within 0 s; check the network"):
        found["stuck"].result()
    stuck.set()


@pytest.mark.parametrize(
    ("n", "said"), [(0, "~0"), (999, "~999"), (1234, "~1.23 k"), (999_999, "~1 M"), (2.5e9, "~2.5 G"), (3e12, "~3 T")]
)
def test_predictions_have_three_digits(n: float, said: str) -> None:
    assert about(n) == said


def test_a_shard_too_short_for_the_loader_of_llm_c_is_told() -> None:
    recipe = load_recipe("quickstart")
    assert loader_note(recipe, "pretrain") == []
    short = load_recipe("quickstart", ["mixtures.pretrain.tokens=2048"])
    assert "8 x 256 + 1 = 2,049 must fit" in loader_note(short, "pretrain")[0]
    assert loader_note(load_recipe("quickstart", ["mixtures.pretrain.tokens=2049"]), "pretrain") == []
    more = load_recipe("quickstart", ["mixtures.pretrain.tokens=2049", "ranks=2", "train.pretrain.micro_batch=8"])
    assert "2 x 8 x 256 + 1 = 4,097" in loader_note(more, "pretrain")[0]


@pytest.mark.slow
def test_time_is_told_only_at_the_rate_of_what_is_cached() -> None:
    survey = Survey(forecasts={"a": Forecast(documents=1, text=4000.0, kept_text=300.0, tokens=10)})
    rates = [9.0, 0.02, 0.02, 0.02]  # seconds a byte; the first unit compiled
    partly = SimpleNamespace(reasons=Counter(new=1), units=range(4), text_rates=rates)
    new = SimpleNamespace(reasons=Counter(new=4), units=range(4), text_rates=[])
    done = SimpleNamespace(reasons=Counter(), units=range(4), text_rates=rates)
    context = SimpleNamespace(states={"download": partly, "filter": new, "dedup": done})
    assert time_line(context, survey) == "Time on one worker, at the rate of what is cached: download 20 s"
    assert time_line(SimpleNamespace(states={"filter": new, "dedup": done}), survey) == ""
    partly.text_rates = rates[:2]
    assert time_line(context, survey) == ""  # one of two may be compilation


@needs_shared
def test_a_prediction_is_near_what_the_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    work = Work(tmp_path)
    books = {"from": "parquet", "path": f"{SHARED}/web/textbooks*.parquet", "rules": ["gopher_quality"]}
    sources = {
        "books": books | {"words": "blanks"},  # counted otherwise, formulas and code leave little of it
        "arc": {"from": "ai2_arc", "path": f"{SHARED}/qa/ai2_arc/*/train*.parquet"},
    }
    ratios = {"books": 0.8, "arc": 0.2}
    mixtures = {
        "pretrain": {"tokens": 300_000, "ratios": ratios, "max_epochs": 4},
        "anneal": {"tokens": 50_000, "temperature": 3, "seen": {"books": "exclude"}},
    }
    recipe = work.write(
        sources=sources, mixtures=mixtures, tokenizer={"vocab_size": 2048, "sample": "3MB"}, dedup={"exact": True}
    )
    before = listing(tmp_path)
    planned = work.cli("plan", "pack_anneal_mix")
    assert planned.returncode == 0, planned.stderr
    assert [p for p in listing(tmp_path) if p not in before and Path(p).name not in ("stdout", "stderr")] == []
    guess = table(planned.stdout, "Sources")
    work.run("tokenize", "--executor", "local")
    counted = work.cli("plan", "pack_anneal_mix").stdout
    exact = table(counted, "Sources")
    scale = {"": 1, "k": 1e3, "M": 1e6}
    for name in recipe["sources"]:
        found = re.fullmatch(r"~([\d.]+) ?([kM]?) ± (\d+)%", guess[name][6])
        assert found, guess[name]
        tokens = float(found[1]) * scale[found[2]]
        true = int(exact[name][6].replace(",", ""))
        assert abs(tokens / true - 1) <= 1.5 * int(found[3]) / 100 + 0.02, (name, tokens, true)
    assert "fits" in counted and "exclude" in counted
    assert listing(scratch) == []


@pytest.mark.slow
def test_a_recipe_with_an_unreachable_source_is_planned_as_far_as_can_be(work: Work) -> None:
    recipe = work.write()
    recipe["sources"]["maths"]["path"] = str(work.folder / "nowhere/*.jsonl")
    work.write(sources=recipe["sources"])
    done = work.cli("plan", "pack_pretrain")
    assert done.returncode == 1, done.stderr
    assert "maths: no files match" in done.stderr and "no files match" not in done.stdout
    assert table(done.stdout, "Sources")["web"][6].startswith("~")
    assert "cannot be solved yet: nothing is known of maths" in done.stdout
