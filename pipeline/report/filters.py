"""What the rules take: share of text beside share of documents, the figure each looks at, and texts at its line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.report.charts import LEFT, RIGHT, Axes, bar, plot, round_ticks
from pipeline.report.facts import Facts
from pipeline.report.histograms import Floats, bars, edges_of, horizontal_ticks, span_of
from pipeline.report.markup import clipped, counted, escape, marked, number, share, size, title_of
from stages.filter.verdict import BOUND_OF
from stages.review.figures import FIGURES, Figure, evidence
from stages.review.sample import Sample, as_reached, reached, read_texts, thresholds_of

IN_FULL = 12  # rules with histograms and texts; more are in the table
NEAREST = 5  # documents on either side of the line
Mask = npt.NDArray[np.bool_]


class Group(NamedTuple):
    """What one reason took of one source."""

    source: str
    reason: str
    documents: int  # counted
    text_bytes: float  # of the whole source
    dropped: Mask  # of the sample

    @property
    def anchor(self) -> str:
        """Return the id of its section."""
        return f"{self.source}-{self.reason}"


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    found = sorted(groups(facts), key=lambda group: (-text_share(facts, group), group.anchor))
    rows = [row(facts, group) for group in found]
    widest = max((max(each["of_text"], each["of_documents"]) for each in rows), default=1.0)
    for each in rows:
        each["text_bar"] = bar(each["of_text"] / widest, hot=True)
        each["document_bar"] = bar(each["of_documents"] / widest)
    return {
        "lead": lead(facts, found),
        "rows": rows,
        "sections": [section(facts, group) for group in found[:IN_FULL]],
        "rest": len(found) - len(found[:IN_FULL]),
        "basis": "from the records" if facts.whole else f"and {number(facts.drawn)} of them read, drawn by hash",
    }


def groups(facts: Facts) -> list[Group]:
    """Return what each reason took of each source."""
    found = []
    for name, sample in facts.samples.items():
        for reason, documents in facts.accounts[name].ruled_out.items():
            found.append(Group(name, reason, documents, sample.bytes_of(reason), sample.dropped_for(reason)))
    return found


def text_share(facts: Facts, group: Group) -> float:
    """Return which share of its source's text a group is."""
    return group.text_bytes / max(1, facts.accounts[group.source].read_bytes)


def lead(facts: Facts, found: list[Group]) -> Markup:
    """Return the answer in sentences."""
    if not found:
        named = any(sample.rules for sample in facts.samples.values())
        return escape("No rule dropped anything." if named else "No rule dropped anything: the recipe names none.")
    dropped = sum(account.rule_documents for account in facts.accounts.values())
    first = found[0]
    kept = facts.samples[first.source].chars[facts.samples[first.source].kept]
    text = Markup(
        "Rules dropped {} of the documents and {} of the text. The one that takes most is "
        '<a href="#{}"><code>{}</code></a> in <b>{}</b>: <b class="hot">{} of its text</b>.'
    ).format(
        share(dropped, facts.documents),
        share(sum(group.text_bytes for group in found), sum(a.read_bytes for a in facts.accounts.values())),
        first.anchor,
        first.reason,
        first.source,
        share(text_share(facts, first)),
    )
    chars = facts.samples[first.source].chars[first.dropped]
    if len(chars) and len(kept):
        text += escape(
            f" What it drops has a median of {number(np.median(chars))} characters; what stays of {first.source} has "
            f"{number(np.median(kept))}."
        )
    return text


def row(facts: Facts, group: Group) -> dict[str, Any]:
    """Return a group's row of the table."""
    chars = facts.samples[group.source].chars[group.dropped]
    return {
        "group": group,
        "of_text": text_share(facts, group),
        "of_documents": group.documents / max(1, facts.accounts[group.source].read),
        "median": number(np.median(chars)) if len(chars) else "",
    }


