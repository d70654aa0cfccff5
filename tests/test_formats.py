"""The formats that `prepare` reads: small files made by hand, and the real collections where they are present."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from narrowing import present
from raw_logs import prepare_collection, prepare_log

from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.errors import ConfigError, DataError
from ultr.ingest.preparing import prepare
from ultr.ingest.readers.letor import parse_letor


def lists(log: ClickLog, *more: str) -> list[tuple[Any, ...]]:
    """(query, documents, ranks, clicks, ...) of each list, with names instead of ids."""
    queries = log.vocabulary.query_names.to_pylist()
    documents = [None, *log.vocabulary.document_names.to_pylist()]
    names = ["query", "documents", "ranks", "clicks", *more]
    rows = [row for batch in log.columns(names) for row in batch.to_pylist()]
    return [
        (queries[row["query"]], [documents[i] for i in row["documents"]], *(row[n] for n in names[2:])) for row in rows
    ]


def ctr_by_rank(log: ClickLog) -> np.ndarray:
    shown, clicked = np.zeros(log.ranks), np.zeros(log.ranks)
    for batch in log.columns(["ranks", "clicks"]):
        ranks = batch["ranks"].flatten().to_numpy() - 1
        np.add.at(shown, ranks, 1)
        np.add.at(clicked, ranks, batch["clicks"].flatten().to_numpy())
    return clicked / shown


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


# Yandex


def test_yandex_clicks_belong_to_the_latest_list_that_showed_the_url(tmp_path: Path) -> None:
    raw = text(
        tmp_path / "log.tsv",
        "1\t0\tQ\tq1\t7\ta\tb\tc\n"
        "1\t5\tC\tb\n"
        "1\t9\tQ\tq2\t7\tb\td\t\t\n"  # padded with tabs
        "1\t10\tC\tb\t\t\t\t\n"  # the second list showed b last
        "1\t11\tC\tb\n"
        "1\t12\tC\tc\n"  # only the first list showed c
        "1\t13\tC\tz\n"
        "2\t0\tC\ta\n"  # before any list of its session
        "2\t1\tQ\tq1\t8\ta\tc\ta\n"
        "2\t2\tC\ta\n"
        "2\t3\tQ\tq3\t8\n"
        "\n"
        "1\t20\tC\td\n",
    )
    log = prepare_log(raw, tmp_path / "out", format="yandex", context=["region"])
    assert lists(log, "session", "time", "context.region") == [
        ("q1", ["a", "b", "c"], [1, 2, 3], [0, 1, 1], "1", 0.0, 1),
        ("q2", ["b", "d"], [1, 2], [1, 1], "1", 9.0, 1),
        ("q1", ["a", "c"], [1, 2], [1, 0], "2", 1.0, 2),
    ]
    assert log.metadata["context"]["region"]["values"] == ["7", "8"]
    report = log.metadata["report"]
    assert report["rows"] == 12
    assert report["dropped"] == {
        "rows_without_keys": 0,
        "clicks_on_documents_not_shown": 2,
        "empty_lists": 1,
        "duplicate_ranks": 0,
        "duplicate_documents": 1,
        "clicks_on_dropped_rows": 0,
    }
    assert report["repaired"]["repeated_clicks"] == 1


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("1\t0\tX\tq", None, "expected 'session time Q query region url...'"),
        ("1\t0\tQ\tq1", None, "found '1.t0.tQ.tq1'"),
        ("1 0 C a", None, "between tabs, found '1 0 C a'"),
        ("1\tnoon\tQ\tq1\t7\ta", "time", "a number or a date and time, found 'noon'"),
    ],
)
def test_bad_yandex_lines(tmp_path: Path, line: Any, field: Any, message: Any) -> None:
    raw = text(tmp_path / "log.tsv", f"1\t0\tQ\tq1\t7\ta\n\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", format="yandex")
    assert (caught.value.file, caught.value.row, caught.value.field) == (raw, 3, field)
    assert not (tmp_path / "out").exists()


def test_yandex_sample(tmp_path: Path) -> None:
    raw = text(
        tmp_path / "log.txt",
        "5_1\ta,b,c : c , a; 5_1\tb,a :; 5_1\ta,b : b , b , zz\n6_1\ta :a;\n7_1\t : a; 7_1\td : d\n",
    )
    log = prepare_log(raw, tmp_path / "out", format="yandex-sample")
    assert lists(log, "session") == [
        ("5_1", ["a", "b", "c"], [1, 2, 3], [1, 0, 1], 0),
        ("5_1", ["b", "a"], [1, 2], [0, 0], 1),
        ("5_1", ["a", "b"], [1, 2], [0, 1], 2),
        ("6_1", ["a"], [1], [1], 3),
        ("7_1", ["d"], [1], [1], 5),
    ]
    report = log.metadata["report"]
    assert report["dropped"]["clicks_on_documents_not_shown"] == 2
    assert report["dropped"]["empty_lists"] == 1
    assert report["repaired"]["repeated_clicks"] == 1
    bad = text(tmp_path / "bad.txt", "5_1\ta,b : a\n5_1\ta,b : a; 5_1 a,b\n")
    with pytest.raises(DataError, match="between semicolons, found '5_1 a,b'") as caught:
        prepare(bad, tmp_path / "bad", format="yandex-sample")
    assert caught.value.row == 2


# TREC sessions


def test_trec_sessions_with_and_without_grades(tmp_path: Path) -> None:
    plain = text(tmp_path / "a.txt", "9\t1\t[11, 12]\t[1, 3]\t[0, 1]\n9\t2\t[]\t[]\t[]\n")
    graded = text(tmp_path / "b.txt", "9\t1\t[12, 13]\t[1, 1]\t[1, 0]\t[4, -2]\n")
    log = prepare_log([plain, graded], tmp_path / "out", format="trec-session", features=["vertical"])
    assert lists(log, "session", "feature.vertical") == [
        ("1", ["11", "12"], [1, 2], [0, 1], "9", [1.0, 3.0]),
        ("1", ["12", "13"], [1, 2], [1, 0], "9", [1.0, 1.0]),
    ]
    np.testing.assert_array_equal(present(log.vocabulary.labels)[1:], np.array([np.nan, 4, 0], np.float32))
    report = log.metadata["report"]
    assert report["dropped"]["empty_lists"] == 1
    assert report["documents"]["negative_read_as_0"] == 1
    alone = prepare(plain, tmp_path / "plain", format="trec-session")
    assert alone.vocabulary.labels is None


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("9\t1\t[11, 12]\t[1, 1]\t[0]", None, "as many values in each bracket"),
        ("9\t1\t[11, 12]\t[1, 1]\t[0, 1]\t[1]", None, "as many values in each bracket"),
        ("9\t1\t[11]", None, "between tabs"),
        ("9\t1\t[11]\t[1]\t[3]", "click", "expected 0 or 1, found '3'"),
        ("9\t1\t[11]\t[1]\t[1]\t[high]", "label", "found 'high'"),
    ],
)
def test_bad_trec_lines(tmp_path: Path, line: Any, field: Any, message: Any) -> None:
    raw = text(tmp_path / "log.txt", f"9\t1\t[11]\t[1]\t[0]\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", format="trec-session")
    assert (caught.value.file, caught.value.row, caught.value.field) == (raw, 2, field)


# User Behavior Insights


def event(action: str, query: str | None, document: Any, ordinal: Any = None, second: int = 0) -> dict[str, Any]:
    return {
        "action_name": action,
        "query_id": query,
        "timestamp": f"2025-01-01T00:00:{second:02}Z",
        "client_id": "browser",
        "event_attributes": {"object": {"object_id": document}, "position": {"ordinal": ordinal}},
    }


EVENTS = [
    event("impression", "q-1", 7, 1, 1),
    event("impression", "q-1", "B", 2, 2),
    event("click", "q-1", "B", 2, 3),
    event("click_through", "q-1", "B", 2, 3),
    event("impression", "q-2", "B", 1, 9),
    event("click", "q-2", "nowhere", 5, 10),
    event("click", None, "B", 1, 10),
    event("add_to_cart", "q-1", "B", 2, 11),
    event("click", "q-3", "C", 2, 12),
]
QUERIES = [
    {"query_id": "q-1", "user_query": "lamp", "query_response_hit_ids": ["7", "B"]},
    {"query_id": "q-3", "user_query": "desk", "query_response_hit_ids": ["A", "C"]},
    {"query_id": "q-4", "user_query": "chair", "query_response_hit_ids": []},
]
FOUND = [
    ("lamp", ["7", "B"], [1, 2], [0, 1], "q-1"),
    ("q-2", ["B"], [1], [0], "q-2"),
]


def ubi_files(folder: Path, style: str) -> list[Path]:
    """The events and queries above in one of the forms in which they are exported."""
    flat = [
        {
            **{k: v for k, v in e.items() if k != "event_attributes"},
            "event_attributes.object.object_id": str(e["event_attributes"]["object"]["object_id"]),
            "event_attributes.position.ordinal": e["event_attributes"]["position"]["ordinal"],
        }
        for e in EVENTS
    ]
    texts = [{**e, "event_attributes": json.dumps(e["event_attributes"])} for e in EVENTS]
    hits = [{**q, "query_response_hit_ids": json.dumps(q["query_response_hit_ids"])} for q in QUERIES]
    made = []
    for name, rows, written in (
        ("events", EVENTS, flat if style == "csv" else texts),
        ("queries", QUERIES, hits),
    ):
        path = folder / f"{name}.{style.split('-')[0]}"
        made.append(path)
        if style == "ndjson":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif style == "json":
            path.write_text(json.dumps(rows, indent=1))
        elif style == "ndjson-dump":
            path.write_text("\n".join(json.dumps({"_index": "ubi", "_source": row}) for row in rows))
        elif style == "parquet":
            nested = json.loads(json.dumps(rows).replace('"object_id": 7', '"object_id": "7"'))
            pq.write_table(pa.Table.from_pylist(nested), path)
        else:
            with path.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(written[0]))
                writer.writeheader()
                writer.writerows(written)
    return made


@pytest.mark.parametrize("style", ["ndjson", "ndjson-dump", "json", "csv", "csv-json", "parquet"])
def test_ubi_events_in_all_their_forms(tmp_path: Path, style: Any) -> None:
    log = prepare_log(ubi_files(tmp_path, style), tmp_path / "out", format="ubi", context=["client_id"])
    found = lists(log, "session")
    assert sorted(found[:-1] if found[-1][0] == "desk" else found[1:]) == sorted(FOUND)
    # No impressions were logged for q-3: its hits are what was shown.
    assert ("desk", ["A", "C"], [1, 2], [0, 1], "q-3") in found
    assert log.metadata["context"]["client_id"] == {"kind": "category", "values": ["browser"]}
    report = log.metadata["report"]
    assert report["rows"] == len(EVENTS)
    assert report["dropped"]["clicks_on_documents_not_shown"] == 1
    assert report["dropped"]["events_without_keys"] == 1
    assert report["dropped"]["other_events"] == 1
    assert report["dropped"]["empty_lists"] == 1
    assert report["repaired"]["repeated_clicks"] == 1
    assert report["repaired"]["lists_without_query_text"] == 1


def test_ubi_events_alone(tmp_path: Path) -> None:
    events, _ = ubi_files(tmp_path, "ndjson")
    log = prepare_log(events, tmp_path / "out", format="ubi")
    assert lists(log, "session", "time") == [
        ("q-1", ["7", "B"], [1, 2], [0, 1], "q-1", 1735689601.0),  # 2025-01-01T00:00:01Z
        ("q-2", ["B"], [1], [0], "q-2", 1735689609.0),
    ]
    assert log.metadata["report"]["dropped"]["clicks_on_documents_not_shown"] == 2


def test_views_count_where_there_are_no_impressions(tmp_path: Path) -> None:
    rows = [event("view", "q", "a", 1), event("view", "q", "b", 2), event("click", "q", "a", 1)]
    raw = text(tmp_path / "events.jsonl", "\n".join(map(json.dumps, rows)))
    assert lists(prepare_log(raw, tmp_path / "out", format="ubi")) == [("q", ["a", "b"], [1, 2], [1, 0])]


def test_ubi_fields_can_be_mapped(tmp_path: Path) -> None:
    raw = text(
        tmp_path / "events.csv",
        "action_name,search,sku,slot,term\nimpression,1,a,1,red\nimpression,1,b,2,red\nclick,1,b,2,red\n",
    )
    columns = {"session": "search", "document": "sku", "rank": "slot", "query": "term"}
    log = prepare_log(raw, tmp_path / "out", format="ubi", columns=columns)
    assert lists(log) == [("red", ["a", "b"], [1, 2], [0, 1])]


@pytest.mark.parametrize(
    ("name", "content", "row", "message"),
    [
        ("e.ndjson", json.dumps(EVENTS[0]) + '\n{"action_name": ', 2, "expected JSON with one object per event"),
        ("e.json", '[{"action_name": "click"},\n{"action_name":\n"cl"ick"}]', 3, "expected JSON with one object"),
        ("e.ndjson", json.dumps(EVENTS[0]) + '\n{"action_name": "click", "event_attributes": "x"}\n', 2, "OBJECT"),
        ("e.ndjson", json.dumps(event("impression", "q", "a", 0)), 1, "found '0'. Ranks count from 1"),
        ("e.ndjson", json.dumps(event("impression", "q", "a", "top")), 1, "found 'top'"),
        ("e.ndjson", json.dumps(event("impression", "q", "a", None)), 1, "found nothing"),
        ("e.ndjson", '{"name": "x"}', None, r"found the columns \['name'\]"),
        (
            "e.csv",
            "action_name,query_id\nclick,1\n",
            None,
            "object_id' for 'document', 'event_attributes.position.ordinal'",
        ),
        ("e.ndjson", json.dumps(QUERIES[0]), None, "found only queries"),
    ],
)
def test_bad_ubi_files(tmp_path: Path, name: Any, content: Any, row: Any, message: Any) -> None:
    raw = text(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", format="ubi")
    assert str(caught.value.file) == str(raw)
    assert caught.value.row == row
    assert not (tmp_path / "out").exists()


# Baidu-ULTR (UvA)


ONES = np.ones(3, np.float16)


def baidu(rng: np.random.Generator, clicks: bool = True) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Two lists of one query and one of another; the embedding of a document is the same wherever it stands."""
    vectors = rng.normal(size=(4, 3)).astype(np.float16)
    shown = [[0, 1], [1, 0, 2], [3]]
    columns: dict[str, list[Any]] = {
        "query_id": ["17", "17", "18"],
        "query_md5": ["m1", "m1", "m2"],
        "text_md5": [[f"t{i}" for i in row] for row in shown],
        "query_document_embedding": [[vectors[i] for i in row] for row in shown],
        "bm25": [[float(i) / 2 for i in row] for row in shown],
        "frequency_bucket": [3, 3, 9],
    }
    if clicks:
        columns |= {
            "url_md5": [[f"u{i}" for i in row] for row in shown],
            "click": [[0, 1], [0, 0, 1], [1]],
            "position": [[1, 2], [1, 2, 4], [1]],
        }
    else:
        columns |= {"label": [[0, 4], [4, 0, 1], [2]]}
    return columns, vectors


