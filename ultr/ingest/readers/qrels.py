"""Reads relevance grades per (query, document): TREC qrels, and tables with a header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.csv_files import csv_file
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_and_row
from ultr.ingest.readers.base import ColumnRequest, GradedPairs
from ultr.ingest.sources import ScannedFiles, is_parquet, scan_table
from ultr.ingest.text_files import LINES, read_lines
from ultr.ingest.values import as_name, check_key, convert_columns, raise_first_bad, trimmed
from ultr.text import names_text

# Column names that are recognised in the header of a table of grades.
QUERY = ("query", "query_id", "qid", "topic")
DOCUMENT = ("document", "document_id", "doc_id", "docid", "url", "object_id")
LABEL = ("label", "relevance", "grade", "rating", "judgment", "judgement")


def read_grades(engine: Engine, path: Path, *, quote: bool | None = None) -> GradedPairs:
    """Reads a file of grades: qrels, or CSV, TSV or Parquet with the columns query, document and label.

    Other usual names of these columns are recognised too, see `QUERY`, `DOCUMENT` and `LABEL`.

    Args:
      engine: the engine.
      path: the file.
      quote: as for `scan_table`.

    Raises:
      DataError: a column is missing, a row has another length, or a grade is not a number; names the file and row.
    """
    if not is_parquet(path):
        names = {name.lower().strip('"') for name in csv_file(path, quote).names}
        if not (names & set(QUERY) and names & set(LABEL)):
            return read_qrels(engine, [path], ColumnRequest())
    raw = scan_table(engine, path, 0, quote=quote)
    scanned = ScannedFiles([raw])
    chosen: dict[str, str] = {}
    for ours, known in (("query", QUERY), ("document", DOCUMENT), ("label", LABEL)):
        found = [name for wanted in known for name in raw.columns if name.lower() == wanted]
        if not found:
            raise DataError(
                f"expected a column for the {ours}, one of {list(known)}, found the columns "
                f"{names_text(list(raw.columns))}",
                file=path,
                field=ours,
            )
        chosen[ours] = found[0]
        check_key(raw.columns[found[0]], path, found[0])
    columns: dict[str, Any] = {ours: raw.columns[name] for ours, name in chosen.items()}
    columns |= {ours: trimmed(x) for ours, x in columns.items() if ours != "label" and x.type().is_string()}
    columns |= scanned.broken(raw)
    try:
        table = convert_columns(raw.table.select(at=raw.at, **columns), {"label": "label"})
        staged = engine.stage("grades_read", table)
    except EngineError as error:
        raise scanned.explain(error) from error
    warnings = scanned.check_line_breaks(engine, staged) if scanned.may_break else []
    raise_first_bad(engine, staged, lambda at: file_and_row([path], at, scanned.reported_row), chosen)
    return replace(_first_grades(engine, staged), warnings=warnings)


def read_qrels(engine: Engine, files: list[Path], request: ColumnRequest) -> GradedPairs:
    """Reads TREC qrels: lines of query, iteration (ignored), document and grade, separated by white space.

    Raises:
      DataError: a line without four fields, or a grade that is not a number; names the file and row.
    """
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
    raise_first_bad(engine, staged, lambda at: file_and_row(files, at), {})
    return _first_grades(engine, staged)


def _first_grades(engine: Engine, table: ir.Table) -> GradedPairs:
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
    return GradedPairs(pairs.select("at", "query", "document", "label"), {k: int(v) for k, v in report.items()})
