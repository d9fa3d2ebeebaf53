"""The four systems on one GPU: is what is fast right, how fast is the whole step, where does its time go.

Three runs (docs/training.md, "The first half hour on a GPU"), each one command:

    A    what the device does at best; each fast path against its readable form (benchmarks/gpu_checks.py); attention,
         loss and Newton-Schulz by themselves; variants of one training step of each system, by blocks, with the share
         of each kind of kernel and the names of attention's; the whole trunk; training for real
    B    stock again, and what may be faster still: autotuned products, other tiles of FlexAttention
    C    training for real alone, 200 steps, stopped and gone on from (benchmarks/gpu_training.py)

A step is as the trainer makes it (train/step.py: reading, model, loss, optimiser, sentinel, and every tenth step the
line that waits for the device), on shards of random tokens from the model's own vocabulary, after compilation: tokens a
second, utilization by two conventions (train/model/flops.py) against the measured matrix product, peak memory, and
graphs compiled in the timed steps, of which there must be none.

Nothing is downloaded. The result is written after each item, so that a run that is cut off loses no more than one.
Items stand in the order of what they tell, each with the seconds that it should take; what would not end in --minutes
is left out and named. An item that fails is noted with its traceback. Without a CUDA device nothing is measured and
nothing is written, and the table says so of each cell.

    python -m benchmarks.gpu [--run A] [--systems shard_40m] [--out FILE] [--minutes 9] [--device cpu --tiny] [--dry]
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo

from benchmarks import measure
from benchmarks.gpu_ceilings import ceilings, matrix_tflops, synchronize
from benchmarks.gpu_checks import Errors, checked, checks
from benchmarks.gpu_dry import dry, prepared, pretend, shortened
from benchmarks.gpu_items import Item, run_items
from benchmarks.gpu_kernels import ATTENTIONS, time_attention, time_loss, time_newton_schulz
from benchmarks.gpu_profile import profiled, shares
from benchmarks.gpu_systems import SYSTEMS, Setting, Variant, compile_blocks, setting, write_mixture
from benchmarks.gpu_training import trained
from train.config import ModelConfig
from train.model.flops import flops_per_token
from train.monitor.dead_parts import graphs_compiled
from train.overrides import configs
from train.run import Run
from train.step import train_step

Results = dict[str, dict[str, dict[str, Any]]]  # of a system, of its variant
STEPS, STEPS_OF_STOCK, WARM = 10, 17, 3  # timed, of the first variant, whose loss is looked at, and ahead of them
FIRST = ("stock", "attention varlen", "attention flex, cuDNN for global layers")  # variants
CHEAP = 20.0  # seconds: such a check goes first


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
    """One variant: compiled, warmed up, `steps` timed, one profiled."""
    settings, cuda = variant.settings, device.type == "cuda"
    by_blocks = cuda and variant.compiles == "blocks"
    with variant.around():
        begun = time.perf_counter()
        run = prepared(path, settings, out, device)
        if by_blocks:
            compile_blocks(run)
        if variant.hook is not None:
            variant.hook(run)
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
        if cuda:
            result["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
            with tempfile.TemporaryDirectory() as folder:
                result["time"] = shares(profiled(run, lambda: advance(run, 1), Path(folder) / "trace.json", device))
        run.singular_values.close()
        run.writer.close()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The command


def seconds_of(variant: Variant, setting: Setting, goal: float, steps: int) -> float:
    """Return about how long a variant takes: set-up, compiling, steps, the profile."""
    layers = setting.model.get("n_layers", 12)
    compiling = {"nothing": 5.0, "blocks": 30.0, "trunk": 20.0 * layers}[variant.compiles]
    speed = goal / (3 if variant.compiles == "nothing" or variant.settings.get("attention") == "sdpa" else 1)
    return 10 + compiling + (steps + 1) * setting.train["batch_size"] * setting.train["seq_len"] / speed


class Bench(NamedTuple):
    """What items are made of."""

    settings: dict[str, Setting]
    folder: Path  # of mixtures and runs
    device: torch.device
    tiny: bool

    def mixture(self, name: str) -> Path:
        """Return the path of a system's mixture, written when first asked for."""
        path = self.folder / name / "manifest.json"
        if not path.exists():
            write_mixture(path.parent, tokens_needed(self.settings[name], self.tiny), self.settings[name])
        return path

    def variant_item(self, name: str, kind: str) -> Item:
        """Return the item of one variant of one system."""
        variant = SYSTEMS[name].variants[kind]
        warm, steps = WARM, STEPS_OF_STOCK if kind == "stock" else STEPS
        if self.tiny:
            warm, steps = 1, 5 if kind == "stock" else 1
            variant = variant._replace(settings={k: v for k, v in variant.settings.items() if k != "micro_batch"})
        goal = min(SYSTEMS[name].goals.values())
        seconds = 0.1 if self.tiny else seconds_of(variant, self.settings[name], goal, warm + steps)

        def work() -> dict[str, Any]:
            out = self.folder / f"runs/{name} {kind}"
            return timed(self.mixture(name), variant, out, self.device, warm, steps)

        return Item(("systems", name, "variants", kind), seconds, work)

    def training_item(self, name: str) -> Item:
        """Return the item that trains one system for real."""
        own: dict[str, Any] = {"steps": 8 if self.tiny else 200, "checkpoint_every": 3 if self.tiny else 100}
        own["document_mask"] = not self.settings[name].model.get("memory_tokens")  # memory is a row's, whole

        def work() -> dict[str, Any]:
            return trained(self.mixture(name), self.folder / f"runs/{name} for real", {**own, "epochs": 1000})

        return Item(("systems", name, "training"), 0.1 if self.tiny else 260.0, work)

    def kernel_items(self, name: str) -> list[Item]:
        """Return the items of a system's parts by themselves."""
        s, device = self.settings[name], self.device
        cfg, length = model_config(s), s.train["seq_len"]
        tokens = s.train["micro_batch"] * length
        timed_parts: dict[str, Callable[[], dict[str, Any]]] = {
            "loss": lambda: time_loss(cfg, s.vocab, tokens, device),
            "Newton-Schulz": lambda: time_newton_schulz(
                cfg, s.vocab, s.train.get("muon", {}).get("ns", "dsv4"), device
            ),
            "products": lambda: matrix_tflops(device, cfg, s.vocab),
        }
        for kind in ATTENTIONS:
            timed_parts[kind] = functools.partial(time_attention, kind, cfg, s.train["micro_batch"], length, device)
        return [Item(("systems", name, "kernels", part), 6.0, work) for part, work in timed_parts.items()]


