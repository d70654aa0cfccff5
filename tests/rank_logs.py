"""Counts of logs with known ranks and clicks, and what they identify, for the tests of identifiability."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.data import Counts, Vocabulary


def make_counts(
    impressions: np.ndarray,
    clicks: np.ndarray,
    query: np.ndarray,
    *,
    sessions: float | None = None,
    x: np.ndarray | None = None,
    ranks: int | None = None,
) -> Counts:
    """Counts of D documents at K ranks, both [D, K], of queries [D]; features x [D, F]."""
    documents = {
        "query": pa.array(query, pa.int32()),
        "document": pa.array([f"d{i}" for i in range(len(query))]),
    }
    if x is not None:
        flat = pa.array(np.asarray(x, np.float32).ravel())
        documents["features"] = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    names = pa.table({"query": [f"q{i}" for i in range(int(max(query)) + 1)]})
    columns = [f"x{i}" for i in range(0 if x is None else x.shape[1])]
    document, rank = np.nonzero(impressions)
    total = float(impressions[:, 0].sum()) if sessions is None else sessions
    return Counts(
        sufficient_statistics="rank",
        document=(document + 1).astype(np.int32),
        rank=(rank + 1).astype(np.int32),
        last_click=None,
        impressions=impressions[document, rank],
        clicks=clicks[document, rank],
        sessions=int(total),
        weight=total,
        documents=len(query),
        ranks=impressions.shape[1] if ranks is None else ranks,
        vocabulary=Vocabulary.from_tables(names, pa.table(documents), features=columns),
        identity={},
    )


def ranked(lists: list[tuple[int, list[int], int]], ranks: int) -> Counts:
    """(query, its documents from rank 1 on, sessions) with as many clicks as 1/rank and a relevance of .5 expect."""
    queries = sorted({q for q, _, _ in lists})
    keys = sorted({(q, d) for q, shown, _ in lists for d in shown})
    row = {key: i for i, key in enumerate(keys)}
    n = np.zeros((len(keys), ranks), np.int64)
    for q, shown, sessions in lists:
        for k, d in enumerate(shown):
            n[row[q, d], k] += sessions
    clicks = np.round(n * 0.5 / np.arange(1, ranks + 1)).astype(np.int64)
    assert queries == list(range(len(queries)))
    return make_counts(n, clicks, np.array([q for q, _ in keys]))


def logged(
    kind: str, *, queries: int = 40, sessions: int = 20_000, ranks: int = 6, seed: int = 0, share: float = 0.1
) -> tuple[Counts, np.ndarray]:
    """(counts, relevance [D]) of a logger that ranks by relevance: always, but for random or adjacent exchanges."""
    rng = np.random.default_rng(seed)
    gamma = np.sort(rng.uniform(0.1, 0.7, (queries, ranks)), axis=1)[:, ::-1].ravel()
    per_query = rng.multinomial(sessions, np.full(queries, 1 / queries))
    shown = np.zeros((queries, ranks, ranks), np.int64)
    for q, total in enumerate(per_query):
        orders = np.tile(np.arange(ranks), (total, 1))
        changed = rng.random(total) < share
        if kind == "random":
            orders[changed] = rng.permuted(orders[changed], axis=1)
        elif kind == "adjacent":
            rows, i = np.flatnonzero(changed), rng.integers(ranks - 1, size=int(changed.sum()))
            orders[rows, i], orders[rows, i + 1] = i + 1, i
        np.add.at(shown[q], (orders, np.arange(ranks)), 1)
    n = shown.reshape(-1, ranks)
    clicks = rng.binomial(n, gamma[:, None] / np.arange(1, ranks + 1))
    return make_counts(n, clicks, np.repeat(np.arange(queries), ranks)), gamma


def dense(counts: Counts) -> np.ndarray:
    out = np.zeros((counts.documents, counts.ranks))
    out[counts.document - 1, counts.rank - 1] = counts.impressions
    return out


def relevance(n: np.ndarray, counts: Counts, theta: np.ndarray) -> np.ndarray:
    """[D] clicks per examination, with one examination more of the average of the same typical rank."""
    clicks, examined = np.bincount(counts.document - 1, counts.clicks, len(n)), n @ theta
    average = clicks.sum() / examined.sum()
    alike = n.argmax(1) == n.argmax(1)[:, None]
    return (clicks + (alike @ clicks + average) / (alike @ examined + 1)) / (examined + 1)


def fisher(expected: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Minus the second derivative of an expected log-likelihood, by central differences."""
    step = 1e-4
    unit = np.eye(len(at)) * step
    out = np.zeros((len(at),) * 2)
    for i in range(len(at)):
        for j in range(i + 1):
            signs = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
            out[i, j] = out[j, i] = -sum(s * expected(at + a * unit[i] + b * unit[j]) for a, b, s in signs) / (
                4 * step**2
            )
    return out


def contrasts(information: np.ndarray, ranks: int) -> np.ndarray:
    """[ranks] standard errors of parameter k minus parameter 0, from the whole information matrix."""
    inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
    x = np.eye(len(information))[:ranks] - np.eye(len(information))[0]
    return np.sqrt(np.einsum("ki,ij,kj->k", x, inverse, x))


def check(found: Any) -> str:
    json.dumps(found.to_json(), allow_nan=False)
    return found.text()
