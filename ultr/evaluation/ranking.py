"""Rankings by score with random ties, and ranking metrics per query with a policy for empty queries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ultr.arguments import check_grades
from ultr.errors import DataError
from ultr.evaluation.metrics import RankedLists, RankingMetric
from ultr.evaluation.moments import sum_rows_by_key
from ultr.hashing import lowbias32
from ultr.sessions import Array, Sessions

EMPTY_QUERIES = ("skip", "zero", "one")

MetricAt = tuple[RankingMetric, int | None]  # a metric and its cutoff (None: the whole list)


def tie_seed(key: jax.Array) -> np.ndarray:
    """Draws the seed [2] uint32 that orders equal scores, from a key."""
    return np.asarray(jax.random.bits(key, (2,), np.uint32))


@jax.jit
def random_ranks(scores: Array, where: Array, *, seed: Array, ids: Array) -> jax.Array:
    """Computes [B, K] 1-based ranks by descending score; documents outside `where` come last.

    Equal scores stand in an order that depends on the seed, the id of the list and the index of the document in the
    list alone: not on the batch, on padding, or on the documents above.

    Args:
      scores, where: [B, K].
      seed: [2] uint32.
      ids: [B] uint32.
    """
    index = jnp.arange(scores.shape[1], dtype=jnp.uint32)[None, :]
    # A hash and not jax.random, which cannot fold in a number per document without compiling for seconds.
    chance = lowbias32(lowbias32(lowbias32(jnp.asarray(ids) ^ seed[0])[:, None] ^ index) ^ seed[1])
    place = jnp.broadcast_to(index, scores.shape)
    order: jax.Array = jax.lax.sort((jnp.asarray(~where), jnp.asarray(-scores), chance, place), num_keys=3)[3]
    return jnp.argsort(order, axis=1) + 1


def rank_documents(scores: Array, where: Array, *, seed: np.ndarray, query: Array) -> np.ndarray:
    """Computes `random_ranks` [B, K] of scores [B, K] on the host; scores outside `where` may be anything.

    Scores are compared as float32.

    Args:
      scores, where: [B, K].
      seed: from `tie_seed`.
      query: [B] ids or numbers of the lists.
    """
    scores = np.where(where, scores, 0)
    if scores.dtype == np.float64:
        with np.errstate(over="ignore"):  # inside JAX an overflow warning that is turned into an error would abort
            scores = scores.astype(np.float32)
    return np.asarray(random_ranks(scores, where, seed=seed, ids=np.asarray(query).astype(np.uint32)))


@functools.partial(jax.jit, static_argnames="metrics")
def list_metrics(lists: RankedLists, *, metrics: tuple[MetricAt, ...]) -> list[jax.Array]:
    """Computes the metrics [B] of every list, in the order asked."""
    cutoffs: dict[RankingMetric, list[int | None]] = {}
    for metric, cutoff in metrics:
        cutoffs.setdefault(metric, []).append(cutoff)
    values: dict[MetricAt, jax.Array] = {}
    for metric, at in cutoffs.items():
        values |= {(metric, k): value for k, value in zip(at, metric.function(lists, at), strict=True)}
    return [values[metric] for metric in metrics]


def query_metrics(
    score: Callable[[Sessions], np.ndarray],
    batches: Iterable[Sessions],
    metrics: Sequence[MetricAt],
    *,
    key: jax.Array,
    max_grade: float,
    empty_queries: str,
    queries: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[MetricAt, np.ndarray]]:
    """Computes metrics per query over a stream of lists with labels.

    Args:
      score: batch -> [B, K] scores, none of a document NaN.
      batches: lists with labels.
      metrics: with their cutoffs.
      key: orders equal scores at random.
      max_grade: the highest grade of the scale.
      empty_queries: what a query without a relevant document gives, one of `EMPTY_QUERIES`.
      queries: ids of the queries that count; None: all.

    Returns:
      Query ids [Q], ascending (running numbers of the lists where the data has no ids), and for each metric its values
      [Q]: the mean over a query's lists; NaN where the query has no value.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    found: dict[MetricAt, list[np.ndarray]] = {m: [np.zeros(0)] for m in metrics}
    seed = tie_seed(key)
    number = 0
    for batch in batches:
        mask, labels = np.asarray(batch.mask), np.asarray(batch.labels, np.float32)
        real = mask.any(1)
        if batch.query is None:
            query = number + np.cumsum(real) - real
            number += int(real.sum())
        else:
            query = np.asarray(batch.query, np.int64)
        if queries is not None:
            real &= np.isin(query, queries)
        if not real.any():
            continue
        where = mask & ~np.isnan(labels)
        grades = np.where(where, np.maximum(labels, 0), 0).astype(np.float32)
        check_grades(grades, "labels")
        if grades.max() > max_grade:
            raise DataError(
                f"expected grades of at most {max_grade:g}, the highest of the scale, found {grades.max():g}",
                fix="Give the highest grade of the scale with --max-grade (in Python: max_grade)",
                field="labels",
            )
        ranks = rank_documents(score(batch), where, seed=seed, query=query)
        lists = RankedLists(ranks, grades, where, np.asarray(max_grade, np.float32))
        values = jax.device_get(list_metrics(lists, metrics=tuple(metrics)))
        ids.append(query[real])
        for metric, value in zip(metrics, values, strict=True):
            value = _with_policy(metric[0], value.astype(np.float64), grades, where, empty_queries)
            found[metric].append(value[real])
    return _by_query(np.concatenate(ids), {m: np.concatenate(v) for m, v in found.items()})


def _with_policy(
    metric: RankingMetric, values: np.ndarray, grades: np.ndarray, where: np.ndarray, policy: str
) -> np.ndarray:
    relevant = (grades >= 1 if metric.binary else grades > 0).any(1)
    best = 1.0 if metric.bounded else 0.0  # an unbounded metric of a query without relevant documents is at most 0
    fill = {"skip": np.nan, "zero": 0.0, "one": best}[policy]
    return np.where(where.any(1), np.where(relevant, values, fill), np.nan)


def _by_query(ids: np.ndarray, values: Mapping[MetricAt, np.ndarray]) -> tuple[np.ndarray, dict[MetricAt, np.ndarray]]:
    if len(ids) == 0:
        return ids, dict(values)
    query = np.unique(ids)
    means = {}
    for metric, value in values.items():
        there = ~np.isnan(value)
        _, sums = sum_rows_by_key(ids, np.stack([np.where(there, value, 0.0), there], axis=1))
        means[metric] = np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), np.nan)
    return query, means
