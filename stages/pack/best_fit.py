"""Best-fit packing: documents whole in windows of a given length, for questions and answers.

Documents are placed longest first, each into the open window with the least room that still holds it (best-fit
decreasing; Ding et al. 2024, "Fewer Truncations Improve Language Modeling", do so for the pieces of long documents).
One longer than a window fills windows of its own and shares its last. What stays empty is padding that belongs to no
document.
"""

from __future__ import annotations

import numpy as np


def best_fit(counts: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Where documents of `counts` tokens (n,) go: (their order (n,), start of each in that order (n,), tokens in all).

    The order of windows follows the given order of documents: a window stands where its first document stood. One
    token of padding follows the last window, so that a reader which predicts the next token reads every window.
    """
    if not len(counts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    chains: list[list[int]] = []  # documents of each run of windows, which only the last shares
    used: list[int] = []  # tokens in a run
    open_by_room: list[list[int]] = [[] for _ in range(window + 1)]
    rooms = 0  # bit r set: some run has room r
    for document in np.argsort(-counts, kind="stable").tolist():
        size = int(counts[document])
        fitting = rooms >> size if size <= window else 0
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            run = open_by_room[room].pop()
            if not open_by_room[room]:
                rooms &= ~(1 << room)
            chains[run].append(document)
            used[run] += size
        else:
            run = len(chains)
            chains.append([document])
            used.append(size)
        left = -used[run] % window
        if left:
            open_by_room[left].append(run)
            rooms |= 1 << left
    # Within a run the documents keep their order, but for the long one that it opens with.
    chains = [[chain[0], *sorted(chain[1:])] if counts[chain[0]] > window else sorted(chain) for chain in chains]
    lengths = [-(-n // window) * window for n in used]
    order, starts, at = [], [], 0
    for run in sorted(range(len(chains)), key=lambda r: min(chains[r])):
        here = at
        for document in chains[run]:
            order.append(document)
            starts.append(here)
            here += int(counts[document])
        at += lengths[run]
    return np.array(order), np.array(starts), at + 1
