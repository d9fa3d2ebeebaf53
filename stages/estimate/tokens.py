"""How many tokens a text will have, before the recipe's tokenizer is built: for `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.errors import DataError
from stages.estimate.deadline import call_all
from stages.estimate.sample import Floats, Sample, estimate
from stages.stage import BuildContext
from stages.tokenizer import external, sentencepiece_work
from stages.tokenizer import work as tokenizer_work
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.encoder import open_encoder
from stages.tokenizer.spec import SPECIALS, open_vocabulary
from stages.tokenizer.words import LongWords, long_words_line
from train.tokenizer.pieces import SUFFIX

FETCHING = 30.0  # seconds that a tokenizer of the hub may take
BYTES_PER_TOKEN = 4.0  # where a sample cannot say: an 8192 BPE on English text
ASSUMED_ERROR = 0.25  # of that
TRAINING_BYTES_PER_ID = 50  # of text, below which a tokenizer trained on it says little
MAX_TRAINING_BYTES = 4 << 20


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each document of each sample, BOS included, with the relative error of the tokenizer itself."""

    by_source: dict[str, Floats]
    error: float
    how: str  # they were counted, for people
    impossible: str = ""  # why the recipe's tokenizer cannot be trained on this text, where all of it was read


def count_tokens(context: BuildContext, samples: dict[str, Sample], folder: Path) -> TokenCounts:
    """Count by the recipe's tokenizer where there is one, else by one trained on the samples, else by bytes.

    `folder` is scratch space.
    """
    texts = {name: sample.texts for name, sample in samples.items()}
    config = context.recipe.tokenizer
    impossible = ""
    read_all = len(samples) == len(context.recipe.sources) and all(sample.whole for sample in samples.values())
    try:
        path, how = known_tokenizer(context, folder)
        if path:
            return TokenCounts(encode_all(path, texts), 0.0, how)
        chosen = training_texts(samples)
        total = sum(len(text.encode()) for text in chosen)
        if config.vocab_size is None or (total < TRAINING_BYTES_PER_ID * config.vocab_size and not read_all):
            raise DataError(f"{total / 1e6:.2f} MB of sample are too little to train {config.vocab_size:,} ids on")
        try:
            whole, long_words = train(chosen, config, folder / "all.json")
        except DataError as error:
            impossible = str(error) if read_all else ""
            raise
        half, _ = train(chosen[::2], config, folder / "half.json")
    except DataError as error:
        counts = {name: sample.text_bytes / BYTES_PER_TOKEN + 1 for name, sample in samples.items()}
        return TokenCounts(counts, ASSUMED_ERROR, f"{BYTES_PER_TOKEN:g} bytes a token assumed: {error}", impossible)
    # A tokenizer compresses the text that it was trained on better than other text; the true one lies between.
    unseen = {"": chosen[1::2]}
    most, least = (float(encode_all(file, unseen)[""].sum()) for file in (half, whole))
    worse = max(1.0, most / least) if least else 1.0
    doubt = (worse - 1) / (worse + 1) if least else ASSUMED_ERROR  # of one document there is no half to hold it against
    counts = {name: n * (1 + worse) / 2 for name, n in encode_all(whole, texts).items()}
    how = f"tokens counted with a tokenizer trained on {total / 1e6:.1f} MB of the sample"
    if long_words.number:
        how += f"; {long_words_line(*long_words)}"
    return TokenCounts(counts, doubt, how)


def known_tokenizer(context: BuildContext, folder: Path) -> tuple[Path | None, str]:
    """Return the tokenizer that the recipe takes as it is, or that its last build made, and how to say so.

    Raises DataError when the recipe's cannot be read.
    """
    config = context.recipe.tokenizer
    source = config.source
    if source is not None:
        path = folder / f"own{SUFFIX if source.endswith(SUFFIX) else '.json'}"
        path.write_bytes(
            call_all({"": lambda: external.read_unchanged(external.locate(source))}, FETCHING)[""].result()
        )
        return path, f"tokens counted with {source}"
    ending = SUFFIX if config.kind == "sentencepiece" else ".json"
    built = context.published_file("tokenizer", f"tokenizer{ending}")
    if built is not None and open_vocabulary(built).size == config.vocab_size:
        return Path(built), "tokens counted with the tokenizer of the last build"
    return None, ""


def training_texts(samples: dict[str, Sample]) -> list[str]:
    """Return texts to train on, of each source by its share of the kept text, as the stage takes them."""
    kept = {name: estimate(sample, sample.text_bytes).kept_text for name, sample in samples.items()}
    have = {name: float((sample.text_bytes * sample.kept).sum()) for name, sample in samples.items()}
    scale = min([MAX_TRAINING_BYTES / max(1.0, sum(kept.values())), *(have[n] / kept[n] for n in kept if kept[n])])
    texts = []
    for name, sample in samples.items():
        left = kept[name] * scale
        for i in np.flatnonzero(sample.kept):
            if left <= 0:
                break
            texts.append(sample.texts[i])
            left -= float(sample.text_bytes[i])
    return texts


def train(texts: list[str], config: TokenizerConfig, path: Path) -> tuple[Path, LongWords]:
    """Train a tokenizer on `texts` as the recipe says, into the file `path`. Returns the file, and words that were cut.

    SentencePiece's is another file, and cuts none. Raises DataError for too little text.
    """
    if config.kind == "sentencepiece":
        path = path.with_suffix(SUFFIX)
        reserved = config.reserved_names()
        path.write_bytes(sentencepiece_work.train(texts, config.vocab_size or 0, config.model_type, reserved))
        return path, LongWords(0, 0)
    specials = [*SPECIALS, *config.reserved_names()]
    tokenizer, long_words = tokenizer_work.train(texts, config.vocab_size or 0, config.split, config.digits, specials)
    path.write_text(tokenizer_work.canonical(tokenizer), encoding="utf-8")
    return path, long_words


def encode_all(path: Path, texts: dict[str, list[str]]) -> dict[str, Floats]:
    """Return the number of tokens of each text, BOS included, under the keys of `texts`."""
    encoder = open_encoder(str(path))
    return {name: encoder.encode(some)[1].astype(np.float64) + 1 for name, some in texts.items()}
