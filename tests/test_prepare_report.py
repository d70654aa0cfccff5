"""`prepare` when it is interrupted, what it warns about, and what the command prints."""

from __future__ import annotations

import _thread
import json
import signal
import threading
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pytest
from raw_logs import ROWS, left, prepare_collection, write

from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError, engine_errors
from ultr.ingest.preparing import prepare


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Query interrupted"),
        duckdb.InterruptException("INTERRUPT Error: Interrupted!"),
        pa.ArrowInvalid("INTERRUPT Error: Interrupted!"),
        pa.ArrowCancelled("Operation cancelled"),
    ],
)
def test_what_the_engine_makes_of_an_interruption_is_one(error: Any) -> None:
    with pytest.raises(KeyboardInterrupt), engine_errors():
        raise error


def test_other_errors_of_the_engine_are_none() -> None:
    with pytest.raises(RuntimeError, match="something else"), engine_errors():
        raise RuntimeError("something else")
    with pytest.raises(EngineError, match="Invalid Input"), engine_errors():
        raise duckdb.InvalidInputException("Invalid Input Error: no")


@pytest.mark.slow
def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    timer = threading.Timer(0.3, _thread.interrupt_main)

    def work() -> None:
        with Engine(beside=tmp_path) as engine:
            table = pa.table({"k": [1]})
            one = engine.load("one", table.to_batches(), table.schema)
            long, short = (
                one.select(**{n: ibis.range(0, size)}).unnest(n) for n, size in (("a", 3_000_000), ("b", 3_000))
            )
            many = long.cross_join(short)
            slow = many.filter((many.a * many.b) % 1_000_003 == 7)
            timer.start()
            engine.record(slow.agg(n=slow.count()))

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # parallel workers of pytest ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, usual)
    timer.join()
    assert left(tmp_path) == []


def test_an_empty_split_stays_and_is_warned_about(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,1\nt,q,b,1,0\n")
    log = prepare(raw, tmp_path / "out", split={"valid": 0.01, "train": 0.99}, split_by="query")
    assert log.metadata["splits"] == {"valid": 0, "train": 2}
    assert log.metadata["report"]["warnings"] == ["the split 'valid' is empty"]
    with pytest.raises(DataError, match="the split 'valid' is empty: it has none of the 2 sessions"):
        ClickLog.open(tmp_path / "out", split="valid")


def test_an_empty_split_of_a_collection_stays(tmp_path: Path) -> None:
    (tmp_path / "grades.txt").write_text("q 0 a 1\nq 0 b 0\n")
    made = prepare_collection(
        tmp_path / "grades.txt", tmp_path / "out", format="qrels", split={"valid": 0.01, "train": 0.99}
    )
    assert made.metadata["splits"] == {"valid": 0, "train": 1}
    assert made.metadata["report"]["warnings"] == ["the split 'valid' is empty"]
    with pytest.raises(DataError, match="the split 'valid' is empty: it has none of the 1 graded lists"):
        Collection.open(tmp_path / "out", split="valid")
    made.save(tmp_path / "again")
    assert Collection.open(tmp_path / "again").metadata["splits"] == {"valid": 0, "train": 1}


def test_splits_of_a_collection_count_the_lists_that_it_has(tmp_path: Path) -> None:
    prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "log")
    (tmp_path / "grades.txt").write_text("hats 0 x 1\n")  # shoes is known, and has no grades
    made = prepare(
        tmp_path / "grades.txt", tmp_path / "out", format="qrels", vocabulary=tmp_path / "log", split={"all": 1.0}
    )
    assert made.metadata["splits"] == {"all": 1} == {"all": len(Collection.open(tmp_path / "out", split="all"))}


