"""What each source is made of: its lengths, the shape of its words, and documents to read."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.facts import Facts
from pipeline.report.histograms import Floats, histogram, lengths, shares
from pipeline.report.markup import LONG_TEXT, clipped, counted, decimal, escape, number, share, short, title_of
from stages.review.account import Account
from stages.review.sample import Sample, read_texts

IN_FULL = 12  # sources whose sections are open
PLACES = ((0.1, "10th percentile"), (0.5, "median"), (0.9, "90th percentile"), (1.0, "longest"))
WORDS, MEAN, LETTERS, LINES = (
    "gopher_short_doc",
    "gopher_mean_word_length",
    "gopher_alphabetic",
    "gopher_repeated_line_chars",
)  # figures of stages.review.figures, named by the reasons they belong to


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    ranked = sorted(facts.accounts, key=lambda name: (-facts.accounts[name].kept_bytes, name))
    sections = [section(facts, name) for name in facts.accounts]
    return {
        "lead": lead(facts, ranked),
        "rows": [row(facts.accounts[name], facts.samples[name]) for name in facts.accounts],
        "open": [each for each in sections if each["name"] in ranked[:IN_FULL]],
        "folded": [each for each in sections if each["name"] not in ranked[:IN_FULL]],
        "tokenized": any(account.tokens for account in facts.accounts.values()),
    }


def lengths_of(sample: Sample) -> Floats:
    """Return the length of each document that is kept: in tokens, or in characters before it is tokenized."""
    kept = sample.kept
    return (sample.tokens if sample.tokens.any() else sample.chars)[kept].astype(float)


def longest_share(values: Floats) -> float:
    """Return which share of all the longest hundredth of the documents holds."""
    ordered = np.sort(values)[::-1]
    return float(ordered[: max(1, len(ordered) // 100)].sum() / max(1.0, ordered.sum()))


def lead(facts: Facts, ranked: list[str]) -> Markup:
    """Return the answer in sentences, about the largest source."""
    first = ranked[0]
    account, values = facts.accounts[first], lengths_of(facts.samples[first])
    unit = "tokens" if account.tokens else "characters"
    text = Markup("")
    if len(ranked) > 1:
        whole = sum(each.kept_bytes for each in facts.accounts.values())
        text = Markup("<b>{}</b> has {} of the text. ").format(first, share(account.kept_bytes, whole))
    if not len(values):
        return text + escape("Nothing of it was kept.")
    return text + Markup(
        "Half of the documents of <b>{}</b> are shorter than {} {}, and the longest hundredth of them holds {} of its "
        "{}."
    ).format(first, number(float(np.median(values))), unit, share(longest_share(values)), unit)


def row(account: Account, sample: Sample) -> dict[str, Any]:
    """Return a source's row of the table."""
    values = lengths_of(sample)
    held_out = int((sample.held_out & sample.kept).sum() / sample.share)
    return {
        "account": account,
        "median": number(float(np.median(values))) if len(values) else "",
        "high": number(float(np.quantile(values, 0.95))) if len(values) else "",
        "longest": share(longest_share(values)) if len(values) else "",
        "held_out": number(held_out),
    }


def section(facts: Facts, name: str) -> dict[str, Any]:
    """Return a source's section: facts, histograms and texts."""
    sample, account = facts.samples[name], facts.accounts[name]
    kept = sample.kept
    charts: list[dict[str, Any]] = []
    for reason, title, more in (
        (WORDS, "Length", ", documents by words"),
        (MEAN, "Word length", ", mean of a document"),
        (LETTERS, "Words with a letter", ", share of a document’s words"),
        (LINES, "Repeated lines", ", share of a document’s characters"),
    ):
        values = sample.figures[reason][kept]
        values = values[~np.isnan(values)]
        summary = f"{title} of {counted(len(values), 'kept document')} of {name}"
        if not len(values):
            continue
        if reason == WORDS:
            chart = lengths(values, "words", summary)
        elif reason == MEAN:
            chart = histogram(values, "letters", summary, log=False, shown=lambda value: decimal(value, 1))
        else:
            chart = shares(values, summary)
        charts.append({"title": title, "more": more, "chart": chart, "n": len(values)})
    for score, of_each in sample.scores.items():
        values = of_each[kept & ~np.isnan(of_each)]
        if len(values):
            chart = shares(values, f"The score {score} of {counted(len(values), 'kept document')} of {name}")
            charts.append({"title": f"Score {score}", "more": ", of 100 %", "chart": chart, "n": len(values)})
    measured = max((chart["n"] for chart in charts), default=0)
    return {
        "name": name,
        "origin": facts.origins[name],
        "account": account,
        "rules": [rule for rule, _ in sample.rules],
        "charts": charts,
        "basis": basis(sample, measured),
        "documents": documents(facts, sample),
    }


def basis(sample: Sample, measured: int) -> str:
    """Return what the histograms of a source were made of."""
    kept = int(sample.kept.sum())
    if sample.whole and measured == kept:
        return f"Counted: all {number(kept)} kept documents."
    error = 100 / max(1, measured) ** 0.5
    return (
        f"Sampled: {number(measured)} of about {short(kept / sample.share)} kept documents, drawn by a hash of their "
        f"ids; a share is right within {error:.1f} points."
    )


def documents(facts: Facts, sample: Sample) -> list[dict[str, Any]]:
    """Return documents of four lengths, of those that are kept."""
    values = np.where(sample.tokens > 0, sample.tokens, sample.chars)
    unit = "tokens" if sample.tokens.any() else "characters"
    candidates = np.flatnonzero(sample.kept & ~sample.hidden)
    ordered = candidates[np.argsort(values[candidates], kind="stable")].tolist()
    if not ordered:
        return []
    chosen = {ordered[min(len(ordered) - 1, int(len(ordered) * place))]: label for place, label in PLACES}
    texts = dict(read_texts(facts.reader, sample, sorted(chosen)))
    return [
        {
            "title": title_of(texts[i]),
            "value": f"{label}, {number(int(values[i]))} {unit}",
            "meta": f"{sample.files[i]} row {sample.file_row[i]} · {sample.ids[i].hex()}",
            "text": clipped(texts[i], LONG_TEXT),
            "anchor": "",
        }
        for i, label in chosen.items()
    ]
