"""Shards that were made elsewhere: adopted, verified, trained on, and nothing claimed of where they came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from built import edit
from commands import cli
from trainer_harness import BOS, PAD, losses, sets, text, write_tokenizer

from stages.errors import DataError
from stages.pack.adopt import adopt
from stages.pack.verify import verify
from train.config import TrainError
from train.data.manifest import ManifestError, load_manifest
from train.main import run

IDS = 258  # of the tokenizer that write_tokenizer makes
RECIPE = """
name: foreign
sources: {none: {from: jsonl, path: none.jsonl}}
mixtures: {pretrain: {tokens: 1k, ratios: {none: 100%}}}
model: {dim: 32, n_layers: 2, n_heads: 2, max_seq_len: 64, sliding_window: 16}
train:
  pretrain: {steps: 4, batch_size: 8, seq_len: 32, order: sequential, log_every: 1, eval_tokens: 1024, eval_every: 0}
"""


def write_foreign(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> None:
    """A shard as llm.c's scripts write it: three slots of a header and tokens."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())


@pytest.fixture
def folder(tmp_path):
    """Two shards to train on, one held out, and the tokenizer elsewhere."""
    (tmp_path / "shards").mkdir()
    write_tokenizer(tmp_path / "tokenizer.json")
    for number, name in enumerate(["train_000000", "train_000001", "val_000000"]):
        ids = [i for n in range(20) for i in (BOS, *text(100 * number + n, 60))]
        write_foreign(tmp_path / "shards" / f"fineweb_{name}.bin", np.array(ids))
    (tmp_path / "foreign.yaml").write_text(RECIPE)
    return tmp_path / "shards"


def tokenizer_of(folder: Path) -> str:
    return str(folder.parent / "tokenizer.json")


def test_adopted_shards_are_described_and_verified(folder):
    manifest = adopt(folder, tokenizer_of(folder), "<|bos|>", None)
    assert manifest.adopted and not manifest.sources and manifest.recipe["train"] == {"pretrain": {}}
    assert [s.split for s in manifest.shards] == ["train", "train", "val"]
    assert (manifest.tokenizer.bos_id, manifest.tokenizer.pad_id) == (BOS, PAD)
    assert [s.index for s in manifest.shards] == [""] * 3
    assert list(verify(load_manifest(folder))) == []
    path = folder / manifest.shards[1].path
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "sha256 differs from the manifest's"),
        (whole[:-2], "sha256 differs from the manifest's"),
        (None, "missing"),
    ):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert list(verify(load_manifest(folder))) == [f"{path.name}: {message}"]
        path.write_bytes(whole)


