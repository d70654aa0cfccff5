"""Objectives over exposure and their policy gradient, against enumeration of rankings and of clicks."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ultr
from ultr import baselines, towers
from ultr.baselines import PolicyGradient
from ultr.baselines.exposure_objectives import EXPOSURE_OBJECTIVES, divergence, proximal
from ultr.baselines.plackett_luce import enumerated_exposure, policy_value
from ultr.errors import ConfigError
from ultr.sessions import Sessions

pytestmark = pytest.mark.usefixtures("quickly_compiled")
ALPHA, BETA = np.array([0.35, 0.53, 0.55, 0.54, 0.52]), np.array([0.65, 0.26, 0.15, 0.11, 0.08])  # Gupta 2024
ALPHA = ALPHA - 1e-4  # alpha_1 + beta_1 is a probability
EXAMINED = np.array([1.0, 0.5, 0.3, 0.2, 0.1])
every = pytest.mark.parametrize("name", EXPOSURE_OBJECTIVES)


def exposure_of(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The exposure of documents under a Plackett-Luce ranker, document by document, ranking by ranking."""
    odds, found = np.exp(scores - scores.max()), np.zeros(len(scores))
    for ranking in itertools.permutations(range(len(scores))):
        chance = 1.0
        for k in range(len(ranking)):
            chance *= odds[ranking[k]] / sum(odds[d] for d in ranking[k:])
        for k, d in enumerate(ranking):
            found[d] += chance * weights[k]
    return found


def displays_of(scores: np.ndarray, ranks: int | None = None) -> np.ndarray:
    """The chance of each document at each rank, [K, R]."""
    n = ranks or len(scores)
    return np.stack([exposure_of(scores, np.eye(len(scores))[k]) for k in range(n)], axis=1)


def query_lists(displays: Any, rate: Any, weight: float = 1.0) -> Sessions:
    """One list with the displays [K, R] and the click rate [K] of its documents, 1, 2, ..."""
    n = len(rate)
    return Sessions(
        mask=np.ones((1, n), bool),
        position=np.zeros((1, n), np.int32),
        features={
            "document": np.arange(1, n + 1, dtype=np.int32)[None],
            "displays": np.asarray(displays, np.float32)[None],
            "click_rate": np.asarray(rate, np.float32)[None],
        },
        weight=np.array([weight], np.float32),
    )


def table(scores: Any) -> towers.DocumentTable:
    """A tower with these scores of documents 1, 2, ..."""
    made = towers.DocumentTable(len(scores))
    made.table[...] = jnp.asarray(np.append(0.0, scores), jnp.float32)
    return made


def built(name: str, scores: Any, *, regression: Any = None, **options: Any) -> PolicyGradient:
    """A policy gradient at some scores, with the parameters that its objective takes."""
    robust = EXPOSURE_OBJECTIVES[name].doubly_robust
    n = len(scores)
    more: dict[str, Any] = {
        "beta": BETA[:n],
        "regression": table(np.linspace(-1, 1, n)) if regression is None else regression,
    }
    given: dict[str, Any] = {"sessions": 5000, "alpha": ALPHA[:n] if robust else EXAMINED[:n]} | (
        more if robust else {}
    )
    return PolicyGradient(relevance=table(scores), objective=name, **(given | options))


def slopes(model: PolicyGradient, batch: Sessions, scores: Any) -> np.ndarray:
    """The gradient of the loss by scores, in training."""
    from flax import nnx

    graph, state = nnx.split(model)

    def loss(values: jax.Array) -> jax.Array:
        made: Any = nnx.merge(graph, state, copy=True)
        made.relevance.table[...] = jnp.concatenate([jnp.zeros(1), values])
        return jnp.sum(made.loss(batch))

    return np.asarray(jax.grad(loss)(jnp.asarray(scores, jnp.float32)))


LOGGER = np.array([1.0, 0.4, 0.0, -0.6, -1.0])
RATE = np.array([0.3, 0.5, 0.2, 0.4, 0.3])
AT = np.array([0.2, 0.8, -0.4, 0.5, -0.9])


