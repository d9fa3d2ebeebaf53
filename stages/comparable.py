"""Text as it is compared: HTML entities and format characters undone, letters and digits in NFKC.

Near-duplicates, decontamination and the rules that look at words see this form; what is written is the text itself.

* `&eacute;`, `&#233;` and `&amp;eacute;` are é. One that stands for white space is a blank, so that lines stay lines.
* Format characters (soft hyphen, joiners, marks of direction) and variation selectors are nothing. A zero width space
  stays: it parts words.
* Characters that stand for letters, digits or marks, and marks with what they stand on, are in NFKC: `é` is one
  character however it was written, `ﬁ` two. What holds none of these (a no-break space, an ellipsis) stays as it is.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from html.entities import html5
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.kernels.unicode import CHANGES, IGNORED_RANGE, is_ignored, joins_back, nfkc_order

ENTITY = re.compile(r"&(?:amp;)*(#[0-9]{1,10}|#[xX][0-9A-Fa-f]{1,8}|[A-Za-z][A-Za-z0-9]{1,31});")


def undo_entity(match: re.Match[str]) -> str:
    """Return the characters that an entity stands for, a blank for white space, or it as it is if it has no meaning."""
    return meaning(match[1])


@functools.lru_cache(4096)
def meaning(name: str) -> str:
    """Return what `undo_entity` makes of the entity with a name or number."""
    if name[0] != "#" and f"{name};" not in html5:
        return f"&{name};"
    meant = html.unescape(f"&{name};")
    return " " if not meant or meant.isspace() else meant


def character_class(points: Iterable[int]) -> str:
    """Return what a regular expression has between brackets for some code points."""
    ranges: list[list[int]] = []
    for point in sorted(points):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in ranges)


@functools.cache
def patterns() -> tuple[re.Pattern[str], re.Pattern[str], frozenset[str]]:
    """Return patterns of what is nothing and of what may take another form, and what such a form does not begin with.

    The first spares what follows a return, which would else begin one line with the line feed behind.
    """
    order = nfkc_order()
    changing = [*np.flatnonzero(order == CHANGES).tolist(), *IGNORED_RANGE]
    ignored = character_class(point for point in changing if is_ignored(chr(point)))
    # All beyond the first plane: `re` would look through their ranges one by one for every character.
    others = character_class(np.flatnonzero(order[:0x10000]).tolist()) + "\U00010000-\U0010ffff"
    same = map(chr, np.flatnonzero(order[:0x10000] == 0).tolist())
    apart = frozenset(c for c in same if not unicodedata.is_normalized("NFKC", c))
    return re.compile(f"[{ignored}](?<!\r[{ignored}])[{ignored}]*"), re.compile(f"[{others}]+"), apart


def comparable(text: str) -> str:
    """Return a text as it is compared. One of nothing but format characters is a blank."""
    form = ENTITY.sub(undo_entity, text) if "&" in text else text
    if form.isascii():
        return form
    ignored, others, apart = patterns()
    form = ignored.sub("", form)
    if unicodedata.is_normalized("NFKC", form):
        return form or " "
    pieces: list[str] = []
    done = 0
    for match in others.finditer(form):
        start, stop = match.span()
        if start > done and form[start - 1] not in apart:
            start -= 1
        pieces += (form[done:start], unicodedata.normalize("NFKC", form[start:stop]))
        done = stop
    return "".join([*pieces, form[done:]])


def comparable_texts(texts: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return a column of text as it is compared, and the rows in which it differs. A null stays one."""
    from stages.kernels.forms import other_forms

    rows, forms = other_forms(texts)
    return put_texts(texts, rows, forms), rows


def put_texts(texts: pa.Array, rows: npt.NDArray[np.int64], new: pa.Array) -> pa.Array:
    """Return a column with other texts in some rows, which are in order."""
    if not len(rows):
        return texts
    if len(rows) == len(texts):
        return new
    is_new = np.zeros(len(texts), bool)
    is_new[rows] = True
    return pc.replace_with_mask(texts, pa.array(is_new), new)


def source_ranges(text: str, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return for ranges [start, stop) of `comparable(text)` where in the text they come from; all in bytes of UTF-8.

    A range that begins or ends within what one piece of the text became has the whole piece.
    """
    sizes = list(piece_sizes(text))
    text_ends = [0, *accumulate(size for size, _ in sizes)]
    form_ends = np.array([0, *accumulate(size for _, size in sizes)])
    return [
        (
            text_ends[int(np.searchsorted(form_ends, start, side="right")) - 1],
            text_ends[int(np.searchsorted(form_ends, stop, side="left"))],
        )
        for start, stop in ranges
    ]


def piece_sizes(text: str) -> Iterator[tuple[int, int]]:
    """Yield the bytes of each piece of a text, and of what it becomes in `comparable`: no piece changes another's form.

    The text is one of which something is left.
    """
    *_, apart = patterns()
    size, piece = 0, ""
    for written, meant in [*units(text), ("", "\n")]:
        if size and piece and meant and not joins_back(meant[0]):
            yield size, len(lead_and_form(piece, apart).encode())
            size, piece = 0, ""
        size += len(written.encode())
        piece += meant


def lead_and_form(piece: str, apart: frozenset[str]) -> str:
    """Return what a piece of text becomes."""
    lead = piece[0] if piece[0] in apart else ""
    return lead + unicodedata.normalize("NFKC", piece[len(lead) :])


def units(text: str) -> Iterator[tuple[str, str]]:
    """Yield what stands for itself in a text, an entity or a character, and what it means before NFKC."""
    before, done = "", 0
    for match in [*ENTITY.finditer(text), None]:
        for written in text[done : match.start() if match else len(text)]:
            meant = "" if is_ignored(written) and before != "\r" else written
            before = written
            yield written, meant
        if match:
            meant, done = "", match.end()
            for c in undo_entity(match):
                meant += "" if is_ignored(c) and before != "\r" else c
                before = c
            yield match[0], meant
