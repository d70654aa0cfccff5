"""`Displays`: at which rank a log showed each document, and how often."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.data import ClickLog, Counts
from ultr.data.counting import count_cells
from ultr.data.dataset import InMemory
from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions
from ultr.towers import Component, IndexBound, Statistic


class Displays(Component):
    """Holds how often a logging policy showed each document at each rank, as a share of the sessions of its query.

    An estimate of P(shown at k | query, document), since a document id stands for a (query, document) pair. What is
    missing to 1 in a document's shares is how often it was not shown at all. Memory grows with the cells, the
    (document, rank) pairs that occur. Make it by `Displays.of(log)`; the constructor alone makes room, which `load`
    fills.

    Args:
      documents: size of the vocabulary; ids run from 1 to this.
      ranks: largest rank shown.
      cells: number of (document, rank) pairs that occur.

    Attributes:
      first: [documents + 2] int32, where the cells of each document id begin.
      position: [cells] int32 rank minus one of each cell, increasing within a document.
      share: [cells] float32, above 0.
    """

    def __init__(self, *, documents: int, ranks: int, cells: int) -> None:
        self.documents, self.ranks, self.cells = documents, ranks, cells
        self.first = Statistic(jnp.zeros(documents + 2, jnp.int32))
        self.position = Statistic(jnp.zeros(cells, jnp.int32))
        self.share = Statistic(jnp.zeros(cells))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("document", self.documents + 1, "ids"),)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"document"})

    @property
    def cut(self) -> bool:
        """Whether the logging policy shows some document in some sessions of its query only."""
        shown = self.exposure(np.ones(self.ranks))
        return bool(((shown > 0) & (shown < 1 - 1e-3)).any())

    @classmethod
    def of(cls, log: ClickLog | Counts | InMemory | Sessions) -> Displays:
        """Counts the displays of a log: the training split, since the weights correct how that was shown.

        Args:
          log: a click log, streamed twice; counts of one, where the sessions of a query are taken to be the most that
            any rank of it was shown in (they do not say, and most queries fill rank 1 in each session); or sessions
            with queries and the feature `document`. Sessions count by their weight.

        Raises:
          DataError: no document is shown, one document has several queries, or there are more than 2^31 - 1 cells.
          ConfigError: sessions without queries or documents.
        """
        found = cls._counted(log)
        if isinstance(log, ClickLog | Counts):
            found.input_schema = log.input_schema.only(found.reads)
        return found

    @classmethod
    def _counted(cls, log: ClickLog | Counts | InMemory | Sessions) -> Displays:
        if isinstance(log, ClickLog):
            made = count_cells(log)
            queries = log.vocabulary.document_query[: log.documents + 1]
            sessions = np.zeros(log.vocabulary.queries)
            names = ["query", *(["weight"] if log.weighted else [])]
            for batch in log.columns(names):
                weight = batch["weight"].to_numpy() if log.weighted else None
                sessions += np.bincount(batch["query"].to_numpy(), weight, minlength=len(sessions))
            return cls._made(made.document, made.rank, made.impressions, sessions[queries], log.ranks)
        if isinstance(log, Counts):
            queries = log.vocabulary.document_query[: log.documents + 1]
            document = np.where(log.document > log.documents, 0, log.document)
            known = document > 0
            cell = queries[document[known]].astype(np.int64) * log.ranks + log.rank[known] - 1
            each, place = np.unique(cell, return_inverse=True)
            shown = np.bincount(place, log.impressions[known], minlength=len(each))
            sessions = np.zeros(log.vocabulary.queries)
            np.maximum.at(sessions, each // log.ranks, shown)
            return cls._made(document, log.rank, log.impressions, sessions[queries], log.ranks)
        return cls._of_sessions(log.sessions if isinstance(log, InMemory) else log)

    @classmethod
    def _of_sessions(cls, sessions: Sessions) -> Displays:
        if sessions.query is None or "document" not in sessions.features:
            raise ConfigError("displays are counted per query and document: the sessions need query and 'document'")
        mask = np.asarray(sessions.mask)
        weight, query = np.where(mask.any(1), sessions.row_weights(), 0.0), np.asarray(sessions.query)
        document = np.asarray(sessions.features["document"])[mask]
        rank = np.asarray(sessions.position)[mask] + 1
        row = np.nonzero(mask)[0]
        names, place = np.unique(query, return_inverse=True)
        total = np.bincount(place, weight, minlength=len(names))
        low = np.full(int(document.max(initial=0)) + 1, len(names))
        high = np.full_like(low, -1)
        np.minimum.at(low, document, place[row])
        np.maximum.at(high, document, place[row])
        several = np.flatnonzero(low[1:] < high[1:]) + 1
        if len(several):
            raise DataError(
                f"expected each document id under one query, found {several[0]} under several",
                fix="Number the (query, document) pairs, not the documents.",
                field="document",
            )
        per_document = np.where(high >= 0, total[np.maximum(high, 0)], 0.0)
        return cls._made(document, rank, weight[row], per_document, int(rank.max(initial=1)))

    @classmethod
    def _made(
        cls, document: np.ndarray, rank: np.ndarray, impressions: np.ndarray, sessions: np.ndarray, ranks: int
    ) -> Displays:
        """Builds displays from counts.

        Args:
          document, rank, impressions: [C] in any order, a (document, rank) pair perhaps several times.
          sessions: [V + 1] number of sessions of each document's query.
          ranks: the largest rank.
        """
        known = (document > 0) & (np.asarray(impressions) > 0)
        cell, place = np.unique(document[known].astype(np.int64) * ranks + rank[known] - 1, return_inverse=True)
        if not len(cell):
            raise DataError("expected a log that shows documents, found none", fix="Check how the log was made.")
        if len(cell) >= 1 << 31:
            raise DataError(f"{len(cell):,} pairs of document and rank are more than 32 bits can number")
        shown = np.bincount(place, np.asarray(impressions)[known], minlength=len(cell))
        made = cls(documents=len(sessions) - 1, ranks=ranks, cells=len(cell))
        owner = cell // ranks
        made.first[...] = jnp.asarray(np.searchsorted(owner, np.arange(len(sessions) + 1)), jnp.int32)
        made.position[...] = jnp.asarray(cell % ranks, jnp.int32)
        made.share[...] = jnp.asarray(shown / sessions[owner], jnp.float32)
        return made

    def at(self, documents: Array, positions: Array) -> jax.Array:
        """Looks up shares of documents at positions (rank minus one); 0 where never shown, and for unseen documents.

        Args:
          documents, positions: int32 of any one shape; ids up to `documents`.
        """
        documents, positions = jnp.asarray(documents, jnp.int32), jnp.asarray(positions, jnp.int32)
        first, position = self.first[...], self.position[...]
        low, end = jnp.take(first, documents), jnp.take(first, documents + 1)
        high = end
        for _ in range(int(self.ranks).bit_length()):  # a document has at most so many cells
            middle = (low + high) // 2
            before = (low < high) & (jnp.take(position, middle, mode="clip") < positions)
            low, high = jnp.where(before, middle + 1, low), jnp.where(before, high, middle)
        found = (low < end) & (jnp.take(position, low, mode="clip") == positions)
        return jnp.where(found, jnp.take(self.share[...], low, mode="clip"), 0.0)

    def shares(self, documents: Array) -> jax.Array:
        """Looks up the shares of documents [...] at every rank, [..., ranks]."""
        documents = jnp.asarray(documents, jnp.int32)[..., None]
        shape = (*documents.shape[:-1], self.ranks)
        positions = jnp.arange(self.ranks, dtype=jnp.int32).reshape(*(1,) * (len(shape) - 1), -1)
        return self.at(jnp.broadcast_to(documents, shape), jnp.broadcast_to(positions, shape))

    def exposure(self, values: Any) -> np.ndarray:
        """Computes the sum over ranks of share times value, [documents + 1] float64; 0 for documents never shown.

        Args:
          values: [R] one per rank: the examination gives P(examined), alpha and beta of trust bias give theirs, ones
            give P(shown).

        Raises:
          ConfigError: fewer values than ranks shown.
        """
        values = np.asarray(values, np.float64)
        if len(values) < self.ranks:
            raise ConfigError(
                f"expected a number for each of the {self.ranks} ranks that the log shows, found {len(values)}. Cut "
                "the lists, or estimate the ranks below"
            )
        document = np.repeat(np.arange(self.documents + 1), np.diff(np.asarray(self.first[...])))
        share = np.asarray(self.share[...], np.float64)[: len(document)]
        each = share * values[np.asarray(self.position[...])[: len(document)]]
        return np.bincount(document, each, minlength=self.documents + 1)
