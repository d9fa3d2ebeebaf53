"""Items of an evaluation set as a page might have them, whole and with light edits."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

BRITISH = {"color": "colour", "center": "centre", "meter": "metre", "liter": "litre", "fiber": "fibre", "gray": "grey"}
BRITISH |= {"organize": "organise", "behavior": "behaviour", "analyze": "analyse", "aluminum": "aluminium"}
EDITS = ("case", "punctuation", "space", "replace", "insert", "delete", "spelling")


def marked(question: str, choices: Sequence[str], marks: Sequence[str], between: str = "\n") -> str:
    """Question and choices, each with a mark before it."""
    return between.join([question, *(f"{m} {c}".strip() for m, c in zip(marks, choices, strict=False))])


WAYS: dict[str, Callable[[str, Sequence[str], int], str]] = {
    "question alone": lambda q, c, a: q,
    "choices on lines": lambda q, c, a: marked(q, c, [""] * len(c)),
    "choices lettered": lambda q, c, a: marked(q, c, ["A.", "B.", "C.", "D.", "E."]),
    "choices numbered": lambda q, c, a: marked(q, c, ["1)", "2)", "3)", "4)", "5)"]),
    "choices in brackets": lambda q, c, a: marked(q, c, ["(a)", "(b)", "(c)", "(d)", "(e)"], " "),
    "as we train on it": lambda q, c, a: (
        "Question: " + marked(q, c, ["A.", "B.", "C.", "D.", "E."]) + f"\nAnswer: {c[a]}"
    ),
    "right answer after it": lambda q, c, a: f"{q} {c[a]}",
}


def edited(text: str, how: str, rng: random.Random) -> str:
    """The text with one light edit, one of EDITS."""
    if how == "case":
        return rng.choice([str.upper, str.lower, str.title])(text)
    if how == "punctuation":
        return re.sub(r"[.,?;:()]", lambda m: rng.choice(["", ";", " - ", "!"]), text)
    if how == "space":
        return re.sub(" ", lambda m: rng.choice([" ", "  ", "\n", "\t"]), text)
    given = text.split(" ")
    at = rng.randrange(len(given))
    if how == "spelling":
        known = [i for i, w in enumerate(given) if w.lower().strip(".,?") in BRITISH]
        at = known[0] if known else at
        given[at] = BRITISH.get(given[at].lower().strip(".,?"), given[at] + "e")
    else:
        given[at : at + (how != "insert")] = [] if how == "delete" else ["something"]
    return " ".join(given)
