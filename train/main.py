"""Train a model on a packed mixture.

    torchrun --nproc-per-node 2 train/main.py --manifest build/quickstart/anneal/manifest.json --set train.steps=20
    srun -N 2 --ntasks-per-node 8 python train/main.py --manifest M
    python train/main.py --manifest M                    one process
    train.main.run(manifest, overrides, on_save)         from a launcher that has made the processes (Ray Train)

The model and the phase's settings stand in the manifest's recipe; --set changes them (`train.` means that phase).
Exit status: 0 trained, 1 failed, 2 wrong usage, 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C with everything saved: the
same command with train.resume=auto continues. 130: Ctrl-C came twice, and nothing was saved.

torchrun passes SIGTERM on to the processes, which save, but itself exits 1, whatever they return: judge by its log
line "stopped by a signal". SIGUSR1 would end torchrun and leave the processes running: start it with
`--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1` (tried, torch 2.13), or use srun, which needs no torchrun
and gets 75 from each task. `python -m pipeline run train` passes both signals on and exits 75 itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from torch import Tensor

from train import loop, micro_batch
from train.checkpoint import gemma3
from train.checkpoint.background import BackgroundWriter
from train.checkpoint.checkpoint import Checkpoint, read_checkpoint, read_score
from train.checkpoint.mirror import Mirror, is_remote_out, mirrored
from train.checkpoint.resume import RunStart, on_this_machine, open_run
from train.checkpoint.run_folder import claim_folder, run_identity
from train.config import ConfigError, ModelConfig, TrainConfig, TrainError
from train.data import sampler
from train.data.loader import Loader, check_hashes
from train.data.manifest import Manifest, ManifestError
from train.data.prefetch import Prefetcher
from train.data.remote import RemoteManifest, copied, fetch_ahead, open_manifest
from train.data.sources import sources_to_tell
from train.distributed import hardware, launch_env
from train.distributed.runtime import PeerLostError, Runtime, join_processes, stop_requests
from train.eval.multiple_choice import MultipleChoice
from train.eval.validation import Score, Validation
from train.model.attention import choose_kernel
from train.model.fake_quant import FakeQuant
from train.model.flops import flops_per_token
from train.model.masks import MaskBuilder
from train.model.transformer import Model, build, check_parameters
from train.monitor import report
from train.monitor.anomalies import AnomalyDetector
from train.monitor.commands import continue_command
from train.monitor.dead_parts import DeadPartWatch
from train.monitor.singular_values import SingularValueWatch
from train.monitor.source_losses import SourceLosses
from train.monitor.text import printable
from train.optim.averages import Averages
from train.optim.optimizer import Optimizer
from train.optim.schedule import StepTimer, has_fallen_below, lr_factor
from train.overrides import configs
from train.redact import without_secrets
from train.run import OnSave, Progress, Run

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: schedulers read it as "not done, start me again"


def run(
    manifest_path: str | Path,
    overrides: list[str],
    on_save: OnSave | None = None,
    stop: Callable[[], bool] | None = None,
    ends_process: bool = False,
) -> dict[str, Any]:
    """Train. Returns the summary; its `status` is "done", or "stopped" when a signal or `stop` asked for it.

    on_save(metrics, path) is called on every rank at every checkpoint, once it is on the disk, with the path on rank 0
    and None elsewhere. stop() is asked on rank 0 after each step, for launchers whose signals do not get here.
    ends_process: nothing follows in this process, see stop_requests.
    Raises ManifestError and TrainError, whose texts are for people.
    """
    manifest = open_manifest(manifest_path)
    model_cfg, cfg = configs(manifest.recipe, manifest.phase, overrides, str(manifest_path))
    parameters = check_parameters(model_cfg, manifest.tokenizer.vocab_size)
    sampler.check_epochs(manifest, cfg)
    if cfg.deterministic:
        use_deterministic_kernels()
    with (
        stop_requests(ends_process) as signalled,
        join_processes() as rt,
        copied(manifest, cfg),
        mirrored(rt, cfg) as mirror,
    ):
        check_same_build(rt, manifest)
        run = build_run(rt, manifest, model_cfg, cfg, on_save, mirror)
        report.print_start(run, manifest, parameters)
        if isinstance(manifest, RemoteManifest):
            run.loader.begin_step = manifest.cache.begin_step
            fetch_ahead(manifest, cfg, run.step, bool(run.loader.sources))

        def should_stop() -> bool:
            return signalled() or (stop is not None and rt.is_rank0 and stop())

        with (
            claim_folder(rt, run.folder),
            report.open_metrics(run, manifest, str(manifest_path), overrides) as metrics,
            contextlib.closing(run.singular_values),
            contextlib.closing(run.writer),
        ):
            if not loop.train(run, metrics, should_stop):
                given = report.given_command(run, str(manifest_path), overrides)
                saved = f"saved in {run.place}" if run.step else "nothing to save"
                rt.print_rank0(f"stopped by a signal after step {run.step}, {saved}")
                rt.print_rank0(f"this continues: {continue_command({'command': given, 'world_size': rt.world_size})}")
                return {"status": "stopped", "step": run.step, "folder": run.place}
            if isinstance(manifest, RemoteManifest):
                manifest.cache.stop()  # what is scored now is not in the order of the steps
            return report.finish_run(run, manifest, parameters)


def check_same_build(rt: Runtime, manifest: Manifest) -> None:
    """Raise TrainError, on all ranks, where another build was published in a bucket while they read the manifest."""
    first = rt.broadcast_from_rank0(lambda: manifest.build_id)
    differs = TrainError(f"{manifest.folder}: published anew while this run started; start it again")
    rt.raise_if_any(differs if first != manifest.build_id else None)


def use_deterministic_kernels() -> None:
    """Allow only kernels that add in a fixed order: torch.use_deterministic_algorithms, and what cuBLAS asks for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read no memory that was not written


