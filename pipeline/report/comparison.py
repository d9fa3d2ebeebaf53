"""One page about compared runs: the verdict, the differences with their intervals, curves, what differs, and texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.commands.compare import left_out_lines, p_text, sentence, text_of
from pipeline.errors import UserError
from pipeline.report.charts import LEFT, Axes, Point, plot, round_ticks, series, thinned
from pipeline.report.markup import LONG_TEXT, MINUS, clipped, counted, decimal, escape, number, title_of
from pipeline.report.site import INDEX, environment, replace_folder, static_files
from stages.compare.compare import Compared, Mover, Row, Side
from stages.compare.scored import ScoredRun
from stages.compare.stats import Difference
from train.monitor.metrics import read_json_lines

KINDS = ("line", "line hot", "line strong", "line asked")  # of sides, in their order; more look like the last
CHARTED = 12  # sources with a chart
SHOWN = 32  # characters of a value that differs
ROW_HEIGHT = 44  # pixels of a difference
BITS = "val_bits_per_byte"


class Curve(NamedTuple):
    """A figure of one run over its steps."""

    letter: str
    kind: str
    points: list[Point]


def write_page(found: Sequence[Compared], interest: float, folder: Path) -> None:
    """Write the page into `folder`, and say where it is. Raises UserError where something else stands there."""
    text = (
        environment()
        .get_template("compare.html")
        .render(
            name="Runs compared",
            title="Compare",
            question="Which is better, and is it the recipe?",
            command=f"python -m pipeline compare {' '.join(names_of(found))} --page {folder}",
            same="the same runs",
            here=INDEX,
            views=[],
            basis="Bits a byte of the documents that all of these runs held out and scored to the end.",
            page=page(found, interest),
        )
    )
    files = {INDEX: text.encode(), **static_files()}
    if folder.is_symlink() or (folder.exists() and not is_page(folder, files)):
        raise UserError(f"{folder} holds something else than a page of `compare`; name another folder with --page")
    replace_folder(folder, files)
    print(f"{folder / INDEX}: open it in a browser")


def is_page(folder: Path, files: dict[str, bytes]) -> bool:
    """Return whether a folder is empty, or holds such a page and nothing else."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} in (set(), set(files))


def names_of(found: Sequence[Compared]) -> list[str]:
    """Return the sides as the command takes them."""
    return [",".join(run.name for run in side.runs) for side in sides_of(found)]


def sides_of(found: Sequence[Compared]) -> list[Side]:
    """Return all sides, the first first."""
    return [found[0].a, *(compared.b for compared in found)]


def page(found: Sequence[Compared], interest: float) -> dict[str, Any]:
    """Return what the template shows."""
    sides = sides_of(found)
    return {
        "lead": [with_code(sentence(compared, interest, has_recipes(compared))) for compared in found],
        "sides": [side_facts(side, KINDS[min(i, len(KINDS) - 1)]) for i, side in enumerate(sides)],
        "curves": curves(sides),
        "parts": [part(compared, interest) for compared in found],
    }


def side_facts(side: Side, kind: str) -> dict[str, Any]:
    """Return who a side is."""
    facts = side.runs[0].facts
    return {
        "letter": side.letter,
        "kind": kind,
        "runs": [run.name for run in side.runs],
        "size": f"{number(facts.get('parameters', 0))} parameters, {counted(facts['steps'], 'step')}",
    }


def part(compared: Compared, interest: float) -> dict[str, Any]:
    """Return what there is of one side against the first."""
    known = has_recipes(compared)
    return {
        "a": compared.a.letter,
        "b": compared.b.letter,
        "other": ("These weights" if known else "The recipes", with_code(sentence(compared, interest, not known))),
        "documents": f"{counted(compared.documents, 'document')} held out from both, {number(compared.bytes)} bytes",
        "left_out": left_out_lines(compared),
        "has_recipes": known,
        "rows": [table_row(row, known) for row in compared.rows],
        "chart": intervals(compared, interest),
        "changed": [(name, short(a), short(b)) for name, a, b in compared.changed],
        "movers": [mover(compared, each) for each in compared.movers],
    }


def with_code(text: str) -> Markup:
    """Return a sentence whose commands, between backticks, look like commands."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))


def has_recipes(compared: Compared) -> bool:
    """Return whether anything is known of the recipes, beside these weights."""
    return any(row.recipes is not None for row in compared.rows)


def short(value: Any) -> str:
    """Return a value as the table has it."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def table_row(row: Row, recipes_known: bool) -> dict[str, Any]:
    """Return a row of the table of differences."""
    return {
        "name": f"{row.name}, answers" if row.kind == "set" else row.name,
        "a": decimal(row.a, 4),
        "b": decimal(row.b, 4),
        "difference": signed(row.documents.value),
        "weights": bounds(row.documents),
        "recipes": bounds(row.recipes),
        "seeds": "" if row.seeds is None else decimal(row.seeds.value, 4),
        "p": p_text(row, recipes_known),
        "n": number(row.n) if row.clusters == row.n else f"{number(row.n)} of {number(row.clusters)} works",
        "differs": (row.verdict_recipes if recipes_known else row.verdict_documents) == "different",
    }


