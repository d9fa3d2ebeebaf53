"""Where the time of a training step on a GPU goes: one profiled step, and the share of each kind of kernel in it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu_ceilings import synchronize
from train.model import transformer
from train.model.loss import head_loss
from train.run import Run

LONGEST = 30  # kernels that are named
KINDS = (  # of a kernel outside the named ranges, by its name; the first that fits
    ("attention", r"flash|fmha|flex|attention|sdpa"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|xmma|splitk|wgmma|mma_"),
    ("copies", r"memcpy|memset"),
    ("elementwise", r""),
)


def profiled(run: Run, step_once: Callable[[], Any], path: Path, device: torch.device) -> dict[str, Any]:
    """The trace of `step_once`, one step of the run, in which loss, optimiser and data are named ranges."""
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
            step_once()
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
    names: dict[str, float] = defaultdict(float)  # of attention's kernels: what really ran, whatever was asked for
    for kernel in kernels:
        middle = kernel["ts"] + kernel["dur"] / 2
        inside = (r["name"] for r in ranges if r["ts"] <= middle <= r["ts"] + r["dur"])
        by_name = next(kind for kind, pattern in KINDS if re.search(pattern, kernel["name"], re.IGNORECASE))
        kind = next(inside, by_name)
        sums[kind] += kernel["dur"]
        if kind == "attention":
            names[kernel["name"][:120]] += kernel["dur"]
    busy = sum(sums.values())
    whole = max(k["ts"] + k["dur"] for k in kernels) - min(k["ts"] for k in kernels)
    longest = sorted(kernels, key=lambda k: -k["dur"])[:LONGEST]
    return {
        "shares": {kind: round(s / busy, 4) for kind, s in sorted(sums.items(), key=lambda item: -item[1])},
        "kernels_ms": round(busy / 1000, 2),
        "idle": round(max(0.0, 1 - busy / whole), 4),
        "attention_kernels_ms": {name: round(s / 1000, 3) for name, s in sorted(names.items(), key=lambda x: -x[1])},
        "longest_kernels_ms": [[k["name"][:120], round(k["dur"] / 1000, 3)] for k in longest],
    }
