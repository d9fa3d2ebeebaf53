"""Recipes: one YAML file from raw text to checkpoint, validated before anything runs.

Every key has a default, a unit and a line of documentation here, in `train/config.py` or beside its source;
`python -m pipeline schema recipe` prints them all as JSON Schema. Errors name the file, the key and the
allowed values.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.engine.fingerprint import ROOT
from pipeline.errors import UsageError
from pipeline.recipe_yaml import read_yaml
from stages import paths
from stages.recipe import Recipe
from train.redact import without_secrets

Location = tuple[int | str, ...]  # keys from the top of the recipe down


def _nested(hint: Any) -> list[type]:
    """Return the model classes inside a type hint such as dict[str, A | B]."""
    if isinstance(hint, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        hint = hint.__value__
    if isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)):
        return [hint]
    origin = typing.get_origin(hint)
    if origin in (Annotated, dict, list, typing.Union, types.UnionType):
        return [cls for argument in typing.get_args(hint) for cls in _nested(argument)]
    return []


def _fields(cls: type) -> dict[str, Any]:
    """Return key as written in YAML -> type hint, of a pydantic model or a dataclass."""
    if issubclass(cls, BaseModel):
        return {(field.alias or name): field.annotation for name, field in cls.model_fields.items()}
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _allowed_at(location: Location, top: type = Recipe) -> list[str]:
    """Return the keys allowed where an unknown one was found, in a file of `top`."""
    classes: list[type] = [top]
    for key in location[:-1]:
        below = [inner for cls in classes for inner in _nested(_fields(cls).get(str(key)))]
        # A name inside a dict (a source, a phase) or the tag of a union: stay among the same classes.
        tagged = [cls for cls in classes if _kind(cls) == key]
        classes = below or tagged or classes
    return sorted({key for cls in classes for key in _fields(cls)})


def _kind(cls: type) -> str | None:
    """Return the value of `from` that selects a source's class, or None for any other class."""
    if issubclass(cls, BaseModel):
        for field in cls.model_fields.values():
            if field.alias == "from" and typing.get_origin(field.annotation) is Literal:
                return str(typing.get_args(field.annotation)[0])
    return None


WRONG_TYPE = {
    "bool": "must be true or false",
    "dict": "must be a group of keys",
    "float": "must be a number",
    "int": "must be a whole number",
    "list": "must be a list",
    "model": "must be a group of keys",
    "dataclass": "must be a group of keys",
    "string": "must be text",
    "tuple": "must be a list",
}
# What is wrong, by pydantic's name for it, with its figures.
WRONG_VALUE = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "too_short": "must have {min_length} or more",
    "too_long": "must have {max_length} at most",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} characters at most",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must match {pattern}",
}
UNION_MEMBER = re.compile(r"[\[\]]|^(constrained-)?(str|int|float|bool)$")  # how pydantic calls one
SHOWN = 20  # problems told at a time


def explain(where: str, error: ValidationError, raw: dict[str, Any], top: type = Recipe) -> str:
    """Say what is wrong in a file of `top`, a line a problem: file, key, what is wrong, what is allowed."""
    problems: dict[str, list[str]] = {}  # key as it is written -> what is wrong with it
    for problem in error.errors():
        # The members of a union are pydantic's words, not keys of the recipe.
        location = tuple(key for key in problem["loc"] if not UNION_MEMBER.search(str(key)))
        # So is the tag of a source's kind.
        written = location[:2] + location[3:] if location[0:1] == ("sources",) else location
        problems.setdefault(".".join(map(str, written)) or top.__name__.lower(), []).append(
            _message(problem, location, raw, top)
        )
    lines = []
    for key, messages in problems.items():
        is_looked_into = any(other.startswith(f"{key}.") for other in problems)  # one member of a union took it
        for message in _alternatives(messages):
            if not (is_looked_into and message.startswith(": must be ")):
                lines.append(f"{where}: {key}{message}")
    return "\n".join(lines[:SHOWN]) + (f" (and {len(lines) - SHOWN} more)" if len(lines) > SHOWN else "")


