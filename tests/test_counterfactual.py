"""Counterfactual DCG: its expectation over all click vectors, its errors by formula, its intervals by simulation."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest
from narrowing import present
from scipy.special import logit
from stored import make_rows, plain, write_log

from ultr.data import Collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate, counterfactual
from ultr.propensity import Propensities
from ultr.sessions import Sessions

KEY = jax.random.key(5)
EXAMINED = np.array([1.0, 0.6, 0.3, 0.2])
FALSE = np.array([0.2, 0.1, 0.05, 0.0])
RELEVANCE = np.array([0.0, 0.1, 0.5, 0.9, 0.3])  # by document id


class ByDocument:
    """Scores by document id."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values, np.float64)

    def score(self, sessions: Sessions):
        return self.values[np.asarray(sessions.features["document"])]


BEST_FIRST = ByDocument(RELEVANCE)
WORST_FIRST = ByDocument(-RELEVANCE)
TRUE = ByDocument(np.append(0.0, logit(RELEVANCE[1:])))
WRONG = ByDocument(np.append(0.0, logit([0.5, 0.2, 0.4, 0.6])))


def every_click(shown, examined=EXAMINED, false=None, share=1.0, query=0) -> Sessions:
    """All click vectors on one list (document ids in the order shown), each weighted by its probability."""
    shown = np.asarray(shown)
    p = examined[: len(shown)] * RELEVANCE[shown] + (0 if false is None else false[: len(shown)])
    clicks = np.array(list(itertools.product([0, 1], repeat=len(shown))))
    weight = share * np.where(clicks, p, 1 - p).prod(1)
    return Sessions.from_lists(
        features={"document": [shown] * len(clicks)}, clicks=clicks, weight=weight, query=[query] * len(clicks)
    )


def joined(*parts: Sessions) -> Sessions:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def dcg(order, k=10) -> float:
    """Of documents in this order."""
    return sum(RELEVANCE[d] / math.log2(r + 2) for r, d in enumerate(order[:k]))


def drawn(rng, sessions: int, shown=(1, 2, 3, 4), queries: int = 5) -> Sessions:
    shown = np.array([rng.permutation(shown) for _ in range(sessions)])
    clicks = rng.random(shown.shape) < EXAMINED[: shown.shape[1]] * RELEVANCE[shown]
    return Sessions.from_lists(
        features={"document": shown}, clicks=clicks.astype(int), query=rng.integers(0, queries, sessions)
    )


def candidates(queries: int = 1) -> Collection:
    return Collection.from_arrays(query=np.repeat(np.arange(queries), 4), label=[1, 0, 2, 0] * queries)


def same(a: Estimate, b: Estimate) -> None:
    assert (a.value, a.standard_error) == pytest.approx((b.value, b.standard_error), rel=1e-6)
    assert a.interval == pytest.approx(b.interval, rel=1e-6)
    assert a.count == b.count


@pytest.mark.parametrize("metric", ["dcg@1", "dcg@2", "dcg@10", "dcg"])
def test_ips_expects_the_dcg_of_the_new_order(metric):
    k = int(metric[4:] or 10)
    log = every_click([1, 2, 3, 4])
    rankers = {"best": BEST_FIRST, "worst": WORST_FIRST}
    found = counterfactual(log, rankers, propensity=EXAMINED, metric=metric, key=KEY)
    assert found.values["best"].value == pytest.approx(dcg([3, 2, 4, 1], k), rel=1e-6)
    assert found.values["worst"].value == pytest.approx(dcg([1, 4, 2, 3], k), rel=1e-6)
    assert found.values["logged"].value == pytest.approx(dcg([1, 2, 3, 4], k), rel=1e-6)
    expected = dcg([3, 2, 4, 1], k) - dcg([1, 2, 3, 4], k)
    assert found.difference("best", "logged").value == pytest.approx(expected, rel=1e-6)


