"""Encoding: the stage's encoder, the bare engine and its peers, each in a process of its own on one core.

    python -m benchmarks.encode [--megabytes 100] [--rounds 3] [--data FOLDER]
    python -m benchmarks.encode --prove [--data FOLDER]

Timed is one pass over the text with a tokenizer just opened (`cold`), then another (`warm`), documents to ids: `stage`
reads a parquet column, makes a list of it, encodes it and has flat uint16, row group by row group; the others are given
the same documents as lists. Peers run in turn, several rounds; MB/s are medians.

`--prove` compares every engine that is installed with `tokenizers`, and with tiktoken as a second opinion, on 40,000
fuzzed strings for each split and on every string in the shared data for the default one. It exits with 1 on any
difference, and when a text gives a special id.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from stages.tokenizer.encoder import ENGINES, HOSTILE, Engine, attempt, difference, hostile, open_encoder, reference
from stages.tokenizer.spec import SPECIALS
from stages.tokenizer.split import GPT2_SPLIT, GPT4_SPLIT
from stages.tokenizer.work import canonical, train
from train.tokenizer.vocabulary import read_vocabulary, text_definition

VOCAB = 8192
TRAINED_ON = 20  # MB
GROUP = 1000  # documents in a row group
REFERENCE_MB = 10  # of the text given to `tokenizers`, which is slow
FUZZED = 40_000
# split -> (its keys in a recipe, the pattern as tiktoken takes it)
SPLITS = {
    "gpt4": (("gpt4", None), GPT4_SPLIT),
    "gpt4, 1 digit": (("gpt4", 1), GPT4_SPLIT.replace("{1,3}", "")),
    "gpt4, 2 digits": (("gpt4", 2), GPT4_SPLIT.replace("{1,3}", "{1,2}")),
    "gpt2": (("gpt2", None), GPT2_SPLIT),
    "gpt2, 3 digits": (("gpt2", 3), GPT2_SPLIT.replace(r"\p{N}+", r"\p{N}{1,3}")),
}
LIBRARIES = ("fastokens", "gigatoken", "tiktoken", "tokenizers", "numpy", "pyarrow")


def tiktoken(path: str, pattern: str = GPT4_SPLIT) -> Any:
    """The tokenizer at `path` as tiktoken's Encoding: bytes by rank, merged in the order of their ids."""
    from tiktoken import Encoding

    vocabulary = read_vocabulary(path)
    ranks = {text: i for i, text in vocabulary.texts.items()}
    return Encoding("trained", pat_str=pattern, mergeable_ranks=ranks, special_tokens=vocabulary.special_ids)


# -- speed ---------------------------------------------------------------------------------------------


