"""All stages here over real text in the schemas of the named datasets; needs the shared test data."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stage_harness import SHARED, LocalContext, build, identify, needs_shared, recipe, rows_of, run_unit

from stages.errors import DataError
from stages.registry import STAGES
from stages.sources.registry import SOURCES
from stages.tokenizer.config import TokenizerConfig

SHARD_TOKENS = 10_000
pytestmark = [needs_shared, pytest.mark.slow]

SOURCES_HERE = {
    "web": {
        "from": "parquet",
        "path": f"{SHARED}/web/*_c4_samples.parquet",
        "rules": ["gopher_quality", {"metadata": {"int_score": {"min": 3}, "language": {"in": ["en"]}}}],
    },
    "arxiv": {"from": "jsonl", "path": f"{SHARED}/math/arxiv_schema_napkin.jsonl.zst", "url": "meta.url"},
    "arc": {"from": "ai2_arc", "path": f"{SHARED}/qa/ai2_arc/*/train-*.parquet"},
    "gsm8k": {
        "from": "jsonl",
        "path": f"{SHARED}/qa/gsm8k",
        "template": "Question: {question}\nAnswer: {answer}",
    },
    "numina": {
        "from": "parquet",
        "path": f"{SHARED}/qa/numinamath_cot_schema",
        "template": "{problem}\n\n{solution}",
    },
    "metamath": {
        "from": "json_array",
        "path": f"{SHARED}/qa/metamathqa_schema",
        "template": "Question: {query}\nAnswer: {response}",
    },
    "cosmopedia": {"from": "parquet", "path": f"{SHARED}/qa/cosmopedia_schema"},
}
ROWS = {"web": 776, "arxiv": 98, "arc": 3370, "gsm8k": 7473, "numina": 4540}
ROWS |= {"metamath": 7475, "cosmopedia": 140}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    tokenizer = TokenizerConfig(vocab_size=2048, sample=500_000)
    made = LocalContext(
        tmp_path_factory.mktemp("shared"), recipe(SOURCES_HERE, tokenizer=tokenizer, shard_tokens=SHARD_TOKENS)
    )
    build(made, "tokenize")
    return made


def test_every_row_arrives(context):
    parts = build(context, "download")
    assert {name: sum(p.rows for p in found) for name, found in parts.items()} == ROWS


def build_result(context, stage):
    """The result of a stage that was built before."""
    return context.built(STAGES[stage])


def test_lineage_leads_back_to_the_row(context):
    curated = build_result(context, "dedup").docs
    file = pq.read_table(f"{SHARED}/qa/numinamath_cot_schema/train-00000-of-00001.parquet").to_pylist()
    for row in rows_of(curated["numina"])[::500]:
        source = file[row["source_row"]]
        assert row["text"] == f"{source['problem']}\n\n{source['solution']}"
        assert row["source_file"] == "train-00000-of-00001.parquet"
    arc = {row["source_file"] for row in rows_of(curated["arc"])}
    assert arc == {f"ARC-{x}/train-00000-of-00001.parquet" for x in ("Easy", "Challenge")}
    assert all(row["url"] for row in rows_of(curated["arxiv"]))


def test_duplicates_of_the_crawl_sample_go(context):
    texts = [row["text"] for row in rows_of(build_result(context, "dedup").docs["web"])]
    assert len(texts) == len(set(texts))
    dropped = sum(r.counts.get("dropped.duplicate", 0) for r in context.records)
    assert dropped > 50


def test_tokens_are_accounted_for(context):
    found = 0
    for name, units in build_result(context, "tokenize").items():
        for unit in units:
            rows, held = pq.read_table(unit.output("docs").path), unit.output("tokens").tokens
            assert unit.output("tokens").bytes == 2 * held, name
            assert sum(rows["token_count"].to_pylist()) == held
            found += held
            assert max(rows["token_count"].to_pylist()) <= SHARD_TOKENS
    counted = {r.key: r.counts for r in context.records if "train_tokens" in r.counts}
    assert found == sum(counts["tokens"] for counts in counted.values())
    report = json.loads(Path(build_result(context, "build_tokenizer").output("report").path).read_text())
    assert report["vocab_size"] == 2048
    assert all(2 < value < 5 for value in report["bytes_per_token"].values())


def test_long_documents_are_cut(context):
    rows = rows_of(r.output("docs") for r in build_result(context, "tokenize")["arxiv"])
    cut = {r["document_id"] for r in rows if r["part"]}
    assert cut
    for identity in cut:
        parts = sorted((r["part"], r["token_count"]) for r in rows if r["document_id"] == identity)
        assert [part for part, _ in parts] == list(range(len(parts)))
        assert all(count == SHARD_TOKENS for _, count in parts[:-1])


def test_half_a_real_file_is_refused(tmp_path):
    original = f"{SHARED}/web/crawl_dclm_c4_samples.parquet"
    shutil.copy(original, tmp_path / "half.parquet")
    data = (tmp_path / "half.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(data[: len(data) // 2])
    source = recipe({"x": {"from": "parquet", "path": str(tmp_path)}}).sources["x"]
    (unit,) = SOURCES["parquet"].units(source, identify)
    with pytest.raises(DataError, match=r"half\.parquet is damaged .*fetch the file again"):
        run_unit(tmp_path, SOURCES["parquet"].work, unit.params, unit.inputs)
