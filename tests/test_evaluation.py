"""Metrics against hand formulas and a separate NumPy implementation; uncertainty against the bootstrap."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from flax import nnx

from ultr import models, towers
from ultr.data import InMemory
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate, evaluate, paired_difference, per_query
from ultr.sessions import Sessions

KEY = jax.random.key(7)
AT_3 = ["dcg@3", "ndcg@3", "mrr@3", "map@3", "err@3"]


class ByFeature:
    """Ranks by the feature `x`, a plain NumPy object as a wrapped foreign ranker would be."""

    def score(self, sessions: Sessions) -> Any:
        return np.asarray(sessions.features["x"])


class Coins:
    """Independent clicks with log-probabilities [B, K]; with `one_click`, two clicks cannot happen."""

    def __init__(self, log_click, mask, one_click: bool = False) -> None:
        self.log_click, self.mask, self.one_click = log_click, mask, one_click

    def marginal(self):
        return np.where(self.mask, self.log_click, -np.inf)

    def conditional(self, clicks):
        return self.marginal()

    def log_prob(self, clicks):
        each = np.where(clicks != 0, self.log_click, np.log(-np.expm1(self.log_click)))
        possible = (clicks * self.mask).sum(1) <= (1 if self.one_click else np.inf)
        return np.where(possible, (each * self.mask).sum(1), -np.inf)


class Coin:
    def __init__(self, probability: float, *, one_click: bool = False) -> None:
        self.probability, self.one_click = probability, one_click

    def __call__(self, sessions: Sessions) -> Coins:
        return Coins(np.full(sessions.shape, np.log(self.probability)), sessions.mask, self.one_click)


class Tabled:
    """Independent clicks with rates by position."""

    rates = np.array([0.5, 0.3, 0.25, 0.2, 0.4])

    def __call__(self, sessions: Sessions) -> Coins:
        return Coins(np.log(self.rates[np.minimum(sessions.position, 4)]), sessions.mask)


class RankTable(nnx.Module):
    """Logit by position; with dropout, which an evaluation must switch off."""

    def __init__(self, logits, rngs: nnx.Rngs | None = None) -> None:
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))
        self.dropout = nnx.Dropout(0.5, rngs=rngs or nnx.Rngs(0))

    def __call__(self, sessions: Sessions):
        return self.dropout(self.logits[...][sessions.position])


class DocumentTable(nnx.Module):
    def __init__(self, logits) -> None:
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, sessions: Sessions):
        return self.logits[...][sessions.features["document"]]


def ranked(labels, scores=None, **fields) -> Sessions:
    """Lists whose best-scored document stands first, unless scores say otherwise."""
    scores = [list(range(len(row), 0, -1)) for row in labels] if scores is None else scores
    return Sessions.from_lists(labels=labels, features={"x": scores}, **fields).pad(rows=8, width=8)


def values(data, metrics, model=None, **options) -> dict[str, float]:
    found = evaluate(model or ByFeature(), data, metrics=metrics, **{"key": KEY} | options)
    return {name: e.value for name, e in found.items()}


# Ranking: hand-computed lists.


def gain(y):
    return 2**y - 1


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
    with pytest.raises(DataError, match="at most max_grade = 1, found 2"):
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


class Log(InMemory):
    """A click log's shape: sessions, and the judged candidates of more queries than this part of it shows."""

    def __init__(self, sessions: Sessions, judged: InMemory | None) -> None:
        super().__init__(sessions)
        self._judged = judged

    def collection(self) -> InMemory | None:
        return self._judged

    def columns(self, names):
        for query in self.sessions.query:
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


# Clicks.

PERPLEXITIES = ["perplexity", "conditional_perplexity"]
CLICKS = ["log_likelihood", "log_likelihood_per_document", *PERPLEXITIES]
JOINT = [name for name in CLICKS if name != "perplexity"]  # what leaves out impossible sessions
EVERY_RANK = [*CLICKS, *(f"{name}/rank" for name in PERPLEXITIES)]


