"""An installed wheel works outside the clone: the command, the recipes, a run, completion, the same fingerprints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from pipeline.engine import fingerprint

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "stages", "train", "manifests")
RECIPE = """\
name: small
sources: {notes: {from: text, path: notes/*.txt}}
tokenizer: {vocab_size: 300, sample: 10k}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with a wheel of this clone; what it depends on comes from the one that runs the tests."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, check=True, timeout=300)
    (file,) = folder.glob("shardmill-*.whl")
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(file)]
    subprocess.run(install, check=True, timeout=300)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def run(installed: Path, *words: str, cwd: Path, **variables: str) -> str:
    """What a program of the environment prints, from a folder that is not the clone. It must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [str(installed / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_finds_the_recipes_that_ship(installed, tmp_path):
    code = "import pipeline.recipe as r; print(r.__file__, *r.shipped(), r.load_recipe('quickstart').name)"
    file, *names = run(installed, "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert names == [*sorted(path.stem for path in (ROOT / "manifests").glob("*.yaml")), "quickstart"]


def test_it_builds_in_an_empty_folder(installed, tmp_path):
    (tmp_path / "notes").mkdir()
    for n in range(40):
        words = " ".join(f"word{(n * 37 + i * i) % 997}" for i in range(60))
        (tmp_path / "notes" / f"{n}.txt").write_text(f"note {n}: {words}")
    (tmp_path / "small.yaml").write_text(RECIPE)
    options = ["--recipe", "small.yaml", "--executor", "local", "--workers", "1"]
    printed = run(installed, "shardmill", "run", "build_tokenizer", *options, cwd=tmp_path)
    assert "Where everything lies" in printed
    assert (tmp_path / "build" / "small" / "tokenizer" / "tokenizer.json").exists()
    again = run(installed, "python", "-m", "pipeline", "run", "build_tokenizer", *options, cwd=tmp_path)
    assert "Where everything lies" in again


def test_a_shell_completes_commands(installed, tmp_path):
    script = run(installed, "shardmill", cwd=tmp_path, _SHARDMILL_COMPLETE="source_bash")
    assert "complete" in script and "shardmill" in script
    asked = {"_SHARDMILL_COMPLETE": "complete_bash", "COMP_WORDS": "shardmill re", "COMP_CWORD": "1"}
    assert run(installed, "shardmill", cwd=tmp_path, **asked).split() == ["report", "rebuild"]


def test_the_code_has_the_fingerprint_that_it_has_in_the_clone(installed, tmp_path):
    """ROOT is all of site-packages here: nothing but the project may be hashed."""
    modules = ("pipeline.cli", "stages.registry", "train.main")
    code = f"from pipeline.engine.fingerprint import *; print(ROOT, *map(fingerprint, {modules}))"
    root, *prints = run(installed, "python", "-c", code, cwd=tmp_path).split()
    assert Path(root).name == "site-packages"
    assert prints == [fingerprint.fingerprint(module) for module in modules]


def test_the_trainer_is_started_by_its_path(installed, tmp_path):
    code = "from pipeline.engine.fingerprint import ROOT; print(ROOT / 'train' / 'main.py')"
    main = run(installed, "python", "-c", code, cwd=tmp_path).strip()
    assert "--manifest" in run(installed, "python", main, "--help", cwd=tmp_path)
