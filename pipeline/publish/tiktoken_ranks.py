"""A tokenizer as tiktoken has it: the bytes of each token with its rank, a pattern that cuts text, special tokens.

tiktoken merges the pair whose bytes together have the lowest rank, whichever pair it is; a tokenizer.json merges the
pairs that it lists, in their order. The two agree where ranks rise in the order of merges, and where each token, made
of its bytes by the ranks below its own, ends as the very pair that is listed for it (`listed_pair`). That is checked
for every token. A rank is the id, so ids are ours.
"""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from stages.tokenizer.split import GPT2_SPLIT
from train.data.manifest import Manifest
from train.tokenizer.pieces import SUFFIX
from train.tokenizer.vocabulary import byte_alphabet, steps

RANKS, FACTS = "tokenizer.tiktoken", "tiktoken.json"
CODE = '''\
"""tiktoken's Encoding of the tokenizer in this folder: `from encoding import encoding`."""

import base64
import json
from pathlib import Path

import tiktoken

HERE = Path(__file__).parent
facts = json.loads((HERE / "tiktoken.json").read_text("utf-8"))
lines = (HERE / "tokenizer.tiktoken").read_text("ascii").splitlines()
encoding = tiktoken.Encoding(
    name=facts["name"],
    pat_str=facts["pat_str"],
    mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)},
    special_tokens=facts["special_tokens"],
)
'''


def write_tiktoken(manifest: Manifest, out: Path) -> None:
    """Write tokenizer.tiktoken, tiktoken.json and encoding.py. Raises UserError for a tokenizer that has no ranks."""
    path = manifest.file(manifest.tokenizer.path)
    if path.suffix == SUFFIX:
        raise UserError(f"{path}: tiktoken has byte-level BPE alone, and this is a model of SentencePiece")
    definition = json.loads(path.read_text(encoding="utf-8"))
    ranks = ranks_of(definition, str(path))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    facts = {
        "name": manifest.name,
        "pat_str": pattern_of(definition, str(path)),
        "special_tokens": manifest.tokenizer.special_ids,
        "bos_id": manifest.tokenizer.bos_id,
        "tokenizer_sha256": manifest.tokenizer.sha256,
    }
    (out / RANKS).write_text("".join(lines), encoding="ascii")
    (out / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "encoding.py").write_text(CODE, encoding="utf-8")


def pattern_of(definition: dict[str, Any], where: str) -> str:
    """Return the pattern of a byte-level tokenizer.json. Raises UserError for another way of cutting text."""
    cuts = steps(definition.get("pre_tokenizer"), "pretokenizers")
    kinds = [cut["type"] for cut in cuts]
    if definition.get("normalizer") or kinds[-1:] != ["ByteLevel"] or cuts[-1].get("add_prefix_space"):
        raise UserError(f"{where}: it changes text, or is not byte-level, and tiktoken has no form of that")
    if kinds == ["ByteLevel"] and cuts[0].get("use_regex", True):
        return GPT2_SPLIT
    is_isolated = cuts[0].get("behavior") == "Isolated" and not cuts[0].get("invert")
    pattern = cuts[0].get("pattern", {}).get("Regex")
    if kinds != ["Split", "ByteLevel"] or not is_isolated or pattern is None or cuts[1].get("use_regex", True):
        raise UserError(f"{where}: it cuts text by {' and '.join(kinds)}, and tiktoken by one pattern")
    return str(pattern)


def ranks_of(definition: dict[str, Any], where: str) -> dict[bytes, int]:
    """Return bytes -> rank, the id, in the order of ids. Raises UserError where tiktoken's ids would differ."""
    model, alphabet = definition["model"], byte_alphabet()
    special = {token["id"] for token in definition["added_tokens"] if token["special"]}
    plain = [token["content"] for token in definition["added_tokens"] if not token["special"]]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model["type"] != "BPE" or odd or plain:
        what = f"adds the token {plain[0]!r} for text" if plain else ", ".join(odd) or f"is {model['type']}"
        raise UserError(f"{where}: it {what}, and tiktoken has no form of that")
    named = sorted((i, token) for token, i in model["vocab"].items() if i not in special)
    if foreign := [token for _, token in named if not set(token) <= set(alphabet)]:
        raise UserError(f"{where}: its token {foreign[0]!r} is of characters that are no bytes")
    ranks = {bytes(alphabet[character] for character in token): i for i, token in named}
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{where}: it has no token for the byte {missing[0]}, and tiktoken needs all 256")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    listed = {left + right: (left, right) for left, right in merges}
    if len(listed) != len(merges) or len(listed) != len(ranks) - 256:
        raise UserError(f"{where}: tokens without a merge, or with two; tiktoken has one for each")
    last = -1
    for token, (left, right) in listed.items():
        whole = bytes(alphabet[character] for character in token)
        pair = tuple(bytes(alphabet[character] for character in half) for half in (left, right))
        if ranks[whole] < last or listed_pair(whole, ranks) != pair:
            raise UserError(f"{where}: the merge of {left!r} and {right!r} is not where tiktoken would make it")
        last = ranks[whole]
    return ranks


def listed_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """Return what the bytes of a token become by merges of ranks below its own; a pair, where its merge is in order."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [ranks.get(left + right, ranks[token]) for left, right in itertools.pairwise(parts)]
        lowest = min(pairs, default=ranks[token])
        if lowest >= ranks[token]:
            return tuple(parts)
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