def items_of(bench: Bench, run: str) -> list[Item]:
    """Return the items of run A, B or C, in the order of what they tell."""
    names = list(bench.settings)
    if run == "C":
        return [bench.training_item(name) for name in names]
    cells = [(i, name, kind) for name in names for i, kind in enumerate(SYSTEMS[name].variants)]
    in_run = [
        (name, kind)
        for _, name, kind in sorted(cells, key=lambda cell: cell[0])
        if kind == "stock" or SYSTEMS[name].variants[kind].run == run
    ]
    variants = [bench.variant_item(name, kind) for name, kind in in_run]
    if run == "B":
        return variants
    models = {name: (model_config(s), s.vocab) for name, s in bench.settings.items()}
    tests = {
        name: Item(("checks", name), seconds, functools.partial(checked_item, check))
        for name, (seconds, check) in timed_checks(bench.device, models).items()
    }
    cheap = [item for item in tests.values() if item.seconds <= CHEAP]
    costly = [item for item in tests.values() if item.seconds > CHEAP]
    parts = bench.kernel_items(names[0])
    first = [item for item in variants if item.place[3] in FIRST]
    others = [item for item in variants if item not in first]
    return [*cheap, *first, *parts, bench.training_item(names[0]), *others, *costly]


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
            mfu = seen.get("mfu", {})
            lines.append(
                f"  {kind:<40}{seen['tokens_per_second']:>12,}{mfu.get('causal', 0):>9.1%}{mfu.get('full', 0):>9.1%}"
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


def timed_checks(
    device: torch.device, models: dict[str, tuple[ModelConfig, int]]
) -> dict[str, tuple[float, Callable[[], Errors]]]:
    """Return the checks, each with the seconds that it should take: most of them go into compiling."""
    kinds = (("compiled against eager", 60.0), ("flex", 20.0), ("varlen", 4.0), ("loss", 8.0), ("Newton", 1.0))
    return {
        name: (next(seconds for kind, seconds in kinds if kind in name), check)
        for name, check in checks(device, models).items()
    }


def checked_item(check: Callable[[], Errors]) -> dict[str, Any]:
    """Return what is written of a check."""
    return checked(check())


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


def summarized(result: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """Return the result so far with what follows from it: utilization, and the checks of the timed runs."""
    peak = result.get("ceilings", {}).get("matmul_tflops")
    for of_system in result["systems"].values():
        if peak:
            s = Setting(of_system["model"], of_system["train"], of_system["vocab"])
            of_system["flops_per_token"] = add_utilization(of_system["variants"], s, peak)
    runs = {name: of_system["variants"] for name, of_system in result["systems"].items()}
    return {**result, "checks": result["checks"] | checks_of_runs(runs, tiny)}


def measured(names: list[str], given: argparse.Namespace, device: torch.device, write: Writer) -> dict[str, Any]:
    """Do all items of a run."""
    begun = time.monotonic()
    settings = {name: setting(SYSTEMS[name], given.tiny) for name in names}
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "run": given.run,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": measure.machine(("numpy", "torch")),
        "cuda": torch.version.cuda,
        "checks": {},
        "systems": {n: {**s._asdict(), "goals": SYSTEMS[n].goals, "variants": {}} for n, s in settings.items()},
    }

    def save() -> None:
        result["seconds"] = round(time.monotonic() - begun, 1)
        write(summarized(result, given.tiny))

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder), device, given.tiny)
        items = [Item(("ceilings",), 8.0, lambda: dict(ceilings(device))), *items_of(bench, given.run)]
        run_items(items, result, begun + 60 * given.minutes, device, save)
    return summarized(result, given.tiny)


Writer = Callable[[dict[str, Any]], None]


def written(out: Path | None, device: torch.device, tiny: bool) -> Writer:
    """Return what writes the result: to `out`, or to benchmarks/results/ where a GPU was measured."""
    name = f"{datetime.date.today().isoformat()}-gpu.json"
    path = out or (measure.RESULTS / name if device.type == "cuda" and not tiny else None)

    def write(result: dict[str, Any]) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            beside.replace(path)

    return write


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save. Returns 1 where a check did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=("A", "B", "C"), default="A")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which, with commas between (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: benchmarks/results/)")
    parser.add_argument("--minutes", type=float, default=9, help="no item is begun that should end later")
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
    result = measured(names, given, device, written(given.out, device, given.tiny))
    print(table({name: result["systems"][name]["variants"] for name in names}))
    bad = [name for name, check in result["checks"].items() if not check.get("passed", True)]
    print(f"checks: {len(result['checks']) - len(bad)} passed or left out, not passed: {', '.join(bad) or '-'}")
    return 1 if bad and device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
