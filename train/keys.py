"""How a configuration says its keys: default, documentation, bounds, and what a checkpoint must agree on.

A group of keys is a frozen dataclass derived from `Keys`, each of its fields made by `key`:

    steps: int = key(1000, "Optimizer steps.", above=0, fixed_by=None)

All that is known of a key stands there once. The checks, the comparison of a run with its checkpoint
(train/checkpoint/run_folder.py), and the JSON Schema, of which docs/reference.md is made, read it from the field's
metadata. Only the standard library is needed: pydantic, which reads the same classes in recipes, takes `description`
and `json_schema_extra` out of the metadata by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")
FixedBy = Literal["weights", "run"] | None


class TrainError(ValueError):
    """Something a person can mend. The text is one or two lines: what, where, how."""


class ConfigError(TrainError):
    """A key or a value that the trainer does not take: wrong usage, exit status 2."""


def key(
    default: T,
    doc: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    fixed_by: FixedBy = "run",
    switch: str | None = None,
) -> T:
    """Return a dataclass field of that default, documented by `doc` (whole sentences, with the unit).

    above, at_least, below, at_most: the bounds of a number.
    fixed_by: what the value cannot be changed under. "weights": wherever a checkpoint's weights are used, the key must
        be as it was. "run": a run that continues must have it unchanged. None: it is free.
    switch: the key that turns on the part of the model which this key belongs to; it may be the key itself. While it
        has its default, the part is off and checkpoints hold none of its keys, so that those from before the part was
        written still agree.
    """
    bounds = {"exclusiveMinimum": above, "minimum": at_least, "exclusiveMaximum": below, "maximum": at_most}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"description": doc, "bounds": bounds, "fixed_by": fixed_by, "switch": switch}
    if bounds:
        metadata["json_schema_extra"] = bounds
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


@dataclass(frozen=True)
class Keys:
    """A group of keys. `where` is its place in the recipe, as messages name it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    where: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise ConfigError when a value is out of its bounds or not one of those its type lists."""
        hints = type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            name = f"{self.where}.{field.name}"
            if (allowed := _allowed_values(hint)) is not None:
                one_of(name, value, allowed)
            bounds = field.metadata["bounds"]
            if bounds and value is not None and not _within(value, bounds):
                null = ", or null" if types.NoneType in typing.get_args(hint) else ""
                raise ConfigError(f"{name} = {value}: must be {_bounds_text(bounds)}{null}")

    def fixed_by_run(self) -> dict[str, Any]:
        """Return the values that a run which continues must have unchanged, nested groups as dictionaries."""
        values: dict[str, Any] = {}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            switch = field.metadata["switch"]
            is_off = switch is not None and getattr(self, switch) == defaults[switch]
            if field.metadata["fixed_by"] is None or is_off:
                continue
            value = getattr(self, field.name)
            values[field.name] = value.fixed_by_run() if isinstance(value, Keys) else value
        return values


def keys_fixed_by_weights(group: type[Keys]) -> list[str]:
    """Return the names of the keys that must be as they were wherever a checkpoint's weights are used."""
    return [field.name for field in dataclasses.fields(group) if field.metadata["fixed_by"] == "weights"]


# ---------------------------------------------------------------------------------------------------------------------
# Checks


# The types of a group's keys by name, kept: each annotation is text that is evaluated.
type_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def check(holds: bool, message: str) -> None:
    """Raise ConfigError with `message` where a condition does not hold."""
    if not holds:
        raise ConfigError(message)


def one_of(where: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ConfigError when `value` is not in `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(map(str, allowed))}")


def _allowed_values(hint: Any) -> tuple[object, ...] | None:
    """Return the values that a hint of literals (and null) allows; None for any other hint."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    allowed: tuple[object, ...] = ()
    for arg in typing.get_args(hint):
        values = (None,) if arg is types.NoneType else _allowed_values(arg)
        if values is None:
            return None
        allowed += values
    return allowed


def _within(value: Any, bounds: dict[str, float]) -> bool:
    """Return whether a number, or each number of a tuple, is within the bounds."""
    if isinstance(value, tuple):
        return all(_within(item, bounds) for item in value)
    above, at_least = bounds.get("exclusiveMinimum"), bounds.get("minimum")
    below, at_most = bounds.get("exclusiveMaximum"), bounds.get("maximum")
    return bool(
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _bounds_text(bounds: dict[str, float]) -> str:
    """Return "above 0", "at least 0" or an interval such as "in [0, 1)"."""
    if list(bounds) == ["exclusiveMinimum"]:
        return f"above {bounds['exclusiveMinimum']}"
    if list(bounds) == ["minimum"]:
        return f"at least {bounds['minimum']}"
    left = f"[{bounds['minimum']}" if "minimum" in bounds else f"({bounds['exclusiveMinimum']}"
    right = f"{bounds['maximum']}]" if "maximum" in bounds else f"{bounds['exclusiveMaximum']})"
    return f"in {left}, {right}"
