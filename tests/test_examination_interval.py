"""Intervals of learnt curves: what they are by another way, how often they hold the truth, and when there are none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines_contract import BASELINES
from baselines_contract import K as CONTRACT_RANKS
from misfit_logs import count, draw
from narrowing import present
from scipy.optimize import minimize

from ultr import baselines, models, towers
from ultr.data import Counts
from ultr.identifiability import examination_interval, goodness_of_fit
from ultr.identifiability.conditional_errors import covariance_given_ranker
from ultr.propensity import Propensities, conditional_likelihood, maximum_likelihood
from ultr.sessions import Sessions

Q, D, K = 40, 6, 4
RELEVANCE = np.random.default_rng(1).uniform(0.05, 0.95, (Q, D))
TRUTH = 1.0 / np.arange(1, K + 1)
QUERY = np.repeat(np.arange(Q), D)


def drawn(seed: int, sessions: int = 6000, kind: str = "pbm") -> tuple[Counts, Sessions]:
    """Clicks of the position-based model: counts by last click, and the same lists."""
    found = draw(kind, seed, sessions, RELEVANCE)
    document = (found.query[:, None] * D + found.shown + 1).astype(np.int32)
    lists = Sessions(
        mask=np.ones(document.shape, bool),
        position=np.tile(np.arange(K, dtype=np.int32), (sessions, 1)),
        features={"document": document},
        clicks=found.clicks.astype(np.int8),
        query=found.query.astype(np.int32),
    )
    return count(found, D), lists


def known(logits: np.ndarray) -> towers.Tower:
    """A ranker that is known: it reads the logit of each document."""
    table = jnp.asarray(np.concatenate([[0.0], np.ravel(logits)]), jnp.float32)
    return towers.as_tower(lambda sessions: table[sessions.features["document"]])


def ranks(logits: Any) -> towers.RankTable:
    return towers.RankTable(K, initial=np.asarray(logits))


LOGIT, LOG = np.log(RELEVANCE / (1 - RELEVANCE)), np.log(RELEVANCE)
# Models of a known ranker, by the logits of their ranks.
GIVEN: dict[str, Any] = {
    "pbm": lambda b: models.PBM(relevance=known(LOGIT), examination=ranks(b)),
    "additive": lambda b: models.AdditivePBM(relevance=known(LOGIT), examination=ranks(b)),
    "listwise": lambda b: baselines.AdditiveListwise(relevance=known(LOG), examination=ranks(b)),
    "dual": lambda b: baselines.DLA(relevance=known(LOG), examination=ranks(b)),
}


def equations(name: str, lists: Sessions, b: jax.Array) -> jax.Array:
    """Computes the derivative of each list's loss by the logits of the ranks, [B, K], written out."""
    document, clicks = jnp.asarray(lists.features["document"]) - 1, jnp.asarray(lists.clicks, jnp.float32)
    b = jnp.broadcast_to(b, clicks.shape)
    if name in ("pbm", "additive"):
        s = jnp.asarray(LOGIT.ravel())[document]
        p = jax.nn.sigmoid(s) * jax.nn.sigmoid(b) if name == "pbm" else jax.nn.sigmoid(s + b)
        if name == "pbm":
            return -(clicks - (1 - clicks) * p / (1 - p)) * (1 - jax.nn.sigmoid(b))
        return p - clicks
    s = jnp.asarray(LOG.ravel())[document]
    if name == "listwise":
        return clicks.sum(1, keepdims=True) * jax.nn.softmax(s + b, axis=1) - clicks
    weighted = clicks * jnp.exp(s[:, :1] - s)
    return weighted.sum(1, keepdims=True) * jax.nn.softmax(b, axis=1) - weighted


