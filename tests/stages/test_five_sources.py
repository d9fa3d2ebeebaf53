"""Seven real sources in the schemas of the named datasets, one command, and every token traced back.

A share of the mixture that is not exact, a row that leads to the wrong text or a long document that loses a
part fails here, on real text and through the command line.
"""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from commands import cli
from stage_harness import SHARED, needs_shared
from tokenizers import Tokenizer

from stages.pack.verify import verify
from train.data.format import read_shard
from train.data.manifest import load_manifest

pytestmark = [needs_shared, pytest.mark.slow]

RATIOS = {"web": 17, "owm": 13, "arxiv": 37, "numina": 11, "metamath": 9, "cosmopedia": 8, "arc": 5}
TOKENS, SHARD_TOKENS = 2_000_000, 100_000
# One chapter of 1.5 MB, longer than several shards, and some short ones.
CHAPTERS = [f"stacks/{n}" for n in ("more-algebra", "coding", "pic", "stacks-limits", "etale", "criteria", "topology")]
TEMPLATES = {"numina": "{problem}\n\n{solution}", "metamath": "Question: {query}\nAnswer: {response}"}
RECIPE = {
    "name": "five_sources",
    "seed": 5,
    "sources": {
        "web": {
            "from": "parquet",
            "path": f"{SHARED}/web/textbooks_d2l_cpalgo.parquet",
            "rules": ["gopher_quality", {"metadata": {"int_score": {"min": 3}, "language": {"in": ["en"]}}}],
            "words": "blanks",  # counted otherwise, formulas and code leave too little of it
            "url": "url",
        },
        "owm": {"from": "parquet", "path": f"{SHARED}/math/openwebmath_schema_planetmath.parquet", "url": "url"},
        "arxiv": {
            "from": "jsonl",
            "path": f"{SHARED}/math/arxiv_schema_stacks_project.jsonl.zst",
            "url": "meta.url",
            "rules": [{"metadata": {"meta.arxiv_id": {"in": CHAPTERS}}}],
        },
        "numina": {
            "from": "parquet",
            "path": f"{SHARED}/qa/numinamath_cot_schema",
            "template": TEMPLATES["numina"],
        },
        "metamath": {
            "from": "json_array",
            "path": f"{SHARED}/qa/metamathqa_schema",
            "template": TEMPLATES["metamath"],
        },
        "cosmopedia": {"from": "parquet", "path": f"{SHARED}/qa/cosmopedia_schema"},
        "arc": {"from": "ai2_arc", "path": f"{SHARED}/qa/ai2_arc/*/train-*.parquet"},
    },
    "dedup": {"exact": True, "priority": ["numina", "arc"]},
    "tokenizer": {"vocab_size": 2048, "sample": "1MB"},
    "shard_tokens": SHARD_TOKENS,
    "mixtures": {
        "anneal": {
            "tokens": TOKENS,
            "ratios": {name: f"{share}%" for name, share in RATIOS.items()},
            "max_epochs": {"arxiv": 3, "arc": 2, "cosmopedia": 2},
            "val_tokens": 50_000,
        }
    },
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that one command built."""
    folder = tmp_path_factory.mktemp("five")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    given = ["--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "build")]
    done = cli("run", "pack_anneal_mix", *given, "--executor", "local")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "build" / "five_sources"


@pytest.fixture(scope="module")
def manifest(out):
    return load_manifest(out / "anneal")


@pytest.fixture(scope="module")
def rows(manifest):
    """All rows of the training shards, with the number of their shard."""
    tables = [pq.read_table(manifest.file(s.rows)).to_pylist() for s in manifest.split("train")]
    return [row | {"shard": i} for i, table in enumerate(tables) for row in table]


@pytest.fixture(scope="module")
def curated(out):
    """(document id, source) -> curated text."""
    table = pq.read_table(sorted((out / "curated").glob("*.parquet")), columns=["document_id", "source", "text"])
    return {(r["document_id"], r["source"]): r["text"] for r in table.to_pylist()}


def test_each_source_has_the_share_that_was_asked(manifest, rows):
    assert manifest.tokens == TOKENS and len(manifest.sources) == 7
    for source in manifest.sources:
        asked = RATIOS[source.name] / 100
        assert source.ratio_asked == pytest.approx(asked)
        assert abs(source.ratio_got - asked) < 0.001
        counted = sum(r["token_count"] for r in rows if r["source"] == source.name)
        assert counted == source.tokens == round(TOKENS * asked)
        assert source.documents == sum(r["source"] == source.name for r in rows)
        assert source.epochs <= source.max_epochs
        assert sum(r["truncated"] for r in rows if r["source"] == source.name) <= 1
    web = next(s for s in manifest.sources if s.name == "web")
    assert web.rows_in > web.rows_kept and any(reason.startswith("gopher") for reason in web.dropped)
    assert sum(s.val_tokens for s in manifest.sources) == manifest.val_tokens > 0


def test_it_verifies(manifest):
    assert list(verify(manifest)) == []


def test_documents_longer_than_a_shard_are_whole(manifest, rows, curated):
    parts = {}
    for row in rows:
        parts.setdefault((row["document_id"], row["copy"]), []).append(row)
    long = {key: sorted(found, key=lambda r: r["part"]) for key, found in parts.items() if len(found) > 1}
    whole = {key: found for key, found in long.items() if not any(r["truncated"] for r in found)}
    assert max(len(found) for found in whole.values()) > 3
    for (identity, _), found in whole.items():
        assert [r["part"] for r in found] == list(range(len(found)))
        assert all(r["token_count"] == SHARD_TOKENS for r in found[:-1])
        assert decoded(manifest, found) == curated[identity, "arxiv"]
    assert max(s.tokens for s in manifest.split("train")) < 3 * SHARD_TOKENS


def decoded(manifest, found):
    """The text of some rows, read from the shards."""
    tokens = []
    for row in found:
        shard = manifest.split("train")[row["shard"]]
        tokens += read_shard(manifest.file(shard.path))[1][row["token_start"] :][: row["token_count"]].tolist()
    assert tokens[0] == manifest.tokenizer.bos_id
    return Tokenizer.from_file(str(manifest.file("tokenizer.json"))).decode(tokens[1:], skip_special_tokens=False)


def test_rows_lead_back_to_the_curated_text_and_to_the_file(manifest, rows, curated):
    rng = random.Random(0)
    files = {}
    for name in RATIOS:
        mine = [r for r in rows if r["source"] == name and r["part"] == 0 and not r["truncated"]]
        mine = [r for r in mine if r["token_count"] < SHARD_TOKENS]
        for row in rng.sample(mine, min(12, len(mine))):
            text = curated[row["document_id"], name]
            assert decoded(manifest, [row]) == text
            assert text == original(name, row["source_file"], row["source_row"], files)


def original(name, file, number, cache):
    """The text that row `number` of a source file stands for, read without our readers."""
    if (name, file) not in cache:
        pattern = RECIPE["sources"][name]["path"].removeprefix(f"{SHARED}/").split("/*")[0]
        (path,) = {p for p in (SHARED / pattern, SHARED / pattern / file) if p.is_file()}
        if path.suffix == ".parquet":
            cache[name, file] = pq.read_table(path).to_pylist()
        elif path.suffix == ".json":
            cache[name, file] = json.loads(path.read_text())
        else:
            text = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode()
            cache[name, file] = [json.loads(line) for line in text.splitlines()]
    row = cache[name, file][number]
    if name in TEMPLATES:
        return TEMPLATES[name].format(**row)
    if name == "arc":
        choices = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
        lines = [f"Question: {row['question']}", *(f"{label}. {choice}" for label, choice in choices.items())]
        return "\n".join([*lines, f"Answer: {row['answerKey']}. {choices[row['answerKey']]}"])
    return row["text"]


def test_inspect_decodes_a_window_of_real_text(out, manifest, rows):
    row = next(r for r in rows if r["shard"] == 2 and r["source"] == "numina" and r["token_count"] > 40)
    place = ["--shard", "2", "--token", str(row["token_start"] + 1), "--length", "20"]
    said = cli("inspect", str(out / "anneal" / "manifest.json"), *place).stdout
    tokens = read_shard(manifest.file(manifest.shards[2].path))[1][row["token_start"] + 1 :][:20]
    tokenizer = Tokenizer.from_file(str(manifest.file("tokenizer.json")))
    assert tokenizer.decode(np.array(tokens).tolist(), skip_special_tokens=False) in said
    where = f"from numina:{row['source_file']} row {row['source_row']}  id {row['document_id'].hex()}"
    assert said.count("  from ") == 1 and where in said
