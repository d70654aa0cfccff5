"""Where the graded documents of data are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ultr.data import ClickLog, Collection
from ultr.data.dataset import Dataset
from ultr.data.vocabulary import HasVocabulary, name_places
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


def candidate_notes(candidates: Collection, data: Dataset) -> tuple[dict[str, int], list[str]]:
    """Says what candidates leave out of the judged queries of data, and where they grade otherwise.

    Returns:
      Counts: `queries`, those of the data that are judged, or where it has no grades those that it has; of these
      `without_candidates`; and `contradictions`, documents with another grade in the data. And what to say of them.
    """
    if not isinstance(data, HasVocabulary):
        return {}, []
    own = data if isinstance(data, Collection) else data.collection() if isinstance(data, ClickLog) else None
    shown = shown_queries(data) if isinstance(data, ClickLog) else None
    queries = shown if own is None else own.query if shown is None else np.intersect1d(own.query, shown)
    notes, facts = [], {}
    if queries is not None:
        there = name_places(candidates.query_names, data.vocabulary.query_names)
        without = np.setdiff1d(queries, there)
        facts = {"queries": len(queries), "without_candidates": len(without)}
        if len(without):
            kind = "judged queries" if own is not None else "queries"
            first = data.vocabulary.query_names[int(without[0])].as_py()
            notes.append(
                f"{len(without):,} of the {len(queries):,} {kind} of {data.vocabulary.path} have no candidates, the "
                f"first of them '{first}': ranking metrics leave them out. Add their candidates, or take the metrics "
                "for those of the other queries alone"
            )
    if (grades := data.vocabulary.labels) is not None:
        ids = candidates.vocabulary.ids_in(data.vocabulary)[candidates.document]
        theirs = np.where(ids > 0, grades[ids], np.float32(np.nan))
        other = ~np.isnan(theirs) & ~np.isnan(candidates.labels)
        other &= np.maximum(theirs, 0) != np.maximum(candidates.labels, 0)
        facts["contradictions"] = int(other.sum())
        if other.any():
            at = int(other.argmax())
            document = candidates.document_names[at].as_py()
            query = candidates.query_names[int(np.searchsorted(candidates.offsets, at, "right")) - 1].as_py()
            notes.append(
                f"{facts['contradictions']:,} candidates have another grade than in {data.vocabulary.path}, the first "
                f"of them document '{document}' of query '{query}' ({candidates.labels[at]:g}, there {theirs[at]:g}): "
                "the grades of the candidates are used. Leave out their column label to use those of the data"
            )
    return facts, notes


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
