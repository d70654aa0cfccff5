"""Finds runs of rows in which each rank comes once: the candidates for views, in time and in the order of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ultr.ingest.packing import FlatColumns


@dataclass(frozen=True)
class Ordered:
    """Holds rows in an order of their groups, with what repeats in them.

    Attributes:
      group, rank: [n].
      start: [G'] the first row of each group that has rows.
      before: [n] the row before that has the same group and rank, or -1.
      most: [G] how often the most frequent rank of each group comes.
    """

    group: np.ndarray
    rank: np.ndarray
    start: np.ndarray
    before: np.ndarray
    most: np.ndarray

    @classmethod
    def of(cls, group: np.ndarray, rank: np.ndarray, groups: int) -> Ordered:
        """Finds what repeats in rows that stand group by group."""
        order = np.lexsort((rank, group))  # stable: rows of one rank keep their order
        same = np.append(False, (group[order][1:] == group[order][:-1]) & (rank[order][1:] == rank[order][:-1]))
        before = np.full(len(group), -1)
        before[order[1:][same[1:]]] = order[:-1][same[1:]]
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(group))))
        most = np.zeros(groups, np.int64)
        np.maximum.at(most, group[order], np.arange(len(group)) - first + 1)
        start = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        return cls(group, rank, start, before, most)


def time_runs(x: FlatColumns, rows: np.ndarray, groups: int, tick: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts rows into runs that follow each other in time.

    A run takes in rows as long as no rank comes again; rows whose times follow within a tick stay together. The runs
    of a group are views where there are as many of them as the most frequent rank comes: fewer there cannot be.

    Args:
      x: group, at, rank, time.
      rows: [n] the rows to cut.
      groups: number of groups.
      tick: how far two times may lie apart that belong together.

    Returns:
      [n] the number of the run of each row within its group, and [groups] whether these are views.
    """
    order = np.lexsort((x["at"][rows], x["rank"][rows], x["time"][rows], x["group"][rows]))
    chosen = rows[order]
    group, time = x["group"][chosen], x["time"][chosen]
    new = np.append(True, (group[1:] != group[:-1]) | (time[1:] - time[:-1] > tick))
    block = np.maximum.accumulate(np.where(new, np.arange(len(chosen)), 0))
    ordered = Ordered.of(group, x["rank"][chosen], groups)
    begins, failed = _cut_where_ranks_repeat(ordered, block, groups)
    number = _numbered(ordered, begins)
    runs = np.zeros(groups, np.int64)
    np.maximum.at(runs, group, number + 1)
    out = np.empty(len(rows), np.int64)
    out[order] = number
    return out, ~failed & (runs == ordered.most)


def _cut_where_ranks_repeat(x: Ordered, block: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds where runs begin [n], and the groups [groups] in which a block repeats a rank."""
    begins, failed = np.zeros(len(x.group), bool), np.zeros(groups, bool)
    begins[x.start] = True
    current = np.zeros(groups, np.int64)
    current[x.group[x.start]] = x.start
    rows = np.flatnonzero(x.before >= 0)
    while len(rows):
        rows = rows[x.before[rows] >= current[x.group[rows]]]
        if not len(rows):
            break
        owner = x.group[rows]
        first = np.append(True, owner[1:] != owner[:-1])
        owner, cut = owner[first], block[rows[first]]
        stuck = cut <= current[owner]
        failed[owner[stuck]] = True
        current[owner[~stuck]] = cut[~stuck]
        begins[cut[~stuck]] = True
        rows = rows[~failed[x.group[rows]]]
    return begins, failed


def order_runs(
    x: FlatColumns, rows: np.ndarray, groups: int, *, equal: bool
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Cuts rows into runs of increasing ranks, in their order.

    The runs of a group are views where each begins with the first rank of the group.

    Args:
      x: group, rank.
      rows: [n] the rows to cut, increasing.
      groups: number of groups.
      equal: whether a first rank that follows itself may begin a run.

    Returns:
      [n] the number of the run of each row within its group; [groups] whether these are views; how often ranks start
      again in such groups, and how often a rank above the first follows itself in any.
    """
    group, rank = x["group"][rows], x["rank"][rows]
    ordered = Ordered.of(group, rank, groups)
    least = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(least, group, rank)
    inside = np.append(False, group[1:] == group[:-1])
    falls = inside & np.append(False, rank[1:] < rank[:-1])
    stays = inside & np.append(False, rank[1:] == rank[:-1])
    begins = falls | stays
    begins[ordered.start] = True
    bad = begins & (rank != least[group])
    if not equal:
        bad |= stays
    good = np.zeros(groups, bool)
    good[group[ordered.start]] = True
    good[group[bad]] = False
    restarts = int((falls & good[group]).sum())
    return _numbered(ordered, begins), good, restarts, int((stays & (rank > least[group])).sum())


def _numbered(x: Ordered, begins: np.ndarray) -> np.ndarray:
    """Numbers runs within their groups, from 0."""
    number = np.cumsum(begins) - 1
    length = np.diff(np.append(x.start, len(x.group)))
    return np.asarray(number - np.repeat(number[x.start], length))
