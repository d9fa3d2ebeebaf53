"""The laws of the house, as CONTRIBUTING.md states them: who may import whom, and what stands where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.recipe import Recipe
from stages.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent
# Arrows point to the right only.
FLOORS = ("benchmarks", "pipeline", "stages", "train")
TRAINER_LIBRARIES = {"torch", "numpy", "safetensors"}
# Used where they are installed, so never imported when a module is: samples as text, loggers that a key asks for, whose
# tokens a batch has, what compresses an artefact, and buckets.
TRAINER_EXTRAS = {"gguf", "obstore", "pyarrow", "sentencepiece", "tokenizers", "wandb", "zstandard"}
EXPORTED = "train/export_hf_model.py"  # runs inside transformers, from an exported folder


def imports(file: Path, everywhere: bool = True) -> Iterator[str]:
    """Yield every module that a file imports, as a dotted name: anywhere in it, or only when it is imported itself."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_init_is_empty():
    full = [
        name_of(file) for floor in FLOORS for file in files(floor) if file.name == "__init__.py" and file.read_bytes()
    ]
    assert full == [], "an __init__ that imports widens the fingerprint of every module beside it"


def test_every_folder_with_modules_is_a_package():
    folders = {file.parent for floor in FLOORS for file in files(floor)}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("floor", FLOORS[1:])
def test_no_arrow_points_upward(floor):
    above = FLOORS[: FLOORS.index(floor)]
    wrong = [(name_of(file), name) for file in files(floor) for name in imports(file) if name.split(".")[0] in above]
    assert wrong == []


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_trainer_imports_torch_numpy_safetensors_and_the_standard_library(everywhere):
    allowed = {"train", *TRAINER_LIBRARIES, *sys.stdlib_module_names, *(TRAINER_EXTRAS if everywhere else ())}
    wrong = [
        (name_of(file), name)
        for file in files("train")
        for name in imports(file, everywhere)
        if name.split(".")[0] not in allowed and name_of(file) != EXPORTED
    ]
    assert wrong == []


@pytest.mark.parametrize("floor", ["stages", "train"])
def test_only_the_pipeline_knows_ray(floor):
    assert [name_of(file) for file in files(floor) for name in imports(file) if name.split(".")[0] == "ray"] == []


def stage_folders() -> set[str]:
    """The folders of stages/ that hold a stage."""
    return {file.parent.name for file in files("stages") if file.name == "stage.py" and file.parent.name != "stages"}


def test_every_stage_has_its_folder_with_a_driver():
    assert len(stage_folders()) >= 10


def test_the_pipeline_names_no_stage():
    """What it asks of one is an attribute of `Stage`; commands read manifests and records with the help of stages/."""
    drivers = {f"stages.{folder}.stage" for folder in stage_folders()}
    for file in files("pipeline"):
        imported = {".".join(name.split(".")[:3]) for name in imports(file)} & drivers
        assert not imported, f"{name_of(file)} imports {imported}; ask an attribute of Stage instead"
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        named = texts & set(STAGES) - set(FLOORS) - set(Recipe.model_fields)  # names that packages or keys have too
        assert not named, f"{name_of(file)} names {named}; ask an attribute of Stage instead"


@pytest.mark.parametrize("room", ["engine", "executors"])
def test_the_engine_imports_no_room_of_a_stage(room):
    rooms = {f"stages.{folder}" for folder in stage_folders()}
    for file in files(f"pipeline/{room}"):
        imported = {".".join(name.split(".")[:2]) for name in imports(file)} & rooms
        assert not imported, f"{name_of(file)} imports {imported}; ask an attribute of Stage instead"


def test_work_imports_neither_driver_nor_keys():
    wrong = [
        (name_of(file), name)
        for file in files("stages")
        if file.name == "work.py"
        for name in imports(file)
        if name.split(".")[0] in ("stages", "pipeline")
        and {"config", "stage", "recipe", "registry"} & set(name.split("."))
    ]
    assert wrong == [], "an edit of what only the driver needs would run the units again"


def test_a_driver_loads_no_compiler_and_no_torch():
    """They are memory, and time at each start, of a process that runs no unit."""
    code = "import pipeline.recipe_commands, pipeline.engine.context, stages.estimate.mixtures, stages.registry, sys"
    code += "; print(sorted({'numba', 'scipy', 'torch', 'ray', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_pin_but_torch_has_hashes():
    text = (ROOT / "requirements.hashes").read_text()
    pins = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    found = re.findall(r"(?m)^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text)
    hashed = {name: version for name, version, _ in found}
    del pins["torch"]
    assert {name.lower().replace("_", "-"): pin for name, pin in pins.items()} == {
        name.lower().replace("_", "-"): version for name, version in hashed.items()
    }, "run `make hashes`"
