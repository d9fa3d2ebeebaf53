"""Shard-40m on one GPU: is what is fast right, how fast is the whole step, where does its time go.

One command, within 9 minutes. First each fast path against its readable form (benchmarks/gpu_checks.py), and what the
device does at best. Then variants of one training step, all as the trainer makes it (train/loop.py train_step: reading,
model, loss, optimiser, sentinel, and every tenth step the line that waits for the device), on shards of random tokens
from the model's own vocabulary, after compilation: tokens a second, utilization by two conventions
(train/model/flops.py) against the measured matrix product, and peak memory. One step of some is profiled: the share of
each kind of kernel.

The most important come first, and what no longer fits the time is left out and named. A variant that fails is noted
with its error. Without a CUDA device nothing is measured and nothing is written.

    python -m benchmarks.gpu [--out FILE] [--minutes 8] [--device cpu --tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._dynamo
import torch._functorch.config
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import measure
from benchmarks.gpu_checks import ceilings, checks, synchronize
from benchmarks.reader import VOCAB, write_shards
from train import loop
from train.config import ModelConfig
from train.data.manifest import load_manifest
from train.distributed.runtime import Runtime
from train.files import sha256_file
from train.main import build_run, use_deterministic_kernels
from train.model import transformer
from train.model.flops import flops_per_token
from train.model.loss import head_loss
from train.overrides import configs
from train.run import Run

GOALS = {"floor": 0.40e6, "goal": 0.47e6, "stretch": 0.60e6}  # tokens a second on one H100
SHARD = measure.ROOT / "manifests" / "shard_40m.yaml"
# 64k tokens a micro-batch (docs/trainer-math.md, "Throughput")
FULL = {"batch_size": 32, "micro_batch": 8, "seq_len": 8192, "log_every": 10}
TINY = {"batch_size": 4, "micro_batch": 2, "seq_len": 128, "log_every": 1, "compile": False, "eval_tokens": 128}
TINY_MODEL = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 128, "sliding_window": 32}

Hook = Callable[[Run], None]


class Variant(NamedTuple):
    """A run to time: settings of `train`, a change to the run, and what surrounds it."""

    settings: dict[str, Any] = {}  # noqa: RUF012
    hook: Hook | None = None
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    profiled: bool = False


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


@contextlib.contextmanager
def cudnn_first() -> Iterator[None]:
    """cuDNN's kernel where layers see all before. Its choice is no part of the key that compiled graphs are kept by."""
    with (
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True),
        torch._functorch.config.patch("enable_autograd_cache", False),
    ):
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """train.deterministic: what a resume to the bit costs."""
    use_deterministic_kernels()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# The most important first
VARIANTS = {
    "stock": Variant(profiled=True),
    "attention varlen": Variant({"attention": "varlen"}, profiled=True),
    "document masks, flex": Variant({"document_mask": True}),
    "attention flex, cuDNN for global layers": Variant(around=cudnn_first),
    "without compile": Variant({"compile": False}),
    "torch.optim.Muon": Variant({"muon": {"ns": "jordan5"}}, hook=torch_muon),
    "our Muon, jordan5": Variant({"muon": {"ns": "jordan5"}}),
    "document masks, varlen": Variant({"document_mask": True, "attention": "varlen"}),
    "deterministic": Variant(around=deterministic),
    "attention sdpa, dense masks": Variant({"attention": "sdpa"}),
    "micro-batch 4": Variant({"micro_batch": 4}),
    "micro-batch 16": Variant({"micro_batch": 16}),
    "micro-batch 2": Variant({"micro_batch": 2}),
}


def write_mixture(folder: Path, tokens: int, model: dict[str, Any], settings: dict[str, Any]) -> Path:
    """A mixture of random tokens, most of them low ids, so that there is something to learn; its manifest's path."""
    ids = (np.random.default_rng(0).random(tokens) ** 4 * (VOCAB - 1)).astype(np.uint16)
    path = write_shards(folder, ids, 5)
    made = load_manifest(path)
    shards = [dataclasses.replace(s, sha256=sha256_file(folder / s.path)) for s in made.shards]
    shards[-1] = dataclasses.replace(shards[-1], split="val")
    held = shards[-1].tokens
    recipe = {"model": model, "train": {"pretrain": settings}}
    made = dataclasses.replace(made, shards=shards, tokens=tokens - held, val_tokens=held, recipe=recipe)
    path.write_text(made.to_json(), encoding="utf-8")
    return path


def ready(path: Path, settings: dict[str, Any], out: Path, device: torch.device) -> Run:
    """A run as the trainer sets it up."""
    manifest = load_manifest(path)
    sets = [f"train.{key}={json.dumps(value)}" for key, value in {**settings, "out": str(out)}.items()]
    model_cfg, cfg = configs(manifest.recipe, manifest.phase, sets, str(path))
    return build_run(Runtime(0, 1, device, None), manifest, model_cfg, cfg, None)


