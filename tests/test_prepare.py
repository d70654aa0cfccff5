"""`prepare` on long tables: what becomes of the rows, the ids, and what it says about bad input."""

from __future__ import annotations

import _thread
import datetime as dt
import gzip
import hashlib
import json
import signal
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ultr import cli
from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.errors import ConfigError, DataError
from ultr.ingest.engine import Engine, EngineError, engine_errors
from ultr.ingest.packing import Repairs, pack_lists
from ultr.ingest.preparing import prepare

HEADER = "session,query,document,rank,click"
ROWS = """\
s2,shoes,a,1,0
s2,shoes,b,2,1
s1,hats,x,1,1
s1,hats,y,2,0
s1,hats,z,3,0
s3,shoes,b,1,0
s3,shoes,c,2,0
"""
HALVES = {"train": 0.5, "test": 0.5}


def write(path: Path, text: str, header: str = HEADER) -> Path:
    path.write_text(f"{header}\n{text}")
    return path


def lists(log: ClickLog, *more: str) -> list[dict[str, Any]]:
    """The lists of a log with names instead of ids."""
    queries = pa.chunked_array(log.vocabulary.query_names).to_pylist()
    documents = [None, *log.vocabulary.document_names.to_pylist()]
    names = ["session", "query", "documents", "ranks", "clicks", *more]
    out = [row for batch in log.columns(names) for row in batch.to_pylist()]
    for row in out:
        row["query"] = queries[row["query"]]
        row["documents"] = [documents[i] for i in row["documents"]]
    return out


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# What becomes of the rows


def test_rows_become_lists_in_order_of_appearance(tmp_path):
    log = prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out")
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


def test_the_order_of_rows_within_a_list_is_that_of_their_ranks(tmp_path):
    rows = ROWS.splitlines()
    shuffled = write(tmp_path / "log.csv", "\n".join([rows[1], rows[4], rows[0], rows[3], rows[2], rows[6], rows[5]]))
    log = prepare(shuffled, tmp_path / "out")
    assert [(x["session"], x["documents"]) for x in lists(log)] == [
        ("s2", ["a", "b"]),
        ("s1", ["x", "y", "z"]),
        ("s3", ["b", "c"]),
    ]


def test_csv_tsv_gzip_and_parquet_agree(tmp_path):
    table = [line.split(",") for line in ROWS.splitlines()]
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.tsv", ROWS.replace(",", "\t"), HEADER.replace(",", "\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(f"{HEADER}\n{ROWS}".replace("\n", "\r\n").encode()))
    columns = {name: [row[i] for row in table] for i, name in enumerate(HEADER.split(","))}
    typed = columns | {"rank": [int(r) for r in columns["rank"]], "click": [c == "1" for c in columns["click"]]}
    pq.write_table(pa.table(typed), tmp_path / "d.parquet")
    found = [prepare(p, tmp_path / f"out-{p.name}") for p in sorted(tmp_path.glob("?.*"))]
    assert len(found) == 4
    assert all(lists(log) == lists(found[0]) for log in found[1:])
    assert len({log.vocabulary.fingerprint for log in found}) == 1


def test_columns_are_mapped_by_name(tmp_path):
    raw = write(tmp_path / "log.csv", "7,q,d,1,true,100\n7,q,e,2,False,90\n", "sid,text,url,pos,clicked,when")
    names = {"session": "sid", "query": "text", "document": "url", "rank": "pos", "click": "clicked", "time": "when"}
    log = prepare(raw, tmp_path / "out", columns=names)
    assert lists(log, "time") == [
        {"session": "7", "query": "q", "documents": ["d", "e"], "ranks": [1, 2], "clicks": [1, 0], "time": 90.0}
    ]


@pytest.mark.parametrize("form", ["us", "ns", "offset", "utc", "bare"])
def test_dates_become_seconds(tmp_path, monkeypatch, form):
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
    [found] = lists(prepare(tmp_path / "log.parquet", tmp_path / "out"), "time")
    assert found["time"] == moment.timestamp()


