"""Likeness to the logger: the order by formula, the information by known distributions and by simulation."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pyarrow as pa
import pytest
from narrowing import present
from stored import documents_table, make_rows, plain, write_log

from ultr.errors import ConfigError, DataError
from ultr.evaluation import Estimate, cloning, cmip, logged_order
from ultr.sessions import Sessions

KEY = jax.random.key(2)


class ByDocument:
    def __init__(self, values) -> None:
        self.values = np.asarray(values, np.float64)

    def score(self, sessions: Sessions):
        return self.values[np.asarray(sessions.features["document"])]


def shown(lists, path, *, labels=None, queries=None):
    """A log that shows these lists of document ids, 1 to 4 of query 0, 5 to 8 of query 1, and so on."""
    highest = max(max(documents) for documents in lists)
    many = -(-highest // 4)
    table = {
        "query": pa.array(np.repeat(np.arange(many), 4), pa.int32()),
        "document": [f"d{i}" for i in range(1, 4 * many + 1)],
    }
    if labels is not None:
        table["label"] = pa.array(np.asarray(labels, np.float32))
    rows = [
        {
            "session": i,
            "query": (documents[0] - 1) // 4,
            "documents": list(documents),
            "ranks": list(range(1, len(documents) + 1)),
            "clicks": [0] * len(documents),
        }
        for i, documents in enumerate(lists)
    ]
    names = pa.array([f"q{i}" for i in range(many)])
    return write_log(path, rows, documents=pa.table(table), queries=names, features=[])


def ndcg(places) -> float:
    """Of documents that the logger has at these places, in the model's order."""
    gains = [1 / place for place in places]
    ideal = sorted(gains, reverse=True)
    return sum(g / math.log2(r + 2) for r, g in enumerate(gains)) / sum(
        g / math.log2(r + 2) for r, g in enumerate(ideal)
    )


def test_the_target_is_the_order_by_mean_rank(tmp_path):
    # Mean ranks: document 2: 1, 1: (2 + 3) / 2, 3: (3 + 2) / 2, equal to that of 1; 4 is never shown.
    log = shown([[2, 1, 3], [2, 3, 1], [5, 6]], tmp_path / "log")
    lists, mean_rank = logged_order(log)
    assert lists.document.tolist() == [1, 2, 3, 5, 6]
    assert mean_rank.tolist() == [2.5, 1, 2.5, 1, 2]
    tied = (1 / 2 + 1 / 3) / 2
    assert 2**lists.labels - 1 == pytest.approx([tied, 1, tied, 1, 1 / 2], rel=1e-6)


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]])
def test_ndcg_rewards_the_logger_s_order(tmp_path, order):
    log = shown([[1, 2, 3, 4], [6], [12, 11, 10, 9]], tmp_path / "log", labels=[0, 1, 2, 3] * 3)
    scores = np.zeros(13)
    scores[order] = [4, 3, 2, 1]
    scores[9:] = [1, 2, 3, 4]  # as the logger has them
    found = cloning(ByDocument(scores), log, metric="ndcg", key=KEY)
    # The query with one document has no order.
    values = np.array([ndcg(order), 1.0])
    assert found.model.value == pytest.approx(values.mean(), rel=1e-5)
    assert found.model.count == 2
    assert present(found.grades).value == pytest.approx((ndcg([4, 3, 2, 1]) + 1) / 2, rel=1e-5)


def test_an_order_by_chance_is_told_too(tmp_path):
    log = shown([[4 * q + i for i in (1, 2, 3, 4)] for q in range(500)], tmp_path / "log")
    found = cloning(ByDocument(np.zeros(log.documents + 1)), log, metric="ndcg@2", key=KEY)
    gains = [1, 1 / 2, 1 / 3, 1 / 4]
    discounts = 1 + 1 / math.log2(3)
    expected = np.mean(gains) * discounts / (1 + 1 / 2 / math.log2(3))
    assert found.random.value == pytest.approx(expected, abs=4 * found.random.standard_error)
    assert found.model == found.random
    assert found.grades is None
    assert found.cmip is None


def test_a_log_with_features_and_grades(tmp_path):
    log = write_log(tmp_path / "log", plain(make_rows(300)), documents=documents_table())
    found = cloning(ByDocument(np.random.default_rng(0).random(log.documents + 1)), log, key=KEY)
    graded = np.isfinite(present(log.vocabulary.labels)[1:]).sum()
    assert present(found.cmip).documents == graded
    assert present(found.cmip).value.excluded == log.documents - graded
    assert abs(present(found.cmip).value.value) < 4 * present(found.cmip).value.standard_error
    assert json.loads(json.dumps(found.to_json()))["metric"] == "ndcg@10"


def test_a_model_that_reads_grades_sees_those_and_not_the_target(tmp_path):
    class Oracle:
        def score(self, sessions: Sessions):
            return sessions.labels

    log = shown([[1, 2, 3, 4]], tmp_path / "log", labels=[0, 1, 2, 3])
    found = cloning(Oracle(), log, metric="ndcg", key=KEY)
    assert found.model == found.grades
    assert found.model.value == pytest.approx(ndcg([4, 3, 2, 1]), rel=1e-5)


