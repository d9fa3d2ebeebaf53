"""The artefact's file: weights of few bits, compressed, without pickle; it is the only thing a model needs beside code.

    bytes 0 to 24     magic "SHARDART", then the bytes of the header and of the payload, uint64 little-endian
    one zstd frame    header and payload, level 22
        header        JSON: format, packing, model (its keys), vocab_size, bos_id, provenance, and tensors: a list of
                      {name, shape, kind, offset, scale}
        payload       of each tensor, at `offset`: q of int5, int6 and int8, whose scales are at `scale`; values of fp16
                      and fp32

Packing "bytes" has each q in a byte of its own, of which zstd's Huffman codes make fewer bits; "bits" has 5, 6 or 8
bits of each, in order, lowest first. The smaller file is kept. fp16 and fp32 lie in planes, all first bytes and then
all second ones, because signs and exponents compress and the rest does not.

Nothing that is read is executed. What a file can make us allocate is bounded by its own size and by its header, which
is checked before the payload is read; the model is built only where its shapes are those of the tensors.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import ArtefactConfig, ConfigError, Kind, ModelConfig, TrainError
from train.files import fsync_path
from train.model.transformer import Model, on_meta_device
from train.overrides import from_dict
from train.quantize import LARGEST, Quantized, dequantize, kind_of, quantize, round_trip

MAGIC = b"SHARDART"
PREFIX = struct.Struct("<8sQQ")
FORMAT = 1
# zstd's highest level, but without matches below 7 bytes and with a window of 256 KB. Weights are noise to it: left to
# itself it takes matches of 3 bytes, which cost more than their Huffman codes: 7 % of a file of 15.3 MB, in 30 times
# the time.
LEVEL, MIN_MATCH, WINDOW_LOG = 22, 7, 18
MOST_BYTES = 1 << 29  # of a payload; an artefact is meant to be 30 times smaller
MOST_RATIO, SMALL_BYTES = 64, 1 << 26  # a payload is at most so many times the file, or small: weights are no zeros
MOST_HEADER_BYTES = 1 << 22
MOST_IDS = 1 << 20  # of a vocabulary
MOST_ANGLES = 1 << 26  # of a table of rotary positions: 1,048,576 of them with 64 channels that rotate
PIECE = 1 << 20  # bytes read, and numbers unpacked, at once

Packing = Literal["bytes", "bits"]


@dataclass(frozen=True)
class Packed:
    """Weights as an artefact holds them. `tensors` has each one's kind, and what is stored of it, by name."""

    kinds: dict[str, Kind]
    quantized: dict[str, Quantized]  # of int5, int6 and int8
    plain: dict[str, Tensor]  # fp16 or fp32

    def weights(self) -> dict[str, Tensor]:
        """Return the weights as they are read back, fp32."""
        return {
            name: dequantize(self.quantized[name]) if name in self.quantized else self.plain[name].float()
            for name in self.kinds
        }


