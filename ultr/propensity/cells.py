"""What propensity estimators see of a log: clicks and impressions per document and rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts, count_cells
from ultr.errors import ConfigError, DataError

MOST_RANKS = 1000


@dataclasses.dataclass(frozen=True)
class Cells:
    """Clicks and impressions of C pairs of an item and an arm, each pair once, sorted by item and arm.

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


def cells_of(source: ClickLog | Counts | Cells) -> Cells:
    """The cells of a log, or of its counts by rank or last click; documents that are not known (id 0) are left out.

    The weight of a session is taken as a number of equal sessions: errors count it as so many.

    Raises:
      ConfigError: neither a log nor counts.
      DataError: no clicks, no document that is known, or more ranks than a curve can have.
    """
    return _checked(source) if isinstance(source, Cells) else known_cells(source, tally_of(source))


def tally_of(source: ClickLog | Counts) -> CellCounts:
    """What was clicked and shown by document and rank; of counts by last click, several times.

    Raises:
      ConfigError: neither a log nor counts.
    """
    if isinstance(source, ClickLog):
        return count_cells(source)
    if not isinstance(source, Counts):
        raise ConfigError(f"expected a ClickLog or its Counts (ultr.data.collapsing), found {type(source).__name__}")
    return CellCounts(source.document, source.rank, None, source.impressions, source.clicks, source.weight)


def known_cells(source: ClickLog | Counts, counted: CellCounts) -> Cells:
    """Cells of what was counted by document, rank and perhaps a part: arms are ranks, those of part 0 first.

    Args:
      source: of which documents, ranks and vocabulary are read.
      counted: sorted by document; the same document and rank may come several times.

    Raises:
      DataError: as `cells_of`.
    """
    if source.ranks > MOST_RANKS:
        raise DataError(
            f"expected at most {MOST_RANKS:,} ranks, found rank {source.ranks:,}",
            fix="Check the rank column: ranks are places in a list, from 1.",
        )
    known = (counted.document > 0) & (counted.document <= source.documents)
    document, arm = counted.document[known], counted.rank[known].astype(np.int64) - 1
    arms = source.ranks
    if counted.extra is not None and len(counted.extra):
        arm += source.ranks * counted.extra[known].astype(np.int64)
        arms *= int(counted.extra.max()) + 1
    if not len(document):
        raise DataError(
            "expected impressions of documents that the vocabulary knows, found none",
            fix="Open the log with its own vocabulary.",
        )
    new = np.append(True, document[1:] != document[:-1])
    query = source.vocabulary.document_query[document[new]].astype(np.int64)
    cell = (np.cumsum(new) - 1) * arms + arm
    impressions: Any = counted.impressions[known].astype(np.float64)
    clicks: Any = counted.clicks[known].astype(np.float64)
    if not (cell[1:] > cell[:-1]).all():  # counts by last click say things several times, parts out of order
        cell, inverse = np.unique(cell, return_inverse=True)
        impressions = np.bincount(inverse, impressions, len(cell))
        clicks = np.bincount(inverse, clicks, len(cell))
    return _checked(Cells(cell // arms, cell % arms, impressions, clicks, query, arms))


def first_ranks(cells: Cells, ranks: int | None, *, of: int | None = None) -> Cells:
    """The cells of ranks 1 to `ranks` alone; None: of all.

    Args:
      cells: whose arms are ranks, or ranks in contexts, those of one context after the other.
      ranks: from 1.
      of: how many ranks each context has.

    Raises:
      ConfigError: a number below 1.
      DataError: no click at those ranks.
    """
    of = of or cells.arms
    if ranks is None or ranks >= of:
        return cells
    if ranks < 1:
        raise ConfigError(f"expected ranks of at least 1, found {ranks}")
    kept = cells.where(cells.arm % of < ranks)
    out = dataclasses.replace(kept, arm=kept.arm // of * ranks + kept.arm % of, arms=cells.arms // of * ranks)
    if not out.clicks.sum():
        where = "rank 1" if ranks == 1 else f"ranks 1 to {ranks}"
        raise DataError(f"expected clicks at {where}, found none", fix="Look at more ranks.")
    return out


def _checked(cells: Cells) -> Cells:
    if not cells.clicks.sum():
        raise DataError(
            f"expected clicks, found none in {cells.impressions.sum():,.0f} impressions",
            fix="Without clicks nothing can be said about examination: check the click column.",
        )
    return cells
