"""Joint and conditional likelihood of propensities, against direct optimisation, dense information and enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from ultr.errors import ConfigError
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.conditional import conditional_likelihood, unbiased_click_variance
from ultr.propensity.information import (
    arm_components,
    information_laplacian,
    profile_laplacian,
    relative_covariance,
    score_products_by_query,
)
from ultr.propensity.joint import cell_scores, maximise_joint, maximum_likelihood, observed_information
from ultr.propensity.propensities import NO_CLICK_VARIATION, ZERO_COUNT_LIMIT

LIKELIHOODS = {"joint": maximum_likelihood, "conditional": conditional_likelihood}


def counts_from(impressions: np.ndarray, clicks: np.ndarray, *, per_query: int = 1) -> ArmCounts:
    """From tables [items, arms]."""
    item, arm = np.nonzero(impressions)
    query = np.arange(len(impressions)) // per_query
    return ArmCounts(item, arm, impressions[item, arm].astype(float), clicks[item, arm].astype(float), query,
                 impressions.shape[1])  # fmt: skip


def drawn(items: int = 30, arms: int = 4, seed: int = 0, most: int = 40) -> tuple[ArmCounts, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta, gamma = 1 / np.arange(1, arms + 1), rng.uniform(0.1, 0.8, items)
    n = rng.integers(0, most, (items, arms)) * (rng.random((items, arms)) < 0.7)
    n[0] = most
    return counts_from(n, rng.binomial(n, gamma[:, None] * theta)), theta, gamma


def test_newton_finds_what_a_general_optimiser_finds() -> None:
    counts, theta, _ = drawn()
    some = counts.sum_by_item(counts.clicks) > 0
    inner = counts.select(some[counts.item])
    missed = np.maximum(inner.impressions - inner.clicks, 1e-4)

    def loss(z: np.ndarray) -> float:
        x = np.append(0.0, z[:3])[inner.arm] + z[3:][inner.item]
        return float("inf") if (x >= 0).any() else -float(np.sum(inner.clicks * x + missed * np.log1p(-np.exp(x))))

    def slope(z: np.ndarray) -> np.ndarray:
        x = np.append(0.0, z[:3])[inner.arm] + z[3:][inner.item]
        g = -(inner.clicks - missed * np.exp(x) / (1 - np.exp(x)))
        return np.concatenate([np.bincount(inner.arm, g, 4)[1:], np.bincount(inner.item, g, counts.items)])

    found = maximise_joint(counts)
    direct = minimize(loss, np.append(np.log(theta[1:]), np.full(counts.items, -2.0)), jac=slope, method="BFGS",
                      options={"gtol": 1e-6, "maxiter": 5000})  # fmt: skip
    np.testing.assert_allclose(found.log_propensity[1:], direct.x[:3], atol=1e-4)
    np.testing.assert_allclose(found.log_relevance[some], direct.x[3:][some], atol=1e-3)
    assert found.log_likelihood >= -direct.fun - 1e-6
    assert found.steps < 15


@pytest.mark.parametrize("certain", [0.0, 0.5])
def test_items_that_were_always_clicked_do_not_hold_up_the_search(certain: float) -> None:
    # At the maximum of a concave function all derivatives are 0: with one impression or two of most items, and where
    # half of the items are clicked whenever they are examined, at two ranks alike.
    rng, theta = np.random.default_rng(1), np.array([1.0, 1.0, 0.5, 0.3, 0.2])
    gamma = np.where(rng.random(4000) < certain, 1.0, rng.uniform(0.05, 0.85, 4000))
    n = rng.integers(1, 3, (4000, 5)) * (rng.random((4000, 5)) < 0.5)
    n[0] = 9
    counts = counts_from(n, rng.binomial(n, gamma[:, None] * theta))
    assert (counts.clicks == counts.impressions).mean() > 0.2
    found = maximise_joint(counts)
    slope = cell_scores(counts, found)
    np.testing.assert_allclose(counts.sum_by_arm(slope), 0, atol=1e-3)
    np.testing.assert_allclose(counts.sum_by_item(slope)[found.item_component >= 0], 0, atol=1e-3)
    assert found.steps < 40


def test_the_conditional_likelihood_is_at_its_maximum() -> None:
    counts, theta, _ = drawn()

    def loss(z: np.ndarray) -> float:
        odds = counts.impressions * np.exp(np.append(0.0, z))[counts.arm]
        return -float(counts.clicks @ np.log(odds / counts.sum_by_item(odds)[counts.item]))

    direct = minimize(loss, np.log(theta[1:]), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    np.testing.assert_allclose(np.log(conditional_likelihood(counts).value[1:]), direct.x, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("errors", ["information", "query"])
def test_expected_clicks_give_the_truth(name: str, errors: Any) -> None:
    rng = np.random.default_rng(1)
    theta, gamma = np.array([1.0, 0.7, 0.45, 0.1, 0.08]), rng.uniform(0.01, 0.95, 40)
    n = rng.integers(0, 9, (40, 5)) + 1.0
    table = LIKELIHOODS[name](counts_from(n, n * gamma[:, None] * theta), errors=errors)
    np.testing.assert_allclose(table.value, theta, rtol=1e-6)
    assert all(why == NO_CLICK_VARIATION and errors == "query" for why in table.unsupported.values())


def test_the_laplacian_is_what_dense_information_leaves_when_relevances_are_unknown() -> None:
    counts, theta, gamma = drawn()
    p = gamma[counts.item] * theta[counts.arm]
    design = np.zeros((len(p), 4 + counts.items))  # log p = a_k + b_d
    design[np.arange(len(p)), counts.arm] = 1
    design[np.arange(len(p)), 4 + counts.item] = 1
    dense = design.T @ (design * (counts.impressions * p / (1 - p))[:, None])
    keep = np.r_[1:4, 4 + np.unique(counts.item)]
    expected = np.linalg.inv(dense[np.ix_(keep, keep)])[:3, :3]
    s = information_laplacian(counts, np.log(theta), np.log(gamma))
    np.testing.assert_allclose(s.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(relative_covariance(s)[1:, 1:], expected, rtol=1e-8)
    between_1_and_3 = relative_covariance(s, 2)[0, 0]  # either way
    np.testing.assert_allclose(between_1_and_3, expected[1, 1], rtol=1e-8)


def test_observed_information_is_the_curvature_of_the_profile() -> None:
    counts, *_ = drawn(items=12)
    found = maximise_joint(counts)
    h = observed_information(counts, found)

    def profile(a: np.ndarray) -> float:
        total = 0.0
        for d in range(counts.items):
            own = counts.select(counts.item == d)
            if own.clicks.sum():
                missed = np.maximum(own.impressions - own.clicks, 1e-4)

                def loss(b: np.ndarray, own: ArmCounts = own, missed: np.ndarray = missed) -> float:
                    x = a[own.arm] + b[0]
                    return 1e9 if (x >= 0).any() else -float(own.clicks @ x + missed @ np.log1p(-np.exp(x)))

                start = [found.log_relevance[d]]
                total -= minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13}).fun
        return total

    a, step = found.log_propensity, 1e-2
    for k in (1, 3):
        e = np.eye(4)[k] * step
        curvature = -(profile(a + e) - 2 * profile(a) + profile(a - e)) / step**2
        assert curvature == pytest.approx(h[k, k], rel=2e-3)


def test_resistances_in_series_and_in_parallel() -> None:
    def graph(edges: dict[tuple[int, int], float], size: int) -> np.ndarray:
        s = np.zeros((size, size))
        for (i, j), g in edges.items():
            s[[i, j], [j, i]] -= g
            s[[i, j], [i, j]] += g
        return s

    chain = relative_covariance(graph({(0, 1): 2.0, (1, 2): 4.0, (2, 3): 8.0}, 5))
    np.testing.assert_allclose(np.diag(chain), [0, 1 / 2, 3 / 4, 7 / 8, np.inf])
    assert np.isnan(chain[4, :4]).all()
    cycle = relative_covariance(graph({(0, 1): 1.0, (1, 2): 1.0, (2, 0): 1.0}, 3))
    np.testing.assert_allclose(np.diag(cycle), [0, 2 / 3, 2 / 3])  # 1 parallel to 2


def test_a_document_brings_the_ranks_weights_in_series() -> None:
    counts = counts_from(np.array([[3.0, 5.0]]), np.array([[1.0, 1.0]]))
    np.testing.assert_allclose(profile_laplacian(counts, np.array([3.0, 6.0])), np.array([[2.0, -2.0], [-2.0, 2.0]]))


def test_the_conditional_score_has_mean_zero_and_its_variance_is_unbiased_however_few_impressions() -> None:
    theta, gamma, n = np.array([1.0, 0.6, 0.3]), 0.7, np.array([1, 2, 1])
    p = gamma * theta
    q = n * theta / (n * theta).sum()
    mean, square, variance = np.zeros(3), np.zeros((3, 3)), np.zeros(3)
    for clicks in itertools.product(*(range(m + 1) for m in n)):
        c = np.array(clicks, float)
        weight = np.prod([[1, 2, 1][k] if (m, k) == (2, 1) else 1 for k, m in zip(clicks, n, strict=True)])
        weight = weight * np.prod(p**c * (1 - p) ** (n - c))
        u = c - c.sum() * q
        mean += weight * u
        square += weight * np.outer(u, u)
        variance += weight * unbiased_click_variance(counts_from(n[None], c[None]), np.log(theta))
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(variance, n * p * (1 - p), rtol=1e-10)
    project = np.eye(3) - np.outer(q, np.ones(3))
    np.testing.assert_allclose(square, project @ np.diag(n * p * (1 - p)) @ project.T, atol=1e-12)


def test_few_impressions_bias_the_joint_likelihood_and_not_the_conditional() -> None:
    rng, theta, items = np.random.default_rng(3), np.array([1.0, 0.5, 0.25]), 6000
    gamma = rng.uniform(0.2, 0.9, items)
    n = rng.integers(0, 3, (items, 3))
    counts = counts_from(n, rng.binomial(n, gamma[:, None] * theta), per_query=10)
    joint, *others = maximum_likelihood(counts), *(
        conditional_likelihood(counts, errors=e) for e in ("information", "query")
    )  # fmt: skip
    for table in others:
        z = np.log(table.value[1:] / theta[1:]) / table.log_standard_error[1:]
        assert np.abs(z).max() < 3
        assert not table.warnings
    np.testing.assert_allclose(others[0].standard_error, others[1].standard_error, rtol=0.15)
    assert np.log(joint.value[2] / theta[2]) / joint.log_standard_error[2] < -4
    assert "use conditional-likelihood" in joint.warnings[0]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_standard_errors_are_the_spread_of_estimates(name: str) -> None:
    theta, gamma = np.array([1.0, 0.6, 0.4, 0.2]), np.random.default_rng(0).uniform(0.1, 0.8, 50)
    n = np.full((50, 4), 60)
    n[:, 2:] //= 4
    off, told, covered = [], [], []
    for seed in range(150):
        clicks = np.random.default_rng([7, seed]).binomial(n, gamma[:, None] * theta)
        table = LIKELIHOODS[name](counts_from(n, clicks))
        off.append(np.log(table.value[1:] / theta[1:]))
        told.append(table.log_standard_error[1:])
        covered.append((table.interval[1:, 0] < theta[1:]) & (theta[1:] < table.interval[1:, 1]))
    # A standard deviation from 150 draws is within 6 % of the truth two times in three.
    np.testing.assert_allclose(np.mean(told, 0) / np.std(off, 0), 1, atol=0.2)
    assert 0.90 < np.mean(covered) < 0.99


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_dependent_clicks_of_a_query_widen_the_errors_over_queries_alone(name: str) -> None:
    rng, theta = np.random.default_rng(5), np.array([1.0, 0.5])
    n = np.full((400, 2), 30)
    rates = np.repeat(rng.uniform(0.2, 0.8, (80, 2)), 5, axis=0)  # ranks of a query vary together
    counts = counts_from(n, rng.binomial(n, rates * theta), per_query=5)
    narrow, wide = (LIKELIHOODS[name](counts, errors=e).log_standard_error[1] for e in ("information", "query"))
    assert wide > 2 * narrow


@pytest.mark.parametrize("name", LIKELIHOODS)
class TestWhatIsNotSupported:
    def test_ranks_that_no_document_connects(self, name: str) -> None:
        n = np.array([[50, 50, 0, 0, 0], [50, 50, 0, 0, 0], [0, 0, 50, 50, 0]])
        table = LIKELIHOODS[name](counts_from(n, n // np.array([2, 4, 3, 6, 1])))
        assert table.value[0] == 1
        assert table.value[1] == pytest.approx(12 / 25)
        assert np.isnan(table.value[2:]).all()
        assert np.isnan(table.interval[2:]).all()
        assert table.unsupported == {
            3: "no document connects it with rank 1",
            4: "no document connects it with rank 1",
            5: "no document was shown there",
        }

    def test_a_rank_that_was_never_clicked_has_an_upper_limit(self, name: str) -> None:
        n = np.array([[100, 100, 100], [50, 50, 50]])
        table = LIKELIHOODS[name](counts_from(n, np.array([[40, 20, 0], [20, 10, 0]])))
        assert table.value[2] == 0
        assert np.isnan(table.standard_error[2])
        assert table.interval[2, 0] == 0
        # Examined like rank 1 it would have had about 60 clicks.
        assert table.interval[2, 1] == pytest.approx(ZERO_COUNT_LIMIT / 60, rel=0.02)
        assert table.unsupported == {3: "never clicked: an upper limit only"}

    def test_rank_1_never_clicked(self, name: str) -> None:
        n = np.full((2, 2), 30)
        table = LIKELIHOODS[name](counts_from(n, np.array([[0, 4], [0, 7]])))
        assert np.isnan(table.value).all()
        assert table.unsupported == {
            1: "never clicked",
            2: "rank 1, which it is compared with, was never clicked",
        }

    def test_ranks_that_only_unclicked_documents_connect(self, name: str) -> None:
        n = np.array([[50, 0], [0, 50], [50, 50]])
        table = LIKELIHOODS[name](counts_from(n, np.array([[9, 0], [0, 9], [0, 0]])))
        assert np.isnan(table.value[1])
        assert "clicked at one of the two alone, or never, so that any ratio" in table.unsupported[2]

    def test_no_rank_variation_and_one_rank(self, name: str) -> None:
        n = np.diag([9, 9, 9])
        table = LIKELIHOODS[name](counts_from(n, n // 2))
        assert np.isnan(table.value[1:]).all()
        assert len(table.unsupported) == 2
        assert table.impressions.sum() == 0
        one = LIKELIHOODS[name](counts_from(np.array([[9], [9]]), np.array([[3], [4]])))
        assert one.value.tolist() == [1.0]

    def test_one_query_gives_no_errors_over_queries(self, name: str) -> None:
        n = np.full((3, 2), 40)
        counts = counts_from(n, np.array([[20, 10], [9, 5], [30, 11]]), per_query=3)
        table = LIKELIHOODS[name](counts, errors="query")
        assert np.isfinite(table.value).all()
        assert np.isnan(table.standard_error[1])
        assert np.isnan(table.interval[1]).all()
        assert "rest on 1 query" in table.warnings[-1]
        assert table.unsupported == {2: "no interval: fewer than two queries compare ranks"}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_names_and_units_do_not_matter(name: str) -> None:
    counts, *_ = drawn()
    first = LIKELIHOODS[name](counts)
    order = np.random.default_rng(0).permutation(counts.items)
    moved = np.argsort(order[counts.item], kind="stable")
    arm, impressions, clicks = (x[moved] for x in (counts.arm, counts.impressions, counts.clicks))
    query = counts.query[np.argsort(order)]
    again = LIKELIHOODS[name](ArmCounts(order[counts.item][moved], arm, impressions, clicks, query, counts.arms))
    np.testing.assert_allclose(again.value, first.value, rtol=1e-6)
    many = ArmCounts(counts.item, counts.arm, 100 * counts.impressions, 100 * counts.clicks, counts.query, counts.arms)
    scaled = LIKELIHOODS[name](many)
    np.testing.assert_allclose(scaled.value, first.value, rtol=1e-3)
    np.testing.assert_allclose(scaled.standard_error[1:], first.standard_error[1:] / 10, rtol=0.1)


def test_a_document_that_was_always_clicked_keeps_probabilities_below_one() -> None:
    n = np.array([[5, 5], [40, 40], [30, 30]])
    table = maximum_likelihood(counts_from(n, np.array([[5, 5], [20, 10], [12, 6]])))
    assert np.isfinite(table.value).all()
    assert 0.4 < table.value[1] < 1
    assert 0 < table.standard_error[1] < 1


def test_sums_over_queries_are_those_of_a_dense_table() -> None:
    counts, *_ = drawn()
    counts = ArmCounts(
        counts.item, counts.arm, counts.impressions, counts.clicks, 10**9 * (np.arange(counts.items) // 4), 4
    )
    slope = np.random.default_rng(3).normal(size=len(counts.item))
    dense = np.zeros((8, counts.arms))
    np.add.at(dense, (counts.item // 4, counts.arm), slope)
    np.testing.assert_allclose(score_products_by_query(counts, slope), dense.T @ dense * 8 / 7)
    assert np.isnan(score_products_by_query(counts, np.where(counts.item < 4, slope, 0.0))).all()


def test_components_are_numbered_by_their_first_rank() -> None:
    n = np.array([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
    assert arm_components(counts_from(n, n)).tolist() == [0, 1, -1, 1, 0]


def test_logits_of_a_curve() -> None:
    n = np.full((20, 3), 40)
    table = maximum_likelihood(counts_from(n, np.tile([20, 10, 5], (20, 1))))
    np.testing.assert_allclose(1 / (1 + np.exp(-table.logits(0.9))), 0.9 * table.value, rtol=1e-9)
    with pytest.raises(ConfigError, match=r"ranks \[3\] have no propensity above 0"):
        maximum_likelihood(counts_from(n, np.tile([20, 10, 0], (20, 1)))).logits()