def entropy(p):
    """Of a coin, in bits."""
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def test_a_coin_that_fits_has_perplexity_two_to_the_entropy():
    clicks = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # a quarter at each rank
    found = evaluate(Coin(1 / 4), Sessions.from_lists(clicks=clicks), metrics=EVERY_RANK, key=KEY)
    nats = -entropy(1 / 4) * math.log(2)
    expected = {"log_likelihood": 4 * nats, "log_likelihood_per_document": nats}
    for name in PERPLEXITIES:
        expected |= dict.fromkeys([name, *(f"{name}/rank-{k}" for k in (1, 2, 3, 4))], 2 ** entropy(1 / 4))
    assert {name: e.value for name, e in found.items()} == pytest.approx(expected, rel=1e-6)
    assert found["log_likelihood"].standard_error == pytest.approx(0, abs=1e-6)  # one click in every list
    assert found["perplexity/rank-2"].standard_error > 0.1


def test_a_coin_that_does_not_fit():
    lists = Sessions.from_lists(clicks=[[1, 1], [1, 0], [0, 0]])
    found = values(lists, ["perplexity", "perplexity/rank-2", "log_likelihood"], model=Coin(0.8))
    first, second = (
        2 ** -((2 * np.log2(0.8) + np.log2(0.2)) / 3),
        2 ** -((np.log2(0.8) + 2 * np.log2(0.2)) / 3),
    )
    assert found == pytest.approx(
        {
            "perplexity": (first + second) / 2,
            "perplexity/rank-2": second,
            "log_likelihood": (3 * math.log(0.8) + 3 * math.log(0.2)) / 3,
        }
    )


