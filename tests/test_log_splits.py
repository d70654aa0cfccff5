"""Splits of click logs: views by session, query and time, and the assignment behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stored import (
    QUERIES,
    SMALL_FILES,
    make_rows,
    plain,
    streamed,
    write_log,
)

from ultr.data import ClickLog, assign_split, open_data, query_folds
from ultr.data.splits import assign_by_time, first_rows, session_keys
from ultr.errors import ConfigError, DataError


@pytest.mark.parametrize("by", ["session", "query", "time"])
def test_splits_are_disjoint_and_complete(tmp_path: Path, by: Any) -> None:
    rows = make_rows(100)
    parts = write_log(tmp_path / "log", rows, **SMALL_FILES).split(
        {"train": 0.5, "valid": 0.25, "test": 0.25}, by=by, seed=1
    )
    assert list(parts) == ["train", "valid", "test"]
    found = {name: streamed(part, seed=0) for name, part in parts.items()}
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(100))
    assert {name: len(part) for name, part in parts.items()} == {name: len(n) for name, n in found.items()}
    assert all(sorted(streamed(part)) == sorted(found[name]) for name, part in parts.items())
    if by == "query":
        queries = [{rows[n]["query"] for n in numbers} for numbers in found.values()]
        assert sum(map(len, queries)) == len(QUERIES) == len(set.union(*queries))
    if by == "time":
        assert [len(numbers) for numbers in found.values()] == [50, 25, 25]
        ends = [(min(rows[n]["time"] for n in x), max(rows[n]["time"] for n in x)) for x in found.values()]
        assert ends[0][1] < ends[1][0]
        assert ends[1][1] < ends[2][0]


def test_lists_of_one_time_go_to_one_split() -> None:
    shares = {"a": 0.25, "b": 0.5, "c": 0.25}
    codes = assign_by_time(np.repeat([3.0, 1.0], 500), shares)
    assert codes.tolist() == [1] * 500 + [0] * 500  # the middle of the first 500 lies below 250
    rng = np.random.default_rng(0)
    times = rng.integers(0, 40, 1000)
    codes = assign_by_time(times, shares)
    ends = [(times[codes == code].min(), times[codes == code].max()) for code in range(3)]
    assert ends[0][1] < ends[1][0]
    assert ends[1][1] < ends[2][0]
    most = np.bincount(times).max()
    for code, share in enumerate(shares.values()):
        assert abs((codes == code).sum() - 1000 * share) <= most


def several_lists_per_session(rows: list[dict[str, Any]], kind: type = str) -> list[dict[str, Any]]:
    """Makes a session of every three lists that stand 20 apart."""
    return [row | {"session": kind(i % 20 + 20 * (i // 60))} for i, row in enumerate(rows)]


@pytest.mark.parametrize("kind", [str, int])
def test_a_session_is_in_one_split(tmp_path: Path, kind: type) -> None:
    rows = several_lists_per_session(make_rows(600), kind)
    log = write_log(tmp_path / "log", rows, **SMALL_FILES)
    halves = {"a": 0.5, "b": 0.5}

    def sessions(part: ClickLog) -> list[Any]:
        return [row["session"] for batch in part.columns(["session"]) for row in batch.to_pylist()]

    parts = log.split(halves, seed=2)
    a, b = (sessions(part) for part in parts.values())
    assert (len(a) + len(b), set(a) & set(b)) == (600, set())
    assert abs(len(set(a)) - 100) < 4 * math.sqrt(200 * 0.25)
    again = parts["a"].split(halves, seed=2)
    assert not set(sessions(again["a"])) & set(sessions(again["b"]))
    lists = log.split(halves, by="list", seed=2)
    assert set(sessions(lists["a"])) & set(sessions(lists["b"]))


def test_sessions_of_one_list_are_split_as_lists(tmp_path: Path) -> None:
    rows = [row | {"session": f"of {i}"} for i, row in enumerate(make_rows(100))]
    log = write_log(tmp_path / "log", rows, **SMALL_FILES)
    by_session, by_list = (log.split({"a": 0.5, "b": 0.5}, by=by, seed=3)["a"] for by in ("session", "list"))
    assert streamed(by_session) == streamed(by_list)


def test_keys_of_sessions_differ_where_the_sessions_do() -> None:
    rng = np.random.default_rng(0)
    names = ["", "a", "b" * 8, "b" * 9, "ä", *(rng.bytes(int(n)).hex() for n in rng.integers(0, 20, 5000))]
    array = pa.array(["skipped", *names, names[1], "b" * 9])[1:]
    keys = session_keys(array)
    first = {name: i for i, name in reversed(list(enumerate(array.to_pylist())))}
    assert first_rows(keys).tolist() == [first[name] for name in array.to_pylist()]
    assert first_rows(np.array([5, 3, 5, 7, 3])).tolist() == [0, 1, 0, 3, 1]


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_rows(100))
    halves = {"a": 0.5, "b": 0.5}
    first, again, other = (streamed(log.split(halves, seed=seed)["a"]) for seed in (0, 0, 1))
    assert first == again != other


def test_a_split_of_a_split_is_drawn_anew(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(2000, length=1)), step=2000)
    first = log.split({"a": 0.5, "b": 0.5}, seed=0)["a"]
    second = first.split({"a": 0.5, "b": 0.5}, seed=0)
    assert len(second["a"]) + len(second["b"]) == len(first)
    spread = math.sqrt(len(first) * 0.5 * 0.5)
    assert abs(len(second["a"]) - 0.5 * len(first)) < 4 * spread
    assert set(streamed(second["a"])) | set(streamed(second["b"])) == set(streamed(first))


def test_a_time_split_needs_times(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(5)))
    with pytest.raises(DataError, match="expected a column 'time'"):
        log.split({"a": 1.0}, by="time", seed=0)
    with pytest.raises(ConfigError, match="expected by='session', 'query', 'time' or 'list', found 'day'"):
        log.split({"a": 1.0}, by="day", seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": math.nan}])
def test_fractions_add_up_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        assign_split(np.arange(3), fractions, 0)


def test_a_split_takes_its_share_whatever_the_order_of_the_keys() -> None:
    keys, shares = np.arange(20_000), {"a": 0.7, "b": 0.2, "c": 0.1}
    codes = assign_split(keys, shares, 4)
    for code, share in enumerate(shares.values()):
        spread = math.sqrt(share * (1 - share) / len(keys))
        assert abs((codes == code).mean() - share) < 4 * spread
    order = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(assign_split(keys[order], shares, 4), codes[order])
    np.testing.assert_array_equal(assign_split(keys.astype(np.int32), shares, 4), codes)
    for other in (assign_split(keys, shares, 5), assign_split(keys, shares, 4, salt=1)):
        both, spread = 0.7 * 0.7, math.sqrt(0.49 * 0.51 / len(keys))
        assert abs(((codes == 0) & (other == 0)).mean() - both) < 4 * spread


def test_a_prepared_split_is_opened_by_name(tmp_path: Path) -> None:
    rows = [row | {"split": "train" if i % 3 else "test"} for i, row in enumerate(make_rows(50))]
    log = write_log(tmp_path / "log", rows, **SMALL_FILES)
    assert log.metadata["splits"] == {"test": 17, "train": 33}
    test = ClickLog.open(log.path, split="test")
    assert len(test) == 17
    assert sorted(streamed(test)) == list(range(0, 50, 3))
    assert len(open_data(log.path, split="train")) == 33
    with pytest.raises(DataError, match=r"expected one of the splits \['test', 'train'\], found 'valid'"):
        ClickLog.open(log.path, split="valid")


def test_folds_of_queries_are_equal_in_size_and_leave_none_out() -> None:
    shown = np.random.default_rng(0).random(100) < 0.7
    found = query_folds(shown, 5, seed=1)
    assert ((found >= 0) == shown).all()
    sizes = np.bincount(found[shown], minlength=5)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(query_folds(shown, 5, seed=1), found)
    assert (query_folds(shown, 5, seed=2) != found).any()
    for folds in (0, 71):
        with pytest.raises(ConfigError, match="expected from 1 fold to as many as there are queries"):
            query_folds(shown, folds, seed=0)
