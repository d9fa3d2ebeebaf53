"""The parts of the two parameter-golf systems against values that the authors' own scripts gave.

S2 is PR #465, S4 is PR #352 of openai/parameter-golf. Numbers of sections are those of the specification made from the
scripts (see tests/harness/golf_toy.py); values have six digits, fp32 on a CPU.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from golf_toy import S2, S4, V, batch, flip_rotary_rows, toy, waves
from torch import Tensor

from train.config import ModelConfig
from train.model.attention import rope_frequencies, rope_tables, rotate
from train.model.bigram import bigram_rows
from train.model.layers import RMSNorm
from train.model.smear import Smear
from train.model.transformer import Model, build, check_parameters, count_parameters

IDS, TARGETS = batch()
TOYS = {"S2": S2, "S4": S4}
FULL_S2 = dataclasses.replace(
    S2,
    dim=512,
    n_layers=10,
    n_heads=8,
    n_kv_heads=4,
    mlp_hidden=1536,
    max_seq_len=2048,
    bigram_buckets=4096,
    bigram_dim=128,
    expect_params=24_730_705,
)
FULL_S4 = dataclasses.replace(
    FULL_S2,
    memory_tokens=64,
    rope_dims=16,
    depth_scale=True,
    bigram_buckets=10240,
    bigram_init="zero",
    init="linear",
    mtp_heads=2,
    expect_params=26_598_481,
)


def near(found: Tensor | float, wanted: list[float] | float, tolerance: float = 2e-6) -> bool:
    """Whether values agree to the six digits that are written; far from 1, to seven figures."""
    found, wanted = torch.as_tensor(found).detach().flatten(), torch.tensor(wanted).flatten()
    return torch.allclose(found, wanted, rtol=1e-6, atol=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# 1.3 Pieces


def test_1_3_smear():
    smear = Smear(2)
    smear.gate.data = torch.tensor([0.0, 1.0])
    x, starts = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), torch.tensor([[True, False, False]])
    assert near(smear(x, starts), [[0.5, 0.537883], [2, 2.537883], [4, 4.537883]])
    masked = smear(x, starts, torch.tensor([[False, True, False]]))  # BOS at t = 1
    assert near(masked, [[0.5, 0.537883], [3, 4], [4, 4.537883]])


@pytest.mark.parametrize(
    ("ids", "buckets", "rows"),
    [
        ([5, 17, 1023, 0, 0, 511], 4096, [4095, 2353, 3743, 3153, 0, 1498]),
        ([5, 17, 1023, 0, 0, 511], 10240, [10239, 4291, 2444, 7269, 0, 2875]),
        ([5, 17, 1023, 0, 0, 511], 32, [31, 19, 26, 0, 0, 25]),
        ([1, 1, 2, 1, 1022], 4096, [4095, 2044, 412, 2492, 1501]),
        ([1, 1, 2, 1, 1022], 10240, [10239, 8179, 2446, 2489, 6304]),
        (IDS[0].tolist(), 32, [31, 19, 28, 22, 24, 12, 25, 13, 24, 5, 0, 23, 25, 8, 13, 29]),  # 4, first line
    ],
)
def test_1_3_rows_of_bigrams(ids, buckets, rows):
    starts = (torch.arange(len(ids)) == 0)[None]
    assert bigram_rows(torch.tensor([ids]), starts, buckets)[0].tolist() == rows


def test_1_3_rotary_positions():
    """The originals turn by -theta: with the second half negated ahead and behind it is ours, to the bit."""
    x = (torch.arange(16) + 1) / 16
    cos, sin = rope_tables(4, 16, 10000.0)
    signs = torch.tensor([1.0] * 8 + [-1.0] * 8)
    turned = rotate((x * signs).view(1, 1, 1, 16), cos[3:, None], sin[3:, None]).flatten() * signs
    wanted = [0.017505, 0.580750, 0.382296, 0.319920, 0.336731, 0.383284, 0.440311, 0.500948]
    wanted += [-0.565691, 0.262640, 0.601384, 0.722946, 0.802761, 0.871403, 0.936183, 0.999525]
    assert near(turned, wanted)
    wider = torch.cat([x * signs, x]).view(1, 1, 1, 32)  # rope_dims: the rest stays
    assert torch.equal(rotate(wider, cos[3:, None], sin[3:, None]).flatten(), torch.cat([turned * signs, x]))


def test_1_3_frequencies_in_bfloat16():
    wanted = [1, 0.31640625, 0.10009766, 0.03173828, 0.01000977, 0.00315857, 0.00099945, 0.00031662]
    assert near(rope_frequencies(16, 10000.0, "bf16_freq").float(), wanted, 5e-9)
    assert rope_frequencies(64, 10000.0, "bf16_freq")[:4].tolist() == [1, 0.75, 0.5625, 0.421875]
    assert rope_frequencies(64, 10000.0)[1].item() == pytest.approx(10000 ** (-2 / 64), abs=1e-15)
    rounded, exact = (rope_tables(2048, 16, 10000.0, kind)[0] for kind in ("bf16_freq", "fp32"))
    assert torch.equal(rounded[:, 0], exact[:, 0])  # a frequency of 1
    assert not torch.equal(rounded[:, 1:], exact[:, 1:])
    assert near(exact[1003, :3], [-0.6734, -0.9923, 0.9734], 5e-5)


def test_1_3_the_eps_of_the_norm():
    x = torch.tensor([0.005, -0.005, 0.005, 0.005])
    for eps, wanted in ((0.0078125, 0.0564782), (2.0**-23, 0.9976243)):
        assert near(RMSNorm(4, eps, "plain")(x), [wanted, -wanted, wanted, wanted], 5e-8)


# ---------------------------------------------------------------------------------------------------------------------
# 2.2, 3.4 Parameters and first values


def test_2_2_and_3_4_counts():
    assert check_parameters(FULL_S2, 1024) == 24_730_705
    assert check_parameters(FULL_S4, 1024) == 26_598_481
    assert count_parameters(FULL_S4.without_training_parts(), 1024) == 25_549_905
    assert FULL_S2.without_training_parts() is FULL_S2


def shapes_of(cfg: ModelConfig) -> dict[str, int]:
    """Return the number of parameters by the last words of their names, over all blocks."""
    counts: dict[str, int] = {}
    for name, parameter in Model(cfg, 1024).named_parameters():
        name = name.split(".", 2)[2] if name.startswith("blocks.") else name
        counts[name] = counts.get(name, 0) + parameter.numel()
    return counts


def test_2_2_each_tensor():
    with torch.device("meta"):
        counts = shapes_of(FULL_S2)
    assert counts == {
        "embed.weight": 524_288,
        "bigram.embed.weight": 524_288,
        "bigram.proj.weight": 65_536,
        "bigram.scale": 1,
        "smear.gate": 512,
        "skip": 2_560,
        "attn_scale": 5_120,
        "mlp_scale": 5_120,
        "x_mix": 5_120,
        "x0_mix": 5_120,
        "attn.q_gain": 80,
        "attn.q.weight": 2_621_440,
        "attn.k.weight": 1_310_720,
        "attn.v.weight": 1_310_720,
        "attn.o.weight": 2_621_440,
        "mlp.up.weight": 7_864_320,
        "mlp.down.weight": 7_864_320,
    }
    with torch.device("meta"):
        counts_s4 = shapes_of(FULL_S4)
    assert {name: n for name, n in counts_s4.items() if counts.get(name) != n} == {
        "bigram.embed.weight": 1_310_720,
        "memory.tokens": 32_768,
        "mtp.heads.0.weight": 524_288,
        "mtp.heads.1.weight": 524_288,
    }


def shallow(cfg: ModelConfig) -> ModelConfig:
    """Return `cfg` of two layers, at full width: first values are drawn in a moment."""
    return dataclasses.replace(cfg, n_layers=2, expect_params=None)


def test_2_2_first_values_of_s2():
    model = build(shallow(FULL_S2), 1024, seed=0)
    values = {name: p.detach() for name, p in model.named_parameters()}
    ones, zeros, eye = torch.ones(512), torch.zeros(512), torch.eye(512)
    assert values["embed.weight"].std().item() == pytest.approx(0.005, rel=0.01)
    assert not values["bigram.embed.weight"].any()
    proj = values["bigram.proj.weight"]  # (512, 128): orthogonal columns
    assert torch.allclose(proj.T @ proj, torch.eye(128) / (2 * 2), atol=1e-5)
    assert near(values["bigram.scale"], 0.05) and torch.equal(values["smear.gate"], zeros)
    for at in ("blocks.0", "blocks.1"):
        assert torch.equal(values[f"{at}.attn_scale"], ones) and torch.equal(values[f"{at}.mlp_scale"], ones)
        assert torch.equal(values[f"{at}.x_mix"], ones) and torch.equal(values[f"{at}.x0_mix"], zeros)
        assert torch.equal(values[f"{at}.attn.q_gain"], torch.full((8,), 1.5))
        assert not values[f"{at}.attn.o.weight"].any() and not values[f"{at}.mlp.down.weight"].any()
        q, k, up = (values[f"{at}.{name}.weight"] for name in ("attn.q", "attn.k", "mlp.up"))
        assert torch.allclose(q @ q.T, eye, atol=1e-5)
        assert torch.allclose(k @ k.T, torch.eye(256), atol=1e-5)
        assert torch.allclose(up.T @ up, eye, atol=1e-5)
    assert "blocks.0.skip" not in values and torch.equal(values["blocks.1.skip"], ones)
    ids = torch.randint(0, 1024, (1, 65), generator=torch.Generator().manual_seed(0))
    loss, _ = model(ids[:, :-1], ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(1024), abs=0.02)  # every block is the identity, and |z| is small


def test_3_4_first_values_of_s4():
    model = build(shallow(FULL_S4), 1024, seed=0)
    values = {name: p.detach() for name, p in model.named_parameters()}
    assert values["embed.weight"].std().item() == pytest.approx(0.005, rel=0.01)
    assert values["memory.tokens"].std().item() == pytest.approx(0.02, rel=0.02)
    for name in ("bigram.embed.weight", "bigram.proj.weight", "mtp.heads.0.weight", "mtp.heads.1.weight"):
        assert not values[name].any()
    for name in ("attn.q", "attn.k", "attn.v", "mlp.up"):
        weight = values[f"blocks.1.{name}.weight"]
        assert 0.0441 < weight.abs().max().item() <= 0.044194174
        assert weight.std().item() == pytest.approx(0.044194174 / math.sqrt(3), rel=0.01)
    assert not values["blocks.1.attn.o.weight"].any() and not values["blocks.1.mlp.down.weight"].any()


def test_6_defect_1_a_bigram_of_zeros_has_no_gradient_and_an_orthogonal_one_has():
    for first, trains in (("zero", False), ("orthogonal", True)):
        model = build(dataclasses.replace(S4, bigram_init=first), V, seed=0)
        model(IDS, TARGETS)[0].backward()
        assert bool(model.bigram.embed.weight.grad.any()) == trains
        assert not model.bigram.proj.weight.grad.any()  # in both the table is 0 at first


# ---------------------------------------------------------------------------------------------------------------------
# 4. The toy model

FORWARD = {  # what: (rows of S2, rows of S4)
    "bigram [0,1,:4]": ([0.000681, 0.001511, 0.000165, 0.000738], [0.002421, 0.002515, 0.000016, 0.000205]),
    "norm [0,1,:4]": ([-0.581035, -1.381622, -1.031892, 0.210616], [-1.374461, -0.959797, 0.259254, 1.282299]),
    "smear [0,1,:4]": ([-0.957602, -0.236794, -0.691023, -0.101556], [-1.234056, 0.224722, -0.569268, 1.101247]),
    "x0 [0,0,:4]": ([-0.718902, 0.499597, -0.176114, -0.188322], [0, 0.917898, 1.401912, 1.205766]),
    "x0 [0,4,:4]": ([1.068775, 0.743395, 0.066858, -0.173091], [0.044565, -0.610516, -0.890340, -0.435979]),
    "attn 0 in [1,9,:3]": ([0.934711, -0.179278, 1.110966], [0.581082, -0.381048, -0.121595]),
    "attn 0 out [1,9,:3]": ([0.330325, -0.087183, -1.034534], [0.446361, -0.689507, 0.167625]),
    "mlp 0 out [1,9,:3]": ([-1.074455, 1.417654, -1.326928], [-13.965189, -6.766919, -4.351227]),
    "block 0 out [1,9,:3]": ([-0.187662, 1.345030, -1.811268], [-14.464830, -8.238150, -4.259970]),
    "block 1 out [1,9,:3]": ([0.392677, 5.390344, -1.946560], [-13.621346, -6.819461, -6.451166]),
    "block 2 in [1,9,:3]": ([0.785354, 11.129178, -4.085327], [-28.388887, -14.314917, -13.332345]),
    "block 3 out [1,9,:3]": ([-7.763647, 19.027710, -11.533103], [-46.905483, -24.536219, -17.671968]),
    "final norm [1,15,:4]": ([0.319909, 0.696443, -2.915103, -0.428367], [1.649675, 2.168771, -1.114356, 0.882864]),
}
GRADIENTS = {  # of S2 and S4
    "embed.weight": (2.155394, 2.114658),
    "bigram.embed.weight": (0.135301, 0.056098),
    "bigram.proj.weight": (0.124694, 0.056353),
    "bigram.scale": (0.065923, 0.192435),
    "smear.gate": (0.082603, 0.100210),
    "skip": (0.096515, 0.106295),
    "blocks.0.attn.q.weight": (0.468712, 0.840187),
    "blocks.0.attn.k.weight": (0.494387, 0.687232),
    "blocks.3.attn.o.weight": (0.087606, 0.040206),
    "blocks.2.mlp.up.weight": (0.316367, 0.122829),
    "blocks.1.mlp.down.weight": (0.585196, 0.314623),
    "blocks.0.attn.q_gain": (0.061864, 0.030755),
    "blocks.0.mix": (0.328651, 0.281071),
    "memory.tokens": (0.0, 0.706505),
}


def watched_forward(model: Model) -> dict[str, Tensor]:
    """Run the toy batch and return what the table of section 4 looks at, by its names without the places."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, of: str = "out"):
        def hook(module, inputs, output):
            seen[name] = (inputs[0] if of == "in" else output).detach()

        return hook

    model.bigram.register_forward_hook(keep("bigram"))
    model.embed_norm.register_forward_hook(keep("norm"))
    model.smear.register_forward_hook(keep("smear"))
    model.blocks[0].register_forward_hook(keep("x0", "in"))
    model.blocks[0].attn.register_forward_hook(keep("attn 0 in", "in"))
    model.blocks[0].attn.register_forward_hook(keep("attn 0 out"))
    model.blocks[0].mlp.register_forward_hook(keep("mlp 0 out"))
    model.blocks[2].register_forward_hook(keep("block 2 in", "in"))
    for layer in (0, 1, 3):
        model.blocks[layer].register_forward_hook(keep(f"block {layer} out"))
    model.norm.register_forward_hook(keep("final norm"))
    model(IDS, TARGETS)
    return seen


