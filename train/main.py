"""Train a model on a packed mixture.

    torchrun --nproc-per-node 2 train/main.py --manifest build/quickstart/anneal/manifest.json --set train.steps=20
    srun -N 2 --ntasks-per-node 8 python train/main.py --manifest M
    python train/main.py --manifest M                    one process
    train.main.run(manifest, overrides, on_save)         from a launcher that has made the processes (Ray Train)

The model and the phase's settings stand in the manifest's recipe; --set changes them (`train.` means that phase).
Exit status: 0 trained, 1 failed, 2 wrong usage, 75 stopped by SIGTERM or SIGUSR1 with everything saved: the same
command with train.resume=auto continues. 130: interrupted by Ctrl-C, which saves nothing.

torchrun passes SIGTERM on to the processes, which save, but itself exits 1, whatever they return: judge by its log
line "stopped by a signal". SIGUSR1 would end torchrun and leave the processes running: start it with
`--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1` (tried, torch 2.13), or use srun, which needs no torchrun
and gets 75 from each task. `python -m pipeline run train` passes both signals on and exits 75 itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script, from a clone that is not installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # Threads that wait by spinning stall each other when another program takes a core: steps of 0.5 s took 6.
    # Read when torch is loaded, so it stands before that.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy is used for singular values alone, beside training

import torch
import torch.distributed as dist

from train import loop, micro_batch
from train.checkpoint import checkpoint, run_folder
from train.checkpoint.resume import open_run
from train.config import ConfigError, ModelConfig, TrainConfig, TrainError
from train.data import sampler
from train.data.loader import Loader, check_hashes
from train.data.manifest import Manifest, ManifestError, load_manifest
from train.distributed import launch_env
from train.distributed.runtime import Runtime, processes, stop_requests
from train.eval.multiple_choice import Choices
from train.eval.validation import Score, Validation
from train.loop import OnSave, Run
from train.model.attention import choose_kernel
from train.model.masks import MaskBuilder
from train.model.transformer import build, check_parameters
from train.monitor import report
from train.monitor.anomalies import Sentinel
from train.monitor.singular_values import RankLoss
from train.optim.averages import Averages
from train.optim.optimizer import Optimizer
from train.optim.schedule import StepTimer
from train.overrides import configs

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: schedulers read it as "not done, start me again"


def run(
    manifest_path: str | Path,
    overrides: list[str],
    on_save: OnSave | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train. Returns the summary; its `status` is "done", or "stopped" when a signal or `stop` asked for it.

    on_save(metrics, path) is called on every rank at every checkpoint, once it is on the disk, with the path on rank 0
    and None elsewhere. stop() is asked on rank 0 after each step, for launchers whose signals do not get here.
    Raises ManifestError and TrainError, whose texts are for people.
    """
    manifest = load_manifest(manifest_path)
    model_cfg, cfg = configs(manifest.recipe, manifest.phase, overrides, str(manifest_path))
    count = check_parameters(model_cfg, manifest.tokenizer.vocab_size)
    epochs = sampler.check_epochs(manifest, cfg)
    if cfg.deterministic:
        repeatable()
    with stop_requests() as signalled, processes() as rt:
        this = set_up(rt, manifest, model_cfg, cfg, on_save)
        this.epochs_a_step = epochs / cfg.steps
        report.describe(this, manifest, model_cfg, count, epochs)
        with (
            run_folder.claimed(rt, this.folder),
            report.records(this, manifest, str(manifest_path), overrides),
            contextlib.closing(this.rank_loss),
            contextlib.closing(this.writer),
        ):
            asked = signalled if stop is None or not rt.first else lambda: signalled() or stop()
            if not loop.train(this, asked):
                rt.say(f"stopped by a signal after step {this.step}, saved; train.resume=auto continues: {this.folder}")
                return {"status": "stopped", "step": this.step, "folder": str(this.folder)}
            return report.finish(this, manifest, count)


