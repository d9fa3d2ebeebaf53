"""The judge of a run against plain Python, what it finds in a planted batch, and what it does about it."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from rounding import assert_near
from trainer_harness import MODEL, losses, make_mixture, metrics, sets, text, write_manifest, write_shard

from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import list_checkpoints
from train.config import ModelConfig, TrainConfig, TrainError
from train.data.manifest import load_manifest
from train.data.sampler import rows_of_step, steps_that_read
from train.main import run
from train.model.transformer import build
from train.monitor import anomalies
from train.monitor import text as monitor_text
from train.monitor.anomalies import CLIP, FLOOR, LOSS, NORM, NOT_FINITE, RATES, WARM, documents_of_step, judge
from train.optim.optimizer import Optimizer

STEPS, GARBAGE = 60, 11  # the document that is planted in the first shard
PHASE = {"muon": {"lr": 0.003}, "adamw": {"lr": 0.003}, "schedule": {"kind": "constant"}}
OPTIONS = {"steps": STEPS, "batch_size": 8, "seq_len": 64, "log_every": 7, "checkpoint_every": 0, "sample_tokens": 0}


def verdicts(series, sigmas=6.0):
    """What the judge says of (loss, norm) pairs."""
    stats, floor = torch.zeros(5), torch.tensor(FLOOR)
    return [int(judge(stats, torch.tensor([a, math.log(b)]), floor, sigmas)) for a, b in series], stats


def plain(series, sigmas=6.0):
    """The same, spelled out."""
    n, means, variances, said = 0, [0.0, 0.0], [0.0, 0.0], []
    for pair in series:
        values = [pair[0], math.log(pair[1])]
        if not all(map(math.isfinite, values)):
            said.append(NOT_FINITE)
            continue
        verdict, rates = 0, [max(rate, 1 / (n + 1)) for rate in RATES]
        for i, value in enumerate(values):
            sigma = max(math.sqrt(variances[i]), FLOOR[i])
            d = value - means[i]
            if n >= WARM:
                verdict |= (LOSS, NORM)[i] if d > sigmas * sigma else 0
                d = min(d, CLIP * sigma)
            means[i] += rates[0] * d
            variances[i] += rates[1] * (d * d - variances[i])
        n += 1
        said.append(verdict)
    return said, [n, *means, *variances]


def noisy(count, seed=0, level=3.0, spread=0.1):
    rng = random.Random(seed)
    return [(rng.gauss(level, spread), math.exp(rng.gauss(0, 0.2))) for _ in range(count)]


def test_the_judge_is_the_plain_one():
    series = noisy(300)
    series[100], series[150], series[200] = (5.0, 1.0), (3.0, 30.0), (float("nan"), 1.0)
    series[250:] = [(a + 1.0, b) for a, b in series[250:]]
    said, stats = verdicts(series)
    wanted, values = plain(series)
    assert said == wanted
    assert stats.tolist() == pytest.approx(values, rel=1e-4)
    assert (said[100], said[150], said[200]) == (LOSS, NORM, NOT_FINITE)
    assert said[250] == LOSS and said[-1] == 0, "a new level is an event at first, then the rule"


@pytest.mark.slow
def test_noise_is_no_event_and_a_falling_loss_neither():
    assert not any(verdicts(noisy(5000))[0])
    falling = [(2 + 6 * math.exp(-i / 50) + random.Random(i).gauss(0, 0.05), 1.0) for i in range(2000)]
    assert not any(verdicts(falling)[0])
    assert not any(verdicts([(3.0, 1.0)] * 500 + [(3.1, 1.2)])[0]), "a flat stretch does not make a judge of hairs"
    assert not any(verdicts([*noisy(100), (50.0, 1e6)], sigmas=0)[0]), "0 is off"


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_norms_by_module(rule):
    model = build(ModelConfig(**MODEL), 264, 0)
    optimizer = Optimizer(model, TrainConfig(optimizer=rule))
    optimizer.grads.copy_(torch.randn_like(optimizer.grads))
    assert optimizer.modules == ["embed", "blocks.0", "blocks.1", "norm"]
    norms = optimizer.norms()
    for module, norm in zip(optimizer.modules, norms, strict=True):
        mine = [p.grad.flatten() for n, p in model.named_parameters() if n.startswith(module + ".")]
        assert_near(norm, torch.cat(mine).norm())
    assert_near(norms.norm(), optimizer.grads.norm())


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A mixture in which one document is bytes at random: its manifest, the steps (from 1) that read it, and options of
    a run that begins with the weights of one on other text."""
    folder = tmp_path_factory.mktemp("planted") / "tiny" / "pretrain"
    folder.mkdir(parents=True)
    documents = [text(i, 90) for i in range(60)]
    clean = make_mixture(folder.parent / "clean", MODEL, {"pretrain": PHASE}, "pretrain")
    run(clean, sets(**{**OPTIONS, "steps": 150}, epochs=9, out=str(folder / "before")))
    documents[GARBAGE] = random.Random(1).randbytes(199)
    shards = [
        write_shard(folder, "m_train_000000", "train", documents),
        write_shard(folder, "m_train_000001", "train", [text(100 + i, 60) for i in range(60)]),
        write_shard(folder, "m_val_000000", "val", [text(200 + i, 80) for i in range(4)]),
    ]
    path = write_manifest(folder, shards, MODEL, {"pretrain": PHASE}, "pretrain")
    manifest = load_manifest(path)
    first = sum(len(d) + 1 for d in documents[:GARBAGE])
    seed, read = 0, [0]
    # by several steps, all behind those that are not judged and ahead of the last ones
    while len(read) < 3 or read[0] < WARM + 9 or read[-1] > STEPS - 5:
        seed += 1
        read = steps_that_read(manifest, config(seed=seed), shards[0].path, first, first + 200)
    return path, [step + 1 for step in read], {**OPTIONS, "seed": seed, "init_from": str(folder / "before")}


