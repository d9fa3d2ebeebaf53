"""`schema reference`: docs/reference.md, every command and every key with its default and its documentation.

All of it comes from where it is decided: the command line's help, the JSON Schema of recipes, and the signatures of
the rules. A test compares docs/reference.md with what this prints.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption

from pipeline.sweep.config import Sweep
from stages.filter.parse import default_thresholds
from stages.filter.rules import RULES
from stages.recipe import Recipe
from stages.sources.presets import PRESETS

INTRODUCTION = """\
# Reference: every command and every key

This page is printed by `python -m pipeline schema reference`; do not edit it. `make docs` writes it again, and a test
says when that has been forgotten. `python -m pipeline schema recipe` prints the same keys as JSON Schema, for editors.

Where a key counts tokens, bytes or documents, `200k`, `1.5M` or `20MB` can be written for the number; where it is a
share, `80%` can. Any key can be set from outside the recipe: `--set mixtures.anneal.tokens=2M`.
"""
TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
TYPES |= {"null": "null", "object": "a group of keys"}
BOUNDS = {"exclusiveMinimum": "above", "gt": "above", "minimum": "at least", "ge": "at least"}
BOUNDS |= {"exclusiveMaximum": "below", "lt": "below", "maximum": "at most", "le": "at most"}

Schema = Mapping[str, Any]
Group = tuple[str, Schema]  # its place in a recipe, and its schema


def reference_page(commands: TyperGroup) -> str:
    """Return the page, as Markdown."""
    schema = Recipe.model_json_schema(by_alias=True)
    lines = [INTRODUCTION, "## Commands\n"]
    for name, command in commands.commands.items():
        lines += command_section(name, command)
    lines += ["## Keys of a recipe\n", *key_table(schema), ""]
    for place, group in groups_below("", schema, schema["$defs"]):
        lines += group_section(place, group, schema["$defs"])
    swept = Sweep.model_json_schema(by_alias=True)
    lines += ["## Keys of a sweep\n", "What `python -m pipeline sweep FILE` reads: [docs/sweep.md](sweep.md).\n"]
    lines += [*key_table(swept), ""]
    for place, group in groups_below("", swept, swept["$defs"]):
        lines += group_section(f"sweep: {place}", group, swept["$defs"])
    return "\n".join(lines).rstrip() + "\n"


def command_section(name: str, command: Any) -> list[str]:
    """Return the section of one command: how it is called, what it does, its arguments and options in a table."""
    arguments = [param for param in command.params if isinstance(param, TyperArgument)]
    options = [param for param in command.params if isinstance(param, TyperOption)]
    usage = " ".join(["python -m pipeline", name, *(argument_name(argument) for argument in arguments)])
    rows = [(f"`{argument_name(argument)}`", "required", argument.help or "") for argument in arguments]
    for option in options:
        default = "" if option.default in (None, False, "") else f"`{option.default}`"
        rows.append((f"`{', '.join(option.opts)}`", default, option.help or ""))
    lines = [f"### {name}\n", f"`{usage}`: {command.help}\n"]
    return [*lines, *table(("option", "default", "meaning"), rows), ""] if rows else lines


def argument_name(argument: TyperArgument) -> str:
    """Return an argument's name as the command line's help writes it."""
    return (argument.name or "").upper()


def group_section(place: str, group: Schema, definitions: Schema) -> list[str]:
    """Return the section of one group of keys; sources, which are of many kinds, have one for each kind."""
    kinds = [resolve(option, definitions) for option in group.get("oneOf", [])]
    if kinds:
        return kinds_section(place, kinds)
    return [f"## `{place}`\n", f"{group['description']}\n" if "description" in group else "", *key_table(group), ""]


def kinds_section(place: str, kinds: list[Schema]) -> list[str]:
    """Return the keys that all kinds of source have, then those of each kind, then the rules that `rules` names."""
    every = [kind["properties"] for kind in kinds]
    shared = {key: value for key, value in every[0].items() if key != "from" and all(key in keys for keys in every)}
    lines = [
        f"## `{place}`\n",
        "Keys that every source has, whatever its `from`:\n",
        *key_table({"properties": shared}),
    ]
    for kind in kinds:
        name = kind["properties"]["from"]["const"]
        if name in PRESETS:
            continue
        own = {key: value for key, value in kind["properties"].items() if key != "from" and shared.get(key) != value}
        lines += [f"\n### `from: {name}`\n", f"{kind['description']}\n"]
        lines += key_table({"properties": own, "required": kind.get("required", [])})
    lines += ["\n### Datasets by name\n", "Each is a source of the kind it is read as, with these keys filled in.\n"]
    header = ("`from`", "dataset of the hub", "read as", "`subset`, the first by default", "filled in")
    lines += table(header, (preset_row(name) for name in PRESETS))
    lines += ["\n### Rules\n", "What `rules` may name, with thresholds and their defaults.\n"]
    for name, rule in RULES.items():
        lines += [f"* `{name}`: {paragraph(inspect.getdoc(rule) or '')} {thresholds(rule)}".rstrip()]
    lines += [
        "* `where`: what measures and scores must be: `{where: {edu: {top: 30%}, gopher_alphabetic: {min: 0.7}}}`. "
        "Tests: `min`, `max`; `top`, `bottom`, a share of the source; `in`, a list, of `language`.",
        "* `sample`: documents taken by a score: `{sample: {edu: {full: 0.9, power: 2}}}`, each with probability "
        "(value / full) ** power.",
    ]
    return [*lines, ""]


def preset_row(name: str) -> tuple[str, ...]:
    """Return the line of one dataset that a recipe can name."""
    preset = PRESETS[name]
    subsets = ", ".join(f"`{subset}`" for subset in preset.files) or "none: `path` says where its files are"
    filled_in = {**({"license": preset.license} if preset.license else {}), **preset.keys}
    written = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in filled_in.items())
    return (f"`{name}`", preset.repository, f"`{preset.module.Config.__module__.rpartition('.')[2]}`", subsets, written)


def thresholds(rule: Any) -> str:
    """Return the thresholds of a rule with their defaults, in one line."""
    named = [f"`{name}: {json.dumps(default)}`" for name, default in default_thresholds(rule).items()]
    return f"Thresholds: {', '.join(named)}." if named else ""


def groups_below(place: str, schema: Schema, definitions: Schema) -> Iterator[Group]:
    """Yield every group of keys inside `schema`, in the order of its keys; NAME stands for names that people choose."""
    for key, value in schema.get("properties", {}).items():
        below = f"{place}.{key}" if place else key
        for nested, group in nested_groups(below, value, definitions):
            yield nested, group
            yield from groups_below(nested, group, definitions)


def nested_groups(place: str, value: Schema, definitions: Schema) -> Iterator[Group]:
    """Yield the group that a key holds, if it does: one of its own, or one for each name."""
    if "$ref" in value:
        yield place, resolve(value, definitions)
    named = value.get("additionalProperties")
    if isinstance(named, dict) and ("$ref" in named or "oneOf" in named):
        yield f"{place}.NAME", resolve(named, definitions)


def resolve(value: Schema, definitions: Schema) -> Schema:
    """Return what a reference stands for; anything else as it is."""
    if "$ref" not in value:
        return value
    definition: Schema = definitions[value["$ref"].rpartition("/")[2]]
    return definition


def key_table(group: Schema) -> list[str]:
    """Return the keys of a group as a table."""
    rows = []
    for key, value in group.get("properties", {}).items():
        default = "required" if key in group.get("required", ()) else default_text(value)
        rows.append((f"`{key}`", type_text(value), default, value.get("description", "")))
    return table(("key", "value", "default", "meaning"), rows) if rows else ["No keys but those."]


def default_text(value: Schema) -> str:
    """Return a default as a recipe writes it; a group with a section of its own has its defaults there."""
    if "$ref" in value:
        return ""
    if "default" in value:
        return f"`{json.dumps(value['default'], ensure_ascii=False)}`"
    return {"array": "`[]`", "object": "`{}`"}.get(value.get("type", ""), "")


def type_text(value: Schema) -> str:
    """Return what a key may hold, in words, its bounds included."""
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value or "oneOf" in value:
        words = " or ".join(dict.fromkeys(type_text(option) for option in value.get("anyOf") or value["oneOf"]))
    elif value.get("type") == "array":
        words = f"a list of {type_text(value['items'])}" if value.get("items") else "a list"
    elif isinstance(value.get("additionalProperties"), dict):
        words = f"by name: {type_text(value['additionalProperties'])}"
    else:
        words = "a group of keys" if "$ref" in value else TYPES.get(value.get("type", ""), "anything")
    bounds = [f"{word} {value[bound]:,}" for bound, word in BOUNDS.items() if bound in value]
    return ", ".join([words, *bounds])


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table."""
    written = [tuple(paragraph(cell).replace("|", "\\|") for cell in row) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [header, ("---",) * len(header), *written]]


def paragraph(text: str) -> str:
    """Return a text as one line."""
    return " ".join(text.split())
