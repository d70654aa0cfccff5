"""What `evaluate` can be asked and what it refuses; estimates and their intervals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT
from evaluated import (
    CLICKS,
    KEY,
    PERPLEXITIES,
    ByFeature,
    Coin,
    ragged,
    ranked,
)
from flax import nnx

from ultr import models, towers
from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate, evaluate, paired_difference
from ultr.evaluation.metrics import METRICS, ClickMetric, RankingMetric, marginal_log_prob
from ultr.sessions import Sessions

# What is asked and what can be given.


def test_defaults_are_what_model_and_data_allow():
    clicks: Any = {"clicks": [[1, 0]]}
    labels: Any = {"labels": [[1.0, 0.0]]}
    x: Any = {"features": {"x": [[1.0, 0.0]]}}
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


def test_a_metric_is_a_function_and_a_row(monkeypatch):
    def hits(lists, cutoffs):
        return [jnp.sum((lists.labels >= 1) & (lists.ranks <= k), axis=1) for k in cutoffs]

    def no_click(predicted, sessions):
        return predicted.log_prob(np.zeros_like(sessions.clicks))

    rows = (
        RankingMetric("hits", "relevant documents within the cutoff", hits, bounded=False),
        ClickMetric("no_click", "mean ln P(no click)", no_click, average="sessions"),
        ClickMetric("marginal", "perplexity of marginals", marginal_log_prob, average="ranks"),
    )
    for row in rows:
        monkeypatch.setitem(METRICS, row.name, row)
    lists = ranked([[0, 1, 2], [1, 0, 0]])
    found = evaluate(ByFeature(), lists, metrics=["hits@2", "ndcg", "hits@3"], key=KEY)
    assert [found[name].value for name in ("hits@2", "hits@3")] == [1, 1.5]
    clicks = Sessions.from_lists(clicks=[[1, 0], [0, 1], [0, 0]])
    found = evaluate(Coin(0.2), clicks, metrics=["log_likelihood", "no_click", "marginal/rank-2", "perplexity/rank-2"],
                     key=KEY)  # fmt: skip
    assert found["no_click"].value == pytest.approx(2 * math.log(0.8))
    assert found["log_likelihood"].value == pytest.approx((2 * math.log(0.2) + 4 * math.log(0.8)) / 3)
    assert found["marginal/rank-2"].value == found["perplexity/rank-2"].value
    with pytest.raises(ConfigError, match=r"known: ndcg@k, .*hits@k, no_click, marginal, marginal/rank-k"):
        evaluate(Coin(0.2), clicks, metrics=["missing"], key=KEY)


def test_the_help_lists_every_metric_without_loading_jax():
    code = "import sys; from ultr import cli; cli.cli.main(['evaluate', '--help'], standalone_mode=False)"
    code += "; assert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    for metric in METRICS.values():
        assert all(form in shown for form in metric.forms)


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg@0", "ndcg@-1", "perplexity@3", "perplexity/rank-0"])
def test_unknown_metrics_are_named_with_the_known(name):
    with pytest.raises(ConfigError, match=r"unknown metric '.*'.*; known: ndcg@k, .*perplexity/rank-k"):
        evaluate(Coin(0.5), Sessions.from_lists(clicks=[[1]]), metrics=[name], key=KEY)


def test_metric_names_are_strings_that_are_not_empty():
    one = Sessions.from_lists(clicks=[[1]])
    for metrics in (["ndcg@10", ""], [" "], ""):
        with pytest.raises(ConfigError, match="an empty metric name was given"):
            evaluate(Coin(0.5), one, metrics=metrics, key=KEY)
    with pytest.raises(ConfigError, match="expected metric names as strings, found 5"):
        evaluate(Coin(0.5), one, metrics=cast(Any, [5]), key=KEY)
    with pytest.raises(ConfigError, match="expected metric names, found 5"):
        evaluate(Coin(0.5), one, metrics=cast(Any, 5), key=KEY)


def test_unknown_options_and_empty_data_are_errors():
    one = Sessions.from_lists(clicks=[[1]])
    with pytest.raises(ConfigError, match="unknown empty_queries 'drop'; known: skip, zero, one"):
        evaluate(Coin(0.5), one, key=KEY, empty_queries="drop")
    with pytest.raises(ConfigError, match="unknown cluster 'user'; known: session, query"):
        evaluate(Coin(0.5), one, key=KEY, cluster="user")
    with pytest.raises(ConfigError, match="batch_size as a whole number of at least 1, found 0"):
        evaluate(Coin(0.5), one, key=KEY, batch_size=0)
    with pytest.raises(DataError, match="at least one session or query"):
        evaluate(Coin(0.5), one[:0], key=KEY)
    with pytest.raises(DataError, match="field 'query': expected query ids"):
        evaluate(Coin(0.5), one, key=KEY, cluster="query")


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