# ---------------------------------------------------------------------------------------------------------------------
# Building a run


def build_run(
    rt: Runtime,
    manifest: Manifest,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    on_save: OnSave | None = None,
    mirror: Mirror | None = None,
) -> Run:
    """Return a run that is ready for its next step: data checked, weights drawn or read, run folder opened.

    mirror: on rank 0, of a run whose folder is in a bucket.

    Raises ManifestError and TrainError where the data, the folder or the checkpoint cannot be used.
    """
    loader = build_loader(rt, manifest, cfg)
    validation = build_validation(rt, manifest, model_cfg, cfg)
    identity = run_identity(manifest, model_cfg, cfg)
    start = rt.broadcast_from_rank0(lambda: open_run(manifest, model_cfg, cfg, identity, mirror))
    start = on_this_machine(start, cfg)
    resumed = read_checkpoint(start.checkpoint) if start.checkpoint and start.resumes else None
    weights = read_first_weights(start, resumed, model_cfg, manifest.tokenizer.vocab_size)
    model = build_model(rt, manifest, model_cfg, cfg, weights)
    optimizer = build_optimizer(rt, model, cfg)
    averages = Averages(model, cfg)
    anomalies = AnomalyDetector(manifest, cfg, optimizer.modules, rt.device)
    if resumed is not None:
        restore(resumed, optimizer, averages, anomalies)
    run = Run(
        rt=rt,
        cfg=cfg,
        model=model,
        optimizer=optimizer,
        averages=averages,
        loader=loader,
        # on a CPU a thread would take its time from the step's own
        batches=Prefetcher(loader) if rt.device.type == "cuda" else loader,
        validation=validation,
        folder=start.folder,
        address=cfg.out if cfg.out and is_remote_out(cfg.out) else "",
        writer=BackgroundWriter(mirror.push) if mirror else BackgroundWriter(),
        identity=identity,
        builds=start.builds,
        anomalies=anomalies,
        source_losses=build_source_losses(loader, anomalies),
        singular_values=build_singular_value_watch(rt, optimizer, cfg),
        meter=build_meter(rt, model, cfg),
        epochs_per_step=sampler.epochs_needed(manifest, cfg) / cfg.steps,
        total_steps=cfg.steps,
        step_timer=build_step_timer(cfg, resumed),
        fake_quant=build_fake_quant(model, cfg, resumed),
        dead_parts=DeadPartWatch(optimizer.parameters, cfg.kernel_warmup > 0) if rt.is_rank0 else None,
        on_save=on_save,
        progress=Progress() if resumed is None else restored_progress(resumed, start.best),
    )
    if start.checkpoint is not None:
        rt.print_rank0(f"{'continuing' if resumed else 'weights from'} {start.address or start.checkpoint}")
    loader.micro_batch_size = micro_batch.choose(run, resumed.state if resumed else {})
    if rt.device.type == "cuda":  # where it is compiled, and larger passes are faster
        validation.use_graph_of_training(loader.micro_batch_size)
    return run


