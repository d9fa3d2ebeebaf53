"""Twelve steps of both parameter-golf records' toy models, through our whole trainer, against what their scripts did.

Section 5 of the specification: produced by the scripts' own `main` in fp32 on a CPU. Data in sequential order, 8
micro-steps of 2 rows, warm-up steps that are undone, the published rates, momenta, decays and clipping; the second
system ends with a step in six bits. Its printed loss is what is trained, with the heads for further tokens.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from golf_data import make_toy_mixture
from golf_toy import S2, S4, fill, flip_rotary_rows
from trainer_harness import TRAIN, metrics, sets

from train import artefact, main
from train.checkpoint.checkpoint import find_checkpoint
from train.config import ModelConfig
from train.model.transformer import Model
from train.optim import averages
from train.score import Scorer

BOTH = {
    "steps": 12,
    "batch_size": 16,
    "seq_len": 16,
    "micro_batch": 2,
    "order": "sequential",
    "schedule": {"kind": "warmdown", "warmdown": 6},
    "kernel_warmup": 2,
    "grad_clip": 0.3,
    "adamw": {"eps": 1e-8},
    "eval_every": 4,
    "eval_tokens": 0,
    "checkpoint_every": 1,
    "keep_last": 0,
}
MUON = {"ns": "jordan5", "scale": "aspect", "weight_decay": 0.04}
RECORD_S2 = {
    "muon": {**MUON, "lr": 0.02, "momentum": 0.99, "momentum_start": 0.92, "momentum_warmup": 1500},
    "groups": {"tokens": {"lr": 0.03, "weight_decay": 0.01}, "scalars": {"lr": 0.02, "weight_decay": 0.01}},
    "swa": {"start_frac": 0.5, "every": 1},
    "eval_counting": "pr465",
}
RECORD_S4 = {
    "muon": {
        **MUON,
        "lr": 0.04,
        "momentum": 0.95,
        "momentum_start": 0.85,
        "momentum_warmup": 500,
        "decay_order": "after",
    },
    "groups": {
        "tokens": {"lr": 0.05, "weight_decay": 0.04},
        "scalars": {"lr": 0.04, "weight_decay": 0.04},
        "memory": {"lr": 0.04, "weight_decay": 0.0},
        "mtp": {"lr": 0.008, "weight_decay": 0.0},
    },
    "ema": {"decay": 0.997**10, "every": 10},
    "qat": {"start_frac": 0.4, "rule": "int6"},
    "eval_counting": "pr352",
}
MODEL_S4 = dataclasses.replace(S4, mtp_heads=2, mtp_decay="previous_rate")

pytestmark = pytest.mark.slow

LOSS_S2 = [4.7528672, 4.7401047, 4.5318666, 4.6858506, 4.5696793, 4.7003784, 4.6453156, 4.6299357]
LOSS_S2 += [4.6274104, 4.5602651, 4.4745097, 4.4427114]
NORM_S2 = [1.352184, 1.333461, 1.286275, 1.355325, 1.309796, 1.377648, 1.299291, 1.370796]
NORM_S2 += [1.300230, 1.200358, 1.185944, 1.178024]
LOSS_S4 = [5.7338791, 5.6515546, 5.5465183, 5.6904197, 5.3523507, 5.6489668, 5.5326929, 5.4547682]
LOSS_S4 += [5.3289557, 5.1223440, 4.9168520, 4.5831003]
NORM_S4 = [1.431753, 1.491855, 1.509356, 1.524598, 1.387224, 1.614184, 1.561034, 1.234555]
NORM_S4 += [1.215650, 1.188326, 1.171013, 0.997522]


@dataclasses.dataclass
class GoldenRun:
    folder: object
    cfg: ModelConfig
    totals: list[float]  # of each step what was trained, the mean of its micro-steps

    def logged(self, name):
        return [line[name] for line in metrics(self.folder) if "loss" in line]

    def scores(self):
        lines = [line for line in metrics(self.folder) if "val_loss" in line]
        return {line["step"]: (line["val_loss"], line["val_bits_per_byte"]) for line in lines}

    def weights(self, step, average=""):
        point = find_checkpoint(self.folder / f"checkpoints/step_{step:06d}", "k")
        if average:
            return averages.weights(point.tensors("optimizer.safetensors"), average)
        return point.tensors("model.safetensors")


def toy_mixture(root, cfg, record):
    """The mixture with a recipe that is the record's; the manifest's path."""
    model = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(ModelConfig)}
    return make_toy_mixture(root / "toy" / "pretrain", model, {"pretrain": {**TRAIN, **BOTH, **record}}, "pretrain")


def train_toy(root, cfg, record):
    """Train a filled toy model by the whole trainer, and keep what it was trained on beside what it logs."""
    manifest = toy_mixture(root, cfg, record)
    totals = []

    class Filled(Model):
        def forward(self, *args):
            total, ce = super().forward(*args)
            totals.append(float(total.detach()))
            return total, ce

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "build", lambda model_cfg, vocab, seed, bos: fill(Filled(model_cfg, vocab, bos)))
        main.run(manifest, sets(out=str(root / "run")))
    micro_steps = torch.tensor(totals, dtype=torch.float64).view(-1, 8)[2:]  # two steps were undone
    return GoldenRun(root / "run", cfg, micro_steps.mean(1).tolist())


@pytest.fixture(scope="module")
def s2(tmp_path_factory):
    return train_toy(tmp_path_factory.mktemp("s2"), S2, RECORD_S2)


@pytest.fixture(scope="module")
def s4(tmp_path_factory):
    return train_toy(tmp_path_factory.mktemp("s4"), MODEL_S4, RECORD_S4)


@pytest.fixture(scope="module")
def unfilled(tmp_path_factory):
    """The second system with the first values that its script gives it: the manifest, and the folder of 12 steps."""
    root = tmp_path_factory.mktemp("unfilled")
    manifest = toy_mixture(root, dataclasses.replace(MODEL_S4, init_std=0.02), RECORD_S4)
    main.run(manifest, sets(out=str(root / "run")))
    return manifest, root / "run"


def test_losses_and_gradient_norms_of_twelve_steps(s2, s4):
    """Our norms are all low by some 5e-6: one sum in fp32 over all values, where the scripts add up sums of tensors."""
    assert s2.logged("loss") == pytest.approx(LOSS_S2, abs=1e-6)
    assert s2.totals == pytest.approx(LOSS_S2, abs=1e-6)
    assert s4.totals == pytest.approx(LOSS_S4, abs=1e-6)
    assert s2.logged("grad_norm") == pytest.approx(NORM_S2, abs=1e-5)
    assert s4.logged("grad_norm") == pytest.approx(NORM_S4, abs=1e-5)


def test_plain_scores_in_between(s2, s4):
    for run, want in (
        (
            s2,
            {
                0: (4.6837411, 2.6401797),
                4: (4.5893812, 2.5869900),
                8: (4.5513673, 2.5655619),
                12: (4.4593821, 2.5137107),
            },
        ),
        (
            s4,
            {
                0: (4.8040622, 2.7080036),
                4: (4.7870478, 2.6984128),
                8: (4.4852800, 2.5283091),
                12: (4.2946225, 2.4208373),
            },
        ),
    ):
        scores = run.scores()
        for step, both in want.items():
            assert scores[step] == pytest.approx(both, abs=2e-6), step


def first_and_sum(run, weights, name):
    """The first three values of a tensor in the scripts' order and sign, and the sum of all."""
    tensor = weights[name]
    if name.endswith(("attn.q.weight", "attn.k.weight")):
        tensor = flip_rotary_rows(tensor, run.cfg)
    return [*tensor.flatten()[:3].tolist(), float(tensor.double().sum())]


