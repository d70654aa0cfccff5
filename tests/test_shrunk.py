"""Click rates shrunk towards those of the ranks: against formulas, numerical integration and a second estimator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from scipy import integrate, stats
from stored import write_log

import ultr
from ultr.baselines import ShrunkCTR
from ultr.baselines.shrunk import (
    STRENGTHS,
    choose_strength,
    count_totals,
    fit_strength,
    separated,
    strength_log_likelihood,
)
from ultr.data import ClickLog, as_dataset, collapse
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions
from ultr.training import load, save, solver_methods

LISTS = [[1, 2, 3], [2, 1, 3], [1, 2], [4, 5]]
CLICKS = [[1, 0, 0], [0, 0, 1], [0, 0], [0, 0]]


def sessions(lists: Any = LISTS, clicks: Any = CLICKS, **more: Any) -> Sessions:
    return Sessions.from_lists(features={"document": lists}, clicks=clicks, **more)


def drawn(strength: float, *, documents: int = 3000, seed: int = 0) -> Sessions:
    """Lists of two of a query's two documents, whose click probability is Beta-distributed around that of its rank."""
    rng = np.random.default_rng(seed)
    ids = np.arange(documents).reshape(-1, 2) + 1
    mean = np.array([0.3, 0.1])
    p = rng.beta(strength * mean, strength * (1 - mean), ids.shape)
    shown = np.repeat(np.arange(len(ids)), rng.integers(1, 40, len(ids)))
    return sessions(ids[shown].tolist(), (rng.random((len(shown), 2)) < p[shown]).astype(int).tolist())


def test_scores_are_posterior_means_with_ties_in_the_logged_order() -> None:
    found = ShrunkCTR(documents=6, ranks=3).fitted(sessions(), strength=2.0)
    m = (np.array([1, 0, 1]) + 0.5) / (np.array([4, 4, 2]) + 1)  # by rank
    mean = np.array([(2 * m[0] + m[1]) / 3, (m[0] + 2 * m[1]) / 3, m[2], m[0], m[1]])
    expected = (np.array([1, 0, 1, 0, 0]) + 2 * mean) / (np.array([3, 3, 2, 1, 1]) + 2)
    np.testing.assert_allclose(found.rank_rate[...], m, rtol=1e-6)
    np.testing.assert_allclose(found.rate[1:6], expected, rtol=1e-6)
    np.testing.assert_allclose(found.relative[1:6], expected / mean, rtol=1e-6)
    assert found.rate[0] == found.rate[6] == 0  # never shown: below all others
    assert float(found.strength[...]) == 2
    scores = np.asarray(found.score(sessions()))
    np.testing.assert_array_equal(scores, np.asarray(found.rate[...])[np.asarray(sessions().features["document"])])


def test_the_loss_is_the_cross_entropy_of_the_rate_of_the_rank_times_the_relative_rate() -> None:
    found, data = ShrunkCTR(documents=6, ranks=3).fitted(sessions(), strength=2.0), sessions()
    p = np.asarray(found.rank_rate[...])[data.position] * np.asarray(found.relative[...])[data.features["document"]]
    each = np.where(np.asarray(data.clicks) > 0, -np.log(p), -np.log1p(-p))
    np.testing.assert_allclose(found.loss(data), np.where(data.mask, each, 0).sum(1), rtol=1e-5)
    padded = found.loss(data.pad(rows=6, width=5))
    np.testing.assert_allclose(padded[:4], found.loss(data), rtol=1e-6)
    assert not np.asarray(padded[4:]).any()
    with pytest.raises(ConfigError, match="needs clicks"):
        found.loss(data.replace(clicks=None))
    np.testing.assert_array_equal(found.score(data), found.score(data.unbiased()))


def test_weights_count_as_sessions() -> None:
    one = ShrunkCTR(documents=5, ranks=3).fitted(sessions(weight=[2.0, 1.0, 3.0, 1.0]), strength=4.0)
    rows = [0, 0, 1, 2, 2, 2, 3]
    many = ShrunkCTR(documents=5, ranks=3).fitted(
        sessions([LISTS[i] for i in rows], [CLICKS[i] for i in rows]), strength=4.0
    )
    np.testing.assert_allclose(one.rate[...], many.rate[...], rtol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 3.0, 40.0])
