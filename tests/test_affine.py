"""alpha and beta of trust bias from counts: against a second algorithm, and their errors against simulated logs."""

from __future__ import annotations

import numpy as np
import pytest
from narrowing import present
from propensity_logs import counted
from scipy.optimize import minimize

from ultr.propensity.affine import fit_affine
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.conditional import fit_conditional

K = 5
RANK = np.arange(1, K + 1)
THETA = 1.0 / RANK
# User -> alpha and beta by rank.
USERS = {
    "pbm": (THETA, np.zeros(K)),
    "noise": (0.9 * THETA, np.full(K, 0.05)),
    "trust": (THETA * (1 - (RANK + 1) / 100 - 0.65 / RANK), THETA * 0.65 / RANK),
}


def clicks_of(user: str, items: int, shown: float, seed: int) -> ArmCounts:
    """Draws counts: relevant documents are shown higher; a fifth of the documents are shown a few times only."""
    world, rng = np.random.default_rng(3), np.random.default_rng([seed, 4])
    gamma = world.choice([0.1, 0.4, 0.95], items, p=[0.6, 0.25, 0.15])
    often = np.where(world.random(items) < 0.2, 3.0, shown)[:, None]
    n = world.poisson(often * np.exp(-0.4 * np.abs(RANK - 1 - 4 * (1 - gamma[:, None]))))
    alpha, beta = USERS[user]
    clicks = rng.binomial(n, alpha * gamma[:, None] + beta)
    item, arm = np.nonzero(n)
    return counted(item, arm + 1, n[item, arm], clicks[item, arm], np.arange(items) // 10, K)


def errors_of(user: str, logs: int, items: int, shown: float) -> tuple[np.ndarray, np.ndarray]:
    """Computes z of log(alpha) relative to rank 1, [logs, K - 1], by its own errors and by those of the PBM."""
    z, by_pbm = [], []
    truth = np.log(USERS[user][0] / USERS[user][0][0])[1:]
    for seed in range(logs):
        counts = clicks_of(user, items, shown, seed)
        found = present(fit_affine(counts))
        z.append((found.log_alpha[1:] - truth) / found.log_error[1:])
        pbm = fit_conditional(counts)
        error = np.sqrt(np.diag(pbm.covariance(0)))[1:]
        by_pbm.append((pbm.log_propensity[1:] - pbm.log_propensity[0] - truth) / error)
    return np.array(z), np.array(by_pbm)


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
def test_many_clicks_give_the_maximum_of_the_joint_likelihood(user: str) -> None:
    counts = clicks_of(user, 60, 20_000.0, 0)
    n, c = counts.impressions, counts.clicks

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta, gamma = np.exp(np.append(0.0, x[: K - 1])), np.append(0.0, x[K - 1 : 2 * K - 2]), x[2 * K - 2 :]
        p = np.clip(alpha[counts.arm] * gamma[counts.item] + beta[counts.arm], 1e-9, 1 - 1e-9)
        slope = (c / p - (n - c) / (1 - p)) / n.sum()
        by_alpha, by_beta = counts.sum_by_arm(slope * gamma[counts.item]) * alpha, counts.sum_by_arm(slope)
        by_gamma = counts.sum_by_item(slope * alpha[counts.arm])
        value = float(c @ np.log(p) + (n - c) @ np.log1p(-p)) / float(n.sum())
        return -value, -np.concatenate([by_alpha[1:], by_beta[1:], by_gamma])

    found = present(fit_affine(counts))
    left = np.maximum(c - n * found.beta[counts.arm], 1.0)
    gamma = counts.sum_by_item(left) / counts.sum_by_item(n * np.exp(found.log_alpha)[counts.arm])
    start = np.concatenate([found.log_alpha[1:], found.beta[1:], gamma])
    direct = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-9, "maxiter": 3000})
    gap = direct.x[: K - 1] - found.log_alpha[1:]
    assert (np.abs(gap) < 1.5 * found.log_error[1:]).all()  # another weighting of the same clicks
    truth = np.log(USERS[user][0] / USERS[user][0][0])
    np.testing.assert_allclose(found.log_alpha, truth, atol=0.06)


def test_scaled_probabilities_are_those_of_the_clicks() -> None:
    counts = clicks_of("trust", 400, 2_000.0, 0)
    found = present(fit_affine(counts))
    alpha, beta = found.scaled()
    assert beta.min() == 0
    assert (alpha + beta).max() == pytest.approx(1)
    np.testing.assert_allclose(alpha / alpha[0], np.exp(found.log_alpha))
    shift = (beta - found.beta) / np.exp(found.log_alpha)
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)  # a multiple of alpha
    np.testing.assert_allclose(beta[:3], USERS["trust"][1][:3], atol=0.08)


def test_clicks_that_compare_nothing_have_no_solution() -> None:
    assert fit_affine(counted([0, 1], [1, 2], [9, 9], [3, 3], [0, 0])) is None
    same = counted(np.repeat([0, 1], 2), [1, 2, 1, 2], [10] * 4, [4, 2, 4, 2], [0, 1])
    found = fit_affine(same)  # two documents of one relevance do not tell beta from alpha
    assert found is None or not found.log_error[1] < 1


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
def test_errors_are_those_that_are_predicted(user: str) -> None:
    z, by_pbm = errors_of(user, 40, 1500, 60.0)
    assert 0.7 < np.mean(z**2) < 1.5
    assert 0.90 < np.mean(np.abs(z) < 1.96) < 0.99
    assert np.abs(z.mean(0)).max() < 0.7  # no bias beside the error
    if user != "pbm":
        assert np.mean(by_pbm**2) > 10  # what the position-based model makes of such clicks
