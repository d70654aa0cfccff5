"""Steps that readers of line-based formats share: lines as a table, array columns as rows, clicks joined to rows."""

from __future__ import annotations

from pathlib import Path

import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import file_and_row
from ultr.ingest.readers.base import RawRows
from ultr.ingest.text_files import LINES, read_lines


def load_lines(engine: Engine, files: list[Path]) -> ir.Table:
    """Loads every line that is not blank as a table of `at` (position) and `text`."""
    return engine.load("lines", read_lines(files), LINES)


def unnest_ranked(table: ir.Table, column: str) -> ir.Table:
    """Turns an array column into one row per value, with its 1-based place in the array as `rank`."""
    out = table.unnest(column, offset="place", keep_empty=False)
    return out.mutate(rank=out.place + 1).drop("place")


def mark_clicked(
    engine: Engine, rows: ir.Table, hits: ir.Table, clicks: ir.IntegerScalar
) -> tuple[ir.Table, dict[str, int]]:
    """Adds the column `click` to the rows, and counts the clicks that match no row or the same row again.

    Args:
      engine: the engine.
      rows: shown documents with `list` and `rank`.
      hits: one row per click that matches a shown document, with the `list` and `rank` of that.
      clicks: the number of all clicks.

    Returns:
      the rows, and the counts "clicks_on_documents_not_shown" and "repeated_clicks".
    """
    hit = engine.stage("hits", hits.group_by(["list", "rank"]).agg(times=hits.count()))
    table = rows.left_join(hit, ["list", "rank"])
    table = table.mutate(click=table.times.notnull().cast("int8")).drop("times", "list_right", "rank_right")
    totals = engine.record(hit.agg(hits=hit.times.sum().fill_null(0), slots=hit.count()))
    return table, {
        "clicks_on_documents_not_shown": engine.number(clicks) - totals["hits"],
        "repeated_clicks": totals["hits"] - totals["slots"],
    }


def rows_of_lines(
    engine: Engine, table: ir.Table, files: list[Path], lines: ir.Table, counts: dict[str, int]
) -> RawRows:
    """Makes the result of a reader of lines.

    Args:
      engine: the engine.
      table: shown documents.
      files: the files.
      lines: of `load_lines`.
      counts: kind -> number of what was dropped, or repaired ("repeated_clicks").
    """
    repaired = {name: counts[name] for name in ("repeated_clicks",) if name in counts}
    dropped = {name: count for name, count in counts.items() if name not in repaired}
    return RawRows(parts=[table], files=files, read=engine.number(lines.count()), dropped=dropped, repaired=repaired)


def reject_lines(engine: Engine, files: list[Path], bad: ir.Table, expected: str) -> None:
    """Raises an error about the first bad line, if there is one.

    Args:
      engine: the engine.
      files: the files.
      bad: at and text of the bad lines.
      expected: how the message begins: "expected ...".

    Raises:
      DataError: there is a bad line; names its file and row.
    """
    first = engine.record(bad.select("at", "text").order_by("at").limit(1))
    if first:
        text = first["text"] if len(first["text"]) <= 80 else first["text"][:80] + "..."
        raise DataError(f"{expected}, found {text!r}", **file_and_row(files, first["at"]))