def test_the_likelihood_of_a_strength_is_the_integral_over_click_probabilities(strength: float) -> None:
    totals = count_totals(as_dataset(sessions()), 6, 3)
    expected = 0.0
    for n, c, m in zip(totals.shown, totals.clicks.sum(1), totals.expected, strict=True):
        if n:
            beta = stats.beta(strength * m, strength * (1 - m))
            expected += math.log(integrate.quad(lambda p: p**c * (1 - p) ** (n - c) * beta.pdf(p), 0, 1)[0])  # noqa: B023
    assert strength_log_likelihood(totals, strength) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strength", [2.0, 8.0, 30.0])
def test_the_likeliest_strength_is_that_of_the_moments_and_of_the_truth(strength: float) -> None:
    totals = count_totals(as_dataset(drawn(strength)), 3000, 2)
    found = fit_strength(totals)
    n, c, m = totals.shown[1:], totals.clicks.sum(1)[1:], totals.expected[1:]
    # Var(c) = n m (1 - m) (1 + (n - 1) / (s + 1)) for a Beta-binomial count.
    excess = ((c - n * m) ** 2 - n * m * (1 - m)).sum()
    moments = (n * (n - 1) * m * (1 - m)).sum() / excess - 1
    assert found == pytest.approx(strength, rel=0.15)
    assert found == pytest.approx(moments, rel=0.2)


def test_documents_that_do_not_differ_are_ranked_by_their_ranks_alone() -> None:
    data = drawn(1e7)
    totals = count_totals(as_dataset(data), 3000, 2)
    assert fit_strength(totals) > 300
    assert choose_strength(as_dataset(data), totals) >= 100
    np.testing.assert_array_equal(totals.rates(np.inf), totals.expected)


def test_held_out_clicks_choose_what_ranks_them_highest() -> None:
    """The second document is by far the better one in half of the queries, which a hundred clicks show."""
    rng, n = np.random.default_rng(0), 100
    lists = [[2 * q + 1, 2 * q + 2] for q in range(20) for _ in range(n)]
    p = np.array([[0.2, 0.7] if q % 2 else [0.3, 0.05] for q in range(20) for _ in range(n)])
    data = as_dataset(sessions(lists, (rng.random(p.shape) < p).astype(int).tolist()))
    totals = count_totals(data, 40, 2)
    chosen = choose_strength(data, totals)
    assert chosen in STRENGTHS
    rates = totals.rates(chosen)[1:].reshape(-1, 2)
    np.testing.assert_array_equal(rates[:, 1] > rates[:, 0], np.arange(20) % 2 == 1)
    # Where clicks follow the ranks alone, nothing is learnt from them.
    p = np.tile([0.5, 0.1], (len(lists), 1))
    still = as_dataset(sessions(lists, (rng.random(p.shape) < p).astype(int).tolist()))
    rates = count_totals(still, 40, 2).rates(choose_strength(still, count_totals(still, 40, 2)))[1:].reshape(-1, 2)
    assert (rates[:, 0] > rates[:, 1]).all()


def test_parts_are_the_same_in_every_pass_and_hold_each_session_once() -> None:
    data = as_dataset(sessions(weight=[3.0, 1.0, 2.5, 4.0]))
    one, two = count_totals(data, 5, 3), count_totals(data, 5, 3)
    np.testing.assert_array_equal(one.clicks, two.clicks)
    np.testing.assert_allclose(one.shown[1:], [6.5, 6.5, 4, 4, 4])
    part = 2
    rest = (one.clicks.sum(1) - one.clicks[:, part] + 3 * one.expected) / (one.shown - one.impressions[:, part] + 3)
    np.testing.assert_allclose(one.rates(3.0, without=part), rest)


def test_equal_rates_are_told_apart_by_place_within_a_query() -> None:
    rate = np.array([0.0, 0.25, 0.25, 0.25, 0.5, 0.25, np.nextafter(np.float32(0.25), np.float32(0))])
    place, query = np.array([0, 3, 1, 2, 9, 1, 0]), np.array([0, 1, 1, 1, 1, 2, 1])
    found = separated(rate, place, query)
    assert found.dtype == np.float32
    order = np.argsort(-found[query == 1], kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(query == 1)[order], [4, 2, 3, 1, 6])
    assert (np.diff(-found[query == 1][order]) > 0).all()
    assert found[5] == np.float32(0.25)  # the first of its query
    assert found[0] == 0
    np.testing.assert_allclose(found, rate, rtol=1e-6)


