"""What propensity estimators see of a log: clicks and impressions per document and rank."""

from __future__ import annotations

import dataclasses

import numpy as np

from ultr.errors import ConfigError, DataError
from ultr.logs import ClickLog, Counts, collapse


@dataclasses.dataclass(frozen=True)
class Cells:
    """Clicks and impressions of C pairs of an item and an arm, each pair once, sorted by item.

    An item is what keeps its relevance wherever it is shown: a document of a query. An arm is what decides how much is
    examined: a rank, or a rank in a context.

    Attributes:
      item: [C] int64, from 0 to `items` - 1.
      arm: [C] int64, from 0 to `arms` - 1.
      impressions, clicks: [C] float64; impressions are above 0, clicks at most as many.
      cluster: [items] int64; items of one cluster (query) are dependent on each other.
      arms: number of arms.
    """

    item: np.ndarray
    arm: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray
    cluster: np.ndarray
    arms: int

    @property
    def items(self) -> int:
        return len(self.cluster)

    def where(self, keep: np.ndarray) -> Cells:
        """Some of the cells [C] bool; items keep their numbers."""
        columns = {name: getattr(self, name)[keep] for name in ("item", "arm", "impressions", "clicks")}
        return dataclasses.replace(self, **columns)

    def per_arm(self, values: np.ndarray) -> np.ndarray:
        """[arms] sums of values [C]."""
        return np.bincount(self.arm, values, self.arms)

    def per_item(self, values: np.ndarray) -> np.ndarray:
        """[items] sums of values [C]."""
        return np.bincount(self.item, values, self.items)


def cells_of(source: ClickLog | Counts) -> Cells:
    """The cells of a log, or of its counts by rank or last click; documents that are not known (id 0) are left out.

    Raises:
      ConfigError: neither a log nor counts.
      DataError: no clicks, or no document that is known.
    """
    if isinstance(source, ClickLog):
        source = collapse(source, "rank")
    if not isinstance(source, Counts):
        raise ConfigError(f"expected a ClickLog or its Counts (ultr.logs.collapse), found {type(source).__name__}")
    known = (source.document > 0) & (source.document <= source.documents)
    document, rank = source.document[known], source.rank[known]
    impressions, clicks = source.impressions[known].astype(np.float64), source.clicks[known].astype(np.float64)
    if not len(document):
        raise DataError(
            "expected impressions of documents that the vocabulary knows, found none",
            fix="Open the log with its own vocabulary.",
        )
    if not clicks.sum():
        raise DataError(
            f"expected clicks, found none in {impressions.sum():,.0f} impressions",
            fix="Without clicks nothing can be said about examination: check the click column.",
        )
    new = np.append(True, document[1:] != document[:-1])
    item = np.cumsum(new) - 1
    if source.last_click is not None:
        key = item * source.ranks + rank - 1
        cell, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        impressions = np.bincount(inverse, impressions, len(cell))
        clicks = np.bincount(inverse, clicks, len(cell))
        item, rank = item[first], rank[first]
    query = source.vocabulary.document_query[document[new]].astype(np.int64)
    return Cells(item, rank.astype(np.int64) - 1, impressions, clicks, query, source.ranks)
