"""A trained model as its users get it: from a run's folder or a checkpoint to weights, tokenizer and provenance."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint.checkpoint import LATEST, Checkpoint, locate_checkpoint, read_checkpoint
from train.checkpoint.fetched_run import fetch_run
from train.checkpoint.run_folder import read_run
from train.config import ModelConfig, TrainError
from train.data.manifest import Manifest
from train.data.remote import is_address, open_manifest
from train.files import sha256_file
from train.model.transformer import Model
from train.overrides import from_dict


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with the manifest of what it was trained on.

    `cfg` is the checkpoint's, not the recipe's, without the parts that only training has.
    """

    point: Checkpoint
    cfg: ModelConfig
    manifest: Manifest
    average: str = ""  # ema or swa: that average's weights; empty: the trained ones

    def weights(self) -> dict[str, Tensor]:
        """fp32 on CPU, by parameter name; of `cfg`, so without heads of further tokens.

        Raises TrainError when the checkpoint has no such average.
        """
        return {name: w for name, w in self._all_weights().items() if not name.startswith("mtp.")}

    def _all_weights(self) -> dict[str, Tensor]:
        if not self.average:
            return self.point.tensors("model.safetensors")
        usable = [name for name, count in self.point.state.get("averages", {}).items() if count]
        if self.average not in usable:
            raise TrainError(f"{self.point.folder}: no {self.average} in it (averages: {', '.join(usable) or 'none'})")
        prefix = f"{self.average}."
        held = self.point.tensors("optimizer.safetensors")
        return {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}

    @property
    def seq_len(self) -> int:
        """Tokens of the windows it was trained on."""
        return int(self.point.state["identity"]["train"]["seq_len"])

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json, proven to be the one the model was trained with."""
        return self.manifest.file(self.manifest.tokenizer.path)

    def model(self, device: torch.device, dtype: torch.dtype) -> Model:
        """The weights in `dtype` on `device`, to be read only: training keeps its own in fp32."""
        tokenizer = self.manifest.tokenizer
        model = Model(self.cfg, tokenizer.vocab_size, tokenizer.bos_id)
        model.load_state_dict(self.weights())
        return to_inference(model, device, dtype)

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, for the files that leave the house."""
        return {
            "name": self.manifest.name,
            "phase": self.point.state["identity"]["phase"],
            "build_id": self.point.state["identity"]["build_id"],
            "tokenizer_sha256": self.manifest.tokenizer.sha256,
            "step": self.point.step,
            "average": self.average,
            "checkpoint_sha256": self.point.state["files"]["model.safetensors"]["sha256"],
            "trained_on_windows_of": self.seq_len,
        }


def to_inference(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """Return `model` with its weights in `dtype` on `device`, to be read only."""
    for parameter in model.parameters():  # not the rotary tables, which stay fp32
        parameter.data = parameter.data.to(device, dtype)
    model.dtype = dtype
    return model.to(device).eval().requires_grad_(False)


def open_trained_model(
    path: Path | str, manifest: Path | str | None = None, average: str = "", name: str = "latest"
) -> TrainedModel:
    """Open the model that `path` names: a step's folder, or of a run the checkpoint `name`; an address is copied here.

    manifest: where the one that run.json names is now. average: whose weights to take, `ema` or `swa`.

    Raises TrainError or ManifestError: no whole checkpoint, no manifest, another tokenizer than the model's.
    """
    if is_address(path):
        path, name = fetch_run(str(path), name), LATEST
    folder = locate_checkpoint(Path(path), name, "name a run's folder, or a step's inside its checkpoints/")
    point = read_checkpoint(folder)
    identity = point.state["identity"]
    found = open_manifest(manifest or _manifest_of(folder.absolute().parents[1]))
    tokenizer = found.file(found.tokenizer.path)
    if found.tokenizer.sha256 != identity["tokenizer_sha256"]:
        raise TrainError(f"{found.folder}: its tokenizer is not the one {folder} was trained with; name its manifest")
    if not tokenizer.exists() or sha256_file(tokenizer) != found.tokenizer.sha256:
        raise TrainError(f"{tokenizer}: missing, or changed since it was packed; build the mixture again")
    cfg = from_dict(ModelConfig, identity["model"], f"{folder}: model").without_training_parts()
    return TrainedModel(point, cfg, found, average)


def add_model_arguments(parser: argparse.ArgumentParser, averages: tuple[str, ...] = ("ema", "swa")) -> None:
    """What names a trained model on a command line; `model_from_arguments` reads them."""
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, or one step of its checkpoints/; on this machine or in a bucket"
    )
    parser.add_argument("--checkpoint", default="latest", metavar="NAME", help="of a run: latest, best or step_000120")
    parser.add_argument("--average", choices=averages, default="", help="its weights, where the run held one")
    parser.add_argument("--manifest", metavar="M", help="where the run's mixture is now, if it was moved")


def model_from_arguments(given: argparse.Namespace) -> TrainedModel:
    """The model that the arguments name. Raises as open_trained_model does."""
    return open_trained_model(given.run, given.manifest, given.average, given.checkpoint)


def _manifest_of(run: Path) -> Path | str:
    """The manifest that a run's run.json names."""
    relative = read_run(run).get("manifest")
    if relative is None:
        raise TrainError(f"{run / 'run.json'}: does not say which manifest; give --manifest M")
    if is_address(str(relative)):
        return str(relative)
    # as the system reads it, and as it was written, which differ where the run was reached through a link
    for start in (os.path.realpath(run), run):
        path = Path(os.path.normpath(Path(start) / str(relative)))
        if path.exists():
            return path
    raise TrainError(f"{path}: the mixture that {run} was trained on is not there; give --manifest M")