def build_loader(rt: Runtime, manifest: Manifest, cfg: TrainConfig) -> Loader:
    """Return the reader of training batches, its shards checked."""
    names, why_not = sources_to_tell(manifest)
    if why_not:
        rt.print_rank0(f"note: no losses by source: {why_not}")
    # on all ranks or none, for they add up what they know
    if rt.any_rank(not names):
        names = []
    loader = Loader(manifest, cfg, rt.rank, rt.world_size, rt.device, names)
    if isinstance(manifest, RemoteManifest):  # each file is hashed when it comes
        loader.verified = True
        return loader
    loader.verified = check_hashes(manifest, rt.rank, rt.world_size, loader.watch)
    if not loader.verified:
        rt.print_rank0("note: shards above 1 GiB are not hashed at the start; `python -m pipeline verify` does it")
    return loader


def build_validation(rt: Runtime, manifest: Manifest, model_cfg: ModelConfig, cfg: TrainConfig) -> Validation:
    """Return what scores the model: the validation windows, and the questions of the evaluation sets."""
    choices = MultipleChoice(
        manifest, model_cfg.max_seq_len, cfg.eval_items, group=rt.control, rank=rt.rank, world_size=rt.world_size
    )
    for note in choices.notes:
        rt.print_rank0(note)
    return Validation(
        manifest,
        cfg.seq_len,
        cfg.eval_limit,
        group=rt.control,
        rank=rt.rank,
        world_size=rt.world_size,
        choices=choices,
        document_mask=cfg.document_mask,
        counting=cfg.eval_counting,
    )


def read_first_weights(
    start: RunStart, resumed: Checkpoint | None, cfg: ModelConfig, vocab_size: int
) -> dict[str, Tensor] | None:
    """Return the weights that a run starts with, by parameter name on the CPU; None where they are to be drawn."""
    if start.checkpoint is None:
        return None
    if resumed is None and gemma3.is_hf_folder(start.checkpoint):
        return gemma3.read_weights(start.checkpoint, cfg, vocab_size)
    return (resumed or read_checkpoint(start.checkpoint)).tensors("model.safetensors")


def build_model(
    rt: Runtime, manifest: Manifest, model_cfg: ModelConfig, cfg: TrainConfig, weights: dict[str, Tensor] | None
) -> Model:
    """Return the model on its device, with `weights`, or fresh ones; its kernels are chosen."""
    model = build(model_cfg, manifest.tokenizer.vocab_size, cfg.seed, manifest.tokenizer.bos_id).to(rt.device)
    if weights is not None:
        model.load_state_dict(weights)
    on_cuda = rt.device.type == "cuda"
    uses_bfloat16 = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and on_cuda)
    model.dtype = torch.bfloat16 if uses_bfloat16 else torch.float32
    kernel = choose_kernel(cfg.attention, model_cfg, cfg.seq_len, cfg.document_mask, rt.device, model.dtype)
    model.mask_builder = MaskBuilder(model_cfg, kernel)
    if cfg.compile is True or (cfg.compile == "auto" and on_cuda):
        model.compile_parts()
    return model


def build_optimizer(rt: Runtime, model: Model, cfg: TrainConfig) -> Optimizer:
    """Return the optimizer of `model`, the weights of rank 0 in place on every rank."""
    optimizer = Optimizer(model, cfg, rt.rank, rt.world_size)
    if rt.world_size > 1:
        dist.broadcast(optimizer.weights, src=0)
    return optimizer


def build_fake_quant(model: Model, cfg: TrainConfig, resumed: Checkpoint | None) -> FakeQuant | None:
    """Return the switch of quantization-aware training, as the run that is continued had it; None where it is off.

    Raises ConfigError where it would never be turned on, or round nothing.
    """
    if cfg.qat.start_frac == 0:
        return None
    steps, schedule = cfg.steps, cfg.schedule  # below there is the factor of the last step but one
    if schedule.seconds is None and not has_fallen_below(
        steps - 1, lr_factor(max(0, steps - 2), steps, schedule), cfg.qat.start_frac, schedule
    ):
        raise ConfigError(
            f"train.qat.start_frac = {cfg.qat.start_frac:g}: the learning rate's factor does not fall below it ahead "
            "of the last step, so nothing would be rounded\nraise it, or lengthen the schedule's decay"
        )
    fake_quant = FakeQuant(model, cfg.qat, cfg.artefact)
    if resumed is not None and resumed.state["qat"]:
        fake_quant.turn_on()
    return fake_quant


