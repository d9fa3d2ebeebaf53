"""Any dataset of the hub that the library `datasets` can stream, `from: hub_dataset`: one unit a shard.

For layouts that no other source reads. Plain parquet or JSON lines are better read as such: row groups by ranges, only
the columns needed, each row traced to its file; here a row is traced to its shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from stages.errors import DataError
from stages.sources import hub, retries
from stages.sources.base import BadRow, Identify, RecordConfig, Row, SourceUnit, row_of, template_fields, text_params
from stages.sources.writer import write_parts
from stages.task import Artifact, Task


class Config(RecordConfig):
    """A dataset of the hub, streamed by `datasets`: `from: hub_dataset`."""

    kind: Literal["hub_dataset"] = Field(alias="from", description="The kind of source.")
    dataset: str = Field(pattern=r"^[^/@\s]+/[^/@\s]+$", description="owner/name; `revision` says which version.")
    subset: str | None = Field(default=None, description="The dataset's configuration, if it has several.")
    split: str = Field(default="train", description="One of its splits.")

    def addresses(self) -> list[str]:
        """Return the dataset's address on the hub."""
        return [f"hf://datasets/{self.dataset}"]


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a shard. Raises DataError when the dataset, its configuration or a field is not there."""
    [address] = config.addresses()
    address = hub.pin_address(address, config.revision)
    where = {"dataset": config.dataset, "commit": hub.parse_address(address)[1], "subset": config.subset}
    params = {**text_params(config), **where, "split": config.split}
    with hub.explain_errors(address):
        data = streamed(params)
        shards = data.num_shards
    if data.column_names:
        fields = wanted(params, data.column_names)
        if missing := sorted(set(fields) - set(data.column_names)):
            there = ", ".join(data.column_names)
            raise DataError(f"{address} has no column {' or '.join(map(repr, missing))}; its columns are {there}")
    specs = []
    for shard in range(shards):
        name = f"{config.split}-{shard:05d}-of-{shards:05d}"
        facts = json.dumps([where, config.split, shard, shards], sort_keys=True)
        artifact = Artifact(address, hashlib.sha256(facts.encode()).hexdigest(), name=name)
        specs.append(SourceUnit(name, [artifact], {**params, "shard": [shard, shards], "files": [name]}))
    return specs


def wanted(params: dict[str, Any], there: list[str]) -> list[str]:
    """Return the columns that a unit reads."""
    fields = template_fields(params["template"]) if params["template"] is not None else [params["text"]]
    fields += [*params["meta"], *([params["url"]] if params["url"] else [])]
    fields += [name for name in ("url", "meta") if params["url"] is None and name in there]
    return list(dict.fromkeys(f if f in there else f.split(".")[0] for f in fields))


def streamed(params: dict[str, Any]) -> Any:
    """Return the IterableDataset. Raises what `datasets` does."""
    import datasets

    retries.install()
    datasets.disable_progress_bars()
    return datasets.load_dataset(
        params["dataset"], params["subset"], split=params["split"], revision=params["commit"], streaming=True
    )


def work(task: Task) -> None:
    """Read one unit. Params: dataset, commit, subset, split, shard (which, of how many), text, template, url, meta."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each record of the shard as a row. Raises DataError, TransientError."""
    params = task.params
    index, shards = params["shard"]
    with hub.explain_errors(task.inputs[0].path):
        data = streamed(params)
        if data.column_names:
            data = data.select_columns(wanted(params, data.column_names))
        for number, record in enumerate(data.shard(num_shards=shards, index=index)):
            yield row_of(record, params["files"][0], number, params)
