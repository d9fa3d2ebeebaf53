"""The units that train a byte-level BPE, and take a tokenizer as it is.

Vocabulary and merges are those of Hugging Face's trainer, proven in the tests. Other fast trainers break ties between
pairs of equal frequency in another order (rustbpe and ffbpe) or know one split only, so that their ids differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from stages.errors import DataError
from stages.task import Task
from stages.tokenizer import external
from stages.tokenizer.encoder import hostile
from stages.tokenizer.merges import find_merges
from stages.tokenizer.outputs import finish
from stages.tokenizer.sample import sampled_texts
from stages.tokenizer.spec import BOS, PAD, SPECIALS, load_text_encoder, open_vocabulary
from stages.tokenizer.split import splitter
from stages.tokenizer.words import LongWords, count_texts, read_words
from train.tokenizer.pieces import SUFFIX
from train.tokenizer.vocabulary import byte_alphabet

if TYPE_CHECKING:
    from stages.kernels.pretokens import WordCounts

CHECKED = 200  # documents of the sample whose round trip is asserted
CHECKED_WORDS = 5000


def work(task: Task) -> None:
    """Train on counts of words. Inputs: `words` of units. Params: vocab_size, split, digits, reserved (names), cut.

    `cut` is a LongWords. Outputs: `tokenizer` (tokenizer.json) and `origin` (see `finish`). Raises DataError when the
    words do not support the vocabulary.
    """
    params = task.params
    specials = [*SPECIALS, *params["reserved"]]
    words = read_words(task, task.inputs)
    tokenizer = train_on(words, params["vocab_size"], params["split"], params["digits"], specials)
    path = task.output("tokenizer.json")
    Path(path).write_text(canonical(tokenizer), encoding="utf-8")
    check_trained(path, some_words(words), params["vocab_size"], specials)
    origin: dict[str, Any] = {
        "trainer": f"tokenizers {metadata.version('tokenizers')} BpeTrainer, its merges computed by Shardmill",
        "split": params["split"],
        "digits": params["digits"],
        "bos_id": specials.index(BOS),
        "pad_id": specials.index(PAD),
    }
    if params["cut"][0]:
        origin["cut_words"] = LongWords(*params["cut"])._asdict()
    task.count("words", len(words))
    finish(task, path, origin, params["vocab_size"])


def adopt(task: Task) -> None:
    """Take a tokenizer as it is. Inputs: its file, parts. Params: vocab_size, bos, own_bos, taken (of each part).

    Outputs as of `work`. Raises DataError for one whose tokens cannot be accounted for.
    """
    params, (file, *parts) = task.params, task.inputs
    source = file.name
    path = task.output(f"tokenizer{SUFFIX if source.endswith(SUFFIX) else '.json'}")
    Path(path).write_bytes(external.read_unchanged(file))
    external.check_accountable(path, source, list(islice(sampled_texts(task, parts, params["taken"]), CHECKED)))
    vocabulary = external.limited(open_vocabulary(path), source, params["vocab_size"])
    bos_id, pad_id = external.boundary_ids(vocabulary, source, params["bos"], params.get("own_bos"))
    if vocabulary.front == "missing blank":
        task.count("front_blank_lost")
    finish(task, path, {"sha256": file.digest, "bos_id": bos_id, "pad_id": pad_id}, vocabulary.size)


def train(
    texts: Sequence[str], vocab_size: int, split: str, digits: int | None = None, specials: Sequence[str] = SPECIALS
) -> tuple[Tokenizer, LongWords]:
    """Train a tokenizer on texts as `train_on` does. Returns it, and the words that were cut for counting."""
    words = count_texts(texts, split, digits)
    return train_on(words, vocab_size, split, digits, specials), LongWords(*words.long.tolist())


def train_on(words: WordCounts, vocab_size: int, split: str, digits: int | None, specials: Sequence[str]) -> Tokenizer:
    """Train a tokenizer with exactly `vocab_size` ids, special tokens first, then the 256 bytes, then merges.

    Raises DataError when the words run out of pairs to merge.
    """
    least = len(specials) + 256
    if vocab_size < least:
        raise DataError(f"tokenizer.vocab_size must be at least {least} ({len(specials)} special tokens, 256 bytes)")
    characters = dict(sorted(byte_alphabet().items()))  # ids of bytes are in the order of their characters
    merges = find_merges(words, vocab_size, [name.encode() for name in specials], list(characters.values()))
    if len(merges.vocabulary) < vocab_size:
        raise DataError(
            f"the text supports only {len(merges.vocabulary):,} ids; lower tokenizer.vocab_size (now "
            f"{vocab_size:,}) to that, or add text"
        )
    character_of = {byte: character for character, byte in characters.items()}
    names = ["".join(map(character_of.__getitem__, text)) for text in merges.vocabulary]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(names[left], names[right]) for left, right in merges.pairs]))
    tokenizer.pre_tokenizer = splitter(split, digits)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def canonical(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as JSON, in one fixed layout."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=2) + "\n"


def some_words(words: WordCounts) -> list[str]:
    """Return the first words, without what is left of a character that is cut."""
    ends = words.starts[: min(len(words), CHECKED_WORDS) + 1].tolist()
    return [words.text[start:end].tobytes().decode(errors="ignore") for start, end in pairwise(ends)]


def check_trained(path: str, texts: list[str], vocab_size: int, specials: Sequence[str]) -> None:
    """Assert what every later stage relies on; a failure is a defect of this program, so AssertionError."""
    vocabulary = open_vocabulary(path)
    assert vocabulary.special_ids == {name: i for i, name in enumerate(specials)}, "special tokens do not come first"
    assert vocabulary.size == vocab_size
    encoder = load_text_encoder(path)
    strings = [*texts, *hostile(specials)]
    for text, encoding in zip(strings, encoder.encode_batch(strings, add_special_tokens=False), strict=True):
        assert encoder.decode(encoding.ids, skip_special_tokens=False) == text, f"no round trip: {text[:80]!r}"
        assert min(encoding.ids, default=len(specials)) >= len(specials), f"special id from text: {text[:80]!r}"
