"""`verify` finds any one bit that differs, in any file, and forgeries whose checksums agree."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from built import copy_of, edit, flip, patch_hashes, replace, small
from commands import cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.pack.format import ROWS
from stages.pack.verify import verify
from stages.schemas import table_digest
from train.data.format import Header, write_index
from train.data.manifest import ManifestError, load_manifest, manifest_text


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "quiz.jsonl").write_text('{"question": "Is it?", "choices": ["It is", "It is not"], "answer": 1}\n')
    return small(folder, evals={"quiz": {"from": "jsonl", "path": str(folder / "quiz.jsonl"), "revision": "v2"}})


@pytest.fixture
def folder(published, tmp_path):
    return copy_of(published, tmp_path / "copy")


def problems(folder):
    return list(verify(load_manifest(folder)))


@pytest.mark.slow
def test_a_clean_build_passes(folder):
    manifest = load_manifest(folder)
    assert len(manifest.split("train")) >= 4 and len(manifest.split("val")) == 1
    assert [s.epochs > 1 for s in manifest.sources] == [False, True]
    assert problems(folder) == []


@pytest.mark.parametrize("kind", ["bin", "idx", "rows.parquet", "val_ids.bin", "tokenizer.json", "eval_quiz.json"])
@pytest.mark.parametrize("at", [3, 20, -1])
def test_one_flipped_bit_of_a_file(folder, kind, at):
    name = kind if "." in kind and kind != "rows.parquet" else f"small_anneal_train_000001.{kind}"
    flip(folder / name, at, bit=at % 7)
    assert f"{name}: sha256 differs from the manifest's" in problems(folder)


@pytest.mark.parametrize("name", ["small_anneal_train_000000.bin", "small_anneal_val_000000.idx", "tokenizer.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert f"{name}: missing" in problems(folder)


@pytest.mark.slow
def test_the_command_line_says_so(folder):
    clean = cli("verify", str(folder / "manifest.json"))
    assert clean.returncode == 0 and "30,000 training" in clean.stdout
    flip(folder / "small_anneal_train_000000.bin", 2000)
    damaged = cli("verify", str(folder / "manifest.json"))
    assert damaged.returncode == 1 and "sha256 differs" in damaged.stdout
    assert damaged.stderr.startswith("error: ") and "1 differences" in damaged.stderr


def test_any_figure_changed_by_hand_is_seen(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    for old, new in (
        ('"rows_in": ', '"rows_in": 1'),
        ('"source_tree": "', '"source_tree": "0'),
        ('"license": "', '"license": "x'),
        ('"digest": "', '"no digest": "'),
    ):
        assert old in text
        replace(path, text.replace(old, new, 1).encode())
        with pytest.raises(ManifestError, match=r"changed after it was written: .* write it again with `python -m"):
            load_manifest(folder)
    replace(path, text.encode())
    assert not problems(folder)


def test_a_manifest_of_before_with_licence_loads_and_verifies(folder):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    entries = [*value["sources"], *value["evals"], *value["recipe"]["sources"].values()]
    entries += value["recipe"]["evals"].values()
    for number, entry in enumerate(entries):
        del entry["license"]
        entry["licence"] = f"old {number % (len(value['sources']) + len(value['evals']))}"
    replace(path, manifest_text(value).encode())
    manifest = load_manifest(folder)
    assert [s.license for s in manifest.sources] == ["old 0", "old 1"] and manifest.evals[0].license == "old 2"
    assert '"licence"' not in manifest.to_json()
    assert problems(folder) == []
    replace(path, path.read_bytes().replace(b"old 1", b"new 1", 1))
    with pytest.raises(ManifestError, match="changed after it was written"):
        load_manifest(folder)


UNKNOWABLE = {"source_tree", "versions", "code", "files", "phase"}
UNKNOWABLE_OF_SOURCES = {
    *("kind", "origin", "revision", "license", "rows_in", "rows_kept"),
    *("dropped", "quarantined", "files_lost"),
}


def changed(value):
    """A value of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, float):
        return float(np.nextafter(value, 9)) if value not in (1.0, 4.0) else value + 0.5
    if isinstance(value, str):
        return chr(ord(value[0]) ^ 1) + value[1:]
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    return {**value, next(iter(value)): changed(value[next(iter(value))])}


