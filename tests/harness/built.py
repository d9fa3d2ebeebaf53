"""A small mixture built by the whole pipeline inside this process, and ways to damage a copy of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engine.context import Context, drive
from pipeline.engine.executor import Reply, UnitSpec
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.executors.inline import InlineExecutor
from pipeline.recipe import parse_recipe
from stages.registry import STAGES
from train.data.manifest import manifest_text
from train.files import sha256_file

RNG = random.Random(4)
WORDS = ["".join(RNG.choices("aeioubdgklmnrst", k=RNG.randint(2, 7))) for _ in range(300)]
RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "tokenizer": {"vocab_size": 400, "sample": "1MB"},
    "shard_tokens": 6000,
    "mixtures": {
        "anneal": {"tokens": 30_000, "ratios": {"web": "60%", "maths": "40%"}, "max_epochs": {"maths": 4}},
    },
}


def texts(salt: int, n: int, longest: int = 80) -> list[str]:
    """`n` distinct texts of made-up words."""
    rng = random.Random(salt)
    return [f"{salt} {i}: " + " ".join(rng.choices(WORDS, k=rng.randint(5, longest))) for i in range(n)]


class Inline(InlineExecutor):
    """The executor without processes, which notes what it ran."""

    def __init__(self) -> None:
        self.ran: set[tuple[str, str]] = set()  # (stage, label)

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run the unit here and now."""
        self.ran.add((spec["stage"], spec["label"]))
        return await super().submit(spec)


def build(
    folder: Path, raw: dict[str, Any], stage: str = "pack_anneal_mix", inline: Callable[[], Inline] = Inline
) -> Context:
    """Run `stage` of the recipe `raw` with results under `folder`/build."""
    context = Context(parse_recipe(raw, "test"), open_store(str(folder / "build")), inline, Progress(True))
    drive(context, context.stage(STAGES[stage]))
    return context


def small(folder: Path, **keys: Any) -> Path:
    """Build RECIPE over two made-up sources. Returns the published folder of its anneal mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    # One text of maths is longer than a shard; one of web is there twice.
    found = {"web": [*texts(1, 500), texts(1, 1)[0]], "maths": [*texts(2, 40, 20), " ".join(texts(3, 40))]}
    for name, value in found.items():
        lines = [json.dumps({"text": t, "url": f"https://{name}.test/{i}"}) for i, t in enumerate(value)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = {name: {"from": "jsonl", "path": str(folder / f"{name}.jsonl"), "url": "url"} for name in found}
    build(folder, {**RECIPE, "sources": sources, **keys})
    return folder / "build" / "small" / "anneal"


def edit(folder: Path, change: Any) -> None:
    """Change the manifest in `folder`, as a forger who mends its digest would: `change(value)` edits it in place."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.unlink()
    path.write_text(manifest_text(value))


def replace(path: Path, data: bytes) -> None:
    """Write a file anew: what is published may be a hard link into the store."""
    path.unlink()
    path.write_bytes(data)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of the byte at `at` (from the end if negative)."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    replace(path, bytes(data))


def patch_hashes(folder: Path) -> None:
    """Make every sha256 of the manifest that of the file as it now is: what a careful forger would do."""

    def change(value: dict[str, Any]) -> None:
        for entry in (value["tokenizer"], value["val_ids"], *value["shards"]):
            for name in ("path", "index", "rows"):
                if name in entry and (folder / entry[name]).is_file():
                    entry["sha256" if name == "path" else f"{name}_sha256"] = sha256_file(folder / entry[name])

    edit(folder, change)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy whose files share nothing with the original."""
    shutil.copytree(folder, target)
    return target
