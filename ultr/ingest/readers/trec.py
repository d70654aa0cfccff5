"""Reads session files as made from the TREC session track and from TianGong-ST."""

from __future__ import annotations

from pathlib import Path

import ibis
import ibis.expr.types as ir

from ultr.ingest.engine import Engine
from ultr.ingest.readers.base import ColumnRequest, RawRows
from ultr.ingest.readers.lines import load_lines, reject_lines, rows_of_lines, unnest_ranked


def read_trec_session(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads lines of one list each: `session <tab> query <tab> [documents] <tab> [verticals] <tab> [clicks]`.

    A line may have grades as a sixth field. The fields in brackets have one value per shown document. `vertical` can
    be asked for as a feature. Grades below 0 (junk pages) count as 0, as in trec_eval.
    """
    lines = load_lines(engine, files)
    part = lines.text.split("\t")

    def values(number: int) -> ir.ArrayValue:
        inside = part[number].replace("[", "").replace("]", "").replace(" ", "").replace("'", "")
        return inside.split(",")

    fields = engine.stage(
        "fields",
        lines.select(
            "at",
            "text",
            session=part[0].strip(),
            query=part[1].strip(),
            documents=values(2),
            verticals=values(3),
            clicks=values(4),
            grades=ibis.ifelse(part.length() >= 6, values(5), ibis.null("array<string>")),
            length=part.length(),
        ),
    )
    size = fields.documents.length()
    ragged = (fields.verticals.length() != size) | (fields.clicks.length() != size)
    ragged |= (fields.grades.length() != size).fill_null(False)
    reject_lines(
        engine,
        files,
        fields.filter((fields.length < 5) | (fields.length > 6) | ragged.fill_null(True)),
        "expected 'session query [documents] [verticals] [clicks]' or these and '[grades]' between tabs, "
        "with as many values in each bracket",
    )
    graded = engine.number(fields.grades.notnull().sum())
    columns = [fields.documents, fields.clicks, fields.verticals]
    if graded:
        ungraded = ibis.array([ibis.null("string")]).repeat(size)
        columns.append(ibis.coalesce(fields.grades, ungraded))
    zipped = columns[0].zip(*columns[1:])
    rows = unnest_ranked(fields.select("at", "session", "query", list="at", shown=zipped), "shown")
    wanted = {"document": rows.shown["f1"], "click": rows.shown["f2"]}
    if request.features:
        wanted["feature.vertical"] = rows.shown["f3"]
    if graded:
        wanted["label"] = rows.shown["f4"]
    table = rows.select("at", "list", "session", "query", "rank", **wanted)
    table = table.filter(table.document != "")
    counts = {"empty_lists": engine.number(fields.filter(fields.documents[0] == "").count())}
    return rows_of_lines(engine, table, files, lines, counts)
