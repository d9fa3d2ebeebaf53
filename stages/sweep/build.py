"""What a sweep asks of the stages: the tokenizer, the tokenized text, what is held out, and a run trained and scored.

The driver's part, beside the stages' own: nothing here is among the stages of a recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from stages.pack.stage import PACK, Packed
from stages.stage import BuildContext, Record, Unit
from stages.sweep import score
from stages.task import Artifact
from stages.tokenize.stage import TOKENIZE
from stages.tokenizer.stage import BUILD_TOKENIZER
from stages.train.stage import TRAIN


@dataclass(frozen=True)
class SourceText:
    """The tokenized text of a source."""

    tokens: int  # to train on
    digest: str  # of all of it, held-out documents too


async def build_tokenizer(context: BuildContext) -> Artifact:
    """Return the recipe's tokenizer."""
    return (await context.stage(BUILD_TOKENIZER)).output("tokenizer")


async def tokenize(context: BuildContext, sources: Sequence[str]) -> dict[str, SourceText]:
    """Return the tokenized text of each source."""
    tokenized = await context.stage(TOKENIZE)
    found = {}
    for name in sources:
        contents = [unit.output(file).digest for unit in tokenized[name] for file in ("docs", "tokens")]
        digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
        found[name] = SourceText(context.counts(TOKENIZE, name).get("train_tokens", 0), digest)
    return found


async def hold_out(context: BuildContext, mixture: str) -> list[Artifact]:
    """Return the files of a packed mixture that decide what a run is scored on."""
    packed: Packed = await context.stage(PACK[mixture])
    return [artifact for name, artifact in sorted(packed.files.items()) if name != "manifest.json"]


async def train(context: BuildContext) -> Record:
    """Return the record of the recipe's one phase."""
    (record,) = (await context.stage(TRAIN)).values()
    return record


async def score_run(context: BuildContext, trained: Record, held_out: Sequence[Artifact], manifest: str) -> Artifact:
    """Return the rows of a run's scores on what is held out, which `manifest` describes."""
    model = trained.output("model")
    place, _, _ = context.place(model).rpartition("/")
    places = {"run": place if context.local_store else f"{place}/run", "manifest": manifest}
    record = await context.run(TRAIN, Unit(score.work, {}, [model, *held_out], "score", places=places))
    return record.output("evaluation")
