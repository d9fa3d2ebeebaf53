"""Text and figures as the pages show them. `escape` is the one way for a text into a page."""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from markupsafe import Markup

BIDI = {
    0x061C: "ALM",
    0x200E: "LRM",
    0x200F: "RLM",
    **dict(zip(range(0x202A, 0x202F), ("LRE", "RLE", "PDF", "LRO", "RLO"), strict=True)),
    **dict(zip(range(0x2066, 0x206A), ("LRI", "RLI", "FSI", "PDI"), strict=True)),
}
# Controls but tab and line feed, line separators, marks of direction, halves of pairs, what is no character, and the
# plane of tags, in which text can be hidden.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff\ufeff"
    "\U000e0000-\U000e007f]"
)
MINUS, NARROW = "−", "\u00a0"
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
SHORT_TEXT, LONG_TEXT = 1_200, 1_600  # characters of a document that a page shows


def escape(value: Any) -> Markup:
    """Return a value as text of a page: markup is harmless, and what a reader would not see is written out."""
    if hasattr(value, "__html__"):
        return Markup(value.__html__())
    return Markup(UNSEEN.sub(shown, html.escape(str(value), quote=True)))


def shown(match: re.Match[str]) -> str:
    """Return the picture or the name of a character that would not be seen, set apart from the text."""
    return f'<span class="unseen">{name_of(match)}</span>'


def name_of(match: re.Match[str]) -> str:
    """Return the picture or the name of a character that would not be seen."""
    point = ord(match[0])
    if point < 0x20:
        return chr(0x2400 + point)
    return "␡" if point == 0x7F else f"⟨{BIDI.get(point, f'{point:02X}')}⟩"


def plain(text: str) -> str:
    """Return a text for the script of a page, which never reads it as markup: what would not be seen is named."""
    return UNSEEN.sub(name_of, text)


def attribute(value: str) -> str:
    """Return a text for an attribute: as `escape`, without elements."""
    return html.escape(plain(value), quote=True)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def number(value: float) -> str:
    """Return a count: 3,359."""
    return f"{value:,.0f}".replace("-", MINUS)


def short(value: float) -> str:
    """Return a count in three digits: 2.50 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{three_digits(value / size)}{NARROW}{unit}"
    return f"{three_digits(value / 1e3)}{NARROW}k" if value >= 1e4 else number(value)


def size(value: float) -> str:
    """Return bytes: 9.85 MB."""
    for unit_size, unit in SIZES:
        if value >= unit_size:
            return f"{three_digits(value / unit_size)}{NARROW}{unit}"
    return f"{value / 1e3:,.0f}{NARROW}kB" if value >= 1e3 else f"{value:,.0f}{NARROW}bytes"


def three_digits(value: float) -> str:
    """Return a number below a thousand in three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def share(part: float, whole: float = 1.0) -> str:
    """Return a share: 27%, 2.1%, 0.56%, <0.01%."""
    percent = 100 * part / whole if whole else 0.0
    if percent == 0:
        return "0%"
    if abs(percent) < 0.01:
        return "<0.01%"
    digits = 0 if abs(percent) >= 9.95 else 1 if abs(percent) >= 0.995 else 2
    shown = f"{percent:.{digits}f}"
    return f"{MINUS if shown.startswith('-') else ''}{shown.lstrip('-')}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits behind the point; nothing where there is none."""
    return "" if value is None or value != value else f"{value:.{digits}f}".replace("-", MINUS)


def counted(n: int, one: str, many: str = "") -> str:
    """Return `1 document`, `2 documents`."""
    return f"{number(n)} {one if n == 1 else many or one + 's'}"


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


# ---------------------------------------------------------------------------------------------------------------------
# Texts of documents


def title_of(text: str) -> str:
    """Return the first line of a text that is not blank, at most 160 characters of it."""
    for line in text[:2000].splitlines():
        if line.strip():
            return line.strip()[:160]
    return "(no text)"


def clipped(text: str, most: int = SHORT_TEXT) -> Markup:
    """Return the beginning of a text, and how much is left out."""
    return escape(text[:most]) + omitted(len(text) - most, "more")


def omitted(characters: int, where: str) -> Markup:
    """Return a line that says how many characters are left out."""
    if characters <= 0:
        return Markup("")
    line = Markup('<span class="omitted">… {} characters {}</span>').format(number(characters), where)
    return Markup("\n") + line if where == "more" else line + Markup("\n")


def marked(text: str, spans: Iterable[tuple[int, int]], most: int = SHORT_TEXT) -> Markup:
    """Return the stretch of a text of at most `most` characters that has most of `spans` in it, with these marked."""
    spans = [(start, stop) for start, stop in spans if stop > start]
    first = best_start(text, spans, most)
    last = min(len(text), first + most)
    pieces = [omitted(first, "before")]
    done = first
    for start, stop in spans:
        start, stop = max(start, done), min(stop, last)
        if stop > start:
            pieces += [escape(text[done:start]), Markup("<mark>") + escape(text[start:stop]) + Markup("</mark>")]
            done = stop
    return Markup("").join([*pieces, escape(text[done:last]), omitted(len(text) - last, "more")])


def best_start(text: str, spans: list[tuple[int, int]], most: int) -> int:
    """Return where the stretch begins: at the first line that gives most marked characters, 0 where it does as well."""
    if len(text) <= most or not spans:
        return 0
    weights = [0, *accumulate(stop - start for start, stop in spans)]
    starts = [start for start, _ in spans]

    def marked_from(first: int) -> int:
        low, high = (bisect_left(starts, place) for place in (first, first + most))
        return weights[high] - weights[low]

    lines = [0]
    for start, _ in spans:
        begin = text.rfind("\n", 0, start) + 1
        lines.append(begin if start - begin < most // 4 else start)
    best = max(sorted(set(lines)), key=marked_from)
    return 0 if marked_from(0) >= 0.8 * marked_from(best) else best