def test_whole_number_sessions_stay_numbers_and_missing_keys_are_dropped(tmp_path):
    table = pa.table({
        "session": pa.array([5, 5, None, 6], pa.int64()),
        "query": [10.0, 10.0, 10.0, None],  # what pandas makes of whole numbers with a gap
        "document": ["a", "b", "c", "d"],
        "rank": [1, 2, 1, 1],
        "click": [0, 1, 1, 0],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    log = prepare(tmp_path / "log.parquet", tmp_path / "out")
    assert lists(log) == [{"session": 5, "query": "10", "documents": ["a", "b"], "ranks": [1, 2], "clicks": [0, 1]}]
    assert log.metadata["report"]["dropped"]["rows_without_keys"] == 2


def test_one_session_with_two_queries_is_two_lists(tmp_path):
    raw = write(tmp_path / "log.csv", "s,q,a,1,0\ns,r,b,1,1\ns,q,c,2,1\n")
    found = lists(prepare(raw, tmp_path / "out"))
    assert [(x["query"], x["documents"]) for x in found] == [("q", ["a", "c"]), ("r", ["b"])]


def test_duplicates_and_gaps_are_counted(tmp_path):
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
    log = prepare(raw, tmp_path / "out")
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


def test_a_document_loses_its_taken_rank_before_its_free_one(tmp_path):
    log = prepare(write(tmp_path / "log.csv", "s,q,a,1,0\ns,q,b,1,0\ns,q,b,2,1\n"), tmp_path / "out")
    assert [(x["documents"], x["ranks"], x["clicks"]) for x in lists(log)] == [(["a", "b"], [1, 2], [0, 1])]


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [3, 7, 13]])
def test_runs_may_straddle_batches(sizes):
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


def test_repairs_agree_with_a_plain_loop(tmp_path):
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
    found = lists(prepare(tmp_path / "log.parquet", tmp_path / "out"))
    assert {x["session"]: [x["ranks"], [int(d) for d in x["documents"]], x["clicks"]] for x in found} == expected


# Features, context, labels


def test_features_and_context(tmp_path):
    raw = write(
        tmp_path / "log.csv",
        "s,q,a,1,0,0.5,phone,3\ns,q,b,2,1,-1e3,phone,3\nt,q,a,1,0,2,,4.5\nu,q,b,1,0,7,desktop,0\n",
        HEADER + ",bm25,device,hour",
    )
    log = prepare(raw, tmp_path / "out", features=["bm25"], context=["device", "hour"])
    found = lists(log, "feature.bm25", "context.device", "context.hour")
    assert [x["feature.bm25"] for x in found] == [[0.5, -1000.0], [2.0], [7.0]]
    assert log.metadata["context"] == {
        "device": {"kind": "category", "values": ["desktop", "phone"]},
        "hour": {"kind": "number"},
    }
    assert [x["context.device"] for x in found] == [2, 0, 1]
    assert [x["context.hour"] for x in found] == [3.0, 4.5, 0.0]


def test_text_of_parquet_is_a_category_even_where_it_looks_like_a_number(tmp_path):
    base = {"session": ["a", "b"], "query": ["q", "q"], "document": ["d", "d"], "rank": [1, 1], "click": [0, 1]}
    pq.write_table(pa.table(base | {"store": ["10", "9"], "hour": [1, 2]}), tmp_path / "log.parquet")
    log = prepare(tmp_path / "log.parquet", tmp_path / "out", context=["store", "hour"])
    assert log.metadata["context"]["store"] == {"kind": "category", "values": ["10", "9"]}
    assert log.metadata["context"]["hour"] == {"kind": "number"}


