"""Click metrics against hand formulas; their uncertainty against the bootstrap."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from evaluated import (
    CLICKS,
    EVERY_RANK,
    JOINT,
    KEY,
    PERPLEXITIES,
    Coin,
    DocumentTable,
    IndependentClicks,
    RankTable,
    Tabled,
    ragged,
    same,
    values,
)
from flax import nnx
from narrowing import present

from ultr import models
from ultr.data import InMemory
from ultr.errors import DataError
from ultr.evaluation import evaluate, per_query
from ultr.sessions import Sessions


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


def test_ranks_count_the_sessions_that_show_them():
    lists = ragged()
    found = evaluate(Coin(0.3), lists.pad(rows=310, width=9), metrics=["perplexity", "perplexity/rank"], key=KEY)
    shown = lists.mask.sum(0)
    assert list(found) == ["perplexity", *(f"perplexity/rank-{k}" for k in range(1, 6))]
    for k in range(5):
        clicks = present(lists.clicks)[lists.mask[:, k], k]
        log2: Any = np.where(clicks == 1, np.log2(0.3), np.log2(0.7))
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


def numpy_clicks(terms: np.ndarray, mask: Any, times: np.ndarray) -> list[float]:
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
    unit: Any = np.arange(1500) if cluster == "session" else lists.query
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
    at_2 = present(ragged().clicks)[ragged().mask[:, 1], 1].mean()
    assert evaluate(model, ragged(), metrics=["perplexity/rank-2"], key=KEY)["perplexity/rank-2"].value == (
        pytest.approx(2 ** -(at_2 * np.log2(rates[1]) + (1 - at_2) * np.log2(1 - rates[1])), rel=1e-5)
    )
    assert not present(model.tower).function.dropout.deterministic


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

        def __call__(self, sessions: Sessions) -> IndependentClicks:
            rate = np.where(sessions.position == 1, 1.0, self.probability)
            with np.errstate(divide="ignore"):
                coins: Any = IndependentClicks(np.log(rate), sessions.mask)
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
