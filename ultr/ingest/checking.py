"""Checks raw rows: converts their values and drops rows without a session, query or document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.data.columns import CONTEXT, FEATURE
from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.readers.base import ColumnRequest, RawRows
from ultr.ingest.values import as_name, check_key, convert_columns, raise_first_bad

# Units of times since 1970 -> the least number that is taken for one: March 1973 in each.
EPOCH_UNITS = {"seconds": 1e8, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}


@dataclass(frozen=True)
class CheckedRows:
    """Rows with values of the right types.

    Attributes:
      table: the rows; session, query and document are never null.
      read: number of rows or lines of the input.
      found: number of rows about documents before any were dropped.
      kept: number of rows of the table.
      dropped: kind -> number of dropped rows, by the reader and here.
      warnings: sentences for the report, by the reader and from here.
    """

    table: ir.Table
    read: int
    found: int
    kept: int
    dropped: dict[str, int]
    warnings: tuple[str, ...] = ()


def check_raw_rows(engine: Engine, raw: RawRows, request: ColumnRequest) -> CheckedRows:
    """Converts the values of raw rows and drops rows without a session, query or document.

    Raises:
      DataError: a value that is not accepted, or no row is left; names the file, row and field where it can.
    """
    parts = [_convert_part(raw, request, number) for number in range(len(raw.parts))]
    if "time" in parts[0].columns and any(table["time"].type().is_floating() for table in parts):
        parts = [table.mutate(time=table["time"].cast("float64")) for table in parts]
    table = ibis.union(*parts) if len(parts) > 1 else parts[0]
    try:
        if raw.slow:
            table = engine.stage("rows", table)
        whole = table["session"].notnull() & table["query"].notnull() & table["document"].notnull()
        totals = {"read": table.count(), "whole": whole.sum().fill_null(0), "bad": table["bad"].count()}
        if "broken" in table.columns:
            totals["broken"] = table["broken"].count()
        if "time" in table.columns:
            totals |= {"earliest": table["time"].min(), "latest": table["time"].max()}
        counts = engine.record(table.agg(**totals))
    except EngineError as error:
        raise raw.explain(error) from error
    warnings = list(raw.warnings)
    if counts.get("broken") and raw.check_line_breaks is not None:
        warnings += raw.check_line_breaks(engine, table)
    if counts["bad"]:
        raise_first_bad(engine, table, raw.where, request.names)
    if (counts.get("earliest") or 0) >= EPOCH_UNITS["seconds"]:
        _check_one_unit(engine, table, raw, request, counts["earliest"], counts["latest"])
    read = counts["read"] if raw.read is None else raw.read
    if not counts["whole"]:
        raise DataError(
            f"expected rows with a session, query and document, found none among {read:,}", file=raw.files[0]
        )
    dropped = {**raw.dropped, "rows_without_keys": counts["read"] - counts["whole"]}
    kept = table.filter(whole).drop("bad", "found", *(["broken"] if "broken" in table.columns else []))
    return CheckedRows(kept, read, counts["read"], counts["whole"], dropped, tuple(warnings))


def _check_one_unit(
    engine: Engine, table: ir.Table, raw: RawRows, request: ColumnRequest, earliest: float, latest: float
) -> None:
    """Refuses times since 1970 in seconds and in a smaller unit beside each other; dates count as seconds."""
    border = next((b for b in EPOCH_UNITS.values() if earliest < b <= latest), None)
    if border is None:
        return
    first = engine.record(table.order_by("at").limit(1).select("time"))["time"]
    other: Any = table["time"] >= border if first < border else table["time"] < border
    found = engine.record(table.filter(other).order_by("at").limit(1).select("at", "time"))
    units = [[name for name, least in EPOCH_UNITS.items() if time >= least][-1] for time in (first, found["time"])]
    raise DataError(
        f"expected times in one unit, found {found['time']:.0f}, which looks like {units[1]} since 1970, below times "
        f"that look like {units[0]}, such as {first:.0f}",
        fix="Write all times in the same unit, or all of them as dates.",
        field=request.names.get("time", "time"),
        **raw.where(found["at"]),
    )


def _convert_part(raw: RawRows, request: ColumnRequest, number: int) -> ir.Table:
    table = raw.parts[number]
    views = ("view",) if "view" in table.columns else ()
    for name in ("session", "query", "document", *views, *(CONTEXT + n for n in request.context)):
        file = raw.files[number] if len(raw.parts) == len(raw.files) else raw.files[0]
        check_key(table[name], file, request.names.get(name, name))
    columns: dict[str, Any] = {name: as_name(table[name]) for name in ("session", "query", "document")}
    if "view" in table.columns:  # rows without a view are one view
        columns["view"] = as_name(table["view"]).fill_null("")
    if all(part["session"].type().is_signed_integer() for part in raw.parts):
        columns["session"] = table["session"].cast("int64")
    for name in request.context:
        value: Any = table[CONTEXT + name]
        numeric = all(part[CONTEXT + name].type().is_numeric() for part in raw.parts)
        columns[CONTEXT + name] = value.cast("float64") if numeric else as_name(value)
    types = {name: name for name in ("rank", "click", "time", "label") if name in raw.parts[0].columns}
    types |= {FEATURE + name: "feature" for name in request.features}
    return convert_columns(table.mutate(**columns), types)
