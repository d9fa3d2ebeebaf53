"""A run whose folder is in a bucket, against a real S3 server: kill -9 and another machine, half uploads, owners."""

from __future__ import annotations

import json
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from trainer_harness import losses, sets

from pipeline.commands.trace import open_run
from train import bucket, page, score
from train.bucket import Bucket, BucketError
from train.checkpoint.checkpoint import LATEST, first_word, read_checkpoint
from train.checkpoint.fetched_run import fetch_run
from train.checkpoint.load_model import open_trained_model
from train.checkpoint.mirror import Mirror
from train.config import ConfigError, TrainError
from train.data.manifest import load_manifest
from train.main import run

STEPS = 12


def command(out: str, cache: Path, **more: Any) -> list[str]:
    return sets(out=out, cache=str(cache), steps=STEPS, resume="auto", eval_every=4, **more)


@pytest.fixture(scope="module")
def undisturbed(pretrain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(pretrain, command(str(folder / "run"), folder))
    return folder / "run"


def latest(out: str) -> str:
    """The checkpoint that `latest` names in the bucket."""
    try:
        return first_word(Bucket(out).get(f"{out}/checkpoints/{LATEST}"))
    except FileNotFoundError:
        return ""


def download(out: str, folder: Path) -> Path:
    """Copy a run from its bucket as any tool would."""
    for found in Bucket(out).objects(out):
        path = folder / found.path.removeprefix(f"{out}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Bucket(out).download(found.path, path)
    return folder


def same_end(one: Path, other: Path) -> bool:
    """Losses, and the weights and moments of the last checkpoint, to the bit."""
    names = ("model.safetensors", "optimizer.safetensors")
    step = f"checkpoints/step_{STEPS:06d}"
    hashes = [[read_checkpoint(f / step).state["files"][n]["sha256"] for n in names] for f in (one, other)]
    return losses(one) == losses(other) and hashes[0] == hashes[1]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_folder(
    pretrain: Path, undisturbed: Path, s3: S3Server, tmp_path: Path
) -> None:
    out = f"{s3.new_bucket()}/runs/a"
    summary = run(pretrain, command(out, tmp_path / "cache"))
    assert summary["folder"] == out
    assert list((tmp_path / "cache" / "runs").iterdir()) == [], "nothing stays here"
    there = download(out, tmp_path / "there")
    assert same_end(there, undisturbed)

    def files(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}

    assert files(there) == files(undisturbed), "and what was pruned here was pruned there"
    puts = [path.rpartition("/a/")[2] for path in s3.paths if path.startswith("PUT")]
    for step in (4, 8, 12):
        files_of = [f"checkpoints/step_{step:06d}/{name}.safetensors" for name in ("model", "optimizer")]
        state = puts.index(f"checkpoints/step_{step:06d}/state.json")
        assert max(map(puts.index, files_of)) < state < len(puts) - 1 - puts[::-1].index("checkpoints/latest")
    facts = json.loads((there / "run.json").read_text())
    assert facts["command"]["folder"] == out
    with pytest.raises(TrainError, match=rf"^{out} holds this very run, saved at step 12\ncontinue it with"):
        run(pretrain, sets(out=out, cache=str(tmp_path / "cache"), steps=STEPS, eval_every=4))
    with pytest.raises(TrainError, match=rf"^train.resume=auto: {out} holds another run \(differs in train.seed"):
        run(pretrain, command(out, tmp_path / "cache", seed=1))


@pytest.mark.slow
def test_killed_with_a_bucket_that_fails_it_goes_on_on_another_machine(
    pretrain: Path, undisturbed: Path, s3: S3Server, launch: Any, tmp_path: Path
) -> None:
    out = f"{s3.new_bucket()}/runs/a"
    s3.fault_rate = 0.1
    for step in (4, 8):
        machine = tmp_path / f"until-{step}"
        process = launch(pretrain, command(out, machine), variables=s3.environment())
        deadline = time.monotonic() + 90
        while latest(out) < f"step_{step:06d}":
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(list((machine / "runs").iterdir())) == 1, "as a kill leaves it"
    run(pretrain, command(out, machine))
    assert list((machine / "runs").iterdir()) == [], "what a killed run left is deleted by the next"
    assert s3.failed.total() > 3
    s3.fault_rate = 0.0
    assert same_end(download(out, tmp_path / "there"), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["model.safetensors", "state.json", "latest"])
def test_half_a_checkpoint_is_never_gone_on_from(
    pretrain: Path, undisturbed: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """From step 8 on one kind of object cannot be written: the run ends with a sentence, another goes on from 4."""
    out = f"{s3.new_bucket()}/runs/a"
    seen = 0

    def fault(environ: dict[str, Any]) -> str | None:
        nonlocal seen
        seen += environ["REQUEST_METHOD"] == "PUT" and "step_000008" in environ["PATH_INFO"]
        is_lost = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(lost)
        return "503" if seen and is_lost else None

    s3.fault = fault
    monkeypatch.setattr(bucket, "PATIENCE", timedelta(seconds=0.1))
    monkeypatch.setattr(bucket, "AGAIN", 0)
    with pytest.raises(TrainError, match=r"what is not in the bucket is in .*: copy it to s3://"):
        run(pretrain, command(out, tmp_path / "one"))
    assert latest(out) == "step_000004"
    s3.fault = None
    run(pretrain, command(out, tmp_path / "two"))
    assert same_end(download(out, tmp_path / "there"), undisturbed)


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    pretrain: Path, undisturbed: Path, s3: S3Server, tmp_path: Path
) -> None:
    out = f"{s3.new_bucket()}/runs/a"
    run(pretrain, command(out, tmp_path))
    damaged = f"{out}/checkpoints/step_000012/optimizer.safetensors"
    Bucket(out).put(damaged, Bucket(out).get(damaged)[:-1] + b"x")
    run(pretrain, command(out, tmp_path))
    assert same_end(download(out, tmp_path / "there"), undisturbed)


def test_who_started_last_owns_the_address(s3: S3Server, tmp_path: Path) -> None:
    out = f"{s3.new_bucket()}/runs/a"
    first = Mirror(out, str(tmp_path / "one"))
    first.own()
    second = Mirror(out, str(tmp_path / "two"))
    second.own()
    for mirror in (first, second):
        checkpoint = mirror.folder / "checkpoints" / "step_000004"
        checkpoint.mkdir()
        (checkpoint / "state.json").write_text("{}")
    with pytest.raises(TrainError, match=f"{out}: another start of this run, or another run, took over"):
        first.push()
    assert latest(out) == "-"
    s3.fault = lambda environ: (  # done, and the answer is lost: it is not taken for somebody else's
        "lost" if s3.failed["lost"] < 1 and environ["PATH_INFO"].endswith("latest") else None
    )
    second.push()
    assert s3.failed["lost"] == 1 and latest(out) == "step_000004"
    second.close()
    with pytest.raises(TrainError, match="took over"):
        first.close()
    assert not first.folder.exists()


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_is_named_as_one_in_a_folder(
    pretrain: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = f"{s3.new_bucket()}/runs/a"
    run(pretrain, sets(out=out, steps=8, keep_last=0))
    for address, step in ((out, 8), (f"{out}/checkpoints/step_000004", 4), (f"{out}/checkpoints/best", 8)):
        (checkpoint,) = (fetch_run(address) / "checkpoints").iterdir()
        assert read_checkpoint(checkpoint).step == step
    with pytest.raises(
        TrainError, match=r"no checkpoint 'step_000005' there; there are step_000004, step_000007, step_000008"
    ):
        fetch_run(out, "step_000005")
    assert open_trained_model(out).point.step == 8
    assert open_run(load_manifest(pretrain), out).config.steps == 8
    assert open_trained_model(out, name="step_000004").manifest.folder == str(pretrain.parent)
    assert score.main([out, "--tokens", "200"]) == 0, capsys.readouterr()
    assert page.main([out]) == 1 and f"in a bucket the page is {out}/summary.md" in capsys.readouterr().err
    run(pretrain, sets(out=str(tmp_path / "more"), resume=f"{out}/checkpoints/step_000004", steps=8))
    run(pretrain, sets(out=str(tmp_path / "other"), init_from=out, steps=8))
    whole = losses(download(out, tmp_path / "there"))
    assert losses(tmp_path / "more") == {step: loss for step, loss in whole.items() if step > 4}
    assert losses(tmp_path / "other")[1] < whole[1] - 0.5, "trained weights"


@pytest.mark.parametrize("out", ["memory://x/y", "file:///x/y", "s3:/x/y", "s3://", "gs:x"])
def test_a_place_that_cannot_be_used_is_refused_and_no_folder_is_made(
    pretrain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ConfigError, BucketError), match=r"results are kept in a folder or in a bucket|train\.out|s3://"
    ):
        run(pretrain, sets(out=out, cache=str(tmp_path / "cache")))
    assert not list(tmp_path.glob("*:*"))
