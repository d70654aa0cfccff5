"""A ranker trained beside a copy for each fold of the queries: as in trainings apart, and each without its fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines_contract import BASELINES, batch
from conftest import Ultr
from flax import nnx

from ultr import baselines, models, simulate, towers
from ultr.data import ClickLog, Counts, collapse
from ultr.errors import ConfigError
from ultr.sessions import Sessions
from ultr.towers.base import still
from ultr.training import fit
from ultr.training.folded import FoldedRanker, QueryFolds, can_fold

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FEATURES, RANKS, FOLDS = 4, 5, 3


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    lists = simulate.collection(queries=60, documents=7, features=FEATURES, seed=2)
    user = simulate.user("dbn", grades=4, ranks=RANKS)
    out = tmp_path_factory.mktemp("folded") / "log"
    return simulate.clicks(lists, simulate.Policy("random"), user, sessions=600, ranks=RANKS, seed=1, out=out)


def network(seed: int = 0) -> Any:
    return towers.MLP(FEATURES, hidden=(6,), rngs=nnx.Rngs(seed))


def pbm(seed: int = 0) -> Any:
    return models.PBM(relevance=network(seed), examination=towers.RankTable(RANKS))


def dbn() -> Any:
    relevance = network()
    return models.DBN(relevance=relevance, satisfaction=towers.Increasing(relevance), continuation=towers.Constant(1.0))


def whole_batch(data: ClickLog | Counts) -> Sessions:
    return next(iter(data.batches(1 << 14)))


def fold_of_document(log: ClickLog) -> np.ndarray:
    fold = np.arange(log.vocabulary.queries) % FOLDS
    return np.append(fold, -1)[log.vocabulary.document_query]


def parameters(model: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model, nnx.Param))]


@pytest.mark.parametrize(("make", "statistics"), [(pbm, "rank"), (pbm, "list"), (dbn, "list")])
def test_losses_and_gradients_are_those_of_the_members_by_themselves(log: ClickLog, make: Any, statistics: str) -> None:
    sessions = whole_batch(collapse(log, "rank") if statistics == "rank" else log)
    model = make()
    fold = fold_of_document(log)
    rng = np.random.default_rng(0)
    copies = [nnx.clone(model) for _ in range(FOLDS)]
    for copy in copies:  # of different parameters, as after some steps
        moved = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), nnx.state(copy, nnx.Param))
        nnx.update(copy, moved)
    folded = FoldedRanker(model, copies, fold)
    own = fold[np.asarray(sessions.features["document"])]
    of_row = np.where(np.asarray(sessions.mask), own, -1).max(axis=sessions.rank_axis)
    shown = np.asarray(sessions.mask).any(axis=sessions.rank_axis)
    np.testing.assert_allclose(folded.loss(sessions)[shown], model.loss(sessions)[shown], rtol=1e-5)
    losses = np.stack([copy.loss(sessions) for copy in copies])
    wanted = losses[of_row[shown], np.flatnonzero(shown)]
    np.testing.assert_allclose(folded.held_out_loss(sessions)[shown], wanted, rtol=1e-5)

    def total(model: Any, weight: np.ndarray) -> jax.Array:
        return jnp.sum(model.loss(sessions) * weight)

    found = nnx.grad(total)(folded, shown.astype(np.float32))
    for number, member in enumerate([*copies, model]):
        weight = (shown & (of_row != number)).astype(np.float32)
        alone = jax.tree.leaves(nnx.grad(total)(member, weight))
        together = [x[number] for x in jax.tree.leaves(found)]
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)


def test_the_ranker_is_that_of_a_training_without_folds(log: ClickLog) -> None:
    options: dict[str, Any] = {"batch_size": 64, "seed": 3, "l2": 1.0, "l2_unit": "query", "progress": False}
    counts = collapse(log, "rank")
    folded = fit(pbm(), counts, folds=FOLDS, epochs=4, patience=None, **options)
    assert folded.best > 0
    best = folded.history[folded.best - 1]
    alone = fit(pbm(), counts, epochs=int(best["epoch"]), **options)
    for x, y in zip(parameters(folded.model), parameters(alone.model), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)
    np.testing.assert_allclose(folded.history[0]["loss"], alone.history[0]["loss"], rtol=1e-4)
    assert len(folded.held_out) == FOLDS
    assert all(type(member) is models.PBM for member in folded.held_out)


def test_a_copy_never_sees_its_fold_and_is_judged_by_it(log: ClickLog) -> None:
    counts = collapse(log, "rank")
    fold = np.arange(log.vocabulary.queries) % FOLDS
    of_cell = fold[counts.query]
    other = collapse(log, "rank")
    other.clicks[of_cell == 1] = 0
    options: dict[str, Any] = {"batch_size": 1 << 14, "seed": 0, "epochs": 30, "patience": None, "progress": False}
    one = fit(pbm(), counts, folds=QueryFolds(fold), **options)
    assert one.best == len(one.history)  # so that the parameters are those of the last epoch
    last = fit(pbm(), other, folds=QueryFolds(fold), **(options | {"epochs": 1}))
    first = fit(pbm(), counts, folds=QueryFolds(fold), **(options | {"epochs": 1}))
    assert first.best == last.best == 1
    for number, (x, y) in enumerate(zip(first.held_out, last.held_out, strict=True)):
        same = all(np.allclose(a, b, atol=2e-4) for a, b in zip(parameters(x), parameters(y), strict=True))
        assert same == (number == 1)
    by_hand = 0.0
    for number, member in enumerate(one.held_out):
        part = whole_batch(counts.select_queries(fold == number))
        shown = np.asarray(part.mask).any(axis=part.rank_axis)
        by_hand += float(np.sum(np.asarray(member.loss(part) * (1.0 if part.weight is None else part.weight))[shown]))
    np.testing.assert_allclose(one.history[-1]["valid_loss"], by_hand / counts.weight, rtol=1e-4)


def test_a_start_that_nothing_improves_on_is_kept(log: ClickLog) -> None:
    start = fit(pbm(), log, folds=FOLDS, epochs=30, batch_size=None, seed=0, progress=False).model
    spoilt = fit(start, log, folds=FOLDS, epochs=1, seed=0, optimizer=_away(), progress=False)
    assert spoilt.best == 0
    assert spoilt.turning is None
    for x, y in zip(parameters(spoilt.model), parameters(start), strict=True):
        np.testing.assert_array_equal(x, y)


def _away() -> Any:
    import optax

    return optax.sgd(-0.5)  # uphill


def test_what_has_no_pure_loss_is_refused(log: ClickLog) -> None:
    refused = {
        "PairDebias keeps statistics": baselines.PairDebias(relevance=network(), ranks=RANKS),
        "RegressionEM keeps statistics": baselines.RegressionEM(
            relevance=network(), examination=towers.RankTable(RANKS)
        ),
        "PBM has a table over documents": models.PBM(
            relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(RANKS)
        ),
        "IPS keeps statistics": baselines.IPS(relevance=network(), propensity=[1.0] * RANKS, self_normalised=True),
        "PBM keeps statistics or draws": models.PBM(
            relevance=towers.Dropout(network(), rate=0.5, rngs=nnx.Rngs(0)), examination=towers.RankTable(RANKS)
        ),
    }
    for words, ranker in refused.items():
        assert not can_fold(ranker)
        with pytest.raises(ConfigError, match=words):
            fit(ranker, log, folds=2, seed=0)
    assert can_fold(pbm())
    with pytest.raises(ConfigError, match="valid and folds both judge"):
        fit(pbm(), log, log, folds=2, seed=0)
    with pytest.raises(ConfigError, match="tells its queries"):
        fit(pbm(), whole_batch(log), folds=2, seed=0)
    one = log.select_queries(np.arange(log.vocabulary.queries) == 3)
    with pytest.raises(ConfigError, match="at least two queries, found 1"):
        fit(pbm(), one, folds=2, seed=0)
    with pytest.raises(ConfigError, match="another structure"):
        fit(pbm(), log, folds=QueryFolds(np.arange(60) % 2, (pbm(), dbn())), seed=0)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("judging", [False, True])
def test_pure_losses_leave_a_ranker_as_it_was(name: str, judging: bool) -> None:
    ranker = BASELINES[name].build(towers.DocumentTable(8, initial=0.2))
    ranker = still(ranker) if judging else ranker
    before = [np.asarray(x) for x in jax.tree.leaves(nnx.state(ranker))]
    first, again = np.asarray(ranker.loss(batch())), np.asarray(ranker.loss(batch()))
    after = [np.asarray(x) for x in jax.tree.leaves(nnx.state(ranker))]
    same = all(np.array_equal(x, y) for x, y in zip(before, after, strict=True)) and np.array_equal(first, again)
    assert same or not ranker.has_pure_loss
    assert not (BASELINES[name].together and ranker.has_pure_loss)


def test_a_run_of_folds_is_resumed_to_the_same_bits(log: ClickLog, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 64, "seed": 3, "folds": FOLDS, "patience": None, "progress": False}
    whole = fit(pbm(), log, epochs=4, **options)
    fit(pbm(), log, epochs=2, directory=tmp_path, **options)
    rest = fit(pbm(), log, epochs=4, directory=tmp_path, resume=True, **options)
    for x, y in zip(parameters(rest.model), parameters(whole.model), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ConfigError, match="another folds"):
        fit(pbm(), log, epochs=5, directory=tmp_path, resume=True, **(options | {"folds": 2}))


class Traced(models.PBM):
    """Counts how often its loss is traced."""

    traces = 0

    def loss(self, sessions: Sessions) -> jax.Array:
        Traced.traces += 1
        return super().loss(sessions)


def test_trainings_of_equal_structure_are_compiled_once(log: ClickLog) -> None:
    def train(seed: int) -> int:
        before = Traced.traces
        fit(
            Traced(relevance=network(seed), examination=towers.RankTable(RANKS)), log, log,
            epochs=2, batch_size=64, seed=seed, progress=False,
        )  # fmt: skip
        return Traced.traces - before

    assert train(0) > 0
    assert train(1) == 0


@pytest.mark.slow
def test_train_chooses_tower_and_prior_by_folds(log: ClickLog, ultr: Ultr, tmp_path: Path) -> None:
    found = ultr("train", log.path, "--out", tmp_path / "auto", "--json").json
    values = found["tower"]["values"]
    assert [(v["settings"]["relevance"], v["settings"]["l2"]) for v in values] == [
        ("linear", 10.0), ("mlp", 3.0), ("mlp", 10.0), ("mlp", 30.0)
    ]  # fmt: skip
    best = max(values, key=lambda v: v["gain"])
    chosen = found["tower"]["settings"]
    assert chosen == best["settings"] or "likelihood" in found["tower"]["reason"]
    assert found["config"]["relevance"] == chosen["relevance"]
    assert (found["config"]["l2"], found["config"]["l2_unit"], found["config"]["folds"]) == (chosen["l2"], "query", 5)
    assert found["sessions"] == len(log)  # nothing is held out
    assert found["trained_on"]["queries"] == 60
    again = ultr("train", log.path, "--out", tmp_path / "again").out
    assert "gain in DCG@10 over the logged order on held-out queries" in again
    by_dbn = ultr("train", log.path, "--out", tmp_path / "dbn", "--model", "dbn", "--epochs", "2")
    assert by_dbn.code == 0, by_dbn.err
    assert "judged with pbm, which learns from counts" in by_dbn.out
    fixed = ultr("train", log.path, "--out", tmp_path / "fixed", "--relevance", "mlp", "--l2", "2", "--json").json
    assert fixed["tower"] == {}
    assert (fixed["config"]["l2"], fixed["config"]["folds"]) == (2.0, 5)
    plain = ultr("train", log.path, "--out", tmp_path / "plain", "--relevance", "linear", "--folds", "0", "--json").json
    assert plain["config"]["folds"] is None
    assert plain["validation_sessions"] > 0
    lines = ["session,query,document,rank,click,price"]
    for session in range(300):
        lines += [
            f"{session},q{session % 30},d{k},{k},{int(session % (k + 1) == 0)},{session % 7 + k}" for k in (1, 2, 3)
        ]
    (tmp_path / "raw.csv").write_text("\n".join(lines))
    assert ultr("prepare", tmp_path / "raw.csv", "--feature", "price", "--out", tmp_path / "impressions").code == 0
    usual = ultr("train", tmp_path / "impressions", "--out", tmp_path / "usual", "--epochs", "2", "--json").json
    assert (usual["config"]["relevance"], usual["config"]["l2"]) == ("mlp", 10.0)
    assert "features of impressions" in usual["tower"]["reason"]
    both = ultr("train", log.path, "--out", tmp_path / "both", "--folds", "3", "--valid-fraction", ".1")
    assert both.code == 2
    assert "--folds and --valid-fraction both say" in both.err
    table = ultr("train", log.path, "--out", tmp_path / "table", "--relevance", "table", "--folds", "3")
    assert table.code == 2
    assert "--folds cannot judge --model pbm with --relevance table" in table.err