@every
def test_gradients_are_those_of_enumeration(name: str) -> None:
    # Four documents are enumerated by the model itself; central differences of an enumeration of its own judge it.
    four, batch = AT[:4], query_lists(displays_of(LOGGER[:4]), RATE[:4])
    model = built(name, four, delta=0.6)
    model.diverged[...] = jnp.float32(1.1)
    logged, weights = model.logged(batch), np.asarray(model.weights[...], np.float64)

    def value(scores: np.ndarray) -> float:
        exposure = jnp.asarray(exposure_of(scores, weights), jnp.float32)[None]
        return float(EXPOSURE_OBJECTIVES[name].value(exposure, logged)[0])

    assert float(model.loss(batch)[0]) == pytest.approx(-value(four), rel=1e-5)
    steps = 0.02 * np.eye(4)
    differences = np.array([(value(four + h) - value(four - h)) / 0.04 for h in steps])
    np.testing.assert_allclose(-slopes(model, batch, four), differences, atol=2e-4)


@pytest.mark.slow
@every
def test_gradients_of_drawn_rankings_are_those_of_enumeration(name: str) -> None:
    # Five documents are drawn: the mean over many rankings is the gradient of the enumerated objective.
    batch = query_lists(displays_of(LOGGER), RATE)
    model = built(name, AT, delta=0.6, samples=100_000)
    logged, mask = model.logged(batch), jnp.ones((1, 5), bool)
    exact = jax.grad(
        lambda s: EXPOSURE_OBJECTIVES[name].value(enumerated_exposure(s, mask, model.weights[...]), logged)[0]
    )(jnp.asarray(AT, jnp.float32)[None])
    assert np.abs(exact).max() > 0.02
    np.testing.assert_allclose(-slopes(model, batch, AT), exact[0], atol=2e-3)


def test_few_rankings_give_the_gradient_on_average() -> None:
    # Of an objective that is not linear, whose slopes come from other rankings than those that they reward.
    mask, weights, steps = jnp.ones((1, 5), bool), jnp.asarray(EXAMINED), 4000

    def value(exposure: jax.Array) -> jax.Array:
        return jnp.sum(exposure**2 * jnp.asarray([[3.0, -1.0, 2.0, 0.5, -2.0]]), axis=1)

    @jax.jit
    @jax.vmap
    def drawn(key: jax.Array) -> jax.Array:
        return jax.grad(lambda s: policy_value(value, s, mask, weights, key=key, samples=8)[0][0])(
            jnp.asarray(AT, jnp.float32)[None]
        )[0]

    found = np.asarray(drawn(jax.random.split(jax.random.key(3), steps)))
    exact = jax.grad(lambda s: value(enumerated_exposure(s, mask, weights))[0])(jnp.asarray(AT, jnp.float32)[None])[0]
    error = found.std(axis=0) / np.sqrt(steps)
    assert (error < 0.02).all()
    assert (np.abs(found.mean(axis=0) - exact) < 4.5 * error).all()


def test_enumeration_knows_padding_and_far_scores() -> None:
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    scores = np.array([[0.3, 1e4, -1e4, 7.0], [5.0, 1.0, 1.0, 1.0]], np.float32)
    found = np.asarray(enumerated_exposure(jnp.asarray(scores), jnp.asarray(mask), jnp.asarray(EXAMINED[:4])))
    np.testing.assert_allclose(found, [[0.5, 1.0, 0.3, 0.0], [1.0, 0.0, 0.0, 0.0]], atol=1e-6)
    far = jnp.asarray(np.where(np.arange(40) % 2, 1e4, -1e4), jnp.float32)[None]
    all_shown, weights = jnp.ones((1, 40), bool), jnp.ones(3)

    def value(scores: jax.Array) -> jax.Array:
        drawn = policy_value(lambda e: e[:, 1], scores, all_shown, weights, key=jax.random.key(0), samples=20)
        return jnp.sum(drawn[0])

    assert np.isfinite(value(far))
    assert np.isfinite(jax.grad(value)(far)).all()


