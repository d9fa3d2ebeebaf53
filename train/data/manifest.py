"""The manifest: the contract between what packs tokens and what trains on them.

Standard library only, so that a bare GPU image reads it. `stages` writes it, `train` reads it. The bytes of the shards
that it names are described in train/data/format.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shlex
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

RECIPE = "recipe.json"  # in <out>/<recipe>: the file that its results were last made of, and the settings
HASH_LIMIT = 2**30  # bytes of shards whose sha256 is checked at the start: about a second. Beyond, `verify` does it
SCHEMA_VERSION = 1  # of manifest.json
OLD_LICENSE_KEY = "licence"  # what manifests written before version 0.2 call `license`


class ManifestError(Exception):
    """The manifest or a shard is missing, damaged, or does not belong together. One line, for people."""


@dataclass(frozen=True)
class Shard:
    """One `.bin` with its `.idx` and `.rows.parquet`. Paths are relative to the manifest's folder.

    Shards that were adopted have neither index nor rows: these are "", and their documents are not counted.
    """

    path: str
    split: str  # train | val
    tokens: int
    documents: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str
    rows: str
    rows_sha256: str
    rows_digest: str  # of the table's values
    source: str = ""  # of a validation shard: the one source it holds; empty for the mixture
    padding: int = 0  # of its tokens, how many only fill windows up (best_fit packing) and belong to no document


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer the tokens came from. `token_bytes[id]` is the length of its text in bytes, 0 for specials.

    Ids in `space_ids` have a space in front as well, which counts behind a token of text: train/eval/text_bytes.py.
    """

    path: str
    sha256: str
    vocab_size: int
    bos_id: int
    pad_id: int
    special_ids: dict[str, int]
    token_bytes: list[int]
    space_ids: list[int] = field(default_factory=list)  # left out of the file where there are none

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file."""
        value = dataclasses.asdict(self)
        if not self.space_ids:
            del value["space_ids"]
        return value


@dataclass(frozen=True)
class SourceFile:
    """A file that was read, under its name in the lineage; of installed packages, a batch of their files."""

    name: str
    bytes: int
    digest: str  # sha256 of the contents; of a remote file, of its revision, etag and size


@dataclass(frozen=True)
class Source:
    """What one source gave to this mixture. Ratios and epochs are of training tokens."""

    name: str
    kind: str
    origin: str
    revision: str
    license: str
    rows_in: int
    rows_kept: int
    dropped: dict[str, int]  # by reason
    quarantined: int
    available_tokens: int
    tokens: int
    documents: int
    ratio_asked: float
    ratio_got: float
    epochs: float  # how often its tokens repeat; at most its cap
    max_epochs: float
    val_tokens: int
    val_documents: int
    files_lost: int = 0  # corrupt files left out, within quarantine.files


@dataclass(frozen=True)
class ValidationIds:
    """Sorted 16-byte ids of every document held out, and the rule that chose them."""

    path: str
    sha256: str
    count: int
    rule: str


@dataclass(frozen=True)
class EvalSet:
    """Questions with choices, encoded for this tokenizer (train/data/evalset.py)."""

    name: str
    path: str
    sha256: str
    items: int
    prompt: str  # what a choice follows; {question} stands for the question
    kind: str
    origin: str
    revision: str
    license: str
    files: list[SourceFile]  # what they were read from


class PackedFile(NamedTuple):
    """A file beside the manifest, and the sha256 that it must have."""

    path: str  # relative to the manifest's folder
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All there is to know about one packed mixture. `folder` is where it was read from, not stored."""

    schema_version: int
    build_id: str
    name: str
    phase: str
    mixture: str
    seed: int
    tokens: int  # of all training shards, padding left out
    val_tokens: int  # of the mixture's validation shard
    documents: int
    tokenizer: Tokenizer
    shards: list[Shard]
    sources: list[Source]
    val_ids: ValidationIds
    recipe: dict[str, Any]  # the whole recipe, resolved
    source_tree: str  # hash of the code that built it
    versions: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)  # module -> digest, of all that its units ran
    # What was read, by source: all of the recipe's, as those outside this mixture shaped tokenizer and deduplication.
    files: dict[str, list[SourceFile]] = field(default_factory=dict)
    evals: list[EvalSet] = field(default_factory=list)  # left out of the file where there are none
    # The shards were made elsewhere, by nobody knows what of nobody knows which documents. Left out where false.
    adopted: bool = False
    digest: str = ""  # of all the above, so that a figure changed by hand is seen
    folder: str = field(default="", compare=False)

    def split(self, name: str, source: str = "") -> list[Shard]:
        """The shards of `train` or `val`, in order; of `val` those of the mixture, or of one source."""
        return [s for s in self.shards if s.split == name and s.source == source]

    def files_read(self) -> dict[str, list[SourceFile]]:
        """Every file that was read, by the name of its source or evaluation set; no two have the same."""
        return {**self.files, **{asked.name: asked.files for asked in self.evals}}

    def packed_files(self) -> list[PackedFile]:
        """List every file that lies beside the manifest, with the sha256 to check it by."""
        files = [PackedFile(self.tokenizer.path, self.tokenizer.sha256)]
        if self.adopted:
            return files + [PackedFile(shard.path, shard.sha256) for shard in self.shards]
        files.append(PackedFile(self.val_ids.path, self.val_ids.sha256))
        files += [PackedFile(evalset.path, evalset.sha256) for evalset in self.evals]
        for shard in self.shards:
            files.append(PackedFile(shard.path, shard.sha256))
            files.append(PackedFile(shard.index, shard.index_sha256))
            files.append(PackedFile(shard.rows, shard.rows_sha256))
        return files

    def file(self, relative: str) -> Path:
        """Return the path of a file that the manifest names; one of a bucket is copied to this machine first.

        Raises ManifestError when it is not below the manifest's folder: a manifest may be a stranger's.
        """
        return self.path(relative)

    def path(self, relative: str) -> Path:
        """Return where a file that the manifest names lies, or will once it is copied. Raises as `file` does."""
        return path_below(Path(self.folder), relative)

    def restore(self, path: str) -> None:
        """Bring back the copy at `path` of a file in a bucket; what never was a copy is not brought back."""

    def beside(self, folder: str) -> Mapping[str, Path]:
        """Return name -> path of the files in another published folder of the recipe; none if it is not there."""
        path = Path(self.folder).parent / folder
        return {file.name: file for file in sorted(path.iterdir())} if path.is_dir() else {}

    def pack_command(self) -> str:
        """Return the command that packs this mixture."""
        return pack_command(Path(self.folder))

    def recipe_value(self, *keys: str) -> Any:
        """What the recipe has at a path of keys. Raises ManifestError that names the key which is not there."""
        node: Any = self.recipe
        for depth, key in enumerate(keys, 1):
            if not isinstance(node, dict) or key not in node:
                where = ".".join(("recipe", *keys[:depth]))
                raise ManifestError(f"{self.file('manifest.json')}: {where} is missing: it was edited; pack again")
            node = node[key]
        return node

    def to_json(self) -> str:
        """Return the text of manifest.json: sorted keys, so that equal manifests are equal bytes."""
        return manifest_text(self._to_dict())

    def _to_dict(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        del value["folder"]
        for key in ("evals", "adopted"):
            if not value[key]:
                del value[key]
        value["tokenizer"] = self.tokenizer.to_dict()
        return value


def path_below(folder: Path, relative: str) -> Path:
    """Return the path of what a manifest names. Raises ManifestError when it is not below the manifest's `folder`."""
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ManifestError(f"{folder / 'manifest.json'}: names {relative!r}, which leads out of its folder")
    return path


def manifest_digest(value: dict[str, Any]) -> str:
    """Return the sha256 of a manifest's values, its own digest left out, as hex."""
    rest = {key: item for key, item in value.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(canonical).hexdigest()


def manifest_text(value: dict[str, Any]) -> str:
    """Write manifest.json of plain values, with its digest filled in."""
    signed = {**value, "digest": manifest_digest(value)}
    return json.dumps(signed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _licensed_entries(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what has a license in a manifest's values: sources and evaluation sets, and those of its recipe."""
    yield from value.get("sources", [])
    yield from value.get("evals", [])
    recipe = value.get("recipe", {})
    against = recipe.get("decontaminate", {}).get("against", {})
    for group in (recipe.get("sources", {}), recipe.get("evals", {}), against):
        yield from (entry for entry in group.values() if "license" in entry or OLD_LICENSE_KEY in entry)


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """Field -> type, of a dataclass."""
    return typing.get_type_hints(cls)


def is_countable(number: int) -> bool:
    """Return whether a number is one that a count can be: of 63 bits, as the arrays that it is compared with."""
    return -(2**63) <= number < 2**63


def check_types(value: Any, hint: Any, where: str) -> None:
    """Raises TypeError that names the key, `where`, whose JSON value is not of the type `hint`, or beyond 63 bits."""
    if type(value) is int and not is_countable(value):
        raise TypeError(f"{where} is a number beyond 63 bits")
    if hint is Any or (hint in (int, float, str, bool) and type(value) is hint):
        return
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        for name, of in hints(kind).items():
            check_types(getattr(value, name), of, f"{where}.{name}".lstrip("."))
    elif type(value) is not kind and (kind, type(value)) != (float, int):
        raise TypeError(f"{where} is {str(value)[:60]!r}, not of type {kind.__name__}")
    elif kind is dict:
        for key, item in value.items():
            check_types(item, inner[1], f"{where}.{key}")
    elif kind is list and not (inner[0] is int and all(type(item) is int and is_countable(item) for item in value)):
        for number, item in enumerate(value):
            check_types(item, inner[0], f"{where}.{number}")


def pack_command(folder: Path, options: str = "") -> str:
    """Return the command that packs the mixture of `folder`, which is <out>/<recipe>/<mixture>."""
    stage = "pack_anneal_mix" if folder.name == "anneal" else "pack_pretrain"
    return f"python -m pipeline run {stage} {options or run_options(folder.parent)}"


def run_options(folder: Path) -> str:
    """Return the options with which the recipe's results in `folder`, <out>/<recipe>, were last made.

    RECIPE stands for a recipe that nobody noted, and then `folder` need not be one of ours.
    """
    noted = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        noted = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    return options_noted(noted, str(folder.parent))


def options_noted(noted: Any, out: str) -> str:
    """Return the options of the last run into `out`, of which `noted` is what its RECIPE says, or anything else."""
    options = ["--recipe", "RECIPE"]
    with contextlib.suppress(LookupError, TypeError):
        options[1] = os.path.normpath(os.path.join(out, noted["file"]))  # noqa: PTH118 - `out` may be an address
        settings = [word for setting in noted["set"] for word in ("--set", str(setting))]
        options += [*settings, "--out", out]
    return shlex.join(options)


def load_manifest(path: str | Path) -> Manifest:
    """Read a manifest.json (or the folder that holds one). Raises ManifestError with the way to mend it."""
    if "://" in str(path) and not Path(path).exists():
        raise ManifestError(
            f"{path}: read from folders of this machine here; `python -m pipeline fetch {path} DIR` copies it to one"
        )
    # abspath, not resolve: the published folder is a link, and phases are found beside the link.
    file = Path(path).absolute()
    if file.is_dir():
        file = file / "manifest.json"
    folder = file.parent if file.suffix == ".json" else file
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{file}: no such manifest; build one with `{pack_command(folder)}`") from None
    return parse_manifest(raw, str(file), lambda: pack_command(folder))


def parse_manifest(raw: bytes, file: str, again: Callable[[], str]) -> Manifest:
    """Return the manifest in the bytes of `file`, a path or an address; `again` says which command makes it anew.

    Raises ManifestError.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets, a thousand deep
        raise ManifestError(f"{file}: not valid JSON ({error}); build it again with `{again()} --force`") from None
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        found = value.get("schema_version") if isinstance(value, dict) else None
        raise ManifestError(f"{file}: schema version {found}, this program reads {SCHEMA_VERSION}")
    if value.get("digest") != manifest_digest(value):
        raise ManifestError(
            f"{file}: was changed after it was written: its digest is of other contents; "
            + (
                "delete it and adopt its shards again"
                if value.get("adopted")
                else f"write it again with `{again()} --force`"
            )
        )
    try:
        for entry in _licensed_entries(value):
            if OLD_LICENSE_KEY in entry:
                entry["license"] = entry.pop(OLD_LICENSE_KEY)
        manifest = Manifest(
            **{
                **value,
                "tokenizer": Tokenizer(**value["tokenizer"]),
                "shards": [Shard(**s) for s in value["shards"]],
                "sources": [Source(**s) for s in value["sources"]],
                "files": {name: [SourceFile(**f) for f in files] for name, files in value.get("files", {}).items()},
                "val_ids": ValidationIds(**value["val_ids"]),
                "evals": [
                    EvalSet(**{**e, "files": [SourceFile(**f) for f in e["files"]]}) for e in value.get("evals", [])
                ],
                "folder": file.rpartition("/")[0],
            }
        )
        check_types(manifest, Manifest, "")
        return manifest
    except (TypeError, KeyError, AttributeError) as error:
        raise ManifestError(f"{file}: not a manifest of ours ({error})") from None
