"""Other trainers read our shards token for token, and what they read is the curated text.

The truth is made without a shard: the curated text, encoded anew by `tokenizers`, laid out as the rows tables say.
"""

from __future__ import annotations

import gzip
import importlib
import json
import pickle
import re
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from built import RECIPE, small
from readers import (
    MegatronIndexed,
    datatrove_documents,
    golf_batches,
    golf_shard,
    llmc_batches,
    modded_documents,
    modded_shard,
    nanogpt_split,
    olmo_documents,
    raw,
)
from tokenizers import Tokenizer

from pipeline.publish.export import export_build
from train.data.manifest import load_manifest

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture(scope="module", params=["stream", "best_fit"])
def built(request, tmp_path_factory):
    """A packed mixture: its folder, its shards in order, and the tokens and documents each must hold."""
    packing = {} if request.param == "stream" else {"packing": "best_fit", "window": 128}
    mixtures = {"anneal": {**RECIPE["mixtures"]["anneal"], **packing}}
    folder = small(tmp_path_factory.mktemp(request.param), mixtures=mixtures)
    manifest = json.loads((folder / "manifest.json").read_text())
    bos, pad = manifest["tokenizer"]["bos_id"], manifest["tokenizer"]["pad_id"]
    documents = encoded(folder, bos)
    shards = {}
    for entry in manifest["shards"]:
        rows = pq.read_table(folder / entry["rows"]).to_pylist()
        tokens = np.full(entry["tokens"], pad)
        pieces = [take(documents, row) for row in rows]
        for row, piece in zip(rows, pieces, strict=True):
            tokens[row["token_start"] :][: len(piece)] = piece
        shards[entry["path"]] = SimpleNamespace(
            tokens=tokens, pieces=pieces, split=entry["split"], source=entry["source"], rows=rows
        )
    assert sum(s.split == "train" for s in shards.values()) >= 4
    assert any(pad in s.tokens for s in shards.values()) == (request.param == "best_fit")
    return SimpleNamespace(folder=folder, shards=shards, bos=bos, packing=request.param)


