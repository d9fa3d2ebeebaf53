"""`export`: tokens, or the tokenizer, of a build in the files that another trainer reads."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UsageError, UserError
from pipeline.publish.export_readme import readme
from pipeline.publish.tiktoken_ranks import write_tiktoken
from pipeline.publish.token_files import SPLITS, Written, write_ds, write_olmo, write_raw, write_vocabulary
from stages.lineage.rows import check_lineage
from train.config import TrainError
from train.data.manifest import Manifest, Shard
from train.data.tokens import token_dtype
from train.export import write_tokenizer
from train.files import fsync_path

NEWS_EVERY = 10.0  # seconds
TOKENIZER = "tokenizer"  # the folder of an export that transformers' AutoTokenizer opens
WRITERS: dict[str, Callable[[Manifest, Shard, Path, str], Written]] = {
    "raw": write_raw,
    "olmo": write_olmo,
    "ds": write_ds,
}
FORMATS = (*WRITERS, "tiktoken")


def export_build(manifest: Manifest, out: Path, form: str) -> None:
    """Write the tokens of a build, or its tokenizer, as `form` into the new folder `out`, whole or not at all.

    Raises UsageError, UserError, ManifestError and DataError.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form}: allowed are {', '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"{out} is there already and is never overwritten; name a new folder")
    unfinished = out.absolute().with_name(f".part-{out.name}-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        if form == "tiktoken":
            write_tiktoken(manifest, unfinished)
            written = {}
        else:
            written = write_tokens(manifest, unfinished, form, out)
        text = readme(manifest, out, form, written)
        (unfinished / "README.md").write_text(text, encoding="utf-8")
        for path in unfinished.rglob("*"):
            fsync_path(path)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(text, end="")


def write_tokens(manifest: Manifest, folder: Path, form: str, out: Path) -> dict[str, Written]:
    """Write all shards to train on and those held out of the whole mixture. Returns split -> what there is of it.

    folder: where they are written; out: where they will lie.
    """
    check_lineage(manifest)
    check_room(manifest, folder)
    name = save_tokenizer(manifest, folder / TOKENIZER, out)
    written: dict[str, Written] = {}
    shards = [shard for split in SPLITS for shard in manifest.split(split)]
    began = said = time.monotonic()
    done = 0
    for number, shard in enumerate(shards, 1):
        if form != "raw":
            (folder / shard.split).mkdir(exist_ok=True)
        more, so_far = WRITERS[form](manifest, shard, folder, name), written.get(shard.split, Written(0, 0))
        written[shard.split] = Written(so_far.tokens + more.tokens, so_far.documents + more.documents)
        done += more.tokens
        if time.monotonic() > said + NEWS_EVERY or number == len(shards):
            said = time.monotonic()
            rate = done / 1e6 / max(said - began, 1e-3)
            print(f"{number:,} of {len(shards):,} shards, {done:,} tokens, {rate:,.0f} M tokens/s", flush=True)
    if form == "raw":
        write_vocabulary(manifest, folder / "meta.pkl")
    return written


def check_room(manifest: Manifest, folder: Path) -> None:
    """Raise UserError where the disk has less room than the tokens take."""
    need = (manifest.tokens + manifest.val_tokens) * token_dtype(manifest.tokenizer.vocab_size).itemsize
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"{folder.parent} has {free / 1e9:.1f} GB free, the tokens take {need / 1e9:.1f} GB")


def save_tokenizer(manifest: Manifest, folder: Path, out: Path) -> str:
    """Write the tokenizer as transformers opens it, or else as it is. Returns the path that it will have."""
    path = manifest.file(manifest.tokenizer.path)
    folder.mkdir()
    try:
        write_tokenizer(path, manifest.tokenizer, None, folder)
    except TrainError as error:
        print(f"note: transformers has no form of the tokenizer, which is copied as it is ({error})")
        shutil.copyfile(path, folder / path.name)
    return str(out.absolute() / folder.name)
