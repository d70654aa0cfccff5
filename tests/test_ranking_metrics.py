"""Ranking metrics against hand formulas and a separate NumPy implementation; ties, empty queries and logs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from evaluated import (
    KEY,
    ByFeature,
    Coin,
    gain,
    ranked,
    values,
)
from narrowing import present

from ultr.data import ClickLog, InMemory
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate, evaluate, per_query
from ultr.sessions import Sessions

AT_3 = ["dcg@3", "ndcg@3", "mrr@3", "map@3", "err@3"]


def test_ranking_metrics_of_one_list_are_the_formulas():
    # Grades from the top: 0, 3, 1, 0, 2; two relevant documents below rank 2.
    found = values(ranked([[0, 3, 1, 0, 2]]), ["dcg@3", "ndcg@3", "dcg", "ndcg", "mrr@1", "mrr@3", "map@3", "map"])
    dcg3 = gain(3) / math.log2(3) + gain(1) / math.log2(4)
    ideal3 = gain(3) / math.log2(2) + gain(2) / math.log2(3) + gain(1) / math.log2(4)
    assert found == pytest.approx(
        {
            "dcg@3": dcg3,
            "ndcg@3": dcg3 / ideal3,
            "dcg": dcg3 + gain(2) / math.log2(6),
            "ndcg": (dcg3 + gain(2) / math.log2(6)) / ideal3,
            "mrr@1": 0.0,
            "mrr@3": 1 / 2,
            "map@3": (1 / 2 + 2 / 3) / 3,  # over all three relevant documents, not over those within reach
            "map": (1 / 2 + 2 / 3 + 3 / 5) / 3,
        },
        rel=1e-6,
    )


def test_err_is_the_cascade_formula():
    r = [gain(y) / 2**4 for y in (1, 4, 0, 2)]
    expected3 = r[0] + (1 - r[0]) * r[1] / 2 + (1 - r[0]) * (1 - r[1]) * r[2] / 3
    expected = expected3 + (1 - r[0]) * (1 - r[1]) * (1 - r[2]) * r[3] / 4
    found = values(ranked([[1, 4, 0, 2]]), ["err@3", "err@10", "err"])
    assert found == pytest.approx({"err@3": expected3, "err@10": expected, "err": expected}, rel=1e-6)


def test_err_takes_the_scale_of_the_data_or_the_one_given():
    lists = ranked([[1, 0], [0, 2]])
    assert values(lists, ["err@1"]) == pytest.approx({"err@1": (1 / 4 + 0) / 2})
    assert values(lists, ["err@1"], max_grade=4) == pytest.approx({"err@1": (1 / 16 + 0) / 2})
    with pytest.raises(DataError, match="at most 1, the highest of the scale, found 2"):
        values(lists, ["err@1"], max_grade=1)


def test_grades_below_zero_count_as_zero():
    below, zero = ranked([[-2, 1, 0, 3]]), ranked([[0, 1, 0, 3]])
    assert values(below, AT_3) == values(zero, AT_3)


def test_unjudged_documents_are_left_out_of_the_list():
    nan = math.nan
    judged = values(ranked([[0, 2, 1]]), AT_3)
    assert values(ranked([[nan, 0, nan, 2, 1, nan]]), AT_3) == pytest.approx(judged)
    assert judged["mrr@3"] == 1 / 2
    lists = ranked([[nan, nan], [1, 0]])
    found = evaluate(ByFeature(), lists, metrics=AT_3, key=KEY, empty_queries="zero")
    assert {(e.count, e.excluded) for e in found.values()} == {(1, 1)}


@pytest.mark.parametrize(
    ("policy", "expected", "count", "excluded"),
    [
        ("skip", [gain(2), 1, 1, 1, gain(2) / 2**2], 1, 2),
        ("zero", [gain(2) / 3, 1 / 3, 1 / 3, 1 / 3, gain(2) / 2**2 / 3], 3, 0),
        ("one", [gain(2) / 3, 1, 1, 1, (gain(2) / 2**2 + 1 + 1) / 3], 3, 0),
    ],
)
def test_queries_without_a_relevant_document_follow_the_policy(policy, expected, count, excluded):
    lists = ranked([[2, 0, 0], [0, 0], [0, 0, 0]])
    found = evaluate(ByFeature(), lists, metrics=AT_3, key=KEY, empty_queries=policy)
    assert [found[name].value for name in AT_3] == pytest.approx(expected)
    assert {(e.count, e.excluded) for e in found.values()} == {(count, excluded)}


def test_a_grade_of_one_half_has_gain_but_is_not_relevant_for_binary_metrics():
    found = evaluate(ByFeature(), ranked([[0.5, 0]]), metrics=AT_3, key=KEY)
    assert found["ndcg@3"].value == 1
    assert math.isnan(found["mrr@3"].value)
    assert (found["mrr@3"].count, found["mrr@3"].excluded) == (0, 1)


# Ranking: an independent implementation.


def numpy_metric(name: str, k: int, grades: np.ndarray, highest: float) -> float:
    """One metric of one list, grades from the top."""
    discount = 1 / np.log2(np.arange(2, len(grades) + 2))
    top = np.arange(len(grades)) < k
    if name in ("dcg", "ndcg"):
        dcg = sum((gain(grades) * discount)[top])
        return dcg if name == "dcg" else dcg / sum((gain(np.sort(grades)[::-1]) * discount)[top])
    relevant = grades >= 1
    if name == "mrr":
        return next((1 / (i + 1) for i in range(min(k, len(grades))) if relevant[i]), 0.0)
    if name == "map":
        precision = [relevant[: i + 1].mean() for i in range(min(k, len(grades))) if relevant[i]]
        return sum(precision) / relevant.sum()
    left, total = 1.0, 0.0
    for i, y in enumerate(grades[:k]):
        total += left * gain(y) / 2**highest / (i + 1)
        left *= 1 - gain(y) / 2**highest
    return total


@pytest.fixture(scope="module")
def random_lists() -> Sessions:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 14, 40)
    labels = [rng.integers(0, 4, n).astype(float) for n in lengths]
    scores = [rng.permutation(n).astype(float) for n in lengths]
    query = rng.permutation(1000)[:40]
    return Sessions.from_lists(labels=labels, features={"x": scores}, query=query).pad(rows=44, width=20)


def test_ranking_metrics_equal_an_independent_implementation(random_lists):
    names = [f"{m}@{k}" for m in ("ndcg", "dcg", "mrr", "map", "err") for k in (1, 3, 5, 10)]
    table = per_query(ByFeature(), random_lists, metrics=names, key=KEY)
    rows = {int(q): i for i, q in enumerate(random_lists.query) if random_lists.mask[i].any()}
    assert table["query"].tolist() == sorted(rows)
    for name in names:
        metric, k = name.split("@")
        for query, value in zip(table["query"], table[name], strict=True):
            mask = random_lists.mask[rows[query]]
            grades, scores = (
                random_lists.labels[rows[query]][mask],
                random_lists.features["x"][rows[query]][mask],
            )
            empty = not (grades >= 1).any()
            expected = math.nan if empty else numpy_metric(metric, int(k), grades[np.argsort(-scores)], 3)
            assert value == pytest.approx(expected, rel=1e-5, nan_ok=True), (name, query)


def test_long_lists_are_compared_in_parts():
    rng = np.random.default_rng(4)
    labels, scores = (
        rng.integers(0, 2, (130, 512)).astype(np.float32),
        rng.permuted(np.tile(np.arange(512.0, dtype=np.float32), (130, 1)), axis=1),
    )
    assert labels.size * 512 > 2**25
    lists = Sessions.from_lists(labels=labels, features={"x": scores})
    found = per_query(ByFeature(), lists, metrics=["map@20"], key=KEY)["map@20"]
    order = np.argsort(-scores, axis=1)
    expected = [numpy_metric("map", 20, y, 1) for y in np.take_along_axis(labels, order, axis=1)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_mean_and_standard_error_are_over_queries(random_lists):
    table = per_query(ByFeature(), random_lists, metrics=["ndcg@5"], key=KEY)
    kept = table["ndcg@5"][~np.isnan(table["ndcg@5"])]
    found = evaluate(ByFeature(), random_lists, metrics=["ndcg@5"], key=KEY)["ndcg@5"]
    assert found.value == pytest.approx(kept.mean())
    assert found.standard_error == pytest.approx(scipy.stats.sem(kept))
    low, high = scipy.stats.t.interval(0.95, len(kept) - 1, kept.mean(), scipy.stats.sem(kept))
    assert found.interval == pytest.approx((low, high))
    assert (found.count, found.excluded) == (len(kept), len(table["query"]) - len(kept))


def test_a_constant_scorer_gains_nothing_from_the_order_of_the_input():
    labels = [3.0, 2.0, 1.0, 0.0]
    lists = ranked([labels] * 4000, scores=[[1.0] * 4] * 4000)
    found = evaluate(ByFeature(), lists, metrics=["ndcg@2", "mrr@3"], key=KEY)
    for name, metric, k in (("ndcg@2", "ndcg", 2), ("mrr@3", "mrr", 3)):
        every = [numpy_metric(metric, k, np.array(p), 3) for p in itertools.permutations(labels)]
        assert abs(found[name].value - np.mean(every)) < 4 * found[name].standard_error
        assert found[name].standard_error < 0.01 < 1 - np.mean(every)


def test_only_equal_scores_are_ordered_by_the_key():
    lists = ranked([[0, 1, 2, 0]] * 200, scores=[[5, 1, 1, 1]] * 200)
    one, other = (
        per_query(ByFeature(), lists, metrics=["dcg@1", "dcg@2"], key=jax.random.key(seed)) for seed in (0, 1)
    )
    assert (one["dcg@1"] == 0).all()
    assert (one["dcg@2"] != other["dcg@2"]).any()


@pytest.mark.parametrize("ids", [True, False])
def test_ties_do_not_depend_on_batches_padding_or_neighbours(ids):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 30)
    labels = [rng.integers(0, 3, n).astype(float) for n in lengths]
    query = rng.permutation(30).tolist() if ids else None
    lists = ranked(labels, scores=[[0.0] * n for n in lengths], query=query)
    metrics = ["dcg@3"]
    whole = per_query(ByFeature(), InMemory(lists), metrics=metrics, key=KEY, batch_size=64)
    small = per_query(ByFeature(), InMemory(lists), metrics=metrics, key=KEY, batch_size=7)
    wide = per_query(ByFeature(), lists.pad(rows=37, width=16), metrics=metrics, key=KEY)
    for other in (small, wide):
        for name, column in whole.items():
            np.testing.assert_allclose(column, other[name], rtol=1e-6, err_msg=name)
    if ids:
        backwards = per_query(ByFeature(), lists[::-1], metrics=metrics, key=KEY)
        np.testing.assert_allclose(whole["dcg@3"], backwards["dcg@3"], rtol=1e-6)


def test_a_legacy_key_works_too():
    lists = ranked([[0, 1]] * 8, scores=[[0, 0]] * 8)
    one, other = (values(lists, AT_3, key=key) for key in (jax.random.PRNGKey(3), jax.random.key(3)))
    assert one == other


def test_several_lists_of_one_query_count_once():
    lists = ranked([[1, 0], [0, 1], [1, 0]], query=[5, 5, 9])
    table = per_query(ByFeature(), lists, metrics=AT_3, key=KEY)
    assert table["query"].tolist() == [5, 9]
    assert table["mrr@3"].tolist() == [(1 + 1 / 2) / 2, 1]
    assert evaluate(ByFeature(), lists, metrics=AT_3, key=KEY)["mrr@3"].count == 2


class Fixed:
    def __init__(self, scores) -> None:
        self.scores = np.asarray(scores)

    def score(self, sessions: Sessions):
        return self.scores


def test_scores_of_minus_infinity_rank_last_and_nan_is_an_error():
    one = Sessions.from_lists(labels=[[0, 1]], query=[4])
    assert values(one, ["mrr@2"], model=Fixed([[-np.inf, 0.0]])) == {"mrr@2": 1}
    with pytest.raises(DataError, match="as NaN, first in query 4"):
        values(one, ["mrr@2"], model=Fixed([[0.0, np.nan]]))
    with pytest.raises(ConfigError, match=r"expected \[B, K\] = \(1, 2\), found \(1,\)"):
        values(one, ["mrr@2"], model=Fixed([0.0]))
    padded = one.pad(width=3)
    assert values(padded, ["mrr@2"], model=Fixed([[0.0, 1.0, np.nan]])) == {"mrr@2": 1}


class Log(ClickLog):
    """A click log in memory: sessions, and the judged candidates of more queries than this part of it shows."""

    def __init__(self, sessions: Sessions, judged: Any) -> None:
        self._shown, self._judged = InMemory(sessions), judged
        self.metadata = {"impression_features": []}

    @property
    def input_schema(self) -> Any:
        return None

    def __len__(self) -> int:
        return len(self._shown)

    def batches(self, batch_size, *, seed=None, share_features=False):
        return self._shown.batches(batch_size, seed=seed)

    def collection(self) -> Any:
        return self._judged

    def with_sessions(self) -> Any:
        return self

    def columns(self, names):
        for query in present(self._shown.sessions.query):
            yield pa.RecordBatch.from_pydict({"query": [query]})


def test_a_log_is_ranked_once_per_shown_query_over_its_judged_candidates():
    shown = ranked([[0.0], [0.0], [0.0]], query=[1, 1, 3]).replace(clicks=np.zeros((8, 8), np.int8))[:3]
    judged = ranked([[1, 0], [0, 1], [1, 0], [0, 0, 1]], query=[0, 1, 2, 3])
    log = Log(shown, InMemory(judged))
    table = per_query(ByFeature(), log, metrics=AT_3, key=KEY, batch_size=8)
    assert table["query"].tolist() == [1, 3]
    assert table["mrr@3"] == pytest.approx([1 / 2, 1 / 3])
    assert evaluate(ByFeature(), log, metrics=AT_3, key=KEY, batch_size=8)["mrr@3"].count == 2


def test_ranking_and_click_metrics_share_one_table_of_queries():
    class Both(ByFeature, Coin):
        pass

    shown = ranked([[0.0], [0.0], [0.0]], query=[1, 7, 3]).replace(clicks=np.zeros((8, 8), np.int8))[:3]
    log = Log(shown, InMemory(ranked([[1, 0], [0, 1]], query=[1, 3])))
    table = per_query(Both(0.5), log, metrics=["mrr@3", "log_likelihood"], key=KEY, batch_size=8)
    assert table["query"].tolist() == [1, 3, 7]
    assert table["mrr@3"].tolist() == pytest.approx([1, 1 / 2, math.nan], nan_ok=True)
    assert table["log_likelihood"] == pytest.approx(math.log(0.5))


# Intervals: as wide as before, and within what a metric can be.


@pytest.mark.parametrize(
    ("metric", "grades", "least", "most"),
    [
        ("ndcg@2", [[1, 0]] * 4 + [[0, 1]], 0.0, 1.0),
        ("mrr@2", [[1, 0]] * 4 + [[0, 1]], 0.0, 1.0),
        ("err@2", [[2, 0]] * 4 + [[1, 0]], 0.0, 1.0),
        ("mrr@1", [[1, 0]] + [[0, 1]] * 4, 0.0, 1.0),
        ("dcg@1", [[1, 0]] + [[0, 1]] * 4, 0.0, math.inf),
    ],
)
def test_intervals_are_cut_off_at_what_a_metric_can_be(metric, grades, least, most):
    found = evaluate(ByFeature(), ranked(grades), metrics=[metric], key=KEY)[metric]
    reach = scipy.stats.t.ppf(0.975, len(grades) - 1) * found.standard_error
    assert found.interval == pytest.approx((max(found.value - reach, least), min(found.value + reach, most)))
    if metric != "err@2":
        assert found.value - reach < least or found.value + reach > most  # it would reach beyond


def test_cut_intervals_of_a_mean_near_the_bound_cover_as_much():
    rng = np.random.default_rng(8)
    chance, hits, plain = 0.6, 0, 0
    for _ in range(400):
        first = rng.random(40) < chance  # mrr@2 is 1 or 1/2
        values = np.where(first, 1.0, 0.5)
        cut, whole = Estimate.mean(values, bounds=(0.0, 1.0)), Estimate.mean(values)
        truth = 0.5 + chance / 2
        hits += cut.interval[0] <= truth <= cut.interval[1]
        plain += whole.interval[0] <= truth <= whole.interval[1]
    assert hits == plain
    assert hits / 400 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)
