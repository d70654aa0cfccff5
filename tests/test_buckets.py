"""Results by query frequency against direct means; metrics on several logs against `evaluate` on each."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from narrowing import present
from stored import QUERIES, make_rows, plain, write_log

from ultr import models, towers
from ultr.errors import ConfigError, DataError
from ultr.evaluation import (
    Estimate,
    across_policies,
    by_frequency,
    check_shared_vocabulary,
    evaluate,
    query_frequency,
)
from ultr.sessions import Sessions

KEY = jax.random.key(1)


def log_of(counts, weight=None) -> Sessions:
    """So many sessions of query 0, 1, 2, ..."""
    query = np.repeat(np.arange(len(counts)), counts)
    return Sessions.from_lists(clicks=[[0]] * len(query), query=query, weight=weight)


def summary(buckets):
    return [(b.name, b.least, b.most, b.queries, b.sessions) for b in buckets]


def test_frequencies_are_counts_or_weights():
    log = log_of([3, 0, 2])
    assert query_frequency(log, np.array([2, 0, 1, 9])).tolist() == [2, 3, 0, 0]
    weighted = log_of([3, 0, 2], weight=[1, 2, 3, 0.5, 0])
    assert query_frequency(weighted, np.array([0, 2])).tolist() == [6, 0.5]


def test_frequencies_of_a_log_on_disk_and_of_its_split(tmp_path):
    log = write_log(tmp_path / "log", plain(make_rows(60)))
    rows = make_rows(60)
    expected = [sum(row["weight"] for row in rows if row["query"] == q) for q in range(7)]
    assert query_frequency(log, np.arange(7)) == pytest.approx(expected)
    parts = log.split({"a": 0.5, "b": 0.5}).values()
    assert sum(query_frequency(part, np.arange(7)) for part in parts) == pytest.approx(expected)


def test_head_torso_and_tail_have_a_third_of_the_sessions_each():
    # 30 sessions: a third is reached with the first query, two thirds with the third, the rest is tail.
    counts = [12, 5, 4, 3, 3, 2, 1]
    values = np.arange(8.0)
    found = by_frequency(np.arange(8), values, log_of(counts))
    assert summary(found) == [
        ("head", 12, 12, 1, 12),
        ("torso", 4, 5, 2, 9),
        ("tail", 1, 3, 4, 9),
        ("unseen", 0, 0, 1, 0),
    ]
    for bucket, inside in zip(found, ([0], [1, 2], [3, 4, 5, 6], [7]), strict=True):
        assert bucket.value.to_json() == Estimate.mean(values[inside]).to_json()


def test_queries_of_equal_frequency_stay_together():
    assert summary(by_frequency(np.arange(6), np.zeros(6), log_of([2] * 6))) == [("head", 2, 2, 6, 12)]
    found = by_frequency(np.arange(6), np.zeros(6), log_of([1, 1, 1, 1, 5, 5]), buckets=3)
    assert summary(found) == [("5", 5, 5, 2, 10), ("1", 1, 1, 4, 4)]


def test_buckets_of_equally_many_queries_and_of_given_bounds():
    counts = np.arange(1, 10)
    found = by_frequency(np.arange(9), np.zeros(9), log_of(counts), buckets=3)
    assert summary(found) == [
        ("7 to 9", 7, 9, 3, 7 + 8 + 9),
        ("4 to 6", 4, 6, 3, 4 + 5 + 6),
        ("1 to 3", 1, 3, 3, 1 + 2 + 3),
    ]
    found = by_frequency(np.arange(9), np.zeros(9), log_of(counts), buckets=[3, 8])
    assert summary(found) == [
        ("8 to 9", 8, 9, 2, 17),
        ("3 to 7", 3, 7, 5, 25),
        ("below 3", 1, 2, 2, 3),
    ]


def test_differences_are_over_queries_with_both_values():
    a, b = np.array([0.5, np.nan, 0.25, 0.75]), np.array([0.25, 0.5, np.nan, 0.5])
    head, unseen = by_frequency(np.array([0, 1, 2, 3]), a, log_of([4, 4, 4]), minus=b)
    assert (head.value.value, head.value.count, head.value.excluded) == (0.25, 1, 2)
    assert (unseen.name, unseen.value.value) == ("unseen", 0.25)
    assert math.isnan(head.value.standard_error)
    assert json.loads(json.dumps(head.to_json()))["value"]["count"] == 1


def test_a_log_that_shows_none_of_the_queries():
    (only,) = by_frequency(np.array([7, 8]), np.ones(2), log_of([3]))
    assert summary([only]) == [("unseen", 0, 0, 2, 0)]


def test_what_cannot_be_put_into_buckets_says_why():
    log = log_of([1, 2])
    with pytest.raises(DataError, match="over the same queries"):
        by_frequency(np.arange(2), np.zeros(3), log)
    with pytest.raises(DataError, match="found one twice"):
        by_frequency(np.zeros(2), np.zeros(2), log)
    with pytest.raises(DataError, match="query ids"):
        by_frequency(np.arange(2), np.zeros(2), log.replace(query=None))
    for bad in ("halves", 0, [], [2, 1], [0, 1]):
        with pytest.raises(ConfigError, match="expected"):
            by_frequency(np.arange(2), np.zeros(2), log, buckets=bad)


def pbm(log) -> models.PBM:
    return models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(log.ranks))


@pytest.mark.slow
def test_metrics_on_several_logs_are_those_of_each(tmp_path):
    rows = plain(make_rows(120))
    first = write_log(tmp_path / "first", rows[:80])
    second = write_log(tmp_path / "second", rows[80:])
    model = pbm(first)
    found = {row.metric: row for row in across_policies(model, {"in": first, "out": second}, metrics=["perplexity"])}
    expected = {
        name: evaluate(model, log, metrics=["perplexity"], key=KEY)["perplexity"]
        for name, log in (("in", first), ("out", second))
    }
    row = found["perplexity"]
    assert row.values == expected
    assert list(row.differences) == ["out"]
    difference = row.differences["out"]
    assert difference.value == expected["out"].value - expected["in"].value
    errors = [expected[name].standard_error for name in ("in", "out")]
    assert difference.standard_error == pytest.approx(math.hypot(*errors))
    assert difference.interval[0] < difference.value < difference.interval[1]
    assert json.loads(json.dumps(row.to_json()))["metric"] == "perplexity"


def test_a_model_of_the_logger_alone_is_found_out_on_shuffled_lists():
    rng = np.random.default_rng(0)
    relevance, examined = np.array([0.0, 0.8, 0.4, 0.1]), np.array([0.9, 0.6, 0.5])

    def log(shuffled: bool, sessions: int = 4000) -> Sessions:
        documents = np.tile([1, 2, 3], (sessions, 1))
        documents = rng.permuted(documents, axis=1) if shuffled else documents
        clicks = rng.random((sessions, 3)) < examined * relevance[documents]
        return Sessions.from_lists(features={"document": documents}, clicks=clicks.astype(int))

    logit = lambda p: jnp.asarray(np.log(p / (1 - p)), jnp.float32)  # noqa: E731
    by_rank = logit(examined * relevance[1:])
    true = models.PBM(
        relevance=lambda s: logit(np.append(0.5, relevance[1:]))[s.features["document"]],
        examination=lambda s: logit(examined)[s.position],
    )
    logger = models.RCTR(lambda s: by_rank[s.position])
    logs = {"logged": log(False), "shuffled": log(True)}
    (of_users,), (of_logger,) = (across_policies(model, logs, metrics=["perplexity"]) for model in (true, logger))
    same = of_users.values["logged"].value - of_logger.values["logged"].value
    assert same == pytest.approx(0, abs=1e-5)  # where the logger always does the same
    assert of_users.values["shuffled"].interval[1] < of_logger.values["shuffled"].interval[0]


def test_independent_logs_differ_by_no_more_than_the_interval_says():
    rng = np.random.default_rng(1)
    model = models.RCTR(lambda s: jnp.zeros(s.shape) - 1.0)

    def one():
        logs = {n: Sessions.from_lists(clicks=(rng.random((200, 2)) < 0.3).astype(int)) for n in "ab"}
        (row,) = across_policies(model, logs, metrics=["log_likelihood"])
        return row.differences["b"]

    found = [one() for _ in range(100)]
    covered = np.mean([e.interval[0] <= 0 <= e.interval[1] for e in found])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 100)


def test_logs_with_other_ids_are_rejected(tmp_path):
    rows = plain(make_rows(30))
    first = write_log(tmp_path / "first", rows)
    other = write_log(tmp_path / "other", rows, queries=pa.array([f"another {q}" for q in QUERIES]))
    with pytest.raises(DataError, match="other document ids"):
        across_policies(pbm(first), {"in": first, "out": other})
    with pytest.raises(DataError, match="other document ids"):
        check_shared_vocabulary(present(first.collection()), log_of([1]), other)
    check_shared_vocabulary(first, present(first.collection()), log_of([1]))
    with pytest.raises(ConfigError, match="at least two logs"):
        across_policies(pbm(first), {"in": first})
