"""Training a tokenizer, taking another's, and what is told and published of it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stage_harness import REPO
from tokenizer_harness import TEXTS, curated, train
from tokenizers import Tokenizer

from stages.errors import DataError
from stages.hashing import is_validation, sample
from stages.schemas import document_id
from stages.tokenizer import external
from stages.tokenizer import stage as tokenizer_stage
from stages.tokenizer import work as bpe
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.encoder import HOSTILE, open_encoder
from stages.tokenizer.spec import SPECIALS, load_text_encoder, open_vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(folder, [curated(folder, "a", TEXTS)])


@pytest.fixture(scope="module")
def path(trained):
    return trained.output("tokenizer").path


def test_layout(trained, path):
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.token_to_id(t) for t in SPECIALS] == list(range(8))
    assert open_vocabulary(path).special_ids == {t: i for i, t in enumerate(SPECIALS)}
    report = json.loads(Path(trained.output("report").path).read_text())
    assert report["token_bytes"] == open_vocabulary(path).token_bytes
    assert report["vocab_size"] == len(report["token_bytes"]) == 400
    assert sum(n == 1 for n in report["token_bytes"]) == 256
    assert (report["bos_id"], report["pad_id"]) == (0, 1)
    assert trained.output("tokenizer").meta == {"bos_id": 0, "pad_id": 1, "vocab_size": 400}


@pytest.mark.slow
@given(text=st.text() | st.text(alphabet=st.sampled_from("<|>bos_enduser \n'1é🙂\u0301")))
def test_any_text_round_trips_without_special_ids(path, text):
    encoder = load_text_encoder(path)
    for wrapped in (text, "<|bos|>" + text + "<|end|><|user|>"):
        ids = encoder.encode(wrapped, add_special_tokens=False).ids
        assert encoder.decode(ids, skip_special_tokens=False) == wrapped
        assert all(i >= len(SPECIALS) for i in ids)
        lengths = open_vocabulary(path).token_bytes
        assert sum(lengths[i] for i in ids) == len(wrapped.encode())


@pytest.mark.slow
@given(text=st.text())
def test_the_published_file_round_trips_when_specials_are_text(path, text):
    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    wrapped = text + "<|bos|>" + text
    ids = tokenizer.encode(wrapped).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == wrapped
    assert ids == load_text_encoder(path).encode(wrapped).ids


def test_the_sample_is_stratified_ordered_by_hash_and_free_of_validation(tmp_path):
    a = [curated(tmp_path, "a1", TEXTS[:150], group=7), curated(tmp_path, "a2", TEXTS[150:300], group=40)]
    b = [curated(tmp_path, "b", TEXTS[300:])]
    record = train(tmp_path, a + b, sample=20_000, sources=[["a", 2], ["b", 1]], vocab_size=300)
    rows = pq.read_table(record.output("sample").path).to_pylist()
    sizes = {n: sum(r["text_bytes"] for r in rows if r["source"] == n) for n in "ab"}
    total = sum(p.meta["text_bytes"] for p in a + b)
    for name, parts in (("a", a), ("b", b)):
        quota = 20_000 * sum(p.meta["text_bytes"] for p in parts) / total
        assert quota - 400 < sizes[name] <= quota
        training = [t for t in TEXTS[:300] if not is_validation([document_id(t)])[0]]
        order = sorted(training, key=lambda t: sample([document_id(t)])[0])
        ids = [r["document_id"] for r in rows if r["source"] == name]
        if name == "a":
            assert ids == [document_id(t) for t in order[: len(ids)]]
        assert not is_validation(ids).any()
    # The same text cut into other units gives the same tokenizer.
    again = [curated(tmp_path, "a", TEXTS[:300]), *b]
    again = train(tmp_path, again, sample=20_000, sources=[["a", 1], ["b", 1]], vocab_size=300)
    assert again.output("tokenizer").sha256 == record.output("tokenizer").sha256
    assert again.output("sample").digest == record.output("sample").digest


@pytest.mark.slow
def test_same_bytes_in_another_process_with_other_threads(trained):
    code = (
        "import sys; sys.path.insert(0, 'tests/harness')\n"
        "import tokenizer_harness as t\n"
        "from stages.tokenizer.work import canonical, train\n"
        "import hashlib\n"
        "from stages.hashing import is_validation, sample\n"
        "order = [x for x in t.TEXTS if not is_validation([t.document_id(x)])[0]]\n"
        "order.sort(key=lambda x: int(sample([t.document_id(x)])[0]))\n"
        "print(hashlib.sha256(canonical(train(order, 400, 'gpt4')[0]).encode()).hexdigest())\n"
    )
    env = {"RAYON_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == trained.output("tokenizer").sha256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": 60_000}, r"the text supports only [\d,]+ ids; lower tokenizer.vocab_size"),
        ({"vocab_size": 70_000}, r"the text supports only [\d,]+ ids"),
        ({"vocab_size": 100}, "at least 264"),
    ],
)
def test_impossible_vocabularies(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        train(tmp_path, [curated(tmp_path, "a", TEXTS)], **keys)


def test_an_empty_sample_is_an_error(tmp_path):
    with pytest.raises(DataError, match="sample is empty"):
        train(tmp_path, [curated(tmp_path, "a", [])])


def test_what_the_report_says_is_so(trained, path):
    report = json.loads(Path(trained.output("report").path).read_text())
    ids = {r["document_id"] for r in pq.read_table(trained.output("sample").path).to_pylist()}
    texts = [t for t in TEXTS if document_id(t) in ids]
    found = np.concatenate([e.ids for e in load_text_encoder(path).encode_batch(texts)]).astype(int)
    times, size, words = np.bincount(found, minlength=400), sum(len(t.encode()) for t in texts), " ".join(texts).split()
    assert report["sources"]["a"] == {
        "documents": len(texts),
        "text_bytes": size,
        "words": len(words),
        "tokens": len(found),
        "bytes_per_token": round(size / len(found), 4),
        "fertility": round(len(found) / len(words), 4),
    }
    assert report["unused"]["ids"] == [i for i in range(8, 400) if not times[i]]
    assert report["unused"]["count"] == len(report["unused"]["ids"])
    bytes_of = open_vocabulary(path).texts
    assert [len(b) for b in map(bytes_of.__getitem__, range(8, 400))] == open_vocabulary(path).token_bytes[8:]
    assert [t["id"] for t in report["longest"]] == sorted(bytes_of, key=lambda i: (-len(bytes_of[i]), i))[:20]
    assert all(t["times"] == times[t["id"]] for kind in ("longest", "hardly_used") for t in report[kind])
    assert report["hardly_used"][0]["times"] == min(times[i] for i in bytes_of if len(bytes_of[i]) > 1)
    assert report["trainer"].startswith("tokenizers ") and "cut_words" not in report


def test_odd_tokens_are_shown(tmp_path):
    texts = [f"x{i}" + " " * 40 + "=" * 40 + "日本語 한국어 — “quoted”…\n" * 3 for i in range(300)]
    report = json.loads(
        Path(train(tmp_path, [curated(tmp_path, "a", texts)], vocab_size=320).output("report").path).read_text()
    )
    assert report["blank"][0]["text"].isspace() and report["one_character"][0]["text"].strip("=") == ""
    assert all("\\x" in t["text"] for t in report["cut_characters"]) and report["cut_characters"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        ({}, ["123", "456"]),
        ({"digits": 1}, ["1", "2"]),
        ({"digits": 2}, ["12", "34"]),
        ({"split": "gpt4_marks"}, ["123", "456"]),
        ({"split": "gpt4_marks", "digits": 1}, ["1", "2"]),
        ({"split": "gpt2"}, ["1234567"]),
        ({"split": "gpt2", "digits": 3}, ["123", "456"]),
    ],
)
def test_digits_are_cut_as_asked_and_encoded_exactly(tmp_path, keys, whole):
    texts = [f"{t} 1234567 {i}{i + 1}" for i, t in enumerate(TEXTS)]
    found = train(tmp_path, [curated(tmp_path, "a", texts)], vocab_size=390, **keys).output("tokenizer").path
    pieces = [b.decode() for b in open_vocabulary(found).texts.values() if b.strip().isdigit()]
    longest = keys.get("digits", 3 if keys.get("split") != "gpt2" else 7)
    assert max(len(p.strip()) for p in pieces) == longest
    pre = [piece for piece, _ in load_text_encoder(found).pre_tokenizer.pre_tokenize_str("1234567")]
    assert pre[: len(whole)] == whole
    encoder = open_encoder(found, texts)
    assert encoder.engine.startswith("fastokens") or "fastokens: not installed" in encoder.note
    ids, _ = encoder.encode(texts)
    assert ids.tolist() == [i for e in load_text_encoder(found).encode_batch(texts) for i in e.ids]


MARKED = ["हिन्दी विकिपीडिया है।", "தமிழ் மொழி", "বাংলা ভাষা", "ภาษาไทยเป็นภาษา", "مُحَمَّدٌ كَتَبَ", "cafe\u0301 d'e\u0301te\u0301"]


@pytest.mark.slow
def test_marks_stay_with_their_letters(tmp_path):
    """Words of scripts with marks are whole pieces, ids are the reference's, and transformers gives them too."""
    texts = [f"{word} {i} {t}" for i, t in enumerate(TEXTS) for word in MARKED]
    made = train(tmp_path, [curated(tmp_path, "a", texts)], vocab_size=500, split="gpt4_marks")
    found = made.output("tokenizer").path
    reference = load_text_encoder(found)
    for text in MARKED:
        spans = [span for _, span in reference.pre_tokenizer.pre_tokenize_str(text)]
        words = [text[a:b].strip() for a, b in spans]
        assert all(unicodedata.category(word[0])[0] != "M" for word in words), words
    assert len(reference.pre_tokenizer.pre_tokenize_str("हिन्दी")) == 1
    hard = [
        *HOSTILE,
        *texts[:50],
        "\u0301a \u0301 1\u0301 \u180e\u0301 👩\u200d🔬\ufe0f\u20e3 'S\u0301 ... \u093f\n\u093f",
    ]
    encoder = open_encoder(found, hard)
    ids, _ = encoder.encode(hard)
    assert ids.tolist() == [i for e in reference.encode_batch(hard) for i in e.ids]
    transformers = pytest.importorskip("transformers")
    for name, artifact in tokenizer_stage.publish(made)["tokenizer"].items():
        (tmp_path / name).write_bytes(Path(artifact.path).read_bytes())
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in hard:
        assert loaded(text, split_special_tokens=True)["input_ids"] == reference.encode(text).ids


