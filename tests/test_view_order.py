"""Pages of a column that are joined or dropped, whatever the order of the file, and views of a single rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_logs import HEADER, left, lists, prepare_log, write
from test_views import in_file, numbers, views_of_users

from ultr.errors import DataError

PAGES, DEPTH = 3, 4
COLUMN: dict[str, Any] = {"columns": {"view": "page"}}
TIMED: dict[str, Any] = {"columns": {"view": "page", "time": "when"}}

Row = tuple[str, str, int, int, str, int]


def pages_of_users(sessions: int, *, goes_on: bool = False) -> list[Row]:
    """Lists (session, document, rank, click, page, time) of users who see one to three pages of a query."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for session in range(sessions):
        documents = rng.permutation(PAGES * DEPTH)
        names = rng.permutation(PAGES)
        for page in range(int(rng.integers(1, PAGES + 1))):
            for place in range(DEPTH):
                rank = place + 1 + page * DEPTH * goes_on
                document = f"d{documents[page * DEPTH + place]}"
                rows.append((f"s{session}", document, rank, int(rng.random() < 0.4), f"p{names[page]}", 10 * page))
    return rows


def file(folder: Path, rows: list[Row], name: str = "log.csv") -> Path:
    return write(
        folder / name, "".join(f"{s},q,{d},{r},{c},{p},{t}\n" for s, d, r, c, p, t in rows), HEADER + ",page,when"
    )


def shuffled(rows: list[Row]) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]


def joined(rows: list[Row]) -> dict[str, list[tuple[str, int]]]:
    """Joins the pages of ordered rows: the documents and clicks of each session from rank 1 on."""
    out: dict[str, list[tuple[str, int]]] = {}
    for session, document, _, click, _, _ in rows:
        out.setdefault(session, []).append((document, click))
    return out


def rows_between_pages(rows: list[Row]) -> list[int]:
    """Counts the rows of each session in which a page begins before another one that began earlier has ended."""
    places: dict[str, dict[str, list[int]]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row[0], {}).setdefault(row[4], []).append(i)
    return [
        sum(len(p) for p in pages.values())
        for pages in places.values()
        if any(a[0] < b[0] < a[-1] for a in pages.values() for b in pages.values())
    ]


def found(log: Any) -> dict[str, list[tuple[str, int]]]:
    made = lists(log)
    assert len({x["session"] for x in made}) == len(made)
    assert all(x["ranks"] == list(range(1, len(x["ranks"]) + 1)) for x in made)
    return {x["session"]: list(zip(x["documents"], x["clicks"], strict=True)) for x in made}


@pytest.mark.parametrize("order", [list, shuffled])
@pytest.mark.parametrize("options", [{}, COLUMN, TIMED])
def test_the_first_rows_are_kept_whatever_numbers_the_views(tmp_path: Path, options: Any, order: Any) -> None:
    rows = order(pages_of_users(100))
    first: dict[tuple[str, int], tuple[str, int]] = {}
    for session, document, rank, click, _, _ in rows:
        first.setdefault((session, rank), (document, click))
    log = prepare_log(file(tmp_path, rows), tmp_path / "log", pages="first", **options)
    made = {
        (x["session"], rank): (document, click)
        for x in lists(log)
        for document, rank, click in zip(x["documents"], x["ranks"], x["clicks"], strict=True)
    }
    assert made == first
    assert len(log) == 100


def test_pages_of_a_shuffled_file_are_joined_by_time_alone(tmp_path: Path) -> None:
    rows = pages_of_users(100)
    expected = joined(rows)
    ordered = prepare_log(file(tmp_path, rows), tmp_path / "ordered", pages="joined", **COLUMN)
    assert found(ordered) == expected
    raw = file(tmp_path, shuffled(rows))
    timed = prepare_log(raw, tmp_path / "timed", pages="joined", **TIMED)
    assert found(timed) == expected
    several = sum(rows_between_pages(shuffled(rows)))
    with pytest.raises(
        DataError, match=f"found {several} of {len(rows):,} rows in .* no time.*--time COLUMN"
    ) as caught:
        prepare_log(raw, tmp_path / "log", pages="joined", **COLUMN)
    assert caught.value.field == "view"
    assert left(tmp_path) == ["log.csv", "ordered", "timed"]
    at_once = file(tmp_path, [(*row[:5], 7) for row in shuffled(rows)], "at_once.csv")
    with pytest.raises(DataError, match="begin at the same time"):
        prepare_log(at_once, tmp_path / "log", pages="joined", **TIMED)
    apart = prepare_log(raw, tmp_path / "apart", pages="separate", **COLUMN)
    assert len(apart) == len({(row[0], row[4]) for row in rows})


def test_pages_whose_ranks_go_on_need_no_order(tmp_path: Path) -> None:
    rows = pages_of_users(100, goes_on=True)
    log = prepare_log(file(tmp_path, shuffled(rows)), tmp_path / "log", pages="joined", **COLUMN)
    assert found(log) == joined(rows)
    assert log.metadata["report"]["warnings"] == []


def test_a_few_pages_in_disorder_are_warned_of(tmp_path: Path) -> None:
    rows = pages_of_users(400)
    begin = next(i for i in range(len(rows)) if rows[i][0] == rows[i + DEPTH][0])
    rows[begin + DEPTH - 1], rows[begin + DEPTH] = rows[begin + DEPTH], rows[begin + DEPTH - 1]
    log = prepare_log(file(tmp_path, rows), tmp_path / "log", pages="joined", **COLUMN)
    several = sum(row[0] == rows[begin][0] for row in rows)
    [warning] = log.metadata["report"]["warnings"]
    assert warning.startswith(f"{several} of {len(rows):,} rows belong to pages of which nothing says")


@pytest.mark.parametrize("again", [0.05, 1 / 3])
def test_views_of_one_rank_that_nothing_tells_apart_are_refused(tmp_path: Path, again: float) -> None:
    table = views_of_users(600, again=again)
    table = table.filter(numbers(table, "rank") == 1)
    assert len(prepare_log(in_file(tmp_path, table, "whole"), tmp_path / "views")) == len(table)
    timed = in_file(tmp_path, table.drop_columns(["view"]), "timed")
    assert len(prepare_log(timed, tmp_path / "timed")) == len(table)
    bare = in_file(tmp_path, table.drop_columns(["view", "time"]), "bare")
    with pytest.raises(DataError, match="order of the rows does not say") as caught:
        prepare_log(bare, tmp_path / "log")
    assert "in the order of the ranks" not in str(caught.value)
    assert "--view COLUMN" in str(caught.value)
    assert "--time COLUMN" in str(caught.value)
    first = prepare_log(bare, tmp_path / "first", pages="first")
    assert len(first) == 600