def passes(peer: str, tokenizer: str, texts: str) -> Callable[[], int]:
    """One pass of `peer` over the column `text` of the file `texts`; returns the number of tokens."""
    file = pq.ParquetFile(texts)
    groups = range(file.num_row_groups)

    def column(group: int) -> list[str]:
        found: list[str] = file.read_row_group(group, columns=["text"])["text"].to_pylist()
        return found

    if peer in ("stage", "encoder"):
        encoder = open_encoder(tokenizer, column(0))
        assert encoder.engine.startswith("fastokens"), encoder.note
        if peer == "stage":
            return lambda: sum(len(encoder.encode(column(group))[0]) for group in groups)
        lists = [column(group) for group in groups]
        return lambda: sum(len(encoder.encode(texts)[0]) for texts in lists)
    lists = [column(group) for group in groups]
    definition = text_definition(tokenizer)
    if peer == "fastokens":
        from fastokens import Tokenizer

        fast = Tokenizer.from_json_str(definition)
        return lambda: sum(len(fast.encode_batch_flat(texts)[0]) // 4 for texts in lists)
    if peer == "gigatoken":
        encode = ENGINES["gigatoken"](definition)
        return lambda: sum(len(encode(texts)[0]) for texts in lists)
    if peer == "tokenizers":
        from tokenizers import Tokenizer as Reference

        slow = Reference.from_str(definition)
        return lambda: sum(len(e) for t in lists for e in slow.encode_batch_fast(t, add_special_tokens=False))
    tik = tiktoken(tokenizer)
    if peer == "tiktoken batch":
        return lambda: sum(len(ids) for t in lists for ids in tik.encode_ordinary_batch(t, num_threads=1))
    return lambda: sum(len(tik.encode_to_numpy(text, disallowed_special=())) for texts in lists for text in texts)


def serve(peer: str, tokenizer: str, texts: str) -> None:
    """What a process of one peer does: open, pass over the text twice, print seconds and tokens as JSON."""
    measure.use_one_core()
    run = passes(peer, tokenizer, texts)
    seconds, tokens = [], 0
    for _ in range(1 if peer == "tokenizers" else 2):
        start = time.perf_counter()
        tokens = run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


def write(texts: list[str], path: Path) -> float:
    """Put `texts` into a parquet file, as a curated part is written; returns their MB."""
    table = pa.table({"text": texts})
    pq.write_table(table, path, row_group_size=GROUP, compression="zstd", compression_level=1)
    return measure.megabytes(texts)


def speed(args: argparse.Namespace) -> None:
    """Time every peer, print a table and save the result."""
    texts = measure.corpus(args.megabytes, args.data)
    with tempfile.TemporaryDirectory() as name:
        tokenizer, whole, part = (Path(name) / file for file in ("tokenizer.json", "whole.parquet", "part.parquet"))
        tokenizer.write_text(canonical(train(list(leading(texts, TRAINED_ON)), VOCAB, "gpt4")[0]), encoding="utf-8")
        sizes = {whole: write(texts, whole), part: write(list(leading(texts, REFERENCE_MB)), part)}
        peers = ["fastokens", "encoder", "stage", "gigatoken", "tiktoken numpy", "tiktoken batch", "tokenizers"]
        seen: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
        for _ in range(args.rounds):
            for peer in peers:
                seen[peer].append(alone(peer, tokenizer, part if peer == "tokenizers" else whole))
        counts = {seen[peer][0]["tokens"] for peer in peers if peer != "tokenizers"}
        assert len(counts) == 1, f"peers differ in the number of tokens: {counts}"
    rates = {}
    for peer in peers:
        size = sizes[part if peer == "tokenizers" else whole]
        cold, warm = (measure.median(size / r["seconds"][at] for r in seen[peer]) for at in (0, -1))
        rates[peer] = {"cold_mb_s": round(cold, 1), "warm_mb_s": round(warm, 1)}
        print(f"{peer:16} {cold:8.1f} MB/s cold {warm:8.1f} warm")
    best = max(rates[peer]["cold_mb_s"] for peer in ("tiktoken numpy", "tiktoken batch"))
    ratios = {
        f"bare engine over {peer}, {state}": rates["fastokens"][f"{state}_mb_s"] / rates[peer][f"{state}_mb_s"]
        for peer in ("encoder", "stage")
        for state in ("cold", "warm")
    }
    ratios |= {
        "stage over the better tiktoken": rates["stage"]["cold_mb_s"] / best,
        "stage over tokenizers": rates["stage"]["cold_mb_s"] / rates["tokenizers"]["cold_mb_s"],
    }
    for what, ratio in ratios.items():
        print(f"{what:32} {ratio:6.2f}")
    result = {"megabytes": sizes[whole], "tokens": counts.pop(), "rates": rates, "rounds": args.rounds}
    ratios = measure.rounded(ratios, 3)
    measure.save("encode", {**result, "ratios": ratios, "seen": seen, "machine": measure.machine(LIBRARIES)})


def leading(texts: list[str], megabytes: float) -> Iterator[str]:
    """The first documents, about so many MB."""
    size = 0.0
    for text in texts:
        if size >= megabytes * 1e6:
            return
        size += len(text.encode())
        yield text


def alone(peer: str, tokenizer: Path, texts: Path) -> dict[str, Any]:
    """Return what a fresh process of `peer` on one core saw."""
    threads = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    seen: dict[str, Any] = measure.child("benchmarks.encode", "--peer", peer, tokenizer, texts, **threads)
    return seen


# -- equality ------------------------------------------------------------------------------------------


def fuzzed(count: int, specials: list[str], seed: int = 0) -> list[str]:
    """`count` strings of what encoders trip over: any code point, blanks, digits, marks, special tokens."""
    rng = random.Random(seed)
    classes: list[Callable[[], str]] = [
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
        lambda: chr(rng.randrange(128)),
        lambda: rng.choice(" \t\n\r\x0b\x0c\x85\u00a0\u2003\u2028\u3000\u180e\u200b") * rng.choice([1, 1, 2, 3, 17]),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 12))),
        lambda: rng.choice("'’ſ") + rng.choice(["s", "S", "ll", "LL", "ſ", "re", "t", "d", "x"]),
        lambda: rng.choice(
            ["e\u0301", "\u0915\u094d\u0937", "\u0664\u0665", "½", "Ⅷ", "\U0001f469\u200d\U0001f52c", "ß"]
        ),
        lambda: rng.choice(specials)[rng.choice([0, 0, 0, 1]) :],
        lambda: rng.choice(HOSTILE)[: rng.randrange(40)],
        lambda: rng.choice("<|>=-_#*/\\.,:;") * rng.choice([1, 2, 9]),
        lambda: "".join(rng.choices("abcdefgTHEREéü", k=rng.randrange(1, 12))),
    ]
    return ["".join(rng.choice(classes)() for _ in range(rng.randrange(1, 25))) for _ in range(count)]