def bounds(difference: Difference | None) -> str:
    """Return an interval of 95 %; nothing where there is none."""
    if difference is None or difference.df <= 0:
        return ""
    return " to ".join(signed(end) for end in difference.interval())


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{'+' if value > 0 else ''}{decimal(value, 4)}"


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def intervals(compared: Compared, interest: float) -> Markup:
    """Return the differences with their intervals, a line a row: of the recipes where they are known, else of weights.

    Shaded: within `interest` of 0.
    """
    shown = [(row, row.recipes if row.recipes is not None else row.documents) for row in compared.rows]
    spans = [span(difference) for _, difference in shown]
    reach = 1.08 * max(interest, *(abs(end) for ends in spans for end in ends))
    axes = Axes(-reach, reach, 0, len(shown))
    shapes = [axes.box(-interest, interest, 0, len(shown), "area shade"), axes.grid([]), axes.upright(0)]
    labels = [
        axes.ticks_below([(tick, f"{tick:+g}".replace("-", MINUS) if tick else "0") for tick in both_sides(reach)])
    ]
    for place, ((row, difference), (low, high)) in enumerate(zip(shown, spans, strict=True)):
        height = len(shown) - place - 0.5
        hot = "hot" if row.verdict_documents == "different" and row.verdict_recipes in (None, "different") else ""
        shapes.append(axes.box(low, high, height - 0.06, height + 0.06, f"area {hot}"))
        dot = 0.006 * reach
        shapes.append(
            axes.box(difference.value - dot, difference.value + dot, height - 0.22, height + 0.22, "area ink")
        )
        labels.append(axes.note(-reach, height + 0.3, row.name))
    told = "; ".join(f"{row.name} {signed(difference.value)}" for row, difference in shown)
    summary = f"Difference in bits a byte, {compared.b.letter} less {compared.a.letter}: {told}"
    return plot(shapes, labels, summary, ROW_HEIGHT * len(shown))


def span(difference: Difference) -> tuple[float, float]:
    """Return the interval of 95 %, a point where there is none."""
    return difference.interval() if difference.df > 0 else (difference.value, difference.value)


def both_sides(reach: float) -> list[float]:
    """Return round numbers on both sides of 0."""
    ticks = round_ticks(reach, 2)
    return [*(-tick for tick in reversed(ticks[1:])), *ticks]


def curves(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Return charts of all runs together: of what is held out, as one where it is the same text, else by source."""
    runs = [(side.letter, KINDS[min(i, len(KINDS) - 1)], run) for i, side in enumerate(sides) for run in side.runs]
    steps = [(letter, kind, steps_of(run)) for letter, kind, run in runs]
    builds = {run.about["build_id"] for _, _, run in runs}
    keys = {key for *_, rows in steps for row in rows for key in row}
    wanted = [BITS] if len(builds) == 1 else []
    wanted += sorted(key for key in keys if key.startswith(f"{BITS}/"))[:CHARTED]
    made = []
    for key in wanted:
        lines = [Curve(letter, kind, series(rows, key)) for letter, kind, rows in steps]
        if all(line.points for line in lines):
            name = "all that is held out" if key == BITS else key.removeprefix(f"{BITS}/")
            made.append({"name": name, "chart": chart(lines, name), "wide": key == BITS})
    return made


def steps_of(run: ScoredRun) -> list[dict[str, Any]]:
    """Return the logged steps of a run; none where they are not there any more."""
    path = run.folder / "metrics.jsonl"
    return read_json_lines(path) if path.exists() else []


def chart(lines: Sequence[Curve], name: str) -> Markup:
    """Return curves on one chart, each with its side's letter at its end."""
    ys = [y for line in lines for _, y in line.points]
    low, high = min(ys), max(ys)
    margin = 0.06 * ((high - low) or 1)
    right = max(x for line in lines for x, _ in line.points)
    axes = Axes(0, max(1.0, right), low - margin, high + margin)
    shapes = [axes.grid([])]
    shapes += [axes.line(thinned(line.points), line.kind) for line in lines]
    step = (round_ticks(high - low, 4)[1:] or [high - low or 1])[0]
    first = math.ceil(low / step)
    levels = [step * i for i in range(first, math.floor(high / step) + 1)]
    ends = {line.letter: line for line in lines}  # one word a side
    labels = [
        axes.ticks_below([(0, "0"), (axes.right, f"{number(axes.right)} steps")]),
        axes.ticks_left([(level, f"{level:.3g}") for level in levels]),
        *(axes.note(*line.points[-1], letter, LEFT, "above") for letter, line in ends.items()),
    ]
    told = "; ".join(f"{c.letter} from {decimal(c.points[0][1])} to {decimal(c.points[-1][1])}" for c in lines)
    return plot(shapes, labels, f"Bits a byte of {name}: {told}", 220)


# ---------------------------------------------------------------------------------------------------------------------
# Documents


def mover(compared: Compared, each: Mover) -> dict[str, Any]:
    """Return a document that moves the result, with its text."""
    place, text = text_of(compared, each)
    piece = f" part {each.key[1]}" if each.key[1] else ""
    return {
        "title": place if text is None else title_of(text),
        "value": f"{decimal(each.a)} → {decimal(each.b)}",
        "meta": f"{each.source} · {each.key[0].hex()}{piece} · {number(each.bytes)} bytes · without it "
        f"{signed(each.without)}" + ("" if text is None else f" · {place}"),
        "text": "" if text is None else clipped(text, LONG_TEXT),
        "anchor": "",
    }
