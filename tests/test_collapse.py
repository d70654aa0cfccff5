"""What a log says, each fact once: the same numbers as a dictionary counts, the same losses as on the log itself."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from narrowing import present
from stored import PER_QUERY, QUERIES, documents_table, make_rows, plain, replace, rewrite, write_log

from ultr import models, towers
from ultr.data import ClickLog, Counts, collapse
from ultr.data.columns import MAX_RANKS
from ultr.data.counting import cell_sums, count_cells, last_click_key
from ultr.data.distinct import session_hashes, write_distinct_sessions
from ultr.data.grouping import DenseSums, SortedGroups, group_starts, sum_by_key
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions, concatenate

COLUMNS = ("document", "rank", "last_click", "impressions", "clicks")
BY = ("rank", "last-click")
LARGE, TINY = 1 << 30, 2000  # memory: all of a test's log, and some fifty impressions

every_by = pytest.mark.parametrize("by", BY)


def repeating(count: int = 300, *, seed: int = 0, **extra: Any) -> list[dict[str, Any]]:
    """Sessions on twelve lists of 1 to 11 documents with gaps in their ranks; many have the same clicks as well."""
    rng = np.random.default_rng(seed)
    lists = plain(make_rows(12, seed=seed))
    rows = []
    for i in range(count):
        row = lists[int(rng.integers(len(lists)))]
        clicks = (rng.random(len(row["clicks"])) < 0.15).astype(int).tolist()
        rows.append(row | {"session": str(i), "clicks": clicks, "weight": float(rng.integers(4)) / 2} | extra)
    return rows


def unweighted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "weight"} for row in rows]


def counted(rows: list[dict[str, Any]], by: str) -> list[tuple[Any, ...]]:
    """(document, rank, last click, impressions, clicks) in order."""
    cells: defaultdict[tuple[int, ...], list[float]] = defaultdict(lambda: [0, 0])
    for row in rows:
        last = 0
        for document, rank, click in zip(row["documents"], row["ranks"], row["clicks"], strict=True):
            cell = cells[document, rank, last if by == "last-click" else -1]
            cell[0] += row.get("weight", 1)
            cell[1] += row.get("weight", 1) * click
            last = rank if click else last
    return [(*cell, *cells[cell]) for cell in sorted(cells) if cells[cell][0]]


def cells(counts: Counts) -> list[tuple[Any, ...]]:
    last = np.full(len(counts), -1) if counts.last_click is None else counts.last_click
    columns = (counts.document, counts.rank, last, counts.impressions, counts.clicks)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def assert_same(a: Counts, b: Counts) -> None:
    for name in COLUMNS:
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert x is None or x.dtype == y.dtype
    for name in ("sufficient_statistics", "sessions", "weight", "documents", "ranks", "identity"):
        assert getattr(a, name) == getattr(b, name), name


# --- Counts -----------------------------------------------------------------------------------------------


@every_by
@pytest.mark.parametrize("memory", [LARGE, TINY])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", [repeating, lambda: plain(make_rows(200))], ids=["repeating", "all different"])
def test_counts_are_those_of_a_dictionary(tmp_path: Path, by: Any, memory: int, weighted: bool, make: Any) -> None:
    rows = make() if weighted else unweighted(make())
    log = write_log(tmp_path / "log", rows)
    counts = collapse(log, by, memory=memory)
    assert cells(counts) == counted(rows, by)
    assert [getattr(counts, name).dtype for name in ("document", "rank")] == [np.int32, np.int32]
    assert counts.impressions.dtype == counts.clicks.dtype == (np.float64 if weighted else np.int64)
    assert (counts.last_click is None) == (by == "rank")
    assert counts.sessions == len(rows)
    assert counts.weight == sum(row.get("weight", 1) for row in rows)
    assert (counts.sufficient_statistics, counts.documents, counts.ranks) == (by, log.documents, log.ranks)
    assert repr(counts) == f"Counts(by {by}: {len(counts):,} cells, {len(rows)} sessions, 140 documents)"
    copies = {"weights": "not copies"} if log.weighted else {}
    assert counts.identity == log.identity | {"by": by} | copies


@every_by
def test_dense_sums_and_sorted_runs_count_the_same(tmp_path: Path, by: Any) -> None:
    for name, rows in {"plain": unweighted(repeating()), "weighted": repeating()}.items():
        log = write_log(tmp_path / name, rows)
        extra = last_click_key(log) if by == "last-click" else None
        counts = collapse(log, by)
        wanted = (counts.document, counts.rank, counts.last_click, counts.impressions, counts.clicks, counts.weight)
        for dense_keys, used in ((0, SortedGroups), (1 << 40, DenseSums)):
            assert type(cell_sums(log, extra, memory=LARGE, dense_keys=dense_keys)) is used
            found = count_cells(log, extra, memory=LARGE, dense_keys=dense_keys)
            for field, x, y in zip(found._fields, found, wanted, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=field)
                assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


@every_by
def test_ranges_of_documents_that_were_never_shown(tmp_path: Path, by: Any) -> None:
    """Dense sums are read piece by piece, some millions of keys each: here whole pieces are empty."""
    rows = unweighted(repeating())
    ranks = max(max(row["ranks"]) for row in rows)
    queries = (1 << 24) // (2 * PER_QUERY * ranks * (1 if by == "rank" else ranks + 1))
    table = documents_table(labels=False, features=False, queries=queries)
    log = write_log(tmp_path / "log", rows, documents=table, queries=pa.array(np.arange(queries).astype(str)))
    extra = last_click_key(log) if by == "last-click" else None
    with cell_sums(log, extra, memory=LARGE, dense_keys=1 << 40) as sums:
        assert type(sums) is DenseSums
    found = count_cells(log, extra, memory=LARGE, dense_keys=1 << 40)
    assert cells(collapse(log, by)) == counted(rows, by)
    assert len(found.document) == len(counted(rows, by))


@every_by
def test_more_cells_than_fit_in_32_bits(tmp_path: Path, by: Any) -> None:
    # Two cells per document, rank and last click: more documents make more of them than the ranks of a list can.
    most = MAX_RANKS if by == "rank" else MAX_RANKS * (MAX_RANKS + 1)
    queries = 1 + (1 << 32) // (2 * most * PER_QUERY)
    table = documents_table(labels=False, features=False, queries=queries)
    names = pa.array(np.arange(queries).astype(str))
    rows = [row | {"ranks": [*row["ranks"][:-1], MAX_RANKS]} for row in repeating(50)]
    log = write_log(tmp_path / "log", rows, queries=names, documents=table)
    assert 2 * log.documents * most > 1 << 32
    for memory in (LARGE, TINY):
        assert cells(collapse(log, by, memory=memory)) == counted(rows, by)


def test_views_count_their_own_sessions(tmp_path: Path) -> None:
    named = [row | {"split": "ab"[i % 3 == 0]} for i, row in enumerate(repeating())]
    log = write_log(tmp_path / "log", named)
    by: Any
    for split in "ab":
        inside = [row for row in named if row["split"] == split]
        for by in BY:
            counts = collapse(ClickLog.open(log.path, split=split), by)
            assert cells(counts) == counted(inside, by)
            assert counts.sessions == len(inside)
            assert counts.identity["split"] == split
    whole = collapse(log, "rank")
    parts = [collapse(part, "rank") for part in log.split({"x": 0.7, "y": 0.3}, seed=1).values()]
    assert 0 < parts[0].sessions < whole.sessions == sum(part.sessions for part in parts)
    for name in ("impressions", "clicks"):
        assert sum(getattr(part, name).sum() for part in parts) == getattr(whole, name).sum()


@every_by
@pytest.mark.parametrize("weighted", [False, True])
def test_counts_of_some_queries_are_those_of_their_sessions(tmp_path: Path, by: Any, weighted: bool) -> None:
    rows = repeating() if weighted else unweighted(repeating())
    for row in rows:
        row["ranks"] = list(range(1, len(row["ranks"]) + 1))  # so that every list shows rank 1
    log = write_log(tmp_path / "log", rows)
    whole = collapse(log, by)
    for seed in range(3):
        chosen = np.random.default_rng(seed).random(len(QUERIES)) < 0.5
        part = log.select_queries(chosen)
        inside = [row for row in rows if chosen[row["query"]]]
        found, wanted = whole.select_queries(chosen), collapse(part, by)
        assert cells(found) == cells(wanted) == counted(inside, by)
        assert part.sessions == len(inside)
        assert found.weight == wanted.weight
        assert found.sessions == wanted.sessions or weighted
        assert found.description.rows_per_session == pytest.approx(wanted.description.rows_per_session)
        assert found.identity != whole.identity
        assert part.identity != log.identity
    weights = np.bincount([row["query"] for row in rows], [row.get("weight", 1) for row in rows], len(QUERIES))
    np.testing.assert_allclose(whole.query_weights, weights)
    nothing = whole.select_queries(np.zeros(len(QUERIES), bool))
    assert (len(nothing), nothing.sessions, nothing.weight) == (0, 0, 0.0)
    for source in (whole, log):
        for wrong in (np.ones(3, bool), np.ones(len(QUERIES), int)):
            with pytest.raises(ConfigError, match="expected a truth value for each of 7 queries"):
                source.select_queries(wrong)


def test_impression_features_are_refused_and_context_left_out(tmp_path: Path) -> None:
    rows = make_rows(50)
    log = write_log(tmp_path / "log", rows)
    by: Any
    for by in BY:
        with pytest.raises(ConfigError, match=r"impression features \(bm25, age\).*sufficient_statistics='list'"):
            collapse(log, by)
    rows = [{name: value for name, value in row.items() if not name.startswith("feature.")} for row in rows]
    counts = collapse(write_log(tmp_path / "context", rows), "rank")
    assert cells(counts) == counted(rows, "rank")
    assert set(next(counts.batches(8)).features) == {"document", "features"}


def test_unusable_arguments(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", repeating(20))
    with pytest.raises(ConfigError, match=r"sufficient_statistics of 'rank', 'last-click', .*'list'.*found 'document'"):
        collapse(log, "document")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="pass directory="):
        collapse(log, "list", directory=None)
    with pytest.raises(ConfigError, match="at least 1 byte, found 0"):
        collapse(log, "rank", memory=0)
    with pytest.raises(ConfigError, match="batch_size as a whole number of at least 1, found 0"):
        next(collapse(log, "rank").batches(0))


# --- Counts as batches ------------------------------------------------------------------------------------


@every_by
@pytest.mark.parametrize("seed", [None, 3])
def test_a_cell_gives_a_row_with_clicks_and_one_without(tmp_path: Path, by: Any, seed: int | None) -> None:
    counts = collapse(write_log(tmp_path / "log", repeating()), by)
    found = []
    batches = list(counts.batches(32, seed=seed))
    for batch in batches:
        batch.validate()
        assert batch.shape == (32, 1)
        table = documents_table()
        ids = batch.features["document"][:, 0]
        known = batch.mask[:, 0]
        np.testing.assert_array_equal(batch.features["features"][known, 0], np.stack([ids, -ids], 1)[known])
        grades = np.concatenate([[np.nan], table["label"].to_numpy()]).astype(np.float32)
        np.testing.assert_array_equal(present(batch.labels)[known, 0], grades[ids[known]])
        last = np.full(len(ids), -1) if by == "rank" else present(batch.last_click)[:, 0]
        assert (batch.last_click is None) == (by == "rank")
        rank = batch.position[:, 0] + 1
        columns = (ids, rank, last, present(batch.clicks)[:, 0], batch.weight)
        found += list(zip(*(present(column)[known].tolist() for column in columns), strict=True))
        assert (present(batch.weight)[~known] == 0).all()
    assert all(batch.mask.all() for batch in batches[:-1])
    expected = []
    for *cell, impressions, clicks in cells(counts):
        expected += [(*cell, 0, impressions - clicks)] if impressions > clicks else []
        expected += [(*cell, 1, clicks)] if clicks else []
    assert (found == expected) == (seed is None)
    order = [row[0] for row in found]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    rows: dict[Any, list[float]] = {}  # a heavy document comes several times, with parts of its weight
    for *key, weight in found:
        rows.setdefault(tuple(key), []).append(weight)
    assert [list(key) for key in sorted(rows)] == [key for *key, _ in expected]
    np.testing.assert_allclose([sum(rows[k]) for k in sorted(rows)], [w for *_, w in expected], rtol=1e-5)
    parts = {key[0]: len(weights) for key, weights in rows.items()}
    assert seed is not None or set(parts.values()) == {1}
    assert changes <= sum(parts.values()) - 1  # the rows of a part stand together


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    counts = collapse(write_log(tmp_path / "log", repeating()), "rank")

    def order(seed: int) -> list[int]:
        return np.concatenate([b.features["document"][:, 0] for b in counts.batches(16, seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)


def test_unseen_documents(tmp_path: Path) -> None:
    rows = [row for row in repeating(400, seed=1) if row["query"] < 3]
    small = {"queries": pa.array(QUERIES[:2]), "documents": documents_table(queries=2)}
    first = write_log(tmp_path / "first", [row for row in rows if row["query"] < 2], **small)
    for features in (True, False):
        large = {
            "queries": pa.array(QUERIES[:3]),
            "documents": documents_table(queries=3, features=features, labels=features),
        }
        path = write_log(tmp_path / f"second {features}", rows, parent=first, **large).path
        log = ClickLog.open(path, vocabulary=first)
        counts = collapse(log, "rank", directory=tmp_path / f"counts {features}")
        known = [[d if d <= first.documents else 0 for d in row["documents"]] for row in rows]
        assert any(0 in row for row in known)
        if not features:
            rows_known = [row | {"documents": ids} for row, ids in zip(rows, known, strict=True)]
            assert cells(counts) == counted(rows_known, "rank")
        for source in (counts, Counts.open(tmp_path / f"counts {features}")):
            assert source.documents == first.documents
            assert max(int(b.features["document"].max()) for b in source.batches(8)) <= first.documents
        lists = collapse(log, "list", directory=tmp_path / f"lists {features}")
        again = ClickLog.open(lists.path, vocabulary=first)
        for b, c in zip(lists.batches(8), again.batches(8), strict=True):
            jax.tree.map(np.testing.assert_array_equal, b, c)
        tower: towers.Tower = towers.DocumentTable(first.documents)
        if features:
            tower = towers.Sum([tower, towers.Linear(2, rngs=nnx.Rngs(0))])
        loss = loss_of(models.DCTR(tower))
        for statistics in (counts, lists):
            assert_same_loss(loss(statistics), loss(log))


# --- Counts on disk ---------------------------------------------------------------------------------------


@every_by
@pytest.mark.parametrize("weighted", [False, True])
def test_saved_counts_are_read_back(tmp_path: Path, by: Any, weighted: bool) -> None:
    rows = repeating() if weighted else unweighted(repeating())
    log = write_log(tmp_path / "log", rows)
    counts = collapse(log, by, directory=tmp_path / "counts", memory=TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["counts", "log"]
    found = Counts.open(tmp_path / "counts")
    assert_same(found, counts)
    assert found.vocabulary.identity == log.vocabulary.identity
    for a, b in zip(found.batches(16, seed=1), counts.batches(16, seed=1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    found.save(tmp_path / "again")
    assert_same(Counts.open(tmp_path / "again"), counts)
    with pytest.raises(DataError, match="something already stands here"):
        collapse(log, by, directory=tmp_path / "counts")


def test_folders_that_are_not_whole_counts(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", unweighted(repeating()))
    with pytest.raises(DataError, match=r"expected counts \(ultr-counts\), found ultr-click-log"):
        Counts.open(log.path)
    with pytest.raises(DataError, match="expected the folder"):
        Counts.open(tmp_path / "none")
    collapse(log, "last-click", directory=tmp_path / "counts")
    with pytest.raises(DataError, match="ultr-counts"):
        ClickLog.open(tmp_path / "counts")
    file = tmp_path / "counts" / "counts.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"counts\.parquet: expected .* bytes, found"):
        Counts.open(tmp_path / "counts")
    for at in (len(whole) // 4, len(whole) - 20):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"counts\.parquet: "):
            Counts.open(tmp_path / "counts")
    file.unlink()
    with pytest.raises(DataError, match="it is missing"):
        Counts.open(tmp_path / "counts")
    file.write_bytes(whole)
    metadata = tmp_path / "counts" / "metadata.json"
    text = metadata.read_text()
    for change, message in {
        ('"schema": 1', '"schema": 2'): "prepared with schema 2, this version reads 1",
        ('"by": "last-click"', '"by": "list"'): "found 'list'",
        ('"ranks": ', '"rnks": '): "field 'ranks': expected a value, found none",
        ('"weight": ', '"weight": -'): "field 'weight': expected float >= 0.0, found -",
    }.items():
        metadata.write_text(text.replace(*change))
        with pytest.raises(DataError, match=message):
            Counts.open(tmp_path / "counts")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("document", 1000, "document ids of 0 to 140, found 1000"),
        ("rank", 0, "ranks of 1 to "),
        ("last_click", 15, "0 or a rank above the document, found 15"),
        ("impressions", 0, "a finite number above 0, found 0"),
        ("clicks", 10**6, "from 0 to the impressions, found 1000000"),
        ("document", 0, "cells sorted by document, rank and last click"),
        ("rank", None, "found null"),
    ],
)
def test_counts_out_of_range(tmp_path: Path, column: str, value: Any, message: str) -> None:
    log = write_log(tmp_path / "log", unweighted(repeating()))
    collapse(log, "last-click", directory=tmp_path / "counts")
    fake: Any = type("Folder", (), {"path": tmp_path / "counts"})
    rewrite(fake, replace(column, 5, value), name="counts.parquet")
    with pytest.raises(DataError, match=message) as caught:
        Counts.open(tmp_path / "counts")
    assert caught.value.field == column


@pytest.mark.parametrize("by", [*BY, "list"])
def test_a_damaged_log_leaves_nothing(tmp_path: Path, by: Any) -> None:
    log = write_log(tmp_path / "log", unweighted(repeating()))
    rewrite(log, replace("clicks", 250, [7] * len(log_row(log, 250))))
    with pytest.raises(DataError, match=r"row 251, field 'clicks'"):
        collapse(ClickLog.open(log.path), by, directory=tmp_path / "out", memory=TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def log_row(log: ClickLog, row: int) -> list[int]:
    return pa.Table.from_batches(log.columns(["clicks"]))["clicks"].to_pylist()[row]


# --- Distinct lists ---------------------------------------------------------------------------------------


def contents(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What of each row decides whether it is the same as another, and its weight."""
    skipped = ("session", "weight", "time", "split")
    return [(str({n: row[n] for n in sorted(row) if n not in skipped}), row.get("weight", 1)) for row in rows]