def config(**more):
    return TrainConfig(**{**OPTIONS, **more})


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_planted_document_is_an_event_that_names_it(planted, tmp_path):
    path, read, options = planted
    run(path, sets(**options, out=str(tmp_path / "r")))
    found = [e for e in events(tmp_path / "r") if "batch" in e]
    assert found and {e["step"] for e in found} <= set(read)
    for event in found:
        assert "spike" in event["event"] and event["applied"]
        spans = [row["documents"] for row in event["batch"] if row["shard"].endswith("000000.bin")]
        assert any(first <= GARBAGE <= last for first, last in spans)
        total = math.sqrt(sum(n * n for n in event["grad_norms"].values()))
        assert total == pytest.approx(event["grad_norm"], rel=1e-4)
    assert all(0 <= line["waiting_for_data"] <= 1 for line in metrics(tmp_path / "r")[1:])


@pytest.mark.slow
def test_the_batch_of_an_event_is_what_the_step_read(planted):
    manifest = load_manifest(planted[0])
    tokens = {s.path: np.fromfile(manifest.file(s.path), "<u2", offset=1024) for s in manifest.shards}
    for step in (0, 5, 40):
        rows = documents_of_step(manifest, config(), step)
        assert [(r["shard"], r["token"]) for r in rows] == rows_of_step(manifest, config(), step)
        for row in rows:
            ordinal = np.cumsum(tokens[row["shard"]] == 256) - 1  # every document opens with its BOS
            assert row["documents"] == ordinal[[row["token"], row["token"] + 64]].tolist()


@pytest.mark.slow
def test_skip_leaves_the_step_out_and_resumes_to_the_bit(planted, tmp_path):
    path, _, options = planted
    common = {**options, "on_spike": "skip"}
    run(path, sets(**common, out=str(tmp_path / "whole")))
    skipped = [e["step"] for e in events(tmp_path / "whole") if "batch" in e]
    assert skipped and all(not e["applied"] for e in events(tmp_path / "whole") if "batch" in e)
    run(path, sets(**{**common, "steps": skipped[0] + 3}, out=str(tmp_path / "r")))
    run(path, sets(**common, out=str(tmp_path / "r"), resume="auto"))
    files = [list_checkpoints(tmp_path / name / "checkpoints")[0] for name in ("whole", "r")]
    for name in checkpoint.TENSOR_FILES:
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes(), name
    state = json.loads((files[1] / "state.json").read_text())
    assert state["updates"] == STEPS - len(skipped)
    assert [e["step"] for e in events(tmp_path / "r") if "batch" in e] == skipped


@pytest.mark.slow
def test_stop_ends_the_run_and_says_where(planted, tmp_path):
    with pytest.raises(TrainError, match=r"step \d+: (loss|gradient) spike.*not applied"):
        run(planted[0], sets(**planted[2], on_spike="stop", out=str(tmp_path / "r")))
    last = [e for e in events(tmp_path / "r") if "batch" in e][-1]
    assert last["step"] in planted[1] and max(losses(tmp_path / "r")) <= last["step"]
    # the same command would stop there again; as the message says
    again = sets(**planted[2], on_spike="skip", out=str(tmp_path / "r"), resume="auto")
    assert run(planted[0], again)["status"] == "done"


def test_a_gradient_of_zeros_is_called_so(pretrain, tmp_path):
    with pytest.raises(TrainError, match=r"step 1: no gradient: loss 5\.\d+, gradient norm 0\.000"):
        run(pretrain, sets(model__init_std=0.0, out=str(tmp_path / "r")))


def test_slow_steps_and_waiting_for_data():
    watch = object.__new__(anomalies.AnomalyDetector)
    watch.step_seconds = anomalies.deque(maxlen=5)
    said = [
        watch.slow_events(10 * i, s, 10, w) for i, (s, w) in enumerate([(1, 0.5), (1, 0), (1, 0.01), (1, 0.2), (3, 0)])
    ]
    assert [[e["event"] for e in found] for found in said] == [[], [], [], ["waiting for data"], ["slow steps"]]
    assert monitor_text.event_text(said[4][0]) == "slow steps: 0.300 s each, usually 0.100 s"