def _alternatives(messages: list[str]) -> list[str]:
    """Return what is wrong with one key, with what each member of a union wants in one line."""
    wanted: dict[str, list[str]] = {}  # what was given -> what it must be
    others = []
    for message in dict.fromkeys(messages):
        must, comma, given = message.rpartition(", not ")
        if comma and must.startswith(": must be "):
            wanted.setdefault(given, []).append(must.removeprefix(": must be "))
        else:
            others.append(message)
    return [f": must be {' or '.join(must)}, not {given}" for given, must in wanted.items()] + others


def _message(problem: ErrorDetails, location: Location, raw: dict[str, Any], top: type) -> str:
    """Say what is wrong with the key at `location`, and what is allowed there."""
    kind, given = problem["type"], problem["input"]
    expected = WRONG_TYPE.get(kind.partition("_")[0])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _allowed_at(location, top)
        similar = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean {similar[0]!r}? " if similar else ""
        return f": unknown key; {hint}allowed: {', '.join(allowed)}"
    if kind == "missing":
        return ": is required and missing"
    if kind == "union_tag_invalid":
        return f".from: no kind of source {problem['ctx']['tag']!r}; allowed: {problem['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return ": is a group of keys with `from`, the kind of source"
    if location[:1] == ("train",) and len(location) == 2 and not isinstance(given, dict):
        phases = [str(phase) for phase, keys in raw["train"].items() if isinstance(keys, dict)]
        named = f"the phases here are {', '.join(phases)}" if phases else "such as pretrain"
        return f": keys of training stand in a phase, train.PHASE.{location[1]}; {named}"
    if expected and kind.endswith(("_type", "_parsing", "_parsing_size", "_from_float")):
        return f": {expected}, not {str(given)[:80]!r}{_read_as(given) if kind.startswith('string') else ''}"
    if kind in WRONG_VALUE:
        return f": {WRONG_VALUE[kind].format(**problem.get('ctx', {}))}, not {str(given)[:80]!r}"
    message = problem["msg"].removeprefix("Value error, ")
    says_what_is_given = kind == "value_error" or not isinstance(given, str | int | float)
    return f": {message}" if says_what_is_given else f": {message} (got {str(given)[:80]!r})"


