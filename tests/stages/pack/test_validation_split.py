"""The validation rule, seen from outside: who is held out does not depend on the build, and stays out of training.

What is compared are published folders: `curated/`, `val_ids.bin` and the row tables of two builds that differ in
seed, rules, tokenizer, priority and sources. That the comparison sees a document that moved is shown too.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from built import WORDS, build

from stages.pack.verify import verify
from stages.registry import STAGES
from train.data.manifest import load_manifest

SIZES = {"web": 6000, "maths": 3000}


@dataclass(frozen=True)
class Side:
    """What a published mixture says of its documents' sides."""

    curated: dict[bytes, str]  # id -> text
    held: list[bytes]  # val_ids.bin, in its order
    train: set[bytes]  # ids in training shards
    val: set[bytes]  # ids in validation shards


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


def texts(name: str, n: int) -> list[str]:
    """`n` distinct short texts; `name` seeds them."""
    rng = random.Random(name)
    return [f"{name} {i} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 14))) for i in range(n)]


def packed(folder: Path, name: str, sources: dict[str, str], rules: dict[str, list] | None = None, **keys) -> Side:
    """Build all that the sources (name -> .jsonl) hold, once, and read what was published."""
    described = {
        source: {"from": "jsonl", "path": path, "rules": (rules or {}).get(source, [])}
        for source, path in sources.items()
    }
    raw = {"name": name, "sources": described, "tokenizer": {"vocab_size": 500, "sample": "100kB"}, **keys}
    context = build(folder, raw, "tokenize")
    counts = {source: context.counts(STAGES["tokenize"], source)["train_tokens"] for source in sources}
    build(folder, {**raw, "mixtures": {"pretrain": {"counts": counts, "val_tokens": 10**9}}}, "pack_pretrain")
    return read(folder / "build" / name)


def read(folder: Path) -> Side:
    """The sides of everything under a recipe's folder of results."""
    manifest = load_manifest(str(folder / "pretrain"))
    assert list(verify(manifest)) == []
    ids: dict[str, set[bytes]] = {"train": set(), "val": set()}
    for shard in manifest.shards:
        ids[shard.split].update(pq.read_table(manifest.file(shard.rows), partitioning=None)["document_id"].to_pylist())
    raw = (folder / "pretrain" / "val_ids.bin").read_bytes()
    assert len(raw) % 16 == 0
    curated = {}
    for file in sorted((folder / "curated").glob("*.parquet")):
        table = pq.read_table(file, columns=["document_id", "text"])
        curated |= dict(zip(table["document_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return Side(curated, [raw[i : i + 16] for i in range(0, len(raw), 16)], ids["train"], ids["val"])


def moved(a: Side, b: Side) -> set[bytes]:
    """Documents that are on different sides of the two."""
    return (set(a.held) | a.val) & b.train | a.train & (set(b.held) | b.val)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    for name, n in SIZES.items():
        write(folder / f"{name}.jsonl", texts(name, n))
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """The first build."""
    return packed(folder, "plain", {name: str(folder / f"{name}.jsonl") for name in SIZES}, seed=1)


@pytest.mark.slow
def test_val_ids_are_sorted_and_complete(plain):
    assert plain.held == sorted(set(plain.held))
    # All documents that there are, every one on one side.
    assert plain.train | set(plain.held) == set(plain.curated)
    assert plain.train.isdisjoint(plain.held)
    assert plain.val == set(plain.held)
    assert len(plain.curated) == sum(SIZES.values())


def test_about_one_in_a_hundred_is_held_out_of_every_source(plain):
    for name, n in SIZES.items():
        held = sum(plain.curated[i].startswith(f"{name} ") for i in plain.held)
        # 4.5 standard deviations of a binomial draw: 1 in 150,000.
        assert abs(held - 0.01 * n) < 4.5 * (0.01 * 0.99 * n) ** 0.5, name


@pytest.mark.slow
def test_no_document_changes_sides(folder, plain):
    """Another seed, other rules, another tokenizer, the sources in another order and one more."""
    write(folder / "more.jsonl", texts("more", 500))
    sources = {name: str(folder / f"{name}.jsonl") for name in ("more", "maths", "web")}
    rules = {"web": [{"length": {"min_chars": 40}}], "maths": [{"length": {"max_chars": 60}}]}
    other = packed(
        folder,
        "other",
        sources,
        seed=99,
        rules=rules,
        shard_tokens=20_000,
        dedup={"priority": ["maths"]},
        tokenizer={"vocab_size": 400, "sample": "50kB"},
    )
    both = set(plain.curated) & set(other.curated)
    assert 2000 < len(both) < len(plain.curated) - 1000  # the rules did drop some
    assert len(set(plain.held) & both) > 20
    assert moved(plain, other) == set()
    assert set(other.held) & both == set(plain.held) & both


@pytest.mark.slow
@pytest.mark.parametrize("first", ["web", "mirror"])
def test_a_copy_of_a_validation_document_is_not_trained_on(folder, plain, first):
    """In another source, exact or alike but for case and spaces, whichever source has the priority."""
    held = [plain.curated[i] for i in plain.held if plain.curated[i].startswith("web ")]
    trained = sorted(plain.curated[i] for i in plain.train if plain.curated[i].startswith("web "))[:200]
    alike = [f"  {t.upper()}\n" for t in held]
    write(folder / f"mirror_{first}.jsonl", [*held, *alike, *trained, *texts("own", 1000)])
    sources = {"web": str(folder / "web.jsonl"), "mirror": str(folder / f"mirror_{first}.jsonl")}
    found = packed(folder, f"copies_{first}", sources, seed=3, dedup={"priority": [first]})
    flat = {" ".join(t.lower().split()) for t in held}
    leaked = [found.curated[i] for i in found.train if " ".join(found.curated[i].lower().split()) in flat]
    assert leaked == []
    # They are not lost either: each is held out, once. And copies of training documents are still trained on.
    kept = [" ".join(found.curated[i].lower().split()) for i in found.held]
    assert flat <= set(kept)
    assert len(kept) == len(set(kept))
    assert {found.curated[i] for i in found.train} >= set(trained)
    assert moved(plain, found) == set()


@pytest.mark.slow
def test_without_dedup_an_exact_copy_is_held_out_too(folder, plain):
    held = [plain.curated[i] for i in plain.held if plain.curated[i].startswith("web ")]
    write(folder / "raw.jsonl", [*held, *held, *texts("raw", 1000)])
    sources = {"web": str(folder / "web.jsonl"), "raw": str(folder / "raw.jsonl")}
    found = packed(folder, "raw", sources, seed=3, dedup={"exact": False})
    assert {found.curated[i] for i in found.train}.isdisjoint(held)
    assert found.held == sorted(set(found.held))
    assert moved(plain, found) == set()


def test_a_document_that_moved_is_seen(plain):
    one = plain.held[0]
    other = Side(plain.curated, plain.held[1:], plain.train | {one}, plain.val - {one})
    assert moved(plain, other) == moved(other, plain) == {one}
