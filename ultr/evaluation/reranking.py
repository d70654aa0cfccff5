"""How new rankers order the documents of a click log, with what a counterfactual estimate takes from each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ultr.data import ClickLog, Collection
from ultr.data.dataset import Dataset
from ultr.data.vocabulary import known_documents
from ultr.errors import DataError
from ultr.evaluation.compiled import CompiledModel
from ultr.evaluation.examination_table import ExaminationTable
from ultr.evaluation.ranking import rank_documents
from ultr.sessions import Sessions

LOGGED = "logged"  # the name of the order in which the documents were shown


class RankedBatch(NamedTuple):
    """The documents of a batch as one ranker orders them.

    Attributes:
      examination: [B, K] probability of examination to divide clicks by; 0 where a click counts nothing.
      discount: [B, K] 1 / log2(rank + 1) at the ranker's rank, 0 beyond the cutoff.
      excess_clicks: [B, K] clicks minus the false ones and those that the regression expects.
      regression_value: [B] value of the list by the regression alone.
      bias: what the weights that are cut off may have taken from the value of the list.
    """

    examination: np.ndarray
    discount: np.ndarray
    excess_clicks: np.ndarray
    regression_value: np.ndarray
    bias: BiasBound


class BiasBound(NamedTuple):
    """Bounds the bias of lists [B], or of queries [Q], that comes of weights below 1 / examination.

    A document of relevance r at discount m counts w o r m, which falls short of r m by (1 - w o) r m, with r unknown
    from 0 to 1; where a regression expects r', by (1 - w o) (r - r') m.

    Attributes:
      below: at most so much is missing from the value: the sum of (1 - w o) (1 - r') m.
      above: at most so much is in it beyond the truth: the sum of (1 - w o) r' m.
      relevance: at most so much is missing from the sum of the relevance of the documents: the sum of 1 - w o.
    """

    below: np.ndarray
    above: np.ndarray
    relevance: np.ndarray

    @classmethod
    def of(cls, short: np.ndarray, discount: np.ndarray, relevance: np.ndarray) -> BiasBound:
        """Bounds the bias of lists of which the documents [B, K] count by `short` = 1 - w o less."""
        below, above = short * discount * (1 - relevance), short * discount * relevance
        return cls(below.sum(1), above.sum(1), short.sum(1))


class _RankedCandidates(NamedTuple):
    """How one ranker orders the candidates of all queries.

    Attributes:
      discount: [V + 1] by document id.
      regression_value: [Q] by query id.
      bias: by query id.
    """

    discount: np.ndarray
    regression_value: np.ndarray
    bias: BiasBound


class Reranking:
    """Ranks the documents of each session, or the candidates of each query, by several rankers.

    Args:
      rankers: name -> ranker.
      table: examination and false clicks of the log's users.
      cutoff: ranks that count; None: all.
      regression: a model whose scores are logits of relevance.
      clip: the largest weight; infinite for none.
      seed: [2] orders equal scores, from `tie_seed`.

    Attributes:
      unsupported: name -> number of candidates within the cutoff that were never shown.
    """

    def __init__(
        self,
        rankers: Mapping[str, CompiledModel],
        table: ExaminationTable,
        *,
        cutoff: int | None,
        regression: CompiledModel | None,
        clip: float,
        seed: np.ndarray,
    ) -> None:
        self._rankers, self._table, self._cutoff, self._regression = rankers, table, cutoff, regression
        self._clip, self._seed = clip, seed
        self._lists = 0
        self.unsupported: dict[str, int] = {}
        # Where candidates are ranked: examination by document id, which queries have candidates, and their order.
        self._examination: np.ndarray | None = None
        self._has_candidates = np.zeros(0, bool)
        self._candidates: dict[str, _RankedCandidates] = {}

    def ranked(self, batch: Sessions, click: np.ndarray) -> Iterator[RankedBatch]:
        """Ranks a batch with its clicks [B, K] by each ranker, and last in the order in which it was shown."""
        examined, false = self._table.at(batch)
        mask = np.asarray(batch.mask)
        plain = batch.unbiased()
        relevance = self._relevance(plain, self._regression)
        excess = np.where(mask, click - false - examined * relevance, 0.0)
        if self._examination is None:
            query = self._list_numbers(batch)
            for ranker in self._rankers.values():
                discount = self._discount(self._ranks(ranker, plain, mask, query), mask)
                yield self._as_shown(examined, discount, excess, relevance, mask)
            logged = np.broadcast_to(np.arange(1, mask.shape[1] + 1), mask.shape)
        else:
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            query = self._queries_with_candidates(batch)
            for name in self._rankers:
                order = self._candidates[name]
                yield RankedBatch(
                    self._examination[document],
                    order.discount[document],
                    excess,
                    order.regression_value[query],
                    BiasBound(*(bound[query] for bound in order.bias)),
                )
            logged = np.asarray(batch.position) + 1
        yield self._as_shown(examined, self._discount(logged, mask), excess, relevance, mask)

    def _as_shown(
        self, examined: np.ndarray, discount: np.ndarray, excess: np.ndarray, relevance: np.ndarray, mask: np.ndarray
    ) -> RankedBatch:
        """Makes a batch of whose documents each was shown, and examined with the chance of its rank."""
        bias = BiasBound.of(np.where(mask, self._short(examined), 0.0), discount, relevance)
        return RankedBatch(examined, discount, excess, (discount * relevance).sum(1), bias)

    def _short(self, examination: np.ndarray) -> np.ndarray:
        """Computes 1 - w o with the weight w = 1 / o, at most the clip; 1 where nothing is examined."""
        weight = np.minimum(1 / np.where(examination > 0, examination, 1.0), self._clip)
        return (
            np.where(examination * self._clip < 1, 1 - weight * examination, 0.0)
            if self._clip < np.inf
            else (np.where(examination > 0, 0.0, 1.0))
        )

    def rank_candidates(self, log: Dataset, candidates: Collection, batch_size: int) -> None:
        """Ranks all candidates of each query once, and averages examination over where the log shows them.

        Raises:
          DataError: candidates within the cutoff that were never shown and no regression for them; or a log and
            candidates whose ids mean different documents.
        """
        if isinstance(log, ClickLog):
            known_documents(log.vocabulary, candidates.vocabulary, file=log.path)
        documents, queries = candidates.vocabulary.documents + 1, candidates.vocabulary.queries
        self._has_candidates = np.zeros(queries, bool)
        self._has_candidates[candidates.query] = True
        examination, sessions = np.zeros(documents), np.zeros(queries)
        for batch in log.batches(batch_size):
            if "document" not in batch.features or batch.query is None:
                raise DataError("expected sessions with query ids and the feature 'document' to find candidates by")
            mask = np.asarray(batch.mask)
            weight = np.where(mask.any(1), batch.row_weights(), 0.0)
            if not weight.any():
                continue
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            known = document < documents
            np.add.at(examination, document[known], (self._table.at(batch)[0] * weight[:, None])[known])
            np.add.at(sessions, self._queries_with_candidates(batch)[weight > 0], weight[weight > 0])
        examination[0] = 0.0
        owner = candidates.vocabulary.document_query
        examination[1:] /= np.maximum(sessions[owner[1:]], np.finfo(np.float64).tiny)
        self._examination = examination
        names = list(self._rankers)
        rankers = {name: ranker.on(candidates, name="candidates") for name, ranker in self._rankers.items()}
        regression = None if self._regression is None else self._regression.on(candidates, name="candidates")
        self._candidates = {
            name: _RankedCandidates(np.zeros(documents), np.zeros(queries), BiasBound(*np.zeros((3, queries))))
            for name in names
        }
        self.unsupported = dict.fromkeys(names, 0)
        for batch in candidates.batches(batch_size):
            query = np.asarray(batch.query)
            mask = np.asarray(batch.mask) & (sessions[query] > 0)[:, None]
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            plain = batch.unbiased()
            relevance = self._relevance(plain, regression)
            for name, ranker in rankers.items():
                discount = self._discount(self._ranks(ranker, plain, mask, query), mask)
                self.unsupported[name] += int(((examination[document] == 0) & (discount > 0)).sum())
                self._candidates[name].discount[document[mask]] = discount[mask]
                np.add.at(self._candidates[name].regression_value, query, (discount * relevance).sum(1))
                bias = BiasBound.of(np.where(mask, self._short(examination[document]), 0.0), discount, relevance)
                for total, bound in zip(self._candidates[name].bias, bias, strict=True):
                    np.add.at(total, query, bound)
        for order in self._candidates.values():
            order.discount[0] = 0.0
        first = next((name for name in names if self.unsupported[name]), None)
        if first is not None and self._regression is None:
            within = "" if self._cutoff is None else f" within rank {self._cutoff}"
            raise DataError(
                f"'{first}' places {self.unsupported[first]:,} candidates{within} that the log never shows: their "
                f"value is unknown",
                fix="Leave candidates= out to rank what was shown, or use method='dr' with a regression for them",
            )

    def _ranks(self, ranker: CompiledModel, batch: Sessions, mask: np.ndarray, query: np.ndarray) -> np.ndarray:
        return rank_documents(ranker.scores(batch), mask, seed=self._seed, query=query)

    def _discount(self, ranks: np.ndarray, mask: np.ndarray) -> np.ndarray:
        counts = mask if self._cutoff is None else mask & (ranks <= self._cutoff)
        return np.where(counts, 1 / np.log2(ranks + 1.0), 0.0)

    def _relevance(self, batch: Sessions, regression: CompiledModel | None) -> np.ndarray:
        """Computes [B, K] relevance by the regression; 0 on padding and without one."""
        mask = np.asarray(batch.mask)
        if regression is None:
            return np.zeros(mask.shape)
        scores = np.where(mask, regression.scores(batch), 0.0)
        return np.where(mask, expit(scores.astype(np.float64)), 0.0)

    def _list_numbers(self, batch: Sessions) -> np.ndarray:
        """Returns [B] numbers that order equal scores: query ids, or running numbers of the lists."""
        if batch.query is not None:
            return np.asarray(batch.query)
        self._lists += len(batch)
        return np.arange(self._lists - len(batch), self._lists)

    def _queries_with_candidates(self, batch: Sessions) -> np.ndarray:
        """Returns [B] query ids, 0 on padding, after checking that all have candidates."""
        real, query = np.asarray(batch.mask).any(1), np.asarray(batch.query)
        query = np.where(real, query, 0)
        known = self._has_candidates
        there = ~real | ((query < len(known)) & known[np.minimum(query, len(known) - 1)])
        if not there.all():
            raise DataError(
                f"expected candidates for every query of the log, found none for query {query[~there][0]}",
                fix="Take the sessions of the queries that have candidates: log.split(..., by='query') or --split",
                field="query",
            )
        return query
