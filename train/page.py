"""A run on one page: `summary.md` and `plots/*.svg` in its folder, as a repository's web page shows them.

    python -m train.page RUN        again, as of a run that was killed

Made from run.json, metrics.jsonl, events.jsonl and, of a run that came to its end, summary.json: the same files give
the same page. A run makes it with each evaluation and at its end.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.checkpoint.run_folder import read_run
from train.config import TrainError
from train.exit_status import complain, run_command
from train.files import write_atomic
from train.monitor.commands import continue_command, trace_command
from train.monitor.metrics import read_json_lines
from train.monitor.source_losses import losses_at_end
from train.monitor.svg import Series, chart
from train.monitor.text import clock_text, counted_processes, dead_part_rows, event_text, printable

FIRST = 5  # events shown, and rows of a batch of each
Record = dict[str, Any]


def refresh_page(folder: Path) -> None:
    """`write` for a run that goes on: a page that cannot be made is a warning."""
    try:
        write_page(folder)
    except Exception as error:  # no picture is worth a run
        print(f"warning: no {folder / 'summary.md'}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def write_page(folder: Path) -> Path:
    """Make the page of a run's folder, and return its path. Raises TrainError when no run is there."""
    run = read_run(folder)
    records, events = read_json_lines(folder / "metrics.jsonl"), read_json_lines(folder / "events.jsonl")
    summary: Record = {}
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if not records or summary.get("steps") != records[-1]["step"]:
        summary = {}  # of an earlier end, before the run was made longer
    (folder / "plots").mkdir(exist_ok=True)
    names = []
    for name, svg in page_plots(records, events).items():
        write_atomic(folder / "plots" / f"{name}.svg", svg)
        names.append(name)
    path = folder / "summary.md"
    write_atomic(path, printable(page_text(run, records, events, summary, names)))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def page_plots(records: list[Record], events: list[Record]) -> dict[str, str]:
    """Name -> SVG of each chart that the records have something for."""
    spikes = [event["step"] for event in events if "batch" in event]
    averages = [a for a in ("ema", "swa") if any(f"val_loss_{a}" in r for r in records)]
    rates = [figure_series(records, "lr", "lr"), figure_series(records, "lr_adamw", "AdamW")]
    same = list(rates[0].ys) == list(rates[1].ys)
    charts = {
        "loss": (
            "Loss, nats a token",
            [
                figure_series(records, "loss", "training"),
                figure_series(records, "val_loss", "validation", dots=True),
                *(figure_series(records, f"val_loss_{a}", f"validation, {a}", dots=True) for a in averages),
            ],
        ),
        "loss_by_source": (
            "Training loss by source, nats a token",
            [figure_series(records, f"loss/{name}", name) for name in losses_at_end(records)],
        ),
        "learning_rate": ("Learning rate", rates[:1] if same else [rates[0]._replace(name="Muon"), rates[1]]),
        "grad_norm": ("Gradient norm, before clipping", [figure_series(records, "grad_norm", "gradient")]),
        "speed": ("Tokens a second", [figure_series(records, "tokens_per_second", "tokens a second")]),
    }
    return {
        name: chart(
            title,
            series,
            name in ("learning_rate", "speed"),
            spikes if name in ("loss", "loss_by_source", "grad_norm") else (),
            "spike",
        )
        for name, (title, series) in charts.items()
        if any(len(s.xs) for s in series)
    }


def figure_series(records: list[Record], key: str, name: str, dots: bool = False) -> Series:
    """One figure over the steps that have it."""
    found = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    return Series(name, [step for step, _ in found], [value for _, value in found], dots)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def page_text(run: Record, records: list[Record], events: list[Record], summary: Record, names: list[str]) -> str:
    """The page, in GitHub's Markdown."""
    steps = records[-1]["step"] if records else 0
    state = f"Done: {steps:,} steps." if summary else f"Not at its end: {steps:,} of {run['steps']:,} steps."
    parts = [
        f"# {run['name']} / {run['phase']}\n\n{state}",
        markdown_table(("", ""), training_rows(run, records, steps)),
        "## Scores\n\n" + scores_section(records, summary),
        "\n".join(f"![{name.replace('_', ' ')}](plots/{name}.svg)" for name in names),
        "## Data\n\n" + sources_section(run["data"], steps),
        "## Events\n\n" + events_section(events),
    ]
    if summary.get("dead_parts"):
        rows = dead_part_rows(summary["dead_parts"])
        parts.append("## Dead parts\n\n" + (markdown_table(("what", "why"), rows) if rows else "None."))
    if summary.get("samples"):
        parts.append("## Samples\n\n" + "\n\n".join(code_block(s["prompt"] + s["text"]) for s in summary["samples"]))
    parts.append("## Going on\n\n" + commands_section(run, bool(summary), events))
    return "\n\n".join(parts) + "\n"


