"""Validation within long epochs: when it judges, what is restored, what the history says, and going on from there."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ultr import models, stopping, towers
from ultr.data import InMemory
from ultr.errors import ConfigError
from ultr.sessions import Sessions
from ultr.training import fit
from ultr.training.schedule import FIRST_JUDGEMENT, batch_size_for, is_judgement_due, passes_per_epoch

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ROWS = 2000


class Overfits(nnx.Module):
    """Its loss falls on label 0 up to x = 3, and on label 1 up to x = 1."""

    def __init__(self) -> None:
        self.x = nnx.Param(jnp.zeros(()))

    def loss(self, sessions: Sessions) -> jax.Array:
        aim = jnp.where(jnp.asarray(sessions.labels)[:, 0] == 0, 3.0, 1.0)
        return (self.x[...] - aim) ** 2

    def score(self, sessions: Sessions) -> jax.Array:
        return jnp.zeros(sessions.shape)


def flat(label: float, rows: int = 8, *, queries: int = 0) -> InMemory:
    found = Sessions.from_lists(labels=[[label]] * rows)
    if queries:
        query = np.arange(rows, dtype=np.int32) % queries
        document = np.ones((rows, 1), np.int32)
        found = found.replace(query=query, features={"document": document})
    return InMemory(found)


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in ("seconds", "waiting")} for entry in history]


def test_intervals_grow_geometrically() -> None:
    judged = [0]
    for step in range(1, 100_000):
        if is_judgement_due(step, judged[-1]):
            judged.append(step)
    assert judged[1] == FIRST_JUDGEMENT
    assert all(b - a == max(FIRST_JUDGEMENT, a // 2) for a, b in pairwise(judged))
    assert len(judged) < 20


SIZES = [(0, 64, 100), (300, 64, 20), (6400, 64, 1), (51_200, 512, 1), (10**7, 2048, 1)]


@pytest.mark.parametrize(("rows", "size", "passes"), SIZES)
def test_an_epoch_has_a_hundred_steps(rows: int, size: int, passes: int) -> None:
    assert batch_size_for(rows) == size
    assert passes_per_epoch(rows, size) == passes


def test_the_best_step_within_an_epoch_is_restored() -> None:
    # x = .0015 per step: validation is best at x = 1, at step 667.
    options: dict[str, Any] = {"optimizer": optax.sign_sgd(0.0015), "epochs": 3, "batch_size": 1, "seed": 0}
    fitted = fit(Overfits(), flat(0, ROWS), flat(1), patience=2, **options)
    steps = [entry["steps"] for entry in fitted.history]
    assert steps == [128, 256, 384, 640, 1024, 1536]  # between two blocks of 128 steps
    assert fitted.best == 4  # x = .96; the next is 1.536
    assert float(fitted.model.x[...]) == pytest.approx(0.0015 * 640, abs=1e-4)
    for entry, before in zip(fitted.history, [0, *steps], strict=False):
        assert entry["epoch"] == pytest.approx(entry["steps"] / ROWS, abs=1e-4)
        assert entry["sessions"] == entry["steps"] - before
        x = 0.0015 * np.arange(before, entry["steps"])
        assert entry["loss"] == pytest.approx(np.mean((x - 3) ** 2), rel=1e-3)
        assert entry["valid_loss"] == pytest.approx((0.0015 * entry["steps"] - 1) ** 2, abs=1e-3)
    turning = fitted.turning
    assert turning is not None
    assert (turning.judgement, turning.steps, turning.turned) == (4, 640, True)
    assert "turned after epoch 0.32 (judgement 4, 640 steps)" in turning.text
    whole = fit(Overfits(), flat(0, ROWS), flat(1), patience=None, **options)
    assert [e["epoch"] for e in whole.history if e["epoch"] == int(e["epoch"])] == [1, 2, 3]
    assert sum(e["sessions"] for e in whole.history) == 3 * ROWS
    assert float(whole.model.x[...]) == float(fitted.model.x[...])


def test_what_still_falls_is_said_to_and_without_validation_nothing_is_judged() -> None:
    falling = fit(Overfits(), flat(0, ROWS), flat(1), optimizer=optax.sign_sgd(1e-4), epochs=1, batch_size=1, seed=0)
    assert falling.turning is not None
    assert not falling.turning.turned
    assert "still falling" in falling.turning.text
    alone = fit(Overfits(), flat(0, ROWS), optimizer=optax.sign_sgd(1e-4), epochs=2, batch_size=1, seed=0)
    assert [(e["epoch"], e["steps"]) for e in alone.history] == [(1, ROWS), (2, 2 * ROWS)]
    assert alone.turning is None


def test_more_patience_goes_on_from_within_the_epoch(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": optax.sign_sgd(0.002), "epochs": 2, "batch_size": 1, "seed": 0}
    whole = fit(Overfits(), flat(0, ROWS), flat(1), patience=5, **options)
    options |= {"directory": tmp_path}
    first = fit(Overfits(), flat(0, ROWS), flat(1), patience=1, **options)
    assert len(first.history) == 4 < len(whole.history)
    rest = fit(Overfits(), flat(0, ROWS), flat(1), patience=5, resume=True, **options)
    assert rest.resumed == 4
    assert untimed(rest.history) == untimed(whole.history)
    assert float(rest.model.x[...]) == float(whole.model.x[...])
    again = fit(Overfits(), flat(0, ROWS), flat(1), patience=5, resume=True, **options)
    assert again.resumed == len(again.history) == len(whole.history)


K, DOCUMENTS = 3, 20


class Signalling(InMemory):
    """Sessions in memory that interrupt this process when a batch of a pass is asked for."""

    def __init__(self, given: Sessions, at: tuple[int, int] | None) -> None:
        super().__init__(given)
        self.at, self.passes = at, 0

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Any:
        self.passes += 1
        for i, batch in enumerate(super().batches(batch_size, seed=seed)):
            if self.at == (self.passes, i):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


@pytest.mark.parametrize("at", [(1, 150), (1, 420), (2, 30)])
def test_a_run_interrupted_between_judgements_goes_on_to_the_same_bits(tmp_path: Path, at: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    document, clicks = rng.integers(1, DOCUMENTS + 1, (600, K)), rng.integers(0, 2, (600, K))
    sessions = Sessions.from_lists(features={"document": document.tolist()}, clicks=clicks.tolist())
    model = models.PBM(relevance=towers.DocumentTable(DOCUMENTS), examination=towers.RankTable(K))
    options: dict[str, Any] = {"batch_size": 1, "seed": 3, "epochs": 2, "block_sessions": 32, "patience": None}
    whole = fit(model, Signalling(sessions, None), sessions[:50], **options)
    assert len(whole.history) > 4
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stopping.on_signals(), pytest.raises(stopping.Stopped):
            fit(model, Signalling(sessions, at), sessions[:50], directory=tmp_path, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    rest = fit(model, Signalling(sessions, None), sessions[:50], directory=tmp_path, resume=True, **options)
    assert untimed(rest.history) == untimed(whole.history)
    for a, b in zip(*(jax.tree.leaves(nnx.state(x.model)) for x in (rest, whole)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("rows", [8, 80])
def test_a_prior_per_query_weighs_the_same_however_many_sessions(rows: int) -> None:
    # Minimum of Q (x - 3)^2 + l2/2 x^2 with Q = 4 queries: x = 6 Q / (2 Q + l2).
    options: dict[str, Any] = {"optimizer": optax.sgd(0.1), "epochs": 100, "seed": 0, "l2": 16.0}
    fitted = fit(Overfits(), flat(0, rows, queries=4), batch_size=rows, l2_unit="query", **options)
    assert float(fitted.model.x[...]) == pytest.approx(24 / (8 + 16), abs=1e-4)
    assert fitted.trained_on is not None
    assert (fitted.trained_on.queries, fitted.trained_on.documents, fitted.trained_on.rows) == (4, 1, rows)


def test_unusable_units_are_refused() -> None:
    unit: Any
    for unit, message in (("document", "expected l2_unit 'session' or 'query'"), ("query", "tells its queries")):
        with pytest.raises(ConfigError, match=message):
            fit(Overfits(), flat(0), epochs=1, seed=0, l2=1.0, l2_unit=unit)
