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

from stages.errors import DataError
from stages.paths import local_path
from stages.task import Artifact
from stages.tokenizer.encoder import attempt, hostile, sentencepiece
from stages.tokenizer.pieces import SUFFIX, PieceType, read_pieces, text_changes
from stages.tokenizer.spec import as_stored, byte_alphabet, load_text_encoder, special_ids, token_texts

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
LOSSLESS = ("Split", "ByteLevel", "Digits", "Punctuation", "UnicodeScripts")  # steps that only cut


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


def steps(component: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer; `inside` is where a sequence keeps its own."""
    if not component:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for nested in component[inside] for step in steps(nested, inside)]


def faults(definition: dict[str, Any]) -> list[str]:
    """Return why text could not be had back from ids, or bytes not be counted; one phrase each."""
    model = definition["model"]
    if model.get("type", "BPE") != "BPE":
        return [f"its model is {model['type']}, not byte-level BPE"]
    cuts = steps(definition.get("pre_tokenizer"), "pretokenizers")
    if not any(step["type"] == "ByteLevel" for step in cuts):
        kinds = ", ".join(step["type"] for step in cuts) or "none"
        return [f"it is not byte-level (pre-tokenizer: {kinds}), so that bytes cannot be counted by token"]
    reasons = [
        f"its normalizer {step['type']} changes text" for step in steps(definition.get("normalizer"), "normalizers")
    ]
    for step in cuts:
        if step["type"] not in LOSSLESS or step.get("behavior") == "Removed":
            reasons.append(f"its pre-tokenizer {step['type']} drops or changes characters")
        elif step.get("add_prefix_space"):
            reasons.append("add_prefix_space puts a blank in front of every text")
    if (definition.get("decoder") or {}).get("type") != "ByteLevel":
        reasons.append("its decoder is not ByteLevel")
    missing = sum(c not in model["vocab"] for c in byte_alphabet())
    if missing:
        reasons.append(f"{missing} of the 256 bytes have no token")
    if model.get("dropout"):
        reasons.append("its dropout makes ids random")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            reasons.append(f"{key} {model[key]!r} is not text")
    eaters = [t["content"] for t in definition["added_tokens"] if not t["special"] and (t["lstrip"] or t["rstrip"])]
    if eaters:
        reasons.append(f"added tokens {eaters[:3]} swallow the blanks beside them")
    return reasons


def check_accountable(path: str, source: str, texts: list[str]) -> None:
    """Raise DataError, naming what is wrong, for a tokenizer that cannot be accounted for."""
    if path.endswith(SUFFIX):
        return check_pieces(path, source, texts)
    why, definition = attempt(lambda: json.loads(Path(path).read_text(encoding="utf-8")))
    if why or not {"model", "added_tokens"} <= set(definition):
        raise DataError(f"tokenizer.from: {source} is not a tokenizer.json of the tokenizers library")
    if reasons := faults(definition):
        raise DataError(f"tokenizer.from: {source} cannot be used: {'; '.join(reasons)}; choose a byte-level tokenizer")
    why, encoder = attempt(lambda: load_text_encoder(path))
    if why:
        raise DataError(f"tokenizer.from: the tokenizers library cannot read {source}: {why}")
    moved = [t["content"] for t in definition["added_tokens"] if encoder.token_to_id(t["content"]) != t["id"]]
    if moved:
        raise DataError(f"tokenizer.from: {source} states other ids for {moved[:3]} than the tokenizers library gives")
    strings = [*texts, *hostile(special_ids(path))]
    for text, encoding in zip(strings, encoder.encode_batch(strings, add_special_tokens=False), strict=True):
        if encoder.decode(encoding.ids, skip_special_tokens=False) != text:
            raise DataError(f"tokenizer.from: {source} does not give text back as it was, such as {text[:60]!r}")


def check_pieces(path: str, source: str, texts: list[str]) -> None:
    """As `check_accountable`, of a SentencePiece model."""
    reasons = text_changes(path)
    if sum(piece.type == PieceType.BYTE for piece in read_pieces(path)) < 256:
        reasons.append("it has no byte_fallback, so that not every text has ids")
    if reasons:
        raise DataError(f"tokenizer.from: {source} cannot be used: {'; '.join(reasons)}; train one with kind")
    encode, given = sentencepiece(path), token_texts(path)
    for text in [*texts, *hostile(special_ids(path))]:
        if b"".join(given[i] for i in encode([text])[0].tolist()).decode() != as_stored(path, text):
            raise DataError(f"tokenizer.from: {source} does not give text back as it was, such as {text[:60]!r}")


def boundary_ids(path: str, source: str, bos: str | None, own: str | None = None) -> tuple[int, int | None]:
    """Return (BOS id, pad id or None): `bos` by name, else its `own`, else the first known name.

    Raises DataError if none is there.
    """
    specials = special_ids(path)
    names = [name for name in ([bos] if bos else [own, *KNOWN_BOS]) if name in specials]
    if not names:
        have = ", ".join(specials) or "none"
        raise DataError(
            f"tokenizer.{'bos' if bos else 'from'}: no special token of {source} is "
            f"{repr(bos) if bos else 'known to separate documents'}; name one with tokenizer.bos (it has: {have})"
        )
    pad_id = next((specials[name] for name in KNOWN_PAD if name in specials), None)
    return specials[names[0]], pad_id
