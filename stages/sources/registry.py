"""The sources, by the name that `from:` gives them.

To add one: write a module that is a `SourceModule` and name it in MODULES; or a dataset that an existing module reads,
in `stages.sources.presets`. What a unit's work imports must not import this module, or editing one source would run
them all again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol, Union

from pydantic import AfterValidator, Field

from stages.filter.edits import parse_edits
from stages.filter.metadata import check_metadata
from stages.filter.parse import parse_rules
from stages.filter.where import shares
from stages.sources import ai2_arc, arrow, csv, hub, hub_dataset, installed_docs, json_array, jsonl, parquet, text, warc
from stages.sources.base import BaseConfig, QuestionModule, SourceModule
from stages.sources.presets import PRESETS, preset_config

MODULES: dict[str, SourceModule] = {
    "installed_docs": installed_docs,
    "parquet": parquet,
    "jsonl": jsonl,
    "json_array": json_array,
    "text": text,
    "csv": csv,
    "arrow": arrow,
    "warc": warc,
    "ai2_arc": ai2_arc,
    "hub_dataset": hub_dataset,
}
SOURCES: dict[str, SourceModule] = MODULES | {name: preset.module for name, preset in PRESETS.items()}
QUESTIONS: dict[str, QuestionModule] = {"ai2_arc": ai2_arc, "jsonl": jsonl}


def check_rules(config: BaseConfig) -> BaseConfig:
    """Return `config`. Raises ValueError for unknown rules, thresholds and edits, as a recipe is read."""
    rules = parse_rules(config.rules)
    if shares(rules) and config.has_budget:
        raise ValueError(
            "top and bottom are shares of the whole source, and a budget reads a part of it; write min or max, or take "
            "the budget away"
        )
    parse_edits(config.edit)
    if where := getattr(config, "where", None):
        check_metadata("where", where)
    return config


if TYPE_CHECKING:
    SourceConfig = BaseConfig
else:
    configs = [module.Config for module in MODULES.values()]
    configs += [preset_config(name, preset) for name, preset in PRESETS.items()]
    SourceConfig = Annotated[Union[(*configs,)], Field(discriminator="kind"), AfterValidator(check_rules)]


def describe(config: BaseConfig) -> dict[str, str]:
    """Return origin, revision and license of a source; of files on the hub the revision is the commit they are read at.

    Raises DataError when the hub has no such revision.
    """
    described = config.described()
    commits = hub.commits(config.addresses(), config.revision)
    return described | {"revision": commits} if commits else described


class Addressed(Protocol):
    """A source, or an evaluation set, whose files may lie on the hub."""

    @property
    def revision(self) -> str:
        """Return the revision that the recipe asks for; "" for none."""

    def addresses(self) -> list[str]:
        """Return the paths and URIs that it is read from."""


def pin(config: Addressed, revision: str) -> None:
    """Read a source or an evaluation set, in this process, at the `revision` that `describe` once gave."""
    hub.pin_commits(config.addresses(), config.revision, revision)
