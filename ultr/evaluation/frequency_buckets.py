"""Results by how often a query is searched: for queries of which a log shows many sessions, few, or none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ultr.data import ClickLog, Collection
from ultr.data.dataset import DatasetLike, as_dataset
from ultr.data.vocabulary import known_documents
from ultr.errors import ConfigError, DataError
from ultr.evaluation.estimate import Estimate
from ultr.files import JsonResult

HEAD_TORSO_TAIL = "head-torso-tail"


@dataclasses.dataclass(frozen=True, slots=True)
class FrequencyBucket(JsonResult):
    """Queries of similar frequency, and the mean of a metric over them.

    Attributes:
      name: such as "unseen", "head", or "5 to 20".
      least, most: the fewest and the most sessions that one of the queries has in the log; 0 for unseen queries.
      queries: number of queries, whether or not they have a value.
      sessions: number of sessions that the log shows of these queries.
      value: mean over the queries that have a value; the others are its `excluded`.
    """

    name: str
    least: int
    most: int
    queries: int
    sessions: int
    value: Estimate


def query_frequency(log: DatasetLike, queries: np.ndarray) -> np.ndarray:
    """Counts the sessions of each query in a log: [Q] float64, weights included; 0 for a query that it does not show.

    Args:
      log: a ClickLog, or anything else with query ids.
      queries: [Q] ids.

    Raises:
      DataError: sessions without query ids.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    sums: list[np.ndarray] = [np.zeros(0)]
    for query, weight in _query_weights(log):
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
    log: DatasetLike,
    *,
    minus: np.ndarray | None = None,
    buckets: int | str | Sequence[float] = HEAD_TORSO_TAIL,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[FrequencyBucket]:
    """Averages a metric, or the difference of two methods, over queries that have similarly many sessions in a log.

    Args:
      query: [Q] ids, as `per_query` gives them.
      values: [Q] of any metric; NaN where a query has none.
      log: usually the training log, with the query ids of `query` (open test data with `vocabulary=` the log, or
        simulate both from one collection; see `check_shared_vocabulary`).
      minus: [Q] values of another method: the means are then of the differences, over the queries that have both.
      buckets: "head-torso-tail" for the most frequent queries, which together have a third of the sessions, those that
        have the next third, and the rest; a number of buckets of about equally many queries; or the fewest sessions of
        a query of each bucket, such as [1, 10, 100]. Queries of equal frequency are never separated.
      bounds: the least and the greatest value that there can be, at which intervals are cut off.

    Returns:
      The buckets with at least one query, by falling frequency, and last "unseen": queries that the log does not show.

    Raises:
      ConfigError: buckets of another form.
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
            out.append(_bucket(name, low, high, inside, sessions, values, other, bounds))
    if (seen & (number < 0)).any():
        few = seen & (number < 0)
        low, high = int(sessions[few].min()), int(sessions[few].max())
        out.append(_bucket(f"below {least[0]:g}", low, high, few, sessions, values, other, bounds))
    if not seen.all():
        out.append(_bucket("unseen", 0, 0, ~seen, sessions, values, other, bounds))
    return out


def check_shared_vocabulary(*sources: DatasetLike) -> None:
    """Checks that the ids of logs and collections come from one vocabulary, so that an id means the same in all.

    Args:
      sources: ClickLogs and Collections; others, which have no vocabulary, are not looked at.

    Raises:
      DataError: the ids of two of them mean different documents.
    """
    first: ClickLog | Collection | None = None
    for source in sources:
        if isinstance(source, ClickLog | Collection):
            if first is not None:
                file = source.path if isinstance(source, ClickLog) else Path("the data")
                known_documents(source.vocabulary, first, file=file)
            first = first or source


def _bucket(
    name: str,
    least: int,
    most: int,
    inside: np.ndarray,
    sessions: np.ndarray,
    values: np.ndarray,
    other: np.ndarray,
    bounds: tuple[float, float],
) -> FrequencyBucket:
    value = Estimate.mean((values - other)[inside], bounds=bounds)
    return FrequencyBucket(name, least, most, int(inside.sum()), round(float(sessions[inside].sum())), value)


def _edges(sessions: np.ndarray, buckets: int | str | Sequence[float]) -> tuple[np.ndarray, dict[float, str]]:
    """Returns [N] the fewest sessions of a query of each bucket, ascending, and the names of buckets by that number."""
    ordered = np.sort(sessions)
    if isinstance(buckets, str):
        if buckets != HEAD_TORSO_TAIL:
            raise ConfigError(f"expected buckets '{HEAD_TORSO_TAIL}', a number or bounds, found {buckets!r}")
        if not len(ordered):
            return ordered, {}
        more = ordered[::-1].cumsum()[::-1] - ordered  # sessions of more frequent queries
        shares = {"tail": 1, "torso": 2 / 3, "head": 1 / 3}
        # The query that crosses a share is the last of its bucket; where two buckets would end with the same query, the
        # more frequent one has it.
        names = {float(ordered[more < share * ordered.sum() * (1 - 1e-12)][0]): name for name, share in shares.items()}
        return np.array(sorted(names)), names
    if isinstance(buckets, int | np.integer):
        if buckets < 1:
            raise ConfigError(f"expected at least 1 bucket, found {buckets}")
        return np.unique(ordered[np.arange(buckets) * len(ordered) // buckets]) if len(ordered) else ordered, {}
    edges = np.asarray(buckets, np.float64)
    if edges.ndim != 1 or not len(edges) or not (np.diff(edges) > 0).all() or not edges[0] > 0:
        raise ConfigError(f"expected the fewest sessions of each bucket, above 0 and rising, found {buckets}")
    return edges, {}


def _query_weights(log: DatasetLike) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields query ids [n] and weights [n] of the sessions, in pieces."""
    if isinstance(log, ClickLog):  # only these columns are read
        for rows in log.columns(["query", "weight"] if log.weighted else ["query"]):
            query = rows["query"].to_numpy()
            yield query, rows["weight"].to_numpy().astype(np.float64) if log.weighted else np.ones(len(query))
        return
    source = as_dataset(log)
    for batch in source.batches(4096):
        if batch.query is None:
            raise DataError("expected sessions with query ids, found none", field="query")
        real = np.asarray(batch.mask).any(1)
        yield np.asarray(batch.query)[real], batch.row_weights()[real]
