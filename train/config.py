"""The keys of a training run, each with its default, unit and documentation (see train/keys.py).

Those of the model are in train/model/config.py, those of optimizers and averages in train/optim/config.py.

The recipe's pydantic models embed these classes as they stand; the trainer builds them (train/overrides.py) from the
manifest's resolved recipe and the `--set` overrides. Both ways in run the same checks.

Where the config.py of the seed (Shard-40m: docs/trainer-math.md, "The seed") states a default, it is taken over.
Defaults on which the seed is silent are marked "ours".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from train.keys import ConfigError, Keys, TrainError, check, key
from train.model.config import ModelConfig
from train.optim.config import (
    AdamWConfig,
    EMAConfig,
    GroupConfig,
    GroupsConfig,
    MuonConfig,
    QATConfig,
    ScheduleConfig,
    SWAConfig,
)

Kind = Literal["int5", "int6", "int8", "fp16", "fp32"]  # how an artefact stores a tensor
KINDS: tuple[Kind, ...] = ("int5", "int6", "int8", "fp16", "fp32")
Counting = Literal["once", "pr465", "pr352"]

__all__ = [
    "KINDS",
    "AdamWConfig",
    "ArtefactConfig",
    "ConfigError",
    "Counting",
    "EMAConfig",
    "GroupConfig",
    "GroupsConfig",
    "Kind",
    "ModelConfig",
    "MuonConfig",
    "QATConfig",
    "RankLossConfig",
    "SWAConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TrainError",
]


SPANS = 8  # of a step in sequential order
ROUNDING = ("rules", "keep_numel", "int8_floor")  # keys of the artefact that late rounding goes by


@dataclass(frozen=True)
class RankLossConfig(Keys):
    """The watch over the singular values of Muon's matrices (train/monitor/singular_values.py)."""

    where = "train.rank_loss"

    every: int = key(1000, "Steps in which each matrix is looked at once; 0: never.", at_least=0)
    floor: float = key(1e-4, "Smallest over largest singular value, below which it is an event.", at_least=0, at_most=1)
    policy: Literal["warn", "stop"] = key("warn", "What an event does. stop: save and end the run.")


