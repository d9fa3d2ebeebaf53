"""Multiple choice by likelihood: which of a question's choices the model holds most likely.

A choice's log-likelihood is the sum over its tokens, after BOS and the item's prompt (stages/encode_evals/work.py says
how text is cut into the two). Of n items,

    acc           the answer has the largest log-likelihood
    acc_norm      ... the largest log-likelihood per byte of the choice, so that long choices are not put off
    choice_nats   mean of -ln(p(answer) / sum of p(choices)), p = exp(log-likelihood / bytes): ln(choices) for a model
                  that prefers none. (Of plain likelihoods it would measure how unlike in length the choices are.)
    answer_bits_per_byte    mean of -log2 of the answer's likelihood, per byte

with the standard error of each mean, and chance, the mean of 1 / choices. acc and acc_norm are lm-evaluation-harness's,
whose acc_norm divides by characters (its acc_bytes by bytes): the same for ASCII, as all choices of ARC's validation
splits are. The last two move before a small model's accuracies do; bits per byte of the answer are what task scaling
laws are fitted to (arXiv:2412.04403).

Rows are padded at their ends, which under causal attention changes nothing before, to few lengths, and run without
torch.compile: an evaluation is a few hundred thousand tokens, less work than compiling for another shape. Whole batches
go to the ranks in turn and sums are fp64, so that figures do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from train.config import TrainError
from train.data.evalset import Item, read_evalset
from train.data.manifest import EvalSet, Manifest, ManifestError
from train.eval.passes import passes_of_rank
from train.files import sha256_file
from train.model.loss import token_losses
from train.model.transformer import Model

BATCH_TOKENS = 16_384  # of a forward pass, about
STEP = 32  # lengths are multiples of it


@dataclass(frozen=True)
class ChoiceScore:
    """How a set of questions went; see the module. A `stderr` is of the mean before it, nan for a single item."""

    items: int
    chance: float
    acc: float
    acc_stderr: float
    acc_norm: float
    acc_norm_stderr: float
    choice_nats: float
    choice_nats_stderr: float
    answer_bits_per_byte: float
    answer_bits_per_byte_stderr: float
    # (items, 4): of each item the four figures that have an error; not kept with the score
    rows: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_nats(cls, items: list[Item], nats: list[list[float]]) -> ChoiceScore:
        """Make the score of the nats (-log-likelihood) of each item's choices."""
        figures: list[tuple[bool, bool, float, float]] = []
        for item, losses in zip(items, nats, strict=True):
            log_p = -np.array(losses)
            per_byte = log_p / item.bytes
            answer = per_byte[item.answer]
            right = (np.argmax(log_p) == item.answer, np.argmax(per_byte) == item.answer)
            figures.append((*right, np.logaddexp.reduce(per_byte) - answer, -answer / math.log(2)))
        values = np.array(figures, np.float64)  # (n, 4)
        n = len(items)
        errors = values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full(4, np.nan)
        pairs = np.stack([values.mean(0), errors], 1).flatten().tolist()
        return replace(cls(n, sum(1 / len(losses) for losses in nats) / n, *pairs), rows=values)

    def figures(self) -> dict[str, float]:
        """Return what is kept of it, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}

    def metrics(self) -> dict[str, float]:
        """Return what a logged step says of it."""
        return {name: getattr(self, name) for name in ("acc", "acc_norm", "choice_nats", "answer_bits_per_byte")}

    def __str__(self) -> str:
        return (
            f"acc {100 * self.acc:.1f} ± {100 * self.acc_stderr:.1f} %, acc_norm {100 * self.acc_norm:.1f} ± "
            f"{100 * self.acc_norm_stderr:.1f} % (chance {100 * self.chance:.1f} %), choice_nats "
            f"{self.choice_nats:.4f}, {self.answer_bits_per_byte:.4f} bits/byte of the answers"
        )


class ChoiceRow(NamedTuple):
    """BOS, prompt and choice, of which the last `choice_len` tokens are scored."""

    ids: list[int]
    choice_len: int


class MultipleChoice:
    """The questions of a manifest's evaluation sets, as rows to score, fixed for a run."""

    def __init__(
        self,
        manifest: Manifest,
        max_len: int,
        limit: int | None,
        group: dist.ProcessGroup | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Read the questions.

        max_len: tokens the model reads at most.
        limit: items of each set, evenly spread; 0 for all, None for none.
        Raises ManifestError for a file that is not the manifest's, TrainError for a choice longer than `max_len`.
        """
        self.process_group, self.rank, self.world_size, self.max_len = group, rank, world_size, max_len
        self.sets: dict[str, list[Item]] = {}
        self.notes: list[str] = []  # what a person should know before the first score
        if limit is not None:
            for entry in manifest.evals:
                self._add_set(manifest, entry, limit)
        rows = [
            ChoiceRow([manifest.tokenizer.bos_id, *item.prompt, *choice], len(choice))
            for items in self.sets.values()
            for item in items
            for choice in item.choices
        ]
        self.order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))  # the longest first
        self.rows = [rows[i] for i in self.order]
        self.batches: list[range] = []
        start = 0
        while start < len(rows):
            stop = min(start + max(1, BATCH_TOKENS // self._padded_len(self.rows[start])), len(rows))
            self.batches.append(range(start, stop))
            start = stop

    def _add_set(self, manifest: Manifest, entry: EvalSet, limit: int) -> None:
        path = manifest.file(entry.path)
        items = read_evalset(path, entry, manifest.tokenizer.vocab_size)
        if sha256_file(path) != entry.sha256:
            raise ManifestError(f"{path}: changed since it was packed; pack it again")
        count = min(limit or len(items), len(items))
        chosen = [items[i * len(items) // count] for i in range(count)]
        fitting = [shorten_prompt(item, self.max_len, entry.name) for item in chosen]
        shortened = sum(len(a.prompt) < len(b.prompt) for a, b in zip(fitting, chosen, strict=True))
        if shortened:
            self.notes.append(
                f"note: evals.{entry.name}: the beginning of {shortened} of {count} prompts is left out, as with a "
                f"choice they are longer than model.max_seq_len = {self.max_len}"
            )
        self.sets[entry.name] = fitting

    def score(
        self, model: Model, device: torch.device, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, ChoiceScore]:
        """Return the score of each set. Every rank calls it, with the model in evaluation mode, and gets the same.

        Raises EvaluationStoppedError as `passes_of_rank` does.
        """
        nats = self.nats(model, device, should_stop)
        if self.world_size > 1 and len(nats):  # exact: every element is 0 on all ranks but one
            dist.all_reduce(torch.from_numpy(nats), group=self.process_group)
        rest = iter(nats.tolist())
        scores: dict[str, ChoiceScore] = {}
        for name, items in self.sets.items():
            nats_of_items = [[next(rest) for _ in item.choices] for item in items]
            scores[name] = ChoiceScore.from_nats(items, nats_of_items)
        return scores

    def nats(
        self, model: Model, device: torch.device, should_stop: Callable[[], bool] | None = None
    ) -> NDArray[np.float64]:
        """Return the nats of all items' choices, (choices,): 0 for those that are another rank's to score."""
        nats = np.zeros(len(self.rows))
        for batch in passes_of_rank(self.batches, self.rank, self.world_size, should_stop):
            places = [self.order[i] for i in batch]
            nats[places] = self._nats_of_rows(model, [self.rows[i] for i in batch], device)
        return nats

    def _padded_len(self, row: ChoiceRow) -> int:
        """Return the length of a batch whose longest row this is."""
        return min(-(-(len(row.ids) - 1) // STEP) * STEP, self.max_len)

    @torch.no_grad()
    def _nats_of_rows(self, model: Model, rows: list[ChoiceRow], device: torch.device) -> NDArray[np.float64]:
        """Return the nats of the choice of each row, (n,); the first row is the longest."""
        batch = np.zeros((len(rows), self._padded_len(rows[0])), np.int64)
        for number, row in enumerate(rows):
            batch[number, : len(row.ids) - 1] = row.ids[:-1]
        # the head sees the states ahead of the choices' tokens alone: most tokens are prompt
        counts = np.array([row.choice_len for row in rows])
        ends = np.array([len(row.ids) - 1 for row in rows])
        row_numbers = np.repeat(np.arange(len(rows)), counts)
        columns = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, counts, strict=True)])
        targets = np.concatenate([row.ids[-row.choice_len :] for row in rows])
        hidden_states = model.text_states(torch.from_numpy(batch).to(device))
        picked = hidden_states[torch.from_numpy(row_numbers).to(device), torch.from_numpy(columns).to(device)]
        on_device = torch.from_numpy(targets).to(device)
        losses = token_losses(picked, model.head_weight, on_device, model.cfg.lm_head_logit_cap)
        return np.add.reduceat(losses.double().cpu().numpy(), np.cumsum(counts) - counts)


def shorten_prompt(item: Item, max_len: int, name: str) -> Item:
    """Return the item with as much of its prompt's end as fits into `max_len` with BOS and its longest choice.

    The last target is not read, so it does not count. Raises TrainError for a choice that does not fit alone.
    """
    room = max_len - max(map(len, item.choices))
    if room < 0:
        raise TrainError(
            f"evals.{name}: item {item.id} has a choice of {max_len - room} tokens, above model.max_seq_len = "
            f"{max_len}; raise that, or set train.eval_items=null"
        )
    return item if len(item.prompt) <= room else replace(item, prompt=item.prompt[len(item.prompt) - room :])
