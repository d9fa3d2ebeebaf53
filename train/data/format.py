"""The files of a shard as bytes, written and read here and nowhere else: `.bin` (llm.c) and `.idx` (Megatron).

A `.bin` is 256 little-endian int32, the header, followed by little-endian tokens, uint16, or uint32 where the
vocabulary has more ids than that holds (train/data/tokens.py): exactly `shard_bytes` bytes. It is the layout of llm.c,
modded-nanogpt and parameter-golf, whose readers look at slots 0 to 2 of the header only (llm.c,
`dev/data/data_common.py`; its Llama-3 variant has the ids of four bytes).

An `.idx` is Megatron's MMIDIDX version 1 with one document a sequence: a head of 34 bytes, the documents' token counts
as int32, their byte pointers as int64, and the numbers 0 to n as int64. Its pointers are offsets into the very same
`.bin`, header included, so both families of readers share one file (Megatron-LM,
`megatron/core/datasets/indexed_dataset.py`).

Numpy and the standard library only. The third file of a shard, `.rows.parquet`, is in stages/pack/format.py.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train.data.manifest import Manifest, ManifestError, Shard
from train.data.tokens import UINT16, UINT32, Tokens, TokenType, token_dtype

MAGIC = {UINT16: (20240520, 1), UINT32: (20240801, 7)}  # slots 0 and 1, llm.c's
FORMAT_VERSION = 1  # ours, slot 3; raised when the meaning of a shard's bytes changes
HEADER_BYTES = 1024

INDEX_MAGIC = b"MMIDIDX\0\0"
INDEX_HEAD_BYTES = 34  # magic 9, version uint64, dtype uint8, sequences uint64, documents + 1 uint64
INDEX_CODE = {UINT16: 8, UINT32: 4}  # Megatron's DType.code_from_dtype, of uint16 and of int32, which holds any id


# ---------------------------------------------------------------------------------------------------------------------
# The shard, `.bin`


@dataclass(frozen=True)
class Header:
    """The first 1024 bytes of a shard. One that was made elsewhere has format 0, and says `tokens` alone."""

    tokens: int
    vocab_size: int
    bos_id: int
    documents: int
    build_id: str  # the first 8 bytes of the manifest's build_id, as hex
    dtype: TokenType = UINT16
    format: int = FORMAT_VERSION

    def pack(self) -> bytes:
        """Return the header's 1024 bytes."""
        slots = [*MAGIC[self.dtype], self.tokens, self.format, self.vocab_size, self.bos_id, self.documents]
        head = struct.pack("<7i", *slots) + bytes.fromhex(self.build_id[:16])
        return head.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, raw: bytes, where: str) -> Header:
        """Read a header from `raw`, the beginning of the file `where`.

        Raises ManifestError when it is none of llm.c's.
        """
        if len(raw) < HEADER_BYTES:
            raise ManifestError(f"{where}: {len(raw)} bytes is shorter than a shard's header; build it again")
        magic, version, tokens, fmt, vocab, bos, documents = struct.unpack("<7i", raw[:28])
        dtype = next((dtype for dtype, known in MAGIC.items() if known == (magic, version)), None)
        if dtype is None:
            raise ManifestError(f"{where}: not a token shard (magic {magic}, version {version})")
        if fmt not in (0, FORMAT_VERSION):
            raise ManifestError(f"{where}: shard format {fmt}, this program reads {FORMAT_VERSION}")
        return cls(tokens, vocab, bos, documents, raw[28:36].hex(), dtype, fmt)


def shard_bytes(tokens: int, dtype: TokenType = UINT16) -> int:
    """Return the length of a `.bin` that holds `tokens` tokens."""
    return HEADER_BYTES + dtype.itemsize * tokens


def read_header(path: Path) -> Header:
    """Read the header of a `.bin`. Raises ManifestError when the file is missing or is no shard."""
    try:
        with path.open("rb") as file:
            return Header.unpack(file.read(HEADER_BYTES), str(path))
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; build it again") from None


def map_tokens(path: Path, tokens: int, dtype: TokenType) -> Tokens:
    """Map the `tokens` tokens of a `.bin`, (tokens,) and read-only, without reading them."""
    if tokens == 0:  # an empty file region cannot be mapped
        return np.zeros(0, dtype)
    # np.memmap is a slow class to index: take its memory as a plain array once
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(tokens,)))


def read_shard(path: Path | str) -> tuple[Header, Tokens]:
    """Return the header of a `.bin` and its tokens, (n,) as a read-only map.

    Raises ManifestError when the file is missing, or when its header and its length disagree.
    """
    path = Path(path)
    header = read_header(path)
    size = path.stat().st_size
    if size != shard_bytes(header.tokens, header.dtype):
        raise ManifestError(f"{path}: {size:,} bytes, but its header says {header.tokens:,} tokens; build it again")
    return header, map_tokens(path, header.tokens, header.dtype)


