"""`compare`: what differs between trained runs, by how much, and how sure that is, for people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.report import TextConsole, grid
from pipeline.errors import UserError
from pipeline.report.markup import listed
from stages.compare.compare import (
    ALL,
    FEWEST,
    Compared,
    Deviations,
    Mover,
    Row,
    Side,
    compare,
    deviations_of,
    seed_key,
    sides_of,
    to_dict,
)
from stages.compare.scored import open_scored
from stages.compare.stats import Deviation, Difference, seeds_needed, t_quantile
from stages.errors import DataError
from stages.lineage.rows import Decoder, find_shard, rows_table, shard_rows
from train.data.manifest import ManifestError
from train.files import write_atomic

CHANGES = 12  # of recipe, data and machine that are shown
EXCERPT = 140  # characters of a document
COUNTS = (3, 5, 8)  # seeds a side, of which is said what they resolve


def print_compared(names: Sequence[str], interest: float, kept: str | None, as_json: bool) -> list[Compared]:
    """Compare runs and print it. names: of runs or manifests; some joined by commas are seeds of one side.

    kept: the file of deviations over seeds. Returns each side against the first. Raises DataError and UserError.
    """
    sides = sides_of([[open_scored(name) for name in names_of_side.split(",")] for names_of_side in names])
    stored = read_deviations(kept)
    found = compare(sides, interest, stored)
    if kept is not None:
        measured: Deviations = {}
        for compared in found:
            measured |= deviations_of(compared)
        if measured:
            write_deviations(Path(kept), stored | {seed_key(sides[0].runs[0]): measured})
    if as_json:
        for compared in found:
            print(json.dumps(to_dict(compared, interest), sort_keys=True, default=str))
        return found
    console = TextConsole()
    for number, compared in enumerate(found):
        if number:
            console.print()
        print_one(console, compared, interest)
    return found


def read_deviations(path: str | None) -> dict[str, Deviations]:
    """Return the deviations in a file; none where there is no file. Raises UserError where it is not one of ours."""
    if path is None or not Path(path).exists():
        return {}
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            key: {name: Deviation(float(s), int(df)) for name, (s, df) in rows.items()} for key, rows in value.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--deviations {path}: not a file of deviations ({error}); name another") from None


def write_deviations(path: Path, known: dict[str, Deviations]) -> None:
    """Write a file of deviations."""
    value = {key: {name: [d.value, d.df] for name, d in rows.items()} for key, rows in known.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# One comparison


def print_one(console: TextConsole, compared: Compared, interest: float) -> None:
    """Print one side against the first: what they are, the table, what moves it, and the verdict."""
    a, b = compared.a, compared.b
    for side in (a, b):
        facts = side.runs[0].facts
        size = f"{facts.get('parameters', 0):,} parameters, {facts['steps']:,} steps"
        console.print(f"{side.letter:9} {' '.join(run.name for run in side.runs)}  ({size})")
    print_changes(console, compared)
    console.print(f"{'on':9} {compared.documents:,} documents held out from both, {compared.bytes:,} bytes")
    for line in left_out_lines(compared):
        console.print(f"{'':9} {line}")
    console.print()
    console.print(table_of(compared))
    sets = [row for row in compared.rows if row.right is not None and row.right_ab is not None]
    for row in sets:
        assert row.right is not None and row.right_ab is not None
        low, high = row.right.interval()
        console.print(
            f"{row.name}: right {row.right_ab[0]:.1%} and {row.right_ab[1]:.1%} of {row.n:,} questions, a difference "
            f"of {row.right.value:+.1%} [{low:+.1%}, {high:+.1%}]"
        )
    console.print()
    print_movers(console, compared)
    console.print(f"{'weights':9} {sentence(compared, interest, recipes=False)}")
    console.print(f"{'recipes':9} {sentence(compared, interest, recipes=True)}")


def print_changes(console: TextConsole, compared: Compared) -> None:
    """Print what differs in recipe, data, code and machine."""
    if not compared.changed:
        console.print(f"{'differ in':9} seeds alone: they are runs of one recipe")
        return
    for number, (name, x, y) in enumerate(compared.changed[:CHANGES]):
        console.print(f"{'' if number else 'differ in':9} {name}: {short(x)} -> {short(y)}")
    if len(compared.changed) > CHANGES:
        console.print(f"{'':9} and {len(compared.changed) - CHANGES:,} more; --json has all")


def short(value: Any) -> str:
    """Return a value as a line has it."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def left_out_lines(compared: Compared) -> list[str]:
    """Say which documents are not compared, and of which sources there are too few."""
    only_a, only_b, in_part = compared.left_out
    lines = []
    if only_a or only_b:
        letters = compared.a.letter, compared.b.letter
        lines.append(f"left out: {only_a:,} scored by {letters[0]} alone, {only_b:,} by {letters[1]} alone")
    if in_part:
        lines.append(f"left out: {in_part:,} of which not all runs scored the same bytes")
    if few := [row.name for row in compared.rows if row.kind == "source" and row.clusters < FEWEST]:
        lines.append(f"without an interval of its own: {listed(few)}, of fewer than {FEWEST} documents or works")
    return lines


