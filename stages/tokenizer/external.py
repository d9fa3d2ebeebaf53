"""A tokenizer that somebody else trained: a tokenizer.json, a folder that holds one, or a model of the hub.

It is taken byte for byte, once it is certain that every token of the shards can be accounted for: text must come back
as it was, every id must stand for a known number of bytes, and no text may spell a special token.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import DataError
from stages.paths import local_path
from stages.task import Artifact
from stages.tokenizer.encoder import attempt, hostile, open_encoder
from stages.tokenizer.spec import load_text_encoder
from train.tokenizer.pieces import SPACE, SUFFIX, PieceType, TokenizerError, read_model
from train.tokenizer.vocabulary import (
    Vocabulary,
    byte_alphabet,
    is_space_replacement,
    prepends,
    read_vocabulary,
    steps,
)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
# What separates documents, by the names tokenizers give it; the first that the file has is taken.
KNOWN_BOS = (
    "<|bos|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<bos>",
    "<s>",
    "[BOS]",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
)
KNOWN_PAD = ("<|pad|>", "<pad>", "<|padding|>", "[PAD]")
LOSSLESS = ("Split", "ByteLevel", "Metaspace", "Digits", "Punctuation", "UnicodeScripts")  # steps that only cut
MOST_NAMES = 100  # added tokens written in the texts of the check: Gemma has 6,000


def locate(source: str) -> Artifact:
    """Return the tokenizer.json that `source` names, with `source` as its name and its sha256 as digest.

    `source` is a file, a folder with a tokenizer.json, or `owner/name[@revision]` of the hub, whose commit is resolved
    here; with `/tokenizer.model` behind it, that file. Raises DataError when there is none.
    """
    file = Path(local_path(source))
    if file.is_dir():
        file = file / "tokenizer.json"
    if file.is_file():
        path, data = str(file.resolve()), file.read_bytes()
    elif HUB_ID.fullmatch(hub_parts(source)[0]):
        cached = hub_file(source)
        name, _, wanted = hub_parts(source)
        ending = "" if wanted == "tokenizer.json" else f"/{wanted}"
        path, data = f"hub:{name}@{Path(cached).parent.name}{ending}", Path(cached).read_bytes()
    else:
        raise DataError(
            f"tokenizer.from: {source} is no tokenizer.json, no folder with one, and no owner/name of the hub"
        )
    return Artifact(path, hashlib.sha256(data).hexdigest(), name=source, bytes=len(data))


def hub_parts(source: str) -> tuple[str, str, str]:
    """Return (owner/name, revision or "", file) of `owner/name[@revision][/file.model]`; else it is tokenizer.json."""
    file = "tokenizer.json"
    if source.endswith(SUFFIX):
        source, _, file = source.rpartition("/")
    name, _, revision = source.partition("@")
    return name, revision, file


def hub_file(source: str) -> str:
    """Return a local copy of a tokenizer of the hub, as `hub_parts` reads its name. Raises DataError."""
    from huggingface_hub import hf_hub_download

    name, revision, file = hub_parts(source)
    why, path = attempt(lambda: hf_hub_download(name, file, revision=revision or None))
    if why:
        raise DataError(
            f"tokenizer.from: {source} is not a file here and could not be had from the hub ({why}); "
            f"check the name, or download {file} and name the file"
        )
    return str(path)


def own_bos(file: Artifact) -> str | None:
    """Return the `bos_token` of the tokenizer_config.json beside what `locate` found, or None."""
    path = hub_config(file.path) if file.path.startswith("hub:") else Path(file.path).with_name("tokenizer_config.json")
    why, config = attempt(lambda: json.loads(path.read_text(encoding="utf-8")) if path else {})
    token = config.get("bos_token") if not why and isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def hub_config(address: str) -> Path | None:
    """Return a local copy of tokenizer_config.json beside what `hub:` names; None where there is none."""
    from huggingface_hub import hf_hub_download

    name, commit, _ = hub_parts(address.removeprefix("hub:"))
    why, path = attempt(lambda: hf_hub_download(name, "tokenizer_config.json", revision=commit or None))
    return None if why else Path(path)


def read_unchanged(artifact: Artifact) -> bytes:
    """Return the contents of what `locate` found. Raises DataError when they are not the same any more."""
    path = hub_file(artifact.path.removeprefix("hub:")) if artifact.path.startswith("hub:") else artifact.path
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != artifact.digest:
        raise DataError(f"tokenizer.from: {path} changed since the run was planned; run again")
    return data


def faults(definition: dict[str, Any]) -> list[str]:
    """Return why text could not be had back from ids, or bytes not be counted; one phrase each."""
    model, added = definition["model"], [token for token in definition["added_tokens"] if not token["special"]]
    if model.get("type", "BPE") != "BPE":
        return [f"its model is {model['type']}, not BPE"]
    cuts = steps(definition.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in cuts)
    reasons = byte_level_faults(definition) if byte_level else piece_faults(definition, cuts, [*map(name_of, added)])
    for step in cuts:
        if step["type"] not in LOSSLESS or step.get("behavior") == "Removed":
            reasons.append(f"its pre-tokenizer {step['type']} drops or changes characters")
        elif step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            reasons.append("add_prefix_space puts a blank in front of every text")
    if model.get("dropout"):
        reasons.append("its dropout makes ids random")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            reasons.append(f"{key} {model[key]!r} is not text")
    if eaters := [name_of(token) for token in added if token["lstrip"] or token["rstrip"]]:
        reasons.append(f"added tokens {eaters[:3]} swallow the blanks beside them")
    return reasons


def name_of(token: dict[str, Any]) -> str:
    """Return what an added token is called."""
    return str(token["content"])


def byte_level_faults(definition: dict[str, Any]) -> list[str]:
    """Return `faults` that a byte-level BPE alone can have."""
    reasons = [
        f"its normalizer {step['type']} changes text" for step in steps(definition.get("normalizer"), "normalizers")
    ]
    if (definition.get("decoder") or {}).get("type") != "ByteLevel":
        reasons.append("its decoder is not ByteLevel")
    missing = sum(character not in definition["model"]["vocab"] for character in byte_alphabet())
    return [*reasons, f"{missing} of the 256 bytes have no token"] if missing else reasons


def piece_faults(definition: dict[str, Any], cuts: list[dict[str, Any]], added: list[str]) -> list[str]:
    """Return `faults` that a BPE of characters alone can have, such as SentencePiece's; added: its tokens for text."""
    model, changes = definition["model"], steps(definition.get("normalizer"), "normalizers")
    front = [step for step in changes if step["type"] == "Prepend" and step["prepend"] == SPACE]
    reasons = [
        f"its normalizer {step['type']} changes text"
        for step in changes
        if step not in front and not is_space_replacement(step)
    ]
    metaspaces = [step for step in cuts if step["type"] == "Metaspace"]
    reasons += [f"it writes a space as {m['replacement']!r}" for m in metaspaces if m["replacement"] != SPACE]
    if added and (front or any(prepends(step) == "always" for step in metaspaces)):
        reasons.append(f"it puts a blank behind added tokens such as {added[:3]}, which no text has")
    if not model.get("byte_fallback"):
        return [*reasons, "it is not byte-level and has no byte_fallback, so that not every text has ids"]
    missing = sum(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256))
    if missing:
        reasons.append(f"{missing} of the 256 bytes have no token")
    if (metaspaces or any(is_space_replacement(step) for step in changes)) and SPACE not in model["vocab"]:
        reasons.append(f"it writes a space as {SPACE!r}, which is no token")
    return reasons


