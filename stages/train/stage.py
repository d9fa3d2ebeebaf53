"""Training as a stage: each phase of the recipe, in order, on the manifest that its mixture packed.

The run folder belongs to the unit's key, so a training that was killed or stopped continues where it was when the
same command is given again, and a changed recipe trains in a folder of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.base import Artifact, DataError, Record, Stage, Task, Unfinished


def work(task: Task) -> None:
    """Train one phase to its end. params: phase; places: manifest, init_from, ranks, stop.

    Raises Unfinished when it was stopped, by the file `stop` or by a signal, and has saved.
    """
    if task.launch is None:
        raise DataError("training needs a launcher; run it through `python -m pipeline run train`")
    run = task.folder / "run"
    overrides = [f"train.out={run}", "train.resume=auto", f"train.init_from={task.places['init_from']}"]
    ended = task.launch(task.places["manifest"], overrides, int(task.places["ranks"]), Path(task.places["stop"]))
    latest = run / "checkpoints" / "latest"
    saved = latest.read_text().strip() if latest.exists() else "nothing yet"
    if not ended:
        raise Unfinished(f"stopped by a signal, saved: {saved}")
    summary = json.loads((run / "summary.json").read_text())
    for name in ("summary.json", "metrics.jsonl", "run.json"):
        task.add(name, str(run / name))
    task.add("model", str(run / "checkpoints" / saved / "model.safetensors"))
    task.count("steps", summary["steps"])


async def build(context: Any) -> dict[str, Record]:
    """Pack every mixture that a phase needs and train the phases one after another."""
    recipe = context.recipe
    if not recipe.train:
        raise DataError(f"recipe {recipe.name} has no train: phases; add one to train")
    if not context.store.local:
        raise DataError(
            "train needs a local --out for its run folder; fetch the packed folder and use torchrun train/main.py"
        )
    done: dict[str, Record] = {}
    for phase, config in recipe.train.items():
        mixture = config.mixture or phase
        packed = await context.stage("pack_pretrain" if mixture == "pretrain" else "pack_anneal_mix")
        settings = recipe.to_dict()["train"][phase]
        init = config.init_from
        inputs = [packed["files"][name] for name in sorted(packed["files"]) if name != "manifest.json"]
        start = init or "none"
        if init in done:
            inputs.append(done[init].output("model"))
            start = str(Path(context.store.absolute(done[init].output("model"))).parent)
        elif start != "none" and not Path(start).exists():
            raise DataError(f"train.{phase}.init_from is {init!r}: no phase before it and no such path")
        params = {
            "phase": phase,
            "build_id": packed["build_id"],
            "model": recipe.to_dict()["model"],
            "settings": settings,
            "trainer": context.fingerprint("train.main"),
        }
        places = {"manifest": context.folder(mixture) + "/manifest.json", "init_from": start}
        places["ranks"] = str(recipe.ranks)
        done[phase] = await context.run("train", work, params, inputs, phase, places=places)
    return done


def published(done: dict[str, Record]) -> dict[str, Any]:
    """Each phase's run folder, as a link."""
    links: dict[str, Any] = {}
    for phase, record in done.items():
        model: Artifact = record.output("model")
        links[f"train/{phase}"] = model.path.split("/checkpoints/")[0]
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


STAGE = Stage(
    name="train",
    reads="packed mixtures, recipe.model, recipe.train",
    writes="train/<phase>/: checkpoints, metrics.jsonl, summary.json",
    build=build,
    after=("pack_pretrain", "pack_anneal_mix"),
    libraries=("torch",),
    publish=published,
    news=news,
    stops=True,
    cpus=0,
)
