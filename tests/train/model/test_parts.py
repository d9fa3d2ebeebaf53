"""Any combination of the model's parts: causal, counted as built, the same with a cache, nothing where it is off."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_near

from train.config import ConfigError, ModelConfig, TrainConfig
from train.generate import KVCache
from train.micro_batch import activation_bytes
from train.model.layers import Linear, RMSNorm
from train.model.transformer import Model, build, count_parameters
from train.monitor.report import print_model
from train.optim.optimizer import Optimizer
from train.overrides import configs

V, BOS = 50, 1
BASE = ModelConfig(dim=24, n_layers=4, n_heads=4, max_seq_len=32, sliding_window=5, mlp_hidden=20, init_std=0.3)
PARTS = {  # each key with what it may be, its default first
    "n_kv_heads": [None, 1, 2],
    "head_dim": [None, 8],
    "qk_norm": ["none", "rms", "weighted"],
    "q_gain": [None, 1.5],
    "mlp": ["swiglu", "geglu", "relu2"],
    "attention_pattern": ["gemma4", "all_global"],
    "layer_kinds": [None, ("global", "sliding", "sliding", "sliding")],
    "rope_base_global": [None, 1e6],
    "rope_dims": [None, 2],
    "rope_table": ["fp32", "bf16_freq"],
    "norm": ["weighted", "one_plus", "plain"],
    "sandwich_norms": [False, True],
    "embed_norm": [False, True],
    "embed_scale": ["none", "sqrt_dim", "sqrt_dim_rounded"],
    "smear": [False, True],
    "bigram_buckets": [0, 16],
    "memory_tokens": [0, 3],
    "residual_mix": [False, True],
    "branch_scales": [False, True],
    "depth_scale": [False, True],
    "unet_skips": [False, True],
    "mtp_heads": [0, 2],
    "engram_enabled": [False, True],
    "tie_embeddings": [True, False],
    "init": ["normal", "orthogonal", "linear"],
}
configurations = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in PARTS.items()}).map(
    lambda parts: dataclasses.replace(BASE, engram_slots=5, engram_inject_layer=2, bigram_dim=8, **parts)
)


def some_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def moved(cfg: ModelConfig) -> Model:
    """Return a model whose every parameter is away from its first value, where many parts do nothing."""
    model = build(cfg, V, seed=1, bos_id=BOS).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden_states(ids, None, memory_in_front=True).view(*ids.shape, -1))


@pytest.mark.slow
@settings(max_examples=40)
@given(cfg=configurations, seed=st.integers(0, 99), position=st.integers(1, 11), pieces=st.lists(st.integers(1, 5)))
def test_any_combination_is_causal_and_the_same_with_a_cache(cfg, seed, position, pieces):
    model, ids = moved(cfg), some_ids(2, 12, seed)
    whole = logits(model, ids)
    other = ids.clone()
    other[:, position] = (other[:, position] + 1) % V
    changed = logits(model, other)
    assert_near(changed[:, :position], whole[:, :position])
    assert not torch.allclose(changed[:, position], whole[:, position])
    padding = torch.tensor([0, 4])  # the second text is the first's last 8 tokens, without a past
    cache, at, got = KVCache(model, 12, padding), 0, []
    for n in (*pieces, *[1] * 12):
        n = min(n, 12 - at)
        if n:
            got.append(model.logits(cache.read(torch.stack([ids[0, at : at + n]] * 2))))
        at += n
    found = torch.cat(got, 1)
    assert_near(found[0], whole[0])
    assert_near(found[1, 4:], logits(model, ids[:1, 4:])[0])


@pytest.mark.slow
@settings(max_examples=40)
@given(cfg=configurations)
def test_any_combination_is_counted_as_it_is_built_and_all_of_it_trains(cfg):
    model = moved(cfg).train()
    assert count_parameters(cfg, V) == sum(p.numel() for p in model.parameters())
    exported = {name for name, _ in model.named_parameters() if not name.startswith("mtp.")}
    assert {name for name, _ in Model(cfg.without_training_parts(), V).named_parameters()} == exported
    ids = some_ids(8, 13)
    total, ce = model(ids[:, :-1], ids[:, 1:])
    assert (total > ce) and (cfg.mtp_heads or torch.isclose(total, ce, rtol=1e-2))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    rule = Optimizer(model, TrainConfig())  # knows what to do with each
    assert {n for g in (*rule.muon_groups, *rule.adamw_groups) for n in g.names} == {
        n for n, _ in model.named_parameters()
    }
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    assert set(rule.muon_names) <= matrices


@pytest.mark.parametrize("key", [k for k in PARTS if k not in ("attention_pattern", "tie_embeddings", "init")])
def test_each_part_that_is_on_changes_what_comes_out(key):
    ids = some_ids(2, 12)
    base = dataclasses.replace(BASE, engram_slots=5, engram_inject_layer=2)
    for value in PARTS[key][1:]:
        if (key, value) == ("embed_scale", "sqrt_dim_rounded"):
            continue  # in fp32 it is sqrt_dim
        on = moved(dataclasses.replace(base, **{key: value})).train()
        off = moved(base).train()
        if {n for n, _ in on.named_parameters()} >= {n for n, _ in off.named_parameters()}:
            shapes = {n: p.shape for n, p in on.named_parameters()}
            same = {n: p for n, p in off.named_parameters() if shapes[n] == p.shape}
            on.load_state_dict(same, strict=False)
        assert on(ids[:, :-1], ids[:, 1:])[0].item() != off(ids[:, :-1], ids[:, 1:])[0].item(), (key, value)


def test_parts_that_start_as_nothing_leave_the_first_loss_as_it_is():
    """To the bit: a table of zeros, a mix of (1, 0), scales of 1, and heads beside the loss that is reported."""
    ids = some_ids(2, 13)
    off = build(BASE, V, seed=3)
    for key, value in {"bigram_buckets": 16, "residual_mix": True, "branch_scales": True, "mtp_heads": 2}.items():
        on = build(dataclasses.replace(BASE, **{key: value}), V, seed=3)
        for name, parameter in off.named_parameters():
            assert torch.equal(on.get_parameter(name), parameter), (key, name)
        assert on(ids[:, :-1], ids[:, 1:])[1].item() == off(ids[:, :-1], ids[:, 1:])[1].item(), key


def test_nothing_of_another_text_gets_past_a_masked_bos():
    cfg = dataclasses.replace(BASE, smear=True, smear_bos_mask=True)
    model, ids = moved(cfg), some_ids(1, 8).clamp(min=2)
    ids[0, 5] = BOS
    stream = model.embed_ids(ids, None, 0, None)
    assert torch.equal(stream[0, 5:], model.embed_ids(ids[:, 5:], None, 0, None)[0])
    assert not torch.equal(stream[0, 6], stream[0, 5])
    plain = moved(dataclasses.replace(BASE, smear=True))
    assert not torch.equal(plain.embed_ids(ids, None, 0, None)[0, 5], stream[0, 5])
    with pytest.raises(AssertionError):
        build(cfg, V, seed=0).embed_ids(ids, None, 0, None)  # which id is BOS?


def test_kinds_of_norm_are_their_formulas():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) * 3
    plain = x * (x.double().square().mean(-1, keepdim=True) + 1e-3).rsqrt().float()
    weight = torch.randn(8, generator=torch.Generator().manual_seed(1))
    for kind, factor in (("plain", torch.ones(8)), ("weighted", weight), ("one_plus", 1 + weight)):
        norm = RMSNorm(8, 1e-3, kind)
        if norm.weight is None:
            assert kind == "plain"
        else:
            assert torch.equal(norm(x), RMSNorm(8, 1e-3, "plain")(x))  # at its first value
            norm.weight.data = weight
        assert torch.allclose(norm(x), plain * factor, atol=1e-5)
        assert norm(x.bfloat16()).dtype == torch.bfloat16
    exact = RMSNorm(8, 1e-3, "one_plus")  # multiplied in fp32, rounded once
    exact.weight.data = weight
    y = x.bfloat16()
    assert torch.equal(exact(y), (RMSNorm(8, 1e-3, "plain")(y.float()) * (1 + weight)).bfloat16())


def test_first_values_follow_their_keys():
    orthogonal = build(dataclasses.replace(BASE, init="orthogonal", zero_init_out=True, embed_init_std=0.01), V, seed=0)
    block = orthogonal.blocks[2]
    assert torch.allclose(block.attn.q.weight @ block.attn.q.weight.T, torch.eye(24), atol=1e-5)
    assert not block.attn.o.weight.any() and not block.mlp.down.weight.any()
    assert orthogonal.embed.weight.std().item() == pytest.approx(0.01, rel=0.1)
    linear = build(dataclasses.replace(BASE, init="linear"), V, seed=0)
    assert linear.blocks[0].mlp.down.weight.abs().max().item() <= 20**-0.5
    assert linear.embed.weight.std().item() == pytest.approx(0.3, rel=0.1)
    ids = some_ids(1, 9)
    still = orthogonal.trunk(ids) - orthogonal.norm(orthogonal.embed(ids))
    assert not still.any()  # every block is the identity


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"n_kv_heads": 3}, r"model\.n_kv_heads = 3: must divide model\.n_heads = 8"),
        ({"dim": 100}, r"model\.n_heads = 8: must divide model\.dim = 100, or say model\.head_dim"),
        ({"rope_dims": 66}, r"model\.rope_dims = 66: must be even, and at most the width of a head, 64"),
        ({"rope_dims": 3}, r"model\.rope_dims = 3: must be even"),
        ({"layer_kinds": ["global"]}, r"model\.layer_kinds = global: must be sliding or global for each of .* = 12"),
        ({"layer_kinds": ["full"] * 12}, "expected a list of sliding, global or null"),
        ({"smear_bos_mask": True}, r"model\.smear_bos_mask = True: .*set model\.smear=true"),
        ({"bigram_buckets": 1}, r"model\.bigram_buckets = 1: must be 0, or at least 2"),
        ({"memory_tokens": 256}, r"train\.seq_len = 256: must be above model\.memory_tokens = 256"),
        ({"mtp_heads": 256}, r"train\.seq_len = 256: must be above model\.mtp_heads = 256"),
    ],
)
def test_what_cannot_be_is_said(model, message):
    with pytest.raises(ConfigError, match=message):
        configs({"model": model, "train": {"p": {}}}, "p", [], "here")


def test_memory_is_not_for_rows_that_documents_cut():
    recipe = {"model": {"memory_tokens": 4}, "train": {"p": {"document_mask": True}}}
    with pytest.raises(ConfigError, match=r"a row's first document alone would see model\.memory_tokens"):
        configs(recipe, "p", [], "here")


@pytest.mark.parametrize(
    "parts", [{}, {key: values[-1] for key, values in PARTS.items() if key not in ("init", "mlp")}]
)
def test_activations_are_what_the_estimate_says_at_most(parts):
    """What autograd keeps of a pass, against micro_batch's estimate, which has a quarter for losses on top."""
    cfg = dataclasses.replace(
        BASE, dim=64, mlp_hidden=128, max_seq_len=64, engram_slots=5, engram_inject_layer=2, **parts
    )
    model, ids = moved(cfg).train(), some_ids(16, 65)
    kept: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = model(ids[:, :-1], ids[:, 1:])
    total.backward()
    estimate = activation_bytes(cfg, V, 16 * 64, 4)
    assert estimate / 3 < sum(kept.values()) < estimate, (sum(kept.values()), estimate)


def test_a_run_names_the_parts_that_are_on_and_what_of_it_is_exported():
    def lines(cfg):
        said = []
        run = SimpleNamespace(model=Model(cfg, V), rt=SimpleNamespace(print_rank0=said.append))
        print_model(run, count_parameters(cfg, V))
        return said

    assert lines(BASE) == [f"model      {count_parameters(BASE, V):,} parameters: 4 layers of 24, gemma4, float32"]
    kinds = ("sliding", "sliding", "sliding", "global")
    cfg = dataclasses.replace(BASE, layer_kinds=kinds, n_kv_heads=2, smear=True, mtp_heads=1)
    first, parts, exported = lines(cfg)
    assert first.endswith("4 layers of 24, 3 sliding and 1 global, float32")
    assert parts.split() == ["n_kv_heads", "2,", "smear,", "mtp_heads", "1"]
    assert exported.split()[:2] == ["exported", f"{count_parameters(cfg, V) - V * 24:,}"]
