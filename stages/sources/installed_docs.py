"""The documentation that every Python installation carries: docstrings, read with `ast` and never imported.

A module's docstrings are joined under their qualified names, in source order, and cut into documents of a
few thousand characters between two entries. Besides docstrings: the strings that numpy and torch attach to
compiled functions (`add_newdoc`, `add_docstr`), and the language reference in the standard library's
`pydoc_data/topics.py`. Works offline; what it yields depends on the versions installed, which the file
digests in the unit's key account for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.errors import DataError
from stages.sources.base import BadRow, BaseConfig, Identify, Row, SourceUnit
from stages.sources.writer import write_parts
from stages.task import Artifact, Task

STDLIB = "stdlib"
UNIT_SOURCE_BYTES = 12 << 20  # of Python source in a unit: a few seconds of parsing, about 1.5 MB of text
DOCUMENT_CHARS = 6_000  # a document is closed once it is longer
# Tests, vendored copies and other people's packages are not the package's documentation.
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "_vendor",
    "_vendored",
    "_internal",
    "__pycache__",
}
ATTACHERS = ("add_docstr", "add_newdoc")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Config(BaseConfig):
    """Documentation of installed packages: `from: installed_docs`."""

    kind: Literal["installed_docs"] = Field(alias="from", description="The kind of source.")
    packages: list[str] = Field(
        min_length=1, description="Names of installed packages; `stdlib` is the standard library."
    )

    def described(self) -> dict[str, str]:
        """Return origin, revision and license of the text, for the manifest, as the packages state them."""
        versions, licenses = [], []
        for package in self.packages:
            if package == STDLIB:
                versions.append(f"python {platform.python_version()}")
                licenses.append("PSF-2.0")
            else:
                about: Any = metadata.metadata(package)
                versions.append(f"{package} {about['Version']}")
                licenses.append(about.get("License-Expression") or about.get("License", "").split("\n")[0])
        return {
            "origin": self.origin or "docstrings of installed packages",
            "revision": self.revision or ", ".join(versions),
            "license": self.license or ", ".join(dict.fromkeys(filter(None, licenses))),
        }


def package_folder(package: str) -> Path:
    """Return where an installed package's files are, without importing it. Raises DataError when it is not there."""
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package) if "." not in package else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {package!r} is not installed as a folder here; install it or drop it")
    return Path(next(iter(spec.submodule_search_locations)))


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """List the Python files of each package, in batches. Raises DataError when a package is not installed."""
    source_units = []
    for package in config.packages:
        root = package_folder(package)
        batch: list[tuple[str, str, int]] = []
        for file in sorted(root.rglob("*.py"), key=lambda f: f.relative_to(root).as_posix()):
            name = file.relative_to(root)
            if SKIPPED.isdisjoint(name.parts):
                digest, size = identify(str(file))
                batch.append((name.as_posix(), digest, size))
                if sum(size for _, _, size in batch) >= UNIT_SOURCE_BYTES:
                    source_units.append(batch_unit(config, package, root, batch))
                    batch = []
        if batch:
            source_units.append(batch_unit(config, package, root, batch))
    return source_units


def batch_unit(config: Config, package: str, root: Path, batch: list[tuple[str, str, int]]) -> SourceUnit:
    """Return one unit over files of a package, each (name below `root`, digest, bytes); its one input is `root`."""
    total = hashlib.blake2b(digest_size=32)
    for name, digest, _ in batch:
        total.update(f"{name}\0{digest}\n".encode())
    size = sum(size for _, _, size in batch)
    label = f"{package}/{batch[0][0]}+{len(batch) - 1}"
    # The folder stands for the files: thousands of digests in every record would tell nobody more.
    folder = Artifact(str(root), total.hexdigest(), name=label, bytes=size)
    files = [f"{package}/{name}" for name, _, _ in batch]
    params = {"package": package, "files": files, "meta": config.wanted_columns()}
    return SourceUnit(label, [folder], params, size, [size for _, _, size in batch])


def work(task: Task) -> None:
    """Read one unit. Params: package, files (package/path below its folder), meta (must be empty)."""
    if task.params["meta"]:
        raise DataError(f"installed_docs has no column {', '.join(task.params['meta'])} for the rule `metadata`")
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield the documents of each file; a file that is no Python for this interpreter is one bad row."""
    for name in task.params["files"]:
        file = path_of(task.inputs[0], name)
        try:
            tree = parse(file.read_bytes())
        except (SyntaxError, ValueError, RecursionError) as error:
            yield BadRow(name, 0, f"cannot be parsed: {error}")
            continue
        except FileNotFoundError as error:
            raise DataError(f"{file} is gone since the run was planned; run the same command again") from error
        texts = topics(tree) if name == f"{STDLIB}/pydoc_data/topics.py" else documents(tree, module_name(name))
        for number, text in enumerate(texts):
            yield Row(name, number, text)


def path_of(folder: Artifact, name: str) -> Path:
    """Return where file `name` (package/path) of a package's `folder` is."""
    return Path(folder.path) / name.partition("/")[2]