def training_rows(run: Record, records: list[Record], steps: int) -> list[Sequence[str]]:
    """What was trained, on what, how long and how fast. Speeds are medians of the logged lines."""
    model, cfg, lined = run["model"], run["train"], [r for r in records if "loss" in r]
    tokens = cfg["batch_size"] * cfg["seq_len"]
    kinds = model.get("layer_kinds")  # runs of before have no such key
    by_kind = kinds and f"{kinds.count('sliding')} sliding and {kinds.count('global')} global"
    layers = by_kind or model["attention_pattern"]
    rates = f"Muon {cfg['muon']['lr']:g}, AdamW" if cfg["optimizer"] == "muon" else "AdamW"
    rows: list[Sequence[str]] = [
        (
            "model",
            f"{run['parameters']:,} parameters: {model['n_layers']} layers of {model['dim']}, "
            f"{layers}, window {model['sliding_window']:,}",
        ),
        (
            "training",
            f"{steps:,} steps of {cfg['batch_size']} x {cfg['seq_len']} tokens: {steps * tokens:,} tokens, "
            f"{steps * run['data']['epochs_a_step']:.2f} epochs; seed {cfg['seed']}",
        ),
        ("learning rate", f"{rates} {cfg['adamw']['lr']:g}; {schedule_text(cfg['schedule'])}"),
        ("data", f"build `{run['build_id'][:16]}`, {run['data']['tokens']:,} tokens"),
        (
            "device",
            f"{run['world_size']} x {run['device_name']}, micro-batch {run['micro_batch']}; "
            f"torch {run['versions']['torch']}, Python {run['versions']['python']}",
        ),
    ]
    if lined:
        last = lined[-1]
        use = ""
        if "mfu_causal" in last:
            use = (
                f"; MFU {median_of(lined, 'mfu_causal'):.1%} causal, {median_of(lined, 'mfu_full'):.1%} full, "
                f"of {run['peak_tflops']:g} TFLOP/s (dense bf16)"
            )
        rows += [
            (
                "time",
                f"{clock_text(last['seconds'])} in steps, {median_of(lined, 'waiting_for_data'):.1%} waiting for data",
            ),
            (
                "speed",
                f"{median_of(lined, 'tokens_per_second'):,.0f} tokens/s, {median_of(lined, 'model_tflops'):.3g} "
                f"model TFLOP/s a device{use}",
            ),
            ("memory", f"{max(r['memory_gb'] for r in lined):.2f} GB at the most, first process"),
        ]
    starts = [f"at step {s['step']:,} on {counted_processes(s['world_size'])}" for s in run["starts"]]
    rows.append(("started", ", then ".join(starts)))
    return rows


def schedule_text(cfg: Record) -> str:
    """One in words."""
    falls = {"wsd": f", decay {cfg['decay_frac']:.0%}", "warmdown": f", warmdown {cfg['warmdown']:,}"}
    until = "" if cfg["seconds"] is None else f", {cfg['seconds']:g} s"
    return f"{cfg['kind']}, warm-up {cfg['warmup']:,}{falls.get(cfg['kind'], '')}{until}"


