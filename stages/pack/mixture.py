"""A mixture, solved before it is built: shares, caps on repeats and a token budget in, exact counts out.

Ratios and caps are taken as the decimals people write, in exact arithmetic: a half is a half, and ties are ties.
A root, which temperatures need, is computed in decimal arithmetic whose every step is correctly rounded: the
floating-point powers of two platforms may differ in the last bit, and so by a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from fractions import Fraction
from typing import Protocol

from stages.errors import DataError

FINEST = 9  # decimals of a percentage, at most, in a ratio that is proposed
DIGITS = 50  # of a root


class Mixture(Protocol):
    """What is read here of a recipe's mixture; see `stages.pack.config.Mixture`."""

    @property
    def tokens(self) -> int:
        """Training tokens in all."""

    @property
    def sources(self) -> list[str]:
        """Names, in the order in which ties are decided."""

    @property
    def ratios(self) -> dict[str, float]:
        """Share by source, or empty."""

    @property
    def temperature(self) -> float | None:
        """Of shares by n ** (1 / temperature), or None."""

    @property
    def counts(self) -> dict[str, int]:
        """Tokens by source, or empty."""

    @property
    def seen(self) -> Mapping[str, str]:
        """any, prefer or exclude, by source."""

    def cap(self, source: str) -> float:
        """How often a source may be repeated."""


def exact(number: float | Fraction) -> Fraction:
    """Return the decimal that `number` is written as: 0.1 is one tenth, not the float nearest to it."""
    return number if isinstance(number, Fraction) else Fraction(repr(number))


def root(n: int, temperature: float) -> Fraction:
    """Return n ** (1 / temperature) to DIGITS digits, the same on every machine; 0 for 0 and exactly n for 1.

    `decimal` rounds ln, exp and division correctly, to the digits asked for; its power is not promised to be.
    """
    if n == 0 or temperature == 1:
        return Fraction(n)
    context = Context(prec=DIGITS)
    return Fraction(context.exp(context.divide(context.ln(Decimal(n)), Decimal(repr(temperature)))))


def weights(mixture: Mixture, available: Mapping[str, int]) -> dict[str, Fraction]:
    """Return what the shares of the mixture are in proportion to, by source, in the mixture's order.

    Temperature: T5's temperature-scaled mixing, n ** (1 / T) over the sum of all
    (Raffel et al. 2020, section 3.5.2; Arivazhagan et al. 2019, section 4.2, with T = 5 for languages).
    """
    if mixture.temperature is not None:
        return {s: root(available[s], mixture.temperature) for s in mixture.sources}
    given: Mapping[str, float] = mixture.ratios or mixture.counts
    return {s: exact(given[s]) for s in mixture.sources}


def shares_asked(mixture: Mixture, available: Mapping[str, int]) -> dict[str, float]:
    """Return the share of the tokens that the recipe asks of each source; `ratios` as they are written."""
    if mixture.ratios:
        return {s: mixture.ratios[s] for s in mixture.sources}
    by_source = weights(mixture, available)
    total = sum(by_source.values())
    return {s: float(weight / total) if total else 0.0 for s, weight in by_source.items()}


def largest_remainder(total: int, ratios: Mapping[str, float | Fraction]) -> dict[str, int]:
    """Split `total` tokens by `ratios` into whole numbers that sum to it exactly.

    Hamilton's method: everyone gets the floor of their share, what is left goes one each to the largest
    fractions; ties go to the source named first.
    """
    exact_ratios = {name: exact(ratio) for name, ratio in ratios.items()}
    scale = sum(exact_ratios.values())
    ideal = {name: total * ratio / scale for name, ratio in exact_ratios.items()}
    counts = {name: int(share) for name, share in ideal.items()}
    left = total - sum(counts.values())
    for name in sorted(ratios, key=lambda n: counts[n] - ideal[n])[:left]:  # a stable sort
        counts[name] += 1
    return counts


def capacity(available: int, max_epochs: float) -> int:
    """Return the training tokens that a source can give when it is repeated at most `max_epochs` times."""
    return int(available * exact(max_epochs))


def rooms(mixture: Mixture, available: Mapping[str, int]) -> dict[str, int]:
    """Return the training tokens that each source can give to the mixture."""
    return {s: capacity(available[s], mixture.cap(s)) for s in mixture.sources}


def solve(mixture: Mixture, available: Mapping[str, int]) -> dict[str, int]:
    """Return exact token counts per source. Raises DataError that names what binds and what would work.

    `available[s]`: training tokens of source s that the mixture may take, before repeats; for `seen: exclude`
    less what pretrain takes.
    """
    shares = weights(mixture, available)
    if not any(shares.values()):
        raise DataError(f"{', '.join(mixture.sources)} hold no training tokens at all; add text")
    wanted = largest_remainder(mixture.tokens, shares)
    room = rooms(mixture, available)
    short = {s: n for s, n in wanted.items() if n > room[s]}
    if not short:
        return wanted
    lines = [shortage(mixture, available, s, n - room[s], n) for s, n in short.items()]
    ways = proposals(mixture, available, short)
    total = f"all sources together hold {sum(room.values()):,} tokens; add text"
    lines.append("what would work, any one of: " + "; ".join(ways) if ways else total)
    raise DataError("; ".join(lines))


