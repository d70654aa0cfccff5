"""What a log identifies, against graphs with known resistances, dense information matrices and simulated clicks."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from scipy import stats
from stored import PER_QUERY, make_rows, plain, write_log

import ultr
from ultr import cli, identifiability, models, simulate, towers
from ultr.data import Counts, Vocabulary, collapse
from ultr.errors import ConfigError, DataError
from ultr.identifiability import agreement, features, report
from ultr.identifiability.assumed import Assumed, assume
from ultr.identifiability.design import epsilon_greedy, least, make_design, worst_error
from ultr.propensity import Propensities, maximum_likelihood
from ultr.propensity.cells import cells_of
from ultr.propensity.likelihood import laplacian, resistance, smoothed_relevance
from ultr.study import METHODS


def make_counts(
    impressions: np.ndarray,
    clicks: np.ndarray,
    query: np.ndarray,
    *,
    sessions: float | None = None,
    x: np.ndarray | None = None,
    ranks: int | None = None,
) -> Counts:
    """Counts of D documents at K ranks, both [D, K], of queries [D]; features x [D, F]."""
    documents = {
        "query": pa.array(query, pa.int32()),
        "document": pa.array([f"d{i}" for i in range(len(query))]),
    }
    if x is not None:
        flat = pa.array(np.asarray(x, np.float32).ravel())
        documents["features"] = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    names = pa.table({"query": [f"q{i}" for i in range(int(max(query)) + 1)]})
    columns = [f"x{i}" for i in range(0 if x is None else x.shape[1])]
    document, rank = np.nonzero(impressions)
    total = float(impressions[:, 0].sum()) if sessions is None else sessions
    return Counts(
        by="rank",
        document=(document + 1).astype(np.int32),
        rank=(rank + 1).astype(np.int32),
        last_click=None,
        impressions=impressions[document, rank],
        clicks=clicks[document, rank],
        sessions=int(total),
        weight=total,
        documents=len(query),
        ranks=impressions.shape[1] if ranks is None else ranks,
        vocabulary=Vocabulary.from_tables(names, pa.table(documents), features=columns),
        identity={},
    )


def ranked(lists: list[tuple[int, list[int], int]], ranks: int) -> Counts:
    """(query, its documents from rank 1 on, sessions) with as many clicks as 1/rank and a relevance of .5 expect."""
    queries = sorted({q for q, _, _ in lists})
    keys = sorted({(q, d) for q, shown, _ in lists for d in shown})
    row = {key: i for i, key in enumerate(keys)}
    n = np.zeros((len(keys), ranks), np.int64)
    for q, shown, sessions in lists:
        for k, d in enumerate(shown):
            n[row[q, d], k] += sessions
    clicks = np.round(n * 0.5 / np.arange(1, ranks + 1)).astype(np.int64)
    assert queries == list(range(len(queries)))
    return make_counts(n, clicks, np.array([q for q, _ in keys]))


def logged(
    kind: str, *, queries: int = 40, sessions: int = 20_000, ranks: int = 6, seed: int = 0, share: float = 0.1
) -> tuple[Counts, np.ndarray]:
    """(counts, relevance [D]) of a logger that ranks by relevance: always, but for random or adjacent exchanges."""
    rng = np.random.default_rng(seed)
    gamma = np.sort(rng.uniform(0.1, 0.7, (queries, ranks)), axis=1)[:, ::-1].ravel()
    per_query = rng.multinomial(sessions, np.full(queries, 1 / queries))
    n = np.zeros((queries, ranks, ranks), np.int64)
    for q, total in enumerate(per_query):
        orders = np.tile(np.arange(ranks), (total, 1))
        changed = rng.random(total) < share
        if kind == "random":
            orders[changed] = rng.permuted(orders[changed], axis=1)
        elif kind == "adjacent":
            rows, i = np.flatnonzero(changed), rng.integers(ranks - 1, size=int(changed.sum()))
            orders[rows, i], orders[rows, i + 1] = i + 1, i
        np.add.at(n[q], (orders, np.arange(ranks)), 1)
    n = n.reshape(-1, ranks)
    clicks = rng.binomial(n, gamma[:, None] / np.arange(1, ranks + 1))
    return make_counts(n, clicks, np.repeat(np.arange(queries), ranks)), gamma


def blocks(groups: list[list[int]], ranks: int = 10) -> list[tuple[int, list[int], int]]:
    """Two rankings of one query in which only ranks (from 1) of the same group exchange their documents."""
    order = list(range(ranks))
    for group in groups:
        for here, there in zip(group, group[1:] + group[:1], strict=True):
            order[there - 1] = here - 1
    return [(0, list(range(ranks)), 200), (0, order, 200)]


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_the_sets_of_the_identifiability_paper() -> None:
    # Chen 2024: five sets of queries, from one component to four, and one again by a single query of swaps.
    four = [span(1, 3), span(4, 6), [7, 8], [9, 10]]
    for groups in ([span(1, 10)], [span(1, 4), span(5, 10)], [span(1, 4), span(5, 7), span(8, 10)], four):
        found = report(ranked(blocks(groups), 10))
        assert [list(c.ranks) for c in found.components] == groups
        assert found.to_json()["components"] == groups
        assert found.identified == (len(groups) == 1)
        first = np.isin(np.arange(1, 11), groups[0])
        np.testing.assert_array_equal(np.isfinite(found.standard_error), first)
        np.testing.assert_array_equal(np.isfinite(found.sessions_needed), first)
    swapped = list(range(10))
    for i, j in ((3, 4), (6, 7), (8, 9)):
        swapped[i - 1], swapped[j - 1] = swapped[j - 1], swapped[i - 1]
    lists = [*blocks(four), (1, list(range(10)), 50), (1, swapped, 1)]
    joined = report(ranked(lists, 10))
    assert [list(c.ranks) for c in joined.components] == [span(1, 10)]
    assert joined.identified
    assert np.isfinite(joined.standard_error).all()


def test_two_rankings_of_four_documents_make_two_components() -> None:
    found = report(ranked([(0, [0, 1, 2, 3], 100), (0, [1, 0, 3, 2], 100)], 4))
    assert [c.ranks for c in found.components] == [(1, 2), (3, 4)]
    assert found.components[1].standard_error[0] == 0
    assert 0 < found.components[1].standard_error[1] < np.inf
    assert found.cut is not None
    assert (found.cut.near, found.cut.far, found.cut.conductance, found.cut.documents) == ((1, 2), (3, 4), 0.0, 0)
    assert "no document was shown both at ranks 1-2 and ranks 3-4" in found.text()
    assert "ranks 3-4 cannot be compared with rank 1" in found.text()


def relevance(n: np.ndarray, counts: Counts, theta: np.ndarray) -> np.ndarray:
    """[D] clicks per examination, with one examination more of the average of the same typical rank."""
    clicks, examined = np.bincount(counts.document - 1, counts.clicks, len(n)), n @ theta
    average = clicks.sum() / examined.sum()
    alike = n.argmax(1) == n.argmax(1)[:, None]
    return (clicks + (alike @ clicks + average) / (alike @ examined + 1)) / (examined + 1)


def weights(found: Any, counts: Counts) -> Callable[[int, int], float]:
    """(document, rank) -> n p / (1 - p) at the probabilities that a report assumes, written out."""
    n, theta = counts.impressions.astype(float), found.propensity
    gamma = relevance(dense(counts), counts, theta)

    def weight(document: int, rank: int) -> float:
        own = counts.document == document
        p = theta[rank - 1] * gamma[document - 1]
        return float(n[own & (counts.rank == rank)].sum() * p / (1 - p))

    return weight


def links(pairs: list[tuple[int, int]], ranks: int) -> Counts:
    """One document per pair of ranks, shown at both."""
    rng = np.random.default_rng(len(pairs))
    n = np.zeros((len(pairs), ranks), np.int64)
    for d, (i, j) in enumerate(pairs):
        n[d, i - 1], n[d, j - 1] = rng.integers(500, 3000, 2)
    clicks = np.round(n * np.linspace(0.3, 0.6, len(pairs))[:, None] / np.arange(1, ranks + 1)).astype(np.int64)
    return make_counts(n, clicks, np.zeros(len(pairs), np.int64), sessions=1000)


def test_resistances_of_a_chain_add_up() -> None:
    pairs = [(1, 2), (2, 3), (3, 4), (4, 5)]
    counts = links(pairs, 5)
    found = report(counts)
    weight = weights(found, counts)
    # A document is two resistors in series, from one rank to it and from it to the other.
    each = [1 / weight(d + 1, i) + 1 / weight(d + 1, j) for d, (i, j) in enumerate(pairs)]
    np.testing.assert_allclose(found.standard_error, np.sqrt(np.cumsum([0.0, *each])), rtol=1e-9)


def test_resistances_of_a_cycle_are_parallel() -> None:
    pairs = [(1, 2), (2, 3), (3, 4), (1, 4)]
    counts = links(pairs, 4)
    found = report(counts)
    weight = weights(found, counts)
    each = np.array([1 / weight(d + 1, i) + 1 / weight(d + 1, j) for d, (i, j) in enumerate(pairs)])
    way = np.cumsum([0.0, *each[:3]])  # up to each rank, the other way being the rest of the cycle
    np.testing.assert_allclose(found.standard_error, np.sqrt(way * (each.sum() - way) / each.sum()), rtol=1e-9)


def fisher(expected: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Minus the second derivative of an expected log-likelihood, by central differences."""
    step = 1e-4
    unit = np.eye(len(at)) * step
    out = np.zeros((len(at),) * 2)
    for i in range(len(at)):
        for j in range(i + 1):
            signs = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
            out[i, j] = out[j, i] = -sum(s * expected(at + a * unit[i] + b * unit[j]) for a, b, s in signs) / (
                4 * step**2
            )
    return out


