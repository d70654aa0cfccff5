"""`ArmCounts`: clicks and impressions per document and rank, the sufficient statistics of propensity estimators."""

from __future__ import annotations

import dataclasses

import numpy as np

from ultr.arguments import check_count, number_array, whole_array
from ultr.data import ClickLog, Counts
from ultr.data.columns import MAX_RANKS
from ultr.data.counting import CellCounts, count_cells, last_click_key
from ultr.errors import ConfigError, DataError

MAX_ARMS = 10 * MAX_RANKS  # of counts made by a caller, since some arrays have an entry for each two arms


@dataclasses.dataclass(frozen=True)
class ArmCounts:
    """Clicks and impressions of C cells, pairs of an item and an arm; each cell once, sorted by item and arm.

    An item has the same relevance wherever it is shown: it is a document of a query. An arm determines examination: it
    is a rank, or a rank in a context.

    Attributes:
      item: [C] int64, from 0 to `items` - 1.
      arm: [C] int64, from 0 to `arms` - 1.
      impressions, clicks: [C] float64; impressions are above 0, and clicks are at most as many.
      query: [items] int64, the query of each item; clicks within a query may depend on each other.
      arms: number of arms.
    """

    item: np.ndarray
    arm: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray
    query: np.ndarray
    arms: int

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.query)

    @property
    def arms_per_item(self) -> np.ndarray:
        """[items] number of arms at which each item was shown."""
        return np.bincount(self.item, minlength=self.items)

    def select(self, keep: np.ndarray) -> ArmCounts:
        """Returns the cells where `keep`, [C] bool, holds; items and arms keep their numbers."""
        return dataclasses.replace(
            self,
            item=self.item[keep],
            arm=self.arm[keep],
            impressions=self.impressions[keep],
            clicks=self.clicks[keep],
        )

    def moved(self) -> ArmCounts:
        """Returns the cells of the items that were shown at two or more arms: only those compare arms."""
        return self.select((self.arms_per_item > 1)[self.item])

    def sum_by_arm(self, values: np.ndarray) -> np.ndarray:
        """Sums values [C] per arm: [arms]."""
        return np.bincount(self.arm, values, self.arms).astype(np.float64, copy=False)  # integers without any cell

    def sum_by_item(self, values: np.ndarray) -> np.ndarray:
        """Sums values [C] per item: [items]."""
        return np.bincount(self.item, values, self.items).astype(np.float64, copy=False)


def as_arm_counts(source: ClickLog | Counts | ArmCounts) -> ArmCounts:
    """Counts clicks and impressions per document and rank of a log, or takes them from counts by rank or last click.

    Documents that the vocabulary does not know (id 0) are left out. A session of weight w counts as w equal sessions,
    in values and in errors.

    Raises:
      ConfigError: neither a log nor counts.
      DataError: no clicks, no document that the vocabulary knows, more than `MAX_RANKS` ranks, or `ArmCounts` that are
        not what they promise; names the field.
    """
    if isinstance(source, ArmCounts):
        return _checked(_checked_cells(source))
    return arm_counts_of_cells(source, count_documents(source))


def count_documents(source: ClickLog | Counts) -> CellCounts:
    """Counts clicks and impressions by document and rank.

    From counts by last click, a document and rank come several times, once per last click.

    Raises:
      ConfigError: neither a log nor counts.
    """
    if isinstance(source, ClickLog):
        return count_cells(source)
    if not isinstance(source, Counts):
        raise ConfigError(f"expected a ClickLog or its Counts (ultr.data.collapsing), found {type(source).__name__}")
    return CellCounts(source.document, source.rank, None, source.impressions, source.clicks, source.weight)


def count_clicks_above(source: ClickLog | Counts) -> CellCounts:
    """Counts clicks and impressions by document, rank, and rank of the last click above.

    Counts by rank have no last clicks, and give cells without that key. `ultr.data.counting.merge_extra` makes of the
    cells what `count_documents` returns.

    Raises:
      ConfigError: neither a log nor counts.
      DataError: more than `MAX_RANKS` ranks.
    """
    if isinstance(source, ClickLog):
        _check_number_of_ranks(source)
        return count_cells(source, last_click_key(source))
    return count_documents(source)._replace(extra=source.last_click)


