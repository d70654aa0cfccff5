"""How close a model's order of documents is to the logger's: has it learned relevance, or the logging policy?"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from ultr.data import ClickLog, Collection
from ultr.data.counting import count_cells
from ultr.errors import ConfigError, DataError
from ultr.evaluation.compiled import CompiledModel
from ultr.evaluation.conditional_information import ConditionalInformation, cmip
from ultr.evaluation.contracts import Scorer
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.evaluating import per_query
from ultr.files import JsonResult
from ultr.sessions import Sessions


@dataclasses.dataclass(frozen=True)
class Cloning(JsonResult):
    """A comparison of a model's order of documents with the logger's.

    Attributes:
      metric: such as "ndcg@10".
      model: the metric of the model's order, with the logger's as target: the document that the logger ranks first has
        gain 1, the next 1/2, 1/3, ...
      random: the metric of a random order.
      grades: the metric of the order by expert grades, equal ones at random; None without grades. A model that knows
        nothing but relevance has this value: much more than that is cloning.
      cmip: conditional mutual information with the logging policy; None without two documents of one grade.
    """

    metric: str
    model: Estimate
    random: Estimate
    grades: Estimate | None
    cmip: ConditionalInformation | None


def cloning(
    model: Scorer,
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
      seed, bins: as for `cmip`.

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

    def value(scores: np.ndarray) -> Estimate:
        ranker = _DocumentScores(scores)
        values = per_query(ranker, target, metrics=[metric], key=key, batch_size=batch_size)[metric]
        return Estimate.mean(values, bounds=(0.0, 1.0))

    grades = log.vocabulary.labels
    by_grade = None
    if grades is not None and not np.isnan(grades).all():
        by_grade = value(np.nan_to_num(grades, nan=-1.0))
    information = None
    if by_grade is not None:
        assert grades is not None
        own, owner = grades[lists.document], np.repeat(lists.query, np.diff(lists.offsets))
        if np.unique(own[~np.isnan(own)], return_counts=True)[1].max(initial=0) > 1:
            information = cmip(scores[lists.document], -mean_rank, own, owner, bins=bins, seed=seed)
    return Cloning(
        metric,
        value(scores),
        value(np.zeros(log.documents + 1)),
        by_grade,
        information,
    )


def logged_order(log: ClickLog) -> tuple[Collection, np.ndarray]:
    """Collects the documents that a log shows as one list per query, whose nDCG rewards the logger's order.

    Returns:
      The lists, with grades whose gain is 1 / place by ascending mean rank (documents of equal mean rank share the mean
      of their gains), and [D] the mean rank of each document.

    Raises:
      DataError: the vocabulary knows none of the documents.
    """
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


class _DocumentScores:
    """Scores documents by id, from a table."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def score(self, sessions: Sessions) -> np.ndarray:
        return np.asarray(self.values[np.asarray(sessions.features["document"])])


def _scores(model: Scorer, lists: Collection, batch_size: int) -> np.ndarray:
    """Computes the model's scores [V + 1] by document id; 0 for documents outside the lists."""
    out = np.zeros(lists.vocabulary.documents + 1)
    compiled = CompiledModel(model).on(lists)
    grades = lists.vocabulary.labels
    for batch in lists.batches(batch_size):
        mask, document = np.asarray(batch.mask), np.asarray(batch.features["document"])
        # Models that read grades, such as simulated users, must see those and not the target in their place.
        labels = None if grades is None else np.where(mask, grades[document], np.float32(0))
        out[document[mask]] = compiled.scores(dataclasses.replace(batch, labels=labels))[mask]
    return out