def contrasts(information: np.ndarray, ranks: int) -> np.ndarray:
    """[ranks] standard errors of parameter k minus parameter 0, from the whole information matrix."""
    inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
    x = np.eye(len(information))[:ranks] - np.eye(len(information))[0]
    return np.sqrt(np.einsum("ki,ij,kj->k", x, inverse, x))


def test_standard_errors_are_those_of_the_whole_information_matrix() -> None:
    rng = np.random.default_rng(3)
    n = rng.integers(0, 400, (5, 4)) * rng.integers(0, 2, (5, 4))
    n[0] = (100, 100, 0, 50)
    n[1, 2:] = 80
    clicks = rng.binomial(n, np.linspace(0.2, 0.8, 5)[:, None] / np.arange(1, 5))
    clicks[3] = 0  # never clicked, and still worth something before training
    counts = make_counts(n, clicks, np.zeros(5, np.int64))
    found = report(counts)
    a = np.log(found.propensity)
    b = smoothed_relevance(cells_of(counts), a)
    p = np.exp(a + b[:, None])

    def expected(parameters: np.ndarray) -> float:
        log = parameters[:4] + parameters[4:, None]
        return float(np.sum(n * (p * log + (1 - p) * np.log(-np.expm1(log)))))

    np.testing.assert_allclose(found.standard_error, contrasts(fisher(expected, np.append(a, b)), 4), rtol=1e-3)