@dataclass(frozen=True)
class ArtefactConfig(Keys):
    """The artefact, a model packed into one small file by `python -m train.artefact` (train/quantize.py)."""

    where = "train.artefact"

    rules: tuple[str, ...] = key(
        ("fp16 embed.weight", "int5 *.mlp.*", "int6 *.attn.*", "int8 *"),
        "int5, int6, int8, fp16 or fp32, and the names of tensors that are stored so; the first that matches counts.",
        fixed_by=None,
    )
    keep_numel: int = key(
        65536,
        "Tensors of at most so many values are stored in fp16, whatever the rules say.",
        at_least=0,
        fixed_by=None,
    )
    int8_floor: float = key(
        0.0,
        "Scales of int8 are at least this; 0: fp16's smallest normal number. Only to repeat public records, which "
        "have 1 / 127: 0.007874015748031496.",
        at_least=0,
        fixed_by=None,
    )
    int8_first: bool = key(
        False,
        "Round to int8 ahead of int5 and int6. Only to repeat a public record, which packed a model that it had "
        "packed before.",
        fixed_by=None,
    )
    limit: int = key(16_000_000, "Bytes that the artefact should take at most, code counted.", above=0, fixed_by=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in self.rules:
            check(
                len(rule.split()) == 2 and rule.split()[0] in KINDS,
                f"{self.where}.rules: {rule!r}: write one of {', '.join(KINDS)}, and names, as in 'int5 *.mlp.*'",
            )


@dataclass(frozen=True)
class TrainConfig(Keys):
    """One phase of training. Batch, rates and lengths are ours: the seed states only the kinds."""

    where = "train"

    mixture: str = key(
        "", "The mixture that this phase is for; empty: the one of its own name. The manifest decides.", fixed_by=None
    )
    steps: int = key(1000, "Optimizer steps.", above=0, fixed_by=None)
    batch_size: int = key(16, "Sequences a step, over all processes.", above=0)
    seq_len: int = key(256, "Tokens a sequence; one more is read, as the last target.", above=0)
    order: Literal["shuffled", "sequential"] = key(
        "shuffled",
        "The order of the data. shuffled: all windows of an epoch, by train.seed. sequential: the shards one after "
        f"another and round again, as the parameter-golf scripts read them: {SPANS} spans a step, of which batch_size "
        "must be a multiple.",
        switch="order",
    )
    micro_batch: int | None = key(
        None, "Sequences a process and forward pass; null: as many as fit.", above=0, fixed_by=None
    )
    document_mask: bool = key(
        False, "Keep attention inside a document. false: it sees the whole row, as the seed does."
    )
    attention: Literal["auto", "flex", "varlen", "sdpa"] = key(
        "auto",
        "The attention kernel; all give one result, up to rounding. auto: flex on CUDA, sdpa elsewhere.",
        fixed_by=None,
    )
    optimizer: Literal["muon", "adamw"] = key("muon", "muon: for the matrices in blocks, with AdamW for the rest.")
    muon: MuonConfig = key(MuonConfig(), "Muon's keys.")
    adamw: AdamWConfig = key(AdamWConfig(), "AdamW's keys.")
    groups: GroupsConfig = key(
        GroupsConfig(), "Rates and decays of groups of parameters that AdamW trains.", switch="groups"
    )
    schedule: ScheduleConfig = key(ScheduleConfig(), "The learning rate over the steps.")
    ema: EMAConfig = key(EMAConfig(), "An exponential moving average of the weights.")
    swa: SWAConfig = key(SWAConfig(), "The mean of the weights over the end of the decay.")
    artefact: ArtefactConfig = key(ArtefactConfig(), "The artefact, a model packed into one small file.", fixed_by=None)
    qat: QATConfig = key(QATConfig(), "Training for an artefact of few bits, at the end of the decay.", switch="qat")
    kernel_warmup: int = key(
        0,
        "Steps that are trained ahead of the first one and undone, so that all is compiled when the clock starts.",
        at_least=0,
        fixed_by=None,
    )
    grad_clip: float = key(1.0, "Largest L2 norm of the whole gradient; 0: no clipping.", at_least=0)
    spike_sigma: float = key(
        6.0,
        "A loss or gradient norm so many deviations above its running mean is an event. 0: none is, and gradient "
        "norms by module, which events and logged lines have, are not taken.",
        at_least=0,
    )
    on_spike: Literal["warn", "skip", "stop"] = key(
        "warn",
        "What such an event does. skip: leave the step out; stop: leave it out and end the run.",
        fixed_by=None,  # who could not change it would meet the same batch again
    )
    rank_loss: RankLossConfig = key(
        RankLossConfig(), "The watch over the singular values of Muon's matrices.", fixed_by=None
    )
    eval_every: int | None = key(
        None,
        "Steps between validations; 0: only before the first step and after the last. null: some 15 in a run, fewer "
        "where they would score more tokens than it trains on.",
        at_least=0,
        fixed_by=None,
    )
    eval_tokens: int | None = key(
        None,
        "Validation tokens scored, always the same first ones; 0: all. null: 1,000,000, or a tenth of the tokens that "
        "the run trains on where that is less, but 10,000 at least.",
        at_least=0,
        fixed_by=None,
    )
    eval_counting: Counting = key(
        "once",
        "once: an evaluation scores every target once. Only to repeat public records, whose scores differ by it: "
        "pr465, pr352, as those parameter-golf scripts count (train/eval/windows.py).",
        fixed_by=None,
    )
    eval_stride: int | None = key(
        None,
        "Targets by which a window moves on from the one before it, where a trained model is scored (train.score, "
        "train.artefact): all before a target is seen, up to the window. null: windows do not overlap.",
        above=0,
        fixed_by=None,
    )
    eval_seq_len: int | None = key(
        None, "Tokens of a window that moves on by train.eval_stride; null: train.seq_len.", above=0, fixed_by=None
    )
    eval_items: int | None = key(
        0,
        "Questions asked of each of the recipe's evals, evenly spread; 0: all; null: none.",
        at_least=0,
        fixed_by=None,
    )
    checkpoint_every: int = key(
        500,
        "Steps between checkpoints; 0: only where a decay begins and at the end.",
        at_least=0,
        fixed_by=None,
    )
    checkpoint_minutes: float = key(
        10.0,
        "Minutes after a checkpoint until the next, if its steps take longer; 0: by steps alone.",
        at_least=0,
        fixed_by=None,
    )
    keep_last: int = key(
        2,
        "Checkpoints kept, beside the best one and the one where a decay begins; 0: all.",
        at_least=0,
        fixed_by=None,
    )
    keep_best: bool = key(
        True,
        "Save at a validation loss below all before too, as checkpoints/best; see eval_every.",
        fixed_by=None,
    )
    log_every: int = key(10, "Steps between lines of metrics.jsonl and on the screen.", above=0, fixed_by=None)
    seed: int = key(0, "Seed of weights, data order, dropout and samples.")
    init_from: str = key(
        "none",
        "A phase, or the path of a run, a checkpoint or transformers' folder of a Gemma 3, whose weights are the first "
        "ones; none: fresh weights.",
    )
    out: str | None = key(
        None, "The run's folder, or its address in a bucket; null: a new folder under runs/.", fixed_by=None
    )
    resume: str = key(
        "refuse",
        "auto, never, or the path of a checkpoint to go on from. refuse: a folder that holds a run is an error.",
        fixed_by=None,
    )
    allow_new_manifest: bool = key(
        False,
        "Allow to resume on another build of the data, from the checkpoint's step of its order.",
        fixed_by=None,
    )
    cache: str | None = key(
        None,
        "Folder for copies of shards that lie in a bucket, shared by all runs of a machine; null: shardmill/shards in "
        "$XDG_CACHE_HOME or ~/.cache.",
        fixed_by=None,
    )
    cache_gb: float | None = key(
        None,
        "Gigabytes of such copies at most; null: half of the room on the folder's disk.",
        above=0,
        fixed_by=None,
    )
    epochs: float = key(
        1.0, "Passes over the mixture that training may make; more is an error.", above=0, fixed_by=None
    )
    prompts: tuple[str, ...] = key(
        ("The", "In order to", "For example,"), "Samples are drawn for these at the end.", fixed_by=None
    )
    sample_tokens: int = key(48, "Tokens a sample; 0: no samples.", at_least=0, fixed_by=None)
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "Type of activations. auto: bfloat16 on CUDA, float32 elsewhere."
    )
    compile: bool | Literal["auto"] = key("auto", "Use torch.compile. auto: on CUDA.", fixed_by=None)
    deterministic: bool = key(
        False,
        "Use only GPU kernels that repeat to the bit, which are slower. On a CPU all do.",
        fixed_by=None,
    )
    tensorboard: bool = key(False, "Write TensorBoard event files into the run's folder too.", fixed_by=None)
    wandb: bool | str = key(
        False, "Log to Weights & Biases too, in the project of this name; true: shardmill.", fixed_by=None
    )
    peak_tflops: float | None = key(
        None,
        "TFLOP/s of a device, for its utilization (MFU); null: its datasheet's, dense bf16.",
        above=0,
        fixed_by=None,
    )

    @property
    def eval_limit(self) -> int:
        """Validation tokens scored at most, 0 for all, with the default filled in."""
        if self.eval_tokens is not None:
            return self.eval_tokens
        return min(1_000_000, max(10_000, self.steps * self.batch_size * self.seq_len // 10))

    def fixed_by_run(self) -> dict[str, Any]:
        """Return what `Keys.fixed_by_run` does, and the artefact's keys that training goes by where it rounds."""
        values = super().fixed_by_run()
        if self.qat.start_frac and self.qat.rule == "artefact":
            values["artefact"] = {name: getattr(self.artefact, name) for name in ROUNDING}
        return values

    def warnings(self) -> list[str]:
        """Return what a run with these keys does and few would want, a line each; `plan` and the run print them."""
        schedule, said = self.schedule, []
        if schedule.warmup > self.steps:
            said.append(
                f"train.schedule.warmup = {schedule.warmup:,} is longer than the run, train.steps = {self.steps:,}: "
                "the learning rate never gets to its full value"
            )
        if schedule.min_ratio > 1 and schedule.kind != "constant":
            said.append(
                f"train.schedule.min_ratio = {schedule.min_ratio:g}: the learning rate rises to {schedule.min_ratio:g} "
                "times its value where others fall; only to repeat a public recipe"
            )
        return said

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.seed < 2**63, f"train.seed = {self.seed}: must be in [0, 2**63)")
        check(
            self.order == "shuffled" or self.batch_size % SPANS == 0,
            f"train.batch_size = {self.batch_size}: train.order=sequential needs a multiple of {SPANS}",
        )
        check(bool(self.init_from), "train.init_from is empty: name a phase or a path, or say none")
        check(bool(self.resume), "train.resume is empty: say auto, never, refuse or a path")
