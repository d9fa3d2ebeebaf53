"""Text that is hard on rules, and the comparison of the compiled rules with the readable ones."""

from __future__ import annotations

import random

import pyarrow as pa

from stages.filter.apply import apply_to_column
from stages.filter.document import Document
from stages.filter.measure import text_hash, text_hashes
from stages.filter.parse import parse_rules
from stages.filter.rules import apply_rules

LOOSE = {"min_words": 1, "min_mean_word_length": 0, "max_mean_word_length": 1e9, "min_stop_words": 1}
EVERY = ["gopher_repetition", "gopher_quality", "c4", "fineweb"]
# Each rule alone, as FineWeb runs them, and with thresholds that let hostile text reach the later ones.
PROGRAMS = [
    *([name] for name in EVERY),
    EVERY,
    [{"length": {"min_chars": 20, "max_chars": 500}}],
    [{"gopher_quality": {**LOOSE, "min_alphabetic_words": 0.3, "max_symbol_ratio": 0.5, "max_bullet_lines": 0.4}}],
    [
        {"c4": {"min_sentences": 0, "min_words_per_line": 0, "max_word_length": 30, "terminal_punctuation": True}},
        {"c4": {"min_sentences": 1, "curly_bracket": False, "citations": False}},
        {"fineweb": {"max_repeated_chars": 0.2}},
    ],
    [{"c4": {"min_sentences": 0, "min_words_per_line": -1, "max_word_length": -1, "curly_bracket": False}}],
    [{"gopher_repetition": {"max_paragraphs": 1, "max_lines": 1, "max_line_chars": 1, "max_top_2_gram": 1}}],
    [{"fineweb": {"min_line_punctuation": 0, "max_short_lines": 1, "max_repeated_chars": 1}}],
]
PARSED = [parse_rules(program) for program in PROGRAMS]
PARSED += [parse_rules(program, "blanks") for program in (EVERY[:1], PROGRAMS[6], PROGRAMS[-1])]

PIECES = (
    "... … # • - [1] [edit] [citation|needed] [٣] [²] [[1]] { javascript JavaScript java[1]script lorem|ipsum "
    "Lorem|İpsum use|cookies USE|COO\u212aIES uses|cookies use|of|cookies Terms|of|use privacy|policy cookie|policy "
    'the be to Of (and) that. "have" with! the\x00 K ſ Σ ß é e\u0301 \u0301 👩\u200d👩\u200d👧 עברית 漢字。 १२ Ⅷ ² ½ ٣ '
    "\x00 a b word word|two Hello|there. ? ' ” ). \ufeff \u200b 𝒳 \U000e0020 \U0003134f \U0010ffff ᄀ ᅡ ᆨ Å ﬁ "
    "&nbsp; &lt; &#123; &amp;#46; &hellip; &#10; java\u00adscript lorem&#32;ipsum ｔｈｅ th\u00ade &eacute; क\u093f "
    "\u1103\u1161 [&#49;] &#91;2] \u093c\u094d \u0327\u0301 … ½ ™ "
    "&shy; &amp;lt; &#x [\u00ad1] [1\u00ad] &nbsp;[3] &#0; \r&shy; "
    "well-known a--b a-– x—y-z - -- ..foo foo.. ...! !.. . .5 $5 5$ 100% (a) «b», _x_ ☃ ©☃the© to-be के-लिए \u0301- ²-a"
)
SPACES = ["\n", "\n\n", " ", "\t", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u2028", "\u2029", "\u3000"]
PIECES = [piece.replace("|", " ") for piece in PIECES.split(" ")] + SPACES + ["\xa0", "x" * 40, "\r\u00ad\n", "\xad"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "with", "sun", "moon.", "it", "was", "of", "be"]


def hostile(rng: random.Random) -> str:
    """A text: bits that rules look for, any characters, prose that repeats itself, or a line again and again."""
    kind, n = rng.random(), rng.choice([0, 1, 2, 5, 20, 60, 200])
    if kind < 0.5:
        few = rng.sample(PIECES, rng.randint(1, len(PIECES)))
        return "".join(rng.choice(few) + rng.choice(["", " ", " ", "\n"]) for _ in range(n))
    if kind < 0.6:
        ranges = [(0, 0xD800), (0xE000, 0x110000), (0, 128), (0, 0x2100)]
        return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(n))
    if kind < 0.9:
        few = rng.sample(WORDS, rng.randint(2, len(WORDS)))
        return " ".join(rng.choice(few) + rng.choice([""] * 17 + ["\n", "\n", "\n\n"]) for _ in range(3 * n))
    line = "".join(rng.choice(PIECES) for _ in range(5)) + rng.choice(["\n", "\n\n", " "])
    return line * rng.randint(1, 9) + "".join(rng.choice(PIECES) for _ in range(n))


def differences(texts: list[str], programs=PARSED) -> list[tuple]:
    """Texts that the compiled rules judge, edit or hash otherwise than the readable ones: (program, text, both)."""
    column, found = pa.array(texts, pa.string()), []
    for rules in programs:
        reasons, left = apply_to_column(column, None, rules)
        for text, reason, kept in zip(texts, reasons, left.to_pylist(), strict=True):
            expected, document = apply_rules(Document(text), rules)
            if reason != (expected or "") or (expected is None and kept != document.text):
                found.append((rules, text, (reason, kept), (expected, document.text)))
    hashes = text_hashes(column)
    return found + [("hash", t, a, b) for t, a in zip(texts, hashes, strict=True) if a != (b := text_hash(t))]
