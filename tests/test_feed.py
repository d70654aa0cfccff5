"""The feed: batches stacked into blocks, and what `fit` makes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from narrowing import present, split_parameters
from stored import make_rows, write_log

from ultr import models, towers
from ultr.data import InMemory, as_dataset
from ultr.errors import DataError
from ultr.sessions import Sessions
from ultr.training import fit
from ultr.training.feed import BatchBlock, StackedBatches, one_pass

at = jax.jit(StackedBatches.at)


def feed(source: Any, batch_size: int, **options: Any) -> Iterator[BatchBlock]:
    given: dict[str, Any] = {"seed": None, "length": 1000, "rank_first": False, "check": lambda _: None}
    return one_pass(as_dataset(source), batch_size, put=lambda x: x, **(given | options))


def numbered(count: int, *, longest: int = 4, seed: int = 0) -> Sessions:
    """Ragged lists from empty to full; `query` is the number of the session."""
    rng = np.random.default_rng(seed)
    shape = (count, longest)
    return Sessions(
        mask=np.arange(longest) < (np.arange(count) % (longest + 1))[:, None],
        position=np.tile(np.arange(longest, dtype=np.int32), (count, 1)),
        features={"document": rng.integers(1, 10, shape).astype(np.int32)},
        clicks=rng.integers(0, 2, shape).astype(np.int8),
        query=np.arange(count, dtype=np.int32),
    )


class Failing(InMemory):
    """Breaks off after two batches."""

    def batches(self, batch_size: int, *, seed: int | None = None, **options: Any) -> Iterator[Sessions]:
        for i, batch in enumerate(super().batches(batch_size, seed=seed)):
            if i == 2:
                raise DataError("the disk is gone")
            yield batch


class Mixed:
    """The batches of several sources, in turn."""

    def __init__(self, *sources: InMemory) -> None:
        self.sources = sources

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        streams = [s.batches(batch_size, seed=seed) for s in self.sources]
        while streams:
            for stream in list(streams):
                batch = next(stream, None)
                if batch is None:
                    streams.remove(stream)
                else:
                    yield batch


@pytest.mark.parametrize(
    ("batch_size", "seed", "rank_first", "held"),
    [(16, None, False, 3), (16, 4, True, 3), (7, 1, True, 1), (200, None, True, 5)],
)
def test_every_session_of_a_log_comes_once_and_whole(
    batch_size: int, seed: int | None, rank_first: bool, held: int, tmp_path: Path
) -> None:
    rows = make_rows(100)  # of 1 to 11 documents, at ranks with gaps; the weight is the number of the row
    log = write_log(tmp_path / "log", rows)
    expected = {}
    for batch in log.batches(batch_size):
        for i in np.flatnonzero(batch.mask.any(1)).tolist():
            expected[int(present(batch.weight)[i])] = jax.tree.map(lambda x, i=i: x[i], batch)
    seen: list[int] = []
    widths = set()
    for block in feed(log, batch_size, seed=seed, rank_first=rank_first, block_sessions=held * batch_size):
        widths.add(block.batches.width)
        size = len(seen)
        for i in range(block.count):
            batch = jax.tree.map(np.asarray, at(block.batches, i))
            assert batch.rank_axis == (0 if rank_first else 1)
            assert batch.shape == ((block.batches.width, batch_size) if rank_first else (batch_size, batch.shape[1]))
            lists = batch.mask.T if rank_first else batch.mask
            for b in np.flatnonzero(lists.any(1)).tolist():
                number = int(batch.weight[b])
                shown = lists[b]
                seen.append(number)

                def per_rank(x: Any, b: int = b, shown: Any = shown) -> np.ndarray:
                    return (np.asarray(x)[:, b] if rank_first else np.asarray(x)[b])[shown]

                row, whole = rows[number], expected[number]
                assert per_rank(batch.features["document"]).tolist() == row["documents"]
                assert (per_rank(batch.position) + 1).tolist() == row["ranks"]
                assert per_rank(batch.clicks).tolist() == row["clicks"]
                assert batch.query[b] == row["query"]
                for name, value in whole.features.items():
                    np.testing.assert_array_equal(per_rank(batch.features[name]), value[: shown.sum()])
                np.testing.assert_array_equal(per_rank(batch.labels), whole.labels[: shown.sum()])
        assert block.sessions == len(seen) - size
    assert sorted(seen) == list(range(100))
    assert widths == {1, 2, 4, 8, 11}


def test_blocks_are_filled_up_with_empty_batches() -> None:
    three: dict[str, Any] = {"block_sessions": 25}  # three batches of 8
    source = InMemory(numbered(50).replace(weight=np.ones(50, np.float32)))
    found = list(feed(source, 8, **three))
    assert [b.count for b in found] == [3, 3, 1]
    assert [b.batches.lengths.shape for b in found] == [(3, 8)] * 3
    # A fifth of the lists shows nothing: those are not counted.
    assert [b.sessions for b in found] == [int((np.arange(50)[i : i + 24] % 5 > 0).sum()) for i in (0, 24, 48)]
    np.testing.assert_array_equal(np.concatenate([b.batches.lengths.ravel() for b in found])[:50], np.arange(50) % 5)
    tail = found[-1].batches
    assert not tail.lengths.ravel()[2:].any()
    assert all(not np.asarray(x)[1:].any() for x in jax.tree.leaves(tail.sessions))
    assert not np.asarray(tail.sessions.weight)[0, 2:].any()
    # A block is not longer than the source, and never shorter than a batch.
    assert [b.count for b in feed(source, 8, length=9, **three)] == [2, 2, 2, 1]
    assert [(b.count, b.batches.lengths.shape) for b in feed(source, 64, **three)] == [(1, (1, 64))]
    assert [b.count for b in feed(source, 8, block_values=1, **three)] == [1] * 7


def test_positions_travel_only_where_they_are_not_the_index() -> None:
    lists = numbered(9)
    gap = lists.position.copy()
    gap[4, 1:] += 3  # list 4 shows four documents
    hidden = lists.position.copy()
    hidden[0] = 7  # list 0 shows none
    for position, travels in ((lists.position, False), (gap, True), (hidden, False)):
        source = InMemory(lists.replace(position=position))
        for rank_first in (False, True):
            (block,) = feed(source, 5, length=9, rank_first=rank_first)  # the gap is in the first of two batches
            assert (block.batches.sessions.position is not None) is travels
            axis = 1 if rank_first else 0
            both = [at(block.batches, i) for i in range(block.count)]
            found, mask = (np.concatenate([getattr(x, n) for x in both], axis) for n in ("position", "mask"))
            found, mask = (x.T[:9] if rank_first else x[:9] for x in (found, mask))
            np.testing.assert_array_equal(mask, lists.mask)
            np.testing.assert_array_equal(found[mask], position[mask])


def test_batches_of_another_kind_get_a_block_of_their_own() -> None:
    one, wide = numbered(20), numbered(20, longest=6)
    labelled = one.replace(labels=np.ones((20, 4), np.float32))
    source = Mixed(*(InMemory(s.replace(features={})) for s in (one, wide, labelled)))
    found = list(feed(source, 8))
    assert [(b.count, b.batches.width, b.batches.sessions.labels is None) for b in found] == [
        (3, 4, True), (3, 6, True), (3, 4, False)]  # fmt: skip
    numbers = (np.ones((20, 4), np.int32), np.full((20, 4), 0.5, np.float32))
    floats = Mixed(*(InMemory(one.replace(features={"x": x})) for x in numbers))
    dtypes = [b.batches.sessions.features["x"].dtype for b in feed(floats, 8)]
    assert dtypes == [np.int32, np.float32]


def test_padding_may_be_wider_than_a_table_of_ranks() -> None:
    model = models.PBM(relevance=towers.DocumentTable(9), examination=towers.RankTable(4))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "optimizer": optax.sgd(0.5)}
    narrow, wide = (fit(model, s, **options) for s in (numbered(20), numbered(20).pad(width=7)))
    for a, b in zip(*(jax.tree.leaves(nnx.state(f.model)) for f in (narrow, wide)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert [h["loss"] for h in wide.history] == pytest.approx([h["loss"] for h in narrow.history], rel=1e-6)


def test_errors_reach_the_caller_and_no_thread_stays(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    log = write_log(tmp_path / "log", make_rows(100))

    def look(batch: Sessions) -> None:
        if np.asarray(batch.query)[0] > 1:
            raise ValueError("look at that")

    found: list[int] = []
    with pytest.raises(DataError, match="the disk is gone"):
        found.extend(block.count for block in feed(Failing(numbered(30)), 8, length=8))
    assert found == [1, 1]
    for source in (InMemory(numbered(30)), log):
        with pytest.raises(ValueError, match="look at that"):
            list(feed(source, 8, check=look))
    with pytest.raises(ZeroDivisionError):
        _ = [block.count / 0 for block in feed(log, 8, length=8)]
    assert set(threading.enumerate()) == before
    with pytest.raises(DataError, match="the disk is gone"):
        fit(models.DCTR(towers.DocumentTable(9)), Failing(numbered(30)), epochs=1, batch_size=8, seed=0)
    assert set(threading.enumerate()) == before


def test_who_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    log = write_log(tmp_path / "log", make_rows(100))
    for source in (InMemory(numbered(50)), log):
        for _ in feed(source, 8, length=8):
            break
        assert set(threading.enumerate()) == before
        stream: Any = feed(source, 8, length=8)
        next(stream)
        assert set(threading.enumerate()) != before
        stream.close()
        assert set(threading.enumerate()) == before
        feed(source, 8)  # never asked for anything
    assert set(threading.enumerate()) == before


class Recorded(InMemory):
    """Keeps what it has streamed in random order, epoch by epoch."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        self.epochs: list[list[Sessions]] = []

    def batches(self, batch_size: int, *, seed: int | None = None, **options: Any) -> Iterator[Sessions]:
        if seed is not None:
            self.epochs.append([])
        for batch in super().batches(batch_size, seed=seed):
            if seed is not None:
                self.epochs[-1].append(batch)
            yield batch


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_training_in_blocks_is_a_plain_loop_over_the_batches(weighted: bool) -> None:
    traces = 0

    class Counted(models.PBM):
        def loss(self, sessions: Sessions) -> jax.Array:
            nonlocal traces
            traces += 1
            return super().loss(sessions)

    model = Counted(relevance=towers.DocumentTable(9), examination=towers.RankTable(4, initial=1.0))
    lists = numbered(50)
    if weighted:
        lists = lists.replace(weight=(np.arange(50) % 3 + 1).astype(np.float32))
    train = Recorded(lists)
    optimizer = optax.adam(0.05)
    fitted = fit(model, train, optimizer=optimizer, epochs=3, batch_size=8, seed=0, block_sessions=24)
    epochs = train.epochs[-3:]  # before them, weights are summed up
    assert [len(e) for e in epochs] == [7, 7, 7]  # blocks of 3, 3 and 1
    assert traces == 1  # nothing was compiled twice

    graph, params, rest = split_parameters(model)
    shown = lists.mask.any(1)
    weight = np.ones(50) if lists.weight is None else lists.weight
    average = weight[shown].sum() / 7 if weighted else None  # a weighted batch counts as what it holds

    @jax.jit
    def step(params: Any, state: Any, batch: Sessions) -> Any:
        def objective(p: Any) -> Any:
            there = batch.mask.any(1) * (1.0 if batch.weight is None else batch.weight)
            total = (nnx.merge(graph, p, rest).loss(batch) * there).sum()
            return total / (average or there.sum()), total

        gradient, total = jax.grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, total

    state, losses = optimizer.init(params), []
    for epoch in epochs:
        total = 0.0
        for batch in epoch:
            params, state, one = step(params, state, batch)
            total += float(one)
        losses.append(total / weight[shown].sum())
    assert [h["loss"] for h in fitted.history] == pytest.approx(losses, rel=1e-5)
    assert losses[2] < losses[0]
    assert fitted.history[0]["sessions"] == weight[shown].sum()
    for a, b in zip(jax.tree.leaves(nnx.state(fitted.model)), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
