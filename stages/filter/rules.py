"""Filter rules: each looks at one document and says whether it stays, goes, or stays with another text.

A rule is a function of a document with its thresholds as keyword arguments, whose defaults are those of the
paper it comes from. It returns None to keep the document, the reason to drop it, or the document edited. A recipe
names rules, and thresholds where it wants others:

    rules: [gopher_quality, {length: {min_chars: 200}}, {metadata: {int_score: {min: 3}}}]

To add one, write the function in a file of its family and name it in RULES. A reason begins with the rule's name or
its family's, and is counted for each source. A rule runs as it is written, unless a kernel of its family
(`stages.kernels.rules` lists them) compiles it as well; then the kernel runs, and must decide exactly as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stages.filter.c4 import c4
from stages.filter.document import Document
from stages.filter.fineweb import fineweb
from stages.filter.gopher import gopher_quality, gopher_repetition
from stages.filter.length import length
from stages.filter.metadata import metadata

Rule = Callable[..., str | Document | None]
ParsedRule = tuple[str, dict[str, Any]]  # its name, and all its thresholds

RULES: dict[str, Rule] = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "length": length,
    "metadata": metadata,
}
EDITING = ("c4",)  # rules that leave another text


def apply_rules(document: Document, rules: Sequence[ParsedRule]) -> tuple[str | None, Document]:
    """Return the reason of the first rule that drops the document, or None; and the document as the rules left it.

    Text that is empty, or that an edit leaves empty, is always dropped. What rules on measures say is known of a whole
    source alone (`stages.filter.verdict.judge`): they are passed over.
    """
    for name, thresholds in rules:
        if not document.text:
            break
        if name not in RULES:
            continue
        outcome = RULES[name](document, **thresholds)
        if isinstance(outcome, str):
            return outcome, document
        document = outcome or document
    return (None if document.text else "empty"), document
