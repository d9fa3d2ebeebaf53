"""The fingerprint of the code that a unit runs: comments, docstrings and layout do not count.

A unit's result depends on the module its work function lives in and on every project module that one
imports, directly or not. Each is parsed, stripped of docstrings, dumped and hashed; a comment edited
anywhere therefore re-runs nothing, and a helper edited re-runs exactly the stages that import it. What was
parsed once is remembered beside Python's own byte code, by the contents of the file.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ("pipeline", "stages", "train")
CACHE = Path(cache_from_source(__file__)).with_suffix(".json")


@functools.cache
def _package(name: str) -> Path:
    """Return the folder of a project package: in a clone they lie together, on a node of a cluster each by itself."""
    if (ROOT / name).is_dir():
        return ROOT / name
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else ROOT / name


@functools.cache
def _module_file(name: str) -> Path | None:
    """Return the file of a project module, or None for anything else (or for a name inside a module)."""
    package, *rest = name.split(".")
    if package not in PROJECT:
        return None
    base = _package(package).joinpath(*rest)
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _strip_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = node.body[1:]


@functools.cache
def _remembered() -> dict[str, list[Any]]:
    """Return module -> [digest of its file and of this one, digest of its meaning, names it imports]."""
    try:
        return dict(json.loads(CACHE.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _remember() -> None:
    """Keep what was parsed for the next process, unless Python is told to write no byte code."""
    if sys.dont_write_bytecode:
        return
    temporary = CACHE.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(_remembered(), sort_keys=True))
        temporary.replace(CACHE)


@functools.cache
def _source(name: str) -> bytes:
    file = _module_file(name)
    assert file is not None
    return file.read_bytes()


@functools.cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Return (digest of one module's meaning, project modules it imports)."""
    mark = hashlib.sha256(_source("pipeline.engine.fingerprint") + _source(name)).hexdigest()
    known = _remembered().get(name)
    if known is None or known[0] != mark:
        known = _remembered()[name] = [mark, *_parse(name)]
    _, digest, imports = known
    return digest, tuple(i for i in imports if _module_file(i) and i != name)


def _parse(name: str) -> tuple[str, list[str]]:
    """Return (digest of one module's meaning, all names it imports)."""
    file = _module_file(name)
    assert file is not None
    tree = ast.parse(_source(name))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
            imports.add(base)
            imports.update(f"{base}.{alias.name}" for alias in node.names)
    _strip_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), sorted(imports)


@functools.cache
def modules_of(name: str) -> dict[str, str]:
    """Return the digest of every project module that `name` needs, itself included."""
    digests: dict[str, str] = {}
    pending = [name]
    before = dict(_remembered())
    while pending:
        module = pending.pop()
        if module not in digests:
            digests[module], imports = _module(module)
            pending.extend(imports)
    if _remembered() != before:
        _remember()
    return dict(sorted(digests.items()))


@functools.cache
def fingerprint(name: str) -> str:
    """Return one digest for module `name` and the project modules it imports."""
    return hashlib.sha256(repr(modules_of(name)).encode()).hexdigest()


@functools.cache
def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Return Python's minor version and the versions of the libraries a stage declares."""
    python = {"python": ".".join(platform.python_version_tuple()[:2])}
    return python | {library: metadata.version(library) for library in sorted(libraries)}