@pytest.mark.slow
def test_every_field_of_the_manifest_that_can_be_known(published, tmp_path):
    """Fields that the folder says nothing about are listed above, so that a new one must be thought about."""
    manifest = load_manifest(published)
    spots = [
        (f.name,)
        for f in dataclasses.fields(manifest)
        if f.name not in ("folder", "schema_version", "recipe", "digest")
    ]
    nested = ("tokenizer", "val_ids", "shards", "sources", "evals")
    spots = [spot for spot in spots if spot[0] not in nested]
    spots += [(name, f.name) for name in nested[:2] for f in dataclasses.fields(getattr(manifest, name))]
    spots += [(name, 0, f.name) for name in nested[2:] for f in dataclasses.fields(getattr(manifest, name)[0])]
    assert len(spots) > 40
    folder = copy_of(published, tmp_path / "copy")
    clean = (folder / "manifest.json").read_bytes()
    blind = set()
    for spot in spots:

        def change(value, spot=spot):
            *path, last = spot
            for step in path:
                value = value[step]
            old = value.get(last, last != "adopted" and [])  # what is empty or false may be left out
            empty = {str: "x", dict: {"x": 1}, list: [1]}
            value[last] = empty[type(old)] if type(old) in empty and not old else changed(old)

        edit(folder, change)
        if not problems(folder):
            blind.add(spot)
        replace(folder / "manifest.json", clean)
    unknowable = {("sources", 0, name) for name in UNKNOWABLE_OF_SOURCES} | {("evals", 0, "files")}
    assert blind == {(name,) for name in UNKNOWABLE} | unknowable


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bit_of_any_data_file(published, folder, data):
    name = data.draw(st.sampled_from(sorted(p.name for p in published.iterdir() if p.name != "manifest.json")))
    original = (published / name).read_bytes()
    flip(folder / name, data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 7)))
    assert any(name in problem for problem in problems(folder))
    replace(folder / name, original)


def test_swapped_shards(folder):
    names = ["small_anneal_train_000000", "small_anneal_train_000001"]
    for ending in ("bin", "idx", "rows.parquet"):
        (folder / f"{names[0]}.{ending}").rename(folder / "aside")
        (folder / f"{names[1]}.{ending}").rename(folder / f"{names[0]}.{ending}")
        (folder / "aside").rename(folder / f"{names[1]}.{ending}")
    assert len([p for p in problems(folder) if "sha256 differs" in p]) == 6

    # With all entries of the manifest exchanged to match, only the order of positions tells.
    def change(value):
        first, second = value["shards"][:2]
        for key in set(first) - {"path", "index", "rows"}:
            first[key], second[key] = second[key], first[key]

    edit(folder, change)
    assert problems(folder) == ["small_anneal_train_000001.bin: holds documents that belong into an earlier shard"]


