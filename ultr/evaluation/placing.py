"""Where new rankers place the documents that a log shows, and how likely the log's users were to examine them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ultr.data.dataset import BatchSource as Source
from ultr.errors import ConfigError, DataError
from ultr.evaluation.calls import Caller
from ultr.evaluation.ranking import ranked
from ultr.sessions import Sessions

if TYPE_CHECKING:
    from ultr.data import Collection

LOGGED = "logged"  # the order in which the documents were shown, as a ranker

# Of one ranker in one batch: [B, K] chance of examination to divide by (0: counts nothing), [B, K] discount at the new
# rank, [B, K] clicks without those expected by the regression and by mistake, [B] value by the regression.
Placed = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Table:
    """Examination by rank, and the chance of clicks without it.

    Args:
      propensity: [R], or a `Propensities` table.
      false_clicks: [R] in [0, 1), or None.

    Raises:
      ConfigError: no numbers [R], or chances outside [0, 1).
    """

    def __init__(self, propensity: Any, false_clicks: Any) -> None:
        self._why: Mapping[int, str] = getattr(propensity, "unsupported", {})
        self.examined = _numbers(getattr(propensity, "value", propensity), "propensity")
        self.false = np.zeros(len(self.examined))
        if false_clicks is not None:
            self.false = _numbers(false_clicks, "false_clicks")
        if self.false.shape != self.examined.shape:
            raise ConfigError(
                f"expected false_clicks [{len(self.examined)}] as propensity has, found [{len(self.false)}]"
            )

    def at(self, batch: Sessions) -> tuple[np.ndarray, np.ndarray]:
        """[B, K] examination and [B, K] false clicks of the shown documents; zeros on padding.

        Raises:
          DataError: a rank beyond the table.
          ConfigError: a rank that is shown has no propensity above 0.
        """
        mask, position = np.asarray(batch.mask), np.where(batch.mask, np.asarray(batch.position), 0)
        last = int(position.max(initial=0)) + 1
        if last > len(self.examined):
            raise DataError(
                f"expected ranks up to {len(self.examined)}, the last with a propensity, found rank {last}",
                fix="Estimate propensities for all ranks, or cut the lists of the log",
                field="rank",
            )
        shown = np.unique(position[mask])
        value = self.examined[shown]
        bad = ~((value > 0) & np.isfinite(value) & (self.false[shown] >= 0) & (self.false[shown] < 1))
        if bad.any():
            rank = int(shown[bad][0]) + 1
            why = f" ({self._why[rank]})" if rank in self._why else ""
            raise ConfigError(
                f"rank {rank} is shown and has propensity {self.examined[rank - 1]:g} and chance of a false click "
                f"{self.false[rank - 1]:g}{why}: its clicks tell nothing without a propensity above 0 and a chance "
                f"below 1; cut the lists above it, or estimate its propensity on other data"
            )
        return np.where(mask, self.examined[position], 0.0), np.where(mask, self.false[position], 0.0)


class Plan:
    """How each ranker orders the documents of each session, or of each query.

    Args:
      calls: name -> ranker.
      table: of the log's users.
      cutoff: ranks that count; None: all.
      regression: scores that are logits of relevance.
      seed: [2] words that order equal scores.

    Attributes:
      unsupported: name -> candidates within the cutoff that were never shown.
    """

    def __init__(
        self,
        calls: Mapping[str, Caller],
        table: Table,
        *,
        cutoff: int | None,
        regression: Caller | None,
        seed: np.ndarray,
    ) -> None:
        self._calls, self._table, self._cutoff, self._regression = calls, table, cutoff, regression
        self._seed = seed
        self._number = 0
        self.unsupported: dict[str, int] = {}
        # By document id, and by query id, where candidates are ranked.
        self._chance: np.ndarray | None = None
        self._discount: dict[str, np.ndarray] = {}
        self._model: dict[str, np.ndarray] = {}
        self._listed: np.ndarray | None = None

    def placed(self, batch: Sessions, click: np.ndarray) -> Iterator[Placed]:
        """For each ranker, and last for `LOGGED`, a batch with its clicks [B, K]."""
        examined, false = self._table.at(batch)
        mask = np.asarray(batch.mask)
        plain = batch.unbiased()
        relevance = self._relevance(plain)
        excess = np.where(mask, click - false - examined * relevance, 0.0)
        if self._chance is None:
            query = self._numbers(batch)
            for call in self._calls.values():
                ranks = np.asarray(ranked(call.scores(plain), mask, seed=self._seed, query=query))
                discount = self._by_rank(ranks, mask)
                yield examined, discount, excess, (discount * relevance).sum(1)
            logged = np.broadcast_to(np.arange(1, mask.shape[1] + 1), mask.shape)
        else:
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            query = self._listed_queries(batch)
            for name in self._calls:
                model = self._model[name][query]
                yield self._chance[document], self._discount[name][document], excess, model
            logged = np.asarray(batch.position) + 1
        discount = self._by_rank(logged, mask)
        yield examined, discount, excess, (discount * relevance).sum(1)

    def rank_candidates(self, log: Source, candidates: Collection, batch_size: int) -> None:
        """Ranks all candidates of each query once, and takes examination from where the log shows them.

        Raises:
          DataError: never-shown candidates within the cutoff and no regression for them; other document ids.
        """
        from ultr.data.vocabulary import known_documents

        vocabulary = getattr(log, "vocabulary", None)
        if vocabulary is not None:
            known_documents(vocabulary, candidates.vocabulary, file=Path(getattr(log, "path", "log")))
        documents, queries = candidates.vocabulary.documents + 1, candidates.vocabulary.queries
        chance, sessions = np.zeros(documents), np.zeros(queries)
        self._listed = np.zeros(queries, bool)
        self._listed[candidates.query] = True
        for batch in log.batches(batch_size):
            if "document" not in batch.features or batch.query is None:
                raise DataError("expected sessions with query ids and the feature 'document' to find candidates by")
            mask = np.asarray(batch.mask)
            weight = np.ones(len(mask)) if batch.weight is None else np.asarray(batch.weight, np.float64)
            weight = np.where(mask.any(1), weight, 0.0)
            if not weight.any():
                continue
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            known = document < documents
            np.add.at(chance, document[known], (self._table.at(batch)[0] * weight[:, None])[known])
            np.add.at(sessions, self._listed_queries(batch)[weight > 0], weight[weight > 0])
        self._chance = chance
        chance[0] = 0.0
        owner = candidates.vocabulary.document_query
        chance[1:] /= np.maximum(sessions[owner[1:]], np.finfo(np.float64).tiny)
        names = list(self._calls)
        self._discount = {name: np.zeros(documents) for name in names}
        self._model = {name: np.zeros(queries) for name in names}
        missing = dict.fromkeys(names, 0)
        for batch in candidates.batches(batch_size):
            mask, query = np.asarray(batch.mask), np.asarray(batch.query)
            mask = mask & (sessions[query] > 0)[:, None]
            document = np.where(mask, np.asarray(batch.features["document"]), 0)
            plain = batch.unbiased()
            relevance = self._relevance(plain)
            for name, call in self._calls.items():
                ranks = np.asarray(ranked(call.scores(plain), mask, seed=self._seed, query=query))
                discount = self._by_rank(ranks, mask)
                missing[name] += int(((chance[document] == 0) & (discount > 0)).sum())
                self._discount[name][document[mask]] = discount[mask]
                np.add.at(self._model[name], query, (discount * relevance).sum(1))
        for name in names:
            self._discount[name][0] = 0.0
        self.unsupported = missing
        first = next((name for name in names if missing[name]), None)
        if first is not None and self._regression is None:
            within = "" if self._cutoff is None else f" within rank {self._cutoff}"
            raise DataError(
                f"'{first}' places {missing[first]:,} candidates{within} that the log never shows: their value is "
                f"unknown",
                fix="Leave candidates= out to rank what was shown, or use method='dr' with a regression for them",
            )

    def _by_rank(self, ranks: np.ndarray, mask: np.ndarray) -> np.ndarray:
        counts = mask if self._cutoff is None else mask & (ranks <= self._cutoff)
        return np.where(counts, 1 / np.log2(ranks + 1.0), 0.0)

    def _relevance(self, batch: Sessions) -> np.ndarray:
        mask = np.asarray(batch.mask)
        if self._regression is None:
            return np.zeros(mask.shape)
        scores = np.where(mask, self._regression.scores(batch), 0.0)
        return np.where(mask, expit(scores.astype(np.float64)), 0.0)

    def _numbers(self, batch: Sessions) -> np.ndarray:
        """[B] what orders equal scores: query ids, or running numbers of the lists."""
        if batch.query is not None:
            return np.asarray(batch.query)
        self._number += len(batch)
        return np.arange(self._number - len(batch), self._number)

    def _listed_queries(self, batch: Sessions) -> np.ndarray:
        """[B] query ids; 0 for padding."""
        assert self._listed is not None
        real, query = np.asarray(batch.mask).any(1), np.asarray(batch.query)
        query = np.where(real, query, 0)
        there = ~real | ((query < len(self._listed)) & self._listed[np.minimum(query, len(self._listed) - 1)])
        if not there.all():
            raise DataError(
                f"expected candidates for every query of the log, found none for query {query[~there][0]}",
                fix="Take the sessions of the queries that have candidates: log.split(..., by='query') or --split",
                field="query",
            )
        return query


def _numbers(given: Any, name: str) -> np.ndarray:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: expected numbers [R] by rank or a Propensities table, found {given!r}") from error
    if values.ndim != 1 or not len(values):
        raise ConfigError(f"{name}: expected numbers [R] by rank, found shape {values.shape}")
    return values