def ragged(n: int = 300, *, seed: int = 0, queries: int = 40) -> Sessions:
    """Lists of 1 to 5 documents whose click rate depends on the query."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, n)
    query = rng.integers(0, queries, n)
    rate = rng.beta(2, 4, queries)[query]
    clicks = [(rng.random(k) < p).astype(int) for k, p in zip(lengths, rate, strict=True)]
    return Sessions.from_lists(clicks=clicks, query=query)


def test_ranks_count_the_sessions_that_show_them():
    lists = ragged()
    found = evaluate(Coin(0.3), lists.pad(rows=310, width=9), metrics=["perplexity", "perplexity/rank"], key=KEY)
    shown = lists.mask.sum(0)
    assert list(found) == ["perplexity", *(f"perplexity/rank-{k}" for k in range(1, 6))]
    for k in range(5):
        clicks = lists.clicks[lists.mask[:, k], k]
        log2 = np.where(clicks == 1, np.log2(0.3), np.log2(0.7))
        at = found[f"perplexity/rank-{k + 1}"]
        assert at.count == shown[k]
        assert at.value == pytest.approx(2 ** -log2.mean(), rel=1e-6)
        # The delta method for one exponential of a mean: d 2^-m = -ln 2 2^-m dm.
        assert at.standard_error == pytest.approx(math.log(2) * at.value * scipy.stats.sem(log2), rel=1e-5)
    assert found["perplexity"].count == 300
    assert found["perplexity"].value == pytest.approx(
        np.mean([found[f"perplexity/rank-{k}"].value for k in range(1, 6)])
    )


def test_ranks_are_those_displayed_whatever_the_batch_showed_before():
    one = Sessions.from_lists(clicks=[[1, 0], [0, 0]], positions=[[60, 70], [0, 60]])
    found = evaluate(Coin(0.3), InMemory(one), metrics=["perplexity/rank"], key=KEY, batch_size=1)
    assert {name: e.count for name, e in found.items()} == {
        "perplexity/rank-1": 1,
        "perplexity/rank-61": 2,
        "perplexity/rank-71": 1,
    }
    assert found["perplexity/rank-61"].value == pytest.approx(2 ** -((np.log2(0.3) + np.log2(0.7)) / 2))
    with pytest.raises(DataError, match=r"no session shows rank 3.*go from 1 to 71"):
        evaluate(Coin(0.3), one, metrics=["perplexity/rank-3"], key=KEY)


@pytest.mark.parametrize("cluster", ["session", "query"])
def test_batches_and_padding_change_nothing(cluster):
    lists, model = ragged(), Tabled()
    whole = evaluate(model, lists, metrics=EVERY_RANK, key=KEY, cluster=cluster)
    for data in (InMemory(lists), InMemory(lists.pad(rows=307, width=8))):
        for size in (64, 150):
            parts = evaluate(model, data, metrics=EVERY_RANK, key=KEY, cluster=cluster, batch_size=size)
            assert same(parts, whole)


def same(a: dict[str, Estimate], b: dict[str, Estimate]) -> bool:
    def numbers(e: Estimate) -> tuple:
        return e.value, e.standard_error, *e.interval, e.count, e.excluded

    return list(a) == list(b) and all(
        numbers(a[name]) == pytest.approx(numbers(b[name]), rel=1e-6, abs=1e-7, nan_ok=True) for name in a
    )


@pytest.mark.parametrize("cluster", ["session", "query"])
def test_a_weight_is_so_many_identical_sessions(cluster):
    lists = ragged(120)
    weight = np.random.default_rng(1).integers(0, 5, 120)
    weighted = lists.replace(weight=weight.astype(np.float32))
    repeated = lists[np.repeat(np.arange(120), weight)]
    one, other = (
        evaluate(Tabled(), data, metrics=EVERY_RANK, key=KEY, cluster=cluster) for data in (weighted, repeated)
    )
    assert one["log_likelihood"].count == weight.sum()
    assert same(one, other)


def numpy_clicks(terms: np.ndarray, mask: np.ndarray, times: np.ndarray) -> list[float]:
    """The click metrics [of CLICKS, without the conditional] where session i counts times[i] times."""
    total = (terms * mask).sum(1) @ times
    at_rank = (terms * mask * times[:, None]).sum(0) / (mask * times[:, None]).sum(0)
    return [total / times.sum(), total / (mask.sum(1) @ times), np.exp(-at_rank).mean()]


@pytest.mark.parametrize("cluster", ["session", "query"])
def test_standard_errors_agree_with_the_bootstrap(cluster):
    lists, rng = ragged(1500, seed=2, queries=60), np.random.default_rng(5)
    found = evaluate(Tabled(), lists, metrics=CLICKS[:3], key=KEY, cluster=cluster)
    rates = Tabled.rates[lists.position]
    terms = np.where(lists.clicks == 1, np.log(rates), np.log1p(-rates))
    unit = np.arange(1500) if cluster == "session" else lists.query
    draws = [
        numpy_clicks(terms, lists.mask, rng.multinomial(n, np.full(n, 1 / n))[unit])
        for n in [unit.max() + 1]
        for _ in range(1500)
    ]
    plain = numpy_clicks(terms, lists.mask, np.ones(1500))
    for name, value, spread in zip(CLICKS, plain, np.std(draws, axis=0), strict=False):
        assert found[name].value == pytest.approx(value, rel=1e-6)
        assert found[name].standard_error == pytest.approx(spread, rel=0.1), name


def test_sessions_of_one_query_are_not_independent():
    lists = ragged(1500, seed=2, queries=60)
    by = {
        cluster: evaluate(Tabled(), lists, metrics=["perplexity"], key=KEY, cluster=cluster)["perplexity"]
        for cluster in ("session", "query")
    }
    assert by["query"].value == pytest.approx(by["session"].value)
    assert by["query"].standard_error > 1.3 * by["session"].standard_error
    assert by["query"].count == by["session"].count == 1500


def test_each_session_its_own_query_is_the_same_as_no_clusters():
    lists = ragged(1500).replace(query=np.random.default_rng(0).permutation(1500).astype(np.int32))
    assert same(*(evaluate(Tabled(), lists, metrics=EVERY_RANK, key=KEY, cluster=c) for c in ("session", "query")))


def test_impossible_sessions_are_left_out_and_counted():
    clicks = [[1, 0], [1, 1], [0, 0], [1, 1]]
    lists = Sessions.from_lists(clicks=clicks, weight=[1, 2, 1, 1], query=[0, 0, 1, 2])
    possible = lists[np.array([0, 2])]
    model = Coin(0.3, one_click=True)
    found = evaluate(model, lists, metrics=CLICKS, key=KEY)
    for name, expected in evaluate(model, possible, metrics=JOINT, key=KEY).items():
        assert found[name].value == pytest.approx(expected.value)
        assert (found[name].count, found[name].excluded) == (2, 3)
    nothing = evaluate(model, lists[1:2], metrics=JOINT, key=KEY)
    assert all(math.isnan(e.value) and (e.count, e.excluded) == (0, 2) for e in nothing.values())
    table = per_query(model, lists, metrics=CLICKS, key=KEY)
    assert table["query"].tolist() == [0, 1, 2]  # the same for every model
    for name in JOINT:
        assert np.isnan(table[name]).tolist() == [False, False, True]


def test_marginal_perplexity_is_over_all_sessions_for_any_model():
    lists = Sessions.from_lists(clicks=[[1, 0], [1, 1], [0, 0], [1, 1]], weight=[1, 2, 1, 1], query=[0, 0, 1, 2])
    one_click, free = (
        evaluate(Coin(0.3, one_click=limit), lists, metrics=["perplexity", "perplexity/rank"], key=KEY)
        for limit in (True, False)
    )
    assert same(one_click, free)
    assert {(e.count, e.excluded) for e in one_click.values()} == {(5, 0)}
    # 4 of 5 clicks at rank 1, 3 of 5 at rank 2.
    expected = [2 ** -(n / 5 * np.log2(0.3) + (1 - n / 5) * np.log2(0.7)) for n in (4, 3)]
    assert one_click["perplexity"].value == pytest.approx(np.mean(expected))
    table = per_query(Coin(0.3, one_click=True), lists, metrics=["perplexity"], key=KEY)
    assert table["perplexity"][2] == pytest.approx(1 / 0.3)


def test_one_session_has_a_value_and_no_standard_error():
    found = evaluate(Coin(0.5), Sessions.from_lists(clicks=[[1]]), key=KEY)
    assert found["log_likelihood"].value == pytest.approx(math.log(0.5))
    assert found["perplexity"].value == pytest.approx(2)
    for e in found.values():
        assert math.isnan(e.standard_error)
        assert e.to_json()["interval"] == [None, None]
        assert str(e) == f"{e.value:.4f} ± -"


def test_nan_is_an_error():
    lists = Sessions.from_lists(clicks=[[1], [0]])
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(DataError, match="2 of 2 sessions of a batch a log-prob"),
    ):
        evaluate(Coin(math.nan), lists, metrics=["log_likelihood"], key=KEY)


def test_perplexity_per_query_is_that_of_its_sessions():
    lists = ragged(60, queries=4)
    table = per_query(Tabled(), lists, metrics=CLICKS, key=KEY)
    for row, query in enumerate(table["query"]):
        own = evaluate(Tabled(), lists[lists.query == query].pad(rows=60), metrics=CLICKS, key=KEY)
        assert {n: table[n][row] for n in CLICKS} == pytest.approx({n: own[n].value for n in CLICKS})


# The models of the toolkit.


def test_the_true_model_reaches_the_entropy_of_the_process():
    examination, relevance = np.array([2.0, 0.5, -0.5, -1.0]), np.array([0.0, 1.0, -1.0, 0.5, 2.0])
    model = models.PBM(relevance=DocumentTable(relevance), examination=RankTable(examination))
    n = 20_000
    lists = Sessions(
        mask=np.ones((n, 4), bool),
        position=np.tile(np.arange(4, dtype=np.int32), (n, 1)),
        features={"document": np.tile(np.array([1, 2, 3, 4], np.int32), (n, 1))},
    )
    evaluated = nnx.merge(*nnx.split(model))
    evaluated.eval()
    lists = lists.replace(clicks=np.asarray(evaluated(lists).sample(jax.random.key(1))))
    found = evaluate(model, lists, key=KEY)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    bits = entropy(sigmoid(examination) * sigmoid(relevance[1:]))
    expected = {"log_likelihood": -bits.sum() * math.log(2), "perplexity": np.mean(2**bits)}
    expected |= {f"conditional_perplexity/rank-{k + 1}": 2 ** bits[k] for k in range(4)}
    for name, value in expected.items():
        assert found[name].standard_error < 0.02
        assert abs(found[name].value - value) < 4 * found[name].standard_error, name
    assert found["perplexity"].value == pytest.approx(found["conditional_perplexity"].value)


def test_dropout_is_off_during_evaluation_and_the_model_stays_in_training():
    model = models.RCTR(RankTable([0.3, -0.5, -1.0, -1.0, -1.0]))
    one, other = (evaluate(model, ragged(), metrics=CLICKS, key=KEY) for _ in range(2))
    assert same(one, other)
    rates = 1 / (1 + np.exp(-np.array([0.3, -0.5])))
    at_2 = ragged().clicks[ragged().mask[:, 1], 1].mean()
    assert evaluate(model, ragged(), metrics=["perplexity/rank-2"], key=KEY)["perplexity/rank-2"].value == (
        pytest.approx(2 ** -(at_2 * np.log2(rates[1]) + (1 - at_2) * np.log2(1 - rates[1])), rel=1e-5)
    )
    assert not model.tower.function.dropout.deterministic


def test_a_cascade_predicts_better_from_the_clicks_above():
    def documents(lists: Sessions) -> Sessions:
        return lists.replace(features={"document": np.where(lists.mask, lists.position + 1, 0)})

    clicks = [[1, 0, 0]] * 30 + [[0, 1, 0]] * 20 + [[0, 0, 1]] * 20 + [[0, 0, 0]] * 20 + [[1, 1, 0]] * 5
    lists = documents(Sessions.from_lists(clicks=clicks))
    # The maximum of the likelihood by counting: clicks over examinations up to the first click.
    attraction = np.array([30 / 90, 20 / 60, 20 / 40])
    model = models.CascadeModel(relevance=DocumentTable(np.log(np.append(0.5, attraction / (1 - attraction)))))
    found = evaluate(model, lists, key=KEY)
    assert {name: found[name].excluded for name in CLICKS} == {"perplexity": 0} | dict.fromkeys(JOINT, 5)
    bits = 90 * entropy(1 / 3), 60 * entropy(1 / 3), 40 * entropy(1 / 2)
    assert found["log_likelihood"].value == pytest.approx(-sum(bits) * math.log(2) / 90, rel=1e-5)
    expected = np.mean([2 ** (b / 90) for b in bits])
    assert found["conditional_perplexity"].value == pytest.approx(expected, rel=1e-5)
    # By marginals over all 95 sessions, those with two clicks among them.
    seen, told = np.array([35, 25, 20]) / 95, np.array([30, 20, 20]) / 90
    marginal = np.mean(2 ** -(seen * np.log2(told) + (1 - seen) * np.log2(1 - told)))
    assert found["perplexity"].value == pytest.approx(marginal, rel=1e-5)
    assert expected < marginal


def test_a_probability_that_rounds_to_one_keeps_its_complement():
    # In float32 log sigmoid(200) is 0: what is left for "no click" is lost in log P(click), not in the logit.
    model = models.RCTR(RankTable([200.0, 0.0]))
    lists = Sessions.from_lists(clicks=[[0, 1], [1, 1], [1, 0]])
    found = evaluate(model, lists, metrics=EVERY_RANK, key=KEY)
    assert found["log_likelihood"].value == pytest.approx((-200 + 3 * math.log(0.5)) / 3)
    for name in PERPLEXITIES:
        assert found[f"{name}/rank-1"].value == pytest.approx(math.exp(200 / 3), rel=1e-5)
        assert found[f"{name}/rank-2"].value == pytest.approx(2)
    assert {(e.count, e.excluded) for e in found.values()} == {(3, 0)}


def test_perplexity_does_not_improve_as_a_model_gets_worse():
    lists = Sessions.from_lists(clicks=[[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    clicked = np.mean(np.asarray(lists.clicks))

    class Wrong(nnx.Module):  # compiled, unlike a function
        def __init__(self, logit: float) -> None:
            self.logit = logit

        def __call__(self, sessions: Sessions):
            return jnp.full(sessions.shape, self.logit)

    before = dict.fromkeys(PERPLEXITIES, 1.0)
    for logit in (1.0, 5.0, 20.0, 100.0, 500.0):
        found = evaluate(models.DCTR(Wrong(logit)), lists, metrics=CLICKS, key=KEY)
        assert found["log_likelihood_per_document"].value == pytest.approx(
            -(clicked * np.logaddexp(0, -logit) + (1 - clicked) * np.logaddexp(0, logit)), rel=1e-5
        )
        for name in PERPLEXITIES:
            assert (found[name].count, found[name].excluded) == (4, 0)
            assert found[name].value > before[name]
            assert math.isfinite(found[name].standard_error)
            before[name] = found[name].value
    for tower in (Wrong(1e4), lambda b: jnp.full(b.shape, 1e4)):
        found = evaluate(models.DCTR(tower), lists, metrics=EVERY_RANK, key=KEY)
        for name in PERPLEXITIES:
            assert (found[name].value, found[name].count, found[name].excluded) == (math.inf, 4, 0)
            assert math.isnan(found[name].standard_error)
            assert found[name].to_json()["value"] is None


@pytest.mark.parametrize("cluster", ["session", "query"])
def test_what_a_model_rules_out_makes_its_rank_infinite_and_no_other(cluster):
    class Sure(Coin):
        """Sure of a click at rank 2, with nothing but log P(click) to tell."""

        def __call__(self, sessions: Sessions) -> Coins:
            rate = np.where(sessions.position == 1, 1.0, self.probability)
            with np.errstate(divide="ignore"):
                coins = Coins(np.log(rate), sessions.mask)
                coins.log_prob = lambda clicks: np.log(np.where((clicks[:, 1] == 0), 0.0, 0.5))
            return coins

    lists = Sessions.from_lists(clicks=[[1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 1, 0]], query=[4, 9, 9, 7])
    with np.errstate(divide="ignore"):
        found = evaluate(Sure(0.3), lists, metrics=EVERY_RANK, key=KEY, cluster=cluster, batch_size=2)
        coin = evaluate(Coin(0.3), lists, metrics=EVERY_RANK, key=KEY, cluster=cluster)
        table = per_query(Sure(0.3), lists, metrics=[*PERPLEXITIES, "perplexity/rank-2"], key=KEY)
    assert found["perplexity"].value == found["perplexity/rank-2"].value == math.inf
    assert math.isnan(found["perplexity/rank-2"].standard_error)
    for rank in (1, 3):
        assert same(*({"": e[f"perplexity/rank-{rank}"]} for e in (found, coin)))
        assert math.isfinite(found[f"perplexity/rank-{rank}"].standard_error)
    # Given the clicks above, the session is one that the model cannot produce.
    assert found["conditional_perplexity/rank-2"].value == 1
    assert (found["conditional_perplexity"].count, found["conditional_perplexity"].excluded) == (3, 1)
    assert table["query"].tolist() == [4, 7, 9]
    assert np.isinf(table["perplexity"]).tolist() == [False, False, True]
    assert table["perplexity/rank-2"].tolist() == [1, 1, math.inf]


def test_marginals_that_round_to_one_are_no_less_than_what_was_observed():
    # Examined and attractive beyond what float32 can tell from certain, at the first two ranks.
    def wide(sessions: Sessions):
        return jnp.where(sessions.position < 2, 60.0, 0.0)

    lists = Sessions.from_lists(clicks=[[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]])
    model = models.Mixture(components=[models.DCTR(wide), models.DCTR(wide)], prior_logits=jnp.zeros(2))
    mixed = evaluate(model, lists, metrics=EVERY_RANK, key=KEY)
    single = evaluate(models.DCTR(wide), lists, metrics=EVERY_RANK, key=KEY)
    for name in ("conditional_perplexity", "perplexity/rank-1"):
        assert mixed[name].value == pytest.approx(single[name].value, rel=1e-4)
    # P(no click at rank 2) is lost; with what was observed above it is e^-60 after a click, else e^-120.
    assert math.log(mixed["perplexity/rank-2"].value) == pytest.approx((60 + 120) / 4)
    assert {(e.count, e.excluded) for e in mixed.values()} == {(4, 0)}


# What is asked and what can be given.


def test_defaults_are_what_model_and_data_allow():
    clicks, labels = {"clicks": [[1, 0]]}, {"labels": [[1.0, 0.0]]}
    x = {"features": {"x": [[1.0, 0.0]]}}
    ranking = {f"{m}@{k}" for m in ("ndcg", "dcg", "mrr", "map", "err") for k in (1, 3, 5, 10)}
    click = {*CLICKS, *(f"{name}/rank-{k}" for name in PERPLEXITIES for k in (1, 2))}

    class Both(ByFeature, Coin):
        pass

    both = Sessions.from_lists(**clicks, **labels, **x)
    assert set(evaluate(Both(0.5), both, key=KEY)) == ranking | click
    assert set(evaluate(ByFeature(), both, key=KEY)) == ranking
    assert set(evaluate(Coin(0.5), both, key=KEY)) == click
    assert set(evaluate(Both(0.5), Sessions.from_lists(**labels, **x), key=KEY)) == ranking
    with pytest.raises(DataError, match=r"nothing to evaluate: Coin has no method score.*the data has no clicks"):
        evaluate(Coin(0.5), Sessions.from_lists(**labels), key=KEY)


class Linear(nnx.Module):
    """A ranker whose call takes an array, not sessions."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(1))

    def __call__(self, x):
        return jnp.tanh(x) * self.weight[...][None]

    def score(self, sessions: Sessions):
        return self(sessions.features["x"])


