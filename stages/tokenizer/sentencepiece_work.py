"""The unit that trains a SentencePiece model, with the package of that name.

The model is what the scripts of the parameter-golf competition read: ids 0 to 3 are padding, BOS, EOS and unknown, then
come those reserved, the 256 bytes, and the pieces; digits stand alone, and no piece has a space but at its front. Other
than theirs it changes no text: the normalizer is `identity`, blanks are kept, and none is put in front. So tokens give
every text back, but for U+2581, which is how pieces write a space.
"""

from __future__ import annotations

import importlib
from io import BytesIO
from pathlib import Path
from typing import Any

from stages.errors import DataError
from stages.task import Task
from stages.tokenizer.external import check_accountable
from stages.tokenizer.outputs import finish
from stages.tokenizer.sample import ordered_texts
from stages.tokenizer.spec import open_vocabulary

SPECIAL = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}  # PIECE_SPECIALS
CHECKED = 200  # documents of the sample whose round trip is asserted
COVERAGE = 0.999  # of the characters of the sample that are pieces; the others are spelled in bytes


def work(task: Task) -> None:
    """Train on the sample. Inputs: the parts. Params: vocab_size, model_type, reserved (names), package, sources.

    `sources` has of each the documents of its parts that are in the sample. All texts of the sample are in memory.
    Outputs: `tokenizer` (tokenizer.model) and `origin`. Raises DataError when the text does not support the vocabulary,
    or the package is not installed.
    """
    params, parts = task.params, iter(task.inputs)
    texts = [text for taken in params["sources"] for text in ordered_texts(task, [next(parts) for _ in taken], taken)]
    path = task.output("tokenizer.model")
    Path(path).write_bytes(train(texts, params["vocab_size"], params["model_type"], params["reserved"]))
    check_accountable(path, "the model that was trained", texts[:CHECKED])
    vocabulary = open_vocabulary(path)
    assert vocabulary.size == params["vocab_size"]
    assert [*vocabulary.special_ids.values()] == [*range(len(SPECIAL) + len(params["reserved"]))]
    trainer = f"sentencepiece {params['package']}, {params['model_type']}"
    origin = {"trainer": trainer, "bos_id": SPECIAL["bos_id"], "pad_id": SPECIAL["pad_id"]}
    finish(task, path, origin, vocabulary.size)


def train(texts: list[str], vocab_size: int, model_type: str, reserved: list[str]) -> bytes:
    """Return a model with exactly `vocab_size` ids. The same texts give the same bytes.

    Raises DataError where the text has too few pieces.
    """
    model = BytesIO()
    settings: dict[str, Any] = {
        **SPECIAL,
        "sentence_iterator": iter(texts),
        "model_writer": model,
        "model_type": model_type,
        "vocab_size": vocab_size,
        "character_coverage": COVERAGE,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "control_symbols": reserved,
        "max_sentence_length": 1 << 30,  # documents that are longer would be left out
        "num_threads": 1,  # more add the sums of unigram in another order
        "minloglevel": 2,
    }
    try:
        importlib.import_module("sentencepiece").SentencePieceTrainer.train(**settings)
    except RuntimeError as error:
        why = str(error).rpartition("] ")[2].strip().rstrip(".")  # behind the place in its source
        raise DataError(
            f"a SentencePiece model of {vocab_size:,} ids cannot be trained on this text: {why}; change "
            "tokenizer.vocab_size, or add text"
        ) from None
    return model.getvalue()
