"""Best-fit packing: documents whole in windows of a given length, for questions and answers.

Documents are placed longest first, each into the open window with the least room that still holds it (best-fit
decreasing; Ding et al. 2024, "Fewer Truncations Improve Language Modeling", do so for the pieces of long documents).
One longer than a window fills windows of its own and shares its last. What stays empty is padding that belongs to no
document.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def best_fit(counts: Int64s, window: int) -> tuple[Int64s, Int64s, int]:
    """Return (order of documents (n,), start of each in that order (n,), tokens in all), for `counts` tokens (n,).

    The order of windows follows the given order of documents: a window stands where its first document stood. One
    token of padding follows the last window, so that a reader which predicts the next token reads every window.
    """
    if not len(counts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    chains: list[list[int]] = []  # documents of each run of windows, which only the last shares
    used: list[int] = []  # tokens in a run
    runs_by_room: list[list[int]] = [[] for _ in range(window + 1)]  # those that are not full
    rooms = 0  # bit r set: some run has room r
    for document in np.argsort(-counts, kind="stable").tolist():
        size = int(counts[document])
        fitting = rooms >> size if size <= window else 0
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            run = runs_by_room[room].pop()
            if not runs_by_room[room]:
                rooms &= ~(1 << room)
            chains[run].append(document)
            used[run] += size
        else:
            run = len(chains)
            chains.append([document])
            used.append(size)
        left = -used[run] % window
        if left:
            runs_by_room[left].append(run)
            rooms |= 1 << left
    # Within a run the documents keep their order, but for the long one that it opens with.
    chains = [[chain[0], *sorted(chain[1:])] if counts[chain[0]] > window else sorted(chain) for chain in chains]
    lengths = [-(-n // window) * window for n in used]
    order, starts, run_start = [], [], 0
    for run in sorted(range(len(chains)), key=lambda r: min(chains[r])):
        start = run_start
        for document in chains[run]:
            order.append(document)
            starts.append(start)
            start += int(counts[document])
        run_start += lengths[run]
    return np.array(order), np.array(starts), run_start + 1