def test_a_module_that_is_called_with_something_else_is_a_ranker():
    both = ranked([[1, 0]]).replace(clicks=np.zeros((8, 8), np.int8))
    assert {name.split("@")[0] for name in evaluate(Linear(), both, key=KEY)} == {
        "ndcg",
        "dcg",
        "mrr",
        "map",
        "err",
    }
    with pytest.raises(DataError, match="'perplexity' cannot be computed: Linear cannot be called as a click model"):
        evaluate(Linear(), both, metrics=["perplexity"], key=KEY)


@pytest.mark.parametrize(
    ("model", "fields", "metric", "reason"),
    [
        (ByFeature(), {"clicks": [[1]]}, "ndcg@3", "the data has no labels"),
        (Coin(0.5), {"labels": [[1.0]]}, "ndcg@3", "Coin has no method score"),
        (Coin(0.5), {"labels": [[1.0]]}, "perplexity", "the data has no clicks"),
        (ByFeature(), {"clicks": [[1]]}, "log_likelihood", "ByFeature is not a click model"),
    ],
)
def test_a_metric_that_cannot_be_given_says_why(model, fields, metric, reason):
    with pytest.raises(DataError, match=f"metric '{metric}' cannot be computed: {reason}"):
        evaluate(model, Sessions.from_lists(**fields), metrics=[metric], key=KEY)


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg@0", "ndcg@-1", "perplexity@3", "perplexity/rank-0"])
def test_unknown_metrics_are_named_with_the_known(name):
    with pytest.raises(ConfigError, match=r"unknown metric '.*'; known: ndcg@k, .*perplexity/rank-k"):
        evaluate(Coin(0.5), Sessions.from_lists(clicks=[[1]]), metrics=[name], key=KEY)