def shortage(mixture: Mixture, available: Mapping[str, int], source: str, lack: int, wanted: int) -> str:
    """Say why `source` cannot give the `wanted` tokens: what it has, and what the cap makes of it."""
    share = shares_asked(mixture, available)[source]
    said = f"counts.{source} is" if mixture.counts else f"{share:.2%} of {mixture.tokens:,} is"
    pool = " that pretrain does not take" if mixture.seen.get(source) == "exclude" else ""
    cap = mixture.cap(source)
    return (
        f"source {source} is short by {lack:,} tokens: {said} {wanted:,}, it has {available[source]:,}{pool} "
        f"and max_epochs {cap:g} allows {capacity(available[source], cap):,}"
    )


def proposals(mixture: Mixture, available: Mapping[str, int], short: Mapping[str, int]) -> list[str]:
    """Return the nearest mixes that fit, each a line for the recipe that changes one key."""
    shares, room = weights(mixture, available), rooms(mixture, available)
    mix = nearest_mix(mixture.tokens, shares, room)
    ways = []
    if mixture.counts:
        ways.append(counts_line({s: min(n, room[s]) for s, n in mixture.counts.items()}))
        ways.append(counts_line(mix or {}))
    else:
        total = sum(shares.values())
        most = min(int(room[s] * total / shares[s]) for s in shares if shares[s])
        ways.append(f"tokens: {most}" if most else "")
    if all(available[s] for s in short):
        caps = {s: enough(short[s], available[s]) if s in short else mixture.cap(s) for s in mixture.sources}
        entries = [f"{s}: {cap!r}".removesuffix(".0") for s, cap in caps.items()]
        ways.append(f"max_epochs: {{{', '.join(entries)}}}")
    if mixture.temperature is not None and (cooler := nearest_temperature(mixture, available)):
        ways.append(f"temperature: {cooler}")
    if not mixture.counts and (percent := percentages(mixture.tokens, mix or {}, room)):
        entries = [f"{s}: {share}" for s, share in percent.items()]
        instead = " in place of temperature" if mixture.temperature is not None else ""
        ways.append(f"ratios: {{{', '.join(entries)}}}{instead}")
    return [way for way in ways if way]


def counts_line(counts: Mapping[str, int]) -> str:
    """Return `counts` as the recipe says it, or nothing when nothing is left."""
    entries = [f"{source}: {n}" for source, n in counts.items() if n]
    return f"counts: {{{', '.join(entries)}}}" if entries else ""


def enough(wanted: int, available: int) -> float:
    """Return the least cap of two decimals with which `available` tokens give `wanted`."""
    return -(-wanted * 100 // available) / 100


def nearest_temperature(mixture: Mixture, available: Mapping[str, int]) -> str:
    """Return the largest temperature below the mixture's, in hundredths, that fits; nothing where 1 does not."""

    def fits(hundredths: int) -> bool:
        shares = {s: root(available[s], hundredths / 100) for s in mixture.sources}
        return within(largest_remainder(mixture.tokens, shares), room)

    room = rooms(mixture, available)
    low, high = 100, max(100, int(exact(mixture.temperature or 1) * 100))
    if not fits(low):
        return ""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return f"{low / 100:g}"


def within(counts: Mapping[str, int], room: Mapping[str, int]) -> bool:
    """Tell whether no source gives more than it can."""
    return all(n <= room[s] for s, n in counts.items())


def nearest_mix(tokens: int, ratios: Mapping[str, float | Fraction], room: Mapping[str, int]) -> dict[str, int] | None:
    """Return the mix with short sources at their most, the others scaled up in proportion.

    None if all together hold too little.
    """
    if sum(room.values()) < tokens:
        return None
    fixed: dict[str, int] = {}
    while True:
        rest = {s: r for s, r in ratios.items() if s not in fixed}
        counts = largest_remainder(tokens - sum(fixed.values()), rest) if rest else {}
        over = [s for s, n in counts.items() if n > room[s]]
        if not over:
            return {s: fixed.get(s, counts.get(s, 0)) for s in ratios}
        fixed.update({s: room[s] for s in over})


def percentages(tokens: int, mix: Mapping[str, int], room: Mapping[str, int]) -> dict[str, str] | None:
    """Return `mix` as percentages that sum to 100 and fit when they are fed back, with few decimals."""
    names = [s for s in mix if mix[s]]
    for decimals in range(2, FINEST + 1) if names else ():
        scale = 10**decimals
        units = {s: mix[s] * 100 * scale // tokens for s in names}  # of the last decimal
        # What rounding down leaves goes to those with most room: a source at its limit must not be rounded up.
        roomy = sorted(names, key=lambda s: mix[s] - room[s])
        for s in roomy[: 100 * scale - sum(units.values())]:
            units[s] += 1
        shares = {s: f"{n // scale}.{n % scale:0{decimals}d}%" for s, n in units.items()}
        counts = largest_remainder(tokens, {s: float(share[:-1]) / 100 for s, share in shares.items()})
        if all(units.values()) and within(counts, room):
            return shares
    return None
