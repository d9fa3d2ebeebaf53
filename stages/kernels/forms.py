"""Texts as they are compared, compiled: `stages.comparable` says what that form is, and has the readable one.

A text is read as pieces: an entity, or a character with the marks behind it that NFKC may join to it. Most pieces stay
as they are, and are copied in runs. What another one becomes is asked of Python once and remembered by its bytes.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.comparable import comparable, lead_and_form, meaning, patterns
from stages.kernels.entities import AMPERSAND, entity_end, skip_plain
from stages.kernels.jit import compiled, copy, get, int64, uint64
from stages.kernels.text_columns import utf8_views
from stages.kernels.unicode import CHANGES, JOINS, LIMIT, classes, nfkc_order
from stages.kernels.utf8 import FIRST_IGNORED, LAST_IGNORED, MIX, RETURN, decode, flags_of, is_nothing, is_same

BLANK = 0x20
LONGEST_PIECE = 256  # bytes of a piece that is remembered
MOST_PIECES = 1 << 14
UNKNOWN, NO_ROOM, TO_UNDO = -1, -2, -3
PIECES, USED = 0, 1  # counters of the memory: pieces in it, bytes of the pool in use


@compiled
def needs_check(data: Any, i: int, b: int, order: Any) -> bool:
    """Return whether the text [i, b) may have another comparable form: the quick check of Unicode's annex 15."""
    last = 0
    while True:
        at, i = i, skip_plain(data, i, b)
        if i == b:
            return False
        if i > at:
            last = 0
        if get(data, i) == AMPERSAND:
            if entity_end(data, i, b)[1]:
                return True
            last = 0
            i += 1
            continue
        c, width = decode(data, i)
        now = get(order, c) if c < LIMIT else CHANGES * (FIRST_IGNORED <= c <= LAST_IGNORED)
        if now == CHANGES or (now and now < last):
            return True
        last = now
        i += width


@compiled
def find_piece(data: Any, a: int, b: int, memory: Any) -> int:
    """Return the number of the piece [a, b) in the memory, where it is entered if it is new; NO_ROOM if it is full."""
    slots, spans, pool, counters = memory
    h = uint64(b - a)
    for k in range(a, b):
        h = (h ^ uint64(get(data, k))) * MIX
    at = int64((h ^ (h >> uint64(32))) & uint64(len(slots) - 1))
    while slots[at] >= 0:
        piece = int64(slots[at])
        if is_same(data, a, b, pool, spans[piece, 0], spans[piece, 1]):
            return piece
        at = (at + 1) & (len(slots) - 1)
    piece, used = counters[PIECES], counters[USED]
    if piece == len(spans) or used + b - a > len(pool) or b - a > LONGEST_PIECE:
        return NO_ROOM
    copy(pool, used, data, a, b - a)
    spans[piece, 0], spans[piece, 1], spans[piece, 2], spans[piece, 3] = used, used + b - a, 0, UNKNOWN
    counters[PIECES], counters[USED] = piece + 1, used + b - a
    slots[at] = piece
    return piece


@compiled
def put_meaning(
    pool: Any, i: int, b: int, before: int, order: Any, table: Any, out: Any, o: int
) -> tuple[int, int, bool]:
    """Put what an entity means, [i, b) of the pool, to `out` at `o`, without what is ignored.

    before: RETURN where the character before is one. Returns (end, `before`, whether NFKC is to be looked at).
    """
    changes = False
    while i < b:
        c, width = decode(pool, i)
        if before == RETURN or not is_nothing(c, table):
            copy(out, o, pool, i, width)
            o += width
            changes |= flags_of(c, order) > 0
        before = c
        i += width
    return o, before, changes


