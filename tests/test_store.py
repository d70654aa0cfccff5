"""Click logs on disk: what is written comes back, once, and damage is named."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import (
    CONTEXT,
    PER_QUERY,
    QUERIES,
    documents_table,
    make_rows,
    plain,
    replace,
    rewrite,
    streamed,
    write_log,
)

from ultr.data import ClickLog, Collection, LogWriter, assign_split, open_data, writer
from ultr.data import click_log as store
from ultr.data.batching import ahead, bucket_widths
from ultr.data.splits import assign_by_time
from ultr.data.storage import describe
from ultr.data.vocabulary import fingerprint
from ultr.errors import ConfigError, DataError


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 8 sessions, files of 16, pools of 24: a hundred sessions cross every border."""
    monkeypatch.setattr(writer, "GROUP_ROWS", 8)
    monkeypatch.setattr(writer, "FILE_GROUPS", 2)
    monkeypatch.setattr(store, "POOL_SESSIONS", 24)


# Writing


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


def test_a_log_is_readable_with_pyarrow_alone(tmp_path: Path, small_files: None) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows)
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
    assert batch.clicks.tolist() == [[0, 1]]
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
def test_an_interrupted_writer_leaves_nothing(
    tmp_path: Path, small_files: None, error: type[BaseException], written: int
) -> None:
    class Rows(list[dict[str, Any]]):
        """Breaks off while the rows beyond `written` are taken from it."""

        def __getitem__(self, part: Any) -> Any:
            if isinstance(part, slice) and part.start >= written:
                raise error
            return super().__getitem__(part)

    with pytest.raises(error):
        write_log(tmp_path / "a" / "log", Rows(make_rows(100)), step=20)
    assert list((tmp_path / "a").iterdir()) == []


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


# Streaming


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_every_session_comes_once_with_its_values(
    tmp_path: Path, small_files: None, seed: int | None, batch_size: int
) -> None:
    rows = make_rows(100)
    log = write_log(tmp_path / "log", rows)
    assert len(log.metadata["files"]) == 7
    seen = []
    for batch in log.batches(batch_size, seed=seed):
        batch.validate()
        assert len(batch) == batch_size
        for b in range(batch_size):
            k = int(batch.mask[b].sum())
            padding = batch.clicks, batch.position, batch.labels, *batch.features.values()
            assert all((x[b, k:] == 0).all() for x in padding)
            if not k:
                assert batch.weight[b] == 0
                continue
            row = rows[int(batch.weight[b])]
            seen.append(int(batch.weight[b]))
            ids = np.array(row["documents"])
            assert k == len(ids)
            assert batch.query[b] == row["query"]
            assert batch.features["document"][b, :k].tolist() == row["documents"]
            assert batch.position[b, :k].tolist() == [rank - 1 for rank in row["ranks"]]
            assert batch.clicks[b, :k].tolist() == row["clicks"]
            assert batch.features["device"][b, :k].tolist() == [row["context.device"]] * k
            assert batch.features["price"][b, :k].tolist() == [row["context.price"]] * k
            expected = np.stack([ids, -ids, row["feature.bm25"], row["feature.age"]], 1).astype(np.float32)
            np.testing.assert_array_equal(batch.features["features"][b, :k], expected)
            grades = np.where(ids % 3 == 0, np.nan, ids % 5)
            np.testing.assert_array_equal(batch.labels[b, :k], grades)
    assert sorted(seen) == list(range(100))


def test_a_batch_has_the_dtypes_of_sessions(tmp_path: Path) -> None:
    batch = next(write_log(tmp_path / "log", make_rows(5)).batches(4))
    kinds = {
        "mask": bool, "position": np.int32, "clicks": np.int8, "labels": np.float32, "query": np.int32,
        "weight": np.float32,
    }  # fmt: skip
    assert {name: getattr(batch, name).dtype for name in kinds} == kinds
    features = {"document": np.int32, "features": np.float32, "device": np.int32, "price": np.float32}
    assert {name: x.dtype for name, x in batch.features.items()} == features


def test_a_plain_log_brings_no_optional_fields(tmp_path: Path) -> None:
    rows = plain(make_rows(5))
    for row in rows:
        del row["weight"]
    log = write_log(tmp_path / "log", rows, documents=documents_table(labels=False, features=False))
    batch = next(log.batches(4))
    assert (batch.weight, batch.labels, list(batch.features)) == (None, None, ["document"])
    assert log.collection() is None