def test_the_divergence_is_least_at_the_logging_policy() -> None:
    mask, rng = jnp.ones((1, 5), bool), np.random.default_rng(0)
    logged = jnp.asarray(exposure_of(LOGGER, EXAMINED))[None]
    assert float(divergence(logged, logged, mask)[0]) == pytest.approx(1.0, abs=1e-6)
    others = [float(divergence(jnp.asarray(exposure_of(rng.normal(size=5), EXAMINED))[None], logged, mask)[0])
              for _ in range(20)]  # fmt: skip
    assert min(others) > 1.001
    near = [float(divergence(jnp.asarray(exposure_of(LOGGER + 0.1 * h, EXAMINED))[None], logged, mask)[0])
            for h in np.eye(5)]  # fmt: skip
    assert max(near) < min(others)
    assert min(near) > 1.0


def optimum(name: str, batch: Sessions, start: np.ndarray, **options: Any) -> np.ndarray:
    """The exposure [3] at the optimum of an objective, by gradient ascent on enumerated rankings."""
    model = built(name, start, **options)
    fitted = ultr.fit(model, batch, optimizer=ultr.training.adam(0.01, tables=1.0), epochs=1000, batch_size=1, seed=0,
                      patience=None, progress=False)  # fmt: skip
    scores = np.asarray(fitted.model.relevance.table[...][1:], np.float64)
    return exposure_of(scores, np.asarray(model.weights[...], np.float64))


RISING = query_lists(displays_of(LOGGER[:3]), [0.15, 0.4, 0.28])  # the logging policy's last documents are the best


@pytest.mark.slow
def test_small_delta_is_the_logging_policy_and_large_delta_the_plain_estimate() -> None:
    for name, plain in (("exposure-crm", "ips"), ("safe-doubly-robust", "doubly-robust")):
        logged = np.asarray(built(name, LOGGER[:3]).logged(RISING).exposure[0])
        np.testing.assert_allclose(optimum(name, RISING, AT[:3], delta=1e-7), logged, atol=1e-2)
        far = slopes(built(name, AT[:3], delta=1.0), RISING, AT[:3])
        np.testing.assert_allclose(far, slopes(built(plain, AT[:3]), RISING, AT[:3]), atol=1e-6)
    # Proximal optimisation counts the other way around.
    near = np.asarray(built("prpo", LOGGER[:3]).logged(RISING).exposure[0])
    np.testing.assert_allclose(optimum("prpo", RISING, LOGGER[:3], delta=1.0), near, atol=2e-2)
    wide = slopes(built("prpo", AT[:3], delta=1e-6), RISING, AT[:3])
    np.testing.assert_allclose(wide, slopes(built("doubly-robust", AT[:3]), RISING, AT[:3]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "plain"), [("exposure-crm", "ips"), ("safe-doubly-robust", "doubly-robust"), ("prpo", "doubly-robust")]
)
def test_a_long_log_needs_no_safety(name: str, plain: str) -> None:
    found, wanted = (slopes(built(x, AT[:3], sessions=1e14), RISING, AT[:3]) for x in (name, plain))
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_exposure_stays_within_its_limits_at_the_optimum(sign: float) -> None:
    # A document that is thought relevant gains nothing above 1/delta times its logged exposure; one whose estimate is
    # negative loses nothing more below delta times that.
    delta, logged = 0.9, built("prpo", LOGGER[:3]).logged(RISING)
    exposure = np.asarray(logged.exposure[0])
    relevance = sign * np.array([0.05, 0.3, 0.6] if sign > 0 else [0.6, 0.3, 0.05])
    # Click rates that give these estimates: in training the clip, 10 / sqrt(5000), is below all exposures.
    added, unearned = (np.asarray(RISING.features["displays"][0] @ x[:3]) for x in (ALPHA, BETA))
    batch = query_lists(RISING.features["displays"][0], added * relevance + unearned)
    found = optimum("prpo", batch, LOGGER[:3], delta=delta)
    free = optimum("doubly-robust", batch, LOGGER[:3])
    ratio, unlimited = found / exposure, free / exposure
    if sign > 0:
        assert unlimited.max() > 1 / delta + 0.05
        assert 1.01 < ratio.max() < 1 / delta + 0.02
    else:
        assert unlimited.min() < delta - 0.05
        assert delta - 0.02 < ratio.min() < 0.99


