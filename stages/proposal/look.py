"""What lies in a folder or on the hub, as sources of a recipe: files that are read alike and hold the same fields."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.errors import DataError, TransientError
from stages.paths import is_remote, local_path
from stages.proposal.fields import CHOICES, Choice, choose
from stages.proposal.records import delimiter_of, first_records
from stages.sources.contents import FORMATS, HEAD, PACKED, chunks, foreign
from stages.sources.files import READERS, ListedFile, list_files, open_source
from stages.sources.hub import PROTOCOL
from stages.sources.presets import PRESETS
from stages.sources.registry import SOURCES

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HELD_OUT = re.compile(r"(^|[^a-z])(test|validation|valid|val|dev|eval)([^a-z]|$)")
BESIDE = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|sha256sums|dataset_infos?|state)(\.\w+)*")
FEW_FILES = 300  # of text: fewer documents than that leave none to hold out, which takes one in a hundred
TEXT = "text"


@dataclass(frozen=True)
class Found:
    """One source that was found: its keys for the recipe, and a reason for each."""

    name: str
    keys: dict[str, Any]
    reasons: dict[str, str]
    files: int
    held_out: bool = False  # for evaluation, by its name: not to be trained on
    asks: bool = False  # questions with choices
    present: float = 1.0  # share of records that can be used


@dataclass
class Look:
    """All that was found at some places."""

    found: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # what is not read, and why


@dataclass(frozen=True)
class Class:
    """What makes files one source."""

    folder: str  # the first below the place; "" for the place itself
    kind: str
    fields: tuple[str, ...]
    held_out: bool


def look(place: str, shown: str) -> Look:
    """Look at a file, a folder, a pattern, an address or a dataset of the hub.

    shown: how the recipe is to name it. Raises DataError where nothing is there.
    """
    if not is_remote(place) and HUB_NAME.fullmatch(place) and not Path(place).exists():
        for preset, known in PRESETS.items():
            if known.repository.lower() == place.lower() and known.files:
                return Look([Found(preset, {"from": preset}, {"from": f"{place}, a dataset that is known"}, 1)])
        place = shown = f"{PROTOCOL}datasets/{place}"
    files = list_files(place, ("",))
    result = Look()
    classes: dict[Class, list[ListedFile]] = defaultdict(list)
    why: dict[str, list[str]] = defaultdict(list)
    for full, name in files:
        if BESIDE.fullmatch(name.rpartition("/")[2].lower()) and len(files) > 1:
            continue
        if not is_remote(full) and Path(full.removesuffix(name), name.partition("/")[0], "store").is_dir():
            continue  # results of ours
        try:
            classes[class_of(full, name)].append((full, name))
        except (DataError, TransientError, OSError, ValueError) as error:
            why[reason_of(error, full)].append(name)
    trained = {(c.kind, c.fields) for c in classes if not c.held_out}
    for each, members in classes.items():
        held_out = each.held_out and (each.kind, each.fields) in trained
        try:
            result.found.append(source_of(each, members, place, shown, held_out, alone=len(classes) == 1))
        except (DataError, TransientError, OSError, ValueError) as error:
            why[reason_of(error, members[0][0])] += [name for _, name in members]
    for reason, names in why.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        result.left_out.append(f"{names[0]}{more}: {reason}")
    return result


def reason_of(error: Exception, path: str) -> str:
    """Return why a file is not read, without its name."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text.replace(path, "").strip(" :")[:200]


def class_of(full: str, name: str) -> Class:
    """Return which source a file belongs to. Raises DataError for one that nothing here reads."""
    kind = kind_of(full, name)
    folder = name.partition("/")[0] if "/" in name else ""
    return Class(folder, kind, fields_of(full, kind), HELD_OUT.search(name.lower()) is not None)


def ending(name: str) -> str:
    """Return the ending of a name, without that of a packing."""
    lower = name.lower()
    packed = next((p for p in PACKED[1:] if lower.endswith(p)), "")
    return Path(lower.removesuffix(packed)).suffix


def kind_of(full: str, name: str) -> str:
    """Return which `from:` reads a file: what its contents say, and what its name says where these may be several.

    Raises DataError for one that nothing here reads.
    """
    said = READERS.get(ending(name), "")
    with open_source(full) as stream:
        head = stream.read(HEAD)
    for magic, _, remedy in FORMATS[:3]:
        if head.startswith(magic):
            return re.findall("`from: (.*)`", remedy)[0]
    with open_source(full) as stream:
        head = next(chunks(stream, full), b"")[:HEAD]
    if not head.strip():
        raise DataError("it is empty")
    for guess in (said, "jsonl") if said else ("jsonl",):
        what = foreign(head, guess)
        if other := re.findall("`from: (jsonl|json_array|parquet|arrow)`", what):
            return other[0]
        if not what and (said or head.lstrip().startswith(b"{")):
            return guess
    if ending(name) in (".html", ".htm"):
        raise DataError("is a page of HTML; extract its text first")
    named = f"no source reads files that end with {ending(name)}" if ending(name) else "its name has no ending"
    raise DataError(foreign(head, said or TEXT) or f"{named}; `from: text` reads any that `path` names")


