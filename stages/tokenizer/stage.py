"""Train the tokenizer: byte-level BPE on a capped sample of the curated text, every source by its share.

A tokenizer that somebody else trained is taken as it is (`tokenizer.from`; see `stages.tokenizer.external`).
"""

from __future__ import annotations

import asyncio
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.decontaminate.stage import DECONTAMINATE
from stages.exclude.stage import EXCLUDE
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact
from stages.tokenizer import external, sentencepiece_work
from stages.tokenizer.long_words import long_words_line
from stages.tokenizer.work import adopt, work


async def build(context: BuildContext) -> Record:
    """Build the one tokenizer of the recipe."""
    exclude, config = context.recipe.exclude, context.recipe.tokenizer
    retrains = exclude.asked and exclude.retrain_tokenizer
    curated = (await context.stage(EXCLUDE)).docs if retrains else (await context.stage(DECONTAMINATE)).docs
    context.check_quarantine()
    parts = [part for parts in curated.values() for part in parts]
    weight = min(config.sample, sum(part.meta.get("text_bytes", 0) for part in parts))
    params: dict[str, Any] = {
        "sample": config.sample,
        "sources": [[name, len(parts)] for name, parts in curated.items()],
        "vocab_size": config.vocab_size,
    }
    if config.kind == "sentencepiece":
        params |= {"model_type": config.model_type, "reserved": config.reserved_names()}
        params["package"] = metadata.version("sentencepiece")
        unit = Unit(sentencepiece_work.work, params, parts, str(config.vocab_size), weight=weight)
        return await context.run(BUILD_TOKENIZER, unit)
    if config.source is None:
        params |= {"split": config.split, "digits": config.digits, "reserved": config.reserved_names()}
        record = await context.run(BUILD_TOKENIZER, Unit(work, params, parts, str(config.vocab_size), weight=weight))
        if cut := record.counts.get("cut_words"):
            context.warn(long_words_line(cut, record.counts["longest_word"]))
        return record
    file = await asyncio.to_thread(external.locate, config.source)
    own = None if config.bos else await asyncio.to_thread(external.own_bos, file)
    params |= {"bos": config.bos, **({"own_bos": own} if own else {})}
    record = await context.run(BUILD_TOKENIZER, Unit(adopt, params, [file, *parts], config.source, weight=weight))
    if record.counts.get("front_blank_lost"):
        context.warn(
            f"tokenizer.from: {config.source} puts a blank in front of a text that has none there, so that a text with "
            "one comes back without it"
        )
    if not (config.bos or own):
        context.warn(
            f"tokenizer.from: {config.source} does not say which token begins a document, so id "
            f"{record.output('tokenizer').meta['bos_id']} was taken; name another with tokenizer.bos"
        )
    return record


def publish(record: Record) -> dict[str, dict[str, Artifact]]:
    """Publish `tokenizer/`: its file, report.json, and beside a tokenizer.json what `transformers` needs to load it."""
    names = ("tokenizer", "report", "tokenizer_config", "special_tokens_map")
    files = [output for output in record.outputs if output.name in names]
    return {"tokenizer": {f"{file.name}{Path(file.path).suffix}": file for file in files}}


BUILD_TOKENIZER = Stage(
    name="build_tokenizer",
    reads="a sample of decontaminate's or exclude's documents, validation documents left out",
    writes="tokenizer/: tokenizer.json, a report, and what transformers needs to load it",
    build=build,
    after=(DECONTAMINATE, EXCLUDE),
    libraries=("pyarrow", "numpy", "tokenizers"),
    publish=publish,
)
