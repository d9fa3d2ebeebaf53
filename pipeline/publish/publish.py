"""`publish`: a data set and a model as folders that others load, and, asked for, on the hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from pipeline.commands.fetch import fetch_build
from pipeline.engine.local_store import link_or_copy
from pipeline.errors import UsageError, UserError
from pipeline.publish.croissant import croissant
from pipeline.publish.dataset_card import dataset_card, warnings
from pipeline.publish.facts import Facts, Training, gather, trace_training
from pipeline.publish.model_card import model_card
from pipeline.publish.training_content import training_content
from train.config import TrainError
from train.export import export

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def publish(address: str, out: Path, run: str | None, push: str | None, public: bool) -> None:
    """Write `out/dataset` and, of a run, `out/model`; then upload them as repository `push`, private unless `public`.

    Given again, it goes on where it was. Raises UsageError, UserError, ManifestError, TrainError.
    """
    if push is not None and not REPOSITORY.fullmatch(push):
        raise UsageError(f"--push {push}: a repository of the hub is OWNER/NAME")
    facts = gather(address)
    training = trace_training(run) if run else None
    if training and training.model.manifest.build_id != facts.manifest.build_id:
        raise UserError(
            f"{run} was trained on build {training.model.manifest.build_id[:16]}, {address} is "
            f"{facts.manifest.build_id[:16]}: publish a model with its own data: {training.model.manifest.folder}"
        )
    write_dataset(facts, training, out / "dataset", push or "")
    if training:
        write_model(facts, training, out / "model", push or "")
    for said in warnings(facts.sources):
        print(f"warning: {said}")
    if push:
        from pipeline.publish.hub import upload

        upload(out / "dataset", push, "dataset", public)
        if training:
            upload(out / "model", push, "model", public)


def write_dataset(facts: Facts, training: Training | None, folder: Path, repository: str) -> None:
    """Write text, shards, report and cards. Files that are there and whole stay."""
    fetch_build(facts.manifest.folder, folder / "shards")
    (folder / "text").mkdir(exist_ok=True)
    for old in (folder / "text").iterdir():
        old.unlink()
    for name, path in facts.text.items():
        link_or_copy(path.resolve(), folder / "text" / name)
    pages = facts.manifest.beside("report")
    if pages:
        shutil.copytree(next(iter(pages.values())).parent, folder / "report", dirs_exist_ok=True)
    write(folder / "README.md", dataset_card(facts, repository, bool(pages)))
    write(folder / "training-content.md", training_content(facts, training))
    metadata = croissant(facts, folder, page_of(repository) if repository else "")
    write(folder / "croissant.json", json.dumps(metadata, indent=1, ensure_ascii=False) + "\n")


def page_of(repository: str) -> str:
    """Return the address of a data set's page on the hub that is configured."""
    from huggingface_hub.constants import ENDPOINT

    return f"{ENDPOINT}/datasets/{repository}"


def write_model(facts: Facts, training: Training, folder: Path, repository: str) -> None:
    """Write the model for transformers, with its card. One that is there must be of the same checkpoint."""
    trained = training.model
    config = folder / "config.json"
    if not config.exists():
        export(trained, "hf", folder)
    elif json.loads(config.read_text(encoding="utf-8")).get("trained") != trained.provenance():
        raise TrainError(f"{folder} holds another model; name a new folder")
    write(folder / "README.md", model_card(facts, training, repository))
    write(folder / "training-content.md", training_content(facts, training))


def write(path: Path, text: str) -> None:
    """Write a text, and say so."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    print(path)
