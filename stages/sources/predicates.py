"""Row predicates of parquet sources: row groups are skipped by their statistics, rows by their values.

`{int_score: {min: 3}, language: {in: [en]}}` means what it means in the rule `metadata`: bounds are allowed values, a
null is not. The rule drops documents and says so; this decides what is read at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import DataError

NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
Where = Mapping[str, Mapping[str, Any]]


def may_match(group: pq.RowGroupMetaData, where: Where) -> bool:
    """Return whether a row group can hold a row to keep, as far as its statistics of numbers say."""
    for place in range(group.num_columns) if where else ():
        column = group.column(place)
        test, known = where.get(column.path_in_schema), column.statistics
        # Those of a date or a time need not be readable.
        if not test or known is None or not known.has_min_max or known.logical_type.type not in ("NONE", "INT"):
            continue
        if not isinstance(known.min, int | float):
            continue
        # Statistics may be float32's, a little beside the bound that they were written as.
        slack = 1e-6 * max(abs(known.min), abs(known.max)) if column.physical_type == "FLOAT" else 0
        if known.max + slack < test.get("min", known.max) or known.min - slack > test.get("max", known.min):
            return False
    return True


def matching_rows(batch: pa.RecordBatch, where: Where) -> tuple[Sequence[int], pa.RecordBatch]:
    """Return (places of the rows to keep, those rows). Raises DataError on a column of another type than the test."""
    if not where:
        return range(batch.num_rows), batch
    # Arrow's functions know few things to do with views.
    views = {
        name for name, kind in zip(batch.schema.names, batch.schema.types, strict=True) if kind == pa.string_view()
    }
    columns = {n: batch[n].cast(pa.large_string()) if n in views else batch[n] for n in batch.schema.names}
    batch = pa.RecordBatch.from_pydict(columns) if views else batch
    mask = reduce(pc.and_, (matches(batch, column, test) for column, test in where.items()))
    return pc.indices_nonzero(mask).to_pylist(), batch.filter(mask)


def matches(batch: pa.RecordBatch, name: str, test: Mapping[str, Any]) -> Any:
    """Return True for each row whose value of one column passes the test, else False; never null."""
    there = name if name in batch.schema.names else name.split(".")[0]
    values = batch.column(there)
    for field in name.split(".")[1:] if there != name else ():
        if not pa.types.is_struct(values.type) or values.type.get_field_index(field) < 0:
            raise DataError(f"where.{name}: column {there!r} has no field {field!r} in {values.type}; mend the recipe")
        values = pc.struct_field(values, field)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if not (text if "in" in test else any(is_kind(values.type) for is_kind in NUMBERS)):
        need = "texts (in)" if "in" in test else "numbers (min, max)"
        raise DataError(f"where.{name} compares {need}, and the column is {values.type}; mend the recipe")
    if "in" in test:
        return pc.is_in(values, pa.array(test["in"], values.type))
    if not pa.types.is_float32(values.type):
        values = values.cast(pa.float64(), safe=False)  # as the rule does: a whole number beyond 2**53 is rounded
    mask = pc.is_valid(values)
    for bound, compare in (("min", pc.greater_equal), ("max", pc.less_equal)):
        if bound in test:
            stored = pa.scalar(float(test[bound]), values.type)  # in float32, .65 is not the double .65
            mask = pc.and_(mask, pc.fill_null(compare(values, stored), False))
    return mask
