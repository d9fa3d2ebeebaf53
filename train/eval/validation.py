"""How good the model is: validation loss, bits per byte, a unigram to compare with, and samples.

Bits per byte = sum of nll / ln 2 / sum of bytes, over the same tokens (docs/trainer-math.md, "Bits per byte"). Every
target of the validation shards is scored exactly once, in windows that do not overlap, or that slide by a stride; the
first token of a shard has nothing before it and is no target. A special id has 0 bytes and its loss counts: predicting
that a text ends is part of predicting the text. (nanochat drops specials from both sums.)

The manifest has one validation shard in the mixture's proportions and one of each source; all are scored alike. The
sums are fp64, one per window, added in the windows' order: they do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from train.config import Counting, TrainError
from train.data.index import counted_targets, read_shard_index
from train.data.loader import open_shard
from train.data.manifest import Manifest, Shard
from train.data.sampler import I64
from train.data.tokens import Tokens
from train.data.watch import FileWatch
from train.eval.multiple_choice import ChoiceScore, MultipleChoice
from train.eval.passes import passes_of_rank
from train.eval.rows import ScoredDocuments, document_starts, write_evaluation
from train.eval.text_bytes import TextBytes
from train.eval.windows import sliding_windows
from train.generate import generate
from train.model.masks import to_device
from train.model.transformer import Model
from train.tokenizer.pieces import TokenizerError
from train.tokenizer.text import TextTokenizer

EVAL_TOKENS = 8192  # targets a forward pass, about; an evaluation holds no gradients, so it may be coarse
SETTLE_TOKENS = 2**20  # scored before the host waits for the device: their losses are 4 MB
COUNT_TOKENS = 2**24  # tokens counted at once for the unigram: 32 MB

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True)
class Score:
    """nats: loss a token. bits_per_byte: nan where no scored token has bytes. sources: the same for each source."""

    nats: float
    bits_per_byte: float
    tokens: int
    bytes: int = 0
    sources: dict[str, Score] = field(default_factory=dict)
    choices: dict[str, ChoiceScore] = field(default_factory=dict)  # by evaluation set, of the whole model only
    # (documents,): the nats of each, shard after shard; not kept by `to_dict`. None where documents are not known
    document_nats: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_sums(cls, nll: float, tokens: int, byte_count: int) -> Score:
        """Make a score of sums: `nll` in nats over `tokens` targets, whose text has `byte_count` bytes."""
        bits_per_byte = nll / math.log(2) / byte_count if byte_count else math.nan
        return cls(nll / tokens, bits_per_byte, tokens, byte_count)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Score:
        """Read back what `to_dict` gave."""
        sources = {name: cls.from_dict(item) for name, item in value.get("sources", {}).items()}
        choices = {name: ChoiceScore(**_null_as_nan(item)) for name, item in value.get("choices", {}).items()}
        return cls(**{**_null_as_nan(value), "sources": sources, "choices": choices})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, null for what is no number; `choices` only where there are any."""
        value = _nan_as_null(asdict(replace(self, sources={}, choices={}, document_nats=None)))
        del value["document_nats"]
        value["sources"] = {name: score.to_dict() for name, score in self.sources.items()}
        value["choices"] = {name: _nan_as_null(score.figures()) for name, score in self.choices.items()}
        if not self.choices:
            del value["choices"]
        return value