def baidu_table(columns: dict[str, list[Any]], flat: bool) -> pa.Table:
    if flat:
        lengths = [len(row) for row in columns["text_md5"]]
        owner = [i for i, n in enumerate(lengths) for _ in range(n)]
        place = [k for n in lengths for k in range(n)]
        columns = {
            name: [
                values[i][k] if isinstance(values[i], list) else values[i] for i, k in zip(owner, place, strict=True)
            ]
            for name, values in columns.items()
        } | {"query_no": owner}
    vector = pa.list_(pa.float16())
    kinds = {"query_document_embedding": vector if flat else pa.list_(vector)}
    return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})


@pytest.mark.parametrize("style", ["lists.parquet", "rows.parquet", "rows.feather"])
def test_baidu_clicks(tmp_path: Path, style: Any) -> None:
    columns, vectors = baidu(np.random.default_rng(0))
    table = baidu_table(columns, style.startswith("rows"))
    if style.endswith("feather"):
        pyarrow.feather.write_feather(table, tmp_path / style, compression="uncompressed")
    else:
        pq.write_table(table, tmp_path / style)
    log = prepare_log(tmp_path / style, tmp_path / "out", format="baidu-uva", features=["bm25"], context=["query_id"])
    assert lists(log, "session", "feature.bm25", "context.query_id") == [
        ("m1", ["u0", "u1"], [1, 2], [0, 1], 0, [0.0, 0.5], 1),
        ("m1", ["u1", "u0", "u2"], [1, 2, 4], [0, 0, 1], 1, [0.5, 0.0, 1.0], 1),
        ("m2", ["u3"], [1], [1], 2, [1.5], 2),
    ]
    assert log.metadata["features"] == ["embedding_0", "embedding_1", "embedding_2"]
    names = log.vocabulary.document_names.to_pylist()
    expected = vectors[[int(name[1:]) for name in names]].astype(np.float32)
    np.testing.assert_array_equal(present(log.vocabulary.features)[1:], expected)
    assert log.metadata["report"]["rows"] == len(table)
    assert log.metadata["report"]["noted"]["lists_with_gaps_in_ranks"] == 1


