"""What would crash, wait for the device or compile again on a GPU: everything once, at 2 layers and short rows.

Each system (benchmarks/gpu_systems.py) is trained with every kernel of attention, with and without document masks, and
in its variants: 20 steps, compiled, forward, backward and optimizer, on batches whose documents differ in number; then
it is scored. Told are the graphs that were compiled up to the last step, by the score beside, and by late steps, of
which there must be none. No figure is a speed, and no value is looked at, so that it runs where kernels do nothing: a
machine that pretends to have a GPU (a module `fakecuda` is then at hand) has them compiled for one, and raises where
the host would wait.

    python -m benchmarks.gpu --dry [--systems shard_40m]
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo

from benchmarks import gpu_checks
from benchmarks.gpu_systems import SYSTEMS, Setting, Variant, compile_blocks, setting, write_mixture
from train.config import ModelConfig
from train.data.manifest import load_manifest
from train.distributed.runtime import Runtime
from train.main import build_run
from train.model.loss import head_loss
from train.monitor.dead_parts import graphs_compiled, reason_to_compile
from train.overrides import configs
from train.run import Run
from train.step import train_step

STEPS, SETTLED = 20, 3  # made, and after which nothing may be compiled
# A micro-batch of 2,048 ids: of more than 3,072 the gradient of an embedding is made by a kernel that counts first.
SHORT = {"batch_size": 8, "micro_batch": 2, "seq_len": 1024, "eval_tokens": 4096, "log_every": 1000, "kernel_warmup": 0}
BY_BLOCKS = "compiled by blocks"  # of two kinds, for a comparison (benchmarks/gpu.py)
EXPECTED = 2  # graphs: the trunk, and what lies between the loss's products; one more with heads for further tokens


def pretend() -> bool:
    """Set up a machine that pretends to have a GPU, so that host code runs and kernels do not; False on any other."""
    try:
        importlib.import_module("fakecuda")
    except ImportError:
        return False
    import torch._inductor.config as inductor
    from torch._C._dynamo import guards
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    # what it puts in place for tensors without memory: here they have memory
    guards._empty_strided_cuda, guards._reinterpret_tensor = builtins.ES, builtins.RT  # type: ignore[attr-defined]
    CachingAutotuner.run = pretend_launch  # type: ignore[assignment, method-assign]
    inductor.use_static_cuda_launcher, inductor.compile_threads = False, 1  # its environment came too late
    torch.backends.cuda.enable_cudnn_sdp(False)  # loads a library that asks the driver
    # the readable form counts on the device which targets it takes, which kernels that do nothing cannot tell
    gpu_checks.head_loss_reference = functools.partial(head_loss, num_targets=1)
    return True


def pretend_launch(kernel: Any, *_: Any, **__: Any) -> None:
    """Stand in for a launch of a kernel, after which one of its configurations is chosen and spills nothing."""
    kernel.launchers = [SimpleNamespace(n_spills=0)]


def shortened(setting: Setting) -> Setting:
    """Return a system with 2 layers, and rows that a window, a block and documents cut."""
    model = {**setting.model, "n_layers": 2, "expect_params": None, "max_seq_len": 2048}
    if "sliding_window" in model:
        model["sliding_window"] = 256
    if model.get("layer_kinds"):
        model["layer_kinds"] = ["sliding", "global"]
    model["vocab_size"] = min(setting.vocab, 70_000)
    train = {**setting.train, **SHORT, "artefact": {"keep_numel": 0}}
    return Setting(model, train, model["vocab_size"])


def cells(name: str) -> dict[str, Variant]:
    """Return what is tried of a system: kernels with and without documents, and variants that are more than a size."""
    takes_rows_whole = setting(SYSTEMS[name], tiny=False).model.get("memory_tokens", 0) > 0  # memory is a row's
    found = {
        f"{kernel}, {'documents' if documents else 'whole rows'}": Variant(
            {"attention": kernel, "document_mask": documents}
        )
        for kernel in ("flex", "varlen")
        for documents in (False, *([] if takes_rows_whole else [True]))
    }
    for kind, variant in SYSTEMS[name].variants.items():
        settings = {k: v for k, v in variant.settings.items() if k != "micro_batch"}
        is_other = variant.hook is not None or variant.around is not Variant().around
        if is_other or settings.keys() - {"attention", "document_mask"} or settings.get("attention") == "sdpa":
            found[kind] = variant._replace(settings=settings)
    return found | {BY_BLOCKS: Variant({"document_mask": not takes_rows_whole}, hook=compile_blocks)}


def prepared(path: Path, settings: dict[str, Any], out: Path, device: torch.device) -> Run:
    """Return a run as the trainer sets it up, with other `settings` of `train`."""
    manifest = load_manifest(path)
    sets = [f"train.{key}={json.dumps(value)}" for key, value in {**settings, "out": str(out)}.items()]
    model_cfg, cfg = configs(manifest.recipe, manifest.phase, sets, str(path))
    return build_run(Runtime(0, 1, device, None), manifest, model_cfg, cfg, None)


def tried(path: Path, variant: Variant, out: Path, device: torch.device) -> dict[str, Any]:
    """Train and score one variant. Returns the graphs: of all steps, of late ones with the reason, of the score."""
    torch._dynamo.reset()
    with variant.around():
        run = prepared(path, variant.settings, out, device)
        if variant.hook is not None:
            variant.hook(run)
        first, late = graphs_compiled(), []
        for step in range(1, STEPS + 1):
            before = graphs_compiled()
            if step == STEPS // 2 and run.fake_quant is not None and not run.fake_quant.is_on:
                run.fake_quant.turn_on()  # as late in a run, where nothing may be compiled for it
            train_step(run)
            if step > SETTLED and graphs_compiled() > before:
                late.append(f"step {step}: {reason_to_compile()}")
        trained = graphs_compiled()
        run.validation.score(run.model, device)
        run.singular_values.close()
        run.writer.close()
    return {
        "graphs": trained - first,
        "late": late,
        "of_the_score": graphs_compiled() - trained,
        "kernel": run.model.mask_builder.kernel,
    }


def try_system(name: str, setting: Setting, folder: Path, device: torch.device) -> list[str]:
    """Try all cells of a system, a printed line each. Returns what went wrong."""
    path = write_mixture(folder / name, 10 * STEPS * SHORT["batch_size"] * SHORT["seq_len"] // 6, setting)
    wrong: list[str] = []
    for kind, variant in cells(name).items():
        began = time.monotonic()
        try:
            seen = tried(path, variant, folder / f"runs/{name} {kind}", device)
            expected = EXPECTED + (setting.model.get("mtp_heads", 0) > 0) + (kind == BY_BLOCKS)
            bad = bool(seen["late"]) or seen["graphs"] > expected
            said = ", ".join(f"{key} {value}" for key, value in seen.items() if value)
        except Exception as error:
            bad, said = True, traceback.format_exc()
            if "fakecuda" in sys.modules and "cuDNN error" in str(error):
                bad, said = False, "reached cuDNN's kernel, which only a GPU runs"
        wrong += [f"{name}, {kind}"] if bad else []
        print(f"{time.monotonic() - began:5.0f} s  {name}, {kind}: {said}", flush=True)
    return wrong


def dry(settings: dict[str, Setting], cfgs: dict[str, tuple[ModelConfig, int]], device: torch.device) -> int:
    """Try all systems and all checks. Returns 1 where something went wrong."""
    wrong: list[str] = []
    for name, check in gpu_checks.checks(device, cfgs).items():
        began = time.monotonic()
        torch._dynamo.reset()  # as between the items of a benchmark
        try:
            check()
        except Exception:
            wrong.append(name)
            print(f"{time.monotonic() - began:5.0f} s  {name}: {traceback.format_exc()}", flush=True)
    print(f"checks ran, but for {', '.join(wrong) or 'none'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings.items():
            wrong += try_system(name, setting, Path(folder), device)
    print(f"wrong: {'; '.join(wrong) or 'nothing'}")
    return 1 if wrong else 0
