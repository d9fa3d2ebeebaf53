"""The unit that trains a byte-level BPE, and the one that takes a tokenizer as it is.

The trainer is Hugging Face's, whose merges are the reference. Faster trainers break ties between pairs of equal
frequency in another order (rustbpe and ffbpe) or know one split only, so their ids differ, and this runs once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.errors import DataError
from stages.task import Task
from stages.tokenizer import external
from stages.tokenizer.encoder import attempt, hostile
from stages.tokenizer.long_words import LongWords, cut_long_words, find_long_words
from stages.tokenizer.report import write_report
from stages.tokenizer.sample import Sample, draw_sample, sampled_texts
from stages.tokenizer.spec import BOS, PAD, SPECIALS, load_text_encoder, open_vocabulary
from train.tokenizer.pieces import SUFFIX
from train.tokenizer.vocabulary import Vocabulary

# Llama 3's spelling of the GPT-4 split, and GPT-2's: every fast tokenizer knows them.
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As GPT-4's, but a combining mark is part of a word (Qwen 3.5 has it so).
MARKS_SPLIT = GPT4_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHECKED = 200  # documents of the sample whose round trip is asserted


def work(task: Task) -> None:
    """Train on curated parts. Params: vocab_size, split, digits, reserved (names), sample (bytes), sources.

    Outputs: `tokenizer` (tokenizer.json), `report`, `tokenizer_config` and `special_tokens_map` (JSON) and `sample`
    (which documents). Raises DataError when the text does not support the vocabulary.
    """
    params = task.params
    chosen = draw_sample(task, task.inputs)
    texts = sampled_texts(chosen)
    specials = [*SPECIALS, *params["reserved"]]
    tokenizer, long_words = train(texts, params["vocab_size"], params["split"], params["digits"], specials)
    path = task.output("tokenizer.json")
    Path(path).write_text(canonical(tokenizer), encoding="utf-8")
    check_trained(path, texts, params["vocab_size"], specials)
    origin = {
        "trainer": f"tokenizers {metadata.version('tokenizers')} BpeTrainer",
        "split": params["split"],
        "digits": params["digits"],
        "bos_id": specials.index(BOS),
        "pad_id": specials.index(PAD),
    }
    if long_words.number:
        origin["cut_words"] = long_words._asdict()
        task.count("cut_words", long_words.number)
        task.count("longest_word", long_words.longest)
    finish(task, path, chosen, origin, open_vocabulary(path))


def adopt(task: Task) -> None:
    """Take a tokenizer as it is. Inputs: its file, curated parts. Params: vocab_size, bos, sample, sources.

    Outputs as of `work`. Raises DataError for one whose tokens cannot be accounted for.
    """
    params, (file, *parts) = task.params, task.inputs
    source = file.name
    path = task.output(f"tokenizer{SUFFIX if source.endswith(SUFFIX) else '.json'}")
    Path(path).write_bytes(external.read_unchanged(file))
    chosen = draw_sample(task, parts)
    external.check_accountable(path, source, sampled_texts(chosen)[:CHECKED])
    vocabulary = external.limited(open_vocabulary(path), source, params["vocab_size"])
    bos_id, pad_id = external.boundary_ids(vocabulary, source, params["bos"], params.get("own_bos"))
    if vocabulary.front == "missing blank":
        task.count("front_blank_lost")
    finish(task, path, chosen, {"sha256": file.digest, "bos_id": bos_id, "pad_id": pad_id}, vocabulary)


def finish(task: Task, path: str, chosen: Sample, origin: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Register the tokenizer, and describe it. Its meta says which ids are BOS and pad (BOS where it has none)."""
    bos_id, pad_id = origin["bos_id"], origin["pad_id"]
    meta = {"bos_id": bos_id, "pad_id": bos_id if pad_id is None else pad_id, "vocab_size": vocabulary.size}
    task.add("tokenizer", path, **meta)
    write_report(path, chosen, origin, vocabulary, task)


def splitter(split: str, digits: int | None) -> pre_tokenizers.PreTokenizer:
    """Return what cuts text before merging.

    `digits`: the most digits in a token; by default 3 of gpt4 and gpt4_marks, any number of gpt2.
    gpt4 with 3 or 1 digits (then Qwen's spelling) and gpt2 as it is are spelled as the fast engines know them. Other
    splits take fastokens about three times longer, through PCRE2, whose `\\s` has U+180E in it as nobody else's has:
    so they are spelled with the property.
    """
    if split == "gpt2" and digits is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    numbers = {None: "{1,3}", 1: ""}.get(digits, f"{{1,{digits}}}")
    pattern = (MARKS_SPLIT if split == "gpt4_marks" else GPT4_SPLIT).replace("{1,3}", numbers)
    if split == "gpt2":
        pattern = GPT2_SPLIT.replace(r"\p{N}+", r"\p{N}" + numbers)
    if split != "gpt4" or digits not in (None, 1, 3):
        pattern = pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(
    texts: list[str], vocab_size: int, split: str, digits: int | None = None, specials: Sequence[str] = SPECIALS
) -> tuple[Tokenizer, LongWords]:
    """Train a tokenizer with exactly `vocab_size` ids, special tokens first, then the 256 bytes, then merges.

    Returns it, and the words longer than LONGEST_WORD, which are cut for counting. Raises DataError when the text runs
    out of pairs to merge.
    """
    least = len(specials) + 256
    if vocab_size < least:
        raise DataError(f"tokenizer.vocab_size must be at least {least} ({len(specials)} special tokens, 256 bytes)")
    tokenizer = Tokenizer(models.BPE())
    whole_words = splitter(split, digits)
    long_words = find_long_words(texts, whole_words)
    tokenizer.pre_tokenizer = cut_long_words(whole_words) if long_words.number else whole_words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    why, _ = attempt(lambda: tokenizer.train_from_iterator(texts, trainer))
    if why:  # a panic, as on ten million blanks in a row
        raise DataError(f"the tokenizer cannot be trained on this text: {why}; drop such documents with a rule")
    tokenizer.pre_tokenizer = whole_words
    got = tokenizer.get_vocab_size()
    if got != vocab_size:
        raise DataError(
            f"the text supports only {got:,} ids; lower tokenizer.vocab_size (now {vocab_size:,}) to that, or add text"
        )
    return tokenizer, long_words


def canonical(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as JSON, in one fixed layout."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=2) + "\n"


def check_trained(path: str, texts: list[str], vocab_size: int, specials: Sequence[str]) -> None:
    """Assert what every later stage relies on; a failure is a defect of this program, so AssertionError."""
    vocabulary = open_vocabulary(path)
    assert vocabulary.special_ids == {name: i for i, name in enumerate(specials)}, "special tokens do not come first"
    assert vocabulary.size == vocab_size
    encoder = load_text_encoder(path)
    strings = [*texts[:CHECKED], *hostile(specials)]
    for text, encoding in zip(strings, encoder.encode_batch(strings, add_special_tokens=False), strict=True):
        assert encoder.decode(encoding.ids, skip_special_tokens=False) == text, f"no round trip: {text[:80]!r}"
        assert min(encoding.ids, default=len(specials)) >= len(specials), f"special id from text: {text[:80]!r}"
