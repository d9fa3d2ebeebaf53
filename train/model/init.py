"""The first values of matrices; scales, gates and norms have theirs from where they are made.

Config keys: init, init_std, embed_init_std, zero_init_out, bigram_init.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from train.model.config import ModelConfig

NORMAL = r"embed\.weight|memory\.tokens|engram\..*"  # whatever model.init says
OUTPUTS = r"blocks\.\d+\.(attn\.o|mlp\.down)\.weight"
ZEROS = r"bigram\.embed\.weight|mtp\..*"


@torch.no_grad()
def initialize(model: nn.Module, cfg: ModelConfig, generator: torch.Generator) -> None:
    """Draw every matrix, in the order of definition."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            _initialize_matrix(name, parameter, cfg, generator)


def _initialize_matrix(name: str, matrix: Tensor, cfg: ModelConfig, generator: torch.Generator) -> None:
    if re.fullmatch(ZEROS, name) or (cfg.zero_init_out and re.fullmatch(OUTPUTS, name)):
        matrix.zero_()
    elif name == "bigram.proj.weight":
        if cfg.bigram_init == "zero":
            matrix.zero_()
        else:
            nn.init.orthogonal_(matrix, 1 / math.sqrt(2 * cfg.n_layers), generator)
    elif cfg.init == "normal" or re.fullmatch(NORMAL, name):
        embeds = name == "embed.weight" and cfg.embed_init_std is not None
        std = cfg.embed_init_std if embeds and cfg.embed_init_std is not None else cfg.init_std
        matrix.normal_(0.0, std, generator=generator)
    elif cfg.init == "orthogonal":
        nn.init.orthogonal_(matrix, 1.0, generator)
    else:
        bound = 1 / math.sqrt(matrix.shape[1])
        matrix.uniform_(-bound, bound, generator=generator)
