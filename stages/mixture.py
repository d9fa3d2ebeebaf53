"""A mixture, solved before it is built: ratios, caps on repeats and a token budget in, exact counts out."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import DataError


def largest_remainder(total: int, ratios: Mapping[str, float]) -> dict[str, int]:
    """Split `total` tokens by `ratios` into whole numbers that sum to it exactly.

    Hamilton's method: everyone gets the floor of their share, what is left goes one each to the largest
    fractions; ties go to the source named first.
    """
    scale = sum(ratios.values())
    ideal = {name: total * ratio / scale for name, ratio in ratios.items()}
    counts = {name: int(share) for name, share in ideal.items()}
    left = total - sum(counts.values())
    names = list(ratios)
    by_fraction = sorted(names, key=lambda n: (counts[n] - ideal[n], names.index(n)))
    for i in range(left):
        counts[by_fraction[i % len(names)]] += 1
    return counts


def capacity(available: int, max_epochs: float) -> int:
    """Training tokens a source can give when it is repeated at most `max_epochs` times."""
    return int(available * max_epochs)


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
    """Which source is short, by how much, and the mixes that would work."""
    lines = []
    for source, wanted in short.items():
        have = capacity(available[source], caps[source])
        lines.append(
            f"source {source} is short by {wanted - have:,} tokens: {ratios[source]:.2%} of {tokens:,} is "
            f"{wanted:,}, it has {available[source]:,} and max_epochs {caps[source]:g} allows {have:,}"
        )
    room = {s: capacity(available[s], caps[s]) for s in ratios}
    ways = []
    most = min(int(room[s] / ratios[s]) for s in ratios)
    if most > 0:
        ways.append(f"tokens: {most}")
    if all(available[s] for s in short):
        need = {s: wanted / available[s] for s, wanted in short.items()}
        ways.append("max_epochs: {" + ", ".join(f"{s}: {_up(n)}" for s, n in need.items()) + "}")
    nearest = nearest_mix(tokens, ratios, room)
    if nearest:
        shares = ", ".join(f"{s}: {nearest[s] / tokens:.2%}" for s in ratios if nearest[s])
        ways.append("ratios: {" + shares + "}")
    if ways:
        lines.append("what would work, any one of: " + "; ".join(ways))
    else:
        lines.append(f"all sources together hold {sum(room.values()):,} tokens; add text")
    return "; ".join(lines)


def _up(epochs: float) -> float:
    """Round up to two decimals, so that the figure printed is enough."""
    return -(-round(epochs * 10_000) // 100) / 100 + 0.01


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
