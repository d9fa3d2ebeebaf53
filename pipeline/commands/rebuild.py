"""`rebuild`: build a mixture again from its manifest alone, and compare every byte.

Before anything is built, all that decides the bytes is held against the manifest: the code of every unit, the versions
of Python and the libraries, and each file of each source. What differs is named, and the rebuild refused.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.open_build import open_build
from pipeline.engine import fingerprint
from pipeline.engine.store import Store, open_store
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from stages.lineage.diff import changes
from stages.lineage.inputs import changed_inputs, check_protocols, entries_that_read
from stages.lineage.rows import check_lineage
from stages.paths import is_remote, local_path
from stages.recipe import Recipe
from train.data.manifest import Manifest
from train.files import sha256_file
from train.monitor.text import printable


def recipe_of(manifest: Manifest, source_paths: Mapping[str, str]) -> Recipe:
    """Return the manifest's recipe, with sources read from `source_paths` where named.

    Raises UserError, and DataError where the shards were adopted.
    """
    check_lineage(manifest)
    recipe = copy.deepcopy(manifest.recipe)
    entries = entries_that_read(recipe)
    for name, path in source_paths.items():
        if name not in entries:
            raise UserError(f"--source {name}: the manifest's sources are {', '.join(sorted(entries))}")
        if "path" not in entries[name]:
            raise UserError(f"--source {name}: it is of kind {entries[name]['from']}, which has no path")
        # As absolute as it can be: the build may run in other processes.
        entries[name]["path"] = path if is_remote(path) else str(Path(local_path(path)).absolute())
    models = {
        f"scores.{name}": {"path": score.get("fasttext") or []} for name, score in recipe.get("scores", {}).items()
    }
    for name, entry in {**entries, **models}.items():
        if name not in source_paths:
            check_protocols(name, entry)
    return parse_recipe(recipe, "the manifest's recipe")


def require_empty(out: str) -> None:
    """Raise UserError when the folder to build in holds anything: a rebuild must find nothing built.

    Digests of source files may lie there: they are all that a refused rebuild leaves.
    """
    if is_remote(out):
        if open_store(out).names(out):
            raise UserError(f"--out {out}: is not empty; name a new prefix, so that nothing built before is used")
        return
    root = Path(out)
    unbuilt = {root / "store", root / "store" / "inputs"}
    existing = {*root.glob("*"), *root.glob("store/*")}
    if (root.exists() and not root.is_dir()) or not existing <= unbuilt:
        raise UserError(f"--out {out}: is not empty; name a new folder, so that nothing built before is used")


def require_same_inputs(
    manifest: Manifest, recipe: Recipe, store: Store, source_paths: Mapping[str, str], anyway: bool
) -> None:
    """Print all that differs; raise UserError if the same bytes cannot come out. `anyway`: code may differ."""
    code_changes = [*changed_code(manifest), *changed_versions(manifest)]
    source_changes = list(changed_inputs(manifest, recipe, store.identify, source_paths))
    for line in (*code_changes, *source_changes):
        print(printable(f"differs: {line}"))
    if source_changes:
        raise UserError(
            f"not rebuilt: {len(source_changes)} differences in the sources; bring back what they were, or say where "
            "it is with --source NAME=PATH"
        )
    if code_changes and not anyway:
        raise UserError(
            f"not rebuilt: {len(code_changes)} differences in code or versions; check out and install what they were, "
            "or see with --anyway whether they matter"
        )


def changed_code(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each module whose meaning is not what it was when the manifest was made."""
    if not manifest.code:
        yield "code: the manifest does not say which code built it"
    for name, digest in manifest.code.items():
        try:
            now = fingerprint.modules_of(name)[name]
        except (AssertionError, KeyError, FileNotFoundError):
            yield f"code: module {name} is not there any more"
            continue
        if now != digest:
            yield f"code: module {name} has changed"


def changed_versions(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each library of another version, Python among them."""
    now = fingerprint.versions(tuple(name for name in manifest.versions if name != "python"))
    for name, version in manifest.versions.items():
        if now[name] != version:
            yield f"version: {name} is {now[name]}, it was {version}"


def require_same_outputs(manifest: Manifest, out: str, source_paths: Mapping[str, str]) -> None:
    """Compare what was built under `out`; print each difference. Raises UserError when there is any."""
    folder = f"{out.rstrip('/')}/{manifest.name}/{manifest.mixture}"
    built = open_build(folder)
    num_differences = 0
    for line in (*changed_files_packed(manifest, built), *changed_figures(manifest, built, source_paths)):
        num_differences += 1
        print(printable(f"differs: {line}"))
    if num_differences:
        raise UserError(f"{folder}: {num_differences} differences; the rebuild is not what the manifest says")
    count = len(manifest.packed_files())
    print(f"{folder}: {count} files rebuilt, every sha256 as the manifest has it, build {manifest.build_id[:16]}")


def changed_files_packed(manifest: Manifest, built: Manifest) -> Iterator[str]:
    """Yield a line for each file beside the manifest `built` whose bytes are not those that `manifest` names."""
    packed = manifest.packed_files()
    for name, digest in packed:
        file = built.file(name)
        if not file.is_file():
            yield f"{name}: was not built"
        elif sha256_file(file) != digest:
            yield f"{name}: its bytes are not the manifest's"
    known = {name for name, _ in packed} | {"manifest.json"}
    for name in built.beside(built.mixture):
        if name not in known:
            yield f"{name}: was not in the manifest"


def changed_figures(manifest: Manifest, built: Manifest, source_paths: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each value in which the manifest `built` differs from `manifest`."""
    before, now = manifest_values(manifest), manifest_values(built)
    for name in source_paths:
        forget_place(name, before, now)
    for key, old, new in changes(before, now):
        yield f"manifest.json: {key} is {str(new)[:60]}, not {str(old)[:60]}"


def manifest_values(manifest: Manifest) -> dict[str, Any]:
    """Return what a manifest says, without its digest."""
    values = dataclasses.asdict(manifest)
    del values["folder"], values["digest"]
    return values


def forget_place(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Copy from `before` to `now` what says only where the files of source `name` were."""
    entries_that_read(now["recipe"])[name]["path"] = entries_that_read(before["recipe"])[name]["path"]
    if name in before["files"]:
        now["files"][name] = before["files"][name]
    for group in ("sources", "evals"):
        for old, new in zip(before[group], now[group], strict=False):
            if old["name"] == new["name"] == name:
                new |= {key: old[key] for key in ("origin", "revision", "files") if key in old}