@pytest.mark.parametrize(
    ("system", "name", "want"),
    [
        ("s2", "embed.weight", [0.198243, 0.168200, 0.103273, -14.885469]),
        ("s2", "blocks.0.attn.q.weight", [-0.105424, -0.196077, -0.177795, 12.857847]),
        ("s2", "blocks.3.mlp.up.weight", [0.006857, 0.131915, 0.198218, -5.100391]),
        ("s2", "bigram.proj.weight", [-0.158614, -0.204546, -0.151426, 5.325146]),
        ("s2", "blocks.0.attn.q_gain", [1.560903, 1.492241, 1.436266]),
        ("s2", "bigram.scale", [0.160902]),
        ("s4", "embed.weight", [0.231495, 0.034763, -0.003319, -5.390744]),
        ("s4", "blocks.0.attn.q.weight", [-0.200366, -0.153509, -0.033566, 10.319942]),
        ("s4", "blocks.3.mlp.up.weight", [0.176176, 0.203780, 0.127808, -4.728858]),
        ("s4", "memory.tokens", [-0.040000, 0.169302, 0.157484, 0.188120]),
        ("s4", "bigram.scale", [0.024009]),
    ],
)
def test_weights_after_a_step(system, name, want, request):
    run = request.getfixturevalue(system)
    got = first_and_sum(run, run.weights(1), name)[: len(want)]
    assert got[:3] == pytest.approx(want[:3], abs=1e-6) and got[3:] == pytest.approx(want[3:], abs=1e-4)