def _nan_as_null(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with null for nan and the infinities, which JSON has not."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _null_as_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Return what `_nan_as_null` was given, with nan for every null."""
    return {key: math.nan if v is None else v for key, v in values.items()}


class WindowGroup(NamedTuple):
    """The windows [start, stop) that are scored together, and the sums of their targets."""

    start: int
    stop: int
    tokens: int
    bytes: int


def _first(counted: slice | I64) -> int:
    """Return the first target of a window that counts; 0 where none does."""
    return int(counted.start or 0) if isinstance(counted, slice) else int(counted[0]) if len(counted) else 0


class Validation:
    """The windows to score, fixed for a run: those of the mixture's shards (group ""), then those of each source's.

    A forward pass takes windows of one group only, and whole passes go to the ranks in turn: a pass is the same
    whatever the ranks and the other groups are, and so are its losses. Its shape is always the same, for torch.compile.
    """

    def __init__(
        self,
        manifest: Manifest,
        seq_len: int,
        limit: int,
        group: dist.ProcessGroup | None,
        rank: int,
        world_size: int,
        choices: MultipleChoice | None = None,
        document_mask: bool = False,
        by_source: bool = True,
        stride: int | None = None,
        counting: Counting = "once",
        row: int | None = None,
        pass_tokens: int | None = None,
    ) -> None:
        """Choose the windows of `seq_len` targets, and map the shards they are in.

        limit: targets to score at most, a prefix; 0 for all. It holds for the mixture, and for the sources together, an
        equal share each: with them an evaluation costs at most twice.
        choices: questions to ask beside.
        document_mask: attention stays inside a document, as in training. by_source: score each source too.
        stride: targets that a window begins behind the one before it, at most seq_len; None: seq_len. Below it, a token
            has seq_len - stride tokens before it at least, where the shard has them, and costs seq_len / stride times.
        counting: see train/eval/windows.py. row: the sequence length of training, to a multiple of which records cut a
            shard; None: seq_len.
        pass_tokens: targets read in a forward pass, about; None: EVAL_TOKENS.
        Raises TrainError when there is nothing to score.
        """
        self.process_group, self.rank, self.world_size, self.seq_len = group, rank, world_size, seq_len
        self.choices = choices
        self.stride, self.counting = stride or seq_len, counting
        self.cut_to = 1 if counting == "once" else row or seq_len
        self.memory_in_front = counting != "pr352" or self.stride < seq_len
        self.text_bytes = TextBytes(manifest.tokenizer)
        self.vocab_size = manifest.tokenizer.vocab_size
        self.watch = FileWatch(manifest.restore)
        self.windows: list[Tokens] = []  # up to seq_len + 1 tokens each, on the map
        self.counted: list[slice | I64] = []  # the targets of each that count: not at padding, nor counted before
        self.starts: list[I64] | None = [] if document_mask else None  # where documents begin in each, after its first
        self.places: list[tuple[int, int]] = []  # of each: its shard in `scored_documents`, its first token there
        self.scored_documents: list[ScoredDocuments] = []
        self.document_starts = document_starts(manifest) if counting == "once" else {}
        self.knows_documents = bool(self.document_starts)
        self.groups: dict[str, WindowGroup] = {}
        sources = list(dict.fromkeys(s.source for s in manifest.shards if s.split == "val" and s.source and by_source))
        self._add_group(manifest, "", limit)
        for source in sources:
            self._add_group(manifest, source, limit and max(1, limit // len(sources)))
        if "" not in self.groups:
            raise TrainError(
                f"{manifest.folder}: nothing is held out to score the model on, which takes one document in a "
                "hundred; pack a mixture of more documents"
            )
        self.documents = sum(s.documents for s in manifest.split("val"))  # held out of the mixture
        self.as_in_training = False
        largest = max(g.stop - g.start for g in self.groups.values())
        self._cut_into_passes(min(max(1, (pass_tokens or EVAL_TOKENS) // seq_len), largest))

    def _cut_into_passes(self, rows: int) -> None:
        self.rows = rows  # of a forward pass
        self.passes = [  # the windows of each
            range(i, min(i + rows, group.stop))
            for group in self.groups.values()
            for i in range(group.start, group.stop, rows)
        ]

    def use_graph_of_training(self, rows: int) -> None:
        """Score by the graph that was compiled for micro-batches of `rows`: in passes as large, gradients on.

        What such a pass keeps for a backward pass is let go at once, and fits as that of a micro-batch does.
        """
        self.as_in_training = True
        self._cut_into_passes(rows)

    def _add_group(self, manifest: Manifest, source: str, limit: int) -> None:
        """Append the windows of one group, if they have a target that counts."""
        first = len(self.windows)
        shards = manifest.split("val", source)
        left = limit or sum(s.tokens for s in shards)
        for shard in shards:
            left -= self._add_shard(manifest, shard, left)
        num_targets = byte_count = 0
        for window, counted in zip(self.windows[first:], self.counted[first:], strict=True):
            sizes = self._sizes(window, counted)
            num_targets, byte_count = num_targets + len(sizes), byte_count + int(sizes.sum())
        if num_targets:
            self.groups[source] = WindowGroup(first, len(self.windows), num_targets, byte_count)

    def _sizes(self, window: Tokens, counted: slice | I64) -> I64:
        """Return the bytes of the targets of a window that count."""
        if isinstance(counted, slice):
            return self.text_bytes.count(window[counted.start : counted.stop + 1])
        return self.text_bytes.count(window)[counted]

    def _add_shard(self, manifest: Manifest, shard: Shard, limit: int) -> int:
        """Append the windows of a shard, `limit` targets at most. Returns how many they have."""
        tokens = open_shard(manifest, shard, self.watch)
        counts = counted_targets(manifest, shard) if shard.padding else None
        starts = None if self.starts is None else read_shard_index(manifest, shard).starts
        if self.knows_documents:
            own = self.document_starts[shard.path]
            first_document = sum(len(scored.starts) for scored in self.scored_documents)
            self.scored_documents.append(ScoredDocuments(shard, first_document, own, np.zeros((len(own), 2), np.int64)))
        targets = min(limit, len(tokens) - 1) // self.cut_to * self.cut_to
        for start, stop, first in sliding_windows(targets, self.seq_len, self.stride, self.counting):
            self.windows.append(tokens[start : stop + 1])
            scored = slice(first - start, stop - start)
            self.counted.append(scored if counts is None else first - start + np.flatnonzero(counts[first:stop]))
            self.places.append((len(self.scored_documents) - 1, start))
            if self.knows_documents:
                self._count_documents(len(self.windows) - 1)
            if self.starts is not None and starts is not None:
                low, high = np.searchsorted(starts, [start + 1, stop])
                self.starts.append(starts[low:high] - start)
        return targets

    def _documents(self, window: int) -> I64:
        """Return which document of its shard each target of a window that counts is of, (targets,)."""
        shard, start = self.places[window]
        counted = self.counted[window]
        inputs = np.arange(counted.start, counted.stop) if isinstance(counted, slice) else counted
        return np.searchsorted(self.scored_documents[shard].starts, inputs + start + 1, "right") - 1

    def _count_documents(self, window: int) -> None:
        """Add a window's targets to what is scored of its documents."""
        sizes = self.scored_documents[self.places[window][0]].sizes
        documents = self._documents(window)
        np.add.at(sizes[:, 0], documents, self._sizes(self.windows[window], self.counted[window]))
        np.add.at(sizes[:, 1], documents, 1)

    @property
    def num_tokens(self) -> int:
        """Tokens that one evaluation reads: the mixture's, those of each source, and the questions'."""
        questions = sum(map(len, self.choices.rows)) if self.choices else 0
        return sum(group.tokens for group in self.groups.values()) + questions

    def score(self, model: Model, device: torch.device, should_stop: Callable[[], bool] | None = None) -> Score:
        """Return the model's score. Every rank calls it and gets the same.

        Raises EvaluationStoppedError as `passes_of_rank` does.
        """
        model.eval()
        try:
            sums = self._nats_of_windows(model, device, should_stop)
            choices = self.choices.score(model, device, should_stop) if self.choices else {}
        finally:
            model.train()
        sums = self._sum_over_ranks(sums)
        documents = sums[len(self.windows) :] if self.knows_documents else None
        return replace(self._score_of(sums), choices=choices, document_nats=documents)

    def _nats_of_windows(
        self, model: Model, device: torch.device, should_stop: Callable[[], bool] | None
    ) -> NDArray[np.float64]:
        """Return the nats of each window, and behind them those of each document: without what other ranks score.

        The host waits for the device once in SETTLE_TOKENS. The sums are made here and not there, so that they are in
        one order on every device.
        """
        sums = np.zeros(len(self.windows) + sum(len(scored.starts) for scored in self.scored_documents))
        waiting: list[tuple[range, int, Tensor]] = []  # windows of a pass, their first target that was scored, nats
        for windows in passes_of_rank(self.passes, self.rank, self.world_size, should_stop):
            # padded with 0 to one shape: attention is causal, so what follows a target cannot change it
            batch = np.zeros((self.rows, self.seq_len + 1), np.int64)
            for row, w in enumerate(windows):
                batch[row, : len(self.windows[w])] = self.windows[w]
            ids = to_device(torch.from_numpy(batch), device)
            # the head is spared what is ahead of what counts
            first = min(_first(self.counted[w]) for w in windows) if self.stride < self.seq_len else 0
            scored = model.score(
                ids[:, :-1], ids[:, 1:], self._cu_seqlens(windows), self.memory_in_front, first, self.as_in_training
            )
            waiting.append((windows, first, scored[: len(windows)]))
            if len(waiting) * batch.size >= SETTLE_TOKENS:
                self._settle(waiting, sums, model.cfg.memory_tokens)
        self._settle(waiting, sums, model.cfg.memory_tokens)
        return sums

    def _settle(self, waiting: list[tuple[range, int, Tensor]], sums: NDArray[np.float64], memory_tokens: int) -> None:
        """Sum the nats of each window of `waiting`, and of its documents, into `sums`, and empty it."""
        hidden = 0 if self.memory_in_front else memory_tokens
        for windows, first, scored in waiting:
            losses = np.zeros((len(windows), self.seq_len))
            losses[:, first:] = scored.cpu().double().numpy()
            for row, w in enumerate(windows):
                nats = losses[row, self.counted[w]]
                # PR 352 takes the mean of what memory leaves for the mean of all, whose bytes it counts
                sums[w] = nats[hidden:].mean() * len(nats) if hidden else nats.sum()
                if self.knows_documents:
                    first_document = len(self.windows) + self.scored_documents[self.places[w][0]].first
                    np.add.at(sums, first_document + self._documents(w), nats)
        waiting.clear()

    def _cu_seqlens(self, windows: range) -> Tensor | None:
        """Return where documents begin in a pass, as `Batch.cu_seqlens`."""
        if self.starts is None:
            return None
        row_starts = np.arange(self.rows + 1) * self.seq_len
        inside = [self.starts[w] + first for w, first in zip(windows, row_starts, strict=False)]
        return torch.from_numpy(np.sort(np.concatenate([row_starts, *inside])).astype(np.int32))

    def keep(self, path: Path, manifest: Manifest, score: Score, about: dict[str, Any]) -> None:
        """Write a row a document and a row a question of `score`; nothing where documents are not known.

        about: which weights these are.
        """
        if score.document_nats is None:
            return
        sets = self.choices.sets if self.choices else {}
        items = {name: ([item.id for item in sets[name]], c.rows) for name, c in score.choices.items()}
        known = {name: (ids, rows) for name, (ids, rows) in items.items() if rows is not None}
        how = {"seq_len": self.seq_len, "stride": self.stride, "document_mask": self.starts is not None}
        write_evaluation(path, manifest, self.scored_documents, score.document_nats, known, {**about, **how})

    def unigram(self, manifest: Manifest) -> Score:
        """Score the add-one unigram of the training shards on the same targets. Every rank calls it, gets the same."""
        counts = np.zeros(self.vocab_size, np.int64)
        for shard in manifest.split("train")[self.rank :: self.world_size]:
            tokens = open_shard(manifest, shard)
            for i in range(0, len(tokens), COUNT_TOKENS):
                counts += np.bincount(tokens[i : i + COUNT_TOKENS], minlength=self.vocab_size)
            counts[manifest.tokenizer.pad_id] -= shard.padding
        nll = -np.log((self._sum_over_ranks(counts) + 1.0) / (manifest.tokens + self.vocab_size))
        sums = [nll[w[1:][c]].sum() for w, c in zip(self.windows, self.counted, strict=True)]
        return self._score_of(np.array(sums))

    def _score_of(self, sums: NDArray[np.float64]) -> Score:
        """Make the score of the nats of each window."""
        scores = {
            source: Score.from_sums(float(sums[g.start : g.stop].sum()), g.tokens, g.bytes)
            for source, g in self.groups.items()
        }
        return replace(scores.pop(""), sources=scores)

    def _sum_over_ranks(self, values: NDArray[Number]) -> NDArray[Number]:
        """Sum `values` over the ranks. Exact for windows, 0 on all ranks but one, and for whole numbers."""
        if self.world_size > 1:
            dist.all_reduce(torch.from_numpy(values), group=self.process_group)
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def sample_texts(
    model: Model, manifest: Manifest, prompts: tuple[str, ...], count: int, seed: int
) -> list[dict[str, str]]:
    """Write up to `count` tokens after each prompt, as text that ends at BOS.

    Without the package that reads the tokenizer, without its file and for prompts that are too long: none, and a
    warning.
    """
    if not prompts or not count:
        return []
    path = manifest.file(manifest.tokenizer.path)
    if not path.exists():
        print(f"warning: no samples: {path} is not there", flush=True)
        return []
    try:
        tokenizer = TextTokenizer(path)
    except TokenizerError as error:
        print(f"warning: no samples: {error}", flush=True)
        return []
    bos = manifest.tokenizer.bos_id
    ids = [[bos, *tokenizer.encode(prompt)] for prompt in prompts]
    if max(map(len, ids)) >= model.cfg.max_seq_len:
        print(f"warning: no samples: a prompt fills model.max_seq_len = {model.cfg.max_seq_len}", flush=True)
        return []
    texts = generate(model, ids, count, bos, seed=seed).ids
    return [
        {"prompt": prompt, "text": tokenizer.decode(text, behind[-1])}
        for prompt, behind, text in zip(prompts, ids, texts, strict=True)
    ]
