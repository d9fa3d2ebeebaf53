"""Paths of people: whether one is local or remote, and whether it is a name or a pattern, are decided here alone.

A path is remote when it has a scheme (`s3://`, `hf://`, `memory://`, `https://`, chains such as `simplecache::s3://`)
other than `file://` and its other name `local://`. Everything else is a name on this machine, `a::b.jsonl` too. A path
that exists is that file or folder, whatever characters are in it; only what does not exist may be a pattern.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from train.redact import secret_in_address

FILE = ("file://", "local://")
PROTOCOLS = ("http", "https", "hf", "s3", "gs")  # what a manifest may name beside local files
WILDCARDS = "*?["


def is_remote(path: str) -> bool:
    """Return whether a file system other than this machine's holds `path`."""
    return "://" in path and not path.startswith(FILE)


def is_named_protocol(path: str) -> bool:
    """Return whether `path` may be opened though a stranger wrote it: local, or of one of PROTOCOLS, and no chain."""
    scheme, _, rest = path.partition("://")
    return not is_remote(path) or (scheme in PROTOCOLS and "::" not in rest)


def refuse_secrets(address: str) -> None:
    """Raise ValueError at an address that holds a secret, without repeating it."""
    if what := secret_in_address(address):
        raise ValueError(
            f"an address holds a secret ({what}), and manifests repeat the recipe; give credentials in the "
            "environment, as its client reads them, or download the file first"
        )


def local_path(path: str) -> str:
    """Return a path that is not remote without its `file://`, if it has one: `file:///x` is `/x`."""
    return path[path.index("://") + 3 :] if path.startswith(FILE) else path


def is_utf8(text: str) -> bool:
    """Return whether a text can be written down: Python has a byte that is no UTF-8 as a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escaped(name: str) -> str:
    """Return a name as people can read it: bytes that are no UTF-8 as `\\xe9`. Any other name stays as it is."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def relative_to_file(path: str, file: str) -> str:
    """Return `path` as somebody means it who wrote it into `file`: relative to that file's folder."""
    if is_remote(path) or path.startswith(FILE) or path.startswith("~"):
        return path
    return os.path.join(os.path.dirname(file), path)  # noqa: PTH118, PTH120 - keep `./` and what is no Path


def leads_anywhere(path: str) -> bool:
    """Return whether there is a file or folder of the local name `path`, or one that matches it."""
    fs, name = file_system(path)
    folder, pattern = split_pattern(fs, name)
    if not pattern:
        return os.path.lexists(name)
    return next(glob.iglob(f"{glob.escape(folder)}/{pattern}", recursive=True), None) is not None  # noqa: PTH207 - a text, stopped at the first


def file_system(path: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the fsspec file system that holds `path`, and its name there: of a local path absolute, `~` expanded.

    `options` are passed on to a remote file system. Raises ImportError where it is not installed, and ValueError for a
    scheme that fsspec does not know.
    """
    if is_remote(path):
        fs, name = fsspec.core.url_to_fs(path, **(options or {}))
        return fs, name
    local = LocalFileSystem()
    name = local._strip_protocol(local_path(path))
    return local, os.path.join(Path.cwd(), name)  # noqa: PTH118 - `~x.jsonl` is a name where there is no user x


def split_pattern(fs: Any, name: str) -> tuple[str, str]:
    """Return (the folder that a pattern begins in, the pattern below it); (`name`, "") where `name` is no pattern.

    The folder is made of the leading parts of `name` that have no wildcard or that exist as they are written. `name`
    is what `file_system` gave with `fs`.
    """
    if not has_wildcard(name) or exists(fs, name):
        return name, ""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if has_wildcard(part) and not exists(fs, "/".join(parts[: i + 1])):
            return "/".join(parts[:i]), "/".join(parts[i:])
    return name, ""


def has_wildcard(name: str) -> bool:
    """Return whether `name` has a character that means something in a pattern."""
    return any(character in name for character in WILDCARDS)


def exists(fs: Any, name: str) -> bool:
    """Return whether `name` is there. A remote name with `*` is not asked for: it is always a pattern."""
    return bool(("*" not in name or isinstance(fs, LocalFileSystem)) and fs.exists(name))


def glob_below(fs: Any, folder: str, pattern: str) -> dict[str, dict[str, Any]]:
    """Return fsspec's facts of each file and folder below `folder` that matches `pattern`, by name, sorted.

    `folder` is taken as it is written, whatever characters are in it, which `fs.glob` cannot do.
    """
    if not has_wildcard(folder):
        found: dict[str, dict[str, Any]] = fs.glob(f"{folder}/{pattern}", detail=True)
        return found
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(glob_translate(f"{glob.escape(folder)}/{pattern}")).match
    below = fs.find(folder, maxdepth=depth, withdirs=True, detail=True)
    return {name: facts for name, facts in sorted(below.items()) if matches(name)}
