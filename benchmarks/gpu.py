"""The four systems on one GPU: is what is fast right, how fast is the whole step, where does its time go.

One command, within 9 minutes. First each fast path against its readable form (benchmarks/gpu_checks.py), and what the
device does at best. Then variants of one training step of each system (benchmarks/gpu_systems.py), all as the trainer
makes it (train/step.py train_step: reading, model, loss, optimiser, sentinel, and every tenth step the line that waits
for the device), on shards of random tokens from the model's own vocabulary, after compilation: tokens a second,
utilization by two conventions (train/model/flops.py) against the measured matrix product, peak memory, and graphs
compiled in the timed steps, of which there must be none. One step of some is profiled: the share of each kind of
kernel.

The most important come first, and what no longer fits the time is left out and named; --systems has some of them alone.
A variant that fails is noted with its error. Without a CUDA device nothing is measured and nothing is written, and the
table says so of each cell.

    python -m benchmarks.gpu [--systems shard_40m,gemma3_270m] [--out FILE] [--minutes 8] [--device cpu --tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from benchmarks import measure
from benchmarks.gpu_ceilings import ceilings, synchronize
from benchmarks.gpu_checks import checks, run_check
from benchmarks.gpu_dry import dry, prepared, pretend, shortened
from benchmarks.gpu_profile import profiled, shares
from benchmarks.gpu_systems import SYSTEMS, Setting, Variant, setting, write_mixture
from train.config import ModelConfig
from train.model.flops import flops_per_token
from train.monitor.dead_parts import graphs_compiled
from train.overrides import configs
from train.run import Run
from train.step import train_step

STEPS, STEPS_OF_STOCK, WARM = 10, 17, 3  # timed, of the first variant, whose loss is looked at, and ahead of them


def advance(run: Run, steps: int) -> list[float]:
    """Make `steps`, as train.loop.train does; losses where a line would be printed."""
    losses = []
    for _ in range(steps):
        loss, _ = train_step(run)
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
        run = prepared(path, variant.settings, out, device)
        if variant.hook is not None:
            variant.hook(run)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        losses = advance(run, warm)
        synchronize(device)
        run.seconds_waited, start, compiled = 0.0, time.perf_counter(), graphs_compiled()
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
            "compiled_in_timed_steps": graphs_compiled() - compiled,
            "losses": [round(x, 4) for x in losses],
        }
        if device.type == "cuda":
            result["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        if variant.profiled:
            with tempfile.TemporaryDirectory() as folder:
                result["time"] = shares(profiled(run, lambda: advance(run, 1), Path(folder) / "trace.json", device))
        run.singular_values.close()
        run.writer.close()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The command


def order(names: list[str]) -> list[tuple[str, str]]:
    """Return (system, variant) of all of them: the first of each system, then the second of each, and so on."""
    cells = [(i, name, variant) for name in names for i, variant in enumerate(SYSTEMS[name].variants)]
    return [(name, variant) for _, name, variant in sorted(cells, key=lambda cell: cell[0])]


Results = dict[str, dict[str, dict[str, Any]]]  # of a system, of its variant


def timings(
    settings: dict[str, Setting],
    folder: Path,
    device: torch.device,
    deadline: float,
    tiny: bool,
    say: Callable[[str], None],
) -> Results:
    """Time every variant that still fits; one that fails is noted with its error."""
    found: Results = {name: {} for name in settings}
    paths: dict[str, Path] = {}
    longest = 0.0
    for name, kind in order(list(settings)):
        left = deadline - time.monotonic()
        if left < longest or left <= 0:
            found[name][kind] = {"left_out": f"{left:.0f} s were left"}
            continue
        began = time.monotonic()
        warm, steps = (1, 5 if kind == "stock" else 1) if tiny else (WARM, STEPS_OF_STOCK if kind == "stock" else STEPS)
        variant = SYSTEMS[name].variants[kind]
        if tiny:
            variant = variant._replace(settings={k: v for k, v in variant.settings.items() if k != "micro_batch"})
        try:
            if name not in paths:
                paths[name] = write_mixture(folder / name, tokens_needed(settings[name], tiny), settings[name])
            with contextlib.redirect_stdout(sys.stderr):
                found[name][kind] = timed(paths[name], variant, folder / f"runs/{name} {kind}", device, warm, steps)
            say(f"{name}, {kind}: {found[name][kind]['tokens_per_second']:,} tokens/s")
        except Exception as error:
            found[name][kind] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            say(f"{name}, {kind}: {found[name][kind]['failed']}")
        if device.type == "cuda":  # a failed one may still hold its memory
            gc.collect()
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - began)
    return found


def tokens_needed(setting: Setting, tiny: bool) -> int:
    """Return the tokens of a mixture that lasts for all steps of a variant, a fifth of it being held out."""
    steps = 10 if tiny else WARM + STEPS_OF_STOCK + 1
    return int(1.5 * steps * setting.train["batch_size"] * setting.train["seq_len"])


def table(found: Results) -> str:
    """The figures as text; what has none says why."""
    lines = []
    for name, variants in found.items():
        lines.append(f"{name:<42}{'tokens/s':>12}{'causal':>9}{'full':>9}{'GB':>8}{'data':>8}")
        for kind in SYSTEMS[name].variants:
            seen = variants.get(kind, {})
            if "tokens_per_second" not in seen:
                why = seen.get("failed") or ("left out: " + seen["left_out"] if "left_out" in seen else "not measured")
                lines.append(f"  {kind:<40}  {why}")
                continue
            mfu = seen["mfu"]
            lines.append(
                f"  {kind:<40}{seen['tokens_per_second']:>12,}{mfu['causal']:>9.1%}{mfu['full']:>9.1%}"
                f"{seen.get('peak_gb', 0):>8.1f}{seen['waiting_for_data']:>8.2%}"
            )
            if seen.get("time"):
                lines.append("    " + ", ".join(f"{k} {s:.1%}" for k, s in seen["time"]["shares"].items()))
        speeds = [seen["tokens_per_second"] for seen in variants.values() if "tokens_per_second" in seen]
        for goal, wanted in SYSTEMS[name].goals.items():
            reached = "reached" if max(speeds, default=0) >= wanted else "not reached" if speeds else "not measured"
            lines.append(f"  {goal} {wanted:,.0f}: {reached}")
    return "\n".join(lines)


def add_utilization(found: dict[str, dict[str, Any]], setting: Setting, peak_tflops: float) -> dict[str, float]:
    """Add what share of the device's best a system's variants use. Returns the operations a token."""
    flops = flops_per_token(model_config(setting), setting.vocab, setting.train["seq_len"])
    for seen in found.values():
        if speed := seen.get("tokens_per_second"):
            seen["mfu"] = {name: round(speed * v / (peak_tflops * 1e12), 4) for name, v in flops._asdict().items()}
            seen["tflops_causal"] = round(speed * flops.causal / 1e12, 1)
    return flops._asdict()


def model_config(setting: Setting) -> ModelConfig:
    """Return the keys of a system's model."""
    return configs({"model": setting.model, "train": {"pretrain": setting.train}}, "pretrain", [], "benchmarks.gpu")[0]


