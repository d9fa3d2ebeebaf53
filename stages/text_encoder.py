"""Reading a tokenizer file: special ids, the length of every token, and an encoder for document text.

Small and apart from training, so that a change in how a tokenizer is trained does not re-tokenise a corpus
whose tokenizer came out the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

BOS, PAD = "<|bos|>", "<|pad|>"
# Ids 0, 1, 2, ... in this order. The reserved ones are for chat formats; no stage produces them.
SPECIALS = (
    BOS,
    PAD,
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|end|>",
    "<|reserved_0|>",
)


def load_text_encoder(path: str) -> Tokenizer:
    """The tokenizer at `path` for document text: no text it is given produces a special id.

    HF tokenizers turn a literal `<|bos|>` in a document into the real id. Without added tokens there is
    nothing to look for, and the model's merges cannot reach a special id (checked after training).
    """
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    definition["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(definition))


def special_ids(path: str) -> dict[str, int]:
    """Id of each special token, in the order of ids."""
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    found = {t["content"]: t["id"] for t in definition["added_tokens"] if t["special"]}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def token_bytes(path: str) -> list[int]:
    """Bytes of text that each id stands for; 0 for special tokens. Index is the id."""
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    special = {t["id"] for t in definition["added_tokens"]}
    by_id = sorted(definition["model"]["vocab"].items(), key=lambda item: item[1])
    # The byte-level alphabet writes each byte as one character.
    return [0 if i in special else len(token) for token, i in by_id]
