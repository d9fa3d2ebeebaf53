"""The toy models of the two parameter-golf systems, with the fill that their golden values are for.

S2 is PR #465 of openai/parameter-golf, S4 is PR #352. Values and the fill are section 4 of the specification that was
made by executing the authors' scripts. Their rotary positions turn by -theta, ours by +theta: with the second half of
the rotating rows of q and k negated the models are the same to the bit (`flip_rotary_rows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from train.config import ModelConfig
from train.model.transformer import Model

V, T, B = 64, 16, 2
FP32_EPS = 2.0**-23

S2 = ModelConfig(
    dim=64,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    qk_norm="rms",
    q_gain=1.5,
    mlp="relu2",
    mlp_hidden=192,
    max_seq_len=16,
    attention_pattern="all_global",
    norm="plain",
    norm_eps=FP32_EPS,
    embed_norm=True,
    smear=True,
    bigram_buckets=32,
    bigram_dim=16,
    residual_mix=True,
    branch_scales=True,
    unet_skips=True,
    z_loss_weight=0,
    init="orthogonal",
    zero_init_out=True,
    embed_init_std=0.005,
)
S4 = dataclasses.replace(S2, memory_tokens=4, rope_dims=8, depth_scale=True, bigram_init="zero", init="linear")


def flip_rotary_rows(weight: Tensor, cfg: ModelConfig) -> Tensor:
    """Return q's or k's weight (heads * D, dim) for a rotation by the opposite angle: rows of second halves negated."""
    flipped = weight.clone().view(-1, cfg.head_size, weight.shape[-1])
    flipped[:, cfg.rotary_size // 2 : cfg.rotary_size] *= -1
    return flipped.view_as(weight)


def waves(shape: tuple[int, ...], k: int) -> Tensor:
    """Return sin(.7 i + .003 i² + k) of the flat index i, fp64."""
    size = torch.Size(shape).numel()
    i = torch.arange(size, dtype=torch.float64)
    return torch.sin(0.7 * i + 0.003 * i * i + k).view(shape)


def filled_parameters(cfg: ModelConfig) -> Iterator[tuple[list[str], Tensor]]:
    """Yield each tensor of the originals, in their order, with our names of its rows and its values."""
    d, kv, heads = cfg.dim, cfg.kv_heads * cfg.head_size, cfg.n_heads * cfg.head_size
    half, K = cfg.n_layers // 2, cfg.memory_tokens
    shapes: list[tuple[list[str], tuple[int, ...], float, float]] = []  # names, shape, what waves are added to, and how
    if K:
        shapes.append((["memory.tokens"], (K, d), 0, 0.2))
    shapes.append(([f"blocks.{half + j}.skip" for j in range(half)], (half, d), 1, 0.1))
    shapes.append((["embed.weight"], (V, d), 0, 0.2))
    shapes.append((["bigram.scale"], (1,), 0.05, 0.1))
    shapes.append((["bigram.embed.weight"], (cfg.bigram_buckets, cfg.bigram_dim), 0, 0.2))
    shapes.append((["bigram.proj.weight"], (d, cfg.bigram_dim), 0, 0.2))
    shapes.append((["smear.gate"], (d,), 0, 0.1))
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}"
        shapes.append(([f"{at}.attn_scale"], (d,), 1, 0.1))
        shapes.append(([f"{at}.mlp_scale"], (d,), 1, 0.1))
        shapes.append(([f"{at}.x_mix", f"{at}.x0_mix"], (2, d), 0, 0.1))
        shapes.append(([f"{at}.attn.q_gain"], (cfg.n_heads,), 1.5, 0.1))
        for name, shape in {
            "attn.q": (heads, d),
            "attn.k": (kv, d),
            "attn.v": (kv, d),
            "attn.o": (d, heads),
            "mlp.up": (cfg.hidden, d),
            "mlp.down": (d, cfg.hidden),
        }.items():
            shapes.append(([f"{at}.{name}.weight"], shape, 0, 0.2))
    for k, (names, shape, middle, size) in enumerate(shapes):
        values = middle + size * waves(shape, k)
        if names[0].endswith("x_mix"):
            values[0] += 1
        yield names, values.float()


@torch.no_grad()
def fill(model: Model) -> Model:
    """Put the specification's values into every parameter of S2 or S4; heads of further tokens get 0."""
    parameters = dict(model.named_parameters())
    for names, values in filled_parameters(model.cfg):
        if names[0].endswith(("attn.q.weight", "attn.k.weight")):
            values = flip_rotary_rows(values, model.cfg)
        for name, row in zip(names, [values] if len(names) == 1 and "skip" not in names[0] else values, strict=True):
            parameters.pop(name).copy_(row)
    for name, parameter in parameters.items():
        assert name.startswith("mtp."), f"{name} was not filled"
        parameter.zero_()
    return model


def toy(cfg: ModelConfig) -> Model:
    """Return the model of `cfg` (S2, S4 or a variant) with the specification's values."""
    return fill(Model(cfg, V))


def batch() -> tuple[Tensor, Tensor]:
    """Return ids and targets, (2, 16): (5 + 11 t + 17 b + t²) mod 64 at t and t + 1."""
    t, b = torch.arange(T + 1), torch.arange(B)[:, None]
    ids = (5 + 11 * t + 17 * b + t * t) % V
    return ids[:, :-1], ids[:, 1:]
