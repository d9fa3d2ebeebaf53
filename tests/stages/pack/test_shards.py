"""Shards as others read them: llm.c, modded-nanogpt, parameter-golf and Megatron, each by its published layout.

The readers here are written from those projects' layouts and import nothing of ours.
"""

import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from built import small
from hypothesis import given
from hypothesis import strategies as st

from train.data.format import HEADER_BYTES, Header, read_index, read_shard, write_index
from train.data.manifest import ManifestError, load_manifest
from train.data.tokens import UINT16, UINT32

BUILD = "00ff10203040506070"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("shards"))


# -- readers from elsewhere -------------------------------------------------------------------------------


def llm_c(path):
    """dev/data/data_common.py and llmc/dataloader.h: the header, the file's exact size, uint16 tokens."""
    raw = path.read_bytes()
    header = np.frombuffer(raw[: 256 * 4], np.int32)
    assert header[0] == 20240520, "magic"
    assert header[1] == 1, "version"
    assert len(raw) == 256 * 4 + 2 * int(header[2]), "file size"
    return np.frombuffer(raw, np.uint16, offset=256 * 4)


def modded_nanogpt(path):
    """_load_data_shard: from_file(256 int32), then readinto of exactly 2 * num_tokens bytes."""
    header = np.fromfile(path, "<i4", 256)
    assert header[0] == 20240520 and header[1] == 1
    tokens = np.empty(int(header[2]), np.uint16)
    with path.open("rb", buffering=0) as file:
        file.seek(256 * 4)
        assert file.readinto(tokens) == 2 * len(tokens)
    return tokens


def parameter_golf(path):
    """load_data_shard: little-endian types spelt out, size checked first."""
    header = np.fromfile(path, dtype="<i4", count=256)
    assert header.size == 256 and int(header[0]) == 20240520 and int(header[1]) == 1
    assert path.stat().st_size == 256 * np.dtype("<i4").itemsize + int(header[2]) * np.dtype("<u2").itemsize
    tokens = np.fromfile(path, dtype="<u2", count=int(header[2]), offset=1024)
    assert tokens.size == header[2]
    return tokens


DTYPES = (None, np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.float32, np.uint16)


class MegatronIndex:
    """megatron/core/datasets/indexed_dataset.py: _IndexReader and get(), from the layout."""

    def __init__(self, prefix):
        with prefix.with_suffix(".idx").open("rb") as file:
            assert file.read(9) == b"MMIDIDX\x00\x00"
            assert struct.unpack("<Q", file.read(8)) == (1,)
            self.dtype = DTYPES[struct.unpack("<B", file.read(1))[0]]
            (self.sequences,) = struct.unpack("<Q", file.read(8))
            (self.documents,) = struct.unpack("<Q", file.read(8))
            self.lengths = np.frombuffer(file.read(4 * self.sequences), np.int32)
            self.pointers = np.frombuffer(file.read(8 * self.sequences), np.int64)
            self.document_indices = np.frombuffer(file.read(8 * self.documents), np.int64)
            assert file.read() == b""  # no modes, nothing behind
        assert self.lengths.shape[0] == self.sequences == self.document_indices[-1]
        self.bin = prefix.with_suffix(".bin").read_bytes()

    def get(self, i, offset=0, length=None):
        """Part of a sequence."""
        length = self.lengths[i] - offset if length is None else length
        pointer = self.pointers[i] + offset * np.dtype(self.dtype).itemsize
        return np.frombuffer(self.bin, self.dtype, int(length), int(pointer))


@pytest.mark.slow
def test_llm_c_readers_agree(folder):
    manifest = load_manifest(folder)
    for shard in manifest.shards:
        _, ours = read_shard(folder / shard.path)
        for reader in (llm_c, modded_nanogpt, parameter_golf):
            assert np.array_equal(reader(folder / shard.path), ours)
        assert (folder / shard.path).stat().st_size == shard.bytes == 1024 + 2 * shard.tokens < 2**31


def test_spare_slots(folder):
    """What design section 5 promises to be in the header, and zeros after it."""
    manifest = load_manifest(folder)
    for shard in manifest.shards:
        raw = (folder / shard.path).read_bytes()[:1024]
        slots = np.frombuffer(raw, "<i4")
        expected = [20240520, 1, shard.tokens, 1, manifest.tokenizer.vocab_size, manifest.tokenizer.bos_id]
        assert slots[:7].tolist() == [*expected, shard.documents]
        assert raw[28:36].hex() == manifest.build_id[:16]
        assert not any(raw[36:])