@pytest.mark.parametrize("system", TOYS)
def test_4_forward(system):
    seen = watched_forward(toy(TOYS[system]))
    for what, rows in FORWARD.items():
        name, place = what.rsplit(" ", 1)
        b, t, count = (int(n.strip(":")) for n in place.strip("[]").split(","))
        assert near(seen[name][b, t, :count], rows[system == "S4"]), (what, seen[name][b, t, :count])


@pytest.mark.parametrize("system", TOYS)
def test_4_loss_and_gradient_norms(system):
    model, column = toy(TOYS[system]), int(system == "S4")
    total, ce = model(IDS, TARGETS)
    total.backward()
    assert near(total, (4.872219, 4.383133)[column]) and torch.equal(total.detach(), ce)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    gradients["skip"] = torch.stack([gradients["blocks.2.skip"], gradients["blocks.3.skip"]])
    gradients["blocks.0.mix"] = torch.stack([gradients["blocks.0.x_mix"], gradients["blocks.0.x0_mix"]])
    for name, norms in GRADIENTS.items():
        assert name not in gradients or near(gradients[name].norm(), norms[column]), (name, gradients[name].norm())
    whole = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert near(whole, (3.654259, 3.506795)[column])


def test_4_logits():
    with torch.no_grad():
        s2, s4 = toy(S2), toy(S4)
        logits = s2.logits(s2.trunk(IDS))
        assert near(logits[0, 0, :4], [-0.174455, -0.064967, 0.016035, 0.295352])
        assert near(logits[1, -1, :4], [-1.300608, 2.339952, 1.057294, -0.630312])
        in_front = torch.nn.functional.pad(IDS, (4, 0))  # as sliding evaluation does it
        logits = s4.logits(s4.trunk(in_front, start=4))
        assert near(logits[0, 0, :4], [-0.562162, -1.535969, -0.523661, -0.055902])  # a memory row
        assert near(logits[0, 4, :4], [-0.037746, -0.036068, 0.463805, 0.273035])  # the first of the text
        assert near(logits[1, -1, :4], [1.384489, 0.454936, -1.051813, 1.347404])


