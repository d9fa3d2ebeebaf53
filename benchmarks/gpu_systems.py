"""The systems that benchmarks.gpu times, from their recipes, and the variants of each one's training step.

Model, optimizer, order and masks are those of `manifests/<name>.yaml`. What a timing cannot have of it is replaced: the
schedule, and with it the clock that ends a golf run, scores and checkpoints; and Shard's batch, by 256k tokens a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch._functorch.config
import torch._inductor.config
import torch.nn.attention.flex_attention
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import measure
from benchmarks.reader import write_shards
from train.data.manifest import load_manifest
from train.data.tokens import token_dtype
from train.files import sha256_file
from train.main import use_deterministic_kernels
from train.run import Run

Hook = Callable[[Run], None]


class Variant(NamedTuple):
    """A run to time: settings of `train`, a change to the run, what surrounds it, and what of the model is compiled.

    compiles: "blocks" is a graph for each kind of block, in a tenth of the time that the whole trunk takes: to compare.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012
    hook: Hook | None = None
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    compiles: Literal["blocks", "trunk", "nothing"] = "blocks"
    run: Literal["A", "B"] = "A"  # see benchmarks/gpu.py


class System(NamedTuple):
    """A recipe to time, how, its goals in tokens a second on one H100, and the form of it that a test can run."""

    recipe: str
    settings: dict[str, Any]  # of `train`, instead of the recipe's
    goals: dict[str, float]
    variants: dict[str, Variant]
    tiny: dict[str, Any]  # of `model`


class Setting(NamedTuple):
    """What a system's recipe comes to: keys of `model` and of `train`, and ids of the vocabulary."""

    model: dict[str, Any]
    train: dict[str, Any]
    vocab: int


# ---------------------------------------------------------------------------------------------------------------------
# Changes to a run


def compile_blocks(run: Run) -> None:
    """Compile each block of the run's model, instead of the whole trunk."""
    run.model.run_trunk = run.model.trunk
    for block in run.model.blocks:
        block.compile(dynamic=False, fullgraph=True)


