"""Gemma 3: the same logits as transformers' Gemma3ForCausalLM, and the parameters that are published."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor

from train.config import ModelConfig
from train.generate import KVCache
from train.model.flops import flops_per_token
from train.model.transformer import Model, build, check_parameters, count_parameters

GEMMA3_270M = ModelConfig(
    dim=640,
    n_layers=18,
    n_heads=4,
    n_kv_heads=1,
    head_dim=256,
    qk_norm="weighted",
    mlp="geglu",
    mlp_hidden=2048,
    max_seq_len=2048,
    layer_kinds=(("sliding",) * 5 + ("global",)) * 3,
    sliding_window=512,
    rope_base=1e4,
    rope_base_global=1e6,
    norm="one_plus",
    norm_eps=1e-6,
    sandwich_norms=True,
    embed_scale="sqrt_dim_rounded",
    lm_head_logit_cap=None,
    z_loss_weight=0,
)
WINDOW = 8
TINY = dataclasses.replace(
    GEMMA3_270M,
    dim=48,
    n_layers=4,
    head_dim=16,  # 4 heads of 16 are wider than dim
    mlp_hidden=80,
    max_seq_len=64,
    layer_kinds=("sliding", "global", "sliding", "global"),
    sliding_window=WINDOW,
)
NAMES = (
    (r"embed\.weight", "model.embed_tokens.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"head\.weight", "lm_head.weight"),
    (r"blocks\.(\d+)\.attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blocks\.(\d+)\.attn_out_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"model.layers.\1.pre_feedforward_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp_out_norm\.weight", r"model.layers.\1.post_feedforward_layernorm.weight"),
    (r"blocks\.(\d+)\.attn\.([qk])_norm\.weight", r"model.layers.\1.self_attn.\2_norm.weight"),
    (r"blocks\.(\d+)\.attn\.([qkvo])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"blocks\.(\d+)\.mlp\.(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight"),
)
V = 50


def their_name(name: str) -> str:
    (found,) = (match.expand(theirs) for ours, theirs in NAMES if (match := re.fullmatch(ours, name)))
    return found


def ours_and_theirs(cfg: ModelConfig, dtype: torch.dtype = torch.float32) -> tuple[Model, torch.nn.Module]:
    """Return both models with the same weights, norms included, drawn at random."""
    transformers = pytest.importorskip("transformers")
    ours = build(dataclasses.replace(cfg, init_std=0.2), V, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.3, generator=generator)
            parameter.data = parameter.data.to(dtype)
    ours.dtype = dtype
    kinds = {"sliding": "sliding_attention", "global": "full_attention"}
    theirs = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            vocab_size=V,
            hidden_size=cfg.dim,
            intermediate_size=cfg.hidden,
            num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads,
            num_key_value_heads=cfg.kv_heads,
            head_dim=cfg.head_size,
            max_position_embeddings=cfg.max_seq_len,
            rms_norm_eps=cfg.norm_eps,
            query_pre_attn_scalar=cfg.head_size,
            sliding_window=cfg.sliding_window,
            layer_types=[kinds[kind] for kind in cfg.layer_kinds],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": cfg.rope_base},
                "full_attention": {"rope_type": "default", "rope_theta": cfg.rope_base_global},
            },
            tie_word_embeddings=cfg.tie_embeddings,
            attn_implementation="eager",
        )
    )
    missing, unexpected = theirs.load_state_dict({their_name(n): p for n, p in ours.named_parameters()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return ours, theirs.to(dtype).eval()


def some_ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_those_of_transformers(length, tied):
    ours, theirs = ours_and_theirs(dataclasses.replace(TINY, tie_embeddings=tied))
    ids = some_ids(2, length)
    wanted = theirs(ids).logits
    assert wanted.std() > 0.5
    assert torch.allclose(ours.logits(ours.trunk(ids)), wanted, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_with_a_cache_too():
    ours, theirs = ours_and_theirs(TINY)
    ids, cache, past, at = some_ids(2, 40), None, None, 0
    cache = KVCache(ours, 40)
    for n in (5, 1, 1, 1, 1, 10, *[1] * 21):  # across the window's edge
        out = theirs(ids[:, at : at + n], past_key_values=past, use_cache=True)
        past = out.past_key_values
        assert torch.allclose(ours.logits(cache.read(ids[:, at : at + n])), out.logits, atol=1e-4), at
        at += n
    assert at == 40


@pytest.mark.slow
@torch.no_grad()
def test_in_bfloat16_the_embedding_is_scaled_as_transformers_scales_it():
    ours, theirs = ours_and_theirs(TINY, torch.bfloat16)
    ids = some_ids(1, 12)
    assert torch.equal(ours.embed_ids(ids, None, 0, None), theirs.model.embed_tokens(ids))
    exact = ours_and_theirs(dataclasses.replace(TINY, embed_scale="sqrt_dim"), torch.bfloat16)[0]
    assert not torch.equal(exact.embed_ids(ids, None, 0, None), theirs.model.embed_tokens(ids))
    unscaled = exact.embed(ids).float()
    assert torch.equal(exact.embed_ids(ids, None, 0, None), (unscaled * 48**0.5).bfloat16())


def test_factors_of_the_embedding():
    for scale, dtype, factor in (
        ("sqrt_dim_rounded", torch.bfloat16, 25.25),
        ("sqrt_dim_rounded", torch.float32, 640**0.5),
        ("sqrt_dim", torch.float32, 640**0.5),
    ):
        model = build(dataclasses.replace(GEMMA3_270M, n_layers=1, layer_kinds=("global",), embed_scale=scale), 3, 0)
        model.dtype = dtype
        model.embed.weight.data.fill_(1.0)
        assert model.embed_ids(torch.tensor([[2]]), None, 0, None)[0, 0, 0].item() == pytest.approx(factor, rel=1e-7)


def test_published_numbers_of_parameters():
    official = dataclasses.replace(GEMMA3_270M, expect_params=268_098_176)
    assert check_parameters(official, 262_144) == 268_098_176
    assert count_parameters(GEMMA3_270M, 50_257) == 132_490_496
    assert count_parameters(dataclasses.replace(GEMMA3_270M, tie_embeddings=False), 50_257) == 164_654_976
    assert count_parameters(GEMMA3_270M, 256_000) == 264_166_016


def test_operations_count_the_width_of_the_heads():
    """Of a block 5,570,560 weights multiply; attention is 1,024 wide in it."""
    flops = flops_per_token(GEMMA3_270M, 50_257, 2048)
    weights = 18 * 5_570_560 + 50_257 * 640
    assert flops.full == 6 * weights + 12 * 1024 * (15 * 512 + 3 * 2048)
