"""A mixture, solved before it is built: ratios, caps on repeats and a token budget in, exact counts out.

Ratios and caps are taken as the decimals people write, in exact arithmetic: a half is a half, and ties are ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from stages.base import DataError

FINEST = 9  # decimals of a percentage, at most, in a ratio that is proposed


def exact(number: float) -> Fraction:
    """The decimal that `number` is written as: 0.1 is one tenth, not the float nearest to it."""
    return Fraction(repr(number))


def largest_remainder(total: int, ratios: Mapping[str, float]) -> dict[str, int]:
    """Split `total` tokens by `ratios` into whole numbers that sum to it exactly.

    Hamilton's method: everyone gets the floor of their share, what is left goes one each to the largest
    fractions; ties go to the source named first.
    """
    weights = {name: exact(ratio) for name, ratio in ratios.items()}
    scale = sum(weights.values())
    ideal = {name: total * weight / scale for name, weight in weights.items()}
    counts = {name: int(share) for name, share in ideal.items()}
    left = total - sum(counts.values())
    for name in sorted(ratios, key=lambda n: counts[n] - ideal[n])[:left]:  # a stable sort
        counts[name] += 1
    return counts


def capacity(available: int, max_epochs: float) -> int:
    """Training tokens a source can give when it is repeated at most `max_epochs` times."""
    return int(available * exact(max_epochs))


def solve(
    tokens: int, ratios: Mapping[str, float], available: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, int]:
    """Exact token counts per source, or a DataError that names what binds and what would work.

    `available[s]`: training tokens of source s; `caps[s]`: how often they may be repeated.
    """
    counts = largest_remainder(tokens, ratios)
    short = {s: n for s, n in counts.items() if n > capacity(available[s], caps[s])}
    if not short:
        return counts
    raise DataError(shortage(tokens, ratios, available, caps, short))


def shortage(
    tokens: int,
    ratios: Mapping[str, float],
    available: Mapping[str, int],
    caps: Mapping[str, float],
    short: Mapping[str, int],
) -> str:
    """Which source is short, by how much, and the mixes that would work; each is a line for the recipe."""
    room = {s: capacity(available[s], caps[s]) for s in ratios}
    lines = [
        f"source {s} is short by {wanted - room[s]:,} tokens: {ratios[s]:.2%} of {tokens:,} is "
        f"{wanted:,}, it has {available[s]:,} and max_epochs {caps[s]:g} allows {room[s]:,}"
        for s, wanted in short.items()
    ]
    ways = []
    weights = {s: exact(r) for s, r in ratios.items()}
    most = min(int(room[s] * sum(weights.values()) / weights[s]) for s in ratios)
    if most:
        ways.append(f"tokens: {most}")
    if all(available[s] for s in short):
        need = dict(caps) | {s: _enough(wanted, available[s]) for s, wanted in short.items()}
        ways.append("max_epochs: {" + ", ".join(f"{s}: {need[s]!r}".removesuffix(".0") for s in ratios) + "}")
    shares = nearest_ratios(tokens, ratios, room)
    if shares:
        ways.append("ratios: {" + ", ".join(f"{s}: {share}" for s, share in shares.items()) + "}")
    if ways:
        lines.append("what would work, any one of: " + "; ".join(ways))
    else:
        lines.append(f"all sources together hold {sum(room.values()):,} tokens; add text")
    return "; ".join(lines)


def _enough(wanted: int, available: int) -> float:
    """The least cap of two decimals with which `available` tokens give `wanted`."""
    return -(-wanted * 100 // available) / 100


def nearest_mix(tokens: int, ratios: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int] | None:
    """Short sources at their most, the others scaled up in proportion; None if all together hold too little."""
    if sum(room.values()) < tokens:
        return None
    fixed: dict[str, int] = {}
    while True:
        rest = {s: r for s, r in ratios.items() if s not in fixed}
        counts = largest_remainder(tokens - sum(fixed.values()), rest) if rest else {}
        over = [s for s, n in counts.items() if n > room[s]]
        if not over:
            return {**fixed, **counts}
        fixed.update({s: room[s] for s in over})


def nearest_ratios(tokens: int, ratios: Mapping[str, float], room: Mapping[str, int]) -> dict[str, str] | None:
    """`nearest_mix` as percentages that sum to 100 and fit when they are fed back, with few decimals."""
    mix = nearest_mix(tokens, ratios, room) or {}
    names = [s for s in ratios if mix.get(s)]
    for decimals in range(2, FINEST + 1) if mix else ():
        whole = 100 * 10**decimals
        parts = {s: mix[s] * whole // tokens for s in names}
        # What rounding down leaves goes to those with most room: a source at its limit must not be rounded up.
        roomy = sorted(names, key=lambda s: mix[s] - room[s])
        for s in roomy[: whole - sum(parts.values())]:
            parts[s] += 1
        shares = {s: f"{part // 10**decimals}.{part % 10**decimals:0{decimals}d}%" for s, part in parts.items()}
        counts = largest_remainder(tokens, {s: float(share[:-1]) / 100 for s, share in shares.items()})
        if all(parts.values()) and all(counts[s] <= room[s] for s in names):
            return shares
    return None
