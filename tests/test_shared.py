"""Features of documents that many impressions share: computed once per document, with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.compute as pc
import pytest
from flax import nnx
from narrowing import present
from stored import PER_QUERY, documents_table, make_rows, plain, write_log

from ultr import models, towers
from ultr.data import ClickLog, Counts, InMemory, collapse
from ultr.errors import ConfigError
from ultr.sessions import Sessions, SharedFeature
from ultr.training import fit

F = 2


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    rows = [{k: v for k, v in row.items() if k != "weight"} for row in plain(make_rows(300))]
    return write_log(tmp_path_factory.mktemp("shared") / "log", rows)


def network(scaler: towers.Scaler | None = None, **options: Any) -> towers.MLP:
    return towers.MLP(F, hidden=(8,), scaler=scaler, rngs=nnx.Rngs(0), **options)


def pbm(scaler: towers.Scaler | None = None) -> models.PBM:
    return models.PBM(relevance=network(scaler), examination=towers.RankTable(15))


def test_shared_features_are_the_plain_ones(log: ClickLog) -> None:
    for plainly, shared in zip(log.batches(32), log.batches(32, share_features=True), strict=True):
        given = shared.features["features"]
        assert isinstance(given, SharedFeature)
        shown = plainly.mask
        for one in (given, given.distinct(), given.distinct(500)):
            np.testing.assert_array_equal(one.whole()[shown], plainly.features["features"][shown])
        once = given.distinct()
        assert len(once.values) == len(np.unique(given.index))
        assert len(given.distinct(500).values) == 500
        assert not given.distinct(500).values[len(once.values) :].any()
        turned = shared.rank_first().features["features"]
        np.testing.assert_array_equal(turned.whole().swapaxes(0, 1)[shown], plainly.features["features"][shown])


@pytest.mark.parametrize("kind", [towers.Linear, towers.MLP, towers.DCNV2])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_network_gives_the_same_logits_and_gradients(log: ClickLog, kind: Any, scaled: bool) -> None:
    tower = kind(F, scaler=towers.Scaler(F).fit(log) if scaled else None, rngs=nnx.Rngs(1))
    plainly, shared = next(log.batches(64)), next(log.batches(64, share_features=True))
    once = shared.features["features"].distinct(200)
    shared = shared.replace(features={**shared.features, "features": once})
    graph, params, rest = nnx.split(tower, nnx.Param, ...)  # type: ignore[misc]

    def total(params: Any, batch: Sessions) -> Any:
        logits = nnx.merge(graph, params, rest)(batch)
        return (logits * np.where(plainly.mask, np.cos(np.arange(logits.size)).reshape(logits.shape), 0)).sum(), logits

    (slopes, logits), (wanted, expected) = (jax.grad(total, has_aux=True)(params, b) for b in (shared, plainly))
    np.testing.assert_allclose(logits[plainly.mask], expected[plainly.mask], rtol=1e-4, atol=1e-4)
    for found, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("counted", [False, True])
def test_training_is_the_same(log: ClickLog, counted: bool) -> None:
    class Whole(models.PBM):
        """Takes features as plain arrays alone."""

        takes_shared_features = False

    source: Any = collapse(log, "rank") if counted else log
    model = pbm(towers.Scaler(F).fit(log))
    # Blocks of one batch come in the order of the batches.
    options: dict[str, Any] = {"epochs": 2, "batch_size": 50, "seed": 0, "block_sessions": 50}
    once = fit(model, source, log, **options)
    each = fit(Whole(relevance=model.relevance, examination=model.examination), source, log, **options)
    for a, b in zip(once.history, each.history, strict=True):
        for name in ("loss", "valid_loss", "sessions"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("counted", [False, True])
def test_a_tower_that_holds_the_features_learns_the_same(log: ClickLog, counted: bool) -> None:
    source: Any = collapse(log, "rank") if counted else log
    plainly = pbm(towers.Scaler(F).fit(log))
    held = nnx.clone(plainly)
    held.relevance = towers.Stored(held.relevance, values=present(log.vocabulary.features))
    assert towers.needs_no_features(held)
    assert not towers.needs_no_features(plainly)
    assert not towers.needs_no_features(
        models.PBM(relevance=towers.Sum([held.relevance, network()]), examination=held.examination)
    )
    options: dict[str, Any] = {"epochs": 2, "batch_size": 50, "seed": 0, "block_sessions": 50}
    seen: list[set[str]] = []

    class Recording(models.PBM):
        def loss(self, sessions: Sessions) -> Any:
            seen.append(set(sessions.features))
            return super().loss(sessions)

    want = fit(plainly, source, log, **options).history
    recording = Recording(relevance=held.relevance, examination=held.examination)
    found = fit(recording, source, log, **options).history
    assert "document" in set.union(*seen)
    assert "features" not in set.union(*seen)
    for a, b in zip(found, want, strict=True):
        for name in ("loss", "valid_loss", "sessions"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)


@pytest.mark.slow
def test_lists_with_ids_of_their_own_keep_their_features(log: ClickLog, tmp_path: Path) -> None:
    """A model that holds the features of one vocabulary judges lists of another by what they bring."""
    documents = documents_table(queries=8).slice(PER_QUERY)  # url 21 where the log has url 1
    documents = documents.set_column(0, "query", pc.subtract(documents["query"], 1))
    other = write_log(tmp_path / "other", plain(make_rows(60)), documents=documents)
    model = models.PBM(
        relevance=towers.Stored(network(), values=present(log.vocabulary.features)), examination=towers.RankTable(15)
    )
    for valid in (other, InMemory(next(other.batches(60)))):
        found = fit(model, log, valid, epochs=1, batch_size=60, seed=0)
        plainly = fit(pbm(), log, valid, epochs=1, batch_size=60, seed=0)
        np.testing.assert_allclose(found.history[0]["valid_loss"], plainly.history[0]["valid_loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_table_beside_a_network_may_share(log: ClickLog) -> None:
    both = towers.Sum([network(), towers.DocumentTable(log.documents)])
    model = models.UBM(relevance=both, examination=towers.LastClickTable(15))
    assert model.takes_shared_features
    assert np.isfinite(fit(model, log, epochs=1, batch_size=64, seed=0).history[0]["loss"])


def test_towers_get_shared_features_where_they_declare_it(log: ClickLog) -> None:
    class Inherits(towers.MLP):
        """Computes logits as its base class does."""

    class Own(towers.MLP):
        """Computes its logits itself, and so gets plain arrays unless it declares otherwise."""

        def logits(self, sessions: Sessions) -> Any:
            seen.append(type(sessions.features["features"]))
            return sessions.features["features"].sum(-1)

    class Plain(models.PBM):
        """A user's model that reads the features itself."""

        takes_shared_features = False

    seen: list[type] = []
    table, rank = towers.DocumentTable(4), towers.RankTable(3)
    own = Own(F, rngs=nnx.Rngs(0))
    assert network().takes_shared_features
    assert Inherits(F, rngs=nnx.Rngs(0)).takes_shared_features
    assert not own.takes_shared_features
    assert not towers.as_tower(lambda s: s.features["features"][..., 0]).takes_shared_features
    assert models.PBM(relevance=network(), examination=rank).takes_shared_features
    assert models.Mixture(components=[models.PBM(relevance=table, examination=rank)]).takes_shared_features
    assert not Plain(relevance=network(), examination=rank).takes_shared_features
    shared, plainly = (next(log.batches(20, share_features=share)) for share in (True, False))
    for tower in (own, towers.Sum([table, own]), towers.GradientReversal(own)):
        np.testing.assert_allclose(tower(shared)[shared.mask], tower(plainly)[plainly.mask], rtol=1e-6)
    assert seen
    assert not any(issubclass(kind, SharedFeature) for kind in seen)


