"""Swap plans: limits, targets and errors, against dense information and simulated clicks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from rank_logs import contrasts, dense, logged, make_counts, relevance

from ultr.data import Counts
from ultr.identifiability import report
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.swap_design import (
    epsilon_greedy_information,
    largest_standard_error,
    make_swap_design,
    smallest_reaching,
)
from ultr.propensity import maximum_likelihood
from ultr.propensity.arm_counts import as_arm_counts


def added_by_hand(found: Any, counts: Counts, impressions: np.ndarray) -> np.ndarray:
    """[D, K] impressions that the plan of a report adds, swap by swap."""
    out = np.zeros(impressions.shape)
    query = counts.vocabulary.document_query[1:]
    for swap in found.swaps:
        own = query == int(swap.query[1:])
        for i, j in swap.ranks:
            for here, there in ((i, j), (j, i)):
                at = impressions[:, here - 1] * own
                out[:, there - 1] += swap.sessions * at / at.sum()
    return out


def error_with(found: Any, counts: Counts, added: np.ndarray) -> float:
    """The worst standard error with impressions [D, K] added, from the dense information of a bipartite graph."""
    n, theta = dense(counts), found.propensity
    clicks = np.bincount(counts.document - 1, counts.clicks, counts.documents)
    p = theta * relevance(n, counts, theta)[:, None]
    cautious = np.minimum(p * np.exp(-1 / np.sqrt(clicks + 1))[:, None], 0.75)
    weight = n * p / (1 - p) + added * cautious / (1 - cautious)
    # Ranks and documents are the nodes; all of them together, nothing eliminated.
    whole = np.block([[np.diag(weight.sum(0)), weight.T], [weight, np.diag(weight.sum(1))]])
    return float(contrasts(whole, len(theta)).max())


def within_limits(found: Any, counts: Counts, share: float) -> float:
    """Asserts that a plan heeds its limits; the largest share of them that it uses."""
    used: dict[tuple[str, int], int] = {}
    for swap in found.swaps:
        assert swap.sessions >= 1
        ranks = [rank for pair in swap.ranks for rank in pair]
        assert len(set(ranks)) == len(ranks)  # no rank twice in a session
        for rank in (0, *ranks):  # 0: the whole query
            used[swap.query, rank] = used.get((swap.query, rank), 0) + swap.sessions
    n, query = dense(counts), counts.vocabulary.document_query[1:]
    shown = {f"q{q}": n[query == q].sum(0) for q in set(query.tolist())}
    parts = [
        sessions / (share * (shown[name].max() if rank == 0 else shown[name][rank - 1]))
        for (name, rank), sessions in used.items()
    ]
    assert max(parts) <= 1
    return max(parts)


@pytest.mark.parametrize("kind", ["deterministic", "adjacent", "random"])
@pytest.mark.parametrize("pairs", [None, 1])
def test_a_swap_plan_reaches_the_target_with_fewer_sessions_than_epsilon_greedy(kind: str, pairs: int | None) -> None:
    counts, _ = logged(kind, sessions=20_000, share=0.05)
    found = report(counts, target=0.06, pairs=pairs)
    plan = found.plan
    assert plan.reached
    assert plan.standard_error <= 0.06
    assert error_with(found, counts, added_by_hand(found, counts, dense(counts))) == pytest.approx(plan.standard_error)
    assert plan.standard_error > 0.0595  # no more sessions than needed
    assert plan.sessions == sum(swap.sessions for swap in found.swaps)
    assert plan.sessions < plan.epsilon_greedy_sessions
    assert plan.epsilon_greedy_error > 0.06
    within_limits(found, counts, 0.5)
    assert pairs is None or all(len(swap.ranks) <= pairs for swap in found.swaps)
    assert plan.queries == len({swap.query for swap in found.swaps})
    assert sum(plan.pairs.values()) == sum(swap.sessions * len(swap.ranks) for swap in found.swaps)


def test_swaps_that_share_a_session_cost_fewer_of_them() -> None:
    counts, _ = logged("deterministic")
    one, many = (report(counts, pairs=pairs).plan for pairs in (1, None))
    assert many.sessions < 0.7 * one.sessions


def test_epsilon_greedy_adds_uniform_ranks_to_the_queries_as_they_come() -> None:
    counts, _ = logged("adjacent", queries=5, sessions=3000)
    found = report(counts)
    n, query = dense(counts), counts.vocabulary.document_query[1:]
    added = np.zeros_like(n)
    for d in range(len(n)):
        own = query == query[d]
        sessions_of_query = n[own, 0].sum()
        share = n[d].sum() / sessions_of_query  # of the sessions of the query that show the document
        added[d] = 700 * sessions_of_query / 3000 * share / 6
    expected = error_with(found, counts, added)
    information = epsilon_greedy_information(assume_model(as_arm_counts(counts)), 3000)
    assert largest_standard_error(information(700), np.ones(6, bool)) == pytest.approx(expected)


def test_clicks_in_swapped_sessions_have_the_planned_error() -> None:
    counts, gamma = logged("deterministic", queries=30, sessions=30_000, ranks=5, seed=2)
    found = report(counts, target=0.08)
    assert not found.identified
    assert "cannot be compared" in found.text() or found.text().startswith("No: ")
    n = (dense(counts) + np.round(added_by_hand(found, counts, dense(counts)))).astype(np.int64)
    rng = np.random.default_rng(0)
    p = gamma[:, None] / np.arange(1, 6)
    query = np.repeat(np.arange(30), 5)
    logs = []
    for _ in range(150):
        fitted = maximum_likelihood(make_counts(n, rng.binomial(n, p), query))
        logs.append(np.log(fitted.value[1:]))
    spread = np.std(logs, axis=0)
    # A standard deviation over 150 logs is known to 1 / sqrt(300) = 6 %.
    assert spread.max() == pytest.approx(0.08, rel=0.2)
    np.testing.assert_allclose(np.mean(logs, axis=0), -np.log(np.arange(2, 6)), atol=4 * 0.08 / np.sqrt(150))


def test_a_plan_that_may_not_do_enough_says_so() -> None:
    counts, _ = logged("deterministic", sessions=4000)
    found = report(counts, share=0.02)
    assert not found.plan.reached
    assert found.plan.standard_error > 0.05
    assert "2% of the sessions of each query" in found.plan.reason
    assert found.plan.reason in found.text()
    assert within_limits(found, counts, 0.02) > 0.5
    for share in (0.05, 0.1):
        assert within_limits(report(counts, share=share), counts, share) > 0.6
    lonely = make_counts(np.eye(3, dtype=int) * 100, np.eye(3, dtype=int) * 10, np.arange(3))
    plan = report(lonely).plan
    assert (plan.swaps, plan.reached, plan.sessions) == ((), False, 0)
    assert plan.reason.startswith("no query shows documents at two ranks")


def test_a_plan_heeds_ranks_that_few_lists_reach() -> None:
    rng = np.random.default_rng(0)
    n = np.tile(np.diag([400, 400, 400, 60]), (20, 1))
    clicks = rng.binomial(n, 0.6 / np.arange(1, 5))
    counts = make_counts(n, clicks, np.repeat(np.arange(20), 4))
    found = report(counts, target=0.07)
    assert found.plan.reached
    assert within_limits(found, counts, 0.5) > 0.7
    more = report(counts, target=0.05)
    assert not more.plan.reached
    assert within_limits(more, counts, 0.5) == 1
    # Ranks that all lists reach are exchanged in more sessions than the last one may be.
    assert any(swap.sessions > 30 for swap in more.swaps)


@pytest.mark.parametrize("gamma", [(0.5, 0.5, 0.5), (0.7, 0.4, 0.1), (0.2, 0.2, 0.8)])
def test_the_plan_is_about_the_best_there_is(gamma: tuple[float, float, float]) -> None:
    # So large a log that it knows each document well where it stands: a session of an exchange then adds a constant
    # conductance between its two ranks, and the best mix of the three exchanges is found by looking at all of them.
    queries, size = 20, 100_000
    n = np.tile(np.diag([size] * 3), (queries, 1))
    p = np.tile(gamma, queries)[:, None] / np.arange(1, 4)
    counts = make_counts(n, np.round(n * p).astype(np.int64), np.repeat(np.arange(queries), 3))
    plan = report(counts, target=0.05, pairs=1).plan
    odds = p[:3] / (1 - p[:3])
    rate = odds + odds.T  # per session, between ranks
    mix = np.array([(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)]) / 100
    g12, g13, g23 = (mix * [rate[0, 1], rate[0, 2], rate[1, 2]]).T
    with np.errstate(divide="ignore"):
        one, two = 1 / (g12 + 1 / (1 / g13 + 1 / g23)), 1 / (g13 + 1 / (1 / g12 + 1 / g23))  # R_eff of ranks 2 and 3
    best = np.maximum(one, two).min() / 0.05**2
    assert best * 0.98 < plan.sessions < best * 1.06


def test_a_design_of_few_queries_has_the_information_of_the_whole_log() -> None:
    counts, _ = logged("random")
    assumed = assume_model(as_arm_counts(counts))
    for budget in (1, 200, 10**6):
        design = make_swap_design(assumed, 0.5, budget)
        assert design is not None
        assert len(design.query) == {1: 1, 200: 5, 10**6: 40}[budget]
        np.testing.assert_allclose(design.information(0 * design.weight), assumed.information, rtol=1e-9, atol=1e-6)


def test_the_gain_of_an_exchange_is_the_derivative_of_the_information() -> None:
    counts, _ = logged("random", queries=4, sessions=300, ranks=5)
    design = make_swap_design(assume_model(as_arm_counts(counts)), 0.5, 10**6)
    assert design is not None
    rng = np.random.default_rng(0)
    added = rng.uniform(0, 30, design.weight.shape)
    metric = rng.normal(size=(5, 5))
    metric = metric @ metric.T
    gain = design.gain(added, metric)
    for query, i, j in ((0, 0, 4), (1, 2, 1), (3, 3, 4)):
        sessions = np.zeros(design.shape)
        sessions[query, i, j] = sessions[query, j, i] = 1e-3
        step = design.added_impressions(sessions)
        moved = design.information(added + step) - design.information(added - step)
        assert gain[query, i, j] == pytest.approx(np.trace(metric @ moved) / 2e-3, rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 0.2, 2.0])
def test_the_least_number_is_found(power: float) -> None:
    calls = []

    def error(x: float) -> float:
        calls.append(x)
        return float("inf") if x < 3 else 7.0 * (x + 20) ** -power

    target = 7.0 * 1020**-power
    for start in (1e-3, 5.0, 1e7):
        calls.clear()
        assert 1000 <= smallest_reaching(error, target, start, 1e9) <= 1010
        assert len(calls) < 45
    assert smallest_reaching(error, target, 1.0, 900.0) == float("inf")
    assert smallest_reaching(error, 1e-300, 1.0, 1e6) == float("inf")


def test_words_about_sessions_are_rounded_and_realistic() -> None:
    counts, _ = logged("adjacent", sessions=8000)
    found = report(counts, target=0.1)
    text = found.text()
    worst = float(f"{found.sessions_needed[5]:.2g}")
    assert f"About {worst:,.0f} more sessions of the same kind would reach the target: a log of " in text
    assert "times as many sessions as this one" in text
    far = report(counts, target=0.001).text()
    assert "No realistic number of sessions of the same kind reaches the target" in far
    assert "no realistic number of them reaches the target" in far
    for at, better in ((found.plan.standard_error, True), (1.01 * found.plan.standard_error, False)):
        plan = dataclasses.replace(found.plan, epsilon_greedy_error=at)
        text = dataclasses.replace(found, plan=plan).text()
        assert ("What to do" in text and "Randomise some sessions (epsilon-greedy)" in text) == better
        assert ("As many epsilon-greedy sessions bring the error to" in text) != better
