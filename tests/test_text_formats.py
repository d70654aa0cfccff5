"""What text files are written like: quotes, blanks, line ends, delimiters, compression, and headers that are data."""

from __future__ import annotations

import bz2
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from narrowing import present
from raw_logs import HEADER, left, lists, prepare_collection, prepare_log, write

from ultr.errors import ConfigError, DataError
from ultr.ingest.preparing import prepare

TABBED = HEADER.replace(",", "\t")


def shown(log: Any) -> list[tuple[Any, ...]]:
    """Returns (session, query, documents, clicks) of each list."""
    return [(row["session"], row["query"], row["documents"], row["clicks"]) for row in lists(log)]


# Quotes


def test_quotes_in_tab_separated_files_are_signs_like_any_other(tmp_path: Path) -> None:
    rows = '1\ttv 15"\ta\t1\t0\n1\ttv 15"\t"b\t2\t1\n2\t"q\tc\t1\t0\n3\tr\td\t1\t1\n4\t"q\tc"\t1\t1\n'
    raw = write(tmp_path / "log.tsv", rows, TABBED)
    log = prepare_log(raw, tmp_path / "out")
    assert shown(log) == [
        ("1", 'tv 15"', ["a", '"b'], [0, 1]),
        ("2", '"q', ["c"], [0]),
        ("3", "r", ["d"], [1]),
        ("4", '"q', ['c"'], [1]),
    ]
    assert log.metadata["report"]["warnings"] == []


def test_quotes_enclose_values_of_tab_separated_files_where_that_is_said(tmp_path: Path, ultr: Any) -> None:
    raw = write(tmp_path / "log.tsv", '"1"\t"a ""b""\tc"\td\t1\t0\n1\t"a ""b""\tc"\te\t2\t1\n', TABBED)
    log = prepare_log(raw, tmp_path / "out", quote=True)
    assert shown(log) == [("1", 'a "b"\tc', ["d", "e"], [0, 1])]
    assert ultr("prepare", raw, "--out", tmp_path / "cli", "--quote").code == 0
    with pytest.raises(DataError, match="expected 5 values as in the header, found 6"):
        prepare(raw, tmp_path / "plain")


