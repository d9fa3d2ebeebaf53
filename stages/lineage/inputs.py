"""What differs between the files that a manifest was made from and those that are there now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.errors import DataError
from stages.evals.stage import units_of
from stages.paths import PROTOCOLS, escaped, is_named_protocol, is_remote
from stages.recipe import Recipe
from stages.scores.stage import example_configs, model_files
from stages.sources.base import Identify
from stages.sources.registry import SOURCES, describe, pin
from train.data.manifest import Manifest, SourceFile


def entries_that_read(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sources, all evaluation sets and examples of scores of a recipe (as JSON values), by name.

    No two have the same. Examples are `scores.NAME.good` and `.bad`.
    """
    against = recipe.get("decontaminate", {}).get("against", {})
    examples = {
        f"scores.{name}.{kind}": score[kind]
        for name, score in recipe.get("scores", {}).items()
        for kind in ("good", "bad")
        if score.get(kind)
    }
    return {**recipe.get("sources", {}), **recipe.get("evals", {}), **against, **examples}


def check_protocols(name: str, entry: Mapping[str, Any]) -> None:
    """Raise DataError when a manifest, which may be a stranger's, would have another kind of address opened."""
    paths = entry.get("path", [])
    for path in [paths] if isinstance(paths, str) else paths:
        if not is_named_protocol(path):
            raise DataError(
                f"source {name}: the manifest names {escaped(path)}, and of addresses in manifests only "
                f"{', '.join(PROTOCOLS)} and local files are opened; say where they are: --source {name}=PATH"
            )


def changed_inputs(
    manifest: Manifest, recipe: Recipe, identify: Identify, source_paths: Mapping[str, str]
) -> Iterator[str]:
    """Yield a line for each file that is missing, new or not what it was, and for each revision that is not there.

    `recipe`: the manifest's, its sources in `source_paths` read from there. `identify`: the digest and size of a file.
    """
    sets: dict[str, Any] = {**recipe.evals, **recipe.decontaminate.against}
    revisions = {source.name: source.revision for source in manifest.sources}
    revisions |= {evalset.name: evalset.revision for evalset in manifest.evals}
    recorded_files = manifest.files_read()
    entries = entries_that_read(manifest.recipe)
    for name, config in {**recipe.sources, **sets, **example_configs(recipe.scores)}.items():
        copied = name in source_paths and reads_remote_files(entries[name])
        pin(config, revisions.get(name, ""))
        try:
            if name in sets:
                units = units_of(name, config, identify)
            else:
                if not copied:
                    yield from changed_revision(manifest, name, describe(config)["revision"])
                units = SOURCES[config.kind].units(config, identify)
        except (DataError, OSError, ImportError) as error:
            yield escaped(f"source {name}: {error}")
            continue
        files = [SourceFile(file.name, file.bytes, file.digest) for unit in units for file in unit.inputs]
        may_grow = name not in sets and config.has_budget
        yield from changed_source_files(name, recorded_files.get(name, []), files, copied, may_grow)
    try:
        for name, files in model_files(recipe.scores, identify).items():
            yield from changed_source_files(name, recorded_files.get(name, []), files, copied=False, may_grow=False)
    except (DataError, OSError) as error:
        yield escaped(str(error))


def reads_remote_files(entry: Mapping[str, Any]) -> bool:
    """Tell whether a source or evaluation set of a recipe is read over the network."""
    paths = entry.get("path", [])
    return any(is_remote(path) for path in ([paths] if isinstance(paths, str) else paths))


def changed_revision(manifest: Manifest, name: str, revision: str) -> Iterator[str]:
    """Yield a line if source `name` of the manifest was read at another revision than `revision`."""
    for source in manifest.sources:
        if source.name == name and source.revision != revision:
            yield f"source {name}: revision {source.revision or 'none'} is asked for, {revision} is here"


def changed_source_files(
    name: str, recorded: Sequence[SourceFile], files: Sequence[SourceFile], copied: bool, may_grow: bool
) -> Iterator[str]:
    """Yield a line for each difference between the `recorded` files of a source and its `files` now.

    `copied`: they are copies of remote files, which have no digest in common with them; their lengths must be the
    same, and hashes at the end of a rebuild tell the rest. `may_grow`: more files may be there than were read.
    """
    if not recorded:
        yield f"source {name}: the manifest does not say which files it was read from"
        return
    before, now = {file.name: file for file in recorded}, {file.name: file for file in files}
    for file in before.values():
        if file.name not in now:
            yield f"source {name}: {file.name} is missing"
            continue
        same = now[file.name].bytes == file.bytes if copied else now[file.name] == file
        if not same:
            how = difference_in_words(now[file.name], file)
            yield f"source {name}: {file.name} has other contents than it had ({how})"
    if not may_grow:
        for extra in sorted(set(now) - set(before)):
            yield f"source {name}: {extra} was not there"


def difference_in_words(now: SourceFile, before: SourceFile) -> str:
    """Say how two files of one name differ."""
    if now.bytes != before.bytes:
        return f"{now.bytes:,} bytes, not {before.bytes:,}"
    return f"{now.digest[:12]}, not {before.digest[:12]}"
