"""Small tokenizer.json files of the kinds that the hub has beside byte-level BPE, trained on text with rare bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as Gemma's
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\u2581"
CORPUS = [
    "The small model reads every token once,  and then again.\n\n    It is a test.",
    "यह एक छोटा मॉडल है। हिन्दी में लिखा हुआ पाठ, फिर से पढ़ा गया।",
    "naïve café 🙂 👩\u200d🔬\t tabs\r\nand lines\n\n\n the the the model reads 12345",
]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BACK = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
FALLBACK = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    """A pre-tokenizer, as files have it."""
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def sequence(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """Several steps as one."""
    return {"type": "Sequence", kind: list(steps)}


# Normalizer, pre-tokenizer, decoder
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "gemma": (
        SPACES,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        sequence("decoders", *FALLBACK),
    ),
    "llama": (
        sequence("normalizers", {"type": "Prepend", "prepend": SPACE}, SPACES),
        None,
        sequence("decoders", *FALLBACK, STRIP),
    ),
    "metaspace": (None, metaspace("always", split=True), sequence("decoders", *FALLBACK, STRIP)),
    "metaspace, first": (None, metaspace("first"), sequence("decoders", *FALLBACK, STRIP)),
    "metaspace, never": (None, metaspace("never"), sequence("decoders", *FALLBACK)),
    "characters": (None, None, sequence("decoders", {"type": "ByteFallback"}, {"type": "Fuse"})),
}


def added(name: str, number: int, special: bool = True, **flags: bool) -> dict[str, Any]:
    """An added token, as files have it."""
    same = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": name, "special": special, **same, **flags}


def definition(kind: str, vocab_size: int = 420) -> dict[str, Any]:
    """The JSON of a tokenizer of one of KINDS. Its BOS is <bos>, id 2; Gemma's has tokens added for text too."""
    normalizer, pre_tokenizer, decoder = KINDS[kind]
    tokenizer = Tokenizer(models.BPE())
    if kind != "characters":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    blanks = [SPACE * 2, "\n\n"] if kind == "gemma" else []
    names = [*SPECIAL, *BYTES, SPACE if kind != "characters" else " ", *blanks]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=names, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    vocab = value["model"]["vocab"]
    value["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    value["added_tokens"] = [added(name, number) for number, name in enumerate(SPECIAL)]
    value["added_tokens"] += [added(name, vocab[name], special=False) for name in blanks]
    return value | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a tokenizer.json of one of KINDS into `folder`."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition(kind) | changes, ensure_ascii=False), encoding="utf-8")
    return path
