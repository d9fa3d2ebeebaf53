"""`export` as a command: from a bucket, cut short, refused; and the tokenizer as tiktoken reads it.

What the other trainers read of it is in tests/peers/test_peers.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import Inline, copy_of, flip, small
from hypothesis import given
from hypothesis import strategies as st
from s3_server import S3Server
from tokenizer_harness import TEXTS, reference_tokenizer

from pipeline.commands.open_build import open_build
from pipeline.engine.context import Context, drive
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.errors import UsageError, UserError
from pipeline.publish import token_files
from pipeline.publish.export import export_build
from pipeline.publish.export_readme import readme
from pipeline.publish.tiktoken_ranks import pattern_of, ranks_of
from pipeline.publish.token_files import Written
from pipeline.recipe import parse_recipe
from stages.errors import DataError
from stages.pack.adopt import adopt
from stages.registry import STAGES
from stages.tokenizer.encoder import hostile
from stages.tokenizer.spec import SPECIALS, load_text_encoder
from train.data.manifest import load_manifest
from train.tokenizer.vocabulary import byte_alphabet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build."""
    return small(tmp_path_factory.mktemp("local"))


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files below a folder, without the README and the .metadata, which name the folder."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".metadata")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@given(
    documents=st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(0, 3))),
    batch=st.integers(1, 64),
    wide=st.booleans(),
)
def test_any_documents_come_out_whole_and_ended(documents: list[Any], batch: int, wide: bool) -> None:
    bos, pad, rng = 7, 8, np.random.default_rng(0)
    tokens, starts, want = [pad], [], []
    for length, opens, padding in documents:
        text = rng.integers(9, 70_000 if wide else 60_000, length - opens).tolist()
        starts.append(len(tokens))
        tokens += [bos] * opens + text + [pad] * padding
        want.append([*text, bos])
    counts = np.array([length for length, *_ in documents], np.int64)
    shard = np.array(tokens, "<u4" if wide else "<u2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "BATCH_TOKENS", batch)
        found = list(token_files.stretches(shard, counts, np.array(starts, np.int64), bos))
    split = [part.tolist() for stretch in found for part in np.split(stretch.tokens, stretch.ends)[:-1]]
    assert split == want
    assert all(stretch.tokens.dtype == shard.dtype and stretch.ends[-1] == len(stretch.tokens) for stretch in found)
    assert all(len(stretch.tokens) <= 2 * (batch + 31) for stretch in found)


@pytest.mark.slow
def test_a_build_in_a_bucket_is_exported_alike(local: Path, s3: S3Server, tmp_path: Path) -> None:
    out = f"{s3.new_bucket()}/out"
    context = Context(parse_recipe(load_manifest(local).recipe, "test"), open_store(out), Inline, Progress(True))
    drive(context, context.stage(STAGES["pack_anneal_mix"]))
    for form in ("raw", "olmo", "ds", "tiktoken"):
        export_build(load_manifest(local), tmp_path / f"{form} of a disk", form)
        export_build(open_build(f"{out}/small/anneal"), tmp_path / form, form)
        assert contents(tmp_path / form) == contents(tmp_path / f"{form} of a disk")


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.publish import export
from train.data.manifest import load_manifest

write, calls = export.WRITERS["ds"], []
def die_at_the_third(*given):
    calls.append(given)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*given)