def test_baidu_annotations_against_clicks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns, vectors = baidu(rng)
    pq.write_table(baidu_table(columns, False), tmp_path / "clicks.parquet")
    grades, others = baidu(rng, clicks=False)
    grades["text_md5"] = [["t0", "new"], ["new", "t0", "t2"], ["t3"]]
    pq.write_table(baidu_table(grades, False), tmp_path / "grades.parquet")
    mapped = {"document": "text_md5"}
    log = prepare(tmp_path / "clicks.parquet", tmp_path / "log", format="baidu-uva", columns=mapped)
    found = prepare(tmp_path / "grades.parquet", tmp_path / "grades", format="baidu-uva", vocabulary=log)
    assert isinstance(found, Collection)
    assert found.query_names.to_pylist() == ["m1", "m2"]
    by_name = dict(zip(found.document_names.to_pylist(), found.labels.tolist(), strict=True))
    assert by_name == {"t0": 0, "t2": 1, "t3": 2, "new": 4}
    assert found.document.tolist() == [1, 3, 5, 4]  # t1 (id 2) was not judged
    # The features are those of the annotations, not those of the clicks.
    np.testing.assert_array_equal(present(found.features), others[[0, 2, 1, 3]].astype(np.float32))
    np.testing.assert_array_equal(present(found.vocabulary.features)[2], vectors[1].astype(np.float32))
    assert found.metadata["report"]["known_documents_with_other_features"] == 3
    assert "3 of the 3 documents that the vocabulary knows have other" in found.metadata["report"]["warnings"][0]
    with pytest.raises(ConfigError, match="labels do not apply"):
        prepare(
            tmp_path / "grades.parquet", tmp_path / "x", format="baidu-uva",
            labels=text(tmp_path / "qrels", "m1 0 t0 1\n"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "row", "message"),
    [
        ("click", [[0, 1], [0, 0, 2], [1]], 2, "expected 0 or 1, found '2'"),
        ("click", [[0, 1], [0, 0], [1]], 2, "expected 3 values as in 'url_md5', found 2"),
        ("click", [0, 1, 1], None, "one value per document"),
        ("position", [[1, 2], [0, 1, 2], [1]], 2, "found '0'. Ranks count from 1"),
        ("query_document_embedding", [[ONES, ONES], [ONES] * 3, [np.array([1, np.inf, 1], np.float16)]], 3, "finite"),
        ("query_document_embedding", [[ONES, ONES], [ONES, ONES[:2], ONES], [ONES]], 2, "found 2"),
        ("url_md5", None, None, "expected a column 'click'"),
    ],
)
def test_bad_baidu_files(tmp_path: Path, column: Any, value: Any, row: Any, message: Any) -> None:
    columns, _ = baidu(np.random.default_rng(0))
    if value is None:
        del columns["click"], columns["position"]
        message = "expected a column 'label'"
    else:
        columns[column] = value
    pq.write_table(baidu_table(columns, False), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "log.parquet", tmp_path / "out", format="baidu-uva")
    assert (caught.value.file, caught.value.row) == (tmp_path / "log.parquet", row)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.parquet"]


