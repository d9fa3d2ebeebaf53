"""The pages for readers say what is so: what they name exists, their examples run, the generated page is current."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from commands import cli

from pipeline.cli import app
from pipeline.recipe import parse_recipe
from pipeline.sweep.config import Sweep
from stages.schemas import DOCUMENTS
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
CODE = ("pipeline", "stages", "train", "benchmarks")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 200
PHASES = ("pretrain", "anneal", "NAME")  # train.NAME.muon: how the reference writes a key of a phase
# Of other projects, which docstrings cite, or written by an export.
OTHERS_FILES = {
    "data_common.py",
    "encoding.py",
    "fineweb.py",
    "indexed_dataset.py",
    "model.py",
    "modeling_shard.py",
    "train.py",
}

# A path from the root of the clone: not the end of a longer path, no <placeholder> behind it.
PATH = re.compile(
    r"(?<![\w/.>{-])(?:pipeline|stages|train|tests|benchmarks|manifests|docs|\.github|\.ci)/[\w./-]*[\w/](?![\w<*{])"
)
MODULE = re.compile(rf"(?<![\w/.>-])(?:{'|'.join(CODE)})(?:\.[A-Za-z_]\w*)+(?![\w/])")
FILE = re.compile(r"(?<![\w/.*<-])[a-z_]\w*\.py\b")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_reference_is_current():
    printed = cli("schema", "reference").stdout
    written = (ROOT / "docs" / "reference.md").read_text()
    assert printed == written, "docs/reference.md is not current; run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    assert wrong_names(text) == []
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_readme():
    links = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {str(page.relative_to(ROOT)) for page in PAGES if page.name != "README.md"} <= links


@pytest.mark.parametrize("package", CODE)
def test_what_docstrings_name_exists(package):
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        for docstring in docstrings(file):
            wrong += [(str(file.relative_to(ROOT)), name) for name in wrong_names(docstring)]
    assert wrong == []


def test_what_recipes_and_make_say_exists():
    for file in [*(ROOT / "manifests").glob("*.yaml"), ROOT / "Makefile"]:
        assert wrong_names(file.read_text()) == []


def test_wrong_names_are_seen():
    text = "See `train/nothing.py`, stages.filter.nothing, `nothing.py` and --set train.nothing.else=3"
    assert wrong_names(text) == ["train/nothing.py", "stages.filter.nothing", "train.nothing.else", "nothing.py"]
    text = "train/loop.py, stages.filter.work, `loop.py`, train.muon.lr=3, build/x/train/other, train/<phase>/"
    assert wrong_names(text) == []


def wrong_names(text: str) -> list[str]:
    """The paths, modules and files that a text names and that are not there."""
    wrong = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    wrong += [name for name in MODULE.findall(text) if not is_named(name)]
    wrong += [name for name in FILE.findall(text) if name not in file_names() | OTHERS_FILES]
    return wrong


@functools.cache
def file_names() -> frozenset[str]:
    folders = [ROOT / folder for folder in (*CODE, "tests")]
    return frozenset(file.name for folder in folders for file in folder.rglob("*.py"))


def is_named(name: str) -> bool:
    """Whether a dotted name is a module, a name that stands in one, a file, or a key of a recipe."""
    parts = name.split(".")
    if parts[-1] == "py":
        return True  # a file's name, which FILE finds
    if (ROOT / Path(*parts[:-1]) / f"{parts[-2]}.{parts[-1]}").exists() or (ROOT / name).exists():
        return True
    if parts[0] == "train" and (parts[1] in PHASES or is_key(parts[1:])):
        return True
    for n in range(len(parts), 1, -1):
        base = ROOT.joinpath(*parts[:n])
        if base.is_dir() and n == len(parts):
            return True
        file = base.with_suffix(".py")
        if file.exists():
            return n == len(parts) or parts[n] in top_level(file)
    return False


def is_key(parts: list[str]) -> bool:
    group: type = TrainConfig
    for part in parts:
        fields = {field.name: field for field in dataclasses.fields(group)}
        if part not in fields:
            return False
        default = fields[part].default_factory
        group = default if isinstance(default, type) else type(fields[part].default)
        if not dataclasses.is_dataclass(group):
            return part == parts[-1]
    return True


@functools.cache
def top_level(file: Path) -> frozenset[str]:
    """The names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return frozenset(names)


def docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every call of the command line that the pages show, in a block or in the text."""
    found = []
    for page in [page for page in PAGES if page.name != "reference.md"]:
        text = page.read_text()
        shown = [
            line.removeprefix("$ ")
            for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)
            for line in block.splitlines()
        ]
        shown += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in shown:
            if line.startswith(("python -m pipeline", "shardmill")):
                words = shlex.split(line.partition("   #")[0])
                found.append((page.name, words[1:] if words[0] == "shardmill" else words[3:]))
    return found


def test_the_pages_show_many_commands():
    assert len({words[0] for _, words in command_lines() if words}) >= 12


@pytest.mark.parametrize(("page", "words"), command_lines(), ids=lambda value: "" if isinstance(value, list) else value)
def test_every_command_shown_exists(page, words):
    commands = typer.main.get_group(app).commands
    if not words or words[0] in ("--help", "--install-completion", "..."):
        return
    assert words[0] in commands, words
    options = {option for param in commands[words[0]].params for option in param.opts}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, words


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        found += [(page.name, block) for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]
    return found


@pytest.mark.parametrize(("page", "block"), blocks("yaml"), ids=lambda value: value if value.endswith(".md") else "")
def test_every_recipe_shown_is_valid(page, block):
    value = yaml.safe_load(block)
    if "proxy" in value:
        Sweep.model_validate(value)
    else:
        parse_recipe(value, page)


def test_one_unit_runs_by_itself_as_the_page_on_debugging_says(tmp_path, monkeypatch, capsys):
    rule, snippet = (block for page, block in blocks("python") if page == "debugging.md")
    exec(rule, {})
    assert capsys.readouterr().out == "gopher_short_doc\n"
    monkeypatch.chdir(tmp_path)
    texts = ["too short", "long enough for the rule of the example"]
    rows = [(b"%016d" % i, text, "a.txt", i, None) for i, text in enumerate(texts)]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), DOCUMENTS, strict=True)]
    pq.write_table(pa.table(columns, schema=DOCUMENTS), "part.parquet")
    exec(snippet, {})
    assert "'dropped.length_short': 1" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Walks


def walks() -> list[list[tuple[str, list[str]]]]:
    """(file, functions) of each line of each of the walks in CONTRIBUTING.md."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Two walks")[1].split("\n## ")[0]
    lists: list[list[tuple[str, list[str]]]] = []
    for number, file, rest in re.findall(r"^(\d+)\. `([^`]+\.py)`: (.*)$", section, re.MULTILINE):
        if number == "1":
            lists.append([])
        lists[-1].append((file, re.findall(r"`([^`]+)`", rest)))
    return lists


def defined(file: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names.update(f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef))
    return names


def test_the_walks_name_what_is_there_and_never_return_to_a_file():
    assert len(walks()) == 2
    for walk in walks():
        files = [file for file, _ in walk]
        assert len(files) == len(set(files)) >= 10
        for file, functions in walk:
            assert functions and set(functions) <= defined(ROOT / file), file
