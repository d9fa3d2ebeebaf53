"""Recipes: every mistake names file, key and what is allowed, in a line or two, and exits 2."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine_harness import Work, small_recipe
from pydantic import TypeAdapter

from pipeline.errors import UsageError
from pipeline.options import check_arguments
from pipeline.recipe import load_recipe, parse_recipe, shipped
from stages.quantities import quantity, ratio
from stages.recipe import Recipe
from train.data.manifest import Manifest


def message(tmp_path: Path, *overrides: str) -> str:
    """What is said of the small recipe with `overrides`."""
    raw = tmp_path / "r.yaml"
    raw.write_text(json.dumps(small_recipe(tmp_path)))
    with pytest.raises(UsageError) as caught:
        load_recipe(str(raw), list(overrides))
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        (
            "sed=1",
            "sed: unknown key; did you mean 'seed'",
            "allowed: decontaminate, dedup, evals, exclude, executor, mixtures",
        ),
        ("sources.web.pth=x", "sources.web.pth: unknown key; did you mean 'path'", "template"),
        ("sources.maths.pth=x", "sources.maths.pth: unknown key", "max_documents"),
        ("sources.web.rules=[bogus]", "sources.web: no rule 'bogus'", "fineweb, length, metadata"),
        ("sources.web.rules=[{length: {min_char: 3}}]", "sources.web: rule length has no threshold", "min_chars"),
        ("sources.web.rules=[{length: {min_chars: x}}]", "sources.web: rule length: min_chars", "number"),
        ("sources.web.words=spaces", "sources.web.words: must be 'punctuation' or 'blanks'", "'spaces'"),
        ("dedup.exakt=true", "dedup.exakt: unknown key", "exact, lines, near, ngram, priority"),
        ("tokenizer.vocab=3", "tokenizer.vocab: unknown key; did you mean 'vocab_size'", "sample, split, vocab_size"),
        ("mixtures.pretrain.token=1", "mixtures.pretrain.token: unknown key", "max_epochs, packing, ratios"),
        ("quarantine.rows=1", "quarantine.rows: unknown key", "files, tolerate"),
        ("model.dims=3", "model.dims: unknown key; did you mean 'dim'", "sliding_window"),
        ("train.pretrain.step=3", "train.pretrain.step: unknown key; did you mean 'steps'", "batch_size"),
        ("train.pretrain.schedule.knd=x", "train.pretrain.schedule.knd: unknown key", "decay_frac, decay_shape, kind"),
        ("sources.web.from=nope", "sources.web.from: no kind of source 'nope'", "'jsonl', 'json_array'"),
        ("sources.web.path=3", "sources.web.path: must be text", "or a list"),
        ("sources.new={path: x}", "sources.new: ", "`from`"),
        ("train.pretrain.schedule.kind=x", "train.pretrain.schedule.kind", "'wsd', 'cosine', 'constant' or 'warmdown'"),
        ("executor=dask", "executor", "'auto', 'ray', 'local'"),
        ("seed=x", "seed: must be a whole number", "'x'"),
        ("seed=1e+308", "seed: must be a whole number", "not '1e+308'"),
        ("seed=yes", "seed: must be a number", "YAML reads yes"),
        ("mixtures.pretrain.tokens=true", "mixtures.pretrain.tokens: must be a number", "YAML reads yes"),
        ("mixtures.pretrain.temperature='nan'", "mixtures.pretrain.temperature: must be a finite", "'nan'"),
        ("model.layer_kinds=abc", "model.layer_kinds: must be a list", "not 'abc'"),
        ("model=3", "model: must be a group of keys", "'3'"),
        ("sources={}", "sources", "must have 1 or more"),
        ("mixtures.pretrain.tokens=12Q", "mixtures.pretrain.tokens: '12Q' is not a quantity", "write 300000, 300k"),
        ("mixtures.pretrain.tokens=1i", "mixtures.pretrain.tokens: '1i' is not a quantity", "64MiB"),
        ("mixtures.pretrain.ratios.web=x%", "mixtures.pretrain.ratios.web: 'x%' is not a ratio", "write 80% or 0.8"),
        ("mixtures.pretrain.ratios.web=50%", "mixtures.pretrain: ratios sum to 80.0000%, not 100%", "add up"),
        (
            "mixtures.pretrain.ratios={web: 0.5, nope: 0.5}",
            "mixtures.pretrain.ratios names source 'nope'",
            "web, maths",
        ),
        ("mixtures.pretrain.max_epochs={nope: 2}", "mixtures.pretrain: max_epochs names ['nope']", "no share"),
        ("mixtures.pretrain.max_epochs=0", "mixtures.pretrain: max_epochs", "above 0"),
        ("mixtures.other={tokens: 3, ratios: {web: 1}}", "mixtures.other", "pretrain, anneal"),
        ("dedup.priority=[x]", "dedup.priority names source 'x'", "web, maths, notes"),
        ("tokenizer.vocab_size=1048577", "tokenizer: vocab_size is 1,048,577", "more than 1,048,576; lower it"),
        ("tokenizer.vocab_size=263", "tokenizer: vocab_size is 263", "264"),
        ("name=a b", "name: ", "'a b'"),
        ("train.third={steps: 3}", "train.third.mixture is 'third'", "pretrain, anneal"),
        ("sources.a b={from: jsonl, path: x}", "sources has the name 'a b'", "letters, digits"),
        ("sources./x={from: jsonl, path: x}", "sources has the name '/x'", "letters, digits"),
        (f"sources.{'x' * 61}={{from: jsonl, path: x}}", "sources has the name 'xxx", "at most 60"),
        ("train.a/b={mixture: pretrain}", "train has the name 'a/b'", "letters, digits"),
        ("mixtures.pretrain={counts: {web: 9}, packing: best_fit, window: 1G}", "mixtures.pretrain.window", "lower"),
    ],
)
def test_mistakes_name_file_key_and_what_is_allowed(tmp_path: Path, override: str, key: str, said: str) -> None:
    text = message(tmp_path, override)
    assert text.startswith(str(tmp_path / "r.yaml") + ": ")
    assert key in text
    assert said in text


def test_any_value_in_any_key_is_read_or_refused_in_our_words(tmp_path: Path) -> None:
    def keys(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, inner in group.items() if isinstance(group, dict) else ():
            yield (*above, name)
            yield from keys(inner, (*above, name))

    base = parse_recipe(small_recipe(tmp_path), "r.yaml").to_dict()
    values = itertools.cycle(["nan", "9" * 5000, 1e308, [[]], "10 MB"])
    for *parents, last in keys(base):
        raw = copy.deepcopy(base)
        functools.reduce(operator.getitem, parents, raw)[last] = next(values)
        try:
            parse_recipe(raw, "r.yaml")
        except UsageError as error:
            assert not re.search(r"Input should|String should|Unable to|valid (integer|number|tuple)", str(error))


@pytest.mark.parametrize(("override", "said"), [("seed", "a.b=value"), ("=3", "a.b=value"), ("name.a=3", "name")])
def test_malformed_overrides(tmp_path: Path, override: str, said: str) -> None:
    assert said in message(tmp_path, override)


def test_the_largest_vocabulary_is_allowed_and_overrides_reach_every_level(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(small_recipe(tmp_path)))
    overrides = ["tokenizer.vocab_size=65536", "train.anneal.steps=9", "mixtures.anneal.ratios.web=20%", "seed=3"]
    recipe = load_recipe(str(tmp_path / "r.yaml"), overrides)
    assert (recipe.tokenizer.vocab_size, recipe.train["anneal"].steps, recipe.seed) == (65536, 9, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: }", "not valid YAML"),
        ("- a\n- b", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: a\nseed: 1\nseed: 2", "key 'seed' is there twice"),
        ("name: a", "sources: is required and missing"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=str(file)) as caught:
        load_recipe(str(file))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_missing_recipe_names_those_that_ship() -> None:
    with pytest.raises(UsageError, match=r"nowhere.yaml: no such file.*quickstart"):
        load_recipe("nowhere.yaml")


def test_quantities_and_ratios() -> None:
    given = ["20MB", "64MiB", "1.5B", "300k", "1_000", "2kib", 7]
    assert [quantity(q) for q in given] == [20_000_000, 64 << 20, 1_500_000_000, 300_000, 1000, 2048, 7]
    assert [ratio(r) for r in ("80%", "0.25", 0.5)] == [0.8, 0.25, 0.5]


def test_shipped_recipes_load_and_survive_a_round_trip_through_json() -> None:
    assert {"quickstart", "shard_40m"} <= set(shipped())
    for name in shipped():
        recipe = load_recipe(name)
        assert recipe.name == name
        again = parse_recipe(json.loads(json.dumps(recipe.to_dict())), "a manifest")
        assert again == recipe


def keys_without_words(schema: dict[str, Any]) -> set[str]:
    """Keys of pydantic models in a schema that have no description."""
    found = set()
    for name, part in {"Recipe": schema, **schema["$defs"]}.items():
        for key, value in part.get("properties", {}).items():
            if part.get("additionalProperties") is False and not {"description", "$ref"}.intersection(value):
                found.add(f"{name}.{key}")
    return found


@pytest.mark.slow
def test_json_schema_of_recipes_lists_every_key(work: Work) -> None:
    done = work.cli("schema", "recipe")
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    assert schema == json.loads(json.dumps(Recipe.model_json_schema(by_alias=True)))
    assert set(schema["properties"]) == {
        *load_recipe("quickstart").to_dict(),
        "scores",
        "evals",
        "decontaminate",
        "variant",
        "variants",
    }  # left out where empty
    assert schema["required"] == ["name", "sources"]
    assert schema["additionalProperties"] is False
    kinds = schema["properties"]["sources"]["additionalProperties"]["discriminator"]["mapping"]
    assert {"installed_docs", "parquet", "jsonl", "json_array"} <= set(kinds)
    ours = ("Recipe", "Dedup", "TokenizerConfig", "Mixture", "Quarantine")
    assert not {key for key in keys_without_words(schema) if key.startswith(ours)}


@pytest.mark.slow
def test_json_schema_of_manifests_fits_a_real_one(reference: Work) -> None:
    done = reference.cli("schema", "manifest")
    schema = json.loads(done.stdout)
    value = json.loads((reference.out / "small/pretrain/manifest.json").read_text())
    assert set(value) <= set(schema["properties"])
    assert set(schema["required"]) <= set(value)
    shard = schema["$defs"]["Shard"]
    assert all(set(s) == set(shard["properties"]) for s in value["shards"])
    read = TypeAdapter(Manifest).validate_json(json.dumps(value), strict=True)
    assert read.tokens == 50_000
    with pytest.raises(ValueError, match="tokens"):
        TypeAdapter(Manifest).validate_python({**value, "tokens": "many"})


@pytest.mark.slow
def test_the_command_line_says_it_in_a_line_and_exits_2(work: Work) -> None:
    assert "unknown key" in work.fails("run", "filter", "--set", "bogus=1", status=2)
    assert "allowed are recipe, manifest" in work.fails("schema", "nonsense", status=2)


def paths_of(file: Path) -> list[str]:
    recipe = load_recipe(str(file))
    return [*recipe.sources["a"].addresses(), *recipe.evals["e"].addresses(), recipe.tokenizer.source or ""]


def test_relative_paths_begin_at_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes, there = tmp_path / "recipes [1]", tmp_path / "recipes [1]" / "data"
    there.mkdir(parents=True)
    for name in ("a.jsonl", "e.jsonl", "tokenizer.json"):
        (there / name).write_text("{}")
    file = recipes / "r.yaml"
    written = {
        "name": "small",
        "sources": {"a": {"from": "jsonl", "path": ["data/*.jsonl", "hf://datasets/o/n/x.jsonl", "/abs/x"]}},
        "evals": {"e": {"from": "jsonl", "path": "data/e.jsonl"}},
        "tokenizer": {"from": "data/tokenizer.json"},
    }
    file.write_text(yaml.safe_dump(written))
    for where in (tmp_path, there):
        monkeypatch.chdir(where)
        local = [path for path in paths_of(file) if "://" not in path and path != "/abs/x"]
        assert local == [f"{there}/*.jsonl", f"{there}/e.jsonl", f"{there}/tokenizer.json"]
    monkeypatch.chdir(recipes)
    for name in (Path("r.yaml"), file):
        assert paths_of(name)[0] == "data/*.jsonl", "where one stands beside it nothing changes"
    monkeypatch.chdir(tmp_path)
    assert paths_of(Path("recipes [1]/r.yaml"))[0] == "recipes [1]/data/*.jsonl"
    changed = load_recipe(str(file), ["sources.a.path=data/b.jsonl"])
    assert changed.sources["a"].addresses() == ["data/b.jsonl"], "--set is meant from where one stands"
    assert not capsys.readouterr().err
    monkeypatch.chdir(recipes)
    other = tmp_path / "other/r.yaml"
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(written | {"tokenizer": {"from": "owner/name"}}))
    assert paths_of(other)[0] == "data/*.jsonl", "what is only found from where one stands is read there"
    assert paths_of(other)[-1] == "owner/name"
    assert f"data/e.jsonl is not in {other.parent}, where paths of the recipe begin" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert paths_of(other)[0] == f"{other.parent}/data/*.jsonl", "the error will name the recipe's folder"


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text('name: small\nsources:\n  a: {from: jsonl, path: "/x/caf\\udce9"}\n')
    with pytest.raises(UsageError, match=r"r\.yaml: sources\.a\.path: /x/caf\\xe9 is no UTF-8"):
        load_recipe(str(file))
    with pytest.raises(UsageError, match=r"argument 'caf\\xe9' is no UTF-8"):
        check_arguments(["run", "caf\udce9"])


def test_a_recipe_is_not_called_as_the_store_is(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: store\nsources:\n  a: {from: jsonl, path: /x}\n")
    with pytest.raises(UsageError, match="name is 'store', the folder in --out"):
        load_recipe(str(file))


BASE = "name: a\nsources:\n  s: {from: jsonl, path: x}\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("".join(f"k{i}: 1\n" for i in range(49_000)) + "k0: 2\n", "key 'k0' is there twice"),
        (LAUGHS, "more than 100,000 values, aliases written out"),
        ("name: &a [*a]\n", "nested more than 50 deep"),
        ("name: " + "[" * 100 + "]" * 100, "nested more than 50 deep"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep"),
        (BASE + "seed: " + "9" * 6000, "line 4: a number of 6,000 characters"),
        (BASE + "seed: " + "9" * 60, "line 4: a number of 60 characters"),
        (
            "name: a\nsources:\n  no: {from: jsonl, path: x}\n",
            "line 3: YAML reads the key no as false, a yes or no; write",
        ),
        (
            "name: a\nsources:\n  1: {from: jsonl, path: x}\n",
            "line 3: YAML reads the key 1 as 1, a number; write it in",
        ),
        ("name: a\nsources:\n  ~: {from: jsonl, path: x}\n", "YAML reads the key ~ as none, nothing"),
        ("name: a\nsources:\n  2024-01-01: {from: jsonl, path: x}\n", "as 2024-01-01, a date"),
        ("name: 2024-13-01\n", "a value cannot be read"),
        (
            "name: 2024-01-01\nsources:\n  s: {from: jsonl, path: x}\n",
            "name: must be text, not '2024-01-01'; YAML reads a",
        ),
        (
            BASE.replace("path: x", "path: x, text: off"),
            "sources.s.text: must be text, not 'False'; YAML reads yes",
        ),
        (
            BASE + "train: {steps: 5, first: {}}\n",
            "train.steps: keys of training stand in a phase",
        ),
        (BASE + "ranks: 0\n", "ranks: must be 1 or more, not '0'"),
        (BASE + "seed: 1:30:00\n", "line 4: YAML reads 1:30:00 as 5400; write that"),
        (BASE + "seed: 1:30.5\n", "line 4: YAML reads 1:30.5 as 90.5; write that"),
        (BASE + "seed: 010\n", "line 4: YAML reads 010 as 8; write that"),
        (BASE + "seed: " + "9" * 5000 + ".5\n", "line 4: a number of 5,002 characters"),
        (BASE.replace("path: x", "path: 3"), "sources.s.path: must be text or a list, not '3'"),
        (BASE.replace("path: x", "path: [3]"), "sources.s.path.0: must be text, not '3'"),
    ],
)
def test_yaml_is_bounded_and_what_it_reads_otherwise_is_explained(text, said, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    assert said in str(error.value) and str(tmp_path / "r.yaml") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    (tmp_path / "r.yaml").write_text("sead: 3\nsources:\n  s: {from: jsonl, paht: x}\nshard_tokens: -4\nranks: 0\n")
    with pytest.raises(UsageError) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    for key in ("name", "sead", "sources.s.path", "sources.s.paht", "shard_tokens", "ranks"):
        assert f"r.yaml: {key}: " in str(error.value)
    assert not re.search("Input should|String should|validation", str(error.value))


@pytest.mark.parametrize("value", ["1.0e+999", ".inf", "-.inf", ".nan", "1e999", '"' + "9" * 400 + '"', '"1e999"'])
@pytest.mark.parametrize("key", ["tokens: {}, ratios: {{s: 1}}", "tokens: 9, ratios: {{s: {}}}"])
def test_numbers_without_an_end_are_refused(key, value, tmp_path):
    (tmp_path / "r.yaml").write_text(BASE + f"mixtures:\n  pretrain: {{{key.format(value)}}}\n")
    with pytest.raises(UsageError, match=r"r\.yaml: "):
        load_recipe(str(tmp_path / "r.yaml"))


VARIANTS = {
    "small": {"name": "r_small", "tokenizer": {"vocab_size": 601}, "dedup": {"ngram": 7}},
    "wrong": {"model": {"dimm": 3}},
}


def with_variants(tmp_path: Path) -> str:
    raw = small_recipe(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(raw | {"variants": VARIANTS}))
    return str(file)


def test_a_variant_is_laid_over_the_recipe_and_set_over_both(tmp_path):
    file = with_variants(tmp_path)
    plain, small = load_recipe(file), load_recipe(file, ["variant=small"])
    assert (plain.variant, small.variant) == (None, "small")
    assert (small.name, small.tokenizer.vocab_size) == ("r_small", 601)
    differing = {key for key, value in small.to_dict().items() if plain.to_dict().get(key) != value}
    assert differing == {"name", "tokenizer", "variant", "dedup"}
    assert small.tokenizer.sample == plain.tokenizer.sample
    set_last = load_recipe(file, ["variant=wrong", "tokenizer.vocab_size=700", "variant=small"])
    assert set_last.tokenizer.vocab_size == 700


def test_a_recipe_without_a_variant_leaves_no_mark(tmp_path):
    file = with_variants(tmp_path)
    assert not {"variant", "variants"} & {*load_recipe(file).to_dict()}
    resolved = load_recipe(file, ["variant=small"]).to_dict()
    assert resolved["variant"] == "small" and "variants" not in resolved
    assert parse_recipe(resolved, "manifest").to_dict() == resolved  # as a manifest's recipe is read again


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("variant=large", "variant: no 'large' in variants; there are small, wrong"),
        ("variant=wrong", "model.dimm: unknown key; did you mean 'dim'"),
        ("variants=3", "variants: must be a group of keys"),
    ],
)
def test_variants_that_cannot_be_taken_are_named(tmp_path, override, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        load_recipe(with_variants(tmp_path), [override])