def torch_muon(run: Run) -> None:
    """torch.optim.Muon for the matrices that ours updates, as near as it can express it: jordan5, in bf16."""
    cfg, optimizer = run.cfg.muon, run.optimizer
    matrices = [p for n, p in run.model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    muon = torch.optim.Muon(
        matrices, cfg.lr, cfg.weight_decay, cfg.momentum, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    whole = optimizer.step

    def step(factor: float, momentum: float | None = None) -> None:
        muon.param_groups[0]["lr"] = cfg.lr * factor
        muon.step()
        groups, optimizer.muon_groups = optimizer.muon_groups, []
        whole(factor, momentum)
        optimizer.muon_groups = groups

    optimizer.step = step  # type: ignore[method-assign]


def rounding(run: Run) -> None:
    """train.qat turned on, as it is at the end of a run."""
    assert run.fake_quant is not None, "the recipe has no train.qat"
    run.fake_quant.turn_on()


@contextlib.contextmanager
def cudnn_first() -> Iterator[None]:
    """cuDNN's kernel where layers see all before. Its choice is no part of the key that compiled graphs are kept by."""
    with (
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True),
        torch._functorch.config.patch("enable_autograd_cache", False),
    ):
        yield


@contextlib.contextmanager
def autotuned() -> Iterator[None]:
    """Products by the fastest of cuBLAS's and Triton's kernels, each tried while compiling."""
    with torch._inductor.config.patch(max_autotune_gemm=True):
        yield


@contextlib.contextmanager
def flex_blocks(queries: int, keys: int) -> Iterator[None]:
    """Sizes of the tiles that FlexAttention's kernels work on, forward."""
    module = torch.nn.attention.flex_attention
    plain: Any = module.flex_attention

    def sized(*given: Any, **more: Any) -> Any:
        return plain(*given, **more, kernel_options={"fwd_BLOCK_M": queries, "fwd_BLOCK_N": keys})

    module.flex_attention = sized
    try:
        yield
    finally:
        module.flex_attention = plain


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """train.deterministic: what a resume to the bit costs."""
    use_deterministic_kernels()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------------------------------------------------------------
# The systems

SHARD = "shard_40m"
JORDAN = {"muon": {"ns": "jordan5"}}
STOCK = Variant()
VARLEN = Variant({"attention": "varlen"})
WHOLE = "stock, the whole trunk compiled"
EAGER = Variant({"compile": False}, compiles="nothing")
B: dict[str, Variant] = {  # of run B, of each system
    "autotuned products": Variant(around=autotuned, run="B"),
    "flex, tiles of 128 x 64": Variant(around=functools.partial(flex_blocks, 128, 64), run="B"),
    "flex, tiles of 64 x 64": Variant(around=functools.partial(flex_blocks, 64, 64), run="B"),
}
GOLF_GOALS = {"floor": 1.0e6, "goal": 1.15e6}  # the records ran .983 and 1.02 M on each of eight
TINY_GOLF = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "mlp_hidden": 96, "max_seq_len": 128}
TINY_GOLF |= {"bigram_buckets": 32, "bigram_dim": 16}
# The most important variants first
SYSTEMS = {
    SHARD: System(
        SHARD,
        {"batch_size": 32, "micro_batch": 8, "seq_len": 8192},  # docs/trainer-math.md, "Throughput"
        {"floor": 0.40e6, "goal": 0.47e6, "stretch": 0.60e6},
        {
            "stock": STOCK,
            "attention varlen": VARLEN,
            "attention flex, cuDNN for global layers": Variant(around=cudnn_first),
            "document masks, flex": Variant({"document_mask": True}),
            "without compile": EAGER,
            "torch.optim.Muon": Variant(JORDAN, hook=torch_muon),
            "our Muon, jordan5": Variant(JORDAN),
            "document masks, varlen": Variant({"document_mask": True, "attention": "varlen"}),
            "deterministic": Variant(around=deterministic),
            WHOLE: Variant(compiles="trunk"),
            "Newton-Schulz in fp32": Variant({"muon": {"ns": "dsv4", "ns_dtype": "float32"}}),
            "attention sdpa, dense masks": Variant({"attention": "sdpa"}),
            "micro-batch 4": Variant({"micro_batch": 4}),
            "micro-batch 16": Variant({"micro_batch": 16}),
            "micro-batch 2": Variant({"micro_batch": 2}),
            **B,
        },
        {"dim": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16, "mlp_hidden": 96, "max_seq_len": 128}
        | {"sliding_window": 32, "vocab_size": 512},
    ),
    "golf_int5_sp1024": System(
        "golf_int5_sp1024",
        {"micro_batch": 48},  # what each of the record's eight had
        GOLF_GOALS,
        {
            "stock": STOCK,
            "attention varlen": VARLEN,
            "micro-batch 24": Variant({"micro_batch": 24}),
            "micro-batch 96": Variant({"micro_batch": 96}),
            "without compile": EAGER,
        },
        TINY_GOLF,
    ),
    "golf_memory_tokens": System(
        "golf_memory_tokens",
        {"micro_batch": 32},
        GOLF_GOALS,
        {
            "stock": STOCK,
            "matrices rounded": Variant(hook=rounding),
            "attention varlen": VARLEN,
            "micro-batch 64": Variant({"micro_batch": 64}),
            "without train.qat": Variant({"qat": {"start_frac": 0}}),
        },
        TINY_GOLF | {"rope_dims": 8, "memory_tokens": 4},
    ),
    "gemma3_270m": System(
        "gemma3_270m",
        {"micro_batch": 16},
        {"goal": 0.32e6},
        {
            "stock": STOCK,
            "attention varlen": VARLEN,
            "rows whole, without document masks": Variant({"document_mask": False}),
            "micro-batch 8": Variant({"micro_batch": 8}),
            "micro-batch 32": Variant({"micro_batch": 32}),
        },
        {"dim": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16, "mlp_hidden": 64, "max_seq_len": 128}
        | {"layer_kinds": ["sliding", "global"], "sliding_window": 32, "vocab_size": 70_000},
    ),
}
TINY: dict[str, Any] = {
    "batch_size": 8,
    "micro_batch": 4,
    "seq_len": 64,
    "log_every": 1,
    "compile": False,
    "eval_tokens": 128,
}
TINY["adamw"] = {"lr": 0.02}  # so that the loss falls in five steps


def setting(system: System, tiny: bool) -> Setting:
    """Return what a system's recipe comes to, or its form for tests."""
    text = (measure.ROOT / "manifests" / f"{system.recipe}.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    model = {**recipe["model"], **(system.tiny if tiny else {})}
    train = {**recipe["train"]["pretrain"], "log_every": 10, "eval_every": 0, "kernel_warmup": 0, "epochs": 1}
    train |= {**system.settings, **(TINY if tiny else {})}
    if tiny:
        model["expect_params"] = None
        train["artefact"] = {"keep_numel": 0}
    for name in ("mixture", "checkpoint_every", "eval_seq_len", "eval_stride"):
        train.pop(name, None)
    train["schedule"] = {"kind": "wsd", "decay_frac": 0.2}  # so the timed steps have the full rate
    return Setting(model, train, model["vocab_size"])


def write_mixture(folder: Path, tokens: int, setting: Setting) -> Path:
    """A mixture of random tokens, most of them low ids, so that there is something to learn; its manifest's path.

    Documents have all lengths.
    """
    ids = (np.random.default_rng(0).random(tokens) ** 4 * (setting.vocab - 1)).astype(token_dtype(setting.vocab))
    path = write_shards(folder, ids, 5, setting.vocab, np.random.default_rng(1))
    made = load_manifest(path)
    shards = [dataclasses.replace(s, sha256=sha256_file(folder / s.path)) for s in made.shards]
    shards[-1] = dataclasses.replace(shards[-1], split="val")
    held = shards[-1].tokens
    recipe = {"model": setting.model, "train": {"pretrain": setting.train}}
    made = dataclasses.replace(made, shards=shards, tokens=tokens - held, val_tokens=held, recipe=recipe)
    path.write_text(made.to_json(), encoding="utf-8")
    return path
