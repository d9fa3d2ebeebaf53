"""How good the model is: validation loss, bits per byte, a unigram to compare with, and samples.

Bits per byte = sum of nll / ln 2 / sum of bytes, over the same tokens (docs/trainer-math.md, "Bits per byte"). Every
target of the validation shards is scored exactly once, in windows that do not overlap; the first token of a shard has
nothing before it and is no target. A special id has 0 bytes and its loss counts: predicting that a text ends is part of
predicting the text. (nanochat drops specials from both sums.)

The manifest has one validation shard in the mixture's proportions and one of each source; all are scored alike. The
sums are fp64, one per window, added in the windows' order: they do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from train.config import TrainError
from train.data.format import Tokens
from train.data.index import counted_targets, open_index
from train.data.loader import open_shard
from train.data.manifest import Manifest
from train.data.sampler import I64
from train.eval.multiple_choice import Choices, ChoiceScore
from train.generate import generate
from train.model.transformer import Model

EVAL_TOKENS = 8192  # targets a forward pass, about; an evaluation holds no gradients, so it may be coarse
COUNT_TOKENS = 2**24  # tokens counted at once for the unigram: 32 MB


@dataclass(frozen=True)
class Score:
    """nats: loss a token. bits_per_byte: nan where no scored token has bytes. sources: the same for each source."""

    nats: float
    bits_per_byte: float
    tokens: int
    bytes: int = 0
    sources: dict[str, Score] = field(default_factory=dict)
    choices: dict[str, ChoiceScore] = field(default_factory=dict)  # by evaluation set, of the whole model only

    @classmethod
    def of(cls, nll: float, tokens: int, byte_count: int) -> Score:
        """From sums: nll in nats."""
        return cls(nll / tokens, nll / math.log(2) / byte_count if byte_count else math.nan, tokens, byte_count)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Score:
        """Back from what `to_dict` gave."""
        sources = {name: cls.read(item) for name, item in value.get("sources", {}).items()}
        choices = {name: ChoiceScore(**_numbers(item)) for name, item in value.get("choices", {}).items()}
        return cls(**{**_numbers(value), "sources": sources, "choices": choices})

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, null for what is no number; `choices` only where there are any."""
        value = {**_plain(asdict(self)), "sources": {name: score.to_dict() for name, score in self.sources.items()}}
        value["choices"] = {name: _plain(asdict(score)) for name, score in self.choices.items()}
        if not self.choices:
            del value["choices"]
        return value


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """With null for nan and the infinities, which JSON has not."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Back from `_plain`."""
    return {key: math.nan if v is None else v for key, v in values.items()}


class Part(NamedTuple):
    """Windows [start, stop) and the sums of their targets."""

    start: int
    stop: int
    tokens: int
    bytes: int


