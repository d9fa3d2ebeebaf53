"""Models with random weights as a run leaves them, of any configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from trainer_harness import VOCAB

from train.checkpoint.checkpoint import save_checkpoint
from train.checkpoint.load_model import TrainedModel, open_trained_model
from train.config import ModelConfig
from train.model.transformer import build


def random_model(cfg: ModelConfig, seed: int, like: Path, manifest: Path, folder: Path) -> TrainedModel:
    """A model of `cfg` with random weights, norms and gates too, in a run's `folder` as the run `like` has it."""
    model = build(cfg, VOCAB, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # so that a norm in another's place is seen
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    state = json.loads(json.dumps(open_trained_model(like).point.state))
    state["identity"]["model"] = json.loads(json.dumps(dataclasses.asdict(cfg) | {"vocab_size": VOCAB}))
    for key in ("format", "step", "rng", "files"):
        del state[key]
    save_checkpoint(folder / "checkpoints", 3, model.state_dict(), {}, state)
    return open_trained_model(folder, manifest)