def test_shapes_are_few_and_fixed(tmp_path: Path, small_files: None) -> None:
    log = write_log(tmp_path / "log", make_rows(100))  # lists of 1 to 11
    assert {batch.shape for batch in log.batches(16, seed=0)} == {(16, k) for k in (1, 2, 4, 8, 11)}
    same = write_log(tmp_path / "same", make_rows(100, length=10))
    shapes = [batch.shape for batch in same.batches(16, seed=0)]
    assert shapes == [(16, 10)] * math.ceil(100 / 16)


@pytest.mark.parametrize(
    ("longest", "widths"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])]
)
def test_widths_are_powers_of_two_up_to_the_longest(longest: int, widths: list[int]) -> None:
    assert bucket_widths(longest).tolist() == widths


def test_lengths_that_average_to_a_width_are_not_a_rectangle(tmp_path: Path) -> None:
    rows = [row | {"weight": float(i)} for i, k in enumerate([1, 2, 3]) for row in plain(make_rows(1, length=k))]
    batches = {b.shape[1]: b for b in write_log(tmp_path / "log", rows).batches(1)}
    for row in rows:
        k = len(row["documents"])
        assert batches[k].features["document"].tolist() == [row["documents"]]


def test_the_seed_decides_the_order(tmp_path: Path, small_files: None) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    first, again, other = (streamed(log, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == list(range(100))
    assert streamed(ClickLog.open(log.path), seed=5) == first


def test_shuffling_mixes_sessions_of_different_files(tmp_path: Path, small_files: None) -> None:
    order = np.array(streamed(write_log(tmp_path / "log", make_rows(96, length=3)), seed=0))
    # Stored order crosses from one file of 16 sessions to another 5 times; a pool of 3 of the 12 row groups
    # does so at about 2 of 3 steps.
    assert (np.diff(order // 16) != 0).mean() > 0.4
    assert set(order[:24].tolist()) != set(range(24))


def test_the_seed_decides_the_order_within_a_row_group(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(60, length=3))
    orders = [streamed(log, seed=seed) for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))


@pytest.mark.parametrize(("share", "again"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_row_groups_kept_in_memory_are_not_read_again(
    tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch, share: float, again: float
) -> None:
    log = write_log(tmp_path / "log", make_rows(96, length=3)).split({"a": 0.7, "b": 0.3}, by="session", seed=0)["a"]
    expected = [list(log.batches(8, seed=seed)) for seed in (None, 1, 2)]
    size = sum(x.nbytes for group in log._groups for _, rows in log._load(group, np.array([3])) for x in rows.values())
    reads = []
    read = store.read_row_groups
    monkeypatch.setattr(store, "read_row_groups", lambda *a, **k: reads.append(a) or read(*a, **k))
    kept = log.cached(int(size * share))
    found = [list(kept.batches(8, seed=None))]
    first = len(reads)
    found += [list(kept.batches(8, seed=seed)) for seed in (1, 2)]
    assert (first, len(reads) - first) == (12, pytest.approx(2 * 12 * again, abs=2))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    part = kept.split({"c": 0.5, "d": 0.5}, by="session", seed=0)["c"]  # which holds other rows
    assert streamed(part) == streamed(log.split({"c": 0.5, "d": 0.5}, by="session", seed=0)["c"])


def test_without_a_seed_the_order_is_the_stored_one(tmp_path: Path, small_files: None) -> None:
    log = write_log(tmp_path / "log", make_rows(50, length=4))
    assert streamed(log) == list(range(50))
    ragged = write_log(tmp_path / "ragged", make_rows(50))
    by_width: dict[int, list[float]] = {}
    for batch in ragged.batches(4):
        by_width.setdefault(batch.shape[1], []).extend(batch.weight[batch.mask[:, 0]])
    assert all(numbers == sorted(numbers) for numbers in by_width.values())


def test_a_stream_can_be_left_early(tmp_path: Path, small_files: None) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    stream = log.batches(4, seed=0)
    next(stream)
    stream.close()
    assert len(streamed(log, seed=0)) == 100


def consecutive(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ranks 1, 2, ..."""
    return [row | {"ranks": list(range(1, len(row["ranks"]) + 1))} for row in rows]


def set_records(log: ClickLog, change: Any) -> ClickLog:
    """The log with `change` made to each of the metadata's records of session files."""
    metadata = json.loads((log.path / "metadata.json").read_text())
    metadata["files"] = [change(record) for record in metadata["files"]]
    (log.path / "metadata.json").write_text(json.dumps(metadata))
    return ClickLog.open(log.path)


def without_ranks(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "ranks"}


def assert_same_batches(first: Any, second: Any, **options: Any) -> None:
    for a, b in zip(first.batches(16, **options), second.batches(16, **options), strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def flip(file: Path, column: str, *, group: int = 0) -> None:
    """Flips a bit in the last byte that a row group holds of a column."""
    about = pq.read_metadata(file).row_group(group)
    (chunk,) = (c for c in map(about.column, range(about.num_columns)) if c.path_in_schema.split(".list.")[0] == column)
    content = bytearray(file.read_bytes())
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content[start + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("length", [4, None])
def test_ranks_that_leave_none_out_come_without_being_read(
    tmp_path: Path, small_files: None, length: int | None, seed: int | None
) -> None:
    rows = consecutive(make_rows(100, length=length))
    log = write_log(tmp_path / "log", rows)
    assert {record["ranks"] for record in log.metadata["files"]} == {"consecutive"}
    read = set_records(write_log(tmp_path / "read", rows), without_ranks)
    assert_same_batches(log, read, seed=seed)
    part, same = (x.split({"a": 0.5, "b": 0.5}, seed=1)["a"] for x in (log, read))
    assert_same_batches(part, same, seed=seed)
    for copy in (log, read):
        for record in copy.metadata["files"]:
            flip(copy.path / record["name"], "ranks")
    assert len(streamed(log, seed=seed)) == 100
    for damaged in (read.batches(16, seed=seed), log.columns(["ranks"])):
        with pytest.raises(DataError, match=r"sessions-0000\d\.parquet: the Parquet file cannot be read"):
            list(damaged)


@pytest.mark.parametrize("ranks", [[1, 2, 4], [2, 3, 4]])
def test_one_rank_left_out_anywhere_has_all_ranks_read(tmp_path: Path, small_files: None, ranks: list[int]) -> None:
    rows = consecutive(make_rows(50, length=3))
    rows[37]["ranks"] = ranks
    log = write_log(tmp_path / "log", rows)
    assert not any("ranks" in record for record in log.metadata["files"])
    again = set_records(log, lambda record: record | ({"ranks": "consecutive"} if "00000" in record["name"] else {}))
    for seen in (log, again):
        positions = np.concatenate([batch.position for batch in seen.batches(10)])
        assert positions.tolist() == [[0, 1, 2]] * 37 + [[rank - 1 for rank in ranks]] + [[0, 1, 2]] * 12


@pytest.mark.parametrize("seed", [None, 3])
def test_another_encoding_of_the_same_rows_streams_alike(tmp_path: Path, small_files: None, seed: int | None) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    other = write_log(tmp_path / "other", make_rows(100))

    def nullable(table: pa.Table) -> pa.Table:
        kinds = {kind: pa.list_(kind.value_type) if pa.types.is_list(kind) else kind for kind in table.schema.types}
        return table.cast(
            pa.schema([pa.field(name, kinds[table.schema.field(name).type]) for name in table.schema.names])
        )

    for record in other.metadata["files"]:
        file = other.path / record["name"]
        table = nullable(pq.read_table(file))
        pq.write_table(table, file, row_group_size=8, compression="zstd", write_page_checksum=True)
    other = set_records(other, lambda record: describe(other.path / record["name"], record["rows"]))
    encodings = [
        {pq.read_metadata(x.path / "sessions-00000.parquet").row_group(0).column(2).encodings} for x in (log, other)
    ]
    assert encodings[0] != encodings[1]
    assert_same_batches(log, other, seed=seed)


def test_batches_of_whole_lists_share_what_is_the_same_in_all(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", consecutive(make_rows(40, length=3)))
    first, second, last = log.batches(16, seed=0)
    assert first.mask is second.mask
    assert first.position is second.position
    for shared in (first.mask, first.position):
        with pytest.raises(ValueError, match="read-only"):
            shared[0, 0] = 0
    assert last.mask[:, 0].tolist() == [True] * 8 + [False] * 8
    assert last.position.tolist() == [[0, 1, 2]] * 8 + [[0, 0, 0]] * 8


@pytest.mark.parametrize("column", ["query", "documents", "ranks", "clicks", "weight", "context.device", "feature.age"])
def test_a_damaged_page_of_any_column_is_noticed(tmp_path: Path, small_files: None, column: str) -> None:
    log = write_log(tmp_path / "log", make_rows(40))
    flip(log.path / "sessions-00001.parquet", column, group=1)
    with pytest.raises(DataError, match=r"sessions-00001\.parquet: the Parquet file cannot be read"):
        list(ClickLog.open(log.path).batches(16, seed=0))


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ultr-read")]


@pytest.mark.parametrize("seed", [None, 0])
def test_no_thread_outlives_a_stream(tmp_path: Path, small_files: None, seed: int | None) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    stream = log.batches(4, seed=seed)
    next(stream)
    assert readers()
    stream.close()
    assert readers() == []
    rewrite(log, replace("query", 3, 99))
    with pytest.raises(DataError, match="expected query ids"):
        list(ClickLog.open(log.path).batches(4, seed=seed))
    assert readers() == []


def test_tasks_ahead_are_few_in_order_and_dropped_with_the_stream() -> None:
    began: list[int] = []
    given: list[int] = []

    def tasks() -> Any:
        for number in range(50):
            given.append(number)
            yield lambda number=number: began.append(number) or number

    results = ahead(tasks(), 3)
    for expected in range(20):
        assert next(results) == expected
        assert given == list(range(expected + 4))
    results.close()
    assert set(began) <= set(range(23))
    assert list(ahead(iter([lambda: 1, lambda: 2]), 3)) == [1, 2]


def test_a_batch_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch size of at least 1, found 0"):
        next(write_log(tmp_path / "log", make_rows(5)).batches(0))


def test_columns_give_the_rows_of_the_view(tmp_path: Path, small_files: None) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows)
    wanted = ["session", "documents", "time"]
    found = [row for batch in log.columns(wanted) for row in batch.to_pylist()]
    assert found == [{name: row[name] for name in wanted} for row in rows]
    parts = log.split({"a": 0.5, "b": 0.5}, seed=1)
    weights = {name: pa.Table.from_batches(v.columns(["weight"]))["weight"].to_pylist() for name, v in parts.items()}
    assert {name: len(w) for name, w in weights.items()} == {name: len(v) for name, v in parts.items()}
    assert sorted(weights["a"] + weights["b"]) == list(range(50))
    for names in ([], ["session", "color"]):
        with pytest.raises(DataError, match="expected some of the columns"):
            next(log.columns(names))


# Splits


@pytest.mark.parametrize("by", ["session", "query", "time"])
def test_splits_are_disjoint_and_complete(tmp_path: Path, small_files: None, by: Any) -> None:
    rows = make_rows(100)
    parts = write_log(tmp_path / "log", rows).split({"train": 0.5, "valid": 0.25, "test": 0.25}, by=by, seed=1)
    assert list(parts) == ["train", "valid", "test"]
    found = {name: streamed(part, seed=0) for name, part in parts.items()}
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(100))
    assert {name: len(part) for name, part in parts.items()} == {name: len(n) for name, n in found.items()}
    assert all(sorted(streamed(part)) == sorted(found[name]) for name, part in parts.items())
    if by == "query":
        queries = [{rows[n]["query"] for n in numbers} for numbers in found.values()]
        assert sum(map(len, queries)) == len(QUERIES) == len(set.union(*queries))
    if by == "time":
        assert [len(numbers) for numbers in found.values()] == [50, 25, 25]
        ends = [(min(rows[n]["time"] for n in x), max(rows[n]["time"] for n in x)) for x in found.values()]
        assert ends[0][1] <= ends[1][0]
        assert ends[1][1] <= ends[2][0]


def test_sessions_of_one_time_are_split_in_their_order() -> None:
    times = np.repeat([3.0, 1.0], 500)
    codes = assign_by_time(times, {"a": 0.25, "b": 0.5, "c": 0.25})
    assert codes.tolist() == [1] * 250 + [2] * 250 + [0] * 250 + [1] * 250


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    halves = {"a": 0.5, "b": 0.5}
    first, again, other = (streamed(log.split(halves, seed=seed)["a"]) for seed in (0, 0, 1))
    assert first == again != other


def test_a_split_of_a_split_is_drawn_anew(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(2000, length=1)), step=2000)
    first = log.split({"a": 0.5, "b": 0.5}, seed=0)["a"]
    second = first.split({"a": 0.5, "b": 0.5}, seed=0)
    assert len(second["a"]) + len(second["b"]) == len(first)
    spread = math.sqrt(len(first) * 0.5 * 0.5)
    assert abs(len(second["a"]) - 0.5 * len(first)) < 4 * spread
    assert set(streamed(second["a"])) | set(streamed(second["b"])) == set(streamed(first))


def test_a_time_split_needs_times(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(5)))
    with pytest.raises(DataError, match="expected a column 'time'"):
        log.split({"a": 1.0}, by="time", seed=0)
    with pytest.raises(ConfigError, match="expected by='session', 'query' or 'time', found 'day'"):
        log.split({"a": 1.0}, by="day", seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": math.nan}])
def test_fractions_add_up_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        assign_split(np.arange(3), fractions, 0)


def test_a_split_takes_its_share_whatever_the_order_of_the_keys() -> None:
    keys, shares = np.arange(20_000), {"a": 0.7, "b": 0.2, "c": 0.1}
    codes = assign_split(keys, shares, 4)
    for code, share in enumerate(shares.values()):
        spread = math.sqrt(share * (1 - share) / len(keys))
        assert abs((codes == code).mean() - share) < 4 * spread
    order = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(assign_split(keys[order], shares, 4), codes[order])
    np.testing.assert_array_equal(assign_split(keys.astype(np.int32), shares, 4), codes)
    for other in (assign_split(keys, shares, 5), assign_split(keys, shares, 4, salt=1)):
        both, spread = 0.7 * 0.7, math.sqrt(0.49 * 0.51 / len(keys))
        assert abs(((codes == 0) & (other == 0)).mean() - both) < 4 * spread


def test_a_prepared_split_is_opened_by_name(tmp_path: Path, small_files: None) -> None:
    rows = [row | {"split": "train" if i % 3 else "test"} for i, row in enumerate(make_rows(50))]
    log = write_log(tmp_path / "log", rows)
    assert log.metadata["splits"] == {"test": 17, "train": 33}
    test = ClickLog.open(log.path, split="test")
    assert len(test) == 17
    assert sorted(streamed(test)) == list(range(0, 50, 3))
    assert open_data(log.path, split="train").sessions == 33
    with pytest.raises(DataError, match=r"expected one of the splits \['test', 'train'\], found 'valid'"):
        ClickLog.open(log.path, split="valid")


# Vocabularies


def extended(tmp_path: Path) -> tuple[ClickLog, ClickLog]:
    """A log of two queries and one of three that extends its ids."""
    rows = plain(make_rows(60))
    first = write_log(
        tmp_path / "first",
        [row for row in rows if row["query"] < 2],
        queries=pa.array(QUERIES[:2]),
        documents=documents_table(queries=2),
    )
    later = [row | {"weight": float(i)} for i, row in enumerate(r for r in rows if r["query"] < 3)]
    second = write_log(
        tmp_path / "second",
        later,
        queries=pa.array(QUERIES[:3]),
        documents=documents_table(queries=3),
        parent=first,
    )
    return first, second


def test_documents_beyond_the_training_vocabulary_are_unseen(tmp_path: Path) -> None:
    first, whole = extended(tmp_path)
    second = ClickLog.open(whole.path, vocabulary=first)
    assert (whole.documents, second.documents) == (3 * PER_QUERY, 2 * PER_QUERY)
    assert whole.metadata["vocabulary"]["parent"]["fingerprint"] == first.vocabulary.fingerprint
    unseen = 0
    for a, b in zip(whole.batches(8), second.batches(8), strict=True):
        ids = a.features["document"]
        np.testing.assert_array_equal(b.features["document"], np.where(ids > 2 * PER_QUERY, 0, ids))
        np.testing.assert_array_equal(b.features["features"], a.features["features"])
        np.testing.assert_array_equal(b.labels, a.labels)
        unseen += int((ids > 2 * PER_QUERY).sum())
    assert unseen > 0
    for a, b in zip(whole.columns(["documents"]), second.columns(["documents"]), strict=True):
        for ids, known in zip(a["documents"].to_pylist(), b["documents"].to_pylist(), strict=True):
            assert known == [i if i <= 2 * PER_QUERY else 0 for i in ids]
    assert all(part.documents == 2 * PER_QUERY for part in second.split({"a": 0.5, "b": 0.5}, seed=0).values())
    judged = second.collection()
    assert judged is not None
    assert judged.document.max() > 2 * PER_QUERY
    for part in (judged, judged.select(slice(1, None))):
        assert max(int(b.features["document"].max()) for b in part.batches(4)) <= 2 * PER_QUERY


def test_a_vocabulary_is_known_by_log_collection_or_identity(tmp_path: Path) -> None:
    first, whole = extended(tmp_path)
    collection = first.collection()
    assert collection is not None
    for known in (first, collection, first.vocabulary, first.vocabulary.identity):
        assert ClickLog.open(whole.path, vocabulary=known).documents == 2 * PER_QUERY
    assert ClickLog.open(first.path, vocabulary=first).documents == 2 * PER_QUERY
    assert ClickLog.open(first.path, vocabulary=whole).documents == 2 * PER_QUERY
    third = write_log(tmp_path / "third", plain(make_rows(5)), parent=whole)
    assert ClickLog.open(third.path, vocabulary=first).documents == 2 * PER_QUERY
    with pytest.raises(ConfigError, match="expected an opened ClickLog or Collection"):
        ClickLog.open(first.path, vocabulary="first")


def test_ids_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    first, _ = extended(tmp_path)
    other = write_log(tmp_path / "other", plain(make_rows(5)))
    with pytest.raises(DataError, match="prepared with other document ids"):
        ClickLog.open(other.path, vocabulary=first)


def test_a_fingerprint_is_of_names_in_their_order_whatever_the_chunks() -> None:
    def of(queries: Any, documents: list[str], owners: list[int]) -> str:
        table = pa.table({"query": pa.array(owners, pa.int32()), "document": documents})
        return fingerprint(queries, table)

    base = of(pa.array(["ab", "c"]), ["x", "y"], [0, 1])
    assert of(pa.chunked_array([["ab"], [], ["c"]]), ["x", "y"], [0, 1]) == base
    assert of(pa.array(["_", "ab", "c", "_"], pa.large_string())[1:3], ["x", "y"], [0, 1]) == base
    others = [
        of(pa.array(["a", "bc"]), ["x", "y"], [0, 1]),
        of(pa.array(["c", "ab"]), ["x", "y"], [0, 1]),
        of(pa.array(["ab", "c"]), ["y", "x"], [0, 1]),
        of(pa.array(["ab", "c"]), ["x", "y"], [0, 0]),
    ]
    assert len({base, *others}) == 5


# Damage


def test_one_flipped_bit_is_never_a_wrong_number(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(40))
    expected = [jax.tree.leaves(batch) for batch in log.batches(64)]
    for name in ("sessions-00000.parquet", "documents.parquet"):
        file = log.path / name
        good = file.read_bytes()
        errors = []
        for at in range(0, len(good), len(good) // 150):
            bad = bytearray(good)
            bad[at] ^= 1
            file.write_bytes(bad)
            try:
                found = [jax.tree.leaves(batch) for batch in ClickLog.open(log.path).batches(64)]
            except DataError as error:
                errors.append(str(error))
            else:  # a byte that no reader of batches looks at, such as one of the session keys
                for a, b in zip(expected, found, strict=True):
                    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
        assert len(errors) > 100
        assert all(name in error for error in errors)
        file.write_bytes(good)


def test_a_page_that_the_reader_skips_is_noticed(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    file = log.path / "documents.parquet"
    at = pq.read_metadata(file).row_group(0).column(2).data_page_offset
    content = bytearray(file.read_bytes())
    content[at + 1] ^= 1  # the type of the page, in its header, which no checksum covers
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"documents\.parquet: expected 140 rows, found 0"):
        next(ClickLog.open(log.path).batches(4))


@pytest.mark.parametrize("name", ["sessions-00000.parquet", "queries.parquet", "documents.parquet"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    file = log.path / name
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(DataError, match=rf"{name}: expected {len(content):,} bytes, found"):
        ClickLog.open(log.path)
    metadata = json.loads((log.path / "metadata.json").read_text())
    for record in [*metadata["files"], *metadata["vocabulary"]["files"]]:
        del record["bytes"]
    (log.path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=f"{name}: the Parquet file cannot be read"):
        ClickLog.open(log.path)


@pytest.mark.parametrize("name", ["sessions-00000.parquet", "queries.parquet", "documents.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    (log.path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: the metadata lists this file, and it is missing"):
        ClickLog.open(log.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schema": 2},
            r"field 'schema': prepared with schema 2, this version reads 1\. Prepare the data again",
        ),
        ({"format": "other"}, r"field 'format': expected one of \['ultr-click-log'\], found 'other'"),
        ({"sessions": 6}, r"expected 6 sessions \(at least one\) in the files, found 5"),
        ({"sessions": -1}, r"field 'sessions': expected int, found -1"),
        ({"files": "none"}, r"field 'files': expected list, found 'none'"),
        ({"files": [{"name": "../x.parquet", "rows": 5}]}, r"field 'files': expected a file's name and rows"),
        ({"lengths": {"ten": 5}}, r"field 'lengths': expected lengths of lists"),
        ({"vocabulary": {}}, r"field 'vocabulary': expected the vocabulary's fingerprint"),
        ({"context": {"device": "phone"}}, r"field 'context.device': expected"),
        (
            {"impression_features": ["bm25", "age", "color"]},
            r"field 'feature.color': expected a column of type list",
        ),
        (
            {"features": ["one"]},
            r"documents.parquet, field 'features': expected list<float>\[1\], found list",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    (log.path / "metadata.json").write_text(json.dumps(log.metadata | change))
    with pytest.raises(DataError, match=message):
        ClickLog.open(log.path)


def test_a_folder_that_is_no_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: expected the folder of a click log or collection, found none"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected a metadata.json, found none: not a prepared folder"):
        open_data(tmp_path)
    for text in ("{", "[]", "3"):
        (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(DataError, match="expected"):
            open_data(tmp_path)


@pytest.mark.parametrize("name", ["query", "documents", "ranks", "clicks", "weight", "context.price", "feature.age"])
def test_a_missing_or_mistyped_column_is_named(tmp_path: Path, name: str, small_files: None) -> None:
    log = write_log(tmp_path / "log", make_rows(20))
    file = "sessions-00001.parquet"
    pattern = rf"{file}, field '{name}': expected "
    rewrite(
        log,
        lambda table: table.set_column(table.schema.get_field_index(name), name, table["time"]),
        name=file,
    )
    with pytest.raises(DataError, match=pattern + r"\S+, found double"):
        ClickLog.open(log.path)
    rewrite(log, lambda table: table.drop_columns([name]), name=file)
    with pytest.raises(DataError, match=pattern + r"a column of type"):
        ClickLog.open(log.path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("clicks", [0, 2], r"field 'clicks': expected clicks of 0 or 1, found \[0, 2\]"),
        ("clicks", [1], r"field 'clicks': expected 2 values as in 'documents', found 1"),
        ("clicks", None, r"field 'clicks': expected a value in every row, found null"),
        ("documents", [1, 2, 3], r"field 'ranks': expected 3 values as in 'documents', found 2"),
        ("documents", [1, 141], r"field 'documents': expected document ids of 0 to 140"),
        ("ranks", [3, 3], r"field 'ranks': expected strictly increasing ranks"),
        ("ranks", [2, 1], r"field 'ranks': expected strictly increasing ranks"),
        (
            "ranks",
            [1, 99],
            r"field 'ranks': expected ranks of at most \d+, as the metadata says, found \[1, 99\]",
        ),
        ("query", 7, r"field 'query': expected query ids of 0 to 6, found 7"),
        ("weight", -1.0, r"field 'weight': expected finite weights"),
        ("context.device", 3, r"field 'context.device': expected category indices"),
        ("feature.age", [0.0, math.inf], r"field 'feature.age': expected finite numbers"),
    ],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_streaming_names_the_file_and_row(
    tmp_path: Path, small_files: None, column: str, value: Any, message: str, seed: int | None
) -> None:
    log = write_log(tmp_path / "log", make_rows(30, length=2))
    rewrite(log, replace(column, 11, value), name="sessions-00001.parquet")
    with pytest.raises(DataError, match=r"sessions-00001\.parquet, row 12, " + message):
        list(ClickLog.open(log.path).batches(8, seed=seed))


def test_a_list_longer_than_the_metadata_says_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5, length=2))
    metadata = log.metadata | {"lengths": {"1": 5}}
    (log.path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"row 1, field 'documents': expected lists of at most 1 documents"):
        next(ClickLog.open(log.path).batches(4))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("query", 9, r"field 'query': expected 0 to 6"),
        ("label", math.inf, r"field 'label': expected finite grades or none"),
        ("features", [0.0, math.nan], r"field 'features': expected finite numbers"),
    ],
)
def test_a_bad_document_is_named(tmp_path: Path, column: str, value: Any, message: str) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    rewrite(log, replace(column, 6, value), name="documents.parquet")
    with pytest.raises(DataError, match=r"documents\.parquet, row 7, " + message):
        ClickLog.open(log.path).collection()


# Folders of another kind, splits that are not there, and what tells logs apart


def test_a_folder_of_the_other_kind_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    found = log.collection()
    assert found is not None
    found.save(tmp_path / "collection")
    with pytest.raises(DataError, match=r"this is a collection of graded lists .* a click log \(ultr-click-log\) is"):
        ClickLog.open(tmp_path / "collection")
    with pytest.raises(DataError, match=r"this is a click log .* a collection of graded lists .* is needed here"):
        Collection.open(tmp_path / "log")


def test_damaged_metadata_is_called_damaged(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    (log.path / "metadata.json").write_text((log.path / "metadata.json").read_text()[:-10])
    with pytest.raises(DataError, match=r"the file is damaged: expected JSON.* Prepare the data again"):
        ClickLog.open(log.path)


def test_a_log_without_splits_says_so(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    with pytest.raises(DataError, match=r"prepared without splits, so that there is no 'test'. .*--split"):
        ClickLog.open(log.path, split="test")


def test_a_declared_split_is_listed_even_when_empty(tmp_path: Path) -> None:
    rows = [row | {"split": "train"} for row in make_rows(5)]
    log = write_log(tmp_path / "log", rows, splits=["train", "test"])
    assert log.metadata["splits"] == {"train": 5, "test": 0}
    with pytest.raises(DataError, match="the split 'test' is empty: it has none of the 5 sessions"):
        ClickLog.open(log.path, split="test")


def test_the_identity_tells_logs_and_views_apart(tmp_path: Path) -> None:
    rows = [row | {"split": "train" if i % 2 else "test"} for i, row in enumerate(make_rows(40))]
    log = write_log(tmp_path / "log", rows)
    same = write_log(tmp_path / "same", rows, report={"rows": 7})
    # One click moves to the other of two lists of the same length: sizes, counts and ranges stay.
    pair = [dict(row) for row in make_rows(40, length=4)]
    pair[0]["clicks"], pair[1]["clicks"] = [1, 0, 0, 0], [0, 1, 0, 0]
    swapped = [dict(row) for row in pair]
    swapped[0]["clicks"], swapped[1]["clicks"] = [0, 1, 0, 0], [1, 0, 0, 0]
    regraded = documents_table()
    regraded = regraded.set_column(2, "label", pa.array(np.ones(len(regraded), np.float32)))
    others = [
        write_log(tmp_path / "pair", pair),
        write_log(tmp_path / "swapped", swapped),
        write_log(tmp_path / "regraded", rows, documents=regraded),
    ]
    assert same.identity == log.identity == ClickLog.open(log.path).identity
    assert log.identity["split"] is None
    assert ClickLog.open(log.path, split="train").identity == log.identity | {"split": "train"}
    first, second = {"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}
    views = [
        *log.split(first, seed=0).values(),
        *log.split(first, seed=1).values(),
        *log.split(second, seed=0).values(),
        *log.split(first, by="query", seed=0).values(),
        *log.split(first, by="time").values(),
        ClickLog.open(log.path, split="train"),
        ClickLog.open(log.path, split="test"),
        ClickLog.open(log.path, split="test").split(first, seed=0)["a"],
        log.split(first, seed=0)["a"].split(first, seed=0)["a"],
    ]
    identities = [json.dumps(x.identity) for x in [log, *others, *views]]
    assert len(set(identities)) == len(identities)
    again = log.split(first, seed=0)["a"].split(first, seed=0)["a"]
    assert json.loads(identities[-1]) == again.identity
    assert {x.identity["fingerprint"] for x in views} == {log.identity["fingerprint"]}