@pytest.mark.parametrize("style", ["qrels", "tsv", "csv"])
def test_labels_are_joined_by_query_and_document(tmp_path, style):
    text = {
        "qrels": "shoes 0 a 2\nshoes 0 c -1\nhats 0 nowhere 1\nshoes 0 a 2\n",
        "tsv": "Query\turl\trelevance\nshoes\ta\t2\nshoes\tc\t-1\nhats\tnowhere\t1\nshoes\ta\t2\n",
        "csv": "document,label,query\na,2,shoes\nc,-1,shoes\nnowhere,1,hats\na,2,shoes\nx,,hats\n",
    }
    (tmp_path / "grades").write_text(text[style])
    log = prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out", labels=tmp_path / "grades")
    grades = dict(zip(log.vocabulary.document_names.to_pylist(), log.vocabulary.labels[1:].tolist(), strict=True))
    assert grades["a"] == 2
    assert grades["c"] == 0  # junk counts as not relevant
    assert sum(not np.isnan(x) for x in grades.values()) == 2
    report = log.metadata["report"]["documents"]
    assert report["pairs_graded"] == 2
    assert report["grades_of_pairs_not_in_the_data"] == 1
    assert report["repeated_pairs"] == 1
    assert report["negative_read_as_0"] == 1
    assert log.collection().document_names.to_pylist() == ["a", "c"]


def test_a_label_column_grades_the_pairs(tmp_path):
    raw = write(tmp_path / "log.csv", "s,q,a,1,0,3\ns,q,b,2,0,\nt,q,a,1,0,1\n", HEADER + ",label")
    log = prepare(raw, tmp_path / "out")
    np.testing.assert_array_equal(log.vocabulary.labels[1:], np.array([3, np.nan], np.float32))
    assert log.metadata["report"]["documents"]["pairs_with_differing_grades"] == 1


# Ids, splits, determinism


def test_ids_of_a_vocabulary_are_kept_and_extended(tmp_path):
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
    assert second.vocabulary.parent["fingerprint"] == first.vocabulary.fingerprint
    np.testing.assert_array_equal(second.vocabulary.labels[1:], np.array([np.nan, 1, np.nan, 2], np.float32))
    # Categories keep their numbers too.
    assert second.metadata["context"]["device"]["values"] == ["x", "a"]
    seen = ClickLog.open(tmp_path / "b", vocabulary=first)
    assert [row["documents"] for batch in seen.columns(["documents"]) for row in batch.to_pylist()] == [[0], [0, 2]]


def test_a_third_log_extends_the_second(tmp_path):
    prepare(write(tmp_path / "a.csv", "s,q,a,1,0\n"), tmp_path / "a")
    prepare(write(tmp_path / "b.csv", "s,q,b,1,0\n"), tmp_path / "b", vocabulary=tmp_path / "a")
    third = prepare(write(tmp_path / "c.csv", "s,q,c,1,0\ns,q,a,2,1\n"), tmp_path / "c", vocabulary=tmp_path / "b")
    assert third.vocabulary.document_names.to_pylist() == ["a", "b", "c"]
    assert ClickLog.open(tmp_path / "c", vocabulary=ClickLog.open(tmp_path / "a")).documents == 1


def letor(path: Path, queries: range, grades: range = range(3)) -> Path:
    """A file with a document of each grade per query."""
    path.write_text("".join(f"{y} qid:q{q} 1:{q} 2:{y} # docid = d{y}\n" for q in queries for y in grades))
    return path


def test_a_collection_against_a_vocabulary_has_its_own_lists_alone(tmp_path):
    parent = prepare(letor(tmp_path / "a.txt", range(12), range(5)), tmp_path / "a", format="letor", split=HALVES)
    assert parent.metadata["splits"] == {part: len(Collection.open(tmp_path / "a", split=part)) for part in HALVES}
    raw = letor(tmp_path / "b.txt", range(10, 24))
    made = prepare(raw, tmp_path / "b", format="letor", vocabulary=tmp_path / "a", split=HALVES)
    own = [f"q{q}" for q in range(10, 24)]
    assert made.query_names.to_pylist() == own
    assert made.metadata["labels"] == [0, 4]  # of the lists that both have, the grades of the parent stay
    parts = {part: Collection.open(tmp_path / "b", split=part).query_names.to_pylist() for part in HALVES}
    assert sorted(parts["train"] + parts["test"]) == sorted(own)
    assert made.metadata["splits"] == {part: len(names) for part, names in parts.items()}
    # The ids are those of the parent, and so is what it says of its queries to a third.
    assert made.vocabulary.query_names.to_pylist() == [f"q{q}" for q in range(24)]
    third = prepare(
        write(tmp_path / "log.csv", "s,q0,d1,1,1\ns,q0,new,2,0\n"), tmp_path / "c", vocabulary=tmp_path / "b"
    )
    assert third.collection().query_names.to_pylist() == ["q0"]
    assert third.collection().labels.tolist() == [0, 1, 2, 3, 4]
    made.save(tmp_path / "again")
    again = Collection.open(tmp_path / "again")
    assert again.identity["fingerprint"] != made.identity["fingerprint"]
    assert again.query_names.to_pylist() == own


