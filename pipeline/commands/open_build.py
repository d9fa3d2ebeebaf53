"""The manifest of a published build, on a disk or in a bucket, for commands that read it and its shards."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.engine.object_store import BUILDS, ObjectStore
from pipeline.errors import UserError
from stages.paths import is_remote, refuse_secrets
from train.data.manifest import Manifest, load_manifest, pack_command

KEPT = 24  # files of a build that are on this machine at a time: a shard, its index and its rows are three


class Copies(Mapping[str, Path]):
    """Published objects by name, each copied to this machine when it is asked for; the oldest of KEPT goes then."""

    def __init__(self, store: ObjectStore, files: dict[str, str]):
        """files: name -> address."""
        self.store, self.files = store, files
        self.folder = store.scratch.new_folder()
        self.here: deque[str] = deque()

    def __getitem__(self, name: str) -> Path:
        target = self.folder / name
        if name not in self.here:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.store.bucket.download(self.files[name], target)
            self.here.append(name)
            if len(self.here) > KEPT:
                (self.folder / self.here.popleft()).unlink()
        return target

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class BucketManifest(Manifest):
    """A manifest in a bucket; what it names is copied to this machine file by file. `folder` is its address."""

    store: ObjectStore
    copies: Copies
    recipe_name: str

    def file(self, relative: str) -> Path:
        """Return the path of a copy of a file that the manifest names; of one that is not there, where it would be."""
        if relative in self.copies:
            try:
                return self.copies[relative]
            except FileNotFoundError:
                pass
        return self.copies.folder / "missing" / Path(relative).name

    def beside(self, folder: str) -> Mapping[str, Path]:
        """Return name -> copy of the files in another published folder of the recipe; none if it is not there."""
        return Copies(self.store, self.store.published(self.recipe_name, folder))

    def pack_command(self) -> str:
        """Return the command that packs this mixture."""
        return pack_command(Path(self.mixture), self.store.run_options(self.recipe_name))


def open_build(address: str) -> Manifest:
    """Read the manifest at `address`, its own or that of its folder. Raises ManifestError and UserError."""
    if not is_remote(address):
        return load_manifest(address)
    try:
        refuse_secrets(address)  # before a part of it without its `@` is repeated
    except ValueError as error:
        raise UserError(f"the manifest: {error}") from None
    folder = address.rstrip("/").removesuffix("/manifest.json")
    parts = folder.split("/")
    depth = 3 if parts[-2:-1] == [BUILDS] else 2  # <out>/<recipe>/builds/<name>, or <out>/<recipe>/<mixture>
    if len(parts) < depth + 3 or not all(parts[2:]):
        raise UserError(
            f"{address}: the address of a manifest is SCHEME://BUCKET/[FOLDER/]RECIPE/MIXTURE/manifest.json"
        )
    store = ObjectStore("/".join(parts[:-depth]))
    recipe, name = parts[-depth], "/".join(parts[1 - depth :])
    copies = Copies(store, store.published(recipe, name))
    if "manifest.json" not in copies:
        again = pack_command(Path(name), store.run_options(recipe))
        raise UserError(f"{folder}: no build is published there; build one with `{again}`")
    try:
        loaded = load_manifest(copies["manifest.json"])
    except FileNotFoundError:
        again = pack_command(Path(name), store.run_options(recipe))
        raise UserError(f"{folder}: its manifest.json is gone; bring it back with `{again}`") from None
    values = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
    manifest = BucketManifest(**{**values, "folder": folder})
    for attribute, value in (("store", store), ("copies", copies), ("recipe_name", recipe)):
        object.__setattr__(manifest, attribute, value)  # Manifest is frozen, and these are not of its values
    return manifest