def oracle(path: str, pattern: str) -> Engine:
    """tiktoken as an engine."""
    encoding = tiktoken(path, pattern)

    def encode(texts: list[str]) -> Any:
        rows = [np.asarray(encoding.encode_to_numpy(text, disallowed_special=()), np.uint32) for text in texts]
        return np.concatenate([np.empty(0, np.uint32), *rows]), np.array([len(row) for row in rows], np.int64)

    return encode


def engines_of(path: str, pattern: str) -> dict[str, Engine]:
    """Every engine that an Encoder would trust with the tokenizer at `path`, and tiktoken; says of others why not."""
    found: dict[str, Engine] = {}
    truth, sample = reference(text_definition(path)), hostile(SPECIALS)
    makers = {name: lambda make=make: make(text_definition(path)) for name, make in ENGINES.items()}
    for name, make in {**makers, "tiktoken": lambda: oracle(path, pattern)}.items():
        why, engine = attempt(make)
        why = why or difference(engine, truth, sample)
        if why:
            print(f"{name} passed over ({why})")
        else:
            found[name] = engine
    return found


def prove(args: argparse.Namespace) -> int:
    """Compare all engines on all texts, print what was compared, and return how many differed."""
    folder = Path(args.data) if args.data else measure.SHARED.parent
    names, failures = [*SPECIALS, "<|endoftext|>"], 0
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "tokenizer.json")
        for split, (keys, pattern) in SPLITS.items():
            Path(path).write_text(canonical(train(measure.corpus(5, args.data), VOCAB, *keys)[0]), encoding="utf-8")
            truth, engines = reference(text_definition(path)), engines_of(path, pattern)
            failures += compare(split, "fuzzed", truth, engines, [fuzzed(FUZZED, names), hostile(names)])
            if split == "gpt4":
                everything = (texts for _, texts in measure.every_text(folder))
                failures += compare(split, f"all of {folder.name}", truth, engines, everything)
    print("equal" if not failures else f"{failures} DIFFERENCES")
    return failures


def compare(split: str, what: str, truth: Engine, engines: dict[str, Engine], texts: Any) -> int:
    """Print how much was compared with `truth`, and every difference; returns how many there were."""
    count = size = tokens = failures = special = 0
    for batch in texts:
        ids, counts = truth(batch)
        count, tokens, size = count + len(batch), tokens + len(ids), size + sum(len(text.encode()) for text in batch)
        special += int((ids < len(SPECIALS)).sum())
        for name, engine in engines.items():
            found, lengths = engine(batch)
            if not (np.array_equal(found, ids) and np.array_equal(lengths, counts)):
                failures += 1
                print(f"{split}: {name} {difference(engine, truth, batch)}")
    print(
        f"{split}: {what}: {count:,} strings, {size:,} bytes, {tokens:,} tokens, {special} special ids from text; "
        f"tokenizers = {' = '.join(engines)}: {'yes' if not failures else 'NO'}",
        flush=True,
    )
    return failures + special


def main() -> None:
    """Parse the command line."""
    parser = measure.parser(__doc__, megabytes=100.0, rounds=3, data=None, prove=False)
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        serve(*args.peer)
    elif args.prove:
        sys.exit(prove(args) > 0)
    else:
        speed(args)


if __name__ == "__main__":
    main()
