"""The stages, in the order of the pipeline. To add one: write a module with a `Stage` and name it here."""

from __future__ import annotations

from stages import build_tokenizer, decontaminate, dedup, download, encode_evals, evals, exclude, filter, tokenize
from stages.base import Stage
from stages.pack import PACK_ANNEAL, PACK_PRETRAIN
from stages.train import STAGE as TRAIN

ORDER = (
    download.STAGE,
    filter.STAGE,
    dedup.STAGE,
    decontaminate.STAGE,
    exclude.STAGE,
    build_tokenizer.STAGE,
    tokenize.STAGE,
    evals.STAGE,
    encode_evals.STAGE,
    PACK_PRETRAIN,
    PACK_ANNEAL,
    TRAIN,
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in ORDER}