def encoded(folder: Path, bos: int) -> dict[bytes, np.ndarray]:
    """Document id -> BOS and the tokens of its curated text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    found = {}
    for file in (folder.parent / "curated").glob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            found[row["document_id"]] = np.array([bos, *tokenizer.encode(row["text"], add_special_tokens=False).ids])
    return found


def take(documents: dict[bytes, np.ndarray], row: dict) -> np.ndarray:
    """The tokens a row of the table stands for. Only one document of the mixture is in parts: all of equal length."""
    whole, count = documents[row["document_id"]], row["token_count"]
    if row["part"] == 0:
        assert row["truncated"] or count == len(whole) or count == 6000  # RECIPE's shard_tokens
        return whole[:count]
    return whole[row["part"] * 6000 :][:count]


def train_paths(built) -> list[Path]:
    return [built.folder / path for path, shard in built.shards.items() if shard.split == "train"]


def test_megatron_reads_every_document(built):
    for path, shard in built.shards.items():
        dataset = MegatronIndexed((built.folder / path).with_suffix(""))
        assert len(dataset) == len(shard.pieces)
        for i, piece in enumerate(shard.pieces):
            assert np.array_equal(dataset.get(i), piece)
            assert np.array_equal(dataset.get(i, offset=2, length=len(piece) - 3), piece[2:-1])
        assert np.array_equal(dataset.documents, np.arange(len(dataset) + 1))  # a document is a sequence


@pytest.mark.parametrize(("batch", "length", "world"), [(2, 64, 1), (1, 100, 4)])
def test_llmc_reads_every_token_it_takes(built, batch, length, world):
    paths = train_paths(built)
    readers = [list(llmc_batches(paths, batch, length, rank, world)) for rank in range(world)]
    span, step = batch * length, 0
    for path in paths:
        tokens = built.shards[path.name].tokens
        for first in range(0, (len(tokens) - 1) // (world * span) * world * span, world * span):
            for rank in range(world):
                start = first + rank * span
                assert np.array_equal(readers[rank][step], tokens[start : start + span + 1])
            step += 1
    assert {len(batches) for batches in readers} == {step} and step > 10


def test_modded_nanogpt_reads_every_token(built):
    for path, shard in built.shards.items():
        assert np.array_equal(modded_shard(built.folder / path).numpy(), shard.tokens)


def test_modded_nanogpt_begins_at_documents(built):
    read = 0
    for path in train_paths(built):
        shard = built.shards[path.name]
        starts = [piece for piece in shard.pieces if piece[0] == built.bos]
        expected = iter(starts)
        for ranks in modded_documents(path, built.bos, local=200, longest=150, world=2):
            for stretches in ranks:
                assert sum(len(s) for s in stretches) == 201
                for stretch in stretches:
                    document = next(expected)
                    n = min(len(document), len(stretch))
                    assert np.array_equal(stretch.numpy()[:n], document[:n])
                    assert len(stretch) <= len(document) or built.packing == "best_fit"  # padding follows it there
                    read += 1
    assert read > 50


@pytest.mark.parametrize("world", [1, 3])
def test_parameter_golf_reads_every_token(built, world):
    paths = train_paths(built)
    for path in paths:
        assert np.array_equal(golf_shard(path), built.shards[path.name].tokens)
    pattern = re.sub(r"\d+\.bin$", "*.bin", paths[0].name)  # as fineweb_train_*.bin
    assert pattern.endswith("_train_*.bin")
    stream = np.concatenate([built.shards[path.name].tokens for path in paths])
    spans = [list(golf_batches(built.folder, pattern, 50, 4, rank, world)) for rank in range(world)]
    read = np.concatenate([span for step in zip(*spans, strict=True) for span in step])
    assert len(stream) - world * 201 < len(read) <= len(stream)
    assert np.array_equal(read, stream[: len(read)])


def test_a_plain_map_reads_every_token(built):
    for path, shard in built.shards.items():
        assert np.array_equal(raw(built.folder / path), shard.tokens)


# ---------------------------------------------------------------------------------------------------------------------
# What `export` writes


def ended(built, piece: np.ndarray) -> list[int]:
    """A document as others have it: its end token behind it."""
    return [*piece[int(piece[0] == built.bos) :].tolist(), built.bos]


def documents_of(built, split: str) -> list[list[int]]:
    """The documents of a split, in order."""
    shards = [shard for shard in built.shards.values() if shard.split == split and not shard.source]
    return [ended(built, piece) for shard in shards for piece in shard.pieces]


@pytest.fixture(scope="module")
def exported(built, tmp_path_factory):
    """Format -> a folder of it, each written with some 1000 tokens in memory at a time."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.publish.token_files.BATCH_TOKENS", 1000)
        for form in ("raw", "olmo", "ds"):
            export_build(load_manifest(built.folder), folder / form, form)
    return folder


def test_nanogpt_reads_what_is_exported(built, exported):
    for split in ("train", "val"):
        assert nanogpt_split(exported / "raw", split).tolist() == list(chain(*documents_of(built, split)))
    meta = pickle.loads((exported / "raw/meta.pkl").read_bytes())
    assert meta["vocab_size"] == 400
    text = "the end of it"
    ids = [meta["stoi"][character] for character in text]  # as its sample.py does
    assert "".join(meta["itos"][i] for i in ids) == text