def parse(source: bytes) -> ast.Module:
    """Parse without the warnings about invalid escapes that old sources are full of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def module_name(file: str) -> str:
    """Return a file's module: `torch/nn/__init__.py` is `torch.nn`; the standard library's modules have no prefix."""
    parts = file.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts[1:] if parts[0] == STDLIB and len(parts) > 1 else parts)


def documents(tree: ast.Module, module: str) -> Iterator[str]:
    """Yield a module's entries joined into documents, each closed after the entry that makes it long enough."""
    held: list[str] = []
    for name, text in entries(tree, module):
        held.append(f"{name}\n\n{text}")
        if sum(map(len, held)) > DOCUMENT_CHARS:
            yield "\n\n\n".join(held)
            held = []
    if held:
        yield "\n\n\n".join(held)


def entries(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, text) of everything documented in a module, in source order."""
    names = substitutions(tree)

    def visit(node: ast.AST, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield path, text.strip()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, f"{path}.{child.name}")
            elif isinstance(child, ast.If | ast.Try | ast.With):
                yield from visit(child, path)
            elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
                yield from attached(child.value, module, names)

    yield from visit(tree, module)


def attached(call: ast.Call, module: str, names: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what a call such as `add_newdoc("numpy", "ndarray", ("sort", "..."))` documents; nothing for others."""
    function = str(getattr(call.func, "attr", "") or getattr(call.func, "id", ""))
    if not function.startswith(ATTACHERS) or not call.args:
        return
    head = [literal(a, names) or ast.unparse(a) for a in call.args[:-1]]
    last = call.args[-1]
    pairs = [last] if isinstance(last, ast.Tuple) else getattr(last, "elts", [])
    texts = [("", literal(last, names))]
    if pairs:
        texts = [
            (f".{literal(p.elts[0], names)}", literal(p.elts[1], names))
            for p in pairs
            if isinstance(p, ast.Tuple) and len(p.elts) == 2
        ]
    path = ".".join(head) or module
    for name, text in texts:
        if text:
            yield path + name, clean(text)


def clean(text: str) -> str:
    """Return a string as `inspect.cleandoc` would show it."""
    lines = text.expandtabs().splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(indents, default=0)
    return "\n".join([*(line.strip() for line in lines[:1]), *(line[margin:] for line in lines[1:])]).strip()


def literal(node: ast.AST, names: dict[str, dict[str, str]]) -> str | None:
    """Return the string that an expression of literals gives: constants, `+`, and `.format(**names)`."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = literal(left, names), literal(right, names)
            return None if first is None or second is None else first + second
        case ast.Call(func=ast.Attribute(value=inner, attr="format"), keywords=keywords):
            text = literal(inner, names)
            known: dict[str, str] = {}
            for keyword in keywords:
                if keyword.arg:
                    known[keyword.arg] = literal(keyword.value, names) or ""
                elif isinstance(keyword.value, ast.Name):
                    known |= names.get(keyword.value.id, {})
            return None if text is None else fill(text, known)
    return None


def fill(text: str, known: dict[str, str]) -> str:
    """Fill in `text` as `str.format` does, but leave unknown fields as they are."""
    text = re.sub(r"(?<!\{)\{(\w+)\}(?!\})", lambda m: known.get(m[1], m[0]), text)
    return text.replace("{{", "{").replace("}}", "}")


def substitutions(tree: ast.Module) -> dict[str, dict[str, str]]:
    """Return torch's dictionaries of shared argument descriptions: `common_args = parse_kwargs(\"\"\"...\"\"\")`."""
    found: dict[str, dict[str, str]] = {}

    def value(node: ast.AST) -> dict[str, str]:
        """Return the dictionary that an expression makes, as far as it can be read; {} for others."""
        match node:
            case ast.Name(id=name):
                return found.get(name, {})
            case ast.Call(func=ast.Name(id="merge_dicts"), args=args):
                return {k: v for arg in args for k, v in value(arg).items()}
            case ast.Call(func=ast.Name(id="parse_kwargs"), args=[argument]):
                entries = re.split(r"\n    (?=\S)", literal(argument, {}) or "")
                return {e.split(" ", 1)[0].strip(): e.strip() for e in entries if e.strip()}
            case ast.Dict(keys=keys, values=values):
                pairs: list[tuple[Any, str | None]] = [
                    (k.value, literal(v, {})) for k, v in zip(keys, values, strict=True) if isinstance(k, ast.Constant)
                ]
                return {str(k): clean(v) for k, v in pairs if v is not None}
        return {}

    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = value(node.value)
    return found


def topics(tree: ast.Module) -> Iterator[str]:
    """Yield entries of the language reference: the values of the dict `topics`, in its order."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for text in node.value.values:
                if value := literal(text, {}):
                    yield value.strip()
