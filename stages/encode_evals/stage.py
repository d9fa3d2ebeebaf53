"""Encode evaluation sets: each in the tokens of the recipe's tokenizer, for the trainer."""

from __future__ import annotations

from stages.encode_evals.work import work
from stages.evals.stage import EVALS
from stages.stage import BuildContext, Record, Stage, Unit
from stages.tokenizer.stage import BUILD_TOKENIZER


async def build(context: BuildContext) -> dict[str, Record]:
    """Encode each set: return its record, with the output `encoded`, by its name.

    Without sets no tokenizer is asked for.
    """
    sets = await context.stage(EVALS)
    if not sets:
        return {}
    tokenizer = (await context.stage(BUILD_TOKENIZER)).output("tokenizer")
    records = await context.map(
        ENCODE_EVALS,
        (
            Unit(
                work,
                {"prompt": context.recipe.evals[name].prompt},
                [tokenizer, record.output("items")],
                "encoded",
                name,
            )
            for name, record in sets.items()
        ),
    )
    return dict(zip(sets, records, strict=True))


ENCODE_EVALS = Stage(
    name="encode_evals",
    reads="evals, the tokenizer",
    writes="eval_<name>.json of each mixture",
    build=build,
    after=(EVALS, BUILD_TOKENIZER),
    libraries=("numpy", "pyarrow", "tokenizers"),
)