def test_a_damaged_feather_file(tmp_path: Path) -> None:
    columns, _ = baidu(np.random.default_rng(0))
    pyarrow.feather.write_feather(baidu_table(columns, True), tmp_path / "part.feather")
    whole = (tmp_path / "part.feather").read_bytes()
    (tmp_path / "part.feather").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="neither or is cut off") as caught:
        prepare(tmp_path / "part.feather", tmp_path / "out", format="baidu-uva")
    assert caught.value.file == tmp_path / "part.feather"


# LETOR and qrels


def test_letor(tmp_path: Path) -> None:
    first = text(
        tmp_path / "a.txt",
        "2 qid:10 1:0.5 3:-1e-2 #docid = GX-1 inc = 1\n"
        "# a line of comment\n"
        "\n"
        "0 qid:10 2:4 # docid=GX-2\n"
        "1.5 qid:7 1:1 2:2 3:3\n",
    )
    second = text(tmp_path / "b.txt", "0 qid:name\n1 qid:name 4:1")
    found = prepare([first, second], tmp_path / "out", format="letor")
    assert isinstance(found, Collection)
    assert found.query_names.to_pylist() == ["10", "7", "name"]
    assert found.document_names.to_pylist() == ["GX-1", "GX-2", "1", "1", "2"]
    np.testing.assert_array_equal(found.labels, np.array([2, 0, 1.5, 0, 1], np.float32))
    np.testing.assert_array_equal(
        found.features,
        np.array([[0.5, 0, -0.01, 0], [0, 4, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0], [0, 0, 0, 1]], np.float32),
    )
    assert found.metadata["features"] == ["1", "2", "3", "4"]
    assert found.offsets.tolist() == [0, 2, 3, 5]


