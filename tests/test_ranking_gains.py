"""The unbiased criterion by which rankers are chosen: against enumeration, and the coverage of its bounds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ultr.errors import ConfigError
from ultr.evaluation.ranking_gains import (
    CUTOFF,
    DocumentClicks,
    RankingGain,
    expected_discounts,
    query_gains,
    ranking_gain,
)

EXAMINATION = np.array([1.0, 0.5, 0.25])
RELEVANCE = np.array([[0.2, 0.7, 0.4], [0.6, 0.1, 0.3]])  # of three documents of two queries
ORDERS = [(0, 1, 2), (2, 1, 0)]  # the logger shows each once per query


def dcg(relevance: np.ndarray, scores: np.ndarray) -> float:
    """The definition, without ties."""
    return float(sum(relevance[d] / math.log2(2 + i) for i, d in enumerate(np.argsort(-scores)) if i < CUTOFF))


def test_expectation_over_clicks_is_the_difference_of_dcg() -> None:
    """All click vectors of two sessions, weighed by their probability: the estimate is right on average."""
    scores, reference = np.array([0.1, 0.9, 0.5]), np.array([3.0, 2.0, 1.0])
    exposure = np.zeros(3)
    for order in ORDERS:
        exposure[list(order)] += EXAMINATION
    for q in range(2):
        chance = np.concatenate([RELEVANCE[q][list(order)] * EXAMINATION for order in ORDERS])
        gain = base = 0.0
        for outcome in itertools.product((0, 1), repeat=6):
            p = float(np.prod(np.where(outcome, chance, 1 - chance)))
            clicks = np.zeros(3)
            for order, part in zip(ORDERS, (outcome[:3], outcome[3:]), strict=True):
                clicks[list(order)] += part
            seen = DocumentClicks(np.zeros(3, int), clicks, exposure, np.array([2.0]), np.array([0.9, 0.1, 0.2]))
            g, b = query_gains(seen, scores, reference)
            gain, base = gain + p * g[0], base + p * b[0]
        assert gain == pytest.approx(2 * (dcg(RELEVANCE[q], scores) - dcg(RELEVANCE[q], reference)), abs=1e-12)
        assert base == pytest.approx(2 * dcg(RELEVANCE[q], reference), abs=1e-12)


def test_ties_have_the_mean_of_all_orders() -> None:
    scores = np.array([1.0, 2.0, 1.0, 1.0])
    wanted = np.zeros(4)
    orders = [(1, *rest) for rest in itertools.permutations((0, 2, 3))]
    for order in orders:
        for rank, d in enumerate(order, 1):
            wanted[d] += 1 / math.log2(1 + rank) / len(orders)
    np.testing.assert_allclose(expected_discounts(np.zeros(4, int), scores), wanted)
    np.testing.assert_allclose(
        expected_discounts(np.zeros(4, int), scores, cutoff=2), [1 / math.log2(3) / 3, 1, *[1 / math.log2(3) / 3] * 2]
    )


def some_clicks(rng: np.random.Generator, queries: int = 30) -> DocumentClicks:
    query = np.repeat(np.arange(queries), 5)
    exposure = rng.uniform(0.2, 6, len(query))
    return DocumentClicks(query, rng.poisson(0.4 * exposure), exposure, rng.integers(1, 9, queries) * 1.0)


def test_gain_depends_on_order_and_relative_examination_alone() -> None:
    rng = np.random.default_rng(0)
    seen = some_clicks(rng)
    a, b = rng.normal(size=(2, len(seen.query)))
    found = ranking_gain(seen, a, b)
    order = rng.permutation(len(a))
    moved = DocumentClicks(seen.query[order], seen.clicks[order], seen.exposure[order], seen.sessions)
    assert ranking_gain(moved, np.exp(a[order]), 3 * b[order] + 1) == pytest.approx(found)
    assert ranking_gain(seen, b, b).value == 0
    larger = DocumentClicks(seen.query, 7 * seen.clicks, 7 * np.maximum(seen.exposure, 1), seen.sessions)
    other = DocumentClicks(seen.query, seen.clicks, np.maximum(seen.exposure, 1), seen.sessions)
    assert ranking_gain(larger, a, b) == pytest.approx(ranking_gain(other, a, b))


def test_a_click_rate_common_to_all_changes_no_difference() -> None:
    rng = np.random.default_rng(1)
    seen = some_clicks(rng)
    seen = DocumentClicks(seen.query, seen.clicks, np.maximum(seen.exposure, 1), seen.sessions)
    noisy = DocumentClicks(seen.query, seen.clicks + 0.3 * seen.exposure, seen.exposure, seen.sessions)
    a, b = rng.normal(size=(2, len(seen.query)))
    np.testing.assert_allclose(query_gains(seen, a, b)[0], query_gains(noisy, a, b)[0], atol=1e-12)


def test_regression_stands_in_for_what_was_not_examined() -> None:
    seen = DocumentClicks(
        np.zeros(3, int), np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.25, 4.0]), np.ones(1), np.array([0.5, 0.2, 0.9])
    )
    np.testing.assert_allclose(seen.relevance, [0.5, 0.2 + (1 - 0.25 * 0.2), 3 / 4])


def test_queries_may_count_once_each() -> None:
    seen = DocumentClicks(
        np.array([0, 0, 1, 1]), np.array([8.0, 0, 0, 1]), np.array([8.0, 8, 1, 1]), np.array([8.0, 1])
    )
    up, down = np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 0, 1])
    lost = 1 - 1 / math.log2(3)
    assert query_gains(seen, up, down)[0] == pytest.approx([8 * lost, -lost])
    assert query_gains(seen, up, down, weighting="queries")[0] == pytest.approx([lost, -lost])
    with pytest.raises(ConfigError, match="weighting"):
        query_gains(seen, up, down, weighting="lists")


def test_joined_queries_stay_apart() -> None:
    rng = np.random.default_rng(2)
    one, two = some_clicks(rng, 4), some_clicks(rng, 3)
    a, b = rng.normal(size=(2, 35))
    apart = [query_gains(one, a[:20], b[:20])[0], query_gains(two, a[20:], b[20:])[0]]
    np.testing.assert_allclose(query_gains(one.joined(two), a, b)[0], np.concatenate(apart))


def test_lower_bound_covers_what_it_says() -> None:
    """Worlds drawn anew, queries and clicks: the bound lies below the truth in nine of ten."""
    rng = np.random.default_rng(3)
    worlds, queries, below = 600, 150, 0
    found = []
    for _ in range(worlds):
        relevance = rng.beta(0.5, 2.0, (queries, 4))
        reference = relevance + rng.normal(0, 0.5, relevance.shape)
        scores = relevance + rng.normal(0, 0.4, relevance.shape)
        impressions = rng.integers(1, 5, (queries, 4))
        examination = np.array([1.0, 0.7, 0.5, 0.35])
        clicks = rng.binomial(impressions, relevance * examination)
        query = np.repeat(np.arange(queries), 4)
        exposure = (impressions * examination).ravel()
        right = exposure >= 1  # the others would be pulled to the regression
        seen = DocumentClicks(query[right], clicks.ravel()[right], exposure[right], np.ones(queries))
        found.append((seen, scores.ravel()[right], reference.ravel()[right], relevance.ravel()[right]))
    # The truth for the documents that are judged: the same ratio on very many worlds.
    totals = np.zeros(2)
    for seen, a, b, relevance in found:
        known = DocumentClicks(seen.query, relevance * 1e6, np.full(len(a), 1e6), seen.sessions)
        gain, base = query_gains(known, a, b)
        totals += gain.sum(), base.sum()
    true = totals[0] / totals[1]
    for seen, a, b, _ in found:
        below += ranking_gain(seen, a, b).lower(0.9) <= true
    # 600 worlds: a standard error of .012.
    assert below / worlds == pytest.approx(0.9, abs=0.04)
    assert np.mean([ranking_gain(seen, a, b).value for seen, a, b, _ in found]) == pytest.approx(true, abs=0.004)


def test_too_little_gives_no_bound() -> None:
    one = DocumentClicks(np.zeros(2, int), np.array([1.0, 0]), np.ones(2), np.ones(1))
    gain = ranking_gain(one, np.array([0.0, 1]), np.array([1.0, 0]))
    assert gain.queries == 1
    assert gain.lower() == -math.inf
    none = DocumentClicks(np.zeros(2, int), np.zeros(2), np.ones(2), np.ones(1))
    assert ranking_gain(none, np.array([0.0, 1]), np.array([1.0, 0])).lower() == -math.inf
    assert RankingGain(0.0, 0.0, 5).lower() == 0
    with pytest.raises(ConfigError, match="confidence"):
        gain.lower(1.0)
