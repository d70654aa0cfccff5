"""Clicks of users whose examination is known, for the tests of goodness of fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from propensity_logs import write_small

from ultr.data import ClickLog, Counts, Vocabulary

QUERIES, DOCUMENTS, RANKS = 12, 6, 4
RELEVANCE = np.random.default_rng(1).uniform(0.02, 0.95, (QUERIES, DOCUMENTS))
EXAMINATION = 1.0 / np.arange(1, RANKS + 1)


class Drawn(NamedTuple):
    """Sessions with clicks.

    Attributes:
      query: [S].
      shown: [S, K] documents of the query, from 0.
      clicks: [S, K] bool.
      examination: [K] the share of the sessions in which each rank is examined, relative to rank 1.
    """

    query: np.ndarray
    shown: np.ndarray
    clicks: np.ndarray
    examination: np.ndarray


def draw(kind: str, seed: int, sessions: int, relevance: np.ndarray = RELEVANCE, ranks: int = RANKS) -> Drawn:
    """Draws clicks on lists of which two thirds are shuffled and the others sorted by relevance.

    Args:
      kind: "pbm", "ubm" (examination by the distance to the last click), "dbn" (satisfied by 80 % of the relevance),
        "trust" (false clicks .65 / k), "noise" (5 % of clicks flipped).
      relevance: [queries, documents].
    """
    rng = np.random.default_rng([seed, sessions])
    query = rng.integers(len(relevance), size=sessions)
    order = np.argsort(-relevance, axis=1)[query]
    shuffled = rng.random(sessions) < 2 / 3
    order[shuffled] = rng.permuted(order[shuffled], axis=1)
    shown = order[:, :ranks]
    gamma, base = relevance[query[:, None], shown], 1.0 / np.arange(1, ranks + 1)
    k = np.arange(1, ranks + 1)
    clicks, examined = np.zeros(shown.shape, bool), base / base[0]
    if kind in ("pbm", "noise"):
        clicks = rng.random(shown.shape) < base * gamma
        clicks ^= rng.random(shown.shape) < (0.05 if kind == "noise" else 0.0)
    elif kind == "trust":
        clicks = rng.random(shown.shape) < base * (gamma + 0.65 / k * (1 - gamma))
    elif kind == "ubm":
        last, examined = np.zeros(sessions, np.int64), np.zeros(ranks)
        for j in range(ranks):
            seen = base[j - last]
            examined[j] = seen.mean()
            clicks[:, j] = rng.random(sessions) < seen * gamma[:, j]
            last = np.where(clicks[:, j], j + 1, last)
    elif kind == "dbn":
        reading, seen, examined = np.ones(sessions, bool), np.ones(sessions), np.zeros(ranks)
        for j in range(ranks):
            examined[j] = seen.mean()
            clicks[:, j] = reading & (rng.random(sessions) < gamma[:, j])
            satisfied = clicks[:, j] & (rng.random(sessions) < 0.8 * gamma[:, j])
            reading = reading & ~satisfied & (rng.random(sessions) < 0.9)
            seen = seen * 0.9 * (1 - 0.8 * gamma[:, j] ** 2)
    return Drawn(query, shown, clicks, examined / examined[0])


def count(drawn: Drawn, documents: int = DOCUMENTS, *, by: str = "last-click", weight: float = 1) -> Counts:
    """Counts drawn sessions by rank, or by rank and last click, with a plain loop over the ranks."""
    sessions, ranks = drawn.clicks.shape
    queries = int(drawn.query.max()) + 1
    cells: dict[tuple[int, int, int], list[float]] = {}
    last = np.zeros(sessions, np.int64)
    for j in range(ranks):
        document = drawn.query * documents + drawn.shown[:, j] + 1
        for d, above, clicked in zip(document.tolist(), last.tolist(), drawn.clicks[:, j].tolist(), strict=True):
            cell = cells.setdefault((d, j + 1, above if by == "last-click" else 0), [0, 0])
            cell[0] += weight
            cell[1] += weight * clicked
        last = np.where(drawn.clicks[:, j], j + 1, last)
    keys = np.array(sorted(cells), np.int32)
    values = np.array([cells[tuple(key)] for key in keys.tolist()])
    names = pa.table({"query": [f"q{i}" for i in range(queries)]})
    table = {
        "query": pa.array(np.repeat(np.arange(queries), documents), pa.int32()),
        "document": [f"d{i}" for i in range(queries * documents)],
    }
    return Counts(
        sufficient_statistics="last-click" if by == "last-click" else "rank",
        document=keys[:, 0],
        rank=keys[:, 1],
        last_click=keys[:, 2] if by == "last-click" else None,
        impressions=values[:, 0],
        clicks=values[:, 1],
        sessions=sessions,
        weight=sessions * weight,
        documents=queries * documents,
        ranks=ranks,
        vocabulary=Vocabulary.from_tables(names, pa.table(table), features=[]),
        identity={},
    )


def write(path: Path, drawn: Drawn, **columns: Callable[[int], Any]) -> ClickLog:
    """Writes drawn sessions as a click log; further columns as functions of the number of the session."""
    rows = [
        {
            "session": str(i),
            "query": query,
            "documents": [query * DOCUMENTS + d + 1 for d in shown],
            "ranks": list(range(1, len(shown) + 1)),
            "clicks": [int(c) for c in clicks],
        }
        | {name.replace("__", "."): function(i) for name, function in columns.items()}
        for i, (query, shown, clicks) in enumerate(
            zip(drawn.query.tolist(), drawn.shown.tolist(), drawn.clicks.tolist(), strict=True)
        )
    ]
    return write_small(path, rows)
