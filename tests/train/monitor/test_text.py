"""Text of others is shown, not obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.report import TextConsole, grid
from train.monitor.text import printable

ATTACKS = ["\x1b[2J\x1b[31mred", "a\rb", "\x07", "\x9b31m", "\u202egnirts", "\u2066x\u2069", "\udc80", "\x00", "\u2028"]


@given(st.text(st.characters(exclude_categories=())))
def test_no_control_gets_through_and_the_rest_stays(text):
    shown = printable(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not {"\u202e", "\u2066", "\u200f", "\ufeff"} & set(shown)
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["नमस्ते \u200dक\u200c", "👩\u200d💻", "e\u0301 \u00a0 x", "[dim]x[/dim]", "a\tb\nc"])
def test_ordinary_text_is_shown_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize("attack", ATTACKS)
def test_consoles_and_tables_write_attacks_out(attack, capsys):
    console = TextConsole()
    console.print(f"[bold]{attack}")
    console.print(grid(f"title {attack}", ("a", "b"), [(attack, 3)]))
    out = capsys.readouterr().out
    assert "[bold]" in out and printable(attack) in out
    assert printable(out) == out
