"""YAML of recipes: read safely, bounded, and with what it would silently read as something else named by its line."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import yaml

DIGITS = 40  # of a number
DEPTH = 50  # of groups in groups
VALUES = 100_000  # in a recipe, what aliases repeat counted as often
YAML_KINDS = {"bool": "a yes or no", "int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}


class Loader(yaml.SafeLoader):
    """YAML as recipes use it: what it would silently read as something else is an error that names the line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Raises YAMLError when a key is there twice, or is no text."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        counts = Counter(str(key.value) for key in keys)
        if twice := sorted({name for name, count in counts.items() if count > 1} - {"<<"}):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key {twice[0]!r} is there twice")
        for key in keys:
            kind = key.tag.rpartition(":")[2]
            if kind not in ("str", "merge"):
                means = f"{str(self.construct_object(key)).lower()}, {YAML_KINDS.get(kind, kind)}"
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: YAML reads the key {key.value[:80]} as {means}; write it in "
                    f'quotes: "{key.value[:80]}"'
                )
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Build a whole number. Raises YAMLError when it has more digits than any key takes."""
        if len(node.value) > DIGITS:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")
        number = int(self.construct_yaml_int(node))
        check_plain(node, number)
        return number


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_number)


def check_plain(node: yaml.ScalarNode, number: float) -> None:
    """Raise YAMLError for a number that YAML reads in base 60 (1:30:00) or base 8 (010), which nobody means."""
    if ":" in node.value or re.match(r"[-+]?0[0-7_]+$", node.value):
        raise yaml.YAMLError(
            f"line {node.start_mark.line + 1}: YAML reads {node.value} as {number:g}; write that, or the text in quotes"
        )


def _finite(loader: Loader, node: yaml.ScalarNode) -> float:
    """Build a number. Raises YAMLError for an infinite one and for what is none."""
    if len(node.value) > DIGITS:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")
    number = float(loader.construct_yaml_float(node))
    check_plain(node, number)
    if not math.isfinite(number):
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {node.value[:40]} is no number that a key takes")
    return number


Loader.add_constructor("tag:yaml.org,2002:float", _finite)


def read_yaml(text: str) -> Any:
    """Return what YAML text holds. Raises YAMLError, also where it is nested or repeats itself beyond all measure."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        check_size(node)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"groups are nested more than {DEPTH} deep") from None
    except ValueError as error:  # such as a date in month 13
        raise yaml.YAMLError(f"a value cannot be read ({error}); write it in quotes") from None


def check_size(node: yaml.Node | None) -> None:
    """Raise YAMLError when a document is too deep, refers to itself, or is too large with its aliases written out."""
    sizes: dict[int, int] = {}  # by node

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above or len(above) > DEPTH:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: groups are nested more than {DEPTH} deep")
        if id(node) not in sizes:
            pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size(part, (*above, id(node))) for part in inner)
        if sizes[id(node)] > VALUES:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: more than {VALUES:,} values, aliases written out")
        return sizes[id(node)]

    if node is not None:
        size(node, ())
