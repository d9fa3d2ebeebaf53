"""The encoder: whichever engine is used, the ids of the reference, and never a special one."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_harness import SHARED, needs_shared

from benchmarks.encode import fuzzed, oracle
from benchmarks.measure import every_text
from stages.errors import DataError
from stages.tokenizer import encoder as module
from stages.tokenizer.encoder import CHECK_CHARS, HOSTILE, Encoder, hostile, open_encoder
from stages.tokenizer.spec import SPECIALS, load_text_encoder
from stages.tokenizer.split import GPT4_SPLIT
from stages.tokenizer.work import canonical, train
from train.tokenizer.vocabulary import text_definition

TEXTS = [f"Text {i}: " + " ".join(f"{n * n} word{n % 17}'ll größer" for n in range(i, i + 40)) for i in range(200)]
NASTY = (
    st.text()
    | st.text(alphabet=st.sampled_from("<|>bosenduser \n\t\r'sSt1é🙂\u0301\u00a0\u017f\u2028\x00"))
    | st.lists(st.sampled_from([*SPECIALS, *HOSTILE[:8], " ", "x"]), max_size=6).map("".join)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("encoder") / "tokenizer.json"
    file.write_text(canonical(train([*TEXTS, *HOSTILE], 600, "gpt4")[0]), encoding="utf-8")
    return str(file)


@pytest.fixture(params=["fastokens", "gigatoken", "tokenizers"])
def engine(request, path, monkeypatch):
    """An encoder with one engine: in use, or passed over by name, as gigatoken 0.10 is for its newer Unicode."""
    if request.param != "tokenizers":
        pytest.importorskip(request.param)
    only = {name: make for name, make in module.ENGINES.items() if name == request.param}
    monkeypatch.setattr(module, "ENGINES", only)
    found = Encoder(path)
    assert request.param != "fastokens" or found.engine == found.note
    assert request.param in found.note
    return found


def reference(path, texts):
    return [e.ids for e in load_text_encoder(path).encode_batch(texts, add_special_tokens=False)]


def check(encoder, path, texts):
    ids, counts = encoder.encode(texts)
    assert (ids.dtype, counts.dtype) == (np.uint32, np.int64)
    want = reference(path, texts)
    assert counts.tolist() == [len(w) for w in want]
    assert ids.tolist() == [i for w in want for i in w]
    assert ids.min(initial=len(SPECIALS)) >= len(SPECIALS)


@pytest.mark.slow
def test_every_engine_gives_the_ids_of_the_reference(engine, path):
    check(engine, path, hostile(SPECIALS) + TEXTS)
    for texts in ([], [""], ["", ""], ["\x00"], ["", "a", ""], ["x" * 200_000], ["é" * 50_000 + " " * 50_000]):
        check(engine, path, texts)


@pytest.mark.slow
def test_any_text(path):
    encoder = Encoder(path)

    @settings(max_examples=150)
    @given(texts=st.lists(NASTY, max_size=5))
    def same(texts):
        check(encoder, path, texts)

    same()


def test_an_engine_that_differs_is_passed_over(path, monkeypatch):
    right = module.reference(text_definition(path))

    def wrong(definition):
        return lambda texts: (right(texts)[0] + any("\u2028" in t for t in texts), right(texts)[1])

    monkeypatch.setattr(module, "ENGINES", {"fastokens": wrong})
    found = Encoder(path)
    assert found.engine.startswith("tokenizers ")
    assert "fastokens: differs from tokenizers on '\\x00\\x01" in found.note
    check(found, path, TEXTS)


def test_an_engine_that_differs_on_the_callers_text_is_passed_over(path, monkeypatch):
    right = module.reference(text_definition(path))

    def wrong(definition):
        return lambda texts: (right(texts)[0] + any("peculiar" in t for t in texts), right(texts)[1])

    monkeypatch.setattr(module, "ENGINES", {"fastokens": wrong})
    monkeypatch.setattr(module, "OPENED", {})
    assert open_encoder(path).engine.startswith("fastokens")
    late = ["x" * CHECK_CHARS, "peculiar"]  # beyond what is compared
    assert open_encoder(path, late).engine.startswith("fastokens")
    found = open_encoder(path, ["a", "so peculiar"])
    assert found.engine.startswith("tokenizers ") and "'so peculiar'" in found.note
    assert open_encoder(path) is found


def test_engines_that_are_absent_or_refuse_are_passed_over(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    refuse = SimpleNamespace(Tokenizer=SimpleNamespace(from_json=lambda text: 1 / 0))
    monkeypatch.setitem(sys.modules, "gigatoken", refuse)
    monkeypatch.setitem(sys.modules, "awkward", refuse)
    found = Encoder(path)
    assert "fastokens: not installed; gigatoken: ZeroDivisionError" in found.note
    check(found, path, TEXTS)


def test_a_batch_that_the_engine_fails_on_goes_to_the_reference(path):
    class Panic(BaseException):
        pass

    def fail(texts):
        raise Panic("over the\nlimit")

    found = Encoder(path)
    found.flat = fail
    check(found, path, ["a b", "c"])
    assert "on one batch: Panic: over the limit" in found.note
    found.truth = fail
    with pytest.raises(DataError, match=r"no engine can encode.*begins 'longest'"):
        found.encode(["a", "longest"])


def test_texts_that_spell_a_special_token_are_refused(path, tmp_path):
    definition = json.loads(Path(path).read_text())
    definition["added_tokens"].append(
        {**definition["added_tokens"][0], "content": "e", "id": reference(path, ["e"])[0][0]}
    )
    copy = tmp_path / "tokenizer.json"
    copy.write_text(json.dumps(definition))
    with pytest.raises(DataError, match="text can spell special tokens \\['e'\\]"):
        Encoder(str(copy))


@pytest.mark.slow
def test_fuzzed_strings_with_every_special_token_written_out(path):
    compare = {"fastokens": Encoder(path).flat}
    if importlib.util.find_spec("tiktoken"):
        compare["tiktoken"] = oracle(path, GPT4_SPLIT)
    texts = fuzzed(4_000, list(SPECIALS))
    assert all(any(name in text for text in texts) for name in SPECIALS)
    ids, counts = module.reference(text_definition(path))(texts)
    assert ids.min() >= len(SPECIALS) and len(counts) == 4_000
    for name, engine in compare.items():
        found, lengths = engine(texts)
        assert np.array_equal(found, ids) and np.array_equal(lengths, counts), name


@pytest.mark.slow
@needs_shared
def test_real_text_of_every_kind(path):
    encoder, truth = Encoder(path), module.reference(text_definition(path))
    for _, texts in every_text(SHARED):
        some = [text[:1000] for text in texts[:: max(1, len(texts) // 4)]]
        assert not module.difference(encoder.flat, truth, some)


@pytest.mark.soak
@needs_shared
def test_all_of_the_shared_data(path):
    encoder, truth = Encoder(path), module.reference(text_definition(path))
    for _, texts in every_text(SHARED):
        assert not module.difference(encoder.flat, truth, texts)