class Validation:
    """The windows to score, fixed for a run: those of the mixture's shards (part ""), then those of each source's.

    A forward pass takes windows of one part only, and whole passes go to the ranks in turn: a pass is the same
    whatever the ranks and the other parts are, and so are its losses. Its shape is always the same, for torch.compile.
    """

    def __init__(
        self,
        manifest: Manifest,
        seq_len: int,
        limit: int,
        group: Any,
        rank: int,
        world: int,
        choices: Choices | None = None,
        documents: bool = False,
    ) -> None:
        """limit: targets to score at most, a prefix; 0 for all. It holds for the mixture, and for the sources
        together, an equal share each: with them an evaluation costs at most twice. choices: questions to ask beside.
        documents: attention stays inside one, as in training. Raises TrainError when there is nothing to score."""
        self.group, self.rank, self.world, self.seq_len = group, rank, world, seq_len
        self.choices = choices
        self.token_bytes = np.array(manifest.tokenizer.token_bytes, np.int64)
        self.vocab_size = manifest.tokenizer.vocab_size
        self.windows: list[Tokens] = []  # up to seq_len + 1 tokens each, on the map
        self.counted: list[slice | I64] = []  # the targets of each that count: all but those at padding
        self.starts: list[I64] | None = [] if documents else None  # of each, where documents begin after its first
        self.parts: dict[str, Part] = {}
        sources = list(dict.fromkeys(s.source for s in manifest.shards if s.split == "val" and s.source))
        self._add(manifest, "", limit)
        for source in sources:
            self._add(manifest, source, limit and max(1, limit // len(sources)))
        if "" not in self.parts:
            raise TrainError(f"{manifest.folder}: no validation tokens; pack a mixture that has validation documents")
        self.rows = min(max(1, EVAL_TOKENS // seq_len), max(p.stop - p.start for p in self.parts.values()))
        self.passes = [
            range(i, min(i + self.rows, p.stop)) for p in self.parts.values() for i in range(p.start, p.stop, self.rows)
        ]

    def _add(self, manifest: Manifest, source: str, limit: int) -> None:
        """Append one part, if it has a target that counts."""
        first = len(self.windows)
        left = limit or sum(s.tokens for s in manifest.split("val", source))
        for shard in manifest.split("val", source):
            tokens = open_shard(manifest, shard)
            counts = counted_targets(manifest, shard) if shard.padding else None
            starts = None if self.starts is None else open_index(manifest, shard).starts
            for start in range(0, len(tokens) - 1, self.seq_len):
                take = min(self.seq_len, len(tokens) - 1 - start, left)
                if take <= 0:
                    break
                self.windows.append(tokens[start : start + take + 1])
                self.counted.append(slice(take) if counts is None else np.flatnonzero(counts[start : start + take]))
                if self.starts is not None and starts is not None:
                    inside = slice(*np.searchsorted(starts, [start + 1, start + take]))
                    self.starts.append(starts[inside] - start)
                left -= take
        targets = [w[1:][c] for w, c in zip(self.windows[first:], self.counted[first:], strict=True)]
        count = sum(len(t) for t in targets)
        if count:
            size = int(sum(self.token_bytes[t].sum() for t in targets))
            self.parts[source] = Part(first, len(self.windows), count, size)

    def score(self, model: Model, device: torch.device) -> Score:
        """The model's score. Every rank calls it and gets the same."""
        sums = np.zeros(len(self.windows))
        model.eval()
        for picked in self.passes[self.rank :: self.world]:
            # padded with 0 to one shape: attention is causal, so what follows a target cannot change it
            batch = np.zeros((self.rows, self.seq_len + 1), np.int64)
            for row, w in enumerate(picked):
                batch[row, : len(self.windows[w])] = self.windows[w]
            ids = torch.from_numpy(batch).to(device)
            nll = model.score(ids[:, :-1], ids[:, 1:], self._borders(picked)).cpu().double().numpy()
            for row, w in enumerate(picked):
                sums[w] = nll[row, self.counted[w]].sum()
        asked = self.choices.score(model, device) if self.choices else {}
        model.train()
        return replace(self._score(self._all(sums)), choices=asked)

    def _borders(self, picked: range) -> Tensor | None:
        """Where documents begin in a pass, as `Batch.borders`."""
        if self.starts is None:
            return None
        rows = np.arange(self.rows + 1) * self.seq_len
        inside = [self.starts[w] + first for w, first in zip(picked, rows, strict=False)]
        return torch.from_numpy(np.sort(np.concatenate([rows, *inside])).astype(np.int32))

    def unigram(self, manifest: Manifest) -> Score:
        """The add-one unigram of the training shards on the same targets. Every rank calls it and gets the same."""
        counts = np.zeros(self.vocab_size, np.int64)
        for shard in manifest.split("train")[self.rank :: self.world]:
            tokens = open_shard(manifest, shard)
            for i in range(0, len(tokens), COUNT_TOKENS):
                counts += np.bincount(tokens[i : i + COUNT_TOKENS], minlength=self.vocab_size)
            counts[manifest.tokenizer.pad_id] -= shard.padding
        nll = -np.log((self._all(counts) + 1.0) / (manifest.tokens + self.vocab_size))
        return self._score(np.array([nll[w[1:][c]].sum() for w, c in zip(self.windows, self.counted, strict=True)]))

    def _score(self, sums: NDArray[np.float64]) -> Score:
        """From the nats of each window."""
        found = {
            source: Score.of(float(sums[p.start : p.stop].sum()), p.tokens, p.bytes) for source, p in self.parts.items()
        }
        return replace(found.pop(""), sources=found)

    def _all(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over ranks. Exact: every element is 0 on all ranks but one, or a whole number."""
        if self.world > 1:
            dist.all_reduce(torch.from_numpy(values), group=self.group)
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def samples(model: Model, manifest: Manifest, prompts: tuple[str, ...], count: int, seed: int) -> list[dict[str, str]]:
    """Up to `count` tokens after each prompt, as text; ends at BOS. Empty, with a warning, without `tokenizers`."""
    if not prompts or not count:
        return []
    try:
        from tokenizers import Tokenizer
    except ImportError:
        print("warning: no samples: the package tokenizers is not installed", flush=True)
        return []
    path = manifest.file(manifest.tokenizer.path)
    if not path.exists():
        print(f"warning: no samples: {path} is not there", flush=True)
        return []
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # a prompt that spells a special token gets its characters, not its id
    bos = manifest.tokenizer.bos_id
    ids = [[bos, *tokenizer.encode(prompt, add_special_tokens=False).ids] for prompt in prompts]
    if max(map(len, ids)) >= model.cfg.max_seq_len:
        print(f"warning: no samples: a prompt fills model.max_seq_len = {model.cfg.max_seq_len}", flush=True)
        return []
    texts = generate(model, ids, count, bos, seed=seed).ids
    return [
        {"prompt": prompt, "text": tokenizer.decode(text, skip_special_tokens=False)}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