def test_datatrove_reads_what_is_exported(built, exported):
    folder = exported / "ds/train"
    paths = sorted(folder.glob("*.ds"))
    found = [documents.tolist() for path in paths for documents in datatrove_documents(path)]
    assert found == documents_of(built, "train") and len(paths) >= 4
    theirs = pytest.importorskip("datatrove.utils.dataset", reason="datatrove, of the extra bench, is not installed")
    length = 99  # they read windows of 100
    dataset = theirs.DatatroveFolderDataset(str(folder), length, token_size=2, return_positions=True)
    windows = iter([dataset[i] for i in range(len(dataset))])
    for path in paths:
        documents = datatrove_documents(path)
        tokens = np.concatenate(documents)
        places = np.concatenate([np.arange(len(document)) for document in documents])
        for start in range(0, len(tokens) - length, length + 1):
            window = next(windows)
            assert window["input_ids"].tolist() == tokens[start : start + length + 1].tolist()
            counted = np.minimum(places[start : start + length + 1], np.arange(length + 1))  # anew in each window
            assert window["positions"].tolist() == counted.tolist()
    assert next(windows, None) is None
    block = re.findall(r"```python\n(.*?)```", (exported / "ds/README.md").read_text(), re.DOTALL)[0]
    names: dict = {}
    exec(block, names)
    assert len(names["dataset"]) > 0 and names["dataset"][0]["input_ids"].tolist() == list(chain(*found))[:1025]


def test_nanotron_finds_the_tokenizer_that_the_metadata_names(exported, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    first = next((exported / "ds/train").glob("*.metadata")).read_text().splitlines()[0]
    name, size = first.split("|")  # nanotron, config.py: NanosetDatasetsArgs
    assert transformers.AutoTokenizer.from_pretrained(name).vocab_size == 400 and size == "2"


def test_olmo_core_reads_what_is_exported(built, exported, tmp_path):
    paths = sorted((exported / "olmo/train").glob("*.npy"))
    found = [document.tolist() for path in paths for document in olmo_documents(path)]
    assert found == documents_of(built, "train") and len(paths) >= 4
    files = [path.with_suffix(".csv.gz").read_bytes() for path in paths]
    lines = [line for file in files for line in gzip.decompress(file).decode().splitlines()]
    rows = [row for s in built.shards.values() if s.split == "train" for row in s.rows]
    for line, row in zip(lines, rows, strict=True):
        assert line.split(",")[2:] == [row["document_id"].hex(), row["source_file"], str(row["source_row"])]
    olmo = pytest.importorskip("olmo_core.data", reason="ai2-olmo-core is not installed")
    read = importlib.import_module("olmo_core.data.utils").iter_document_indices
    for path in paths:
        tokens = np.memmap(path, np.uint16, "r")
        for use_array in (False, True):  # by the .csv.gz, and by the end tokens
            spans = read(str(path), use_array_if_local=use_array, eos_token_id=built.bos, dtype=np.uint16)
            want = [document.tolist() for document in olmo_documents(path)]
            assert [tokens[start:end].tolist() for start, end in spans] == want
    block = re.findall(r"```python\n(.*?)```", (exported / "olmo/README.md").read_text(), re.DOTALL)[0]
    names: dict = {}
    exec(block, names)
    names["config"].sequence_length, names["config"].work_dir = 100, str(tmp_path)
    dataset = names["config"].build()
    assert isinstance(dataset, olmo.NumpyFSLDataset)
    dataset.prepare()
    want = [np.memmap(path, np.uint16, "r") for path in paths]
    windows = np.concatenate([tokens[: len(tokens) // 100 * 100] for tokens in want]).reshape(-1, 100)
    assert [dataset[i]["input_ids"].tolist() for i in range(len(dataset))] == windows.tolist()


def test_the_numpy_lines_of_the_docs_read_a_shard(built, capsys):
    blocks = re.findall(r"```python\n(.*?)```", FORMATS.read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if "numpy.memmap" in block]
    path = train_paths(built)[0]
    named = re.findall(r"build/\S+_train_000000", snippet)
    assert named
    names: dict = {}
    exec(snippet.replace(named[0], str(path.with_suffix(""))), names)
    shard = built.shards[path.name]
    assert np.array_equal(names["tokens"], shard.tokens)
    assert np.array_equal(names["document"], shard.pieces[3])
    assert capsys.readouterr().out


def test_datasets_loads_what_was_curated(built, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = sorted(str(f) for f in (built.folder.parent / "curated").glob("*.parquet"))
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert found.num_rows == len(rows) > 500
    assert found["text"][:] == [row["text"] for row in rows]
    assert found["document_id"][:] == [row["document_id"] for row in rows]
