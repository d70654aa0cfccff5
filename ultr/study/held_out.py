"""What held-out clicks are judged by: examination by rank and last click, relevance by logged place, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ultr.data import Counts, Vocabulary
from ultr.data.counting import CellCounts
from ultr.errors import UltrError
from ultr.evaluation.compiled import CompiledModel
from ultr.evaluation.contracts import Scorer
from ultr.propensity import conditional_likelihood
from ultr.propensity.arm_counts import arm_counts_of_cells
from ultr.sessions import Sessions

LEAST_EXAMINATION = 1e-3  # lower propensities count as this much: one click must not decide alone
CLICKS_TO_TRUST = 20.0  # of an arm, against the curve by rank alone
DOCUMENTS_AT_ONCE = 1 << 15  # that are scored together, where lists allow
LARGEST_PLACE = 3.0  # standard deviations of the logger's score within which the regression follows it


@dataclasses.dataclass(frozen=True)
class Examination:
    """Examination by rank and last click above, relative to rank 1.

    Attributes:
      table: [R, R + 1], by rank - 1 and the rank of the last click, 0 for none; all above 0.
      notes: where it is not what the clicks tell.
    """

    table: np.ndarray
    notes: tuple[str, ...] = ()


def examination(counts: Counts) -> Examination:
    """Estimates examination by the conditional likelihood, for every rank, raised by its standard error.

    An error of a rank's examination is one of all queries together, so that no standard error over queries knows of it.
    Examination that is too high takes documents shown there for less relevant, and so speaks for the logged order: with
    few sessions that is the side to err on, with many the error vanishes.

    From counts by last click, one for each rank and last click; where few clicks tell these, they are drawn to that of
    the rank alone. A rank that documents do not connect with rank 1 has the mean examination of those next to it that
    they do; where no rank is connected, that of a click rate per rank, which takes what is ranked higher for less
    relevant than it is.
    """
    ranks = counts.ranks
    cells = CellCounts(counts.document, counts.rank, None, counts.impressions, counts.clicks, counts.weight)
    notes: tuple[str, ...] = ()
    try:
        estimate = conditional_likelihood(arm_counts_of_cells(counts, cells))
        curve = np.asarray(estimate.value) * np.exp(np.minimum(np.nan_to_num(estimate.log_standard_error), 1.0))
    except UltrError:
        curve = np.full(ranks, np.nan)
    told = np.isfinite(curve) & (curve > 0)
    if told.sum() < 2 and ranks > 1:
        shown = np.bincount(counts.rank - 1, counts.impressions, ranks)
        rate = (np.bincount(counts.rank - 1, counts.clicks, ranks) + 0.5) / (shown + 1.0)
        curve, told = rate / rate[0], shown > 0
        notes = (
            "documents do not connect the ranks: examination was taken from click rates by rank, in which it is "
            "confounded with what the logger knows",
        )
    elif not told.all():
        notes = ("some ranks are not connected with rank 1: their examination was taken from the ranks beside them",)
    places = np.arange(ranks)
    curve = np.exp(np.interp(places, places[told], np.log(curve[told]))) if told.any() else np.ones(ranks)
    curve = np.maximum(curve / curve[0], LEAST_EXAMINATION)
    table = np.repeat(curve[:, None], ranks + 1, axis=1)
    if counts.last_click is None:
        return Examination(table, notes)
    try:
        by_click = arm_counts_of_cells(counts, cells._replace(extra=counts.last_click))
        found = np.asarray(conditional_likelihood(by_click).value)
    except UltrError:
        return Examination(table, notes)
    clicks = by_click.sum_by_arm(by_click.clicks)
    contexts = len(found) // ranks
    found, clicks = (x.reshape(contexts, ranks).T for x in (found, clicks))
    trust = clicks / (clicks + CLICKS_TO_TRUST)
    told = np.isfinite(found) & (found > 0)
    own = np.exp(trust * np.log(np.where(told, found, 1.0)) + (1 - trust) * np.log(curve)[:, None])
    table[:, :contexts] = np.where(told, np.maximum(own, LEAST_EXAMINATION), table[:, :contexts])
    return Examination(table, notes)


def totals(counts: Counts, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums clicks and examined impressions of each document of the vocabulary: [V + 1], [V + 1]."""
    last = 0 if counts.last_click is None else counts.last_click
    size = counts.vocabulary.documents + 1
    examined = counts.impressions * table[counts.rank - 1, last]
    return np.bincount(counts.document, counts.clicks, size), np.bincount(counts.document, examined, size)