def stored(log: ClickLog, names: Any) -> list[dict[str, Any]]:
    return pa.Table.from_batches(log.columns(list(names))).to_pylist()


@pytest.mark.parametrize("memory", [LARGE, TINY])
@pytest.mark.parametrize("weighted", [False, True])
def test_distinct_lists_are_those_of_a_dictionary(tmp_path: Path, memory: int, weighted: bool) -> None:
    rows = repeating(400, split="a", time=1.0) + make_rows_again()
    rows = [row | {"split": "ab"[i % 2], "time": float(i)} for i, row in enumerate(rows)]
    if not weighted:
        rows = unweighted(rows)
    log = write_log(tmp_path / "log", rows, truth={"log_likelihood": -1.5})
    made = collapse(log, "list", directory=tmp_path / "lists", memory=memory)
    names = [name for name in rows[0] if name not in ("session", "time", "split")]
    names += [] if weighted else ["weight"]
    expected: dict[str, float] = {}
    for content, weight in contents(rows):
        expected[content] = expected.get(content, 0) + weight
    assert len(expected) < 0.8 * len(rows)
    assert contents(stored(made, names)) == list(expected.items())  # in the order in which they first came
    assert made.sessions == len(made) == len(expected)
    assert made.vocabulary.identity == log.vocabulary.identity
    assert (made.ranks, made.documents, made.metadata["splits"]) == (log.ranks, log.documents, {})
    total = sum(weight for _, weight in contents(rows))
    about = {"sessions": len(rows), "weight": total, "log": log.identity, "copies": not log.weighted}
    assert made.metadata["report"] == {"collapsed": about}
    assert made.metadata["truth"] == {"log_likelihood": -1.5}
    assert [row["session"] for row in stored(made, ["session"])] == list(range(len(expected)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lists", "log"]


def make_rows_again() -> list[dict[str, Any]]:
    """Sessions of which none is the same as another."""
    return plain(make_rows(60, seed=3))


def test_a_view_is_made_distinct(tmp_path: Path) -> None:
    rows = [row | {"split": "ab"[i % 2]} for i, row in enumerate(repeating())]
    log = write_log(tmp_path / "log", rows)
    made = collapse(ClickLog.open(log.path, split="b"), "list", directory=tmp_path / "lists", memory=TINY)
    inside = [row for row in rows if row["split"] == "b"]
    assert made.metadata["report"]["collapsed"]["sessions"] == len(inside)
    assert len(made) == len({content for content, _ in contents(inside)})


def test_lists_that_differ_anywhere_stay_apart(tmp_path: Path) -> None:
    row = make_rows(1, length=3)[0] | {"weight": 1.0}
    documents, ranks = row["documents"], row["ranks"]
    variants: list[dict[str, Any]] = [
        {},
        {"query": (row["query"] + 1) % len(QUERIES)},
        {"documents": documents[::-1]},
        {"documents": [documents[0], documents[2], documents[1]]},
        {"ranks": [*ranks[:-1], ranks[-1] + 1]},
        {"context.device": (row["context.device"] + 1) % 3},
        {"context.price": row["context.price"] + 1},
        {"feature.age": row["feature.bm25"], "feature.bm25": row["feature.age"]},
        {"feature.age": row["feature.age"][::-1]},
        {name: row[name][:2] for name in row if isinstance(row[name], list)},
        *({"clicks": [i >> 2, i >> 1 & 1, i & 1]} for i in range(8) if [i >> 2, i >> 1 & 1, i & 1] != row["clicks"]),
    ]
    log = write_log(tmp_path / "log", [row | variant for variant in variants] * 2)
    assert collapse(log, "list", directory=tmp_path / "lists").sessions == len(variants)
    # Also where half of the hash is of no use.
    halves: dict[str, Callable[[Any], Any]] = {"first": np.zeros_like, "few": lambda x: x % np.uint64(4)}
    for name, half in halves.items():

        def weak(*args: Any, half: Callable[[Any], Any] = half) -> tuple[np.ndarray, np.ndarray]:
            first, second = session_hashes(*args)
            return half(first), second

        for memory in (LARGE, TINY):
            folder = tmp_path / f"{name} {memory}"
            made = write_distinct_sessions(log, folder, memory=memory, hash_sessions=weak)
            assert stored(made, ["weight"]) == [{"weight": 2.0}] * len(variants)


# --- The same losses --------------------------------------------------------------------------------------


def loss_of(model: models.ClickModel) -> Callable[[Any], Any]:
    """From a source to the weighted sum of its losses and the gradient of that, at random parameters."""
    with jax.enable_x64(True):
        graphdef, state = nnx.split(model)
        rng = np.random.default_rng(7)
        state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), state)

    def total(state: Any, batch: Sessions) -> Any:
        loss = nnx.merge(graphdef, state).loss(batch)
        possible = jnp.isfinite(loss)
        weight = batch.mask[:, 0] * present(batch.weight)
        return jnp.sum(jnp.where(possible, weight * loss, 0.0)), jnp.sum(jnp.where(possible, weight, 0.0))

    step = jax.jit(jax.value_and_grad(total, has_aux=True))

    def of(source: Any) -> Any:
        batch = concatenate(list(source.batches(512)))
        with jax.enable_x64(True):
            batch = batch.replace(weight=present(batch.weight).astype(np.float64))
            return jax.tree.map(np.asarray, step(state, batch))

    return of


