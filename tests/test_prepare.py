"""`prepare` on long tables: what becomes of the rows, their columns and ids."""

from __future__ import annotations

import datetime as dt
import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from narrowing import present
from raw_logs import HEADER, ROWS, digest, left, lists, prepare_collection, prepare_log, write

from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.errors import DataError
from ultr.ingest.packing import Repairs, pack_lists
from ultr.ingest.preparing import prepare

HALVES = {"train": 0.5, "test": 0.5}


# What becomes of the rows


def test_rows_become_lists_in_order_of_appearance(tmp_path: Path) -> None:
    log = prepare_log(write(tmp_path / "log.csv", ROWS), tmp_path / "out")
    assert lists(log) == [
        {"session": "s2", "query": "shoes", "documents": ["a", "b"], "ranks": [1, 2], "clicks": [0, 1]},
        {"session": "s1", "query": "hats", "documents": ["x", "y", "z"], "ranks": [1, 2, 3], "clicks": [1, 0, 0]},
        {"session": "s3", "query": "shoes", "documents": ["b", "c"], "ranks": [1, 2], "clicks": [0, 0]},
    ]
    assert log.vocabulary.query_names.to_pylist() == ["shoes", "hats"]
    # Query by query, as they first appear.
    assert log.vocabulary.document_names.to_pylist() == ["a", "b", "c", "x", "y", "z"]
    assert log.vocabulary.document_query[1:].tolist() == [0, 0, 0, 1, 1, 1]
    report = log.metadata["report"]
    assert (report["rows"], report["sessions"], report["impressions"], report["clicks"]) == (7, 3, 7, 2)
    assert not any(n for kind in ("dropped", "repaired", "noted") for n in report[kind].values())
    assert left(tmp_path) == ["log.csv", "out"]


def test_the_order_of_rows_within_a_list_is_that_of_their_ranks(tmp_path: Path) -> None:
    rows = ROWS.splitlines()
    shuffled = write(tmp_path / "log.csv", "\n".join([rows[1], rows[4], rows[0], rows[3], rows[2], rows[6], rows[5]]))
    log = prepare_log(shuffled, tmp_path / "out")
    assert [(x["session"], x["documents"]) for x in lists(log)] == [
        ("s2", ["a", "b"]),
        ("s1", ["x", "y", "z"]),
        ("s3", ["b", "c"]),
    ]


def test_csv_tsv_gzip_and_parquet_agree(tmp_path: Path) -> None:
    table = [line.split(",") for line in ROWS.splitlines()]
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.tsv", ROWS.replace(",", "\t"), HEADER.replace(",", "\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(f"{HEADER}\n{ROWS}".replace("\n", "\r\n").encode()))
    columns = {name: [row[i] for row in table] for i, name in enumerate(HEADER.split(","))}
    typed = columns | {"rank": [int(r) for r in columns["rank"]], "click": [c == "1" for c in columns["click"]]}
    pq.write_table(pa.table(typed), tmp_path / "d.parquet")
    found = [prepare_log(p, tmp_path / f"out-{p.name}") for p in sorted(tmp_path.glob("?.*"))]
    assert len(found) == 4
    assert all(lists(log) == lists(found[0]) for log in found[1:])
    assert len({log.vocabulary.fingerprint for log in found}) == 1


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "7,q,d,1,true,100\n7,q,e,2,False,90\n", "sid,text,url,pos,clicked,when")
    names = {"session": "sid", "query": "text", "document": "url", "rank": "pos", "click": "clicked", "time": "when"}
    log = prepare_log(raw, tmp_path / "out", columns=names)
    assert lists(log, "time") == [
        {"session": "7", "query": "q", "documents": ["d", "e"], "ranks": [1, 2], "clicks": [1, 0], "time": 90.0}
    ]


@pytest.mark.parametrize("form", ["us", "ns", "offset", "utc", "bare"])
def test_dates_become_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    moment = dt.datetime(2025, 1, 1, 2, 0, 7, 500_000, dt.timezone(dt.timedelta(hours=2)))
    texts = {
        "offset": moment.isoformat(),
        "utc": "2025-01-01T00:00:07.5Z",
        "bare": "2025-01-01 00:00:07.5",
    }
    times = [texts[form]] if form in texts else pa.array([moment], pa.timestamp(form, "UTC"))
    table = {"session": [1], "query": ["q"], "document": ["d"], "rank": [1], "click": [0], "time": times}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    [found] = lists(prepare_log(tmp_path / "log.parquet", tmp_path / "out"), "time")
    assert found["time"] == moment.timestamp()


