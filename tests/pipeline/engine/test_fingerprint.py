"""The fingerprint of code, and that exactly what must re-run does: by the records, and by what `plan` says."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from commands import python
from engine_harness import REPO, Work, copy_project, edit, new_work, small_recipe, started_since


def is_work(node: ast.stmt) -> bool:
    """Whether a statement defines the work of a unit: a public function of a Task alone."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    hints = [ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation]
    return hints == ["Task"] and node.returns is not None and ast.unparse(node.returns) == "None"


def module_name(file: Path) -> str:
    """The name of a module of the project."""
    return ".".join(file.relative_to(REPO).with_suffix("").parts)


WORK_MODULES = [
    module_name(file)
    for file in sorted((REPO / "stages").rglob("*.py"))
    if any(map(is_work, ast.parse(file.read_text()).body))
]


def fingerprints(root: Path) -> dict[str, str]:
    """Fingerprint of each work module of the project at `root`, and of the trainer.

    By the module of that project, loaded here anew: it remembers nothing but what is in its file.
    """
    spec = spec_from_file_location("fingerprint_of_a_copy", root / "pipeline/engine/fingerprint.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert root == module.ROOT
    return {name: module.fingerprint(name) for name in (*WORK_MODULES, "train.main")}


def changed(root: Path, before: dict[str, str]) -> set[str]:
    """Modules whose fingerprint is another than before."""
    return {name for name, digest in fingerprints(root).items() if digest != before[name]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the project and its fingerprints. Tests leave it as they found it."""
    root = copy_project(tmp_path_factory.mktemp("keys"))
    return root, fingerprints(root)


def append(file: Path, text: str) -> None:
    """Add to the end of a file."""
    file.write_text(file.read_text() + text)


@functools.cache
def imported_names(root: Path) -> dict[str, set[str]]:
    """Module -> what its imports may name, by its text alone. Tests add no import."""
    line = re.compile(r"^\s*(?:from ([\w.]+) import ([^\n]*)|import ([\w.]+))", re.M)
    found: dict[str, set[str]] = {}
    for file in root.rglob("*.py"):
        names = found[".".join(file.relative_to(root).with_suffix("").parts)] = set()
        for package, words, module in line.findall(file.read_text()):
            names |= {package, module, *(f"{package}.{word}" for word in re.findall(r"\w+", words))}
    return found


def importers(root: Path, name: str) -> set[str]:
    """Modules that name `name` in an import, and those that name them in turn."""
    front, seen = [name], {name}
    while front:
        imported = front.pop()
        front += (new := [m for m, names in imported_names(root).items() if imported in names and m not in seen])
        seen |= set(new)
    return seen


def test_what_is_work_is_found() -> None:
    assert {"stages.filter.measure", "stages.sources.jsonl", "stages.pack.shard", "stages.train.work"} < set(
        WORK_MODULES
    )


@pytest.mark.slow
def test_the_driver_and_the_recipe_are_in_no_key(project: tuple[Path, dict[str, str]]) -> None:
    root, before = project
    files = [file for name in ("stage.py", "config.py") for file in (root / "stages").glob(f"*/{name}")]
    assert {"filter", "dedup", "pack", "tokenize", "train"} < {file.parent.name for file in files}
    texts = {file: file.read_text() for file in files}
    for file in files:
        append(file, "\n\nADDED = 1\n")
    assert changed(root, before) == set()
    for file, text in texts.items():
        file.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK_MODULES)
def test_work_is_in_its_own_key_and_in_those_of_its_importers(project: tuple[Path, dict[str, str]], name: str) -> None:
    root, before = project
    file = root.joinpath(*name.split(".")).with_suffix(".py")
    text = file.read_text()
    append(file, "\n\nADDED = 1\n")
    assert changed(root, before) == importers(root, name) & set(before)
    file.write_text(text)


@pytest.mark.slow
def test_no_docstring_is_in_a_key(tmp_path: Path) -> None:
    root = copy_project(tmp_path)
    before = fingerprints(root)
    edited = 0
    for file in (root / "stages").rglob("*.py"):
        text = file.read_text()
        more = re.sub(r'^( *)"""(?=[A-Z])', r'\1"""Other words. ', text, flags=re.M)
        edited += text != more
        file.write_text(more)
    assert edited > 50
    assert changed(root, before) == set()


@pytest.mark.slow
def test_only_meaning_counts(tmp_path: Path) -> None:
    root = copy_project(tmp_path)
    before = fingerprints(root)
    rules = root / "stages/filter/length.py"
    edit(rules, "def length(", "# a comment\n\n\ndef length(")
    edit(rules, '"""Length of the text in characters, both ends allowed."""', '"""Other words."""')
    edit(root / "stages/hashing.py", '"""', '"""Another docstring. ')
    assert changed(root, before) == set()
    edit(rules, 'return "length_short"', 'return "length_too_short"')
    assert changed(root, before) == {"stages.filter.measure"}
    edit(root / "stages/tokenizer/spec.py", '"<|tool|>"', '"<|tools|>"')
    tokenizers = {f"stages.tokenizer.{name}" for name in ("work", "sentencepiece_work", "measure", "report")}
    tokenizing = tokenizers | {"stages.tokenize.work", "stages.encode_evals.work"}
    assert changed(root, before) == {"stages.filter.measure"} | tokenizing
    edit(root / "train/optim/schedule.py", "def ", "UNUSED = 1\n\n\ndef ")
    assert changed(root, before) == {"stages.filter.measure", "train.main"} | tokenizing


@pytest.mark.slow
def test_a_function_that_holds_nothing_but_its_docstring(tmp_path: Path) -> None:
    root = copy_project(tmp_path)
    before = fingerprints(root)
    edit(root / "stages/filter/length.py", "def length(", 'def unused() -> None:\n    """Nothing."""\n\n\ndef length(')
    assert changed(root, before) == {"stages.filter.measure"}


GRAPH = """
import json, sys
from pipeline.make_context import make_context
from pipeline.commands.plan import survey_of
from pipeline.commands.plan_rows import stage_rows
target, recipe, out = sys.argv[1:]
context = make_context(target, recipe, None, out, dry=True, quiet=True)
survey_of(context, target)
print(json.dumps(stage_rows(context, target)))
"""


def plan(work: Work, target: str, **environment: str) -> dict[str, tuple[str, str]]:
    """stage -> (units to run, why) as `plan` prints them, without its forecast; stages with nothing to run left out."""
    program = work.folder / "graph.py"
    program.write_text(GRAPH)
    words = [str(program), target, str(work.recipe), str(work.out)]
    variables = work.environment(**environment)
    if work.forks(environment):
        done = python(words, work.folder, variables, root=work.root)
    else:
        done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        row[0]: (str(row[3]), row[4]) for row in json.loads(done.stdout) if row[4] not in ("cached", "nothing to do")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A project of its own that cuts finely, with everything packed. Tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("rerun")
    work = new_work(folder, copy_project(folder, unit_bytes=20_000))
    work.is_loaded = True  # edits below change no unit's result
    work.run("pack_pretrain", "--executor", "inline")
    return work


def rerun(work: Work, stage: str, **environment: str) -> set[tuple[str, str]]:
    """(stage, label) of the units that running `stage` again makes."""
    moment = time.time()
    work.run(stage, "--executor", "inline", **environment)
    return started_since(work, moment)


@pytest.mark.slow
def test_a_comment_runs_nothing_again(built: Work) -> None:
    edit(built.root / "stages/tokenize/work.py", "BATCH_BYTES = 8", "# Words.\nBATCH_BYTES = 8")
    assert plan(built, "pack_pretrain") == {}
    assert rerun(built, "pack_pretrain") == set()


@pytest.mark.slow
def test_the_driver_runs_nothing_again_and_work_its_units(built: Work) -> None:
    files = [file for name in ("stage.py", "config.py") for file in (built.root / "stages").glob(f"*/{name}")]
    texts = {file: file.read_text() for file in [*files, built.root / "stages/filter/work.py"]}
    for file in files:
        append(file, "\n\nADDED = 1\n")
    assert rerun(built, "pack_pretrain") == set()
    append(built.root / "stages/filter/work.py", "\n\nADDED = 1\n")
    units = {(r["stage"], r["label"]) for r in built.records().values() if r["stage"] == "filter"}
    parts = {unit for unit in units if " part-" in unit[1]}
    # The documents come out as they were: of what reads them only the manifest, which names the code.
    again = rerun(built, "pack_pretrain")
    assert len(parts) > 3 and parts <= again <= units | {("pack_pretrain", "manifest")}
    assert ("pack_pretrain", "manifest") in again
    for file, text in texts.items():
        file.write_text(text)
    assert rerun(built, "pack_pretrain") == set()


@pytest.mark.slow
def test_a_helper_of_two_stages_runs_those_two_again(built: Work) -> None:
    helper = built.root / "stages/tokenizer/spec.py"
    edit(helper, "def open_vocabulary(", "UNUSED = 1\n\n\ndef open_vocabulary(")
    assert plan(built, "pack_pretrain")["build_tokenizer"] == ("1", "code stages.tokenizer.spec changed")
    tokenised = rerun(built, "pack_pretrain")
    units = {(r["stage"], r["label"]) for r in built.records().values() if r["stage"] == "tokenize"}
    units = {unit for unit in units if " held " not in unit[1]}
    # The tokenizer and the tokens come out as they were: of what reads them only the manifest, which names the code.
    measured = {unit for unit in tokenised if unit[0] == "build_tokenizer" and " measure " in unit[1]}
    made = {("build_tokenizer", "600"), ("build_tokenizer", "report"), ("pack_pretrain", "manifest")} | measured
    assert tokenised == made | units and len(measured) == 3
    assert len(units) > 5
    edit(helper, "UNUSED = 1\n\n\n", "")
    assert rerun(built, "pack_pretrain") == set()


# What deduplication does with the whole corpus when any of it changed.
WHOLE = ("match exact 1 of 1", "match near 1 of 1", "join 1 of 1, round 1", "drops of parts 0 to 7", "report")
COMPARED = {("dedup", what) for what in WHOLE}


@pytest.mark.slow
def test_a_threshold_of_one_source_runs_its_filter_again(built: Work) -> None:
    recipe = small_recipe(built.corpus)
    recipe["sources"]["web"]["rules"] = [{"length": {"min_chars": 150}}]
    built.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert plan(built, "dedup") == {
        "filter": ("3", "parameter rules changed (3)"),
        "dedup": ("?", "not reached: waits for the stages above"),
    }
    parts = {("filter", f"web w{i}.jsonl part-000") for i in range(3)}
    parts |= {("filter", "web choose"), ("filter", "web dropped")}
    applied = {("dedup", f"web {sign}{i:05d}") for i in range(3) for sign in ("", "sign ")}
    assert rerun(built, "dedup") == parts | COMPARED | applied
    built.write()
    assert rerun(built, "dedup") == set()


@pytest.mark.slow
def test_another_way_to_count_words_runs_the_filters_that_count_them_again(built: Work) -> None:
    recipe = small_recipe(built.corpus)
    loose = {"min_line_punctuation": 0, "max_short_lines": 1, "max_repeated_chars": 1, "max_newlines_per_word": 1}
    recipe["sources"]["web"]["rules"] = [{"length": {"min_chars": 1}}, {"fineweb": loose}]
    for words in ("punctuation", "blanks"):
        recipe["sources"] = {name: source | {"words": words} for name, source in recipe["sources"].items()}
        built.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        parts = {(stage, f"web w{i}.jsonl part-000") for i in range(3) for stage in ("measure", "filter")}
        samples = {("filter", "web choose"), ("filter", "web dropped")}
        assert rerun(built, "filter") - samples == parts
    built.write()
    assert rerun(built, "filter") == set()


@pytest.mark.slow
def test_one_input_file_runs_its_units_again(built: Work) -> None:
    file = built.corpus / "web/w1.jsonl"
    text = file.read_text()
    new = "Ganz neu und " + "sehr lang " * 20
    file.write_text(text + f'{{"text": "{new}", "score": 1}}\n')
    assert plan(built, "dedup")["download"] == ("1", "input changed")
    assert (
        rerun(built, "dedup")
        == {
            ("download", "web w1.jsonl"),
            ("measure", "web w1.jsonl part-000"),
            ("filter", "web w1.jsonl part-000"),
            ("filter", "web dropped"),
            ("dedup", "web sign 00001"),
            ("dedup", "web 00001"),
        }
        | COMPARED
    )
    file.write_text(text)
    assert rerun(built, "dedup") == set()


@pytest.mark.slow
def test_a_declared_library_runs_the_stages_that_declare_it(built: Work, tmp_path: Path) -> None:
    info = tmp_path / "site" / "tokenizers-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 99.0\n")
    path = {"PYTHONPATH": str(info.parent)}
    assert plan(built, "pack_pretrain", **path)["build_tokenizer"] == ("3", "version of tokenizers changed (3)")
    made = rerun(built, "pack_pretrain", **path)
    assert {stage for stage, _ in made} == {"build_tokenizer", "tokenize", "pack_pretrain"}
    # Tokens came out the same, so of packing only the manifest, which names the versions, is made anew.
    assert {label for stage, label in made if stage == "pack_pretrain"} == {"manifest"}
    assert rerun(built, "pack_pretrain") == set()


@pytest.mark.slow
def test_damaged_and_unknown_units_say_so(built: Work) -> None:
    units = json.loads((built.out / "small/units/build_tokenizer.json").read_text())["units"]
    key = units["600"][:40]
    record = built.records()["build_tokenizer", key]
    path = built.out / "store" / record["outputs"][0]["path"]
    kept = path.read_bytes()
    path.write_bytes(kept[:-1])
    assert plan(built, "tokenize")["build_tokenizer"] == ("1", "its output is missing or damaged")
    path.write_bytes(kept)
    assert plan(built, "tokenize") == {}
    recipe = small_recipe(built.corpus)
    recipe["sources"]["more"] = {"from": "parquet", "path": str(built.corpus / "maths"), "revision": "2"}
    built.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert "download" not in plan(built, "filter"), "another name for the same rows is the same work"
    recipe["sources"]["more"]["text"] = "url"
    built.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert plan(built, "filter")["download"][1].startswith("new")
    built.write()


@pytest.mark.slow
def test_what_is_remembered_for_reasons_stays_small(built: Work) -> None:
    state = "".join(file.read_text() for file in (built.out / "small/units").iterdir())
    assert len(state) / len(built.records()) < 1000, "bytes a unit"
