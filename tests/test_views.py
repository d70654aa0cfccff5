"""A query that comes several times in a session: one list per view, however the views are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import HEADER, digest, left, lists, prepare_log, write

from ultr.errors import ConfigError, DataError
from ultr.propensity import all_pairs

RANKS = 6
EXAMINATION = 1 / np.arange(1, RANKS + 1)


def views_of_users(sessions: int, *, again: float = 1 / 3, other_order: bool = True, seed: int = 0) -> pa.Table:
    """Simulates users of a position-based model, of whom a share sees the list a second time, a minute later.

    The rows stand view by view in the order of the ranks; `view` numbers the views of a session, `time` is when the
    view was shown.
    """
    rng = np.random.default_rng(seed)
    relevance = rng.uniform(0.2, 0.8, (20, RANKS))
    out: list[tuple[Any, ...]] = []
    for session in range(sessions):
        query, time = int(rng.integers(len(relevance))), 5.0 * session
        order = np.zeros(RANKS, int)
        for view in range(1 + int(rng.random() < again)):
            if view == 0 or other_order:
                order = np.argsort(-relevance[query] + rng.normal(0, 0.4, RANKS))
            clicks = rng.random(RANKS) < EXAMINATION * relevance[query][order]
            for rank, (document, click) in enumerate(zip(order.tolist(), clicks.tolist(), strict=True), 1):
                row = (f"s{session}", str(view), f"q{query}", f"d{document}", rank, int(click), time + 60.0 * view)
                out.append(row)
    names = ("session", "view", "query", "document", "rank", "click", "time")
    return pa.table({name: list(column) for name, column in zip(names, zip(*out, strict=True), strict=True)})


def numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy())


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(1).permutation(len(table)))


def with_times(table: pa.Table, times: np.ndarray) -> pa.Table:
    return table.drop_columns(["view", "time"]).append_column("time", pa.array(times))


def click_times(table: pa.Table) -> pa.Table:
    """Gives clicked rows the time of the click, which is seconds after that of the others of the view."""
    return with_times(table, numbers(table, "time") + numbers(table, "click") * (3 + 2 * numbers(table, "rank")))


def event_times(table: pa.Table) -> pa.Table:
    """Gives every row a time of its own within some milliseconds of its view, in no order."""
    return with_times(table, numbers(table, "time") + np.random.default_rng(2).uniform(0, 0.05, len(table)))


def session_times(table: pa.Table) -> pa.Table:
    return with_times(table, np.floor(numbers(table, "time") / 5) * 0 + 7.0)


def in_file(folder: Path, table: pa.Table, name: str = "log") -> Path:
    pq.write_table(table, folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def as_sessions_of_their_own(table: pa.Table) -> pa.Table:
    """Makes every view a session: the same events without a query that comes twice."""
    own = [f"{s}/{v}" for s, v in zip(table["session"].to_pylist(), table["view"].to_pylist(), strict=True)]
    return table.drop_columns(["session", "view", "time"]).append_column("session", pa.array(own))


FORMS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "column": (lambda t: shuffled(t.drop_columns(["time"])), "by_column"),
    "time": (lambda t: shuffled(t.drop_columns(["view"])), "by_time"),
    "milliseconds": (lambda t: with_times(t, (1.7e12 + 1000 * numbers(t, "time")).astype(np.int64)), "by_time"),
    "times of clicks": (lambda t: shuffled(click_times(t)), "by_time"),
    "times of rows": (lambda t: shuffled(event_times(t)), "by_time"),
    "order": (lambda t: t.drop_columns(["view", "time"]), "by_order"),
    "times of sessions": (session_times, "by_order"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other_order", [True, False])
def test_views_count_like_sessions_of_their_own(tmp_path: Path, form: str, other_order: bool) -> None:
    table = views_of_users(900, other_order=other_order)
    change, how = FORMS[form]
    log = prepare_log(in_file(tmp_path, change(table)), tmp_path / "log")
    alone = prepare_log(in_file(tmp_path, as_sessions_of_their_own(table), "alone"), tmp_path / "alone")
    repeated = len(alone) - 900
    assert len(log) == len(alone)
    assert log.metadata["report"]["views"] == {"queries_with_several_views": repeated, how: repeated}
    assert log.metadata["report"]["warnings"] == []
    assert (log.metadata["clicks"], log.metadata["impressions"]) == (
        int(numbers(table, "click").sum()),
        len(table),
    )
    counted = [sorted((x["query"], x["documents"], x["clicks"]) for x in lists(part)) for part in (log, alone)]
    assert counted[0] == counted[1]


@pytest.mark.slow
def test_propensities_of_views_are_those_of_the_users(tmp_path: Path) -> None:
    table = views_of_users(20_000)
    log = prepare_log(in_file(tmp_path, table.drop_columns(["view", "time"])), tmp_path / "log")
    found = all_pairs(log)
    error = np.abs(found.value - EXAMINATION)[1:] / found.standard_error[1:]
    assert (error < 3.5).all()
    first = prepare_log(in_file(tmp_path, table.drop_columns(["view", "time"])), tmp_path / "first", pages="first")
    wrong = all_pairs(first)
    assert (np.abs(wrong.value - EXAMINATION)[1:] / wrong.standard_error[1:] > 5).any()
    assert any("too flat or too steep" in warning for warning in first.metadata["report"]["warnings"])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: shuffled(t),
        lambda t: t.sort_by([("document", "ascending")]),
        lambda t: t.sort_by([("session", "ascending"), ("rank", "ascending")]),
    ],
)
def test_views_that_nothing_tells_apart_are_refused(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(views_of_users(300).drop_columns(["view", "time"]))
    with pytest.raises(DataError, match="too flat or too steep") as caught:
        prepare_log(in_file(tmp_path, table), tmp_path / "log")
    assert "--view COLUMN" in str(caught.value)
    row = int(caught.value.row or 0) - 1
    names = ("session", "query", "rank")
    earlier = [tuple(table[n][i].as_py() for n in names) for i in range(row + 1)]
    assert earlier.count(earlier[row]) == 2  # the row that is named has the rank of another
    assert left(tmp_path) == ["log.parquet"]


def test_an_unsorted_log_without_views_stays_as_it_is(tmp_path: Path) -> None:
    table = views_of_users(400, again=0.0).drop_columns(["view"])
    log = prepare_log(in_file(tmp_path, event_times(views_of_users(400, again=0.0))), tmp_path / "log")
    mixed = prepare_log(in_file(tmp_path, shuffled(table)), tmp_path / "mixed")
    for part in (log, mixed):
        assert len(part) == 400
        assert "views" not in part.metadata["report"]
        assert part.metadata["report"]["warnings"] == []


@pytest.mark.parametrize("place", ["at once", "at the end"])
@pytest.mark.parametrize("form", ["time", "order", "column", "times of rows"])
def test_copied_rows_are_dropped_and_counted(tmp_path: Path, form: str, place: str) -> None:
    table = FORMS[form][0](views_of_users(900))
    if form == "order":
        table = views_of_users(900, again=0.0).drop_columns(["view", "time"])
    copies = np.flatnonzero(np.random.default_rng(3).random(len(table)) < 0.01)
    rows = np.concatenate([np.arange(len(table)), copies])
    whole = prepare_log(in_file(tmp_path, table), tmp_path / "whole")
    log = prepare_log(
        in_file(tmp_path, table.take(np.sort(rows) if place == "at once" else rows), "copied"), tmp_path / "copied"
    )
    report = log.metadata["report"]
    assert report["dropped"]["copied_rows"] + report["dropped"]["duplicate_ranks"] == len(copies)
    assert report["dropped"]["copied_rows"] >= 0.9 * len(copies)
    assert any("delivered twice" in warning for warning in report["warnings"])
    same = [sorted((x["query"], x["documents"], x["clicks"]) for x in lists(part)) for part in (log, whole)]
    assert same[0] == same[1]


def test_a_log_that_was_delivered_twice_is_one_log(tmp_path: Path) -> None:
    table = views_of_users(200, again=0.0).drop_columns(["view", "time"])
    log = prepare_log(in_file(tmp_path, pa.concat_tables([table, table])), tmp_path / "log")
    assert len(log) == 200
    assert log.metadata["report"]["dropped"]["copied_rows"] == len(table)


def test_clicks_as_rows_of_their_own_are_no_views(tmp_path: Path) -> None:
    shown = views_of_users(300, again=0.0).drop_columns(["view"])
    clicked = shown.filter(numbers(shown, "click") == 1)
    later = clicked.set_column(6 - 1, "time", pa.array(numbers(clicked, "time") + 9.0 + numbers(clicked, "rank")))
    unclicked = shown.set_column(4, "click", pa.array(np.zeros(len(shown), int)))
    both = pa.concat_tables([unclicked, later.select(unclicked.column_names)])
    log = prepare_log(in_file(tmp_path, both), tmp_path / "log")
    assert (len(log), log.metadata["clicks"]) == (300, len(clicked))
    assert log.metadata["report"]["repaired"]["repeated_clicks"] == len(clicked)
    assert log.metadata["report"]["warnings"] == []


def test_pages_that_go_on_are_one_list(tmp_path: Path) -> None:
    rows = "s,q,a,1,0,10\ns,q,b,2,1,10\ns,q,c,3,0,40\ns,q,d,4,1,40\ns,q,a,1,1,90\ns,q,b,2,0,90\n"
    log = prepare_log(write(tmp_path / "log.csv", rows, HEADER + ",time"), tmp_path / "log")
    assert [(x["documents"], x["ranks"], x["clicks"]) for x in lists(log)] == [
        (["a", "b", "c", "d"], [1, 2, 3, 4], [0, 1, 0, 1]),
        (["a", "b"], [1, 2], [1, 0]),
    ]


PAGES = "s,q,a,1,0\ns,q,b,2,1\ns,q,c,1,1\ns,q,d,2,0\ns,q,a,1,1\ns,q,b,2,0\n"


@pytest.mark.parametrize(
    ("pages", "expected", "warned"),
    [
        (None, [("ab", [1, 2], [0, 1]), ("cd", [1, 2], [1, 0]), ("ab", [1, 2], [1, 0])], True),
        ("separate", [("ab", [1, 2], [0, 1]), ("cd", [1, 2], [1, 0]), ("ab", [1, 2], [1, 0])], False),
        ("joined", [("abcd", [1, 2, 3, 4], [0, 1, 1, 0]), ("ab", [1, 2], [1, 0])], False),
        ("first", [("ab", [1, 2], [1, 1])], True),
    ],
)
def test_pages_that_start_again(tmp_path: Path, pages: Any, expected: Any, warned: bool) -> None:
    log = prepare_log(write(tmp_path / "log.csv", PAGES), tmp_path / "log", pages=pages)
    assert [("".join(x["documents"]), x["ranks"], x["clicks"]) for x in lists(log)] == expected
    assert bool(log.metadata["report"]["warnings"]) == warned


def test_pages_with_a_column_are_joined(tmp_path: Path) -> None:
    rows = "s,q,c,1,1,2\ns,q,d,2,0,2\ns,q,a,1,0,1\ns,q,b,2,1,1\n"
    raw = write(tmp_path / "log.csv", rows, HEADER + ",page")
    apart = prepare_log(raw, tmp_path / "apart", columns={"view": "page"})
    assert ["".join(x["documents"]) for x in lists(apart)] == ["cd", "ab"]
    joined = prepare_log(raw, tmp_path / "joined", columns={"view": "page"}, pages="joined")
    assert [("".join(x["documents"]), x["ranks"]) for x in lists(joined)] == [("cdab", [1, 2, 3, 4])]


def test_pages_is_checked(tmp_path: Path, ultr: Any) -> None:
    raw = write(tmp_path / "log.csv", PAGES)
    with pytest.raises(ConfigError, match="expected pages of"):
        prepare_log(raw, tmp_path / "log", pages="both")
    (tmp_path / "y.txt").write_text("1\t0\tQ\tq\t0\ta\tb\n")
    with pytest.raises(ConfigError, match="delimits its lists"):
        prepare_log(tmp_path / "y.txt", tmp_path / "log", format="yandex", pages="joined")
    result = ultr("prepare", raw, "--out", tmp_path / "log", "--pages", "joined", "--json")
    assert result.json["report"]["views"]["pages"] == 1


def ubi(path: Path, events: list[tuple[str, str, str, int, str]]) -> Path:
    """Writes UBI events of (action, query_id, document, ordinal, timestamp)."""
    path.write_text(
        "".join(
            json.dumps({
                "action_name": action, "query_id": query, "user_query": "tv", "timestamp": f"2024-05-01T10:00:{time}Z",
                "event_attributes": {"object": {"object_id": document}, "position": {"ordinal": ordinal}},
            }) + "\n"
            for action, query, document, ordinal, time in events
        )
    )  # fmt: skip
    return path


def test_ubi_asks_about_pages(tmp_path: Path) -> None:
    raw = ubi(
        tmp_path / "log.ndjson",
        [
            *(("impression", "Q", d, r, "00") for r, d in enumerate("abc", 1)),
            *(("impression", "Q", d, r, "20") for r, d in enumerate("def", 1)),
            ("click", "Q", "d", 1, "25"),
            ("click", "Q", "a", 1, "05"),
        ],
    )
    with pytest.raises(DataError, match="--pages separate makes each page a list") as caught:
        prepare_log(raw, tmp_path / "log", format="ubi")
    assert caught.value.row == 4
    apart = lists(prepare_log(raw, tmp_path / "apart", format="ubi", pages="separate"))
    assert [("".join(x["documents"]), x["clicks"]) for x in apart] == [("abc", [1, 0, 0]), ("def", [1, 0, 0])]
    [joined] = lists(prepare_log(raw, tmp_path / "joined", format="ubi", pages="joined"))
    assert (joined["ranks"], joined["clicks"]) == ([1, 2, 3, 4, 5, 6], [1, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("reverse", [False, True])
def test_ubi_clicks_belong_to_the_view_before_them(tmp_path: Path, reverse: bool) -> None:
    events = [
        *(("impression", "Q", d, r, "00") for r, d in enumerate("abc", 1)),
        ("click", "Q", "b", 2, "07"),
        *(("impression", "Q", d, r, "20") for r, d in enumerate("bac", 1)),
        ("click", "Q", "c", 3, "25"),
    ]
    raw = ubi(tmp_path / "log.ndjson", events[::-1] if reverse else events)
    log = prepare_log(raw, tmp_path / "log", format="ubi")
    assert sorted(("".join(x["documents"]), x["clicks"]) for x in lists(log)) == [
        ("abc", [0, 1, 0]),
        ("bac", [0, 0, 1]),
    ]
    assert log.metadata["report"]["views"] == {"queries_with_several_views": 1, "by_time": 1}


def test_rows_at_one_rank_are_told_and_warned_of_from_a_few_per_mille_on(tmp_path: Path) -> None:
    table = views_of_users(500, again=0.0).drop_columns(["view", "time"])
    for extra, warned in ((3, False), (9, True)):
        more = table.slice(1, extra * RANKS).filter(np.arange(extra * RANKS) % RANKS == 2)
        more = more.set_column(2, "document", pa.array(["other"] * len(more)))
        log = prepare_log(in_file(tmp_path, pa.concat_tables([table, more])), tmp_path / f"log{extra}")
        assert log.metadata["report"]["dropped"]["duplicate_ranks"] == extra
        [found] = [w for w in log.metadata["report"]["warnings"] if "with another document" in w]
        assert found.startswith(f"{extra} of ")
        assert ("too flat or too steep" in found) == warned
        assert ("too few to change estimates by much" in found) != warned


def test_a_document_twice_in_its_list_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{i}\t0\tQ\tq\t0\ta\tb\ta\n{i}\t1\tC\ta\n" for i in range(9)))
    log = prepare_log(tmp_path / "log.txt", tmp_path / "log", format="yandex")
    assert log.metadata["report"]["dropped"]["duplicate_documents"] == 9
    assert any("a second time in their list" in w for w in log.metadata["report"]["warnings"])


def test_missing_ranks_are_warned_of(tmp_path: Path) -> None:
    later = prepare_log(write(tmp_path / "a.csv", "s,q,a,2,1\ns,q,b,3,0\n"), tmp_path / "a")
    assert later.metadata["report"]["warnings"] == [
        "no list shows rank 1: propensities relative to rank 1 have no meaning"
    ]
    gaps = prepare_log(write(tmp_path / "b.csv", "s,q,a,1,1\ns,q,b,3,0\n"), tmp_path / "b")
    assert "have gaps between their ranks" in gaps.metadata["report"]["warnings"][0]


def test_views_give_the_same_bytes_again(tmp_path: Path) -> None:
    raw = in_file(tmp_path, shuffled(views_of_users(200)))
    for name in ("a", "b"):
        prepare_log(raw, tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_rows_without_a_view_beside_rows_with_one_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "log.csv"
    rows = ["1,q,a,1,0,v1", "1,q,b,2,1,", "2,q,a,1,1,v1", "2,q,b,2,0,v1"]
    raw.write_text("\n".join(["session,query,document,rank,click,view", *rows]) + "\n")
    with pytest.raises(DataError, match="found none in 1 of 4 rows") as caught:
        prepare_log(raw, tmp_path / "out")
    assert (caught.value.row, caught.value.field) == (3, "view")
    raw.write_text(raw.read_text().replace("v1", ""))
    assert prepare_log(raw, tmp_path / "out").metadata["sessions"] == 2
