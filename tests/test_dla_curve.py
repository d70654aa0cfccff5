"""Why the curve of dual learning is off by more than its clicks explain: the point where it comes to rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from propensity_logs import counted
from worlds import gradients

from ultr import baselines, towers
from ultr.propensity.conditional import fit_conditional
from ultr.sessions import Sessions

Q, D = 40, 4
RELEVANCE = np.random.default_rng(1).uniform(0.05, 0.95, (Q, D))
THETA = 1 / np.arange(1, D + 1)


def clicks_of(sessions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws [S, D] documents and clicks; two thirds of the lists are shuffled, the others best first."""
    rng = np.random.default_rng([seed, sessions])
    query = rng.integers(Q, size=sessions)
    order = np.argsort(-RELEVANCE, axis=1)[query]
    shuffled = rng.random(sessions) < 2 / 3
    order[shuffled] = rng.permuted(order[shuffled], axis=1)
    clicks = rng.random((sessions, D)) < THETA * RELEVANCE[query[:, None], order]
    return query[:, None] * D + order, clicks


def resting_point(document: np.ndarray, clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes log-examination [D] and log-relevance [Q D] of a table at which both losses are stationary.

    Relevance is clicks over examination, examination clicks over relevance, in turn.
    """
    b = np.zeros(D)
    for _ in range(1000):
        relevance = np.bincount(document.ravel(), (clicks * np.exp(b[0] - b)).ravel(), Q * D)
        s = np.log(np.maximum(relevance, 1e-6))
        ratio = np.minimum(np.exp(s[document[:, :1]] - s[document]), 100.0)
        after = np.log((clicks * ratio).sum(0))
        if np.abs(after - after[0] - b).max() < 1e-10:
            break
        b = after - after[0]
    return b, s


def test_dual_learning_rests_where_each_is_clicks_over_the_other() -> None:
    document, clicks = clicks_of(4000, 0)
    b, s = resting_point(document, clicks)
    table = towers.DocumentTable(Q * D)
    table.table[...] = jnp.asarray(np.append(0.0, s), jnp.float32)
    model = baselines.DLA(relevance=table, examination=towers.RankTable(D, initial=b))
    lists = Sessions(
        mask=np.ones(document.shape, bool),
        position=np.tile(np.arange(D, dtype=np.int32), (len(document), 1)),
        features={"document": (document + 1).astype(np.int32)},
        clicks=clicks.astype(np.int8),
    )
    for slope in jax.tree.leaves(gradients(model, lists)):
        np.testing.assert_allclose(slope, 0.0, atol=5e-3)


@pytest.mark.parametrize(("sessions", "least", "most"), [(400, 20.0, np.inf), (2000, 3.0, 12.0), (50_000, 1.0, 2.2)])
def test_examination_of_dual_learning_is_off_where_documents_have_few_clicks(
    sessions: int, least: float, most: float
) -> None:
    # Clicks over an estimate of relevance: a ratio of two estimates of the same clicks, which is biased by as much as
    # the estimate is unsure; and each document counts alike, where the likelihood takes those that tell more for more.
    z, error = [], np.ones(D - 1)
    for seed in range(12):
        document, clicks = clicks_of(sessions, seed)
        cell = (document * D + np.arange(D)).ravel()
        n, c = np.bincount(cell, minlength=Q * D * D), np.bincount(cell, clicks.ravel(), Q * D * D)
        at = np.flatnonzero(n)
        fit = fit_conditional(counted(at // D, at % D + 1, n[at], c[at], np.repeat(np.arange(Q), D), D))
        error = np.sqrt(np.diag(fit.covariance(0)))[1:]
        z.append((resting_point(document, clicks)[0][1:] - np.log(THETA[1:])) / error)
    assert least < np.mean(np.square(z)) < most
