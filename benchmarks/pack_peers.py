"""Peers of the packing benchmark, each a program of its own so that start-up and imports count.

`python -m benchmarks.pack_peers NAME FILES TOKENIZER OUT WORKERS` tokenises FILES (a folder of parquet with a
column `text`) with TOKENIZER (a `tokenizer.json`) into OUT and prints one line of JSON: {"tokens": n, ...}.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

SHARD = 100_000_000  # tokens of one of fineweb.py's files
ENCODING: Any  # of a process of fineweb.py's pool: tiktoken's Encoding, and its delimiter
EOT: int


def texts_of(files: list[Path]) -> Iterator[str]:
    """The texts of parquet files, in order."""
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
            yield from batch["text"].to_pylist()


def datatrove(files: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, Any]:
    """ParquetReader -> DocumentTokenizer as its examples show it, all else default: tokenizing, no merge."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(str(files)),
            DocumentTokenizer(str(out / "tokens"), tokenizer_name_or_path=str(tokenizer), eos_token="<|bos|>"),
        ],
        tasks=workers,
        workers=workers,
        logging_dir=str(out / "logs"),
    ).run()
    return {"tokens": sum(f.stat().st_size for f in out.glob("tokens/*.ds")) // 2}


def tiktoken_encoding(tokenizer: Path) -> Any:
    """tiktoken over the same merges and split; ids are tiktoken ranks, so their order is the merges' order."""
    import tiktoken

    definition = json.loads(tokenizer.read_text(encoding="utf-8"))
    specials = {t["content"]: t["id"] for t in definition["added_tokens"] if t["special"]}
    # GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on.
    shown = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xA0, 0xAD)]
    hidden = [b for b in range(256) if b not in shown]
    alphabet = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocab = definition["model"]["vocab"]
    ranks = {bytes(alphabet[c] for c in token): i for token, i in vocab.items() if token not in specials}
    (pattern,) = re.findall(r'"Regex": *("(?:[^"\\]|\\.)*")', json.dumps(definition["pre_tokenizer"]))
    return tiktoken.Encoding("bench", pat_str=json.loads(pattern), mergeable_ranks=ranks, special_tokens=specials)


def _start(tokenizer: Path) -> None:
    """Give each process of the pool its encoder."""
    global ENCODING, EOT
    ENCODING = tiktoken_encoding(tokenizer)
    EOT = ENCODING.encode_single_token("<|bos|>")


def _tokenize(text: str) -> Any:
    """One document as uint16, its delimiter first."""
    import numpy as np

    return np.array([EOT, *ENCODING.encode_ordinary(text)], dtype=np.uint16)


def fineweb(files: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, Any]:
    """build-nanogpt's and llm.c's fineweb.py: tiktoken, `Pool.imap(chunksize=16)`, one buffer a shard."""
    import numpy as np

    total = used = shards = 0
    buffer = np.empty(SHARD, np.uint16)

    def flush() -> None:
        nonlocal shards, used
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, used
        with (out / f"shard_{shards:06d}.bin").open("wb") as file:
            file.write(header.tobytes())
            file.write(buffer[:used].tobytes())
        shards, used = shards + 1, 0

    with multiprocessing.Pool(workers, _start, (tokenizer,)) as pool:
        for tokens in pool.imap(_tokenize, texts_of(sorted(files.glob("*.parquet"))), chunksize=16):
            total += len(tokens)
            while used + len(tokens) > SHARD:
                room = SHARD - used
                buffer[used:] = tokens[:room]
                used, tokens = SHARD, tokens[room:]
                flush()
            buffer[used : used + len(tokens)] = tokens
            used += len(tokens)
    flush()
    return {"tokens": total}


def _encode(files: list[Path], tokenizer: Path, barrier: Barrier, answers: Queue[tuple[float, int]]) -> None:
    """Encode texts that are in memory already, in batches of about 8 MB, once all processes are ready."""
    import fastokens

    encoder = fastokens.Tokenizer.from_file(str(tokenizer))
    texts = list(texts_of(files))
    step = max(1, len(texts) * 8_000_000 // max(1, sum(map(len, texts))))
    encoder.encode_batch_flat(texts[:1], split_special_tokens=True)
    barrier.wait()
    start, tokens = time.perf_counter(), len(texts)
    for i in range(0, len(texts), step):
        ids, _ = encoder.encode_batch_flat(texts[i : i + step], split_special_tokens=True)
        tokens += len(ids) // 4
    answers.put((time.perf_counter() - start, tokens))


def bare(files: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, Any]:
    """The limit: processes that only encode. `seconds` is the slower one's encoding, nothing else."""
    barrier: Barrier = multiprocessing.Barrier(workers)
    answers: Queue[tuple[float, int]] = multiprocessing.Queue()
    names = sorted(files.glob("*.parquet"))
    parts = [(names[i::workers], tokenizer, barrier, answers) for i in range(workers)]
    children = [multiprocessing.Process(target=_encode, args=part) for part in parts]
    for child in children:
        child.start()
    found = [answers.get() for _ in children]
    for child in children:
        child.join()
    return {"tokens": sum(n for _, n in found), "seconds": max(s for s, _ in found)}


PEERS: dict[str, Callable[[Path, Path, Path, int], dict[str, Any]]] = {
    "datatrove": datatrove,
    "fineweb": fineweb,
    "bare": bare,
}

if __name__ == "__main__":
    name, files, tokenizer, out, workers = sys.argv[1:]
    print(json.dumps(PEERS[name](Path(files), Path(tokenizer), Path(out), int(workers))))
