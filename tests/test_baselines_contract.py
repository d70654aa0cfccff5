"""What every baseline promises, whatever its loss."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from baselines_contract import BASELINES, QUERY, B, K, Row, V, batch
from flax import nnx
from narrowing import present
from stored import write_log
from worlds import compiled_loss

import ultr
from ultr import baselines, towers
from ultr.data import ClickLog, collapse
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions
from ultr.training.checkpoint import build, describe, load, save

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SCORES = np.random.default_rng(0).normal(size=(B, K)).astype(np.float32)
every = pytest.mark.parametrize("name", BASELINES)


def _kind(row: Row) -> tuple[type, object]:
    """The class of a baseline and, for inverse propensity scoring, its form, of which each has a loss of its own."""
    model = row.build(lambda sessions: sessions.position)
    return type(model), model.form if isinstance(model, baselines.IPS) else None


ONE_OF_EACH = list({_kind(row): name for name, row in BASELINES.items()}.values())


def by_score(sessions: Sessions) -> jax.Array:
    """A relevance tower whose logits stand in the sessions."""
    return jnp.asarray(sessions.features["score"])


def scored(sessions: Sessions, scores: Any = SCORES) -> Sessions:
    return sessions.replace(features={**sessions.features, "score": np.asarray(scores)})


@cache
def compiled(name: str) -> Any:
    """Sessions -> (losses [B], slopes of their sum by the scores [B, K]); compiled once per shape."""
    model = BASELINES[name].build(by_score)
    model.eval()
    graph, state = nnx.split(model)

    def total(score: Any, sessions: Sessions) -> Any:
        loss = nnx.merge(graph, state, copy=True).loss(scored_as(sessions, score))
        return loss.sum(), loss

    def scored_as(sessions: Sessions, score: Any) -> Sessions:
        return sessions.replace(features={**sessions.features, "score": score})

    @jax.jit
    def run(sessions: Sessions) -> Any:
        (_, loss), slope = jax.value_and_grad(total, has_aux=True)(sessions.features["score"], sessions)
        return loss, slope

    return run


@every
def test_losses_and_slopes_are_finite_and_depend_on_the_scores(name: str) -> None:
    loss, slope = compiled(name)(scored(batch()))
    assert loss.shape == (B,)
    assert np.isfinite(loss).all()
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 1e-3
    assert not slope[~batch().mask].any()
    for size in (1e4, -1e4):
        extreme = np.where(np.arange(K) % 2, size, -size) * np.ones((B, 1))
        loss, slope = compiled(name)(scored(batch(), extreme.astype(np.float32)))
        assert np.isfinite(loss).all()
        assert np.isfinite(slope).all()


@every
def test_padding_changes_nothing(name: str) -> None:
    loss, slope = compiled(name)(scored(batch()))
    padded = scored(batch()).pad(rows=B + 2, width=K + 3)
    more, steeper = compiled(name)(padded)
    np.testing.assert_allclose(more[:B], loss, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(steeper[:B, :K], slope, rtol=2e-6, atol=1e-6)
    assert not np.asarray(more[B:]).any()
    assert not np.asarray(steeper)[~padded.mask].any()
    # What stands under the padding is not read.
    hidden = padded.replace(
        clicks=np.where(padded.mask, present(padded.clicks), 1),
        features={"document": np.where(padded.mask, padded.features["document"], 3), "score": padded.features["score"]},
    )
    np.testing.assert_array_equal(compiled(name)(hidden)[0], more)


@every
def test_a_list_has_the_same_loss_alone(name: str) -> None:
    whole, _ = compiled(name)(scored(batch()))
    for row in (0, 4):  # of four documents, and of one without a click
        loss, slope = compiled(name)(scored(batch())[row].pad(rows=B + 2, width=K + 3))
        assert np.isfinite(loss).all()
        assert np.isfinite(slope).all()
        if not BASELINES[name].together:
            np.testing.assert_allclose(loss[:1], whole[row : row + 1], rtol=2e-6, atol=1e-6)
    short = scored(batch())[4].unbiased().replace(
        clicks=present(batch().clicks)[4:5, :1], mask=batch().mask[4:5, :1], position=np.zeros((1, 1), np.int32),
        labels=present(batch().labels)[4:5, :1], features={"document": np.array([[6]]), "score": SCORES[4:5, :1]},
    )  # fmt: skip
    loss, slope = compiled(name)(short)
    assert loss.shape == slope.shape[:1] == (1,)
    np.testing.assert_allclose(loss, whole[4:], rtol=2e-6, atol=1e-6)
    loss, slope = compiled(name)(short.replace(mask=np.zeros((1, 1), bool)))
    assert not np.asarray(loss).any()
    assert not np.asarray(slope).any()


@every
def test_lists_without_clicks(name: str) -> None:
    sessions = scored(batch())
    loss, slope = compiled(name)(sessions.replace(clicks=np.zeros_like(sessions.clicks)))
    assert np.isfinite(loss).all()
    assert np.isfinite(slope).all()
    if (constant := BASELINES[name].clickless) is not None:
        np.testing.assert_array_equal(loss, np.full(B, constant))


@every
def test_scores_see_neither_clicks_nor_positions(name: str) -> None:
    model, sessions = BASELINES[name].build(towers.DocumentTable(V)), batch()
    scores = model.score(sessions)
    assert scores.shape == (B, K)
    np.testing.assert_array_equal(scores, model.score(sessions.unbiased()))
    missing = {"clicks": "needs clicks|learns from clicks|clicks", "labels": "learns from labels"}
    if reads := BASELINES[name].reads:
        with pytest.raises(ConfigError, match=missing[reads]):
            model.loss(sessions.replace(**{reads: None}))


@every
def test_a_rank_beyond_the_table_is_an_error(name: str) -> None:
    row, model, sessions = BASELINES[name], BASELINES[name].build(towers.DocumentTable(V)), batch()
    assert model.sufficient_statistics == row.statistics
    if not row.ranks:
        return
    deep = sessions.replace(position=np.where(sessions.mask, sessions.position + 1, 0))
    with pytest.raises(DataError, match=f"ranks up to {K} in {type(model).__name__}, found {K + 1}"):
        towers.check_bounds(model, deep)
    model.eval()
    assert np.isnan(model.loss(scored(deep.replace(clicks=np.ones_like(deep.clicks))))[0])
    with pytest.raises(DataError, match=rf"training data, row \d, field .rank.: expected ranks up to {K}"):
        ultr.fit(model, deep, seed=0, epochs=1)
    loss, _ = compiled(name)(scored(deep.replace(clicks=np.ones_like(deep.clicks))))
    assert np.isnan(loss[0])
    assert np.isfinite(loss[4])


@every
def test_a_saved_baseline_judges_as_before(name: str, tmp_path: Path) -> None:
    model, sessions = BASELINES[name].build(towers.DocumentTable(V)), batch()
    model.eval()
    nnx.update(model, jax.tree.map(lambda x: x + 0.37, nnx.state(model, nnx.Param)))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    again.eval()
    leaves = zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(nnx.state(model)), strict=True)
    assert all((a == b).all() for a, b in leaves)
    assert describe(again) == describe(model)
    if name in ONE_OF_EACH:
        np.testing.assert_array_equal(compiled_loss(again, sessions), compiled_loss(model, sessions))
    assert describe(build(json.loads(json.dumps(describe(model))))) == describe(model)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_training_moves_the_scores(name: str) -> None:
    model = BASELINES[name].build(towers.DocumentTable(V))
    fitted = ultr.fit(model, batch(), seed=0, epochs=2, batch_size=3)
    losses = [row["loss"] for row in fitted.history]
    assert np.isfinite(losses).all()
    assert fitted.history[0]["sessions"] == B
    before, after = np.asarray(model.score(batch())), np.asarray(fitted.model.score(batch()))
    assert np.isfinite(after).all()
    assert (after != before).any()
    assert ("effective_sample_size" in fitted.history[0]) == model.weighs_impressions


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """The batch nine times over, with a few different clicks, as a log."""
    rng, lists = np.random.default_rng(1), batch()
    rows = []
    for i in range(45):
        shown = lists.mask[i % B]
        rows.append(
            {
                "session": f"s{i}",
                "query": int(lists.query[i % B]),  # type: ignore[index]
                "documents": lists.features["document"][i % B][shown].tolist(),
                "ranks": (lists.position[i % B][shown] + 1).tolist(),
                "clicks": rng.integers(0, 2, int(shown.sum())).tolist(),
            }
        )
    documents = pa.table({"query": pa.array(QUERY[1:], pa.int32()), "document": [f"url {i}" for i in range(V)]})
    path = tmp_path_factory.mktemp("log") / "log"
    return write_log(path, rows, documents=documents, queries=pa.array(["a", "b"]))


@pytest.mark.parametrize("name", [name for name, row in BASELINES.items() if row.statistics == "rank"])
def test_pointwise_losses_are_the_same_on_counts(name: str, stored: ClickLog) -> None:
    model = BASELINES[name].build(_by_document)
    model.eval()

    def total(source: Any) -> float:
        sums = 0.0
        for sessions in source.batches(512):
            weight = np.ones(len(sessions)) if sessions.weight is None else sessions.weight
            sums += float(np.sum(np.asarray(compiled_loss(model, sessions)) * weight))
        return sums

    counts = collapse(stored, "rank")
    assert total(counts) == pytest.approx(total(stored), rel=1e-5)


def _by_document(sessions: Sessions) -> jax.Array:
    return jnp.sin(jnp.asarray(sessions.features["document"]).astype(jnp.float32))


@pytest.mark.parametrize("name", [name for name, row in BASELINES.items() if row.statistics != "rank"])
def test_other_losses_refuse_counts(name: str, stored: ClickLog) -> None:
    model = BASELINES[name].build(towers.DocumentTable(V))
    with pytest.raises(ConfigError, match="needs more than counts by rank"):
        ultr.fit(model, collapse(stored, "rank"), seed=0, epochs=1)
