"""Training runs: curves, what is held out by source, and what the model saw when a step was out of the ordinary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import LEFT, Axes, Point, data_script, percent, plot, round_ticks, series, thinned
from pipeline.report.facts import Facts, RunFacts
from pipeline.report.markup import clipped, counted, decimal, escape, listed, number, title_of
from pipeline.report.mixtures import key_of
from stages.lineage.rows import ShardRow, rows_of_spans
from stages.review.sample import read_texts
from train.data.manifest import Manifest
from train.monitor.anomalies import WARM
from train.monitor.text import event_text
from train.page import training_rows

EVENTS, BATCH_ROWS = 20, 16  # events with their documents, rows of a batch of each
CHARTED = 12  # sources with a curve
MEAN_OF = 11  # logged steps that the strong line is the mean of
TIMES = ("time", "speed", "memory", "device", "started")  # of `training_rows`: not what was learnt, but where


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    return {"lead": lead(facts), "runs": [section(facts, run) for run in facts.runs]}


def lead(facts: Facts) -> Markup:
    """Return the answer in sentences."""
    if not facts.runs:
        return escape("No run has begun yet.")
    sentences = []
    for run in facts.runs:
        steps = run.steps[-1]["step"] if run.steps else 0
        scored = [step["val_bits_per_byte"] for step in run.steps if "val_bits_per_byte" in step]
        text = Markup("<b>{}</b> made {}").format(run.phase, counted(steps, "step"))
        if len(scored) > 1:
            text += escape(
                f" and went from {decimal(scored[0])} to {decimal(scored[-1])} bits a byte of what is held out"
            )
        odd = odd_events(run)
        if odd:
            text += Markup('; <b class="hot">{} {} out of the ordinary</b>').format(
                counted(len(odd), "step"), "was" if len(odd) == 1 else "were"
            )
        sentences.append(text + ".")
    return Markup(" ").join(sentences)


def odd_events(run: RunFacts) -> list[dict[str, Any]]:
    """Return the events of steps that were judged out of the ordinary, in their order."""
    return [event for event in run.events if "batch" in event]


def section(facts: Facts, run: RunFacts) -> dict[str, Any]:
    """Return a run's facts, curves and events."""
    events = odd_events(run)[:EVENTS]
    pins = [(event["step"], i + 1) for i, event in enumerate(events)]
    name = f"values-{run.phase}"
    return {
        "phase": run.phase,
        "facts": [
            (name, value.replace("`", ""))
            for name, value in training_rows(run.run, run.steps, last_step(run))
            if name not in TIMES
        ],
        "loss": curve(run, "loss", "Loss in nats a token", pins, name, "val_loss"),
        "series": data_script(name, values(run)) if any("loss" in step for step in run.steps) else "",
        "norm": curve(run, "grad_norm", "Gradient norm before clipping", pins),
        "trained": by_source(run, "loss/", "Training loss", "nats a token"),
        "held_out": by_source(run, "val_bits_per_byte/", "Bits a byte of held-out documents", ""),
        "points": sum("loss" in step for step in run.steps),
        "mean": MEAN_OF,
        "warm": WARM,
        "sigma": run.run["train"].get("spike_sigma", 0),
        "events": batches(facts, run, events),
        "all_events": len(odd_events(run)),
        "others": [(event["step"], event_text(event)) for event in run.events if "batch" not in event][:EVENTS],
        "samples": [
            {"prompt": title_of(sample["prompt"]), "text": clipped(sample["prompt"] + sample["text"])}
            for sample in run.summary.get("samples", [])
        ],
    }


def last_step(run: RunFacts) -> int:
    """Return the last step that was logged."""
    return int(run.steps[-1]["step"]) if run.steps else 0


def values(run: RunFacts) -> dict[str, Any]:
    """Return the values of the curve of the loss for whoever points at it."""
    kept = thinned(series(run.steps, "loss"))
    return {
        "x": [x for x, _ in kept],
        "label": [f"step {number(x)}: {decimal(y)}" for x, y in kept],
        "low": 0,
        "high": max(1, last_step(run)),
    }


def curve(
    run: RunFacts, key: str, title: str, pins: Sequence[tuple[int, int]], name: str = "", held: str = ""
) -> Markup | None:
    """Return a figure over the steps: each logged one pale, their mean over it, the validation set where `held` is."""
    points = series(run.steps, key)
    if not points:
        return None
    held_points = series(run.steps, held) if held else []
    ys = [y for _, y in points + held_points]
    low, high = min(ys), max(ys)
    if high <= low:
        high = low + 1
    margin = 0.06 * (high - low)
    axes = Axes(0, max(1, last_step(run)), low - margin, high + margin)
    smooth = mean_of(points)
    shapes = [axes.grid([])]
    if key == "grad_norm":
        shapes.insert(0, axes.box(0, WARM, low - margin, high + margin, "area shade"))
    shapes += [axes.line(thinned(points), "line pale" if smooth else "line")]
    shapes += [axes.line(thinned(smooth), "line")] if smooth else []
    shapes += [axes.line(held_points, "line strong")] if held_points else []
    step = (round_ticks(high - low, 4)[1:] or [high - low])[0]
    levels = [float(value) for value in np.arange(np.ceil(low / step) * step, high, step)]
    labels = [
        axes.ticks_below(
            [(0, "0"), *((x, number(x)) for x in round_ticks(axes.right, 4)[1:-1]), (axes.right, "steps")]
        ),
        axes.ticks_left([(level, f"{level:.3g}") for level in levels]),
        *(
            Markup('<a class="pin" href="#{}" style="left:{}" aria-label="Event {}, step {}">{}</a>').format(
                anchor(run, at), percent(axes.x(at)), i, at, i
            )
            for at, i in pins
        ),
    ]
    if held_points:
        labels.append(axes.note(*held_points[-1], "held out", LEFT, "above"))
    last = decimal(points[-1][1])
    summary = f"{title} over {counted(last_step(run), 'step')}: from {decimal(points[0][1])} to {last}"
    return plot(shapes, labels, summary, 220 if held else 130, name)


