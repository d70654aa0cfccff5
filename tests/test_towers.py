"""One table of towers: shapes, gradients, padding, unseen documents, and every tower in every slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from narrowing import split_parameters

from ultr import baselines, models, towers
from ultr.data import InMemory
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions, SharedFeature
from ultr.training import adam, fit
from ultr.training.checkpoint import describe

B, K, V, F = 6, 4, 50, 3


def sessions(seed: int = 0) -> Sessions:
    rng = np.random.default_rng(seed)
    mask = np.arange(K) < np.array([[4], [4], [2], [1], [0], [3]])
    return Sessions(
        mask=mask,
        position=np.where(mask, np.arange(K, dtype=np.int32), 0),
        features={
            "document": np.where(mask, rng.integers(1, V + 1, (B, K)), 0).astype(np.int32),
            "features": np.where(mask[:, :, None], rng.normal(size=(B, K, F)), 0).astype(np.float32),
            "device": np.where(mask, rng.integers(0, 3, (B, 1)), 0).astype(np.int32),
        },
        clicks=(mask & (rng.random((B, K)) < 0.4)).astype(np.int8),
        labels=np.where(mask, rng.integers(0, 3, (B, K)), 0).astype(np.float32),
    )


class OwnTower(nnx.Module):
    """What a user would write."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(F))

    def __call__(self, sessions: Sessions) -> jax.Array:
        return jnp.asarray(sessions.features["features"]) @ self.weight[...]


