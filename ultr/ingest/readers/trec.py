"""Reads session files as made from the TREC session track and from TianGong-ST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis

from ultr.ingest.engine import Engine
from ultr.ingest.readers.base import ColumnRequest, RawRows
from ultr.ingest.readers.lines import load_lines, reject_lines, rows_of_lines, unnest_ranked


def read_trec_session(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads lines of one list each: `session <tab> query <tab> [documents] <tab> [verticals] <tab> [clicks]`.

    A line may have grades as a sixth field. The fields in brackets have one value per shown document, between commas:
    within quotes, as Python and JSON write lists of text, or without. `vertical` can be asked for as a feature. Grades
    below 0 (junk pages) count as 0, as in trec_eval.
    """
    lines = load_lines(engine, files)
    part = lines.text.split("\t")

    fields = engine.stage(
        "fields",
        lines.select(
            "at",
            "text",
            session=part[0].strip(),
            query=part[1].strip(),
            documents=_values(part[2]),
            verticals=_values(part[3]),
            clicks=_values(part[4]),
            grades=ibis.ifelse(part.length() >= 6, _values(part[5]), ibis.null("array<string>")),
            length=part.length(),
            unclosed=ibis.or_(*(_unclosed(part[i]).fill_null(False) for i in range(2, 6))),
        ),
    )
    size = fields.documents.length()
    ragged = (fields.verticals.length() != size) | (fields.clicks.length() != size)
    ragged |= (fields.grades.length() != size).fill_null(False)
    reject_lines(
        engine,
        files,
        fields.filter((fields.length < 5) | (fields.length > 6) | fields.unclosed | ragged.fill_null(True)),
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


# A value in quotes or without and the comma behind it: what starts with a quote that no comma follows has none.
_VALUE = r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*,"""


def regexp_extract_all(text: str, pattern: str, group: int) -> list[str]:
    """Finds all that a group of a pattern matches in a text; the engine has this function, Ibis does not."""
    raise NotImplementedError


_extract_all: Any = ibis.udf.scalar.builtin(regexp_extract_all)


def _values(field: Any) -> Any:
    """Splits the text between brackets into its values [n]; text without a value gives one that is empty."""
    inside = field.strip().re_replace(r"^\[(.*)\]$", r"\1")
    return _extract_all(inside + ",", _VALUE, 1).map(_without_quotes)


def _without_quotes(value: Any) -> Any:
    double = value.startswith('"') & value.endswith('"') & (value.length() > 1)
    single = value.startswith("'") & value.endswith("'") & (value.length() > 1)
    plain = value.substr(1, value.length() - 2).re_replace(r"\\(['\"\\])", r"\1")
    json = ibis.ifelse(double, value, ibis.null("string")).try_cast("json").str
    return ibis.ifelse(double | single, ibis.coalesce(json, plain), value)


def _unclosed(field: Any) -> Any:
    return field.strip().startswith("[") != field.strip().endswith("]")
