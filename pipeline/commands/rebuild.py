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

from pipeline.engine import fingerprint
from pipeline.engine.store import Store
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from stages.errors import DataError
from stages.evals.stage import units_of
from stages.lineage.diff import changes
from stages.pack.stage import PACK
from stages.paths import is_remote, local_path
from stages.recipe import Recipe
from stages.sources.registry import SOURCES, describe, pin
from train.data.manifest import Manifest, SourceFile, load_manifest
from train.files import sha256_file


def recipe_of(manifest: Manifest, places: Mapping[str, str]) -> Recipe:
    """The manifest's recipe, sources read from `places` where named. Raises UserError."""
    raw = copy.deepcopy(manifest.recipe)
    known = read_by(raw)
    for name, path in places.items():
        if name not in known:
            raise UserError(f"--source {name}: the manifest's sources are {', '.join(sorted(known))}")
        if "path" not in known[name]:
            raise UserError(f"--source {name}: it is of kind {known[name]['from']}, which has no path")
        # As absolute as it can be: the build may run in other processes.
        known[name]["path"] = path if is_remote(path) else str(Path(local_path(path)).absolute())
    return parse_recipe(raw, "the manifest's recipe")


def read_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The sources and all evaluation sets of a recipe, by name; no two have the same."""
    against = recipe.get("decontaminate", {}).get("against", {})
    return {**recipe.get("sources", {}), **recipe.get("evals", {}), **against}


def changed_code(manifest: Manifest) -> Iterator[str]:
    """Modules whose meaning is not what it was, and libraries of another version."""
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
    now_versions = fingerprint.versions(tuple(name for name in manifest.versions if name != "python"))
    for name, version in manifest.versions.items():
        if now_versions[name] != version:
            yield f"version: {name} is {now_versions[name]}, it was {version}"


def changed_sources(manifest: Manifest, recipe: Recipe, store: Store, places: Mapping[str, str]) -> Iterator[str]:
    """Files of any source that are missing, new or not what they were, and revisions that are not there."""
    described = {s.name: s for s in manifest.sources}
    revisions = {s.name: s.revision for s in manifest.sources} | {e.name: e.revision for e in manifest.evals}
    files = manifest.files_read()
    sets: dict[str, Any] = {**recipe.evals, **recipe.decontaminate.against}
    configs: dict[str, Any] = {**recipe.sources, **sets}
    for name, config in configs.items():
        remote = any(is_remote(p) for p in paths_of(read_by(manifest.recipe)[name]))
        pin(config, revisions.get(name, ""))
        try:
            if name in sets:
                specs = units_of(name, config, store.identify)
            else:
                revision = describe(config)["revision"]
                if name in described and described[name].revision != revision and not (name in places and remote):
                    said = described[name].revision or "none"
                    yield f"source {name}: revision {said} is asked for, {revision} is here"
                specs = SOURCES[config.kind].units(config, store.identify)
        except (DataError, OSError, ImportError) as error:
            yield f"source {name}: {error}"
            continue
        here = {a.name: SourceFile(a.name, a.bytes, a.digest) for spec in specs for a in spec.inputs}
        there = {f.name: f for f in files.get(name, [])}
        if not there:
            yield f"source {name}: the manifest does not say which files it was read from"
            continue
        for file in there.values():
            # A copy of a remote file has no digest in common with it; its length must do, and the hashes at the end.
            same = here.get(file.name) == file
            if name in places and remote and file.name in here:
                same = here[file.name].bytes == file.bytes
            if file.name not in here:
                yield f"source {name}: {file.name} is missing"
            elif not same:
                yield f"source {name}: {file.name} has other contents than it had ({size(here[file.name], file)})"
        for extra in sorted(set(here) - set(there)):
            if name in sets or not config.has_budget:
                yield f"source {name}: {extra} was not there"


def size(now: SourceFile, before: SourceFile) -> str:
    """How two files of one name differ, in a few words."""
    if now.bytes != before.bytes:
        return f"{now.bytes:,} bytes, not {before.bytes:,}"
    return f"{now.digest[:12]}, not {before.digest[:12]}"


def paths_of(source: Mapping[str, Any]) -> list[str]:
    """Where a source's files are, as its recipe has it."""
    path = source.get("path", [])
    return [path] if isinstance(path, str) else list(path)


def check(manifest: Manifest, recipe: Recipe, store: Store, places: Mapping[str, str], anyway: bool) -> None:
    """Print all that differs; raise UserError if the same bytes cannot come out."""
    code_changes = list(changed_code(manifest))
    source_changes = list(changed_sources(manifest, recipe, store, places))
    for line in (*code_changes, *source_changes):
        print(f"differs: {line}")
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


def differences(manifest: Manifest, folder: Path, places: Mapping[str, str]) -> Iterator[str]:
    """Every file of the mixture whose bytes are not the manifest's, and every figure in which the manifests differ."""
    packed = manifest.packed_files()
    for name, digest in packed:
        file = folder / name
        if not file.is_file():
            yield f"{name}: was not built"
        elif sha256_file(file) != digest:
            yield f"{name}: its bytes are not the manifest's"
    for file in sorted(folder.iterdir()):
        if file.name not in {name for name, _ in packed} | {"manifest.json"}:
            yield f"{file.name}: was not in the manifest"
    again = dataclasses.asdict(load_manifest(folder))
    before = dataclasses.asdict(manifest)
    for value in (again, before):
        del value["folder"], value["digest"]
    for name in places:  # what says only where the files were
        read_by(again["recipe"])[name]["path"] = read_by(before["recipe"])[name]["path"]
        if name in before["files"]:
            again["files"][name] = before["files"][name]
        for group in ("sources", "evals"):
            for old, new in zip(before[group], again[group], strict=False):
                if old["name"] == new["name"] == name:
                    new |= {key: old[key] for key in ("origin", "revision", "files") if key in old}
    for name, old, new in changes(before, again):
        yield f"manifest.json: {name} is {str(new)[:60]}, not {str(old)[:60]}"


def empty_folder(out: str) -> None:
    """Raises UserError when the folder to build in holds anything: a rebuild must find nothing built.

    Digests of source files may lie there: they are all that a refused rebuild leaves.
    """
    root = Path(out)
    unbuilt = {root / "store", root / "store" / "inputs"}
    there = {*root.glob("*"), *root.glob("store/*")}
    if (root.exists() and not root.is_dir()) or not there <= unbuilt:
        raise UserError(f"--out {out}: is not empty; name a new folder, so that nothing built before is used")


def compare(manifest: Manifest, out: str, places: Mapping[str, str]) -> None:
    """Compare what was built under `out`; print each difference. Raises UserError when there is any."""
    folder = Path(out) / manifest.name / manifest.mixture
    found = 0
    for line in differences(manifest, folder, places):
        found += 1
        print(f"differs: {line}")
    if found:
        raise UserError(f"{folder}: {found} differences; the rebuild is not what the manifest says")
    count = len(manifest.packed_files())
    print(f"{folder}: {count} files rebuilt, every sha256 as the manifest has it, build {manifest.build_id[:16]}")


def stage_of(manifest: Manifest) -> str:
    """The stage that packs the manifest's mixture."""
    return PACK[manifest.mixture].name