@pytest.mark.parametrize("parent", ["log", "collection"])
def test_a_log_against_a_vocabulary_judges_its_own_queries_alone(tmp_path, parent):
    (tmp_path / "qrels").write_text("".join(f"q{q} 0 d{y} {y}\n" for q in range(4) for y in range(3)))
    if parent == "collection":
        prepare(tmp_path / "qrels", tmp_path / "a", format="qrels")
    else:
        rows = "".join(f"s{q},q{q},d{y},{y + 1},0\n" for q in range(4) for y in range(3))
        prepare(write(tmp_path / "a.csv", rows), tmp_path / "a", labels=tmp_path / "qrels")
    rows = "s,q1,d1,1,1\nt,q3,d0,1,1\nt,q3,d9,2,0\nu,q8,d0,1,0\n"
    raw = write(tmp_path / "b.csv", rows)
    log = prepare(raw, tmp_path / "b", vocabulary=tmp_path / "a", split={"x": 0.5, "y": 0.5}, split_by="query")
    for view in (log, *(ClickLog.open(tmp_path / "b", split=name) for name, n in log.metadata["splits"].items() if n)):
        judged = view.collection()
        assert judged.query_names.to_pylist() == ["q1", "q3"]
        assert judged.document_names.to_pylist() == ["d0", "d1", "d2"] * 2
    fresh = prepare(write(tmp_path / "c.csv", "s,q9,d0,1,1\n"), tmp_path / "c", vocabulary=tmp_path / "a")
    assert fresh.collection() is None


@pytest.mark.parametrize("by", ["session", "query", "time"])
def test_splits(tmp_path, by):
    count = 400
    rows = "".join(f"{i},q{i % 37},d,1,0,{count - i}\n" for i in range(count))
    raw = write(tmp_path / "log.csv", rows, HEADER + ",time")
    fractions = {"train": 0.75, "test": 0.25}
    log = prepare(raw, tmp_path / "out", split=fractions, split_by=by, seed=3)
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


def test_several_files_and_folders_are_one_log(tmp_path):
    rows = ROWS.splitlines(keepends=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "part-0.csv", "".join(rows[:4]))
    write(parts / "part-1.csv", "".join(rows[4:]))  # goes on within a list
    (parts / "_SUCCESS").touch()
    whole = prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "whole")
    folder = prepare(parts, tmp_path / "folder")
    named = prepare([parts / "part-0.csv", parts / "part-1.csv"], tmp_path / "named")
    assert lists(whole) == lists(folder) == lists(named)


def test_files_of_different_types_are_one_log(tmp_path):
    write(tmp_path / "a.csv", "1,q,d,1,0\n")
    table = {"session": [2], "query": ["q"], "document": ["d"], "rank": [1.0], "click": [1]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    log = prepare([tmp_path / "a.csv", tmp_path / "b.parquet"], tmp_path / "out")
    assert [(x["session"], x["clicks"]) for x in lists(log)] == [("1", [0]), ("2", [1])]


def test_the_same_input_gives_the_same_bytes(tmp_path):
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


def test_overwrite_replaces_only_what_it_made(tmp_path):
    raw = write(tmp_path / "log.csv", ROWS)
    prepare(raw, tmp_path / "out")
    before = digest(tmp_path / "out")
    with pytest.raises(DataError, match="something already stands here"):
        prepare(raw, tmp_path / "out")
    assert digest(tmp_path / "out") == before
    other = prepare(write(tmp_path / "log2.csv", "s,q,d,1,0\n"), tmp_path / "out", overwrite=True)
    assert other.sessions == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="neither"):
        prepare(raw, tmp_path / "mine", overwrite=True)
    assert left(tmp_path / "mine") == ["notes.txt"]