@pytest.mark.parametrize("sessions", [1000, 3000, 12_000])
def test_errors_of_few_clicks_are_those_of_the_true_relevances(sessions: int) -> None:
    ratio = []
    for seed in range(9):
        counts, gamma = logged("random", queries=60, sessions=sessions, ranks=10, seed=seed)
        cells, a = cells_of(counts), -np.log(np.arange(1.0, 11))
        found, true = (resistance(laplacian(cells, a, b))[9, 9] for b in (smoothed_relevance(cells, a), np.log(gamma)))
        ratio.append(np.sqrt(found / true))
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


def test_a_rich_log_is_known_as_well_as_maximum_likelihood_says() -> None:
    counts, _ = logged("random", sessions=60_000)
    found, fitted = report(counts), maximum_likelihood(counts)
    np.testing.assert_allclose(found.propensity, fitted.value, rtol=0.01)
    np.testing.assert_allclose(found.standard_error[1:], fitted.log_standard_error[1:], rtol=0.03)
    assert found.identified
    assert (found.standard_error <= 0.05).all()
    assert found.text().startswith("Yes: this log identifies the propensities of ranks 1-6 to 5.0% or better")
    assert found.swaps == ()
    assert found.plan.reached
    assert (found.sessions_needed == 0).all()


def test_the_sessions_that_are_needed_reach_the_target() -> None:
    counts, _ = logged("adjacent", sessions=8000)
    found = report(counts, target=0.1)
    assert found.worst == 6
    error, more = found.standard_error[5], found.sessions_needed[5]
    assert error > 0.1
    assert more == np.ceil(8000 * ((error / 0.1) ** 2 - 1))
    times = (8000 + more) / 8000
    larger = make_counts(*(np.zeros((240, 6)) for _ in range(2)), np.repeat(np.arange(40), 6), sessions=8000 * times)
    larger.document, larger.rank = counts.document, counts.rank
    larger.impressions, larger.clicks = counts.impressions * times, counts.clicks * times
    assert report(larger, target=0.1).standard_error[5] == pytest.approx(0.1, rel=0.01)


