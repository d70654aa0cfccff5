"""Results by how often a query is searched: where a log has much to learn from, and where it has nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultr.data.dataset import BatchSource as Source
from ultr.data.dataset import InMemory
from ultr.errors import ConfigError, DataError
from ultr.evaluation.estimate import Estimate, paired_difference
from ultr.sessions import Sessions

HEAD_TORSO_TAIL = "head-torso-tail"


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """Queries of similar frequency.

    Attributes:
      name: such as "unseen", "head", or "5 to 20".
      least, most: sessions per query, both inside; (0, 0) for queries that the log does not show.
      queries: how many, whether or not they have a value.
      sessions: of the log, over these queries.
      value: mean over the queries that have a value; the others are its `excluded`.
    """

    name: str
    least: int
    most: int
    queries: int
    sessions: int
    value: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        return {
            "name": self.name,
            "least": self.least,
            "most": self.most,
            "queries": self.queries,
            "sessions": self.sessions,
            "value": self.value.to_json(),
        }


def query_frequency(log: Source | Sessions, queries: np.ndarray) -> np.ndarray:
    """[Q] float64 sessions of each query in a log, weights included; 0 for a query that it does not show.

    Args:
      log: a ClickLog, or anything else with query ids.
      queries: [Q] ids.

    Raises:
      DataError: sessions without query ids.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    sums: list[np.ndarray] = [np.zeros(0)]
    for query, weight in _queries(log):
        found, inverse = np.unique(query, return_inverse=True)
        ids.append(found)
        sums.append(np.bincount(inverse, weight, len(found)))
    known, inverse = np.unique(np.concatenate(ids), return_inverse=True)
    total = np.bincount(inverse, np.concatenate(sums), len(known))
    if not len(known):
        return np.zeros(len(queries))
    at = np.minimum(np.searchsorted(known, queries), len(known) - 1)
    return np.where(known[at] == queries, total[at], 0.0)


def by_frequency(
    query: np.ndarray,
    values: np.ndarray,
    log: Source | Sessions,
    *,
    minus: np.ndarray | None = None,
    buckets: int | str | Sequence[float] = HEAD_TORSO_TAIL,
) -> list[Bucket]:
    """A metric, or the difference of two methods, by how many sessions a query has in a log.

    Args:
      query: [Q] ids, as `per_query` gives them.
      values: [Q] of any metric; NaN where a query has none.
      log: usually the log of training, with the query ids of `query` (open test data with `vocabulary=` the log, or
        simulate both from one collection; see `shared_vocabulary`).
      minus: [Q] values of another method: means are then over the queries that have both, of the differences.
      buckets: "head-torso-tail" for the most frequent queries that together have a third of the sessions, those that
        have the next third, and the rest; a number for so many buckets of about equally many queries; or the least
        sessions of each bucket, such as [1, 10, 100]. Queries of equal frequency are never separated.

    Returns:
      The buckets that have a query, by falling frequency, and at last "unseen": queries that the log does not show.

    Raises:
      ConfigError: other buckets.
      DataError: arrays of different lengths, query ids that are not unique, or sessions without query ids.
    """
    query, values = np.asarray(query), np.asarray(values, np.float64)
    other = np.zeros(len(values)) if minus is None else np.asarray(minus, np.float64)
    if query.shape != values.shape or query.shape != other.shape or query.ndim != 1:
        raise DataError(
            f"expected [Q] query ids and values over the same queries, found {query.shape}, {values.shape} and "
            f"{other.shape}",
            fix="Take both from per_query on the same data",
        )
    if len(np.unique(query)) < len(query):
        raise DataError("expected every query once, found one twice", field="query")
    sessions = query_frequency(log, query)
    seen = sessions > 0
    least, names = _edges(sessions[seen], buckets)
    number = np.where(seen, np.searchsorted(least, sessions, side="right") - 1, -1)
    out = []
    for i in range(len(least) - 1, -1, -1):
        inside = number == i
        if inside.any():
            low, high = int(sessions[inside].min()), int(sessions[inside].max())
            name = names.get(float(least[i]), f"{low:,}" if low == high else f"{low:,} to {high:,}")
            out.append(_bucket(name, low, high, inside, sessions, values, other))
    if (seen & (number < 0)).any():
        few = seen & (number < 0)
        low, high = int(sessions[few].min()), int(sessions[few].max())
        out.append(_bucket(f"below {least[0]:g}", low, high, few, sessions, values, other))
    if not seen.all():
        out.append(_bucket("unseen", 0, 0, ~seen, sessions, values, other))
    return out


