"""Evaluation sets in the recipe's tokens, ready for a trainer that knows neither text nor tables.

A choice is scored as it would be read: prompt, blank and choice are encoded as one text. BPE may join what stands at
the border, so an item's prompt is the longest beginning that the encodings of the prompt alone and of it with each
choice share, and what follows is scored: nothing is scored in tokens that the text would never have, no choice is
empty, and all choices of an item stand after the same tokens. lm-evaluation-harness (`_encode_pair`) takes what follows
the first len(encode(prompt)) tokens: the same wherever the prompt's tokens are not touched, as with the default prompt
and the splits of GPT-2 and GPT-4, which always cut between a colon and a blank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.task import Task
from stages.tokenizer.encoder import open_encoder
from train.data.evalset import Item, evalset_text


def work(task: Task) -> None:
    """Encode one set. Inputs: tokenizer.json, items. Params: prompt. Output: `encoded` (train/data/evalset.py)."""
    tokenizer, items = task.inputs
    rows = pq.read_table(task.path(items), partitioning=None).to_pylist()
    texts = []
    for row in rows:
        prompt = task.params["prompt"].replace("{question}", row["question"])
        texts += [prompt, *(f"{prompt} {choice}" for choice in json.loads(row["choices"]))]
    encoder = open_encoder(task.path(tokenizer), texts)
    ids, counts = encoder.encode(texts)
    encoded = iter([part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])])
    found = []
    for row in rows:
        choices = json.loads(row["choices"])
        prompt, *whole = [next(encoded) for _ in range(1 + len(choices))]
        n = common_prefix([prompt, *whole])
        sizes = [len(choice.encode()) for choice in choices]
        found.append(Item(row["item_id"].hex(), prompt[:n], [ids[n:] for ids in whole], sizes, row["answer"]))
    path = task.output("json")
    Path(path).write_text(evalset_text(found), encoding="utf-8")
    task.add("encoded", path, rows=len(found))
    task.count("items", len(found))


def common_prefix(lists: Sequence[Sequence[int]]) -> int:
    """Return how many elements all of `lists` begin with alike."""
    n = 0
    for column in zip(*lists, strict=False):
        if len(set(column)) > 1:
            break
        n += 1
    return n
