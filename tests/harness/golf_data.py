"""The tokens that the golden runs of the two parameter-golf systems are made on, as a mixture (golf.md 5).

Two training shards and one for validation, of numbers drawn by a linear congruential generator; and the bytes of the
toy tokenizer's 64 ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from trainer_harness import BUILD_ID, write_manifest

from train.data.format import Header, write_index
from train.data.manifest import Shard, Tokenizer, load_manifest

SHARDS = {"toy_train_000000": (1, 3000), "toy_train_000001": (7, 2000), "toy_val_000000": (99, 331)}  # seed, tokens
VAL_TARGETS, VAL_BYTES = 320, 819  # whole rows of 16
UNKNOWN, BOS, EOS = 0, 1, 2  # 3 is unused, 4 to 7 are bytes


def toy_stream(seed: int, count: int) -> list[int]:
    """Return `count` ids below 64."""
    ids = []
    for _ in range(count):
        ids.append(seed >> 16 & 63)
        seed = (1103515245 * seed + 12345) % 2**31
    return ids


def toy_text_bytes() -> tuple[list[int], list[int]]:
    """Return bytes by id, and the ids with a space in front."""
    lengths, space_ids = [0, 0, 0, 0, 1, 1, 1, 1], []
    for i in range(8, 64):
        lengths.append((i % 4 + (i % 3 != 0)) * (2 if i % 5 == 0 else 1))
        space_ids += [i] if i % 3 == 0 else []
    return lengths, space_ids


def make_toy_mixture(folder: Path, model: dict[str, Any], phases: dict[str, dict[str, Any]], phase: str) -> Path:
    """Write the shards and a manifest into `folder`. Returns the manifest's path."""
    folder.mkdir(parents=True)
    shards = []
    for name, (seed, count) in SHARDS.items():
        tokens = np.array(toy_stream(seed, count), "<u2")
        data = Header(count, 64, BOS, 1, BUILD_ID[:16]).pack() + tokens.tobytes()
        (folder / f"{name}.bin").write_bytes(data)
        write_index(str(folder / f"{name}.idx"), np.array([count]), np.array([0]))
        split = name.split("_")[1]
        sha = hashlib.sha256(data).hexdigest()
        rows = f"{name}.rows.parquet"
        shards.append(Shard(f"{name}.bin", split, count, 1, len(data), sha, f"{name}.idx", "", rows, "", ""))
    path = write_manifest(folder, shards, model, phases, phase)
    written = load_manifest(path).tokenizer
    specials = {"<s>": BOS, "</s>": EOS}
    tokenizer = Tokenizer(written.path, written.sha256, 64, BOS, EOS, specials, *toy_text_bytes())
    path.write_text(dataclasses.replace(load_manifest(path), tokenizer=tokenizer).to_json())
    return path