@pytest.mark.slow
def test_inverted_clicks_do_bounded_harm() -> None:
    # Users of the adversary click on what is not relevant; the logging policy ranks well.
    relevance, logger = np.array([0.9, 0.5, 0.1]), np.array([2.0, 1.0, 0.0])
    displays, alpha = displays_of(logger), 0.9 * EXAMINED[:3]
    batch = query_lists(displays, 1 - displays @ alpha * relevance)
    flat = towers.Constant(0.0)

    def drop(name: str, **options: Any) -> float:
        given = {"sessions": 150, "regression": flat, "alpha": alpha, "beta": np.zeros(3)} | options
        found = optimum(name, batch, logger, **given)
        return float((exposure_of(logger, alpha) - found) @ relevance)

    free = drop("doubly-robust")
    assert free > 0.15
    # The bound supposes that users click as assumed: only a small delta holds the ranker where they do not.
    assert drop("safe-doubly-robust", delta=0.5) > 0.5 * free
    assert drop("safe-doubly-robust", delta=1e-4) < 0.25 * free
    # Proximal optimisation supposes nothing of users: exposure may grow by 1/delta alone, by a half and by a tenth.
    assert drop("prpo") < 0.75 * free
    assert drop("prpo", sessions=110) < 0.25 * free


def test_estimates_are_right_on_average_over_clicks() -> None:
    # Two sessions of three documents: all 64 click vectors, by their probability.
    relevance, rankings = np.array([0.2, 0.7, 0.4]), [(0, 2, 1), (1, 0, 2)]
    displays = np.zeros((3, 3))
    for ranking in rankings:
        displays[list(ranking), range(3)] += 0.5
    chance = np.array([[ALPHA[k] * relevance[d] + BETA[k] for k, d in enumerate(r)] for r in rankings])
    means = {True: np.zeros(3), False: np.zeros(3)}
    model = built("prpo", LOGGER[:3], sessions=400)  # the clip of 1/2 is above some exposures
    for clicks in itertools.product((0, 1), repeat=6):
        vector = np.array(clicks).reshape(2, 3)
        rate = np.zeros(3)
        for ranking, row in zip(rankings, vector, strict=True):
            rate[list(ranking)] += row / 2
        for judged in (True, False):
            model.deterministic = judged
            estimate = np.asarray(model.logged(query_lists(displays, rate)).relevance[0], np.float64)
            means[judged] += np.prod(np.where(vector, chance, 1 - chance)) * estimate
    np.testing.assert_allclose(means[True], relevance, atol=1e-5)
    added, guess = displays @ ALPHA[:3], 1 / (1 + np.exp(-np.linspace(-1, 1, 3)))
    assert (added < 0.5).any()
    np.testing.assert_allclose(means[False], guess + added / np.maximum(added, 0.5) * (relevance - guess), atol=1e-5)


@pytest.mark.slow
def test_below_a_hundred_sessions_nothing_beats_the_logging_policy() -> None:
    model, rng = built("prpo", LOGGER[:3], sessions=40), np.random.default_rng(1)
    logged = model.logged(RISING)
    assert logged.delta == 1.0
    best = float(proximal(logged.exposure, logged)[0])
    weights = np.asarray(model.weights[...])
    for _ in range(50):
        exposure = jnp.asarray(exposure_of(rng.normal(size=3), weights))[None]
        assert float(proximal(exposure, logged)[0]) <= best + 1e-6
    np.testing.assert_allclose(optimum("prpo", RISING, LOGGER[:3], sessions=40), logged.exposure[0], atol=2e-2)


def test_the_limit_may_be_that_of_each_query() -> None:
    model = built("prpo", LOGGER[:3], sessions=1e6, per_query=True)
    for sessions, delta in ((40.0, 1.0), (400.0, 0.25)):
        batch = RISING.replace(weight=np.array([sessions], np.float32))
        np.testing.assert_allclose(model.logged(batch).delta, [[delta]])


