"""The sources, by the name that `from:` gives them.

To add one: write a module with `Config` (a `kind` that is its name), `units(config, identify)` and
`work(task)`, and name it in SOURCES and AnySource. What a unit's work imports must not import this module,
or editing one source would re-run them all.
"""

from __future__ import annotations

from types import ModuleType
from typing import Annotated

from pydantic import AfterValidator, Field

from stages.edits import parse_edits
from stages.rules import parse_rules
from stages.sources import ai2_arc, installed_docs, json_array, jsonl, parquet
from stages.sources.base import BaseConfig

SOURCES: dict[str, ModuleType] = {
    "installed_docs": installed_docs,
    "parquet": parquet,
    "jsonl": jsonl,
    "json_array": json_array,
    "ai2_arc": ai2_arc,
}

AnySource = installed_docs.Config | parquet.Config | jsonl.Config | json_array.Config | ai2_arc.Config


def check_rules(config: AnySource) -> AnySource:
    """Reject unknown rules, thresholds and edits when the recipe is read, not hours later. Raises ValueError."""
    parse_rules(config.rules)
    parse_edits(config.edit)
    return config


SourceConfig = Annotated[AnySource, Field(discriminator="kind"), AfterValidator(check_rules)]


def describe(config: BaseConfig) -> dict[str, str]:
    """Origin, revision and licence of a source, for the manifest; empty where nothing is known."""
    if isinstance(config, installed_docs.Config):
        return installed_docs.describe(config)
    path = getattr(config, "path", "")
    origin = config.origin or (path if isinstance(path, str) else ", ".join(path))
    return {"origin": origin, "revision": config.revision, "licence": config.licence}
