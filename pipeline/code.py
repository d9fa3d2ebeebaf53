"""The fingerprint of the code that a unit runs: comments, docstrings and layout do not count.

A unit's result depends on the module its work function lives in and on every project module that one
imports, directly or not. Each is parsed, stripped of docstrings, dumped and hashed; a comment edited
anywhere therefore re-runs nothing, and a helper edited re-runs exactly the stages that import it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("pipeline", "stages", "train")


def _module_file(name: str) -> Path | None:
    """The file of a project module, or None for anything else (or for a name inside a module)."""
    if name.split(".")[0] not in PROJECT:
        return None
    base = ROOT.joinpath(*name.split("."))
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
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """(digest of one module's meaning, project modules it imports)."""
    file = _module_file(name)
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
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
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return digest, tuple(sorted(i for i in imports if _module_file(i) and i != name))


@functools.cache
def modules_of(name: str) -> dict[str, str]:
    """Digest of every project module that `name` needs, itself included."""
    found: dict[str, str] = {}
    todo = [name]
    while todo:
        module = todo.pop()
        if module in found:
            continue
        digest, imports = _module(module)
        found[module] = digest
        todo.extend(imports)
    return dict(sorted(found.items()))


@functools.cache
def fingerprint(name: str) -> str:
    """One digest for module `name` and the project modules it imports."""
    return hashlib.sha256(repr(modules_of(name)).encode()).hexdigest()


@functools.cache
def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Python's minor version and the versions of the libraries a stage declares."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    return found | {library: metadata.version(library) for library in sorted(libraries)}


@functools.cache
def source_tree() -> str:
    """Digest of every Python file of the project, as the manifest records it."""
    total = hashlib.sha256()
    for package in PROJECT:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            total.update(f"{name}:{_module(name)[0]};".encode())
    return total.hexdigest()