def test_metric_names_are_strings_that_are_not_empty():
    one = Sessions.from_lists(clicks=[[1]])
    for metrics in (["ndcg@10", ""], [" "], ""):
        with pytest.raises(ConfigError, match="an empty metric name was given"):
            evaluate(Coin(0.5), one, metrics=metrics, key=KEY)
    with pytest.raises(ConfigError, match="expected metric names as strings, found 5"):
        evaluate(Coin(0.5), one, metrics=[5], key=KEY)
    with pytest.raises(ConfigError, match="expected metric names, found 5"):
        evaluate(Coin(0.5), one, metrics=5, key=KEY)


def test_unknown_options_and_empty_data_are_errors():
    one = Sessions.from_lists(clicks=[[1]])
    with pytest.raises(ConfigError, match="unknown empty_queries 'drop'; known: skip, zero, one"):
        evaluate(Coin(0.5), one, key=KEY, empty_queries="drop")
    with pytest.raises(ConfigError, match="unknown cluster 'user'; known: session, query"):
        evaluate(Coin(0.5), one, key=KEY, cluster="user")
    with pytest.raises(ConfigError, match="batch_size of at least 1, found 0"):
        evaluate(Coin(0.5), one, key=KEY, batch_size=0)
    with pytest.raises(DataError, match="at least one session or query"):
        evaluate(Coin(0.5), one[:0], key=KEY)
    with pytest.raises(DataError, match="field 'query': expected query ids"):
        evaluate(Coin(0.5), one, key=KEY, cluster="query")