def relevance_by_place(place: np.ndarray, clicks: np.ndarray, exposure: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Predicts relevance from the logged order alone: exp(a + b place), by Poisson regression of clicks on exposure.

    Args:
      place: [N] standardised score of the logger; clicks, exposure: [N] of the same documents.
      wanted: [D] standardised scores of the documents to predict.
    """

    def design(x: np.ndarray) -> np.ndarray:
        return np.stack([np.ones(len(x)), np.clip(x, -LARGEST_PLACE, LARGEST_PLACE)], 1)

    if not clicks.sum() > 0:
        return np.zeros(len(wanted))
    x, weights = design(place), np.array([np.log(clicks.sum() / exposure.sum()), 0.0])
    for _ in range(50):
        mean = exposure * np.exp(np.minimum(x @ weights, 20.0))
        slope = x.T @ (clicks - mean) - np.array([0.0, weights[1]])
        step = np.linalg.solve((x * mean[:, None]).T @ x + np.diag([1e-9, 1.0]), slope)
        weights = weights + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    found: np.ndarray = np.exp(np.minimum(design(wanted) @ weights, 20.0))
    return found


def within_queries(scores: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Subtracts the mean of each query, [D]; queries are whole numbers from 0."""
    count = np.maximum(np.bincount(query), 1)
    found: np.ndarray = scores - (np.bincount(query, scores) / count)[query]
    return found


def spread_within(scores: np.ndarray, query: np.ndarray) -> float:
    """Computes the standard deviation of scores within queries; 1 where they do not vary."""
    found = float(np.sqrt(np.mean(np.square(within_queries(scores, query))))) if len(scores) else 0.0
    return found if found > 0 and np.isfinite(found) else 1.0


def standardised(scores: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Brings scores [D] to mean 0 in each query and standard deviation 1 within queries."""
    found: np.ndarray = within_queries(scores, query) / spread_within(scores, query)
    return found


def document_scores(ranker: Scorer, vocabulary: Vocabulary, documents: np.ndarray) -> np.ndarray:
    """Scores documents [D] of a vocabulary, each in a list with the others of its query that are asked for: [D].

    Raises:
      ConfigError, DataError: as `CompiledModel.scores`.
    """
    out, compiled = np.zeros(len(documents)), CompiledModel(ranker)
    for rows, batch in _lists(vocabulary, np.asarray(documents, np.int64)):
        scores = np.asarray(compiled.scores(batch), np.float64)
        out[rows[rows >= 0]] = scores[rows >= 0]
    return out


def _lists(vocabulary: Vocabulary, documents: np.ndarray) -> Iterator[tuple[np.ndarray, Sessions]]:
    """Yields batches of lists, one per query, with the place of each document among those given, [B, K], -1: padding.

    Lists are padded to a power of eight, and batches to one size for each, so that few shapes have to be compiled.
    """
    query = vocabulary.document_query[documents]
    order = np.argsort(query, kind="stable")
    sorted_query = query[order]
    start = np.flatnonzero(np.append(True, sorted_query[1:] != sorted_query[:-1])[: len(order)])
    sizes = np.diff(np.append(start, len(order)))
    by_size = np.argsort(sizes, kind="stable")
    while len(by_size):
        width = 8
        while width < sizes[by_size[-1]]:
            width *= 8
        narrower = int((sizes[by_size] * 8 <= width).sum()) if width > 8 else 0
        height = max(DOCUMENTS_AT_ONCE // width, 1)
        lists = by_size[max(len(by_size) - height, narrower) :]
        by_size = by_size[: len(by_size) - len(lists)]
        rows = np.full((height, width), -1)
        for i, number in enumerate(lists.tolist()):
            rows[i, : sizes[number]] = order[start[number] : start[number] + sizes[number]]
        mask = rows >= 0
        ids = np.where(mask, documents[rows], 0).astype(np.int32)
        features = {"document": ids}
        if (table := vocabulary.features) is not None:
            features["features"] = np.where(mask[:, :, None], table[ids], 0.0).astype(np.float32)
        yield (
            rows,
            Sessions(mask=mask, position=np.where(mask, np.arange(width), 0).astype(np.int32), features=features),
        )