def assert_same_loss(found: Any, wanted: Any) -> None:
    ((found_loss, _), found_gradient), ((loss, _), gradient) = found, wanted
    assert loss > 10
    assert sum(float(np.abs(x).sum()) for x in jax.tree.leaves(gradient)) > 1
    np.testing.assert_allclose(found_loss, loss, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(found_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


DOCUMENTS, RANKS = len(QUERIES) * PER_QUERY, 15


def table() -> Any:
    return towers.DocumentTable(DOCUMENTS)


def document() -> Any:
    return towers.Sum([table(), towers.Linear(2, rngs=nnx.Rngs(0))])


def rank() -> Any:
    return towers.RankTable(RANKS)


def constant() -> Any:
    return towers.Constant()


MODELS: dict[str, Callable[[], models.ClickModel]] = {
    "GCTR": lambda: models.GCTR(constant()),
    "RCTR": lambda: models.RCTR(rank()),
    "DCTR": lambda: models.DCTR(document()),
    "RDCTR": lambda: models.RDCTR(towers.RankDocumentTable(DOCUMENTS, ranks=RANKS)),
    "PBM": lambda: models.PBM(relevance=document(), examination=rank()),
    "TrustPBM": lambda: models.TrustPBM(
        relevance=table(), examination=rank(), trust_relevant=rank(), trust_irrelevant=rank()
    ),
    "AdditivePBM": lambda: models.AdditivePBM(relevance=table(), examination=rank()),
    "UBM": lambda: models.UBM(relevance=table(), examination=towers.LastClickTable(RANKS)),
    "CascadeModel": lambda: models.CascadeModel(relevance=table()),
    "DCM": lambda: models.DCM(relevance=table(), continuation=rank()),
    "SDBN": lambda: models.SDBN(relevance=table(), satisfaction=table()),
    "DBN": lambda: models.DBN(relevance=table(), satisfaction=table(), continuation=constant()),
    "CCM": lambda: models.CCM(
        relevance=table(),
        after_skip=constant(),
        after_irrelevant_click=constant(),
        after_relevant_click=constant(),
    ),
    "Mixture": lambda: models.Mixture(
        components=[models.PBM(relevance=table(), examination=rank()), models.CascadeModel(relevance=table())]
    ),
}
SUFFICIENT = dict.fromkeys(list(MODELS)[:7], "rank") | {"UBM": "last-click"}


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("statistics")
    rows = [row for row in repeating(500) if 4 < len(row["ranks"]) <= 8]  # lists of one width
    log = write_log(folder / "log", rows)
    made: dict[str, Any] = {by: collapse(log, by) for by in BY}  # type: ignore[call-overload]
    return made | {"log": log, "list": collapse(log, "list", directory=folder / "lists")}


@cache
def model_loss(name: str) -> Callable[[Any], Any]:
    return loss_of(MODELS[name]())


@pytest.mark.parametrize(("name", "by"), SUFFICIENT.items(), ids=list(SUFFICIENT))
def test_the_loss_on_counts_is_that_on_the_log(statistics: dict[str, Any], name: str, by: str) -> None:
    assert_same_loss(model_loss(name)(statistics[by]), model_loss(name)(statistics["log"]))


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_on_distinct_lists_is_that_on_the_log(statistics: dict[str, Any], name: str) -> None:
    assert len(statistics["list"]) < 0.8 * len(statistics["log"])
    found, wanted = (model_loss(name)(statistics[source]) for source in ("list", "log"))
    assert_same_loss(found, wanted)
    (_, found_weight), (_, weight) = found[0], wanted[0]
    assert found_weight == weight  # of the sessions that the model can produce
    assert (weight < statistics["rank"].weight) == (name == "CascadeModel")


# --- Grouping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 100, 3000, 1 << 20])
@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("span", [40, 10**6])
def test_groups_in_bounded_memory(tmp_path: Path, memory: int, kind: Any, valued: bool, span: int) -> None:
    rng = np.random.default_rng(0)
    wanted: defaultdict[int, float] = defaultdict(float)
    with (
        SortedGroups(sum_by_key, memory=memory, beside=tmp_path) as groups,
        DenseSums(span, np.dtype(np.float64)) as table,
    ):
        for _ in range(30):
            key = np.minimum(rng.geometric(8 / span, int(rng.integers(50))), span - 1).astype(kind)
            value = rng.integers(1, 9, len(key)).astype(np.float64) if valued else np.ones(len(key))
            for k, v in zip(key.tolist(), value.tolist(), strict=True):
                wanted[k] += v
            for each in (groups, table):
                each.add(key.copy(), *([value] if valued else []))
        pieces = list(groups)
        if memory != 3000 or span > 40:
            assert bool(list(tmp_path.iterdir())) == (memory <= 3000)
        for found in (pieces, list(table)):
            keys, values = (np.concatenate(column) for column in zip(*found, strict=True))
            assert keys.tolist() == sorted(wanted)
            assert values.tolist() == [wanted[k] for k in keys.tolist()]
        halves = [set((key >> 1).tolist()) for key, _ in pieces]
        assert sum(map(len, halves)) == len(set().union(*halves))
        if memory == 3000 and span > 40:
            assert len(pieces) > 1
            assert max(len(key) for key, _ in pieces) < len(wanted) / 2
    assert list(tmp_path.iterdir()) == []


def test_groups_of_nothing(tmp_path: Path) -> None:
    with SortedGroups(sum_by_key, memory=100, beside=tmp_path) as groups:
        groups.add(np.zeros(0, np.uint32))
        assert list(groups) == []
    assert group_starts(np.zeros(0)).tolist() == []
    assert group_starts(np.array([1, 1, 2, 2, 2]), np.array([1, 1, 1, 3, 3])).tolist() == [0, 2, 3]