def root(name: str, lists: Sessions) -> np.ndarray:
    """Finds where the equations of the ranks are 0, by Newton's method with a derivative by JAX."""
    total = jax.jit(lambda b: equations(name, lists, b).sum(0))
    slope = jax.jit(jax.jacobian(lambda b: equations(name, lists, b).sum(0)))
    b = jnp.asarray(np.log(TRUTH) if name != "pbm" else np.log(0.9 * TRUTH / (1 - 0.9 * TRUTH)), jnp.float32)
    for _ in range(20):
        b = b - jnp.asarray(np.linalg.pinv(np.asarray(slope(b), np.float64), rcond=1e-6)) @ total(b)
    return np.asarray(b, np.float64)


@pytest.mark.parametrize("name", GIVEN)
def test_errors_given_the_ranker_are_the_sandwich_of_its_equations(name: str) -> None:
    _, lists = drawn(0, 3000)
    b = root(name, lists)
    scores = np.asarray(equations(name, lists, jnp.asarray(b)), np.float64)
    by_query = np.stack([np.bincount(np.asarray(lists.query), scores[:, k], Q) for k in range(K)], axis=1)
    slope = np.asarray(jax.jacobian(lambda x: equations(name, lists, x).sum(0))(jnp.asarray(b)), np.float64)
    inverse = np.linalg.pinv(slope, rcond=1e-6)
    spread = inverse @ by_query.T @ by_query @ inverse * Q / (Q - 1)
    # From logits to log-propensities: those of a PBM are log(sigmoid).
    change = np.diag(1 / (1 + np.exp(b))) if name == "pbm" else np.eye(K)
    change = change - np.outer(np.ones(K), change[0])
    curve = np.exp(-np.logaddexp(0, -b)) if name == "pbm" else np.exp(b)
    found = present(covariance_given_ranker(GIVEN[name](b), lists, QUERY, curve / curve[0]))
    expected = change @ spread @ change.T
    rtol = 0.05 if name == "pbm" else 5e-3  # its information is the expected one
    np.testing.assert_allclose(np.diag(found)[1:], np.diag(expected)[1:], rtol=2 * rtol)
    np.testing.assert_allclose(found[1:, 1:], expected[1:, 1:], rtol=0.2, atol=0.05 * expected.max())


def at_the_maximum(name: str, seed: int) -> tuple[Propensities, np.ndarray]:
    """A model at the maximum of its likelihood on a simulated log, and the true curve."""
    counts, lists = drawn(seed)
    if name == "table":
        curve = maximum_likelihood(counts).value
        table = towers.DocumentTable(Q * D)
        made = models.PBM(relevance=table, examination=ranks(np.log(0.9 * curve / (1 - 0.9 * curve))))
        return present(examination_interval(made, counts)), TRUTH
    if name == "additive":
        return present(examination_interval(additive_table(counts), counts)), np.full(K, np.nan)
    return present(examination_interval(GIVEN[name](root(name, lists)), counts, lists=lists)), TRUTH


