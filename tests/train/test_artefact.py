"""The artefact: what is written is read back to the bit, scored, counted; what a stranger wrote harms nobody."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
import zstandard
from golf_toy import S2, S4, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import MODEL, VOCAB, sets

from train import artefact, artefact_file, score
from train.artefact_file import (
    MAGIC,
    PREFIX,
    compress,
    encode,
    entropy_bytes,
    from_planes,
    model_of,
    pack,
    pack_bits,
    read_artefact,
    to_planes,
    unpack_bits,
    write_artefact,
)
from train.config import ArtefactConfig, ModelConfig, TrainError
from train.main import main as train_main
from train.model.transformer import build
from train.quantize import LARGEST, quantize, round_trip

RULES = ArtefactConfig(rules=("fp16 embed.weight", "int5 *.mlp.*", "int6 *.attn.*", "int8 *"), keep_numel=100)
CFG = ModelConfig(**MODEL)


@pytest.fixture(scope="module")
def run(pretrain, tmp_path_factory):
    """A run of 12 steps with an average."""
    out = tmp_path_factory.mktemp("artefact") / "run"
    train_main(["--manifest", str(pretrain), "--set", *sets(out=str(out), ema__decay=0.5, ema__every=2)])
    return out


def header(cfg: ModelConfig = CFG, size: int = VOCAB) -> dict:
    return {"model": cfg.fixed_by_run(), "vocab_size": size, "bos_id": 1, "provenance": {}}


def weights(cfg: ModelConfig = CFG, size: int = VOCAB) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in build(cfg, size, 0).named_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# The file


@pytest.mark.parametrize("cfg", [CFG, S2, S4])
def test_what_is_written_is_read_to_the_bit(tmp_path, cfg):
    kept = weights(cfg, 64)
    packed = pack(kept, RULES)
    assert set(packed.kinds.values()) >= {"fp16", "int5", "int6"}
    path = tmp_path / "model.artefact"
    sizes = write_artefact(path, packed, header(cfg, 64))
    assert path.stat().st_size == min(sizes.values()) and not list(tmp_path.glob(".*"))
    read = read_artefact(path)
    assert list(read.weights) == sorted(kept, key=lambda name: (packed.kinds[name], name))
    for name, w in kept.items():
        assert torch.equal(read.weights[name], round_trip(w, packed.kinds[name])), name
    model = model_of(read, path)
    assert model.cfg.fixed_by_run() == cfg.fixed_by_run() and model.bos_id == 1
    assert all(torch.equal(p, read.weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("packing", ["bytes", "bits"])
def test_both_packings_hold_the_same(tmp_path, packing):
    odd = {"a": torch.randn(7, 13), "b": torch.randn(300), "c": torch.randn(2, 3, 5), "d": torch.tensor(2.5)}
    odd |= {"e": torch.zeros(4, 4), "f": torch.randn(0, 3)}
    for rule in ("int5 *", "int6 *", "int8 *", "fp16 *", "fp32 *"):
        packed = pack(odd, ArtefactConfig(rules=(rule,), keep_numel=0))
        head, payload = encode(packed, {}, packing)
        path = tmp_path / "a"
        path.write_bytes(PREFIX.pack(MAGIC, len(head), len(payload)) + compress(head + payload))
        read = read_artefact(path).weights
        want = packed.weights()
        assert read.keys() == want.keys() and all(torch.equal(read[name], want[name]) for name in want)


@given(st.sampled_from(sorted(LARGEST)), st.data())
def test_bits_come_back(kind, data):
    largest = LARGEST[kind]
    q = np.array(data.draw(st.lists(st.integers(-largest, largest), max_size=40)), np.int8)
    packed = pack_bits(q, largest)
    assert len(packed) == artefact_file.q_size(len(q), kind, "bits") == -(-len(q) * int(kind[3:]) // 8)
    assert np.array_equal(unpack_bits(packed, len(q), largest), q)


@given(st.lists(st.floats(width=16, allow_nan=False), max_size=20))
def test_planes_come_back(values):
    tensor = torch.tensor(values, dtype=torch.float16)
    assert torch.equal(from_planes(to_planes(tensor), torch.float16), tensor)


def test_the_smaller_packing_is_written(tmp_path):
    """Values that are equally likely are best in bits; weights, of which small ones are the most, in bytes."""
    uniform = {"w": torch.randint(-31, 32, (256, 512)).float() / 31}
    normal = {"w": torch.randn(256, 512)}
    cfg = ArtefactConfig(rules=("int6 *",), keep_numel=0)
    for tensors, smaller in ((uniform, "bits"), (normal, "bytes")):
        sizes = write_artefact(tmp_path / "a", pack(tensors, cfg), {})
        assert min(sizes, key=sizes.get) == smaller
        assert read_artefact(tmp_path / "a").header["packing"] == smaller


def test_a_file_is_near_the_entropy_of_what_it_holds(tmp_path):
    """Left to itself zstd is not: it takes matches of a few bytes in noise (see LEVEL)."""
    torch.manual_seed(0)
    packed = pack(
        {"w": torch.randn(1024, 1024), "v": torch.randn(256, 512)}, ArtefactConfig(rules=("int5 w", "fp16 v"))
    )
    bound = entropy_bytes(packed)
    q = packed.quantized["w"].q.numpy()
    share = np.unique(q, return_counts=True)[1] / q.size
    by_hand = q.size * -(share * np.log2(share)).sum() / 8
    assert by_hand < bound < by_hand + 2 * 1024 + 2 * 256 * 512
    sizes = write_artefact(tmp_path / "a", packed, {})
    assert bound < sizes["bytes"] < 1.015 * bound


def test_int8_first_rounds_twice():
    cfg = dataclasses.replace(RULES, int8_floor=1 / 127, int8_first=True, keep_numel=0)
    w = torch.tensor([[0.31, -0.155, 0.01, 0], [0.05, 0.02, -0.03, 0.004]])
    assert pack({"a.attn.q": w}, cfg).quantized["a.attn.q"].q.tolist() == [[31, -16, 1, 0], [31, 15, -21, 5]]
    once = dataclasses.replace(cfg, int8_first=False)
    assert torch.equal(pack({"a.attn.q": w}, once).quantized["a.attn.q"].q, quantize(w, "int6").q)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_cannot_be_stored_are_refused(value):
    with pytest.raises(TrainError, match=r"^embed.weight has values that are no numbers or too large for fp16"):
        pack({"embed.weight": torch.tensor([value, 1.0])}, RULES)


@pytest.mark.parametrize("kind", sorted(LARGEST))
def test_a_row_whose_scale_is_too_large_for_fp16_is_refused(kind):
    """Its scale would be infinite, and what is read back no numbers."""
    cfg = ArtefactConfig(rules=(f"{kind} *",), keep_numel=0)
    largest = 65_504.0 * LARGEST[kind]
    assert torch.isfinite(pack({"a": torch.full((1, 2), largest)}, cfg).weights()["a"]).all()
    with pytest.raises(TrainError, match=f"^a has values that are no numbers or too large for {kind}"):
        pack({"a": torch.full((1, 2), 1.01 * largest)}, cfg)


# ---------------------------------------------------------------------------------------------------------------------
# Strangers' files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an artefact."""
    path = tmp_path_factory.mktemp("whole") / "model.artefact"
    write_artefact(path, pack(weights(), RULES), header())
    return path.read_bytes()


