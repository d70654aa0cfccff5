"""Ranking metrics per query, by rax, with ties broken by a key and an explicit policy for empty queries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rax

from ultr.errors import DataError
from ultr.evaluation.estimate import sum_by
from ultr.sessions import Array, Sessions

RANKING_METRICS = ("ndcg", "dcg", "mrr", "map", "err")
EMPTY_QUERIES = ("skip", "zero", "one")

Metric = tuple[str, int | None]  # name, cutoff (None: the whole list)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose output bits each depend on every input bit (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def words(key: jax.Array) -> np.ndarray:
    """[2] uint32 random words of a key, the seed of `random_ranks`."""
    return np.asarray(jax.random.bits(key, (2,), np.uint32))


@jax.jit
def random_ranks(scores: Array, where: Array, *, seed: Array, ids: Array) -> jax.Array:
    """[B, K] 1-based ranks by descending score; documents outside `where` come last.

    Equal scores stand in an order that only the seed, the list's id and the document's index in the
    list decide: neither the batch nor the padding nor what stands above it takes part.

    Args:
      scores, where: [B, K].
      seed: [2] uint32 random words.
      ids: [B] uint32.
    """
    index = jnp.arange(scores.shape[1], dtype=jnp.uint32)[None, :]
    # A hash and not jax.random, which cannot fold in a number per cell without compiling for seconds.
    chance = _mix(_mix(_mix(jnp.asarray(ids) ^ seed[0])[:, None] ^ index) ^ seed[1])
    place = jnp.broadcast_to(index, scores.shape)
    order = jax.lax.sort((jnp.asarray(~where), jnp.asarray(-scores), chance, place), num_keys=3)[3]
    return jnp.argsort(order, axis=1) + 1


def ranked(scores: Array, where: Array, *, seed: np.ndarray, query: Array) -> jax.Array:
    """[B, K] `random_ranks` of scores [B, K], of which those outside `where` may be anything; float32 decides.

    Args:
      seed: `words` of a key.
      query: [B] ids or numbers of the lists.
    """
    scores = np.where(where, scores, 0)
    if scores.dtype == np.float64:
        with np.errstate(over="ignore"):  # a warning inside of JAX, where it is an error, ends the process
            scores = scores.astype(np.float32)
    return random_ranks(scores, where, seed=seed, ids=np.asarray(query).astype(np.uint32))


def expected_reciprocal_rank(
    ranks: Array, labels: Array, *, where: Array, max_grade: Array | float, topn: int | None = None
) -> jax.Array:
    """[B] ERR: sum_r R_r / r prod_{i<r} (1 - R_i), R = (2^y - 1) / 2^max_grade (Chapelle 2009)."""
    stop = jnp.where(where, (jnp.exp2(labels) - 1) / jnp.exp2(max_grade), 0.0)
    stop = jnp.take_along_axis(stop, jnp.argsort(ranks, axis=1), axis=1)[:, :topn]
    arrive = jnp.cumprod(jnp.pad(1 - stop[:, :-1], ((0, 0), (1, 0)), constant_values=1.0), axis=1)
    return jnp.sum(stop * arrive / jnp.arange(1, stop.shape[1] + 1)[None, :], axis=1)


@functools.partial(jax.jit, static_argnames="metrics")
def list_metrics(
    ranks: Array, labels: Array, where: Array, *, max_grade: Array | float, metrics: tuple[Metric, ...]
) -> list[jax.Array]:
    """The metrics of every list, [B] each, in the order asked.

    Args:
      ranks, labels, where: [B, K]; ranks without ties, documents outside `where` last.
      max_grade: the highest grade of the scale, for ERR.
    """
    scores = -ranks.astype(jnp.float32)
    each = {"ndcg": rax.ndcg_metric, "dcg": rax.dcg_metric, "mrr": rax.mrr_metric}
    values: dict[Metric, jax.Array] = {}
    for name, k in metrics:
        if name in each:
            values[name, k] = each[name](scores, labels, where=where, topn=k, reduce_fn=None)
        elif name == "err":
            values[name, k] = expected_reciprocal_rank(ranks, labels, where=where, max_grade=max_grade, topn=k)
    cutoffs = [k for name, k in metrics if name == "map"]
    if cutoffs:

        def precision(one: tuple[Array, ...]) -> list[jax.Array]:
            s, y, w = one
            return [rax.ap_metric(s, y, where=w, topn=k, reduce_fn=None) for k in cutoffs]

        # rax compares all pairs of documents: bound the memory to some 2^25 of them at a time.
        rows, lists = max(1, 2**25 // scores.shape[1] ** 2), (scores, labels, where)
        fits = len(scores) <= rows
        found = precision(lists) if fits else jax.lax.map(precision, lists, batch_size=rows)
        values |= {("map", k): value for k, value in zip(cutoffs, found, strict=True)}
    return [values[metric] for metric in metrics]


def query_metrics(
    score: Callable[[Sessions], Array],
    batches: Iterable[Sessions],
    metrics: Sequence[Metric],
    *,
    key: jax.Array,
    max_grade: float,
    empty_queries: str,
    queries: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[Metric, np.ndarray]]:
    """Metrics per query over a stream of lists with labels.

    Args:
      score: batch -> [B, K] scores, none of a document NaN.
      queries: ids of the queries that count; None: all.

    Returns:
      Query ids [Q], ascending (running numbers of the lists where the data has no ids), and for each
      metric its values [Q]: the mean over a query's lists; NaN where the query has no value.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    found: dict[Metric, list[np.ndarray]] = {m: [np.zeros(0)] for m in metrics}
    seed = words(key)
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
        if grades.max() > max_grade:
            raise DataError(
                f"expected grades of at most max_grade = {max_grade:g}, found {grades.max():g}",
                field="labels",
            )
        scores = np.asarray(score(batch))
        ranks = ranked(scores, where, seed=seed, query=query)
        values = list_metrics(ranks, grades, where, max_grade=np.float32(max_grade), metrics=tuple(metrics))
        ids.append(query[real])
        for metric, value in zip(metrics, jax.device_get(values), strict=True):
            value = _with_policy(metric, value.astype(np.float64), grades, where, empty_queries)
            found[metric].append(value[real])
    return _by_query(np.concatenate(ids), {m: np.concatenate(v) for m, v in found.items()})


def _with_policy(metric: Metric, values: np.ndarray, grades: np.ndarray, where: np.ndarray, policy: str) -> np.ndarray:
    relevant = (grades >= 1 if metric[0] in ("mrr", "map") else grades > 0).any(1)
    # A DCG has no upper end: the best that an empty query can have is 0.
    best = 0.0 if metric[0] == "dcg" else 1.0
    fill = {"skip": np.nan, "zero": 0.0, "one": best}[policy]
    return np.where(where.any(1), np.where(relevant, values, fill), np.nan)


def _by_query(ids: np.ndarray, values: Mapping[Metric, np.ndarray]) -> tuple[np.ndarray, dict[Metric, np.ndarray]]:
    if len(ids) == 0:
        return ids, dict(values)
    query = np.unique(ids)
    means = {}
    for metric, value in values.items():
        there = ~np.isnan(value)
        _, sums = sum_by(ids, np.stack([np.where(there, value, 0.0), there], axis=1))
        means[metric] = np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), np.nan)
    return query, means