def table_of(joint, n: int, rng) -> tuple[np.ndarray, np.ndarray]:
    cells = rng.choice(joint.size, n, p=joint.ravel())
    return np.divmod(cells, joint.shape[1])


def mutual(joint) -> float:
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint * np.log(joint / product)).sum())


def test_information_is_that_of_a_known_table():
    rng = np.random.default_rng(1)
    joints = [(0.1 + 0.6 * np.eye(4)) / 4, np.full((4, 4), 1 / 16)]  # with even margins, so that bins are the values
    joints[0] /= joints[0].sum()
    parts = [table_of(joint, n, rng) for joint, n in zip(joints, (6000, 2000), strict=True)]
    x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
    z = np.repeat([0, 1], [6000, 2000])
    found = cmip(x, y, z, np.arange(8000), bins=4)
    expected = 0.75 * mutual(joints[0]) + 0.25 * 0
    assert found.value.value == pytest.approx(expected, abs=4 * found.value.standard_error)
    assert found.value.standard_error < 0.1 * expected
    assert found.p_value == 1 / 201
    # The mean of a plug-in estimate under independence: (rows - 1) (columns - 1) / 2n per grade.
    assert found.chance == pytest.approx(2 * 9 / (2 * 8000), rel=0.2)
    assert found.raw == pytest.approx(found.value.value + found.chance)


def test_information_of_normal_scores_is_approached_from_below():
    rng = np.random.default_rng(2)
    rho = 0.8
    x = rng.normal(size=40_000)
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=len(x))
    exact = -0.5 * math.log(1 - rho**2)
    found = [cmip(x, y, np.zeros(len(x)), np.arange(len(x)), bins=b, permutations=20).value.value for b in (2, 8, 24)]
    assert found == sorted(found)
    assert 0.9 * exact < found[-1] < exact
    # It depends on the order of the scores alone.
    assert cmip(np.exp(x), y**3, np.zeros(len(x)), np.arange(len(x)), bins=8, permutations=20).value.value == found[1]


def test_what_the_grades_explain_is_no_information():
    rng = np.random.default_rng(3)
    z = rng.integers(0, 5, 5000)
    x, y = z + 0.3 * rng.normal(size=(2, 5000))
    query = np.repeat(np.arange(500), 10)
    independent = cmip(x, y, z, query)
    assert abs(independent.value.value) < 3 * independent.value.standard_error
    assert cmip(x, y, np.zeros(5000), query).value.value > 0.5
    assert cmip(x, x + 0.2 * rng.normal(size=5000), z, query).value.value > 0.2


def test_p_values_and_intervals_keep_their_promise():
    rng = np.random.default_rng(4)
    null, covered = [], 0
    joint = (0.4 + 0.6 * np.eye(4)) / 4
    joint /= joint.sum()
    for _ in range(150):
        z = rng.integers(0, 2, 400)
        x, y = rng.normal(size=(2, 400))
        null.append(cmip(x, y, z, np.arange(400), bins=4, permutations=40).p_value)
        x, y = table_of(joint, 400, rng)
        low, high = cmip(x, y, np.zeros(400), np.arange(400), bins=4, permutations=40).value.interval
        covered += low <= mutual(joint) <= high
    assert np.mean(np.array(null) <= 0.1) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 150)
    assert np.mean(null) == pytest.approx(0.5, abs=0.1)
    assert covered / 150 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)


def test_documents_of_a_query_that_agree_make_the_interval_wider():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 200))
    y += x
    x, y = [np.repeat(column, 5) for column in (x, y)]
    alone, together = (cmip(x, y, np.zeros(1000), query).value for query in (np.arange(1000), np.arange(1000) // 5))
    assert together.standard_error > 1.5 * alone.standard_error
    assert isinstance(together, Estimate)
    assert together.count == 200


def test_what_cannot_be_compared_says_why(tmp_path):
    x = np.arange(10.0)
    with pytest.raises(ConfigError, match="at least 2 bins and 20 permutations"):
        cmip(x, x, x, x, bins=1)
    with pytest.raises(DataError, match=r"four arrays \[D\]"):
        cmip(x, x[1:], x, x)
    with pytest.raises(DataError, match="a grade with at least two documents"):
        cmip(x, x, x, x)
    with pytest.raises(DataError, match="a grade with at least two documents"):
        cmip(x, x, np.full(10, np.nan), x)
    log = shown([[1], [5]], tmp_path / "log")
    with pytest.raises(DataError, match="queries with several documents"):
        cloning(ByDocument(np.zeros(9)), log, key=KEY)
    with pytest.raises(ConfigError, match="expected ndcg or ndcg@k"):
        cloning(ByDocument(np.zeros(9)), log, key=KEY, metric="mrr")
