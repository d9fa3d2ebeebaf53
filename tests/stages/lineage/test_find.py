"""`find` inverts `trace`, finds phrases to the token, and says what became of what is not there."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from built import build, copy_of, texts
from commands import cli
from lineage_harness import LONG, points, published, recipe, run_folder

from pipeline.commands.find import add_steps, explain_curated
from pipeline.commands.stored_records import records_beside
from pipeline.commands.trace import open_run, spans_of_step
from stages.lineage.drop_reason import explain_drops
from stages.lineage.find import FoundDocument, Query, find
from stages.lineage.rows import Decoder, rows_of_spans, rows_table, shard_rows
from stages.schemas import document_id
from train.data.manifest import load_manifest

pytestmark = pytest.mark.slow


def dropped(manifest, query):
    """Documents that were read, each with why it is not in the corpus."""
    return explain_drops(query, records_beside(manifest))


def with_rules(folder):
    """The recipe of `every`, a rule and an exclusion added."""
    raw = recipe(folder, exclude={"urls": ["notes.test/33"]})
    raw["sources"]["maths"] |= {"rules": [{"length": {"min_chars": 100}}]}
    return raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("find")
    build(folder, with_rules(folder), "pack_pretrain").save_state()
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return load_manifest(published(folder))


@pytest.fixture(scope="module")
def everything(manifest):
    """All pieces of all shards."""
    return [p for s in manifest.shards for p in shard_rows(s.path, rows_table(manifest, s))]


def test_find_inverts_trace(manifest, everything):
    pieces = [p[0] for p in rows_of_spans(manifest, points(manifest, 1000))]
    splits = {s.path: s.split for s in manifest.shards}
    wanted = {p.document_id.hex() for p in pieces}
    found = find(manifest, Query(ids=sorted(wanted)))
    assert {i for _, i in found} == wanted
    for (source, identity), one in found.items():
        mine = [p for p in everything if (p.source, p.document_id.hex()) == (source, identity)]
        places = {(p.shard, p.token_start, p.stop, p.copy, p.part) for p in mine}
        assert {(p.shard, p.start, p.stop, p.copy, p.part) for p in one.places} == places
        assert {one.status} == {"training" if splits[p.shard] == "train" else "held out" for p in mine}


def test_addresses_and_domains(manifest, everything):
    rows = [p for p in everything if p.source == "web"]
    url = rows[5].url
    (one,) = find(manifest, Query(urls=[url])).values()
    assert one.url == url and len(one.places) == sum(p.url == url for p in rows)
    found = find(manifest, Query(domains=["w3.test"]))
    hosts = {one.url.split("/")[2] for one in found.values()}
    assert hosts == {"w3.test", "www.w3.test"}
    packed = {p.document_id.hex() for p in rows if "w3.test/" in p.url}
    assert {i for (_, i), one in found.items() if one.places} == packed
    assert {one.status for one in found.values()} >= {"training", "not taken"}


@pytest.mark.parametrize("curated", [True, False])
def test_a_phrase_to_the_token(manifest, folder, everything, tmp_path, curated):
    """With curated/ and by decoding the shards: the same places, and the tokens there hold the phrase."""
    copy = load_manifest(copy_of(published(folder), tmp_path / "pretrain"))
    if curated:
        shutil.copytree(folder / "build/every/curated", tmp_path / "curated")
    decoder, rng = Decoder(copy), random.Random(3)
    whole = [p for p in everything if p.part == 0 and p.token_count > 30]
    for piece in rng.sample(whole, 12):
        text = decoder.decode(piece).decode("utf-8", "ignore")
        at = rng.randrange(max(1, len(text) - 25))
        phrase = text[at : at + 25]
        found = find(copy, Query(text=phrase))
        places = [p for one in found.values() for p in one.places]
        assert any(p.shard == piece.shard and piece.token_start <= p.start < piece.stop for p in places)
        for place in places:
            tokens = decoder.token_bytes(place.shard, place.start, place.stop)
            assert phrase.encode() in b"".join(tokens)
            assert phrase.encode() not in b"".join(tokens[1:]) and phrase.encode() not in b"".join(tokens[:-1])
        expected = {p.document_id.hex() for p in everything if phrase.encode() in decoder.decode(p)}
        assert {i for (_, i), one in found.items() if one.places} == expected


@pytest.mark.parametrize("curated", [True, False])
def test_a_phrase_from_one_part_into_the_next(manifest, folder, everything, tmp_path, curated):
    copy = load_manifest(copy_of(published(folder), tmp_path / "pretrain"))
    if curated:
        shutil.copytree(folder / "build/every/curated", tmp_path / "curated")
    parts = {p.part: p for p in everything if p.copy == 0 and (p.part or p.token_count == 4000)}
    assert set(parts) >= {0, 1}
    head = Decoder(copy).decode(parts[0]).decode("utf-8", "ignore")
    text = next(
        t["text"]
        for t in pq.read_table(folder / "build/every/curated/quiz-00000.parquet").to_pylist()
        if LONG in t["text"]
    )
    phrase = text[len(head) - 12 : len(head) + 12]
    (one,) = find(copy, Query(text=phrase)).values()
    first = [p for p in one.places if p.copy == 0]
    assert [p.part for p in sorted(first, key=lambda p: p.part)] == [0, 1]
    joined = b"".join(
        b"".join(Decoder(copy).token_bytes(p.shard, p.start, p.stop)) for p in sorted(first, key=lambda p: p.part)
    )
    assert phrase.encode() in joined


def test_the_steps_of_a_run(manifest, tmp_path, everything):
    """Every document of a step's batch is found to be read in that step, and in no step that does not read it."""
    where = run_folder(manifest, tmp_path / "run")
    run = open_run(manifest, where)
    read = {step: [span for _, span in spans_of_step(manifest, run, step)] for step in range(1, 41)}
    for piece in random.Random(1).sample([p for p in everything if "train" in p.shard and p.source != "docs"], 12):
        identity = piece.document_id.hex()
        mine = [p for p in everything if p.document_id.hex() == identity]
        expected = [
            step
            for step, spans in read.items()
            if any(p.shard == s and p.token_start < stop and start < p.stop for p in mine for s, start, stop in spans)
        ]
        found = find(manifest, Query(ids=[identity])).values()
        add_steps(manifest, run, found)
        assert {tuple(one.steps) for one in found} == {tuple(expected)}
    with_run = cli("find", manifest.folder, "--id", identity, "--run", where, "--json")
    assert {tuple(json.loads(line)["steps"]) for line in with_run.stdout.splitlines()} == {tuple(expected)}