def build_singular_value_watch(rt: Runtime, optimizer: Optimizer, cfg: TrainConfig) -> SingularValueWatch:
    """Return the watch over the matrices that Muon trains: on rank 0; elsewhere it watches none."""
    names = optimizer.muon_names if rt.is_rank0 else []
    return SingularValueWatch({name: optimizer.parameters[name] for name in names}, cfg.rank_loss)


def build_source_losses(loader: Loader, anomalies: AnomalyDetector) -> SourceLosses | None:
    """Return what adds up losses by source, read as often as the anomalies; None where sources are not told apart."""
    return SourceLosses(loader.sources, len(anomalies.table), loader.device) if loader.sources else None


def build_meter(rt: Runtime, model: Model, cfg: TrainConfig) -> hardware.Meter:
    """Return what turns tokens a second into the use of the devices."""
    peak = cfg.peak_tflops or hardware.peak_tflops(hardware.device_name(rt.device))
    return hardware.Meter(flops_per_token(model.cfg, model.vocab_size, cfg.seq_len), peak, rt.world_size)


def build_step_timer(cfg: TrainConfig, resumed: Checkpoint | None) -> StepTimer | None:
    """Return what times the steps of a run that ends by the clock, with the times of the run it continues."""
    if cfg.schedule.seconds is None:
        return None
    saved = resumed.state.get("schedule", {}) if resumed else {}
    return StepTimer(*saved.get("pace", ()))


def restore(resumed: Checkpoint, optimizer: Optimizer, averages: Averages, anomalies: AnomalyDetector) -> None:
    """Put back what a checkpoint holds beside the weights (`loop.checkpoint_state` wrote it)."""
    tensors, state = resumed.tensors("optimizer.safetensors"), resumed.state
    optimizer.load(tensors, state.get("updates", resumed.step))
    averages.load(tensors, state.get("averages", {}))
    anomalies.stats.copy_(tensors.get("sentinel", anomalies.stats))  # the detector's name in checkpoints
    anomalies.skipped = state.get("skipped", 0)


def restored_progress(resumed: Checkpoint, best: dict[str, Any] | None) -> Progress:
    """Return how far the run of a checkpoint had come. best: the best score that still counts."""
    before = resumed.state["before"]
    return Progress(
        step=resumed.step,
        seconds=float(resumed.state["seconds"]),
        before=Score.from_dict(before) if before else None,
        best=best,
        unscored=resumed.state.get("unscored") if read_score(resumed.folder) is None else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(arguments: list[str] | None = None, ends_process: bool = False) -> int:
    """The command line. Returns the exit status. ends_process: see run."""
    parser = argparse.ArgumentParser(prog="train/main.py", description="Train a model on a packed mixture.")
    parser.add_argument("--manifest", required=True, metavar="M", help="a manifest.json, or the folder that holds one")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=C", help="as train.steps=20")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    given = parser.parse_args(arguments)
    try:
        summary = run(given.manifest, given.set, ends_process=ends_process)
        return EXIT_STOPPED if summary["status"] == "stopped" else 0
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted: steps after the last checkpoint are lost", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except (TrainError, ManifestError, OSError, MemoryError) as error:
        if given.debug:
            raise
        if any(os.environ.get(name, "0") != "0" for name in launch_env.LOCAL_RANK_VARIABLES):
            # All ranks mostly fail alike. The first of this machine speaks at once, and torchrun then ends us;
            # who is still here after a second failed alone.
            time.sleep(1)
        message = f"error: {printable(without_secrets(str(error)))}"
        print(message, file=sys.stderr, flush=True)
        tell_torchrun(message)
        if isinstance(error, PeerLostError):
            os._exit(1)  # kernels of a GPU that wait for the one that is gone would hold us
        return 2 if isinstance(error, ConfigError) else 1


def tell_torchrun(message: str) -> None:
    """Have torchrun, if it started us, repeat `message` at the end of its own trace, which would bury it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(ends_process=True))
