"""The examples run as their pages say: every command, in order, on texts of their own."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import REPO, python
from loopback_hub import Dataset, Hub

pytestmark = pytest.mark.slow
EXAMPLES = REPO / "examples"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples lie as in the clone."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("texts"))
    return folder


def commands(page: str) -> list[str]:
    """The commands of a page."""
    text = (EXAMPLES / page).read_text()
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def run(command: str, clone: Path, *more: str, **environment: str) -> str:
    """Run one command of a page there, as a reader would. Returns what it printed."""
    words = [*shlex.split(command), *more]
    if words[0] != "python":
        return subprocess.run(words, cwd=clone, check=True, capture_output=True, text=True).stdout
    if words[1] == "train/main.py":
        words[1] = str(REPO / words[1])
    where = {"COLUMNS": "200", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **environment}
    done = python(words[1:], clone, {**os.environ, **where})
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_own_text(clone: Path) -> None:
    recipe = (EXAMPLES / "own_text/recipe.yaml").read_text()
    assert len(recipe.splitlines()) <= 10
    printed = [run(command, clone) for command in commands("own_text/README.md")]
    assert "Bits per byte on held-out documents" in printed[1]
    assert printed[2].startswith("The class")


@pytest.mark.soak
def test_two_mixes(clone: Path) -> None:
    *before, compare = commands("two_mixes/README.md")
    for command in before:
        run(command, clone)
    assert sum(command.startswith("python train/main.py") for command in before) == 4
    told = run(compare, clone)
    verdict = told[told.index("\nrecipes ") :]
    assert "Different: B is" in verdict and "better on code" in verdict and "worse on prose" in verdict


@pytest.mark.soak
def test_take_down(clone: Path) -> None:
    printed = [run(command, clone) for command in commands("take_down/README.md")]
    texts, build, found, copy, again, left, moved, verified = printed
    assert re.match(r"\d+ documents: .*\d+ training", found) and copy == ""
    assert "Excluded: " in again
    assert re.fullmatch(r"(\d+) documents: \1 excluded", left.splitlines()[0])
    assert "exclude.domains" in moved and "agree" in verified and texts and build
    rows = pq.read_table(next((clone / "build/take_down/pretrain").glob("*_train_*.rows.parquet")))
    assert not [url for url in rows["url"].to_pylist() if url.startswith("https://calendar.example/")]


def stories(count: int) -> bytes:
    """A parquet file in TinyStories' schema, of made-up stories."""
    rng = random.Random(0)
    things = ("cat", "dog", "ball", "tree", "boat", "hat", "bird", "girl", "boy", "sun", "little", "red", "big", "saw")
    texts = [f"Once upon a time, story {i}: " + " ".join(rng.choices(things, k=40)) + "." for i in range(count)]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


FILES = {f"data/train-{i:05d}-of-00004-2d5a1467fff1081b.parquet": stories(1500) for i in range(4)}
SMALL = {  # in the order of the notebook's parameters; one that runs after the other finds all made
    "mixtures.pretrain.tokens": "20k",
    "train.pretrain.steps": 4,
    "train.pretrain.batch_size": 4,
    "model.dim": 32,
    "model.n_layers": 2,
    "tokenizer.vocab_size": 512,
}


@pytest.mark.soak
def test_hub_dataset(clone: Path) -> None:
    with Hub({"roneneldan/TinyStories": Dataset(FILES)}) as hub:
        for command in commands("hub_dataset/README.md"):
            small = [f"{key}={value}" for key, value in SMALL.items()] if "--recipe" in command else []
            printed = run(command, clone, *(["--set", *small] if small else []), HF_ENDPOINT=hub.endpoint)
    assert printed.startswith("Once upon a time")
    manifest = json.loads((clone / "build/hub_dataset/pretrain/manifest.json").read_text())
    assert manifest["sources"][0]["revision"] and manifest["sources"][0]["license"] == "CDLA-Sharing-1.0"


def run_cell(source: str, names: dict[str, Any], shell: Callable[[str], None]) -> None:
    """Run a cell of a notebook: Python, and lines that begin with `!`, in which {NAME} stands for its value."""
    lines = [
        f"{line[: -len(line.lstrip())]}shell(f{line.lstrip()[1:]!r})" if line.lstrip().startswith("!") else line
        for line in source.splitlines()
    ]
    exec("\n".join(lines), names | {"shell": shell}, names)


class Shown(NamedTuple):
    """What a notebook shows: IPython itself is not among what the tests need."""

    filename: str


@pytest.mark.soak
def test_the_notebook(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells in order, small, without the one that sets up a machine; no kernel of Jupyter is needed for it."""
    pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")
    shown: list[Shown] = []
    module = types.ModuleType("IPython.display")
    module.SVG, module.display = Shown, shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(clone / "modules"))
    monkeypatch.chdir(clone)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    with Hub({"roneneldan/TinyStories": Dataset(FILES)}) as hub:

        def shell(command: str) -> None:
            print(run(command, clone, HF_ENDPOINT=hub.endpoint))

        for cell in cells:
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code" or "setup" in tags:
                continue
            source = "".join(cell["source"])
            if "parameters" in tags:
                source = re.sub(r"= .*", f"= {tuple(SMALL.values())}", source)
            run_cell(source, names, shell)
    assert Path(shown[0].filename).read_text().startswith("<svg")
    printed = capsys.readouterr().out
    for part in (
        "Bits per byte on held-out documents",
        "stories: ",
        "One day a little dog",
        "tokens/s",
    ):
        assert part in printed, part
