"""How fast a run is for what it runs on: model TFLOP/s, MFU, and the most memory that was in use."""

from __future__ import annotations

import contextlib
import math
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from train.model.flops import Flops

# Dense bf16 TFLOP/s with fp32 accumulation, by the whole name that CUDA gives the device: the vendors' figures as
# torchtitan quotes them, for L40 and RTX 4090 as seen second-hand. What was not seen anywhere is not here, and a
# laptop's chip, a MIG slice or a variant has no peak rather than its neighbour's: train.peak_tflops names one.
PEAKS = {
    r"B200": 2250.0,
    r"H100 80GB HBM3": 989.4,  # SXM
    r"H100 PCIe": 756.0,
    r"H200": 989.4,
    r"A100-(SXM4-[48]0GB|PCIE-40GB)|A100 80GB PCIe": 312.0,
    r"L40": 181.05,
    r"L40S": 362.05,
    r"GeForce RTX 4090": 165.2,
}

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def device_name(device: torch.device) -> str:
    """As the driver gives it; of a processor only "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_tflops(name: str) -> float | None:
    """The peak of a device by its name, dense bf16, in TFLOP/s; None where none is known."""
    short = name.removeprefix("NVIDIA ").strip()
    return next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, short)), None)


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: of tensors on a GPU, of everything resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let go of memory that no tensor uses, and begin a new peak. On a CPU neither can be done."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def held_bytes(device: torch.device) -> int:
    """What this process's tensors take of `available_bytes`: 0 on a CPU, where that is without them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def available_bytes(device: torch.device) -> float:
    """Memory that this process could use: of a GPU all that others leave, its own included; of a machine what is free.

    Where the system does not say (macOS), without bound.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = _number(Path("/proc/meminfo"), "MemAvailable:") * 1024
    limit = _number(CGROUP / "memory.max")
    if limit < math.inf:
        free = min(free, limit - _number(CGROUP / "memory.current") + _number(CGROUP / "memory.stat", "inactive_file"))
    return free


def _number(path: Path, name: str = "") -> float:
    """The number after `name` in a file of the kernel's; infinite where there is none."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        words = path.read_text().split()
        return float(words[words.index(name) + 1] if name else words[0])
    return math.inf


@dataclass(frozen=True)
class Meter:
    """What turns tokens/s into the use of the devices, of which there are `world`."""

    flops: Flops  # a token
    peak: float | None  # TFLOP/s of a device
    world: int

    def rates(self, tokens_per_second: float) -> dict[str, float]:
        """model_tflops: causal, a device. mfu_causal and mfu_full: of the peak (train/model/flops.py); {} of them
        without.
        """
        each = tokens_per_second / self.world / 1e12
        rates = {"model_tflops": _short(each * self.flops.causal)}
        if self.peak is not None:
            rates |= {f"mfu_{name}": _short(each * value / self.peak) for name, value in self.flops._asdict().items()}
        return rates


def _short(value: float) -> float:
    return float(f"{value:.4g}")
