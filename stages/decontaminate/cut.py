"""The cut: what is left of a text when stretches of it are taken out."""

from __future__ import annotations

from collections.abc import Iterable

MARGIN = 200  # characters cut on each side of a stretch; a piece that is shorter goes too
MOST_CUTS = 10  # more than so many, and the document goes


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges [start, stop) in order, those that overlap or touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            last_start, last_stop = merged.pop()
            merged.append((last_start, max(last_stop, stop)))
        else:
            merged.append((start, stop))
    return merged


def character_offsets(data: bytes, byte_offsets: Iterable[int]) -> dict[int, int]:
    """Return by byte offset into UTF-8 how many characters stand before it."""
    characters = {0: 0}
    before = 0
    for offset in sorted(set(byte_offsets)):
        characters[offset] = characters[before] + len(data[before:offset].decode())
        before = offset
    return characters


def cut_out(text: str, stretches: Iterable[tuple[int, int]]) -> str:
    """Return what is left of a text without some stretches (bytes of its UTF-8), as paragraphs; "" where it must go.

    As GPT-3 (Brown et al. 2020, appendix C): MARGIN characters on each side go too, then pieces shorter than that, and
    a text with more than MOST_CUTS cuts altogether. Pieces stay one document: a document id stands for one text.
    """
    stretches = list(stretches)
    characters = character_offsets(text.encode(), [offset for stretch in stretches for offset in stretch])
    cuts = merge_ranges((max(0, characters[start] - MARGIN), characters[stop] + MARGIN) for start, stop in stretches)
    if len(cuts) > MOST_CUTS:
        return ""
    pieces = []
    piece_start = 0
    for start, stop in cuts:
        pieces.append(text[piece_start:start])
        piece_start = stop
    pieces.append(text[piece_start:])
    return "\n\n".join(piece for piece in pieces if len(piece) >= MARGIN)
