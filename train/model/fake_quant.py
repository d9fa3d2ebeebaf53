"""Late quantization-aware training: at the end of a run matrices are used as an artefact will hold them.

Config keys: train.qat. The forward pass multiplies by the rounded matrix, gradients pass as if it were not rounded
(straight-through), and the weights that are trained, averaged and saved stay fp32. Evaluation rounds nothing.

Whether it is on is a tensor and no constant of a graph, so a compiled model is not compiled again at the switch.
(parameter-golf PR #352 had a constant: 29.7 s of compiling ended its run at 9.9 % of the learning rate.) Before the
switch a forward pass rounds in vain, a pass over the weights; where train.qat is off there is nothing of it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from train.config import ArtefactConfig, ConfigError, Kind, QATConfig
from train.model.layers import Linear
from train.model.transformer import Model
from train.quantize import fake_quantize, fake_quantize_pr352, kind_of


class FakeQuant:
    """The switch of one model's matrices. `rounded` says how each of them will be stored, by its name."""

    def __init__(self, model: Model, cfg: QATConfig, artefact: ArtefactConfig) -> None:
        """Put the switch into the linear maps of `model`, which must be on its device.

        Raises ConfigError where no matrix would be rounded.
        """
        self.flag = torch.zeros((), dtype=torch.bool, device=model.embed.weight.device)
        self.is_on = False
        self.rounded: dict[str, Kind] = {}
        for name, module in model.named_modules():
            if not isinstance(module, Linear):
                continue
            kind = "int6" if cfg.rule == "int6" else kind_of(f"{name}.weight", module.weight.numel(), artefact)
            if kind not in ("fp16", "fp32"):
                self.rounded[f"{name}.weight"] = kind
                floor = None if cfg.rule == "int6" else artefact.int8_floor
                module.fake_quant = functools.partial(round_if, self.flag, kind, floor)
        if not self.rounded:
            raise ConfigError(
                "train.qat: the artefact holds all matrices of this model in 16 bits or more, so nothing would be "
                "rounded\nname smaller kinds in train.artefact.rules, lower train.artefact.keep_numel, or leave "
                "train.qat out"
            )

    def turn_on(self) -> None:
        """Round from the next forward pass on."""
        self.flag.fill_(True)
        self.is_on = True


def round_if(flag: Tensor, kind: Kind, int8_floor: float | None, w: Tensor) -> Tensor:
    """Return `w`, or where the flag is up `w` as the artefact will hold it; gradients are the same to the bit.

    int8_floor: the artefact's; None: six bits as PR #352 had them in training.
    """
    rounded = fake_quantize_pr352(w) if int8_floor is None else fake_quantize(w, kind, int8_floor)
    return torch.where(flag, rounded, w)