def test_4_variants_of_memory():
    model = toy(S4)
    nats = model.score(IDS, TARGETS, memory_in_front=True)
    assert near(nats.mean(), 4.714978) and near(nats[:, 4:].mean(), 4.490119)
    model.memory.tokens.data = model.memory.tokens.data.flip(0)
    assert near(model(IDS, TARGETS)[0], 4.379376)
    assert near(model.score(IDS, TARGETS, memory_in_front=True).mean(), 4.723280)
    without = Model(dataclasses.replace(S4, memory_tokens=0), V)
    state = toy(S4).state_dict()
    del state["memory.tokens"]
    without.load_state_dict(state)
    assert near(without(IDS, TARGETS)[0], 4.760130)


def test_3_2_memory_rows_are_no_targets_and_their_ids_act_through_what_looks_back():
    model = toy(S4)
    loss = model(IDS, TARGETS)[0]
    assert torch.allclose(model.score(IDS, TARGETS)[:, 4:].mean(), loss, atol=1e-6)
    for position, changes in ((1, False), (2, True), (3, True)):
        other = IDS.clone()
        other[:, position] = 0
        moved = (model(other, TARGETS)[0] - loss).abs().item()
        assert (moved > 0) == changes, (position, moved)
    assert moved == pytest.approx(3.0e-3, abs=5e-5)  # of the last id that memory covers
    model.memory.tokens.data *= 3  # only their direction matters, but for eps
    assert near(model(IDS, TARGETS)[0], 4.38313437)
    targets = TARGETS.clone()
    targets[0, 2] = targets[0, 9] = -100  # one where memory stands, and one elsewhere
    padded = model(IDS, targets, int((targets != -100).sum()))[0]
    nats = model.score(IDS, TARGETS)[:, 4:]
    assert torch.allclose(padded, (nats.sum() - nats[0, 5]) / 23, atol=1e-6)


