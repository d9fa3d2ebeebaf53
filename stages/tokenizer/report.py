"""What `tokenizer/` holds beside tokenizer.json: report.json for people, two files for `transformers`.

report.json says nothing of the engine that encoded the sample: engines are proven equal, and the file must come out
the same whichever was there. The record's counts name it.

`AutoTokenizer.from_pretrained(".../tokenizer")` then encodes without adding anything: there is no post-processor, so
whoever wants documents as in the shards puts `bos_token_id` in front of each. `eos_token` is the BOS too: BOS
predicted means the text has ended. Pass `split_special_tokens=True` for text with special tokens written in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.task import Task
from stages.tokenizer.encoder import Encoder, open_encoder
from stages.tokenizer.sample import Sample, SampledDocument, sampled_texts
from train.tokenizer.pieces import SUFFIX
from train.tokenizer.vocabulary import Vocabulary

SHOWN = 20  # tokens listed of each kind
ODD_BYTES = 8  # a token of blanks, or of one character, is odd from this length on
NO_LIMIT = int(1e30)  # what transformers writes where a tokenizer sets no longest input: the model does


def measure(encoder: Encoder, documents: Sequence[SampledDocument], times: NDArray[np.int64]) -> dict[str, Any]:
    """Return the sizes of one source's part of the sample; add to `times` (ids,) how often each id occurs in it."""
    text_bytes = words = tokens = 0
    for start in range(0, len(documents), 1000):
        batch = [document.text for document in documents[start : start + 1000]]
        text_bytes += sum(len(text.encode()) for text in batch)
        words += sum(len(text.split()) for text in batch)
        ids, _ = encoder.encode(batch)
        tokens += len(ids)
        times += np.bincount(ids, minlength=len(times))
    return {
        "documents": len(documents),
        "text_bytes": text_bytes,
        "words": words,
        "tokens": tokens,
        "bytes_per_token": round(text_bytes / tokens, 4) if tokens else None,
        "fertility": round(tokens / words, 4) if words else None,  # tokens a word between blanks
    }


def ends_inside_character(text: bytes) -> bool:
    """Tell whether bytes of a multi-byte token are cut in the middle of a character."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return len(text) > 1
    return False


def oddest(texts: Mapping[int, bytes], times: NDArray[np.int64]) -> dict[str, list[dict[str, Any]]]:
    """Return tokens that say something of the corpus.

    Long blanks, one character over and over, cut characters, hardly used ones.
    Each list is longest first (hardly used: rarest first, of what is not a single byte), at most SHOWN.
    """

    def show(ids: list[int]) -> list[dict[str, Any]]:
        return [
            {"id": i, "text": texts[i].decode(errors="backslashreplace"), "times": int(times[i])} for i in ids[:SHOWN]
        ]

    longest = sorted(texts, key=lambda i: (-len(texts[i]), i))
    long = [i for i in longest if len(texts[i]) >= ODD_BYTES]
    merged = [i for i in sorted(texts, key=lambda i: (int(times[i]), i)) if len(texts[i]) > 1]
    return {
        "blank": show([i for i in long if not texts[i].strip()]),
        "one_character": show(
            [i for i in long if texts[i].strip() and len(set(texts[i].decode(errors="replace"))) == 1]
        ),
        "cut_characters": show([i for i in longest if ends_inside_character(texts[i])]),
        "hardly_used": show(merged),
        "longest": show(longest),
    }


def write_report(path: str, chosen: Sample, origin: dict[str, Any], vocabulary: Vocabulary, task: Task) -> None:
    """Write `report` and what `transformers` needs, for the tokenizer at `path`. Counts the sample's bytes and tokens.

    `origin` is where it comes from, with `bos_id` and `pad_id`.
    """
    encoder = open_encoder(path, sampled_texts(chosen, 20))
    specials, texts = vocabulary.special_ids, vocabulary.texts
    times = np.zeros(vocabulary.size, np.int64)
    sources = {name: measure(encoder, documents, times) for name, documents in chosen.items()}
    unused = [i for i in sorted(texts) if not times[i]]
    sample_bytes = sum(sizes["text_bytes"] for sizes in sources.values())
    sample_tokens = sum(sizes["tokens"] for sizes in sources.values())
    report = {
        **origin,
        "vocab_size": vocabulary.size,
        "special_ids": specials,
        "sample_bytes": sample_bytes,
        "sample_tokens": sample_tokens,
        "sources": sources,
        "bytes_per_token": {name: s["bytes_per_token"] for name, s in sources.items() if s["tokens"]},
        "unused": {"count": len(unused), "ids": unused},
        **oddest(texts, times),
        "token_bytes": vocabulary.token_bytes,
        **({"space_ids": vocabulary.space_ids} if vocabulary.space_ids else {}),
    }
    write_json(task, "report", report)
    if not path.endswith(SUFFIX):  # transformers has no class that reads such a model as it is
        names = {i: name for name, i in specials.items()}
        for name, value in transformers_files(names, origin["bos_id"], origin["pad_id"]).items():
            write_json(task, name, value)
    task.count("text_bytes", sample_bytes)
    task.count("tokens", sample_tokens)
    task.count(f"encoded_by.{encoder.note}")


def transformers_files(names: Mapping[int, str], bos_id: int, pad_id: int | None) -> dict[str, dict[str, Any]]:
    """Return `tokenizer_config` and `special_tokens_map` for a tokenizer whose special tokens are `names`."""
    tokens: dict[str, Any] = {"bos_token": names[bos_id], "eos_token": names[bos_id]}
    if pad_id is not None:
        tokens["pad_token"] = names[pad_id]
    rest = [name for i, name in names.items() if i not in (bos_id, pad_id)]
    tokens |= {"additional_special_tokens": rest} if rest else {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "model_max_length": NO_LIMIT,
        "model_input_names": ["input_ids", "attention_mask"],  # no token_type_ids, which no causal model takes
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer_config": config, "special_tokens_map": tokens}


def write_json(task: Task, name: str, value: Any) -> None:
    """Write an output as JSON, in one fixed layout."""
    path = task.output(f"{name}.json")
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add(name, path)
