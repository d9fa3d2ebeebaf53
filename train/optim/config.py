"""The keys of optimizers, learning rate and averages: what train/config.py has in its groups (see train/keys.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from train.keys import Keys, check, key


@dataclass(frozen=True)
class ScheduleConfig(Keys):
    """The learning rate over the steps, as a factor of each group's lr (train/optim/schedule.py)."""

    where = "train.schedule"

    kind: Literal["wsd", "cosine", "constant", "warmdown"] = key(
        "wsd", "The curve: wsd warms up, stays, and decays over a share of the steps; warmdown over a number of them."
    )
    warmup: int = key(0, "Steps of linear warm-up, in every kind.", at_least=0)
    warmup_from: float = key(0.0, "The factor that warm-up rises from.", at_least=0, at_most=1, switch="warmup_from")
    decay_frac: float = key(0.2, "wsd: share of the steps after warm-up that decay.", at_least=0, at_most=1)
    warmdown: int = key(0, "warmdown: number of steps at the end that decay.")
    decay_shape: Literal["sqrt", "linear", "cosine"] | None = key(
        None, "Shape of the decay. null: sqrt, which is 1 - sqrt(p), for wsd (ours); linear for warmdown."
    )
    min_ratio: float = key(
        0.0,
        "The factor that a decay ends at. Above 1 the rate rises there instead: only to repeat a public recipe whose "
        "lowest rate is above its highest.",
        at_least=0,
    )
    seconds: float | None = key(
        None,
        "Seconds of training, without scores, checkpoints and compiling: the run ends then, or after train.steps, and "
        "decays towards whichever comes first. Such runs do not repeat to the bit. null: by steps alone.",
        above=0,
        fixed_by=None,
    )
    overrun: bool = key(
        False,
        "With seconds: begin a step while any time is left, so that the last one ends late, as the parameter-golf "
        "records do. false: the last step ends in time.",
        fixed_by=None,
    )

    @property
    def shape(self) -> str:
        """Shape of the decay, with the default of the kind filled in."""
        if self.kind == "cosine":
            return "cosine"
        return self.decay_shape or ("sqrt" if self.kind == "wsd" else "linear")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.warmdown > 0 if self.kind == "warmdown" else self.warmdown == 0,
            f"{self.where}.warmdown = {self.warmdown}: must be above 0 steps for kind warmdown, "
            f"0 for others ({self.kind})",
        )


@dataclass(frozen=True)
class MuonConfig(Keys):
    """Muon for the matrices inside the blocks, and the bigram's (train/optim/muon.py)."""

    where = "train.muon"

    lr: float = key(
        2e-3, "Learning rate (ours). An update has a root mean square of 0.18 * lr, whatever the shape.", at_least=0
    )
    scale: Literal["rms", "aspect"] = key(
        "rms",
        "What an orthogonal matrix is multiplied by beside lr. rms: 0.18 * sqrt(max(rows, cols)); aspect: "
        "sqrt(max(1, rows / cols)), which is Jordan's and the parameter-golf records'.",
        switch="scale",
    )
    momentum: float = key(
        0.95, "Nesterov momentum, as a sum: buffer = momentum * buffer + gradient.", at_least=0, below=1
    )
    momentum_warmup: int = key(
        0,
        "Steps in which the momentum rises linearly from momentum_start; 0: none.",
        at_least=0,
        switch="momentum_warmup",
    )
    momentum_start: float = key(
        0.85, "The momentum in the first step of its warm-up.", at_least=0, below=1, switch="momentum_warmup"
    )
    weight_decay: float = key(0.1, "Decoupled: w *= 1 - lr * weight_decay, with the scheduled lr.", at_least=0)
    decay_order: Literal["before", "after"] = key(
        "before", "Whether weights decay before they are updated or after it.", switch="decay_order"
    )
    ns: Literal["jordan5", "dsv4", "polar_express"] = key(
        "dsv4",
        "Newton-Schulz steps: 5 of Jordan's; or 8 of those and 2 of (2, -1.5, 0.5); or the 5 of Polar Express.",
    )
    ns_dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "Type that Newton-Schulz computes in. auto: bfloat16 on CUDA, float32 elsewhere."
    )


@dataclass(frozen=True)
class AdamWConfig(Keys):
    """AdamW for embeddings, norms and an untied head; for everything when train.optimizer is adamw."""

    where = "train.adamw"

    lr: float = key(2e-3, "Learning rate (ours).", at_least=0)
    betas: tuple[float, float] = key((0.9, 0.95), "Decay of the first and second moment.", at_least=0, below=1)
    eps: float = key(
        1e-10, "Added to the root of the second moment (ours): gradients of rare tokens are far below 1e-8.", above=0
    )
    weight_decay: float = key(0.0, "Decoupled, on matrices only: norms and the engram never decay.", at_least=0)


@dataclass(frozen=True)
class GroupConfig(Keys):
    """The rate and the decay of one group of parameters that AdamW trains."""

    where = "train.groups"

    lr: float | None = key(None, "Learning rate; null: train.adamw.lr.", at_least=0)
    weight_decay: float | None = key(
        None, "Decoupled, on all of the group; null: train.adamw.weight_decay, on its matrices only.", at_least=0
    )
    bfloat16: bool = key(
        False,
        "Round values, gradients and moments to bfloat16 in each step. Only to repeat public records, which hold them "
        "so: updates below half a unit of the last place are lost.",
    )


@dataclass(frozen=True)
class GroupsConfig(Keys):
    """Groups of parameters that AdamW trains at rates of their own (train/optim/optimizer.py)."""

    where = "train.groups"

    tokens: GroupConfig = key(GroupConfig(), "The embedding, and the table of the bigram hash.")
    scalars: GroupConfig = key(GroupConfig(), "Norms, scales, gains, gates and mixes.")
    memory: GroupConfig = key(GroupConfig(), "The memory tokens.")
    mtp: GroupConfig = key(GroupConfig(), "The heads of multi-token prediction.")


@dataclass(frozen=True)
class EMAConfig(Keys):
    """An exponential moving average of the weights (train/optim/averages.py)."""

    where = "train.ema"

    decay: float = key(0.0, "What stays of the average at each update; 0: no average.", at_least=0, below=1)
    every: int = key(10, "Steps between updates.", above=0)


@dataclass(frozen=True)
class SWAConfig(Keys):
    """The mean of the weights over the end of the decay (train/optim/averages.py)."""

    where = "train.swa"

    start_frac: float = key(
        0.0, "Weights count while the learning rate's factor is below this; 0: no mean.", at_least=0, at_most=1
    )
    every: int = key(50, "Steps between snapshots.", above=0)


@dataclass(frozen=True)
class QATConfig(Keys):
    """Late quantization-aware training: matrices are used as an artefact will hold them (train/model/fake_quant.py)."""

    where = "train.qat"

    start_frac: float = key(
        0.0,
        "Matrices are rounded from the step after the first whose factor of the learning rate is below this; 0: never.",
        at_least=0,
        at_most=1,
    )
    rule: Literal["artefact", "int6"] = key(
        "artefact",
        "artefact: each as the artefact will hold it; int6: all in six bits, as one parameter-golf record does.",
    )