def shared_vocabulary(*sources: Any) -> None:
    """Makes sure that logs and collections have ids of one vocabulary, so that a number means the same in all.

    Args:
      sources: opened ClickLogs and Collections; what has no vocabulary (sessions in memory) is left out.

    Raises:
      DataError: two have other ids; names them.
    """
    from ultr.data.vocabulary import known_documents

    own = [source for source in sources if getattr(source, "vocabulary", None) is not None]
    for other in own[1:]:
        known_documents(other.vocabulary, own[0], file=Path(getattr(other, "path", "the data")))


def _bucket(
    name: str,
    least: int,
    most: int,
    inside: np.ndarray,
    sessions: np.ndarray,
    values: np.ndarray,
    other: np.ndarray,
) -> Bucket:
    value = paired_difference(values[inside], other[inside])
    return Bucket(name, least, most, int(inside.sum()), round(float(sessions[inside].sum())), value)


def _edges(sessions: np.ndarray, buckets: int | str | Sequence[float]) -> tuple[np.ndarray, dict[float, str]]:
    """[N] least sessions of each bucket, ascending, and names for them."""
    ordered = np.sort(sessions)
    if isinstance(buckets, str):
        if buckets != HEAD_TORSO_TAIL:
            raise ConfigError(f"expected buckets '{HEAD_TORSO_TAIL}', a number or bounds, found {buckets!r}")
        if not len(ordered):
            return ordered, {}
        more = ordered[::-1].cumsum()[::-1] - ordered  # sessions of more frequent queries
        shares = {"tail": 1, "torso": 2 / 3, "head": 1 / 3}
        # The query that crosses a share is the last of its bucket; where two end alike, the more frequent has it.
        names = {float(ordered[more < share * ordered.sum() * (1 - 1e-12)][0]): name for name, share in shares.items()}
        return np.array(sorted(names)), names
    if isinstance(buckets, int | np.integer):
        if buckets < 1:
            raise ConfigError(f"expected at least 1 bucket, found {buckets}")
        return np.unique(ordered[np.arange(buckets) * len(ordered) // buckets]) if len(ordered) else ordered, {}
    edges = np.asarray(buckets, np.float64)
    if edges.ndim != 1 or not len(edges) or not (np.diff(edges) > 0).all() or not edges[0] > 0:
        raise ConfigError(f"expected the least sessions of each bucket, rising from above 0, found {buckets}")
    return edges, {}


def _queries(log: Source | Sessions) -> Any:
    """Query ids and weights of the sessions, in pieces."""
    columns = getattr(log, "columns", None)
    if callable(columns):  # of a log only these columns are read
        weighted = bool(getattr(log, "weighted", False))
        for batch in columns(["query", *(["weight"] if weighted else [])]):
            query = batch["query"].to_numpy()
            yield query, batch["weight"].to_numpy().astype(np.float64) if weighted else np.ones(len(query))
        return
    source = InMemory(log) if isinstance(log, Sessions) else log
    for batch in source.batches(4096):
        if batch.query is None:
            raise DataError("expected sessions with query ids, found none", field="query")
        weight = np.ones(len(batch)) if batch.weight is None else np.asarray(batch.weight, np.float64)
        real = np.asarray(batch.mask).any(1)
        yield np.asarray(batch.query)[real], weight[real]
