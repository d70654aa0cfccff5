"""`QueryLists`: one list per query, with how often a log showed each of its documents where, and its clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ultr import stopping
from ultr.arguments import check_count
from ultr.data.batching import PaddedRows, bucket_widths, rebatch
from ultr.data.click_log import ClickLog
from ultr.data.columns import RaggedRows
from ultr.data.counting import count_cells
from ultr.data.dataset import Coverage, Dataset, Description
from ultr.data.grouping import group_starts
from ultr.data.input_schema import InputSchema
from ultr.data.vocabulary import Vocabulary
from ultr.errors import DataError
from ultr.sessions import Sessions, SharedFeature

DISPLAYS, CLICK_RATE = "displays", "click_rate"  # fields of a batch: what a log showed of each document of a query


class QueryLists(Dataset):
    """Q lists, one per query: the documents that the log showed in any of its sessions, with their displays and clicks.

    All that a method depends on which learns a ranking per query, as those that maximise an objective over exposure do.
    The documents of a list stand in the order of their mean rank, the logged order.

    Attributes:
      query: [Q] int32 query ids, increasing.
      offsets: [Q + 1] int64; list i is `[offsets[i]:offsets[i + 1]]` of the arrays per document.
      sessions: [Q] float64 sessions of each query, by weight.
      document: [D] int32 document ids.
      displays: [D, R] float32, the share of the sessions of its query that showed a document at each rank.
      click_rate: [D] float32, the clicks on a document per session of its query.
      never_shown: how many documents of these queries the vocabulary has that the log never showed.
      documents, ranks, vocabulary, identity: those of the log.
    """

    def __init__(
        self,
        *,
        query: np.ndarray,
        offsets: np.ndarray,
        sessions: np.ndarray,
        document: np.ndarray,
        displays: np.ndarray,
        click_rate: np.ndarray,
        documents: int,
        vocabulary: Vocabulary,
        identity: Mapping[str, Any],
    ) -> None:
        self.query, self.offsets, self.sessions = query, offsets, sessions
        self.document, self.displays, self.click_rate = document, displays, click_rate
        self.documents, self.ranks, self.vocabulary = documents, displays.shape[1], vocabulary
        self.identity: dict[str, Any] = dict(identity)
        listed = np.zeros(vocabulary.queries, bool)
        listed[query] = True
        self.never_shown = int(np.count_nonzero(listed[vocabulary.document_query[1:]])) - len(document)

    @classmethod
    def of(cls, log: ClickLog, *, memory: int = 1 << 30) -> QueryLists:
        """Counts the displays and clicks of a log, which is streamed twice; sessions count by their weight.

        Documents that the log does not know (id 0) are left out, and so are queries that show no other.

        Raises:
          DataError: no document is shown.
        """
        cells = count_cells(log, memory=memory)
        queries = log.vocabulary.document_query[: log.documents + 1]
        total = np.zeros(log.vocabulary.queries)
        for batch in log.columns(["query", *(["weight"] if log.weighted else [])]):
            weight = batch["weight"].to_numpy() if log.weighted else None
            total += np.bincount(batch["query"].to_numpy(), weight, minlength=len(total))
        known = cells.document > 0
        document, rank = cells.document[known], cells.rank[known]
        if not len(document):
            raise DataError("expected a log that shows documents, found none", fix="Check how the log was made.")
        first = group_starts(document)
        row = np.repeat(np.arange(len(first)), np.diff(first, append=len(document)))
        shown, share = document[first], np.zeros((len(first), log.ranks), np.float32)
        sessions = total[queries[shown]]
        share[row, rank - 1] = cells.impressions[known] / sessions[row]
        rate = np.add.reduceat(cells.clicks[known].astype(np.float64), first) / sessions
        mean = (share @ np.arange(1, log.ranks + 1)) / share.sum(1)
        order = np.lexsort((mean, queries[shown]))
        start = group_starts(queries[shown][order])
        return cls(
            query=queries[shown][order][start].astype(np.int32),
            offsets=np.append(start, len(order)).astype(np.int64),
            sessions=sessions[order][start],
            document=shown[order].astype(np.int32),
            displays=share[order],
            click_rate=rate[order].astype(np.float32),
            documents=log.documents,
            vocabulary=log.vocabulary,
            identity=log.identity | {"by": "query"},
        )

    def never_shown_text(self) -> str:
        """Says how many documents of the queries the log never showed, of which nothing can be learnt."""
        every = len(self.document) + self.never_shown
        return (
            f"the log shows {len(self.document):,} of the {every:,} documents of its {len(self):,} queries; how the "
            f"others are ranked rests on the features that they share with these"
        )

    @cached_property
    def description(self) -> Description:
        """The description of the lists; each weighs as many sessions as its query has."""
        return Description(
            rows=len(self),
            weight=float(self.sessions.sum()),
            sufficient_statistics="query",
            documents=self.documents,
            ranks=self.ranks,
            vocabulary=self.vocabulary,
            identity=self.identity,
        )

    def coverage(self) -> Coverage:
        queries = np.zeros(self.vocabulary.queries, bool)
        queries[self.query] = True
        return Coverage.of(queries, self.document)

    @property
    def input_schema(self) -> InputSchema:
        """Names of the features of the documents, and the documents."""
        return InputSchema.of(self.vocabulary.feature_names, vocabulary=self.vocabulary)

    def __len__(self) -> int:
        return len(self.query)

    def __repr__(self) -> str:
        return (
            f"QueryLists({len(self):,} queries, {len(self.document):,} documents, {self.sessions.sum():,.0f} sessions)"
        )

    def count_batches(self, batch_size: int) -> int:
        """Counts the batches of a shuffled pass."""
        return int(np.sum(-(-np.bincount(self._buckets()[1]) // batch_size)))

    def _buckets(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the widths that lists are padded to, and which of them each list has, [Q].

        Every second of the usual ones: there are few lists, and each width is compiled on its own.
        """
        lengths = np.diff(self.offsets)
        widths = bucket_widths(int(lengths.max()))[::-1][::2][::-1]
        return widths, np.searchsorted(widths, lengths)

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Streams every list once, in batches of a few fixed shapes.

        Fields: mask, position (the mean rank shown, rounded, minus one), features `document`, `displays` [B, K, R],
        `click_rate` [B, K] and, where the vocabulary has them, `features`; query; weight, the sessions of the query.
        """
        check_count("batch_size", batch_size)
        ragged = RaggedRows(
            self.offsets, {"row": np.arange(len(self.document))}, {"query": self.query, "weight": self.sessions}
        )
        widths, bucket = self._buckets()
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        step = max(batch_size * 4, 1024)  # in chunks, so that lists of different widths alternate as the order has them
        pools = (
            (int(width), ragged.padded(part[bucket[part] == number], int(width)))
            for start in range(0, len(order), step)
            for part in [order[start : start + step]]
            for number, width in enumerate(widths)
        )
        for width, rows in rebatch(pools, batch_size):
            stopping.check()
            yield self._batch(rows, width, share_features).pad(rows=batch_size)

    def _batch(self, rows: PaddedRows, width: int, share_features: bool) -> Sessions:
        mask = np.arange(width) < rows["length"][:, None]
        at = rows["row"]
        ids = np.where(mask, self.document[at], np.int32(0))
        displays = np.where(mask[..., None], self.displays[at], np.float32(0))
        mean = displays @ np.arange(self.ranks, dtype=np.float32) / np.where(mask, displays.sum(2), 1.0)
        features: dict[str, Any] = {
            "document": ids,
            DISPLAYS: displays,
            CLICK_RATE: np.where(mask, self.click_rate[at], np.float32(0)),
        }
        if (table := self.vocabulary.features) is not None:
            features["features"] = (
                SharedFeature(table, ids) if share_features else np.where(mask[..., None], table[ids], 0)
            )
        return Sessions(
            mask=mask,
            position=np.where(mask, np.rint(mean), 0).astype(np.int32),
            features=features,
            query=rows["query"],
            weight=rows["weight"].astype(np.float32),
        )
