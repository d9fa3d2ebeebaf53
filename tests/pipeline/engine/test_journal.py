"""What befell runs on a cluster is kept as it happens, and `status` tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import S3Server

from pipeline.commands.report import TextConsole
from pipeline.commands.status import print_events
from pipeline.engine.journal import NEWEST, Journal, forget_old_events, read_run_events
from pipeline.engine.store import EVENTS, Store, open_store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on a disk, and one in a bucket."""
    if request.param == "folder":
        return open_store(str(tmp_path / "out"))
    s3: S3Server = request.getfixturevalue("s3")
    return open_store(f"{s3.new_bucket()}/out")


def test_events_are_kept_of_runs_that_had_any(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """One that said no end, and is not at work, was killed."""
    Journal(store, "run quiet").close("ended")
    killed = Journal(store, "run a")
    killed.note("gone: vm/1")
    killed._writer.shutdown()  # as the kernel would, later
    whole = Journal(store, "run b")
    whole.note("new: vm/2")
    whole.close("ended")
    runs = read_run_events(store)
    assert [[what for _, what in run.events] for run in runs] == [["gone: vm/1"], ["new: vm/2", "ended"]]
    assert [run.ended for run in runs] == [False, True]
    assert list(store.units()) == [], "events are no unit"
    running = {"pid": runs[0].pid, "command": "run a"}
    print_events(TextConsole(), store, [running])  # type: ignore[list-item]
    assert "killed" not in capsys.readouterr().out
    print_events(TextConsole(), store, [])
    said = capsys.readouterr().out
    assert said.index("gone: vm/1") < said.index("was killed: run a") < said.index("new: vm/2") < said.index(" ended")


def test_a_damaged_file_is_left_out_and_old_ones_are_forgotten(store: Store) -> None:
    for number in range(NEWEST + 3):
        journal = Journal(store, f"run {number}")
        journal.note("gone")
        journal.close("ended")
    forget_old_events(store)
    names = sorted(store.names(f"{store.root}/{EVENTS}"))
    assert [run.command for run in read_run_events(store)] == [f"run {n}" for n in range(3, NEWEST + 3)]
    store.write(f"{store.root}/{EVENTS}/{names[-1]}", '{"pid": 1}')
    store.write(f"{store.root}/{EVENTS}/{names[-2]}", "[")
    assert [run.command for run in read_run_events(store)] == [f"run {n}" for n in range(3, NEWEST + 1)]