def advance(run: Run, steps: int) -> list[float]:
    """Make `steps`, as train.loop.train does; losses where a line would be printed."""
    losses = []
    for _ in range(steps):
        loss, _ = loop.train_step(run)
        if run.step % run.cfg.log_every == 0 or run.anomalies.full or run.step == 1:
            losses.append(float(loss))
            run.anomalies.read_events(run.step)
            run.singular_values.read()
    return losses


def timed(path: Path, variant: Variant, out: Path, device: torch.device, warm: int, steps: int) -> dict[str, Any]:
    """One variant: compiled, warmed up, `steps` timed, one perhaps profiled."""
    torch._dynamo.reset()
    with variant.around():
        begun = time.perf_counter()
        run = ready(path, variant.settings, out, device)
        if variant.hook is not None:
            variant.hook(run)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        losses = advance(run, warm)
        synchronize(device)
        run.seconds_waited, start = 0.0, time.perf_counter()
        losses += advance(run, steps)
        synchronize(device)
        seconds = time.perf_counter() - start
        cfg = run.cfg
        result: dict[str, Any] = {
            "tokens_per_second": round(steps * cfg.batch_size * cfg.seq_len / seconds),
            "seconds_a_step": round(seconds / steps, 4),
            "waiting_for_data": round(run.seconds_waited / seconds, 5),
            "set_up_and_warm_up_seconds": round(start - begun, 1),
            "kernel": run.model.mask_builder.kernel,
            "losses": [round(x, 4) for x in losses],
        }
        if device.type == "cuda":
            result["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        if variant.profiled:
            with tempfile.TemporaryDirectory() as folder:
                result["time"] = shares(profiled(run, Path(folder) / "trace.json", device))
        run.singular_values.close()
        run.writer.close()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Where the time goes

KINDS = (  # of a kernel outside the named ranges, by its name; the first that fits
    ("attention", r"flash|fmha|flex|attention|sdpa"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|xmma|splitk|wgmma|mma_"),
    ("copies", r"memcpy|memset"),
    ("elementwise", r""),
)


def profiled(run: Run, path: Path, device: torch.device) -> dict[str, Any]:
    """The trace of one step, in which loss, optimiser and data are named ranges."""
    optimizer, batch = run.optimizer, run.loader.batch

    def named(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            with record_function(name):
                return work(*given, **more)

        return call

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    step, clip = optimizer.step, optimizer.clip
    optimizer.step, optimizer.clip = named("optimiser", step), named("optimiser", clip)  # type: ignore[method-assign]
    run.loader.batch = named("data", batch)  # type: ignore[method-assign]
    transformer.head_loss = named("loss", head_loss)  # type: ignore[attr-defined]
    try:
        with profile(activities=activities) as seen:
            advance(run, 1)
            synchronize(device)
    finally:
        transformer.head_loss = head_loss  # type: ignore[attr-defined]
        run.loader.batch = batch  # type: ignore[method-assign]
        optimizer.step, optimizer.clip = step, clip  # type: ignore[method-assign]
    seen.export_chrome_trace(str(path))
    trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace


def shares(trace: dict[str, Any]) -> dict[str, Any]:
    """Of one profiled step on a GPU: the share of each kind in the kernels' time, and of idleness in the whole.

    A kernel that runs while one of our ranges does belongs to it: the loss's gradients are made in its range, and the
    two multiplications left for the backward pass count as elementwise. Empty where no kernel ran.
    """
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    ranges = [e for e in events if e.get("cat") == "gpu_user_annotation" and e["name"] in ("loss", "optimiser", "data")]
    if not kernels:
        return {}
    sums: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        middle = kernel["ts"] + kernel["dur"] / 2
        inside = (r["name"] for r in ranges if r["ts"] <= middle <= r["ts"] + r["dur"])
        by_name = next(kind for kind, pattern in KINDS if re.search(pattern, kernel["name"], re.IGNORECASE))
        sums[next(inside, by_name)] += kernel["dur"]
    busy = sum(sums.values())
    whole = max(k["ts"] + k["dur"] for k in kernels) - min(k["ts"] for k in kernels)
    longest = sorted(kernels, key=lambda k: -k["dur"])[:12]
    return {
        "shares": {kind: round(s / busy, 4) for kind, s in sorted(sums.items(), key=lambda item: -item[1])},
        "kernels_ms": round(busy / 1000, 2),
        "idle": round(max(0.0, 1 - busy / whole), 4),
        "longest_kernels_ms": [[k["name"][:120], round(k["dur"] / 1000, 3)] for k in longest],
    }


# ---------------------------------------------------------------------------------------------------------------------
# The command


def variants(path: Path, device: torch.device, deadline: float, tiny: bool, say: Callable[[str], None]) -> Any:
    """Every variant that still fits, by name; one that fails is noted with its error."""
    found: dict[str, Any] = {}
    longest = 0.0
    for name, variant in VARIANTS.items():
        left = deadline - time.monotonic()
        if left < longest:
            found[name] = {"left_out": f"{left:.0f} s were left"}
            continue
        began = time.monotonic()
        if tiny:
            variant = variant._replace(settings={k: v for k, v in variant.settings.items() if k != "micro_batch"})
        try:
            with contextlib.redirect_stdout(sys.stderr):
                # the first step compiles; 20 in all of the first variant, for its loss
                warm, steps = (1, 5 if name == "stock" else 1) if tiny else (3, 17 if name == "stock" else 10)
                found[name] = timed(path, variant, path.parent / f"runs/{name}", device, warm, steps)
            say(f"{name}: {found[name]['tokens_per_second']:,} tokens/s")
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            say(f"{name}: {found[name]['failed']}")
        if device.type == "cuda":  # a failed one may still hold its memory
            gc.collect()
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - began)
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'variant':<42}{'tokens/s':>12}{'causal':>9}{'full':>9}{'GB':>8}{'data':>8}"]
    for name, seen in result["variants"].items():
        if "tokens_per_second" not in seen:
            lines.append(f"{name:<42}  {seen.get('failed') or 'left out: ' + seen['left_out']}")
            continue
        mfu = seen["mfu"]
        lines.append(
            f"{name:<42}{seen['tokens_per_second']:>12,}{mfu['causal']:>9.1%}{mfu['full']:>9.1%}"
            f"{seen.get('peak_gb', 0):>8.1f}{seen['waiting_for_data']:>8.2%}"
        )
        if seen.get("time"):
            lines.append("  " + ", ".join(f"{k} {s:.1%}" for k, s in seen["time"]["shares"].items()))
    best = max((s.get("tokens_per_second", 0) for s in result["variants"].values()), default=0)
    lines += [f"{name} {goal:,.0f}: {'reached' if best >= goal else 'not reached'}" for name, goal in GOALS.items()]
    bad = [name for name, check in result["checks"].items() if not check["passed"]]
    return "\n".join(
        [*lines, f"checks: {len(result['checks']) - len(bad)} passed, not passed: {', '.join(bad) or '-'}"]
    )


def measured(device: torch.device, tiny: bool, minutes: float) -> dict[str, Any]:
    """All of it."""
    begun = time.monotonic()
    model: dict[str, Any] = TINY_MODEL if tiny else yaml.safe_load(SHARD.read_text(encoding="utf-8"))["model"]
    settings: dict[str, Any] = TINY if tiny else FULL
    cfg = ModelConfig(**model)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": measure.machine(("numpy", "torch")),
        "cuda": torch.version.cuda,
        "model": model,
        "train": settings,
        "goals_tokens_per_second": GOALS,
        "ceilings": ceilings(device),
    }
    print(f"{result['device']}: {result['ceilings']}", flush=True)
    result["checks"] = checks(device, cfg)
    print(json.dumps(result["checks"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as name:
        path = write_mixture(Path(name) / "mixture", 100_000 if tiny else 20_000_000, model, settings)
        say: Callable[[str], None] = lambda text: print(f"{time.monotonic() - begun:5.0f} s  {text}", flush=True)  # noqa: E731
        result["variants"] = variants(path, device, begun + 60 * minutes, tiny, say)
    flops = flops_per_token(cfg, VOCAB, settings["seq_len"])
    result["flops_per_token"] = flops._asdict()
    peak = result["ceilings"]["matmul_tflops"] * 1e12
    for seen in result["variants"].values():
        if speed := seen.get("tokens_per_second"):
            seen["mfu"] = {name: round(speed * value / peak, 4) for name, value in flops._asdict().items()}
            seen["tflops_causal"] = round(speed * flops.causal / 1e12, 1)
    stock = result["variants"]["stock"].get("losses", [])
    fell = bool(stock) and stock[-1] < stock[0] - (0.0 if tiny else 0.1)
    result["checks"]["the loss falls over the steps"] = {"from_to": [stock[:1], stock[-1:]], "passed": fell}
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save. Returns 1 where a check did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: benchmarks/results/)")
    parser.add_argument("--minutes", type=float, default=8, help="no variant is begun that may end later")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small shape: tries the script, measures nothing")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    result = measured(device, given.tiny, given.minutes)
    print(table(result))
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    elif device.type == "cuda" and not given.tiny:
        measure.save("gpu", result)
    return 0 if all(check["passed"] for check in result["checks"].values()) or device.type == "cpu" else 1


if __name__ == "__main__":
    sys.exit(main())
