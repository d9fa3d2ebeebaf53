"""The folder of pages: rendered, kept below a size, and put in the place of the one before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import UserError
from pipeline.report import filters, markup, mixtures, overlap, overview, runs, sources, tokens
from pipeline.report.charts import bar
from pipeline.report.facts import Facts
from pipeline.report.markup import number

INDEX = "index.html"
STYLE, SCRIPT = "report.css", "report.js"
Maker = Callable[[Facts], dict[str, Any]]


class View(NamedTuple):
    """One page."""

    file: str
    title: str
    question: str
    make: Maker  # what its template shows


VIEWS = (
    View(INDEX, "Overview", "What went in, and what was left out?", overview.page),
    View("sources.html", "Sources", "What is each source made of?", sources.page),
    View("filter.html", "Filter", "Is a rule eating good text?", filters.page),
    View("overlap.html", "Overlap", "Is the same text in two places?", overlap.page),
    View("tokenizer.html", "Tokenizer", "Is it fair to each source?", tokens.page),
    View("mixture.html", "Mixture", "Is it what was asked, and where did this token come from?", mixtures.page),
    View("run.html", "Run", "What did the model see when training jumped?", runs.page),
)


def environment() -> Environment:
    """Return the templates. Whatever stands in one goes through `markup.escape`, once."""
    made = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        finalize=markup.escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        attribute=lambda value: Markup(markup.attribute(str(value))),
        decimal=markup.decimal,
        number=markup.number,
        share=markup.share,
        short=markup.short,
        size=markup.size,
    )
    made.globals.update(bar=bar)
    return made


def render(facts: Facts) -> dict[str, bytes]:
    """Return the files of the report by name: the pages, a style sheet and a script."""
    templates = environment()
    basis = f"Build of {facts.name}: " + (
        f"all {number(facts.documents)} documents were read."
        if facts.whole
        else f"{number(facts.drawn)} of {number(facts.documents)} documents were read, drawn by a hash of their ids; "
        "what is said to be counted is from the records of all."
    )
    files: dict[str, bytes] = {}
    for view in VIEWS:
        template = "overview.html" if view.file == INDEX else view.file
        text = templates.get_template(template).render(
            build=facts,
            name=facts.name,
            command=f"python -m pipeline report{facts.options}",
            same="the same build",
            here=view.file,
            title=view.title,
            question=view.question,
            views=[(each.file, each.title) for each in VIEWS],
            basis=basis,
            page=view.make(facts),
        )
        files[view.file] = text.encode()
    return files | static_files()


def static_files() -> dict[str, bytes]:
    """Return what every page needs beside it."""
    static = Path(__file__).parent / "static"
    return {name: (static / name).read_bytes() for name in (STYLE, SCRIPT)}


def write_report(facts: Facts, folder: Path, most_bytes: int) -> int:
    """Write the report into `folder` and return its size in bytes.

    Raises UserError where something else stands there, or where the pages would be larger than `most_bytes`.
    """
    if folder.is_symlink() or (folder.exists() and not is_report(folder)):
        raise UserError(f"{folder} holds something else than a report; name another folder with --to")
    files = render(facts)
    total = sum(map(len, files.values()))
    if total > most_bytes:
        largest = max(files, key=lambda name: (len(files[name]), name))
        raise UserError(
            f"the report would have {total / 1e6:.1f} MB, more than --max-size allows, {most_bytes / 1e6:.1f} MB "
            f"({largest} alone has {len(files[largest]) / 1e6:.1f}); allow more"
        )
    replace_folder(folder, files)
    return total


def replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Put files into `folder`, in the place of all that is there, at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        new = Path(made) / "new"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)


def is_report(folder: Path) -> bool:
    """Return whether a folder is empty, or a report and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    return not names or (
        {INDEX, STYLE, SCRIPT} <= names and all(name.endswith((".html", ".css", ".js")) for name in names)
    )