def test_false_clicks_are_subtracted():
    log = every_click([4, 3, 2, 1], false=FALSE)
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, false_clicks=FALSE, key=KEY)
    assert found.values["new"].value == pytest.approx(dcg([3, 2, 4, 1]), rel=1e-6)
    biased = counterfactual(log, BEST_FIRST, propensity=EXAMINED, key=KEY).values["new"].value
    places = {3: 1, 2: 2, 4: 3, 1: 4}
    extra = sum(FALSE[k] / EXAMINED[k] / math.log2(places[d] + 1) for k, d in enumerate([4, 3, 2, 1]))
    assert biased == pytest.approx(dcg([3, 2, 4, 1]) + extra, rel=1e-6)


def test_snips_expects_the_mean_discount_of_a_relevant_document_whatever_the_scale():
    log = every_click([1, 2, 3, 4])
    for scale in (1.0, 0.25):
        found = counterfactual(log, BEST_FIRST, propensity=scale * EXAMINED, method="snips", key=KEY)
        assert found.values["new"].value == pytest.approx(dcg([3, 2, 4, 1]) / RELEVANCE.sum(), rel=1e-6)
    ips = counterfactual(log, BEST_FIRST, propensity=0.25 * EXAMINED, key=KEY)
    assert ips.values["new"].value == pytest.approx(4 * dcg([3, 2, 4, 1]), rel=1e-6)


@pytest.mark.parametrize("false", [None, FALSE])
def test_doubly_robust_is_right_when_either_part_is(false):
    log = every_click([1, 2, 3, 4], false=false)

    def value(**options):
        options = {"propensity": EXAMINED, "false_clicks": false, "key": KEY} | options
        return counterfactual(log, BEST_FIRST, **options).values["new"].value

    right = pytest.approx(dcg([3, 2, 4, 1]), rel=1e-6)
    assert value(method="dr", regression=WRONG) == right  # right weights
    assert value(method="dr", regression=TRUE, clip=2) == right  # right regression, wrong weights
    assert value(method="dr", regression=WRONG, clip=2) != right
    assert value(clip=2) != right


def test_doubly_robust_varies_less_where_the_regression_is_right():
    log = drawn(np.random.default_rng(0), 400)
    ips = counterfactual(log, BEST_FIRST, propensity=EXAMINED, clip=2, key=KEY)
    dr = counterfactual(log, BEST_FIRST, propensity=EXAMINED, clip=2, method="dr", regression=TRUE, key=KEY)
    assert dr.values["new"].standard_error < ips.values["new"].standard_error


def test_candidates_that_only_some_sessions_show_count_right():
    # Three in four sessions show documents 1 and 2, the others 3 and 4: every candidate has an order of its own.
    log = joined(every_click([1, 2], share=0.75), every_click([3, 4], share=0.25))
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, candidates=candidates(), key=KEY)
    assert found.values["new"].value == pytest.approx(dcg([3, 2, 4, 1]), rel=1e-6)
    assert found.values["logged"].value == pytest.approx(0.75 * dcg([1, 2]) + 0.25 * dcg([3, 4]), rel=1e-6)
    # Of what each session shows alone:
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, key=KEY)
    assert found.values["new"].value == pytest.approx(0.75 * dcg([2, 1]) + 0.25 * dcg([3, 4]), rel=1e-6)


def test_candidates_of_several_queries_are_weighted_by_their_sessions():
    data = Collection.from_arrays(query=[0, 0, 1, 1], label=[1, 0, 2, 0])
    log = joined(every_click([2, 1], share=0.8), every_click([4, 3], share=0.2, query=1))
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, candidates=data, cluster="query", key=KEY)
    assert found.values["new"].value == pytest.approx(0.8 * dcg([2, 1]) + 0.2 * dcg([3, 4]), rel=1e-6)


def test_a_candidate_that_was_never_shown_has_no_value_but_by_regression():
    log = every_click([1, 2, 4])
    options: Any = {"propensity": EXAMINED, "candidates": candidates(), "key": KEY}
    with pytest.raises(DataError, match="'new' places 1 candidates within rank 2 that the log never shows"):
        counterfactual(log, BEST_FIRST, metric="dcg@2", **options)
    # Out of reach of the cutoff it is not missed.
    found = counterfactual(log, WORST_FIRST, metric="dcg@3", **options)
    assert found.values["new"].value == pytest.approx(dcg([1, 4, 2]), rel=1e-6)
    found = counterfactual(log, BEST_FIRST, metric="dcg@2", method="dr", regression=TRUE, **options)
    assert found.values["new"].value == pytest.approx(dcg([3, 2]), rel=1e-6)
    assert found.support["new"].unsupported == 1