def test_a_rank_or_id_beyond_the_tables_and_clickless_data_are_errors() -> None:
    with pytest.raises(DataError, match=r"document.*at most 3, found 5"):
        ShrunkCTR(documents=3, ranks=3).fitted(sessions())
    with pytest.raises(DataError, match=r"rank.*at most 2, found 3"):
        ShrunkCTR(documents=5, ranks=2).fitted(sessions())
    with pytest.raises(DataError, match="expected clicks"):
        ShrunkCTR(documents=5, ranks=3).fitted(sessions(clicks=[[0] * len(x) for x in LISTS]))
    with pytest.raises(ConfigError, match="strength"):
        ShrunkCTR(documents=5, ranks=3).fitted(sessions(), strength=0.0)
    model = ShrunkCTR(documents=5, ranks=2)
    with pytest.raises(DataError, match="ranks up to 2"):
        ultr.towers.check_bounds(model, sessions())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    rng = np.random.default_rng(0)
    rows = [
        {"session": str(i), "query": i % 2, "documents": (rng.permutation(3) + 1 + 3 * (i % 2)).tolist(),
         "ranks": [1, 2, 3], "clicks": (rng.random(3) < [0.6, 0.3, 0.2]).astype(int).tolist()}
        for i in range(200)
    ]  # fmt: skip
    documents = pa.table({"query": pa.array([0] * 3 + [1] * 3, pa.int32()), "document": [f"url {i}" for i in range(6)]})
    return write_log(tmp_path_factory.mktemp("shrunk") / "log", rows, documents=documents, queries=pa.array(["a", "b"]))


def test_a_solved_and_saved_ranker_scores_as_before(log: ClickLog, tmp_path: Path) -> None:
    assert solver_methods(ShrunkCTR) == ("counting",)
    model = ShrunkCTR(documents=6, ranks=3)
    fitted = ultr.solve(model, log, log, method="counting")
    assert fitted.best == 1
    (row,) = fitted.history
    assert row["loss"] == pytest.approx(row["valid_loss"])
    assert row["sessions"] == 200
    assert row["strength"] == float(fitted.model.strength[...])
    save(fitted.model, tmp_path / "model")
    again = load(tmp_path / "model")
    for one, two in zip(jax.tree.leaves(again.rate[...]), jax.tree.leaves(fitted.model.rate[...]), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(again.score(sessions()), fitted.model.score(sessions()))
    counts = collapse(log, "rank")
    by_counts, by_log = (model.fitted(data, strength=3.0) for data in (counts, log))
    np.testing.assert_allclose(by_counts.rate[...], by_log.rate[...], rtol=1e-6)
    assert jnp.unique(by_log.rate[1:]).size == 6
    with pytest.raises(ConfigError, match=r"held-out lists choose the strength, and these are counts by rank"):
        model.fitted(counts)
    with pytest.raises(ConfigError, match=r"method 'em' cannot train ShrunkCTR. Choose method='counting'"):
        ultr.solve(model, log, method="em")


def test_train_counts_it(ultr: Ultr, log: ClickLog, tmp_path: Path) -> None:
    found = ultr("train", log.path, "--out", tmp_path / "run", "--model", "shrunk-ctr", "--prior", 7, "--json")
    assert found.code == 0, found.err
    assert found.json["history"][0]["strength"] == 7
    assert found.json["validation_sessions"] > 0
    assert (tmp_path / "run" / "model").exists()
    for options, said in (
        (("--solver", "gradient"), "--solver gradient cannot train --model shrunk-ctr"),
        (("--solver", "em"), "Choose --solver counting"),
        (("--epochs", 3), "--epochs has no effect"),
        (("--hidden", "3"), "--hidden has no effect"),
    ):
        bad = ultr("train", log.path, "--out", tmp_path / "bad", "--model", "shrunk-ctr", *options)
        assert bad.code == 2
        assert said in bad.err
