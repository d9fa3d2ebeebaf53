"""The engine: the same bytes everywhere, a cached run that touches nothing, no barriers, a bounded window."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Work, copy_project, edit, new_work, small_recipe
from rich.console import Console

from pipeline.engine.context import Context, drive
from pipeline.engine.executor import WorkerLost
from pipeline.engine.progress import ECHO, Progress, Row
from pipeline.engine.store import open_store
from pipeline.engine.window import WINDOW
from pipeline.errors import Stopped, UnitFailed
from pipeline.recipe import parse_recipe
from stages.filter import work as apply_rules
from stages.registry import STAGES
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_ray_gives_the_same_bytes(reference: Work, tmp_path: Path, workers: int) -> None:
    work = new_work(tmp_path, corpus=reference.corpus)
    done = work.run("pack_anneal_mix", "--executor", "ray", "--workers", str(workers))
    assert f"executor ray, {workers} slots" in done.stderr
    work.run("pack_pretrain")  # from what Ray made; by Ray it is packed where `test_kill` kills the driver
    results = work.results()
    assert results == reference.results()
    shards = [name for name in results if name.endswith(".bin") and "val_ids" not in name]
    assert len(shards) == 5 + 4 + 2 + 4  # training, and held out: of three sources and of all
    assert sum("('docs'" in name for name in results) == 3 * 3  # dedup, tokenize, held out


@pytest.mark.slow
def test_a_cached_run_starts_nothing_and_touches_nothing(reference: Work) -> None:
    before = reference.snapshot()
    began = time.monotonic()
    done = reference.run("pack_pretrain", "--executor", "ray", PYTHONPROFILEIMPORTTIME="1")
    seconds = time.monotonic() - began
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "pipeline.executors.choose" in imported
    assert imported.isdisjoint({"ray", "torch", "datasets", "pandas.core"})
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert not any("executor" in line for line in said)
    assert "56 units, 56 cached" in done.stderr
    assert reference.snapshot() == before
    assert seconds < 10


@pytest.mark.slow
def test_plan_writes_nothing(work: Work, reference: Work) -> None:
    assert work.cli("plan", "pack_pretrain").returncode == 0
    assert not work.out.exists()
    before = reference.snapshot()
    assert reference.cli("plan", "pack_anneal_mix", "--set", "tokenizer.vocab_size=500").returncode == 0
    assert reference.snapshot() == before


@pytest.mark.slow
def test_verify_and_inspect_accept_what_was_built(reference: Work) -> None:
    manifest = str(reference.out / "small/anneal/manifest.json")
    done = reference.cli("verify", manifest)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20,000 training" in done.stdout
    assert reference.cli("inspect", manifest).returncode == 0


@pytest.mark.slow
def test_a_slow_source_holds_up_no_other(tmp_path: Path) -> None:
    work = new_work(tmp_path, copy_project(tmp_path))
    slow = '    if task.params["files"] == ["n.jsonl"]:\n        __import__("time").sleep(6)\n'
    edit(
        work.root / "stages/sources/jsonl.py",
        "    write_parts(task, rows(task))",
        slow + "    write_parts(task, rows(task))",
    )
    work.run("dedup", "--workers", "2")
    records = {(r["stage"], r["label"]): r for r in work.records().values()}
    slow_download = records["download", "notes n.jsonl"]
    filtered = [
        r
        for (stage, label), r in records.items()
        if stage == "filter" and "part-" in label and not label.startswith("notes")
    ]
    assert len(filtered) == 2
    assert all(r["finished"] < slow_download["finished"] for r in filtered)
    assert all(r["started"] >= slow_download["finished"] for (s, _), r in records.items() if s == "dedup")


class Stub:
    """An executor that makes records out of nothing and notes how many units it holds."""

    name = "stub"
    slots = 4

    def __init__(self, replies: list[Any] | None = None) -> None:
        self.flying = self.most = self.ran = 0
        self.replies = replies or []

    async def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0)
        self.flying -= 1
        self.ran += 1
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, dict):
            return {"error": {"trace": "", **reply}}
        record = Record(spec["key"], spec["stage"], spec["label"], [], [], {"kept": 1}, 0, 0, {}, 0, 0, "a")
        return {"record": record.to_dict()}

    def close(self) -> None:
        self.flying = 0


def context_of(tmp_path: Path, stub: Stub, **keys: Any) -> Context:
    """A Context that runs on `stub`."""
    recipe = parse_recipe({**small_recipe(tmp_path), **keys}, "here")
    return Context(recipe, open_store(str(tmp_path / "out")), lambda: stub, Progress(quiet=True))  # type: ignore[arg-type,return-value]


async def one(context: Context, i: int, stage: str = "filter") -> Record:
    """Run the i-th made-up unit."""
    unit = Unit(apply_rules.work, {"rules": []}, [Artifact("x", str(i))], f"unit {i}", "web")
    return await context.run(STAGES[stage], unit)


@pytest.mark.slow
def test_five_thousand_units_stay_within_the_window(tmp_path: Path) -> None:
    stub = Stub()
    context = context_of(tmp_path, stub)
    ahead = 0

    def units() -> Iterator[Any]:
        nonlocal ahead
        for i in range(5000):
            ahead = max(ahead, i - stub.ran)
            yield one(context, i)

    began = time.monotonic()
    records = drive(context, context.gather(units()))
    assert time.monotonic() - began < 30
    assert [r.label for r in records] == [f"web unit {i}" for i in range(5000)]
    assert (stub.ran, stub.most) == (5000, 4)
    assert 4 < ahead <= WINDOW
    assert context.counts(STAGES["filter"], "web") == {"kept": 5000}


def test_the_window_holds_all_slots_of_a_large_cluster(tmp_path: Path) -> None:
    stub = Stub()
    stub.slots = 1000
    context = context_of(tmp_path, stub)
    drive(context, context.gather(one(context, i) for i in range(3000)))
    assert (stub.ran, stub.most) == (3000, 1000)


def test_the_same_unit_asked_for_twice_runs_once(tmp_path: Path) -> None:
    stub = Stub()
    context = context_of(tmp_path, stub)
    first, second = drive(context, context.gather([one(context, 1), one(context, 1)]))
    assert first == second
    assert stub.ran == 1


def test_transient_errors_and_lost_workers_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.dispatch.random.random", lambda: -0.5)  # no pause
    busy = {"kind": "transient", "message": "429"}
    stub = Stub([busy, WorkerLost("killed"), busy, WorkerLost("killed")])
    context = context_of(tmp_path, stub)
    assert drive(context, one(context, 1)).label == "web unit 1"
    assert stub.ran == 5


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.dispatch.random.random", lambda: -0.5)
    context = context_of(tmp_path, Stub([{"kind": "transient", "message": "429"}] * 9))
    with pytest.raises(UnitFailed, match="filter web unit 1: 429"):
        drive(context, one(context, 1))
    stub = Stub([WorkerLost("killed")] * 9)
    context = context_of(tmp_path, stub)
    with pytest.raises(UnitFailed, match=r"its worker died 4 times; last: killed"):
        drive(context, one(context, 2))
    assert stub.ran == 4


def test_one_bad_unit_does_not_stop_the_others(tmp_path: Path) -> None:
    stub = Stub([{"kind": "permanent", "message": "bad"}])
    context = context_of(tmp_path, stub)
    with pytest.raises(UnitFailed, match="filter web unit 0: bad"):
        drive(context, context.gather([one(context, i) for i in range(50)]))
    assert stub.ran == 50
    assert context.state("filter").done == 49


def test_a_full_disk_stops_at_once(tmp_path: Path) -> None:
    stub = Stub([{"kind": "fatal", "message": "no space left"}])
    context = context_of(tmp_path, stub)
    with pytest.raises(UnitFailed, match="no space left"):
        drive(context, context.gather(one(context, i) for i in range(500)))
    assert stub.ran <= stub.slots


def test_a_tolerated_file_is_left_out_and_one_more_is_not(tmp_path: Path) -> None:
    bad = {"kind": "permanent", "message": "cut off"}
    for lost, files, fails in ((1, 1, False), (2, 1, True), (1, 0, True)):
        context = context_of(tmp_path, Stub([bad] * lost), quarantine={"files": files})
        job = context.gather([one(context, i, "download") for i in range(5)])
        if fails:
            with pytest.raises(UnitFailed, match="cut off"):
                drive(context, job)
        else:
            assert len(drive(context, job)) == 4


def test_what_is_tolerated_is_left_out_in_order_and_only_of_stages_that_may_lose_units(tmp_path: Path) -> None:
    bad = {"kind": "permanent", "message": "cut off"}
    context = context_of(tmp_path, Stub([bad]), quarantine={"files": 1})
    records = drive(context, context.gather(one(context, i, "download") for i in range(4)))
    assert [record.label for record in records] == ["web unit 1", "web unit 2", "web unit 3"]
    assert (context.lost_files("web"), context.lost_files("maths")) == (1, 0)
    context = context_of(tmp_path, Stub([bad]), quarantine={"files": 1})
    with pytest.raises(UnitFailed, match="filter web unit 9: cut off"):
        drive(context, context.gather([one(context, 9)]))


def test_a_stage_may_ask_only_for_stages_before_it(tmp_path: Path) -> None:
    async def build_first(context: BuildContext) -> int:
        return 1

    async def build_second(context: BuildContext) -> list[int]:
        return await context.gather([context.stage(first), context.stage(first)])

    async def build_third(context: BuildContext) -> list[int]:
        await context.stage(second)
        return await context.gather([context.stage(first)])

    first = Stage("first", "", "", build_first)
    second = Stage("second", "", "", build_second, after=(first,))
    third = Stage("third", "", "", build_third, after=(second,))
    context = context_of(tmp_path, Stub())
    assert drive(context, context.stage(second)) == [1, 1]
    assert (context.built(first), context.built(third)) == (1, None)
    context = context_of(tmp_path, Stub())
    with pytest.raises(AssertionError, match="third asks for first"):
        drive(context, context.stage(third))
    assert context.built(second) == [1, 1]


def test_after_a_signal_no_unit_starts(tmp_path: Path) -> None:
    stub = Stub()
    context = context_of(tmp_path, stub)

    async def units() -> None:
        await one(context, 1)
        context.dispatcher.signals.received = True
        await one(context, 2)

    with pytest.raises(Stopped, match="a signal came before filter web unit 2"):
        drive(context, units())
    assert stub.ran == 1


def test_a_store_that_cannot_be_locked_starts_no_executor(tmp_path: Path) -> None:
    started = []
    context = context_of(tmp_path, Stub())
    context.dispatcher._make_executor = lambda: started.append(1)  # type: ignore[assignment,return-value,func-returns-value]
    (tmp_path / "out/store").mkdir(parents=True)
    (tmp_path / "out/store/running").write_text("in the way")
    with pytest.raises(FileExistsError):
        drive(context, one(context, 1))
    assert not started and not context.dispatcher.started


def test_the_rate_of_a_stage_is_that_of_the_time_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipeline.engine.progress.time.monotonic", lambda: now[0])
    row = Row(known=3)
    row.start("a")
    now[0] = 110.0
    assert row.elapsed() == 10 and row.seconds_left() is None
    row.end("a")
    row.done = 1
    now[0] = 500.0
    assert row.elapsed() == 10 and row.seconds_left() == 20
    row.start("b")
    row.start("c")
    now[0] = 505.0
    assert row.elapsed() == 15 and row.seconds_left() == 15  # it does not grow while units run
    row.end("b")
    now[0] = 507.0
    row.end("c")
    now[0] = 900.0
    assert row.elapsed() == 17


@pytest.mark.parametrize("width", [80, 100, 120])
def test_labels_in_the_live_display_are_text(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup is shown as it is, controls are written out, and a `^C` has place behind the last line."""
    progress = Progress(plain=True)
    progress.console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    labels = {"filter": "web data [final].jsonl [/] [red]", "train": "web \x1b[2J\u202e[bold"}
    for stage, label in labels.items():
        progress.planned(stage, label, 1)
        progress.started(stage, label)
    progress.row("filter").per_source["w[/]" + "b" * 30] = 123456
    with progress.console.capture() as shown:
        progress.console.print(progress._table(progress.rows))
    lines = shown.get().rstrip("\n").splitlines()
    words = "".join(shown.get().split())
    assert "\x1b" not in shown.get() and "\u202e" not in shown.get()
    assert all(text in words for text in ("[final].jsonl", "[/]", "[red]", "\\x1b[2J\\u202e[bold", "w[/]"))
    assert max(map(len, lines)) <= width - ECHO