def test_whole_number_sessions_stay_numbers_and_missing_keys_are_dropped(tmp_path: Path) -> None:
    table = pa.table({
        "session": pa.array([5, 5, None, 6], pa.int64()),
        "query": [10.0, 10.0, 10.0, None],  # what pandas makes of whole numbers with a gap
        "document": ["a", "b", "c", "d"],
        "rank": [1, 2, 1, 1],
        "click": [0, 1, 1, 0],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    log = prepare_log(tmp_path / "log.parquet", tmp_path / "out")
    assert lists(log) == [{"session": 5, "query": "10", "documents": ["a", "b"], "ranks": [1, 2], "clicks": [0, 1]}]
    assert log.metadata["report"]["dropped"]["rows_without_keys"] == 2


def test_one_session_with_two_queries_is_two_lists(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,0\ns,r,b,1,1\ns,q,c,2,1\n")
    found = lists(prepare_log(raw, tmp_path / "out"))
    assert [(x["query"], x["documents"]) for x in found] == [("q", ["a", "c"]), ("r", ["b"])]


def test_duplicates_and_gaps_are_counted(tmp_path: Path) -> None:
    raw = write(
        tmp_path / "log.csv",
        "s,q,a,1,0\n"
        "s,q,a,1,1\n"  # the same impression again, clicked: the click counts
        "s,q,b,1,1\n"  # another document at a taken rank: gone with its click
        "s,q,c,2,0\n"
        "s,q,a,4,1\n"  # shown again lower down: gone, its click is the second on a
        "s,q,d,5,0\n"
        "t,q,b,2,0\n"
        "u,q,b,1,0\n"
        "u,q,c,2,1\n",
    )
    log = prepare_log(raw, tmp_path / "out")
    assert [(x["documents"], x["ranks"], x["clicks"]) for x in lists(log)] == [
        (["a", "c", "d"], [1, 2, 5], [1, 0, 0]),
        (["b"], [2], [0]),
        (["b", "c"], [1, 2], [0, 1]),
    ]
    report = log.metadata["report"]
    assert report["dropped"]["duplicate_ranks"] == 2
    assert report["dropped"]["duplicate_documents"] == 1
    assert report["dropped"]["clicks_on_dropped_rows"] == 1
    assert report["repaired"]["repeated_clicks"] == 2
    assert report["noted"]["lists_with_gaps_in_ranks"] == 2
    assert (report["rows"], report["impressions"], report["clicks"]) == (9, 6, 2)


def test_a_document_loses_its_taken_rank_before_its_free_one(tmp_path: Path) -> None:
    log = prepare_log(write(tmp_path / "log.csv", "s,q,a,1,0\ns,q,b,1,0\ns,q,b,2,1\n"), tmp_path / "out")
    assert [(x["documents"], x["ranks"], x["clicks"]) for x in lists(log)] == [(["a", "b"], [1, 2], [0, 1])]


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [3, 7, 13]])
def test_runs_may_straddle_batches(sizes: Any) -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat([4, 9, 11, 30], [5, 1, 10, 7])
    rank = np.concatenate([np.arange(1, n + 1) for n in (5, 1, 10, 7)])
    table = pa.table({
        "list": owner,
        "rank": pa.array(rank, pa.int32()),
        "document": pa.array(rng.permutation(23), pa.int32()),
        "click": pa.array(rng.integers(0, 2, 23), pa.int8()),
        "x": rng.random(23, np.float32),
    })  # fmt: skip
    edges = np.concatenate([[0], np.cumsum(sizes)])
    batches = [table.slice(a, b - a).combine_chunks().to_batches()[0] for a, b in pairwise(edges)]
    blocks = list(pack_lists(batches, Repairs(), values=["x"], rows=2))
    assert [n for block in blocks for n in block.number.tolist()] == [4, 9, 11, 30]
    assert len(blocks) > 1
    for name in ("document", "click", "x"):
        rows = [row for block in blocks for row in block.lists(name).to_pylist()]
        assert [len(row) for row in rows] == [5, 1, 10, 7]
        assert [x for row in rows for x in row] == table[name].to_pylist()


def test_repairs_agree_with_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 3000
    columns = {
        "session": np.sort(rng.integers(0, 300, count)),
        "query": np.zeros(count, int),
        "document": rng.integers(0, 12, count),
        "rank": rng.integers(1, 15, count),
        "click": rng.integers(0, 2, count),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    expected: dict[int, list[list[int]]] = {}
    for session in np.unique(columns["session"]).tolist():
        rows = [tuple(int(columns[n][i]) for n in ("rank", "document", "click"))
                for i in np.flatnonzero(columns["session"] == session)]  # fmt: skip
        at_rank: dict[int, int] = {}
        for rank, document, _ in rows:
            at_rank.setdefault(rank, document)
        kept: dict[int, int] = {}
        for rank in sorted(at_rank):
            kept.setdefault(at_rank[rank], rank)
        clicked = {document for _, document, click in rows if click}
        ordered = sorted((rank, document) for document, rank in kept.items())
        expected[session] = [[r for r, _ in ordered], [d for _, d in ordered], [int(d in clicked) for _, d in ordered]]
    found = lists(prepare_log(tmp_path / "log.parquet", tmp_path / "out"))
    assert {x["session"]: [x["ranks"], [int(d) for d in x["documents"]], x["clicks"]] for x in found} == expected


# Features, context, labels


def test_features_and_context(tmp_path: Path) -> None:
    raw = write(
        tmp_path / "log.csv",
        "s,q,a,1,0,0.5,phone,3\ns,q,b,2,1,-1e3,phone,3\nt,q,a,1,0,2,,4.5\nu,q,b,1,0,7,desktop,0\n",
        HEADER + ",bm25,device,hour",
    )
    log = prepare_log(raw, tmp_path / "out", features=["bm25"], context=["device", "hour"])
    found = lists(log, "feature.bm25", "context.device", "context.hour")
    assert [x["feature.bm25"] for x in found] == [[0.5, -1000.0], [2.0], [7.0]]
    assert log.metadata["context"] == {
        "device": {"kind": "category", "values": ["desktop", "phone"]},
        "hour": {"kind": "number"},
    }
    assert [x["context.device"] for x in found] == [2, 0, 1]
    assert [x["context.hour"] for x in found] == [3.0, 4.5, 0.0]


def test_text_of_parquet_is_a_category_even_where_it_looks_like_a_number(tmp_path: Path) -> None:
    base = {"session": ["a", "b"], "query": ["q", "q"], "document": ["d", "d"], "rank": [1, 1], "click": [0, 1]}
    pq.write_table(pa.table(base | {"store": ["10", "9"], "hour": [1, 2]}), tmp_path / "log.parquet")
    log = prepare(tmp_path / "log.parquet", tmp_path / "out", context=["store", "hour"])
    assert log.metadata["context"]["store"] == {"kind": "category", "values": ["10", "9"]}
    assert log.metadata["context"]["hour"] == {"kind": "number"}


@pytest.mark.parametrize("style", ["qrels", "tsv", "csv"])
def test_labels_are_joined_by_query_and_document(tmp_path: Path, style: Any) -> None:
    text = {
        "qrels": "shoes 0 a 2\nshoes 0 c -1\nhats 0 nowhere 1\nshoes 0 a 2\n",
        "tsv": "Query\turl\trelevance\nshoes\ta\t2\nshoes\tc\t-1\nhats\tnowhere\t1\nshoes\ta\t2\n",
        "csv": "document,label,query\na,2,shoes\nc,-1,shoes\nnowhere,1,hats\na,2,shoes\nx,,hats\n",
    }
    (tmp_path / "grades").write_text(text[style])
    log = prepare_log(write(tmp_path / "log.csv", ROWS), tmp_path / "out", labels=tmp_path / "grades")
    grades = dict(
        zip(log.vocabulary.document_names.to_pylist(), present(log.vocabulary.labels)[1:].tolist(), strict=True)
    )
    assert grades["a"] == 2
    assert grades["c"] == 0  # junk counts as not relevant
    assert sum(not np.isnan(x) for x in grades.values()) == 2
    report = log.metadata["report"]["documents"]
    assert report["pairs_graded"] == 2
    assert report["grades_of_pairs_not_in_the_data"] == 1
    assert report["repeated_pairs"] == 1
    assert report["negative_read_as_0"] == 1
    assert present(log.collection()).document_names.to_pylist() == ["a", "c"]


def test_a_label_column_grades_the_pairs(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,0,3\ns,q,b,2,0,\nt,q,a,1,0,1\n", HEADER + ",label")
    log = prepare(raw, tmp_path / "out")
    np.testing.assert_array_equal(present(log.vocabulary.labels)[1:], np.array([3, np.nan], np.float32))
    assert log.metadata["report"]["documents"]["pairs_with_differing_grades"] == 1


# Ids, splits, determinism


def test_ids_of_a_vocabulary_are_kept_and_extended(tmp_path: Path) -> None:
    first = prepare(
        write(tmp_path / "a.csv", "s,q,a,1,0,x\ns,q,b,2,0,x\n", HEADER + ",device"),
        tmp_path / "a",
        context=["device"],
    )
    (tmp_path / "grades").write_text("q 0 b 1\nr 0 n 2\n")
    second = prepare(
        write(tmp_path / "b.csv", "u,r,n,1,1,a\nt,q,c,1,0,x\nt,q,b,2,1,x\n", HEADER + ",device"),
        tmp_path / "b",
        vocabulary=tmp_path / "a",
        context=["device"],
        labels=tmp_path / "grades",
    )
    assert second.vocabulary.query_names.to_pylist() == ["q", "r"]
    assert second.vocabulary.document_names.to_pylist() == ["a", "b", "c", "n"]
    assert second.vocabulary.document_query[1:].tolist() == [0, 0, 0, 1]
    assert present(second.vocabulary.parent)["fingerprint"] == first.vocabulary.fingerprint
    np.testing.assert_array_equal(present(second.vocabulary.labels)[1:], np.array([np.nan, 1, np.nan, 2], np.float32))
    # Categories keep their numbers too.
    assert second.metadata["context"]["device"]["values"] == ["x", "a"]
    seen = ClickLog.open(tmp_path / "b", vocabulary=first)
    assert [row["documents"] for batch in seen.columns(["documents"]) for row in batch.to_pylist()] == [[0], [0, 2]]


def test_a_third_log_extends_the_second(tmp_path: Path) -> None:
    prepare(write(tmp_path / "a.csv", "s,q,a,1,0\n"), tmp_path / "a")
    prepare(write(tmp_path / "b.csv", "s,q,b,1,0\n"), tmp_path / "b", vocabulary=tmp_path / "a")
    third = prepare(write(tmp_path / "c.csv", "s,q,c,1,0\ns,q,a,2,1\n"), tmp_path / "c", vocabulary=tmp_path / "b")
    assert third.vocabulary.document_names.to_pylist() == ["a", "b", "c"]
    assert ClickLog.open(tmp_path / "c", vocabulary=ClickLog.open(tmp_path / "a")).documents == 1


def letor(path: Path, queries: range, grades: range = range(3)) -> Path:
    """A file with a document of each grade per query."""
    path.write_text("".join(f"{y} qid:q{q} 1:{q} 2:{y} # docid = d{y}\n" for q in queries for y in grades))
    return path


def test_a_collection_against_a_vocabulary_has_its_own_lists_alone(tmp_path: Path) -> None:
    parent = prepare(letor(tmp_path / "a.txt", range(12), range(5)), tmp_path / "a", format="letor", split=HALVES)
    assert parent.metadata["splits"] == {part: len(Collection.open(tmp_path / "a", split=part)) for part in HALVES}
    raw = letor(tmp_path / "b.txt", range(10, 24))
    made = prepare_collection(raw, tmp_path / "b", format="letor", vocabulary=tmp_path / "a", split=HALVES)
    own = [f"q{q}" for q in range(10, 24)]
    assert made.query_names.to_pylist() == own
    assert made.metadata["labels"] == [0, 4]  # of the lists that both have, the grades of the parent stay
    parts = {part: Collection.open(tmp_path / "b", split=part).query_names.to_pylist() for part in HALVES}
    assert sorted(parts["train"] + parts["test"]) == sorted(own)
    assert made.metadata["splits"] == {part: len(names) for part, names in parts.items()}
    # The ids are those of the parent, and so is what it says of its queries to a third.
    assert made.vocabulary.query_names.to_pylist() == [f"q{q}" for q in range(24)]
    third = prepare_log(
        write(tmp_path / "log.csv", "s,q0,d1,1,1\ns,q0,new,2,0\n"), tmp_path / "c", vocabulary=tmp_path / "b"
    )
    assert present(third.collection()).query_names.to_pylist() == ["q0"]
    assert present(third.collection()).labels.tolist() == [0, 1, 2, 3, 4]
    made.save(tmp_path / "again")
    again = Collection.open(tmp_path / "again")
    assert again.identity["fingerprint"] != made.identity["fingerprint"]
    assert again.query_names.to_pylist() == own


@pytest.mark.parametrize("parent", ["log", "collection"])
def test_a_log_against_a_vocabulary_judges_its_own_queries_alone(tmp_path: Path, parent: Any) -> None:
    (tmp_path / "qrels").write_text("".join(f"q{q} 0 d{y} {y}\n" for q in range(4) for y in range(3)))
    if parent == "collection":
        prepare(tmp_path / "qrels", tmp_path / "a", format="qrels")
    else:
        rows = "".join(f"s{q},q{q},d{y},{y + 1},0\n" for q in range(4) for y in range(3))
        prepare(write(tmp_path / "a.csv", rows), tmp_path / "a", labels=tmp_path / "qrels")
    rows = "s,q1,d1,1,1\nt,q3,d0,1,1\nt,q3,d9,2,0\nu,q8,d0,1,0\n"
    raw = write(tmp_path / "b.csv", rows)
    log = prepare_log(raw, tmp_path / "b", vocabulary=tmp_path / "a", split={"x": 0.5, "y": 0.5}, split_by="query")
    for view in (log, *(ClickLog.open(tmp_path / "b", split=name) for name, n in log.metadata["splits"].items() if n)):
        judged = view.collection()
        assert present(judged).query_names.to_pylist() == ["q1", "q3"]
        assert present(judged).document_names.to_pylist() == ["d0", "d1", "d2"] * 2
    fresh = prepare_log(write(tmp_path / "c.csv", "s,q9,d0,1,1\n"), tmp_path / "c", vocabulary=tmp_path / "a")
    assert fresh.collection() is None


@pytest.mark.parametrize("by", ["session", "query", "time"])
def test_splits(tmp_path: Path, by: Any) -> None:
    count = 400
    rows = "".join(f"{i},q{i % 37},d,1,0,{count - i}\n" for i in range(count))
    raw = write(tmp_path / "log.csv", rows, HEADER + ",time")
    fractions = {"train": 0.75, "test": 0.25}
    log = prepare_log(raw, tmp_path / "out", split=fractions, split_by=by, seed=3)
    found = lists(log, "split", "time")
    assert log.metadata["splits"] == {n: sum(x["split"] == n for x in found) for n in fractions}
    part = {name: [x for x in found if x["split"] == name] for name in fractions}
    # By session 400 draws, by query 37 of them: four standard errors.
    slack = {"session": 4 * (0.75 * 0.25 / count) ** 0.5, "query": 4 * (0.75 * 0.25 / 37) ** 0.5, "time": 0.001}
    assert abs(len(part["train"]) / count - 0.75) <= slack[by]
    if by == "query":
        assert not {x["query"] for x in part["train"]} & {x["query"] for x in part["test"]}
    if by == "time":
        assert max(x["time"] for x in part["train"]) < min(x["time"] for x in part["test"])
    assert ClickLog.open(tmp_path / "out", split="test").sessions == len(part["test"])
    # The same seed and fractions, applied to the log as a view, agree.
    views = log.split(fractions, by=by, seed=3)
    assert {name: view.sessions for name, view in views.items()} == log.metadata["splits"]


def test_several_files_and_folders_are_one_log(tmp_path: Path) -> None:
    rows = ROWS.splitlines(keepends=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "part-0.csv", "".join(rows[:4]))
    write(parts / "part-1.csv", "".join(rows[4:]))  # goes on within a list
    (parts / "_SUCCESS").touch()
    whole = prepare_log(write(tmp_path / "log.csv", ROWS), tmp_path / "whole")
    folder = prepare_log(parts, tmp_path / "folder")
    named = prepare_log([parts / "part-0.csv", parts / "part-1.csv"], tmp_path / "named")
    assert lists(whole) == lists(folder) == lists(named)


def test_files_of_different_types_are_one_log(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "1,q,d,1,0\n")
    table = {"session": [2], "query": ["q"], "document": ["d"], "rank": [1.0], "click": [1]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    log = prepare_log([tmp_path / "a.csv", tmp_path / "b.parquet"], tmp_path / "out")
    assert [(x["session"], x["clicks"]) for x in lists(log)] == [("1", [0]), ("2", [1])]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    count = 30_000
    session = np.repeat(rng.permutation(count // 5), 5)
    table = pa.table({
        "session": session,
        "query": session % 97,
        "document": rng.integers(0, 400, count),
        "rank": np.tile(np.arange(1, 6), count // 5),
        "click": rng.integers(0, 2, count),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=999)
    for name in ("one", "two"):
        prepare(tmp_path / "log.parquet", tmp_path / name, split={"a": 0.5, "b": 0.5}, memory_limit="500MB")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_overwrite_replaces_only_what_it_made(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    prepare(raw, tmp_path / "out")
    before = digest(tmp_path / "out")
    with pytest.raises(DataError, match="something already stands here"):
        prepare(raw, tmp_path / "out")
    assert digest(tmp_path / "out") == before
    other = prepare_log(write(tmp_path / "log2.csv", "s,q,d,1,0\n"), tmp_path / "out", overwrite=True)
    assert other.sessions == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="neither"):
        prepare(raw, tmp_path / "mine", overwrite=True)
    assert left(tmp_path / "mine") == ["notes.txt"]
