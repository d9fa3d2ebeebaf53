"""What a proposed recipe takes of each source: rules that leave most of it, its share, a budget; from samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from stages.filter.apply import apply_to_column
from stages.filter.parse import parse_rules
from stages.proposal.scale import PASSES

PROSE = ("gopher_repetition", "gopher_quality")
MOST_DROPPED = 0.3  # of a sample, by rules that suit it
SAMPLE = 200  # documents
LONGEST = 50_000  # characters of one that are looked at
FLATTER = 2.0  # temperature of the mixture: shares go with the square root of what a source has
SPARE = 1.5  # times what is needed, that a budget takes: held-out documents, duplicates, and the doubt of a sample

LARGE = 1e9  # bytes of text, that take half a minute
LEAST_BUDGET = 5_000_000  # max_tokens: what a tokenizer is trained on


def rules_for(texts: Sequence[str]) -> tuple[list[Any], str]:
    """Return the rules for prose if they leave most of a sample, else those of them that do, and why.

    texts: one at least.
    """
    step = max(1, len(texts) // SAMPLE)
    some = pa.array([text[:LONGEST] for text in texts[::step][:SAMPLE]])
    for rules in (list(PROSE), [PROSE[0]]):
        reasons, _ = apply_to_column(some, None, parse_rules(rules))
        dropped = sum(map(bool, reasons)) / len(some)
        if dropped <= MOST_DROPPED:
            return rules, f"they drop {dropped:.0%} of a sample"
    return [], f"none: those for prose would drop {dropped:.0%} of a sample"


def shares(tokens: Mapping[str, int], total: int) -> dict[str, float]:
    """Return the share of each source in `total` tokens, in whole per cent, by the square root of what it has.

    None is taken more than PASSES times, as far as the others can stand in; what is left to nothing is left out.
    """
    share = {name: n ** (1 / FLATTER) for name, n in tokens.items() if n > 0}
    bound: dict[str, float] = {}
    while True:
        free = {name: weight for name, weight in share.items() if name not in bound}
        left = 1 - sum(bound.values())
        weight = sum(free.values())
        over = [name for name in free if left * free[name] / weight * total > PASSES * tokens[name]]
        if not over or len(over) == len(free):
            break
        bound |= {name: PASSES * tokens[name] / total for name in over}
    exact = bound | {name: left * w / weight for name, w in free.items()}
    return whole_per_cent(exact)


def whole_per_cent(exact: Mapping[str, float]) -> dict[str, float]:
    """Round shares down to tenths of a per cent, and give what is left to the largest; they sum to 1."""
    rounded = {name: math.floor(1000 * share) for name, share in exact.items()}
    rounded = {name: share for name, share in rounded.items() if share} or {max(exact, key=lambda n: exact[n]): 0}
    rounded[max(rounded, key=lambda name: rounded[name])] += 1000 - sum(rounded.values())
    return {name: share / 1000 for name, share in rounded.items()}


def budget(text: float, tokens: int, needed: float, remote: bool) -> int | None:
    """Return `max_tokens` for a source that has far more than is needed, None for others. It counts bytes / 4.

    text, tokens: what the source has. A small local one is read whole in seconds.
    """
    if tokens <= 2 * SPARE * needed or (not remote and text < LARGE):
        return None
    wanted = max(LEAST_BUDGET, int(SPARE * needed * text / tokens / 4))
    digits = max(0, len(str(wanted)) - 2)
    return math.ceil(wanted / 10**digits) * 10**digits if 4 * wanted < text else None
