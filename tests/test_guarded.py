"""The ranker that corrects the logged order: its score, its estimate of that order, and the choice of its strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Ultr
from flax import nnx

from ultr import baselines, simulate, towers
from ultr.baselines.guarded import logged_places
from ultr.data import ClickLog, Collection, collapse
from ultr.errors import ConfigError
from ultr.evaluation.ranking_gains import RankingGain
from ultr.sessions import Sessions
from ultr.study.cross_fitting import CrossFitting
from ultr.study.guarding import CORRECTIONS, choose_correction
from ultr.study.held_out import document_scores
from ultr.training import load, save

V, F = 6, 2


def graded(seed: int = 0, queries: int = 40, documents: int = 8) -> Collection:
    """Lists whose grade follows the first feature and noise; the second feature tells nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(queries * documents, 3)).astype(np.float32)
    grades = np.clip(np.round(1 + features[:, 0] + rng.normal(0, 0.7, len(features))), 0, 3)
    return Collection.from_arrays(
        query=np.repeat(np.arange(queries), documents), label=grades, features=features
    )  # fmt: skip


@pytest.fixture(scope="module")
def weak_log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """Clicks on a logger that knows little, which shows most documents at several ranks."""
    policy = simulate.Policy("strength", strength=0.3, temperature=0.7)
    out = tmp_path_factory.mktemp("weak") / "log"
    return simulate.clicks(graded(), policy, simulate.user("pbm", grades=3), sessions=4000, seed=1, out=out, ranks=6)


def lists(rng: np.random.Generator) -> Sessions:
    mask = np.array([[True] * 4, [True, True, False, False]])
    return Sessions(
        mask=mask,
        position=np.where(mask, np.arange(4, dtype=np.int32), 0),
        features={
            "document": np.where(mask, rng.integers(1, V + 1, mask.shape), 0).astype(np.int32),
            "features": np.where(mask[:, :, None], rng.normal(size=(*mask.shape, F)), 0).astype(np.float32),
        },
        clicks=mask.astype(np.int8),
    )


def parts() -> tuple[Any, Any]:
    ranker = baselines.NaiveListwise(relevance=towers.Linear(F, rngs=nnx.Rngs(0)))
    return ranker, towers.Linear(F, rngs=nnx.Rngs(1))


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_score_is_the_mean_of_both_in_their_units(c: float) -> None:
    ranker, logger = parts()
    made = baselines.GuardedRanker(
        ranker=ranker, logger=logger, correction=c, ranker_spread=2.0, logger_spread=0.5
    )  # fmt: skip
    batch = lists(np.random.default_rng(0))
    wanted = (1 - c) * np.asarray(logger(batch)) / 0.5 + c * np.asarray(ranker.score(batch)) / 2
    np.testing.assert_allclose(made.score(batch), wanted, rtol=1e-5)
    np.testing.assert_array_equal(made.loss(batch), ranker.loss(batch))
    assert made.sufficient_statistics == ranker.sufficient_statistics


def test_unknown_documents_keep_the_logged_order() -> None:
    ranker, logger = parts()
    made = baselines.GuardedRanker(ranker=ranker, logger=logger, correction=0.5, documents=V)
    batch = lists(np.random.default_rng(0))
    np.testing.assert_allclose(made.score(batch), logger(batch), rtol=1e-6)
    made.known[...] = np.arange(V + 1) == batch.features["document"][0, 0]
    score, logged = np.asarray(made.score(batch)), np.asarray(logger(batch))
    same = batch.features["document"] == batch.features["document"][0, 0]
    assert (score[same] != logged[same]).all()
    np.testing.assert_allclose(score[~same], logged[~same], rtol=1e-6)


def test_the_logger_is_not_trained() -> None:
    ranker, logger = parts()
    made = baselines.GuardedRanker(ranker=ranker, logger=logger, correction=0.5)
    trained = [path for path, node in nnx.iter_graph(made) if isinstance(node, nnx.Param)]
    assert trained
    assert all("ranker" in path for path in trained)


@pytest.mark.parametrize("option", [{"correction": -0.1}, {"correction": 1.1}, {"ranker_spread": 0.0}])
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    ranker, logger = parts()
    with pytest.raises(ConfigError):
        baselines.GuardedRanker(ranker=ranker, logger=logger, **({"correction": 0.5} | option))  # type: ignore[arg-type]


def test_places_are_means_over_the_sessions_of_the_query(weak_log: ClickLog) -> None:
    wanted, sessions = np.zeros(weak_log.documents + 1), np.zeros(weak_log.vocabulary.queries)
    for batch in weak_log.columns(["query", "documents", "ranks"]):
        np.add.at(sessions, batch["query"].to_numpy(), 1)
        for documents, ranks in zip(batch["documents"].to_pylist(), batch["ranks"].to_pylist(), strict=True):
            wanted[documents] += weak_log.ranks + 1 - np.array(ranks)
    query = weak_log.vocabulary.document_query
    np.testing.assert_allclose(logged_places(collapse(weak_log, "rank"))[1:], (wanted[1:] / sessions[query[1:]]))


