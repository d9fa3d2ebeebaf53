"""The sources, by the name that `from:` gives them.

To add one: write a module with `Config` (a `kind` that is its name), `units(config, identify)` and
`work(task)`, and name it in MODULES; or a dataset that an existing module reads, in `stages.sources.presets`. What a
unit's work imports must not import this module, or editing one source would re-run them all.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import AfterValidator, Field

from stages.filter.edits import parse_edits
from stages.filter.metadata import check_metadata
from stages.filter.rules import parse_rules
from stages.sources import ai2_arc, hub, hub_dataset, installed_docs, json_array, jsonl, parquet, text
from stages.sources.base import BaseConfig
from stages.sources.presets import KNOWN, config_of

MODULES = (installed_docs, parquet, jsonl, json_array, text, ai2_arc, hub_dataset)
SOURCES: dict[str, ModuleType] = {m.__name__.rpartition(".")[2]: m for m in MODULES}
SOURCES |= {name: known.module for name, known in KNOWN.items()}


def check_rules(config: Any) -> Any:
    """Reject unknown rules, thresholds and edits when the recipe is read, not hours later. Raises ValueError."""
    parse_rules(config.rules)
    parse_edits(config.edit)
    if getattr(config, "where", None):
        check_metadata("where", config.where)
    return config


if TYPE_CHECKING:
    SourceConfig = Any
else:
    AnySource = Union[(*(m.Config for m in MODULES), *(config_of(name, known) for name, known in KNOWN.items()))]
    SourceConfig = Annotated[AnySource, Field(discriminator="kind"), AfterValidator(check_rules)]


def place(config: BaseConfig) -> str | list[str]:
    """The files or the dataset that a source is; "" of installed packages."""
    found: str | list[str] = getattr(config, "path", "") or getattr(config, "address", "")
    return found


def describe(config: BaseConfig) -> dict[str, str]:
    """Origin, revision and license of a source, for the manifest; empty where nothing is known.

    Of files on the hub the revision is the commit that they are read at.
    """
    if isinstance(config, installed_docs.Config):
        return installed_docs.describe(config)
    path = place(config)
    origin = config.origin or (path if isinstance(path, str) else ", ".join(path))
    revision = hub.commits(path, config.revision) or config.revision
    return {"origin": origin, "revision": revision, "license": config.license}


def pin(config: BaseConfig, revision: str) -> None:
    """Read a source, in this process, at the revision that `describe` once gave."""
    hub.remember(place(config), config.revision, revision)
