"""Reads relevance grades per (query, document): TREC qrels, and tables with a header."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.data.raw_files import DOCUMENT, LABEL, QUERY
from ultr.errors import DataError
from ultr.ingest.csv_files import csv_file
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.notices import differing_grades
from ultr.ingest.positions import FileRow, file_and_row
from ultr.ingest.readers.base import ColumnRequest, GradedPairs
from ultr.ingest.sources import ScannedFiles, is_parquet, scan_table
from ultr.ingest.text_files import LINES, read_lines
from ultr.ingest.values import as_name, check_key, convert_columns, raise_first_bad, trimmed
from ultr.text import names_text

_COLUMNS: Mapping[str, tuple[str, ...]] = {"query": QUERY, "document": DOCUMENT, "label": LABEL}


def read_qrels(engine: Engine, files: list[Path], request: ColumnRequest) -> GradedPairs:
    """Reads files of grades: TREC qrels, or CSV, TSV or Parquet with the columns query, document and label.

    Other usual names of these columns are recognised too, see `QUERY`, `DOCUMENT` and `LABEL`; further columns are
    ignored.

    Raises:
      DataError: qrels and tables together, a column is missing, a row has another length, or a grade is not a number;
        names the file and row.
    """
    tables = [_is_table(path, request.quote) for path in files]
    if not any(tables):
        return _read_lines(engine, files)
    if not all(tables):
        raise DataError(
            f"expected a table like {files[tables.index(True)].name}, found lines without a header",
            fix="Prepare qrels and tables of grades apart, or write all of them in one way.",
            file=files[tables.index(False)],
            row=1,
        )
    return _read_tables(engine, files, request.quote)


def _is_table(path: Path, quote: bool | None) -> bool:
    """Tells whether a file has a header that names two of the three columns at least."""
    if is_parquet(path):
        return True
    names = {name.lower().strip('"') for name in csv_file(path, quote).names}
    return sum(bool(names & set(known)) for known in _COLUMNS.values()) >= 2


def _read_tables(engine: Engine, files: list[Path], quote: bool | None) -> GradedPairs:
    scanned = ScannedFiles([scan_table(engine, path, number, quote=quote) for number, path in enumerate(files)])
    parts: list[ir.Table] = []
    for raw in scanned.tables:
        chosen = graded_columns(raw.path, list(raw.columns))
        for name in chosen.values():
            check_key(raw.columns[name], raw.path, name)
        columns: dict[str, Any] = {ours: raw.columns[name] for ours, name in chosen.items()}
        columns |= {ours: trimmed(x) for ours, x in columns.items() if ours != "label" and x.type().is_string()}
        columns |= {ours: as_name(columns[ours]) for ours in ("query", "document")}
        columns |= scanned.broken(raw)
        parts.append(convert_columns(raw.table.select(at=raw.at, **columns), {"label": "label"}))
    try:
        staged = engine.stage("grades_read", ibis.union(*parts) if len(parts) > 1 else parts[0])
    except EngineError as error:
        raise scanned.explain(error) from error
    warnings = scanned.check_line_breaks(engine, staged) if scanned.may_break else []
    where = partial(file_and_row, files, reported_row=scanned.reported_row)
    raise_first_bad(engine, staged, where, chosen)
    found = _first_grades(engine, staged, where)
    return replace(found, warnings=[*warnings, *found.warnings])


def graded_columns(file: Path, found: Sequence[str], *, optional: Collection[str] = ()) -> dict[str, str]:
    """Finds the columns of a table of grades: ours -> the name in the file.

    Raises:
      DataError: one is missing that is not `optional`; names all of them.
    """
    by_name = {name.lower(): name for name in reversed(found)}
    chosen: dict[str, str] = {}
    for ours, known in _COLUMNS.items():
        if (name := next((by_name[name] for name in known if name in by_name), None)) is not None:
            chosen[ours] = name
    missing = [ours for ours in _COLUMNS if ours not in chosen and ours not in optional]
    if missing:
        wanted = ", and ".join(f"a column for the {ours}, one of {list(_COLUMNS[ours])}" for ours in missing)
        raise DataError(
            f"expected {wanted}, found the columns {names_text(list(found))}", file=file, field=", ".join(missing)
        )
    return chosen


def _read_lines(engine: Engine, files: list[Path]) -> GradedPairs:
    """Reads TREC qrels: lines of query, iteration (ignored), document and grade, separated by white space."""
    lines = engine.load("grades_lines", read_lines(files), LINES)
    part = lines.text.strip().re_split(r"\s+")
    bad = engine.record(lines.filter(part.length() != 4).order_by("at").limit(1))
    if bad:
        raise DataError(
            f"expected 'query iteration document grade', found {bad['text'][:80]!r}",
            fix="A table of grades needs a header with query, document and label.",
            **file_and_row(files, bad["at"]),
        )
    table = lines.select("at", query=part[0], document=part[2], label=part[3])
    staged = engine.stage("grades_read", convert_columns(table, {"label": "label"}))
    where = partial(file_and_row, files)
    raise_first_bad(engine, staged, where, {})
    return _first_grades(engine, staged, where)


def _first_grades(engine: Engine, table: ir.Table, where: Callable[[int], FileRow]) -> GradedPairs:
    """Keeps the first grade of each pair; grades below 0 (junk pages) become 0, as in trec_eval."""
    table = table.select("at", "label", query=as_name(table["query"]), document=as_name(table["document"]))
    read = engine.record(table.agg(read=table.count(), negative=(table.label < 0).sum().fill_null(0)))
    known = table.filter(table["query"].notnull() & table.document.notnull() & table.label.notnull())
    pairs = known.group_by(["query", "document"]).agg(
        at=known["at"].min(),
        label=ibis.greatest(known.label.argmin(known["at"]), ibis.literal(0.0, "float32")).cast("float32"),
        low=known.label.min(),
        high=known.label.max(),
        times=known.count(),
    )
    pairs = engine.stage("grades", pairs)
    counts = engine.record(
        pairs.agg(
            pairs=pairs.count(),
            rows=pairs.times.sum().fill_null(0),
            differing=(pairs.low != pairs.high).sum().fill_null(0),
        )
    )
    report = {
        "grades_read": read["read"],
        "without_query_document_or_grade": read["read"] - counts["rows"],
        "negative_read_as_0": read["negative"],
        "repeated_pairs": counts["rows"] - counts["pairs"],
        "pairs_with_differing_grades": counts["differing"],
    }
    warnings: list[str] = []
    if counts["differing"]:
        first = engine.record(pairs.filter(pairs.low != pairs.high).order_by("at").limit(1))
        warnings = [differing_grades(int(counts["differing"]), first, where(first["at"]))]
    graded = pairs.select("at", "query", "document", "label")
    return GradedPairs(graded, {k: int(v) for k, v in report.items()}, warnings=warnings)