def test_letor_keeps_the_first_of_equal_documents_and_the_ids_of_a_vocabulary(tmp_path: Path) -> None:
    first = text(tmp_path / "a.txt", "1 qid:1 1:1 # docid=x\n0 qid:1 1:2 # docid=y\n2 qid:1 1:3 # docid=x\n")
    prepare(first, tmp_path / "one", format="letor", split={"train": 0.5, "test": 0.5})
    second = text(tmp_path / "b.txt", "3 qid:2 1:4 # docid=x\n3 qid:1 1:5 # docid=z\n")
    found = prepare_collection(second, tmp_path / "two", format="letor", vocabulary=tmp_path / "one")
    assert found.document_names.to_pylist() == ["x", "y", "z", "x"]
    assert found.document.tolist() == [1, 2, 3, 4]
    assert found.labels.tolist() == [1, 0, 3, 3]
    assert present(found.features)[:, 0].tolist() == [1, 2, 5, 4]
    assert Collection.open(tmp_path / "one").metadata["report"]["duplicate_documents"] == 1
    # Grades below 0 are an error there, and each document has one grade: nothing to say about them.
    assert not {"negative_read_as_0", "pairs_with_differing_grades"} & set(
        Collection.open(tmp_path / "one").metadata["report"]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x qid:1 1:1", "or a grade from 0 to 31, found 'x'"),
        ("-2 qid:1 1:1", "found '-2'"),
        ("99 qid:1 1:1", "found '99'"),
        ("nan qid:1 1:1", "found 'nan'"),
        ("1", "expected 'grade qid:query 1:value"),
        ("1 1:1 2:1", "expected 'qid:' and the query after the grade, found '1:1'"),
        ("1 qid: 1:1", "found 'qid:'"),
        ("1 qid:1 0:1", "feature ids from 1 to 65,536, found '0'.*add 1"),
        ("1 qid:1 70000:1", "found '70000'"),
        ("1 qid:1 a:1", "found 'a'"),
        ("1 qid:1 2:1 1:1", "expected increasing feature ids, found 1 after 2"),
        ("1 qid:1 1:1 1:2", "found 1 after 1"),
        ("1 qid:1 1:one", "expected a finite number, found 'one'"),
        ("1 qid:1 1:inf", "found 'inf'"),
        ("1 qid:1 1:1e39", "found '1e39'"),
        ("1 qid:1 1", "expected features as id:value, found '1'"),
        ("1 qid:1 1:2:3", "found '1:2:3'"),
        ("1 qid:0 1:1", "stand together, found query '0' again"),
    ],
)
def test_bad_letor_lines(tmp_path: Path, line: Any, message: Any) -> None:
    good = text(tmp_path / "a.txt", "0 qid:0 1:1\n")
    bad = text(tmp_path / "b.txt", f"1 qid:8 1:1 2:1\n\n1 qid:1 1:1\n{line}\n1 qid:9 1:1\n")
    with pytest.raises(DataError, match=message) as caught:
        prepare([good, bad], tmp_path / "out", format="letor")
    assert (caught.value.file, caught.value.row) == (bad, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_letor_blocks_do_not_show(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 5)).round(4)
    lines = [
        f"{i % 3} qid:{i // 7} " + " ".join(f"{j + 1}:{v}" for j, v in enumerate(row)) for i, row in enumerate(values)
    ]
    raw = text(tmp_path / "a.txt", "\n".join(lines))
    found = parse_letor([raw], block_bytes=97)
    np.testing.assert_array_equal(found.features, values.astype(np.float32))
    assert found.label.tolist() == [i % 3 for i in range(50)]


