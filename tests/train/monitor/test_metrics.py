"""The figures of a run: rates and MFU, memory, gradient norms by module, and the writers beside metrics.jsonl."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest
import torch
from trainer_harness import MODEL, TRAIN, metrics, sets

from train.config import ConfigError, ModelConfig, TrainConfig, TrainError
from train.distributed import hardware
from train.main import run
from train.model.flops import flops_per_token
from train.monitor.metrics import Metrics

# What the tests need of the package wandb: it writes down its calls, and counts a run's steps as a server does.
FAKE_WANDB = """
import json, os, pathlib
LOG = pathlib.Path(os.environ["FAKE_WANDB_LOG"])
class Error(Exception): pass
def note(*call):
    with LOG.open("a") as f: f.write(json.dumps(call) + "\\n")
def calls():
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
class Run:
    def __init__(self, id): self.id = id
    @property
    def step(self): return max([c[2] + 1 for c in calls() if c[0] == "log"], default=0)
    def log(self, values, step): note("log", values, step)
    def finish(self, exit_code): note("finish", exit_code)
def init(**given):
    note("init", given)
    if os.environ.get("FAKE_WANDB_FAILS"): raise Error("no key\\nsecond line")
    assert pathlib.Path(given["dir"]).is_dir() and json.dumps(given["config"])
    return Run(given["id"] or "abc123")
"""


def test_rates_are_the_definition():
    cfg = ModelConfig()
    flops = flops_per_token(cfg, 8192, 8192)
    meter = hardware.Meter(flops, 798.0, 2)
    rates = meter.rates(2 * 86_800)  # two devices as fast as the seed's: 44.6 TFLOP/s, 5.6 % (docs/trainer-math.md)
    assert rates["model_tflops"] == pytest.approx(44.6, abs=0.05)
    assert rates["mfu_causal"] == pytest.approx(0.056, abs=5e-4)
    assert rates["mfu_full"] / rates["mfu_causal"] == pytest.approx(666.9 / 513.6, rel=1e-3)
    assert hardware.Meter(flops, None, 2).rates(1e6).keys() == {"model_tflops"}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_a_peak_is_of_the_whole_name_or_none(name, peak):
    assert hardware.peak_tflops(name) == peak


@pytest.fixture(scope="module")
def folder(pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics") / "r"
    run(pretrain, sets(out=str(folder), steps=4, log_every=2, peak_tflops=2.0))
    return folder


def test_a_line_has_rates_memory_and_norms_by_module(folder):
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 4]
    flops = flops_per_token(ModelConfig(**MODEL), 264, TRAIN["seq_len"])
    for line in lines[1:]:
        assert line["model_tflops"] == pytest.approx(line["tokens_per_second"] * flops.causal / 1e12, rel=1e-3)
        assert line["mfu_causal"] == pytest.approx(line["model_tflops"] / 2, rel=1e-3)
        assert 0.05 < line["memory_gb"] < 50
        norms = {key: value for key, value in line.items() if key.startswith("grad_norm/")}
        assert list(norms) == ["grad_norm/embed", "grad_norm/blocks.0", "grad_norm/blocks.1", "grad_norm/norm"]
        assert math.hypot(*norms.values()) == pytest.approx(line["grad_norm"], rel=1e-4)
    assert lines[-1]["seconds_left"] == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mfu_full"] > summary["mfu_causal"] > 0 and summary["memory_gb"] >= lines[-1]["memory_gb"]


def test_without_spike_sigma_no_norms_by_module_are_taken(pretrain, folder, tmp_path, monkeypatch):
    taken = []
    norm = torch.Tensor.norm
    monkeypatch.setattr(
        torch.Tensor, "norm", lambda self, *a, **k: (taken.append(self.numel()), norm(self, *a, **k))[1]
    )
    run(pretrain, sets(out=str(tmp_path / "r"), steps=4, log_every=2, spike_sigma=0))
    sizes = {part for part in taken if part in (264 * 32, 32)}
    assert not sizes, "a norm of one module"
    lines = metrics(tmp_path / "r")
    assert [line["loss"] for line in lines[1:]] == [line["loss"] for line in metrics(folder)[1:]]
    assert "mfu_causal" not in lines[-1] and not any(key.startswith("grad_norm/") for key in lines[-1])
    assert json.loads((tmp_path / "r/summary.json").read_text())["mfu_causal"] is None


# ---------------------------------------------------------------------------------------------------------------------
# wandb and TensorBoard


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """This process finds a package wandb. Returns the calls since last asked."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("FAKE_WANDB_LOG", str(tmp_path / "calls"))
    seen = 0

    def new():
        nonlocal seen
        lines = (tmp_path / "calls").read_text().splitlines()[seen:]
        seen += len(lines)
        return [json.loads(line) for line in lines]

    yield new
    sys.modules.pop("wandb", None)