def test_a_forged_manifest_of_adopted_shards(folder):
    """Whatever of it can be known is checked; an edit mends the digest as a forger would."""
    manifest = adopt(folder, tokenizer_of(folder), None, None)
    clean = (folder / "manifest.json").read_bytes()
    forged = {
        "build_id": "0" * 64,
        "tokens": manifest.tokens + 1,
        "val_tokens": 0,
        "documents": 7,
        "name": "other",
        "files": {"web": [{"name": "a", "bytes": 1, "digest": "b"}]},
        "val_ids": {**dataclasses.asdict(manifest.val_ids), "rule": "none"},
        "shards": [{**dataclasses.asdict(s), "rows": "x", "documents": 3} for s in manifest.shards],
    }
    for key, value in forged.items():
        edit(folder, lambda manifest, key=key, value=value: manifest.update({key: value}))
        assert list(verify(load_manifest(folder))), key
        (folder / "manifest.json").write_bytes(clean)
    for name, value in dataclasses.asdict(manifest.shards[0]).items():
        changed = "x" + value if isinstance(value, str) else value + 1
        edit(folder, lambda manifest, name=name, value=changed: manifest["shards"][0].update({name: value}))
        assert list(verify(load_manifest(folder))), name
        (folder / "manifest.json").write_bytes(clean)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-2], "but its header says"),
        (lambda raw: raw[:1000], "shorter than a shard's header"),
        (lambda raw: b"\1" + raw[1:], "not a token shard"),
        (lambda raw: raw[:12] + b"\2" + raw[13:], "shard format 2"),
        (lambda raw: raw[:-2] + IDS.to_bytes(2, "little"), f"holds token {IDS}, the vocabulary has {IDS} ids"),
        (lambda raw: np.array([20240801, 7], "<i4").tobytes() + raw[8:], "but its header says"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_what_cannot_be_adopted_is_named(folder, split, damage, message):
    path = folder / f"fineweb_{split}_000000.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((DataError, ManifestError), match=rf"{path.name}: .*{message}"):
        adopt(folder, tokenizer_of(folder), None, None)
    assert {p.suffix for p in folder.iterdir()} == {".bin"}, "nothing is left behind"


def test_what_is_held_out_is_not_trained_on(folder):
    """Neither under one name that says both, nor under two; and there is something of each."""
    held_out = folder / "fineweb_val_000000.bin"
    whole = held_out.read_bytes()
    for name, data, message in (
        ("a_train_b_val_c.bin", whole, "a_train_b_val_c.bin: is named as one to train on and as one held out"),
        ("fineweb_train_000009.bin", whole, f"{held_out.name}: holds what fineweb_train_000009.bin does"),
        (held_out.name, whole[:8] + bytes(1016), "_val_.*hold no token"),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            adopt(folder, tokenizer_of(folder), None, None)
        assert {p.suffix for p in folder.iterdir()} == {".bin"}, "nothing is left behind"
        (folder / name).unlink()
        held_out.write_bytes(whole)


def test_ids_of_another_width_are_refused(folder):
    write_foreign(folder / "fineweb_train_000002.bin", np.arange(9), 20240801, 7, "<u4")
    with pytest.raises(DataError, match=r"train_000002\.bin: has ids of 4 bytes, those of a vocabulary of 258 have 2"):
        adopt(folder, tokenizer_of(folder), None, None)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        adopt(tmp_path / "nowhere", tokenizer_of(folder), None, None)
    adopt(folder, tokenizer_of(folder), None, None)
    with pytest.raises(DataError, match=r"manifest\.json: is there already; delete it"):
        adopt(folder, tokenizer_of(folder), None, None)
    (folder / "manifest.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: is there already, and is another"):
        adopt(folder, tokenizer_of(folder), None, None)
    (folder / "tokenizer.json").unlink()
    outside = tmp_path / "outside.bin"
    (folder / "fineweb_val_000000.bin").rename(outside)
    with pytest.raises(DataError, match=r"no file named \*_val_\*\.bin"):
        adopt(folder, tokenizer_of(folder), None, None)
    (folder / "fineweb_val_000000.bin").symlink_to(outside)
    with pytest.raises(DataError, match=r"val_000000\.bin: is a link that leads out"):
        adopt(folder, tokenizer_of(folder), None, None)


@pytest.mark.slow
def test_adopted_shards_train_and_their_lineage_is_unknown(folder, tmp_path):
    done = cli(
        "adopt", str(folder), "--tokenizer", tokenizer_of(folder), "--recipe", str(tmp_path / "foreign.yaml"), "--set",
        "train.pretrain.steps=5",
    )  # fmt: skip
    assert done.returncode == 0 and "torchrun train/main.py --manifest" in done.stdout, done.stderr
    run(folder, sets(out=str(tmp_path / "run")))
    values = losses(tmp_path / "run")
    assert list(values) == [1, 2, 3, 4, 5] and values[5] < values[1]
    with pytest.raises(TrainError, match=r"train\.document_mask: .* was adopted"):
        run(folder, sets(out=str(tmp_path / "masked"), document_mask=True))
    assert cli("verify", str(folder)).stdout.endswith(
        "their lineage is unknown: they were made elsewhere and adopted\n"
    )
    shown = cli("inspect", str(folder), "--length", "20").stdout
    assert "<|bos|>" in shown and "which documents these are is not known" in shown
    for command in (
        ("trace", "--shard", "0", "--token", "5"),
        ("trace", "--run", str(tmp_path / "run"), "--step", "2"),
        ("find", "--text", "the model"),
        ("rebuild", "--out", str(tmp_path / "again")),
    ):
        asked = cli(command[0], str(folder), *command[1:])
        assert asked.returncode == 1 and "its lineage is unknown: the shards were made elsewhere" in asked.stderr
    same = cli("diff", str(folder), str(folder)).stdout
    assert "its documents are not known, and not compared" in same and "no difference" in same


def test_the_manifest_says_adopted_only_where_it_is(folder):
    adopt(folder, tokenizer_of(folder), None, None)
    value = json.loads((folder / "manifest.json").read_text())
    assert value["adopted"] is True and "evals" not in value
