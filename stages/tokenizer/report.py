"""What `tokenizer/` holds beside tokenizer.json: report.json for people, two files for `transformers`.

report.json says nothing of the engine that encoded the sample: engines are proven equal, and the file must come out
the same whichever was there. The records of `measure` name it.

`AutoTokenizer.from_pretrained(".../tokenizer")` then encodes without adding anything: there is no post-processor, so
whoever wants documents as in the shards puts `bos_token_id` in front of each. `eos_token` is the BOS too: BOS
predicted means the text has ended. Pass `split_special_tokens=True` for text with special tokens written in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.task import Task
from stages.tokenizer.measure import Sizes, read_measured
from stages.tokenizer.outputs import write_json
from stages.tokenizer.spec import open_vocabulary
from train.tokenizer.pieces import SUFFIX

SHOWN = 20  # tokens listed of each kind
ODD_BYTES = 8  # a token of blanks, or of one character, is odd from this length on
NO_LIMIT = int(1e30)  # what transformers writes where a tokenizer sets no longest input: the model does


def describe(sizes: Sizes) -> dict[str, Any]:
    """Return the sizes of one source's part of the sample, as the report has them."""
    return {
        **sizes._asdict(),
        "bytes_per_token": round(sizes.text_bytes / sizes.tokens, 4) if sizes.tokens else None,
        "fertility": round(sizes.tokens / sizes.words, 4) if sizes.words else None,  # tokens a word between blanks
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


def work(task: Task) -> None:
    """Write `report`, `tokenizer_config` and `special_tokens_map` (JSON).

    Inputs: the tokenizer, its origin, `measured` of all units. Params: sources ([name, units]), vocab_size. Counts the
    sample's documents, bytes and tokens. transformers has no class that reads a SentencePiece model as it is: no files
    for it then.
    """
    tokenizer, origin_file, *measured = task.inputs
    path = task.path(tokenizer)
    origin = json.loads(Path(task.path(origin_file)).read_text(encoding="utf-8"))
    vocabulary = open_vocabulary(path).limited(task.params["vocab_size"])
    specials, texts = vocabulary.special_ids, vocabulary.texts
    times = np.zeros(vocabulary.size, np.int64)
    sources, remaining = {}, iter(measured)
    for name, units in task.params["sources"]:
        total = np.zeros(len(Sizes._fields), np.int64)
        for _ in range(units):
            sizes, unit_times = read_measured(task.path(next(remaining)))
            total, times = total + sizes, times + unit_times
        sources[name] = describe(Sizes(*total.tolist()))
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
    if not path.endswith(SUFFIX):
        names = {i: name for name, i in specials.items()}
        for name, value in transformers_files(names, origin["bos_id"], origin["pad_id"]).items():
            write_json(task, name, value)
    task.counts.update(text_bytes=sample_bytes, tokens=sample_tokens)
    task.count("documents", sum(sizes["documents"] for sizes in sources.values()))


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
