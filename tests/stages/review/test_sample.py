"""Accounts of sources add up, and the documents drawn from them are the same ones in every table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from built import RECIPE, build, texts

from pipeline.commands.stored_records import StoredRecords
from stages.review.account import account, read_build
from stages.review.sample import as_reached, draw_sample, read_texts
from train.data.manifest import load_manifest

pytestmark = pytest.mark.slow
RULES = [{"gopher_quality": {"min_words": 10, "min_stop_words": 0}}, {"c4": {"min_sentences": 0}}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The build of two sources that share documents; the recipe, and its manifest."""
    folder = tmp_path_factory.mktemp("sampled")
    web = [f"{text}\njavascript is off\n{text[::-1]}" for text in texts(1, 600)]
    written = {"web": [*web, web[0], "too short"], "maths": [*texts(2, 300), *web[:20]]}
    for name, lines in written.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    sources = {name: {"from": "jsonl", "path": str(folder / f"{name}.jsonl"), "rules": RULES} for name in written}
    context = build(folder, {**RECIPE, "sources": sources})
    context.save_state()
    manifest = load_manifest(folder / "build" / "small" / "anneal")
    return StoredRecords(context.store, "small"), context.recipe.to_dict(), manifest


def test_what_was_read_is_what_was_dropped_and_what_was_kept(made):
    reader, _, manifest = made
    stored = read_build(reader)
    for source in manifest.sources:
        told = account(stored, source.name)
        assert told.read == source.rows_in and told.kept == source.rows_kept
        assert {**told.ruled_out, **told.repeats} == source.dropped
        assert told.read == told.quarantined + told.rule_documents + told.later_documents + told.kept
        assert told.read_bytes == told.ruled_bytes + told.later_bytes + told.kept_bytes
        assert told.train_tokens == source.available_tokens and min(told.ruled_bytes, told.later_bytes) >= 0


def test_all_documents_of_a_small_source_are_drawn_with_their_fates(made):
    reader, recipe, manifest = made
    stored = read_build(reader)
    for source in manifest.sources:
        sample = draw_sample(reader, stored, recipe, source.name, source.rows_in, 10_000)
        fates = {fate: sample.fate.count(fate) for fate in sample.fate}
        assert sample.whole and fates == {"": source.rows_kept, **source.dropped}
        assert sample.tokens.sum() == account(stored, source.name).tokens
        assert list(sample.ids) == sorted(sample.ids)


def test_a_part_is_drawn_by_id_alone(made):
    reader, recipe, _ = made
    stored = read_build(reader)
    whole = draw_sample(reader, stored, recipe, "web", 602, 602)
    part = draw_sample(reader, stored, recipe, "web", 602, 200)
    less = draw_sample(reader, stored, recipe, "web", 602, 100)
    assert 150 < len(part) < 250 and set(less.ids) < set(part.ids) < set(whole.ids)
    fates = dict(zip(zip(whole.files, whole.file_row, strict=True), whole.fate, strict=True))
    assert [fates[place] for place in zip(part.files, part.file_row, strict=True)] == list(part.fate)


def test_what_is_taken_down_is_hidden(made):
    reader, recipe, _ = made
    stored = read_build(reader)
    named = draw_sample(reader, stored, recipe, "web", 602, 602).ids[3]
    down = {**recipe, "exclude": {"ids": [named.hex()], "urls": [], "domains": []}}
    sample = draw_sample(reader, stored, down, "web", 602, 602)
    assert [i for i, hidden in zip(sample.ids, sample.hidden, strict=True) if hidden] == [named]


def test_figures_are_of_the_text_as_the_rule_saw_it(made):
    reader, recipe, _ = made
    stored = read_build(reader)
    sample = draw_sample(reader, stored, recipe, "web", 602, 602)
    assert sample.edited
    texts_read = dict(read_texts(reader, sample, range(len(sample))))
    some = int(np.flatnonzero(sample.kept)[0])
    assert "javascript" in texts_read[some]
    assert "javascript" in as_reached(sample, "gopher_short_doc", texts_read[some])  # c4 comes behind it
    assert "javascript" not in as_reached(sample, "fineweb_newlines", texts_read[some])
    assert sample.figures["gopher_short_doc"][some] == len(texts_read[some].split())
