"""Click logs on disk: damage and folders of another kind are named, and logs with other content are told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import (
    SMALL_FILES,
    documents_table,
    flip,
    make_rows,
    replace,
    rewrite,
    write_log,
)

from ultr.data import ClickLog, Collection, open_data
from ultr.errors import DataError

# Damage


@pytest.mark.parametrize("column", ["query", "documents", "ranks", "clicks", "weight", "context.device", "feature.age"])
def test_a_damaged_page_of_any_column_is_noticed(tmp_path: Path, column: str) -> None:
    log = write_log(tmp_path / "log", make_rows(40), **SMALL_FILES)
    flip(log.path / "sessions-00001.parquet", column, group=1)
    with pytest.raises(DataError, match=r"sessions-00001\.parquet: the Parquet file cannot be read"):
        list(ClickLog.open(log.path).batches(16, seed=0))


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
        ({"sessions": -1}, r"field 'sessions': expected int >= 0, found -1\. Prepare it again"),
        ({"sessions": True}, r"field 'sessions': expected int, found True"),
        ({"clicks": None}, r"field 'clicks': expected int, found None"),
        ({"documents": 10**12}, r"field 'documents': expected int <= 2147483647, found 10{12}"),
        ({"documents": 141}, r"field 'documents': expected 140 as documents.parquet has rows, found 141"),
        ({"features": ["a", 1]}, r"field 'features\[1\]': expected str, found 1"),
        ({"splits": {"train": -1}}, r"field 'splits\[\.\.\.\]': expected int >= 0"),
        ({"truth": []}, r"field 'truth': expected mapping \| null, found \[\]"),
        ({"files": "none"}, r"field 'files': expected list, found 'none'"),
        (
            {"files": [{"name": "../x.parquet", "rows": 5}]},
            r"field 'files\[0\]\.name': expected a file's name without folders, found '../x",
        ),
        ({"documents": 139}, r"field 'documents': expected 140 as documents.parquet has rows, found 139"),
        ({"queries": 9}, r"field 'queries': expected 7 as queries.parquet has rows, found 9"),
        ({"lengths": {"ten": 5}}, r"field 'lengths': expected digits as names"),
        ({"vocabulary": {}}, r"field 'vocabulary.fingerprint': expected a value, found none"),
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


@pytest.mark.parametrize("field", ["sessions", "ranks", "lengths", "clicks", "files", "splits", "vocabulary", "report"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    (log.path / "metadata.json").write_text(json.dumps({k: v for k, v in log.metadata.items() if k != field}))
    with pytest.raises(DataError, match=rf"metadata.json, field '{field}': expected a value, found none\. Prepare"):
        ClickLog.open(log.path)


@pytest.mark.parametrize("text", ["[" * 1000, "{" + '"a":{' * 5000, "\xff", "1" * 5000])
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    log = write_log(tmp_path / "log", make_rows(5))
    (log.path / "metadata.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.json: the file is damaged: expected JSON"):
        ClickLog.open(log.path)
    with pytest.raises(DataError, match="this is neither"):
        write_log(log.path, make_rows(5), overwrite=True)


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
def test_a_missing_or_mistyped_column_is_named(tmp_path: Path, name: str) -> None:
    log = write_log(tmp_path / "log", make_rows(20), **SMALL_FILES)
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
    tmp_path: Path, column: str, value: Any, message: str, seed: int | None
) -> None:
    log = write_log(tmp_path / "log", make_rows(30, length=2), **SMALL_FILES)
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
        ("features", [0.0, math.nan], r"field 'features\[minus\]': expected finite numbers"),
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