def test_names_in_quotes_that_are_not_read_as_such_are_an_error(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.tsv", "1\tq\td\t1\t0\n", "\t".join(f'"{n}"' for n in HEADER.split(",")))
    with pytest.raises(DataError, match=r"names in quotes.*--quote \(in Python: quote=True\)") as caught:
        prepare(raw, tmp_path / "out")
    assert caught.value.row == 1
    assert prepare_log(raw, tmp_path / "out", quote=True).metadata["sessions"] == 1


@pytest.mark.parametrize("swallowed", [0, 1, 5])
@pytest.mark.parametrize("column", [1, 2])
def test_a_lone_quote_that_swallows_rows_is_refused(tmp_path: Path, swallowed: int, column: int) -> None:
    rows = [[f"{i}", f"q{i}", f"d{i}", "1", "0"] for i in range(swallowed + 5)]
    rows[1][column] = '"' + rows[1][column]
    rows[2 + swallowed][column] += '"'
    raw = write(tmp_path / "log.csv", "".join(",".join(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"goes on over {swallowed + 2} lines.*--no-quote") as caught:
        prepare(raw, tmp_path / "out")
    assert (caught.value.file, caught.value.row) == (raw, 3)
    assert caught.value.field == HEADER.split(",")[column]
    log = prepare_log(raw, tmp_path / "out", quote=False)
    assert log.metadata["sessions"] == len(rows)
    assert shown(log)[1][column] in ('"q1', ['"d1'])


def test_a_quoted_value_may_hold_line_breaks_and_the_report_says_where(tmp_path: Path) -> None:
    rows = 's,"red, or\nblue",a,1,0\ns,"red, or\nblue",b,2,1\nt,x,"c\r\n",1,0\n'
    log = prepare_log(write(tmp_path / "log.csv", rows), tmp_path / "out")
    assert shown(log) == [("s", "red, or\nblue", ["a", "b"], [0, 1]), ("t", "x", ["c"], [0])]
    assert log.metadata["report"]["warnings"] == [
        "3 quoted values hold line breaks, the first of them in log.csv, row 2, field 'query': check that no quote "
        "stands alone there"
    ]


def test_grades_have_the_same_rules_for_quotes(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", 's,"q ""x""",a,1,0\ns,"q ""x""","b\nc",2,0\n')
    header = "query,document,label"
    grades = write(tmp_path / "grades.csv", '"q ""x""",a,3\n"q ""x""","b\nc",1\n', header)
    log = prepare_log(raw, tmp_path / "out", labels=grades)
    assert present(log.vocabulary.labels)[1:].tolist() == [3, 1]
    warnings = log.metadata["report"]["warnings"]
    assert [re.findall(r"\w+\.csv, row \d+", warning) for warning in warnings[:2]] == [
        ["log.csv, row 3"], ["grades.csv, row 3"],
    ]  # fmt: skip
    write(grades, 'z,"a,3\nz,b,1\nz,c",2\n', header)
    with pytest.raises(DataError, match="goes on over 3 lines") as caught:
        prepare(raw, tmp_path / "again", labels=grades)
    assert (caught.value.file, caught.value.row, caught.value.field) == (grades, 2, "document")
    write(grades, 'q "x"\ta\t3\nq "x"\tb\t1\n', header.replace(",", "\t"))
    assert present(prepare_log(raw, tmp_path / "tabs", labels=grades).vocabulary.labels)[1] == 3


@pytest.mark.parametrize(
    "bad", ['s,"a \\"b\\" c",d,2,0', 's,"a"b,d,2,0', 's,"a,d,2,0'], ids=["escaped", "closed early", "never closed"]
)
def test_quotes_that_end_nowhere_name_their_row(tmp_path: Path, bad: str) -> None:
    raw = write(tmp_path / "log.csv", f's,"a, b",c,1,0\n{bad}\ns,q,e,3,0\n')
    with pytest.raises(DataError, match=r"never closed, or is closed within a value.*twice.*--no-quote") as caught:
        prepare(raw, tmp_path / "out")
    assert (caught.value.file, caught.value.row) == (raw, 3)
    assert left(tmp_path) == ["log.csv"]


def test_a_question_of_quotes_where_nothing_has_any_is_an_error(tmp_path: Path, ultr: Any) -> None:
    table = {"session": ["s"], "query": ["q"], "document": ["a"], "rank": [1], "click": [0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    letor = write(tmp_path / "a.txt", "", "1 qid:1 1:1")
    for raw, format in ((tmp_path / "log.parquet", "table"), (letor, "letor")):
        with pytest.raises(ConfigError, match="there is none among the files"):
            prepare(raw, tmp_path / "out", format=format, quote=False)
    result = ultr("prepare", tmp_path / "log.parquet", "--out", tmp_path / "out", "--quote")
    assert (result.code, left(tmp_path)) == (2, ["a.txt", "log.parquet"])
    grades = write(tmp_path / "grades.tsv", "q\ta\t1\n", "query\tdocument\tlabel")
    prepare(tmp_path / "log.parquet", tmp_path / "out", labels=grades, quote=True)


# Blanks


def test_blanks_around_values_do_not_make_other_names(tmp_path: Path) -> None:
    header = " session, query , document,rank, click, device, price, label, time"
    rows = "1, red shoes, a, 1, 0, phone, 2, 3, 7\n1,red shoes ,\tb , 2 , 1 ,phone , 1e0 , , 7 \n"
    rows += "2,red shoes,a,1,1,phone,2,3,8\n"
    grades = write(tmp_path / "grades.csv", " red shoes , b , 4 \n", "query, document, label")
    options: Any = {"context": ["device"], "features": ["price"], "labels": grades}
    spaced = prepare_log(write(tmp_path / "a.csv", rows, header), tmp_path / "a", **options)
    bare = write(tmp_path / "b.csv", re.sub("[ \t]*,[ \t]*", ",", rows), re.sub(" *, *", ",", header).strip())
    plain = prepare_log(bare, tmp_path / "b", **options)
    names = ("time", "context.device", "feature.price")
    assert lists(spaced, *names) == lists(plain, *names)
    assert spaced.metadata["queries"] == 1
    np.testing.assert_array_equal(present(spaced.vocabulary.labels)[1:], [3, 4])
    assert spaced.vocabulary.document_names.to_pylist() == ["a", "b"]
    assert spaced.metadata["context"]["device"]["values"] == ["phone"]


def test_blanks_before_quotes(tmp_path: Path) -> None:
    rows = '1, "red, shoes", a, 1, 0\n1,"red, shoes", "b" , 2, 1\n'
    log = prepare_log(write(tmp_path / "log.csv", rows), tmp_path / "out")
    assert shown(log) == [("1", "red, shoes", ["a", "b"], [0, 1])]


@pytest.mark.slow
def test_names_of_all_formats_match_grades_with_blanks(tmp_path: Path) -> None:
    table = {"session": [" s"], "query": ["q "], "document": ["\ta"], "rank": [1], "click": [0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    (tmp_path / "ubi.ndjson").write_text(
        '{"action_name": " impression ", "query_id": "s ", "user_query": " q", "event_attributes": '
        '{"object": {"object_id": " a "}, "position": {"ordinal": "1 "}}}\n'
    )
    (tmp_path / "ubi.csv").write_text(
        "action_name, query_id,user_query,event_attributes.object.object_id,event_attributes.position.ordinal\n"
        "impression , s, q , a, 1\n"
    )
    (tmp_path / "yandex.tsv").write_text(" s\t 0\tQ\t q \t1\t a \n")
    (tmp_path / "sample.txt").write_text(" q \t a  : \n")
    (tmp_path / "trec.txt").write_text(" s\t q \t[ 'a' ]\t[1]\t[0]\n")
    formats = {"log.parquet": "table", "ubi.ndjson": "ubi", "ubi.csv": "ubi", "yandex.tsv": "yandex"}
    formats |= {"sample.txt": "yandex-sample", "trec.txt": "trec-session"}
    for grades in ("\tq 0 a  2 \n", "query , document, label\n q , a , 2 \n", "q\t0\ta\t2\n", "\ufeffq 0 a 2\r\n"):
        (tmp_path / "grades").write_text(grades)
        for name, format in formats.items():
            log = prepare_log(tmp_path / name, tmp_path / "out", format=format, labels=tmp_path / "grades",
                              overwrite=True)  # fmt: skip
            assert present(log.vocabulary.labels)[1:].tolist() == [2], (name, grades)
            if "sample" not in name:
                assert lists(log)[0]["session"] == "s"


def test_numbers_that_are_none_are_no_names(tmp_path: Path) -> None:
    table = {"session": [1.0, 1.0, np.nan], "query": ["q"] * 3, "document": [7.0, np.nan, 8.0]}
    pq.write_table(pa.table(table | {"rank": [1, 2, 3], "click": [0, 1, 1]}), tmp_path / "log.parquet")
    log = prepare_log(tmp_path / "log.parquet", tmp_path / "out")
    assert shown(log) == [("1", "q", ["7"], [0])]
    assert log.metadata["report"]["dropped"]["rows_without_keys"] == 2


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
@pytest.mark.parametrize("column", ["rank", "click", "time", "f", "c"])
def test_nan_that_the_statistics_of_parquet_leave_out_is_found(tmp_path: Path, column: str, kind: Any) -> None:
    table: dict[str, Any] = {"session": [1, 2, 3], "query": ["q"] * 3, "document": ["a", "b", "c"]}
    table |= {"rank": [1, 1, 1], "click": [0, 1, 1], "time": [1, 2, 3], "f": [1, 2, 3], "c": [1, 2, 3]}
    pq.write_table(pa.table(table | {column: pa.array([1.0, np.nan, 1.0], kind)}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"found '?nan") as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out", features=["f"], context=["c"])
    assert (caught.value.file, caught.value.row, caught.value.field) == (tmp_path / "log.parquet", 2, column)


def test_a_grade_that_is_nan_is_missing(tmp_path: Path) -> None:
    table = {"session": [1, 2, 3], "query": ["q"] * 3, "document": ["a", "b", "a"], "rank": [1] * 3, "click": [0] * 3}
    pq.write_table(pa.table(table | {"label": [np.nan, np.nan, 2.0]}), tmp_path / "log.parquet")
    log = prepare_log(tmp_path / "log.parquet", tmp_path / "out")
    np.testing.assert_array_equal(present(log.vocabulary.labels)[1:], [2, np.nan])


# Line ends, compression, delimiters and headers


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_text_format_takes_every_line_end(tmp_path: Path, end: str, last: bool) -> None:
    def file(name: str, text: str) -> Path:
        made = tmp_path / name
        made.write_bytes((text if last else text.rstrip("\n")).replace("\n", end).encode())
        return made

    grades = file("grades.txt", "q 0 a 2\nq 0 b 1\n")
    table = file("grades.csv", "query,document,label\nq,a,2\nq,b,1\n")
    for name, text, format in (
        ("log.csv", f"{HEADER}\ns,q,a,1,0\ns,q,b,2,1\n", "table"),
        ("yandex.tsv", "s\t0\tQ\tq\t1\ta\tb\ns\t1\tC\tb\n", "yandex"),
        ("sample.txt", "q\ta,b:b\nr\ta:\n", "yandex-sample"),
        ("trec.txt", "s\tq\t[a,b]\t[1,1]\t[0,1]\nt\tr\t[a]\t[1]\t[0]\n", "trec-session"),
    ):
        for labels in (grades, table):
            log = prepare_log(file(name, text), tmp_path / "out", format=format, labels=labels, overwrite=True)
            first = lists(log)[0]
            assert (first["documents"], first["clicks"]) == (["a", "b"], [0, 1])
            assert present(log.vocabulary.labels)[1:3].tolist() == [2, 1]
    letor = file("letor.txt", "2 qid:1 1:1 2:5 # docid = a\n1 qid:1 1:3 2:4 # docid = b\n")
    found = prepare_collection(letor, tmp_path / "letor", format="letor")
    assert (found.labels.tolist(), present(found.features).tolist()) == ([2, 1], [[1, 5], [3, 4]])


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("table", f"{HEADER}\ns,q,a,1,0\ns,q,b,2,1\r\ns,q,c,3,1\r\n", 3),
        ("table", f"{HEADER}\r\ns,q,a,1,0\r\ns,q,b,2,1\ns,q,c,3,1\r\n", 3),
        ("table", f"{HEADER}\ns,q,a,1,0\ns,q,b,2,1\rs,q,c,3,1\n", 3),
        ("letor", "2 qid:1 1:1\n1 qid:1 1:2\r0 qid:1 1:3\n", 2),
        ("qrels", "q 0 a 1\nq 0 b 2\rq 0 c 3\n", 2),
        ("trec-session", "s\tq\t[a]\t[1]\t[0]\rs\tq\t[a]\t[1]\t[0]\ns\tq\t[a]\t[1]\t[0]\n", 1),
    ],
)
def test_mixed_line_ends_name_the_row(tmp_path: Path, name: str, text: str, row: int) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(text.encode())
    with pytest.raises(DataError, match=r"lines that all end alike.*dos2unix") as caught:
        prepare(raw, tmp_path / "out", format=name)
    assert (caught.value.file, caught.value.row) == (raw, row)


COMPRESSIONS: dict[str, Callable[[bytes], Any]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda text: pa.compress(text, "zstd", asbytes=True),
    "": bz2.compress,
}
PLAIN = {
    "table": f"{HEADER}\ns,q,a,1,0\ns,q,b,2,1\n",
    "yandex": "s\t0\tQ\tq\t1\ta\tb\ns\t1\tC\tb\n",
    "yandex-sample": "q\ta,b:b\n",
    "trec-session": "s\tq\t[a,b]\t[1,1]\t[0,1]\n",
    "ubi": '{"action_name": "impression", "query_id": "q", "event_attributes": {"object": {"object_id": "a"}, '
    '"position": {"ordinal": 1}}}\n{"action_name": "click", "query_id": "q", "event_attributes": {"object": '
    '{"object_id": "a"}, "position": {"ordinal": 1}}}\n',
    "letor": "2 qid:q 1:1 # docid = a\n1 qid:q 1:3 # docid = b\n",
    "qrels": "q 0 a 2\nq 0 b 1\n",
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("format", PLAIN)
def test_every_text_format_may_be_compressed(tmp_path: Path, format: str, suffix: str) -> None:
    pack = COMPRESSIONS[suffix]
    raw, plain = tmp_path / f"raw.json{suffix}", tmp_path / "plain.json"
    plain.write_text(PLAIN[format])
    raw.write_bytes(pack(PLAIN[format].encode()))
    options: dict[str, Any] = {}
    if format not in ("letor", "qrels"):
        options["labels"] = tmp_path / f"grades{suffix}"
        options["labels"].write_bytes(pack(b"query,document,label\nq,a,2\n"))
    packed = prepare(raw, tmp_path / "packed", format=format, **options)
    same = prepare(plain, tmp_path / "same", format=format, **options)
    skip = {"report", "created", "files", "vocabulary"}
    for key in packed.metadata.keys() - skip:
        assert packed.metadata[key] == same.metadata[key], key
    if options:
        assert packed.metadata["report"]["documents"]["pairs_graded"] == 1
    whole = raw.read_bytes()
    other = [] if suffix == ".zst" else [whole[:-20] + b"x" * 20]  # this packer writes no checksums
    for damaged in (whole[:-6], *other):
        raw.write_bytes(damaged)
        with pytest.raises(DataError, match=r"expected a complete (gzip|bz2|zstd) file") as caught:
            prepare(raw, tmp_path / "again", format=format)
        assert caught.value.file == raw
        assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_delimiters_are_found_whatever_the_file_is_called(tmp_path: Path, delimiter: str) -> None:
    text = f"{HEADER}\ns,q;r,a|b,1,0\n".replace(",", "\0").replace(";", " ").replace("|", " ").replace("\0", delimiter)
    (tmp_path / "log.csv").write_text(text)
    log = prepare_log(tmp_path / "log.csv", tmp_path / "out")
    assert shown(log) == [("s", "q r", ["a b"], [0])]


def test_a_delimiter_in_quotes_or_in_one_name_is_not_the_delimiter(tmp_path: Path) -> None:
    quoted = write(tmp_path / "a.csv", 's;q;a;1;0;"x,y"\n', '"session";query;document;rank;click;"a,b,c,d,e,f,g"')
    assert shown(prepare_log(quoted, tmp_path / "a")) == [("s", "q", ["a"], [0])]
    barred = write(tmp_path / "b.csv", "s,q,a,1,0,x\n", f"{HEADER},a|b|c|d|e|f|g")
    assert shown(prepare_log(barred, tmp_path / "b")) == [("s", "q", ["a"], [0])]


def test_a_first_line_that_is_data_is_said_to_be(tmp_path: Path) -> None:
    for first, message in (
        ("s,q,a,2,0", "The first line seems to hold data"),
        ("s,q,a,1,1", "twice.*first line must name the columns"),
        (" ", "found an empty line"),
    ):
        raw = write(tmp_path / "log.csv", "s,q,b,2,1\n", first)
        with pytest.raises(DataError, match=message):
            prepare(raw, tmp_path / "out")
    assert left(tmp_path) == ["log.csv"]


@pytest.mark.parametrize("size", [140_000, 200_000, 1_100_000])
def test_a_first_line_without_end_is_an_error_of_one_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "log.csv").write_bytes(b"x" * size + b",query")
    with pytest.raises(DataError, match=r"found the columns|more than 1,048,572 bytes") as caught:
        prepare(tmp_path / "log.csv", tmp_path / "out")
    assert len(str(caught.value)) < 500
    with pytest.raises(DataError) as caught:
        prepare(write(tmp_path / "b.csv", "s,q,a,1,0\n"), tmp_path / "out", labels=tmp_path / "log.csv")
    assert len(str(caught.value)) < 500


def test_a_nul_in_a_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a NUL") as caught:
        prepare(write(tmp_path / "log.csv", "s,q,a,1,0,2\n", f"{HEADER},\0"), tmp_path / "out")
    assert caught.value.row == 1
    (tmp_path / "wide.csv").write_bytes(f"{HEADER}\ns,q,a,1,0\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="UTF-16"):
        prepare(tmp_path / "wide.csv", tmp_path / "out")


def test_columns_of_parquet_go_by_their_exact_names(tmp_path: Path) -> None:
    table = {"SESSION": ["x"], "session": ["s"], "query": ["q"], "document": ["a"], "rank": [1], "click": [0]}
    table |= {"a\0b": ["n"], 'it\'s "x"': [2.5], "Price": [1.0], "price": [3.0]}
    folder = tmp_path / "session=7"  # which the engine would make a column of
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "log.parquet")
    for name, value in (("price", 3.0), ("Price", 1.0), ('it\'s "x"', 2.5)):
        log = prepare_log(folder, tmp_path / "out", features=[name], overwrite=True)
        (found,) = lists(log, f"feature.{name}")
        assert (found["session"], found["documents"], found[f"feature.{name}"]) == ("s", ["a"], [value])
    with pytest.raises(ConfigError, match="differ in more than case"):
        prepare(folder, tmp_path / "no", features=["price", "Price"])
    arrays = [pa.array(values) for values in table.values()]
    pq.write_table(pa.table(arrays[:6], names=["session", "session", *list(table)[2:6]]), folder / "log.parquet")
    with pytest.raises(DataError, match=r"found \['session'\] twice") as caught:
        prepare(folder, tmp_path / "again")
    assert caught.value.field == "session"


def test_a_parquet_file_whose_statistics_contradict_its_rows_is_damaged(tmp_path: Path) -> None:
    count = 400
    session = np.arange(count) // 4
    table = {"session": session, "query": [f"q{s}" for s in session], "document": [f"d{i}" for i in range(count)]}
    table |= {"rank": np.arange(count) % 4 + 1, "click": np.zeros(count, int)}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", use_dictionary=False, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    for number in range(40, 60):  # in the pages, where the largest session stands in the footer
        at = content.index(np.int64(number).tobytes() + np.int64(number).tobytes())
        for i in range(4):
            content[at + 8 * i + 4] = 9
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match="expected the same rows each time") as caught:
        prepare(tmp_path / "a.parquet", tmp_path / "out")
    assert caught.value.file == tmp_path / "a.parquet"
    assert left(tmp_path) == ["a.parquet"]


# Times


@pytest.mark.parametrize(
    ("times", "row"),
    [
        (["1700000000", "1700000060000"], 3),
        (["1700000000000", "1700000060", "1700000120"], 3),
        (["2023-11-14T22:13:20Z", "1700000060", "1700000120000"], 3),
        (["1700000000000", "2023-11-14T22:13:20Z"], 3),
        (["1700000000000000", "1700000000000"], 3),
    ],
)
def test_times_in_different_units_are_refused(tmp_path: Path, times: list[str], row: int) -> None:
    rows = [f"{i},q,d,1,0,{time}\n" for i, time in enumerate(times)]
    raw = write(tmp_path / "log.csv", "".join(rows), f"{HEADER},time")
    with pytest.raises(DataError, match="expected times of one kind, found ") as caught:
        prepare(raw, tmp_path / "out")
    assert (caught.value.file, caught.value.row, caught.value.field) == (raw, row, "time")


def test_times_in_one_unit_are_read(tmp_path: Path) -> None:
    for times in (["1700000000", "1700000060"], ["1700000000000", "1700000060000"], ["0", "3600000000000"]):
        rows = [f"{i},q,d,1,0,{time}\n" for i, time in enumerate(times)]
        raw = write(tmp_path / "log.csv", "".join(rows), f"{HEADER},time")
        log = prepare_log(raw, tmp_path / "out", overwrite=True)
        first, second = (row["time"] for row in lists(log, "time"))
        assert first == float(times[0])
        assert second == float(times[1])


# TREC sessions and LETOR


def test_trec_session_names_keep_blanks_brackets_quotes_and_commas(tmp_path: Path) -> None:
    texts = [
        ("['a','b']", ["a", "b"]),
        ("""["d'x",'b']""", ["d'x", "b"]),
        ("['a b','ab']", ["a b", "ab"]),
        ("[a[1], a1]", ["a[1]", "a1"]),
        ("['http://x/a,b','b']", ["http://x/a,b", "b"]),
        (r"""['it\'s "so"', "\\"]""", ['it\'s "so"', "\\"]),
        ('["caf\\u00e9", "b"]', ["café", "b"]),
        ("[ 'tis, 'twas ]", ["'tis", "'twas"]),
        ("[it's, b c]", ["it's", "b c"]),
    ]
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(f"{i}\tq\t{text}\t[1,2]\t[0, '1']\n" for i, (text, _) in enumerate(texts)))
    log = prepare_log(raw, tmp_path / "out", format="trec-session", features=["vertical"])
    assert [row["documents"] for row in lists(log)] == [names for _, names in texts]
    assert [row["clicks"] for row in lists(log)] == [[0, 1]] * len(texts)
    raw.write_text("1\tq\t['a','b']\t[1,2]\t[0,1]\n1\tq\t['a','b'\t[1,2]\t[0,1]\n")
    with pytest.raises(DataError, match="as many values in each bracket") as caught:
        prepare(raw, tmp_path / "again", format="trec-session")
    assert caught.value.row == 2


def test_features_that_a_letor_file_leaves_out_are_0_under_a_vocabulary(tmp_path: Path, ultr: Any) -> None:
    train = write(tmp_path / "train.txt", "0 qid:1 1:0.25 2:0.5\n1 qid:2 3:4\n", "2 qid:1 1:0.5 5:1")
    test = write(tmp_path / "test.txt", "0 qid:3 1:0.25 2:0.5\n", "1 qid:3 1:0.5 4:1")
    wide = write(tmp_path / "wide.txt", "0 qid:4\n", "2 qid:4 1:0.5 5:3 7:1")
    parent = prepare_collection(train, tmp_path / "train", format="letor")
    found = prepare_collection(test, tmp_path / "test", format="letor", vocabulary=tmp_path / "train")
    assert found.vocabulary.feature_names == parent.vocabulary.feature_names
    np.testing.assert_array_equal(present(found.features), [[0.5, 0, 0, 1, 0], [0.25, 0.5, 0, 0, 0]])
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"at most the 5 features .*found 7.*--features 7 .*--features 5"):
        prepare(wide, tmp_path / "wide", format="letor", vocabulary=parent)
    options = ("--format", "letor", "--vocabulary", tmp_path / "train", "--features", 5)
    result = ultr("prepare", wide, "--out", tmp_path / "wide", *options)
    assert result.code == 0
    assert "1 values of features beyond the first 5 were left out" in result.err
    cut = prepare_collection(wide, tmp_path / "cut", format="letor", feature_count=5)
    np.testing.assert_array_equal(present(cut.features), [[0.5, 0, 0, 0, 3], [0, 0, 0, 0, 0]])
    assert cut.metadata["report"]["values_of_further_features"] == 1
    padded = prepare_collection(test, tmp_path / "padded", format="letor", feature_count=6)
    np.testing.assert_array_equal(present(padded.features)[:, 4:], np.zeros((2, 2)))
    dense = write(tmp_path / "dense.txt", "0 qid:5 1:4 2:5 3:6\n", "1 qid:5 1:1 2:2 3:3")
    both = prepare_collection([dense, test], tmp_path / "both", format="letor", feature_count=2)
    np.testing.assert_array_equal(present(both.features), [[1, 2], [4, 5], [0.5, 0], [0.25, 0.5]])
    with pytest.raises(ConfigError, match="'table' takes no number of features"):
        prepare(train, tmp_path / "no", feature_count=3)
    with pytest.raises(ConfigError, match="from 1 to 65,536, found 0"):
        prepare(train, tmp_path / "no", format="letor", feature_count=0)


def test_documents_that_are_not_judged_have_features_and_no_grade(tmp_path: Path) -> None:
    rows = "-1 qid:1 1:2 # docid = b\n0 qid:1 1:3 # docid = c\n-1 qid:2 1:4 # docid = d\n"
    raw = write(tmp_path / "train.txt", rows, "2 qid:1 1:1 # docid = a")
    found = prepare_collection(raw, tmp_path / "out", format="letor")
    assert found.metadata["report"]["not_judged"] == 2
    assert (len(found), found.labels.tolist(), present(found.features).tolist()) == (1, [2, 0], [[1], [3]])
    assert present(found.vocabulary.features)[1:].tolist() == [[1], [2], [3], [4]]
    again = write(tmp_path / "again.txt", "1 qid:1 1:2 # docid = b\n", "-1 qid:1 1:1 # docid = a")
    both = prepare_collection(again, tmp_path / "both", format="letor", vocabulary=found)
    np.testing.assert_array_equal(present(both.vocabulary.labels)[1:], [2, 1, 0, np.nan])
    with pytest.raises(DataError, match="expected graded documents, found none"):
        prepare(write(tmp_path / "none.txt", "", "-1 qid:1 1:1"), tmp_path / "none", format="letor")


@pytest.mark.parametrize("blank", ["\u00a0", "\u2003", "\u3000", "\ufeff", " \u00a0\t"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_blanks_of_unicode_are_no_part_of_names(tmp_path: Path, blank: str, kind: str) -> None:
    names = ["session", "query", "document", "rank", "click"]
    rows = [
        ("s", "röd hat", "a", 1, 0),
        ("t", f"{blank}röd hat{blank}", f"a{blank}", 1, 1),
        (f"t{blank}", "x", "b", 1, 0),
    ]
    raw = tmp_path / f"log.{kind}"
    if kind == "csv":
        quoted = [",".join(f'"{value}"' for value in row) for row in rows]
        raw.write_text("\n".join([",".join(names), *quoted]) + "\n", encoding="utf-8")
    else:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        pq.write_table(pa.table(columns), raw)
    grades = tmp_path / "grades.csv"
    grades.write_text(f"query,document,label\nröd hat{blank},{blank}a,2\n", encoding="utf-8")
    log = prepare_log(raw, tmp_path / "out", labels=grades)
    assert log.vocabulary.query_names.to_pylist() == ["röd hat", "x"]
    assert log.vocabulary.document_names.to_pylist() == ["a", "b"]
    assert log.metadata["report"]["distinct_sessions"] == 2
    assert log.metadata["report"]["documents"]["pairs_graded"] == 1
