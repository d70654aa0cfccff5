"""Where the graded documents of data are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ultr.data import ClickLog, Collection
from ultr.data.dataset import Dataset
from ultr.data.vocabulary import HasVocabulary
from ultr.sessions import Sessions


class GradedLists(NamedTuple):
    """Graded lists and which of them count.

    Attributes:
      source: the lists.
      queries: ids of the queries that count; None: all.
    """

    source: Dataset
    queries: np.ndarray | None = None


def graded_lists(data: Dataset, first: Sessions) -> GradedLists | None:
    """Finds the graded lists of data, a batch of which is `first`; None where there are none.

    A log's graded candidates are those of the whole vocabulary; the queries that its sessions show count.
    """
    if isinstance(data, ClickLog) and (collection := data.collection()) is not None:
        return GradedLists(collection, shown_queries(data))
    return GradedLists(data) if first.labels is not None else None


def candidate_lists(candidates: Collection, data: Dataset) -> GradedLists:
    """Takes candidates for the graded lists of data: those of its queries, found by name where it has names.

    Raises:
      DataError: there are none of its queries.
    """
    if not isinstance(data, HasVocabulary):
        return GradedLists(candidates)
    queries = data.query if isinstance(data, Collection) else None
    queries = shown_queries(data) if isinstance(data, ClickLog) else queries
    return GradedLists(candidates.with_queries_of(data.vocabulary), queries)


def shown_queries(log: ClickLog) -> np.ndarray:
    """Returns the ids of the queries that a log shows, ascending."""
    return np.unique(np.concatenate([np.unique(rows["query"].to_numpy()) for rows in log.columns(["query"])]))


def grade_scale_of(lists: Dataset, batch_size: int) -> float:
    """Returns the highest grade of the scale of graded lists; the highest grade where none is known."""
    if isinstance(lists, Collection):
        return lists.max_grade
    vocabulary = lists.description.vocabulary
    if vocabulary is not None and vocabulary.max_grade is not None:
        return vocabulary.max_grade
    highest = 0.0
    for batch in lists.batches(batch_size):
        labels = np.asarray(batch.labels)
        highest = max(highest, float(np.max(labels, where=np.asarray(batch.mask) & ~np.isnan(labels), initial=0)))
    return highest