def test_qrels(tmp_path: Path) -> None:
    raw = text(tmp_path / "qrels.txt", "301 0 FR-1 1\n301 0 FR-2 0\n302\t0\tFR-1\t-2\n301 0 FR-3 2\n301 0 FR-1 0\n")
    found = prepare_collection(raw, tmp_path / "out", format="qrels")
    assert found.query_names.to_pylist() == ["301", "302"]
    assert found.document_names.to_pylist() == ["FR-1", "FR-2", "FR-3", "FR-1"]
    assert found.labels.tolist() == [1, 0, 2, 0]
    assert found.features is None
    report = found.metadata["report"]
    assert report["pairs_with_differing_grades"] == 1
    assert report["negative_read_as_0"] == 1
    bad = text(tmp_path / "bad.txt", "301 0 FR-1 1\n301 0 FR-1 yes\n")
    with pytest.raises(DataError, match="found 'yes'") as caught:
        prepare(bad, tmp_path / "bad", format="qrels")
    assert caught.value.row == 2


@pytest.mark.parametrize("sign", [",", "\t", ";", "parquet"])
def test_a_table_of_grades_is_a_collection(tmp_path: Path, sign: str) -> None:
    rows = [("topic", "url", "grade", "price"), ("301", "FR-1", "1", "8"), ("302", "FR-2", "2", "9"),
            ("301", "FR-3", "0", "7")]  # fmt: skip
    if sign == "parquet":
        raw = tmp_path / "grades.parquet"
        columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
        pq.write_table(pa.table(columns), raw)
    else:
        raw = text(tmp_path / "grades.csv", "".join(f"{sign.join(row)}\n" for row in rows))
    found = prepare_collection(raw, tmp_path / "out", format="qrels")
    assert found.query_names.to_pylist() == ["301", "302"]
    assert found.document_names.to_pylist() == ["FR-1", "FR-3", "FR-2"]
    assert found.labels.tolist() == [1, 0, 2]