def pack(weights: dict[str, Tensor], cfg: ArtefactConfig) -> Packed:
    """Round `weights` by the rules of `cfg`. Raises TrainError for a weight that is no number."""
    kinds: dict[str, Kind] = {}
    quantized: dict[str, Quantized] = {}
    plain: dict[str, Tensor] = {}
    for name, w in weights.items():
        kinds[name] = kind = kind_of(name, w.numel(), cfg)
        if kind in LARGEST:
            w = round_trip(w, "int8", cfg.int8_floor) if cfg.int8_first else w
            quantized[name] = quantize(w, kind, cfg.int8_floor)
            stored = quantized[name].scale
        else:
            plain[name] = stored = w.to(torch.float16 if kind == "fp16" else torch.float32)
        if not (torch.isfinite(w).all() and torch.isfinite(stored).all()):
            raise TrainError(f"{name} has values that are no numbers or too large for {kind}: nothing to pack")
    return Packed(kinds, quantized, plain)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def pack_bits(q: NDArray[np.int8], largest: int) -> bytes:
    """Return q, each in [-largest, largest], in as many bits as that takes, lowest bit first."""
    width = largest.bit_length() + 1
    codes = (q.reshape(-1).astype(np.int16) + largest).astype(np.uint8)
    return np.packbits(codes[:, None] >> np.arange(width, dtype=np.uint8) & 1, bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int, largest: int) -> NDArray[np.int8]:
    """Return the `count` numbers that `pack_bits` was given."""
    width = largest.bit_length() + 1
    q = np.empty(count, np.int8)
    for start in range(0, count, PIECE):  # a byte for each bit: no more than of a piece at a time
        size = min(PIECE, count - start)
        source = np.frombuffer(data, np.uint8, offset=start * width // 8)
        bits = np.unpackbits(source, count=size * width, bitorder="little").reshape(size, width)
        codes = (bits << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8)
        q[start : start + size] = codes.astype(np.int16) - largest
    return q


def q_size(count: int, kind: str, packing: Packing) -> int:
    """Return the bytes of `count` numbers of a kind."""
    return count if packing == "bytes" else -(-count * (LARGEST[kind].bit_length() + 1) // 8)


def to_planes(tensor: Tensor) -> bytes:
    """Return a tensor's bytes, the first ones of all its values, then the second ones, and so on."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return np.ascontiguousarray(values.reshape(-1, tensor.element_size()).T).tobytes()


def from_planes(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return the values that `to_planes` was given, flat."""
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return torch.from_numpy(np.array(planes.T, order="C").reshape(-1)).view(dtype)


def encode(packed: Packed, header: dict[str, Any], packing: Packing) -> tuple[bytes, bytes]:
    """Return the bytes of the header and of the payload; `header` has all but what is known here."""
    payload, entries = io.BytesIO(), []
    # alike beside alike: zstd takes its codes for 128 KB at a time
    for name in sorted(packed.kinds, key=lambda n: (packed.kinds[n], n)):
        kind = packed.kinds[name]
        entry: dict[str, Any] = {"name": name, "kind": kind, "offset": payload.tell()}
        if name in packed.quantized:
            q = packed.quantized[name].q.cpu().numpy()
            payload.write(q.tobytes() if packing == "bytes" else pack_bits(q, LARGEST[kind]))
            entry["shape"] = list(q.shape)
        else:
            payload.write(to_planes(packed.plain[name]))
            entry["shape"] = list(packed.plain[name].shape)
        entries.append(entry)
    for entry in entries:
        if entry["name"] in packed.quantized:
            entry["scale"] = payload.tell()
            payload.write(to_planes(packed.quantized[entry["name"]].scale))
    value = {**header, "format": FORMAT, "packing": packing, "tensors": entries}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), payload.getvalue()


def compress(data: bytes) -> bytes:
    """Return one zstd frame with a checksum. Raises TrainError where the package zstandard is not installed."""
    zstandard = _zstandard()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, min_match=MIN_MATCH, window_log=WINDOW_LOG, write_checksum=True
    )
    return bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(data))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise TrainError("the package zstandard is not installed; pip install zstandard") from None
    return zstandard


def write_artefact(path: Path, packed: Packed, header: dict[str, Any]) -> dict[Packing, int]:
    """Write the file in the smaller packing, whole or not at all. Returns the size of it in each."""
    files: dict[Packing, bytes] = {}
    for packing in get_args(Packing):
        head, payload = encode(packed, header, packing)
        files[packing] = PREFIX.pack(MAGIC, len(head), len(payload)) + compress(head + payload)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(min(files.values(), key=len))
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {packing: len(data) for packing, data in files.items()}


def entropy_bytes(packed: Packed) -> int:
    """Return the entropy of what is stored, which no code of single values gets below but by luck.

    It is that of each tensor's q, and of each plane of bytes of scales and of fp16 and fp32.
    """
    bits = 0.0
    for quantized in packed.quantized.values():
        bits += _entropy(quantized.q.cpu().numpy())
    for tensor in [*packed.plain.values(), *(quantized.scale for quantized in packed.quantized.values())]:
        planes = np.frombuffer(to_planes(tensor), np.uint8).reshape(tensor.element_size(), -1)
        bits += sum(_entropy(plane) for plane in planes)
    return math.ceil(bits / 8)


def _entropy(values: NDArray[Any]) -> float:
    """Return the bits of all `values` in the best code for how often each of them occurs."""
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Artefact:
    """What a file holds: its header, and the weights by name, fp32."""

    header: dict[str, Any]
    weights: dict[str, Tensor]


def read_artefact(path: Path) -> Artefact:
    """Read an artefact, a stranger's perhaps. Raises TrainError, with the way to mend it, for a file that is none."""
    zstandard = _zstandard()
    try:
        with path.open("rb") as file:
            magic, head_bytes, payload_bytes = PREFIX.unpack(file.read(PREFIX.size))
            if magic != MAGIC:
                raise ValueError("it does not begin as one does")
            most = min(MOST_BYTES, max(SMALL_BYTES, MOST_RATIO * os.fstat(file.fileno()).st_size))
            if head_bytes > MOST_HEADER_BYTES or payload_bytes > most:
                raise ValueError(f"{head_bytes:,} + {payload_bytes:,} bytes are more than an artefact has")
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file, read_across_frames=True)
            header = json.loads(_read_exactly(reader, head_bytes))
            entries = _check_header(header, payload_bytes)
            payload = _read_exactly(reader, payload_bytes)
            if reader.read(1):
                raise ValueError("it goes on behind its end")
        return Artefact(header, {entry["name"]: _weights_of(entry, payload, header["packing"]) for entry in entries})
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}; name the file of an artefact") from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        struct.error,
        zstandard.ZstdError,
    ) as error:
        raise TrainError(f"{path}: is no artefact, or damaged ({error}); write it again") from None