def test_what_became_of_others(manifest, folder):
    notes = texts(2, 120)
    copy = document_id(notes[4]).hex()  # in web too, where it was dropped
    found = {**dropped(manifest, Query(ids=[copy])), **find(manifest, Query(ids=[copy]))}
    assert found["web", copy].status == "dropped" and f"duplicate of {copy} in notes" in found["web", copy].note
    assert found["notes", copy].status in ("training", "not taken", "held out")
    gone = document_id(notes[33]).hex()
    assert find(manifest, Query(ids=[gone])) == {}
    assert dropped(manifest, Query(ids=[gone]))["notes", gone].status == "excluded"
    assert dropped(manifest, Query(urls=["https://notes.test/33/"]))["notes", gone].status == "excluded"
    pairs = json.loads((folder / "corpus/maths.json").read_text())
    pair = next(p for p in pairs if len(p["query"] + p["response"]) < 90)
    (one,) = dropped(manifest, Query(text=f"Q: {pair['query']}\nA: ")).values()
    size = len(f"Q: {pair['query']}\nA: {pair['response']}")
    assert (one.status, one.note) == ("dropped", f"by the rule length_short ({size})")


def test_what_a_budget_leaves_is_not_called_curated(manifest):
    raw = {**manifest.recipe, "sources": {n: {**s, "max_bytes": 9} for n, s in manifest.recipe["sources"].items()}}
    one = FoundDocument("0" * 32, "web", "a", 0, None, "curated")
    explain_curated(manifest, Query(ids=[one.document_id]), [one])
    assert (one.status, one.note) == ("curated", "")
    explain_curated(replace(manifest, recipe=raw), Query(ids=[one.document_id]), [one])
    assert (one.status, one.note) == ("not taken", "beyond the budget of web")


def test_the_command_line(manifest, folder):
    where = str(published(folder))
    notes = texts(2, 120)
    done = cli("find", where, "--id", document_id(notes[33]).hex())
    assert done.returncode == 0 and "1 documents: 1 excluded" in done.stdout, done.stderr
    done = cli("find", where, "--text", "no text has this phrase")
    assert done.returncode == 1 and "no such document" in done.stderr
    for wrong in ([], ["--id", "xy"], ["--id", "0" * 32, "--text", "a"]):
        assert cli("find", where, *wrong).returncode == 2
    done = cli("find", where, "--domain", "w3.test")
    assert done.returncode == 0 and "more; --full or --json shows all" in done.stdout
    assert len(cli("find", where, "--domain", "w3.test", "--json").stdout.splitlines()) > 20