@pytest.mark.slow
def test_a_resume_goes_on_in_the_same_wandb_run(calls, pretrain, launch, tmp_path):
    common = sets(out=str(tmp_path / "r"), schedule__kind="constant", checkpoint_every=4)
    process = launch(pretrain, [*common, *sets(steps=6, wandb="lab")], variables={"PYTHONPATH": str(tmp_path / "site")})
    shown = process.communicate(timeout=90)[0]
    assert process.returncode == 0, shown
    init, *logs, end = calls()
    given = init[1]
    assert (given["project"], given["id"], given["resume"]) == ("lab", None, "allow")
    assert given["config"]["train"]["steps"] == 6 and given["dir"] == str(tmp_path / "r")
    assert [log[2] for log in logs] == list(range(7)) and "step" not in logs[1][1]
    assert [log[1]["loss"] for log in logs[1:]] == [line["loss"] for line in metrics(tmp_path / "r")[1:]]
    assert end == ["finish", 0]
    assert json.loads((tmp_path / "r/run.json").read_text())["wandb"] == "abc123"
    shutil.rmtree(tmp_path / "r/checkpoints/step_000006")  # as after a kill: two steps are made again, not told again
    run(pretrain, [*common, *sets(steps=8, wandb=True, resume="auto")])
    init, *logs, end = calls()
    assert (init[1]["project"], init[1]["id"]) == ("shardmill", "abc123")
    assert [log[2] for log in logs] == [7, 8] and end == ["finish", 0]
    run(pretrain, [*common, *sets(steps=9, resume="auto")])  # without it the id is kept
    assert calls() == [] and json.loads((tmp_path / "r/run.json").read_text())["wandb"] == "abc123"


def test_an_error_finishes_the_wandb_run_as_failed(calls, pretrain, tmp_path, monkeypatch):
    with pytest.raises(TrainError, match="not finite"):
        run(pretrain, sets(out=str(tmp_path / "r"), steps=3, wandb=True, muon__lr=1e30, adamw__lr=1e30))
    assert calls()[-1] == ["finish", 1]
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    with pytest.raises(TrainError, match=r"^train\.wandb: no key\nlog in with `wandb login`"):
        run(pretrain, sets(out=str(tmp_path / "q"), wandb=True))
    assert [call[0] for call in calls()] == ["init"]


def test_without_the_package_there_is_a_warning_and_the_id_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "run.json").write_text('{"wandb": "abc"}')
    with Metrics(tmp_path, 0, TrainConfig(wandb=True), {}) as writers:
        writers.write({"step": 1, "loss": 2.0})
    assert "warning: nothing goes to wandb: the package wandb is not installed" in capsys.readouterr().err
    assert writers.wandb == "abc" and (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    with pytest.raises(ConfigError, match="peak_tflops"):
        TrainConfig(peak_tflops=0)


def test_tensorboard_has_what_the_lines_have_and_a_resume_purges(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with Metrics(tmp_path, start, TrainConfig(tensorboard=True), {}) as writers:
            for step in steps:
                writers.write({"step": step, "loss": float(10 * start + step)})
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(1, 1), (2, 2), (3, 23), (4, 24)]
    assert [line["loss"] for line in metrics(tmp_path)] == [1, 2, 23, 24]