export.WRITERS["ds"] = die_at_the_third
export.export_build(load_manifest(sys.argv[1]), Path(sys.argv[2]), "ds")
"""


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder(local: Path, tmp_path: Path) -> None:
    places = [str(local), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", KILLED, *places], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name[:9] for path in tmp_path.iterdir()] == [".part-out"]
    command = [sys.executable, "-m", "pipeline", "export", *places, "--format", "ds"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out/README.md").read_text() in again.stdout
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and "never overwritten" in refused.stderr


def test_what_cannot_be_exported_is_refused(local: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="--format mds: allowed are raw, olmo, ds, tiktoken"):
        export_build(load_manifest(local), out, "mds")
    damaged = copy_of(local, tmp_path / "damaged")
    flip(next(iter(sorted(damaged.glob("*_train_*.bin")))), 1500)
    with pytest.raises(UserError, match=r"_train_000000\.bin: sha256 differs .*mend it with `python -m pipeline run"):
        export_build(load_manifest(damaged), out, "raw")
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in local.glob("small_anneal_train_*.bin"):
        (shards / path.name).write_bytes(path.read_bytes())
    (shards / "x_val_000000.bin").write_bytes(next(local.glob("small_anneal_val_*.bin")).read_bytes())
    adopted = adopt(shards, str(local / "tokenizer.json"), None, None, None)
    with pytest.raises(DataError, match="its lineage is unknown"):
        export_build(adopted, out, "olmo")
    assert not out.exists() and not list(tmp_path.glob(".part*"))


def test_what_a_reader_must_change_is_said(local: Path) -> None:
    manifest = load_manifest(local)
    wide = dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, vocab_size=70_000))
    text = readme(wide, Path("out"), "raw", {"train": Written(manifest.tokens + manifest.val_tokens + 2, 9)})
    for said in ("are uint32", "write `dtype=np.uint32`", "val.bin is missing", "2 tokens end further parts of doc"):
        assert said in text, said
    assert "np.uint32" not in readme(manifest, Path("out"), "raw", {"train": Written(9, 9), "val": Written(9, 9)})


# ---------------------------------------------------------------------------------------------------------------------
# tiktoken


@pytest.mark.parametrize(("split", "digits"), [("gpt4", None), ("gpt4", 1), ("gpt4_marks", 2), ("gpt2", None)])
def test_tiktoken_gives_the_same_ids(split: str, digits: int | None, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, of the extra bench, is not installed")
    real = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = reference_tokenizer([*TEXTS, *real[::2]], 3000, split, digits)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    definition = json.loads(tokenizer.to_str())
    ranks, encoder = ranks_of(definition, "here"), load_text_encoder(str(path))
    encoding = tiktoken.Encoding("x", pat_str=pattern_of(definition, "here"), mergeable_ranks=ranks, special_tokens={})
    for text in [*real, *TEXTS, *hostile(SPECIALS)]:
        ids = encoder.encode(text, add_special_tokens=False).ids
        assert encoding.encode_ordinary(text) == ids, text[:80]
        assert encoding.decode(ids) == text


def test_the_lines_of_the_readme_open_the_encoding(local: Path, tmp_path: Path) -> None:
    pytest.importorskip("tiktoken", reason="tiktoken, of the extra bench, is not installed")
    out = tmp_path / "out"
    export_build(load_manifest(local), out, "tiktoken")
    lines = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(lines, names)
    assert names["ids"] == load_text_encoder(str(local / "tokenizer.json")).encode("A text").ids
    encoding, special = names["encoding"], load_manifest(local).tokenizer.special_ids
    assert encoding.encode("<|bos|>a", allowed_special="all")[0] == special["<|bos|>"] == 0
    assert encoding.n_vocab == 400


def merged(*merges: str) -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes and these merges, in this order."""
    vocab = dict(byte_alphabet())
    for merge in merges:
        vocab.setdefault(merge.replace(" ", ""), len(vocab))
    return {"model": {"type": "BPE", "vocab": vocab, "merges": list(merges)}, "added_tokens": []}


def test_merges_that_tiktoken_would_make_otherwise_are_refused() -> None:
    assert ranks_of(merged("a b", "ab c", "c d", "abc d"), "here")[b"abcd"] == 259
    for merges in (("b c", "a b", "ab c"), ("a b", "c d", "ab cd", "abc d"), ("a b", "a b")):
        with pytest.raises(UserError, match=r"the merge of|tokens without a merge, or with two"):
            ranks_of(merged(*merges), "here")
    swapped = merged("a b", "c d")
    swapped["model"]["merges"].reverse()
    with pytest.raises(UserError, match="the merge of 'a' and 'b'"):
        ranks_of(swapped, "here")
    with pytest.raises(UserError, match="adds the token '   ' for text"):
        ranks_of(merged() | {"added_tokens": [{"content": "   ", "id": 300, "special": False}]}, "here")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for odd in ({"type": "Digits", "individual_digits": True}, {"type": "Split", "pattern": {"String": " "}}):
        with pytest.raises(UserError, match="tiktoken by one pattern"):
            pattern_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [odd, byte_level]}}, "here")
