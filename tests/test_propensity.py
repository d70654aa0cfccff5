"""Propensity estimators: the truth of simulated logs, exact expectations, whether lists were shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from propensity_logs import (
    HARVESTING,
    QUERIES,
    THETA,
    assert_covers,
    click_log,
    counted,
    estimate,
    every_harvesting,
    every_method,
    others,
    simulated,
)

from ultr import propensity
from ultr.data import collapse
from ultr.propensity import ESTIMATORS
from ultr.propensity.click_rates import shuffle_test
from ultr.propensity.joint import maximise_joint
from ultr.propensity.pair_likelihood import bounded_arms, maximise_pair_likelihood


@every_method
def test_shuffled_lists_give_the_truth(name: str) -> None:
    found = estimate(name, simulated(1))
    assert found.method == name
    assert_covers(found, THETA, most=0.06)
    assert others(found) == () or name in ("maximum-likelihood", "ctr")
    np.testing.assert_allclose(found.impressions, 20_000)


@every_method
def test_only_harvesting_gives_the_truth_of_a_confounded_log(name: str) -> None:
    found = estimate(name, simulated(2, shuffled=0.3))
    if name in HARVESTING:
        assert_covers(found, THETA, most=0.1)
    else:
        assert ((THETA - found.value)[1:] > 4.5 * found.standard_error[1:]).all()
        assert len(others(found)) == 1


@every_harvesting
def test_expected_clicks_give_the_truth_itself(name: str) -> None:
    found = estimate(name, simulated(3, shuffled=0.4, expected=True, sessions=3000))
    np.testing.assert_allclose(found.value, THETA, rtol=1e-8)


@pytest.mark.parametrize("name", ["maximum-likelihood", "conditional-likelihood", "all-pairs", "variance-weighted"])
def test_pairs_of_ranks_whose_products_are_equal_are_told_apart(name: str) -> None:
    # A document per pair of ranks, as relevant as no other: with one relevance for 1 x 6 and 2 x 3, or 1 x 4 and 2 x 2,
    # nothing would fit.
    pairs = [(i, j) for i in range(1, 8) for j in range(i + 1, 8)]
    gamma = np.random.default_rng(4).uniform(0.05, 0.95, len(pairs))
    rank, item = np.array(pairs).ravel(), np.repeat(np.arange(len(pairs)), 2)
    n = np.random.default_rng(5).integers(1, 50, len(item))
    found = estimate(name, counted(item, rank, n, n * gamma[item] / rank, np.arange(len(pairs))))
    np.testing.assert_allclose(found.value, 1 / np.arange(1, 8), rtol=1e-8)


@every_method
def test_values_do_not_depend_on_scale_or_labels(name: str) -> None:
    counts = simulated(6, sessions=2000, shuffled=0.5)
    found = estimate(name, counts).value
    twice = counted(counts.item, counts.arm + 1, 2 * counts.impressions, 2 * counts.clicks, counts.query)
    # What keeps the probabilities of documents below 1 that were always clicked counts less when all counts for more.
    np.testing.assert_allclose(estimate(name, twice).value, found, rtol=3e-4 if name == "maximum-likelihood" else 1e-7)
    rng = np.random.default_rng(7)
    item, query = rng.permutation(counts.items), rng.permutation(QUERIES)
    order = np.lexsort((counts.arm, item[counts.item]))
    cluster = np.empty(counts.items, np.int64)
    cluster[item] = query[counts.query]
    columns = item[counts.item], counts.arm + 1, counts.impressions, counts.clicks
    document, rank, impressions, clicks = (x[order] for x in columns)
    moved = counted(document, rank, impressions, clicks, cluster)
    np.testing.assert_allclose(estimate(name, moved).value, found, rtol=1e-7)


@every_method
def test_a_log_and_its_counts_say_the_same(name: str, tmp_path: Path) -> None:
    log = click_log(tmp_path / "log", sessions=500)
    found = [estimate(name, source) for source in (log, collapse(log, "rank"), collapse(log, "last-click"))]
    for other in found[1:]:
        for field in ("value", "standard_error", "interval", "impressions"):
            np.testing.assert_allclose(getattr(other, field), getattr(found[0], field))
        assert other.unsupported == found[0].unsupported


def test_the_package_names_its_methods() -> None:
    functions = {spec.estimate.__name__ for spec in ESTIMATORS.values()}
    assert functions == {name.replace("-", "_") for name in ESTIMATORS}
    others = {"contextual", "goodness_of_fit", "ESTIMATORS", "EstimatorSpec", "Propensities", "Check", "GoodnessOfFit"}
    assert functions | others == {*propensity.__all__}
    assert all(spec.name == name and spec.summary for name, spec in ESTIMATORS.items())


def test_the_ratios_are_those_of_their_formulas() -> None:
    # Documents a: ranks 1, 2; b: ranks 1, 2, 3; c: ranks 2, 3.
    item, rank = [0, 0, 1, 1, 1, 2, 2], [1, 2, 1, 2, 3, 2, 3]
    n, c = [10, 20, 5, 40, 8, 4, 16], [8, 4, 3, 10, 1, 2, 4]
    counts = counted(item, rank, n, c, [0, 1, 2])
    first = 8 / 10 + 3 / 5  # clicks at rank 1 of a and b, weighted
    np.testing.assert_allclose(propensity.pivot_one(counts).value, [1, (4 / 20 + 10 / 40) / first, (1 / 8) / (3 / 5)])
    step = (1 / 8 + 4 / 16) / (10 / 40 + 2 / 4)
    np.testing.assert_allclose(
        propensity.adjacent_chain(counts).value, [1, (4 / 20 + 10 / 40) / first, (4 / 20 + 10 / 40) / first * step]
    )
    np.testing.assert_allclose(propensity.ctr(counts).value, [1, (16 / 64) / (11 / 15), (5 / 24) / (11 / 15)])
    np.testing.assert_array_equal(propensity.pivot_one(counts).impressions, [15, 60, 8])
    np.testing.assert_array_equal(propensity.adjacent_chain(counts).impressions, [15, 64, 24])


@pytest.mark.parametrize("name", ["all-pairs", "variance-weighted"])
def test_all_pairs_is_the_maximum_of_its_likelihood(name: str) -> None:
    counts = simulated(8, sessions=1500, shuffled=0.3)
    rows: dict[tuple[int, int, int], np.ndarray] = {}
    by_item: dict[int, list[int]] = {}
    for i, item in enumerate(counts.item.tolist()):
        by_item.setdefault(item, []).append(i)
    for places in by_item.values():
        for i in places:
            for j in places:
                k, other = int(counts.arm[i]), int(counts.arm[j])
                if k != other:
                    n = counts.impressions[[i, j]]
                    weight = 1 / n[0] if name == "all-pairs" else n.min() / n[0]
                    sums = rows.setdefault((min(k, other), max(k, other), k), np.zeros(2))
                    sums += weight * np.array([counts.clicks[i], n[0]])
    pairs = sorted({key[:2] for key in rows})
    items = counted(
        [pairs.index(key[:2]) for key in sorted(rows)],
        [key[2] + 1 for key in sorted(rows)],
        [rows[key][1] for key in sorted(rows)],
        [rows[key][0] for key in sorted(rows)],
        np.arange(len(pairs)),
    )
    solution = maximise_joint(items, tolerance=1e-13)
    np.testing.assert_allclose(estimate(name, counts).value, np.exp(solution.log_propensity), rtol=1e-6)


def test_many_likelihoods_are_maximised_at_once() -> None:
    rng = np.random.default_rng(9)
    for _ in range(25):
        arms = int(rng.integers(2, 8))
        low, high = np.array([(i, j) for i in range(arms) for j in range(i + 1, arms)]).T
        weight = rng.choice([0.0, 3.0, 40.0, 1000.0], size=(8, len(low))) * rng.uniform(0.5, 1, (8, len(low)))
        theta, r = np.exp(-rng.exponential(1, arms)), rng.uniform(0.05, 0.9, len(low))
        at_low, at_high = (np.minimum(rng.poisson(weight * theta[k] * r) * 0.9, 0.95 * weight) for k in (low, high))
        found = maximise_pair_likelihood(low, high, arms, (at_low, at_high, weight))
        inside = bounded_arms(low, high, arms, at_low > 0, at_high > 0)
        np.testing.assert_array_equal(np.isfinite(found), inside)
        np.testing.assert_array_equal(found[:, 0], 0)
        again = maximise_pair_likelihood(low, high, arms, (at_low, at_high, weight), start=rng.normal(size=arms))
        np.testing.assert_allclose(again, found, atol=1e-7)
        for i in range(len(weight)):
            used = inside[i][low] & inside[i][high] & (at_low[i] + at_high[i] > 0)
            if used.any():
                n, c = (np.stack(x, 1)[used].ravel() for x in ((weight[i],) * 2, (at_low[i], at_high[i])))
                item = np.repeat(np.arange(used.sum()), 2)
                rank = np.stack([low, high], 1)[used].ravel() + 1
                solution = maximise_joint(counted(item, rank, n, c, np.arange(used.sum()), arms), tolerance=1e-13)
                np.testing.assert_allclose(
                    found[i][inside[i]], (solution.log_propensity - solution.log_propensity[0])[inside[i]], atol=1e-5
                )


def test_documents_that_are_always_clicked_do_not_stop_the_search() -> None:
    # At one rank of a pair all was clicked, at the other all or little: corners of the likelihood.
    low, high = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)]).T
    rng = np.random.default_rng(10)
    weight = rng.choice([1.0, 2.0, 100.0], size=(200, len(low)))
    at_low, at_high = (weight * rng.choice([0.01, 0.3, 1.0], size=weight.shape) for _ in range(2))
    assert np.isfinite(maximise_pair_likelihood(low, high, 5, (at_low, at_high, weight))).all()
    certain = np.ones((1, len(low)))
    np.testing.assert_allclose(maximise_pair_likelihood(low, high, 5, (certain, certain, certain)), 0, atol=1e-5)


def test_arms_are_linked_where_clicks_bound_their_ratio_on_both_sides() -> None:
    low, high = np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3])
    clicks = {  # pairs clicked at their low, at their high arm -> arms linked with the first
        ((1, 1, 1, 1), (1, 1, 1, 1)): [0, 1, 2, 3],
        ((1, 1, 1, 1), (1, 1, 1, 0)): [0, 1, 2],  # nothing bounds arm 3 from below
        ((1, 0, 1, 0), (0, 1, 0, 0)): [0, 1, 2],  # 0 above 1 above 2 above 0
        ((1, 1, 1, 1), (0, 0, 1, 1)): [0],
    }
    at_low, at_high = (np.array([key[i] for key in clicks], bool) for i in range(2))
    for row, wanted in zip(bounded_arms(low, high, 4, at_low, at_high), clicks.values(), strict=True):
        assert np.flatnonzero(row).tolist() == wanted


@pytest.mark.parametrize("sessions", [150, 1500, 15_000])
def test_shuffled_lists_look_shuffled_however_few_there_are(sessions: int) -> None:
    z = []
    for seed in range(100):
        found = shuffle_test(simulated(seed, sessions=sessions))
        z.append((found.statistic - found.expected) / found.deviation)
    assert abs(np.mean(z)) < 0.4
    assert 0.8 < np.std(z) < 1.2
    assert max(z) < 4


def test_lists_that_are_not_shuffled_are_seen() -> None:
    found = shuffle_test(simulated(17, shuffled=0.6))
    np.testing.assert_allclose(found.fixed_share, 0.4, atol=0.03)
    (warning,) = others(propensity.randomised(simulated(17, shuffled=0.6)))
    assert f"chi-square of {found.statistic:,.0f} where {found.expected:,.0f} is expected" in warning
    assert f"as if {100 * found.fixed_share:.1f} % of the impressions were always at the same rank" in warning
    nearly = propensity.randomised(simulated(18, shuffled=0.9, sessions=3000)).warnings
    assert "lists do not look shuffled" in nearly[0]
    once = counted(np.arange(90), np.tile([1, 2, 3], 30), np.ones(90), np.ones(90), np.repeat(np.arange(30), 3))
    assert "to tell whether lists were shuffled" in propensity.randomised(once).warnings[0]


def test_the_chi_square_is_that_of_its_formula() -> None:
    # A query of two documents: 30 and 10 impressions at ranks 1 and 2; 10 and 30 the other way round.
    counts = counted([0, 0, 1, 1], [1, 2, 1, 2], [30, 10, 10, 30], [9, 1, 3, 3], [0, 0])
    found = shuffle_test(counts)
    assert found.expected == 2
    np.testing.assert_allclose(found.statistic, 2 * ((30 - 20) ** 2 / 20 + (10 - 20) ** 2 / 20))
    np.testing.assert_allclose(found.deviation**2, 2 * (2 * (1 - 1 / 40)) * 2)