def arm_counts_of_cells(source: ClickLog | Counts, counted: CellCounts) -> ArmCounts:
    """Converts counts by document and rank, and perhaps by context, to `ArmCounts` of the documents that are known.

    Arms are ranks; with contexts, first the ranks in context 0, then those in context 1, and so on.

    Args:
      source: gives the documents, ranks and vocabulary.
      counted: sorted by document; the same document and rank may come several times. Its third key is the context.

    Raises:
      DataError: no clicks, no document that the vocabulary knows, or more than `MAX_RANKS` ranks.
    """
    _check_number_of_ranks(source)
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
    impressions: np.ndarray = counted.impressions[known].astype(np.float64)
    clicks: np.ndarray = counted.clicks[known].astype(np.float64)
    if not (cell[1:] > cell[:-1]).all():  # counts by last click repeat cells, contexts come out of order
        cell, inverse = np.unique(cell, return_inverse=True)
        impressions = np.bincount(inverse, impressions, len(cell))
        clicks = np.bincount(inverse, clicks, len(cell))
    return _checked(ArmCounts(cell // arms, cell % arms, impressions, clicks, query, arms))


def first_ranks(counts: ArmCounts, ranks: int | None, *, ranks_per_context: int | None = None) -> ArmCounts:
    """Returns the counts at ranks 1 to `ranks` only; all of them for None.

    Args:
      counts: whose arms are ranks, or ranks in contexts, context by context.
      ranks: the last rank to keep, from 1.
      ranks_per_context: how many arms each context has; None: the arms are ranks.

    Raises:
      ConfigError: `ranks` below 1.
      DataError: no click at those ranks.
    """
    width = ranks_per_context or counts.arms
    if ranks is None or ranks >= width:
        return counts
    if ranks < 1:
        raise ConfigError(f"expected ranks of at least 1, found {ranks}")
    kept = counts.select(counts.arm % width < ranks)
    out = dataclasses.replace(kept, arm=kept.arm // width * ranks + kept.arm % width, arms=counts.arms // width * ranks)
    if not out.clicks.sum():
        where = "rank 1" if ranks == 1 else f"ranks 1 to {ranks}"
        raise DataError(f"expected clicks at {where}, found none", fix="Look at more ranks.")
    return out


def _checked_cells(counts: ArmCounts) -> ArmCounts:
    """Checks `ArmCounts` that a caller made, and returns them with arrays of the types that they promise."""
    arms = check_count("arms", counts.arms, most=MAX_ARMS)
    query = whole_array(counts.query, "query")
    if query.ndim != 1 or not query.size:
        raise DataError(f"expected [items] query ids, found {query.shape}", field="query")
    item = whole_array(counts.item, "item", most=max(len(query) - 1, 0))
    arm = whole_array(counts.arm, "arm", most=arms - 1)
    cells = {"item": item, "arm": arm}
    cells |= {name: number_array(getattr(counts, name), name) for name in ("impressions", "clicks")}
    for name, values in cells.items():
        if values.ndim != 1 or values.shape != item.shape or getattr(counts, name) is None:
            raise DataError(f"expected one entry for each of {item.size} cells, found {values.shape}", field=name)

    def reject(bad: np.ndarray, field: str, expected: str) -> None:
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"expected {expected}, found {cells[field][row]}", row=row + 1, field=field)

    impressions, clicks = cells["impressions"], cells["clicks"]
    reject(~(np.isfinite(impressions) & (impressions > 0)), "impressions", "a finite number above 0")
    reject(~((clicks >= 0) & (clicks <= impressions)), "clicks", "from 0 to the impressions")
    later = (item[1:] > item[:-1]) | ((item[1:] == item[:-1]) & (arm[1:] > arm[:-1]))
    reject(np.append(False, ~later)[: len(item)], "item", "cells sorted by item and arm, each once")
    return ArmCounts(
        item=item.astype(np.int64, copy=False),
        arm=arm.astype(np.int64, copy=False),
        impressions=impressions.astype(np.float64, copy=False),
        clicks=clicks.astype(np.float64, copy=False),
        query=query.astype(np.int64, copy=False),
        arms=arms,
    )


def _check_number_of_ranks(source: ClickLog | Counts) -> None:
    if source.ranks > MAX_RANKS:
        raise DataError(
            f"expected at most {MAX_RANKS:,} ranks, found rank {source.ranks:,}",
            fix="Check the rank column: ranks are places in a list, from 1.",
        )


def _checked(counts: ArmCounts) -> ArmCounts:
    if not counts.clicks.sum():
        raise DataError(
            f"expected clicks, found none in {counts.impressions.sum():,.0f} impressions",
            fix="Without clicks nothing can be said about examination: check the click column.",
        )
    return counts
