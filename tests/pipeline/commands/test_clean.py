"""`clean` deletes nothing before it is certain what results refer to."""

from __future__ import annotations

import json
import shlex
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.commands.clean import clean_store
from pipeline.engine import leases
from pipeline.engine.locks import active_runs, store_lock
from pipeline.engine.store import Store, open_store
from pipeline.errors import UserError

USED, UNUSED, RUN = "aa" * 20, "bb" * 20, "cc" * 20
DIGESTS = "00" * 24  # what a row of units/<stage>.json has behind the key


def unit(store: Store, stage: str, key: str) -> Path:
    """Return a file of 3 MB in a unit that has no record."""
    file = Path(store.folder(stage, key)) / "a1.docs.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(3_000_000))
    return file


@pytest.fixture(params=["plain", "m [1]", "[ab]*?", "exp::a"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    """A store with a unit that is used, one that is not, and a training run that a link leads to."""
    made = open_store(str(tmp_path / request.param))
    for key in (USED, UNUSED):
        unit(made, "filter", key)
    unit(made, "train", RUN)
    made.write_state("small", "units/filter.json", {"sets": {}, "units": {"web a": USED + DIGESTS}, "failed": {}})
    link = Path(made.out) / "small/train/pretrain"
    link.parent.mkdir()
    link.symlink_to(made.folder("train", RUN))
    return made


def units(store: Store) -> set[str]:
    return {key for _, key, _ in store.units()}


def test_what_is_used_stays_and_sizes_are_said(store, capsys):
    clean_store(store, dry_run=True, force=True)
    shown = capsys.readouterr().out
    assert f"would delete {store.folder('filter', UNUSED)} (3.0 MB)\nwould free 3.0 MB\n" == shown
    assert units(store) == {USED, UNUSED, RUN}
    clean_store(store, dry_run=False, force=True)
    assert units(store) == {USED, RUN}, "a run that a link leads to stays, even with --force"


@pytest.mark.parametrize("damage", ["", "garbage", "{}", "[]", '{"units": {"web a": "xyz"}}', '{"units": 5}'])
def test_references_that_cannot_be_read_stop_it(store, damage):
    (Path(store.out) / "small/units/filter.json").write_text(damage)
    for force in (False, True):
        with pytest.raises(UserError, match=r"nothing deleted: .*filter\.json cannot be read .*3 units .*\(9\.0 MB\)"):
            clean_store(store, dry_run=False, force=force)
    assert units(store) == {USED, UNUSED, RUN}


def test_a_folder_of_results_that_names_no_units_stops_it(store):
    (Path(store.out) / "other/builds/pretrain-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other has builds, and no units/\*\.json"):
        clean_store(store, dry_run=False, force=True)


def test_no_references_at_all_are_not_taken_for_none(store):
    (Path(store.out) / "small/units/filter.json").unlink()
    with pytest.raises(UserError, match=r"has no <recipe>/units/\*\.json that names the units in use"):
        clean_store(store, dry_run=False, force=True)
    assert units(store) == {USED, UNUSED, RUN}


def test_a_stage_that_no_result_names_stays_without_force(store, capsys):
    file = unit(store, "dedup", "dd" * 20)
    clean_store(store, dry_run=False, force=False)
    assert "kept: 1 units of dedup (3.0 MB)" in capsys.readouterr().out
    assert file.exists()
    clean_store(store, dry_run=False, force=True)
    assert not file.exists()


def test_an_empty_store_has_nothing_to_clean_and_a_wrong_folder_is_left_alone(tmp_path, capsys):
    with pytest.raises(UserError, match="there is no store"):
        clean_store(open_store(str(tmp_path / "new")), dry_run=False, force=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "new/store").mkdir(parents=True)
    clean_store(open_store(str(tmp_path / "new")), dry_run=False, force=False)
    assert capsys.readouterr().out == "freed 0.0 MB\n"


@pytest.mark.parametrize("name", ["out", "m [1]", "[ab]*"])
def test_a_store_in_a_bucket_is_cleaned_alike(name, s3, monkeypatch, capsys):
    bucket = s3.new_bucket()
    made, neighbor = open_store(f"{bucket}/clean/{name}"), open_store(f"{bucket}/clean/m 1")
    neighbor.write(f"{neighbor.folder('filter', UNUSED)}/a1.docs.parquet", "x")
    for key in (USED, UNUSED):
        made.write(f"{made.folder('filter', key)}/a1.docs.parquet", "x" * 1000)
    with pytest.raises(UserError, match="nothing deleted"):
        clean_store(made, dry_run=False, force=False)
    made.write(f"{made.out}/small/units/filter.json", json.dumps({"units": {"web a": USED + DIGESTS}}))
    clean_store(made, dry_run=False, force=False)
    assert "kept: 1 units, builds or files not 1:00:00 old" in capsys.readouterr().out
    assert units(made) == {USED, UNUSED}, "what is young may still be in the making"
    monkeypatch.setattr("pipeline.commands.clean.YOUNG", timedelta(seconds=-1))
    clean_store(made, dry_run=True, force=False)
    assert units(made) == {USED, UNUSED}
    clean_store(made, dry_run=False, force=False)
    assert units(made) == {USED}
    assert units(neighbor) == {UNUSED}
    assert not list(made.bucket.objects(f"{made.root}/running")), "no lease is left"


@pytest.mark.parametrize("conditions", [True, False])
def test_in_a_bucket_runs_go_together_and_clean_goes_alone(s3, conditions, monkeypatch):
    store = open_store(f"{s3.new_bucket()}/out")
    s3.ignores_conditions = not conditions
    store.write(f"{store.out}/small/units/filter.json", json.dumps({"units": {}}))
    with store_lock(store) as held:
        assert held()
        with pytest.raises(UserError, match=r"process \d+ on .* is running `.*` here; clean when it has ended"):
            clean_store(store, dry_run=False, force=True)
        if conditions:
            with store_lock(store):
                assert len(active_runs(store)) == 2
        else:
            with pytest.raises(UserError, match=r"ignores conditional writes .* one run at a time"), store_lock(store):
                pass
        assert len(active_runs(store)) == 1
    assert active_runs(store) == []
    clean_store(store, dry_run=False, force=True)
    # One that was killed no longer counts once it was not renewed for long enough.
    store.write(f"{store.root}/running/run-dead.json", json.dumps({"pid": 1, "host": "x", "command": "run"}))
    with pytest.raises(UserError, match="process 1 on x is running"):
        clean_store(store, dry_run=False, force=True)
    monkeypatch.setattr(leases, "ALIVE", timedelta(seconds=1))
    time.sleep(2.1)
    clean_store(store, dry_run=False, force=True)
    assert not list(store.bucket.objects(f"{store.root}/running"))


def test_a_run_in_a_bucket_waits_for_a_clean_and_leases_are_renewed(s3, monkeypatch):
    store = open_store(f"{s3.new_bucket()}/out")
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    monkeypatch.setattr(leases, "LOOK_AGAIN", 0.05)
    came = []

    def run():
        with store_lock(store):
            came.append("run")

    with store_lock(store, exclusive=True):
        other = threading.Thread(target=run)
        other.start()
        time.sleep(0.5)
        assert not came
        came.append("clean")
    other.join(10)
    assert came == ["clean", "run"]
    assert s3.requests["PUT"] > 6, "both leases were renewed"


def test_the_command_that_would_mend_it_is_whole(store):
    """It names the stage that the last run built, and the options it had, wherever one stands."""
    store.write_state("small", "recipe.json", {"file": "../a b/small [1].yaml", "set": ["seed=1", "name=x; y"]})
    recipe = str(Path(store.out).parent / "a b/small [1].yaml")
    options = ["--recipe", recipe, "--set", "seed=1", "--set", "name=x; y", "--out", store.out]
    store.write_state("small", "units/pack_anneal_mix.json", {"sets": {}, "units": {}, "failed": {}})
    (Path(store.out) / "small/units/filter.json").write_text("{")
    with pytest.raises(UserError) as error:
        clean_store(store, dry_run=False, force=True)
    assert f"`python -m pipeline run pack_anneal_mix {shlex.join(options)}`" in str(error.value)