def test_a_linear_logger_is_found_again(tmp_path: Path) -> None:
    """The fit orders unseen lists as the logger does, and a table of documents the shown ones."""
    collection, policy = graded(), simulate.Policy("linear", share=0.2, temperature=0.05)
    log = simulate.clicks(
        collection, policy, simulate.user("pbm", grades=3), sessions=400, seed=1, out=tmp_path / "log"
    )  # fmt: skip
    found = baselines.fit_logged_order(collapse(log, "rank"))
    assert found.agreement > 0.97
    other = graded(seed=5)
    logger = policy.fitted(collection, seed=1).standard(other.features, other.labels, other.document)
    ours = np.asarray(found.tower.forward(found.tower.scaler(other.features)))
    assert np.corrcoef(logger, ours)[0, 1] > 0.99


def test_a_feature_with_the_score_is_taken_as_it_is(weak_log: ClickLog) -> None:
    counts = collapse(weak_log, "rank")
    name = weak_log.vocabulary.feature_names[1]
    found = baselines.fit_logged_order(counts, score=name)
    shown = np.unique(counts.document)
    scores = document_scores(baselines.NaiveListwise(relevance=found.tower), weak_log.vocabulary, shown)
    features = weak_log.vocabulary.features
    assert features is not None
    order = np.argsort(features[shown, 1])
    assert (np.diff(scores[order]) >= -1e-5).all()
    with pytest.raises(ConfigError, match="no feature 'bm25'"):
        baselines.fit_logged_order(counts, score="bm25")


def gains(*values: tuple[float, float]) -> list[RankingGain]:
    padded = [*values, *[(0.0, 1.0)] * (len(CORRECTIONS) - len(values))]
    return [RankingGain(value, error, 100) for value, error in padded]


def test_the_largest_gain_with_a_lower_bound_above_0_decides() -> None:
    good = RankingGain(0.2, 0.01, 100)
    assert choose_correction(gains((0.0, 0.0), (0.04, 0.01), (0.05, 0.03), (0.2, 0.2)), good)[0] == CORRECTIONS[2]
    kept, reason = choose_correction(gains((0.0, 0.0), (0.01, 0.01), (0.1, 0.2)), good)
    assert kept == 0
    assert "logged order is kept" in reason


def test_clicks_that_invert_the_logged_order_are_not_followed() -> None:
    inverted = RankingGain(-0.1, 0.02, 100)
    kept, reason = choose_correction(gains((0.0, 0.0), (0.5, 0.01)), inverted)
    assert kept == 0
    assert "worse than a random one" in reason
    assert choose_correction(gains((0.0, 0.0), (0.5, 0.01)), RankingGain(-0.1, 0.2, 100))[0] == CORRECTIONS[1]


def test_a_guarded_ranker_is_saved_and_loaded(tmp_path: Path, weak_log: ClickLog) -> None:
    counts = collapse(weak_log, "rank")
    found = baselines.fit_logged_order(counts)
    ranker = baselines.NaiveListwise(relevance=towers.Linear(3, rngs=nnx.Rngs(0)))
    made = baselines.GuardedRanker(ranker=ranker, logger=found.tower, correction=0.4, ranker_spread=1.7)
    save(made, tmp_path / "model")
    again = load(tmp_path / "model")
    batch = next(weak_log.batches(16))
    np.testing.assert_allclose(again.score(batch), made.score(batch), rtol=1e-6)
    assert again.correction == 0.4
    assert len(jax.tree.leaves(nnx.state(again))) == len(jax.tree.leaves(nnx.state(made)))


def test_folds_hold_every_shown_query_once(tmp_path: Path, weak_log: ClickLog) -> None:
    data = CrossFitting(weak_log, by="query", seed=3, work=tmp_path)
    whole = data.counts("rank")
    held_out = [data.counts("rank", fold, held_out=True) for fold in range(data.folds)]
    assert sum(part.clicks.sum() for part in held_out) == whole.clicks.sum()
    for fold, part in enumerate(held_out):
        rest = data.counts("rank", fold)
        assert not set(part.query) & set(rest.query)
        assert len(part) + len(rest) == len(whole)
        assert len(data.sessions(fold)) + len(data.sessions(fold, held_out=True)) == len(weak_log)


def test_a_log_whose_features_are_those_of_impressions_is_refused_with_the_reason(ultr: Ultr, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["session,query,document,rank,click,price"]
    for session in range(200):
        for rank in (1, 2, 3):
            lines.append(f"{session},q{session % 9},d{rank},{rank},{int(rng.random() < 0.4)},{rng.random():.3f}")
    (tmp_path / "raw.csv").write_text("\n".join(lines))
    made = ultr("prepare", tmp_path / "raw.csv", "--feature", "price", "--out", tmp_path / "log")
    assert made.code == 0, made.err
    for options in (["--safe"], ["--model", "auto"], ["--safe", "--relevance", "table"]):
        said = ultr("train", tmp_path / "log", "--out", tmp_path / "run", *options)
        assert said.code == 2
        assert "this log has features of impressions" in said.err
        assert not (tmp_path / "run").exists()