@pytest.mark.parametrize(
    ("system", "average", "name", "want"),
    [
        ("s2", "swa", "embed.weight", [0.280338, 0.017420, -0.060700, -8.163033]),
        ("s2", "swa", "blocks.0.attn.q.weight", [-0.103021, -0.178017, -0.194777]),
        ("s4", "ema", "embed.weight", [0.183294, 0.081564, -0.049668, -6.329629]),
        ("s4", "ema", "memory.tokens", [-0.000799, 0.129795, 0.189053, 0.460839]),
    ],
)
def test_averages_after_twelve_steps(system, average, name, want, request):
    run = request.getfixturevalue(system)
    got = first_and_sum(run, run.weights(12, average), name)[: len(want)]
    assert got[:3] == pytest.approx(want[:3], abs=2e-6) and got[3:] == pytest.approx(want[3:], abs=2e-4)


def told(folder):
    return json.loads((folder / "summary.json").read_text())["dead_parts"]


def test_3_4_the_record_says_that_its_bigram_never_trains_and_the_mended_one_does_not(unfilled, tmp_path):
    """Two zero factors have no gradient for ever; decay alone moves the scale behind them."""
    manifest, folder = unfilled
    assert told(folder) == {
        "parameters": {
            "bigram.scale": "1 values without a gradient in 12 step(s) looked at",
            "bigram.embed.weight": "512 values that never moved",
            "bigram.proj.weight": "1,024 values that never moved",
        },
        "outputs": ["bigram"],
        "compiled": [],
    }
    main.run(manifest, sets(out=str(tmp_path / "fixed"), steps=10, model__bigram_init="orthogonal"))
    assert told(tmp_path / "fixed") == {"parameters": {}, "outputs": [], "compiled": []}


def test_decay_alone_moves_the_scale_as_in_the_record(unfilled):
    """0.1: .05 becomes .04976 in 3 steps."""
    scale = find_checkpoint(unfilled[1] / "checkpoints/step_000003", "k").tensors("model.safetensors")["bigram.scale"]
    assert float(scale) == pytest.approx(0.05 * (1 - 0.04 * 0.04) ** 3, abs=1e-8) == pytest.approx(0.04976, abs=5e-6)


@pytest.mark.parametrize("step", [4, 11])
def test_a_resume_continues_the_record_to_the_bit(unfilled, tmp_path, step):
    """From before the rate falls, and where the average has begun and the last step is made in six bits."""
    manifest, whole = unfilled
    folder = tmp_path / "run"
    main.run(manifest, sets(out=str(folder), resume=str(whole / f"checkpoints/step_{step:06d}")))
    theirs, mine = ({m["step"]: m for m in metrics(f) if "loss" in m} for f in (whole, folder))
    assert {s: m["loss"] for s, m in mine.items()} == {s: m["loss"] for s, m in theirs.items() if s > step}
    points = [find_checkpoint(f, "k") for f in (whole, folder)]
    assert points[0].state["qat"] is points[1].state["qat"] is True
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = (point.tensors(file) for point in points)
        assert one.keys() == other.keys() and [k for k in one if not torch.equal(one[k], other[k])] == []


# ---------------------------------------------------------------------------------------------------------------------
# 5, "Ends": the averages, as they are exported


def score_artefact(run, capsys, *arguments):
    """Pack the run's average as its record did. Returns (nats, bits per byte) behind it by window: plain, sliding."""
    scores = []
    with pytest.MonkeyPatch.context() as patch:
        of = Scorer.score
        patch.setattr(Scorer, "score", lambda *args, **kwargs: scores.append(of(*args, **kwargs)) or scores[-1])
        status = artefact.main([str(run.folder), "--tokens", "0", "--stride", "4", *arguments])
    printed = capsys.readouterr().out
    assert status == 0 and "of code" in printed
    plain, sliding = scores[1].values()  # before, after, and then one without each rule
    return printed, (plain.nats, plain.bits_per_byte), (sliding.nats, sliding.bits_per_byte)


def test_5_the_end_of_s2(s2, capsys):
    printed, _, sliding = score_artefact(s2, capsys)
    assert ", swa, counted as pr465" in printed
    # fp16 turns noise of 3e-7 in the weights, which twelve steps have, into some 5e-6 of the score
    assert sliding == pytest.approx((4.44554901, 2.53488779), abs=5e-6)


def test_5_the_end_of_s4(s4, capsys):
    printed, plain, sliding = score_artefact(s4, capsys, "--window", "8", "--set", "train.artefact.int8_first=true")
    assert ", ema, counted as pr352" in printed
    assert plain == pytest.approx((4.76393185, 2.68538251), abs=5e-6)
    assert sliding == pytest.approx((4.75363810, 2.66233886), abs=5e-6)
    controls = ["*_scale", "*_mix", "*.q_gain", "*.skip", "smear.*", "bigram.*"]
    rules = json.dumps([*(f"fp32 {name}" for name in controls), "fp16 *"])
    first = ["--set", "train.artefact.keep_numel=0", f"train.artefact.rules={rules}"]  # the first export: int8
    assert score_artefact(s4, capsys, *first)[1] == pytest.approx((4.76392541, 2.68537888), abs=5e-6)
