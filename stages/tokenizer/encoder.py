"""Text to ids at the speed of the fastest exact engine, proven equal to the reference before it is trusted.

`tokenizers` defines what a text's ids are. fastokens, then gigatoken, give the same ids 50 times faster, as one flat
buffer with no Python object a token; `tokenizers` itself is the last resort. Opening an encoder compares the engine
with the reference on hostile strings and on the caller's own first documents. One that is not installed, refuses the
file or differs is passed over, and `note` says so. Of a SentencePiece model the package of that name does all of it.

The engine stays out of the keys of units (a stage declares `tokenizers` alone): proven equal, it decides the time a
unit takes and never a byte, so that a store made with one engine serves a machine that has another.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.tokenizer.spec import SPECIALS, open_vocabulary
from train.files import sha256_file
from train.tokenizer.pieces import SUFFIX
from train.tokenizer.vocabulary import text_definition

CHECK_CHARS = 100_000  # of the first caller's text, compared with the reference when the file is opened
AGAIN_CHARS = 10_000  # and of every later caller's
REFERENCE_CHARS = 1 << 22  # text that the reference holds encodings of at a time
Flat = tuple[NDArray[np.uint32], NDArray[np.int64]]  # all ids in a row, and how many each text has
Engine = Callable[[list[str]], Flat]

FOREIGN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[MASK]")
HOSTILE = (
    "",
    " ",
    "\x00",
    "".join(SPECIALS),
    "<|bos|> in the middle <|end|>",
    "<|<|bos|>|> <|bos |> <|BOS|> <|bos|",
    "<0xE4><0x41> <0x0A",  # how tokens that are bytes are called
    "".join(FOREIGN_SPECIALS),
    "\x00\x01\r\n\r\n \t\u00a0\u2028 x  ",
    "naïve café e\u0301 \U0001f469\u200d\U0001f52c \u202eright to left\ufeff",
    "\uffff\U0010ffff\ufffd\ue000\U000e0001",
    "\u1e9b\u0323 \ufb01 \u212b \u0130\u0131 \u017f'\u017f x'\u017f \u2160\u00bd\u0664\u096a\u4e09 1\u0301",
    "\u2581\u2581x \u0120\u010a\u0100 Ġthe",
    "\u1100\u1161\u11a8 \uac01 \u0e33 \u0915\u094d\u0937\u093f \u200c\u200d\u2060\u00ad",
    # Letters and digits of Unicode 15 to 17: engines know different versions of it.
    "\U000328b2's \U0002ebf0's \U00031350's \U00010d40\U00010d41 \U00011de0's \u1c89\u1c8a's \ua7cb\ua7d2x\ua7f1's",
    "\u180e's",  # a blank to PCRE2 alone
    "\x85\x1c\x1d\x0b\x0c\u180e\u2029\u3000a\u2003b \u200b c",
    "'S'T'LL'lL's'\u017f 1234567 12 345,678.90 ##!!??\n\n\n  def f(x):\n\treturn x",
    "a\r\nb\rc\n\r\n\r  \r\n \n\t\n",
    " " * 1000 + "a" * 1000 + "\n" * 1000,
    "ab" * 10_000 + "\t" * 5_000 + "7" * 5_000 + "-=" * 5_000,
    "\U0001f600" * 500 + "e" + "\u0301" * 500 + " x" * 500,
)


def hostile(specials: Iterable[str]) -> list[str]:
    """Return texts on which encoders tend to differ, with each of `specials` written alone and inside a sentence."""
    names = list(specials)
    written = [text for name in names for text in (name, f"a{name}b", f" {name}\n{name[:-1]} {name[1:]}")]
    return [*HOSTILE, *written, "".join(names), " ".join(names)]


def reference(definition: str) -> Engine:
    """Return the engine of `tokenizers`: right by definition, slow, and alone in making a Python object a token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition)

    def encode(texts: list[str]) -> Flat:
        arrays: list[NDArray[np.uint32]] = []
        for batch in batches(texts, REFERENCE_CHARS):
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            arrays += [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return np.concatenate([np.empty(0, np.uint32), *arrays]), np.array([len(a) for a in arrays], np.int64)

    return encode


def sentencepiece(path: str) -> Engine:
    """Return the engine of a SentencePiece model, which is the package itself. Raises DataError without it."""
    why, package = attempt(lambda: importlib.import_module("sentencepiece"))
    if why:
        raise DataError(f"{path} needs the package sentencepiece: pip install 'shardmill[sentencepiece]'")
    processor = package.SentencePieceProcessor(model_file=path)

    def encode(texts: list[str]) -> Flat:
        rows = processor.encode(texts, num_threads=1)
        ids = np.fromiter((i for row in rows for i in row), np.uint32)
        return ids, np.array([len(row) for row in rows], np.int64)

    return encode


def fastokens(definition: str) -> Engine:
    """Return the engine of fastokens, which knows every split pattern (PCRE2)."""
    tokenizer = importlib.import_module("fastokens").Tokenizer.from_json_str(definition)

    def encode(texts: list[str]) -> Flat:
        ids, offsets = tokenizer.encode_batch_flat(texts)
        starts = np.frombuffer(offsets, "<u8").astype(np.int64)
        return np.frombuffer(ids, "<u4"), starts[1:] - starts[:-1]

    return encode


def gigatoken(definition: str) -> Engine:
    """Return the engine of gigatoken, which refuses split patterns it does not know."""
    awkward = importlib.import_module("awkward")
    tokenizer = importlib.import_module("gigatoken").Tokenizer.from_json(definition)

    def encode(texts: list[str]) -> Flat:
        rows = tokenizer.encode_batch(texts)
        return awkward.to_numpy(awkward.flatten(rows)), awkward.to_numpy(awkward.num(rows)).astype(np.int64)

    return encode


ENGINES: dict[str, Callable[[str], Engine]] = {"fastokens": fastokens, "gigatoken": gigatoken}


def batches(texts: Sequence[str], chars: int) -> list[list[str]]:
    """Return consecutive texts, at most `chars` characters at a time where a text is not longer by itself."""
    groups: list[list[str]] = []
    size = chars
    for text in texts:
        size += len(text)
        if size > chars or not groups:
            groups.append([])
            size = len(text)
        groups[-1].append(text)
    return groups


def difference(engine: Engine, truth: Engine, texts: list[str]) -> str:
    """Say what tells `engine` from `truth` on `texts`; nothing when they agree."""
    ids, counts = engine(texts)
    true_ids, true_counts = truth(texts)
    if np.array_equal(ids, true_ids) and np.array_equal(counts, true_counts):
        return ""
    for text in texts:
        if not np.array_equal(engine([text])[0], truth([text])[0]):
            return f"differs from tokenizers on {text[:40]!r}"
    return "differs from tokenizers on a batch of texts"


class Encoder:
    """A tokenizer file opened for text. `engine` names the library used, `note` says why others were passed over."""

    def __init__(self, path: str):
        self.library = "sentencepiece" if path.endswith(SUFFIX) else "tokenizers"
        specials = open_vocabulary(path).special_ids
        if self.library == "sentencepiece":
            self.truth, self.candidates = sentencepiece(path), []
        else:
            self.definition = text_definition(path)
            self.truth, self.candidates = reference(self.definition), list(ENGINES)
        self.sample = hostile(specials)
        produced = np.intersect1d(self.truth(self.sample)[0], list(specials.values()))
        if produced.size:
            names = [name for name, i in specials.items() if i in produced]
            raise DataError(f"{path}: text can spell special tokens {names}; use a tokenizer whose merges cannot")
        self.passed_over: list[str] = []
        self.next_engine()

    @property
    def note(self) -> str:
        """One line for the run's report: the engine, and why faster ones were not used."""
        return "; ".join([self.engine, *self.passed_over])

    def next_engine(self) -> None:
        """Take the first remaining engine that agrees with the reference on the hostile sample."""
        while self.candidates:
            name = self.candidates[0]
            why, encode = attempt(lambda name=name: ENGINES[name](self.definition))  # type: ignore[misc]
            why = why or self.compare(encode, self.sample)
            if not why:
                self.engine, self.flat = f"{name} {metadata.version(name)}", encode
                return
            self.pass_over(why)
        self.engine, self.flat = f"{self.library} {metadata.version(self.library)}", self.truth

    def pass_over(self, why: str) -> None:
        """Strike the engine in use off the list, and remember why."""
        self.passed_over.append(f"{self.candidates.pop(0)}: {why}")

    def compare(self, encode: Engine, texts: list[str]) -> str:
        """Say why `encode` is not to be trusted with `texts`; nothing when it agrees with the reference."""
        why, differs = attempt(lambda: difference(encode, self.truth, texts))
        return why or str(differs)

    def prove(self, texts: Sequence[str], chars: int) -> None:
        """Compare the engine with the reference on the first `chars` of `texts`; one that differs is passed over."""
        remaining, sample = chars, []
        for text in texts:
            sample.append(text[:remaining])
            remaining -= len(sample[-1])
            if remaining <= 0:
                break
        while sample and self.candidates and (why := self.compare(self.flat, sample)):
            self.pass_over(why)
            self.next_engine()

    def encode(self, texts: list[str]) -> Flat:
        """Return (ids of all texts in a row, number of ids of each text). No BOS; no text yields a special id.

        A batch that the engine fails on goes to the reference, and
        `note` says so. Raises DataError when that fails too, as it does on ten million blanks in a row.
        """
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        why, encoded = attempt(lambda: self.flat(texts))
        if why:
            self.passed_over.append(f"{self.engine} on one batch: {why}")
            why, encoded = attempt(lambda: self.truth(texts))
        if why:
            shown = max(texts, key=len)[:60]
            raise DataError(f"no engine can encode a batch of texts ({why}); the longest begins {shown!r}: drop it")
        ids, counts = encoded
        return ids, counts


def attempt(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return ("", result), or (what went wrong in one line, None). A panic in Rust arrives as a BaseException."""
    try:
        return "", call()
    except ImportError:
        return "not installed", None
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}", None


OPENED: dict[str, Encoder] = {}  # by sha256 of the file: warm workers meet the same tokenizer again


def open_encoder(tokenizer_path: str, check: Sequence[str] = ()) -> Encoder:
    """Return the encoder of a tokenizer's file, proven on hostile strings and on the beginning of `check`.

    Opened once a process. Raises DataError for a vocabulary that lets text spell a special token.
    """
    digest = sha256_file(tokenizer_path)
    chars = AGAIN_CHARS if digest in OPENED else CHECK_CHARS
    if digest not in OPENED:
        OPENED[digest] = Encoder(tokenizer_path)
    encoder = OPENED[digest]
    encoder.prove(check, chars)
    return encoder
