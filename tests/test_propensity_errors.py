"""Errors of propensity estimators, and what they say of logs that tell little."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from propensity_logs import (
    BOOTSTRAPPED,
    DOCUMENTS,
    GAMMA,
    HARVESTING,
    QUERIES,
    RANKS,
    THETA,
    assert_covers,
    click_log,
    click_rows,
    counted,
    estimate,
    every_bootstrapped,
    every_harvesting,
    every_method,
    simulated,
    spread_out,
    write_small,
)
from stored import write_log

from ultr import propensity
from ultr.data.columns import MAX_RANKS
from ultr.errors import ConfigError, DataError
from ultr.propensity import ESTIMATORS
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts
from ultr.propensity.bootstrap import group_queries
from ultr.propensity.propensities import NO_CLICK_VARIATION, ZERO_COUNT_LIMIT

ONE_SIDED = (
    "the documents that connect it with rank 1 were clicked at one of the two alone, or never, so that any ratio is "
    "possible"
)


@pytest.mark.parametrize("unlike", [0.0, 0.5], ids=["alike", "unlike"])
def test_errors_are_what_other_logs_would_show(unlike: float) -> None:
    # Where queries are unlike each other, clicks of a query depend on each other, and errors have to know.
    options: Any = {"sessions": 6000, "shuffled": 0.5, "unlike": unlike}
    logs = [simulated(100 + i, **options) for i in range(60)]
    truth = THETA  # which is the median over queries: what is estimated lies a little above
    for name in BOOTSTRAPPED:
        found = [estimate(name, counts) for counts in logs]
        values, errors = (np.stack([getattr(x, field)[1:] for x in found]) for field in ("value", "standard_error"))
        ratio = np.sqrt((errors**2).mean(0)) / values.std(0, ddof=1)
        assert ((ratio > 0.7) & (ratio < 1.4)).all(), (name, ratio)
        assert 0.9 < ratio.mean() < 1.1, (name, ratio)
        low, high = np.stack([x.interval[1:] for x in found]).transpose(2, 0, 1)
        centre = truth[1:] if name in HARVESTING and not unlike else values.mean(0)
        assert 0.9 < ((low < centre) & (centre < high)).mean() <= 1, name
    if unlike:
        model = np.stack([estimate("maximum-likelihood", counts).standard_error[1:] for counts in logs[:5]]).mean(0)
        pairs = np.stack([estimate("all-pairs", counts).standard_error[1:] for counts in logs[:5]]).mean(0)
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
def test_very_many_queries_are_resampled_in_groups(name: str) -> None:
    gamma = np.random.default_rng(12).uniform(0.3, 0.9, (3000, DOCUMENTS))
    counts = simulated(13, sessions=30_000, gamma=gamma)
    group, groups = group_queries(counts, 0)
    assert groups == 2000
    query = counts.query[counts.item]
    assert len(np.unique(query * groups + group)) == len(np.unique(query)) > 2900  # each query in one group
    grouped = estimate(name, counts, replicates=600)
    alone = estimate(name, counts, replicates=600, max_groups=10_000)
    np.testing.assert_allclose(alone.value, grouped.value, rtol=1e-10)
    np.testing.assert_allclose(alone.standard_error[1:], grouped.standard_error[1:], rtol=0.2)


@every_bootstrapped
def test_replicates_do_not_depend_on_the_block_size(name: str) -> None:
    counts = simulated(14, sessions=1000)
    found = estimate(name, counts)
    np.testing.assert_allclose(estimate(name, counts, block_size=3000).interval, found.interval, rtol=1e-8)


def test_few_queries_are_warned_of_and_fewer_give_no_interval() -> None:
    for queries, ranks in ((20, "all ranks"), (4, "")):
        found = propensity.pivot_one(simulated(15, gamma=GAMMA[:queries], sessions=2000))
        if ranks:
            assert f"the intervals of {ranks} rest on 20 queries or little more" in found.warnings[0]
            assert "fewer than 100 queries cover a few percent less than 95 %" in found.warnings[0]
            assert "fewer than 30 queries says too little about the error" in found.warnings[0]
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
    (share,) = re.findall(r"no interval: (\d+) % of the resampled logs give it no value", found.unsupported[3])
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
    assert "of the resampled logs give it no value" in found.unsupported[2]
    assert np.isnan(found.interval[1]).all()


@every_method
def test_where_every_impression_was_clicked_there_is_no_interval(name: str) -> None:
    item, rank = np.repeat(np.arange(200), 3), np.tile([1, 2, 3], 200)
    shown = np.random.default_rng(17).integers(1, 9, 600)
    counts = counted(item, rank, shown, shown, np.arange(200))
    for options in ({},) if name in BOOTSTRAPPED else ({"errors": "information"}, {"errors": "query"}):
        found = estimate(name, counts, **options)
        np.testing.assert_allclose(found.value, 1, atol=1e-5)
        assert found.unsupported == {2: NO_CLICK_VARIATION, 3: NO_CLICK_VARIATION}
        assert np.isnan(found.interval[1:]).all()
        assert np.isnan(found.standard_error[1:]).all()


@every_method
def test_a_rank_that_was_never_clicked_has_an_upper_limit(name: str) -> None:
    counts = spread_out(clicks={3: 0})
    counts.impressions[counts.arm == 2] = 10
    found = estimate(name, counts)
    assert found.value[2] == 0
    assert found.unsupported == {3: "never clicked: an upper limit only"}
    assert np.isnan(found.standard_error[2])
    # Examined as rank 1 is, rank 3 would have had clicks of 40 x 10 x 12/20.
    np.testing.assert_allclose(found.interval[2], [0, ZERO_COUNT_LIMIT / 240], rtol=2e-3)
    np.testing.assert_allclose(found.value[1], 0.5, rtol=3e-3)


@pytest.mark.parametrize("name", ["all-pairs", "variance-weighted"])
def test_a_lucky_click_does_not_tighten_an_upper_limit(name: str) -> None:
    # Ranks 1, 2, 3 of 40 documents; at rank 2, hardly ever examined, one click of them would speak of 100 at rank 3.
    item, rank = np.repeat(np.arange(40), 3), np.tile([1, 2, 3], 40)
    clicks = np.where(rank == 1, 10.0, 0.0)
    clicks[1] = 1.0
    found = estimate(name, counted(item, rank, np.full(120, 20.0), clicks, np.arange(40)))
    assert found.value[2] == 0
    np.testing.assert_allclose(found.interval[2], [0, ZERO_COUNT_LIMIT / 400], rtol=0.02)
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
    counts = np.argwhere(n > 0)
    shown = n[n > 0]
    clicks = rng.binomial(shown.astype(int), THETA[counts[:, 2]] * GAMMA[counts[:, 0], counts[:, 1]])
    item = counts[:, 0] * DOCUMENTS + counts[:, 1]
    found = estimate(name, counted(item, counts[:, 2] + 1, shown, clicks, np.repeat(np.arange(QUERIES), DOCUMENTS)))
    if name in HARVESTING:
        assert_covers(found, THETA, most=0.1)
    if name == "randomised":
        (warning,) = found.warnings  # of the intervals, not of the lists
        assert warning.startswith("the intervals of all ranks rest on 30 queries or little more")
        assert "too little" not in warning


def test_ranks_that_clicks_do_not_connect_have_no_value() -> None:
    # Ranks 1 and 2 share documents, and so do 3 and 4, 4 and 5; nothing leads from the former to the latter.
    item, rank = np.repeat(np.arange(120), 2), np.concatenate([np.tile(p, 40) for p in ([1, 2], [3, 4], [4, 5])])
    counts = counted(item, rank, np.full(240, 20), 12 // rank + (np.arange(240) % 3 == 0), np.arange(120))
    for name in HARVESTING:
        found = estimate(name, counts)
        np.testing.assert_array_equal(np.isfinite(found.value), [True, True, False, False, False])
    assert estimate("all-pairs", counts).unsupported == dict.fromkeys((3, 4, 5), "no document connects it with rank 1")
    assert estimate("pivot-one", counts).unsupported == dict.fromkeys(
        (3, 4, 5), "no document was shown both there and at rank 1"
    )
    chain = "the chain from rank 1 breaks at rank 3: no document was shown both there and at rank 2"
    assert estimate("adjacent-chain", counts).unsupported == dict.fromkeys((3, 4, 5), chain)


def test_clicks_on_one_side_of_a_comparison_only() -> None:
    # Documents at ranks 1 and 2 were clicked at rank 1 alone; rank 2 was clicked on those it shares with rank 3.
    item, rank = np.repeat(np.arange(80), 2), np.concatenate([np.tile([1, 2], 40), np.tile([2, 3], 40)])
    clicks = np.concatenate([np.tile([9, 0], 40), np.tile([9, 5], 40)])
    counts = counted(item, rank, np.full(160, 20), clicks, np.arange(80))
    assert estimate("all-pairs", counts).unsupported == {2: ONE_SIDED, 3: ONE_SIDED}
    chain = estimate("adjacent-chain", counts)
    assert chain.value[1] == 0
    np.testing.assert_allclose(chain.interval[1], [0, ZERO_COUNT_LIMIT / (40 * 9)])
    assert chain.unsupported[3] == (
        "the chain from rank 1 breaks at rank 2, which was never clicked where it is compared"
    )
    clicks = np.concatenate([np.tile([9, 3, 9, 4], 20), np.tile([0, 5], 40)])
    counts = counted(item, rank, np.full(160, 20), clicks, np.arange(80))
    assert estimate("adjacent-chain", counts).unsupported == {
        3: "the chain from rank 1 breaks at rank 2: the documents shown both there and at rank 3 had no clicks there"
    }
    clicks = np.concatenate([np.tile([0, 3], 40), np.tile([9, 5], 40)])
    counts = counted([*item, 80], [*rank, 1], np.full(161, 20), [*clicks, 4], np.arange(81))
    assert estimate("pivot-one", counts).unsupported == {
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
    counts = counted(*columns, np.arange(90))
    for name in ("maximum-likelihood", "conditional-likelihood"):
        for errors in ("information", "query"):
            found = estimate(name, counts, errors=errors)
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
    for name in ESTIMATORS:
        with pytest.raises(ConfigError, match="expected a ClickLog or its Counts"):
            estimate(name, [1, 2])
    for name in BOOTSTRAPPED:
        with pytest.raises(ConfigError, match=r"at least 40 replicates.*found 39"):
            estimate(name, spread_out(), replicates=39)
        with pytest.raises(ConfigError, match="seed of at least 0"):
            estimate(name, spread_out(), seed=-1)
    rows = [{"session": str(i), "query": 0, "documents": [1], "ranks": [MAX_RANKS], "clicks": [1]} for i in range(9)]
    log = write_log(tmp_path / "log", rows)
    log.ranks = MAX_RANKS + 1  # as of a log that was prepared before there was a limit
    with pytest.raises(DataError, match=r"at most 1,000 ranks, found rank 1,001.*Check the rank column"):
        estimate("ctr", log)
    item, rank = np.repeat(0, 1000), np.arange(1, 1001)
    with pytest.raises(ConfigError, match=r"499,500 pairs of ranks are too many.*pivot-one"):
        estimate("all-pairs", counted(item, rank, np.full(1000, 9), np.full(1000, 3), [0]))
    assert np.isfinite(estimate("pivot-one", counted(item, rank, np.full(1000, 9), np.full(1000, 3), [0])).value).all()


def test_unknown_documents_are_left_out(tmp_path: Path) -> None:
    log = click_log(tmp_path / "log", sessions=300)
    known = as_arm_counts(log)
    log = log.with_documents(4)
    some = as_arm_counts(log)
    assert some.items == 4
    assert some.impressions.sum() == known.impressions[known.item < 4].sum()
    log = log.with_documents(0)
    for name in ESTIMATORS:
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


def fixed(first: int) -> ArmCounts:
    """Documents of one rank each, from rank `first` to 4, of which the last is never clicked."""
    arm = np.arange(first - 1, 4)
    clicks = np.where(arm == 3, 0.0, 5.0)
    return ArmCounts(arm - arm[0], arm, np.full(len(arm), 50.0), clicks, np.zeros(len(arm), np.int64), 4)


def test_a_deterministic_logger_shows_impressions_that_nothing_compares() -> None:
    found = propensity.conditional_likelihood(fixed(1))
    assert found.unsupported == dict.fromkeys((2, 3, 4), "no document connects it with rank 1")
    assert found.impressions.tolist() == [0] * 4
    rows = found.to_json()["ranks"]
    assert [row["impressions"] for row in rows] == [50] * 4
    assert [row["compared"] for row in rows] == [0] * 4
    assert [row[4:6] for row in found.table_rows()[:2]] == [["impressions", "compared"], ["50", "0"]]


@pytest.mark.parametrize("method", ["conditional_likelihood", "all_pairs", "ctr"])
def test_a_rank_without_documents_was_not_shown_rather_than_not_clicked(method: str) -> None:
    found = getattr(propensity, method)(fixed(2))
    assert found.unsupported[1] == "no document was shown there"
    assert found.unsupported[2] == "rank 1, which it is compared with, was never shown"
