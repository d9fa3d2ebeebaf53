"""C4's rules (Raffel et al. 2020, section 2.2, and its code), readable.

They are read as datatrove reads them, with FineWeb's defaults, but a sentence ends at a word that ends in terminal
punctuation, closing quotes and brackets aside. The rules are made for prose: `c4_curly_bracket` drops LaTeX and code.
`stages.kernels.c4` compiles them, and must decide and edit exactly as `c4` does.
"""

from __future__ import annotations

import re

from stages.comparable import comparable
from stages.filter.document import Document
from stages.kernels.unicode import CLOSERS, TERMINAL

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4(
    document: Document,
    *,
    min_sentences: int = 5,
    min_words_per_line: int = 3,
    max_word_length: int = 1000,
    terminal_punctuation: bool = False,
    curly_bracket: bool = True,
    lorem_ipsum: bool = True,
    javascript: bool = True,
    policy: bool = True,
    citations: bool = True,
) -> str | Document:
    """C4's rules, in its code's order. An edit: gives the document with the lines that stay, or why none does.

    Lines go that have few words, a word beyond `max_word_length` characters, "javascript" or a policy phrase (in any
    case), or, where `terminal_punctuation` is on (FineWeb has it off), no full stop, question or exclamation mark or
    quote at their end. A line with `{` or "lorem ipsum" takes the document with it. Citations such as [3], [edit] and
    [citation needed] are cut out. The lines that stay are stripped and joined by line feeds.
    """
    kept_lines = []
    sentences = 0
    for written in document.text.splitlines():
        line = comparable(written).strip()  # of each line: a format character between CR and LF would move the others
        words = line.split()
        if any(len(word) > max_word_length for word in words):
            continue
        if citations:
            line = CITATION.sub("", line)
        if terminal_punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < min_words_per_line:
            continue
        lower = line.lower()
        if lorem_ipsum and "lorem ipsum" in lower:
            return "c4_lorem_ipsum"
        if javascript and "javascript" in lower:
            continue
        if curly_bracket and "{" in line:
            return "c4_curly_bracket"
        if policy and any(phrase in lower for phrase in POLICY):
            continue
        sentences += count_sentences(line)
        kept = written.strip() if words else ""  # a line of format characters alone is an empty one
        kept_lines.append(CITATION.sub("", kept) if citations else kept)
    if sentences < min_sentences:
        return "c4_few_sentences"
    return document._replace(text="\n".join(kept_lines).strip())


def count_sentences(line: str) -> int:
    """Count the words that end in terminal punctuation, closing quotes and brackets aside; the last ends one anyway."""
    ends = [word.rstrip(CLOSERS)[-1:] in TERMINAL for word in line.split()]
    if ends:
        ends[-1] = True
    return sum(ends)
