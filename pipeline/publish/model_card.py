"""README.md of a published model: how it is loaded, what it read, and how it scored."""

from __future__ import annotations

import json
from typing import Any

import yaml

from pipeline.publish.dataset_card import NOT_STATED, cell, table, warnings
from pipeline.publish.facts import Facts, Training, tokens_read
from train.checkpoint.load_model import TrainedModel
from train.export_readme import readme


def model_card(facts: Facts, training: Training, repository: str) -> str:
    """Return README.md. repository: of the data set, which has the same name as the model's; or ""."""
    trained = training.model
    front, body = readme(trained).split("---\n", 2)[1:]
    metadata: dict[str, Any] = yaml.safe_load(front)
    if repository:
        metadata["datasets"] = [repository]
        body = body.replace("FOLDER", f'"{repository}"')
    looked_at = "".join(f"* **{cell(said)}**\n" for said in warnings(facts.sources))
    licensed = f"\nWhat the text's licenses ask for:\n\n{looked_at}" if looked_at else ""
    sections = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n{body.rstrip()}\n{licensed}",
        "The model's own license is for whoever publishes it to state.\n",
        how_it_was_trained(training),
        scores(trained),
    ]
    return "\n".join(section for section in sections if section)


def how_it_was_trained(training: Training) -> str:
    """Return the section on the phases of training."""
    rows = []
    for phase in training.phases:
        train = phase.point.state["identity"]["train"]
        how = f"{train['optimizer']}, {train['schedule']['kind']}"
        batch = f"{train['batch_size']:,} x {train['seq_len']:,}"
        rows.append((phase.manifest.mixture, phase.point.step, batch, tokens_read(phase), how))
    began = f"The first phase began from {cell(training.began_from)}.\n\n" if training.began_from else ""
    return f"## Training\n\n{began}" + table(("data", "steps", "tokens a step", "tokens read", "optimizer"), rows)


def scores(trained: TrainedModel) -> str:
    """Return the section on its scores on held-out documents; empty where this checkpoint was not scored."""
    path = trained.point.folder.parents[1] / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if summary.get("steps") != trained.point.step or trained.average or not summary.get("after"):
        return ""
    after, unigram = summary["after"], summary.get("unigram") or {}
    rows = [("all", after, unigram)]
    rows += [(name, found, unigram.get("sources", {}).get(name, {})) for name, found in after["sources"].items()]
    figures = [
        (name, found["tokens"], f"{found['bits_per_byte']:.4f}", bits(by_counts)) for name, found, by_counts in rows
    ]
    return (
        f"## Scores\n\nOn {summary['val_documents']:,} held-out documents, beside a unigram model of the training "
        "tokens.\n\n" + table(("documents", "tokens", "bits per byte", "unigram"), figures)
    )


def bits(score: dict[str, Any]) -> str:
    """Return a score in bits per byte."""
    return f"{score['bits_per_byte']:.4f}" if score else NOT_STATED