# Estimates.


def test_a_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a = rng.normal(size=12)
    b = a + rng.normal(0.3, 0.4, 12)
    found, test = paired_difference(a, b), scipy.stats.ttest_rel(a, b)
    interval = test.confidence_interval()
    assert found.value == pytest.approx((a - b).mean())
    assert found.value / found.standard_error == pytest.approx(test.statistic)
    assert found.interval == pytest.approx((interval.low, interval.high))
    a[3] = b[5] = math.nan
    assert (paired_difference(a, b).count, paired_difference(a, b).excluded) == (10, 2)
    with pytest.raises(DataError, match=r"found \(12,\) and \(11,\)"):
        paired_difference(a, b[1:])


def test_the_interval_of_a_perplexity_is_symmetric_on_the_log_scale():
    found = evaluate(Coin(0.01), ragged(9), metrics=["perplexity"], key=KEY)["perplexity"]
    low, high = found.interval
    assert 1 < low < found.value < high
    assert low * high == pytest.approx(found.value**2)
    assert math.log(high / low) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 8) * found.standard_error / found.value)


def test_the_interval_of_a_perplexity_does_not_go_below_one():
    clicks = [[1], [0], [0], [0]]
    found = evaluate(Coin(0.2), Sessions.from_lists(clicks=clicks), metrics=["perplexity"], key=KEY)["perplexity"]
    reach = scipy.stats.t.ppf(0.975, 3) * found.standard_error / found.value
    assert found.value * math.exp(-reach) < 0.9
    assert found.interval == pytest.approx((1, found.value * math.exp(reach)))
    # Nothing left to predict.
    sure = evaluate(models.DCTR(lambda b: jnp.full(b.shape, -1e4)), ragged(9).replace(clicks=np.zeros((9, 5))), key=KEY)
    for name in PERPLEXITIES:
        assert (sure[name].value, sure[name].standard_error, sure[name].interval) == (1, 0, (1, 1))


