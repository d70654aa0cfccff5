"""Wrappers around a bias tower, and the losses against confounding that are built on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from narrowing import present, split_parameters

from ultr import baselines, fit, models, towers
from ultr.data import InMemory
from ultr.errors import ConfigError
from ultr.propensity import Propensities
from ultr.sessions import Sessions, SharedFeature
from ultr.training import lazy_adam, load, save

pytestmark = pytest.mark.usefixtures("quickly_compiled")
V, K = 6, 3
LISTS = [[1, 2, 3], [2, 1, 3], [3, 1], [4, 5, 6], [4, 6, 5], [4, 5]]
CLICKS = [[1, 0, 1], [0, 1, 0], [0, 0], [0, 0, 1], [1, 0, 0], [0, 1]]
QUERY = [0, 0, 0, 1, 1, 1]
PROPENSITY = [0.9, 0.6, 0.3]


def batch(lists: list[list[int]] = LISTS, clicks: list[list[int]] = CLICKS, query: list[int] = QUERY) -> Sessions:
    return Sessions.from_lists(features={"document": lists}, clicks=clicks, query=query)


def documents() -> towers.DocumentTable:
    tower = towers.DocumentTable(V)
    tower.table[...] = jnp.linspace(-1.0, 1.0, V + 1)
    return tower


def ranks() -> towers.RankTable:
    return towers.RankTable(K, initial=[0.5, -0.2, -0.9])


def gradients(model: Any, sessions: Sessions) -> Any:
    graph, params, rest = split_parameters(model)
    return jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p, rest, copy=True).loss(sessions))))(params)


# --- The wrappers --------------------------------------------------------------------------------------------------


def test_dropout_drops_single_logits_in_training_only() -> None:
    many = batch([LISTS[0]] * 4000, [CLICKS[0]] * 4000, [0] * 4000)
    tower = towers.Dropout(ranks(), rate=0.25, rngs=nnx.Rngs(0))
    drawn = np.asarray(tower(many))
    kept = drawn != 0
    np.testing.assert_allclose(drawn[kept], np.broadcast_to(ranks()(many) / 0.75, drawn.shape)[kept], rtol=1e-6)
    # A share of n draws has the standard error sqrt(p (1 - p) / n); independent draws have no correlation.
    assert np.abs(kept.mean(0) - 0.75).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert np.abs(np.corrcoef(kept.T)[~np.eye(K, dtype=bool)]).max() < 4 / np.sqrt(4000)
    assert (np.asarray(tower(many)) != drawn).any()
    tower.eval()
    np.testing.assert_array_equal(tower(many), ranks()(many))
    with pytest.raises(ConfigError, match="below 1"):
        towers.Dropout(ranks(), rate=1.0, rngs=nnx.Rngs(0))


def test_dropout_is_drawn_anew_in_every_step_and_off_where_epochs_are_judged() -> None:
    lists = batch()
    model = models.AdditivePBM(relevance=documents(), examination=towers.Dropout(ranks(), rngs=nnx.Rngs(0)))
    plain = models.AdditivePBM(relevance=documents(), examination=ranks())
    still = optax.sgd(0.0)
    found = fit(model, lists, lists, optimizer=still, epochs=3, patience=None, batch_size=6, seed=0).history
    assert len({epoch["loss"] for epoch in found}) == 3
    for epoch in found:
        np.testing.assert_allclose(epoch["valid_loss"], np.mean(plain.loss(lists)), rtol=1e-5)


def test_gradient_reversal_leaves_the_logits_and_turns_the_gradient() -> None:
    lists, weight = batch(), jnp.asarray(np.random.default_rng(0).normal(size=(6, K)))
    for strength in (0.0, 0.7):
        tower = towers.GradientReversal(ranks(), strength=strength)
        np.testing.assert_array_equal(tower(lists), ranks()(lists))

        def total(t: Any) -> jax.Array:
            return jnp.sum(t(lists) * weight)

        own, plain = nnx.grad(total)(tower)["tower"]["table"][...], nnx.grad(total)(ranks())["table"][...]
        np.testing.assert_allclose(own, -strength * plain, rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match="at least 0"):
        towers.GradientReversal(ranks(), strength=-1.0)


class Twice(nnx.Module):
    """One parameter in two places, one of them a list."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.arange(3.0))
        self.again = nnx.List([self.weight])

    def __call__(self, sessions: Sessions) -> jax.Array:
        return jnp.take(self.weight[...] + self.again[0][...], jnp.asarray(sessions.position), axis=0)


FREEZABLE: dict[str, Callable[[], Any]] = {
    "table": ranks,
    "rows": lambda: towers.RankDocumentTable(V, ranks=K),
    "sum": lambda: towers.Sum([towers.Constant(0.3), ranks()]),
    "network": lambda: towers.MLP(1, feature="x", scaler=towers.Scaler(1), rngs=nnx.Rngs(0)),
    "dropout": lambda: towers.Dropout(ranks(), rngs=nnx.Rngs(0)),
    "own": Twice,
    "function": lambda: lambda sessions: jnp.full(sessions.shape, 0.4),
}


