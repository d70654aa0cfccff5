"""Click logs on disk: what `LogWriter` writes, and what it refuses to write."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from narrowing import present
from stored import (
    CONTEXT,
    PER_QUERY,
    QUERIES,
    SMALL_FILES,
    documents_table,
    make_rows,
    plain,
    streamed,
    write_log,
)

from ultr.data import ClickLog, LogWriter
from ultr.errors import DataError


def test_metadata_counts_what_was_written(tmp_path: Path) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows, report={"rows": np.int64(7)}, truth={"eta": 1.0})
    found = log.metadata
    assert (found["format"], found["schema"]) == ("ultr-click-log", 1)
    assert log.sessions == len(log) == found["sessions"] == 50
    assert (log.queries, log.documents) == (len(QUERIES), len(QUERIES) * PER_QUERY)
    assert log.ranks == max(max(row["ranks"]) for row in rows)
    assert found["clicks"] == sum(sum(row["clicks"]) for row in rows)
    assert found["impressions"] == sum(len(row["clicks"]) for row in rows)
    lengths = Counter(len(row["clicks"]) for row in rows)
    assert found["lengths"] == {str(n): lengths[n] for n in sorted(lengths)}
    assert found["features"] == ["plus", "minus"]
    assert found["impression_features"] == ["bm25", "age"]
    assert found["context"] == CONTEXT
    assert (found["report"], found["truth"]) == ({"rows": 7}, {"eta": 1.0})


def test_a_log_is_readable_with_pyarrow_alone(tmp_path: Path) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows, **SMALL_FILES)
    assert [file["rows"] for file in log.metadata["files"]] == [16, 16, 16, 2]
    tables = [pq.read_table(log.path / file["name"]) for file in log.metadata["files"]]
    again = pa.concat_tables(tables).to_pylist()
    for name in ("feature.bm25", "feature.age"):
        for row in rows:
            row[name] = np.asarray(row[name], np.float32).tolist()
    assert again == rows
    assert pq.read_table(log.path / "queries.parquet")["query"].to_pylist() == QUERIES
    assert pq.read_table(log.path / "documents.parquet")["document"][4].as_py() == "url 5"


def test_number_types_are_converted_where_nothing_is_lost(tmp_path: Path) -> None:
    row = {
        "session": [3],
        "query": [0.0],
        "documents": [[1, 2]],
        "ranks": [[1, 2]],
        "clicks": [[False, True]],
    }
    names = {"queries": pa.array(["q"]), "documents": documents_table(queries=1, features=False)}
    with LogWriter(tmp_path / "log", **names) as w:
        w.write(pa.table(row).to_batches()[0])
    (batch,) = ClickLog.open(tmp_path / "log").batches(1)
    assert present(batch.clicks).tolist() == [[0, 1]]
    assert pq.read_schema(tmp_path / "log" / "sessions-00000.parquet").field("session").type == pa.int64()
    row["query"] = [0.5]
    with (
        pytest.raises(DataError, match=r"field 'query': expected int32, found double"),
        LogWriter(tmp_path / "other", **names) as w,
    ):
        w.write(pa.table(row))


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize("written", [0, 20, 60])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException], written: int) -> None:
    class Rows(list[dict[str, Any]]):
        """Breaks off while the rows beyond `written` are taken from it."""

        def __getitem__(self, part: Any) -> Any:
            if isinstance(part, slice) and part.start >= written:
                raise error
            return super().__getitem__(part)

    with pytest.raises(error):
        write_log(tmp_path / "a" / "log", Rows(make_rows(100)), step=20, **SMALL_FILES)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_log(path, make_rows(5))
    with pytest.raises(DataError, match="already stands here"):
        write_log(path, make_rows(6))
    assert ClickLog.open(path).sessions == 5
    with pytest.raises(DataError, match="expected clicks of 0 or 1"):
        write_log(path, [row | {"clicks": [2] * len(row["clicks"])} for row in make_rows(6)], overwrite=True)
    assert streamed(ClickLog.open(path)) != []
    assert ClickLog.open(path).sessions == 5
    assert write_log(path, make_rows(6), overwrite=True).sessions == 6
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_overwrite_never_replaces_something_else(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="only a click log or a collection is overwritten"):
        write_log(tmp_path / "home", make_rows(5), overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert write_log(tmp_path / "empty", make_rows(5)).sessions == 5


def test_a_log_without_sessions_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="expected at least one session, found none"),
        LogWriter(tmp_path / "log", queries=pa.array(QUERIES), documents=documents_table(features=False)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicks": [0, 2]}, r"row 3, field 'clicks': expected clicks of 0 or 1, found \[0, 2\]"),
        ({"clicks": [0, -1]}, r"row 3, field 'clicks': expected clicks of 0 or 1"),
        ({"clicks": [1]}, r"row 3, field 'clicks': expected 2 values as in 'documents', found 1"),
        ({"clicks": None}, r"row 3, field 'clicks': expected a value in every row, found null"),
        ({"clicks": [None, 1]}, r"row 3, field 'clicks': expected a value for every document, found null"),
        (
            {"ranks": [2, 2]},
            r"row 3, field 'ranks': expected strictly increasing ranks of at least 1, found \[2, 2\]",
        ),
        ({"ranks": [2, 1]}, r"row 3, field 'ranks': expected strictly increasing"),
        ({"ranks": [0, 1]}, r"row 3, field 'ranks': expected strictly increasing ranks of at least 1"),
        ({"ranks": [1, 1001]}, r"row 3, field 'ranks': expected ranks that are places in a list, at most 1,000"),
        ({"ranks": [1, 2**31]}, r"field 'ranks': expected list<int32>"),
        ({"documents": [1, 2, 3]}, r"row 3, field 'ranks': expected 3 values as in 'documents', found 2"),
        (
            {"documents": [1, 141]},
            r"row 3, field 'documents': expected document ids of 0 to 140, found \[1, 141\]",
        ),
        ({"documents": [1, -1]}, r"row 3, field 'documents': expected document ids of 0 to 140"),
        (
            {"documents": [], "ranks": [], "clicks": []},
            r"row 3, field 'documents': expected at least one document",
        ),
        ({"query": 7}, r"row 3, field 'query': expected query ids of 0 to 6, found 7"),
        ({"query": -1}, r"row 3, field 'query': expected query ids of 0 to 6, found -1"),
        ({"weight": math.nan}, r"row 3, field 'weight': expected finite weights of at least 0, found nan"),
        ({"weight": -1.0}, r"row 3, field 'weight': expected finite weights of at least 0, found -1.0"),
        ({"session": None}, r"field 'session': expected a value in every row"),
    ],
)
def test_writing_names_the_row_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = plain(make_rows(5, length=2))
    with pytest.raises(DataError, match=message):
        write_log(tmp_path / "log", [*rows[:2], rows[2] | change, *rows[3:]], step=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"context.device": 3},
            r"row 1, field 'context.device': expected category indices of 0 \(unknown\) to 2",
        ),
        ({"context.price": math.inf}, r"row 1, field 'context.price': expected finite numbers, found inf"),
        ({"feature.bm25": [math.nan, 1.0]}, r"row 1, field 'feature.bm25': expected finite numbers"),
        ({"time": math.nan}, r"row 1, field 'time': expected finite times"),
        ({"context.color": 1}, r"unexpected: \['context.color'\]"),
        ({"click": 1}, r"unexpected: \['click'\]"),
    ],
)
def test_writing_checks_optional_columns(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_log(tmp_path / "log", [row | change for row in make_rows(2, length=2)])


def test_every_table_has_the_columns_of_the_first(tmp_path: Path) -> None:
    rows = make_rows(4)
    del rows[3]["weight"]
    with pytest.raises(DataError, match=r"missing: \['weight'\]"):
        write_log(tmp_path / "log", rows, step=1)
    with pytest.raises(DataError, match=r"missing: \['ranks'\]"):
        write_log(tmp_path / "log", [{k: v for k, v in row.items() if k != "ranks"} for row in rows[:1]])


@pytest.mark.parametrize("name", ["document", "features"])
def test_a_context_column_cannot_take_the_name_of_a_field(tmp_path: Path, name: str) -> None:
    rows = [row | {f"context.{name}": 1.0} for row in plain(make_rows(2))]
    with pytest.raises(DataError, match="is the name of another field"):
        write_log(tmp_path / "log", rows, context={name: {"kind": "number"}})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("query", pa.array([0, 7], pa.int32()), r"row 2, field 'query': expected query ids of 0 to 6"),
        ("query", pa.array(["a", "b"]), r"field 'query': expected int32, found string"),
        ("document", pa.array(["a", None]), r"field 'document': expected a value in every row, found nulls"),
        ("label", pa.array([1, math.inf]), r"row 2, field 'label': expected finite grades, or null"),
        (
            "features",
            pa.array([[1.0], [math.nan]], pa.list_(pa.float32(), 1)),
            r"row 2, field 'features': expected",
        ),
        ("features", pa.array([[1.0], [1.0, 2.0]]), r"field 'features': expected list<float>\[1\]"),
        ("color", pa.array(["a", "b"]), r"found \['color'\] too"),
    ],
)
def test_the_documents_table_is_checked(tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
    good = {"query": pa.array([0, 0], pa.int32()), "document": pa.array(["a", "b"])}
    names = ["only"] if column == "features" else []
    with pytest.raises(DataError, match=message):
        write_log(tmp_path / "log", make_rows(1), documents=pa.table(good | {column: values}), features=names)
    assert list(tmp_path.iterdir()) == []
