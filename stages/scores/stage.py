"""Scores: the models that give each document a number, trained before any document is measured.

What is good and bad is named as sources are, and read by the same units; none of it is trained on as text, unless it is
a source as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from stages.download.stage import DOWNLOAD, KeptPart, download_unit, fetch_source
from stages.errors import DataError
from stages.paths import escaped, is_remote, local_path
from stages.scores.config import Score
from stages.scores.work import work
from stages.sources.base import BaseConfig, Identify
from stages.sources.registry import SourceConfig
from stages.stage import BuildContext, ReportGroup, Stage, Table, Unit
from stages.task import Artifact
from train.data.manifest import SourceFile


class Scorer(NamedTuple):
    """A model that scores documents."""

    model: Artifact  # weights, or a fastText file
    label: str = ""  # of a fastText file
    report: Artifact | None = None  # of one that was trained


async def build(context: BuildContext) -> dict[str, Scorer]:
    """Return the model of each of the recipe's `scores`, by name."""
    scores = context.recipe.scores
    built = await asyncio.gather(*(build_score(context, name, score) for name, score in scores.items()))
    return dict(zip(scores, built, strict=True))


async def build_score(context: BuildContext, name: str, score: Score) -> Scorer:
    """Train one model, or find the fastText file."""
    if score.fasttext is not None:
        path = model_path(score.fasttext)
        digest, size = await asyncio.to_thread(identify_model, name, path, context.identify)
        return Scorer(Artifact(path, digest, name, size), score.label or "")
    assert score.good is not None and score.bad is not None

    async def examples(kind: str, config: BaseConfig) -> list[KeptPart]:
        return await fetch_source(context, f"scores.{name}.{kind}", config, download_unit)

    good, bad = await asyncio.gather(examples("good", score.good), examples("bad", score.bad))
    params = {"name": name, "good": len(good)}
    weight = sum(part.text_bytes for part in (*good, *bad))
    unit = Unit(work, params, [part.docs for part in (*good, *bad)], "train", name, weight)
    record = await context.run(BUILD_SCORES, unit)
    return Scorer(record.output("model"), report=record.output("report"))


def model_path(given: str) -> str:
    """Return the address of a fastText file, or its absolute path on this machine."""
    return given if is_remote(given) else str(Path(local_path(given)).absolute())


def identify_model(name: str, path: str, identify: Identify) -> tuple[str, int]:
    """Return the digest and the size of the fastText file of the score `name`. Raises DataError where it is missing."""
    try:
        return identify(path)
    except FileNotFoundError:
        raise DataError(f"scores.{name}.fasttext: there is no file {escaped(path)}") from None


def model_files(scores: Mapping[str, Score], identify: Identify) -> dict[str, list[SourceFile]]:
    """Return the fastText file of each score that has one, as `scores.NAME.fasttext`. Raises as `identify_model`."""
    files = {}
    for name, score in scores.items():
        if score.fasttext is not None:
            path = model_path(score.fasttext)
            digest, size = identify_model(name, path, identify)
            files[f"scores.{name}.fasttext"] = [SourceFile(path.rpartition("/")[2], size, digest)]
    return files


def example_configs(scores: Mapping[str, Score]) -> dict[str, SourceConfig]:
    """Return where the examples of each score come from, as `scores.NAME.good` and `.bad`."""
    named = {(name, kind): getattr(score, kind) for name, score in scores.items() for kind in ("good", "bad")}
    return {f"scores.{name}.{kind}": config for (name, kind), config in named.items() if config is not None}


def publish(result: Mapping[str, Scorer]) -> dict[str, dict[str, Artifact]]:
    """Publish `scores/<name>.npy` and `scores/<name>.json`, of models that were trained."""
    files: dict[str, Artifact] = {}
    for name, scorer in result.items():
        if scorer.report is not None:
            files |= {f"{name}.npy": scorer.model, f"{name}.json": scorer.report}
    return {"scores": files} if files else {}


def report(_: BuildContext, result: Mapping[str, Scorer]) -> Iterable[ReportGroup]:
    """Yield how well each model tells good examples from bad ones that it was not trained on."""
    header = ("score", "held out: good", "bad", "good scores higher", "good above 0.5", "bad above 0.5")
    keys = ("good", "bad", "auc", "good above 0.5", "bad above 0.5")
    trained = {name: scorer.report.meta for name, scorer in result.items() if scorer.report is not None}
    rows = [(name, *(meta.get(key, "-") for key in keys)) for name, meta in trained.items()]
    if rows:
        yield [Table("Scores", header, rows)]


BUILD_SCORES = Stage(
    name="build_scores",
    reads="recipe.scores: good and bad documents",
    writes="scores/: a model for each score, and how it does on examples that were held out",
    build=build,
    after=(DOWNLOAD,),
    libraries=("pyarrow", "numpy"),
    publish=publish,
    report=report,
)
