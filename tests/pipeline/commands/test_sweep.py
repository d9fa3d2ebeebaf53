"""A sweep of tiny models through the whole command, inside this process, over text of which one source is noise."""

from __future__ import annotations

import gc
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.commands.sweep import sweep_command
from pipeline.engine.context import drive
from pipeline.errors import UnitFailed, UserError
from pipeline.executors import train_job
from pipeline.make_context import make_context
from pipeline.recipe import load_recipe
from pipeline.sweep.config import load_sweep
from pipeline.sweep.notes import describe_point, known_points
from pipeline.sweep.outcome import Outcome
from pipeline.sweep.recipes import size_of, trial
from pipeline.sweep.runs import space_of
from pipeline.sweep.texts import verdict
from stages.compare.scored import open_scored
from stages.compare.stats import Difference
from stages.errors import DataError
from stages.filter.parse import default_thresholds
from stages.filter.rules import RULES
from stages.sweep.space import Key, Point, Space, design
from stages.tokenize.stage import TOKENIZE
from train.data.manifest import load_manifest
from train.main import run
from train.score import main as score_main

WORDS = {name: ["".join(random.Random(f"{name}{i}").choices("abcdefghij", k=4)) for i in range(60)] for name in "abn"}
PROXY = {"train.pretrain.steps": 12, "model.dim": 16}


