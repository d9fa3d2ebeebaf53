"""Configurations out of JSON and the command line: a manifest's resolved recipe, and the `--set` overrides.

Figures may be written as text, unknown keys and values of another kind are errors that name the key and what is meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal, TypeVar

from train.config import ConfigError, ModelConfig, TrainConfig
from train.keys import Keys, one_of, type_hints

GroupT = TypeVar("GroupT", bound=Keys)


def from_dict(group: type[GroupT], value: object, where: str) -> GroupT:
    """Build a `group` of keys from a dictionary; figures may be written as text.

    Raises ConfigError, whose text begins with `where`, for an unknown key, naming the nearest, and for a wrong value.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected keys and values, found {value!r}")
    hints = type_hints(group)
    known = [field.name for field in dataclasses.fields(group)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5) or known
            raise ConfigError(f"{where}.{key}: no such key; did you mean {', '.join(near)}?")
    return group(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint`, one of those that the keys in train/config.py have."""
    if isinstance(hint, type) and issubclass(hint, Keys):
        return from_dict(hint, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        one_of(where, value, args)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not Ellipsis and len(value) != len(args)):
            count = "" if args[-1] is Ellipsis else f" of {len(args)}"
            raise ConfigError(f"{where} = {value!r}: expected a list{count}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, str) else value
            if hint is float or (isinstance(number, int | float) and int(number) == number):
                # int(text) first: a float cannot hold every seed below 2**63
                return int(value) if hint is int and isinstance(value, str) and _digits(value) else hint(number)
        except (ValueError, TypeError, OverflowError):
            pass
    if type(value) is hint:
        return value
    raise ConfigError(f"{where} = {value!r}: expected {type_text(hint)}")


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if types.NoneType in args and (value is None or (str not in args and str(value).lower() in ("none", "null"))):
        return None
    for arg in (a for a in args if a is not types.NoneType):
        try:
            return _read(arg, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where} = {value!r}: expected {' or '.join(type_text(a) for a in args)}")


def _digits(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def type_text(hint: Any) -> str:
    """Return a type in words, as messages write it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in args)
    if origin is tuple:
        if typing.get_origin(args[0]) is Literal:
            return f"a list of {type_text(args[0])}"
        return "a list" if args[-1] is Ellipsis else f"a list of {len(args)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(hint, str(hint))


def apply_overrides(value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `value` ({"model": ..., "train": ...}) with each "a.b=c" put in place. c is JSON, else text.

    Raises ConfigError for an override that has no "=" or does not begin with "model." or "train.".
    """
    result: dict[str, Any] = json.loads(json.dumps(value))
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or keys[0] not in ("model", "train") or not all(keys):
            raise ConfigError(f"--set {override}: write train.KEY=VALUE or model.KEY=VALUE, as in train.steps=20")
        try:
            item = json.loads(text)
        except json.JSONDecodeError:
            item = text
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {override}: {key} holds a value, not keys")
        node[keys[-1]] = item
    return result


def configs(recipe: dict[str, Any], phase: str, overrides: list[str], where: str) -> tuple[ModelConfig, TrainConfig]:
    """The model and the training of `phase` from a resolved recipe, with `overrides` (`train.` means that phase)."""
    phases = recipe.get("train") or {}
    if phase not in phases:
        named = ", ".join(phases) or "none"
        raise ConfigError(f"{where}: its recipe has no train.{phase} (it has: {named}); add it and pack again")
    value = apply_overrides({"model": recipe.get("model") or {}, "train": phases[phase] or {}}, overrides)
    model, train = from_dict(ModelConfig, value["model"], "model"), from_dict(TrainConfig, value["train"], "train")
    if train.seq_len > model.max_seq_len:
        raise ConfigError(f"train.seq_len = {train.seq_len}: above model.max_seq_len = {model.max_seq_len}")
    for name in ("memory_tokens", "mtp_heads"):
        if train.seq_len <= getattr(model, name):
            raise ConfigError(f"train.seq_len = {train.seq_len}: must be above model.{name} = {getattr(model, name)}")
    if train.document_mask and model.memory_tokens:
        raise ConfigError("train.document_mask = True: a row's first document alone would see model.memory_tokens")
    return model, train