@pytest.mark.parametrize("name", FREEZABLE)
def test_a_frozen_tower_stays_as_it_was(name: str) -> None:
    lists = batch().replace(features={"document": batch().features["document"], "x": np.ones((6, K), np.float32)})
    given = FREEZABLE[name]()
    before = len(jax.tree.leaves(nnx.state(given, nnx.Param))) if isinstance(given, nnx.Module) else 0
    frozen = towers.Frozen(given)
    assert not jax.tree.leaves(nnx.state(frozen, nnx.Param))
    assert not towers.row_tables(frozen)
    first = np.asarray(frozen(lists))
    if isinstance(given, nnx.Module):
        assert len(jax.tree.leaves(nnx.state(given, nnx.Param))) == before > 0
        given.eval()
    np.testing.assert_array_equal(first, given(lists))
    if name not in ("rows", "network"):
        return
    model = models.PBM(relevance=documents(), examination=frozen)
    optimizer = lazy_adam() if name == "rows" else optax.adam(0.1)
    found = fit(model, lists, optimizer=optimizer, epochs=2, batch_size=6, seed=0, l2=1.0).model
    np.testing.assert_array_equal(found.examination(lists), first)
    assert (found.relevance(lists) != model.relevance(lists)).any()


def test_frozen_at_harvested_propensities_and_saved(tmp_path: Path) -> None:
    lists, value = batch(), np.array([1.0, 0.6, 0.3])
    harvested = Propensities("all-pairs", np.arange(1, 4), value, np.zeros(3), np.zeros((3, 2)), np.ones(3))
    model = models.PBM(relevance=documents(), examination=towers.examination_of(harvested))
    np.testing.assert_allclose(model.propensity(K), value, rtol=1e-5)
    np.testing.assert_allclose(model.examination(lists)[0], harvested.logits(), rtol=1e-5)
    additive = baselines.AdditiveListwise(
        relevance=documents(), examination=towers.examination_of(value / 2, additive=True)
    )
    np.testing.assert_allclose(additive.propensity(K), value, rtol=1e-5)
    found = fit(model, lists, optimizer=optax.adam(0.1), epochs=2, batch_size=6, seed=0, directory=tmp_path).model
    loaded = load(tmp_path / "model")
    np.testing.assert_allclose(loaded.propensity(K), value, rtol=1e-5)
    np.testing.assert_array_equal(loaded.score(lists), found.score(lists))
    assert not jax.tree.leaves(nnx.state(loaded.examination, nnx.Param))
    bad: Any
    for bad, message in (
        ([1.0, 0.0], "rank 2"),
        ([1.0, np.nan], "rank 2"),
        ([], "one per rank"),
        (0.5, "one per rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            towers.examination_of(bad)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "dropout": lambda tower: towers.Dropout(tower, rate=0.3, rngs=nnx.Rngs(0)),
    "reversal": lambda tower: towers.GradientReversal(tower, strength=0.5),
    "frozen": towers.Frozen,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_saved_and_says_of_its_tower_what_that_says(name: str, tmp_path: Path) -> None:
    lists, wrap = batch(), WRAPPERS[name]
    model = models.AdditivePBM(relevance=documents(), examination=wrap(ranks()))
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    model.eval()
    loaded.eval()
    np.testing.assert_array_equal(loaded.loss(lists), model.loss(lists))
    assert wrap(ranks()).pointwise
    assert not wrap(towers.LastClickTable(K)).pointwise  # by `logits_after` only, which a wrapper lacks
    assert wrap(ranks()).takes_shared_features
    assert not wrap(lambda sessions: jnp.zeros(sessions.shape)).tower.takes_shared_features
    assert model.takes_shared_features


# --- The losses ----------------------------------------------------------------------------------------------------


def test_the_bias_tower_forgets_what_its_adversary_learns() -> None:
    lists, a = batch(), np.array([0.3, 0.1])
    b, s = np.asarray(ranks()(lists)), np.asarray(documents()(lists))
    error = np.where(lists.mask, a[0] * b + a[1] - lists.clicks, 0.0)
    click = np.where(lists.mask, 1 / (1 + np.exp(-b - s)) - lists.clicks, 0.0)
    for strength in (0.0, 2.0):
        model = baselines.AdversarialTwoTower(relevance=documents(), examination=ranks(), strength=strength)
        model.adversary[...] = jnp.asarray(a, jnp.float32)
        found = gradients(model, lists)
        np.testing.assert_allclose(found["adversary"][...], [(2 * error * b).sum(), 2 * error.sum()], rtol=1e-4)
        own = [np.sum((click - strength * 2 * error * a[0]) * (lists.position == k) * lists.mask) for k in range(K)]
        np.testing.assert_allclose(found["examination"]["table"][...], own, rtol=1e-4)
    plain = models.AdditivePBM(relevance=documents(), examination=ranks())
    model.eval()
    np.testing.assert_allclose(model.loss(lists), plain.loss(lists), rtol=1e-5)


POINTWISE: dict[str, Callable[[], Any]] = {
    "additive": lambda: models.AdditivePBM(relevance=documents(), examination=ranks()),
    "pbm": lambda: models.PBM(relevance=documents(), examination=ranks()),
    "naive": lambda: baselines.NaivePointwise(relevance=documents()),
    "ips": lambda: baselines.IPS(form="pointwise", relevance=documents(), propensity=PROPENSITY),
    "em": lambda: baselines.RegressionEM(relevance=documents(), examination=ranks()),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_weights_by_position_change_nothing_where_the_policy_is_deterministic(name: str) -> None:
    fixed = batch([LISTS[0]] * 3 + [LISTS[3]] * 3, [[1, 0, 0], [0, 1, 1], [0, 0, 0]] * 2)
    model = baselines.PositionWeighted(POINTWISE[name](), displays=baselines.Displays.of(fixed))
    np.testing.assert_allclose(model.impression_weights(fixed).weight, 1.0, rtol=1e-6)
    np.testing.assert_allclose(model.loss(fixed), POINTWISE[name]().loss(fixed), rtol=1e-5)
    np.testing.assert_array_equal(model.score(fixed), POINTWISE[name]().score(fixed))


def test_weights_by_position_make_up_for_how_often_a_rank_was_shown() -> None:
    lists = batch()
    model = baselines.PositionWeighted(POINTWISE["naive"](), displays=baselines.Displays.of(lists))
    found = model.impression_weights(lists)
    document = lists.features["document"]
    for d, k in {(int(d), int(k)) for d, k in zip(document[lists.mask], lists.position[lists.mask], strict=True)}:
        cell = lists.mask & (document == d) & (lists.position == k)
        np.testing.assert_allclose(np.asarray(found.weight)[cell].sum(), 3.0, rtol=1e-6)  # sessions of each query
    np.testing.assert_array_equal(found.counted, lists.mask)
    s = np.asarray(documents()(lists))
    each = np.log1p(np.exp(np.where(lists.clicks == 1, -s, s)))
    expected = np.where(lists.mask, found.weight * each, 0).sum(1)
    np.testing.assert_allclose(model.loss(lists), expected, rtol=1e-5)
    clipped = baselines.PositionWeighted(POINTWISE["naive"](), displays=baselines.Displays.of(lists), clip=2.0)
    np.testing.assert_allclose(clipped.impression_weights(lists).weight, np.minimum(found.weight, 2.0), rtol=1e-6)
    np.testing.assert_array_equal(clipped.impression_weights(lists).clipped, np.asarray(found.weight) > 2.0)
    other = batch([[3, 2, 1]], [[1, 0, 0]], [0])  # document 1 was never shown at rank 3
    unseen = model.impression_weights(other)
    np.testing.assert_array_equal(unseen.counted, [[True, True, False]])
    np.testing.assert_array_equal(unseen.unsupported, [[False, False, True]])
    expected = 3 * np.log1p(np.exp(-s[2, 0])) + 3 * np.log1p(np.exp(s[0, 1]))
    np.testing.assert_allclose(model.loss(other)[0], expected, rtol=1e-5)


def test_weights_by_position_are_the_same_for_shared_features_and_in_the_history() -> None:
    lists = batch()
    table = np.random.default_rng(0).normal(size=(V + 1, 2)).astype(np.float32)
    document = lists.features["document"]
    shared = lists.replace(features={"document": document, "features": SharedFeature(table, document)})
    whole = lists.replace(features={"document": document, "features": table[document]})
    model = baselines.PositionWeighted(
        models.AdditivePBM(relevance=towers.Linear(2, rngs=nnx.Rngs(0)), examination=ranks()),
        displays=baselines.Displays.of(lists),
    )
    np.testing.assert_allclose(model.loss(shared), model.loss(whole), rtol=1e-5)
    assert model.takes_shared_features
    own = baselines.PositionWeighted(
        baselines.NaivePointwise(relevance=lambda s: jnp.zeros(s.shape)), displays=baselines.Displays.of(lists)
    )
    assert not present(own.model).relevance.takes_shared_features
    weight = np.asarray(model.impression_weights(whole).weight)
    found = fit(model, InMemory(whole), optimizer=optax.sgd(0.1), epochs=1, batch_size=6, seed=0).history[0]
    np.testing.assert_allclose(found["effective_sample_size"], weight.sum() ** 2 / (weight**2).sum(), rtol=1e-5)
    assert found["affected"] == 1.0
    pbm = baselines.PositionWeighted(POINTWISE["pbm"](), displays=model.displays)
    np.testing.assert_array_equal(pbm.examination_curve(K), POINTWISE["pbm"]().propensity(K))
    with pytest.raises(ConfigError, match="judges lists"):
        baselines.PositionWeighted(baselines.NaiveListwise(relevance=documents()), displays=model.displays)
    with pytest.raises(ConfigError, match=r"Displays\.of"):
        baselines.PositionWeighted(POINTWISE["pbm"](), displays=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="above 0"):
        baselines.PositionWeighted(POINTWISE["pbm"](), displays=model.displays, clip=0.0)
