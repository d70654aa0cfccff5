"""Baselines that learn a bias beside the ranker: DLA, regression-EM, pairs, the additive two-tower."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from narrowing import present, split_parameters
from worlds import (
    EXAMINATION,
    RELEVANCE,
    VECTORS,
    K,
    Q,
    compiled_loss,
    documents,
    fitted,
    gradients,
    policy,
    ranks,
    world,
)

from ultr import baselines, models, towers
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions
from ultr.training import load, save

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# --- DLA and the listwise additive two-tower -----------------------------------------------------------------------

LISTWISE = {"DLA": baselines.DLA, "AdditiveListwise": baselines.AdditiveListwise}


@pytest.mark.parametrize("strength", [0.0, 3.0])
@pytest.mark.parametrize("name", LISTWISE)
def test_the_truth_is_stationary_whatever_the_loggingpolicy(name: str, strength: float) -> None:
    lists = world(strength, 1.0)
    true = LISTWISE[name](relevance=documents(np.log(RELEVANCE)), examination=ranks(np.log(EXAMINATION)))
    wrong = LISTWISE[name](relevance=documents(np.log(RELEVANCE)), examination=ranks())
    size = [max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients(m, lists))) for m in (true, wrong)]
    assert size[0] < 1e-6
    assert size[1] > 1e-2


@pytest.mark.parametrize("name", LISTWISE)
def test_known_propensities_are_recovered_from_clicks(name: str) -> None:
    n = 100_000
    lists = world(0.0, n, sample=0)
    model = fitted(LISTWISE[name](relevance=documents(), examination=ranks()), lists)
    # The log of sum(c w) over the impressions of a rank has the standard error sqrt(sum(c w^2)) / sum(c w), with
    # w = relevance of the first document over that of this one (DLA); w = 1 has a smaller one.
    relevance = RELEVANCE.ravel()[lists.features["document"] - 1]
    w, c = relevance[:, :1] / relevance, present(lists.clicks) * present(lists.weight)[:, None]
    error = np.sqrt((c * w**2).sum(0)) / (c * w).sum(0)
    off = np.log(model.propensity(K)) - np.log(EXAMINATION / EXAMINATION[0])
    assert (np.abs(off) < 4 * np.hypot(error, error[0])).all()
    assert error.max() < 0.02  # a bound that would be missed without debiasing: all ranks alike are off by 0.6 and 1.3


def test_each_tower_of_dla_has_the_gradient_of_its_own_loss() -> None:
    lists = world(0.0, 1.0)[5:6]
    assert present(lists.clicks).sum() == 2
    s, b = np.array([0.3, -0.2, 0.9]), np.array([0.5, -0.1, -0.8])
    place = lists.features["document"][0] - 1
    table = np.zeros(Q * K)
    table[place] = s
    grads = gradients(baselines.DLA(relevance=documents(table), examination=ranks(b)), lists.replace(weight=None))

    def own(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
        target = present(lists.clicks)[0] * np.exp(other[0] - other)
        return target.sum() * np.exp(logits) / np.exp(logits).sum() - target

    np.testing.assert_allclose(grads["relevance"]["table"][...][place + 1], own(s, b), rtol=1e-5)
    np.testing.assert_allclose(grads["examination"]["table"][...], own(b, s), rtol=1e-5)


def test_dla_tells_its_weights_and_clips_them() -> None:
    lists = Sessions.from_lists(features={"document": [[1, 2, 3], [1, 2]]}, clicks=[[1, 0, 1], [0, 1]])
    model = baselines.DLA(relevance=documents(), examination=ranks(np.log([0.8, 0.4, 0.1])), clip=4.0)
    found = model.impression_weights(lists)
    np.testing.assert_allclose(found.weight, [[1, 2, 4], [1, 2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found.clipped, [[False, False, True], [False] * 3])
    np.testing.assert_array_equal(found.counted, lists.clicks == 1)
    expected = -(np.log(1 / 3) + 4 * np.log(1 / 3)) - 2 * np.log([0.8 / 1.3, 0.1 / 1.3]).sum() / 2
    np.testing.assert_allclose(compiled_loss(model, lists)[0], expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="clip of at least 1"):
        baselines.DLA(relevance=documents(), examination=ranks(), clip=0.5)


def test_a_constant_added_to_a_tower_changes_nothing_in_the_additive_listwise_loss() -> None:
    lists = world(1.0, 1.0)
    loss = baselines.AdditiveListwise(relevance=documents(RELEVANCE), examination=ranks(EXAMINATION))
    loss = compiled_loss(loss, lists)
    moved = baselines.AdditiveListwise(relevance=documents(RELEVANCE + 2), examination=ranks(EXAMINATION - 7))
    np.testing.assert_allclose(compiled_loss(moved, lists), loss, rtol=1e-5, atol=1e-6)


# --- Regression-EM -------------------------------------------------------------------------------------------------


def _em(every: int) -> baselines.RegressionEM:
    return baselines.RegressionEM(relevance=documents(RELEVANCE), examination=ranks(EXAMINATION), every=every)


def _leaves(grads: Any) -> list[np.ndarray]:
    return [np.asarray(grads[tower]["table"][...]) for tower in ("relevance", "examination")]


def test_with_a_fresh_expectation_each_step_the_gradient_is_that_of_the_pbm() -> None:
    lists = world(1.0, 50.0)
    plain = models.PBM(relevance=documents(RELEVANCE), examination=ranks(EXAMINATION))
    for own, other in zip(_leaves(gradients(_em(1), lists)), _leaves(gradients(plain, lists)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


def test_between_two_expectations_the_towers_regress_on_what_the_copies_expect() -> None:
    model: Any = _em(2)
    lists = world(1.0, 50.0)
    compiled_loss(model, lists)  # step 1 takes the copies
    model.relevance.table[...] += 1.0
    model.examination.table[...] -= 0.5
    s, b = np.asarray(RELEVANCE.ravel()), EXAMINATION
    held = gradients(model, lists)
    now = models.PBM(relevance=model.relevance, examination=model.examination)
    assert np.abs(_leaves(held)[1] - _leaves(gradients(now, lists))[1]).max() > 1.0
    # P(examined given no click), from the four cases of the hidden choices, at the copies.
    logit = s[lists.features["document"] - 1], np.broadcast_to(b, lists.shape)
    r, e = (1 / (1 + np.exp(-x)) for x in logit)
    expected = np.where(lists.clicks == 1, 1.0, e * (1 - r) / (e * (1 - r) + (1 - e) * r + (1 - e) * (1 - r)))
    slope = (1 / (1 + np.exp(-(b - 0.5))) - expected) * present(lists.weight)[:, None]
    np.testing.assert_allclose(_leaves(held)[1], slope.sum(0), rtol=1e-4)
    compiled_loss(model, lists)  # step 2 holds them
    np.testing.assert_array_equal(model.held_examination.tower.table[...], np.float32(b))
    compiled_loss(model, lists)  # step 3 takes new ones
    np.testing.assert_array_equal(model.held_examination.tower.table[...], model.examination.table[...])
    assert int(model.steps[...]) == 3


def test_regression_em_is_judged_by_the_likelihood_and_ends_at_its_optimum() -> None:
    lists = world(1.0, 1000.0)
    model = _em(7)
    model.eval()
    plain = models.PBM(relevance=documents(RELEVANCE), examination=ranks(EXAMINATION))
    np.testing.assert_allclose(compiled_loss(model, lists), compiled_loss(plain, lists), rtol=1e-5)
    assert int(model.steps[...]) == 0
    found = fitted(_em(7), lists, 400)
    assert int(found.steps[...]) == 400
    np.testing.assert_allclose(found.propensity(K), EXAMINATION / EXAMINATION[0], rtol=0.01)
    with pytest.raises(ConfigError, match="at least 1 step"):
        _em(0)


# --- Pairs ---------------------------------------------------------------------------------------------------------

CLICKED, SKIPPED = np.array([1.0, 0.7, 0.4]), np.array([1.0, 0.9, 0.75])


def paired(sessions: int, sample: int) -> Sessions:
    """Lists of two documents at two of three ranks, clicked as PairDebias assumes: t+_i t-_j P(i is the better)."""
    better, worse = np.array([0.7, 0.5, 0.9]), np.array([0.2, 0.3, 0.05])
    rows = []
    for q, flipped, (i, j) in itertools.product(range(3), (0, 1), itertools.combinations(range(3), 2)):
        first, second = (better[q], worse[q]) if not flipped else (worse[q], better[q])
        one, other = CLICKED[i] * SKIPPED[j] * first, CLICKED[j] * SKIPPED[i] * second
        ids = (2 * q + 1 + flipped, 2 * q + 2 - flipped)
        rows += [(ids, (i, j), (1, 0), one), (ids, (i, j), (0, 1), other), (ids, (i, j), (0, 0), 1 - one - other)]
    chance = np.array([row[3] for row in rows]) / 18
    return Sessions.from_lists(
        features={"document": [row[0] for row in rows]},
        positions=[row[1] for row in rows],
        clicks=[row[2] for row in rows],
        weight=np.random.default_rng(sample).multinomial(sessions, chance).tolist(),
    )


def test_pair_debias_recovers_the_ratios_of_both_kinds() -> None:
    lists = paired(50_000, 0)
    model = baselines.PairDebias(relevance=documents(), ranks=3, regularisation=0.0, momentum=0.5)
    model = fitted(model, lists, 100)
    # A sum of pair losses over n pairs is off by 1/sqrt(n) times the root mean square over the mean of the losses.
    s = np.asarray(model.relevance(lists))
    gap = np.where(lists.clicks == 1, s[:, ::-1] - s, 0)
    loss = np.where(lists.clicks == 1, np.log1p(np.exp(gap)), 0.0)
    for found, true, place in zip(
        model.ratios(), (CLICKED, SKIPPED), (slice(None), slice(None, None, -1)), strict=True
    ):
        each = loss[:, place]
        sums = [((lists.position == k) * each * present(lists.weight)[:, None]).sum() for k in range(3)]
        squares = [((lists.position == k) * each**2 * present(lists.weight)[:, None]).sum() for k in range(3)]
        error = np.sqrt(squares) / sums
        assert (np.abs(np.log(found / true)) < 4 * np.hypot(error, error[0])).all()
        assert error.max() < 0.025


def test_pair_debias_takes_the_ratio_of_the_sums_of_its_pair_losses() -> None:
    lists = Sessions.from_lists(
        features={"document": [[1, 2, 3], [4, 5], [7]]}, clicks=[[1, 0, 1], [0, 1], [1]], weight=[2.0, 3.0, 5.0]
    )
    model = baselines.PairDebias(relevance=documents(np.linspace(-1, 1, Q * K)), ranks=3, momentum=0.25)
    s = np.linspace(-1, 1, Q * K)
    pairs = [(0, 0, 1, s[0], s[1], 2.0), (0, 2, 1, s[2], s[1], 2.0), (1, 1, 0, s[4], s[3], 3.0)]
    loss, plus, minus = np.zeros(3), np.zeros(3), np.zeros(3)
    for row, i, j, own, other, weight in pairs:  # every ratio is 1 at the start
        each = np.log1p(np.exp(other - own))
        loss[row] += each
        plus[i] += weight * each / 10
        minus[j] += weight * each / 10
    np.testing.assert_allclose(compiled_loss(model, lists), loss, rtol=1e-5)
    for found, sums in zip(model.ratios(), (plus, minus), strict=True):
        running = 0.75 + 0.25 * sums
        np.testing.assert_allclose(found, np.sqrt(running / running[0]), rtol=1e-5)
    before = model.ratios()
    model.eval()
    compiled_loss(model, lists)
    model.train()
    compiled_loss(model, lists.replace(clicks=np.zeros((3, 3), np.int8)))
    np.testing.assert_array_equal(model.ratios(), before)
    with pytest.raises(ConfigError, match="momentum"):
        baselines.PairDebias(relevance=documents(), ranks=3, momentum=0.0)


def test_pair_debias_finds_the_examination_of_the_pbm_in_random_orders() -> None:
    model = baselines.PairDebias(relevance=documents(RELEVANCE), ranks=K, regularisation=0.0, momentum=1.0)
    for _ in range(40):
        compiled_loss(model, world(0.0, 1.0))
    np.testing.assert_allclose(model.propensity(K), EXAMINATION / EXAMINATION[0], rtol=1e-3)


def test_prs_compares_relevant_with_irrelevant_documents() -> None:
    relevant = np.array([1, 0, 1])
    lists = Sessions.from_lists(features={"document": [[1, 2, 3]] * 8}, clicks=VECTORS.tolist())
    click = EXAMINATION * relevant
    chance = np.where(VECTORS == 1, click, 1 - click).prod(1)
    model = baselines.PRS(relevance=documents(), propensity=5 * EXAMINATION, metric="rank")  # the unit cancels
    ratio, chosen = model.pair_weights(lists)
    weight = np.einsum("b,bij->ij", chance, np.where(chosen, ratio, 0.0))
    o, r = EXAMINATION, relevant
    expected = r[:, None] * o[None, :] * (1 - o * r)[None, :] * (1 - np.eye(3))
    np.testing.assert_allclose(weight, expected, atol=1e-6)
    np.testing.assert_allclose(np.asarray(compiled_loss(model, lists)) @ chance, np.log(2) * expected.sum(), rtol=1e-5)


def test_prs_prefers_what_was_shown_lower_where_irrelevant_documents_are_clicked() -> None:
    """A property of the method, which its docstring tells: all three documents have the same relevance .1."""
    lists = Sessions.from_lists(features={"document": [[1, 2, 3]] * 8}, clicks=VECTORS.tolist())
    click = EXAMINATION * 0.1
    chance = np.where(VECTORS == 1, click, 1 - click).prod(1)
    ratio, chosen = baselines.PRS(relevance=documents(), propensity=EXAMINATION).pair_weights(lists)
    weight = np.einsum("b,bij->ij", chance, np.where(chosen, ratio, 0.0))
    o = EXAMINATION
    np.testing.assert_allclose(weight, 0.1 * o * (1 - 0.1 * o) * (1 - np.eye(3)), atol=1e-6)
    assert (weight[1, 0] > weight[0, 1]) == (o[0] > o[1])


def test_prs_is_lambdarank_on_pairs_with_clipped_ratios() -> None:
    lists = Sessions.from_lists(features={"document": [[1, 2, 3], [2, 3]]}, clicks=[[0, 0, 1], [1, 1]])
    s = np.array([0.5, -0.4, 0.1])
    table = np.zeros(Q * K)
    table[:3] = s
    model = baselines.PRS(relevance=documents(table), propensity=[0.8, 0.4, 0.2], clip=3.0)
    discount = 1 / np.log2([2, 4, 3])  # ranks 1, 3, 2 by the scores
    each = [min(0.8 / 0.2, 3.0) * (discount[0] - discount[2]) * np.log1p(np.exp(s[0] - s[2])),
            0.4 / 0.2 * (discount[2] - discount[1]) * np.log1p(np.exp(s[1] - s[2]))]  # fmt: skip
    np.testing.assert_allclose(compiled_loss(model, lists), [sum(each), 0.0], rtol=1e-5)
    found = model.impression_weights(lists)
    np.testing.assert_allclose(found.weight, np.array([[0, 0, 2.5], [0, 0, 0]]), rtol=1e-6)
    np.testing.assert_array_equal(found.clipped, [[False, False, True], [False] * 3])
    np.testing.assert_array_equal(found.counted, [[False, False, True], [False] * 3])
    with pytest.raises(ConfigError, match="unknown metric"):
        baselines.PRS(relevance=documents(), propensity=[1.0], metric="ndcg")
    with pytest.raises(ConfigError, match="rank 2"):
        baselines.PRS(relevance=documents(), propensity=[1.0, 0.0])
    short = baselines.PRS(relevance=documents(), propensity=[1.0, 0.5])
    with pytest.raises(DataError, match="ranks up to 2"):
        towers.check_bounds(short, lists)
    assert np.isnan(short.loss(lists)[0])


# --- What all of them promise --------------------------------------------------------------------------------------

LISTS = [[1, 2, 3], [2, 1], [4, 6, 5], [6]]
CLICKS = [[1, 0, 1], [0, 1], [0, 0, 1], [0]]
ONE = Sessions.from_lists(features={"document": LISTS}, clicks=CLICKS, query=[0, 0, 1, 1])
STATISTICS = {"additive": "rank", "adversarial": "rank", "em": "rank", "position": "rank", "position em": "rank"}


def _additive() -> models.AdditivePBM:
    return models.AdditivePBM(relevance=documents(), examination=ranks())


MODELS: dict[str, Callable[[], Any]] = {
    "dla": lambda: baselines.DLA(relevance=documents(), examination=ranks(), clip=None),
    "em": lambda: baselines.RegressionEM(relevance=documents(), examination=ranks(), every=2),
    "pairs": lambda: baselines.PairDebias(relevance=documents(), ranks=K),
    "prs": lambda: baselines.PRS(relevance=documents(), propensity=EXAMINATION),
    "listwise": lambda: baselines.AdditiveListwise(relevance=documents(), examination=ranks()),
    "adversarial": lambda: baselines.AdversarialTwoTower(relevance=documents(), examination=ranks()),
    "position": lambda: baselines.PositionWeighted(_additive(), displays=baselines.Displays.of(ONE)),
    "upe": lambda: baselines.UPE(relevance=documents(), policy=policy(), ranks=K),
    "policy": policy,
}
each = pytest.mark.parametrize("name", MODELS)


@cache
def compiled(name: str) -> Any:
    """Parameters, and (parameters, sessions) -> losses, gradients and the state afterwards."""
    graph, params, rest = split_parameters(MODELS[name]())

    def total(params: Any, sessions: Any) -> Any:
        model = nnx.merge(graph, params, rest, copy=True)
        loss = model.loss(sessions)
        return loss.sum(), (loss, split_parameters(model)[2])

    @jax.jit
    def run(params: Any, sessions: Any) -> Any:
        (_, (loss, after)), slope = jax.value_and_grad(total, has_aux=True)(params, sessions)
        return loss, slope, [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]

    keys = iter(jax.random.split(jax.random.key(0), 50))
    return jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params), run


def finite(*trees: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(trees))


@each
def test_padding_and_the_smallest_batches_are_no_special_cases(name: str) -> None:
    params, run = compiled(name)
    loss, slope, after = run(params, ONE)
    assert loss.shape == (4,)
    wide, wide_slope, wide_after = run(params, ONE.pad(rows=6, width=5))
    np.testing.assert_allclose(wide, [*loss, 0, 0], rtol=1e-5, atol=1e-6)
    for own, padded in zip(jax.tree.leaves((slope, after)), jax.tree.leaves((wide_slope, wide_after)), strict=True):
        np.testing.assert_allclose(padded, own, rtol=1e-4, atol=1e-6)
    one = Sessions.from_lists(features={"document": [[2]]}, clicks=[[1]], query=[0])
    assert run(params, one)[0].shape == (1,)
    assert finite(run(params, one))
    nothing = ONE.replace(mask=np.zeros_like(ONE.mask))
    gone = run(params, nothing)
    assert finite(gone)
    assert not np.any(gone[0])
    assert not any(np.any(x) for x in jax.tree.leaves(gone[1]))


@each
def test_gradients_are_finite_without_clicks_and_at_extreme_logits(name: str) -> None:
    params, run = compiled(name)
    none = run(params, ONE.replace(clicks=np.zeros_like(ONE.clicks)))
    assert finite(none)
    if STATISTICS.get(name, "list") == "list" and name != "policy":
        np.testing.assert_allclose(none[0], 0.0, atol=1e-7)
    for sign in (1.0, -1.0):
        assert finite(run(jax.tree.map(lambda p, sign=sign: sign * 1e4 * jnp.sign(p), params), ONE))


@each
def test_a_model_is_saved_and_loaded_and_says_what_it_needs(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    params, _ = compiled(name)
    nnx.update(model, params)
    assert model.sufficient_statistics == STATISTICS.get(name, "list")
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.score(ONE), model.score(ONE))
    model.eval()
    loaded.eval()
    np.testing.assert_allclose(compiled_loss(loaded, ONE), compiled_loss(model, ONE), rtol=1e-6)
    if name != "policy":
        with pytest.raises(ConfigError, match="clicks"):
            loaded.loss(ONE.replace(clicks=None))


# --- How epochs are judged -----------------------------------------------------------------------------------------


def _judged(model: Any, lists: Sessions) -> float:
    model.eval()
    return float((np.asarray(model.loss(lists)) * np.asarray(lists.weight)).sum())


def test_dla_is_judged_best_at_the_truth_whatever_its_own_weights() -> None:
    lists = world(1.0, 1.0)
    log_examination = np.log(EXAMINATION)

    def judged(relevance: np.ndarray, examination: np.ndarray) -> float:
        return _judged(baselines.DLA(relevance=documents(relevance), examination=ranks(examination)), lists)

    truth = judged(np.log(RELEVANCE), log_examination)
    additive = baselines.AdditiveListwise(relevance=documents(np.log(RELEVANCE)), examination=ranks(log_examination))
    assert truth == pytest.approx(_judged(additive, lists), rel=1e-5)
    for step in (-0.3, 0.3):
        assert judged(np.log(RELEVANCE), log_examination * (1 + step)) > truth
        assert judged(np.log(RELEVANCE) * (1 + step), log_examination) > truth


def test_pairdebias_is_judged_alike_whatever_unit_its_ratios_fall_to() -> None:
    lists = world(0.0, 1.0)
    model = baselines.PairDebias(relevance=documents(np.log(RELEVANCE)), ranks=K, regularisation=0.0)
    flat = _judged(model, lists)
    fallen = np.array([1.0, *[0.1] * (K - 1)])  # nearly the same weight everywhere, but for a factor of about ten
    model.clicked[...] = jnp.asarray(fallen)
    weights = 1 / fallen / np.mean(1 / fallen)
    assert weights.min() * flat < _judged(model, lists) < weights.max() * flat
    model.train()
    grown = float((np.asarray(model.loss(lists)) * np.asarray(lists.weight)).sum())
    assert grown > 2 * flat
