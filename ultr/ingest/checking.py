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
from ultr.ingest.times import KIND, kinds_found, reject_mixed_times, time_kind
from ultr.ingest.values import as_name, check_key, convert_columns, raise_first_bad


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
    checks = [KIND] if KIND in table.columns else []
    try:
        if raw.slow:
            table = engine.stage("rows", table)
        whole = table["session"].notnull() & table["query"].notnull() & table["document"].notnull()
        totals = {"read": table.count(), "whole": whole.sum().fill_null(0), "bad": table["bad"].count()}
        if "broken" in table.columns:
            totals["broken"] = table["broken"].count()
        if "view" in table.columns:
            totals["viewless"] = (table["view"] == "").sum().fill_null(0)
        if checks:
            totals["kinds"] = kinds_found(table)
        counts = engine.record(table.agg(**totals))
    except EngineError as error:
        raise raw.explain(error) from error
    warnings = list(raw.warnings)
    if counts.get("broken") and raw.check_line_breaks is not None:
        warnings += raw.check_line_breaks(engine, table)
    if counts["bad"]:
        raise_first_bad(engine, table, raw.where, request.names)
    if checks:
        reject_mixed_times(engine, table, counts["kinds"] or 0, raw.where, request.names.get("time", "time"))
    if 0 < counts.get("viewless", 0) < counts["read"]:
        first = engine.record(table.filter(table["view"] == "").order_by("at").limit(1))
        raise DataError(
            f"expected a view in every row, found none in {counts['viewless']:,} of {counts['read']:,} rows: they "
            "would become lists of their own",
            fix="Fill it in, or leave the column out (rename it, if it is called 'view'): times and ranks then tell "
            "views apart.",
            field=request.names.get("view", "view"),
            **raw.where(first["at"]),
        )
    read = counts["read"] if raw.read is None else raw.read
    if not counts["whole"]:
        raise DataError(
            f"expected rows with a session, query and document, found none among {read:,}", file=raw.files[0]
        )
    dropped = {**raw.dropped, "rows_without_keys": counts["read"] - counts["whole"]}
    extra = [*checks, *(["broken"] if "broken" in table.columns else [])]
    kept = table.filter(whole).drop("bad", "found", *extra)
    return CheckedRows(kept, read, counts["read"], counts["whole"], dropped, tuple(warnings))


def _convert_part(raw: RawRows, request: ColumnRequest, number: int) -> ir.Table:
    table = raw.parts[number]
    views = ("view",) if "view" in table.columns else ()
    for name in ("session", "query", "document", *views, *(CONTEXT + n for n in request.context)):
        file = raw.files[number] if len(raw.parts) == len(raw.files) else raw.files[0]
        check_key(table[name], file, request.names.get(name, name))
    columns: dict[str, Any] = {name: as_name(table[name]) for name in ("session", "query", "document")}
    if "view" in table.columns:  # where no row has one, each query of a session is one view
        columns["view"] = as_name(table["view"]).fill_null("")
    if all(part["session"].type().is_signed_integer() for part in raw.parts):
        columns["session"] = table["session"].cast("int64")
    for name in request.context:
        value: Any = table[CONTEXT + name]
        numeric = all(part[CONTEXT + name].type().is_numeric() for part in raw.parts)
        columns[CONTEXT + name] = value.cast("float64") if numeric else as_name(value)
    types = {name: name for name in ("rank", "click", "time", "label") if name in raw.parts[0].columns}
    types |= {FEATURE + name: "feature" for name in request.features}
    converted = convert_columns(
        table.mutate(**columns, **({"raw.time": table["time"]} if "time" in types else {})), types
    )
    if "time" not in types:
        return converted
    kind = time_kind(converted["raw.time"], converted["time"])
    return converted.mutate(**{KIND: kind}).drop("raw.time")