def test_intervals_of_the_mean_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    trials = [Estimate.mean(rng.normal(2.0, 1.0, 5)).interval for _ in range(2000)]
    covered = np.mean([low < 2.0 < high for low, high in trials])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_estimates_print_and_become_json():
    e = Estimate.of(0.43119, 0.01234, count=200, excluded=3)
    assert str(e) == "0.4312 ± 0.0123"
    reach = scipy.stats.t.ppf(0.975, 199) * 0.01234
    assert json.loads(json.dumps(e.to_json(), allow_nan=False)) == {
        "value": 0.43119,
        "standard_error": 0.01234,
        "interval": pytest.approx([0.43119 - reach, 0.43119 + reach]),
        "count": 200,
        "excluded": 3,
    }
    nothing = Estimate.mean(np.zeros(0))
    assert json.dumps(nothing.to_json(), allow_nan=False).startswith('{"value": null')
    assert str(nothing) == "- ± -"
    assert str(Estimate.mean(np.array([0.5]))) == "0.5000 ± -"
    assert str(Estimate.of(math.inf, math.nan, count=3)) == "inf ± -"


def test_ids_beyond_the_tables_are_rejected() -> None:
    model = models.PBM(relevance=towers.DocumentTable(3), examination=towers.RankTable(2))
    lists = Sessions.from_lists(features={"document": [[1, 4]]}, clicks=[[0, 1]], labels=[[0, 1]])
    with pytest.raises(DataError, match="evaluation data, row 1, field 'document': expected ids up to 3"):
        evaluate(model, lists, key=jax.random.key(0))
    deep = Sessions.from_lists(features={"document": [[1, 2, 3]]}, clicks=[[0, 1, 0]], labels=[[0, 1, 0]])
    with pytest.raises(DataError, match="evaluation data, row 1, field 'rank': expected ranks up to 2"):
        evaluate(model, deep, metrics=["perplexity"], key=jax.random.key(0))
    # Candidates are not shown at ranks: a longer list is ranked all the same.
    assert evaluate(model, deep, metrics=["ndcg"], key=jax.random.key(0))["ndcg"].count == 1
