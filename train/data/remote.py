"""A manifest in a bucket, whose files are copied to this machine when they are needed (train/data/shard_cache.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.bucket import Bucket
from train.config import TrainConfig
from train.data.manifest import (
    HASH_LIMIT,
    RECIPE,
    Manifest,
    ManifestError,
    load_manifest,
    options_noted,
    pack_command,
    parse_manifest,
)
from train.data.sampler import shards_in_order_of_need
from train.data.shard_cache import CachedFile, ShardCache, check_size
from train.sealed import parse_sealed

BUILDS = "builds"  # <recipe>/builds/<name>/ holds a build, and <recipe>/<mixture>.json names the one that is published


class RemoteManifest(Manifest):
    """A manifest in a bucket; `folder` is its address."""

    cache: ShardCache

    def file(self, relative: str) -> Path:
        """Return the path of a copy of a file that the manifest names, made now if need be. Raises ManifestError."""
        return self.cache.fetch(relative)

    def path(self, relative: str) -> Path:
        """Return where the copy of a file lies, or will."""
        return self.cache.path(relative)

    def pack_command(self) -> str:
        """Return the command that packs this mixture."""
        return remote_pack_command(self.cache.bucket, self.folder)

    def restore(self, path: str) -> None:
        """Copy a file here again that was deleted, to make room or by others."""
        self.cache.fetch(str(Path(path).relative_to(self.cache.folder)))


def is_address(path: str | Path) -> bool:
    """Return whether `path` is an address in a bucket, and no file of this machine."""
    return "://" in str(path) and not Path(path).exists()


def open_manifest(path: str | Path) -> Manifest:
    """Read a manifest.json, or the one of a folder, on this machine or in a bucket.

    Raises ManifestError, and BucketError and UnavailableError of a bucket.
    """
    if not is_address(path):
        return load_manifest(path)
    folder = str(path).rstrip("/").removesuffix("/manifest.json")
    bucket = Bucket(folder)
    build = published_build(bucket, folder)
    file = f"{build}/manifest.json"

    def again() -> str:
        return remote_pack_command(bucket, folder)

    try:
        raw = bucket.get(file)
    except FileNotFoundError:
        raise ManifestError(f"{file}: no such manifest; build one with `{again()}`") from None
    loaded = parse_manifest(raw, file, again)
    manifest = RemoteManifest(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})
    files = {file.path: CachedFile(file.sha256) for file in loaded.packed_files()}
    files |= {shard.path: CachedFile(shard.sha256, shard.bytes) for shard in loaded.shards}
    cache = ShardCache(bucket, build, hashlib.sha256(raw).hexdigest()[:16], files, manifest.pack_command)
    for attribute, value in (("folder", folder), ("cache", cache)):
        object.__setattr__(manifest, attribute, value)  # Manifest is frozen
    return manifest


@contextlib.contextmanager
def copied(manifest: Manifest, cfg: TrainConfig) -> Iterator[None]:
    """Keep copies of what a manifest in a bucket names, as `cfg` says, while inside; copies that are damaged go first.

    Raises TrainError where the cache cannot be made, or is too small.
    """
    if not isinstance(manifest, RemoteManifest):
        yield
        return
    cache = manifest.cache
    cache.use(cfg.cache, cfg.cache_gb)
    with contextlib.closing(cache):
        check_size(manifest, cfg, cache.limit)
        if sum(shard.bytes for shard in manifest.shards) <= HASH_LIMIT:
            cache.drop_damaged(shard.path for shard in manifest.shards)
        yield


def fetch_ahead(manifest: RemoteManifest, cfg: TrainConfig, step: int, by_source: bool) -> None:
    """Begin to copy the training shards in the order in which steps from 0-based `step` on read them.

    by_source: whose tokens they are is read too.
    """
    shards = manifest.split("train")
    indexed = by_source or cfg.document_mask or any(shard.padding for shard in shards)

    def order(step: int) -> Iterator[str]:
        for number in shards_in_order_of_need(manifest, cfg, step):
            yield shards[number].path
            if indexed:
                yield shards[number].index
            if by_source:
                yield shards[number].rows

    manifest.cache.fetch_ahead(order, step)


def published_build(bucket: Bucket, folder: str) -> str:
    """Return the address of the build that is published as `folder`; itself where nothing else is said to be."""
    recipe, _, _ = folder.rpartition("/")
    pointer = read_json(bucket, f"{folder}.json").get("build")
    if isinstance(pointer, str) and "/" not in pointer:
        recipe = recipe.removesuffix(f"/{BUILDS}")
        return f"{recipe}/{BUILDS}/{pointer}"
    return folder


def remote_pack_command(bucket: Bucket, folder: str) -> str:
    """Return the command that packs the mixture in `folder`, with the options of its last run where they are noted."""
    recipe, _, name = folder.rpartition("/")
    recipe = recipe.removesuffix(f"/{BUILDS}")
    noted = read_json(bucket, f"{recipe}/{RECIPE}")
    return pack_command(Path(name.partition("-")[0]), options_noted(noted or None, recipe.rpartition("/")[0]))


def read_json(bucket: Bucket, path: str) -> dict[str, Any]:
    """Return what a small object of JSON says; nothing where there is none, or it is damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return parse_sealed(bucket.get(path))
    return {}
