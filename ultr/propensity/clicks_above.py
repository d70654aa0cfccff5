"""Whether clicks depend on the clicks above: exact conditional tests within documents and ranks.

Under the position-based model, clicks on a document at a rank are independent of what was clicked above it. Given how
often a document was shown and clicked at a rank, and how often after which clicks above, its clicks then fall on these
by a hypergeometric distribution: their mean and variance have no unknown parameter, however few they are. Sums over
documents and ranks are tested (Mantel and Haenszel 1959; Mantel 1963). Ranks add up: given all clicks above rank k,
the sum at rank k has mean 0.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts
from ultr.propensity.arm_counts import ArmCounts

EXACT_RANKS = 20  # up to so many ranks, every last click is an arm of its own


@dataclasses.dataclass(frozen=True)
class ContextCells:
    """Clicks and impressions of C cells by item, rank and rank of the last click above, sorted by these.

    Attributes:
      item: [C] int64, from 0.
      rank: [C] int64, 1-based.
      last: [C] int64 rank of the last click above, 0 for none; None where it was not counted.
      impressions, clicks: [C] float64.
      query: [items] the query of each item.
      ranks: the lowest rank that is looked at.
      shown: [ranks, classes] impressions of all documents of the log by rank and class of the last click
        (`last_click_class`); None where it was not counted.
    """

    item: np.ndarray
    rank: np.ndarray
    last: np.ndarray | None
    impressions: np.ndarray
    clicks: np.ndarray
    query: np.ndarray
    ranks: int
    shown: np.ndarray | None = None

    def by_rank(self) -> ArmCounts:
        """Returns the counts whose arms are ranks."""
        return self._by_arm(self.rank - 1, self.ranks)

    def by_last_click(self) -> ArmCounts:
        """Returns the counts whose arms are pairs of a rank and a class of the last click (`last_click_class`).

        Arm (k - 1) classes + j is class j at rank k.
        """
        assert self.last is not None
        kind = last_click_class(self.rank, self.last, self.ranks)
        return self._by_arm((self.rank - 1) * classes_of(self.ranks) + kind, self.ranks * classes_of(self.ranks))

    def shown_often(self, least: int) -> ContextCells:
        """Returns the cells of the items with at least so many impressions; items keep their numbers."""
        often = (np.bincount(self.item, self.impressions) >= least)[self.item] if len(self.item) else self.item > 0
        return dataclasses.replace(
            self,
            item=self.item[often],
            rank=self.rank[often],
            last=None if self.last is None else self.last[often],
            impressions=self.impressions[often],
            clicks=self.clicks[often],
        )

    def _by_arm(self, arm: np.ndarray, arms: int) -> ArmCounts:
        cell = self.item * arms + arm
        if len(cell) and not (cell[1:] > cell[:-1]).all():
            cell, inverse = np.unique(cell, return_inverse=True)
            impressions, clicks = (np.bincount(inverse, x, len(cell)) for x in (self.impressions, self.clicks))
        else:
            impressions, clicks = self.impressions, self.clicks
        return ArmCounts(cell // arms, cell % arms, impressions, clicks, self.query, arms)

    @cached_property
    def stratum(self) -> np.ndarray:
        """[C] number of the document and rank of each cell."""
        new = (self.item[1:] != self.item[:-1]) | (self.rank[1:] != self.rank[:-1])
        return np.cumsum(np.append(0, new)) if len(self.item) else np.zeros(0, np.int64)


def context_cells(source: ClickLog | Counts, counted: CellCounts, *, ranks: int, most: int) -> ContextCells:
    """Takes the cells of known documents at the first ranks.

    Args:
      counted: by document and rank, and perhaps by last click.
      ranks: the last rank to look at.
      most: number of cells from which on documents are left out, those first that were shown least.
    """
    known = (counted.document > 0) & (counted.document <= source.documents) & (counted.rank <= ranks)
    document = counted.document[known].astype(np.int64)
    used, item = np.unique(document, return_inverse=True)
    impressions = counted.impressions[known].astype(np.float64)
    keep = np.ones(len(item), bool)
    if len(item) > most:
        cells = np.bincount(item)
        order = np.argsort(-np.bincount(item, impressions), kind="stable")
        chosen = np.zeros(len(used), bool)
        chosen[order[np.cumsum(cells[order]) <= most]] = True
        keep = chosen[item]
        used, item = used[chosen], (np.cumsum(chosen) - 1)[item[keep]]
    last: np.ndarray | None = None
    shown: np.ndarray | None = None
    if counted.extra is not None:
        last = counted.extra[known][keep].astype(np.int64)
        here = counted.rank <= ranks
        rank, above = counted.rank[here].astype(np.int64), counted.extra[here].astype(np.int64)
        classes = classes_of(ranks)
        arm = (rank - 1) * classes + last_click_class(rank, above, ranks)
        shown = np.bincount(arm, counted.impressions[here], ranks * classes).reshape(ranks, classes)
    return ContextCells(
        item=item,
        rank=counted.rank[known][keep].astype(np.int64),
        last=last,
        impressions=impressions[keep],
        clicks=counted.clicks[known][keep].astype(np.float64),
        query=source.vocabulary.document_query[used].astype(np.int64),
        ranks=ranks,
        shown=shown,
    )


def classes_of(ranks: int) -> int:
    """Counts the classes of the last click that `last_click_class` tells apart."""
    return ranks if ranks <= EXACT_RANKS else 1 + int(ranks - 1).bit_length()


def last_click_class(rank: np.ndarray, last: np.ndarray, ranks: int) -> np.ndarray:
    """Numbers the last clicks above: 0 for none, else by their distance; in long lists by powers of two of it."""
    distance = rank - last
    if ranks > EXACT_RANKS:
        distance = 1 + np.floor(np.log2(np.maximum(distance, 1))).astype(np.int64)
    return np.where(last > 0, distance, 0)


class Score(NamedTuple):
    """A sum of observed less expected clicks, and its variance under the hypothesis."""

    value: float
    variance: float

    @property
    def z(self) -> float:
        """The sum in standard deviations; NaN without any."""
        return self.value / self.variance**0.5 if self.variance > 0 else float("nan")


def stratified_score(cells: ContextCells, contrast: np.ndarray) -> Score:
    """Sums `contrast` over clicks, less what is expected where clicks do not depend on it within document and rank.

    Args:
      contrast: [C]; NaN leaves a cell out.
    """
    used = np.isfinite(contrast)
    w, stratum = contrast[used], cells.stratum[used]
    n, c = cells.impressions[used], cells.clicks[used]
    size = int(stratum.max()) + 1 if len(stratum) else 0

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(stratum, x, size)

    shown, clicked, first, second = total(n), total(c), total(n * w), total(n * w * w)
    several = shown > 1
    shown, clicked, first, second = shown[several], clicked[several], first[several], second[several]
    value = total(c * w)[several] - clicked * first / shown
    spread = np.maximum(shown * second - first**2, 0.0)
    variance = clicked * (shown - clicked) * spread / (shown**2 * (shown - 1))
    return Score(float(value.sum()), float(variance.sum()))


def common_ratio(cells: ContextCells, contrast: np.ndarray) -> float:
    """Estimates how many times as often cells with contrast 1 are clicked as those with 0: Mantel-Haenszel's ratio.

    Within document and rank. Source: Rothman and Boice 1979; Greenland and Robins 1985. NaN where there is nothing to
    compare.

    Args:
      contrast: [C] 1, 0, or NaN, which leaves a cell out.
    """
    size = int(cells.stratum[-1]) + 1 if len(cells.stratum) else 0
    (n1, c1), (n0, c0) = (
        [np.bincount(cells.stratum, np.where(contrast == x, y, 0.0), size) for y in (cells.impressions, cells.clicks)]
        for x in (1, 0)
    )
    total = np.maximum(n1 + n0, 1.0)
    below = float((c0 * n1 / total).sum())
    return float((c1 * n0 / total).sum()) / below if below > 0 else float("nan")


def nearness(cells: ContextCells) -> np.ndarray:
    """Computes the contrast of the check of the last click: 1 / distance to it; NaN without a click above. [C]."""
    assert cells.last is not None
    return np.where(cells.last > 0, 1.0 / np.maximum(cells.rank - cells.last, 1), np.nan)


def right_below(cells: ContextCells) -> np.ndarray:
    """Computes the contrast 1 right below the last click, 0 farther below it, NaN without a click above. [C]."""
    assert cells.last is not None
    return np.where(cells.last > 0, (cells.rank - cells.last == 1) * 1.0, np.nan)


def after_first(cells: ContextCells) -> np.ndarray:
    """Computes the contrast of the check of a click above: 1 where the first rank alone was clicked, 0 where none was.

    NaN elsewhere. Below a click farther down, a cascade has two opposite effects: some users were satisfied, but all
    had read that far. Of a click at the first rank, only the former is left.
    """
    assert cells.last is not None
    return np.where(cells.last <= 1, cells.last.astype(np.float64), np.nan)
