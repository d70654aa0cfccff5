"""Calibration against direct means over impressions, and what luck alone makes of it against simulation."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from narrowing import present
from stored import make_rows, plain, write_log

from ultr import models, towers
from ultr.errors import ConfigError, DataError
from ultr.evaluation import calibration
from ultr.sessions import Sessions


class Given:
    """Independent clicks with the chances of the feature `p`; scores are the feature `s`."""

    def __call__(self, sessions: Sessions):
        return Chances(np.asarray(sessions.features["p"], np.float64), np.asarray(sessions.mask))

    def score(self, sessions: Sessions):
        return np.asarray(sessions.features["s"])


class Chances:
    def __init__(self, p, mask) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            self.log = np.where(mask, np.log(np.where(mask, p, 0.5)), -np.inf)

    def marginal(self):
        return self.log

    def conditional(self, clicks):
        return self.log

    def observed(self, clicks):
        return np.zeros(clicks.shape)

    def log_prob(self, clicks):
        return np.zeros(len(clicks))


def sessions(p, clicks, **fields) -> Sessions:
    p = np.asarray(p, np.float32)
    features = {"p": p, "s": fields.pop("s", p)}
    return Sessions.from_lists(features=features, clicks=np.asarray(clicks).astype(int), **fields)


def drawn(rng, p, truth=None, **fields) -> Sessions:
    return sessions(p, rng.random(np.shape(p)) < (p if truth is None else truth), **fields)


def test_by_rank_are_means_over_impressions():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.6, (50, 3))
    clicks = rng.random((50, 3)) < 0.3
    cells = calibration(Given(), sessions(p, clicks)).by_rank
    assert cells.rank.tolist() == [1, 2, 3]
    assert cells.bin is None
    assert cells.count.tolist() == [50, 50, 50]
    rate = clicks.mean(0)
    assert cells.predicted == pytest.approx(p.mean(0), rel=1e-6)
    assert cells.observed == pytest.approx(rate)
    assert cells.standard_error == pytest.approx(np.sqrt(rate * (1 - rate) / 50))
    assert cells.error.value == pytest.approx(np.abs(rate - p.mean(0)).mean(), rel=1e-6)
    assert cells.floor == pytest.approx(np.mean(np.sqrt(2 / np.pi * (p * (1 - p)).mean(0) / 50)), rel=1e-5)


def test_bins_hold_equally_many_impressions_with_rising_predictions():
    rng = np.random.default_rng(1)
    log = drawn(rng, rng.uniform(0.01, 0.9, (4000, 2)))
    cells = calibration(Given(), log, bins=5).by_prediction
    assert cells.rank.tolist() == [1] * 5 + [2] * 5
    assert present(cells.bin).tolist() == [0, 1, 2, 3, 4] * 2
    assert np.abs(cells.count - 800).max() < 60
    p, clicks = log.features["p"], log.clicks
    for i in range(10):
        k = cells.rank[i] - 1
        inside = (p[:, k] > cells.low[i]) & (p[:, k] <= cells.high[i])
        assert cells.count[i] == inside.sum()
        assert cells.observed[i] == pytest.approx(present(clicks)[inside, k].mean())
        assert cells.predicted[i] == pytest.approx(p[inside, k].mean(), rel=1e-5)
    assert (cells.high[:4] <= cells.low[1:5]).all()


def test_right_on_average_and_wrong_for_good_and_bad_documents():
    rng = np.random.default_rng(2)
    truth = rng.choice([0.1, 0.5], (3000, 1))
    log = drawn(rng, np.where(truth > 0.3, 0.4, 0.2), truth=truth)  # means: (.1 + .5) / 2 = (.2 + .4) / 2
    found = calibration(Given(), log)
    assert abs(found.by_rank.excess) < 3
    assert found.by_prediction.excess > 10
    assert len(found.by_prediction.rank) == 2  # equal predictions stay together
    assert found.by_prediction.error.value == pytest.approx(0.1, abs=4 * found.by_prediction.error.standard_error)


def test_floor_and_excess_are_what_luck_alone_gives():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.5, (400, 3))
    found = [calibration(Given(), drawn(rng, p), bins=4).by_prediction for _ in range(200)]
    errors, excesses = np.array([c.error.value for c in found]), np.array([c.excess for c in found])
    assert errors.mean() == pytest.approx(found[0].floor, abs=4 * errors.std() / math.sqrt(200))
    assert abs(excesses.mean()) < 4 / math.sqrt(200)
    assert 0.8 < excesses.std() < 1.2


@pytest.mark.parametrize("cluster", ["session", "query"])
def test_standard_error_of_the_error_is_its_spread(cluster):
    rng = np.random.default_rng(4)

    def one():
        # Where queries count: each moves the clicks of its sessions.
        query = np.repeat(np.arange(200), 5)
        move = rng.uniform(-0.2, 0.2, (200, 1))[query] if cluster == "query" else 0.0
        p = np.full((1000, 3), 0.2)
        return calibration(Given(), drawn(rng, p, truth=p + 0.3 + move, query=query), cluster=cluster).by_rank.error

    found = [one() for _ in range(150)]
    spread = np.std([e.value for e in found])
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.2)
    assert np.mean([e.value for e in found]) == pytest.approx(0.3, abs=4 * spread / math.sqrt(150))


def test_weights_batches_and_padding_change_nothing():
    rng = np.random.default_rng(5)
    log = drawn(rng, rng.uniform(0.1, 0.5, (60, 4)), weight=rng.integers(0, 3, 60))
    repeated = log[np.repeat(np.arange(60), present(log.weight).astype(int))].replace(weight=None)
    whole = calibration(Given(), log, bins=3)
    for other in (
        calibration(Given(), repeated, bins=3),
        calibration(Given(), log, bins=3, batch_size=7),
        calibration(Given(), log.pad(rows=80, width=9), bins=3),
    ):
        for a, b in ((whole.by_rank, other.by_rank), (whole.by_prediction, other.by_prediction)):
            for name in ("rank", "predicted", "observed", "standard_error", "count"):
                assert getattr(a, name) == pytest.approx(getattr(b, name)), name
            assert (a.error.value, a.floor) == pytest.approx((b.error.value, b.floor))


def test_bins_of_relevance_are_the_same_at_all_ranks():
    rng = np.random.default_rng(6)
    score = rng.normal(size=(2000, 2)).astype(np.float32)
    chance = np.array([0.8, 0.4]) / (1 + np.exp(-score))
    cells = calibration(Given(), drawn(rng, chance, s=score), bins=4, by="relevance").by_prediction
    assert cells.low[:4] == pytest.approx(cells.low[4:], abs=0.02)
    middle = np.log(cells.high[:3] / (1 - cells.high[:3]))
    assert middle == pytest.approx(np.quantile(score, [0.25, 0.5, 0.75]), abs=0.05)
    assert abs(cells.excess) < 3.5


def test_a_cascade_before_and_after_the_clicks_above():
    class Fixed(nnx.Module):
        def __init__(self, logit) -> None:
            self.logit = nnx.Param(jnp.float32(logit))

        def __call__(self, batch):
            return jnp.broadcast_to(self.logit[...], batch.shape)

    model = models.CascadeModel(relevance=Fixed(0.0))  # clicks each examined document with 1 / 2, and stops there
    log = Sessions.from_lists(clicks=[[1, 0], [0, 1], [0, 1], [0, 0]])
    before = calibration(model, log).by_rank
    assert before.predicted == pytest.approx([1 / 2, 1 / 4])
    assert before.observed == pytest.approx([1 / 4, 2 / 4])
    after = calibration(model, log, conditional=True).by_rank
    assert after.predicted == pytest.approx([1 / 2, (0 + 1 / 2 + 1 / 2 + 1 / 2) / 4])


def test_a_trained_shape_of_model_on_a_log_with_gaps_between_ranks(tmp_path):
    log = write_log(tmp_path / "log", plain(make_rows(40)))
    model = models.PBM(
        relevance=towers.DocumentTable(log.documents, rngs=nnx.Rngs(0)),
        examination=towers.RankTable(log.ranks),
    )
    found = calibration(model, log, batch_size=16)
    count, clicked = np.zeros(16), np.zeros(16)
    for batch in log.batches(8):
        w = np.where(batch.mask, present(batch.weight)[:, None], 0)
        np.add.at(count, batch.position, w)
        np.add.at(clicked, batch.position, w * batch.clicks)
    shown = np.flatnonzero(count)
    assert found.by_rank.rank.tolist() == (shown + 1).tolist()
    assert found.by_rank.count == pytest.approx(count[shown])
    assert found.by_rank.observed == pytest.approx(clicked[shown] / count[shown])
    text = json.loads(json.dumps(found.to_json()))
    assert text["by_rank"]["bins"][0]["count"] == found.by_rank.count[0]
    assert [len(row) for row in found.by_prediction.rows()] == [6] * (len(found.by_prediction.rank) + 1)


def test_impossible_and_certain_clicks():
    found = calibration(Given(), sessions([[0.0, 1.0]] * 3, [[0, 1]] * 3)).by_rank
    assert (found.error.value, found.floor) == (0, 0)
    assert math.isnan(found.excess)
    assert json.loads(json.dumps(found.to_json()))["excess"] is None


def test_what_cannot_be_judged_says_why():
    log = sessions([[0.5]], [[1]])
    for options in ({"by": "x"}, {"cluster": "x"}, {"bins": 0}):
        with pytest.raises(ConfigError, match="expected by click or relevance"):
            calibration(Given(), log, **options)
    with pytest.raises(DataError, match="sessions with clicks, found none"):
        calibration(Given(), log.replace(clicks=None))
    with pytest.raises(DataError, match="query ids"):
        calibration(Given(), log, cluster="query")
    with pytest.raises(DataError, match="not a click model"):
        calibration(lambda batch: batch.mask, log)
    with pytest.raises(DataError, match="not a click model"):
        calibration(cast(Any, object()), log)
    with pytest.raises(DataError, match="NaN for 1 impressions"):
        calibration(Given(), sessions([[-0.5, 0.5]], [[1, 0]]))
    with pytest.raises(DataError, match="found none"):
        calibration(Given(), log.replace(weight=np.zeros(1, np.float32)))