# Bad input: (rows, header, options) -> what the error says


CSV_ERRORS = {
    "missing column": ("s,q,d,1\n", "session,query,document,rank", {}, None, "click", "found the columns"),
    "mapped to nothing": ("s,q,d,1,0\n", HEADER, {"columns": {"document": "url"}}, None, "url", "for 'document'"),
    "missing feature": ("s,q,d,1,0\n", HEADER, {"features": ["bm25"]}, None, "bm25", "expected a column 'bm25'"),
    "rank a word": ("s,q,d,1,0\ns,q,e,x,0\n", HEADER, {}, 3, "rank", "a whole number from 1 .* found 'x'"),
    "rank 0": ("s,q,d,0,0\n", HEADER, {}, 2, "rank", "found '0'. Ranks count from 1"),
    "rank a fraction": ("s,q,d,1.5,0\n", HEADER, {}, 2, "rank", "found '1.5'"),
    "rank missing": ("s,q,d,1,0\ns,q,e,,0\n", HEADER, {}, 3, "rank", "found nothing"),
    "rank too large": ("s,q,d,3000000000,0\n", HEADER, {}, 2, "rank", "found '3000000000'"),
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
def test_bad_rows_are_named_and_nothing_is_left(tmp_path, name):
    rows, header, options, row, field, message = CSV_ERRORS[name]
    raw = write(tmp_path / "log.csv", rows, header)
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", **options)
    assert caught.value.row == row
    assert caught.value.field == field
    assert str(caught.value.file) == str(raw)
    assert left(tmp_path) == ["log.csv"]


def test_rows_are_lines_of_the_file_whatever_stands_above(tmp_path):
    raw = write(tmp_path / "log.csv", 's,q,"two\nlines",1,0\n\ns,q,e,2,0\ns,q,f,x,0\n')
    with pytest.raises(DataError, match="found 'x'") as caught:
        prepare(raw, tmp_path / "out")
    line = raw.read_text().splitlines()[caught.value.row - 1]
    assert line == "s,q,f,x,0"
    raw.write_text(raw.read_text().replace("f,x,0", "f,3"))
    with pytest.raises(DataError, match="expected 5 values") as caught:
        prepare(raw, tmp_path / "out")
    assert raw.read_text().splitlines()[caught.value.row - 1] == "s,q,f,3"


def test_the_file_among_several_is_named(tmp_path):
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
def test_bad_values_of_parquet(tmp_path, column, values, message):
    table = {"session": ["s", "s"], "query": ["q", "q"], "document": ["a", "b"], "rank": [1, 2], "click": [0, 1]}
    pq.write_table(pa.table(table | {"f": [0.0, 1.0]} | {column: values}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out", features=["f"])
    assert (caught.value.file, caught.value.row, caught.value.field) == (tmp_path / "log.parquet", 2, column)
    assert left(tmp_path) == ["log.parquet"]


def test_a_column_of_lists_is_not_a_key(tmp_path):
    table = {"session": ["s"], "query": ["q"], "document": [["a"]], "rank": [1], "click": [0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="expected text or numbers, found array") as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out")
    assert caught.value.field == "document"


def test_damaged_and_missing_files(tmp_path):
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


def test_bad_grades_are_named(tmp_path):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "expected a format of .*'table', 'yandex'.*, found 'xml'"),
        ({"memory_limit": "lots"}, "expected a memory limit such as '4GB', found 'lots'"),
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
def test_bad_options_are_named(tmp_path, options, message):
    raw = write(tmp_path / "log.csv", ROWS)
    with pytest.raises(ConfigError, match=message):
        prepare(raw, tmp_path / "out", **options)
    assert left(tmp_path) == ["log.csv"]


def test_a_failed_write_leaves_the_old_log(tmp_path, monkeypatch):
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


def test_progress_is_shown_on_standard_error(tmp_path, capsys):
    prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out", progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert not shown.out


# Interruptions, empty splits, warnings, and what the command line prints


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Query interrupted"),
        duckdb.InterruptException("INTERRUPT Error: Interrupted!"),
        pa.ArrowInvalid("INTERRUPT Error: Interrupted!"),
        pa.ArrowCancelled("Operation cancelled"),
    ],
)
def test_what_the_engine_makes_of_an_interruption_is_one(error):
    with pytest.raises(KeyboardInterrupt), engine_errors():
        raise error


def test_other_errors_of_the_engine_are_none():
    with pytest.raises(RuntimeError, match="something else"), engine_errors():
        raise RuntimeError("something else")
    with pytest.raises(EngineError, match="Invalid Input"), engine_errors():
        raise duckdb.InvalidInputException("Invalid Input Error: no")


def test_an_interruption_leaves_nothing(tmp_path):
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


def test_an_empty_split_stays_and_is_warned_about(tmp_path):
    raw = write(tmp_path / "log.csv", "s,q,a,1,1\nt,q,b,1,0\n")
    log = prepare(raw, tmp_path / "out", split={"valid": 0.01, "train": 0.99}, split_by="query")
    assert log.metadata["splits"] == {"valid": 0, "train": 2}
    assert log.metadata["report"]["warnings"] == ["the split 'valid' is empty"]
    with pytest.raises(DataError, match="the split 'valid' is empty: it has none of the 2 sessions"):
        ClickLog.open(tmp_path / "out", split="valid")


def test_an_empty_split_of_a_collection_stays(tmp_path):
    (tmp_path / "grades.txt").write_text("q 0 a 1\nq 0 b 0\n")
    made = prepare(tmp_path / "grades.txt", tmp_path / "out", format="qrels", split={"valid": 0.01, "train": 0.99})
    assert made.metadata["splits"] == {"valid": 0, "train": 1}
    assert made.metadata["report"]["warnings"] == ["the split 'valid' is empty"]
    with pytest.raises(DataError, match="the split 'valid' is empty: it has none of the 1 graded lists"):
        Collection.open(tmp_path / "out", split="valid")
    made.save(tmp_path / "again")
    assert Collection.open(tmp_path / "again").metadata["splits"] == {"valid": 0, "train": 1}


def test_splits_of_a_collection_count_the_lists_that_it_has(tmp_path):
    prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "log")
    (tmp_path / "grades.txt").write_text("hats 0 x 1\n")  # shoes is known, and has no grades
    made = prepare(
        tmp_path / "grades.txt", tmp_path / "out", format="qrels", vocabulary=tmp_path / "log", split={"all": 1.0}
    )
    assert made.metadata["splits"] == {"all": 1} == {"all": len(Collection.open(tmp_path / "out", split="all"))}


