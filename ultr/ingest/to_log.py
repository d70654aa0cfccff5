"""Writes checked rows about shown documents as a click log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.data.click_log import ClickLog
from ultr.data.columns import FEATURE
from ultr.data.splits import assign_by_time, assign_split, first_rows
from ultr.data.writer import LogWriter
from ultr.errors import DataError
from ultr.ingest.checking import CheckedRows
from ultr.ingest.engine import Engine
from ultr.ingest.ids import AssignedIds, assign_ids, vocabulary_tables
from ultr.ingest.lists import ListTable, TableStream, group_into_lists, list_times
from ultr.ingest.notices import (
    differing_in_rows,
    feature_warnings,
    grade_warnings,
    log_warnings,
    rank_warnings,
    view_warnings,
)
from ultr.ingest.output import Output, split_names
from ultr.ingest.packing import Repairs, pack_lists
from ultr.ingest.readers.base import VIEW, ColumnRequest, GradedPairs, RawRows, column_option
from ultr.ingest.view_column import check_view_column


def write_log(
    engine: Engine,
    output: Output,
    raw: RawRows,
    rows: CheckedRows,
    request: ColumnRequest,
    *,
    grades: GradedPairs | None,
    graded_by: str | None,
    report: Mapping[str, Any],
) -> ClickLog:
    """Writes shown documents as a click log.

    Args:
      engine: the engine.
      output: the folder to make.
      raw, rows: the documents as they were read, and with checked values.
      request: the columns that were asked for.
      grades: grades of (query, document) pairs.
      graded_by: name of the file of these grades.
      report: the first entries of the log's report.

    Raises:
      DataError: lists cannot be split by time, or a context column is unusable.
    """
    if output.split and output.split_by == "time" and "time" not in rows.table.columns:
        raise DataError(
            "expected times to split by, found no time column",
            fix=column_option("time"),
            file=raw.files[0],
            field="time",
        )
    notes: list[str] = []
    if VIEW in rows.table.columns and "list" not in rows.table.columns:
        own, notes = check_view_column(
            engine, rows.table, pages=output.pages, named=request.columns.get(VIEW), where=raw.where
        )
        rows = replace(rows, table=own)
    output.progress.set_description("numbering")
    ids = assign_ids(engine, rows.table, parent=output.vocabulary, grades=grades)
    lists = group_into_lists(
        engine,
        rows.table,
        ids.queries,
        context=request.context,
        text=raw.text,
        known=output.parent.metadata.get("context") if output.parent is not None else None,
        pages=output.pages,
        asks_about_pages=raw.asks_about_pages,
        where=raw.where,
    )
    queries, documents, features, counts = vocabulary_tables(engine, ids, raw.features)
    repairs = Repairs()
    writer = LogWriter(
        output.path,
        queries=queries,
        documents=documents,
        features=features,
        impression_features=request.features,
        context=lists.context,
        parent=output.parent,
        max_grade=output.max_grade,
        splits=list(output.split or ()),
        overwrite=output.overwrite,
    )
    output.progress.set_description("writing")
    output.progress.reset(engine.number(lists.table.count()))
    with writer:
        sessions = impressions = clicks = 0
        for table in _session_tables(engine, output, raw, rows, ids, lists, request, repairs):
            writer.write(table)
            output.progress.update(len(table))
            sessions += len(table)
            flat = table["clicks"].combine_chunks().flatten()
            impressions += len(flat)
            clicks += int(flat.to_numpy().sum(dtype=np.int64))
        made = dict(report)
        made |= {"rows": rows.read, "sessions": sessions, "impressions": impressions, "clicks": clicks}
        made["distinct_sessions"] = engine.number(lists.table["session"].nunique())
        made |= _dropped_and_repaired(raw, rows, repairs)
        if views := _views(engine, rows, lists, made):
            made["views"] = views
        lost = ("duplicate_ranks", "duplicate_documents", "copied_rows")
        if impressions + sum(made["dropped"].get(kind, 0) for kind in lost) != rows.kept:
            raise damaged(raw)
        if graded := ids.report | counts:
            made["documents"] = graded
        made["warnings"] = [
            *rows.warnings,
            *notes,
            *(grades.warnings if grades is not None else ()),
            *differing_in_rows(ids.differing, raw.where),
            *feature_warnings(counts),
            *grade_warnings(documents, made),
            *log_warnings(made, shown=rows.found, splits=writer.splits, graded_by=graded_by),
            *view_warnings(lists.views, shown=rows.found, lists=sessions, pages=output.pages),
            *rank_warnings(made, repairs, shown=rows.found, lists=sessions),
        ]
        writer.report = made
    return ClickLog.open(output.path)


def damaged(raw: RawRows) -> DataError:
    """Makes the error about files that give other rows each time they are read, as damaged Parquet does."""
    return DataError(
        "expected the same rows each time the files are read, found others: a file is damaged, or changed meanwhile "
        "(in a damaged Parquet file the least and largest values that stand beside the data may contradict it)",
        fix="Copy or export it again.",
        file=raw.files[0] if len(raw.files) == 1 else None,
    )


def _session_tables(
    engine: Engine,
    output: Output,
    raw: RawRows,
    rows: CheckedRows,
    ids: AssignedIds,
    lists: ListTable,
    request: ColumnRequest,
    repairs: Repairs,
) -> Iterator[pa.Table]:
    """Yields tables of sessions as `LogWriter` takes them."""
    pairs = ids.pairs.select("query", "document", "document_id")
    joined = lists.rows.join(pairs, ["query", "document"])
    values = [FEATURE + name for name in request.features]
    joined = joined.select("list", "rank", "at", "click", *values, document="document_id")
    codes: np.ndarray | None = None
    if output.split and output.split_by == "time":
        codes = assign_by_time(list_times(engine, lists), output.split)
        first = first_rows(lists.session_keys(engine))
        if apart := len(np.unique(first[codes != codes[first]])):
            repairs.noted["sessions_in_several_splits"] = apart
    elif output.split and output.split_by == "session":
        codes = assign_split(first_rows(lists.session_keys(engine)), output.split, output.seed)
    per_list = TableStream(lists.stream(engine))
    ordered = engine.stream(joined.order_by(["list", "rank", "at"]))
    start = 0
    for packed in pack_lists(ordered, repairs, values=values):
        count = len(packed.number)
        table = per_list.take(count)
        if not np.array_equal(table["list"].to_numpy(), packed.number):
            raise damaged(raw)
        table = table.drop_columns(["list"])
        for name, column in (("documents", "document"), ("ranks", "rank"), ("clicks", "click")):
            table = table.append_column(name, packed.lists(column))
        for name in values:
            table = table.append_column(name, packed.lists(name))
        if output.split:
            if codes is not None:
                own = codes[start : start + count]
            elif output.split_by == "query":
                own = assign_split(table["query"].to_numpy(), output.split, output.seed)
            else:
                own = assign_split(np.arange(start, start + count), output.split, output.seed)
            table = table.append_column("split", split_names(own, output.split))
        start += count
        yield table


def _views(engine: Engine, rows: CheckedRows, lists: ListTable, report: dict[str, Any]) -> dict[str, int]:
    """Counts how views were told apart; empty where no query comes twice in a session."""
    counts = lists.views
    by_column = "view" in rows.table.columns
    if counts is None and not by_column:
        return {}
    if counts is not None and counts.copies:
        report["dropped"]["copied_rows"] = counts.copies
    out = {"queries_with_several_views": lists.repeated_queries(engine)}
    told = {} if counts is None else {"by_time": counts.by_time, "by_order": counts.by_order}
    if by_column:
        told["by_column"] = out["queries_with_several_views"] - sum(told.values())
    if counts is not None:
        told["pages"] = counts.pages
    out |= {name: count for name, count in told.items() if count}
    return out if any(out.values()) else {}


def _dropped_and_repaired(raw: RawRows, rows: CheckedRows, repairs: Repairs) -> dict[str, dict[str, int]]:
    """Adds up the counts of the reader, the checks and the packing; the usual kinds are listed even where 0."""
    usual = {"rows_without_keys": 0, "clicks_on_documents_not_shown": 0, "empty_lists": 0}
    merged: dict[str, dict[str, int]] = {}
    for name, first, second in (
        ("dropped", usual | rows.dropped, repairs.dropped),
        ("repaired", dict(raw.repaired), repairs.repaired),
        ("noted", {}, repairs.noted),
    ):
        merged[name] = {kind: first.get(kind, 0) + second.get(kind, 0) for kind in first | second}
    return merged