@pytest.mark.slow
def test_a_users_own_tower_gets_plain_arrays(log: ClickLog) -> None:
    def tower(sessions: Sessions) -> Any:
        return sessions.features["features"].sum(-1) * 0.01

    model = models.PBM(relevance=tower, examination=towers.RankTable(15))
    assert np.isfinite(fit(model, log, epochs=1, batch_size=64, seed=0).history[0]["loss"])


def test_a_wrong_number_of_features_is_named(log: ClickLog) -> None:
    model = models.PBM(relevance=towers.Linear(3, rngs=nnx.Rngs(0)), examination=towers.RankTable(15))
    with pytest.raises(ConfigError, match="expected 3 features"):
        fit(model, log, epochs=1, batch_size=64, seed=0)
    with pytest.raises(ConfigError, match="expected 3 features"):
        towers.Scaler(3).fit(log)


@pytest.mark.parametrize("transform", towers.Scaler.transforms)
def test_the_scaler_measures_what_was_shown(log: ClickLog, transform: str) -> None:
    scaler = towers.Scaler(F, transform=transform).fit(log, batch_size=64)
    x = np.concatenate([b.features["features"][b.mask] for b in log.batches(64)]).astype(np.float64)
    x = np.sign(x) * np.log1p(np.abs(x)) if transform == "log1p" else x
    np.testing.assert_allclose(scaler.mean[...], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaler.scale[...], x.std(0), rtol=1e-5)


def test_a_heavy_document_is_spread_over_batches(log: ClickLog) -> None:
    few = collapse(log, "rank")
    heavy = int(few.document[few.impressions.argmax()])
    impressions = np.where(few.document == heavy, few.impressions * 1000, few.impressions)
    clicks = np.where(few.document == heavy, few.clicks * 1000, few.clicks)
    counts = Counts(
        sufficient_statistics="rank", document=few.document, rank=few.rank, last_click=None,
        impressions=impressions, clicks=clicks,
        sessions=few.sessions, weight=few.weight, documents=few.documents, ranks=few.ranks,
        vocabulary=few.vocabulary, identity=few.identity,
    )  # fmt: skip
    batches = list(counts.batches(64, seed=3))
    usual = impressions.sum() / (len(list(counts.batches(64))))
    totals: dict[tuple[int, int, int], float] = {}
    shares = []
    for batch in batches:
        ids, weight = batch.features["document"][:, 0], np.asarray(batch.weight, np.float64)
        shares.append(weight[(ids == heavy) & batch.mask[:, 0]].sum() / usual)
        for row in np.flatnonzero(batch.mask[:, 0]):
            key = (int(ids[row]), int(batch.position[row, 0]) + 1, int(batch.clicks[row, 0]))  # type: ignore[index]
            totals[key] = totals.get(key, 0.0) + weight[row]
    expected: dict[tuple[int, int, int], float] = {}
    for d, k, n, c in zip(counts.document, counts.rank, impressions, clicks, strict=True):
        expected |= {(int(d), int(k), click): float(x) for click, x in ((1, c), (0, n - c)) if x}
    assert totals.keys() == expected.keys()
    np.testing.assert_allclose(np.array([totals[k] for k in expected]), np.array(list(expected.values())), rtol=1e-5)
    assert sum(share > 0 for share in shares) > 10
    assert max(shares) < 0.9  # it weighs nearly all there is, and would be all of one batch
