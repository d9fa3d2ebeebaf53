"""The stages, in the order of the pipeline. To add one: write a module with a `Stage` and name it here."""

from __future__ import annotations

from stages.base import Stage
from stages.decontaminate import stage as decontaminate
from stages.dedup import stage as dedup
from stages.download import stage as download
from stages.evals import encode
from stages.evals import stage as evals
from stages.exclude import stage as exclude
from stages.filter import stage as filter
from stages.pack.stage import PACK_ANNEAL, PACK_PRETRAIN
from stages.tokenize import stage as tokenize
from stages.tokenizer import stage as build_tokenizer
from stages.train.stage import STAGE as TRAIN

ORDER = (
    download.STAGE,
    filter.STAGE,
    dedup.STAGE,
    decontaminate.STAGE,
    exclude.STAGE,
    build_tokenizer.STAGE,
    tokenize.STAGE,
    evals.STAGE,
    encode.STAGE,
    PACK_PRETRAIN,
    PACK_ANNEAL,
    TRAIN,
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in ORDER}
