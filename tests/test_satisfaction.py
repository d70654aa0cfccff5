"""Satisfaction that a model learnt, against attraction and against a constant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from ultr import towers
from ultr.evaluation import check_satisfaction
from ultr.evaluation.satisfaction import CONSTANTS
from ultr.models import DBN, PBM, SDBN, Frailty
from ultr.sessions import Sessions

pytestmark = pytest.mark.usefixtures("quickly_compiled")
QUERIES, EACH, WIDTH = 60, 5, 4


def dbn(satisfaction: Any, seed: int = 0) -> DBN:
    """A DBN of tables: attraction at random, and satisfaction as a function of its logit."""
    rng = np.random.default_rng(seed)
    attraction = rng.normal(0, 1, QUERIES * EACH + 1)
    tables = [towers.DocumentTable(QUERIES * EACH) for _ in range(2)]
    for table, logits in zip(tables, (attraction, satisfaction(attraction, rng)), strict=True):
        table.table[...] = jnp.asarray(logits, jnp.float32)
    return DBN(relevance=tables[0], satisfaction=tables[1], continuation=towers.Constant(2.0))


def clicked(model: Any, lists: int, seed: int) -> Sessions:
    rng = np.random.default_rng(seed)
    query = rng.integers(0, QUERIES, lists)
    documents = query[:, None] * EACH + np.argsort(rng.random((lists, EACH)), axis=1)[:, :WIDTH] + 1
    shown = Sessions.from_lists(features={"document": documents}, query=query)
    return shown.replace(clicks=np.asarray(jax.jit(lambda s, k: model(s).sample(k))(shown, jax.random.key(seed))))


@pytest.mark.slow
def test_satisfaction_that_falls_with_attraction_is_warned_of_with_numbers() -> None:
    model = dbn(lambda a, rng: -a + rng.normal(0, 0.5, a.shape))
    train = clicked(model, 2000, 0)
    found = check_satisfaction(model, train)
    assert found is not None
    assert (found.documents, found.queries, found.gain) == (QUERIES * EACH, QUERIES, None)
    a, s = (np.asarray(tower.table[...])[1:] for tower in (model.relevance, model.satisfaction))  # type: ignore
    assert found.correlation == pytest.approx(spearmanr(a, s).statistic, rel=1e-6)
    assert found.interval is not None
    rng = np.random.default_rng(0)
    a, s = a.reshape(QUERIES, EACH), s.reshape(QUERIES, EACH)
    again = [spearmanr(a[i].ravel(), s[i].ravel()).statistic for i in rng.integers(0, QUERIES, (400, QUERIES))]
    np.testing.assert_allclose(np.diff(found.interval)[0], 2 * 1.96 * np.std(again), rtol=0.25)
    (warning,) = found.warnings
    assert f"rank correlation {found.correlation:.2f}" in warning
    assert "Choose satisfaction 'monotone'" in warning


@pytest.mark.slow
def test_a_true_satisfaction_beats_a_constant_and_one_at_random_does_not() -> None:
    true = dbn(lambda a, rng: 2 * a + rng.normal(0, 0.5, a.shape))
    train, valid = clicked(true, 2000, 1), clicked(true, 2000, 2)
    found = check_satisfaction(true, train, valid)
    assert found is not None
    assert found.warnings == ()
    assert found.gain_interval is not None

    def loss(lists: Sessions, constant: float | None) -> np.ndarray:
        tower = true.satisfaction if constant is None else towers.Constant(constant)
        model = DBN(relevance=true.relevance, satisfaction=tower, continuation=true.continuation)
        return np.asarray(model.loss(lists), np.float64)

    best = min(CONSTANTS, key=lambda c: loss(train, float(c)).mean())
    gain = loss(valid, float(best)) - loss(valid, None)
    assert found.gain == pytest.approx(gain.mean(), rel=1e-3)
    sums = np.bincount(np.asarray(valid.query), gain - gain.mean())
    np.testing.assert_allclose(np.diff(found.gain_interval)[0], 2 * 1.96 * np.sqrt((sums**2).sum()) / 2000, rtol=0.05)

    other = dbn(lambda a, rng: rng.normal(0, 1, a.shape))
    other.relevance = true.relevance
    random = check_satisfaction(other, train, valid)
    assert random is not None
    assert [w for w in random.warnings if "no better than a constant" in w]


@pytest.mark.slow
def test_models_of_satisfaction_alone_are_checked_with_an_effect_per_list_too() -> None:
    model = dbn(lambda a, rng: -a)
    train = clicked(model, 300, 3)
    assert check_satisfaction(PBM(relevance=model.relevance, examination=towers.RankTable(WIDTH)), train) is None
    frail = check_satisfaction(Frailty(model), train, train)
    assert frail is not None
    assert frail.correlation == pytest.approx(-1)
    assert frail.gain is not None
    rising = SDBN(relevance=model.relevance, satisfaction=towers.Increasing(model.relevance))
    assert check_satisfaction(rising, train).correlation == pytest.approx(1)  # type: ignore[union-attr]
    same = SDBN(relevance=model.relevance, satisfaction=towers.Constant(1.0))
    found = check_satisfaction(same, train, train)
    assert found is not None
    assert (found.correlation, found.gain, found.warnings) == (None, None, ())
