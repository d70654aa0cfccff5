"""`prepare` on bad input and with bad options: errors name the place, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from narrowing import present
from raw_logs import HEADER, ROWS, digest, left, lists, prepare_log, write

from ultr.errors import ConfigError, DataError
from ultr.ingest.preparing import prepare

# rows, header, options -> row, field and message of the error
CSV_ERRORS = {
    "missing column": ("s,q,d,1\n", "session,query,document,rank", {}, None, "click", "found the columns"),
    "mapped to nothing": ("s,q,d,1,0\n", HEADER, {"columns": {"document": "url"}}, None, "url", "for 'document'"),
    "missing feature": ("s,q,d,1,0\n", HEADER, {"features": ["bm25"]}, None, "bm25", "expected a column 'bm25'"),
    "rank a word": ("s,q,d,1,0\ns,q,e,x,0\n", HEADER, {}, 3, "rank", "a whole number from 1 .* found 'x'"),
    "rank 0": ("s,q,d,0,0\n", HEADER, {}, 2, "rank", "found '0'. Ranks count from 1"),
    "rank a fraction": ("s,q,d,1.5,0\n", HEADER, {}, 2, "rank", "found '1.5'"),
    "rank missing": ("s,q,d,1,0\ns,q,e,,0\n", HEADER, {}, 3, "rank", "found nothing"),
    "rank too large": ("s,q,d,3000000000,0\n", HEADER, {}, 2, "rank", "found '3000000000'"),
    "rank not shown": ("s,q,d,1,0\ns,q,e,999999999,0\n", HEADER, {}, 3, "rank", "from 1 to 1,000, found '999999999'"),
    "rank above the limit": ("s,q,d,1000,0\ns,q,e,1001,0\n", HEADER, {}, 3, "rank", "leave out rows whose rank"),
    "click 2": ("s,q,d,1,0\ns,q,e,2,2\n", HEADER, {}, 3, "click", "expected 0 or 1, found '2'"),
    "click yes": ("s,q,d,1,yes\n", HEADER, {}, 2, "click", "expected 0 or 1, found 'yes'"),
    "time a word": ("s,q,d,1,0,noon\n", HEADER + ",time", {}, 2, "time", "found 'noon'"),
    "label a word": ("s,q,d,1,0,good\n", HEADER + ",label", {}, 2, "label", "found 'good'"),
    "label out of range": ("s,q,d,1,0,99\n", HEADER + ",label", {}, 2, "label", "at most 31, or nothing, found '99'"),
    "feature nan": ("s,q,d,1,0,1\ns,q,e,2,0,nan\n", HEADER + ",f", {"features": ["f"]}, 3, "f", "finite .* 'nan'"),
    "feature too large": ("s,q,d,1,0,1e39\n", HEADER + ",f", {"features": ["f"]}, 2, "f", "found '1e39'"),
    "feature missing": ("s,q,d,1,0,\n", HEADER + ",f", {"features": ["f"]}, 2, "f", "found nothing"),
    "ragged short": ("s,q,d,1,0\ns,q,e,2\n", HEADER, {}, 3, None, "expected 5 values as in the header, found 4"),
    "ragged long": ("s,q,d,1,0\ns,q,e,2,0,9\n", HEADER, {}, 3, None, "expected 5 values as in the header, found 6"),
    "two values of a context": (
        "s,q,d,1,0,a\ns,q,e,2,0,b\n", HEADER + ",c", {"context": ["c"]}, 2, "c", "one value per list, found 'a' and",
    ),
    "context not finite": (
        "s,q,d,1,0,1\nt,q,e,1,0,inf\n", HEADER + ",c", {"context": ["c"]}, 3, "c", "a finite number, found inf",
    ),
    "no rows": ("", HEADER, {}, None, None, "found none among 0"),
    "only rows without keys": (",q,d,1,0\n", HEADER, {}, None, None, "found none among 1"),
    "header twice": ("s,q,d,1,0\n", "session,query,query,rank,click", {}, 1, None, r"found \['query'\] twice"),
    "no time to split by": (
        "s,q,d,1,0\n", HEADER, {"split": {"a": 1.0}, "split_by": "time"}, None, "time", "no time column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV_ERRORS)
def test_bad_rows_are_named_and_nothing_is_left(tmp_path: Path, name: Any) -> None:
    case: Any = CSV_ERRORS[name]
    rows, header, options, row, field, message = case
    raw = write(tmp_path / "log.csv", rows, header)
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", **options)
    assert caught.value.row == row
    assert caught.value.field == field
    assert str(caught.value.file) == str(raw)
    assert left(tmp_path) == ["log.csv"]


def test_rows_are_lines_of_the_file_whatever_stands_above(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", 's,q,"two\nlines",1,0\n\ns,q,e,2,0\ns,q,f,x,0\n')
    with pytest.raises(DataError, match="found 'x'") as caught:
        prepare(raw, tmp_path / "out")
    line = raw.read_text().splitlines()[present(caught.value.row) - 1]
    assert line == "s,q,f,x,0"
    raw.write_text(raw.read_text().replace("f,x,0", "f,3"))
    with pytest.raises(DataError, match="expected 5 values") as caught:
        prepare(raw, tmp_path / "out")
    assert raw.read_text().splitlines()[present(caught.value.row) - 1] == "s,q,f,3"


def test_the_file_among_several_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", "s9,q,d,1,0\ns9,q,e,0,0\n")
    with pytest.raises(DataError) as caught:
        prepare([good, bad], tmp_path / "out")
    assert (caught.value.file, caught.value.row, caught.value.field) == (bad, 3, "rank")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rank", pa.array(["1", "x"]), "found 'x'"),
        ("rank", pa.array([1, -2]), "found '-2'"),
        ("rank", pa.array([1.0, float("nan")]), "found 'nan'"),
        ("click", pa.array([0, 7], pa.int8()), "expected 0 or 1, found '7'"),
        ("click", pa.array([0.0, 0.5]), "found '0.5'"),
        ("f", pa.array([0.0, float("inf")]), "expected a finite number, found 'inf'"),
        ("f", pa.array([0.0, None]), "found nothing"),
    ],
)
def test_bad_values_of_parquet(tmp_path: Path, column: Any, values: Any, message: Any) -> None:
    table = {"session": ["s", "s"], "query": ["q", "q"], "document": ["a", "b"], "rank": [1, 2], "click": [0, 1]}
    pq.write_table(pa.table(table | {"f": [0.0, 1.0]} | {column: values}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out", features=["f"])
    assert (caught.value.file, caught.value.row, caught.value.field) == (tmp_path / "log.parquet", 2, column)
    assert left(tmp_path) == ["log.parquet"]


def test_a_column_of_lists_is_not_a_key(tmp_path: Path) -> None:
    table = {"session": ["s"], "query": ["q"], "document": [["a"]], "rank": [1], "click": [0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="expected text or numbers, found array") as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out")
    assert caught.value.field == "document"


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    table = {"session": ["s"], "query": ["q"], "document": ["a"], "rank": [1], "click": [0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:-20])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\ns,q,d,1,0\ns,q,caf\xe9,2,0\n".encode("latin-1"))
    for name, message in {
        "log.parquet": "expected a complete Parquet file",
        "empty.csv": "expected data, found an empty file",
        "nowhere.csv": "no such file",
        "latin.csv": "expected UTF-8 text",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            prepare(tmp_path / name, tmp_path / "out")
        assert caught.value.file == tmp_path / name
        assert caught.value.row == (3 if name == "latin.csv" else None)
    with pytest.raises(DataError, match="at least one input"):
        prepare([], tmp_path / "out")
    assert left(tmp_path) == ["empty.csv", "latin.csv", "log.parquet"]


def test_bad_grades_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    for text, row, message in [
        ("shoes 0 a 2\nshoes 0 b\n", 2, "expected 'query iteration document grade'"),
        ("shoes 0 a good\n", 1, "found 'good'"),
        ("query,document,label\nshoes,a,x\n", 2, "found 'x'"),
        ("query,document,label\nshoes,a\n", 2, "expected 3 values"),
        ("query,word,label\nshoes,a,1\n", None, "expected a column for the document"),
    ]:
        (tmp_path / "grades").write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            prepare(raw, tmp_path / "out", labels=tmp_path / "grades")
        assert (caught.value.file, caught.value.row) == (tmp_path / "grades", row)
    with pytest.raises(DataError, match="no such file"):
        prepare(raw, tmp_path / "out", labels=tmp_path / "nowhere")


def baidu_lists() -> dict[str, Any]:
    """Makes three lists of Baidu with embeddings of two numbers."""
    sizes = [2, 1, 3]
    vectors = pa.array([[[float(i), 0.5]] * n for i, n in enumerate(sizes)], pa.list_(pa.list_(pa.float32())))
    columns: dict[str, Any] = {"query_md5": ["a", "b", "a"], "url_md5": [[f"u{k}" for k in range(n)] for n in sizes]}
    columns |= {"position": [list(range(1, n + 1)) for n in sizes], "click": [[0] * n for n in sizes]}
    return columns | {"query_document_embedding": vectors}


@pytest.mark.parametrize(
    ("values", "row", "message"),
    [
        (pa.array([1, 2, 3], pa.decimal128(38, 2)), None, "expected a list of numbers per document, found decimal"),
        (pa.array(["x", "y", "z"]), None, "found string"),
        (pa.array([["x"], ["y"], ["z"]]), None, "found list<"),
        (pa.array([[0.5], [0.5], [0.5]]), None, "expected a list of numbers per document, in a list per row, found"),
        (pa.array([[[0.5]] * 2, [[0.5]] * 2, [[0.5]] * 2]), 2, "expected 1 embeddings as there are documents, found 2"),
        (pa.array([[[0.5]] * 2, None, [[0.5]] * 3]), 2, "expected a list, found null"),
        (pa.array([[[0.5]] * 2, [None], [[0.5]] * 3]), 2, "expected a list of numbers, found null"),
        (pa.array([[[0.5]] * 2, [[0.5, 1]], [[0.5]] * 3]), 2, "expected 1 numbers per document, found 2"),
        (pa.array([[[0.5]] * 2, [[None]], [[0.5]] * 3]), 2, "expected numbers, found null"),
        (pa.array([[[0.5]] * 2, [[0.5]], [[np.inf]] * 3]), 3, "expected finite numbers"),
    ],
)
def test_embeddings_of_baidu_that_fit_no_document_are_named(
    tmp_path: Path, values: Any, row: int | None, message: str
) -> None:
    pq.write_table(pa.table(baidu_lists() | {"query_document_embedding": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "a.parquet", tmp_path / "out", format="baidu-uva")
    found = caught.value
    assert (found.file, found.row, found.field) == (tmp_path / "a.parquet", row, "query_document_embedding")
    assert left(tmp_path) == ["a.parquet"]


def test_a_column_twice_in_baidu_is_named(tmp_path: Path) -> None:
    table = pa.table(baidu_lists())
    table = table.append_column("query_md5", table["query_md5"])
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table.slice(1), tmp_path / "a.feather", compression="uncompressed")
    for name in ("a.parquet", "a.feather"):
        with pytest.raises(DataError, match=r"expected each column once, found \['query_md5'\] twice") as caught:
            prepare(tmp_path / name, tmp_path / "out", format="baidu-uva")
        assert caught.value.file == tmp_path / name


def test_a_damaged_arrow_file_is_an_error(tmp_path: Path) -> None:
    table = pa.table(
        {"query_md5": ["a", "b"], "url_md5": ["u", "v"], "position": [1, 1], "click": [0, 1], "query_no": [1, 2]}
    )
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    whole = (tmp_path / "a.feather").read_bytes()
    assert prepare(tmp_path / "a.feather", tmp_path / "whole", format="baidu-uva").metadata["sessions"] == 2
    offsets = np.array([0, 1, 2], np.int32).tobytes()
    at = whole.index(offsets)
    (tmp_path / "a.feather").write_bytes(whole[: at + 8] + b"\xff\xff\xff\x7f" + whole[at + 12 :])
    with pytest.raises(DataError, match=r"a.feather: the file cannot be read"):
        prepare(tmp_path / "a.feather", tmp_path / "out", format="baidu-uva")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "expected a format of .*'table', 'yandex'.*, found 'xml'"),
        ({"memory_limit": "lots"}, "such as 4GB or 500MiB, found 'lots'"),
        ({"split": {"a": 0.5}}, "add up to 1"),
        ({"split_by": "user"}, "expected split_by"),
        ({"columns": {"url": "document"}}, r"found \['url'\]"),
        ({"features": ["a", "a"]}, "twice"),
        ({"context": ["document"]}, "cannot be called"),
        ({"format": "letor", "labels": "grades"}, "take no columns"),
        ({"format": "yandex", "columns": {"rank": "r"}}, "fields of the format 'yandex' are fixed"),
        ({"format": "yandex", "context": ["device"]}, r"has context \['region'\], found \['device'\]"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: Any, message: Any) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    with pytest.raises(ConfigError, match=message):
        prepare(raw, tmp_path / "out", **options)
    assert left(tmp_path) == ["log.csv"]


def test_a_failed_write_leaves_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    prepare(raw, tmp_path / "out")
    before = digest(tmp_path / "out")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ultr.data.writer.LogWriter.write", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", overwrite=True)
    assert digest(tmp_path / "out") == before
    assert left(tmp_path) == ["log.csv", "out"]


def test_progress_is_shown_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out", progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("times", "row", "message"),
    [
        (
            ["1700000000", "1700000001", "1700000002000"],
            4,
            r"milliseconds since 1970 \(1700000002000\) here and seconds",
        ),
        (["2024-05-01T10:00:00Z", "2024-05-01", "1714557600"], 4, r"seconds since 1970 \(1714557600\) here and a date"),
        (
            ["1714557600000", "1714557600000", "2024-05-01 10:00:00"],
            4,
            r"a date \(2024-05-01 10:00:00\) here and",
        ),
        (["1.7e9", "1700000000123456", "1.7e9"], 3, r"microseconds since 1970 \(1\.7\d*e\+15|1700000000123456\) here"),
        (["0", "2024-05-01", "5"], 3, r"a date \(2024-05-01 00:00:00\) here and a number \(0\) in row 2 of log.csv"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_times_of_several_kinds_are_refused(tmp_path: Path, times: Any, row: Any, message: Any, kind: str) -> None:
    rows = "".join(f"s{i},q,d,1,0,{time}\n" for i, time in enumerate(times))
    raw = write(tmp_path / "log.csv", rows, HEADER + ",time")
    if kind == "parquet":
        raw = tmp_path / "log.parquet"
        names = ["session", "query", "document", "rank", "click", "time"]
        columns = [[f"s{i}" for i in range(3)], ["q"] * 3, ["d"] * 3, [1] * 3, [0] * 3, times]
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), raw)
        row, message = row - 1, message.replace("row 2 of log.csv", "row 1 of log.parquet")
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out")
    assert (caught.value.row, caught.value.field) == (row, "time")
    assert left(tmp_path) == sorted({"log.csv", raw.name})


def test_times_of_several_kinds_are_refused_across_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "s,q,d,1,0,1700000000\n", HEADER + ",time")
    second = write(tmp_path / "b.csv", "t,q,d,1,0,2024-05-01\n", HEADER + ",time")
    with pytest.raises(DataError, match="expected times of one kind") as caught:
        prepare([first, second], tmp_path / "out")
    assert Path(str(caught.value.file)) == second


@pytest.mark.parametrize(
    "times", [["0", "1014643294", "5e12"], ["0", "3", "1e8"], ["2024-05-01", "2024-05-01T10:00:00+02:00"]]
)
def test_times_of_one_kind_are_read(tmp_path: Path, times: Any) -> None:
    rows = "".join(f"s{i},q,d,1,0,{time}\n" for i, time in enumerate(times))
    assert len(lists(prepare_log(write(tmp_path / "log.csv", rows, HEADER + ",time"), tmp_path / "out"))) == len(times)