def test_standard_errors_are_those_of_means_over_sessions_and_over_queries():
    log = drawn(np.random.default_rng(1), 60)
    rank = np.argsort(np.argsort(-RELEVANCE[log.features["document"]], axis=1), axis=1) + 1
    shown = np.arange(4) + 1.0
    weighted = log.clicks / EXAMINED
    new: Any
    logged: Any
    new, logged = (weighted / np.log2(rank + 1)).sum(1), (weighted / np.log2(shown + 1)).sum(1)
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, key=KEY)

    same(found.values["new"], Estimate.mean(new))
    same(found.values["logged"], Estimate.mean(logged))
    same(found.difference("new", "logged"), Estimate.mean(new - logged))
    assert found.difference("new", "new").value == 0

    clustered = counterfactual(log, BEST_FIRST, propensity=EXAMINED, cluster="query", key=KEY).values["new"]
    sums = np.array([(new - new.mean())[log.query == q].sum() for q in range(5)])
    assert clustered.value == pytest.approx(new.mean(), rel=1e-6)
    assert clustered.standard_error == pytest.approx(math.sqrt((sums**2).sum() * 5 / 4) / 60, rel=1e-6)

    normalised = counterfactual(log, BEST_FIRST, propensity=EXAMINED, method="snips", key=KEY).values["new"]
    ratio = new.sum() / weighted.sum()
    influence = (new - ratio * weighted.sum(1)) / weighted.sum(1).mean()
    assert normalised.value == pytest.approx(ratio, rel=1e-6)
    assert normalised.standard_error == pytest.approx(math.sqrt((influence**2).mean() / 59), rel=1e-6)


def test_weights_stand_for_that_many_sessions():
    log = drawn(np.random.default_rng(2), 40)
    times = np.random.default_rng(3).integers(0, 4, 40)
    repeated, weighted = log[np.repeat(np.arange(40), times)], log.replace(weight=times.astype(np.float32))
    for method in ("ips", "snips"):
        for cluster in ("session", "query"):
            a, b = (
                counterfactual(x, BEST_FIRST, propensity=EXAMINED, method=method, cluster=cluster, key=KEY)
                for x in (repeated, weighted)
            )
            same(a.values["new"], b.values["new"])
            assert a.support["new"].clicks == b.support["new"].clicks


def test_support_says_what_the_estimate_rests_on():
    clicks = [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]
    log = Sessions.from_lists(features={"document": [[3, 1, 4, 2]] * 3}, clicks=clicks)
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, metric="dcg@3", clip=4, key=KEY).support["new"]
    weights = np.array([1 / 1.0, 1 / 0.25, 1 / 0.25])  # the click on document 1 is beyond the cutoff
    assert found.clicks == 3
    assert found.effective_sample_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.clipped == pytest.approx(2 / 3)


@pytest.mark.parametrize("method", ["ips", "snips"])
def test_intervals_cover_the_truth(method):
    rng = np.random.default_rng(4)
    truth = dcg([3, 2, 4, 1]) / (RELEVANCE.sum() if method == "snips" else 1)
    hits = 0
    for _ in range(300):
        log = drawn(rng, 150)
        low, high = counterfactual(log, BEST_FIRST, propensity=EXAMINED, method=method, key=KEY).values["new"].interval
        hits += low <= truth <= high
    assert abs(hits / 300 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 300)


def test_equal_scores_are_ordered_by_the_key_and_not_by_what_was_shown():
    log = drawn(np.random.default_rng(6), 2000, queries=2000)
    found = counterfactual(log, ByDocument(np.zeros(5)), propensity=EXAMINED, key=KEY).values["new"]
    expected = RELEVANCE.sum() * np.mean([1 / math.log2(r + 2) for r in range(4)])
    assert abs(found.value - expected) < 4 * found.standard_error