def section(facts: Facts, group: Group) -> dict[str, Any]:
    """Return a group's histogram, what other thresholds would do, and the documents nearest to the line."""
    sample, figure = facts.samples[group.source], FIGURES.get(group.reason)
    values = sample.figures.get(group.reason)
    shown: dict[str, Any] = {"group": group, "of_text": text_share(facts, group), "chart": None, "options": None}
    shown["figure"] = figure
    chosen = sorted(np.flatnonzero(group.dropped & ~sample.hidden).tolist(), key=lambda i: (-sample.chars[i], i))
    passed: list[int] = []
    if figure is not None and values is not None:
        line = border(sample, group)
        asked = reached(sample, group.reason) & ~np.isnan(values)
        shown["measured"], shown["asked"] = int(asked.sum()), int(reached(sample, group.reason).sum())
        shown["threshold"] = figure_text(figure, line)
        if asked.sum() >= 2 and group.dropped.sum() >= 2:
            shown["chart"] = chart(facts, group, figure, asked, line)
            shown["options"] = options(facts, group, figure, asked, line)
        distance = np.abs(values - line)
        chosen = nearest(distance, group.dropped & asked & ~sample.hidden) or chosen
        passed = nearest(distance, asked & ~group.dropped & ~sample.hidden)
    chosen, passed = chosen[:NEAREST], passed[:NEAREST]
    texts = dict(read_texts(facts.reader, sample, sorted({*chosen, *passed})))
    shown["dropped"] = [document(sample, group.reason, i, texts[i]) for i in chosen]
    shown["passed"] = [document(sample, group.reason, i, texts[i]) for i in passed]
    return shown


def nearest(distance: Floats, among: Mask) -> list[int]:
    """Return the documents of a mask, the nearest to the line first; of equal ones the smallest id."""
    numbers = np.flatnonzero(among)
    ordered: list[int] = numbers[np.argsort(distance[numbers], kind="stable")][:NEAREST].tolist()
    return ordered


def border(sample: Sample, group: Group) -> float:
    """Return the threshold of a reason: of two the one beyond which more documents were dropped."""
    low, high = BOUND_OF[group.reason].edges(thresholds_of(sample, group.reason))
    if low is None or high is None:
        return float(low if high is None else high)  # type: ignore[arg-type]
    values = sample.figures[group.reason][group.dropped]
    return float(high if (values > high).sum() >= (values < low).sum() else low)


def is_out(values: Floats, line: float, sample: Sample, reason: str) -> Mask:
    """Return which values would be dropped with the threshold `line` in the place of the one it replaces."""
    low, high = BOUND_OF[reason].edges(thresholds_of(sample, reason))
    beyond = np.zeros(len(values), bool)
    if low is not None:
        beyond |= values < (line if high is None or (line < high and abs(line - low) < abs(line - high)) else low)
    if high is not None:
        beyond |= values > (line if low is None or abs(line - high) <= abs(line - low) else high)
    return beyond


def figure_text(figure: Figure, value: float) -> str:
    """Return a value of a figure as people read it."""
    return share(value) if figure.is_share else number(value) if figure.is_count else f"{value:.3g}"


def exact_text(figure: Figure, value: float) -> str:
    """Return the figure of one document, with enough digits to tell it from the line; nothing where it has none."""
    if np.isnan(value):
        return ""
    return f"{100 * value:.2f}%" if figure.is_share else number(value) if figure.is_count else f"{value:.2f}"


