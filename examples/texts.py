"""Small texts to try the examples on, from Python itself, without a network: python examples/texts.py FOLDER

notes/*.txt    pages of the language reference
prose.jsonl    what the standard library says of itself: a docstring a line, with an address
code.jsonl     pieces of its code, likewise
"""

import ast
import json
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST = 100  # characters of a document


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module, of its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for text in found if text]


def pieces(source: str) -> list[str]:
    """Return what stands between blank lines in a module, without the docstrings."""
    return [piece for piece in source.split("\n\n") if '"""' not in piece]


def write_lines(path: Path, documents: dict[str, list[str]]) -> None:
    """Write module -> texts as JSON lines, each text under an address of its own, as if a module were a site."""
    rows = [
        {"text": text, "url": f"https://{module}.example/{path.stem}/{number}"}
        for module, texts in documents.items()
        for number, text in enumerate(texts)
        if len(text) >= SHORTEST
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} documents")


def main(folder: Path) -> None:
    """Write all of them into `folder`."""
    notes = folder / "notes"
    notes.mkdir(parents=True, exist_ok=True)
    for name, page in topics.items():
        (notes / f"{name}.txt").write_text(page, encoding="utf-8")
    print(f"{notes}: {len(topics):,} files")
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sources = {file.stem: file.read_text(encoding="utf-8") for file in files}
    write_lines(folder / "prose.jsonl", {name: docstrings(text) for name, text in sources.items()})
    write_lines(folder / "code.jsonl", {name: pieces(text) for name, text in sources.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
