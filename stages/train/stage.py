"""Training as a stage: each phase of the recipe, in order, on the manifest that its mixture packed.

The run folder belongs to the unit's key, so a training that was killed or stopped continues where it was when the
same command is given again, and a changed recipe trains in a folder of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.errors import DataError
from stages.pack.stage import PACK
from stages.paths import is_remote
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact
from stages.train.report import report
from stages.train.work import RUN, work


async def build(context: BuildContext) -> dict[str, Record]:
    """Pack every mixture that a phase needs and train the phases one after another."""
    recipe = context.recipe
    if not recipe.train:
        raise DataError(f"recipe {recipe.name} has no train: phases; add one to train")
    for phase, config in recipe.train.items():
        for text in config.warnings():
            context.warn(f"{phase}: {text}")
    records: dict[str, Record] = {}
    for phase, config in recipe.train.items():
        mixture = config.mixture or phase
        packed = await context.stage(PACK[mixture])
        init = config.init_from
        inputs = [packed.files[name] for name in sorted(packed.files) if name != "manifest.json"]
        start = init or "none"
        if init in records:
            model = records[init].output("model")
            inputs.append(model)
            place, _, _ = context.place(model).rpartition("/")
            start = place if context.local_store else f"{place}/{RUN}"
        elif start != "none" and not is_remote(start) and not Path(start).exists():
            raise DataError(f"train.{phase}.init_from is {init!r}: no phase before it and no such path")
        resolved = recipe.to_dict()
        params = {
            "phase": phase,
            "build_id": packed.build_id,
            "model": resolved["model"],
            "settings": resolved["train"][phase],
            "trainer": context.fingerprint("train.main"),
        }
        places = {
            "manifest": context.folder(mixture) + "/manifest.json",
            "init_from": start,
            "ranks": str(recipe.ranks),
        }
        records[phase] = await context.run(TRAIN, Unit(work, params, inputs, phase, places=places))
    return records


def publish(records: dict[str, Record]) -> dict[str, str]:
    """Publish each phase's run folder: as a link, in a bucket by an object that names it."""
    links: dict[str, str] = {}
    for phase, record in records.items():
        model: Artifact = record.output("model")  # on a disk in the run's folder, in a bucket a copy beside it
        stage, digits, key, *_ = model.path.split("/")
        links[f"train/{phase}"] = f"{stage}/{digits}/{key}/{RUN}"
    return links


def news(folder: str, params: dict[str, Any]) -> str:
    """Where training has got to, from the last line of its metrics."""
    metrics = Path(folder) / "run" / "metrics.jsonl"
    if not metrics.is_file():
        return ""
    lines = [line for line in metrics.read_text().splitlines() if '"loss"' in line]
    if not lines:
        return ""
    last, steps = json.loads(lines[-1]), params["settings"]["steps"]
    rate = last["tokens_per_second"]
    left = (steps - last["step"]) * last["tokens"] / last["step"] / rate
    return f"step {last['step']}/{steps}, loss {last['loss']:.4f}, {rate:,.0f} tokens/s, {left:,.0f} s left"


TRAIN = Stage(
    name="train",
    reads="packed mixtures, recipe.model, recipe.train",
    writes="train/<phase>/: checkpoints, metrics.jsonl, summary.json",
    build=build,
    after=tuple(PACK.values()),
    libraries=("torch",),
    publish=publish,
    report=report,
    news=news,
    stops=True,
    keeps_runs=True,
    cpus=0,
)