@compiled
def undo(data: Any, i: int, b: int, order: Any, table: Any, memory: Any, out: Any) -> tuple[int, bool]:
    """Copy [i, b) to `out` without what is ignored, entities undone.

    Returns (its end, UNKNOWN or NO_ROOM; whether NFKC is to be looked at). UNKNOWN: with pieces in it that were
    entered in the memory, where Python has to say what they mean.
    """
    _, spans, pool, _ = memory
    o, begin, before, changes, unknown = 0, i, 0, False, False
    while True:
        i = skip_plain(data, i, b)
        if i == b:
            break
        c, width, start, end = get(data, i), 1, 0, 0
        if c == AMPERSAND:
            start, end = entity_end(data, i, b)
        else:
            c, width = decode(data, i)
            if is_nothing(c, table):
                end = i + width
            changes |= flags_of(c, order) > 0
        if not end:
            i += width
            continue
        if i > begin:
            copy(out, o, data, begin, i - begin)
            o += i - begin
            before = get(data, i - 1)
        if c != AMPERSAND:
            if before == RETURN:
                copy(out, o, data, i, width)
                o += width
            before = c
        else:
            piece = find_piece(data, start, end, memory)
            if piece < 0:
                return NO_ROOM, changes
            first, last = spans[piece, 2], spans[piece, 3]
            if last < 0:
                unknown = True
            elif o + last - first + b - end > len(out):
                return NO_ROOM, changes
            else:
                o, before, more = put_meaning(pool, first, last, before, order, table, out, o)
                changes |= more
        begin = i = end
    copy(out, o, data, begin, b - begin)
    o += b - begin
    if o == 0:
        out[0], o = BLANK, 1
    return UNKNOWN if unknown else o, changes


@compiled
def normalize(data: Any, i: int, b: int, is_undone: bool, order: Any, table: Any, memory: Any, out: Any, o: int) -> int:
    """Copy [i, b) to `out` at `o`, letters and digits in NFKC; returns its end, UNKNOWN or NO_ROOM as `undo` does.

    Returns TO_UNDO where the text has an entity or what is ignored, and `is_undone` does not say that it may.
    """
    _, spans, pool, _ = memory
    begin, previous, unknown = i, i, False
    while i < b:
        c = get(data, i)
        if c < 128:
            start, i = i, skip_plain(data, i, b)
            if i == start:  # an ampersand
                if not is_undone and entity_end(data, i, b)[1]:
                    return TO_UNDO
                i += 1
            previous = i - 1
            continue
        c, width = decode(data, i)
        now = flags_of(c, order)
        if not now and (c < LIMIT or is_undone or not is_nothing(c, table)):
            previous = i
            i += width
            continue
        if not is_undone and is_nothing(c, table):
            return TO_UNDO
        start = previous if get(table, c) & JOINS else i
        stays, last = True, 0
        while True:
            stays = stays and now != CHANGES and now >= last
            last = now
            i += width
            if i == b or get(data, i) < 128:
                break
            c, width = decode(data, i)
            if not flags_of(c, table) & JOINS:
                break
            now = get(order, c)
        if stays:
            continue
        piece = find_piece(data, start, i, memory)
        if piece < 0:
            return NO_ROOM
        first, end = spans[piece, 2], spans[piece, 3]
        if end < 0:
            unknown = True
            continue
        size = start - begin + end - first
        if o + size + b - i > len(out):
            return NO_ROOM
        copy(out, o, data, begin, start - begin)
        o += size
        copy(out, o + first - end, pool, first, end - first)
        begin = i
    if o + b - begin > len(out):
        return NO_ROOM
    copy(out, o, data, begin, b - begin)
    return UNKNOWN if unknown else o + b - begin


@compiled
def fill_flags(data: Any, offsets: Any, order: Any, found: Any) -> None:
    """Set the flag of each text that `needs_check`."""
    for d in range(len(found)):
        found[d] = needs_check(data, get(offsets, d), get(offsets, d + 1), order)