def file_of(
    head: object, payload: bytes = b"", head_bytes: int | None = None, payload_bytes: int | None = None
) -> bytes:
    text = json.dumps(head).encode()
    sizes = (len(text) if head_bytes is None else head_bytes, len(payload) if payload_bytes is None else payload_bytes)
    return PREFIX.pack(MAGIC, *sizes) + zstandard.ZstdCompressor(level=1).compress(text + payload)


def entry(**changed: object) -> dict:
    return {"name": "w", "kind": "fp16", "shape": [2], "offset": 0, **changed}


def head(*entries: object, **changed: object) -> dict:
    return {"format": 1, "packing": "bytes", "tensors": list(entries), **changed}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "unpack requires"),
        (b"PK" + bytes(100), "does not begin as one"),
        (PREFIX.pack(MAGIC, 1 << 40, 0), "are more than an artefact has"),
        (PREFIX.pack(MAGIC, 10, 1 << 40), "are more than an artefact has"),
        (PREFIX.pack(MAGIC, 10, 10) + b"no frame at all", "or damaged"),
        (file_of([]), "list indices"),
        (file_of(head(), b"", payload_bytes=1 << 20), "cut off"),
        (file_of(head(), b"more", payload_bytes=2), "goes on behind its end"),
        (file_of(head(format=2)), "this program reads 1"),
        (file_of(head(packing="pickle")), "packing 'pickle'"),
        (file_of(head(entry()), b"abc"), "beyond the payload"),
        (file_of(head(entry(offset=-2)), b"abcd"), "a shape or a place"),
        (file_of(head(entry(shape=[-2, -1])), b"abcd"), "a shape or a place"),
        (file_of(head(entry(shape=[True, 2])), b"abcd"), "a shape or a place"),
        (file_of(head(entry(kind="pickle")), b"abcd"), "of kind 'pickle'"),
        (file_of(head(entry(shape=[1] * 9)), b"abcd"), "a tensor 'w'"),
        (file_of(head(entry(shape=[1 << 22] * 3 + [0])), bytes(1 << 22)), "a shape that no tensor has"),
        (file_of(head(entry(shape=[1 << 26])), b"", payload_bytes=1 << 27), "bytes are more than an artefact has"),
        (file_of(head(entry(), entry()), b"abcdabcd"), "two tensors of one name"),
        (file_of(head(entry(), entry(name="v")), b"abcd"), "share their bytes"),
        (file_of(head(entry(kind="int5", shape=[4])), b"abcdef"), "'scale'"),
        (file_of(head(entry(kind="int5", shape=[4], scale=5)), b"abcdef"), "beyond the payload"),
    ],
)
def test_a_file_that_is_no_artefact_is_an_error_of_a_line(tmp_path, data, said):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(TrainError) as caught:
        read_artefact(path)
    text = str(caught.value)
    assert said in text and text.startswith(f"{path}: ") and "\n" not in text


