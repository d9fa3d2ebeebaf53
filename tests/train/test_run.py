"""Whole runs: in this process, as the script, and under torchrun."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch
from built import edit
from commands import REPO
from rounding import LOSS
from trainer_harness import MODEL, TRAIN, VOCAB, losses, make_mixture, metrics, sets, start_ranks, wait_for

from train import loop
from train.checkpoint.checkpoint import find_checkpoint, list_checkpoints
from train.checkpoint.run_folder import claim_folder
from train.config import ConfigError, TrainError
from train.data.manifest import ManifestError, load_manifest, manifest_text
from train.distributed.runtime import Runtime
from train.eval import validation
from train.eval.validation import Validation
from train.main import main, run
from train.model.transformer import Model


@pytest.fixture(scope="module")
def undisturbed(pretrain, tmp_path_factory):
    """24 steps in one go, in this process; the folder."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(pretrain, sets(out=str(folder), steps=24))
    return folder


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_it_says(undisturbed):
    values = losses(undisturbed)
    assert list(values) == list(range(1, 25)) and values[24] < values[1] - 1
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["status"] == "done" and summary["steps"] == 24
    assert summary["after"]["bits_per_byte"] < 0.85 * summary["unigram"]["bits_per_byte"]
    assert summary["before"]["bits_per_byte"] > summary["unigram"]["bits_per_byte"]
    facts = json.loads((undisturbed / "run.json").read_text())
    assert (undisturbed / facts["manifest"]).resolve().is_file()
    assert {"seed", "batch_size", "seq_len", "build_id", "world_size", "versions", "starts"} <= set(facts)
    assert [p.name for p in list_checkpoints(undisturbed / "checkpoints")] == ["step_000024", "step_000020"]
    first, last = metrics(undisturbed)[0], metrics(undisturbed)[-1]
    assert first["step"] == 0 and first["val_bits_per_byte"] == summary["before"]["bits_per_byte"]
    assert last["val_loss"] == summary["after"]["nats"]
    assert {"lr", "grad_norm", "tokens", "tokens_per_second", "epoch"} <= set(last)


def test_a_model_worse_than_the_unigram_is_above_it(pretrain, tmp_path, capfd):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=1))
    shown = "".join(capfd.readouterr())
    assert " % above the unigram)" in shown and "(-" not in shown


@pytest.mark.slow
def test_accumulation_gives_the_same_losses(pretrain, undisturbed, tmp_path):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=24, micro_batch=2))
    mine, theirs = losses(tmp_path / "r"), losses(undisturbed)
    assert max(abs(mine[s] - theirs[s]) for s in theirs) < LOSS