def mean_of(points: Sequence[Point]) -> list[Point]:
    """Return the running mean of a curve, MEAN_OF points at a time; none of a short one."""
    if len(points) < 4 * MEAN_OF:
        return []
    xs, ys = zip(*points, strict=True)
    means = np.convolve(ys, np.full(MEAN_OF, 1 / MEAN_OF), "valid")
    half = MEAN_OF // 2
    return list(zip(xs[half : half + len(means)], means.tolist(), strict=True))


def by_source(run: RunFacts, prefix: str, title: str, unit: str) -> list[dict[str, Any]]:
    """Return a figure of each source over the steps, whose keys begin with `prefix`."""
    names = sorted({key.removeprefix(prefix) for step in run.steps for key in step if key.startswith(prefix)})
    made = []
    for name in names[:CHARTED]:
        points = series(run.steps, f"{prefix}{name}")
        if not points:
            continue
        low, high = min(y for _, y in points), max(y for _, y in points)
        margin = 0.15 * ((high - low) or 1)
        axes = Axes(0, max(1, last_step(run)), low - margin, high + margin)
        ends = [(high, decimal(high, 2)), (low, decimal(low, 2))][: 1 + (high > low)]
        labels = [axes.ticks_below([(0, "0"), (axes.right, f"{number(axes.right)} steps")]), axes.ticks_left(ends)]
        summary = f"{title} of {name}: from {decimal(points[0][1])} to {decimal(points[-1][1])}"
        line = axes.line(thinned(points), "line" if unit else "line strong")
        made.append({"name": name, "chart": plot([axes.grid([]), line], labels, summary, 90), "last": points[-1][1]})
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Events


def anchor(run: RunFacts, step: int) -> str:
    """Return the id of an event."""
    return f"event-{run.phase}-{step}"


def batches(facts: Facts, run: RunFacts, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events with the documents that their batches were made of."""
    mixture = facts.recipe["train"].get(run.phase, {}).get("mixture") or run.phase
    manifest = facts.manifests.get(mixture)
    is_known = manifest is not None and manifest.build_id == run.run["build_id"] and not manifest.adopted
    seq_len = run.run["train"]["seq_len"]
    spans = [(r["shard"], r["token"], r["token"] + seq_len) for e in events for r in e["batch"][:BATCH_ROWS]]
    rows = iter(rows_of_spans(manifest, spans) if is_known and manifest else [])
    shown = []
    for i, event in enumerate(events, 1):
        batch = event["batch"][:BATCH_ROWS]
        shown.append(
            {
                "number": i,
                "anchor": anchor(run, event["step"]),
                "step": event["step"],
                "text": event_text(event),
                "rows": [{"batch": r, "documents": next(rows, [])} for r in batch],
                "more": len(event["batch"]) - len(batch),
                "command": f"python -m pipeline trace build/{facts.name}/{mixture} "
                f"--run build/{facts.name}/train/{run.phase} --step {event['step']}",
            }
        )
    begins = beginnings(facts, [row for event in shown for each in event["rows"] for row in each["documents"]])
    for event in shown:
        event["rows"] = [row_shown(mixture, manifest, each, begins) for each in event["rows"]] if is_known else []
    return shown


def row_shown(
    mixture: str, manifest: Manifest | None, row: dict[str, Any], begins: dict[tuple[str, str, int], str]
) -> dict[str, Any]:
    """Return one row of a batch: where it lies, and how its documents begin."""
    batch, documents = row["batch"], row["documents"]
    shard = [shard.path for shard in manifest.shards].index(batch["shard"]) if manifest else 0
    return {
        "link": f"mixture.html#token={key_of(mixture, shard)}:{batch['token']}",
        "place": f"{batch['shard']}, token {number(batch['token'])}",
        "sources": listed(dict.fromkeys(document.source for document in documents)),
        "documents": " · ".join(
            begins.get((d.source, d.source_file, d.source_row), f"{d.source_file} row {d.source_row}")
            for d in documents[:3]
        ),
        "count": len(documents),
    }


def beginnings(facts: Facts, rows: Sequence[ShardRow]) -> dict[tuple[str, str, int], str]:
    """Return how documents of shards begin, of those that are in the samples."""
    wanted = {(row.source, row.source_file, row.source_row) for row in rows}
    begins: dict[tuple[str, str, int], str] = {}
    for name, sample in facts.samples.items():
        places = [(name, file, int(row)) for file, row in zip(sample.files, sample.file_row, strict=True)]
        numbers = [i for i, place in enumerate(places) if place in wanted and not sample.hidden[i]]
        for i, text in read_texts(facts.reader, sample, numbers):
            begins[places[i]] = title_of(text)[:80]
    return begins
