"""Counts of a log that several parts of one piece of work need: made once for as long as the log is open."""

from __future__ import annotations

from typing import Literal
from weakref import WeakKeyDictionary

from ultr.data.click_log import ClickLog
from ultr.data.collapsing import collapse
from ultr.data.counting import CellCounts, merge_extra
from ultr.data.counts import Counts

REMEMBERED_CELLS = 1 << 23  # more are made again each time, rather than held in memory

_known: WeakKeyDictionary[ClickLog, dict[str, Counts]] = WeakKeyDictionary()


def counts_of(log: ClickLog, by: Literal["rank", "last-click"]) -> Counts:
    """Collapses a log to counts (`collapse`), or returns those that were made of this very object before.

    Counts by rank are added up from those by last click where these are there. Their arrays cannot be written to.

    Raises:
      ConfigError, DataError: as `collapse`.
    """
    known = _known.setdefault(log, {})
    if by not in known:
        finer = known.get("last-click")
        counts = collapse(log, by) if finer is None else _by_rank(finer)
        for column in (counts.document, counts.rank, counts.last_click, counts.impressions, counts.clicks):
            if column is not None:
                column.flags.writeable = False
        if len(counts) > REMEMBERED_CELLS:
            return counts
        known[by] = counts
    return known[by]


def _by_rank(counts: Counts) -> Counts:
    """Adds counts by last click up to counts by rank."""
    cells = CellCounts(
        counts.document, counts.rank, counts.last_click, counts.impressions, counts.clicks, counts.weight
    )
    merged = merge_extra(cells)
    return Counts(
        sufficient_statistics="rank",
        document=merged.document,
        rank=merged.rank,
        last_click=None,
        impressions=merged.impressions,
        clicks=merged.clicks,
        sessions=counts.sessions,
        weight=counts.weight,
        documents=counts.documents,
        ranks=counts.ranks,
        vocabulary=counts.vocabulary,
        identity=counts.identity | {"by": "rank"},
    )