def test_the_cut_of_a_dumbbell_is_its_handle() -> None:
    n = np.zeros((21, 6), np.int64)
    for d in range(10):  # two well connected groups of three ranks,
        n[d, :3], n[10 + d, 3:] = 1000, 1000
    n[20, [1, 4]] = 40, 60  # and one document between them
    clicks = np.round(n * 0.4 / np.arange(1, 7)).astype(np.int64)
    counts = make_counts(n, clicks, np.arange(21))
    found = report(counts, share=1.0)
    cut = found.cut
    assert cut is not None
    assert (cut.near, cut.far, cut.documents, cut.impressions) == ((1, 2, 3), (4, 5, 6), 1, 40)
    weight = weights(found, counts)
    assert cut.conductance == pytest.approx(1 / (1 / weight(21, 2) + 1 / weight(21, 5)))
    assert cut.standard_error == pytest.approx(cut.conductance**-0.5)
    assert (found.standard_error[3:] > cut.standard_error).all()  # it is in the way of all of them
    assert (found.standard_error[:3] < 0.05).all()
    assert "ranks 1-3 and ranks 4-6 are compared by only 1 document, shown 40 times on the rarer side" in found.text()


# Swap plans


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


def dense(counts: Counts) -> np.ndarray:
    out = np.zeros((counts.documents, counts.ranks))
    out[counts.document - 1, counts.rank - 1] = counts.impressions
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
    assert worst_error(epsilon_greedy(assume(cells_of(counts)), 3000)(700), np.ones(6, bool)) == pytest.approx(expected)


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
    assumed = assume(cells_of(counts))
    for budget in (1, 200, 10**6):
        design = make_design(assumed, 0.5, budget)
        assert design is not None
        assert len(design.query) == {1: 1, 200: 5, 10**6: 40}[budget]
        np.testing.assert_allclose(design.information(0 * design.weight), assumed.information, rtol=1e-9, atol=1e-6)


def test_the_gain_of_an_exchange_is_the_derivative_of_the_information() -> None:
    counts, _ = logged("random", queries=4, sessions=300, ranks=5)
    design = make_design(assume(cells_of(counts)), 0.5, 10**6)
    assert design is not None
    rng = np.random.default_rng(0)
    added = rng.uniform(0, 30, design.weight.shape)
    metric = rng.normal(size=(5, 5))
    metric = metric @ metric.T
    gain = design.gain(added, metric)
    for query, i, j in ((0, 0, 4), (1, 2, 1), (3, 3, 4)):
        sessions = np.zeros(design.shape)
        sessions[query, i, j] = sessions[query, j, i] = 1e-3
        step = design.impressions(sessions)
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
        assert 1000 <= least(error, target, start, 1e9) <= 1010
        assert len(calls) < 45
    assert least(error, target, 1.0, 900.0) == float("inf")
    assert least(error, 1e-300, 1.0, 1e6) == float("inf")


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
        assert ("As many epsilon-greedy sessions come to" in text) != better


# The logger


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


# Feature towers


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
    p = np.exp(a + smoothed_relevance(cells_of(counts), a)[:, None])
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


