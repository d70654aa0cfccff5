"""Relevance grades per (query, document): TREC qrels, and tables with a header."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.sources import (
    LINES,
    csv_error,
    header,
    is_parquet,
    open_table,
    place,
    read_lines,
    table_line,
)
from ultr.ingest.values import key, reject, typed

QUERY = ("query", "query_id", "qid", "topic")
DOCUMENT = ("document", "document_id", "doc_id", "docid", "url", "object_id")
LABEL = ("label", "relevance", "grade", "rating", "judgment", "judgement")


@dataclass
class Grades:
    """Grades in the order of their files.

    Attributes:
      table: at, query, document, label; each pair once, grades of at least 0.
      report: how many were read and what was done to them.
    """

    table: ir.Table
    report: dict[str, int]


def read_grades(engine: Engine, path: Path) -> Grades:
    """A file of grades: qrels, or CSV, TSV or Parquet with columns such as query, document (url), label (relevance).

    Raises:
      DataError: columns, a ragged row, or a grade that is not a number; names the file and row.
    """
    names = None if is_parquet(path) else [name.lower() for name in header(path)[1]]
    if names is not None and not (set(names) & set(QUERY) and set(names) & set(LABEL)):
        return read_qrels(engine, [path])
    raw = open_table(engine, path, 0)
    columns = {name.lower(): name for name in raw.columns}
    chosen: dict[str, str] = {}
    for ours, known in (("query", QUERY), ("document", DOCUMENT), ("label", LABEL)):
        found = next((columns[name] for name in known if name in columns), None)
        if found is None:
            raise DataError(
                f"expected a column for the {ours}, one of {list(known)}, found the columns {list(raw.columns)}",
                file=path,
                field=ours,
            )
        chosen[ours] = found
    table = raw.table.select(at=raw.at, **{ours: raw.columns[name] for ours, name in chosen.items()})
    try:
        staged = engine.stage("grades_read", typed(table, {"label": "label"}))
    except EngineError as error:
        raise csv_error([path], error) from error
    reject(engine, staged, partial(place, [path], line=table_line), chosen)
    return _once(engine, staged)


def read_qrels(engine: Engine, files: list[Path]) -> Grades:
    """TREC qrels: lines of query, iteration (ignored), document and grade between white space.

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
            **place(files, bad["at"]),
        )
    table = lines.select("at", query=part[0], document=part[2], label=part[3])
    staged = engine.stage("grades_read", typed(table, {"label": "label"}))
    reject(engine, staged, partial(place, files), {})
    return _once(engine, staged)


def _once(engine: Engine, table: ir.Table) -> Grades:
    """Each judged pair once, the first grade winning; grades below 0 (junk pages) are 0, as in trec_eval."""
    table = table.select("at", "label", query=key(table["query"]), document=key(table["document"]))
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
    return Grades(pairs.select("at", "query", "document", "label"), {k: int(v) for k, v in report.items()})
