"""The information that a model's scores share with the logger's order once the grades are known (CMIP)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ultr import stopping
from ultr.errors import ConfigError, DataError
from ultr.evaluation.estimate import Estimate
from ultr.files import JsonResult


@dataclasses.dataclass(frozen=True, slots=True)
class ConditionalInformation(JsonResult):
    """The information between a model's scores and the logger's order, given the grades.

    Attributes:
      value: in nats, less what chance alone gives; about 0 for a model that learned nothing of the logger's order.
        Its interval is over queries, `count` is queries, and `excluded` documents that could not be compared.
      raw: in nats, with what chance gives.
      chance: mean of `raw` under independence, from permutations.
      p_value: share of permutations with at least as much information, the observed order counted.
      documents: number of documents compared.
    """

    value: Estimate
    raw: float
    chance: float
    p_value: float
    documents: int


def cmip(
    scores: np.ndarray,
    logger: np.ndarray,
    grades: np.ndarray,
    query: np.ndarray,
    *,
    bins: int = 8,
    permutations: int = 200,
    seed: int = 0,
    pairs_at_once: int = 1 << 22,
) -> ConditionalInformation:
    """Estimates I(model's score; logger's score | grade) over documents (CMIP, debiasedness; Deffayet 2023).

    Scores that depend on relevance alone are independent of the logger's once the grade is known; those of a model that
    took the logger's order for relevance are not. Independence is necessary for unbiased scores and not sufficient:
    random scores are independent too. As in the paper, documents of all queries and with one grade are compared with
    each other. Its estimator trains a classifier on observed against exchanged pairs; this one puts both scores into
    equally full bins within each grade, takes the information between the bins, and subtracts its mean over exchanges
    of the logger's scores within grades. It needs no training, does not change with a monotone transformation of either
    score, and is a lower bound of the information (data processing): more bins find more of it and vary more.

    Args:
      scores, logger: [D] of documents; higher is better. Equal scores stand in one bin.
      grades: [D]; NaN (not judged) is left out, as is a score that is NaN.
      query: [D] ids; documents of one query are not independent.
      bins: at most so many per grade; fewer for grades with less than 5 documents per bin.
      permutations: number of exchanges of the logger's scores.
      seed: decides the exchanges.
      pairs_at_once: exchanged pairs in memory at a time.

    Returns:
      The information. Its standard error is the root of the sum of two squares: that of the information over queries
      (delta method), which vanishes close to independence, and the standard deviation over the exchanges, which does
      not.

    Raises:
      ConfigError: fewer than 2 bins or 20 permutations.
      DataError: arrays of different lengths, or no grade with two documents.
    """
    if bins < 2 or permutations < 20:
        raise ConfigError(f"expected at least 2 bins and 20 permutations, found {bins} and {permutations}")
    columns = [np.asarray(x, np.float64) for x in (scores, logger, grades)]
    query = np.asarray(query)
    if any(x.shape != query.shape or x.ndim != 1 for x in columns):
        raise DataError(f"expected four arrays [D], found {[x.shape for x in columns]} and {query.shape}")
    kept: np.ndarray = np.logical_not(np.isnan(np.stack(columns)).any(0))
    x, y, z = (column[kept] for column in columns)
    excluded = len(kept) - len(x)
    _, grade, sizes = np.unique(z, return_inverse=True, return_counts=True)
    if not len(x) or sizes.max() < 2:
        raise DataError("expected a grade with at least two documents, found none", field="grades")
    most = np.clip(sizes // 5, 2, bins)
    first, second = _binned(x, grade, sizes, most), _binned(y, grade, sizes, most)
    row = grade * bins + first
    pairs = np.bincount(row * bins + second, minlength=len(sizes) * bins * bins)
    raw = _information(pairs[None], len(sizes), bins)[0]
    rng = np.random.default_rng(seed)
    order = np.argsort(grade, kind="stable")  # exchanges happen within runs of one grade
    row, other, run = row[order], second[order], grade[order]
    drawn: list[np.ndarray] = []
    step = max(1, pairs_at_once // len(x))
    for start in range(0, permutations, step):
        stopping.check()
        n = min(step, permutations - start)
        exchanged = np.argsort(run + rng.random((n, len(x))), axis=1)
        cell = row * bins + other[exchanged] + np.arange(n)[:, None] * len(pairs)
        drawn.append(_information(np.bincount(cell.ravel(), minlength=n * len(pairs)).reshape(n, -1), len(sizes), bins))
    null = np.concatenate(drawn)
    units, unit = np.unique(query[kept], return_inverse=True)
    density = _log_ratio(pairs[None], len(sizes), bins)[0]
    cells = (grade * bins + first) * bins + second
    influence = np.bincount(unit, density[cells] - raw, len(units)) / len(x)
    between = float((influence**2).sum()) * len(units) / max(len(units) - 1, 1)
    error = math.sqrt(between + float(null.var(ddof=1))) if len(units) > 1 else math.nan
    return ConditionalInformation(
        Estimate.of(raw - float(null.mean()), error, count=len(units), excluded=excluded),
        float(raw),
        float(null.mean()),
        float((1 + (null >= raw * (1 - 1e-12)).sum()) / (1 + permutations)),
        len(x),
    )


def _binned(values: np.ndarray, grade: np.ndarray, sizes: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Returns the bin [D] of each value among those of its grade, about equally full; equal values share one."""
    order = np.lexsort((values, grade))
    starts = np.cumsum(sizes) - sizes
    ordered, run = values[order], grade[order]
    new: np.ndarray = np.concatenate([[True], (ordered[1:] != ordered[:-1]) | (run[1:] != run[:-1])])
    group = np.cumsum(new) - 1
    # Equal values get the middle of their places.
    middle = (np.bincount(group, np.arange(len(values)) - starts[run]) / np.bincount(group))[group]
    out = np.empty(len(values), np.int64)
    out[order] = np.minimum((middle + 0.5) * most[run] / sizes[run], most[run] - 1).astype(np.int64)
    return out


def _log_ratio(pairs: np.ndarray, grades: int, bins: int) -> np.ndarray:
    """Computes [N, cells] ln p(x, y | z) / (p(x | z) p(y | z)) from counts [N, cells]; 0 in empty cells."""
    table = pairs.reshape(len(pairs), grades, bins, bins).astype(np.float64)
    product = table.sum(3, keepdims=True) * table.sum(2, keepdims=True)
    whole = table.sum((2, 3), keepdims=True)
    used = table > 0
    ratio = np.log(np.where(used, table * whole, 1.0) / np.where(used, product, 1.0))
    return np.asarray(ratio.reshape(len(pairs), -1))


def _information(pairs: np.ndarray, grades: int, bins: int) -> np.ndarray:
    """Computes the information [N], in nats, from counts [N, cells]."""
    return np.asarray((pairs * _log_ratio(pairs, grades, bins)).sum(1) / pairs.sum(1))
