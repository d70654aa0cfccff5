"""Reads long tables: CSV, TSV or Parquet with a row per shown document."""

from __future__ import annotations

from pathlib import Path

import ibis.expr.types as ir

from ultr.ingest.engine import Engine
from ultr.ingest.readers.base import COLUMNS, REQUIRED_COLUMNS, VIEW, ColumnRequest, RawRows, missing_columns
from ultr.ingest.readers.likely_format import other_format_named
from ultr.ingest.sources import ScannedFiles, ScannedTable, is_parquet, scan_table
from ultr.ingest.values import trimmed

TEXTS = ("session", "query", "document", "view", "context.")  # columns of names and categories


def read_table(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads a long table in CSV, TSV or Parquet: one row per shown document.

    The columns are session, query, document, rank (1-based) and click (0 or 1), and where they exist time, label and
    view, or as `request.columns` names them. The rows of a session, query and view are one list; see `views` for how
    views are told apart without a column.
    """
    tables = []
    for number, path in enumerate(files):
        with other_format_named(path):
            tables.append(scan_table(engine, path, number, quote=request.quote))
    scanned = ScannedFiles(tables)
    names = {name: request.columns.get(name, name) for name in (*COLUMNS, VIEW)}
    for name in (*COLUMNS[len(REQUIRED_COLUMNS) :], VIEW):
        if name not in request.columns and names[name] not in tables[0].columns:
            del names[name]
    names |= request.extra

    untidy = {path for path in files if not is_parquet(path)}  # files of which texts are trimmed, in one pass

    def part(table: ScannedTable) -> ir.Table:
        if missing := {ours: theirs for ours, theirs in names.items() if theirs not in table.columns}:
            with other_format_named(table.path):
                raise missing_columns(table.path, missing, list(table.columns))
        columns = {ours: table.columns[theirs] for ours, theirs in names.items()}
        texts = {ours: x for ours, x in columns.items() if ours.startswith(TEXTS) and x.type().is_string()}
        if table.path in untidy or scanned.has_padding(engine, table, texts):
            untidy.add(table.path)
            columns |= {ours: trimmed(x) for ours, x in texts.items()}
        return table.table.select(at=table.at, **columns, **scanned.broken(table))

    return RawRows(
        parts=[part(table) for table in tables],
        files=files,
        slow=bool(untidy),
        text=not any(is_parquet(path) for path in files),
        reported_row=scanned.reported_row,
        explain=scanned.explain,
        check_line_breaks=scanned.check_line_breaks,
    )
