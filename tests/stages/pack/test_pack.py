"""Packing as the engine drives it: the manifest of a small build, what falls short, and `inspect`."""

import json
import re

import pyarrow.parquet as pq
import pytest
from built import RECIPE, small
from tokenizers import Tokenizer

from pipeline.commands.inspect import print_manifest
from stages.errors import DataError
from train.data.format import read_shard
from train.data.manifest import load_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("packed"))


def test_the_manifest_accounts_for_everything(folder):
    manifest = load_manifest(folder)
    web, maths = manifest.sources
    assert (web.tokens, maths.tokens, manifest.tokens) == (18_000, 12_000, 30_000)
    assert (web.rows_in, web.rows_kept, web.dropped) == (501, 500, {"duplicate": 1})
    assert web.ratio_got == 0.6 and maths.epochs == 12_000 / maths.available_tokens > 1
    assert manifest.documents == sum(s.documents for s in manifest.split("train"))
    assert manifest.val_ids.count == (folder / "val_ids.bin").stat().st_size // 16 > 0
    assert json.loads((folder / "manifest.json").read_text())["recipe"]["name"] == "small"


@pytest.mark.slow
def test_another_store_gives_the_same_bytes(folder, tmp_path):
    again = small(tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    for name in names:
        if name.endswith((".bin", ".idx")) or name == "tokenizer.json":
            assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    digests = [[s.rows_digest for s in load_manifest(f).shards] for f in (folder, again)]
    assert digests[0] == digests[1]


def test_a_source_that_falls_short_stops_before_packing(tmp_path):
    mixture = RECIPE["mixtures"]["anneal"] | {"max_epochs": 1}
    with pytest.raises(DataError, match=r"^source maths is short by .* what would work, any one of: tokens: \d+"):
        small(tmp_path, mixtures={"anneal": mixture})
    with pytest.raises(DataError, match=r"recipe small has no mixtures\.anneal"):
        small(tmp_path, mixtures={})


@pytest.mark.parametrize(("token", "length"), [(0, 1), (0, 500), (777, 40), (5000, 100_000), (None, 9)])
def test_inspect_decodes_the_window_and_names_its_rows(folder, capsys, token, length):
    manifest = load_manifest(folder)
    shard = manifest.shards[1]
    rows = pq.read_table(folder / shard.rows).to_pylist()
    token = rows[3]["token_start"] if token is None else token  # where one row ends and the next begins
    print_manifest(manifest, 1, token, length)
    said = capsys.readouterr().out
    tokens = read_shard(folder / shard.path)[1][token : token + length]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    title = f"{shard.path}, tokens {token:,} to {token + len(tokens):,}:\n"
    assert title + tokenizer.decode(tokens.tolist(), skip_special_tokens=False) + "\n\n" in said
    inside = [r for r in rows if r["token_start"] < token + length and r["token_start"] + r["token_count"] > token]
    found = re.findall(r"^  from (\w+):(\S+) row (\d+)  id (\w+)  (\S*)$", said, re.MULTILINE)
    expected = [(r["source"], r["source_file"], str(r["source_row"]), r["document_id"].hex(), r["url"]) for r in inside]
    assert found == expected and expected
    for source in manifest.sources:
        assert re.search(rf"^{source.name} .*{source.ratio_got:.4%}.* {source.tokens:,} ", said, re.MULTILINE)