def check_accountable(path: str, source: str, texts: list[str]) -> None:
    """Raise DataError, naming what is wrong, for a tokenizer that cannot be accounted for."""
    try:
        vocabulary = read_vocabulary(path)
    except TokenizerError as error:
        raise DataError(f"tokenizer.from: {str(error).replace(path, source)}") from None
    definition = None if path.endswith(SUFFIX) else json.loads(Path(path).read_text(encoding="utf-8"))
    if reasons := faults(definition) if definition else model_faults(path):
        raise DataError(f"tokenizer.from: {source} cannot be used: {'; '.join(reasons)}; choose another tokenizer")
    names = [*vocabulary.special_ids]
    if definition:
        names += check_added(path, source, definition["added_tokens"])[:MOST_NAMES]
    strings = [*texts, *hostile(names)]
    ids, counts = open_encoder(path).truth(strings)
    bos = next(iter(vocabulary.special_ids.values()), None)  # one of them: texts begin behind it
    for text, part in zip(strings, np.split(ids, np.cumsum(counts)[:-1]), strict=True):
        if b"".join(vocabulary.spell(part.tolist(), bos)) != vocabulary.as_stored(text).encode():
            raise DataError(f"tokenizer.from: {source} does not give text back as it was, such as {text[:60]!r}")


def check_added(path: str, source: str, added: list[dict[str, Any]]) -> list[str]:
    """Return the names of added tokens that stand for text. Raises DataError for ids that are not the library's."""
    why, encoder = attempt(lambda: load_text_encoder(path))
    if why:
        raise DataError(f"tokenizer.from: the tokenizers library cannot read {source}: {why}")
    moved = [name_of(token) for token in added if encoder.token_to_id(token["content"]) != token["id"]]
    if moved:
        raise DataError(f"tokenizer.from: {source} states other ids for {moved[:3]} than the tokenizers library gives")
    return [name_of(token) for token in added if not token["special"]]


def model_faults(path: str) -> list[str]:
    """Return `faults` of a SentencePiece model."""
    model = read_model(path)
    reasons = ["its normalizer has rules"] if model.rewrites else []
    if model.drops_blanks:
        reasons.append("remove_extra_whitespaces drops blanks")
    if sum(piece.type == PieceType.BYTE for piece in model.pieces) < 256:
        reasons.append("it has no byte_fallback, so that not every text has ids")
    return reasons


def limited(vocabulary: Vocabulary, source: str, size: int | None) -> Vocabulary:
    """Return the first `size` ids of what `source` names, all of them without one.

    Raises DataError where texts need the others, or there are not so many.
    """
    try:
        return vocabulary.limited(vocabulary.size if size is None else size)
    except TokenizerError as error:
        raise DataError(f"{source}: {error}; write another vocab_size, or leave it out") from None


def boundary_ids(
    vocabulary: Vocabulary, source: str, bos: str | None, own: str | None = None
) -> tuple[int, int | None]:
    """Return (BOS id, pad id or None): `bos` by name, else its `own`, else the first known name.

    Raises DataError if none is there.
    """
    specials = vocabulary.special_ids
    names = [name for name in ([bos] if bos else [own, *KNOWN_BOS]) if name in specials]
    if not names:
        have = ", ".join(specials) or "none"
        raise DataError(
            f"tokenizer.{'bos' if bos else 'from'}: no special token of {source} is "
            f"{repr(bos) if bos else 'known to separate documents'}; name one with tokenizer.bos (it has: {have})"
        )
    pad_id = next((specials[name] for name in KNOWN_PAD if name in specials), None)
    return specials[names[0]], pad_id