def test_documents_that_were_never_shown_have_no_reward() -> None:
    displays = np.concatenate([displays_of(LOGGER[:3]), np.zeros((1, 3))])
    batch = query_lists(displays, [0.4, 0.5, 0.3, 0.0])
    for name in EXPOSURE_OBJECTIVES:
        model = built(name, [1.0, 0.4, 0.0, -3.0], delta=0.5, **(
            {"regression": table([0, 0, 0, 9.0])} if EXPOSURE_OBJECTIVES[name].doubly_robust else {}
        ))  # fmt: skip
        logged = model.logged(batch)
        assert float(logged.exposure[0, 3]) == float(logged.relevance[0, 3]) == 0.0
        assert np.isfinite(model.loss(batch)).all()
        assert slopes(model, batch, [1.0, 0.4, 0.0, -3.0])[3] > 0  # the objective falls with its score


def test_a_session_alone_is_a_query_shown_once() -> None:
    shown = Sessions.from_lists(features={"document": [[2, 3, 1]]}, clicks=[[0, 1, 0]])
    displays = np.eye(3)[[2, 0, 1]]  # of documents 1, 2, 3
    alone, counted = (built("safe-doubly-robust", LOGGER[:3]).logged(x) for x in
                      (shown, query_lists(displays, [0, 0, 1])))  # fmt: skip
    for one, other in ((alone.exposure, counted.exposure), (alone.relevance, counted.relevance)):
        np.testing.assert_allclose(one[0], np.asarray(other)[0, [1, 2, 0]], rtol=1e-5)


def test_the_divergence_is_measured_in_training_alone() -> None:
    model = built("exposure-crm", -LOGGER, momentum=1.0)
    batch = query_lists(displays_of(LOGGER), RATE)
    model.eval()
    first, again = model.loss(batch), model.loss(batch)
    np.testing.assert_array_equal(first, again)  # the same rankings at every epoch
    assert float(model.diverged[...]) == 1.0
    assert int(model.steps[...]) == 0
    model.train()
    model.loss(batch)
    weights = np.asarray(model.weights[...])
    own, logged = (jnp.asarray(exposure_of(scores, weights))[None] for scores in (-LOGGER, LOGGER))
    exact = divergence(own, logged, jnp.ones((1, 5), bool))
    assert float(model.diverged[...]) == pytest.approx(float(exact[0]), rel=0.15)
    assert int(model.steps[...]) == 1


def test_what_an_objective_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'prop' \(did you mean 'prpo'\?\); known: ips, doubly"):
        PolicyGradient(relevance=table(AT), objective="prop", alpha=EXAMINED, sessions=9)
    with pytest.raises(ConfigError, match="'exposure-crm' takes neither a regression nor beta"):
        PolicyGradient(relevance=table(AT), objective="exposure-crm", alpha=EXAMINED, beta=0.1 * EXAMINED[::-1] * 0.1,
                       sessions=9)  # fmt: skip
    for options, said in (
        ({"samples": 5}, "an even number of samples"),
        ({"delta": 1.5}, "delta above 0 and at most 1, found 1.5"),
        ({"delta": 0.5, "per_query": True}, "per_query takes delta from the sessions of each query"),
        ({"metric": "map"}, "unknown metric 'map'"),
    ):
        with pytest.raises(ConfigError, match=said):
            built("prpo", AT, **options)
    with pytest.raises(ConfigError, match="expected displays at up to 3 ranks, found 5"):
        built("prpo", LOGGER[:3]).loss(query_lists(np.eye(5), np.zeros(5)))


def test_the_logged_order_is_where_exposure_is_that_of_the_logger() -> None:
    rng, n = np.random.default_rng(2), 3000
    orders = np.argsort(-(LOGGER + rng.gumbel(size=(n, 5))), axis=1)
    log = Sessions.from_lists(features={"document": (orders + 1).tolist()}, clicks=np.zeros((n, 5), int).tolist())
    fitted = ultr.fit(baselines.LoggedOrder(relevance=towers.DocumentTable(5)), log, seed=0, epochs=15, progress=False)
    scores = np.asarray(fitted.model.relevance.table[...][1:], np.float64)
    np.testing.assert_allclose(scores - scores.mean(), LOGGER - LOGGER.mean(), atol=0.1)
    np.testing.assert_allclose(exposure_of(scores, EXAMINED), exposure_of(LOGGER, EXAMINED), atol=0.01)
