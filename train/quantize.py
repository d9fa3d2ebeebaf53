"""Weights in few bits: the quantizers of the artefact, and of training that prepares for it.

    int5, int6   s = fp16(max |row| / c), c = 15 or 31;                   q = round(row / s), half to even, in [-c, c]
    int8         s = fp16(quantile(|row|, .9999984) / 127), row clipped;  q = round(row / s), in [-127, 127]
    fp16, fp32   the values, rounded to the type

A scale belongs to a row, the last dimension; a vector has one. Scales are at least fp16's smallest normal number: rows
of zeros stay zeros. Weights are read as q * s in fp32. These are the quantizers of two public parameter-golf records
(openai/parameter-golf, PR 465 and PR 352), except int8, whose scales there are at least 1/127: `int8_floor`.

Pure functions of tensors, on any device; all of them can be compiled.
"""

from __future__ import annotations

import fnmatch
from typing import NamedTuple, cast

import torch
from torch import Tensor

from train.config import ArtefactConfig, Kind

LARGEST = {"int5": 15, "int6": 31, "int8": 127}  # of |q|
INT8_QUANTILE = 0.9999984  # |weights| above are clipped: in rows of less than 625,000 values, parts of the largest
SMALLEST_SCALE = torch.finfo(torch.float16).tiny  # 6.104e-5
QUANTILE_VALUES = 2**23  # given to torch.quantile at once, which takes 2**24 at most


class Quantized(NamedTuple):
    """q: int8, of the shape of the weights. scale: (..., 1), or () of a vector; fp16, or fp32 of a vector in int8."""

    q: Tensor
    scale: Tensor


def quantize(w: Tensor, kind: Kind, int8_floor: float = 0.0) -> Quantized:
    """Round `w` to int5, int6 or int8.

    int8_floor: above 0, the records' own int8: scales are at least this, and are rounded to fp16 only after dividing.
    """
    w = w.detach().float()
    if kind == "int8":
        return _quantize_int8(w, int8_floor)
    c = LARGEST[kind]
    largest = w.abs().amax(-1, keepdim=True) if w.ndim > 1 else w.abs().amax()
    scale = (largest / c).clamp(min=1e-12).half().float()
    if w.ndim > 1:
        scale = scale.clamp(min=SMALLEST_SCALE)
    return Quantized(_divide(w, scale, c), scale.half())


def _quantize_int8(w: Tensor, floor: float) -> Quantized:
    clip = _row_quantile(w.abs()) if w.ndim > 1 else _quantile(w.abs())
    clipped = w.clamp(-clip, clip)
    if w.ndim <= 1:
        scale = torch.where(clip > 0, clip / 127, 1.0)
        return Quantized(_divide(clipped, scale, 127), scale)
    scale = clip / 127
    scale = scale.clamp(min=floor) if floor > 0 else scale.half().float().clamp(min=SMALLEST_SCALE)
    return Quantized(_divide(clipped, scale, 127), scale.half())


def _divide(w: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return round(w / scale) in [-largest, largest]; a scale of 0, of a vector of zeros, gives zeros."""
    return torch.nan_to_num(w / scale).round().clamp(-largest, largest).to(torch.int8)


def _quantile(values: Tensor) -> Tensor:
    return torch.quantile(values, INT8_QUANTILE, dim=-1, keepdim=values.ndim > 1)


def _row_quantile(values: Tensor) -> Tensor:
    """Return the quantile of each row, (..., 1), some rows at a time."""
    rows = values.flatten(0, -2)
    return torch.cat([_quantile(part) for part in rows.split(max(1, QUANTILE_VALUES // rows.shape[1]))]).view(
        *values.shape[:-1], 1
    )


def dequantize(quantized: Quantized) -> Tensor:
    """Return the weights that `quantized` stands for, in fp32."""
    return quantized.q.float() * quantized.scale.float()


def round_trip(w: Tensor, kind: Kind, int8_floor: float = 0.0) -> Tensor:
    """Return `w` as it is read back from an artefact, in its own dtype."""
    if kind in ("fp16", "fp32"):
        return w.detach().to(torch.float16 if kind == "fp16" else torch.float32).to(w.dtype)
    return dequantize(quantize(w, kind, int8_floor)).to(w.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# In training


def fake_quantize(w: Tensor, kind: Kind, int8_floor: float = 0.0) -> Tensor:
    """Return `w` as the artefact will have it; gradients pass as if it were `w` (straight-through)."""
    rounded: Tensor = _StraightThrough.apply(w, round_trip(w, kind, int8_floor))
    return rounded


def fake_quantize_pr352(w: Tensor) -> Tensor:
    """Return `w` in PR 352's own six bits, not those of its artefact: the scale is fp32, and q in [-32, 31]."""
    values = w.detach().float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 31
    rounded = (values / scale).round().clamp(-32, 31) * scale
    result: Tensor = _StraightThrough.apply(w, rounded.to(w.dtype))
    return result


class _StraightThrough(torch.autograd.Function):
    """(w, rounded) -> rounded, with the gradient of w."""

    @staticmethod
    def forward(ctx: object, w: Tensor, rounded: Tensor) -> Tensor:
        """Return `rounded`."""
        return rounded

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient as w's."""
        return grads[0], None


# ---------------------------------------------------------------------------------------------------------------------
# Which kind a tensor gets


def kind_of(name: str, numel: int, cfg: ArtefactConfig) -> Kind:
    """Return how a tensor of that name and size is stored: as the first rule says whose pattern its name matches.

    fp16 if it has at most cfg.keep_numel values, or no rule matches. Patterns are those of file names: *, ? and [].
    """
    if numel <= cfg.keep_numel:
        return "fp16"
    for rule in cfg.rules:
        kind, pattern = rule.split()
        if fnmatch.fnmatchcase(name, pattern):
            return cast(Kind, kind)
    return "fp16"
