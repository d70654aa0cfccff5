"""Propensity estimators: the truth of simulated logs, exact expectations, errors, bad input, the command."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stored import write_log

from ultr import cli, propensity
from ultr.data import ClickLog, LogWriter, collapse
from ultr.errors import ConfigError, DataError
from ultr.plots import propensities as curves
from ultr.propensity import METHODS, Propensities
from ultr.propensity.bootstrap import groups_of
from ultr.propensity.cells import MOST_RANKS, Cells, cells_of
from ultr.propensity.fitted import NEVER
from ultr.propensity.joint import maximise
from ultr.propensity.pairwise import linked, maximise_pairs
from ultr.propensity.rates import _evenness
from ultr.propensity.table import NO_VARIATION, ranks_text

BOOTSTRAPPED = ("all-pairs", "variance-weighted", "adjacent-chain", "pivot-one", "randomised", "ctr")
RATES = ("randomised", "ctr")
HARVESTING = tuple(name for name in METHODS if name not in RATES)
every_method = pytest.mark.parametrize("name", METHODS)
every_bootstrapped = pytest.mark.parametrize("name", BOOTSTRAPPED)
every_harvesting = pytest.mark.parametrize("name", HARVESTING)

ONE_SIDED = (
    "the documents that connect it with rank 1 were clicked at one of the two alone, or never, so that any ratio is "
    "possible"
)
QUERIES, DOCUMENTS, RANKS = 60, 10, 8
THETA = 1 / np.arange(1, RANKS + 1)
GAMMA = np.random.default_rng(0).uniform(0.1, 0.9, (QUERIES, DOCUMENTS))


def counted(item: Any, rank: Any, impressions: Any, clicks: Any, query: Any, ranks: int | None = None) -> Cells:
    """Cells of 1-based ranks."""
    numbers = [np.asarray(x, np.float64) for x in (impressions, clicks)]
    arm = np.asarray(rank, np.int64) - 1
    return Cells(np.asarray(item, np.int64), arm, *numbers, np.asarray(query, np.int64), ranks or int(arm.max()) + 1)


def others(found: Propensities) -> tuple[str, ...]:
    """The warnings that are not about the number of queries."""
    return tuple(warning for warning in found.warnings if "percentile intervals of fewer than" not in warning)


def simulated(
    seed: int,
    *,
    sessions: int = 20_000,
    shuffled: float = 1.0,
    expected: bool = False,
    unlike: float = 0.0,
    gamma: np.ndarray = GAMMA,
) -> Cells:
    """A log of the position-based model whose lists are best first, but for a share that is shuffled.

    Args:
      expected: give the expected clicks.
      unlike: standard deviation between queries of the logarithm of examination.
    """
    rng = np.random.default_rng(seed)
    queries, documents = gamma.shape
    query = rng.integers(queries, size=sessions)
    order = np.argsort(-gamma, axis=1)[query]
    shuffle = rng.random(sessions) < shuffled
    order[shuffle] = np.argsort(rng.random((shuffle.sum(), documents)), axis=1)
    order = order[:, :RANKS]
    theta = THETA * np.exp(unlike * rng.normal(size=(queries, RANKS)) * (np.arange(RANKS) > 0))
    p = np.minimum(theta[query] * gamma[query[:, None], order], 1.0)
    cell = ((query[:, None] * documents + order) * RANKS + np.arange(RANKS)).ravel()
    n = np.bincount(cell, minlength=gamma.size * RANKS)
    clicks = np.bincount(cell, p.ravel() if expected else rng.random(p.size) < p.ravel(), minlength=len(n))
    there = np.flatnonzero(n)
    return counted(
        there // RANKS, there % RANKS + 1, n[there], clicks[there], np.repeat(np.arange(queries), documents), RANKS
    )


def estimate(name: str, source: Any, **options: Any) -> Propensities:
    return METHODS[name](source, **({"replicates": 200} | options if name in BOOTSTRAPPED else options))


def assert_covers(found: Propensities, truth: np.ndarray, *, most: float) -> None:
    """Each value within four standard errors of the truth, which are at most so much of the value."""
    assert found.unsupported == {}
    assert (found.value[0], found.standard_error[0]) == (1.0, 0.0)
    np.testing.assert_array_equal(found.interval[0], [1.0, 1.0])
    assert (np.abs(found.value - truth)[1:] < 4 * found.standard_error[1:]).all()
    assert (found.log_standard_error[1:] < most).all()
    assert ((found.interval[1:, 0] < found.value[1:]) & (found.value[1:] < found.interval[1:, 1])).all()


# --- Every estimator --------------------------------------------------------------------------------------


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
    cells = simulated(6, sessions=2000, shuffled=0.5)
    found = estimate(name, cells).value
    twice = counted(cells.item, cells.arm + 1, 2 * cells.impressions, 2 * cells.clicks, cells.cluster)
    # What keeps the probabilities of documents below 1 that were always clicked counts less when all counts for more.
    np.testing.assert_allclose(estimate(name, twice).value, found, rtol=3e-4 if name == "maximum-likelihood" else 1e-7)
    rng = np.random.default_rng(7)
    item, query = rng.permutation(cells.items), rng.permutation(QUERIES)
    order = np.lexsort((cells.arm, item[cells.item]))
    cluster = np.empty(cells.items, np.int64)
    cluster[item] = query[cells.cluster]
    columns = (x[order] for x in (item[cells.item], cells.arm + 1, cells.impressions, cells.clicks))
    np.testing.assert_allclose(estimate(name, counted(*columns, cluster)).value, found, rtol=1e-7)


@every_method
def test_a_log_and_its_counts_say_the_same(name: str, tmp_path: Path) -> None:
    log = click_log(tmp_path / "log", sessions=500)
    found = [estimate(name, source) for source in (log, collapse(log, "rank"), collapse(log, "last-click"))]
    for other in found[1:]:
        for field in ("value", "standard_error", "interval", "impressions"):
            np.testing.assert_allclose(getattr(other, field), getattr(found[0], field))
        assert other.unsupported == found[0].unsupported


def test_the_package_names_its_methods() -> None:
    assert {function.__name__ for function in METHODS.values()} == {name.replace("-", "_") for name in METHODS}
    assert {*(f.__name__ for f in METHODS.values()), "contextual", "METHODS", "Propensities"} == {*propensity.__all__}


# --- Weights ----------------------------------------------------------------------------------------------


def test_the_ratios_are_those_of_their_formulas() -> None:
    # Documents a: ranks 1, 2; b: ranks 1, 2, 3; c: ranks 2, 3.
    item, rank = [0, 0, 1, 1, 1, 2, 2], [1, 2, 1, 2, 3, 2, 3]
    n, c = [10, 20, 5, 40, 8, 4, 16], [8, 4, 3, 10, 1, 2, 4]
    cells = counted(item, rank, n, c, [0, 1, 2])
    first = 8 / 10 + 3 / 5  # clicks at rank 1 of a and b, weighted
    np.testing.assert_allclose(propensity.pivot_one(cells).value, [1, (4 / 20 + 10 / 40) / first, (1 / 8) / (3 / 5)])
    step = (1 / 8 + 4 / 16) / (10 / 40 + 2 / 4)
    np.testing.assert_allclose(
        propensity.adjacent_chain(cells).value, [1, (4 / 20 + 10 / 40) / first, (4 / 20 + 10 / 40) / first * step]
    )
    np.testing.assert_allclose(propensity.ctr(cells).value, [1, (16 / 64) / (11 / 15), (5 / 24) / (11 / 15)])
    np.testing.assert_array_equal(propensity.pivot_one(cells).impressions, [15, 60, 8])
    np.testing.assert_array_equal(propensity.adjacent_chain(cells).impressions, [15, 64, 24])


@pytest.mark.parametrize("name", ["all-pairs", "variance-weighted"])
def test_all_pairs_is_the_maximum_of_its_likelihood(name: str) -> None:
    cells = simulated(8, sessions=1500, shuffled=0.3)
    rows: dict[tuple[int, int, int], np.ndarray] = {}
    by_item: dict[int, list[int]] = {}
    for i, item in enumerate(cells.item.tolist()):
        by_item.setdefault(item, []).append(i)
    for places in by_item.values():
        for i in places:
            for j in places:
                k, other = int(cells.arm[i]), int(cells.arm[j])
                if k != other:
                    n = cells.impressions[[i, j]]
                    weight = 1 / n[0] if name == "all-pairs" else n.min() / n[0]
                    sums = rows.setdefault((min(k, other), max(k, other), k), np.zeros(2))
                    sums += weight * np.array([cells.clicks[i], n[0]])
    pairs = sorted({key[:2] for key in rows})
    items = counted(
        [pairs.index(key[:2]) for key in sorted(rows)],
        [key[2] + 1 for key in sorted(rows)],
        [rows[key][1] for key in sorted(rows)],
        [rows[key][0] for key in sorted(rows)],
        np.arange(len(pairs)),
    )
    solution = maximise(items, tolerance=1e-13)
    np.testing.assert_allclose(estimate(name, cells).value, np.exp(solution.log_propensity), rtol=1e-6)


# --- The all-pairs likelihood of many logs ----------------------------------------------------------------


def test_many_likelihoods_are_maximised_at_once() -> None:
    rng = np.random.default_rng(9)
    for _ in range(25):
        arms = int(rng.integers(2, 8))
        low, high = np.array([(i, j) for i in range(arms) for j in range(i + 1, arms)]).T
        weight = rng.choice([0.0, 3.0, 40.0, 1000.0], size=(8, len(low))) * rng.uniform(0.5, 1, (8, len(low)))
        theta, r = np.exp(-rng.exponential(1, arms)), rng.uniform(0.05, 0.9, len(low))
        at_low, at_high = (np.minimum(rng.poisson(weight * theta[k] * r) * 0.9, 0.95 * weight) for k in (low, high))
        found = maximise_pairs(low, high, arms, (at_low, at_high, weight))
        inside = linked(low, high, arms, at_low > 0, at_high > 0)
        np.testing.assert_array_equal(np.isfinite(found), inside)
        np.testing.assert_array_equal(found[:, 0], 0)
        again = maximise_pairs(low, high, arms, (at_low, at_high, weight), start=rng.normal(size=arms))
        np.testing.assert_allclose(again, found, atol=1e-7)
        for i in range(len(weight)):
            used = inside[i][low] & inside[i][high] & (at_low[i] + at_high[i] > 0)
            if used.any():
                n, c = (np.stack(x, 1)[used].ravel() for x in ((weight[i],) * 2, (at_low[i], at_high[i])))
                item = np.repeat(np.arange(used.sum()), 2)
                rank = np.stack([low, high], 1)[used].ravel() + 1
                solution = maximise(counted(item, rank, n, c, np.arange(used.sum()), arms), tolerance=1e-13)
                np.testing.assert_allclose(
                    found[i][inside[i]], (solution.log_propensity - solution.log_propensity[0])[inside[i]], atol=1e-5
                )


def test_documents_that_are_always_clicked_do_not_stop_the_search() -> None:
    # At one rank of a pair all was clicked, at the other all or little: corners of the likelihood.
    low, high = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)]).T
    rng = np.random.default_rng(10)
    weight = rng.choice([1.0, 2.0, 100.0], size=(200, len(low)))
    at_low, at_high = (weight * rng.choice([0.01, 0.3, 1.0], size=weight.shape) for _ in range(2))
    assert np.isfinite(maximise_pairs(low, high, 5, (at_low, at_high, weight))).all()
    certain = np.ones((1, len(low)))
    np.testing.assert_allclose(maximise_pairs(low, high, 5, (certain, certain, certain)), 0, atol=1e-5)


def test_arms_are_linked_where_clicks_bound_their_ratio_on_both_sides() -> None:
    low, high = np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3])
    clicks = {  # pairs clicked at their low, at their high arm -> arms linked with the first
        ((1, 1, 1, 1), (1, 1, 1, 1)): [0, 1, 2, 3],
        ((1, 1, 1, 1), (1, 1, 1, 0)): [0, 1, 2],  # nothing bounds arm 3 from below
        ((1, 0, 1, 0), (0, 1, 0, 0)): [0, 1, 2],  # 0 above 1 above 2 above 0
        ((1, 1, 1, 1), (0, 0, 1, 1)): [0],
    }
    at_low, at_high = (np.array([key[i] for key in clicks], bool) for i in range(2))
    for row, wanted in zip(linked(low, high, 4, at_low, at_high), clicks.values(), strict=True):
        assert np.flatnonzero(row).tolist() == wanted


# --- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unlike", [0.0, 0.5], ids=["alike", "unlike"])
def test_errors_are_what_other_logs_would_show(unlike: float) -> None:
    # Where queries are unlike each other, clicks of a query depend on each other, and errors have to know.
    options = {"sessions": 6000, "shuffled": 0.5, "unlike": unlike}
    logs = [simulated(100 + i, **options) for i in range(60)]
    truth = THETA  # which is the median over queries: what is estimated lies a little above
    for name in BOOTSTRAPPED:
        found = [estimate(name, cells) for cells in logs]
        values, errors = (np.stack([getattr(x, field)[1:] for x in found]) for field in ("value", "standard_error"))
        ratio = np.sqrt((errors**2).mean(0)) / values.std(0, ddof=1)
        assert ((ratio > 0.7) & (ratio < 1.4)).all(), (name, ratio)
        assert 0.9 < ratio.mean() < 1.1, (name, ratio)
        low, high = np.stack([x.interval[1:] for x in found]).transpose(2, 0, 1)
        centre = truth[1:] if name in HARVESTING and not unlike else values.mean(0)
        assert 0.9 < ((low < centre) & (centre < high)).mean() <= 1, name
    if unlike:
        model = np.stack([estimate("maximum-likelihood", cells).standard_error[1:] for cells in logs[:5]]).mean(0)
        pairs = np.stack([estimate("all-pairs", cells).standard_error[1:] for cells in logs[:5]]).mean(0)
        assert (pairs > 1.2 * model).all()


@every_bootstrapped
def test_covariances_belong_to_the_errors(name: str) -> None:
    found = estimate(name, simulated(11, sessions=3000), seed=3)
    assert found.covariance is not None
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), found.log_standard_error)
    np.testing.assert_allclose(found.covariance, found.covariance.T)
    assert np.linalg.eigvalsh(found.covariance).min() > -1e-12
    again, other = (estimate(name, simulated(11, sessions=3000), seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.interval, found.interval)
    assert (other.interval[1:] != found.interval[1:]).any()
    np.testing.assert_array_equal(other.value, found.value)


@pytest.mark.parametrize("name", ["all-pairs", "ctr"])
def test_very_many_queries_are_resampled_in_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gamma = np.random.default_rng(12).uniform(0.3, 0.9, (3000, DOCUMENTS))
    cells = simulated(13, sessions=30_000, gamma=gamma)
    group, groups = groups_of(cells, 0)
    assert groups == 2000
    query = cells.cluster[cells.item]
    assert len(np.unique(query * groups + group)) == len(np.unique(query)) > 2900  # each query in one group
    grouped = estimate(name, cells, replicates=600)
    for module in ("bootstrap", "pairs"):
        monkeypatch.setattr(f"ultr.propensity.{module}.GROUPS", 10_000)
    monkeypatch.setattr(groups_of, "__defaults__", (10_000,))
    alone = estimate(name, cells, replicates=600)
    np.testing.assert_allclose(alone.value, grouped.value, rtol=1e-10)
    np.testing.assert_allclose(alone.standard_error[1:], grouped.standard_error[1:], rtol=0.2)


@every_bootstrapped
def test_replicates_do_not_depend_on_the_room_they_are_made_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = simulated(14, sessions=1000)
    found = estimate(name, cells)
    monkeypatch.setattr("ultr.propensity.bootstrap.ROOM", 3000)
    np.testing.assert_allclose(estimate(name, cells).interval, found.interval, rtol=1e-8)


def test_few_queries_are_warned_of_and_fewer_give_no_interval() -> None:
    for queries, ranks in ((20, "all ranks"), (4, "")):
        found = propensity.pivot_one(simulated(15, gamma=GAMMA[:queries], sessions=2000))
        if ranks:
            assert f"the intervals of {ranks} rest on 20 queries or little more" in found.warnings[0]
            assert "fewer than 100 queries cover a few percent less than 95 %" in found.warnings[0]
            assert "fewer than 30 says too little of the error" in found.warnings[0]
            assert np.isfinite(found.interval).all()
            assert found.unsupported == {}
        else:
            assert found.warnings == ()
            assert np.isfinite(found.value).all()
            assert np.isnan(found.interval[1:]).all()
            assert np.isnan(found.standard_error[1:]).all()
            assert found.unsupported == dict.fromkeys(
                range(2, 9), "no interval: 4 queries behind it, too few to resample"
            )


@every_bootstrapped
def test_a_rank_that_resampling_loses_has_no_interval(name: str) -> None:
    # Rank 3 was clicked in one query out of 40: in exp(-1) of the resampled logs it was not.
    item, rank = np.repeat(np.arange(40), 3), np.tile([1, 2, 3], 40)
    clicks = np.tile([20.0, 9.0, 0.0, 20.0, 11.0, 0.0], 20)
    clicks[2] = 5.0
    found = estimate(name, counted(item, rank, np.full(120, 40.0), clicks, np.arange(40)))
    assert list(found.unsupported) == [3]
    (share,) = re.findall(r"no interval: (\d+) % of the resampled logs cannot tell it", found.unsupported[3])
    np.testing.assert_allclose(int(share), 100 * np.exp(-1), atol=12)
    assert 0 < found.value[2] < 0.02
    assert np.isfinite(found.interval[:2]).all()
    for numbers in (found.interval[2], found.standard_error[2], found.covariance[2]):  # type: ignore[index]
        assert np.isnan(numbers).all()


@every_bootstrapped
def test_very_few_clicks_give_values_without_intervals(name: str) -> None:
    # A click per rank: all ranks are missing in a large share of the resampled logs, rank 1 too.
    item, rank, clicks = np.repeat(np.arange(200), 2), np.tile([1, 2], 200), np.zeros(400)
    clicks[[0, 3]] = 1
    found = estimate(name, counted(item, rank, np.full(400, 3.0), clicks, np.arange(200)))
    np.testing.assert_allclose(found.value, [1, 1])
    assert list(found.unsupported) == [2]
    assert "of the resampled logs cannot tell it" in found.unsupported[2]
    assert np.isnan(found.interval[1]).all()


@every_method
def test_where_every_impression_was_clicked_there_is_no_interval(name: str) -> None:
    item, rank = np.repeat(np.arange(200), 3), np.tile([1, 2, 3], 200)
    shown = np.random.default_rng(17).integers(1, 9, 600)
    cells = counted(item, rank, shown, shown, np.arange(200))
    for options in ({},) if name in BOOTSTRAPPED else ({"errors": "information"}, {"errors": "query"}):
        found = estimate(name, cells, **options)
        np.testing.assert_allclose(found.value, 1, atol=1e-5)
        assert found.unsupported == {2: NO_VARIATION, 3: NO_VARIATION}
        assert np.isnan(found.interval[1:]).all()
        assert np.isnan(found.standard_error[1:]).all()


# --- Bad input --------------------------------------------------------------------------------------------


def spread_out(documents: int = 40, **changes: Any) -> Cells:
    """Documents of a query each that were shown at ranks 1, 2 and 3, twenty times."""
    item, rank = np.repeat(np.arange(documents), 3), np.tile([1, 2, 3], documents)
    clicks = np.resize([12.0, 6.0, 4.0, 12.0, 5.0, 5.0, 12.0, 7.0, 3.0, 12.0, 6.0, 4.0], len(item))
    for k, value in changes.get("clicks", {}).items():
        clicks[rank == k] = value
    return counted(item, rank, np.full(len(item), 20.0), clicks, np.arange(documents), changes.get("ranks"))


@every_method
def test_a_rank_that_was_never_clicked_has_an_upper_limit(name: str) -> None:
    cells = spread_out(clicks={3: 0})
    cells.impressions[cells.arm == 2] = 10
    found = estimate(name, cells)
    assert found.value[2] == 0
    assert found.unsupported == {3: "never clicked: an upper limit only"}
    assert np.isnan(found.standard_error[2])
    # Examined as rank 1 is, rank 3 would have had clicks of 40 x 10 x 12/20.
    np.testing.assert_allclose(found.interval[2], [0, NEVER / 240], rtol=2e-3)
    np.testing.assert_allclose(found.value[1], 0.5, rtol=3e-3)


@pytest.mark.parametrize("name", ["all-pairs", "variance-weighted"])
def test_a_lucky_click_does_not_tighten_an_upper_limit(name: str) -> None:
    # Ranks 1, 2, 3 of 40 documents; at rank 2, hardly ever examined, one click of them would speak of 100 at rank 3.
    item, rank = np.repeat(np.arange(40), 3), np.tile([1, 2, 3], 40)
    clicks = np.where(rank == 1, 10.0, 0.0)
    clicks[1] = 1.0
    found = estimate(name, counted(item, rank, np.full(120, 20.0), clicks, np.arange(40)))
    assert found.value[2] == 0
    np.testing.assert_allclose(found.interval[2], [0, NEVER / 400], rtol=0.02)
    # Of many comparisons every document counts once.
    both = estimate("maximum-likelihood", counted(item, rank, np.full(120, 20.0), clicks, np.arange(40)))
    np.testing.assert_allclose(found.interval[2], both.interval[2], rtol=0.02)


@every_method
def test_a_rank_without_documents_has_no_value(name: str) -> None:
    found = estimate(name, spread_out(ranks=5))
    np.testing.assert_array_equal(np.isfinite(found.value), [True, True, True, False, False])
    assert found.unsupported == dict.fromkeys((4, 5), "no document was shown there")
    assert found.impressions[3:].tolist() == [0, 0]


@every_method
def test_without_clicks_at_rank_1_there_is_nothing_to_compare_with(name: str) -> None:
    found = estimate(name, spread_out(clicks={1: 0}))
    assert np.isnan(found.value).all()
    assert np.isnan(found.interval).all()
    reason = "rank 1, which it is compared with, was never clicked"
    assert found.unsupported == {1: "never clicked", 2: reason, 3: reason}


@every_method
def test_a_log_without_clicks_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"expected clicks, found none in 2,400 impressions.*check the click column"):
        estimate(name, spread_out(clicks={1: 0, 2: 0, 3: 0}))


@every_harvesting
def test_without_rank_variation_nothing_is_identified(name: str) -> None:
    still = counted(np.arange(60), np.tile([1, 2, 3], 20), np.full(60, 9), np.full(60, 3), np.repeat(np.arange(20), 3))
    found = estimate(name, still)
    np.testing.assert_array_equal(found.value, [1, np.nan, np.nan])
    assert list(found.unsupported) == [2, 3]
    assert all("no document" in reason for reason in found.unsupported.values())
    if name in BOOTSTRAPPED:
        assert "no document was shown at two ranks" in found.warnings[0]


@every_method
def test_one_rank_only(name: str) -> None:
    found = estimate(name, counted(np.arange(50), np.ones(50), np.full(50, 9), np.full(50, 3), np.arange(50)))
    assert found.value.tolist() == [1]
    assert found.standard_error.tolist() == [0]
    assert found.impressions.tolist() == [450]
    if name in HARVESTING:
        assert found.warnings == ("one rank only: there is nothing to compare it with",)


@every_method
def test_a_single_document(name: str) -> None:
    found = estimate(name, counted([0, 0], [1, 2], [100, 100], [40, 20], [7]))
    np.testing.assert_allclose(found.value, [1, 0.5])
    if name in BOOTSTRAPPED:
        assert found.unsupported == {2: "no interval: 1 query behind it, too few to resample"}
        assert np.isnan(found.interval[1]).all()
    else:
        assert found.interval[1, 0] < 0.5 < found.interval[1, 1]


@every_method
def test_lists_longer_than_others(name: str) -> None:
    # Half of the queries show three documents, the others all; all are shuffled.
    rng = np.random.default_rng(16)
    n = np.zeros((QUERIES, DOCUMENTS, RANKS))
    for query in range(QUERIES):
        for _ in range(300):
            length = 3 if query % 2 else RANKS
            n[query, rng.permutation(DOCUMENTS)[:length], np.arange(length)] += 1
    cells = np.argwhere(n > 0)
    shown = n[n > 0]
    clicks = rng.binomial(shown.astype(int), THETA[cells[:, 2]] * GAMMA[cells[:, 0], cells[:, 1]])
    item = cells[:, 0] * DOCUMENTS + cells[:, 1]
    found = estimate(name, counted(item, cells[:, 2] + 1, shown, clicks, np.repeat(np.arange(QUERIES), DOCUMENTS)))
    if name in HARVESTING:
        assert_covers(found, THETA, most=0.1)
    if name == "randomised":
        (warning,) = found.warnings  # of the intervals, not of the lists
        assert warning.startswith("the intervals of all ranks rest on 30 queries or little more")
        assert "too little" not in warning


def test_ranks_that_clicks_do_not_connect_have_no_value() -> None:
    # Ranks 1 and 2 share documents, and so do 3 and 4, 4 and 5; nothing leads from the former to the latter.
    item, rank = np.repeat(np.arange(120), 2), np.concatenate([np.tile(p, 40) for p in ([1, 2], [3, 4], [4, 5])])
    cells = counted(item, rank, np.full(240, 20), 12 // rank + (np.arange(240) % 3 == 0), np.arange(120))
    for name in HARVESTING:
        found = estimate(name, cells)
        np.testing.assert_array_equal(np.isfinite(found.value), [True, True, False, False, False])
    assert estimate("all-pairs", cells).unsupported == dict.fromkeys((3, 4, 5), "no document connects it with rank 1")
    assert estimate("pivot-one", cells).unsupported == dict.fromkeys(
        (3, 4, 5), "no document was shown both there and at rank 1"
    )
    chain = "the chain from rank 1 breaks at rank 3: no document was shown both there and at rank 2"
    assert estimate("adjacent-chain", cells).unsupported == dict.fromkeys((3, 4, 5), chain)


def test_clicks_on_one_side_of_a_comparison_only() -> None:
    # Documents at ranks 1 and 2 were clicked at rank 1 alone; rank 2 was clicked on those it shares with rank 3.
    item, rank = np.repeat(np.arange(80), 2), np.concatenate([np.tile([1, 2], 40), np.tile([2, 3], 40)])
    clicks = np.concatenate([np.tile([9, 0], 40), np.tile([9, 5], 40)])
    cells = counted(item, rank, np.full(160, 20), clicks, np.arange(80))
    assert estimate("all-pairs", cells).unsupported == {2: ONE_SIDED, 3: ONE_SIDED}
    chain = estimate("adjacent-chain", cells)
    assert chain.value[1] == 0
    np.testing.assert_allclose(chain.interval[1], [0, NEVER / (40 * 9)])
    assert chain.unsupported[3] == (
        "the chain from rank 1 breaks at rank 2, which was never clicked where it is compared"
    )
    clicks = np.concatenate([np.tile([9, 3, 9, 4], 20), np.tile([0, 5], 40)])
    cells = counted(item, rank, np.full(160, 20), clicks, np.arange(80))
    assert estimate("adjacent-chain", cells).unsupported == {
        3: "the chain from rank 1 breaks at rank 2: what was shown there and at rank 3 had no clicks"
    }
    clicks = np.concatenate([np.tile([0, 3], 40), np.tile([9, 5], 40)])
    cells = counted([*item, 80], [*rank, 1], np.full(161, 20), [*clicks, 4], np.arange(81))
    assert estimate("pivot-one", cells).unsupported == {
        2: "the documents shown both there and at rank 1 were never clicked at rank 1",
        3: "no document was shown both there and at rank 1",
    }


@pytest.mark.parametrize("clicked", [2, 4])
def test_what_is_clicked_on_one_side_only_tells_a_likelihood_nothing(clicked: int) -> None:
    # Documents of ranks 1 to 3, of 4 to 6 (never clicked at 6), and some of ranks 2 to 4, clicked at one rank alone.
    first, place = spread_out(), np.arange(40)
    between, at = np.repeat(np.arange(10), 3), np.tile([2, 3, 4], 10)
    columns = (
        [*first.item, *np.repeat(place, 3) + 40, *between + 80],
        [*first.arm + 1, *np.tile([4, 5, 6], 40), *at],
        [*first.impressions, *np.full(120, 20.0), *np.full(30, 20.0)],
        [*first.clicks, *np.tile([8.0, 5.0, 0.0], 40), *np.where(at == clicked, 6.0, 0.0)],
    )
    cells = counted(*columns, np.arange(90))
    for name in ("maximum-likelihood", "conditional-likelihood"):
        for errors in ("information", "query"):
            found = estimate(name, cells, errors=errors)
            assert found.unsupported == {4: ONE_SIDED, 5: ONE_SIDED, 6: "never clicked"}
            assert np.isnan(found.value[3:]).all()
            if clicked == 4:  # elsewhere, so that they say nothing of ranks 1 to 3
                alone = estimate(name, first, errors=errors)
                np.testing.assert_allclose(found.value[:3], alone.value, rtol=1e-6)
                np.testing.assert_allclose(found.standard_error[:3], alone.standard_error, rtol=3e-3)
        # A single click the other way round tells something, if little.
        clicks = np.array(columns[3])
        clicks[-1 if clicked == 2 else -3] = 1.0
        found = estimate(name, counted(*columns[:3], clicks, np.arange(90)))
        assert list(found.unsupported) == [6]
        assert found.value[5] == 0
        assert np.isfinite(found.interval).all()
        assert found.log_standard_error[3] > 0.5


def test_unusable_arguments(tmp_path: Path) -> None:
    for name in METHODS:
        with pytest.raises(ConfigError, match="expected a ClickLog or its Counts"):
            estimate(name, [1, 2])
    for name in BOOTSTRAPPED:
        with pytest.raises(ConfigError, match=r"at least 40 replicates.*found 39"):
            estimate(name, spread_out(), replicates=39)
        with pytest.raises(ConfigError, match="seed of at least 0"):
            estimate(name, spread_out(), seed=-1)
    rows = [
        {"session": str(i), "query": 0, "documents": [1], "ranks": [MOST_RANKS + 1], "clicks": [1]} for i in range(9)
    ]
    log = write_log(tmp_path / "log", rows)
    with pytest.raises(DataError, match=r"at most 1,000 ranks, found rank 1,001.*Check the rank column"):
        estimate("ctr", log)
    item, rank = np.repeat(0, 1000), np.arange(1, 1001)
    with pytest.raises(ConfigError, match=r"499,500 pairs of ranks are too many.*pivot-one"):
        estimate("all-pairs", counted(item, rank, np.full(1000, 9), np.full(1000, 3), [0]))
    assert np.isfinite(estimate("pivot-one", counted(item, rank, np.full(1000, 9), np.full(1000, 3), [0])).value).all()


def test_unknown_documents_are_left_out(tmp_path: Path) -> None:
    log = click_log(tmp_path / "log", sessions=300)
    known = cells_of(log)
    log = log.with_documents(4)
    some = cells_of(log)
    assert some.items == 4
    assert some.impressions.sum() == known.impressions[known.item < 4].sum()
    log = log.with_documents(0)
    for name in METHODS:
        with pytest.raises(DataError, match=r"documents that the vocabulary knows, found none.*own vocabulary"):
            estimate(name, log)


@every_method
def test_weights_count_as_so_many_sessions(name: str, tmp_path: Path) -> None:
    rows = click_rows(200)
    many = [row | {"session": f"{i} {row['session']}"} for row in rows for i in range(1 + int(row["query"]) % 3)]
    weighted = [row | {"weight": 1.0 + int(row["query"]) % 3} for row in rows]
    found = [estimate(name, write_small(tmp_path / str(i), some)) for i, some in enumerate((many, weighted))]
    for field in ("value", "standard_error", "interval", "impressions"):
        np.testing.assert_allclose(getattr(found[1], field), getattr(found[0], field), rtol=1e-7, atol=1e-12)


# --- Were lists shuffled? ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [150, 1500, 15_000])
def test_shuffled_lists_look_shuffled_however_few_there_are(sessions: int) -> None:
    z = []
    for seed in range(100):
        even = _evenness(simulated(seed, sessions=sessions))
        z.append((even.statistic - even.freedom) / even.deviation)
    assert abs(np.mean(z)) < 0.4
    assert 0.8 < np.std(z) < 1.2
    assert max(z) < 4


def test_lists_that_are_not_shuffled_are_seen() -> None:
    even = _evenness(simulated(17, shuffled=0.6))
    np.testing.assert_allclose(even.fixed, 0.4, atol=0.03)
    (warning,) = others(propensity.randomised(simulated(17, shuffled=0.6)))
    assert f"chi-square of {even.statistic:,.0f} where {even.freedom:,.0f} is expected" in warning
    assert f"as if {100 * even.fixed:.1f} % of the impressions were always at the same rank" in warning
    nearly = propensity.randomised(simulated(18, shuffled=0.9, sessions=3000)).warnings
    assert "lists do not look shuffled" in nearly[0]
    once = counted(np.arange(90), np.tile([1, 2, 3], 30), np.ones(90), np.ones(90), np.repeat(np.arange(30), 3))
    assert "to tell whether lists were shuffled" in propensity.randomised(once).warnings[0]


def test_the_chi_square_is_that_of_its_formula() -> None:
    # A query of two documents: 30 and 10 impressions at ranks 1 and 2; 10 and 30 the other way round.
    cells = counted([0, 0, 1, 1], [1, 2, 1, 2], [30, 10, 10, 30], [9, 1, 3, 3], [0, 0])
    even = _evenness(cells)
    assert even.freedom == 2
    np.testing.assert_allclose(even.statistic, 2 * ((30 - 20) ** 2 / 20 + (10 - 20) ** 2 / 20))
    np.testing.assert_allclose(even.deviation**2, 2 * (2 * (1 - 1 / 40)) * 2)


# --- Contexts ---------------------------------------------------------------------------------------------

PHONE, DESK = np.arange(1, 5.0) ** -1.5, np.arange(1, 5.0) ** -0.5
KINDS = {"device": {"kind": "category", "values": ["phone", "desk", "watch"]}, "price": {"kind": "number"}}


def click_rows(sessions: int, *, seed: int = 0, context: bool = False, theta: Any = None) -> list[dict[str, Any]]:
    """Lists of 4 out of 6 documents of 12 queries; on desks (device 2) examination falls less, at half the clicks."""
    rng = np.random.default_rng(seed)
    gamma = np.random.default_rng(1).uniform(0.3, 0.95, (12, 6))
    rows = []
    for i in range(sessions):
        query, device = int(rng.integers(12)), int(rng.integers(1, 3))
        order = np.argsort(-gamma[query]) if i % 3 else rng.permutation(6)
        curve = (PHONE if device == 1 else DESK / 2) if theta is None else theta
        clicks = rng.random(4) < curve * gamma[query, order[:4]]
        row = {
            "session": str(i),
            "query": query,
            "documents": (query * 6 + order[:4] + 1).tolist(),
            "ranks": [1, 2, 3, 4],
            "clicks": clicks.astype(int).tolist(),
        }
        extra = {"context.device": device, "context.price": float(i % 8) - 2.0}
        rows.append(row | (extra if context else {}))
    return rows


def write_small(path: Path, rows: list[dict[str, Any]], **options: Any) -> ClickLog:
    documents = pa.table({"query": pa.array(np.repeat(np.arange(12), 6), pa.int32()), "document": map(str, range(72))})
    context = KINDS if "context.device" in rows[0] else {}
    with LogWriter(path, queries=pa.array(map(str, range(12))), documents=documents, context=context, **options) as out:
        out.write(pa.Table.from_pylist(rows))
    return ClickLog.open(path)


def click_log(path: Path, *, sessions: int, **options: Any) -> ClickLog:
    return write_small(path, click_rows(sessions, **options))


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return click_log(tmp_path_factory.mktemp("contexts") / "log", sessions=12_000, context=True)


@pytest.mark.parametrize("method", ["maximum-likelihood", "conditional-likelihood"])
@pytest.mark.parametrize("errors", ["information", "query"])
@pytest.mark.filterwarnings("default")
def test_each_context_has_its_curve(devices: ClickLog, method: Any, errors: Any) -> None:
    found = propensity.contextual(devices, "device", method=method, errors=errors)
    assert list(found) == ["device=phone", "device=desk"]
    for curve, truth, name in zip(found.values(), (PHONE, DESK), ("phone", "desk"), strict=True):
        assert_covers(curve, truth, most=0.2)
        assert (curve.method, curve.context) == (method, {"device": name})
        assert curve.rank.tolist() == [1, 2, 3, 4]
        assert curve.covariance is not None
        np.testing.assert_allclose(np.sqrt(np.diag(curve.covariance)), curve.log_standard_error)
    pooled = METHODS[method](devices)
    assert (np.abs(pooled.value - found["device=phone"].value)[1:] > 3 * pooled.standard_error[1:]).all()
    total = sum(curve.impressions for curve in found.values())
    np.testing.assert_array_equal(total, pooled.impressions)


def test_contexts_without_common_documents_are_estimated_alone(tmp_path: Path) -> None:
    rows = [row | {"context.device": 1 + row["query"] % 2} for row in click_rows(3000, context=True)]
    found = propensity.contextual(write_small(tmp_path / "all", rows), "device")
    for device, name in ((1, "phone"), (2, "desk")):
        some = [row for row in rows if row["context.device"] == device]
        alone = propensity.conditional_likelihood(write_small(tmp_path / name, some))
        np.testing.assert_allclose(found[f"device={name}"].value, alone.value, rtol=1e-5)
        np.testing.assert_allclose(found[f"device={name}"].standard_error, alone.standard_error, rtol=1e-4)


def test_documents_connect_ranks_over_contexts(tmp_path: Path) -> None:
    # On phones each document has one rank, on desks all: phones alone tell nothing of examination.
    rows = click_rows(6000, context=True)
    for row in rows:
        if row["context.device"] == 1:
            order = np.argsort(row["documents"])
            row["documents"] = [row["documents"][i] for i in order]
    phones = [row for row in rows if row["context.device"] == 1]
    still = [row | {"documents": (row["query"] * 6 + np.arange(1, 5)).tolist()} for row in phones]
    alone = propensity.maximum_likelihood(write_small(tmp_path / "phones", still))
    assert list(alone.unsupported) == [2, 3, 4]
    both = still + [row for row in rows if row["context.device"] == 2]
    found = propensity.contextual(write_small(tmp_path / "both", both), "device")
    assert found["device=phone"].unsupported == {}


def test_numbers_are_cut_into_bins_of_equal_size(devices: ClickLog) -> None:
    # Prices -2, ..., 5, each as often.
    found = propensity.contextual(devices, "price", bins=3)
    assert list(found) == ["price=-2 to 0", "price=1 to 2", "price=3 to 5"]
    shown = np.array([curve.impressions[0] for curve in found.values()])
    np.testing.assert_array_equal(shown, [4500, 3000, 4500])
    whole = propensity.contextual(devices, "price", bins=1)
    assert list(whole) == ["price=-2 to 5"]
    plain = propensity.conditional_likelihood(devices)
    np.testing.assert_allclose(whole["price=-2 to 5"].value, plain.value, rtol=1e-10)
    each = propensity.contextual(devices, "price", bins=50)
    assert list(each) == [f"price={x}" for x in range(-2, 6)]


def test_contexts_are_counted_in_little_memory(devices: ClickLog) -> None:
    names = ["price", "device"]
    found, small = (propensity.contextual(devices, names, bins=2, memory=memory) for memory in (1 << 30, 20_000))
    assert list(found) == list(small)
    assert list(found)[:2] == ["price=-2 to 1, device=phone", "price=-2 to 1, device=desk"]
    assert found["price=2 to 5, device=desk"].context == {"price": "2 to 5", "device": "desk"}
    for name in found:
        np.testing.assert_allclose(small[name].value, found[name].value, rtol=1e-12)


def test_contexts_with_too_little_say_so(tmp_path: Path) -> None:
    rows = click_rows(2000, context=True)
    for i, row in enumerate(rows):
        row["context.device"] = 3 if i < 5 else 0 if i < 400 else row["context.device"]
    found = propensity.contextual(write_small(tmp_path / "log", rows), "device")
    assert list(found) == ["device=unknown", "device=phone", "device=desk", "device=watch"]
    watch = found["device=watch"]
    clicks = sum(map(sum, (row["clicks"] for row in rows[:5])))
    assert watch.warnings[0] == f"too little to tell a curve: {clicks} clicks in 20 impressions of this context"
    assert not any("too little" in w for name in ("unknown", "phone") for w in found[f"device={name}"].warnings)


def test_unusable_contexts(devices: ClickLog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a context column 'x': found the context columns device, price"):
        propensity.contextual(devices, "x")
    with pytest.raises(ConfigError, match="the log has no context columns"):
        propensity.contextual(click_log(tmp_path / "log", sessions=20), "device")
    with pytest.raises(ConfigError, match="counts have lost the context columns"):
        propensity.contextual(collapse(devices, "rank"), "device")  # type: ignore[arg-type]
    for options in ({"by": []}, {"by": ["price", "price"]}, {"bins": 0}, {"method": "all-pairs"}):
        with pytest.raises(ConfigError, match="one or more different columns, at least 1 bin and a method"):
            propensity.contextual(devices, **{"by": "price"} | options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected errors of 'information' or 'query', found 'best'"):
        propensity.contextual(devices, "price", errors="best")  # type: ignore[arg-type]
    rows = [row | {"context.price": float(i)} for i, row in enumerate(click_rows(400, context=True))]
    with pytest.raises(ConfigError, match=r"400 contexts at 4 ranks are too many.*fewer bins"):
        propensity.contextual(write_small(tmp_path / "many", rows), "price", bins=400)


def test_impression_features_do_not_matter(tmp_path: Path) -> None:
    rows = click_rows(300, context=True)
    plain = write_small(tmp_path / "plain", rows)
    rows = [row | {"feature.age": [1.0, 2.0, 3.0, 4.0]} for row in rows]
    log = write_small(tmp_path / "features", rows, impression_features=["age"])
    np.testing.assert_array_equal(propensity.ctr(log).value, propensity.ctr(plain).value)
    a, b = (propensity.contextual(source, "device")["device=desk"] for source in (log, plain))
    np.testing.assert_array_equal(a.value, b.value)


# --- The command ------------------------------------------------------------------------------------------


@pytest.fixture
def ultr(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["propensity", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_the_command_prints_what_the_function_finds(ultr: Any, devices: ClickLog) -> None:
    code, out, _ = ultr(devices.path, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["log"] == str(devices.path)
    (curve,) = found["propensities"]
    assert curve == json.loads(json.dumps(propensity.conditional_likelihood(devices).to_json()))
    assert set(curve["ranks"][0]) == {
        "rank", "propensity", "standard_error", "interval", "impressions", "unsupported"
    }  # fmt: skip
    _, text, _ = ultr(devices.path)
    head, _, first, second, *_ = text.splitlines()
    assert head.split() == ["rank", "propensity", "standard", "error", "95", "%", "interval", "impressions"]
    assert first.split()[:2] == ["1", "1.0000"]
    assert second.split()[1] == f"{curve['ranks'][1]['propensity']:.4f}"


def test_methods_side_by_side(ultr: Any, devices: ClickLog, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    collapse(devices, "rank", directory=counts)
    methods = [word for name in METHODS for word in ("--method", name)]
    files = ("--out", tmp_path / "curves.csv", "--figure", tmp_path / "curves.png")
    code, text, _ = ultr(counts, *methods, *files, "--replicates", 50, "--seed", 5)
    assert code == 0
    head, _, first, second, *_ = text.splitlines()
    assert head.split() == ["rank", *METHODS]
    assert first.split() == ["1"] + ["1.0000"] * len(METHODS)
    found = propensity.all_pairs(devices, replicates=50, seed=5)
    assert f"{found.value[1]:.4f} ± {found.standard_error[1]:.4f}" in second
    assert "ctr: warning: click rates mix examination" in text
    assert "adjacent-chain: warning: the intervals of all ranks rest on 12 queries" in text
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [name for name in METHODS for _ in range(4)]
    row = rows[4 * list(METHODS).index("all-pairs") + 1]
    assert (row["rank"], float(row["propensity"]), float(row["high"])) == ("2", found.value[1], found.interval[1, 1])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = ultr(counts, "--method", "ctr", "--method", "all-pairs", "--out", tmp_path / "curves.json", "--json")
    assert json.loads(out) == json.loads((tmp_path / "curves.json").read_text())
    assert [curve["method"] for curve in json.loads(out)["propensities"]] == ["ctr", "all-pairs"]


def test_curves_per_context(ultr: Any, devices: ClickLog, tmp_path: Path) -> None:
    options = ("--context", "device", "--out", tmp_path / "curves.csv", "--figure", tmp_path / "curves.svg")
    code, text, _ = ultr(devices.path, *options)
    assert code == 0
    assert text.splitlines()[0].split() == ["rank", "device=phone", "device=desk"]
    assert (tmp_path / "curves.csv").read_text().startswith("method,device,rank,propensity")
    drawing = (tmp_path / "curves.svg").read_text()
    assert "device=phone" in drawing
    assert "examination relative to rank 1" in drawing
    code, out, _ = ultr(devices.path, "--context", "price", "--bins", 2, "--json")
    assert [curve["context"] for curve in json.loads(out)["propensities"]] == [
        {"price": "-2 to 1"}, {"price": "2 to 5"}
    ]  # fmt: skip


def test_what_is_not_known_is_said_and_drawn(ultr: Any, tmp_path: Path) -> None:
    rows = [row | {"clicks": [*row["clicks"][:2], 0, row["clicks"][3]]} for row in click_rows(1500)]
    rows = [row | {"ranks": [1, 2, 3, 9]} for row in rows]
    log = write_small(tmp_path / "log", rows)
    code, text, _ = ultr(log.path, "--method", "all-pairs", "--method", "pivot-one", "--figure", tmp_path / "c.pdf")
    assert code == 0
    assert "all-pairs: rank 3: never clicked: an upper limit only" in text
    assert "pivot-one: ranks 4-8: no document was shown there" in text
    assert text.splitlines()[4].split()[1] == "<"
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    code, out, _ = ultr(log.path, "--json")
    rank = json.loads(out)["propensities"][0]["ranks"][3]
    assert (rank["propensity"], rank["interval"]) == (None, [None, None])
    assert rank["unsupported"] == "no document was shown there"
    _, text, _ = ultr(log.path, "--method", "pivot-one")
    assert re.match(r"3 +0\.0000 +- +< 0\.\d{4} ", text.splitlines()[4].strip())


def test_a_split(ultr: Any, tmp_path: Path) -> None:
    rows = [row | {"split": "ab"[i % 2]} for i, row in enumerate(click_rows(1000))]
    log = write_small(tmp_path / "log", rows)
    _, out, _ = ultr(log.path, "--split", "a", "--method", "ctr", "--json")
    found = json.loads(out)
    assert found["split"] == "a"
    part = propensity.ctr(ClickLog.open(log.path, split="a"))
    assert [row["propensity"] for row in found["propensities"][0]["ranks"]] == part.value.tolist()


def test_the_first_ranks_alone(ultr: Any, devices: ClickLog, tmp_path: Path) -> None:
    rows = click_rows(6000, context=True)
    short = [row | {name: row[name][:3] for name in ("documents", "ranks", "clicks")} for row in rows]
    log, cut = write_small(tmp_path / "log", rows), write_small(tmp_path / "cut", short)
    for options in (("--method", "all-pairs", "--method", "maximum-likelihood"), ("--context", "device")):
        expected = json.loads(ultr(cut.path, *options, "--json")[1])["propensities"]
        found = json.loads(ultr(log.path, *options, "--ranks", 3, "--json")[1])["propensities"]
        assert found == expected
        assert all([row["rank"] for row in curve["ranks"]] == [1, 2, 3] for curve in found)
        assert json.loads(ultr(log.path, *options, "--ranks", 9, "--json")[1])["propensities"] != expected
    with pytest.raises(ConfigError, match="expected ranks of at least 1, found 0"):
        propensity.contextual(devices, "device", ranks=0)


def test_one_rank_is_an_error_of_the_command(ultr: Any, tmp_path: Path) -> None:
    rows = click_rows(300, context=True)
    log = write_small(tmp_path / "log", rows)
    short = [row | {name: row[name][:1] for name in ("documents", "ranks", "clicks")} for row in rows]
    cut = write_small(tmp_path / "cut", short)
    for options in ((), ("--method", "ctr"), ("--context", "device")):
        for path, more, mend in ((log.path, ("--ranks", 1), "Look at more"), (cut.path, (), "lists show more")):
            code, out, err = ultr(path, *options, *more)
            assert (code, out) == (2, "")
            assert "one rank only: there is nothing to compare. " in err
            assert mend in err


def bad_uses(log: Path, folder: Path) -> Iterator[tuple[tuple[object, ...], str]]:
    yield (folder / "nothing",), "expected the folder of a click log"
    yield (log, "--method", "best"), "unknown method 'best'; known: maximum-likelihood"
    yield (log, "--method", "ctr", "--errors", "query"), "--errors says nothing to --method ctr"
    yield (log, "--replicates", 100), "--replicates says nothing to --method conditional-likelihood"
    yield (log, "--replicates", 10, "--method", "ctr"), "10 is not in the range"
    yield (log, "--ranks", 0), "0 is not in the range"
    yield (log, "--bins", 3), "--bins says nothing without --context"
    yield (log, "--context", "device", "--method", "all-pairs"), "--context goes with --method maximum-likelihood or"
    yield (log, "--context", "wind"), "expected a context column 'wind'"
    yield (log, "--out", folder / "table.txt"), "a file --out that ends in .csv, .json"
    yield (log, "--figure", folder / "table.csv"), "a file --figure that ends in .png, .svg, .pdf"
    yield (log, "--out", folder / "none" / "table.csv"), "is no folder: make it"
    yield (log, "--split", "test"), "prepared without splits"
    yield (folder / "counts", "--split", "a"), "found counts, which have none"
    yield (folder / "counts", "--context", "device"), "expected a ClickLog, found Counts"


def test_bad_use_is_one_line(ultr: Any, devices: ClickLog, tmp_path: Path) -> None:
    collapse(devices, "rank", directory=tmp_path / "counts")
    for arguments, message in bad_uses(devices.path, tmp_path):
        code, out, err = ultr(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]


def test_figures_need_matplotlib(ultr: Any, devices: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = ultr(devices.path, "--figure", tmp_path / "curves.png", "--out", tmp_path / "curves.csv")
    assert code == 2
    assert "pip install matplotlib" in err
    assert list(tmp_path.iterdir()) == []
    assert ultr(devices.path)[0] == 0


def test_a_figure_of_one_rank_and_of_nothing(tmp_path: Path) -> None:
    one = propensity.ctr(counted(np.arange(50), np.ones(50), np.full(50, 9), np.full(50, 3), np.arange(50)))
    none = propensity.ctr(spread_out(clicks={1: 0}))
    for name, curve in {"one": one, "none": none}.items():
        curves.draw({"ctr": curve}, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    curves.draw({"ctr": none}, tmp_path / "none.svg")
    assert "ranks 2-3: rank 1, which they are" in (tmp_path / "none.svg").read_text()
    curves.draw({"ctr": none, "one": propensity.ctr(spread_out())}, tmp_path / "both.svg")
    assert "ctr has no values. rank 1: never clicked" in (tmp_path / "both.svg").read_text()


def test_figures_hold_values_without_intervals() -> None:
    cells = counted([0, 0], [1, 2], [10_000, 10_000], [4000, 20], [7])
    curve = propensity.ctr(cells)
    assert np.isnan(curve.interval[1]).all()
    low, high = curves._limits({"ctr": curve})
    assert low < curve.value[1] < 1 < high


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([3], "rank 3"),
        ([], "no rank"),
        ([3, 4], "ranks 3-4"),
        ([2, 3, 4], "ranks 2-4"),
        ([1, 3, 4, 5, 9], "ranks 1, 3-5, 9"),
        ([2, 4], "ranks 2, 4"),
    ],
)
def test_ranks_in_words(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text