@pytest.mark.parametrize("where", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
@pytest.mark.parametrize("key", ["path", "index", "rows"])
def test_a_path_that_leads_outside(folder, where, key):
    shutil.copy(folder / "small_anneal_train_000000.bin", folder.parent / "outside.bin")
    edit(folder, lambda value: value["shards"][0].update({key: where}))
    assert f"{where}: leads out of the manifest's folder" in problems(folder)


def forge(folder, number, change):
    """Rewrite shard `number` from changed (rows, tokens), with every count and checksum made to match."""
    manifest = load_manifest(folder)
    shard = manifest.shards[number]
    rows = pq.read_table(folder / shard.rows)
    tokens = np.fromfile(folder / shard.path, "<u2")[512:]
    rows, tokens = change(rows, tokens)
    counts = rows["token_count"].to_numpy().astype(np.int64)
    rows = rows.set_column(0, "token_start", pa.array(np.cumsum(counts) - counts)).cast(ROWS)
    pq.write_table(rows, folder / shard.rows)
    write_index(str(folder / shard.index), counts, np.cumsum(counts) - counts)
    header = Header(len(tokens), manifest.tokenizer.vocab_size, 0, len(rows), manifest.build_id)
    (folder / shard.path).write_bytes(header.pack() + tokens.tobytes())

    def update(value):
        entry = value["shards"][number]
        value["tokens"] += len(tokens) - entry["tokens"]
        value["documents"] += len(rows) - entry["documents"]
        entry.update(tokens=len(tokens), documents=len(rows), bytes=1024 + 2 * len(tokens))
        entry["rows_digest"] = table_digest(rows)

    edit(folder, update)
    patch_hashes(folder)


def test_a_forgery_that_changes_nothing_passes(folder):
    forge(folder, 0, lambda rows, tokens: (rows, tokens))
    assert problems(folder) == []


def test_a_validation_document_in_a_training_shard(folder):
    manifest = load_manifest(folder)
    val = manifest.split("val")[0]
    document = pq.read_table(folder / val.rows).slice(0, 1)
    count = document["token_count"][0].as_py()
    moved = np.fromfile(folder / val.path, "<u2")[512:][:count]
    forge(folder, 0, lambda rows, tokens: (pa.concat_tables([rows, document]), np.concatenate([tokens, moved])))
    identity = document["document_id"][0].as_py().hex()
    found = problems(folder)
    assert f"small_anneal_train_000000.bin: holds 1 validation documents, such as {identity}" in found
    # Taken out of val_ids.bin as well, its id still betrays it.
    kept = (folder / "val_ids.bin").read_bytes().replace(bytes.fromhex(identity), b"")
    replace(folder / "val_ids.bin", kept)
    edit(folder, lambda value: value["val_ids"].update(count=len(kept) // 16))
    patch_hashes(folder)
    name = "small_anneal_train_000000.bin"
    assert f"{name}: documents are not on the side of the split that their id puts them" in problems(folder)


def swap_first_two(rows, tokens):
    a, b = rows["token_count"][0].as_py(), rows["token_count"][1].as_py()
    order = pa.array([1, 0, *range(2, len(rows))])
    return rows.take(order), np.concatenate([tokens[a : a + b], tokens[:a], tokens[a + b :]])


def drop_last(rows, tokens):
    return rows.slice(0, len(rows) - 1), tokens[: -rows["token_count"][-1].as_py()]


def repeat_first(rows, tokens):
    n = rows["token_count"][0].as_py()
    return pa.concat_tables([rows.slice(0, 1), rows]), np.concatenate([tokens[:n], tokens])


def replaced(rows, name, value):
    return rows.set_column(rows.schema.get_field_index(name), name, pa.array(value, rows.schema.field(name).type))


FORGERIES = {
    "not in the order of seed 5": swap_first_two,
    "training tokens and documents are": drop_last,
    "by copy are": repeat_first,
    "does not list": lambda rows, tokens: (replaced(rows, "source", ["other"] * len(rows)), tokens),
    "training documents of maths are cut": lambda rows, tokens: (
        replaced(rows, "truncated", pc.equal(rows["source"], "maths").to_pylist()),
        tokens,
    ),
    "is not in the vocabulary": lambda rows, tokens: (rows, np.where(np.arange(len(tokens)) == 1, 400, tokens)),
    "special ids other than BOS": lambda rows, tokens: (rows, np.where(np.arange(len(tokens)) == 1, 3, tokens)),
    "BOS does not stand": lambda rows, tokens: (rows, np.where(np.arange(len(tokens)) == 1, 0, tokens)),
}


@pytest.mark.parametrize("message", FORGERIES)
def test_forgeries_whose_checksums_agree(folder, message):
    def back(value, clean=json.loads((folder / "manifest.json").read_text())):  # noqa: B008
        if FORGERIES[message] in (drop_last, repeat_first):
            value.update({k: clean[k] for k in ("tokens", "documents")})

    forge(folder, 1, FORGERIES[message])
    edit(folder, back)
    found = problems(folder)
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("small_anneal_train_000000.bin", b"short"),
        ("small_anneal_train_000000.bin", b"\0" * 4000),
        ("small_anneal_train_000000.idx", b"MMIDIDX\0\0" + b"\0" * 60),
        ("small_anneal_train_000000.rows.parquet", b"PAR1 no parquet PAR1"),
        ("val_ids.bin", b"12345"),
        ("val_ids.bin", b""),
    ],
)
def test_nonsense_with_a_matching_checksum_is_reported_not_raised(folder, name, data):
    replace(folder / name, data)
    patch_hashes(folder)
    found = problems(folder)
    assert any(p.startswith((name, "small_anneal_train_000000.bin")) for p in found), found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value["recipe"]["mixtures"]["anneal"].update(window="/etc"), "recipe.mixtures.anneal.window"),
        (lambda value: value["recipe"]["mixtures"]["anneal"].update(tokens="30k"), "recipe.mixtures.anneal is not as"),
        (lambda value: value["recipe"]["evals"]["quiz"].update(items=-1), "recipe.evals.quiz"),
        (lambda value: value["sources"][0].update(tokens=2**62, available_tokens=1), "by copy are"),
    ],
)
def test_figures_and_recipes_of_a_stranger_are_said_to_be_wrong_at_once(folder, change, said):
    edit(folder, change)
    assert any(said in problem for problem in problems(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokens", "x"), ("recipe", None), ("files", []), ("shards.0.tokens", "12"), ("seed", True), ("tokens", 10**30)],
)
def test_a_manifest_with_values_of_another_type_is_refused_by_name(folder, key, value):
    file = folder / "manifest.json"
    node = said = json.loads(file.read_text())
    *parents, last = key.split(".")
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[last] = value
    file.write_text(manifest_text(said))
    with pytest.raises(ManifestError, match="not a manifest of ours"):
        load_manifest(folder)
