"""Logs and counts of the position-based model, for the tests of propensities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ultr.data import ClickLog, LogWriter
from ultr.propensity import ESTIMATORS, Propensities
from ultr.propensity.arm_counts import ArmCounts

BOOTSTRAPPED = tuple(name for name, spec in ESTIMATORS.items() if spec.resampled)
RATES = ("randomised", "ctr")
HARVESTING = tuple(name for name in ESTIMATORS if name not in RATES)
every_method = pytest.mark.parametrize("name", ESTIMATORS)
every_bootstrapped = pytest.mark.parametrize("name", BOOTSTRAPPED)
every_harvesting = pytest.mark.parametrize("name", HARVESTING)

QUERIES, DOCUMENTS, RANKS = 60, 10, 8
THETA = 1 / np.arange(1, RANKS + 1)
GAMMA = np.random.default_rng(0).uniform(0.1, 0.9, (QUERIES, DOCUMENTS))


def counted(item: Any, rank: Any, impressions: Any, clicks: Any, query: Any, ranks: int | None = None) -> ArmCounts:
    """Makes `ArmCounts` from 1-based ranks."""
    arm = np.asarray(rank, np.int64) - 1
    return ArmCounts(
        item=np.asarray(item, np.int64),
        arm=arm,
        impressions=np.asarray(impressions, np.float64),
        clicks=np.asarray(clicks, np.float64),
        query=np.asarray(query, np.int64),
        arms=ranks or int(arm.max()) + 1,
    )


def others(found: Propensities) -> tuple[str, ...]:
    """Returns the warnings that are not about the number of queries."""
    return tuple(warning for warning in found.warnings if "percentile intervals of fewer than" not in warning)


def simulated(
    seed: int,
    *,
    sessions: int = 20_000,
    shuffled: float = 1.0,
    expected: bool = False,
    unlike: float = 0.0,
    gamma: np.ndarray = GAMMA,
) -> ArmCounts:
    """Simulates a log of the position-based model whose lists are best first, but for a share that is shuffled.

    Args:
      expected: expected clicks in place of drawn ones.
      unlike: standard deviation between queries of the logarithm of examination.
    """
    rng = np.random.default_rng(seed)
    queries, documents = gamma.shape
    query = rng.integers(queries, size=sessions)
    order = np.argsort(-gamma, axis=1)[query]
    shuffle = rng.random(sessions) < shuffled
    order[shuffle] = np.argsort(rng.random((shuffle.sum(), documents)), axis=1)
    order = order[:, :RANKS]
    theta = THETA * np.exp(unlike * rng.normal(size=(queries, RANKS)) * (np.arange(RANKS) > 0))
    p = np.minimum(theta[query] * gamma[query[:, None], order], 1.0)
    cell = ((query[:, None] * documents + order) * RANKS + np.arange(RANKS)).ravel()
    n = np.bincount(cell, minlength=gamma.size * RANKS)
    clicks = np.bincount(cell, p.ravel() if expected else rng.random(p.size) < p.ravel(), minlength=len(n))
    there = np.flatnonzero(n)
    return counted(
        there // RANKS, there % RANKS + 1, n[there], clicks[there], np.repeat(np.arange(queries), documents), RANKS
    )


def estimate(name: str, source: Any, **options: Any) -> Propensities:
    """Estimates by name, with 200 replicates where queries are resampled."""
    return ESTIMATORS[name].estimate(source, **({"replicates": 200} | options if name in BOOTSTRAPPED else options))


def assert_covers(found: Propensities, truth: np.ndarray, *, most: float) -> None:
    """Asserts that values are within four standard errors of the truth, and the relative errors below `most`."""
    assert found.unsupported == {}
    assert (found.value[0], found.standard_error[0]) == (1.0, 0.0)
    np.testing.assert_array_equal(found.interval[0], [1.0, 1.0])
    assert (np.abs(found.value - truth)[1:] < 4 * found.standard_error[1:]).all()
    assert (found.log_standard_error[1:] < most).all()
    assert ((found.interval[1:, 0] < found.value[1:]) & (found.value[1:] < found.interval[1:, 1])).all()


def spread_out(documents: int = 40, **changes: Any) -> ArmCounts:
    """Makes counts of documents, one per query, that were shown at ranks 1, 2 and 3, twenty times each."""
    item, rank = np.repeat(np.arange(documents), 3), np.tile([1, 2, 3], documents)
    clicks = np.resize([12.0, 6.0, 4.0, 12.0, 5.0, 5.0, 12.0, 7.0, 3.0, 12.0, 6.0, 4.0], len(item))
    for k, value in changes.get("clicks", {}).items():
        clicks[rank == k] = value
    return counted(item, rank, np.full(len(item), 20.0), clicks, np.arange(documents), changes.get("ranks"))


PHONE, DESK = np.arange(1, 5.0) ** -1.5, np.arange(1, 5.0) ** -0.5
KINDS = {"device": {"kind": "category", "values": ["phone", "desk", "watch"]}, "price": {"kind": "number"}}


def click_rows(sessions: int, *, seed: int = 0, context: bool = False, theta: Any = None) -> list[dict[str, Any]]:
    """Draws lists of 4 of the 6 documents of 12 queries; desks (device 2) have half the clicks and a flatter curve."""
    rng = np.random.default_rng(seed)
    gamma = np.random.default_rng(1).uniform(0.3, 0.95, (12, 6))
    rows = []
    for i in range(sessions):
        query, device = int(rng.integers(12)), int(rng.integers(1, 3))
        order = np.argsort(-gamma[query]) if i % 3 else rng.permutation(6)
        curve = (PHONE if device == 1 else DESK / 2) if theta is None else theta
        clicks = rng.random(4) < curve * gamma[query, order[:4]]
        row = {
            "session": str(i),
            "query": query,
            "documents": (query * 6 + order[:4] + 1).tolist(),
            "ranks": [1, 2, 3, 4],
            "clicks": clicks.astype(int).tolist(),
        }
        extra = {"context.device": device, "context.price": float(i % 8) - 2.0}
        rows.append(row | (extra if context else {}))
    return rows


def write_small(path: Path, rows: list[dict[str, Any]], **options: Any) -> ClickLog:
    """Writes rows as a click log of 12 queries with 6 documents each."""
    documents = pa.table({"query": pa.array(np.repeat(np.arange(12), 6), pa.int32()), "document": map(str, range(72))})
    context: Any = KINDS if "context.device" in rows[0] else {}
    with LogWriter(path, queries=pa.array(map(str, range(12))), documents=documents, context=context, **options) as out:
        out.write(pa.Table.from_pylist(rows))
    return ClickLog.open(path)


def click_log(path: Path, *, sessions: int, **options: Any) -> ClickLog:
    """Writes a click log of `click_rows`."""
    return write_small(path, click_rows(sessions, **options))
