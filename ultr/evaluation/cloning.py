"""Has a model learned what users want, or where the logger puts documents?"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ultr.errors import ConfigError, DataError
from ultr.evaluation.calls import Caller
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.metrics import per_query
from ultr.sessions import Sessions

if TYPE_CHECKING:
    from ultr.data import ClickLog, Collection

_ROOM = 1 << 22  # pairs permuted at a time


@dataclasses.dataclass(frozen=True, slots=True)
class Information:
    """What scores tell of the logger's order beyond the grades.

    Attributes:
      value: nats, less what chance alone gives; 0 or less for a model that has nothing of the logger in it. The
        interval is over queries. `count` is queries; `excluded` documents that could not be compared.
      raw: the same with what chance gives.
      chance: its mean under independence, from permutations.
      p_value: the share of permutations that give as much, the observed one counted.
      documents: how many were compared.
    """

    value: Estimate
    raw: float
    chance: float
    p_value: float
    documents: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        return dataclasses.asdict(self) | {"value": self.value.to_json()}


@dataclasses.dataclass(frozen=True)
class Cloning:
    """How close a model is to the logger.

    Attributes:
      metric: such as "ndcg@10".
      model: the metric with the logger's order as target: the document on top has gain 1, the next 1/2, 1/3, ...
      random: of a random order.
      grades: of the order by expert grades, equal ones at random; None without grades. What a model that knows
        nothing but relevance has: much more than that is cloning.
      cmip: conditional mutual information with the logging policy; None without two documents of one grade.
    """

    metric: str
    model: Estimate
    random: Estimate
    grades: Estimate | None
    cmip: Information | None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        return {
            "metric": self.metric,
            "model": self.model.to_json(),
            "random": self.random.to_json(),
            "grades": None if self.grades is None else self.grades.to_json(),
            "cmip": None if self.cmip is None else self.cmip.to_json(),
        }


def cloning(
    model: Any,
    log: ClickLog,
    *,
    metric: str = "ndcg@10",
    key: jax.Array,
    seed: int = 0,
    bins: int = 8,
    batch_size: int = 4096,
) -> Cloning:
    """Compares a model's order of the documents of each query with the logger's.

    The logger's order is by the mean rank at which the log shows a document, over all of its sessions; documents that
    it never shows take no part, and queries with one document have no order.

    Args:
      model: has `score(sessions)`.
      log: a click log, usually that of training; its features are those of documents.
      metric: "ndcg@k" or "ndcg".
      key: orders equal scores at random, as in `evaluate`.
      seed, bins: of `cmip`.

    Raises:
      ConfigError: another metric, or as `cmip`.
      DataError: a log that shows one document per query everywhere, or as `evaluate`.
    """
    if metric != "ndcg" and not metric.startswith("ndcg@"):
        raise ConfigError(f"expected ndcg or ndcg@k, found {metric!r}")
    lists, mean_rank = logged_order(log)
    several = np.diff(lists.offsets) > 1
    if not several.any():
        raise DataError("expected queries with several documents, whose order could be compared, found one in each")
    target = lists.select(several)
    scores = _scores(model, lists, batch_size)
    options: dict[str, Any] = {"metrics": [metric], "key": key, "batch_size": batch_size}
    grades = log.vocabulary.labels
    by_grade = None
    if grades is not None and not np.isnan(grades).all():
        by_grade = Estimate.mean(per_query(_Table(np.nan_to_num(grades, nan=-1.0)), target, **options)[metric])
    information = None
    if by_grade is not None:
        assert grades is not None
        own, owner = grades[lists.document], np.repeat(lists.query, np.diff(lists.offsets))
        if np.unique(own[~np.isnan(own)], return_counts=True)[1].max(initial=0) > 1:
            information = cmip(scores[lists.document], -mean_rank, own, owner, bins=bins, seed=seed)
    return Cloning(
        metric,
        Estimate.mean(per_query(_Table(scores), target, **options)[metric]),
        Estimate.mean(per_query(_Table(np.zeros(log.documents + 1)), target, **options)[metric]),
        by_grade,
        information,
    )


def logged_order(log: ClickLog) -> tuple[Collection, np.ndarray]:
    """The documents that a log shows as one list per query, whose nDCG rewards the logger's order.

    Returns:
      The lists, with grades that have the gain 1 / place by ascending mean rank (equal ones share the mean of their
      gains), and [D] the mean rank of each document.
    """
    from ultr.data import Collection
    from ultr.data.counting import count_cells

    counts = count_cells(log)
    known = counts.document > 0
    document, cells = np.unique(counts.document[known], return_inverse=True)
    if not len(document):
        raise DataError("expected documents that the vocabulary knows, found none", field="documents")
    shown = np.bincount(cells, counts.impressions[known], len(document))
    mean_rank = np.bincount(cells, counts.impressions[known] * counts.rank[known], len(document)) / shown
    owner = log.vocabulary.document_query[document]
    order = np.lexsort((document, owner))
    document, mean_rank, owner = document[order], mean_rank[order], owner[order]
    query, starts = np.unique(owner, return_index=True)
    by_rank = np.lexsort((mean_rank, owner))
    place = np.empty(len(document), np.int64)
    place[by_rank] = np.arange(len(document))
    gain = 1 / (place - np.repeat(starts, np.diff(np.append(starts, len(document)))) + 1)
    _, tied = np.unique(np.stack([owner, mean_rank]), axis=1, return_inverse=True)
    gain = (np.bincount(tied.ravel(), gain) / np.bincount(tied.ravel()))[tied.ravel()]
    features = log.vocabulary.features
    lists = Collection(
        offsets=np.append(starts, len(document)).astype(np.int64),
        query=query.astype(np.int32),
        document=document.astype(np.int32),
        labels=np.log2(1 + gain).astype(np.float32),
        features=None if features is None else features[document],
        vocabulary=log.vocabulary,
        documents=log.documents,
    )
    return lists, mean_rank


def cmip(
    scores: np.ndarray,
    logger: np.ndarray,
    grades: np.ndarray,
    query: np.ndarray,
    *,
    bins: int = 8,
    permutations: int = 200,
    seed: int = 0,
) -> Information:
    """I(model's score; logger's score | grade) over documents: the model's debiasedness (CMIP, Deffayet 2023).

    A model that only knows relevance has nothing in common with the logger once the grade is known; one that took the
    logger's order for relevance has. It is necessary for unbiased scores and not sufficient: random scores have none
    either. As in the paper, documents of all queries and with one grade are compared with each other. Its estimator
    trains a classifier on observed against exchanged pairs; this one puts both scores into equally full bins within
    each grade, takes the information between the bins, and subtracts its mean over exchanges of the logger's scores
    within grades. It needs no training, does not change with a monotone transformation of either score, and is a
    lower bound of the information (data processing): more bins see more and vary more.

    Args:
      scores, logger: [D] of documents; higher is better. Equal scores stand in one bin.
      grades: [D]; NaN (not judged) is left out, as is a score that is NaN.
      query: [D] ids; documents of one query are not independent.
      bins: most per grade; fewer for grades of less than 5 documents per bin.
      permutations: exchanges under independence.
      seed: decides on them.

    Returns:
      The standard error is the root of the sum of two squares: that of the information over queries (delta method),
      which vanishes close to independence, and the standard deviation over the exchanges, which does not.

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
    step = max(1, _ROOM // len(x))
    for start in range(0, permutations, step):
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
    return Information(
        Estimate.of(raw - float(null.mean()), error, count=len(units), excluded=excluded),
        float(raw),
        float(null.mean()),
        float((1 + (null >= raw * (1 - 1e-12)).sum()) / (1 + permutations)),
        len(x),
    )


def _binned(values: np.ndarray, grade: np.ndarray, sizes: np.ndarray, most: np.ndarray) -> np.ndarray:
    """[D] bin of each value among those of its grade, about equally full; equal values in one."""
    order = np.lexsort((values, grade))
    starts = np.cumsum(sizes) - sizes
    ordered, run = values[order], grade[order]
    new: np.ndarray = np.concatenate([[True], (ordered[1:] != ordered[:-1]) | (run[1:] != run[:-1])])
    group = np.cumsum(new) - 1
    # Equal values have the middle of their places.
    middle = (np.bincount(group, np.arange(len(values)) - starts[run]) / np.bincount(group))[group]
    out = np.empty(len(values), np.int64)
    out[order] = np.minimum((middle + 0.5) * most[run] / sizes[run], most[run] - 1).astype(np.int64)
    return out


def _log_ratio(pairs: np.ndarray, grades: int, bins: int) -> np.ndarray:
    """[N, cells] ln p(x, y | z) / (p(x | z) p(y | z)) of counts [N, cells]; 0 in empty cells."""
    table = pairs.reshape(len(pairs), grades, bins, bins).astype(np.float64)
    product = table.sum(3, keepdims=True) * table.sum(2, keepdims=True)
    whole = table.sum((2, 3), keepdims=True)
    used = table > 0
    ratio = np.log(np.where(used, table * whole, 1.0) / np.where(used, product, 1.0))
    return ratio.reshape(len(pairs), -1)


def _information(pairs: np.ndarray, grades: int, bins: int) -> np.ndarray:
    """[N] nats."""
    return (pairs * _log_ratio(pairs, grades, bins)).sum(1) / pairs.sum(1)


class _Table:
    """A ranker with a score per document id."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def score(self, sessions: Sessions) -> np.ndarray:
        return self.values[np.asarray(sessions.features["document"])]


def _scores(model: Any, lists: Collection, batch_size: int) -> np.ndarray:
    """[V + 1] by document id; 0 for those not in the lists."""
    out = np.zeros(lists.vocabulary.documents + 1)
    call = Caller(model)
    grades = lists.vocabulary.labels
    for batch in lists.batches(batch_size):
        mask, document = np.asarray(batch.mask), np.asarray(batch.features["document"])
        # Simulated users read the grades, and must not see the target in their place.
        labels = None if grades is None else np.where(mask, grades[document], np.float32(0))
        out[document[mask]] = call.scores(batch.replace(labels=labels))[mask]  # type: ignore[attr-defined]
    return out