def test_a_log_on_disk_with_a_propensity_table(tmp_path):
    log = write_log(tmp_path / "log", plain(make_rows(50)))
    table = Propensities(
        method="x",
        rank=np.arange(1, 16),
        value=1 / np.arange(1.0, 16),
        standard_error=np.zeros(15),
        interval=np.ones((15, 2)),
        impressions=np.ones(15),
    )
    ranker = ByDocument(np.random.default_rng(0).random(log.documents + 1))
    found = counterfactual(log, ranker, propensity=table, key=KEY, batch_size=16)
    same(found.values["new"], counterfactual(log, ranker, propensity=table, key=KEY).values["new"])
    assert json.loads(json.dumps(found.to_json()))["values"]["new"]["value"] == found.values["new"].value
    short = Propensities(**(vars(table) | {"value": np.where(table.rank == 3, np.nan, table.value)}))
    short.unsupported[3] = "never clicked"
    with pytest.raises(ConfigError, match=r"rank 3 is shown and has propensity nan .*never clicked"):
        counterfactual(log, ranker, propensity=short, key=KEY)
    other = Collection.from_arrays(query=np.arange(7), label=np.ones(7))
    with pytest.raises(DataError, match="other document ids"):
        counterfactual(log, ranker, propensity=table, candidates=other, key=KEY)


def test_what_has_no_meaning_is_an_error():
    log = every_click([1, 2, 3, 4])

    def call(data=log, rankers=BEST_FIRST, propensity=EXAMINED, **options):
        return counterfactual(data, rankers, propensity=propensity, key=KEY, **options)

    with pytest.raises(ConfigError, match=r"rank 2 is shown and has propensity 0"):
        call(propensity=[1, 0, 0.2, 0.1])
    with pytest.raises(DataError, match=r"ranks up to 3, the last with a propensity, found rank 4"):
        call(propensity=EXAMINED[:3])
    with pytest.raises(DataError, match="expected clicks, found none"):
        call(log.replace(clicks=present(log.clicks) * 0))
    with pytest.raises(DataError, match="sessions with clicks, found none"):
        call(log.replace(clicks=None))
    with pytest.raises(DataError, match="query ids"):
        call(log.replace(query=None), cluster="query")
    with pytest.raises(DataError, match="NaN"):
        call(rankers=ByDocument(np.full(5, np.nan)))
    with pytest.raises(DataError, match="none for query 3"):
        call(every_click([1, 2], query=3), candidates=candidates())
    with pytest.raises(ConfigError, match=r"dcg or dcg@k"):
        call(metric="ndcg@10")
    with pytest.raises(ConfigError, match=r"expected method ips, snips, dr"):
        call(method="magic")
    with pytest.raises(ConfigError, match="needs regression="):
        call(method="dr")
    with pytest.raises(ConfigError, match="clip above 0"):
        call(clip=0)
    with pytest.raises(
        ConfigError, match=r"clip, the largest weight 1 / propensity, of at least 1, .* found 0\.5: all"
    ):
        call(clip=0.5)
    with pytest.raises(ConfigError, match=r"expected a model with score\(sessions\).*found 'x', which has none"):
        call(rankers="x")
    with pytest.raises(ConfigError, match=r"found function, which has none"):
        call(rankers={"new": lambda sessions: sessions})
    with pytest.raises(ConfigError, match="none of them called 'logged'"):
        call(rankers={"logged": BEST_FIRST})
    with pytest.raises(ConfigError, match="as propensity has"):
        call(false_clicks=[0.1])
    with pytest.raises(ConfigError, match="found shape"):
        call(propensity=0.5)
    with pytest.raises(ConfigError, match="unknown ranker 'x'; known: new, logged"):
        call().difference("x", "new")


def test_ranks_that_are_not_shown_need_no_propensity():
    found = counterfactual(every_click([2, 1]), BEST_FIRST, propensity=[1, 0.6, np.nan, 0], key=KEY)
    assert found.values["new"].value == pytest.approx(dcg([2, 1]), rel=1e-6)


# Clipped weights: the bias is bounded, and the interval reaches over the bound.