def test_reserved_tokens_follow_the_eight(tmp_path):
    names = TokenizerConfig(reserved=2).reserved_names() + TokenizerConfig(reserved=["<|think|>"]).reserved_names()
    texts = [*TEXTS, "<|think|><|reserved_1|>"]
    found = train(tmp_path, [curated(tmp_path, "a", texts)], reserved=names).output("tokenizer").path
    assert open_vocabulary(found).special_ids == {
        n: i for i, n in enumerate([*SPECIALS, "<|reserved_1|>", "<|reserved_2|>", "<|think|>"])
    }
    ids, _ = open_encoder(found).encode(["<|think|>", "a<|reserved_2|>b"])
    assert ids.min() > 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reserved": ["think"]}, r"reserved names 'think'; write each once, as <\|name\|>"),
        ({"reserved": ["<|bos|>"]}, "none that is always there"),
        ({"reserved": ["<|a|>", "<|a|>"]}, "once"),
        ({"reserved": 200, "vocab_size": 463}, "alone take 464"),
        ({"vocab_size": 2**20 + 1}, "no vocabulary has more than 1,048,576"),
        ({"from": "x", "split": "gpt2"}, "split cannot be set with `from`"),
        ({"bos": "<s>"}, "bos goes with `from`"),
    ],
)
def test_recipes_that_make_no_sense(keys, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig(**keys)


def test_defaults_of_a_recipe():
    assert TokenizerConfig().vocab_size == 8192 and TokenizerConfig(**{"from": "x"}).vocab_size is None
    for config in (TokenizerConfig(), TokenizerConfig(**{"from": "x", "bos": "<s>"})):
        assert TokenizerConfig(**config.model_dump(by_alias=True)) == config


# -- another's tokenizer -------------------------------------------------------------------------------


def foreign(path, change=lambda d: None):
    """A tokenizer.json in the form of GPT-2's: merges as text, specials last, `<|endoftext|>` between documents."""
    tokenizer, _ = bpe.train([*TEXTS, *HOSTILE], 500, "gpt2")
    definition = json.loads(tokenizer.to_str())
    names = {t["content"] for t in definition["added_tokens"]}
    vocab = [t for t, _ in sorted(definition["model"]["vocab"].items(), key=lambda x: x[1]) if t not in names]
    definition["model"]["vocab"] = {t: i for i, t in enumerate([*vocab, "<|endoftext|>"])}
    definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
    end = {**definition["added_tokens"][0], "id": len(vocab), "content": "<|endoftext|>"}
    definition["added_tokens"] = [end]
    definition["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    definition["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    change(definition)
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    return str(path)


def adopt(folder, source, **params):
    return train(folder / "unit", [curated(folder, "a", TEXTS)], **{"vocab_size": None, "source": source, **params})


@pytest.mark.slow
def test_a_tokenizer_is_taken_as_it_is(tmp_path):
    source = foreign(tmp_path / "theirs")
    record = adopt(tmp_path, source)
    found = record.output("tokenizer")
    assert Path(found.path).read_bytes() == Path(source, "tokenizer.json").read_bytes()
    report = json.loads(Path(record.output("report").path).read_text())
    assert found.meta == {"bos_id": 492, "pad_id": 492, "vocab_size": 493}
    assert (report["bos_id"], report["pad_id"], report["special_ids"]) == (492, None, {"<|endoftext|>": 492})
    assert report["token_bytes"] == open_vocabulary(found.path).token_bytes and report["token_bytes"][492] == 0
    ids, counts = open_encoder(found.path).encode([*TEXTS, "<|endoftext|>"])
    assert counts[0] > 7 and 492 not in ids
    lengths = np.array(report["token_bytes"])
    assert lengths[ids].sum() == sum(len(t.encode()) for t in [*TEXTS, "<|endoftext|>"])
    assert str(tmp_path) not in Path(record.output("report").path).read_text()


def added(definition, content, number, **flags):
    """Append an added token like `<|endoftext|>`."""
    definition["added_tokens"].append({**definition["added_tokens"][0], "content": content, "id": number, **flags})


@pytest.mark.slow
def test_added_tokens_that_stand_for_text_stay(tmp_path):
    def blanks(definition):
        added(definition, "<|pad|>", 493)
        added(definition, " " * 8, 494, special=False, normalized=False)
        added(definition, " " * 4, 495, special=False, normalized=False)

    record = adopt(tmp_path, foreign(tmp_path / "theirs", blanks))
    found = record.output("tokenizer").path
    assert open_vocabulary(found).token_bytes[492:] == [0, 0, 8, 4] and record.output("tokenizer").meta["pad_id"] == 493
    ids, _ = open_encoder(found).encode(["a" + " " * 12 + "b<|pad|>"])
    assert ids.tolist()[1:3] == [494, 495]
    published = Tokenizer.from_file(found)
    published.no_truncation()
    published.encode_special_tokens = True
    assert published.encode("a" + " " * 12 + "b<|pad|>").ids == ids.tolist()


PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUTS = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, PLAIN]}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BROKEN = {
    "NFC": (lambda d: d.update(normalizer={"type": "NFC"}), "its normalizer NFC changes text"),
    "prefix": (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space puts a blank"),
    "metaspace": (lambda d: d.update(pre_tokenizer=METASPACE), "not byte-level and has no byte_fallback"),
    "whitespace": (lambda d: d.update(pre_tokenizer=CUTS), "WhitespaceSplit drops"),
    "unigram": (lambda d: d["model"].update(type="Unigram"), "its model is Unigram"),
    "bytes": (lambda d: d["model"]["vocab"].pop("Ā"), "1 of the 256 bytes"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "random"),
    "vocabulary": (lambda d: added(d, "<x>", 2**20), "ids beyond 1,048,576"),
    "eater": (lambda d: added(d, "q", 493, special=False, lstrip=True), "swallow"),
    "moved": (lambda d: added(d, "q", 600, special=False), "states other ids for"),
    "spelled": (lambda d: added(d, "e", d["model"]["vocab"]["e"]), "can spell"),
    "no special": (lambda d: d["added_tokens"].clear(), "no special token of .* is known to separate"),
    "no model": (lambda d: d.clear(), "is no tokenizer.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tokenizers_that_cannot_be_accounted_for(tmp_path, name):
    change, message = BROKEN[name]
    with pytest.raises(DataError, match=message):
        adopt(tmp_path, foreign(tmp_path / "theirs", change))


@pytest.mark.slow
def test_wrong_names_are_errors(tmp_path):
    source = foreign(tmp_path / "theirs")
    with pytest.raises(DataError, match=r"tokenizer.bos: no special token of .* is '<s>'.*it has: <.endoftext.>"):
        adopt(tmp_path, source, bos="<s>")
    with pytest.raises(DataError, match=r"vocab_size is 50,257, but .* has 493 ids"):
        adopt(tmp_path, source, vocab_size=50_257)
    with pytest.raises(DataError, match=r"no tokenizer.json, no folder with one"):
        external.locate(str(tmp_path / "nothing/at/all"))
    file = external.locate(source)
    Path(file.path).write_text("{}")
    with pytest.raises(DataError, match="changed since the run was planned"):
        external.read_unchanged(file)


@pytest.mark.slow
def test_transformers_loads_the_folder(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, artifact in tokenizer_stage.publish(trained)["tokenizer"].items():
        (tmp_path / name).write_bytes(Path(artifact.path).read_bytes())
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (len(loaded), loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (400, 0, 0, 1)
    assert set(loaded.all_special_ids) == set(range(8))
    for text in (*HOSTILE, *TEXTS):
        found = loaded(text, split_special_tokens=True)["input_ids"]
        assert found == load_text_encoder(trained.output("tokenizer").path).encode(text).ids
        assert loaded.decode(found) == text
    assert loaded("a<|bos|>")["input_ids"][-1] == 0 and set(loaded("a")) == {"input_ids", "attention_mask"}


def test_publish_names(trained):
    names = set(tokenizer_stage.publish(trained)["tokenizer"])
    assert names == {"tokenizer.json", "report.json", "tokenizer_config.json", "special_tokens_map.json"}


class Hub(BaseHTTPRequestHandler):
    """The two answers of a hub that a download needs."""

    body = b""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()
        self.wfile.write(self.body)

    def answer(self):
        known = self.path.startswith("/owner/name/resolve/")
        self.send_response(200 if known else 404)
        self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
        self.send_header("ETag", f'"{hashlib.sha1(self.body).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_tokenizer_of_the_hub(tmp_path):
    code = (
        "import sys; from stages.tokenizer.external import locate, read_unchanged\n"
        "models = ['owner/name/its.model', 'owner/name@main/its.model']\n"
        "for source in ('owner/name', 'owner/name@main', *models, 'nobody/nothing'):\n"
        "    try:\n"
        "        found = locate(source); print(found.path, found.digest, len(read_unchanged(found)))\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    Hub.body = Path(foreign(tmp_path / "theirs"), "tokenizer.json").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=True
        )
        server.shutdown()
    first, second, *models, third = out.stdout.splitlines()
    digest = hashlib.sha256(Hub.body).hexdigest()
    assert first == second == f"hub:owner/name@c0ffee{'0' * 34} {digest} {len(Hub.body)}"
    assert models == [f"hub:owner/name@c0ffee{'0' * 34}/its.model {digest} {len(Hub.body)}"] * 2
    assert third.startswith(
        "DataError tokenizer.from: nobody/nothing is not a file here and could not be had from the hub"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"bos_token": "<|startoftext|>"}', "<|startoftext|>"),
        ('{"bos_token": {"content": "<s>", "lstrip": false}}', "<s>"),
        ('{"bos_token": null}', None),
        ("{}", None),
        ("[1", None),
        ("[]", None),
        (None, None),
    ],
)
def test_a_tokenizers_own_bos_is_believed(config, said, tmp_path):
    tokens = {"<|endoftext|>": 0, "<|startoftext|>": 1, "<s>": 2}
    added = [{"id": i, "content": name, "special": True} for name, i in tokens.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}, "added_tokens": added}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    own = external.own_bos(external.locate(str(tmp_path)))
    assert own == said
    vocabulary = open_vocabulary(tmp_path / "tokenizer.json")
    assert external.boundary_ids(vocabulary, "it", None, own)[0] == tokens[said or "<|endoftext|>"]
    assert external.boundary_ids(vocabulary, "it", "<s>", own)[0] == 2


def test_an_id_beyond_all_vocabularies_takes_no_memory(tmp_path):
    path = tmp_path / "tokenizer.json"
    for number in (2**31, 2**63, -1, 1.5):
        path.write_text(json.dumps({"model": {"vocab": {"a": number}}, "added_tokens": []}))
        with pytest.raises(DataError, match="it is damaged"):
            open_vocabulary(path)