def write_source(folder: Path, name: str, salt: int = 0, documents: int = 700) -> None:
    """Texts in which each word is followed by one of three; those of `n` have their words in any order."""
    rng, words = random.Random(f"{name} {salt}"), WORDS[name]
    lines = []
    for _ in range(documents):
        place, said = rng.randrange(60), []
        for _ in range(rng.randint(15, 40)):
            said.append(words[place])
            place = (7 * place + rng.randint(1, 3)) % 60
        if name == "n":
            rng.shuffle(said)
        lines.append(json.dumps({"text": " ".join(said)}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


def recipe(**changes) -> dict:
    model = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 32, "sliding_window": 16}
    train = {"steps": 48, "batch_size": 8, "seq_len": 32, "schedule": {"warmup": 2}, "dtype": "float32"}
    train |= {"muon": {"lr": 0.02}, "adamw": {"lr": 0.02}}
    return {
        "name": "tiny",
        "sources": {name: {"from": "jsonl", "path": f"{name}.jsonl"} for name in "abn"},
        "tokenizer": {"vocab_size": 420, "sample": "1MB"},
        "mixtures": {"pretrain": {"tokens": 60_000, "ratios": {"a": 0.34, "b": 0.33, "n": 0.33}, "max_epochs": 4}},
        "model": model,
        "train": {"pretrain": train},
        **changes,
    }


def write_sweep(folder: Path, **keys) -> Path:
    value = {"name": "mix", "recipe": "tiny.yaml", "proxy": PROXY, "points": 8, "seeds": 2, "weights": {"a": 1, "b": 1}}
    value |= {"confirm": {"seeds": 2}, "held_out": "3k", **keys}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("sweep")
    for name in "abn":
        write_source(home, name)
    (home / "tiny.yaml").write_text(yaml.safe_dump(recipe()))
    write_sweep(home)
    return home


class Trainer:
    """Trains in this process and notes which recipes. `fails_at`: the run that fails, counted from 0."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.fails_at: int | None = None

    def __call__(self, manifest: str, overrides: list[str], ranks: int, stop: Path) -> bool:
        if len(self.trained) == self.fails_at:
            raise DataError("the power went out")
        self.trained.append(Path(manifest).parents[1].name)
        gc.freeze()  # a run looks for garbage at each save, and not in what the driver holds
        return run(manifest, overrides)["status"] == "done"

    def taken(self) -> list[str]:
        """The recipes that were trained since this was last asked."""
        taken, self.trained = self.trained, []
        return taken


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(train_job, "train_with_processes", made)
    return made


def sweep(folder: Path, dry: bool = False) -> None:
    sweep_command(folder / "sweep.yaml", str(folder / "build"), None, dry, "inline", None, None, 1, False)


@pytest.mark.slow
def test_from_the_plan_to_the_recipe_that_follows(folder, trainer, capsys):
    """Cut short and continued, found again, and with one source changed: only what has a share of it is trained."""
    sweep(folder, dry=True)
    said = capsys.readouterr().out
    assert "9 runs of" in said and "not all built yet" in said and "draws on 5.23% of each source" in said
    trainer.fails_at = 4
    with pytest.raises(UnitFailed, match="the power went out"):
        sweep(folder)
    first = trainer.taken()
    trainer.fails_at = None
    sweep(folder)
    second = trainer.taken()
    assert len(first) == 4 and not set(first) & set(second)
    said = capsys.readouterr().out
    result = json.loads((folder / "build/mix/sweep/result.json").read_text())
    proxies = {row["run"]: row for row in result["trials"]}
    assert len(proxies) == 9 and set(first) < set(proxies) < {*first, *second}
    assert len(second) - 5 in (4, 6), "two or three sides of two seeds confirm"
    assert result["fit"]["best"]["shares"].get("n", 0) < 0.2 and not result["fit"]["doubts"]
    whole = next(row for row in result["confirmed"]["rows"] if row["kind"] == "all")
    assert f"{whole['recipes']['value']:+.4f} bits per byte" in said and "predicted" in said
    check_scores(folder, proxies)
    following = load_recipe(str(folder / "build/mix/sweep/next.yaml"))
    shares = result["next"]["shares"]
    assert following.mixtures["pretrain"].ratios == shares and following.mixtures["pretrain"].tokens == 60_000
    assert (shares == {"a": 0.34, "b": 0.33, "n": 0.33}) == (whole["recipes"]["high"] >= 0)
    page = (folder / "build/mix/sweep/index.html").read_text()
    assert all(name.removeprefix("mix-") in page for name in proxies if proxies[name]["share.n"] != 0.33)

    sweep(folder)
    assert trainer.taken() == [] and json.loads((folder / "build/mix/sweep/result.json").read_text()) == result
    capsys.readouterr()
    sweep(folder, dry=True)
    assert "9 runs: 9 kept, 0 to be scored again, 0 to train" in capsys.readouterr().out

    write_source(folder, "b", salt=1)  # one that is scored, so that all are scored again
    sweep(folder, dry=True)
    assert "9 runs: " not in (said := capsys.readouterr().out) and "runs are there; those stay that have no" in said
    base = load_recipe(str(folder / "build/mix/sweep/base.yaml"))
    text = make_context("tokenize", base, None, str(folder / "build"), "inline", None, None, quiet=True)
    drive(text, text.stage(TOKENIZE))
    capsys.readouterr()
    sweep(folder, dry=True)
    with_it = {name for name, row in proxies.items() if row["share.b"]}
    planned = f"9 runs: 0 kept, {9 - len(with_it)} to be scored again, {len(with_it)} to train"
    assert planned in (said := capsys.readouterr().out) and f"{len(with_it)}: b changed" in said, said
    sweep(folder)
    assert set(trainer.taken()) & set(proxies) == with_it and 3 <= len(with_it) < 9


def check_scores(folder: Path, proxies: dict) -> None:
    """A proxy's scores are those of its weights on what is held out, and its sources repeat as the target's do."""
    name, row = next((name, row) for name, row in proxies.items() if row["share.n"] and row["share.a"])
    manifest = load_manifest(folder / f"build/{name}/pretrain/manifest.json")
    tokens = manifest.recipe["mixtures"]["pretrain"]["tokens"]
    target = load_manifest(folder / "build/mix-held-out/pretrain/manifest.json")
    available = {source.name: source.available_tokens for source in target.sources}
    for source in manifest.sources:
        if source.name in available:
            epochs = row[f"share.{source.name}"] * 60_000 / available[source.name]
            assert source.epochs == pytest.approx(epochs, rel=0.01)
    assert tokens == 12 * 8 * 32 + 2 * 33
    run_folder = folder / f"build/{name}/train/pretrain"
    assert score_main([str(run_folder), "--manifest", str(target.folder), "--tokens", "0", "--rows"]) == 0
    scored = open_scored(str(run_folder))
    for source in "ab":
        own = [document for document in scored.documents.values() if document.source == source]
        bits = sum(document.nats for document in own) / math.log(2) / sum(document.bytes for document in own)
        assert row[f"bits.{source}"] == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"proxy": {}}, r"sweep.yaml: proxy: "),
        ({"point": 9}, r"sweep.yaml: point: unknown key; did you mean 'points'\?"),
        ({"weights": {"c": 1}}, r"weights: no source 'c'; the mixture has a, b, n"),
        ({"ratios": False}, r"nothing varies; say ratios: true, or name keys"),
        ({"phase": "anneal"}, r"phase: tiny has no train.anneal; its phases are pretrain"),
        ({"keys": {"model.dim": {"low": 2, "high": 1}}}, r"keys.model.dim: low is 2 and high 1; low must be less"),
        ({"keys": {"model.dims": [2, 4]}}, r"keys: model.dims: unknown key; did you mean 'dim'\?"),
        ({"proxy": {"train.pretrain.steps": 0}}, r"proxy: train.pretrain: train.steps = 0"),
        ({"proxy": {"train.pretrain.steps": 1000}}, r"proxies are smaller than the target"),
        ({"recipe": "none.yaml"}, r"none.yaml: no such file"),
    ],
)
def test_mistakes_are_said_before_anything_runs(folder, tmp_path, keys, said):
    (tmp_path / "tiny.yaml").write_text((folder / "tiny.yaml").read_text())
    with pytest.raises((UserError, DataError), match=said):
        sweep_command(write_sweep(tmp_path, **keys), str(tmp_path / "b"), None, True, None, None, None, 1, False)


def test_other_keys_vary_without_ratios_and_rules_by_name(folder, tmp_path, trainer, capsys):
    value = recipe()
    value["sources"]["n"]["rules"] = ["gopher_quality"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(value))
    keys = {"train.pretrain.muon.lr": {"low": 0.005, "high": 0.08}, "sources.n.rules.gopher_quality.min_words": [5, 50]}
    sweep, base = load_sweep(write_sweep(tmp_path, keys=keys, ratios=False))
    space, shares = space_of(sweep, base, dict.fromkeys("abn", 10**6), [])
    assert space.sources == () and shares == {"a": 0.34, "b": 0.33, "n": 0.33}
    assert [key.values for key in space.keys] == [(0.005, 0.02, 0.08), (5, 50)] and space.base_levels == (1, 1)
    assert default_thresholds(RULES["gopher_quality"])["min_words"] == 50
    size = size_of(sweep, base, sweep.proxy, "proxy")
    made = trial(sweep, base, size, Point((), (2, 0)), shares, 3)
    assert made.recipe.train["pretrain"].muon.lr == 0.08 and made.recipe.train["pretrain"].seed == 3
    assert made.recipe.sources["n"].rules == [{"gopher_quality": {"min_words": 5}}]
    assert made.recipe.model.dim == 16


def test_points_of_earlier_runs_are_points_of_a_changed_space():
    lr = Key("train.pretrain.muon.lr", (0.01, 0.02))
    before = Space(("a", "b", "n"), (0.4, 0.3, 0.3), (1.0, 1.0, 1.0))
    points = [Point((0.4, 0.3, 0.3)), Point((0.0, 0.9, 0.1)), Point((0.5, 0.5, 0.0))]
    notes = [describe_point(before, point) for point in points]
    assert known_points(before, notes) == points
    more = Space(("z", "a", "b", "n"), (0.25,) * 4, (1.0, 1.0, 0.6, 1.0), (lr,), (1,))
    assert known_points(more, notes) == [Point((0, 0.4, 0.3, 0.3), (1,)), Point((0, 0.5, 0.5, 0.0), (1,))]
    fewer = Space(("a", "b"), (0.5, 0.5), (1.0, 1.0))
    assert known_points(fewer, notes) == [Point((0.5, 0.5))], "those with a share of what is gone are no points"
    told = [describe_point(more, point) for point in known_points(more, notes)]
    assert known_points(before, told) == [], "nor are those at another value of a key that does not vary any more"
    extended = design(more, 14, known_points(more, notes))
    assert set(known_points(more, notes)) < set(extended) and len(extended) == 14, "a design goes on from them"


@pytest.mark.parametrize(
    ("against_base", "against_rest", "shares", "said"),
    [
        (-0.05, -0.03, (0.4, 0.4, 0.2, 0.0), "that much is not the leaving out alone"),
        (-0.05, 0.005, (0.4, 0.4, 0.2, 0.0), "no more is shown than what leaving out does"),
        (-0.05, 0.03, (0.334, 0.333, 0.333, 0.0), "leaving out alone does more"),
        (0.005, 0.03, (0.25, 0.25, 0.25, 0.25), "Kept: the base"),
    ],
)
def test_what_follows_is_the_best_mix_the_base_or_the_base_without_what_is_left_out(
    against_base, against_rest, shares, said
):
    def compared(value: float) -> SimpleNamespace:
        row = SimpleNamespace(kind="all", recipes=Difference(value, 0.005, 50.0))
        return SimpleNamespace(rows=(row,))

    space = Space(("a", "b", "c", "n"), (0.25,) * 4, (1.0,) * 4)
    prepared = SimpleNamespace(space=space, sweep=SimpleNamespace(confirm=SimpleNamespace(seeds=3)))
    finding = SimpleNamespace(best=Point((0.4, 0.4, 0.2, 0.0)), doubts=())
    outcome = Outcome(prepared, [], finding, compared(against_base), ("n",), compared(against_rest))
    assert outcome.winner.shares == shares
    assert said in " ".join(verdict(outcome))


def test_one_source_of_few_documents_keeps_the_base_and_says_what_to_raise():
    row = SimpleNamespace(kind="source", recipes=Difference(-0.05, math.inf, 0))
    space = Space(("a", "b"), (0.5, 0.5), (1.0, 1.0))
    prepared = SimpleNamespace(space=space, sweep=SimpleNamespace(confirm=SimpleNamespace(seeds=3)))
    finding = SimpleNamespace(best=Point((0.6, 0.4)), doubts=())
    outcome = Outcome(prepared, [], finding, SimpleNamespace(rows=(row,)), (), None)
    lines = " ".join(verdict(outcome))
    assert outcome.winner.shares == (0.5, 0.5) and "inf" not in lines
    assert "fewer than 20 documents are held out" in lines and "raise held_out" in lines and "Kept: the base" in lines