def test_the_bound_of_the_bias_is_the_sum_of_what_the_weights_fall_short_of():
    log = every_click([3, 1, 4, 2])
    found = counterfactual(log, BEST_FIRST, propensity=EXAMINED, clip=2, metric="dcg@3", key=KEY)
    short = {d: max(0.0, 1 - 2 * o) for d, o in zip([3, 1, 4, 2], EXAMINED, strict=True)}
    missing = sum(short[d] / math.log2(r + 2) for r, d in enumerate([3, 2, 4]))  # the order of the ranker, cut at 3
    assert found.support["new"].bias == pytest.approx((-missing, 0.0))
    lost = dcg([3, 2, 4], 3) - found.values["new"].value
    assert lost == pytest.approx(sum(short[d] * RELEVANCE[d] / math.log2(r + 2) for r, d in enumerate([3, 2, 4])))
    assert 0 < lost <= missing
    expected = {d: 1 / (1 + math.exp(-WRONG.values[d])) for d in (1, 2, 3, 4)}
    both = counterfactual(log, BEST_FIRST, propensity=EXAMINED, clip=2, method="dr", regression=WRONG, key=KEY)
    order = [(r, d) for r, d in enumerate([3, 2, 4, 1])]
    below = sum(short[d] * (1 - expected[d]) / math.log2(r + 2) for r, d in order)
    above = sum(short[d] * expected[d] / math.log2(r + 2) for r, d in order)
    assert both.support["new"].bias == pytest.approx((-below, above))
    whole = counterfactual(log, BEST_FIRST, propensity=EXAMINED, key=KEY)
    assert whole.support["new"].bias == (0, 0)


@pytest.mark.parametrize("cut", [None, 2.0])
@pytest.mark.parametrize("method", ["ips", "snips", "dr"])
def test_intervals_of_clipped_estimates_cover_the_truth(method, cut):
    rng = np.random.default_rng(11)
    scale = RELEVANCE.sum() if method == "snips" else 1
    best, worst = dcg([3, 2, 4, 1]) / scale, dcg([1, 4, 2, 3]) / scale
    options: dict[str, Any] = {"regression": WRONG} if method == "dr" else {}
    hits = np.zeros(3)
    for _ in range(100):
        found = counterfactual(
            drawn(rng, 400), {"best": BEST_FIRST, "worst": WORST_FIRST}, propensity=EXAMINED, method=method, clip=cut,
            key=KEY, **options,
        )  # fmt: skip
        pairs = [(found.values["best"], best), (found.values["worst"], worst)]
        pairs += [(found.difference("best", "worst"), best - worst)]
        hits += [e.interval[0] <= truth <= e.interval[1] for e, truth in pairs]
    assert (hits / 100 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 100)).all()
    if cut is not None and method == "ips":  # without the bound none would be covered
        value = found.values["best"]
        assert value.value + 1.96 * value.standard_error < best


def test_a_candidate_that_was_never_shown_is_worth_what_the_regression_says_or_anything_from_nothing_to_all():
    log = joined(*(every_click(shown, query=0) for shown in ([3, 1, 4], [1, 3, 4])))
    found = counterfactual(
        log, BEST_FIRST, propensity=EXAMINED, candidates=candidates(), method="dr", regression=WRONG, metric="dcg",
        key=KEY,
    )  # fmt: skip
    guess, place = 1 / (1 + math.exp(-WRONG.values[2])), 1 / math.log2(3)  # document 2, second by the ranker
    assert found.support["new"].unsupported == 1
    assert found.support["new"].bias == pytest.approx((-(1 - guess) * place, guess * place))
    low, high = found.values["new"].interval
    assert low < dcg([3, 2, 4, 1]) < high


def test_values_stay_within_what_they_can_be():
    clicks = [[1, 0, 0, 0]] * 3 + [[0, 0, 0, 0]]
    log = Sessions.from_lists(features={"document": [[3, 1, 4, 2]] * 4}, clicks=clicks)
    for method, most in (("ips", math.inf), ("snips", 1.0)):
        low, high = counterfactual(log, BEST_FIRST, propensity=EXAMINED, method=method, key=KEY).values["new"].interval
        assert 0 <= low <= high <= most
