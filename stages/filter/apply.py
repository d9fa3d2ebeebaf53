"""Rules over a column of text in memory: measured and judged at once, for what keeps no measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from stages.filter.document import META
from stages.filter.measure import measure_column
from stages.filter.rules import ParsedRule
from stages.filter.verdict import judge, measured_rules


def apply_to_column(
    texts: pa.Array, metas: Sequence[Mapping[str, float | str | None]] | None, rules: Sequence[ParsedRule]
) -> tuple[list[str], pa.Array]:
    """Return for each text of a column why it goes, or "", and the column as the rules leave it.

    metas: what the source says of each document, if it says anything. Equal to `apply_rules` of each document.
    """
    columns, left = measure_column(texts, metas, measured_rules(rules))
    for name in metas[0] if metas else ():
        columns[META + name] = pa.array([meta[name] for meta in metas or ()])
    return judge(columns, rules).of_each(), left