def checks_of_runs(found: Results, tiny: bool) -> dict[str, Any]:
    """What the timed runs must show: the loss falls, and nothing is compiled behind the first steps."""
    result: dict[str, Any] = {}
    for name, variants in found.items():
        losses = variants.get("stock", {}).get("losses", [])
        if losses:
            fell = losses[-1] < losses[0] - (0.0 if tiny else 0.1)
            result[f"{name}: the loss falls over the steps"] = {"from_to": [losses[0], losses[-1]], "passed": fell}
        late = [kind for kind, seen in variants.items() if seen.get("compiled_in_timed_steps")]
        result[f"{name}: nothing is compiled in timed steps"] = {"but": late, "passed": not late}
    return result


def measured(names: list[str], device: torch.device, tiny: bool, minutes: float) -> dict[str, Any]:
    """All of it."""
    begun = time.monotonic()
    settings = {name: setting(SYSTEMS[name], tiny) for name in names}
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": measure.machine(("numpy", "torch")),
        "cuda": torch.version.cuda,
        "ceilings": ceilings(device),
        "systems": {name: {**s._asdict(), "goals": SYSTEMS[name].goals} for name, s in settings.items()},
    }
    print(f"{result['device']}: {result['ceilings']}", flush=True)
    todo = checks(device, {name: (model_config(s), s.vocab) for name, s in settings.items()})
    result["checks"] = {name: run_check(check) for name, check in todo.items()}
    print(json.dumps(result["checks"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        say: Callable[[str], None] = lambda text: print(f"{time.monotonic() - begun:5.0f} s  {text}", flush=True)  # noqa: E731
        found = timings(settings, Path(folder), device, begun + 60 * minutes, tiny, say)
    for name, variants in found.items():
        flops = add_utilization(variants, settings[name], result["ceilings"]["matmul_tflops"])
        result["systems"][name] |= {"flops_per_token": flops, "variants": variants}
    result["checks"] |= checks_of_runs(found, tiny)
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save. Returns 1 where a check did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which, with commas between (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: benchmarks/results/)")
    parser.add_argument("--minutes", type=float, default=8, help="no variant is begun that may end later")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: tries the script, measures nothing")
    parser.add_argument("--dry", action="store_true", help="try everything once, time nothing (benchmarks/gpu_dry.py)")
    given = parser.parse_args(arguments)
    names = given.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems {unknown[0]}: write some of {','.join(SYSTEMS)}")
    if given.dry:
        pretend()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        print(table({name: {} for name in names}))
        return 0
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    if given.dry:
        short = {name: shortened(setting(SYSTEMS[name], given.tiny)) for name in names}
        return dry(short, {name: (model_config(s), s.vocab) for name, s in short.items()}, device)
    result = measured(names, device, given.tiny, given.minutes)
    print(table({name: result["systems"][name]["variants"] for name in names}))
    bad = [name for name, check in result["checks"].items() if not check["passed"]]
    print(f"checks: {len(result['checks']) - len(bad)} passed, not passed: {', '.join(bad) or '-'}")
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    elif device.type == "cuda" and not given.tiny:
        measure.save("gpu", result)
    return 1 if bad and device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
