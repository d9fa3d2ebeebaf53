"""Quantities and shares as people write them in recipes: 300k tokens, 20MB of text, 80%."""

from __future__ import annotations

import math
import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:([kmgt])i|([kmgbt]?))b?\s*", re.IGNORECASE)


def quantity(value: object) -> object:
    """Return the number that `1M`, `20MB`, `64MiB`, `1.5B` or a plain number is; anything but text as it is.

    Raises ValueError for a text that is no quantity.
    """
    if not isinstance(value, str):
        return value
    match = QUANTITY.fullmatch(value)
    if not match:
        raise ValueError(f"{value!r} is not a quantity; write 300000, 300k, 1M, 1.5B, 20MB or 64MiB")
    number, binary, prefix = match.groups()
    power = 1024 ** (1 + "kmgt".index(binary.lower())) if binary else UNITS[prefix.lower()]
    amount = float(number.replace("_", "")) * power
    if math.isinf(amount):
        raise ValueError(f"{value[:20]!r}... is no quantity that there is")
    return round(amount)


def ratio(value: object) -> object:
    """Return the number that `80%` or `0.8` is; anything but text as it is. Raises ValueError for another text."""
    if isinstance(value, str):
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = math.nan
        if not math.isfinite(share):
            raise ValueError(f"{value[:80]!r} is not a ratio; write 80% or 0.8") from None
        return share
    return value