def test_grades_that_match_nothing_are_warned_about(tmp_path):
    raw = write(tmp_path / "log.csv", ROWS)
    (tmp_path / "grades.txt").write_text("Shoes 0 a 2\nhats 0 nowhere 1\n")
    [warning] = prepare(raw, tmp_path / "a", labels=tmp_path / "grades.txt").metadata["report"]["warnings"]
    assert warning.startswith("none of the 2 grades in grades.txt is about a query and document of the data")
    (tmp_path / "grades.txt").write_text("shoes 0 a 2\n")
    assert prepare(raw, tmp_path / "b", labels=tmp_path / "grades.txt").metadata["report"]["warnings"] == []


def test_a_log_without_clicks_and_dropped_rows_are_warned_about(tmp_path):
    silent = prepare(write(tmp_path / "a.csv", "s,q,a,1,0\n"), tmp_path / "a")
    assert silent.metadata["report"]["warnings"] == ["the log has not a single click: nothing can be learned from it"]
    rows = "s,q,a,1,1\n,q,b,1,0\n,q,b,2,0\ns,q,c,1,0\n"
    lossy = prepare(write(tmp_path / "b.csv", rows), tmp_path / "b")
    assert lossy.metadata["report"]["warnings"] == ["3 of 4 rows were dropped, 2 of them as rows without keys"]
    half = prepare(write(tmp_path / "c.csv", "s,q,a,1,1\n,q,b,1,0\n"), tmp_path / "c")
    assert half.metadata["report"]["warnings"] == []


