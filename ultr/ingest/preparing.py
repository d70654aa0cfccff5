"""`prepare`: raw click logs and graded documents of many formats into folders that can be trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ultr.data.click_log import ClickLog, open_data
from ultr.data.collection import Collection, split_counts, write_collection
from ultr.data.columns import CONTEXT, FEATURE, RESERVED_NAMES
from ultr.data.splits import assign_by_time, assign_split, check_fractions
from ultr.data.storage import OVERWRITE_FIX
from ultr.data.vocabulary import Vocabulary
from ultr.data.writer import LogWriter
from ultr.errors import ConfigError, DataError
from ultr.ingest.engine import ENGINES, Engine, EngineError
from ultr.ingest.ids import DocumentFeatures, Ids, assign, tables
from ultr.ingest.lists import Cursor, Lists, gather, number_rows, times
from ultr.ingest.notices import collection_warnings, log_warnings
from ultr.ingest.packing import Repairs, runs
from ultr.ingest.readers.baidu import read_baidu
from ultr.ingest.readers.formats import (
    OURS,
    Request,
    Rows,
    name_it,
    read_table,
    read_trec_session,
    read_yandex,
    read_yandex_sample,
)
from ultr.ingest.readers.letor import read_letor
from ultr.ingest.readers.qrels import Grades, read_grades, read_qrels
from ultr.ingest.readers.ubi import read_ubi
from ultr.ingest.sources import expand, place
from ultr.ingest.values import key, reject, typed

LOGS: Mapping[str, Callable[[Engine, list[Path], Request], Rows]] = {
    "table": read_table,
    "yandex": read_yandex,
    "yandex-sample": read_yandex_sample,
    "trec-session": read_trec_session,
    "ubi": read_ubi,
}
COLLECTIONS = ("letor", "qrels")
FORMATS = (*LOGS, "baidu-uva", *COLLECTIONS)
SPLITS = ("session", "query", "time")

PathLike = str | os.PathLike[str]


def prepare(
    inputs: Sequence[PathLike] | PathLike,
    out: PathLike,
    *,
    format: str = "table",
    columns: Mapping[str, str] | None = None,
    features: Sequence[str] = (),
    context: Sequence[str] = (),
    labels: PathLike | None = None,
    vocabulary: Any = None,
    split: Mapping[str, float] | None = None,
    split_by: str = "session",
    seed: int = 0,
    overwrite: bool = False,
    engine: str = "duckdb",
    memory_limit: str | None = None,
    progress: bool = False,
) -> ClickLog | Collection:
    """Makes a click log or a collection of raw files.

    Lists keep the order in which they first appear. Queries, and the documents of each query, are numbered in the
    order in which they first appear; the same input gives the same bytes. A document that is clicked several times
    in a list counts as clicked. Of rows at the same rank of a list, or about the same document, the first is kept.
    Gaps in the ranks stay as they are. What was read, dropped and repaired is in `metadata["report"]`; its "warnings"
    are sentences about what is likely a mistake: grades that match nothing, no click at all, more dropped than kept,
    an empty split.

    Args:
      inputs: files, or folders of files, that together are one log.
      out: the folder to make.
      format: one of `FORMATS`:
        "table": CSV, TSV or Parquet with a row per shown document and the columns session, query, document, rank
        (from 1), click (0 or 1), optionally time and label;
        "yandex", "yandex-sample", "trec-session", "ubi" (User Behavior Insights 1.3), "baidu-uva": click logs as
        published (baidu-uva annotations give a collection);
        "letor" (SVMlight with qid) and "qrels" (TREC): graded documents, which give a collection.
      columns: our name of a column -> the file's.
      features: number columns with a value per shown document.
      context: columns with one value per list: text becomes categories, numbers stay numbers.
      labels: a file of grades per query and document: TREC qrels, or a table with a header.
      vocabulary: a prepared log or collection (a path or an open one) whose ids are kept; what it does not know gets
        ids after its own. Its grades and features of queries that the new data hold come along; its other queries are
        no lists of a new collection.
      split: name -> share of the lists, to be stored with the log; a split that gets none is kept as an empty one.
      split_by: "session" draws each list on its own, "query" all lists of a query together; "time" gives the
        earliest lists to the first name.
      seed: decides who is drawn.
      overwrite: whether a log or collection that stands at `out` may be replaced.
      engine: one of `ENGINES`.
      memory_limit: most memory of the engine, such as "4GB".
      progress: whether to show a progress bar on standard error.

    Returns:
      the opened ClickLog or Collection.

    Raises:
      ConfigError: an option that does not exist or does not fit the format.
      DataError: input that cannot be used; names the file, row and field where it can. Nothing is left behind.
    """
    request = Request(dict(columns or {}), tuple(features), tuple(context))
    _check_options(request, format, engine, labels, split, split_by)
    target = Path(os.path.abspath(out))
    if not overwrite and os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise DataError("something already stands here", fix=OVERWRITE_FIX, file=target)
    files = expand([inputs] if isinstance(inputs, str | os.PathLike) else inputs)
    parent = open_data(vocabulary) if isinstance(vocabulary, str | os.PathLike) else vocabulary
    bar = tqdm(desc="reading", unit=" lists", disable=not progress)
    output = _Output(target, parent, split, split_by, seed, overwrite, bar)
    report: dict[str, Any] = {"format": format, "inputs": [path.name for path in files]}
    beside = next(folder for folder in target.parents if folder.is_dir())
    with bar, Engine(engine, beside=beside, memory_limit=memory_limit) as running:
        if format == "letor":
            return _letor(running, output, files, report)
        if format == "qrels":
            found = read_qrels(running, files)
            return _collection(running, output, found.table, None, report | found.report, final=True)
        graded_by = None if labels is None else _file_of_grades(labels)
        grades = None if graded_by is None else read_grades(running, graded_by)
        extra: DocumentFeatures | None = None
        if format == "baidu-uva":
            rows, extra = read_baidu(running, files, request)
        else:
            rows = LOGS[format](running, files, request)
        checked = _checked(running, rows, request)
        if rows.graded:
            if grades is not None:
                raise ConfigError("these files are grades themselves: labels do not apply")
            report |= {"rows": rows.read, "dropped": rows.dropped}
            return _collection(running, output, checked, extra, report, final=False)
        return _log(running, output, rows, checked, request, extra, grades, graded_by, report)


@dataclass(frozen=True)
class _Output:
    path: Path
    parent: Any
    split: Mapping[str, float] | None
    split_by: str
    seed: int
    overwrite: bool
    bar: Any

    @property
    def vocabulary(self) -> Vocabulary | None:
        return None if self.parent is None else self.parent.vocabulary


def _check_options(
    request: Request, format: str, engine: str, labels: Any, split: Mapping[str, float] | None, split_by: str
) -> None:
    if format not in FORMATS:
        raise ConfigError(f"expected a format of {list(FORMATS)}, found {format!r}")
    if engine not in ENGINES:
        raise ConfigError(f"expected an engine of {list(ENGINES)}, found {engine!r}")
    if split_by not in SPLITS:
        raise ConfigError(f"expected split_by of {list(SPLITS)}, found {split_by!r}")
    if split is not None:
        check_fractions(split)
    known = [*OURS, "action"] if format == "ubi" else list(OURS)
    if unknown := [name for name in request.columns if name not in known]:
        raise ConfigError(f"columns maps our names {known} to those of the file, found {unknown}")
    for what, names in (("features", request.features), ("context", request.context)):
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"expected each of the {what} once, found {doubled} twice")
    if taken := [name for name in request.context if name in RESERVED_NAMES]:
        raise ConfigError(f"context columns cannot be called {taken}: batches have fields of that name")
    if format in COLLECTIONS and (request != Request() or labels is not None or (split and split_by == "time")):
        raise ConfigError(f"{format} files take no columns, features, context, labels, and no split by time")


def _file_of_grades(labels: PathLike) -> Path:
    files = expand([labels])
    if len(files) > 1:
        raise DataError(f"expected one file of grades, found a folder of {len(files)}", file=labels)
    return files[0]


def _checked(engine: Engine, rows: Rows, request: Request) -> ir.Table:
    """The rows with typed values, those without a session, query or document left out; a bad value is an error."""
    parts = rows.parts
    integer = all(part["session"].type().is_signed_integer() for part in parts)
    numeric = {name: all(part[CONTEXT + name].type().is_numeric() for part in parts) for name in request.context}
    kinds = {name: name for name in ("rank", "click", "time", "label") if name in parts[0].columns}
    kinds |= {FEATURE + name: "feature" for name in request.features}

    def part_of(number: int, table: ir.Table) -> ir.Table:
        for name in ("session", "query", "document", *(CONTEXT + n for n in request.context)):
            kind = table[name].type()
            if not (kind.is_string() or kind.is_numeric() or kind.is_boolean() or kind.is_uuid()):
                file = rows.files[number] if len(parts) == len(rows.files) else rows.files[0]
                theirs = request.names().get(name, name)
                raise DataError(f"expected text or numbers, found {kind}", file=file, field=theirs)
        keys: dict[str, Any] = {name: key(table[name]) for name in ("session", "query", "document")}
        if integer:
            keys["session"] = table["session"].cast("int64")
        for name, number in numeric.items():
            value: Any = table[CONTEXT + name]
            keys[CONTEXT + name] = value.cast("float64") if number else value.cast("string").nullif("")
        return typed(table.mutate(**keys), kinds)

    tables = [part_of(number, table) for number, table in enumerate(parts)]
    if "time" in kinds and any(table["time"].type().is_floating() for table in tables):
        tables = [table.mutate(time=table["time"].cast("float64")) for table in tables]
    table = ibis.union(*tables) if len(tables) > 1 else tables[0]
    try:
        if rows.once:
            table = engine.stage("rows", table)
        whole = table["session"].notnull() & table["query"].notnull() & table["document"].notnull()
        counts = engine.record(table.agg(read=table.count(), whole=whole.sum().fill_null(0), bad=table["bad"].count()))
    except EngineError as error:
        raise rows.explain(error) from error
    if counts["bad"]:
        reject(engine, table, partial(place, rows.files, line=rows.line), request.names())
    rows.shown = counts["read"]
    if rows.read is None:
        rows.read = rows.shown
    rows.dropped["rows_without_keys"] = counts["read"] - counts["whole"]
    if not counts["whole"]:
        raise DataError(
            f"expected rows with a session, query and document, found none among {rows.read:,}", file=rows.files[0]
        )
    return table.filter(whole).drop("bad", "found")


def _log(
    engine: Engine,
    output: _Output,
    rows: Rows,
    table: ir.Table,
    request: Request,
    extra: DocumentFeatures | None,
    grades: Grades | None,
    graded_by: Path | None,
    report: dict[str, Any],
) -> ClickLog:
    if output.split and output.split_by == "time" and "time" not in table.columns:
        raise DataError(
            "expected times to split by, found no time column",
            fix=name_it("time"),
            file=rows.files[0],
            field="time",
        )
    output.bar.set_description("numbering")
    ids = assign(engine, table, parent=output.vocabulary, grades=grades)
    lists = gather(
        engine,
        table,
        ids.queries,
        context=request.context,
        text=rows.text,
        known=getattr(output.parent, "metadata", {}).get("context"),
        where=partial(place, rows.files, line=rows.line),
    )
    queries, documents, features, counts = tables(engine, ids, extra)
    repairs = Repairs()
    writer = LogWriter(
        output.path,
        queries=queries,
        documents=documents,
        features=features,
        impression_features=request.features,
        context=lists.context,
        parent=output.parent,
        splits=list(output.split or ()),
        overwrite=output.overwrite,
    )
    output.bar.set_description("writing")
    output.bar.reset(int(engine.record(lists.table.agg(n=lists.table.count()))["n"]))
    with writer:
        sessions = impressions = clicks = 0
        for written in _written(engine, output, table, ids, lists, request, repairs):
            writer.write(written)
            output.bar.update(len(written))
            sessions += len(written)
            flat = written["clicks"].combine_chunks().flatten()
            impressions += len(flat)
            clicks += int(flat.to_numpy().sum(dtype=np.int64))
        report |= {"rows": rows.read, "sessions": sessions, "impressions": impressions, "clicks": clicks}
        report |= _merged(rows, repairs)
        if graded := ids.report | counts:
            report["documents"] = graded
        name = None if graded_by is None else graded_by.name
        report["warnings"] = log_warnings(report, shown=rows.shown, splits=writer.splits, graded_by=name)
        writer.report = report
    return ClickLog.open(output.path)


def _written(
    engine: Engine, output: _Output, table: ir.Table, ids: Ids, lists: Lists, request: Request, repairs: Repairs
) -> Iterator[pa.Table]:
    """The tables that a `LogWriter` takes."""
    pairs = ids.pairs.select("query", "document", "document_id")
    joined = number_rows(table, lists).join(pairs, ["query", "document"])
    values = [FEATURE + name for name in request.features]
    joined = joined.select("list", "rank", "at", "click", *values, document="document_id")
    chosen: np.ndarray | None = None
    if output.split and output.split_by == "time":
        chosen = assign_by_time(times(engine, lists), output.split)
    per_list = Cursor(lists.stream(engine))
    ordered = engine.stream(joined.order_by(["list", "rank", "at"]))
    start = 0
    for block in runs(ordered, repairs, values=values):
        count = len(block.number)
        found = per_list.take(count)
        if not np.array_equal(found["list"].to_numpy(), block.number):
            raise RuntimeError("rows and lists are not in the same order")
        found = found.drop_columns(["list"])
        for name, column in (("documents", "document"), ("ranks", "rank"), ("clicks", "click")):
            found = found.append_column(name, block.lists(column))
        for name in values:
            found = found.append_column(name, block.lists(name))
        if output.split:
            if chosen is not None:
                codes = chosen[start : start + count]
            elif output.split_by == "query":
                codes = assign_split(found["query"].to_numpy(), output.split, output.seed)
            else:
                codes = assign_split(np.arange(start, start + count), output.split, output.seed)
            found = found.append_column("split", _split_names(codes, output.split))
        start += count
        yield found


def _split_names(codes: np.ndarray, split: Mapping[str, float]) -> pa.Array:
    return pa.array(list(split), pa.string()).take(pa.array(codes))


def _merged(rows: Rows, repairs: Repairs) -> dict[str, dict[str, int]]:
    """Counts of the reader and of the list step together; the common kinds are always there."""
    dropped = {"rows_without_keys": 0, "clicks_on_documents_not_shown": 0, "empty_lists": 0}
    merged: dict[str, dict[str, int]] = {}
    for name, first, second in (
        ("dropped", dropped | rows.dropped, repairs.dropped),
        ("repaired", rows.repaired, repairs.repaired),
        ("noted", {}, repairs.noted),
    ):
        merged[name] = {kind: first.get(kind, 0) + second.get(kind, 0) for kind in first | second}
    return merged


def _letor(engine: Engine, output: _Output, files: list[Path], report: dict[str, Any]) -> Collection:
    found = read_letor(files)
    slots = np.arange(len(found.at))
    table = pa.table(
        {"at": found.at, "slot": slots, "query": found.query, "document": found.document, "label": found.label}
    )
    rows = engine.load("rows", table.to_batches(), table.schema)

    def fill(slots: np.ndarray, targets: np.ndarray, out: np.ndarray) -> None:
        out[targets] = found.features[slots]

    width = found.features.shape[1]
    features = DocumentFeatures([str(i) for i in range(1, width + 1)], fill) if width else None
    return _collection(engine, output, rows, features, report | found.report, final=True)


def _collection(
    engine: Engine,
    output: _Output,
    table: ir.Table,
    features: DocumentFeatures | None,
    report: dict[str, Any],
    *,
    final: bool,
) -> Collection:
    ids = assign(engine, table, parent=output.vocabulary, final=final)
    queries, documents, names, counts = tables(engine, ids, features)
    for name, count in (ids.report | counts).items():
        report[name] = report.get(name, 0) + count
    splits = own = None
    if output.parent is not None:
        own = np.zeros(len(queries), bool)
        own[engine.table(ids.pairs.select("query_id").distinct())["query_id"].to_numpy()] = True
    if output.split:
        codes = assign_split(np.arange(len(queries)), output.split, output.seed)
        splits = _split_names(codes, output.split)
        if own is not None:
            splits = pc.if_else(pa.array(own), splits, None)
    counted = split_counts(documents, splits, list(output.split or ()))
    report["warnings"] = collection_warnings(report, splits=counted)
    write_collection(
        output.path,
        queries=queries,
        documents=documents,
        features=names,
        splits=splits,
        split_names=list(counted),
        own=own,
        parent=output.parent,
        report=report,
        overwrite=output.overwrite,
    )
    return Collection.open(output.path)
