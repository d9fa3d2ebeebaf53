"""What every unit that gives a tokenizer leaves, however it came by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.task import Task


def finish(task: Task, path: str, origin: dict[str, Any], vocab_size: int) -> None:
    """Register the tokenizer, whose meta says which ids are BOS and pad (BOS where it has none), and its `origin`.

    That is JSON: where it comes from, with `bos_id` and `pad_id`.
    """
    bos_id, pad_id = origin["bos_id"], origin["pad_id"]
    task.add("tokenizer", path, bos_id=bos_id, pad_id=bos_id if pad_id is None else pad_id, vocab_size=vocab_size)
    write_json(task, "origin", origin)


def write_json(task: Task, name: str, value: Any) -> None:
    """Write an output as JSON, in one fixed layout."""
    path = task.output(f"{name}.json")
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add(name, path)