def test_tables_of_grades_in_several_files_and_with_quotes(tmp_path: Path) -> None:
    first = text(tmp_path / "a.csv", 'query,document,label\n"a, b",x,1\n')
    second = text(tmp_path / "b.csv", "doc_id,qid,rating\ny,q,2\nz,q,3\n")
    found = prepare_collection([first, second], tmp_path / "out", format="qrels")
    assert found.query_names.to_pylist() == ["a, b", "q"]
    assert found.labels.tolist() == [1, 2, 3]
    tabs = text(tmp_path / "t.tsv", 'query\tdocument\tlabel\n"q"\tx\t1\n')
    quoted = prepare_collection(tabs, tmp_path / "q", format="qrels", quote=True)
    assert quoted.query_names.to_pylist() == ["q"]
    bad = text(tmp_path / "bad.csv", "doc_id,qid,rating\ny,q,much\n")
    with pytest.raises(DataError, match="field 'rating': expected a grade") as caught:
        prepare([second, bad], tmp_path / "bad", format="qrels")
    assert (Path(str(caught.value.file)).name, caught.value.row) == ("bad.csv", 2)
    lines = text(tmp_path / "c.txt", "301 0 FR-1 1\n")
    with pytest.raises(DataError, match=r"expected a table like a.csv, found lines without a header"):
        prepare([first, lines], tmp_path / "mixed", format="qrels")