def fields_of(full: str, kind: str) -> tuple[str, ...]:
    """Return the names of the fields of a file's records, sorted; none of a text."""
    if kind == TEXT:
        return ()
    if kind == "parquet":
        with open_source(full) as stream:
            return tuple(sorted(pq.ParquetFile(stream).schema_arrow.names))
    delimiter = delimiter_of(full) if kind == "csv" else ","
    records = first_records(full, kind, delimiter)[:20]
    return tuple(sorted({name for record in records for name in record}))


def source_of(each: Class, members: list[ListedFile], place: str, shown: str, held_out: bool, alone: bool) -> Found:
    """Return a class of files as a source. Raises DataError where no field of its records is text."""
    keys: dict[str, Any] = {"from": each.kind}
    reasons = {"from": f"{len(members):,} file{'s' * (len(members) != 1)}"}
    asks = set(each.fields) >= CHOICES[0] or (each.kind == "jsonl" and set(each.fields) >= CHOICES[1])
    present = 1.0
    if set(each.fields) >= CHOICES[0] and each.kind == "parquet":
        keys["from"] = "ai2_arc"
        reasons["from"] = "questions with choices, as ARC has them"
    keys["path"] = path_of(each, members, place, shown, alone)
    if each.kind == "csv" and (delimiter := delimiter_of(members[0][0])) not in (",", "\t"):
        keys["delimiter"] = delimiter
        reasons["delimiter"] = "as its first rows are cut"
    if each.kind == TEXT and len(members) < FEW_FILES:
        keys["document"] = "paragraph"
        reasons["document"] = f"{len(members):,} whole files would be too few to hold some out"
    elif each.kind != TEXT and keys["from"] != "ai2_arc":
        choice = choice_of(members, each.kind, keys.get("delimiter") or delimiter_of_kind(members, each.kind))
        keys |= choice.keys
        reasons[next(iter(choice.keys))] = choice.reason
        present = choice.present
    return Found(name_of(members, place), keys, reasons, len(members), held_out, asks, present)


def delimiter_of_kind(members: list[ListedFile], kind: str) -> str:
    """Return what separates fields: of a csv as it stands in the first of its files."""
    return delimiter_of(members[0][0]) if kind == "csv" else ","


def choice_of(members: list[ListedFile], kind: str, delimiter: str) -> Choice:
    """Return what to take of the records of some files, by those of the first and the last."""
    ends = {members[0][0], members[-1][0]}
    records = [record for full in sorted(ends) for record in first_records(full, kind, delimiter)]
    choice = choose(records)
    if choice is None:
        names = ", ".join(sorted({name for record in records for name in record}))[:150]
        lists = [name for name, value in (records[0] if records else {}).items() if isinstance(value, list)]
        hint = f"; {lists[0]} is a list, which no template writes" if lists else ""
        raise DataError(f"none of its fields is running text ({names}){hint}")
    if choice.present < 0.5:
        raise DataError(f"only {choice.present:.0%} of its records have {json.dumps(choice.keys)}")
    return choice


def path_of(each: Class, members: list[ListedFile], place: str, shown: str, alone: bool) -> str | list[str]:
    """Return the shortest path that stands for these files and no others, as the recipe is to name them."""
    if alone and len(members) == 1 and members[0][0] == local_path(place):
        return shown
    suffixes: tuple[str, ...] = getattr(SOURCES[each.kind].Config, "suffixes", ("",))
    wanted = {full for full, _ in members}
    endings = {re.findall(r"(?:\.\w+){1,2}$|$", name.rpartition("/")[2])[0] for _, name in members}
    inside = f"/{common}" if (common := common_folder([name for _, name in members])) else ""
    candidates = [inside]
    if len(members) == 1:
        candidates.append(f"/{members[0][1]}")
    elif len(endings) == 1:
        end = endings.pop()
        stem = common_start([name.rpartition("/")[2] for _, name in members])
        candidates += [f"{inside}/{deep}{begin}*{end}" for begin in ("", stem) for deep in ("", "*/", "**/")]
    for candidate in candidates:
        try:
            if {full for full, _ in list_files(f"{place.rstrip('/')}{candidate}", suffixes)} == wanted:
                return f"{shown.rstrip('/')}{candidate}"
        except DataError:
            continue
    names = [f"/{name}" for _, name in members]
    list_files([f"{place.rstrip('/')}{name}" for name in names], suffixes)  # which says if they cannot be told apart
    return [f"{shown.rstrip('/')}{name}" for name in names]


def common_start(names: list[str]) -> str:
    """Return what all names begin with, up to the first digit, which numbers them."""
    first, last = (name.partition(".")[0] for name in (min(names), max(names)))
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return re.sub(r"[_-]*(\d.*)?$", "", first[:length])


def common_folder(names: list[str]) -> str:
    """Return the folder that all files lie in, at whatever depth; "" for that which their names begin in."""
    parts = [name.split("/")[:-1] for name in (min(names), max(names))]
    return "/".join(a for i, (a, _) in enumerate(zip(*parts, strict=False)) if parts[0][: i + 1] == parts[1][: i + 1])


def name_of(members: list[ListedFile], place: str) -> str:
    """Return a name for a source: of the folder that its files lie in, else of the place."""
    inside = common_folder([name for _, name in members]).rpartition("/")[2]
    whole = place if is_remote(place) else str(Path(local_path(place)).resolve())
    base = whole.rstrip("/").rpartition("/")[2].split("@")[0]
    base = inside or re.sub(r"(\.\w{1,7})+$", "", base) or base
    return re.sub(r"[^\w]+", "_", base).strip("_").lower()[:40] or "text"