def chart(facts: Facts, group: Group, figure: Figure, asked: Mask, line: float) -> Markup:
    """Return bytes of text by the figure, with the threshold."""
    sample = facts.samples[group.source]
    of_measured = asked.sum() / max(1, reached(sample, group.reason).sum())
    values, weights = sample.figures[group.reason][asked], sample.sizes[asked] / (sample.share * of_measured)
    log = figure.is_count and line >= 10
    low, high = span_of(np.append(values, line), log)
    low, high = min(low, line * 0.98 if not log else line / 1.3), max(high, line * 1.02 if not log else line * 1.3)
    if figure.is_share:
        low = max(0.0, low)
    edges = edges_of(low, high, log, 48, line)
    heights, _ = np.histogram(np.clip(values, low, high), edges, weights=weights)
    middles = (edges[1:] + edges[:-1]) / 2
    hot = is_out(middles, line, sample, group.reason).tolist()
    top = float(heights.max()) or 1.0
    axes = Axes(low, high, 0, top * 1.24, log)
    levels = round_ticks(top, 2)
    below = bool(is_out(np.array([np.nextafter(line, -np.inf)]), line, sample, group.reason)[0])
    sides = (("dropped", LEFT, "hot"), ("passed", RIGHT, ""))
    if not below:
        sides = (("passed", LEFT, ""), ("dropped", RIGHT, "hot"))
    room = {LEFT: axes.x(line) > 0.15, RIGHT: axes.x(line) < 0.8}  # for a word, also on a phone
    shapes = [axes.grid(levels[1:]), *bars(axes, edges, heights, hot), axes.upright(line)]
    labels = [
        axes.ticks_below(horizontal_ticks(low, high, log, lambda value: figure_text(figure, value))),
        axes.ticks_left([(level, size(level) if level else "0") for level in levels]),
        *(axes.note(line, top * 1.14, word, side, kind) for word, side, kind in sides if room[side]),
    ]
    summary = (
        f"Bytes of text of {group.source} by {figure.title}: {counted(group.documents, 'document')} lie beyond the "
        f"threshold, {figure_text(figure, line)}"
    )
    return plot(shapes, labels, summary, 180)


def options(facts: Facts, group: Group, figure: Figure, asked: Mask, line: float) -> dict[str, Any]:
    """Return what other thresholds would drop, of documents and of text."""
    sample = facts.samples[group.source]
    values, sizes = sample.figures[group.reason][asked], sample.sizes[asked]
    of_measured = asked.sum() / max(1, reached(sample, group.reason).sum())
    rows = []
    for other in others(figure, line):
        out = is_out(values, other, sample, group.reason)
        rows.append(
            {
                "value": figure_text(figure, other),
                "now": other == line,
                "documents": number(out.sum() / sample.share / of_measured),
                "text": share(sizes[out].sum() / sample.share / of_measured, facts.accounts[group.source].read_bytes),
            }
        )
    _, high = BOUND_OF[group.reason].edges(thresholds_of(sample, group.reason))
    bound = BOUND_OF[group.reason]
    return {"name": bound.high if line == high else bound.low, "rows": rows}


def others(figure: Figure, line: float) -> list[float]:
    """Return thresholds around one, itself among them."""
    if figure.is_count:
        steps = (-2, -1, 0, 1, 2)
        around = [line + step for step in steps] if line < 10 else [round(line * f) for f in (0.5, 0.75, 1, 1.5, 2)]
        return sorted({float(value) for value in around if value >= 1} | {line})
    if figure.is_share and line >= 0.25:
        around = [round(line + step, 6) for step in (-0.1, -0.05, 0, 0.05, 0.1)]
        return sorted({value for value in around if 0 < value <= 1} | {line})
    factors = (0.5, 0.75, 1, 1.5, 2) if figure.is_share else (0.8, 0.9, 1, 1.1, 1.2)
    return sorted({round(line * factor, 6) for factor in factors} | {line})


def document(sample: Sample, reason: str, i: int, text: str) -> dict[str, Any]:
    """Return a document with its figure, and with the evidence marked."""
    figure, text = FIGURES.get(reason), as_reached(sample, reason, text)
    spans = evidence(reason, text, thresholds_of(sample, reason))
    value = exact_text(figure, float(sample.figures[reason][i])) if figure and reason in sample.figures else ""
    later = sample.fate[i] if sample.fate[i] not in ("", reason) else ""
    return {
        "title": title_of(text),
        "value": value,
        "meta": f"{sample.files[i]} row {sample.file_row[i]} · {number(int(sample.chars[i]))} characters"
        + (f" · dropped later: {later}" if later else ""),
        "text": marked(text, spans) if spans else clipped(text),
        "anchor": "",
    }