def test_a_line_is_whole_and_leaves_the_live_display_as_it_is() -> None:
    progress = Progress(plain=False)
    out = io.StringIO()
    progress.console = Console(file=out, force_terminal=True, width=60, color_system=None)
    for i in range(9):
        progress.row("filter").per_source[f"source_{i}"] = 1000
    progress.planned("filter", "web", 1)
    progress.started("filter", "web")
    command = "python -m pipeline quarantined --recipe " + "/".join(["folder"] * 20) + " --out 'a [b]'"
    before = len(out.getvalue())
    progress.line(command)
    printed = out.getvalue()[before:]
    progress.close(1.0)
    assert command + "\n" in printed
    assert max(map(len, printed.split(command)[1].splitlines())) <= 60


def test_a_plain_line_says_once_that_a_stage_has_ended() -> None:
    """Units of some stages are known one after another: each was the last one for a moment."""
    progress = Progress(plain=True)
    progress.console = Console(file=io.StringIO(), width=200)

    def run(stage: str, label: str) -> None:
        progress.planned(stage, label, 1)
        progress.started(stage, label)
        progress.finished(stage, Record("k", stage, label, [], [], {"kept": 1}, 0, 0, {}, 0, 0, "a"), 1)

    with progress.console.capture() as shown:
        for i in range(5):
            run("dedup", f"web {i}")
        run("pack_pretrain", "web")
        progress.line("step 1")
        run("tokenize", "web")
        progress.close(1.0)
    lines = shown.get().splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["dedup", "5/5"], ["pack_pretrain", "1/1"]]
    assert lines[2] == "step 1" and lines[3].split()[:2] == ["tokenize", "1/1"] and lines[4].startswith("7 units")
    assert len(lines) == 5