def check_shard(manifest: Manifest, shard: Shard) -> None:
    """Compare a shard's header and size with the manifest. Raises ManifestError when it is not what is named."""
    path = manifest.file(shard.path)
    header, dtype = read_header(path), token_dtype(manifest.tokenizer.vocab_size)
    if header.dtype != dtype:
        raise ManifestError(
            f"{path}: has ids of {header.dtype.itemsize} bytes, those of a vocabulary of "
            f"{manifest.tokenizer.vocab_size:,} have {dtype.itemsize}: a manifest cannot mix them; pack again"
        )
    facts: dict[str, tuple[object, object]] = {"tokens": (header.tokens, shard.tokens)}
    if not manifest.adopted:
        facts |= {
            "build_id": (header.build_id, manifest.build_id[:16]),
            "vocabulary": (header.vocab_size, manifest.tokenizer.vocab_size),
            "BOS id": (header.bos_id, manifest.tokenizer.bos_id),
            "format": (header.format, FORMAT_VERSION),
        }
    wrong = "; ".join(f"{name} {found}, not {wanted}" for name, (found, wanted) in facts.items() if found != wanted)
    if wrong:
        raise ManifestError(f"{path}: the header is not this manifest's ({wrong}); pack again")
    size, wanted = path.stat().st_size, shard_bytes(shard.tokens, dtype)
    if size != wanted:
        raise ManifestError(f"{path}: {size:,} bytes, {wanted:,} expected: cut or overwritten; pack again")


# ---------------------------------------------------------------------------------------------------------------------
# The index, `.idx`


def _index_bytes(documents: int) -> int:
    return INDEX_HEAD_BYTES + 4 * documents + 8 * documents + 8 * (documents + 1)


def _index_head(documents: int, dtype: TokenType) -> bytes:
    return INDEX_MAGIC + struct.pack("<QBQQ", 1, INDEX_CODE[dtype], documents, documents + 1)


def write_index(
    path: Path | str, counts: npt.NDArray[np.integer], starts: npt.NDArray[np.integer], dtype: TokenType = UINT16
) -> None:
    """Write the `.idx` for documents of `counts` tokens (n,), the first of each at token `starts` (n,) of the `.bin`.

    Padding between documents belongs to none, so readers of the index never see it.
    """
    n = len(counts)
    with Path(path).open("wb") as file:
        file.write(_index_head(n, dtype))
        file.write(np.asarray(counts, "<i4").tobytes())
        file.write((HEADER_BYTES + dtype.itemsize * starts).astype("<i8").tobytes())
        file.write(np.arange(n + 1, dtype="<i8").tobytes())


def read_index(path: Path | str, dtype: TokenType = UINT16) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the token counts (n,) of an `.idx`, and the first token of each document (n,) in the `.bin`.

    Raises ManifestError when the file is missing or damaged.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; build it again") from None
    if raw[: len(INDEX_MAGIC)] != INDEX_MAGIC or len(raw) < INDEX_HEAD_BYTES:
        raise ManifestError(f"{path}: not a Megatron index")
    n: int = struct.unpack_from("<Q", raw, len(INDEX_MAGIC) + 9)[0]
    if len(raw) != _index_bytes(n) or raw[:INDEX_HEAD_BYTES] != _index_head(n, dtype):  # the length first: it bounds n
        raise ManifestError(f"{path}: damaged Megatron index")
    counts = np.frombuffer(raw, "<i4", n, INDEX_HEAD_BYTES)
    starts, inside = np.divmod(np.frombuffer(raw, "<i8", n, INDEX_HEAD_BYTES + 4 * n) - HEADER_BYTES, dtype.itemsize)
    if inside.any():
        raise ManifestError(f"{path}: a document of its Megatron index begins inside a token")
    if not np.array_equal(np.frombuffer(raw, "<i8", n + 1, INDEX_HEAD_BYTES + 12 * n), np.arange(n + 1)):
        raise ManifestError(f"{path}: the document table of its Megatron index is damaged")
    return counts, starts


def map_index(path: Path, documents: int) -> tuple[memoryview[int], memoryview[int]]:
    """Map the token counts and the byte pointers of an `.idx` of `documents` documents, which `read_index` has checked.

    The columns are not aligned, so numpy would copy the whole of one to search it; a memoryview reads in place.
    """
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    pointers_at = INDEX_HEAD_BYTES + 4 * documents
    counts = view[INDEX_HEAD_BYTES:pointers_at].cast("i")
    pointers = view[pointers_at : pointers_at + 8 * documents].cast("q")
    return counts, pointers