@settings(max_examples=60)
@given(place=st.integers(0), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_is_an_error_and_never_other_weights(whole, tmp_path_factory, place, bit, cut):
    """The frame has a checksum: of a thousand single bits that are flipped none is read as if it were whole."""
    data = bytearray(whole)
    place %= len(data)
    data = data[:place] if cut else data
    if not cut:
        data[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(data)
    with pytest.raises(TrainError, match="is no artefact, or damaged") as caught:
        model_of(read_artefact(path), path)
    assert str(path) in str(caught.value)


SHAPES = ([], [1], [[]], [None], [0, 2**29], [2**29, 2**29, 0])
TEXTS = ("", "global", "int5", "\ud800", ["sliding"] * 2, {}, {"a": 1})
NUMBERS = (None, True, 0, 1, -1, 3, 2**31, 2**64, 10**30, 0.5, 1e308, float("nan"), float("inf"))
ODD = st.sampled_from([*NUMBERS, *TEXTS, *SHAPES])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_of_any_field_of_the_header_is_an_error_of_a_line_or_the_same_model(tmp_path_factory, data):
    """Behind a checksum that is right: as somebody writes a file who means harm, or has another version."""
    packing = data.draw(st.sampled_from(["bytes", "bits"]))
    text, payload = encode(pack(weights(), RULES), header(), packing)
    value = json.loads(text)
    models = st.tuples(
        st.just(value["model"]), st.sampled_from([field.name for field in dataclasses.fields(ModelConfig)])
    )
    entries = st.tuples(
        st.sampled_from(value["tensors"]), st.sampled_from(["name", "kind", "shape", "offset", "scale"])
    )
    tops = st.tuples(st.just(value), st.sampled_from([*value]))
    for place, key in data.draw(st.lists(models | entries | tops, min_size=1, max_size=3)):
        place[key] = data.draw(ODD)
    path = tmp_path_factory.mktemp("odd") / "a"
    path.write_bytes(file_of(value, payload))
    try:
        made = model_of(read_artefact(path), path)
    except TrainError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error), error
    else:
        assert {name: p.shape for name, p in made.named_parameters()} == {n: w.shape for n, w in weights().items()}


def test_a_small_file_takes_no_more_memory_than_it_may(tmp_path, monkeypatch):
    """A payload of zeros is 10,000 times smaller in the file; a bound on what it unpacks to stops it."""
    monkeypatch.setattr(artefact_file, "MOST_BYTES", 1 << 20)
    data = file_of(head(entry(shape=[1 << 23])), bytes(1 << 24))
    assert len(data) < 3000
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(TrainError, match="16,777,216 bytes are more than an artefact has"):
        read_artefact(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"dim": 64, "n_heads": 2, "n_layers": 2}}, "other tensors than it holds"),
        ({"model": {**MODEL, "n_layers": 1000}}, "1,000 layers"),
        ({"model": {**MODEL, "n_layers": 10**8}}, "model.n_layers = 100000000: must be in"),
        ({"model": {**MODEL, "mtp_heads": 1000}}, "1,000 heads of further tokens"),
        ({"model": {**MODEL, "mtp_heads": 10**9}}, "model.mtp_heads = 1000000000: must be in"),
        ({"model": {**MODEL, "max_seq_len": 10**9}}, "positions"),
        ({"model": {**MODEL, "memory_tokens": 10**9}}, "positions"),
        ({"model": {**MODEL, "bigram_buckets": 2**64}}, "model.bigram_buckets = 18446744073709551616: must be in"),
        ({"model": {**MODEL, "q_gain": 1e308}}, "model.q_gain = 1e.308: must be in"),
        ({"model": {"import": "os"}}, "no such key"),
        ({"model": None}, "expected keys and values"),
        ({"vocab_size": 10**12}, "are no vocabulary's"),
        ({"bos_id": None}, "are no vocabulary's"),
        ({"bos_id": VOCAB}, "are no vocabulary's"),
    ],
)
def test_a_model_is_only_built_where_its_shapes_are_the_tensors(tmp_path, change, said):
    path = tmp_path / "a"
    write_artefact(path, pack(weights(), RULES), {**header(), **change})
    with pytest.raises(TrainError, match=said):
        model_of(read_artefact(path), path)


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def figures(text: str) -> list[float]:
    return [float(value.replace(",", "")) for value in re.findall(r"[-+]?[\d,]*\.?\d+", text)]