def table_of(compared: Compared) -> Any:
    """Return the table of differences."""
    a, b = compared.a.letter, compared.b.letter
    with_recipes = any(row.recipes is not None for row in compared.rows)
    head = ["", a, b, f"{b} - {a}", "weights, 95 %"]
    head += ["recipes, 95 %", "seeds ±"] if with_recipes else []
    cells = []
    for row in compared.rows:
        label = f"{row.name}, answers" if row.kind == "set" else row.name
        line = [label, f"{row.a:.4f}", f"{row.b:.4f}", f"{row.documents.value:+.4f}", interval(row.documents)]
        if with_recipes:
            line += [interval(row.recipes), "-" if row.seeds is None else f"{row.seeds.value:.4f}"]
        counted = f"{row.n:,}" if row.clusters == row.n else f"{row.n:,} of {row.clusters:,} works"
        cells.append([*line, p_text(row, with_recipes), counted])
    return grid(f"Bits per byte (negative: {b} is better)", [*head, "p, Holm", "n"], cells)


def interval(difference: Difference | None) -> str:
    """Write an interval of 95 %."""
    if difference is None or difference.df <= 0:
        return "-"
    low, high = difference.interval()
    return f"{low:+.4f} {high:+.4f}"


def p_text(row: Row, recipes: bool) -> str:
    """Write a row's p value, Holm's; a dash where there is none."""
    p = None if row.documents.df <= 0 else row.p_recipes if recipes else row.p_documents
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# The documents that move it


def print_movers(console: TextConsole, compared: Compared) -> None:
    """Print the documents that move the result most, and the result without each."""
    whole = next((row for row in compared.rows if row.kind == "all"), compared.rows[0])
    console.print(f"The documents that move it most ({whole.documents.value:+.5f} with all):")
    for mover in compared.movers:
        place = "" if mover.key[1] == 0 else f" part {mover.key[1]}"
        console.print(
            f"  {mover.source} {mover.key[0].hex()}{place}: {mover.a:.3f} -> {mover.b:.3f} on {mover.bytes:,} bytes; "
            f"without it {mover.without:+.5f}"
        )
        for line in text_lines(compared, mover):
            console.print(f"    {line}")
    console.print()


def text_lines(compared: Compared, mover: Mover) -> list[str]:
    """Return where a document comes from and how it begins."""
    place, text = text_of(compared, mover)
    if text is None:
        return [place]
    begin = " ".join(text[: 2 * EXCERPT].split())[:EXCERPT]
    return [place, repr(begin) + ("…" if len(text) > EXCERPT else "")]


def text_of(compared: Compared, mover: Mover) -> tuple[str, str | None]:
    """Return where a document comes from and its text, by the lineage of the first side whose build is at hand.

    Without a text the first says why.
    """
    for side in (compared.a, compared.b):
        run = side.runs[0]
        manifest, document = run.manifest, run.documents[mover.key]
        if manifest is None:
            continue
        try:
            table = rows_table(manifest, find_shard(manifest, document.shard)).slice(document.ordinal, 1)
            (row,) = shard_rows(document.shard, table)
            text = Decoder(manifest).decode(row).decode("utf-8", "replace")
        except (DataError, ManifestError, ValueError) as error:
            return f"its text cannot be shown: {error}", None
        return f"{row.source_file} row {row.source_row:,}" + (f"  {row.url}" if row.url else ""), text
    return "its text is not at hand: the builds that these runs name are not there any more", None


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