def test_grades_that_match_nothing_are_warned_about(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    (tmp_path / "grades.txt").write_text("Shoes 0 a 2\nhats 0 nowhere 1\n")
    [warning] = prepare(raw, tmp_path / "a", labels=tmp_path / "grades.txt").metadata["report"]["warnings"]
    assert warning.startswith("none of the 2 grades in grades.txt is about a query and document of the data")
    (tmp_path / "grades.txt").write_text("shoes 0 a 2\n")
    assert prepare(raw, tmp_path / "b", labels=tmp_path / "grades.txt").metadata["report"]["warnings"] == []


def test_a_log_without_clicks_and_dropped_rows_are_warned_about(tmp_path: Path) -> None:
    silent = prepare(write(tmp_path / "a.csv", "s,q,a,1,0\n"), tmp_path / "a")
    assert silent.metadata["report"]["warnings"] == ["the log has not a single click: nothing can be learned from it"]
    rows = "s,q,a,1,1\n,q,b,1,0\n,q,b,2,0\ns,q,c,1,0\n"
    with pytest.raises(DataError, match="found 1 of 2 rows at a rank that another row"):
        prepare(write(tmp_path / "b.csv", rows), tmp_path / "b")
    lossy = prepare(tmp_path / "b.csv", tmp_path / "b", pages="first")
    _, first, second = lossy.metadata["report"]["warnings"]
    assert first.startswith("2 of 4 rows (50%) were dropped, 2 of them as rows without a session, query or document")
    assert "from 2% on" in first
    assert second.startswith("1 of 4 rows stand at a rank of their list that an earlier row has with another document")
    half = prepare(write(tmp_path / "c.csv", "s,q,a,1,1\n,q,b,1,0\n"), tmp_path / "c")
    alone, _ = half.metadata["report"]["warnings"]
    assert alone.startswith("every impression of the log was clicked")


def test_clicks_on_what_was_not_shown_are_warned_about(tmp_path: Path) -> None:
    raw = tmp_path / "log.txt"
    raw.write_text("1\t0\tQ\tq\t0\ta\tb\n1\t1\tC\ta\n1\t2\tC\tx\n1\t3\tC\ty\n")
    log = prepare(raw, tmp_path / "out", format="yandex")
    assert log.metadata["report"]["warnings"] == [
        "2 of 3 clicks (67%) were dropped, 2 of them as clicks on documents not shown (from 2% on, this is a warning)"
    ]


def test_repeated_graded_rows_are_warned_about(tmp_path: Path) -> None:
    (tmp_path / "grades.txt").write_text("q 0 a 1\n" * 4 + "q 0 b 0\n")
    made = prepare(tmp_path / "grades.txt", tmp_path / "out", format="qrels")
    assert made.metadata["report"]["warnings"] == [
        "3 of 5 rows (60%) were dropped, 3 of them as repeated pairs (from 2% on, this is a warning)"
    ]


LETOR = "{} qid:1 1:1\n{} qid:1 1:2\n{} qid:2 1:3\n{} qid:2 1:4\n"
QRELS = "1 0 a {}\n1 0 b {}\n2 0 c {}\n2 0 d {}\n"


@pytest.mark.parametrize(
    ("kind", "grades", "expected"),
    [
        ("letor", (1, -1, 1, -1), ["2 of 4 labels are -1 and none is 0", "in 2 of 2 lists all judged documents have"]),
        ("letor", (1, -1, 1, 0), ["1 of 4 labels are -1, which this format"]),
        ("letor", (1, 0, 2, 0), []),
        ("letor", (1, 1, 2, 0), []),  # one list of two
        ("qrels", (1, -1, 1, -1), ["2 of 4 grades are below 0 and count as 0"]),
        ("qrels", (0, -1, 0, -1), ["2 of 4 grades are below 0", "in 2 of 2 lists all judged documents have one grade"]),
        ("qrels", (1, 0, 2, 0), []),
    ],
)
def test_grades_that_say_little_are_warned_about(
    kind: str, grades: tuple[int, ...], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "raw.txt").write_text((LETOR if kind == "letor" else QRELS).format(*grades))
    found = prepare(tmp_path / "raw.txt", tmp_path / "out", format=kind).metadata["report"]["warnings"]
    assert len(found) == len(expected)
    assert all(text in warning for text, warning in zip(expected, found, strict=True))


def test_negative_grades_of_a_log_are_warned_about(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    (tmp_path / "grades.txt").write_text("shoes 0 a 1\nshoes 0 b -1\n")
    (found,) = prepare(raw, tmp_path / "out", labels=tmp_path / "grades.txt").metadata["report"]["warnings"]
    assert "1 of 2 grades are below 0 and count as 0, not relevant" in found


@pytest.mark.parametrize(("lost", "warned"), [(1, False), (2, True)])
def test_losses_are_warned_about_from_two_per_cent_on(tmp_path: Path, lost: int, warned: bool) -> None:
    rows = "".join(f"s{i},{'' if i < lost else 'q'},a,1,{i % 2}\n" for i in range(100))
    made = prepare(write(tmp_path / "a.csv", rows), tmp_path / "a")
    assert bool(made.metadata["report"]["warnings"]) == warned
    (tmp_path / "grades.csv").write_text(
        "query,document,label\n" + "".join(f"q{i},a,{'' if i < lost else 1}\n" for i in range(100))
    )
    made = prepare(tmp_path / "grades.csv", tmp_path / "b", format="qrels")
    assert any("were dropped" in warning for warning in made.metadata["report"]["warnings"]) == warned


def test_grades_that_are_not_used_are_warned_about(tmp_path: Path) -> None:
    raw, grades = write(tmp_path / "log.csv", ROWS), tmp_path / "grades.csv"
    grades.write_text("query,document,label\nshoes,a,2\nhats,nowhere,1\nshoes,b,1\n,b,1\n")
    first, second = prepare(raw, tmp_path / "a", labels=grades).metadata["report"]["warnings"]
    assert first.startswith(
        "1 of 4 grades in grades.csv (25%) were dropped, 1 of them as rows without a query, document"
    )
    assert second.startswith("1 of the 3 graded pairs in grades.csv (33%) are not in the data")


@pytest.mark.parametrize("place", ["table", "qrels", "column"])
def test_differing_grades_name_the_first_pair_and_which_grade_counts(tmp_path: Path, place: str) -> None:
    grades = tmp_path / "grades.csv"
    if place == "column":
        header = "session,query,document,rank,click,label"
        raw = write(grades, "s,shoes,b,1,0,1\ns,shoes,a,2,1,2\nt,shoes,a,1,0,0\nt,shoes,b,2,0,1\n", header)
        made, row = prepare(raw, tmp_path / "out"), 3
    elif place == "table":
        grades.write_text("query,document,label\nshoes,b,1\nshoes,a,2\nshoes,a,0\n")
        made, row = prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out", labels=grades), 3
    else:
        grades.write_text("shoes 0 b 1\nshoes 0 a 2\nshoes 0 a 0\n")
        made, row = prepare(grades, tmp_path / "out", format="qrels"), 2
    warning = next(w for w in made.metadata["report"]["warnings"] if "differing" in w)
    assert warning == (
        "a pair of query and document has differing grades, of which the first counts: query 'shoes' with document 'a' "
        f"(grades.csv, row {row}) has 0 to 2, and 2 counts"
    )


@pytest.mark.parametrize("text", ["shoes 0 a good\n", "query,document,label\nshoes,a,good\n"])
def test_a_word_as_a_grade_is_not_a_number(tmp_path: Path, text: Any) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    (tmp_path / "grades").write_text(text)
    with pytest.raises(DataError, match=r"found 'good', which is not a number\. Write the grades as numbers") as caught:
        prepare(raw, tmp_path / "out", labels=tmp_path / "grades")
    assert "Scale" not in str(caught.value)
    (tmp_path / "grades").write_text(text.replace("good", "99"))
    with pytest.raises(DataError, match=r"found '99'\. Scale the grades"):
        prepare(raw, tmp_path / "out", labels=tmp_path / "grades")


def test_what_to_do_names_the_option_first(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "s,q,d,1\n", "session,query,document,rank")
    with pytest.raises(DataError, match=r"Name it with --click COLUMN \(in Python: columns=\{'click': \.\.\.\}\)"):
        prepare(raw, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match=r"pass --overwrite \(in Python: overwrite=True\)"):
        prepare(raw, tmp_path / "full")


def test_a_prepared_folder_is_no_raw_data(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    prepare(raw, tmp_path / "log")
    (tmp_path / "grades").write_text("shoes 0 a 2\n")
    prepare(tmp_path / "grades", tmp_path / "collection", format="qrels")
    with pytest.raises(DataError, match="a prepared click log already"):
        prepare(tmp_path / "log", tmp_path / "out")
    with pytest.raises(DataError, match="a prepared collection already"):
        prepare(raw, tmp_path / "out", labels=tmp_path / "collection")
    (tmp_path / "parts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "parts" / name).write_text("shoes 0 a 2\n")
    with pytest.raises(DataError, match="expected one file of grades, found a folder of 2"):
        prepare(raw, tmp_path / "out", labels=tmp_path / "parts")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=.5,train=.5", "expected each split once, found 'train' twice"),
        ("train=.5, train=.5,x=.5", "expected each split once, found 'train' twice"),
        ("=.5,x=.5", "expected NAME=SHARE"),
        ("train", "expected NAME=SHARE"),
    ],
)
def test_splits_are_named_once(tmp_path: Path, ultr: Any, text: Any, message: Any) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    code, out, err = ultr("prepare", raw, "--out", tmp_path / "out", "--split", text)
    assert (code, out) == (2, "")
    assert message in err
    assert left(tmp_path) == ["log.csv"]


def test_a_log_of_clicked_rows_alone_is_warned_about(tmp_path: Path) -> None:
    made = prepare(write(tmp_path / "a.csv", "s,q,a,1,1\ns,q,b,2,1\nt,q,b,1,1\n"), tmp_path / "a")
    [warning] = made.metadata["report"]["warnings"]
    assert warning.startswith("every impression of the log was clicked: probably only the clicked rows were exported")


def test_the_command_says_everything_once(tmp_path: Path, ultr: Any) -> None:
    raw, more = write(tmp_path / "log.csv", ROWS), write(tmp_path / "more.csv", "s9,q,d,1,0\n")
    code, out, err = ultr("prepare", raw, more, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert len(set(lines)) == len(lines)
    for line in ("sessions: 4", "impressions: 8", "clicks: 2", "rows: 8", "inputs: log.csv, more.csv"):
        assert lines.count(line) == 1
    assert "warnings" not in out


def test_the_command_prints_warnings_beside_the_result(tmp_path: Path, ultr: Any) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,0\n")
    sentence = "the log has not a single click: nothing can be learned from it"
    code, out, err = ultr("prepare", raw, "--out", tmp_path / "a", "--json")
    assert (code, err) == (0, f"warning: {sentence}\n")
    assert json.loads(out)["report"]["warnings"] == [sentence]
    code, out, err = ultr("prepare", raw, "--out", tmp_path / "b")
    assert (code, err) == (0, f"warning: {sentence}\n")
    assert sentence not in out
