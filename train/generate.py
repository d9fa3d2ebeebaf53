"""Text from a trained model, a token at a time, with what each layer has seen kept in a cache.

    python -m train.generate runs/a --prompt "The capital" --prompt "Once" --tokens 100 --temperature 0.7 --top-p 0.9

A global layer keeps the keys and values of everything; a sliding one a ring of its window, so that its memory and its
time per token stop growing there. Tests hold every position of this path against the forward pass without a cache.

Prompts of one call stand in columns, ended together: shorter ones have padding in front, which no one sees and which
their positions do not count. So a text does not depend on what else is in the batch, up to the rounding of sums.

A model's memory tokens stand between the padding and the text, at the first positions. Embeddings that look back at the
tokens before (SmearGate, BigramHash) get their ids from the cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.checkpoint.load_model import TrainedModel, add_model_arguments, model_from_arguments
from train.config import TrainError
from train.data.manifest import ManifestError
from train.exit_status import complain, run_command
from train.model.attention import attend, sdpa
from train.model.masks import row_mask
from train.model.transformer import Model
from train.tokenizer.pieces import TokenizerError
from train.tokenizer.text import TextTokenizer

TEMPERATURE, TOP_P = 0.7, 0.9  # the seed's card
PIECE = 1024  # columns of a prompt read at once: masks are then PIECE wide, not as the prompt is long


class LayerKVCache:
    """Keys and values of one layer, (B, H, size, D), column c in slot c % size; called, it is the layer's attention."""

    def __init__(self, cache: KVCache, window: int | None) -> None:
        self.cache, self.window = cache, window
        self.size = cache.size if window is None else min(window, cache.size)
        self.keys, self.values = torch.empty(0), torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the next n columns over all that they may see; q, k, v and the result (B, H, n, D)."""
        start, n = self.cache.length, k.shape[2]
        if not start:
            self.keys, self.values = (k.new_empty(*k.shape[:2], self.size, k.shape[3]) for _ in range(2))
        if n == 1:
            self._keep(k, v)
            slots = torch.arange(min(start + 1, self.size), device=k.device)
            columns = start - (start - slots) % self.size  # the newest of each slot
            hidden = self.cache.hidden(columns)
            mask = None if hidden is None else (~hidden | (columns == start))[:, None, None]
            return sdpa(q, self.keys[:, :, : len(slots)], self.values[:, :, : len(slots)], mask)
        if not start and self.cache.padding is None:
            self._keep(k, v)
            return attend(q, k, v, row_mask(n, self.window, k.device))
        before = torch.arange(max(0, start - self.size), start, device=k.device)
        new = torch.arange(start, start + n, device=k.device)
        columns, slots = torch.cat([before, new]), before % self.size
        keys, values = torch.cat([self.keys[:, :, slots], k], 2), torch.cat([self.values[:, :, slots], v], 2)
        distance = new[:, None] - columns[None]
        mask = (distance >= 0) & (distance < (self.window or sys.maxsize))
        hidden = self.cache.hidden(columns)
        if hidden is not None:  # each column sees itself: nothing is defined for one that sees none
            mask = (mask & ~hidden[:, None, None]) | (distance == 0)
        self._keep(k, v)
        return sdpa(q, keys, values, mask)

    def _keep(self, k: Tensor, v: Tensor) -> None:
        start, n = self.cache.length, k.shape[2]
        kept = min(n, self.size)
        slots = torch.arange(start + n - kept, start + n, device=k.device) % self.size
        self.keys[:, :, slots], self.values[:, :, slots] = k[:, :, -kept:], v[:, :, -kept:]


class KVCache:
    """What a model has read of B texts, `size` columns at most, and ahead of them as many as it has memory tokens."""

    def __init__(self, model: Model, size: int, padding: Tensor | None = None) -> None:
        """padding: (B,) columns in front of each text that hold none of it; None: there are none."""
        self.memory = model.cfg.memory_tokens
        self.model, self.size, self.padding, self.length = model, size + self.memory, padding, 0
        self.last_ids: Tensor | None = None  # (B, n) the last columns' ids, as many as the next embedding looks at
        self.layers = [LayerKVCache(self, block.attn.window) for block in model.blocks]

    def hidden(self, columns: Tensor) -> Tensor | None:
        """(B, len(columns)) which of these are padding; None where none can be."""
        return None if self.padding is None else columns[None] < self.padding[:, None]

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """(B, n, d) normed states of the next n columns, ids (B, n)."""
        ahead = 0 if self.length else self.memory  # columns of memory, whose ids mean nothing
        ids = F.pad(ids, (ahead, 0)) if ahead else ids
        columns = torch.arange(self.length, self.length + ids.shape[1], device=ids.device)
        padding = torch.zeros(1, dtype=torch.long, device=ids.device) if self.padding is None else self.padding
        # clamped where no text stands: in padding, and in rows that ended while others go on
        positions = (columns[None] - padding[:, None]).clamp(0, self.memory + self.model.cfg.max_seq_len - 1)
        states = self.model.trunk(ids, positions, self.layers, start=self.memory, before=self.last_ids)
        self.length += ids.shape[1]
        if self.model.looks_back:
            known = ids if self.last_ids is None else torch.cat([self.last_ids, ids], 1)
            self.last_ids = known[:, -self.model.looks_back :]
        return states[:, ahead:] if ahead else states


def sample_token(logits: Tensor, uniform: float, temperature: float = TEMPERATURE, top_p: float = TOP_P) -> int:
    """One id from (V,) logits at `temperature`, among the most likely that hold `top_p`; `uniform` in [0, 1) decides.

    Temperature 0: the likeliest.
    """
    if not temperature:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu().double() / temperature, -1)  # a Mac's GPU has no fp64
    values, ids = probabilities.sort(descending=True, stable=True)
    before = values.cumsum(0) - values  # the first is always kept
    values = torch.where(before < top_p, values, 0.0)
    index = torch.searchsorted(values.cumsum(0), uniform * values.sum(), right=True)
    return int(ids[min(int(index), len(ids) - 1)])


@dataclass(frozen=True)
class Generated:
    """What `generate` made: new ids of each prompt, `stop` left out; and how long reading and writing took."""

    ids: list[list[int]]
    prompt_tokens: int
    prompt_seconds: float  # to each text's first token
    written: int  # tokens after those, `stop` included
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of writing, over all texts together; 0 when none was longer than its first token."""
        return self.written / self.seconds if self.written else 0.0


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stop: int | None = None,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    seed: int = 0,
) -> Generated:
    """Up to `tokens` ids after each prompt (ids, at least one each), fewer where `stop` comes or max_seq_len is full.

    Prompt number i draws from (seed, i) alone. Raises TrainError for a prompt that fills max_seq_len.
    """
    longest, limit = max(map(len, prompts)), model.cfg.max_seq_len
    if longest >= limit:
        raise TrainError(f"a prompt of {longest:,} tokens leaves no room in model.max_seq_len = {limit:,}; shorten it")
    if not all(prompts):
        raise TrainError("a prompt has no tokens; it begins with BOS at least")
    device = model.embed.weight.device
    rooms = [min(tokens, limit - len(p)) for p in prompts]
    padding = torch.tensor([longest - len(p) for p in prompts], device=device)
    draws = [np.random.default_rng((seed, i)) for i in range(len(prompts))]
    texts: list[list[int]] = [[] for _ in prompts]
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    cache = KVCache(model, longest + max(rooms), padding if padding.any() else None)
    training = model.training
    model.eval()
    begun = time.perf_counter()
    for piece in ids.split(PIECE, 1):
        states = cache.read(piece)
    going, written, first = [True] * len(prompts), 0, begun
    for step in range(max(rooms)):
        logits = model.logits(states[:, -1])
        chosen = [
            sample_token(row, rng.random(), temperature, top_p) if on else 0
            for row, rng, on in zip(logits, draws, going, strict=True)
        ]
        written += sum(going) if step else 0
        going = [on and token != stop for on, token in zip(going, chosen, strict=True)]
        for text, token, on in zip(texts, chosen, going, strict=True):
            text += [token] if on else []
        going = [on and len(text) < room for on, text, room in zip(going, texts, rooms, strict=True)]
        first = first if step else time.perf_counter()
        if not any(going):
            break
        states = cache.read(torch.tensor(chosen, device=device)[:, None])
    model.train(training)
    return Generated(texts, sum(map(len, prompts)), first - begun, written, time.perf_counter() - first)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def continue_texts(trained: TrainedModel, prompts: list[str], given: argparse.Namespace) -> None:
    """Print each prompt with its continuation; the speed goes to stderr."""
    try:
        tokenizer = TextTokenizer(trained.tokenizer)
    except TokenizerError as error:
        raise TrainError(str(error)) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained.model(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    bos = trained.manifest.tokenizer.bos_id
    ids = [[bos, *tokenizer.encode(text)] for text in prompts]
    longest = max(map(len, ids)) + given.tokens
    if longest > trained.seq_len:
        note = f"note: {longest:,} tokens, trained on windows of {trained.seq_len:,}: it may lose itself beyond them"
        print(note, file=sys.stderr)
    made = generate(model, ids, given.tokens, bos, given.temperature, given.top_p, given.seed)
    for prompt, behind, new in zip(prompts, ids, made.ids, strict=True):
        print(prompt + tokenizer.decode(new, behind[-1]))
        if len(prompts) > 1:
            print("---")
    sys.stdout.flush()
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{len(prompts)} text(s), {count:,} parameters, {str(model.dtype).removeprefix('torch.')} on {device.type}: "
        f"{made.prompt_tokens:,} tokens read in {made.prompt_seconds:.2f} s, then {made.written:,} written in "
        f"{made.seconds:.2f} s: {made.tokens_per_second:,.1f} tokens/s",
        file=sys.stderr,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m train.generate", description="Continue texts with a trained model")
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", required=True, help="what to continue; give it again for more")
    parser.add_argument("--tokens", type=int, default=100, help="at most so many for each (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="0: the likeliest (%(default)s)")
    parser.add_argument("--top-p", type=float, default=TOP_P, help="share that the candidates hold (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (%(default)s)")
    given = parser.parse_args(arguments)
    if given.tokens < 1 or given.temperature < 0 or not 0 < given.top_p <= 1 or given.seed < 0:
        parser.error("--tokens must be at least 1, --temperature and --seed at least 0, --top-p in (0, 1]")
    for prompt in given.prompt:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            shown = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in prompt[:200])
            shown = shown.encode("utf-8", "backslashreplace").decode()
            parser.error(f"--prompt '{shown}' is no UTF-8 at character {error.start}; write it in UTF-8")
    try:
        continue_texts(model_from_arguments(given), given.prompt, given)
    except (TrainError, ManifestError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    run_command(main)