def test_4_further_heads():
    cfg = dataclasses.replace(S4, mtp_heads=2)
    zero = toy(cfg)
    total, ce = zero(IDS, TARGETS)
    assert near(total, 5.214910) and near(total - ce, 0.2 * math.log(64)) and near(ce, 4.383133)
    filled = toy(cfg)
    for k, head in enumerate(filled.mtp.heads):
        head.weight.data = (0.2 * waves((V, 64), 100 + k)).float()
    total, ce = filled(IDS, TARGETS)
    assert near(total, 5.284226) and near((total - ce) / 0.2, 4.505465, 5e-6)
    filled.mtp_weight = 0.1  # as the trainer lowers it
    assert near(filled(IDS, TARGETS)[0], 4.383133 + 0.1 * 4.505465)
    counted = filled(IDS, TARGETS, TARGETS.numel())[0]  # counted one by one, and not by their places
    assert torch.equal(counted, filled(IDS, TARGETS)[0])
    filled.eval()
    assert near(filled(IDS, TARGETS)[0], 4.383133)


def test_flipped_rows_turn_back():
    weight = torch.randn(64, 64)
    for cfg in (S2, S4):
        flipped = flip_rotary_rows(weight, cfg)
        assert torch.equal(flip_rotary_rows(flipped, cfg), weight) and not torch.equal(flipped, weight)