def additive_table(counts: Counts) -> models.AdditivePBM:
    """The additive two-tower with a table of documents at the maximum of its likelihood."""
    k, d, n, c = counts.rank - 1, counts.document - 1, counts.impressions, counts.clicks

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = np.append(0.0, x[: K - 1])[k] + x[K - 1 :][d]
        p = 1 / (1 + np.exp(-z))
        g = np.concatenate([np.bincount(k, c - n * p, K)[1:], np.bincount(d, c - n * p, Q * D)])
        return -float(c @ -np.logaddexp(0, -z) + (n - c) @ -np.logaddexp(0, z)) + 5e-4 * x @ x, -g + 1e-3 * x

    x = minimize(loss, np.zeros(K - 1 + Q * D), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    table = towers.DocumentTable(Q * D)
    table.table[...] = jnp.asarray(np.append(0.0, x[K - 1 :]), jnp.float32)
    return models.AdditivePBM(relevance=table, examination=ranks(np.append(0.0, x[: K - 1])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table", "pbm", "listwise", "dual"])
def test_intervals_hold_the_truth(name: str) -> None:
    z, inside = [], []
    for seed in range(40):
        found, truth = at_the_maximum(name, seed)
        if np.isfinite(found.standard_error).all():  # one in a hundred is taken for no maximum
            z.append((np.log(found.value / truth) / np.maximum(found.log_standard_error, 1e-300))[1:])
            inside.append(((found.interval[:, 0] <= truth) & (truth <= found.interval[:, 1]))[1:])
    assert len(z) >= 37
    assert 0.6 < np.mean(np.square(z)) < 1.6
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.slow
def test_errors_of_additive_odds_are_their_spread() -> None:
    found = [at_the_maximum("additive", seed)[0] for seed in range(40)]
    spread = np.std([np.log(f.value[1:]) for f in found], axis=0, ddof=1)
    error = np.mean([f.log_standard_error[1:] for f in found], axis=0)
    np.testing.assert_allclose(spread / error, 1.0, atol=0.35)
    assert "odds relative to rank 1" in found[0].warnings[0]


def test_a_curve_that_training_left_too_early_has_no_interval() -> None:
    counts, lists = drawn(0)
    table = towers.DocumentTable(Q * D)
    for model in (
        models.PBM(relevance=table, examination=ranks(0.0)),
        baselines.RegressionEM(relevance=table, examination=ranks(0.0)),
        baselines.DLA(relevance=known(LOG), examination=ranks(0.0)),
    ):
        found = present(examination_interval(model, counts, lists=lists))
        assert set(found.unsupported) == {2, 3, 4}
        assert "not where the clicks of the log put it" in found.unsupported[2]
        assert np.isnan(found.interval[1:]).all()
        np.testing.assert_array_equal(found.value, 1.0)


def test_reasons_why_there_is_no_interval() -> None:
    counts, lists = drawn(0)
    near, table = np.log(conditional_likelihood(counts).value), towers.DocumentTable(Q * D)
    dla = baselines.DLA(relevance=known(LOG), examination=ranks(near))
    for model, given, why in (
        (dla, None, "needs whole lists"),
        (baselines.DLA(relevance=table, examination=ranks(near)), lists, "a table of documents"),
        (baselines.PairDebias(relevance=table, ranks=K), lists, "ratios of sums"),
        (baselines.IPS(relevance=table, propensity=[1.0, 0.9, 0.8, 0.7]), lists, "was given"),
    ):
        found = present(examination_interval(model, counts, lists=given))
        assert why in found.unsupported[2]
        assert np.isnan(found.interval[1:]).all()
    assert examination_interval(models.DCTR(table), counts) is None
    assert "take the ranker as known" in present(examination_interval(dla, counts, lists=lists)).warnings[0]


def test_given_curves_have_the_interval_of_their_estimator() -> None:
    counts, _ = drawn(0)
    estimate, table = conditional_likelihood(counts), towers.DocumentTable(Q * D)
    frozen = models.PBM(relevance=table, examination=towers.examination_of(estimate.value))
    for model in (baselines.IPS(relevance=table, propensity=estimate.value), frozen):
        found = present(examination_interval(model, counts))
        np.testing.assert_allclose(found.interval, estimate.interval, rtol=1e-4)


def test_a_log_that_does_not_fit_widens_or_withholds() -> None:
    counts, _ = drawn(0, 40_000, "dbn")
    fit = goodness_of_fit(counts)
    assert fit.cascade
    curve = conditional_likelihood(counts).value
    table = towers.DocumentTable(Q * D)
    pbm = models.PBM(relevance=table, examination=ranks(np.log(0.9 * curve / (1 - 0.9 * curve))))
    additive = models.AdditivePBM(relevance=table, examination=ranks(np.log(curve)))
    for model in (pbm, additive):
        assert np.isfinite(present(examination_interval(model, counts)).interval).all()
        found = present(examination_interval(model, counts, fit=fit))
        assert np.isnan(found.interval[1:]).all()
        assert set(found.unsupported) == {2, 3, 4}


@pytest.mark.parametrize("name", BASELINES)
def test_every_curve_says_what_it_comes_from(name: str) -> None:
    model = BASELINES[name].build(towers.DocumentTable(8))
    if model.examination_curve(CONTRACT_RANKS) is not None:
        assert model.curve_source != "none"