def test_a_run_becomes_a_file_and_its_scores_are_told(run, capsys, tmp_path):
    settings = ["train.artefact.keep_numel=0", "train.artefact.limit=1000000"]
    assert artefact.main([str(run), "--stride", "8", "--set", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    path = run / "model.artefact"
    assert lines[0].startswith(f"{path}: ") and lines[0].endswith("ema, counted as once")
    plain, sliding = lines[2:4]
    assert plain.startswith("windows of 32 ") and sliding.startswith("windows of 32 by 8 ")
    code = sum(file.stat().st_size for file in artefact.code_files())
    total = path.stat().st_size + code
    assert f"{path.stat().st_size:,} bytes and {code:,} of code: {total:,}, {1_000_000 - total:,} below" in lines[4]
    rules = {line[:28].strip(): figures(line[28:]) for line in lines[lines.index(lines[8]) + 1 :]}
    assert rules["int5 *.mlp.*"][0] == 6 and rules["int6 *.attn.*"][0] == 8 and rules["int8 *"][0] == 5
    assert rules["int5 *.mlp.*"][1] > rules["int6 *.attn.*"][1] > 0
    # what was told is what the file holds, and what the other command says of the run
    scored = score.main([str(run), "--stride", "8"]), capsys.readouterr().out
    assert scored[0] == 0
    assert [figures(line)[-3] for line in scored[1].splitlines()[1:]] == pytest.approx(
        [figures(line.partition("(")[0])[-3] for line in (plain, sliding)]
    )
    read = model_of(read_artefact(path), path)
    assert read.vocab_size == VOCAB and read_artefact(path).header["provenance"]["average"] == "ema"


def test_which_weights_are_taken(run, capsys):
    for average, said in (("none", "the trained weights"), ("ema", "ema")):
        assert score.main([str(run), "--average", average, "--tokens", "64"]) == 0
        assert f"{said}, counted as once" in capsys.readouterr().out
    assert score.main([str(run), "--average", "swa"]) == 1
    assert "no swa in it" in capsys.readouterr().err


def test_a_file_above_the_limit_fails(run, capsys):
    assert artefact.main([str(run), "--set", "train.artefact.limit=1000"]) == 1
    assert "ABOVE 1,000" in capsys.readouterr().out


def test_errors_are_for_people(run, capsys, tmp_path, monkeypatch):
    assert score.main([str(run), "--stride", "80"]) == 1
    assert "see --window and --stride" in capsys.readouterr().err
    assert artefact.main([str(run), "--out", str(tmp_path / "no" / "such" / "folder")]) == 1
    assert "error: " in capsys.readouterr().err
    assert artefact.main([str(tmp_path)]) == 1
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert artefact.main([str(run)]) == 1
    assert "pip install zstandard" in capsys.readouterr().err


def test_code_is_what_the_command_imports():
    names = {file.relative_to(artefact.HERE).as_posix() for file in artefact.code_files()}
    assert {
        "artefact.py",
        "artefact_file.py",
        "quantize.py",
        "score.py",
        "model/transformer.py",
        "__init__.py",
    } <= names
    assert not names & {"main.py", "loop.py", "step.py", "page.py", "export.py", "optim/muon.py", "monitor/svg.py"}


def test_rules_name_the_tensors_of_golf_models():
    packed = pack(dict(toy(S2).named_parameters()), dataclasses.replace(RULES, keep_numel=1000))
    kinds = {name: packed.kinds[f"{name}.weight"] for name in ("embed", "blocks.0.attn.k", "blocks.3.mlp.down")}
    assert kinds == {"embed": "fp16", "blocks.0.attn.k": "int6", "blocks.3.mlp.down": "int5"}
    assert packed.kinds["bigram.embed.weight"] == "fp16" and packed.kinds["bigram.proj.weight"] == "int8"
