"""`prepare`: turns raw click logs and graded lists of many formats into folders that can be trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ultr.data.click_log import ClickLog
from ultr.data.collapsing import open_data
from ultr.data.collection import Collection
from ultr.data.columns import RESERVED_NAMES
from ultr.data.splits import check_fractions
from ultr.data.storage import check_replaceable
from ultr.errors import ConfigError, DataError
from ultr.files import write_errors
from ultr.ingest.checking import check_raw_rows
from ultr.ingest.engine import Engine
from ultr.ingest.output import Output
from ultr.ingest.readers import READERS
from ultr.ingest.readers.base import VIEW, ColumnRequest, GradedPairs, Reader
from ultr.ingest.readers.qrels import read_qrels
from ultr.ingest.sources import expand_inputs, is_parquet
from ultr.ingest.to_collection import write_graded_lists
from ultr.ingest.to_log import write_log
from ultr.ingest.values import LARGEST_FEATURE
from ultr.ingest.views import check_pages
from ultr.locks import locked
from ultr.text import did_you_mean

SPLITS = ("query", "session", "time", "list")

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
    quote: bool | None = None,
    feature_count: int | None = None,
    vocabulary: PathLike | ClickLog | Collection | None = None,
    split: Mapping[str, float] | None = None,
    split_by: str | None = None,
    seed: int = 0,
    max_grade: float | None = None,
    pages: str | None = None,
    overwrite: bool = False,
    memory_limit: str | None = None,
    progress: bool = False,
) -> ClickLog | Collection:
    """Prepares raw files as a click log, or as a collection of graded lists.

    Lists keep the order in which they first appear. Queries, and the documents of each query, are numbered in the
    order in which they first appear; the same input gives the same bytes. A document that is clicked several times
    in a list counts as clicked. Of several rows at a rank of a list, or about a document of it, the first is kept.
    Gaps between ranks are kept. `metadata["report"]` counts what was read, dropped and repaired; its "warnings" are
    sentences about likely mistakes: grades that match nothing, no click at all, more dropped than kept, ranks or
    documents twice in a list, an empty split.

    A list is what one view of a query in one session shows. Where the format does not delimit lists and ranks repeat
    within a session and query, views are told apart by the column `view`, else by time, else by ranks that start again
    in the order of the rows, each of which has to give whole views: `metadata["report"]["views"]` counts them. A
    further page whose ranks go on is part of its list.

    Args:
      inputs: files, or folders of files, that together are one log.
      out: the folder to make.
      format: a format of `ultr.ingest.readers.READERS`, such as "table": CSV, TSV or Parquet with a row per shown
        document and the columns session, query, document, rank (from 1), click (0 or 1), optionally time, label and
        view.
        Formats of graded lists give a collection.
      columns: our name of a column -> the name in the files, where these differ.
      features: names of number columns with a value per shown document.
      context: names of columns with one value per list: text becomes categories, numbers stay numbers.
      labels: a file of grades per query and document: TREC qrels, or a table with a header.
      quote: whether double quotes enclose values of CSV and TSV; None: unless tabs separate the values.
      feature_count: how many features a document of a LETOR file has, where lines leave out those that are 0: further
        ones are left out and counted. None: as many as the vocabulary has, or as the largest that a line names.
      vocabulary: a prepared log or collection (a path or an open one) whose ids are kept; queries and documents that
        it does not know get ids after its own. Its grades are taken over where the files have none for a document,
        and so are its features where the files have no features of documents; otherwise those of the files hold, and
        documents whose features differ are counted. Its other queries give no lists in a new collection.
      split: name -> share of the lists, stored with the log; a split without any list is kept as an empty one.
      split_by: "query" (the default, as a model is mostly meant for other queries too) draws all lists of a query
        together, "session" all lists of a session, "list" each list on its own; "time" gives the earliest lists to the
        first name, and lists of one time to one name.
      seed: decides the draws.
      max_grade: the highest grade of the scale, which metrics such as ERR and simulated users refer to; None: that of
        the vocabulary, or the highest grade where that is higher.
      pages: what ranks that start again with other documents are: "separate" lists, or pages of one list to be
        "joined", whose ranks go on; "first" keeps the first row at each rank of a session and query whatever repeats.
        None takes them for separate lists and warns, or asks where a format has pages under one key (UBI).
      overwrite: whether a log or collection that stands at `out` may be replaced.
      memory_limit: most memory of the query engine, such as "4GB"; beyond it the engine works on disk.
      progress: whether to show a progress bar on standard error.

    Returns:
      the opened ClickLog or Collection.

    Raises:
      ConfigError: an option that does not exist or does not fit the format.
      DataError: input that cannot be used, views that cannot be told apart, or documents without a name that are
        others than those of the vocabulary at their places; names the file, row and field where it can. Nothing is
        left behind.
    """
    check_pages(pages)
    request = ColumnRequest(dict(columns or {}), tuple(features), tuple(context), quote, feature_count)
    reader = _check_options(format, request, labels, split, split_by)
    if pages is not None and VIEW not in reader.columns:
        raise ConfigError(f"pages has no effect on the format {format!r}, which delimits its lists: leave it out")
    target = Path(os.path.abspath(out))
    check_replaceable(target, overwrite=overwrite)
    files = expand_inputs([inputs] if isinstance(inputs, str | os.PathLike) else inputs)
    grades_file = None if labels is None else _grades_file(labels)
    if quote is not None:
        _check_quote(reader, files, grades_file)
    parent = open_data(vocabulary) if isinstance(vocabulary, str | os.PathLike) else vocabulary
    bar = tqdm(desc="reading", unit=" lists", disable=not progress)
    output = Output(target, parent, split, split_by or "query", seed, max_grade, overwrite, pages, bar)
    report: dict[str, Any] = {"format": format, "inputs": [path.name for path in files]}
    beside = next(folder for folder in target.parents if folder.is_dir())
    with (
        bar,
        write_errors(target),
        locked(target),
        Engine(beside=beside, memory_limit=memory_limit) as engine,
    ):
        grades = None if grades_file is None else read_qrels(engine, [grades_file], ColumnRequest(quote=quote))
        found = reader.read(engine, files, request)
        if isinstance(found, GradedPairs):
            report |= found.report
            report["warnings"] = list(found.warnings)
            return write_graded_lists(engine, output, found.table, found.features, unique_pairs=True, report=report)
        rows = check_raw_rows(engine, found, request)
        if found.graded:
            if grades is not None:
                raise ConfigError("the files are graded annotations themselves: labels do not apply to them")
            report |= {"rows": rows.read, "dropped": rows.dropped, "warnings": list(rows.warnings)}
            return write_graded_lists(
                engine, output, rows.table, found.features, unique_pairs=False, report=report, where=found.where
            )
        graded_by = None if grades_file is None else grades_file.name
        return write_log(engine, output, found, rows, request, grades=grades, graded_by=graded_by, report=report)


def _check_options(
    format: str,
    request: ColumnRequest,
    labels: PathLike | None,
    split: Mapping[str, float] | None,
    split_by: str | None,
) -> Reader:
    if format not in READERS:
        raise ConfigError(f"expected a format of {list(READERS)}, found {format!r}{did_you_mean(str(format), READERS)}")
    reader = READERS[format]
    if split_by is not None and split_by not in SPLITS:
        raise ConfigError(
            f"expected split_by of {list(SPLITS)}, found {split_by!r}{did_you_mean(str(split_by), SPLITS)}"
        )
    if split_by is not None and split is None:
        raise ConfigError("split_by has no effect without a split: give the shares too, or leave it out")
    if split is not None:
        check_fractions(split)
    for what, names in (("features", request.features), ("context", request.context)):
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"expected each of the {what} once, found {doubled} twice")
        if len({name.casefold() for name in names}) < len(names):
            raise ConfigError(f"expected {what} whose names differ in more than case, found {list(names)}: rename one")
    if taken := [name for name in request.context if name in RESERVED_NAMES]:
        raise ConfigError(f"context columns cannot be called {taken}: batches have fields of that name")
    if request.feature_count is not None and not 1 <= request.feature_count <= LARGEST_FEATURE:
        raise ConfigError(f"expected a number of features from 1 to {LARGEST_FEATURE:,}, found {request.feature_count}")
    if reader.kind == "graded lists" and (request.names or labels is not None or split_by == "time"):
        raise ConfigError(f"{format} files take no columns, features, context or labels, and no split by time")
    reader.check(request)
    return reader


def _check_quote(reader: Reader, files: Sequence[Path], grades: Path | None) -> None:
    tables = [*(files if reader.columns or reader.may_be_csv else []), *([] if grades is None else [grades])]
    if all(is_parquet(path) for path in tables):
        raise ConfigError("whether quotes enclose values is a question of CSV and TSV: there is none among the files")


def _grades_file(labels: PathLike) -> Path:
    files = expand_inputs([labels])
    if len(files) > 1:
        raise DataError(f"expected one file of grades, found a folder of {len(files)}", file=labels)
    return files[0]