def _read_as(given: Any) -> str:
    """Return why YAML gives something else than the text that was written, and the way out; "" for other values."""
    if isinstance(given, bool):
        return "; YAML reads yes, no, on and off so: write it in quotes"
    return "; YAML reads a date there: write it in quotes" if isinstance(given, datetime.date) else ""


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> None:
    """Set `a.b=c` in the raw recipe; c is YAML. Rules of a source are keys of its `rules`. Raises UsageError."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {override}: write --set a.b=value")
        group: Any = raw
        *parents, last = key.split(".")
        for parent in parents:
            group = rule_of(group, parent) if isinstance(group, list) else group.setdefault(parent, {})
            if not isinstance(group, dict) and not (isinstance(group, list) and parent == "rules"):
                raise UsageError(f"--set {override}: {parent} is not a group of keys")
        try:
            group[last] = read_yaml(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {override}: {str(error).splitlines()[0]}") from None


def rule_of(rules: list[Any], name: str) -> Any:
    """Return the thresholds of a rule in a list of rules, to be set there; None where it is not in the list."""
    for i, rule in enumerate(rules):
        if rule == name:
            rules[i] = {name: {}}
        if isinstance(rules[i], dict) and name in rules[i]:
            return rules[i][name]
    return None


def shipped() -> list[str]:
    """Return the names of the recipes that ship in manifests/."""
    return sorted(file.stem for file in (ROOT / "manifests").glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file called `name`, or that of the recipe that ships under it. Raises UsageError."""
    for candidate in (Path(name), ROOT / "manifests" / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise UsageError(f"--recipe {name}: no such file, and the recipes that ship are {', '.join(shipped())}")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe. Raises UsageError that names file, key and allowed values."""
    file = find_recipe(name)
    try:
        raw = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid YAML: {without_snippets(error)}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{file}: a recipe is a mapping of keys; see manifests/quickstart.yaml")
    choices = [override for override in overrides or [] if override.partition("=")[0] == "variant"]
    apply_overrides(raw, choices)
    raw = with_variant(raw, str(file))
    resolve_paths(raw, file)
    apply_overrides(raw, overrides or [])
    return parse_recipe(raw, str(file))


def with_variant(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a raw recipe as its key `variant` has it, without `variants`. Raises UsageError where there is no such."""
    variants, variant = raw.get("variants") or {}, raw.get("variant")
    if not isinstance(variants, dict):
        return raw  # which is refused for it
    outside = {key: value for key, value in raw.items() if key != "variants"}
    if variant is None:
        return outside
    if variant not in variants:
        raise UsageError(f"{where}: variant: no {variant!r} in variants; there are {', '.join(variants) or 'none'}")
    return _laid_over(outside, variants[variant])


def _laid_over(below: Any, above: Any) -> Any:
    """Return two values of YAML as one: groups of keys are joined, all else is what `above` says."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def without_snippets(error: Exception) -> str:
    """Return what YAML says is wrong, without the pieces of the file that it repeats where a secret may be in them."""
    marks = [getattr(error, name, None) for name in ("context_mark", "problem_mark")]
    for mark in marks:
        if mark is not None and mark.buffer is not None and without_secrets(mark.buffer) != mark.buffer:
            mark.buffer = None
    return " ".join(str(error).split())


def resolve_paths(raw: dict[str, Any], file: Path) -> None:
    """Turn the relative paths of a raw recipe into paths from where one stands: they are meant from its file's folder.

    A path that leads to nothing there, but does from where one stands, is left as it is, with a warning. Those that
    --set gives are meant from where one stands, as all of the command line is.
    """
    decontaminate = raw.get("decontaminate")
    against = decontaminate.get("against") if isinstance(decontaminate, dict) else None
    groups = [group for group in (raw.get("sources"), raw.get("evals"), against) if isinstance(group, dict)]
    entries = [(entry, "path") for group in groups for entry in group.values()]
    for entry, key in [*entries, (raw.get("tokenizer"), "from")]:
        written = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(written, str):
            entry[key] = resolve_path(written, file, is_name=key == "from")
        elif isinstance(written, list):
            entry[key] = [resolve_path(one, file) if isinstance(one, str) else one for one in written]


def resolve_path(written: str, file: Path, is_name: bool = False) -> str:
    """Return a path that is written in the recipe `file`, from where one stands.

    With `is_name` it may be a name of the hub as well, which it is where no file has it.
    """
    meant = paths.relative_to_file(written, str(file))
    folder = file.resolve().parent
    if not written or folder == Path.cwd():
        return written
    if meant == written or "\0" in written or paths.leads_anywhere(meant):
        return meant
    if paths.leads_anywhere(written):
        shortest = min(os.path.relpath(written, folder), str(Path(written).absolute()), key=len)
        text = (
            f"warning: {file}: {written} is not in {folder}, where paths of the recipe begin, and was found in "
            f"{Path.cwd()}; write {shortest}"
        )
        print(paths.escaped(text), file=sys.stderr)
        return written
    return written if is_name else meant


def texts_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every text in a raw recipe, and of every key with its own name."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_of(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner, key)


def parse_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe given as plain values. Raises UsageError."""
    raw = with_variant(raw, where) if "variants" in raw else raw
    for key, text in texts_of(raw):
        if not paths.is_utf8(key + text):
            raise UsageError(paths.escaped(f"{where}: {key}: {text[:200]} is no UTF-8, which manifests are"))
        if not key.startswith("exclude."):  # what is taken down is called as its source calls it
            try:
                paths.refuse_secrets(text)
                paths.refuse_secrets(key)
            except ValueError as error:
                raise UsageError(f"{where}: {without_secrets(key)}: {error}") from None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(explain(where, error, raw)) from None
    for key in yes_or_no_as_numbers(raw, recipe.to_dict()):
        raise UsageError(f"{where}: {key}: must be a number, and YAML reads yes, no, true, false, on and off as none")
    return recipe


def yes_or_no_as_numbers(raw: Any, read: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys at which a yes or no in `raw` became a number in `read`, the same values as resolved."""
    if isinstance(raw, bool) and type(read) in (int, float):
        yield key
    elif isinstance(raw, dict) and isinstance(read, dict):
        for name in raw.keys() & read.keys():
            yield from yes_or_no_as_numbers(raw[name], read[name], f"{key}.{name}" if key else str(name))
    elif isinstance(raw, list) and isinstance(read, list):
        for inner, inner_read in zip(raw, read, strict=False):
            yield from yes_or_no_as_numbers(inner, inner_read, key)