@pytest.mark.slow
def test_on_a_cpu_all_kernels_are_deterministic_already(pretrain, undisturbed, tmp_path):
    try:
        run(pretrain, sets(out=str(tmp_path / "r"), steps=24, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(tmp_path / "r") == losses(undisturbed)


def test_adamw_cosine_bf16_untied_and_dropout_run(pretrain, tmp_path):
    more = sets(optimizer="adamw", schedule__kind="cosine", dtype="bfloat16", model__tie_embeddings=False)
    run(pretrain, [*more, *sets(out=str(tmp_path / "r"), steps=12, model__dropout=0.1)])
    values = losses(tmp_path / "r")
    assert values[12] < values[1] - 0.3


@pytest.mark.slow
def test_dropout_resumes_to_the_bit_and_a_longer_run_continues(pretrain, tmp_path):
    common = sets(model__dropout=0.2, schedule__kind="constant", checkpoint_every=0)
    run(pretrain, [*common, *sets(out=str(tmp_path / "whole"), steps=8)])
    run(pretrain, [*common, *sets(out=str(tmp_path / "r"), steps=4)])
    run(pretrain, [*common, *sets(out=str(tmp_path / "r"), steps=8, resume="auto")])
    assert losses(tmp_path / "r") == losses(tmp_path / "whole")
    assert [s["step"] for s in json.loads((tmp_path / "r/run.json").read_text())["starts"]] == [0, 4]
    assert run(pretrain, [*common, *sets(out=str(tmp_path / "r"), steps=8, resume="auto")])["status"] == "done"


def test_on_save_is_called_at_each_checkpoint(pretrain, tmp_path):
    calls = []
    run(pretrain, sets(out=str(tmp_path / "r"), steps=6), on_save=lambda m, p: calls.append((m["step"], m["loss"], p)))
    assert [(s, p) for s, _, p in calls] == [(s, str(tmp_path / f"r/checkpoints/step_{s:06d}")) for s in (4, 6)]
    assert calls[0][1] == losses(tmp_path / "r")[4]


def test_samples_and_a_new_folder_under_runs(pretrain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    summary = run(pretrain, sets(steps=2, sample_tokens=5, prompts=["the"], tensorboard=True))
    assert summary["folder"] == "runs/tiny-pretrain-001" and summary["samples"][0]["prompt"] == "the"
    said = capsys.readouterr().out
    assert "folder     runs/tiny-pretrain-001" in said and "warning: train.schedule" not in said
    assert list((tmp_path / summary["folder"]).glob("events.out.tfevents.*"))
    assert run(pretrain, sets(steps=1))["folder"] == "runs/tiny-pretrain-002"
    said = capsys.readouterr().out
    assert "warning: train.schedule.warmup = 2 is longer than the run, train.steps = 1: " in said


# ---------------------------------------------------------------------------------------------------------------------
# Folders, resume, init_from


def test_a_folder_that_holds_a_run_is_refused_and_nothing_is_touched(pretrain, undisturbed, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    for more, message in (
        ({}, r"this very run, saved at step 24\ncontinue it with --set train.resume=auto"),
        ({"resume": "never"}, "this very run"),
        ({"seed": 5}, r"another run \(differs in train.seed \(0 there, 5 here\)\)"),
        ({"seed": 5, "resume": "auto"}, r"resume=auto: .* another run \(differs in train.seed"),
        ({"resume": "auto", "model__dim": 64}, "differs in model.dim"),
    ):
        with pytest.raises(TrainError, match=message):
            run(pretrain, sets(out=str(undisturbed), steps=24, **more))
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    with pytest.raises(ConfigError, match=r"needs train\.out"):
        run(pretrain, sets(resume="auto"))


def test_a_folder_in_which_another_process_trains_is_refused_and_left_alone(pretrain, undisturbed, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(undisturbed, folder)
    command = sets(out=str(folder), steps=24, resume="auto")
    with claim_folder(Runtime(0, 1, torch.device("cpu"), None), folder):
        (folder / "checkpoints/.part-000028-1").mkdir()  # what the other one is writing
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
        with pytest.raises(TrainError, match="another process trains there"):
            run(pretrain, command)
        assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run(pretrain, command)["status"] == "done"
    assert not (folder / "checkpoints/.part-000028-1").exists()


def test_resume_from_a_path_continues_elsewhere_to_the_bit(pretrain, undisturbed, tmp_path):
    path = undisturbed / "checkpoints/step_000020"
    run(pretrain, sets(out=str(tmp_path / "r"), steps=24, resume=str(path)))
    mine, theirs = losses(tmp_path / "r"), losses(undisturbed)
    assert mine == {s: theirs[s] for s in (21, 22, 23, 24)}
    with pytest.raises(TrainError, match=r"is of another run: train.seed"):
        run(pretrain, sets(out=str(tmp_path / "q"), seed=9, resume=str(path)))
    with pytest.raises(TrainError, match="later than"):
        run(pretrain, sets(out=str(undisturbed), steps=24, resume=str(path)))


def test_a_cut_checkpoint_auto_warns_and_takes_the_one_before(pretrain, undisturbed, tmp_path, capsys):
    folder = tmp_path / "r"
    shutil.copytree(undisturbed, folder)
    file = folder / "checkpoints/step_000024/model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TrainError, match=r"cut: .*\nthe newest whole one is .*step_000020"):
        run(pretrain, sets(out=str(tmp_path / "q"), steps=24, resume=str(folder)))
    run(pretrain, sets(out=str(folder), steps=24, resume="auto"))
    said = capsys.readouterr().err
    assert "warning" in said and "step_000024" in said and "step_000020" in said
    assert losses(folder) == losses(undisturbed)
    assert (folder / "checkpoints/step_000024.broken").is_dir()
    for path in list_checkpoints(folder / "checkpoints"):
        (path / "state.json").write_text("{")
    with pytest.raises(TrainError, match=r"no checkpoint in .* is whole"):
        run(pretrain, sets(out=str(folder), steps=24, resume="auto"))


def test_init_from(pretrain, undisturbed, tmp_path):
    phases = {"pretrain": TRAIN, "anneal": {**TRAIN, "init_from": "pretrain", "steps": 2}}
    anneal = make_mixture(tmp_path / "store" / "xyz", MODEL, phases, "anneal")
    link = tmp_path / "build" / "anneal"
    link.parent.mkdir()
    link.symlink_to(anneal.parent)
    with pytest.raises(TrainError, match=r"train\.init_from=PATH.*train\.init_from=none") as error:
        run(link, sets(out=str(tmp_path / "a")))
    assert str(tmp_path / "build/train/pretrain/checkpoints") in str(error.value)  # beside the link
    assert not (tmp_path / "a").exists()
    shutil.copytree(undisturbed, tmp_path / "build/train/pretrain")
    run(link, sets(out=str(tmp_path / "a")))
    started = metrics(tmp_path / "a")[0]["val_loss"]
    assert started == metrics(undisturbed)[-1]["val_loss"]  # the weights, all of them
    assert losses(tmp_path / "a").keys() == {1, 2}  # and nothing else: step, schedule and moments are new
    run(link, sets(out=str(tmp_path / "b"), init_from=str(undisturbed / "checkpoints/step_000020")))
    assert metrics(tmp_path / "b")[0]["val_loss"] != started
    with pytest.raises(TrainError, match=r"another model: model\.dim \(32 there, 64 here\)"):
        run(link, sets(out=str(tmp_path / "c"), model__dim=64))
    good = json.loads(anneal.read_text())
    for change, message in (
        ({"val_ids": good["val_ids"] | {"rule": "another"}}, "val_rule"),
        ({"tokenizer": good["tokenizer"] | {"sha256": "0" * 64}}, "tokenizer_sha256"),
    ):
        anneal.write_text(manifest_text(good | change))
        with pytest.raises(TrainError, match=message):
            run(link, sets(out=str(tmp_path / "d")))


def test_errors_for_people(pretrain, tmp_path, capsys):
    def said(manifest, *settings):
        status = main(["--manifest", str(manifest), *(["--set", *settings] if settings else [])])
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") <= 2 and "Traceback" not in text
        return status, text

    out = f"train.out={tmp_path / 'r'}"
    assert said(tmp_path / "none.json")[1].find("no such manifest") > 0
    assert said(pretrain, "train.stepz=3")[0] == 2
    status, text = said(pretrain, out, "train.steps=999")
    assert status == 1 and "epochs of this mixture" in text
    assert said(pretrain, out, "model.expect_params=7")[1].find("expect_params says 7") > 0
    copy = tmp_path / "copy"
    shutil.copytree(pretrain.parent, copy)
    shard = copy / "m_train_000000.bin"
    raw = bytearray(shard.read_bytes())
    raw[2000] ^= 1
    shard.write_bytes(raw)
    assert said(copy, out)[1].find("sha256 differs") > 0
    assert not (tmp_path / "r").exists()  # refused before anything was made
    (tmp_path / "file").write_text("")
    assert "is a file" in said(pretrain, f"train.out={tmp_path / 'file'}")[1]
    assert "cannot be made" in said(pretrain, f"train.out={tmp_path / 'file/r'}")[1]
    assert "or --set train.resume=auto" in said(pretrain, out, f"train.resume={tmp_path / 'none'}")[1]
    assert "Unable to allocate" in said(pretrain, out, "train.batch_size=1e15", "train.epochs=1e15")[1]
    assert "step 2: not finite" in said(pretrain, out, "train.muon.lr=1e30", "train.adamw.lr=1e30")[1]
    with pytest.raises(SystemExit) as error:
        main(["--set", "x=1"])
    assert error.value.code == 2


def test_a_manifest_without_validation_is_an_error(manifest, tmp_path):
    without = dataclasses.replace(manifest, shards=manifest.split("train"))
    shutil.copytree(manifest.folder, tmp_path / "m")
    (tmp_path / "m/manifest.json").write_text(without.to_json())
    with pytest.raises(TrainError, match="nothing is held out"):
        run(tmp_path / "m", sets(out=str(tmp_path / "r")))
    (tmp_path / "m/manifest.json").write_text("{")
    with pytest.raises(ManifestError):
        load_manifest(tmp_path / "m")
    assert VOCAB < 65536


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_75_and_the_same_command_goes_on(pretrain, launch, tmp_path, number):
    folder = tmp_path / "r"
    command = sets(out=str(folder), steps=500, checkpoint_every=0, resume="auto", epochs=20)
    process = launch(pretrain, command)
    wait_for(folder / "metrics.jsonl", 3)
    process.send_signal(number)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 75, out
    saved = find_checkpoint(folder, "k").step
    assert 3 <= saved < 500 and f"stopped by a signal after step {saved}" in out
    assert max(losses(folder)) == saved
    if number == signal.SIGTERM:  # from there on all signals are the same
        asked = iter([False, False, True])
        assert run(pretrain, command, stop=lambda: next(asked))["step"] == saved + 3
        assert list(losses(folder)) == list(range(1, saved + 4))


@pytest.mark.slow
def test_a_signal_after_the_last_line_leaves_exit_status_0(pretrain, tmp_path):
    settings = sets(out=str(tmp_path / "r"), steps=1)
    command = [sys.executable, "train/main.py", "--manifest", str(pretrain), "--set", *settings]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.rstrip().endswith("checkpoints/") for line in process.stdout)
        while process.poll() is None:  # at every moment, while the run is left and Python ends
            process.send_signal(signal.SIGTERM)
            time.sleep(1e-4)
        assert process.returncode == 0


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_each_exits_75(pretrain, launch, tmp_path):
    settings = sets(out=str(tmp_path / "r"), steps=5000, epochs=200, checkpoint_every=0)
    ranks = start_ranks(launch, 2, pretrain, settings)
    wait_for(tmp_path / "r/metrics.jsonl", 3)
    ranks[1].send_signal(signal.SIGUSR1)
    out = [p.communicate(timeout=30)[0] for p in ranks]
    assert [p.returncode for p in ranks] == [75, 75], out
    assert 3 <= find_checkpoint(tmp_path / "r", "k").step < 5000


@pytest.mark.slow
def test_an_error_of_the_first_rank_is_had_by_all(pretrain, launch, tmp_path):
    (tmp_path / "file").write_text("")
    ranks = start_ranks(launch, 2, pretrain, sets(out=str(tmp_path / "file/r")))
    for said in [p.communicate(timeout=60)[0] for p in ranks]:
        assert "error: train.out: " in said and "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_one_ends(pretrain, launch, tmp_path):
    process = launch(pretrain, sets(out=str(tmp_path / "r"), steps=5000, epochs=100, checkpoint_every=0))
    wait_for(tmp_path / "r/metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 75 and "stopping: this step is finished and saved" in out, out
    assert "stopped by a signal after step" in out and "Traceback" not in out, out
    assert find_checkpoint(tmp_path / "r", "k").step >= 3


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", [1, 2, 4])  # at step 0, in between, at the end
def test_a_stop_during_an_evaluation_is_answered_at_once_and_loses_no_step(evaluation, pretrain, tmp_path, monkeypatch):
    seen = {"evaluations": 0, "passes": 0}
    begin, one_pass = Validation._nats_of_windows, Model.score

    def begun(self, *args):
        seen["evaluations"] += 1
        return begin(self, *args)

    def counted(self, *args):
        seen["passes"] += seen["evaluations"] == evaluation
        return one_pass(self, *args)

    monkeypatch.setattr(Validation, "_nats_of_windows", begun)
    monkeypatch.setattr(Model, "score", counted)
    monkeypatch.setattr(validation, "EVAL_TOKENS", 128)  # of a pass: an evaluation has many
    settings = {"out": str(tmp_path / "r"), "steps": 9, "eval_every": 3, "checkpoint_every": 0, "eval_tokens": 0}
    ended = run(pretrain, sets(**settings), stop=lambda: seen["passes"] > 0)
    assert seen["passes"] == 1 and ended["status"] == "stopped"
    saved = list_checkpoints(tmp_path / "r/checkpoints")
    assert saved[0].name == f"step_{ended['step']:06d}" if ended["step"] else not saved
    assert ended["step"] == {1: 0, 2: 3, 4: 9}[evaluation]
    monkeypatch.undo()
    again = run(pretrain, sets(**settings, resume="auto"))
    whole = run(pretrain, sets(**{**settings, "out": str(tmp_path / "whole")}))
    assert losses(tmp_path / "r") == losses(tmp_path / "whole") and again["after"] == whole["after"]


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_once_on_all_ranks(pretrain, launch, tmp_path):
    folder = tmp_path / "r"
    process = launch(pretrain, sets(out=str(folder), steps=5000, epochs=200, checkpoint_every=0), processes=2)
    wait_for(folder / "metrics.jsonl", 3)
    os.kill(process.pid, signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert process.returncode != 0  # torchrun's own status, not 75
    saved = find_checkpoint(folder, "k")
    assert 3 <= saved.step < 5000 and saved.state["world_size"] == 2, out


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_cut_under_a_run_ends_it_saved_and_it_resumes(split, pretrain, tmp_path, monkeypatch):
    shutil.copytree(pretrain.parent, tmp_path / "m")
    copy = load_manifest(tmp_path / "m")
    shards = [copy.file(shard.path) for shard in copy.shards if shard.split == split]
    whole = {path: path.read_bytes() for path in shards}
    step = loop.train_step

    def cut_at_step_3(r):
        if r.step == 3:
            for path in shards:
                os.truncate(path, 1030)
        return step(r)

    settings = {"steps": 6, "eval_every": 5, "checkpoint_every": 0, "schedule__kind": "constant"}
    monkeypatch.setattr(loop, "train_step", cut_at_step_3)
    with pytest.raises(ManifestError, match=r"bytes, has 1,030: cut or overwritten; .* train\.resume=auto"):
        run(tmp_path / "m", sets(out=str(tmp_path / "r"), **settings))
    saved = find_checkpoint(tmp_path / "r", "k").step
    assert saved == {"train": 4, "val": 5}[split]  # the step that read, or scored, next
    monkeypatch.undo()
    for path, data in whole.items():
        path.write_bytes(data)
    run(tmp_path / "m", sets(out=str(tmp_path / "r"), **settings, resume="auto"))
    run(pretrain, sets(out=str(tmp_path / "whole"), **settings))
    assert losses(tmp_path / "r") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_process_whose_peer_dies_ends_with_a_line(pretrain, launch, tmp_path):
    ranks = start_ranks(launch, 2, pretrain, sets(out=str(tmp_path / "r"), steps=50_000, epochs=10_000))
    wait_for(tmp_path / "r/metrics.jsonl", 3)
    ranks[1].kill()
    said = ranks[0].communicate(timeout=30)[0]
    assert ranks[0].returncode == 1 and "error: another process of this run has ended" in said, said
    assert "Traceback" not in said


def test_torchrun_is_told_the_error_to_repeat(pretrain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["--manifest", str(pretrain), "--set", "train.steps=100000"]) == 1
    said = json.loads((tmp_path / "error.json").read_text())["message"]
    assert "epochs of this mixture" in said and said in capsys.readouterr().err


def scored_steps(folder):
    return [line["step"] for line in metrics(folder) if "val_loss" in line]


def test_by_default_a_run_is_scored_some_fifteen_times_and_less_where_that_costs_more_than_training(
    pretrain, tmp_path, capsys
):
    common = {"eval_every": None, "schedule__kind": "constant", "checkpoint_every": 0, "epochs": 10}
    run(pretrain, sets(out=str(tmp_path / "many"), steps=45, eval_tokens=64, **common))
    assert scored_steps(tmp_path / "many") == list(range(0, 46, 3))
    said = capsys.readouterr().out
    assert "step 0: scoring 64 tokens ahead of training (64 of the mixture" in said
    run(pretrain, sets(out=str(tmp_path / "few"), steps=6, eval_tokens=512, **common))
    assert scored_steps(tmp_path / "few") == [0, 2, 4, 6]


def test_a_validation_of_one_document_is_marked(pretrain, tmp_path, capsys):
    shutil.copytree(pretrain.parent, tmp_path / "m")

    def one(value):
        for shard in value["shards"]:
            shard["documents"] = 1 if shard["split"] == "val" else shard["documents"]

    edit(tmp_path / "m", one)
    run(tmp_path / "m", sets(out=str(tmp_path / "r"), steps=1))
    said = capsys.readouterr().out
    assert "warning: one document alone is held out" in said and " tokens of one document)" in said
    assert json.loads((tmp_path / "r/summary.json").read_text())["val_documents"] == 1


@pytest.mark.parametrize("caller_froze", [False, True])
def test_cycles_are_collected_at_a_score_and_never_within_a_step(
    caller_froze, pretrain, tmp_path, monkeypatch, request
):
    request.addfinalizer(gc.freeze)  # as conftest.py has it
    (gc.freeze if caller_froze else gc.unfreeze)()
    cycles, seen, step = [], [], loop.train_step

    class Cycle:
        def __init__(self):
            self.itself = self

    def with_a_cycle(at):
        assert not gc.isenabled()
        cycles.append(weakref.ref(Cycle()))
        seen.append(sum(cycle() is not None for cycle in cycles))
        return step(at)

    monkeypatch.setattr(loop, "train_step", with_a_cycle)
    run(pretrain, sets(out=str(tmp_path / "r"), steps=6, eval_every=3, checkpoint_every=0))
    assert seen == [1, 2, 3, 1, 2, 3]
    assert gc.isenabled() and (gc.get_freeze_count() > 0) == caller_froze


def test_a_checkpoint_is_due_after_minutes_too(pretrain, tmp_path):
    calls = []
    more = {"checkpoint_every": 0, "log_every": 2, "checkpoint_minutes": 1e-9}
    run(pretrain, sets(out=str(tmp_path / "r"), steps=5, **more), on_save=lambda m, p: calls.append(m["step"]))
    assert calls == [1, 2, 4, 5]
