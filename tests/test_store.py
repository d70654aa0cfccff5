"""Click logs on disk: the batches, columns and vocabularies that are read from them."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from narrowing import present
from stored import (
    PER_QUERY,
    POOL_SESSIONS,
    QUERIES,
    SMALL_POOLS,
    documents_table,
    flip,
    make_rows,
    plain,
    replace,
    rewrite,
    streamed,
    write_log,
)

from ultr.data import ClickLog
from ultr.data.batching import bucket_widths
from ultr.data.storage import file_record
from ultr.data.vocabulary import names_fingerprint
from ultr.errors import ConfigError, DataError

# Batches and columns


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_every_session_comes_once_with_its_values(tmp_path: Path, seed: int | None, batch_size: int) -> None:
    rows = make_rows(100)
    log = write_log(tmp_path / "log", rows, **SMALL_POOLS)
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
                assert present(batch.weight)[b] == 0
                continue
            row = rows[int(present(batch.weight)[b])]
            seen.append(int(present(batch.weight)[b]))
            ids = np.array(row["documents"])
            assert k == len(ids)
            assert present(batch.query)[b] == row["query"]
            assert batch.features["document"][b, :k].tolist() == row["documents"]
            assert batch.position[b, :k].tolist() == [rank - 1 for rank in row["ranks"]]
            assert present(batch.clicks)[b, :k].tolist() == row["clicks"]
            assert batch.features["device"][b, :k].tolist() == [row["context.device"]] * k
            assert batch.features["price"][b, :k].tolist() == [row["context.price"]] * k
            expected = np.stack([ids, -ids, row["feature.bm25"], row["feature.age"]], 1).astype(np.float32)
            np.testing.assert_array_equal(batch.features["features"][b, :k], expected)
            grades = np.where(ids % 3 == 0, np.nan, ids % 5)
            np.testing.assert_array_equal(present(batch.labels)[b, :k], grades)
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


def test_shapes_are_few_and_fixed(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(100), **SMALL_POOLS)  # lists of 1 to 11
    assert {batch.shape for batch in log.batches(16, seed=0)} == {(16, k) for k in (1, 2, 4, 8, 11)}
    same = write_log(tmp_path / "same", make_rows(100, length=10), **SMALL_POOLS)
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


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(100), **SMALL_POOLS)
    first, again, other = (streamed(log, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == list(range(100))
    assert streamed(ClickLog.open(log.path, pool_sessions=POOL_SESSIONS), seed=5) == first


def test_shuffling_mixes_sessions_of_different_files(tmp_path: Path) -> None:
    order = np.array(streamed(write_log(tmp_path / "log", make_rows(96, length=3), **SMALL_POOLS), seed=0))
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, again: float
) -> None:
    log = write_log(tmp_path / "log", make_rows(96, length=3), **SMALL_POOLS).split(
        {"a": 0.7, "b": 0.3}, by="session", seed=0
    )["a"]
    expected = [list(log.batches(8, seed=seed)) for seed in (None, 1, 2)]
    everything = log.cached(1 << 30)
    streamed(everything)
    size = everything.cached_bytes
    reads = []
    read = pq.ParquetFile.read_row_groups

    def counted(file: pq.ParquetFile, *arguments: Any, **options: Any) -> pa.Table:
        reads.append(arguments)
        return read(file, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    kept = log.cached(int(size * share))
    found = [list(kept.batches(8, seed=None))]
    first = len(reads)
    found += [list(kept.batches(8, seed=seed)) for seed in (1, 2)]
    assert (first, len(reads) - first) == (12, pytest.approx(2 * 12 * again, abs=2))
    assert share * size * 0.8 <= kept.cached_bytes <= share * size
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    part = kept.split({"c": 0.5, "d": 0.5}, by="session", seed=0)["c"]  # which holds other rows
    assert streamed(part) == streamed(log.split({"c": 0.5, "d": 0.5}, by="session", seed=0)["c"])


def test_without_a_seed_the_order_is_the_stored_one(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(50, length=4), **SMALL_POOLS)
    assert streamed(log) == list(range(50))
    ragged = write_log(tmp_path / "ragged", make_rows(50), **SMALL_POOLS)
    by_width: dict[int, list[float]] = {}
    for batch in ragged.batches(4):
        by_width.setdefault(batch.shape[1], []).extend(present(batch.weight)[batch.mask[:, 0]])
    assert all(numbers == sorted(numbers) for numbers in by_width.values())


def test_a_stream_can_be_left_early(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(100), **SMALL_POOLS)
    stream: Any = log.batches(4, seed=0)
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
    return ClickLog.open(log.path, pool_sessions=POOL_SESSIONS)


def without_ranks(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "ranks"}


def assert_same_batches(first: Any, second: Any, **options: Any) -> None:
    structure: Any = jax.tree.structure
    for a, b in zip(first.batches(16, **options), second.batches(16, **options), strict=True):
        assert structure(a) == structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("length", [4, None])
def test_ranks_that_leave_none_out_come_without_being_read(
    tmp_path: Path, length: int | None, seed: int | None
) -> None:
    rows = consecutive(make_rows(100, length=length))
    log = write_log(tmp_path / "log", rows, **SMALL_POOLS)
    assert {record["ranks"] for record in log.metadata["files"]} == {"consecutive"}
    read = set_records(write_log(tmp_path / "read", rows, **SMALL_POOLS), without_ranks)
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
def test_one_rank_left_out_anywhere_has_all_ranks_read(tmp_path: Path, ranks: list[int]) -> None:
    rows = consecutive(make_rows(50, length=3))
    rows[37]["ranks"] = ranks
    log = write_log(tmp_path / "log", rows, **SMALL_POOLS)
    assert not any("ranks" in record for record in log.metadata["files"])
    again = set_records(log, lambda record: record | ({"ranks": "consecutive"} if "00000" in record["name"] else {}))
    for seen in (log, again):
        positions = np.concatenate([batch.position for batch in seen.batches(10)])
        assert positions.tolist() == [[0, 1, 2]] * 37 + [[rank - 1 for rank in ranks]] + [[0, 1, 2]] * 12


@pytest.mark.parametrize("seed", [None, 3])
def test_another_encoding_of_the_same_rows_streams_alike(tmp_path: Path, seed: int | None) -> None:
    log = write_log(tmp_path / "log", make_rows(100), **SMALL_POOLS)
    other = write_log(tmp_path / "other", make_rows(100), **SMALL_POOLS)

    def nullable(table: pa.Table) -> pa.Table:
        kinds = {kind: pa.list_(kind.value_type) if pa.types.is_list(kind) else kind for kind in table.schema.types}
        return table.cast(
            pa.schema([pa.field(name, kinds[table.schema.field(name).type]) for name in table.schema.names])
        )

    for record in other.metadata["files"]:
        file = other.path / record["name"]
        table = nullable(pq.read_table(file))
        pq.write_table(table, file, row_group_size=8, compression="zstd", write_page_checksum=True)
    other = set_records(other, lambda record: file_record(other.path / record["name"], record["rows"]))
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


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ultr-ahead")]


@pytest.mark.parametrize("seed", [None, 0])
def test_no_thread_outlives_a_stream(tmp_path: Path, seed: int | None) -> None:
    log = write_log(tmp_path / "log", make_rows(100), **SMALL_POOLS)
    stream: Any = log.batches(4, seed=seed)
    next(stream)
    assert readers()
    stream.close()
    assert readers() == []
    rewrite(log, replace("query", 3, 99))
    with pytest.raises(DataError, match="expected query ids"):
        list(ClickLog.open(log.path, pool_sessions=POOL_SESSIONS).batches(4, seed=seed))
    assert readers() == []


def test_a_batch_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size as a whole number of at least 1, found 0"):
        next(write_log(tmp_path / "log", make_rows(5)).batches(0))


def test_columns_give_the_rows_of_the_view(tmp_path: Path) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows, **SMALL_POOLS)
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
        return names_fingerprint(queries, table)

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
