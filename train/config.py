"""What a model and a training run are told: frozen dataclasses, standard library only.

The recipe's pydantic models embed these classes as they stand (`__pydantic_config__` makes pydantic reject unknown
keys, without our importing it); the trainer builds them (train/overrides.py) from the manifest's resolved recipe and
the `--set` overrides. Every key has a default, a unit and a line of documentation, and `__post_init__` checks the
values, so that both ways in give the same messages.

Defaults that the seed (Shard-40m-v1, config.py) states are the seed's. Those it is silent about are marked "ours".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


class TrainError(ValueError):
    """Something a person can mend. The text is one or two lines: what, where, how."""


class ConfigError(TrainError):
    """A key or a value that the trainer does not take: wrong usage, exit status 2."""


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class ModelConfig:
    """The Shard architecture (trainers.md 1.15). The defaults are Shard-40m-v1: 54,538,752 parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    dim: int = 512  # width of the residual stream
    n_layers: int = 12  # blocks; even for gemma4
    n_heads: int = 8  # attention heads; every head has its own keys and values
    head_dim: int | None = None  # width of a head; null: dim // n_heads (n_heads * head_dim must be dim)
    mlp_hidden: int | None = None  # width inside the SwiGLU; null: 4 * dim
    max_seq_len: int = 8192  # tokens the rotary table covers; train.seq_len may not exceed it
    attention_pattern: Literal["all_global", "gemma4"] = "gemma4"  # gemma4: layer i sees all iff i is odd
    sliding_window: int = 1024  # tokens a sliding layer sees, itself included
    rope_base: float = 10000.0  # base of the rotary frequencies, the same for both kinds of layer
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    engram_enabled: bool = False  # a bank of learned keys and values, read by every position
    engram_slots: int = 512  # pairs in the bank
    engram_inject_layer: int = 6  # it is read ahead of this block, counted from 0
    dropout: float = 0.0  # probability, on the output of attention and of the MLP
    tie_embeddings: bool = True  # the head is the embedding
    lm_head_logit_cap: float | None = 30.0  # logits become cap * tanh(z / cap); null: off
    z_loss_weight: float = 1e-4  # times the mean square of the log-partition; 0: off
    init_std: float = 0.02  # standard deviation of every matrix at the start
    expect_params: int | None = None  # the count is asserted at the start; null: not asserted
    vocab_size: int | None = None  # ids; null: the tokenizer's. Another figure than the tokenizer's is an error

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        return 4 * self.dim if self.mlp_hidden is None else self.mlp_hidden

    def is_global(self, layer: int) -> bool:
        """Whether `layer` attends to everything before it. Odd ones do, so the last layer of an even stack does."""
        return self.attention_pattern == "all_global" or layer % 2 == 1

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "max_seq_len", "sliding_window", "engram_slots"):
            _check(getattr(self, name) > 0, f"model.{name} = {getattr(self, name)}: must be above 0")
        _check(
            self.n_heads * self.head_size == self.dim,
            f"model.n_heads * model.head_dim = {self.n_heads} * {self.head_size}: must be model.dim = {self.dim}",
        )
        _check(self.head_size % 2 == 0, f"model.head_dim = {self.head_size}: must be even (rotary halves)")
        _check(self.hidden > 0, f"model.mlp_hidden = {self.hidden}: must be above 0")
        one_of("model.attention_pattern", self.attention_pattern, ("all_global", "gemma4"))
        _check(
            self.attention_pattern != "gemma4" or self.n_layers % 2 == 0,
            f"model.n_layers = {self.n_layers}: gemma4 needs an even number, so that the last layer is global",
        )
        _check(
            not self.engram_enabled or 0 <= self.engram_inject_layer < self.n_layers,
            f"model.engram_inject_layer = {self.engram_inject_layer}: must be in [0, model.n_layers = {self.n_layers})",
        )
        _check(0 <= self.dropout < 1, f"model.dropout = {self.dropout}: must be in [0, 1)")
        cap = self.lm_head_logit_cap
        _check(cap is None or cap > 0, f"model.lm_head_logit_cap = {cap}: must be above 0, or null for none")
        for name in ("rope_base", "norm_eps"):
            _check(getattr(self, name) > 0, f"model.{name} = {getattr(self, name)}: must be above 0")
        for name in ("z_loss_weight", "init_std"):
            _check(getattr(self, name) >= 0, f"model.{name} = {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps, as a factor of each group's lr (train/optim/schedule.py, trainers.md 1.8)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: Literal["wsd", "cosine", "constant", "warmdown"] = "wsd"  # wsd: warm-up, stable, decay over a share
    warmup: int = 0  # steps of linear warm-up, in every kind
    decay_frac: float = 0.2  # wsd: the share of the steps after warm-up that decay
    warmdown: int = 0  # warmdown: the number of steps at the end that decay
    decay_shape: Literal["sqrt", "linear", "cosine"] | None = None  # null: sqrt (1 - sqrt(p)) for wsd, which is ours;
    # linear for warmdown, as in the records
    min_ratio: float = 0.0  # the factor that a decay ends at
    seconds: float | None = None  # of training (scores, checkpoints and compiling left out): the run ends then, or
    # after train.steps, and decays towards whichever comes first; null: by steps. Not bit-exact
    # (train/optim/schedule.py)

    @property
    def shape(self) -> str:
        """Of the decay."""
        if self.kind == "cosine":
            return "cosine"
        return self.decay_shape or ("sqrt" if self.kind == "wsd" else "linear")

    def __post_init__(self) -> None:
        where = "train.schedule"
        one_of(f"{where}.kind", self.kind, ("wsd", "cosine", "constant", "warmdown"))
        one_of(f"{where}.decay_shape", self.decay_shape, ("sqrt", "linear", "cosine", None))
        _check(self.warmup >= 0, f"{where}.warmup = {self.warmup}: must be at least 0 steps")
        _check(
            self.warmdown > 0 if self.kind == "warmdown" else self.warmdown == 0,
            f"{where}.warmdown = {self.warmdown}: must be above 0 steps for kind warmdown, 0 for others ({self.kind})",
        )
        _check(self.seconds is None or self.seconds > 0, f"{where}.seconds = {self.seconds}: must be above 0, or null")
        _check(0 <= self.decay_frac <= 1, f"{where}.decay_frac = {self.decay_frac}: must be in [0, 1]")
        _check(0 <= self.min_ratio <= 1, f"{where}.min_ratio = {self.min_ratio}: must be in [0, 1]")


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices inside the blocks (train/optim/muon.py, trainers.md 1.6 "Shard Muon")."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    lr: float = 2e-3  # ours. An update has root mean square .18 * lr (scale .18 * sqrt(max(rows, cols)))
    momentum: float = 0.95  # Nesterov, sum form: buf = momentum * buf + g
    weight_decay: float = 0.1  # decoupled: w *= 1 - lr * weight_decay, with the scheduled lr
    # Newton-Schulz: 5 Jordan steps; or 8 of them and 2 of (2, -1.5, .5); or the 5 of Polar Express
    ns: Literal["jordan5", "dsv4", "polar_express"] = "dsv4"
    ns_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on CPU

    def __post_init__(self) -> None:
        one_of("train.muon.ns", self.ns, ("jordan5", "dsv4", "polar_express"))
        one_of("train.muon.ns_dtype", self.ns_dtype, ("auto", "float32", "bfloat16"))
        _check(0 <= self.momentum < 1, f"train.muon.momentum = {self.momentum}: must be in [0, 1)")
        for name in ("lr", "weight_decay"):
            _check(getattr(self, name) >= 0, f"train.muon.{name} = {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW for embeddings, norms and an untied head; for everything when train.optimizer is adamw."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    lr: float = 2e-3  # ours
    betas: tuple[float, float] = (0.9, 0.95)  # of the first and second moment
    eps: float = 1e-10  # ours: gradients of rare tokens are far below the usual 1e-8
    weight_decay: float = 0.0  # decoupled, on matrices only; norms and the engram never decay

    def __post_init__(self) -> None:
        _check(all(0 <= b < 1 for b in self.betas), f"train.adamw.betas = {list(self.betas)}: must be in [0, 1)")
        _check(self.eps > 0, f"train.adamw.eps = {self.eps}: must be above 0")
        for name in ("lr", "weight_decay"):
            _check(getattr(self, name) >= 0, f"train.adamw.{name} = {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class EMAConfig:
    """An exponential moving average of the weights (train/optim/averages.py, trainers.md 1.9)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    decay: float = 0.0  # what stays of it at each update; 0: off. Seed S4: 0.997
    every: int = 10  # steps between updates; seed S4

    def __post_init__(self) -> None:
        _check(0 <= self.decay < 1, f"train.ema.decay = {self.decay}: must be in [0, 1)")
        _check(self.every > 0, f"train.ema.every = {self.every}: must be above 0 steps")


@dataclass(frozen=True)
class SWAConfig:
    """The mean of the weights over the end of the decay (train/optim/averages.py, trainers.md 1.9)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    start_frac: float = 0.0  # weights count while the learning rate's factor is below this; 0: off. Seed S2: 0.5
    every: int = 50  # steps between snapshots; seed S2

    def __post_init__(self) -> None:
        _check(0 <= self.start_frac <= 1, f"train.swa.start_frac = {self.start_frac}: must be in [0, 1]")
        _check(self.every > 0, f"train.swa.every = {self.every}: must be above 0 steps")


@dataclass(frozen=True)
class RankLossConfig:
    """The watch over the singular values of Muon's matrices (train/monitor/singular_values.py, trainers.md 1.7)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    every: int = 1000  # steps in which each matrix is looked at once; 0: off
    floor: float = 1e-4  # smallest over largest singular value, below which it is an event
    policy: Literal["warn", "stop"] = "warn"  # stop: save and end the run

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"train.rank_loss.every = {self.every}: must be at least 0 steps")
        _check(0 <= self.floor <= 1, f"train.rank_loss.floor = {self.floor}: must be in [0, 1]")
        one_of("train.rank_loss.policy", self.policy, ("warn", "stop"))


@dataclass(frozen=True)
class TrainConfig:
    """One phase of training. Batch, rates and lengths are ours: the seed states only the kinds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    mixture: str = ""  # the mixture this phase is for; informational, the manifest decides
    steps: int = 1000  # optimiser steps
    batch_size: int = 16  # sequences a step, over all ranks
    seq_len: int = 256  # tokens a sequence (it reads one more, the last target)
    micro_batch: int | None = None  # sequences a rank and forward pass; null: as many as fit (train/micro_batch.py)
    document_mask: bool = False  # attention stays inside a document; off: it sees the whole row, as the seed
    attention: Literal["auto", "flex", "varlen", "sdpa"] = "auto"  # the kernel: one result, up to rounding.
    # auto: flex on CUDA, else sdpa
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: for matrices in blocks, AdamW for the rest
    muon: MuonConfig = field(default_factory=MuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    swa: SWAConfig = field(default_factory=SWAConfig)
    grad_clip: float = 1.0  # largest L2 norm of the whole gradient; 0: no clipping
    spike_sigma: float = 6.0  # a loss or gradient norm so many deviations above its running mean is an event; 0: off,
    # and then the gradient norms by module, which events and logged lines have, are not taken either
    on_spike: Literal["warn", "skip", "stop"] = "warn"  # skip: leave the step out; stop: leave it out and end the run
    rank_loss: RankLossConfig = field(default_factory=RankLossConfig)
    eval_every: int = 0  # steps between validations; 0: only before the first step and after the last
    eval_tokens: int = 1_000_000  # validation tokens scored, always the same first ones; 0: all
    eval_items: int | None = 0  # questions of each of the recipe's evals that are asked, evenly spread; 0: all;
    # null: none
    checkpoint_every: int = 500  # steps between checkpoints; 0: only where a decay begins and at the end
    keep_last: int = 2  # checkpoints kept, beside the best one and the one where a decay begins; 0: all
    keep_best: bool = True  # a validation loss below all before saves too, as checkpoints/best: see eval_every
    log_every: int = 10  # steps between lines of metrics.jsonl and on the screen
    seed: int = 0  # of weights, data order, dropout and samples
    init_from: str = "none"  # a phase, or a path of a run or checkpoint: weights only; none: fresh weights
    out: str | None = None  # the run's folder; null: a new folder under runs/
    resume: str = "refuse"  # auto | never | PATH of a checkpoint; refuse: a folder that holds a run is an error
    allow_new_manifest: bool = False  # resume on another build of the data, from the checkpoint's step of its order
    epochs: float = 1.0  # passes over the mixture that training may make; more is an error
    prompts: tuple[str, ...] = ("The", "In order to", "For example,")  # samples are drawn for these at the end
    sample_tokens: int = 48  # tokens a sample; 0: no samples
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of activations. auto: bfloat16 on CUDA, else float32
    compile: bool | Literal["auto"] = "auto"  # torch.compile. auto: on CUDA
    deterministic: bool = False  # on a GPU: only kernels that repeat to the bit, slower. On a CPU all do
    tensorboard: bool = False  # also write TensorBoard event files into the run's folder
    wandb: bool | str = False  # also log to Weights & Biases, in the project of this name; true: shardmill
    peak_tflops: float | None = None  # of a device, for MFU; null: its datasheet's, dense bf16

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "log_every"):
            _check(getattr(self, name) > 0, f"train.{name} = {getattr(self, name)}: must be above 0")
        for name in (
            "grad_clip",
            "spike_sigma",
            "eval_every",
            "eval_tokens",
            "checkpoint_every",
            "keep_last",
            "sample_tokens",
        ):
            _check(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)}: must be at least 0")
        _check(self.eval_items is None or self.eval_items >= 0, f"train.eval_items = {self.eval_items}: at least 0")
        _check(self.micro_batch is None or self.micro_batch > 0, f"train.micro_batch = {self.micro_batch}: above 0")
        peak = self.peak_tflops
        _check(peak is None or peak > 0, f"train.peak_tflops = {peak}: must be above 0, or null")
        _check(self.epochs > 0, f"train.epochs = {self.epochs}: must be above 0")
        _check(0 <= self.seed < 2**63, f"train.seed = {self.seed}: must be in [0, 2**63)")
        one_of("train.attention", self.attention, ("auto", "flex", "varlen", "sdpa"))
        one_of("train.optimizer", self.optimizer, ("muon", "adamw"))
        one_of("train.on_spike", self.on_spike, ("warn", "skip", "stop"))
        one_of("train.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _check(bool(self.init_from), "train.init_from is empty: name a phase or a path, or say none")
        _check(bool(self.resume), "train.resume is empty: say auto, never, refuse or a path")


def one_of(where: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises ConfigError when `value` is not in `allowed`."""
    _check(value in allowed, f"{where} = {value!r}: must be one of {', '.join(map(str, allowed))}")
