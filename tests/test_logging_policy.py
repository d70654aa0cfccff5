"""How a log was made: variation of ranks, confounding, and what features could learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from rank_logs import contrasts, dense, fisher, logged, make_counts, ranked, relevance

from ultr.data import Counts
from ultr.identifiability import report
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.linear_tower import linear_tower_limits
from ultr.propensity.arm_counts import as_arm_counts
from ultr.propensity.information import smoothed_log_relevance


def test_variation_counts_queries_impressions_and_shares() -> None:
    n = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 4], [2, 0, 0], [0, 1, 0]])
    found = report(make_counts(n, np.minimum(n, 1), np.array([0, 0, 0, 1, 2])), target=0.5).variation
    assert found.queries == pytest.approx(1 / 3)
    assert found.documents == 2 / 5
    assert found.impressions == pytest.approx(8 / 15)
    assert found.shown_once == pytest.approx(1 / 15)
    assert found.largest_share == pytest.approx((3 + 3 + 4 + 2 + 1) / 15)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found.entropy == pytest.approx(8 / 15 * entropy / np.log(3))
    fixed = report(ranked([(0, [0, 1, 2], 100)], 3)).variation
    assert (fixed.queries, fixed.impressions, fixed.largest_share, fixed.entropy) == (0, 0, 1, 0)


def test_confounding_tells_loggers_by_relevance_from_others() -> None:
    by_relevance, gamma = logged("random", sessions=40_000, share=0.3)
    found = report(by_relevance).confounding
    assert found.correlation < -0.7
    ranks = np.arange(6)
    shown = dense(by_relevance)
    truth = (shown * gamma[:, None]).sum(0) / shown.sum(0)
    np.testing.assert_allclose(found.relevance_by_rank, truth / truth[0], rtol=0.05)
    weight = shown.sum(0)
    slope = np.polyfit(np.log(1 + ranks), np.log(truth), 1, w=np.sqrt(weight))[0]
    assert found.slope == pytest.approx(slope, abs=0.03)
    assert slope < -0.3
    assert "strongly confounded" in report(by_relevance).text()
    total, log_rank = shown.sum(1), np.log(1 + ranks)
    place = shown @ log_rank / total
    log_relevance = np.log(relevance(shown, by_relevance, report(by_relevance).propensity))
    covariance = np.cov(place, log_relevance, aweights=total)
    assert found.correlation == pytest.approx(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    rng = np.random.default_rng(0)
    n = np.full((300, 6), 200)
    n[np.arange(300), rng.permutation(300) % 6] = 1000  # each document has a rank, whatever its relevance
    clicks = rng.binomial(n, rng.uniform(0.1, 0.7, (300, 1)) / (1 + ranks))
    shuffled = report(make_counts(n, clicks, np.repeat(np.arange(50), 6))).confounding
    assert abs(shuffled.correlation) < 3 / np.sqrt(300)


def tower_inputs(seed: int = 0, documents: int = 30, ranks: int = 4) -> tuple[Counts, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 50, (documents, ranks)) * (rng.random((documents, ranks)) < 0.4)
    n[np.arange(documents), rng.integers(ranks, size=documents)] += 20
    x = rng.normal(size=(documents, 3)) * (1, 100, 1e-3) + (0, 1e4, 0)
    x[:, 0] += n @ np.arange(ranks) / n.sum(1)
    clicks = rng.binomial(n, rng.uniform(0.1, 0.6, (documents, 1)) / np.arange(1, ranks + 1))
    return make_counts(n, clicks, np.arange(documents) // 3, x=x), x.astype(np.float32).astype(np.float64)


def test_linear_towers_have_the_errors_of_logistic_regression() -> None:
    counts, x = tower_inputs()
    found = report(counts)
    a = np.log(found.propensity)
    p = np.exp(a + smoothed_log_relevance(as_arm_counts(counts), a)[:, None])
    n = dense(counts)
    x = (x - x.mean(0)) / x.std(0)
    fixed = np.log(p / (1 - p))

    def expected(parameters: np.ndarray) -> float:
        logit = fixed + parameters[:4] + (x @ parameters[4:])[:, None]
        return float(np.sum(n * (p * -np.logaddexp(0, -logit) + (1 - p) * -np.logaddexp(0, logit))))

    assert found.features is not None
    assert found.features.features == 3
    error = contrasts(fisher(expected, np.zeros(7)), 4)
    np.testing.assert_allclose(found.features.standard_error, error, rtol=1e-4)
    known = (n * p * (1 - p)).sum(0)
    inflation = error[1:] ** 2 / (1 / known[1:] + 1 / known[0])
    np.testing.assert_allclose(found.features.inflation[1:], inflation, rtol=1e-4)
    assert (inflation > 1).all()
    np.testing.assert_allclose(found.features.effective_impressions[1:], n.sum(0)[1:] / inflation, rtol=1e-4)
    # R^2 of rank, row by row of the log
    rows = np.repeat(np.arange(len(n)), n.sum(1).astype(int))
    rank = np.concatenate([np.repeat(np.arange(4), row) for row in n.astype(int)])
    design = np.column_stack([np.ones(len(rows)), x[rows]])
    residual = rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0]
    assert found.features.r_squared == pytest.approx(1 - residual.var() / rank.var())


def test_features_are_read_in_blocks() -> None:
    counts, _ = tower_inputs()
    whole = report(counts).features
    assert whole is not None
    arm_counts = as_arm_counts(counts)
    probability = assume_model(arm_counts).click_probability
    document = np.unique(counts.document)
    feature_blocks = counts.vocabulary.feature_blocks()
    parts = linear_tower_limits(arm_counts, probability, document, feature_blocks, block_size=12)  # four documents
    np.testing.assert_allclose(parts.standard_error, whole.standard_error, rtol=1e-7)
    assert parts.r_squared == pytest.approx(whole.r_squared)
    assert "features" not in vars(counts.vocabulary)  # the whole table was never made
    documents, width = 40_000, 40
    n = np.zeros((documents, 2), np.int64)
    n[np.arange(documents), np.arange(documents) % 2] = 3
    x = np.random.default_rng(0).normal(size=(documents, width))
    counts = make_counts(n, n // 3, np.arange(documents), x=x)
    arm_counts = as_arm_counts(counts)
    feature_blocks = counts.vocabulary.feature_blocks()
    tracemalloc.start()
    linear_tower_limits(
        arm_counts, np.full(len(n), 0.3), np.arange(1, documents + 1), feature_blocks, block_size=1 << 14
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 3


def test_features_that_give_the_rank_away_identify_nothing() -> None:
    rng = np.random.default_rng(0)
    n = np.zeros((60, 3), np.int64)
    n[np.arange(60), np.arange(60) % 3] = 100
    clicks = rng.binomial(n, 0.3)
    query = np.arange(60) // 3
    is_second = (np.arange(60) % 3 == 1).astype(float)
    for _ in range(8):
        found = report(make_counts(n, clicks, query, x=np.column_stack([is_second, rng.normal(size=60)])))
        assert found.features is not None
        np.testing.assert_array_equal(np.isfinite(found.features.standard_error), [True, False, True])
    assert found.to_json()["features"]["standard_error"][1] is None
    assert "they separate rank 2 from rank 1" in found.text()
    number = report(make_counts(n, clicks, query, x=np.arange(60)[:, None] % 3.0)).features
    assert number is not None
    assert number.r_squared == pytest.approx(1)
    independent = report(make_counts(np.full((60, 3), 50), np.full((60, 3), 9), query, x=rng.normal(size=(60, 2))))
    assert independent.features is not None
    np.testing.assert_allclose(independent.features.inflation[1:], 1, atol=0.05)
    assert independent.features.r_squared == pytest.approx(0, abs=1e-9)
    constant = report(make_counts(n, clicks, query, x=np.ones((60, 1)))).features
    assert constant is not None
    np.testing.assert_allclose(constant.inflation[1:], 1)