def test_features_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, _ = tower_inputs()
    whole = report(counts).features
    monkeypatch.setattr(features, "BLOCK", 12)  # four documents
    assert whole is not None
    parts = report(counts).features
    assert parts is not None
    np.testing.assert_allclose(parts.standard_error, whole.standard_error, rtol=1e-7)
    assert parts.r_squared == pytest.approx(whole.r_squared)
    assert "features" not in vars(counts.vocabulary)  # the whole table was never made
    documents, width = 40_000, 40
    n = np.zeros((documents, 2), np.int64)
    n[np.arange(documents), np.arange(documents) % 2] = 3
    x = np.random.default_rng(0).normal(size=(documents, width))
    counts = make_counts(n, n // 3, np.arange(documents), x=x)
    cells = cells_of(counts)
    monkeypatch.setattr(features, "BLOCK", 1 << 14)
    tracemalloc.start()
    features.linear_tower(cells, np.full(len(n), 0.3), np.arange(1, documents + 1), counts.vocabulary.feature_blocks())
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


# Bad input


def check(found: Any) -> str:
    json.dumps(found.to_json(), allow_nan=False)
    return found.text()


def test_one_rank_only() -> None:
    n = np.full((5, 1), 100)
    found = report(make_counts(n, n // 4, np.arange(5)))
    assert found.to_json()["components"] == [[1]]
    assert found.to_json()["sessions_needed"] == [0]
    assert (found.swaps, found.cut, found.identified) == ((), None, False)
    assert check(found).startswith("Nothing to identify: the log shows rank 1 only")


def test_no_clicks() -> None:
    with pytest.raises(DataError, match="expected clicks, found none in 1,000 impressions"):
        report(make_counts(np.full((5, 2), 100), np.zeros((5, 2), int), np.arange(5)))
    late = make_counts(np.full((5, 3), 100), np.tile([0, 0, 9], (5, 1)), np.arange(5))
    with pytest.raises(DataError, match="expected clicks at ranks 1 to 2"):
        report(late, ranks=2)


def test_a_rank_that_was_never_clicked() -> None:
    counts, _ = logged("random", sessions=20_000)
    counts.clicks = np.where(counts.rank == 5, 0, counts.clicks)
    found = report(counts)
    assert "never clicked: rank 5" in check(found)
    assert np.isfinite(found.standard_error).all()
    assert found.propensity[4] == pytest.approx(1 / 5, rel=0.5)  # the curve that is assumed, not 0
    assert (found.clicks[4], found.impressions[4] > 0) == (0, True)
    assert not found.identified
    assert found.to_json()["unsupported"] == [5]
    assert "In part: the propensity of rank 5 is assumed rather than measured" in found.text().split("\n")[0]


def test_clicks_that_support_no_propensity() -> None:
    counts, _ = logged("random", sessions=20_000)
    counts.clicks = np.where(counts.rank == 1, 0, counts.clicks)
    found = report(counts)
    assert check(found).startswith("No: rank 1 was never clicked in 20,000 impressions")
    assert (found.identified, found.unsupported) == (False, (2, 3, 4, 5, 6))
    counts.clicks = np.zeros_like(counts.clicks)
    counts.clicks[0] = 1
    found = report(counts)
    assert not found.identified
    text = check(found)
    assert text.startswith("No: this log does not identify propensities: the propensities of ranks 2-6 are assumed")
    assert "What to do: First of all log more sessions: no click compares ranks" in text
    one_sided = np.array([[500, 500, 0], [500, 0, 500]])
    found = report(make_counts(one_sided, np.array([[90, 40, 0], [0, 0, 30]]), np.array([0, 0])))
    assert (found.identified, found.unsupported) == (False, (3,))
    assert "In part: the propensity of rank 3 is assumed" in check(found)


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_ranks_without_impressions(empty: int) -> None:
    counts, _ = logged("random", sessions=20_000, ranks=4)
    keep = counts.rank != empty + 1
    for name in ("document", "rank", "impressions", "clicks"):
        setattr(counts, name, getattr(counts, name)[keep])
    found = report(counts)
    text = check(found)
    assert f"nothing was shown at rank {empty + 1}" in text
    assert found.impressions[empty] == 0
    assert not np.isfinite(found.standard_error[empty])
    assert found.to_json()["sessions_needed"][empty] is None
    assert [list(c.ranks) for c in found.components] == [[k + 1 for k in range(4) if k != empty]]
    assert np.isfinite(found.components[0].standard_error).all()
    if empty:
        assert found.identified
        others = [k for k in range(4) if k != empty]
        assert np.isfinite(found.standard_error[others]).all()
    else:
        assert not found.identified
        assert text.startswith("No: nothing was shown at rank 1")
        assert "times as relevant as those at rank 2" in text
        assert "nan" not in text
        assert found.plan.reason.startswith("nothing was shown at rank 1")


def test_a_single_document() -> None:
    both = report(make_counts(np.array([[500, 300]]), np.array([[200, 60]]), np.array([0])))
    assert both.identified
    assert both.cut is not None
    assert both.cut.documents == 1
    check(both)
    one = report(make_counts(np.array([[500, 0]]), np.array([[200, 0]]), np.array([0])))
    assert not one.identified
    assert "Nothing to identify" in check(one)


def test_documents_that_are_not_known() -> None:
    counts, _ = logged("random", sessions=2000)
    known = report(counts)
    counts.document = np.append(0, counts.document).astype(np.int32)
    counts.rank, counts.clicks = np.append(1, counts.rank), np.append(50, counts.clicks)
    counts.impressions = np.append(100, counts.impressions)
    found = report(counts)
    np.testing.assert_array_equal(found.standard_error, known.standard_error)
    assert "100 impressions of documents that the vocabulary does not know" in check(found)
    counts.document[:] = 0
    with pytest.raises(DataError, match="expected impressions of documents that the vocabulary knows"):
        report(counts)


def test_arguments_that_make_no_sense() -> None:
    counts, _ = logged("random", sessions=500)
    for bad in (0, -1, 1, 0.0009, float("nan")):
        with pytest.raises(ConfigError, match=r"expected a target from 0.001 to below 1"):
            report(counts, target=bad)
    for name, value in (("share", 0), ("share", 1.5), ("pairs", 0), ("ranks", 0)):
        with pytest.raises(ConfigError):
            report(counts, **{name: value})
    with pytest.raises(ConfigError, match="expected a ClickLog or its Counts"):
        report([1, 2])  # type: ignore[arg-type]


def test_the_first_ranks_alone() -> None:
    counts, _ = logged("random")
    found = report(counts, ranks=3)
    assert found.standard_error.shape == (3,)
    assert found.components[0].ranks == (1, 2, 3)
    np.testing.assert_array_equal(found.impressions, report(counts).impressions[:3])


def test_few_impressions_per_document_are_warned_of() -> None:
    n = np.full((200, 2), 2)
    assert "shown at most 4 times" in check(report(make_counts(n, n // 2, np.arange(200))))


# Logs


def test_logs_and_their_counts_say_the_same(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", plain(make_rows(400)))
    found = report(log)
    rank, last = (report(collapse(log, by)) for by in ("rank", "last-click"))  # type: ignore[call-overload]
    for other in (rank, last):
        assert other.to_json() == found.to_json()
    assert found.sessions == sum(range(400))  # weights
    assert found.features is not None
    with_features = write_log(tmp_path / "features", make_rows(400), impression_features=["bm25", "age"])
    np.testing.assert_allclose(report(with_features).standard_error, found.standard_error)
    assert log.documents == PER_QUERY * 7


# After training


def harvested(value: Any, covariance: Any) -> Propensities:
    value, covariance = np.asarray(value, float), None if covariance is None else np.asarray(covariance, float)
    spread = np.full(len(value), 0.1) if covariance is None else np.sqrt(np.diag(covariance))
    return Propensities(
        method="test",
        rank=np.arange(1, len(value) + 1),
        value=value,
        standard_error=np.where(np.arange(len(value)) == 0, 0.0, value * spread),
        interval=np.zeros((len(value), 2)),
        impressions=np.ones(len(value)),
        covariance=covariance,
    )


COVARIANCE = np.array([[0.0, 0, 0, 0], [0, 0.04, 0.02, 0.01], [0, 0.02, 0.05, 0.03], [0, 0.01, 0.03, 0.09]])


def test_agreement_is_walds_test() -> None:
    log = np.array([0.3, -0.2, 0.5])
    propensities = harvested([1, 0.5, 0.3, 0.2], COVARIANCE)
    curve = 0.8 * np.array([1, *(np.array([0.5, 0.3, 0.2]) * np.exp(log))])  # the factor says nothing
    found = agreement(curve, propensities)
    expected = log @ np.linalg.inv(COVARIANCE[1:, 1:]) @ log
    assert found.chi_square == pytest.approx(expected)
    assert found.degrees == 3
    assert found.p_value == pytest.approx(stats.chi2.sf(expected, 3))
    np.testing.assert_allclose(found.ratio, np.exp(log))
    np.testing.assert_allclose(found.z, log / np.sqrt(np.diag(COVARIANCE)[1:]))
    np.testing.assert_array_equal(found.rank, [2, 3, 4])
    assert found.agrees == (found.p_value >= 0.05)
    same = agreement(propensities.value, propensities)
    assert same.agrees
    assert (same.chi_square, same.p_value) == (pytest.approx(0, abs=1e-12), 1)
    assert "agrees with the harvested one" in same.text()
    far = agreement([1, 0.5, 0.3, 1.0], propensities)
    assert not far.agrees
    assert "above it at rank 4; the largest difference is a factor of 5.0 at rank 4" in far.text()
    json.dumps(far.to_json(), allow_nan=False)


def test_agreement_of_two_logs_adds_their_errors() -> None:
    one, two = harvested([1, 0.5, 0.3, 0.2], COVARIANCE), harvested([1, 0.6, 0.3, 0.1], 3 * COVARIANCE)
    log = np.log([0.6 / 0.5, 1, 0.5])
    assert agreement(two, one).chi_square == pytest.approx(log @ np.linalg.inv(4 * COVARIANCE[1:, 1:]) @ log)
    assert agreement(one, two).chi_square == pytest.approx(agreement(two, one).chi_square)


def test_agreement_without_covariances_or_values() -> None:
    found = agreement([1, 0.5, 0.4, 0.2], harvested([1, 0.5, 0.3, 0.2], None))
    z = np.log(0.4 / 0.3) / 0.1
    np.testing.assert_allclose(found.z, [0, z, 0], atol=1e-12)
    assert found.p_value == pytest.approx(3 * 2 * stats.norm.sf(z))
    assert found.degrees == 0
    assert "no covariance" in found.text()
    part = harvested([np.nan, 0.5, 0.3, 0.2], COVARIANCE)  # no rank 1: relative to rank 2
    other = agreement([1, 0.5, 0.4, 0.1], part)
    np.testing.assert_array_equal(other.rank, [3, 4])
    variance = 0.04 + 0.05 - 2 * 0.02, 0.04 + 0.09 - 2 * 0.01
    np.testing.assert_allclose(other.z, np.log([4 / 3, 1 / 2]) / np.sqrt(variance))
    assert "Nothing is said about rank 1" in other.text()
    short = agreement([1, 0.5], harvested([1, 0.5, 0.3, 0.2], COVARIANCE))
    assert short.degrees == 1
    assert "Nothing is said about ranks 3-4" in short.text()
    with pytest.raises(ConfigError, match="at two ranks at least, found values of both at 1"):
        agreement([1.0], part_of(part))
    for bad in ([1, 0], [1, -2], [[1, 2]], [1, np.inf]):
        with pytest.raises(ConfigError, match="expected propensities"):
            agreement(bad, harvested([1, 0.5], COVARIANCE[:2, :2]))


def part_of(propensities: Propensities) -> Propensities:
    return dataclasses.replace(propensities, value=np.array([1.0, *propensities.value[1:]]))


def test_models_agree_with_what_they_were_made_from() -> None:
    value = np.array([1, 0.5, 0.3, 0.2])
    propensities = harvested(value, COVARIANCE)
    relevance = towers.DocumentTable(5)
    pbm = models.PBM(relevance=relevance, examination=towers.RankTable(4, initial=towers.tables.logits(0.9 * value)))
    np.testing.assert_allclose(agreement(pbm, propensities).ratio, 1, rtol=1e-5)
    table = towers.RankTable(4, initial=np.log(value), pin_first=True)
    additive = models.AdditivePBM(relevance=relevance, examination=table)
    found = agreement(additive, propensities)
    np.testing.assert_allclose(found.ratio, 1, rtol=1e-5)
    assert "odds, not propensities" in found.text()
    linear = models.PBM(relevance=relevance, examination=towers.Linear(3, rngs=nnx.Rngs(0)))
    for bad in (linear, models.UBM(relevance=relevance, examination=towers.LastClickTable(4))):
        with pytest.raises(ConfigError, match=r"whose examination is a RankTable.*found (PBM|UBM)"):
            agreement(bad, propensities)


# The command


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    graded = simulate.collection(queries=30, documents=5, features=4, seed=0)
    graded.save(path / "collection")
    user = simulate.user("pbm", grades=4, ranks=5)
    made = simulate.clicks(
        graded, simulate.Policy("linear", temperature=0.3), user, sessions=4000, seed=0, out=path / "log", ranks=5
    )
    collapse(made, "rank", directory=path / "counts")
    return path / "log"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in ("diagnose", *arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_the_command_prints_words_and_json(run: Any, log: Path) -> None:
    code, out, _ = run(log, "--target", 0.02)
    assert code == 0
    for part in ("In part: ", "What limits it: ", "What to do: ", "rank  impressions", "exchanged in each"):
        assert part in out
    assert out.index("What to do") < out.index("rank  impressions")
    [assumed] = [line for line in out.splitlines() if line.startswith("Assumed: ")]
    assert out.index("What to do") < out.index(assumed) < out.index("rank  impressions")
    for part in ("examination times relevance", "no trust bias", "alpha and beta", "do not cover", "--model trust"):
        assert part in assumed
    assert {"trust", "affine-ips"} <= set(METHODS)  # the names that it gives
    code, out, _ = run(log, "--json", "--target", 0.02)
    assert code == 0
    found = json.loads(out)
    assert {"components", "standard_error", "sessions_needed", "swaps"} <= set(found)
    assert assumed == f"Assumed: {found['assumption']}"
    assert found["components"] == [[1, 2, 3, 4, 5]]
    assert len(found["standard_error"]) == len(found["sessions_needed"]) == 5
    assert (found["standard_error"][0], found["sessions_needed"][0]) == (0, 0)
    assert all(len(pair) == 2 for swap in found["swaps"] for pair in swap["ranks"])
    opened = ultr.ClickLog.open(log)
    assert found == json.loads(json.dumps(identifiability.report(opened, target=0.02).to_json()))
    assert json.loads(run(log.parent / "counts", "--json", "--target", 0.02)[1]) == found
    assert len(json.loads(run(log, "--json", "--ranks", 3)[1])["standard_error"]) == 3


def test_the_command_compares_a_trained_model(run: Any, log: Path, tmp_path: Path) -> None:
    opened = ultr.ClickLog.open(log)
    tables = models.PBM(relevance=towers.DocumentTable(opened.documents), examination=towers.RankTable(5))
    ultr.save(ultr.solve(tables, opened, prior=0.1, iterations=200).model, tmp_path / "model")
    code, out, err = run(log, "--run", tmp_path, "--json")
    assert code == 0, err
    found = json.loads(out)["agreement"]
    assert found["rank"] == [2, 3, 4, 5]
    assert found["agrees"]
    assert found["run"] == str(tmp_path)
    flat = models.PBM(relevance=towers.DocumentTable(opened.documents), examination=towers.RankTable(5))
    ultr.save(flat, tmp_path / "flat")
    text = run(log, "--run", tmp_path / "flat")[1]
    assert text.startswith("The learned curve differs from the harvested one by more than chance")
    assert "above it at ranks 2-5" in text
    assert json.loads(run(log, "--run", tmp_path, "--ranks", 3, "--json")[1])["agreement"]["rank"] == [2, 3]
    ultr.save(models.UBM(relevance=towers.DocumentTable(5), examination=towers.LastClickTable(4)), tmp_path / "ubm")
    code, text, _ = run(log, "--run", tmp_path / "ubm")
    assert code == 0
    assert text.startswith("No agreement can be told: expected a PBM or AdditivePBM")
    assert "What limits it" in text or "The weakest link" in text
    found = json.loads(run(log, "--run", tmp_path / "ubm", "--json")[1])
    assert "expected a PBM" in found["agreement"]["reason"]
    assert found["components"] == [[1, 2, 3, 4, 5]]


def test_the_command_says_what_is_wrong(run: Any, log: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "none",), "expected the folder of a click log"),
        ((log.parent / "collection",), "a click log (ultr-click-log) is needed here"),
        ((log, "--target", 0), "--target"),
        ((log, "--share", 2), "--share"),
        ((log, "--split", "train"), "train"),
        ((log.parent / "counts", "--split", "train"), "counts, which have none"),
        ((log, "--run", tmp_path), "meta.json"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_assumed_probabilities_survive_a_likelihood_without_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ultr.UltrError("no maximum")

    counts, _ = logged("random", sessions=2000)
    monkeypatch.setattr("ultr.identifiability.assumed.fit_conditionally", fail)
    assumed: Assumed = assume(cells_of(counts))
    np.testing.assert_allclose(np.exp(assumed.log_propensity), 1 / np.arange(1, 7))
    assert "propensities of 1/rank assumed" in check(report(counts))


def test_documents_that_were_never_clicked_do_not_join_curves() -> None:
    # Ranks 1, 2 and ranks 3, 4 are compared by clicks; between 2 and 3 there are only documents without any.
    n = np.zeros((120, 4), np.int64)
    n[:40, :2], n[40:80, 2:], n[80:, 1:3] = 5000, 5000, 50
    clicks = np.round(n * 0.5 / np.array([1, 2, 3, 4.5])).astype(np.int64)
    clicks[80:] = 0
    found = report(make_counts(n, clicks, np.arange(120)))
    assert not found.identified
    assert found.unsupported == (3, 4)
    assert found.propensity[1] == pytest.approx(0.5, rel=0.01)
    assert found.propensity[3] / found.propensity[2] == pytest.approx(3 / 4.5, rel=0.01)
    # What is between the two pairs comes from 1/rank, as the mean of the logarithms over each of them.
    prior = np.log([1, 2, 3, 4])
    assert np.log(found.propensity[2:]).mean() - np.log(found.propensity[:2]).mean() == pytest.approx(
        prior[:2].mean() - prior[2:].mean(), abs=0.01
    )


def test_large_logs_are_estimated_from_the_documents_that_say_most(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, _ = logged("random", sessions=60_000)
    whole = report(counts)
    monkeypatch.setattr("ultr.identifiability.assumed.MOST", 400)
    part = report(counts)
    np.testing.assert_allclose(part.propensity, whole.propensity, rtol=0.1)
    np.testing.assert_allclose(part.standard_error, whole.standard_error, rtol=0.1)