def scores_section(records: list[Record], summary: Record) -> str:
    """Bits per byte before, of the unigram, after and of the averages; of the mixture and of each source."""
    scored = [r for r in records if "val_loss" in r]
    if not scored:
        return "None yet."
    last, first = scored[-1], scored[0] if len(scored) > 1 and scored[0]["step"] == 0 else None
    averages = [a for a in ("ema", "swa") if f"val_loss_{a}" in last]
    unigram = summary.get("unigram")
    head = ["bits/byte", *["before"] * bool(first), *["unigram"] * bool(unigram)]
    trained = losses_at_end(records)
    head += [f"step {last['step']:,}", *averages, "nats/token", *["in training"] * bool(trained)]
    rows = []
    for source in ["", *(key.removeprefix("val_loss/") for key in last if key.startswith("val_loss/"))]:
        end = f"/{source}" if source else ""
        row = [source or "mixture"]
        row += [_figure(first.get(f"val_bits_per_byte{end}"))] if first else []
        if unigram:
            row.append(_figure((unigram["sources"].get(source, {}) if source else unigram).get("bits_per_byte")))
        row.append(f"**{_figure(last.get(f'val_bits_per_byte{end}'))}**")
        row += [_figure(last.get(f"val_bits_per_byte_{a}{end}")) for a in averages]
        row.append(_figure(last.get(f"val_loss{end}")))
        rows.append([*row, *[_figure(trained.get(source))] * bool(trained)])
    shown = markdown_table(head, rows)
    if trained:
        shown += "\n\nIn training: nats a token over the last tenth of the steps, before each of them."
    asked = [key.removesuffix("/acc") for key in last if key.endswith("/acc")]
    if asked:
        right = [
            [name, *([_figure(first.get(f"{name}/acc"))] if first else []), f"**{_figure(last[f'{name}/acc'])}**"]
            + [_figure(last.get(f"{name}/acc_{a}")) for a in averages]
            for name in asked
        ]
        shown += "\n\n" + markdown_table(
            ["share right", *["before"] * bool(first), f"step {last['step']:,}", *averages], right
        )
    return shown


def sources_section(data: Record, steps: int) -> str:
    """What the mixture is of, and how often the run read each."""
    passes = steps * data["epochs_a_step"]
    rows = [
        (s["name"], f"{s['tokens']:,}", f"{s['ratio_got']:.1%}", f"{s['epochs'] * passes:.2f}", s["origin"])
        for s in data["sources"]
    ]
    if not rows:
        return f"{data['tokens']:,} tokens."
    return markdown_table(("source", "tokens", "share", "epochs of it", "from"), rows)


def events_section(events: list[Record]) -> str:
    """How many events of each kind, and the first spikes with the documents of their batches."""
    if not events:
        return "None."
    counts = Counter(event["event"] for event in events)
    rows = []
    for event in events[:FIRST]:
        batch = event.get("batch", [])
        read = [f"`{r['shard']}` {r['documents'][0]}-{r['documents'][1]}" for r in batch[:FIRST]]
        more = f" and {len(batch) - FIRST} rows more" if len(batch) > FIRST else ""
        rows.append((str(event["step"]), event_text(event), ", ".join(read) + more))
    shown = markdown_table(("step", "what", "documents of its batch"), rows)
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())) + f".\n\n{shown}"


def commands_section(run: Record, done: bool, events: list[Record]) -> str:
    """How to continue, trace and export, from where the run was started."""
    given = run["command"]
    folder = shlex.quote(given["folder"])
    step = next((e["step"] for e in events if "batch" in e), 1)
    longer = " (longer: also name train.steps)" if done else ""
    shown = [
        f"# continue{longer}\n{continue_command(run)}",
        f"# the documents of a step\n{trace_command(given['manifest'], given['folder'], step)}",
        f"# text, and a folder for transformers\npython -m train.generate {folder} --prompt 'The'",
        f"python -m train.export {folder} --format hf --out exported",
    ]
    return (
        "`run.json` says what was run, `metrics.jsonl` has all figures, `events.jsonl` the events with their whole "
        "batches, `checkpoints/` the weights.\n\n" + code_block("\n".join(shown), "sh")
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def code_block(content: str, language: str = "") -> str:
    """A code block around any text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{fence}{language}\n{content}\n{fence}"


def median_of(records: list[Record], key: str) -> float:
    """Of a figure of the records that have it."""
    return statistics.median([r[key] for r in records if key in r] or [0.0])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.page", description="Make a run's summary page again.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    given = parser.parse_args(arguments)
    try:
        if "://" in given.run:
            raise TrainError(
                f"{given.run}: in a bucket the page is {given.run.rstrip('/')}/summary.md; to make it again "
                "copy the run's folder to this machine"
            )
        print(write_page(Path(given.run)))
    except (TrainError, OSError) as error:
        return complain(error)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return complain(f"{given.run}: not a run of ours ({type(error).__name__}: {error})")
    return 0


if __name__ == "__main__":
    run_command(main)