def rows_to_check(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return the rows of a column whose text may have another comparable form."""
    data, offsets = utf8_views(texts)
    found = np.zeros(len(texts), np.bool_)
    fill_flags(data, offsets, nfkc_order(), found)
    return np.flatnonzero(found)


@compiled
def fill_forms(
    data: Any, offsets: Any, rows: Any, k: int, order: Any, table: Any, memory: Any, middle: Any, out: Any, ends: Any
) -> tuple[int, int]:
    """Put the forms of the texts rows[k], rows[k + 1], ... into `out`, and where each ends into `ends`[k + 1], ...

    Returns (where it stopped, why): the number of rows and 0, or UNKNOWN or NO_ROOM. Nothing is put of a text that is
    its own form.
    """
    while k < len(rows):
        a, b, o = get(offsets, rows[k]), get(offsets, rows[k] + 1), ends[k]
        end = normalize(data, a, b, False, order, table, memory, out, o)
        if end == TO_UNDO:
            end, changes = undo(data, a, b, order, table, memory, middle)
            if end >= 0 and changes:
                end = normalize(middle, 0, end, True, order, table, memory, out, o)
            elif end >= 0:
                if o + end > len(out):
                    return k, NO_ROOM
                copy(out, o, middle, 0, end)
                end += o
        if end < 0:
            return k, end
        k += 1
        ends[k] = o if is_same(data, a, b, out, o, end) else end
    return k, 0


class Memory:
    """What pieces become: arrays that the kernels look up, and enter new pieces in."""

    def __init__(self) -> None:
        self.slots = np.full(4 * MOST_PIECES, -1, np.int32)
        self.spans = np.zeros((MOST_PIECES, 4), np.int64)  # of the pool: [start, stop) of a piece, and of its form
        self.pool = np.zeros(64 * MOST_PIECES, np.uint8)
        self.counters = np.zeros(2, np.int64)
        self.learned = 0

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """Return what the kernels call `memory`."""
        return self.slots, self.spans, self.pool, self.counters

    def learn(self) -> bool:
        """Write down what the new pieces become. Returns whether there was room."""
        *_, apart = patterns()
        for piece in range(self.learned, int(self.counters[PIECES])):
            start, stop, *_ = self.spans[piece]
            written = self.pool[start:stop].tobytes().decode()
            form = (meaning(written[:-1]) if written.isascii() else lead_and_form(written, apart)).encode()
            used = int(self.counters[USED])
            if used + len(form) > len(self.pool):
                return False
            self.pool[used : used + len(form)] = np.frombuffer(form, np.uint8)
            self.spans[piece, 2:] = used, used + len(form)
            self.counters[USED] = used + len(form)
            self.learned = piece + 1
        return True

    def make_room(self) -> None:
        """Forget all pieces, if they fill much of the arrays or were not all learned."""
        pieces, used = self.counters.tolist()
        if self.learned == pieces and pieces < MOST_PIECES // 2 and used < len(self.pool) // 2:
            return
        self.slots[:] = -1
        self.counters[:] = 0
        self.learned = 0


class Memories(threading.local):
    """A memory for each thread: the kernels hold no lock."""

    def __init__(self) -> None:
        self.memory = Memory()


MEMORIES = Memories()


def other_forms(texts: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return the rows of a column whose text is compared in another form, and those forms."""
    rows = rows_to_check(texts)
    if not len(rows):
        return rows, pa.array([], pa.string())
    data, offsets = utf8_views(texts)
    sizes = (offsets[rows + 1] - offsets[rows]).astype(np.int64)
    memory = MEMORIES.memory
    out = np.empty(room_for(int(sizes.sum())), np.uint8)
    middle = np.empty(room_for(int(sizes.max())), np.uint8)
    ends = np.zeros(len(rows) + 1, np.int64)
    done = 0
    while done < len(rows):
        tables = nfkc_order(), classes(), memory.arrays()
        done, status = fill_forms(data, offsets, rows, done, *tables, middle, out, ends)
        if status == NO_ROOM or (status == UNKNOWN and not memory.learn()):
            text, used = texts[int(rows[done])].as_py(), int(ends[done])
            form = np.frombuffer(b"" if (form := comparable(text)) == text else form.encode(), np.uint8)
            left = room_for(int(sizes[done + 1 :].sum()))
            if used + len(form) + left > len(out):
                out = np.concatenate([out[:used], np.empty(2 * (len(form) + used) + left, np.uint8)])
            out[used : used + len(form)] = form
            done += 1
            ends[done] = used + len(form)
            memory.make_room()
    differs = np.diff(ends) > 0
    bounds = ends[np.append(True, differs)].astype(np.int32)
    forms = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(out[: ends[-1]]))
    return rows[differs], forms


def room_for(size: int) -> int:
    """Return how many bytes are set aside for the form of so many."""
    return size + size // 4 + 4096