def test_clicks_on_what_was_not_shown_are_warned_about(tmp_path):
    raw = tmp_path / "log.txt"
    raw.write_text("1\t0\tQ\tq\t0\ta\tb\n1\t1\tC\ta\n1\t2\tC\tx\n1\t3\tC\ty\n")
    log = prepare(raw, tmp_path / "out", format="yandex")
    assert log.metadata["report"]["warnings"] == [
        "2 of 3 clicks were dropped, 2 of them as clicks on documents not shown"
    ]


def test_repeated_graded_rows_are_warned_about(tmp_path):
    (tmp_path / "grades.txt").write_text("q 0 a 1\n" * 3)
    made = prepare(tmp_path / "grades.txt", tmp_path / "out", format="qrels")
    assert made.metadata["report"]["warnings"] == ["2 of 3 rows were dropped, 2 of them as repeated pairs"]


@pytest.mark.parametrize("text", ["shoes 0 a good\n", "query,document,label\nshoes,a,good\n"])
def test_a_word_as_a_grade_is_not_a_number(tmp_path, text):
    raw = write(tmp_path / "log.csv", ROWS)
    (tmp_path / "grades").write_text(text)
    with pytest.raises(DataError, match=r"found 'good', which is not a number\. Write the grades as numbers") as caught:
        prepare(raw, tmp_path / "out", labels=tmp_path / "grades")
    assert "Scale" not in str(caught.value)
    (tmp_path / "grades").write_text(text.replace("good", "99"))
    with pytest.raises(DataError, match=r"found '99'\. Scale the grades"):
        prepare(raw, tmp_path / "out", labels=tmp_path / "grades")


def test_what_to_do_names_the_option_first(tmp_path):
    raw = write(tmp_path / "log.csv", "s,q,d,1\n", "session,query,document,rank")
    with pytest.raises(DataError, match=r"Name it with --click COLUMN \(in Python: columns=\{'click': \.\.\.\}\)"):
        prepare(raw, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match=r"pass --overwrite \(in Python: overwrite=True\)"):
        prepare(raw, tmp_path / "full")


def test_a_prepared_folder_is_no_raw_data(tmp_path):
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


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", *map(str, arguments)])
    shown = capsys.readouterr()
    return stop.value.code or 0, shown.out, shown.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=.5,train=.5", "expected each split once, found 'train' twice"),
        ("train=.5, train=.5,x=.5", "expected each split once, found 'train' twice"),
        ("=.5,x=.5", "expected NAME=SHARE"),
        ("train", "expected NAME=SHARE"),
    ],
)
def test_splits_are_named_once(tmp_path, capsys, text, message):
    raw = write(tmp_path / "log.csv", ROWS)
    code, out, err = call(capsys, raw, "--out", tmp_path / "out", "--split", text)
    assert (code, out) == (2, "")
    assert message in err
    assert left(tmp_path) == ["log.csv"]


def test_the_command_says_everything_once(tmp_path, capsys):
    raw, more = write(tmp_path / "log.csv", ROWS), write(tmp_path / "more.csv", "s9,q,d,1,0\n")
    code, out, err = call(capsys, raw, more, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert len(set(lines)) == len(lines)
    for line in ("sessions: 4", "impressions: 8", "clicks: 2", "rows: 8", "inputs: log.csv, more.csv"):
        assert lines.count(line) == 1
    assert "warnings" not in out


def test_the_command_prints_warnings_beside_the_result(tmp_path, capsys):
    raw = write(tmp_path / "log.csv", "s,q,a,1,0\n")
    sentence = "the log has not a single click: nothing can be learned from it"
    code, out, err = call(capsys, raw, "--out", tmp_path / "a", "--json")
    assert (code, err) == (0, f"warning: {sentence}\n")
    assert json.loads(out)["report"]["warnings"] == [sentence]
    code, out, err = call(capsys, raw, "--out", tmp_path / "b")
    assert (code, err) == (0, f"warning: {sentence}\n")
    assert sentence not in out