# The real collections


@pytest.mark.slow
def test_the_yandex_sample(tmp_path: Path, data_dir: Callable[[str], Path]) -> None:
    log = prepare_log(data_dir("yandex-sample") / "train.txt", tmp_path / "out", format="yandex-sample")
    assert (log.sessions, log.queries, log.ranks) == (35_064, 20, 10)
    assert log.metadata["lengths"] == {"10": 35_064}
    assert len(set(log.vocabulary.document_names.to_pylist())) == 995
    published = [0.257, 0.249, 0.170, 0.154, 0.106, 0.073, 0.069, 0.047, 0.050, 0.045]
    np.testing.assert_allclose(ctr_by_rank(log), published, atol=0.0005)


def test_clara2(tmp_path: Path, data_dir: Callable[[str], Path]) -> None:
    folder = data_dir("clara2")
    log = prepare_log(folder / "search_log.tsv", tmp_path / "out", format="yandex", labels=folder / "relevance.tsv")
    assert (log.sessions, log.queries) == (31_564, 1_951)
    assert len(set(log.vocabulary.document_names.to_pylist())) == 40_584
    report = log.metadata["report"]
    assert report["clicks"] == 9_328
    assert report["dropped"]["clicks_on_documents_not_shown"] == 720
    # Every shown slot was kept but those of documents that a list shows twice.
    assert report["impressions"] + report["dropped"]["duplicate_documents"] == 10 * 31_564
    np.testing.assert_allclose(
        ctr_by_rank(log), [0.151, 0.062, 0.031, 0.017, 0.013, 0.007, 0.005, 0.004, 0.003, 0.003], atol=0.0005
    )
    grades = log.vocabulary.labels
    shown, clicked = np.zeros(6), np.zeros(6)
    for batch in log.columns(["documents", "clicks"]):
        grade = present(grades)[batch["documents"].flatten().to_numpy()]
        known = ~np.isnan(grade)
        np.add.at(shown, grade[known].astype(int), 1)
        np.add.at(clicked, grade[known].astype(int), batch["clicks"].flatten().to_numpy()[known])
    np.testing.assert_allclose(clicked[2:] / shown[2:], [0.006, 0.033, 0.074, 0.180], atol=0.0005)


def test_trec_2014(tmp_path: Path, data_dir: Callable[[str], Path]) -> None:
    folder = data_dir("trec-session-2014")
    parts = [folder / f"{name}_per_query_quid.txt" for name in ("train", "valid", "test")]
    log = prepare_log(parts, tmp_path / "out", format="trec-session")
    assert (log.sessions, log.metadata["clicks"]) == (3_596, 1_610)
    judged = prepare_log(
        folder / "human_label_for_GraphCM_per_query_quid.txt",
        tmp_path / "judged",
        format="trec-session",
        vocabulary=log,
    )
    assert judged.sessions == 856
    # Every judged list also stands in the others: nothing new.
    assert judged.documents == log.documents
    assert judged.queries == log.queries
    grades = present(judged.vocabulary.labels)[1:]
    assert set(np.unique(grades[~np.isnan(grades)])) == {0, 1, 2, 3, 4}


def test_mq2008(tmp_path: Path, data_dir: Callable[[str], Path]) -> None:
    folder = data_dir("mq2008-fold1")
    counts, total = [], 0
    grades = np.zeros(3, int)
    for name in ("train", "vali", "test"):
        found = prepare_collection(folder / f"{name}.txt", tmp_path / name, format="letor")
        counts.append(len(found))
        total += len(found.document)
        grades += np.bincount(found.labels.astype(int), minlength=3)
        assert present(found.features).shape == (len(found.document), 46)
    assert counts == [471, 157, 156]
    assert total == 15_211
    assert grades.tolist() == [12_279, 2_001, 931]
    lines = (folder / "test.txt").read_text().splitlines()
    row = [float(token.split(":")[1]) for token in lines[100].split("#")[0].split()[2:]]
    np.testing.assert_array_equal(present(found.features)[100], np.array(row, np.float32))
