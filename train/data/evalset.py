"""Questions with choices as the trainer reads them: the file `eval_<name>.json` beside the shards.

Standard library only, as the manifest is: `stages` writes it, `train` reads it. One item a line inside one JSON object,

    {"format": 1, "items": [
    {"id": "0f...", "prompt": [17, 4], "choices": [[301], [95, 12]], "bytes": [4, 6], "answer": 1},
    ...]}

ids of tokens without BOS, the length of each choice as text in bytes, and which choice is right, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from train.data.manifest import EvalSet, ManifestError, check_types

FORMAT = 1


@dataclass(frozen=True)
class Item:
    """One question. `choices` follow `prompt` token by token."""

    id: str  # of the row it came from, 32 hex digits
    prompt: list[int]
    choices: list[list[int]]
    bytes: list[int]
    answer: int


def evalset_text(items: Iterable[Item]) -> str:
    """The file's text."""
    lines = ",\n".join(json.dumps(asdict(item)) for item in items)
    return f'{{"format": {FORMAT}, "items": [\n{lines}\n]}}\n'


def read_evalset(path: Path, said: EvalSet, vocab_size: int) -> list[Item]:
    """The items of a file. Raises ManifestError when it is not what the manifest says, or is none of ours."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ManifestError(f"{path}: format {value['format']}, this program reads {FORMAT}; pack it again")
        items = [Item(**item) for item in value["items"]]
        for item in items:
            check_types(item, Item, "")
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; the manifest names it, so copy it beside the shards") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{path}: not an evaluation set of ours ({error}); pack it again") from None
    if not items:
        raise ManifestError(f"{path}: evals.{said.name} has no questions; pack again, or set train.eval_items=null")
    if len(items) != said.items:
        raise ManifestError(f"{path}: {len(items):,} items, the manifest says {said.items:,}; pack it again")
    for item in items:
        whole = len(item.choices) == len(item.bytes) > item.answer >= 0 and all(item.choices) and min(item.bytes) > 0
        if not whole or not all(0 <= i < vocab_size for ids in (item.prompt, *item.choices) for i in ids):
            raise ManifestError(f"{path}: item {item.id} is damaged; pack it again")
    return items
