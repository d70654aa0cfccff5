"""A column of views that does not number views cuts lists apart: by name it is not used, named it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from raw_logs import HEADER, left, lists, prepare_log, write
from test_views import RANKS, in_file, numbers, views_of_users

from ultr.errors import DataError

SESSIONS = 300


def with_view(table: pa.Table, values: np.ndarray, name: str = "view") -> pa.Table:
    return table.drop_columns(["view"]).append_column(name, pa.array(values))


def flags(table: pa.Table) -> np.ndarray:
    """Tells which rows a reader of the first ranks had on the screen."""
    reach = np.random.default_rng(4).integers(1, RANKS + 1, 10_000)
    owner = [int(name[1:]) for name in table["session"].to_pylist()]
    return (numbers(table, "rank") <= reach[owner]).astype(int)


def coins(table: pa.Table) -> np.ndarray:
    """Draws flags that have nothing to do with the rank."""
    return np.random.default_rng(5).integers(0, 2, len(table))


def row_ids(table: pa.Table) -> np.ndarray:
    return np.arange(len(table)) + 17


MEANINGS: dict[str, Callable[[pa.Table], np.ndarray]] = {"flags": flags, "coins": coins, "row ids": row_ids}


@pytest.mark.parametrize("again", [0.0, 1 / 3])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_column_called_view_that_cuts_lists_apart_is_not_used(tmp_path: Path, meaning: str, again: float) -> None:
    table = views_of_users(SESSIONS, again=again)
    plain = prepare_log(in_file(tmp_path, table.drop_columns(["view"]), "plain"), tmp_path / "plain")
    log = prepare_log(in_file(tmp_path, with_view(table, MEANINGS[meaning](table))), tmp_path / "log")
    assert lists(log) == lists(plain)
    assert (plain.metadata["report"].get("views")) == log.metadata["report"].get("views")
    [note] = log.metadata["report"]["warnings"]
    assert note.startswith("the column 'view' was not used")
    assert "--view view --pages separate" in note


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_named_column_that_cuts_lists_apart_is_refused_with_numbers(tmp_path: Path, meaning: str, first: int) -> None:
    table = views_of_users(SESSIONS, again=0.0)
    table = table.filter(numbers(table, "rank") >= first)  # ranks of a log may begin later
    values = MEANINGS[meaning](table)
    raw = in_file(tmp_path, with_view(table, values, "shown"))
    with pytest.raises(DataError, match="cuts lists apart") as caught:
        prepare_log(raw, tmp_path / "log", columns={"view": "shown"})
    parts: dict[tuple[str, int], list[int]] = {}
    for session, value, rank in zip(table["session"].to_pylist(), values, numbers(table, "rank"), strict=True):
        parts.setdefault((session, int(value)), []).append(int(rank))
    single = sum(len(ranks) == 1 for ranks in parts.values())
    late = sum(min(ranks) > first for ranks in parts.values())
    text = str(caught.value)
    assert f"Of the {len(parts):,} lists that the column makes, {single:,} hold one row and {late:,} begin" in text
    assert "leave --view out" in text
    assert "--pages separate" in text
    assert (caught.value.field, left(tmp_path)) == ("shown", ["log.parquet"])
    forced = prepare_log(raw, tmp_path / "log", columns={"view": "shown"}, pages="separate")
    assert len(forced) == len(parts)


def test_pages_whose_ranks_go_on_are_joined(tmp_path: Path) -> None:
    rows = "".join(f"s{s},q,{d},{r},0,{(r + 1) // 2}\n" for s in range(9) for r, d in enumerate("abcd", 1))
    raw = write(tmp_path / "log.csv", rows, HEADER + ",page")
    with pytest.raises(DataError, match="--pages joined"):
        prepare_log(raw, tmp_path / "log", columns={"view": "page"})
    joined = prepare_log(raw, tmp_path / "joined", columns={"view": "page"}, pages="joined")
    assert [("".join(x["documents"]), x["ranks"]) for x in lists(joined)] == [("abcd", [1, 2, 3, 4])] * 9


def test_flags_are_no_pages(tmp_path: Path) -> None:
    table = views_of_users(SESSIONS, again=0.0)
    raw = in_file(tmp_path, with_view(table, coins(table), "shown"))
    with pytest.raises(DataError, match="cuts lists apart"):
        prepare_log(raw, tmp_path / "log", columns={"view": "shown"}, pages="joined")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("ranks", [3, RANKS])
@pytest.mark.parametrize("named", [False, True])
def test_views_of_which_rows_are_missing_are_views(
    tmp_path: Path, named: bool, ranks: int, kept: float, seed: int
) -> None:
    table = views_of_users(SESSIONS, again=1.0, seed=seed)
    rows = (np.random.default_rng(seed).random(len(table)) < kept) & (numbers(table, "rank") <= ranks)
    table = table.filter(rows).drop_columns(["time"])
    columns: dict[str, Any] = {"columns": {"view": "view"}} if named else {}
    log = prepare_log(in_file(tmp_path, table), tmp_path / "log", **columns)
    views = {*zip(table["session"].to_pylist(), table["view"].to_pylist(), strict=True)}
    assert len(log) == len(views)


def test_a_few_pages_among_views_are_warned_of(tmp_path: Path) -> None:
    views = "".join(f"s{s},q,{d},{r},0,{v}\n" for s in range(9) for v in (1, 2) for r, d in enumerate("ab", 1))
    pages = "".join(f"t{s},q,{d},{r},0,{(r + 1) // 2}\n" for s in range(3) for r, d in enumerate("abcd", 1))
    log = prepare_log(write(tmp_path / "log.csv", views + pages, HEADER + ",view"), tmp_path / "log")
    assert len(log) == 9 * 2 + 3 * 2
    assert any(
        "in 3 of the 12 sessions and queries with several views, the views together are one list" in warning
        for warning in log.metadata["report"]["warnings"]
    )