def repeatable() -> None:
    """Kernels that add in a fixed order, or an error: torch.use_deterministic_algorithms, and what cuBLAS asks for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read no memory that was not written


def set_up(rt: Runtime, manifest: Manifest, model_cfg: ModelConfig, cfg: TrainConfig, on_save: OnSave | None) -> Run:
    """Everything ready for the next step: data checked, weights drawn or read, run folder opened."""
    loader = Loader(manifest, cfg, rt.rank, rt.world, rt.device)
    choices = Choices(manifest, model_cfg.max_seq_len, cfg.eval_items, rt.control, rt.rank, rt.world)
    for note in choices.notes:
        rt.say(note)
    masked, group = cfg.document_mask, rt.control
    validation = Validation(manifest, cfg.seq_len, cfg.eval_tokens, group, rt.rank, rt.world, choices, masked)
    loader.verified = check_hashes(manifest, rt.rank, rt.world)
    if not loader.verified:
        rt.say("note: shards above 1 GiB are not hashed at the start; `python -m pipeline verify` does it")
    ours = run_folder.identity(manifest, model_cfg, cfg)
    start = rt.agreed(lambda: open_run(manifest, cfg, ours))
    model = build(model_cfg, manifest.tokenizer.vocab_size, cfg.seed).to(rt.device)
    source = start.resumed or start.weights
    point = checkpoint.read(source) if source else None
    if point is not None:
        model.load_state_dict(point.tensors("model.safetensors"))
    bf16 = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and rt.device.type == "cuda")
    model.dtype = torch.bfloat16 if bf16 else torch.float32
    kernel = choose_kernel(cfg.attention, model_cfg, cfg.seq_len, cfg.document_mask, rt.device, model.dtype)
    model.mask_builder = MaskBuilder(model_cfg, kernel)
    if cfg.compile is True or (cfg.compile == "auto" and rt.device.type == "cuda"):
        model.compile_parts()
    optimizer = Optimizer(model, cfg, rt.rank, rt.world)
    if rt.world > 1:
        dist.broadcast(optimizer.weights, src=0)
    averages = Averages(model, cfg)
    watch = Sentinel(manifest, cfg, optimizer.modules, rt.device)
    lost = RankLoss({n: optimizer.parameters[n] for n in optimizer.muon_names} if rt.first else {}, cfg.rank_loss)
    state = {"identity": ours, "builds": start.builds}
    this = Run(rt, cfg, model, optimizer, averages, loader, validation, start.folder, state, watch, lost)
    this.on_save = on_save
    this.pace = None if cfg.schedule.seconds is None else StepTimer()
    if start.resumed and point is not None:
        tensors = point.tensors("optimizer.safetensors")
        optimizer.load(tensors, point.state.get("updates", point.step))
        watch.stats.copy_(tensors.get("sentinel", watch.stats))
        watch.skipped = point.state.get("skipped", 0)
        averages.load(tensors, point.state.get("averages", {}))
        if this.pace is not None:
            this.pace = StepTimer(*point.state.get("schedule", {}).get("pace", ()))
        this.step, this.seconds = point.step, float(point.state["seconds"])
        this.before = Score.read(point.state["before"]) if point.state["before"] else None
        this.best = start.best
    if source:
        rt.say(f"{'continuing' if start.resumed else 'weights from'} {source}")
    loader.micro = micro_batch.choose(this, point.state if start.resumed and point is not None else {})
    return this


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="train/main.py", description="Train a model on a packed mixture.")
    parser.add_argument("--manifest", required=True, metavar="M", help="a manifest.json, or the folder that holds one")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=C", help="as train.steps=20")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    given = parser.parse_args(arguments)
    try:
        return EXIT_STOPPED if run(given.manifest, given.set)["status"] == "stopped" else 0
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted: steps after the last checkpoint are lost; SIGTERM saves", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except (TrainError, ManifestError, OSError, MemoryError) as error:
        if given.debug:
            raise
        if any(os.environ.get(name, "0") != "0" for name in launch_env.LOCAL):
            # All ranks mostly fail alike. The first of this machine speaks at once, and torchrun then ends us;
            # who is still here after a second failed alone.
            time.sleep(1)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())