def test_megatron_reads_token_exact_documents_from_the_same_bin(folder):
    manifest = load_manifest(folder)
    bos = manifest.tokenizer.bos_id
    documents = 0
    for shard in manifest.shards:
        tokens = llm_c(folder / shard.path)
        rows = pq.read_table(folder / shard.rows).to_pylist()
        index = MegatronIndex((folder / shard.path).with_suffix(""))
        assert (index.dtype, index.sequences, index.documents) == (np.uint16, len(rows), len(rows) + 1)
        assert index.document_indices.tolist() == list(range(len(rows) + 1))
        for i, row in enumerate(rows):
            document = index.get(i)
            start = row["token_start"]
            assert np.array_equal(document, tokens[start : start + row["token_count"]])
            assert (document[0] == bos) == (row["part"] == 0) and bos not in document[1:]
            assert np.array_equal(index.get(i, 1, len(document) - 1), document[1:])
        assert np.array_equal(np.concatenate([index.get(i) for i in range(len(rows))]), tokens)
        documents += len(rows)
    assert documents > 150


# -- our own writers and readers --------------------------------------------------------------------------


@given(
    tokens=st.integers(0, 2**31 - 1),
    vocab=st.integers(1, 65_536),
    bos=st.integers(0, 65_535),
    documents=st.integers(0, 2**31 - 1),
    build=st.binary(min_size=8, max_size=8),
)
def test_the_header_round_trips(tokens, vocab, bos, documents, build):
    header = Header(tokens, vocab, bos, documents, build.hex())
    raw = header.pack()
    assert len(raw) == HEADER_BYTES == 1024
    assert Header.unpack(raw, "x") == header


@pytest.mark.parametrize("values", [[], [0], [0, 65_535, 1, 32_768]])
def test_a_shard_round_trips(tmp_path, values):
    tokens = np.array(values, np.uint16)
    path = tmp_path / "x.bin"
    path.write_bytes(Header(len(tokens), 65_536, 0, 1, BUILD).pack() + tokens.tobytes())
    header, back = read_shard(path)
    assert np.array_equal(back, tokens) and header.tokens == len(tokens)
    assert path.stat().st_size == 1024 + 2 * len(tokens)
    assert path.read_bytes()[1024:] == b"".join(struct.pack("<H", v) for v in values)
    assert not values or not back.flags.writeable


@pytest.mark.parametrize("dtype", [UINT16, UINT32])
@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("counts", [[], [1], [3, 1, 70_000]])
def test_an_index_round_trips(tmp_path, counts, gap, dtype):
    path = tmp_path / "x.idx"
    starts = [sum(counts[:i]) + gap * i for i in range(len(counts))]
    write_index(str(path), np.array(counts, np.int32), np.array(starts, np.int64), dtype)
    lengths, read_starts = read_index(path, dtype)
    assert lengths.tolist() == counts and read_starts.tolist() == starts
    pointers = np.frombuffer(path.read_bytes(), "<i8", len(counts), 34 + 4 * len(counts))
    assert pointers.tolist() == [1024 + dtype.itemsize * start for start in starts]
    with pytest.raises(ManifestError, match="damaged"):
        read_index(path, UINT32 if dtype == UINT16 else UINT16)
    assert path.stat().st_size == 34 + 12 * len(counts) + 8 * (len(counts) + 1)


def damaged(**slots):
    """The bytes of a good shard of three tokens, with some slots of its header overwritten."""
    raw = bytearray(Header(3, 500, 0, 1, BUILD).pack() + b"\1\0\2\0\3\0")
    for name, value in slots.items():
        struct.pack_into("<i", raw, int(name[1:]) * 4, value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (damaged()[:-1], "1,029 bytes, but its header says 3 tokens; build it again"),
        (damaged() + b"\0\0", "1,032 bytes, but its header says 3 tokens"),
        (damaged()[:1024], "1,024 bytes, but its header says 3 tokens"),
        (damaged()[:1023], "1023 bytes is shorter than a shard's header"),
        (b"", "0 bytes is shorter"),
        (damaged(_0=20240521), r"not a token shard \(magic 20240521, version 1\)"),
        (damaged(_1=7), "not a token shard"),
        (damaged(_2=2), "1,030 bytes, but its header says 2 tokens"),
        (damaged(_2=-3), "but its header says -3 tokens"),
        (damaged(_3=2), "shard format 2, this program reads 1"),
    ],
)
def test_a_damaged_shard(tmp_path, data, message):
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=rf"x\.bin: .*{message}"):
        read_shard(path)


def test_a_missing_shard(tmp_path):
    with pytest.raises(ManifestError, match=r"x\.bin: missing; build it again"):
        read_shard(tmp_path / "x.bin")


@pytest.mark.parametrize("at", [0, 9, 17, 18, 26, -1])
def test_a_damaged_index(tmp_path, at):
    path = tmp_path / "x.idx"
    write_index(str(path), np.array([3, 4]), np.array([0, 3]))
    good = path.read_bytes()
    path.write_bytes(good[:-1] if at == -1 else good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
    with pytest.raises(ManifestError, match=r"x\.idx: (damaged|not a) Megatron index"):
        read_index(path)
