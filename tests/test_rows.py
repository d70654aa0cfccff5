"""Row-sparse optimizers, against a dense gradient and the rule in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from narrowing import present, split_parameters

from ultr import models, towers
from ultr.data import InMemory
from ultr.errors import ConfigError, UltrError
from ultr.sessions import Sessions
from ultr.training import RowAdagrad, RowAdam, RowSparse, adam, fit, lazy_adagrad, lazy_adam, load
from ultr.training.feed import one_pass
from ultr.training.steps import Trainer

K, RANKS, V, F, B = 4, 6, 12, 2, 8


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Nearly all the time of these tests goes into compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


Rows = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (ids, positions) of shown documents -> rows of a table


def lists(sessions: int = 3 * B + 2, *, seed: int = 0) -> Sessions:
    """Batch i holds ids from 0 and 2i+1 ... 2i+4, many times; 11 and 12 stand in padding alone."""
    rng = np.random.default_rng(seed)
    shape = (sessions, K)
    mask = np.arange(K) < np.where(np.arange(sessions) % B == 5, 0, rng.integers(2, K + 1, sessions))[:, None]
    document = rng.integers(1, 5, shape) + 2 * (np.arange(sessions) // B)[:, None]
    document = np.where(rng.random(shape) < 0.1, 0, document)
    return Sessions(
        mask=mask,
        position=np.sort(rng.permuted(np.tile(np.arange(RANKS), (sessions, 1)), axis=1)[:, :K], 1).astype(np.int32),
        features={
            "document": np.where(mask, document, rng.integers(11, V + 1, shape)).astype(np.int32),
            "features": rng.normal(size=(*shape, F)).astype(np.float32),
        },
        clicks=(rng.random(shape) < 0.4).astype(np.int8),
    )


def full(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ids


def by_rank(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ids * RANKS + positions


def hashed(rows: int) -> Rows:
    def find(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        x = ids.astype(np.uint64)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
        return (x % np.uint64(rows)).astype(int)

    return find


def robe(cells: int, dimension: int) -> Rows:
    def find(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return (hashed(cells)(ids, positions)[:, None] + np.arange(dimension)) % cells

    return find


@dataclasses.dataclass
class Case:
    model: Callable[[], Any]
    tables: dict[str, Rows]  # path of each table that is updated row by row -> the rows that documents read
    rule: RowAdam | RowAdagrad
    prior: float = 0.0


def document(**options: Any) -> towers.DocumentTable:
    return towers.DocumentTable(V, **options)


def shared() -> models.SDBN:
    table = document()
    return models.SDBN(relevance=table, satisfaction=table)


def mixture() -> models.Mixture:
    pbm = models.PBM(relevance=document(), examination=towers.RankTable(RANKS))
    return models.Mixture(components=[pbm, models.DCTR(document(kind="hashed", rows=7))])


def beside_a_network() -> models.PBM:
    tower = towers.Sum([document(), towers.MLP(F, hidden=(3,), rngs=nnx.Rngs(0))])
    return models.PBM(relevance=tower, examination=towers.RankTable(RANKS))


# A large epsilon, so that the rounding of gradients near 0 does not decide on the direction of a step.
ADAM, ADAGRAD = RowAdam(0.2, b1=0.8, b2=0.95, eps=1e-2), RowAdagrad(0.5, initial=0.05)
SCHEDULE = optax.exponential_decay(0.4, 1, 0.5)
HASHED = H11, R23, H7 = hashed(11), robe(23, 2), hashed(7)
CASES: dict[str, Case] = {
    "full, adam, l2": Case(lambda: models.DCTR(document()), {"tower.table": full}, ADAM, 0.03),
    "hashed, adam, schedule": Case(
        lambda: models.DCTR(document(kind="hashed", rows=11)),
        {"tower.table": H11},
        dataclasses.replace(ADAM, learning_rate=SCHEDULE),
    ),
    "robe, adagrad, schedule": Case(
        lambda: models.DCTR(document(kind="robe", rows=23, dimension=2, rngs=nnx.Rngs(0))),
        {"tower.table": R23},
        dataclasses.replace(ADAGRAD, learning_rate=SCHEDULE),
    ),
    "by rank, adagrad, l2": Case(
        lambda: models.RDCTR(towers.RankDocumentTable(V, ranks=RANKS)), {"tower.table": by_rank}, ADAGRAD, 0.05
    ),
    "two tables by the same ids, adam, l2": Case(
        lambda: models.DBN(relevance=document(), satisfaction=document(), continuation=towers.Constant(1.0)),
        {"relevance.table": full, "satisfaction.table": full}, ADAM, 0.02
    ),
    "two slots, adam": Case(shared, {"relevance.table": full}, ADAM),
    "mixture, adam": Case(
        mixture, {"components.0.relevance.table": full, "components.1.tower.table": H7}, ADAM
    ),
    "network, adam, l2": Case(beside_a_network, {"relevance.towers.0.table": full}, ADAM, 0.02),
}  # fmt: skip


def named(tree: Any) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    path = [jax.tree_util.keystr(p, simple=True, separator=".").removesuffix(".value") for p, _ in flat]
    return {name: np.array(x) for name, (_, x) in zip(path, flat, strict=True)}


def dense(model: Any) -> Callable[[dict[str, np.ndarray], Sessions], tuple[float, dict[str, np.ndarray]]]:
    """The mean loss over the lists that show something, and its gradient, whole tables being parameters."""
    graph, params, rest = split_parameters(model)
    structure = jax.tree.structure(params)

    @jax.jit
    def gradient(params: Any, batch: Sessions) -> Any:
        shown = batch.mask.any(1)

        def objective(p: Any) -> jax.Array:
            return jnp.sum(jnp.where(shown, nnx.merge(graph, p, rest).loss(batch), 0.0)) / shown.sum()

        return jax.value_and_grad(objective)(params)

    def call(values: dict[str, np.ndarray], batch: Sessions) -> tuple[float, dict[str, np.ndarray]]:
        leaves = [np.asarray(values[name], np.float32) for name in named(params)]
        loss, slopes = gradient(jax.tree.unflatten(structure, leaves), batch)
        return float(loss), named(slopes)

    return call


def updated(
    rule: RowAdam | RowAdagrad, table: np.ndarray, gradient: np.ndarray, rows: np.ndarray, step: int, prior: float
) -> np.ndarray:
    """[value, moments ..., step of the last read] of every row after a step that reads the given ones."""
    value, last = table[rows, 0], table[rows, -1]
    g = gradient.reshape(-1)[rows] + prior * (step - last) * value
    rate = rule.learning_rate(jnp.array(step - 1)) if callable(rule.learning_rate) else rule.learning_rate
    if isinstance(rule, RowAdam):
        first = rule.b1 * table[rows, 1] + (1 - rule.b1) * g
        second = rule.b2 * table[rows, 2] + (1 - rule.b2) * g**2
        move = first / (1 - rule.b1**step) / (np.sqrt(second / (1 - rule.b2**step)) + rule.eps)
        state = [first, second]
    else:
        squares = table[rows, 1] + g**2
        move, state = g / np.sqrt(squares + rule.eps), [squares]
    new = table.copy()
    new[rows] = np.stack([value - float(rate) * move, *state, np.full(len(rows), step)], 1)
    return new


@pytest.mark.parametrize("name", CASES)
def test_rows_move_as_the_dense_gradient_says_and_only_where_they_are_read(name: str) -> None:
    case, source = CASES[name], InMemory(lists())
    model = case.model()
    rng = np.random.default_rng(1)  # nothing stands at 0, where a wrong update could hide
    noise = lambda x: x + rng.normal(0, 0.5, x.shape).astype(np.float32)  # noqa: E731
    nnx.update(model, jax.tree.map(noise, nnx.state(model, nnx.Param)))
    expected = {n: x.astype(np.float64) for n, x in named(nnx.state(model, nnx.Param)).items()}
    start = [0.0, 0.0] if isinstance(case.rule, RowAdam) else [case.rule.initial]
    packed = {n: np.stack([expected[n].ravel(), *(np.full(expected[n].size, s) for s in (*start, 0))], 1)
              for n in case.tables}  # fmt: skip
    gradient = dense(model)

    trainer = Trainer(model, RowSparse(case.rule, optax.sgd(0.3)))
    state = trainer.init()
    scratch = trainer.scratch(state)
    facts = {"weight": jnp.float32(0), "prior": jnp.float32(case.prior), "prior_of_tables": jnp.float32(case.prior)}
    feed = one_pass(source, B, seed=None, length=B, rank_first=trainer.rank_first, check=lambda _: None,
                  put=jax.device_put)  # fmt: skip
    ever = {n: np.zeros(len(x), bool) for n, x in packed.items()}
    for step, (block, batch) in enumerate(zip(feed, source.batches(B), strict=True), 1):
        assert block.count == 1
        before = named(state["tables"])
        assert list(before) == list(case.tables)
        state, scratch, _ = trainer.block(state, scratch, jnp.zeros(3), block.batches, 1, facts)
        after = named(state["tables"])
        _, slopes = gradient(expected, batch)
        ids, shown = batch.features["document"], batch.mask
        for n, find in case.tables.items():
            known = shown & ((ids > 0) | (find not in HASHED))
            read_by = find(ids[known], np.asarray(batch.position)[known])
            rows = np.unique(read_by)
            packed[n] = updated(case.rule, packed[n], slopes.pop(n), rows, step, case.prior)
            read = np.zeros(len(packed[n]), bool)
            read[rows] = True
            assert not read.all()
            assert step > 3 or len(rows) < 0.8 * read_by.size
            ever[n] |= read
            np.testing.assert_array_equal(after[n][~read], before[n][~read])
            np.testing.assert_allclose(after[n], packed[n], rtol=2e-4, atol=2e-5)
            expected[n] = packed[n][:, 0].reshape(expected[n].shape)
        for n, slope in slopes.items():
            expected[n] = expected[n] - 0.3 * (slope + case.prior * expected[n])
    assert int(state["count"]) == step == 4
    assert not all(x.all() for x in ever.values())
    trained = named(nnx.state(trainer.model(trainer.parameters(state)), nnx.Param))
    assert {n: x.shape for n, x in trained.items()} == {n: x.shape for n, x in expected.items()}
    for n, x in trained.items():
        np.testing.assert_allclose(x, expected[n], rtol=2e-4, atol=2e-5, err_msg=n)


def everywhere(sessions: int) -> Sessions:
    """Every list shows documents 1 ... K, in an order of its own."""
    rng = np.random.default_rng(0)
    document = rng.permuted(np.tile(np.arange(1, K + 1, dtype=np.int32), (sessions, 1)), axis=1)
    return Sessions(
        mask=np.ones((sessions, K), bool),
        position=np.tile(np.arange(K, dtype=np.int32), (sessions, 1)),
        features={"document": document},
        clicks=(rng.random((sessions, K)) < document / (K + 1)).astype(np.int8),
    )


@pytest.mark.parametrize(
    ("lazy", "whole"),
    [
        (lazy_adam(0.004, tables=7.0), adam(0.004, tables=7.0)),
        (RowSparse(RowAdagrad(0.2), optax.adagrad(0.2)), optax.adagrad(0.2)),
    ],
    ids=["adam", "adagrad"],
)
def test_where_every_batch_reads_every_row_it_is_the_dense_optimizer(lazy: Any, whole: Any) -> None:
    model = models.PBM(relevance=towers.DocumentTable(K), examination=towers.RankTable(K))
    options: dict[str, Any] = {"epochs": 4, "batch_size": 8, "seed": 0, "l2": 2.0}
    a, b = (fit(model, everywhere(30), optimizer=o, **options) for o in (lazy, whole))
    found, expected = named(nnx.state(a.model)), named(nnx.state(b.model))
    assert np.ptp(expected["relevance.table"]) > 0.1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    losses = [[h["loss"] for h in x.history] for x in (a, b)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_lazy_adagrad_rates() -> None:
    # The first step from an accumulator of .1: rate * g / sqrt(.1 + g^2); Adam's first step is its rate.
    model = models.PBM(relevance=document(), examination=towers.Sum([towers.RankTable(K), towers.Linear(
        F, rngs=nnx.Rngs(0))]))  # fmt: skip
    sessions = lists(B).replace(position=np.tile(np.arange(K, dtype=np.int32), (B, 1)))
    _, slope = dense(model)(named(nnx.state(model)), sessions)
    fitted = fit(model, sessions, epochs=1, batch_size=B, seed=0, optimizer=lazy_adagrad(0.4, networks=0.002))
    before, after = named(nnx.state(model)), named(nnx.state(fitted.model))
    moved = {n: after[n] - before[n] for n in after}
    g = slope["relevance.table"]
    np.testing.assert_allclose(moved["relevance.table"], -0.4 * g / np.sqrt(0.1 + g**2), atol=1e-6)
    for name, rate in {"relevance.common": 0.02, "examination.towers.0.table": 0.02}.items():
        np.testing.assert_allclose(moved[name], -rate * np.sign(slope[name]), atol=1e-5)
    (kernel,) = (n for n in moved if n.endswith("kernel"))
    np.testing.assert_allclose(moved[kernel], -0.002 * np.sign(slope[kernel]), atol=1e-5)
    with pytest.raises(ConfigError, match="learning rate above 0"):
        lazy_adagrad(0.0)
    with pytest.raises(ConfigError, match="learning rate above 0"):
        lazy_adam(-1.0)


def test_an_interrupted_run_goes_on_bitwise_and_tables_keep_their_shape(tmp_path: Path) -> None:
    def model() -> models.RDCTR:
        return models.RDCTR(towers.RankDocumentTable(V, ranks=RANKS))

    given, train = model(), InMemory(lists())
    options: dict[str, Any] = {"batch_size": B, "seed": 0, "patience": None, "optimizer": lazy_adam(), "l2": 1.0}
    whole = fit(given, train, epochs=4, **options)
    fit(model(), train, epochs=2, directory=tmp_path, **options)
    rest = fit(model(), train, epochs=4, directory=tmp_path, resume=True, **options)
    expected = named(nnx.state(whole.model))
    assert expected["tower.table"].shape == (V + 1, RANKS)
    for other in (rest.model, load(tmp_path / "model")):
        found = named(nnx.state(other))
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    losses = [h["loss"] for h in whole.history]
    assert [h["loss"] for h in rest.history] == losses
    assert losses[-1] < losses[0]
    for name, value in named(nnx.state(model())).items():  # what was given to fit is as it was
        np.testing.assert_array_equal(named(nnx.state(given))[name], value)


@pytest.mark.slow
def test_two_devices_give_the_result_of_one() -> None:
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    options: dict[str, Any] = {"epochs": 2, "batch_size": B, "seed": 0, "optimizer": lazy_adam(), "l2": 1.0}
    model = models.PBM(relevance=document(), examination=towers.RankTable(RANKS))
    one, two = (named(nnx.state(fit(model, lists(seed=1), mesh=m, **options).model)) for m in (None, mesh))
    assert (one["relevance.table"][1:11] != 0).all()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_weighted_lists_count_like_repeated_ones() -> None:
    once = lists()
    weight = np.arange(len(once)) % 4
    repeated = once[np.repeat(np.arange(len(once)), weight)]
    weighted = once.replace(weight=weight.astype(np.float32))
    tower = document()
    tower.table[...] = jnp.linspace(-1, 1, V + 1)
    model = models.DCTR(tower)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 80, "seed": 0, "l2": 3.0, "optimizer": lazy_adagrad(0.3)}
    a, b = (fit(model, s, **options) for s in (weighted, repeated))
    assert a.history[0]["loss"] == pytest.approx(b.history[0]["loss"], rel=1e-5)
    assert a.history[0]["sessions"] == b.history[0]["sessions"] == weight[once.mask.any(1)].sum()
    # After one step from an accumulator of .1 the table tells the gradient: rate * g / sqrt(.1 + g^2).
    first, second = (np.asarray(x.model.tower.table[...] - tower.table[...]) for x in (a, b))
    assert np.ptp(second) > 0.05
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_impossible_sessions_are_left_out_and_counted() -> None:
    sessions = lists()
    impossible = np.where(sessions.mask, np.asarray(sessions.clicks), 0).sum(1) > 1
    assert 3 < impossible.sum() < 20
    possible = sessions[~impossible]
    model = models.CascadeModel(relevance=document())
    fitted = fit(model, sessions, epochs=1, batch_size=32, seed=0, optimizer=lazy_adagrad(0.3))
    (epoch,) = fitted.history
    assert (epoch["impossible"], epoch["sessions"]) == (impossible.sum(), possible.mask.any(1).sum())
    loss, slopes = dense(model)(named(nnx.state(model)), possible)
    assert epoch["loss"] == pytest.approx(loss, rel=1e-5)
    g = slopes["relevance.table"]
    np.testing.assert_allclose(fitted.model.relevance.table[...], -0.3 * g / np.sqrt(0.1 + g**2), atol=1e-6)


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    optimizer = RowSparse(RowAdam(float("nan")), adam())
    with pytest.raises(UltrError, match=r"the loss is nan in epoch 1\. Lower the learning rate"):
        fit(models.DCTR(document()), lists(), optimizer=optimizer, epochs=3, batch_size=B, seed=0)


def test_a_table_that_is_read_without_lookup_is_refused() -> None:
    class Shrunk(models.DCTR):
        def loss(self, sessions: Sessions) -> jax.Array:
            return super().loss(sessions) + 0.01 * jnp.sum(present(self.tower).table[...] ** 2)

    with pytest.raises(ConfigError, match=r"read without `towers\.lookup`"):
        fit(Shrunk(document()), lists(), optimizer=lazy_adam(), epochs=1, batch_size=B, seed=0)