def _read_exactly(reader: Any, size: int) -> bytes:
    """Return `size` bytes, a piece at a time: no more memory is taken than the file really fills."""
    pieces, left = [], size
    while left:
        piece = reader.read(min(left, PIECE))
        if not piece:
            raise ValueError("it is cut off")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _check_header(header: Any, payload_bytes: int) -> list[dict[str, Any]]:
    """Return the entries of a header, of the right types, each inside of the payload and by another name."""
    if header["format"] != FORMAT or header["packing"] not in get_args(Packing):
        raise ValueError(f"format {header['format']!r}, packing {header['packing']!r}; this program reads {FORMAT}")
    entries: list[dict[str, Any]] = header["tensors"]
    total = 0
    for entry in entries:
        name, shape, kind = entry["name"], entry["shape"], entry["kind"]
        if not isinstance(name, str) or kind not in get_args(Kind) or len(shape) > 8:
            raise ValueError(f"a tensor {name!r} of kind {kind!r}")
        if not all(type(n) is int and 0 <= n <= payload_bytes for n in [*shape, entry["offset"], *_scale_of(entry)]):
            raise ValueError(f"{name!r}: a shape or a place that is no number, or beyond the payload")
        if math.prod(max(1, n) for n in shape) > MOST_BYTES:  # of no values too
            raise ValueError(f"{name!r}: a shape that no tensor has")
        for start, size in _ranges(entry, header["packing"]):
            total += size
            if start + size > payload_bytes:
                raise ValueError(f"{name!r}: reaches beyond the payload")
    if total > payload_bytes:
        raise ValueError("tensors that share their bytes")
    if len({entry["name"] for entry in entries}) < len(entries):
        raise ValueError("two tensors of one name")
    return entries


def _scale_of(entry: dict[str, Any]) -> list[int]:
    return [entry["scale"]] if entry["kind"] in LARGEST else []


def _scale_type(entry: dict[str, Any]) -> torch.dtype:
    return torch.float32 if entry["kind"] == "int8" and len(entry["shape"]) <= 1 else torch.float16


def _ranges(entry: dict[str, Any], packing: Packing) -> list[tuple[int, int]]:
    """Return (start, bytes) of an entry's numbers, and of its scales if it has any."""
    shape, kind = entry["shape"], entry["kind"]
    count = math.prod(shape)
    if kind not in LARGEST:
        return [(entry["offset"], count * (2 if kind == "fp16" else 4))]
    scales = math.prod(shape[:-1]) * _scale_type(entry).itemsize
    return [(entry["offset"], q_size(count, kind, packing)), (entry["scale"], scales)]


def _weights_of(entry: dict[str, Any], payload: bytes, packing: Packing) -> Tensor:
    """Return the weights of an entry, fp32."""
    shape, kind = entry["shape"], entry["kind"]
    values, *scales = (payload[start : start + size] for start, size in _ranges(entry, packing))
    if not scales:
        return from_planes(values, torch.float16 if kind == "fp16" else torch.float32).float().reshape(shape)
    if packing == "bytes":
        q = np.frombuffer(values, np.int8).copy()
    else:
        q = unpack_bits(values, math.prod(shape), LARGEST[kind])
    scale = from_planes(scales[0], _scale_type(entry))
    scale = scale.reshape(*shape[:-1], 1) if len(shape) > 1 else scale.reshape(())
    return dequantize(Quantized(torch.from_numpy(q).reshape(shape), scale))


def model_of(artefact: Artefact, path: Path) -> Model:
    """Return the model that an artefact holds, fp32 on the CPU.

    Raises TrainError where its keys are not those of the tensors; nothing is allocated before that is known.
    """
    where = f"{path}: its model"
    header = artefact.header
    try:
        cfg = from_dict(ModelConfig, header.get("model"), "model")
    except ConfigError as error:
        raise TrainError(f"{path}: {error}; the file is damaged") from None
    size, bos_id = header.get("vocab_size"), header.get("bos_id")
    if type(size) is not int or type(bos_id) is not int or not 0 <= bos_id < size <= MOST_IDS:
        raise TrainError(f"{where}: {size!r} ids and BOS {bos_id!r} are no vocabulary's; the file is damaged")
    positions = cfg.max_seq_len + cfg.memory_tokens
    if max(cfg.n_layers, cfg.mtp_heads) > len(artefact.weights) or positions * cfg.rotary_size > MOST_ANGLES:
        raise TrainError(
            f"{where}: {cfg.n_layers:,} layers, {cfg.mtp_heads:,} heads of further tokens, {positions:,} positions; "
            "the file is damaged"
        )
    shapes = {name: p.shape for name, p in on_meta_device(cfg, size).named_parameters()}
    if shapes != {name: w.shape for name, w in artefact.weights.items()}:
        raise TrainError(f"{where}: its keys make other tensors than it holds; the file is damaged")
    model = Model(cfg, size, bos_id)
    model.load_state_dict(artefact.weights)
    return model