TOWERS: dict[str, Callable[[], Any]] = {
    "constant": lambda: towers.Constant(0.5),
    "rank": lambda: towers.RankTable(K),
    "rank pinned": lambda: towers.RankTable(K, initial=[0.1, 0.2, 0.3, 0.4], pin_first=True),
    "rank document": lambda: towers.RankDocumentTable(V, ranks=K),
    "full": lambda: towers.DocumentTable(V),
    "full with rows": lambda: towers.DocumentTable(V, rows=7),
    "hashed": lambda: towers.DocumentTable(V, kind="hashed", rows=7),
    "quotient-remainder": lambda: towers.DocumentTable(V, kind="quotient-remainder", rows=7, rngs=nnx.Rngs(0)),
    "robe": lambda: towers.DocumentTable(V, kind="robe", rows=20, rngs=nnx.Rngs(0)),
    "context": lambda: towers.DocumentTable(2, feature="device"),
    "linear": lambda: towers.Linear(F, rngs=nnx.Rngs(0)),
    "two features": lambda: towers.Linear(F + 1, feature=("features", "device"), rngs=nnx.Rngs(0)),
    "mlp": lambda: towers.MLP(F, hidden=(5, 4), scaler=towers.Scaler(F), rngs=nnx.Rngs(0)),
    "dcn": lambda: towers.DCNV2(F, hidden=(5,), rngs=nnx.Rngs(0)),
    "dcn low rank": lambda: towers.DCNV2(F, rank=2, hidden=(), rngs=nnx.Rngs(0)),
    "sum": lambda: towers.Sum([towers.Constant(), towers.Linear(F, rngs=nnx.Rngs(0))]),
    "increasing": lambda: towers.Increasing(towers.MLP(F, hidden=(4,), rngs=nnx.Rngs(0)), slope=0.5, intercept=0.3),
    "own": OwnTower,
    "function": lambda: lambda s: jnp.where(jnp.asarray(s.mask), 0.3, 0.0),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_finite_logits_for_every_cell(name: str) -> None:
    tower, batch = TOWERS[name](), sessions()
    logits = np.asarray(tower(batch))
    assert logits.shape == (B, K)
    assert np.isfinite(logits).all()
    wide = np.asarray(tower(batch.pad(rows=B + 2, width=K + 3)))
    np.testing.assert_allclose(wide[:B, :K][batch.mask], logits[batch.mask], rtol=1e-6)
    assert np.isfinite(wide).all()


@pytest.mark.parametrize("name", [n for n in TOWERS if n != "function"])
def test_every_parameter_that_matters_gets_a_gradient(name: str) -> None:
    # Several steps: in a product of two tables, one of them zero, the other moves only from the second step on.
    graphdef, params, rest = split_parameters(TOWERS[name]())
    batch, target = sessions(), jax.random.normal(jax.random.key(0), (B, K))

    def loss(p: Any) -> jax.Array:
        return jnp.sum(jnp.where(jnp.asarray(batch.mask), (nnx.merge(graphdef, p, rest)(batch) - target) ** 2, 0.0))

    start, moved, slope = loss(params), params, jax.jit(jax.grad(loss))
    for _ in range(30):
        moved = jax.tree.map(lambda p, g: p - 0.003 * jnp.sign(g), moved, slope(moved))
    assert loss(moved) < start
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        assert (before != after).any()


@pytest.mark.parametrize("kind", towers.DocumentTable.kinds)
def test_unseen_documents_keep_the_common_logit(kind: str) -> None:
    tower = towers.DocumentTable(V, kind=kind, rows=7, initial=-1.5, rngs=nnx.Rngs(0))
    tower.table[...] = jnp.ones_like(tower.table[...])
    batch = sessions()
    unseen = batch.replace(features={"document": np.zeros((B, K), np.int32)})
    np.testing.assert_array_equal(tower(unseen), np.full((B, K), -1.5, np.float32))
    assert (np.asarray(tower(batch))[batch.mask] != -1.5).all()


def test_compressed_tables_tell_documents_apart_by_their_definition() -> None:
    ids = np.arange(1, 13, dtype=np.int32)[None, :]
    batch = Sessions(mask=np.ones((1, 12), bool), position=np.zeros((1, 12), np.int32), features={"document": ids})
    qr = towers.DocumentTable(12, kind="quotient-remainder", rows=5, dimension=3, rngs=nnx.Rngs(0))
    qr.table[...] = jax.random.normal(jax.random.key(1), (12 // 5 + 1, 3))
    expected = [float(np.dot(qr.table[...][i // 5], qr.direction[...][i % 5])) for i in range(1, 13)]
    np.testing.assert_allclose(qr(batch)[0], expected, rtol=1e-5)
    hashed = towers.DocumentTable(12, kind="hashed", rows=4)
    hashed.table[...] = jnp.arange(4.0)
    assert set(np.asarray(hashed(batch)[0]).tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert len(set(np.asarray(hashed(batch)[0]).tolist())) > 1
    robe = towers.DocumentTable(12, kind="robe", rows=10, dimension=3, rngs=nnx.Rngs(0))
    robe.table[...] = jnp.arange(10.0)
    w = np.asarray(robe.direction[...][0])
    possible = [sum(((s + d) % 10) * w[d] for d in range(3)) for s in range(10)]
    assert all(np.isclose(possible, x, atol=1e-4).any() for x in np.asarray(robe(batch)[0]))


SLOTS: dict[str, tuple[Callable[..., models.ClickModel], tuple[str, ...]]] = {
    "PBM": (models.PBM, ("relevance", "examination")),
    "TrustPBM": (models.TrustPBM, ("relevance", "examination", "trust_relevant", "trust_irrelevant")),
    "UBM": (models.UBM, ("relevance", "examination")),
    "DCM": (models.DCM, ("relevance", "continuation")),
    "DBN": (models.DBN, ("relevance", "satisfaction", "continuation")),
    "CCM": (models.CCM, ("relevance", "after_skip", "after_irrelevant_click", "after_relevant_click")),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", SLOTS)
def test_any_tower_goes_into_any_slot(name: str, tower: str) -> None:
    build, slots = SLOTS[name]
    model = build(**{slot: TOWERS[tower]() for slot in slots})
    loss = np.asarray(model.loss(sessions()))
    assert loss.shape == (B,)
    assert np.isfinite(loss).all()
    assert loss[4] == 0  # the empty list


def test_examination_of_ubm_takes_features_and_last_clicks_together() -> None:
    table = towers.LastClickTable(K)
    table.table[...] = jax.random.normal(jax.random.key(0), (K, K + 1))
    linear, batch = towers.Linear(F, rngs=nnx.Rngs(1)), sessions()
    both = towers.Sum([linear, table])(batch)
    assert both.shape == (B, K, K + 1)
    np.testing.assert_allclose(both, np.asarray(linear(batch))[:, :, None] + np.asarray(table(batch)), rtol=1e-6)


def test_last_click_table_goes_by_displayed_positions() -> None:
    table = towers.LastClickTable(6)
    table.table[...] = jnp.arange(42.0).reshape(6, 7)
    batch = Sessions(mask=np.ones((1, 2), bool), position=np.array([[1, 4]], np.int32))
    # rows 1 and 4; columns: no click, last click at position 1, at position 4
    np.testing.assert_array_equal(table(batch)[0], [[7, 9, 12], [28, 30, 33]])


@pytest.mark.parametrize("transform", towers.Scaler.transforms)
def test_scaling_comes_from_the_shown_documents_of_training(transform: str) -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(5, 100, (n, F)) for n in (3, 1, 4)]
    for row in x:
        row[:, 2] = 7.0  # a constant feature
    scaler = towers.Scaler(F, transform=transform).fit(InMemory(Sessions.from_lists(features={"features": x})))
    flat = np.concatenate(x)
    z = flat if transform == "standardise" else np.sign(flat) * np.log1p(np.abs(flat))
    expected = (z - z.mean(0)) / np.where(z.std(0) > 1e-6, z.std(0), 1.0)
    np.testing.assert_allclose(scaler(flat.astype(np.float32)), expected, atol=1e-4)


def test_scaling_survives_a_large_mean() -> None:
    x = 1e6 + np.random.default_rng(0).normal(size=(1, 1000, 1))
    scaler = towers.Scaler(1).fit(InMemory(Sessions.from_lists(features={"features": list(x)})))
    np.testing.assert_allclose(scaler.scale[...], x[0].astype(np.float32).astype(np.float64).std(0), rtol=1e-3)


def test_ids_and_ranks_beyond_a_table_are_rejected_on_the_host() -> None:
    model = models.PBM(relevance=towers.DocumentTable(9), examination=towers.RankTable(3))
    batch = Sessions.from_lists(features={"document": [[1, 2], [10, 3]]})
    with pytest.raises(DataError, match=r"log, row 2, field 'document': expected ids up to 9 .* found 10"):
        towers.check_bounds(model, batch, source="log")
    deep = Sessions.from_lists(features={"document": [[1, 2, 3, 4]]})
    with pytest.raises(DataError, match=r"row 1, field 'rank': expected ranks up to 3 .* found 4"):
        towers.check_bounds(model, deep, source="log")
    towers.check_bounds(model, Sessions.from_lists(features={"document": [[9, 2, 3]]}))
    graded = models.DCTR(towers.GradeTable([0.0, 1.0]))
    with pytest.raises(DataError, match="field 'labels': expected grades up to 1"):
        towers.check_bounds(graded, Sessions.from_lists(labels=[[0, 2]]))


def test_missing_and_misshapen_inputs_are_explained() -> None:
    batch = sessions()
    with pytest.raises(ConfigError, match="reads the feature 'price'; the sessions have: device, document, features"):
        towers.DocumentTable(5, feature="price")(batch)
    with pytest.raises(ConfigError, match="expected 4 features, found"):
        towers.Linear(4, rngs=nnx.Rngs(0))(batch)
    with pytest.raises(ConfigError, match=r"tower 'relevance' .*expected logits \[B, K\] = \(6, 4\), found \(6,\)"):
        models.CascadeModel(relevance=lambda s: jnp.zeros(len(s)))(batch)
    with pytest.raises(ConfigError, match="unknown kind of document table 'sparse'"):
        towers.DocumentTable(5, kind="sparse")
    with pytest.raises(ConfigError, match="needs rows="):
        towers.DocumentTable(5, kind="hashed")
    with pytest.raises(ConfigError, match="unknown activation"):
        towers.MLP(F, activation="step", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="unknown transform"):
        towers.Scaler(F, transform="rank")
    with pytest.raises(ConfigError, match="at least one tower"):
        towers.Sum([])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        towers.logits_of([0.5, 1.5])
    with pytest.raises(ConfigError, match="reads the labels"):
        towers.GradeTable([0.0])(batch.replace(labels=None))


def test_grades_read_their_probability() -> None:
    tower = towers.GradeTable(towers.logits_of([0.1, 0.5, 1.0]).tolist())
    batch = Sessions.from_lists(labels=[[0, 1, 2, float("nan")]])
    np.testing.assert_allclose(jax.nn.sigmoid(tower(batch))[0], [0.1, 0.5, 1.0, 0.1], rtol=1e-6)


# --- What towers declare ------------------------------------------------------------------------------------


class Weights(towers.Tower):
    """A network of a user, with a parameter that no flax layer would name so."""

    def __init__(self, name: str) -> None:
        setattr(self, name, nnx.Param(jnp.zeros(F)))
        self.name = name

    def logits(self, sessions: Sessions) -> jax.Array:
        return jnp.asarray(sessions.features["features"]) @ vars(self)[self.name][...]


class TableWeights(Weights):
    parameter_group = "table"


def test_the_learning_rate_follows_from_the_declared_group_and_not_from_names() -> None:
    moved = {}
    for name, tower in (
        ("kernel", Weights("kernel")),
        ("weights", Weights("weights")),
        ("table", TableWeights("kernel")),
        ("module", OwnTower()),
    ):
        model = models.DCTR(tower)
        start = nnx.state(model, nnx.Param)
        fitted = fit(model, sessions(), optimizer=adam(0.001, tables=10.0), epochs=1, batch_size=B, seed=0).model
        pairs = zip(jax.tree.leaves(start), jax.tree.leaves(nnx.state(fitted, nnx.Param)), strict=True)
        moved[name] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
    # The first step of Adam moves every parameter by its learning rate.
    assert moved == pytest.approx({"kernel": 0.001, "weights": 0.001, "table": 0.01, "module": 0.001}, rel=1e-3)


def test_groups_are_those_of_the_innermost_tower() -> None:
    mlp = towers.MLP(F, hidden=(4,), rngs=nnx.Rngs(0))
    model = models.Mixture(
        components=[
            models.PBM(relevance=towers.Sum([mlp, towers.DocumentTable(V)]), examination=towers.Dropout(
                towers.RankTable(K), rngs=nnx.Rngs(0))),
            models.DCTR(OwnTower()),
        ]
    )  # fmt: skip
    groups = {".".join(map(str, path)): group for path, group in towers.parameter_groups(model).items()}
    assert groups == {
        "components.0.relevance.towers.0.layers.0.kernel": "network",
        "components.0.relevance.towers.0.layers.0.bias": "network",
        "components.0.relevance.towers.0.output.kernel": "network",
        "components.0.relevance.towers.0.output.bias": "network",
        "components.0.relevance.towers.1.common": "table",
        "components.0.relevance.towers.1.table": "table",
        "components.0.examination.tower.table": "table",
        "components.1.tower.function.weight": "network",
        "prior_logits": "table",
    }


def test_groups_reach_an_optimizer_inside_another() -> None:
    model = models.PBM(relevance=towers.DocumentTable(V), examination=towers.RankTable(K))
    clipped = optax.chain(optax.clip(1.0), adam(0.001, tables=20.0))
    fitted = fit(model, sessions(), optimizer=clipped, epochs=1, batch_size=B, seed=0).model
    assert float(jnp.abs(fitted.examination.table[...]).max()) == pytest.approx(0.02, rel=1e-3)


def test_a_callable_is_wrapped_once_and_anything_else_is_refused() -> None:
    own = OwnTower()
    tower = towers.as_tower(own)
    assert towers.as_tower(tower) is tower
    assert models.DCTR(tower).tower is tower
    assert not tower.pointwise
    assert tower.index_bounds == ()
    assert tower.reads is None
    with pytest.raises(ConfigError, match=r"expected a tower .*found 3"):
        models.PBM(relevance=3, examination=own)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="OwnTower is not a class of the toolkit"):
        describe(models.DCTR(own))


@pytest.mark.parametrize("name", TOWERS)
def test_what_a_tower_declares_holds(name: str) -> None:
    tower, batch = towers.as_tower(TOWERS[name]()), sessions()
    if tower.reads is not None:  # it reads no other feature
        few = batch.replace(features={n: x for n, x in batch.features.items() if n in tower.reads})
        np.testing.assert_array_equal(tower(few), tower(batch))
    if tower.pointwise:
        lists = batch.rank_first()
        np.testing.assert_allclose(np.asarray(tower(lists)).T[batch.mask], tower(batch)[batch.mask], rtol=1e-6)
    for field, size, _ in tower.index_bounds:  # the largest allowed value is read, and the next one is rejected
        for value, good in ((size - 1, True), (size, False)):
            filled = np.where(batch.mask, value, 0).astype(np.int32)
            own = {"position": filled} if field == "position" else {"features": {**batch.features, field: filled}}
            given = batch.replace(**own)
            if good:
                towers.check_bounds(tower, given)
                assert np.isfinite(tower(given)).all()
            else:
                with pytest.raises(DataError, match=f"expected .* in {type(tower).__name__}, found"):
                    towers.check_bounds(tower, given)
    shared = {**batch.features}
    shared["features"] = SharedFeature(
        np.concatenate([np.zeros((1, F), np.float32), np.asarray(batch.features["features"]).reshape(-1, F)]),
        np.where(batch.mask, np.arange(1, B * K + 1).reshape(B, K), 0).astype(np.int32),
    )
    found = tower(batch.replace(features=shared))
    np.testing.assert_allclose(found[batch.mask], tower(batch)[batch.mask], rtol=1e-5, atol=1e-6)


def test_what_a_declared_row_table_holds_is_trained_row_by_row() -> None:
    found = towers.row_tables(models.PBM(relevance=towers.DocumentTable(V), examination=towers.RankTable(K)))
    assert list(found) == [("relevance", "table")]
    assert not towers.row_tables(towers.Frozen(towers.DocumentTable(V)))
    em = baselines.RegressionEM(relevance=towers.DocumentTable(V), examination=towers.RankTable(K))
    assert not towers.row_tables(em)
    assert towers.row_tables(em.relevance)


def test_a_mixin_that_computes_logits_gets_plain_features() -> None:
    class Mixin:
        def logits(self, sessions: Sessions) -> Any:
            return sessions.features["features"].sum(-1)

    class Mine(Mixin, towers.MLP):
        """Its logits come from the mixin, which declares nothing."""

    class Declares(Mine):
        takes_shared_features = True

    assert not Mine(F, rngs=nnx.Rngs(0)).takes_shared_features
    assert Declares(F, rngs=nnx.Rngs(0)).takes_shared_features


def test_a_declared_table_must_be_there() -> None:
    class Misspelt(towers.DocumentTable):
        row_tables = ("tabel",)

    with pytest.raises(ConfigError, match="declares the table 'tabel' in row_tables and has no such attribute"):
        towers.row_tables(models.DCTR(Misspelt(V)))


def test_bounds_are_checked_in_both_layouts() -> None:
    batch = sessions()
    deep = batch.replace(position=np.where(batch.mask, 9, 0).astype(np.int32))
    for given in (deep, deep.rank_first()):
        with pytest.raises(DataError, match=r"row 1, field 'rank': expected ranks up to 4 in RankTable, found 10"):
            towers.check_bounds(towers.RankTable(K), given)


def test_a_function_that_mixes_users_gets_plain_features() -> None:
    batch = sessions()
    table = np.concatenate([np.zeros((1, F), np.float32), np.asarray(batch.features["features"]).reshape(-1, F)])
    index = np.where(batch.mask, np.arange(1, B * K + 1).reshape(B, K), 0).astype(np.int32)
    shared = batch.replace(features={**batch.features, "features": SharedFeature(table, index)})

    def prior(lists: Sessions) -> Any:
        return jnp.asarray(lists.features["features"])[:, 0, :2]

    parts = [models.RCTR(towers.RankTable(K)), models.RCTR(towers.RankTable(K, initial=1.0))]
    mixture = models.Mixture(components=parts, prior_logits=prior)
    np.testing.assert_allclose(mixture.loss(shared)[batch.mask[:, 0]], mixture.loss(batch)[batch.mask[:, 0]], rtol=1e-5)


@pytest.mark.parametrize("lists", [B, K])  # as many lists as ranks: a mix-up would not show in a shape
@pytest.mark.parametrize("last_clicks", [False, True])
def test_a_mixture_is_the_same_in_both_layouts(lists: int, last_clicks: bool) -> None:
    batch = sessions()[:lists]
    pbm = models.PBM(relevance=towers.DocumentTable(V), examination=towers.RankTable(K))
    ubm = models.UBM(relevance=towers.DocumentTable(V), examination=towers.LastClickTable(K))
    rng = np.random.default_rng(3)
    mixture = models.Mixture(components=[pbm, ubm if last_clicks else models.DCTR(towers.DocumentTable(V))])
    for _, node in nnx.iter_graph(mixture):
        if isinstance(node, nnx.Param):
            node[...] = jnp.asarray(rng.normal(size=node[...].shape), jnp.float32)
    assert len(np.unique(np.round(mixture.loss(batch), 6))) > 1
    np.testing.assert_allclose(mixture.loss(batch.rank_first()), mixture.loss(batch), rtol=1e-6)
    np.testing.assert_array_equal(mixture.score(batch.rank_first()).T, mixture.score(batch))


def test_the_distribution_of_ubm_needs_lists_first() -> None:
    ubm = models.UBM(relevance=towers.DocumentTable(V), examination=towers.LastClickTable(K))
    batch = sessions()[:K]
    with pytest.raises(ConfigError, match=r"needs lists as the first axis: give it sessions\.list_first\(\)"):
        ubm(batch.rank_first())
    np.testing.assert_allclose(ubm.loss(batch.rank_first()), ubm.loss(batch), rtol=1e-6)
