"""Datasets that a recipe can name: where each is, what its rows hold, and the text that they become.

`{from: fineweb_edu, subset: sample-10BT}` is a source of plain parquet with these keys filled in; the resolved recipe
in a manifest shows them all. Any key can be given instead: `path` for a copy of the files, another `template`.
Locations, columns and licenses are those of the datasets' cards on the hub. AI2 ARC has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, create_model, model_validator

from stages.sources import json_array, jsonl, parquet
from stages.sources.base import BaseConfig, SourceModule

QUESTION = "Question: {%s}\n\nAnswer: {%s}"


@dataclass(frozen=True)
class Preset:
    """One dataset. `files` are by the subset's name, a pattern; the first is the default, {subset} stands for it."""

    module: SourceModule
    repository: str
    files: dict[str, str]
    license: str
    keys: dict[str, Any] = field(default_factory=dict)
    written_by: str = ""  # the models that wrote the text, or parts of it, as the card says


COSMOPEDIA = ["auto_math_text", "khanacademy", "openstax", "stanford", "stories"]
COSMOPEDIA += ["web_samples_v1", "web_samples_v2", "wikihow"]

PRESETS: dict[str, Preset] = {
    "fineweb_edu": Preset(
        parquet,
        "HuggingFaceFW/fineweb-edu",
        {
            "sample-10BT": "sample/10BT/*.parquet",
            "sample-100BT": "sample/100BT/*.parquet",
            "sample-350BT": "sample/350BT/*.parquet",
            "default": "data/*/*.parquet",
            "CC-MAIN-*": "data/{subset}/*.parquet",
        },
        "ODC-BY-1.0",
    ),
    "open_web_math": Preset(parquet, "open-web-math/open-web-math", {"default": "data/*.parquet"}, "ODC-BY-1.0"),
    "numina_math_cot": Preset(
        parquet,
        "AI-MO/NuminaMath-CoT",
        {"default": "data/train-*.parquet"},
        "Apache-2.0",
        {"template": QUESTION % ("problem", "solution")},
        written_by="solutions brought into one form by GPT-4",
    ),
    "meta_math_qa": Preset(
        json_array,
        "meta-math/MetaMathQA",
        {"default": "MetaMathQA-395K.json"},
        "MIT",
        {"template": QUESTION % ("query", "response")},
        written_by="questions of GSM8K and MATH put in other words, and answered, by GPT-3.5-Turbo",
    ),
    "proof_pile_arxiv": Preset(jsonl, "EleutherAI/proof-pile-2", {"default": "arxiv/train/*.jsonl.zst"}, ""),
    # RedPajama's urls/arxiv.txt lists files that lie elsewhere: `path` says where they were put.
    "redpajama_arxiv": Preset(jsonl, "togethercomputer/RedPajama-Data-1T", {}, ""),
    "cosmopedia": Preset(
        parquet,
        "HuggingFaceTB/cosmopedia",
        {"default": "data/*/train-*.parquet", **dict.fromkeys(COSMOPEDIA, "data/{subset}/train-*.parquet")},
        "Apache-2.0",
        written_by="all by Mixtral-8x7B-Instruct-v0.1",
    ),
    "cosmopedia_v2": Preset(
        parquet,
        "HuggingFaceTB/smollm-corpus",
        {"default": "cosmopedia-v2/train-*.parquet"},
        "ODC-BY-1.0",
        written_by="all by Mixtral-8x7B-Instruct-v0.1",
    ),
}


def files_at(name: str, preset: Preset, subset: str) -> str:
    """Return where the files of a subset are. Raises ValueError with the subsets that there are."""
    for pattern, files in preset.files.items():
        if fnmatchcase(subset, pattern):
            return f"hf://datasets/{preset.repository}/{files.format(subset=subset)}"
    if not preset.files:
        raise ValueError(f"{name} has no place on the hub; name its files with `path`")
    raise ValueError(f"{name} has no subset {subset!r}; it has {', '.join(preset.files)}")


def fill_keys(name: str, preset: Preset) -> Callable[[Any, Any], Any]:
    """Return a validator that fills in the keys of a dataset where the recipe gives none."""

    def fill(cls: Any, value: Any) -> Any:
        """Return the keys of a source with those of the preset in the place of what is missing."""
        if not isinstance(value, Mapping):
            return value
        keys: dict[str, Any] = {"license": preset.license, **preset.keys}
        if "licence" in value:
            keys.pop("license")
        if not {"template", "text", "text_column"}.isdisjoint(value):
            keys.pop("template", None)
        if not value.get("path"):
            keys["subset"] = value.get("subset") or next(iter(preset.files), "")
            keys["path"] = files_at(name, preset, str(keys["subset"]))
            value = {k: v for k, v in value.items() if k not in ("subset", "path")}
        return {**keys, **value}

    return fill


def preset_config(name: str, preset: Preset) -> type[BaseConfig]:
    """Return the configuration of a preset: its module's, with a `subset` and defaults."""
    subsets = ", ".join(preset.files) or "none"
    fields: dict[str, Any] = {
        "kind": (Literal[name], Field(alias="from", description=f"The dataset {preset.repository}.")),
        "subset": (str, Field(default="", description=f"Which part of it: {subsets}.")),
        "path": (str | list[str], Field(default="", description="Its files, where they are not on the hub.")),
    }
    create: Any = create_model  # its overloads want validators to be plain functions
    made: type[BaseConfig] = create(
        f"{name}_config",
        __base__=preset.module.Config,
        __doc__=f"{preset.repository}: `from: {name}`.",
        __validators__={"fill": model_validator(mode="before")(fill_keys(name, preset))},
        **fields,
    )
    return made
