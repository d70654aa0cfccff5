"""The prior that `solve` fits to the data: a beta distribution per table."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from narrowing import present

from ultr import models, towers
from ultr.sessions import Sessions
from ultr.training import solve
from ultr.training.objective import FITTED_ENTRIES, fit_beta

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def beta_data(count: int = 3000, *, a: float = 1.5, b: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Draws clicks and skips of documents whose click probabilities come from Beta(a, b); few impressions each."""
    rng = np.random.default_rng(7)
    shown = rng.integers(1, 12, count)
    clicks = rng.binomial(shown, rng.beta(a, b, count))
    return clicks, shown - clicks


def test_the_fitted_prior_is_the_most_likely_beta() -> None:
    yes, no = beta_data()
    found = present(fit_beta(yes, no))

    def loss(log: np.ndarray) -> float:
        return -scipy.stats.betabinom.logpmf(yes, yes + no, *np.exp(log)).sum()

    wanted = np.exp(scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6}).x)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    np.testing.assert_allclose(found, (1.5, 4.0), rtol=0.2)


def test_few_or_equal_cells_leave_the_prior_finite() -> None:
    yes, no = beta_data(FITTED_ENTRIES - 1)
    assert fit_beta(yes, no) is None
    same = present(fit_beta(np.full(500, 3.0), np.full(500, 9.0)))
    assert np.isfinite(same).all()
    assert same[0] / sum(same) == pytest.approx(0.25, abs=0.02)
    never = present(fit_beta(np.zeros(500), np.full(500, 9.0)))
    assert np.isfinite(never).all()
    assert never[0] > 0


def test_a_fitted_prior_gives_posterior_means() -> None:
    clicks, skips = beta_data()
    rows = np.repeat(np.arange(len(clicks)) + 1, clicks + skips)
    clicked = np.concatenate([np.r_[np.ones(c), np.zeros(n)] for c, n in zip(clicks, skips, strict=True)])
    sessions = Sessions.from_lists(features={"document": rows[:, None]}, clicks=clicked.astype(int)[:, None])
    model = models.DCTR(towers.DocumentTable(len(clicks) + 1))
    fitted = solve(model, sessions, method="counting").model
    a, b = present(fit_beta(clicks, skips))
    table = np.asarray(fitted.tower.common[...] + fitted.tower.table[...])
    np.testing.assert_allclose(1 / (1 + np.exp(-table[1:-1])), (clicks + a) / (clicks + skips + a + b), rtol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-table[-1])), a / (a + b), rtol=1e-4)  # never shown


def test_a_fitted_prior_does_not_feed_on_itself() -> None:
    """The satisfaction of DBN is latent: its prior comes from counting, and keeps documents apart."""
    rng = np.random.default_rng(3)
    documents, lists, width = 400, 4000, 5
    attraction, satisfaction = rng.beta(1.0, 2.0, documents), rng.beta(2.0, 2.0, documents)
    ids = np.argsort(rng.random((lists, documents)), axis=1)[:, :width]
    clicks = np.zeros((lists, width), np.int8)
    going = np.ones(lists, bool)
    for k in range(width):
        clicks[:, k] = going & (rng.random(lists) < attraction[ids[:, k]])
        satisfied = (clicks[:, k] == 1) & (rng.random(lists) < satisfaction[ids[:, k]])
        going &= ~satisfied & (rng.random(lists) < 0.9)
    sessions = Sessions.from_lists(features={"document": ids + 1}, clicks=clicks)
    slots = {name: towers.DocumentTable(documents) for name in ("relevance", "satisfaction")}
    model = models.DBN(**slots, continuation=towers.Constant(1.0))
    fitted = solve(model, sessions, prior="fitted", iterations=60).model
    found = {
        name: 1 / (1 + np.exp(-np.asarray(getattr(fitted, name).common[...] + getattr(fitted, name).table[...])[1:]))
        for name in slots
    }
    assert np.corrcoef(found["relevance"], attraction)[0, 1] > 0.9
    assert np.corrcoef(found["satisfaction"], satisfaction)[0, 1] > 0.4
    assert found["satisfaction"].std() > 0.3 * satisfaction.std()