def sentence(compared: Compared, interest: float, recipes: bool) -> str:
    """Return the verdict on the weights, or on the recipes, in a sentence: different, equal, or cannot tell."""
    a, b = compared.a, compared.b
    whole = next((row for row in compared.rows if row.kind == "all"), compared.rows[0])
    if recipes and whole.recipes is None:
        return declined(a, b)
    rows = [whole, *(row for row in compared.rows if row is not whole)]
    differ = [row for row in rows if said(row, recipes) == "different"]
    text = f"Different: {b.letter} is {listed([named(row, recipes) for row in differ])}." if differ else ""
    if whole not in differ and said(whole, recipes) == "equal":
        text += f" Over all they are equal within {interest:g} bits per byte."
    elif whole not in differ:
        text += f" {unknown(compared, whole, interest, recipes)}"
    if recipes and compared.stored:
        text += " The deviation over seeds is one that was measured before (--deviations)."
    if recipes and not compared.changed and differ:
        text += " They are one recipe, so this is chance, or a machine that differs."
    return text.strip()


def said(row: Row, recipes: bool) -> str | None:
    """Return the verdict of a row."""
    return row.verdict_recipes if recipes else row.verdict_documents


def named(row: Row, recipes: bool) -> str:
    """Say how B does on a row that differs."""
    difference = row.recipes if recipes and row.recipes is not None else row.documents
    low, high = difference.interval()
    where = {"all": "over all", "set": f"on the answers of {row.name}"}.get(row.kind, f"on {row.name}")
    better = "better" if difference.value < 0 else "worse"
    bounds = sorted((abs(low), abs(high)))
    return f"{better} {where} by {abs(difference.value):.4f} ({bounds[0]:.4f} to {bounds[1]:.4f})"


def unknown(compared: Compared, row: Row, interest: float, recipes: bool) -> str:
    """Say between what a difference lies that was not seen, and what would tell it."""
    difference = row.recipes if recipes and row.recipes is not None else row.documents
    where = "over all" if row.name == ALL else f"on {row.name}"
    if difference.df <= 0:
        sources = [other for other in compared.rows if other.kind == "source"]
        lone = [other.name for other in sources if other.clusters < 2 or len(sources) == 1]
        fault = "one document alone, or one work, was" if len(sources) > 1 else f"fewer than {FEWEST} documents were"
        return (
            f"Cannot tell {where}: of {listed(lone)} {fault} scored, which has no interval; "
            "score more with `python -m train.score RUN --rows --tokens 0`, or hold out more text."
        )
    low, high = difference.interval()
    b = compared.b.letter
    better = f"{-low:.4f} better" if low < 0 else f"{low:.4f} worse"
    worse = f"{high:.4f} worse" if high > 0 else f"{-high:.4f} better"
    alone = " by this row alone, which its being one of several (Holm) leaves open" if low * high > 0 else ""
    text = f"Cannot tell {where}: {b} is between {better} and {worse}{alone}."
    there = min(len(compared.a.runs), len(compared.b.runs))
    return f"{text} {what_would(row, interest, row.seeds if recipes else None, there)}"


def what_would(row: Row, interest: float, seeds: Deviation | None, there: int) -> str:
    """Say what would tell a difference of `interest`: documents, and where `seeds` deviate more than are `there`.

    Where an interval is narrow enough and lies across the border, that is twice as many.
    """
    documents = row.documents
    half = t_quantile(0.95, documents.df) * documents.error
    wanted, enough = [], interest if seeds is None else interest / math.sqrt(2)  # the other half is left for seeds
    if half >= enough or seeds is None:
        times = max(2, math.ceil((half / enough) ** 2))
        wanted.append(f"some {times} times as many documents")
        documents = Difference(documents.value, documents.error / math.sqrt(times), documents.df)
    count = None if seeds is None else seeds_needed(documents, seeds, interest)
    if count is not None:
        wanted.append(f"about {count if count > there else 2 * there:,} seeds a side")
    text = f"{listed(wanted)} would tell {interest:g} (--interest)"
    if "documents" in text:
        text += "; score more with `python -m train.score RUN --rows --tokens 0`, or hold out more text"
    return f"{text[0].upper()}{text[1:]}."


def declined(a: Side, b: Side) -> str:
    """Say why nothing is said of the recipes, and what would."""
    factors = [f"{k} a side {t_quantile(0.95, 2 * k - 2) * math.sqrt(2 / k):.1f}" for k in COUNTS]
    return (
        f"Cannot tell: {a.letter} and {b.letter} are one run each, and two seeds of one recipe differ as well. Train "
        f"more of each (train.seed=1, 2, ...) and name all: 2 a side measure the deviation over seeds, {factors[0]} of "
        f"it, {factors[1]}, {factors[2]} can be told; or name a file with one that was measured before (--deviations)."
    )
