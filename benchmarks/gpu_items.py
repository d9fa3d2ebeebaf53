"""A list of things to measure, within a time: each is written when it is done, and what would not end is left out."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._dynamo


class Item(NamedTuple):
    """One thing to measure: its place in the result, the seconds it should take, and the work."""

    place: tuple[str, ...]
    seconds: float
    work: Callable[[], dict[str, Any]]


def run_items(
    items: list[Item], result: dict[str, Any], deadline: float, device: torch.device, write: Callable[[], None]
) -> None:
    """Do the items in turn, each into its place in `result`, and `write` after each.

    One that should not end by `deadline`, by its own seconds and how the ones before kept theirs, is left out.
    """
    expected = took = 0.0
    for item in items:
        pace = min(2.0, max(0.5, took / expected)) if expected else 1.0
        left, needs = deadline - time.monotonic(), pace * item.seconds
        began = time.monotonic()
        if left < needs:
            found: dict[str, Any] = {"left_out": f"some {needs:.0f} s, and {max(0, left):.0f} s were left"}
        else:
            forget(device)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    found = item.work()
            except Exception as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                found = {"failed": said, "trace": traceback.format_exc(), "passed": False}
            found["seconds"] = round(time.monotonic() - began, 1)
            expected, took = expected + item.seconds, took + time.monotonic() - began
        *folders, name = item.place
        functools.reduce(lambda inner, key: inner.setdefault(key, {}), folders, result)[name] = found
        write()
        brief = {
            k: v for k, v in found.items() if k in ("tokens_per_second", "failed", "left_out", "passed", "seconds")
        }
        print(f"{' / '.join(item.place)}: {brief}", flush=True)


def forget(device: torch.device) -> None:
    """Let go of what items before have left: graphs, memory, and the peak."""
    torch._dynamo.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
