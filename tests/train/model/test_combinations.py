"""Any combination of the model's parts: refused by the name of a key, or it trains, generates and is saved alike."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from train.config import ConfigError, ModelConfig
from train.generate import KVCache
from train.model.transformer import Model, build

V, BOS, LENGTH = 50, 1, 20
# Of the keys whose type does not list their values
VALUES: dict[str, list[Any]] = {
    "dim": [16, 24, 32],
    "n_layers": [1, 2, 3, 4],
    "n_heads": [1, 2, 4],
    "n_kv_heads": [None, 1, 2],
    "head_dim": [None, 4, 6, 16],
    "mlp_hidden": [None, 8],
    "max_seq_len": [24, 64],
    "sliding_window": [1, 5, 8, 100],
    "q_gain": [None, 1.5],
    "rope_dims": [None, 2, 4],
    "rope_base_global": [None, 1e6],
    "bigram_buckets": [0, 2, 16],
    "bigram_dim": [4, 8],
    "memory_tokens": [0, 3],
    "mtp_heads": [0, 2],
    "engram_slots": [3, 8],
    "engram_inject_layer": [0, 1, 2],
    "lm_head_logit_cap": [None, 30.0],
    "dropout": [0.0, 0.1],
    "z_loss_weight": [0.0, 1e-4],
}


def allowed(hint: Any) -> list[Any]:
    """Values of a type that lists them; none of another."""
    if hint is bool:
        return [False, True]
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return []


KEYS = VALUES | {name: allowed(hint) for name, hint in typing.get_type_hints(ModelConfig).items() if allowed(hint)}
ALWAYS = {name: st.sampled_from(KEYS[name]) for name in ("dim", "n_layers", "n_heads", "max_seq_len", "sliding_window")}
SOME = {name: st.sampled_from(values) for name, values in KEYS.items() if name not in ALWAYS}
KINDS = st.lists(st.sampled_from(["sliding", "global"]), min_size=4, max_size=4)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(keys=st.fixed_dictionaries(ALWAYS, optional=SOME), kinds=st.none() | KINDS)
def test_any_combination_is_refused_by_name_or_works(keys, kinds):
    if kinds:
        keys["layer_kinds"] = tuple(kinds[: keys["n_layers"]])
    try:
        cfg = ModelConfig(**keys, init_std=0.2)
    except ConfigError as error:
        assert "model." in str(error) and "\n" not in str(error)
        return
    model = build(cfg, V, 0, BOS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # parts that start as nothing too
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(2, V, (2, LENGTH + 1), generator=generator)
    ids[:, 0], ids[0, 7] = BOS, BOS
    total, _ = model.train()(ids[:, :-1], ids[:, 1:])
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    again = Model(cfg, V, BOS).eval()
    again.load_state_dict(load(save(model.state_dict())))
    model.eval()
    with torch.no_grad():
        want = model.logits(model.text_states(ids))
        assert torch.equal(again.logits(again.text_states(ids)), want)
        cache, at = KVCache(model, LENGTH + 1), 0
        pieces = []
        for size in (6, 1, 1, 3, 1, 9):
            pieces.append(model.logits(cache.read(ids[:, at : at + size])))
            at += size
        assert torch.allclose(torch.cat(pieces, 1), want, atol=5e-4, rtol=1e-3)
        nats = -want[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        assert torch.allclose(model.score(ids[:, :-1], ids[:, 1:], None, True), nats, atol=5e-4, rtol=1e-3)
