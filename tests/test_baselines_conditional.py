"""Two-towers by which documents were clicked, given how many: sums over sets, slopes, what cancels, what is found."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ultr
from ultr import baselines, towers
from ultr.logspace import log_elementary_symmetric, log_prob_given_count
from ultr.models import PBM, AdditivePBM
from ultr.sessions import Sessions

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def by_sets(x: np.ndarray, count: int) -> float:
    """The sum over all sets of so many of the entries."""
    return float(np.log(sum(np.exp(sum(x[list(s)])) for s in combinations(range(len(x)), count))))


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_sums_over_sets_equal_the_enumeration(width: int) -> None:
    rng = np.random.default_rng(width)
    x = np.repeat(rng.normal(0, 3, (1, width)), width + 1, axis=0)
    with jax.enable_x64(True):
        found, slopes = jax.vjp(lambda v: log_elementary_symmetric(v, np.arange(width + 1)), jnp.asarray(x))
        (slope,) = slopes(jnp.ones(width + 1))
    np.testing.assert_allclose(found, [by_sets(x[0], n) for n in range(width + 1)], rtol=1e-12, atol=1e-12)
    for n in range(width + 1):  # the probability that an entry is in the set
        for k in range(width):
            inside = by_sets(np.delete(x[0], k), n - 1) + x[0, k] if n else -np.inf
            np.testing.assert_allclose(slope[n, k], np.exp(inside - by_sets(x[0], n)), rtol=1e-10, atol=1e-12)


def exact_log_polynomial(x: np.ndarray) -> np.ndarray:
    """log of the coefficients of prod (1 + exp(x) z), by another algorithm: products of halves, scaled."""
    if len(x) == 1:
        return np.array([0.0, x[0]])
    a, b = exact_log_polynomial(x[: len(x) // 2]), exact_log_polynomial(x[len(x) // 2 :])
    table = np.full(len(a) + len(b) - 1, -np.inf)
    for i, value in enumerate(a):
        table[i : i + len(b)] = np.logaddexp(table[i : i + len(b)], value + b)
    return table


@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
def test_long_lists_neither_overflow_nor_lose_precision(size: float) -> None:
    rng = np.random.default_rng(0)
    logits = (size * rng.normal(size=(6, 200))).astype(np.float32)
    counts = [0, 1, 5, 100, 193, 200]
    clicks = np.stack([rng.permutation(np.arange(200) < n) for n in counts])
    mask = np.ones_like(clicks)
    total, slope = jax.value_and_grad(lambda x: log_prob_given_count(x, clicks, mask).sum())(logits)
    found = np.asarray(log_prob_given_count(logits, clicks, mask))
    for row, n in enumerate(counts):
        x = logits[row].astype(np.float64)
        wanted = x[clicks[row]].sum() - exact_log_polynomial(x)[n]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=2e-4)
    assert np.isfinite(total)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() <= 1 + 1e-5
    # As many documents are expected to be clicked as were.
    np.testing.assert_allclose(np.asarray(slope).sum(1), 0, atol=2e-4)


@pytest.mark.parametrize("kind", ["PBM", "additive"])
def test_the_loss_is_the_click_model_given_the_number_of_clicks(kind: str) -> None:
    rng = np.random.default_rng(1)
    every = np.array([[int(b) for b in f"{i:04b}"] for i in range(16)])
    relevance, examination = rng.normal(0, 2, (2, 1, 4)).repeat(16, axis=1)
    lists = Sessions.from_lists(features={"r": relevance, "e": examination}, clicks=every)
    given: dict[str, Any] = {"relevance": lambda s: s.features["r"], "examination": lambda s: s.features["e"]}
    model, ranker = (
        (PBM(**given), baselines.ConditionalPBM(**given))
        if kind == "PBM"
        else (AdditivePBM(**given), baselines.ConditionalAdditive(**given))
    )
    log_prob = np.asarray(model.log_prob(lists), np.float64)
    totals = {n: np.logaddexp.reduce(log_prob[every.sum(1) == n]) for n in range(5)}
    wanted = [totals[n] - p for n, p in zip(every.sum(1), log_prob, strict=True)]
    np.testing.assert_allclose(ranker.loss(lists), wanted, atol=2e-5)


def test_an_intercept_of_the_list_cancels() -> None:
    rng = np.random.default_rng(2)
    relevance, examination = rng.normal(0, 1, (2, 30, 6))
    clicks = rng.integers(0, 2, (30, 6))
    given: dict[str, Any] = {"relevance": lambda s: s.features["r"], "examination": lambda s: s.features["e"]}

    def losses(ranker: Any, moved: Any) -> np.ndarray:
        lists = Sessions.from_lists(features={"r": relevance + moved, "e": examination}, clicks=clicks)
        return np.asarray(ranker.loss(lists))

    effect = rng.normal(0, 5, (30, 1))
    additive = baselines.ConditionalAdditive(**given)
    np.testing.assert_allclose(losses(additive, effect), losses(additive, 0.0), atol=2e-4)
    pbm = baselines.ConditionalPBM(**given)  # only where clicks are rare
    np.testing.assert_allclose(losses(pbm, -14.0 - np.abs(effect)), losses(pbm, -14.0), atol=1e-4)
    assert np.abs(losses(pbm, effect) - losses(pbm, 0.0)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [baselines.ConditionalPBM, baselines.ConditionalAdditive])
def test_relevance_and_examination_are_found_beside_unknown_queries(kind: Any) -> None:
    """Each list has an effect of its own that nothing tells; for the PBM clicks are rare, as its likelihood needs."""
    rng = np.random.default_rng(3)
    lists, documents, true = 60_000, 8, np.array([1.0, 0.6, 0.3])
    gamma = np.linspace(0.02, 0.2, documents)
    shown = np.argsort(rng.random((lists, documents)), axis=1)[:, :3]
    additive, effect = kind is baselines.ConditionalAdditive, rng.normal(-0.5, 1.0, (lists, 1))
    score_of = np.log(gamma / (1 - gamma)) if additive else np.log(gamma)
    logit = np.log(true) + score_of[shown] + effect
    p = 1 / (1 + np.exp(-logit)) if additive else np.minimum(np.exp(logit), 1)
    clicks = rng.random((lists, 3)) < p
    data = Sessions.from_lists(features={"document": shown + 1}, clicks=clicks.astype(int))
    ranker = kind(relevance=towers.DocumentTable(documents), examination=towers.RankTable(3))
    fitted = ultr.fit(ranker, data, seed=0, epochs=25, batch_size=2048).model
    np.testing.assert_allclose(fitted.examination_curve(3), true, rtol=0.12)
    one = Sessions.from_lists(features={"document": [np.arange(1, documents + 1)]})
    score = np.asarray(jax.nn.log_sigmoid(fitted.score(one)) if kind is baselines.ConditionalPBM else fitted.score(one))
    np.testing.assert_allclose((score - score.mean())[0], score_of - score_of.mean(), atol=0.2)
