"""What a log does not show: support of features, expected loss and exploration, against formulas and known worlds."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Ultr
from scipy import stats
from stored import write_log

from ultr.data import ClickLog, collapse
from ultr.errors import DataError
from ultr.identifiability import diagnose_candidates, support_of
from ultr.identifiability.candidates import best_dcg, predict_relevance

QUERIES, EACH = 30, 5
EXAMINED = np.array([1.0, 0.6, 0.4])


def test_support_is_the_share_of_shown_documents_that_lie_as_far_out() -> None:
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(20_000, 3)) @ rng.normal(size=(3, 3)) + 5
    other = rng.normal(size=(200, 3)) * 3 + 5
    found = support_of(shown, other)
    away = other - shown.mean(0)
    distance = np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.cov(shown.T, bias=True)), away)
    np.testing.assert_allclose(found, stats.chi2(3).sf(distance), atol=0.015)  # of normal features
    assert ((found >= 0) & (found <= 1)).all()
    matrix = rng.normal(size=(3, 3))
    np.testing.assert_allclose(support_of(shown @ matrix + 1, other @ matrix + 1), found, atol=1e-3)
    np.testing.assert_allclose(np.quantile(support_of(shown, shown), [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_support_beyond_what_was_shown() -> None:
    shown = np.array([[-1.0, 2.0], [1.0, 2.0], [0.0, 2.0], [0.5, 2.0]])
    found = support_of(shown, np.array([[100.0, 2.0], [0.2, 2.0], [0.2, 2.5]]))
    np.testing.assert_allclose(found, [1 / 5, 1.0, 0.0])  # N + 1 = 5; a direction that the shown ones do not have
    np.testing.assert_array_equal(support_of(np.ones((3, 1)), np.array([[1.0], [1.1]])), [1.0, 0.0])
    for bad in ((np.zeros((0, 2)), np.zeros((1, 2))), (np.zeros((3, 2)), np.zeros((1, 3)))):
        with pytest.raises(DataError, match="expected tables"):
            support_of(*bad)
    with pytest.raises(DataError, match="finite"):
        support_of(shown, np.array([[np.nan, 1.0]]))


def test_the_best_dcg_is_that_of_the_best_order() -> None:
    rng = np.random.default_rng(0)
    relevance, place = rng.random(9), np.array([0, 1, 0, 1, 1, 0, 2, 1, 0])
    for cutoff in (2, 10):
        expected = [
            max(
                sum(r / math.log2(1 + k) for k, r in enumerate(order, 1) if k <= cutoff)
                for order in itertools.permutations(relevance[place == q])
            )
            for q in range(3)
        ]
        np.testing.assert_allclose(best_dcg(relevance, place, 3, cutoff=cutoff), expected)


def test_the_regression_finds_what_features_tell_and_the_scatter_they_leave() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(4000), rng.normal(size=4000)])
    relevance = np.clip(0.5 + 0.08 * x[:, 1] + rng.normal(0, 0.1, 4000), 0, 1)
    n = np.where(np.arange(4000) < 3000, rng.integers(20, 200, 4000), 0).astype(float)
    c = rng.poisson(n * relevance).astype(float)
    predicted, scatter = predict_relevance(x, n, c, np.ones(4000))
    assert scatter == pytest.approx(0.1, rel=0.1)
    np.testing.assert_allclose(predicted[3000:], 0.5 + 0.08 * x[3000:, 1], atol=0.02)
    own, noise = scatter**2, 0.5 / n[:3000]
    mean = 0.5 + 0.08 * x[:3000, 1]
    expected = mean + own / (own + noise) * (c[:3000] / n[:3000] - mean)
    np.testing.assert_allclose(predicted[:3000], np.clip(expected, 0, 1), atol=0.02)


def relevance_of(feature: np.ndarray) -> np.ndarray:
    return np.asarray(0.4 + 0.15 * feature)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClickLog, np.ndarray]:
    """Lists of three of five documents; relevance is linear in the first feature, which [q, d] array is returned."""
    rng = np.random.default_rng(3)
    feature = rng.uniform(-1, 1, (QUERIES, EACH))
    rows = []
    for i in range(6000):
        q, chosen = i % QUERIES, rng.permutation(3)
        clicks = rng.random(3) < EXAMINED * relevance_of(feature[q, chosen])
        rows.append({"session": str(i), "query": q, "documents": (q * EACH + chosen + 1).tolist(), "ranks": [1, 2, 3],
                     "clicks": clicks.astype(int).tolist()})  # fmt: skip
    flat = np.stack([feature.ravel(), rng.normal(size=QUERIES * EACH)], 1).astype(np.float32).ravel()
    documents: Any = pa.table(
        {
            "query": pa.array(np.repeat(np.arange(QUERIES), EACH), pa.int32()),
            "document": [f"url {i}" for i in range(QUERIES * EACH)],
            "label": pa.array(np.zeros(QUERIES * EACH, np.float32)),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(flat), 2),
        }
    )
    path = tmp_path_factory.mktemp("candidates") / "log"
    return write_log(path, rows, documents=documents, queries=pa.array([f"q{i}" for i in range(QUERIES)])), feature


def test_the_expected_loss_is_that_of_the_true_relevance(world: tuple[ClickLog, np.ndarray]) -> None:
    log, feature = world
    found = diagnose_candidates(log)
    assert (found.queries, found.candidates, found.shown) == (QUERIES, QUERIES * EACH, 3 * QUERIES)
    assert found.share_by_query == (0.6,) * 5
    true, place = relevance_of(feature).ravel(), np.repeat(np.arange(QUERIES), EACH)
    seen = np.tile(np.arange(EACH) < 3, QUERIES)
    whole = best_dcg(true, place, QUERIES).mean()
    loss = whole - best_dcg(np.where(seen, true, 0.0), place, QUERIES).mean()
    assert found.dcg == pytest.approx(whole, rel=0.1)
    assert found.interval[0] <= loss <= found.interval[1]
    assert found.loss == pytest.approx(loss, rel=0.15)
    assert found.outside is not None
    assert found.outside < 0.2
    by_counts = diagnose_candidates(collapse(log, "rank"))
    assert by_counts.loss == pytest.approx(found.loss)
    for swap in found.plan:
        query, document = int(swap.query[1:]), int(swap.document.split()[1])
        assert document // EACH == query
        assert document % EACH >= 3  # never shown
        assert swap.rank == 3
        assert 0 < swap.sessions <= 0.5 * 6000 / QUERIES


def test_candidates_of_a_collection_are_found_by_name(
    ultr: Ultr, world: tuple[ClickLog, np.ndarray], tmp_path: Path
) -> None:
    log, _ = world
    lists = log.collection()
    assert lists is not None
    assert diagnose_candidates(log, lists).loss == pytest.approx(diagnose_candidates(log).loss)
    rows = [f"0 qid:{q} 1:{q}.5 2:1.0 #docid = d{d}" for q in range(3) for d in range(4)]
    (tmp_path / "other.txt").write_text("\n".join(rows))
    assert ultr("prepare", tmp_path / "other.txt", "--format", "letor", "--out", tmp_path / "other").code == 0
    found = ultr("diagnose", log.path, "--candidates", tmp_path / "other")
    assert found.code == 2
    assert "expected candidates of queries of the log, found none" in found.err


def test_candidates_of_a_table_are_those_of_a_collection(
    ultr: Ultr, world: tuple[ClickLog, np.ndarray], tmp_path: Path
) -> None:
    log, _ = world
    assert log.vocabulary.features is not None
    names, queries = log.vocabulary.document_names.to_pylist(), log.vocabulary.query_names.to_pylist()
    features = log.vocabulary.feature_names
    rows = [",".join(["query", "url", "title", *features])]
    for i, name in enumerate(names, 1):
        values = [repr(float(x)) for x in log.vocabulary.features[i]]
        rows.append(",".join([queries[log.vocabulary.document_query[i]], name, "text", *values]))
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    found = ultr("diagnose", log.path, "--candidates", tmp_path / "table.csv", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["candidates"]["loss"] == pytest.approx(diagnose_candidates(log).loss)
    (tmp_path / "table.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows) + "\n")
    found = ultr("diagnose", log.path, "--candidates", tmp_path / "table.csv")
    assert found.code == 2
    assert "expected the features that the log has" in found.err


def test_the_command_says_what_is_not_shown(ultr: Ultr, world: tuple[ClickLog, np.ndarray]) -> None:
    log, _ = world
    text = ultr("diagnose", log.path).out
    assert "Candidates: 90 of 150 (60%) were ever shown, 60% in the median query (60% to 60%)." in text
    assert "Expected loss without them: " in text
    found = json.loads(ultr("diagnose", log.path, "--json").out)["candidates"]
    assert found["shown"] == 90
    assert found["interval"][0] <= found["loss"] <= found["interval"][1]


def test_without_features_the_loss_is_withheld(tmp_path: Path) -> None:
    rows = [{"session": str(i), "query": 0, "documents": [1 + i % 2, 2 - i % 2], "ranks": [1, 2], "clicks": [1, i % 2]}
            for i in range(40)]  # fmt: skip
    documents = pa.table({"query": pa.array([0] * 4, pa.int32()), "document": [f"url {i}" for i in range(4)]})
    log = write_log(tmp_path / "log", rows, documents=documents, queries=pa.array(["q"]))
    found = diagnose_candidates(log)
    assert (found.shown, found.candidates) == (2, 4)
    assert np.isnan(found.loss)
    assert found.outside is None
    assert "What that costs is not known: there are no features" in found.text()
    assert found.to_json()["loss"] is None
