"""The unit that scores a trained model of a sweep on what is held out of every source: the same text for all."""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.errors import DataError
from stages.task import Task
from train.config import TrainError
from train.data.manifest import ManifestError
from train.eval.rows import FILE
from train.score import add_score_arguments, open_scored


def work(task: Task) -> None:
    """Score a run, every document and question. places: run and manifest, which the inputs are files of.

    Outputs: `evaluation`, rows as train/eval/rows.py has them. Raises DataError.
    """
    parser = argparse.ArgumentParser()
    add_score_arguments(parser)
    given = parser.parse_args([task.places["run"], "--manifest", task.places["manifest"], "--tokens", "0"])
    given.rows, given.set = True, ["train.compile=false", "train.eval_items=0"]
    try:
        trained, _, scorer = open_scored(given)
        score = next(iter(scorer.score(trained.model(scorer.device, scorer.dtype), plain_only=True).values()))
    except (TrainError, ManifestError) as error:
        raise DataError(f"a proxy cannot be scored: {error}") from error
    path = task.output(FILE)
    validation = next(iter(scorer.validations.values()))
    about = {"step": trained.point.step, "average": trained.average}
    validation.keep(Path(path), trained.manifest, score, about)
    task.add("evaluation", path)
