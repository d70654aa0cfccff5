"""Packs rows sorted by list and rank into list columns, which the query engine cannot do in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

FlatColumns = dict[str, np.ndarray]  # name -> [rows]


@dataclass
class PackedLists:
    """Holds n lists of rows as flat arrays.

    Attributes:
      number: [n] the `list` of each.
      offsets: [n + 1]; the rows of list i are `[offsets[i]:offsets[i + 1]]`.
      flat: name -> values of the rows.
    """

    number: np.ndarray
    offsets: np.ndarray
    flat: FlatColumns

    def lists(self, name: str) -> pa.ListArray:
        """Returns one of the columns as an array of n lists."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.flat[name]))


@dataclass
class Repairs:
    """Counts the repairs that packing rows into lists makes.

    Attributes:
      dropped: rows at a rank that an earlier row of their list has, rows of a document that the list shows at a
        higher place, and clicks on documents that a list lost in this way.
      repaired: clicks that were moved to the remaining row of the same document.
      noted: lists whose ranks do not run from 1 without a gap, which are kept as they are.
      without_first: lists that do not show rank 1.
      same_place: dropped rows without a click that repeat the document of their rank.
      other_document: dropped rows with another document than the kept one at their rank.
    """

    dropped: dict[str, int] = field(
        default_factory=lambda: {"duplicate_ranks": 0, "duplicate_documents": 0, "clicks_on_dropped_rows": 0}
    )
    repaired: dict[str, int] = field(default_factory=lambda: {"repeated_clicks": 0})
    noted: dict[str, int] = field(default_factory=lambda: {"lists_with_gaps_in_ranks": 0})
    without_first: int = 0
    same_place: int = 0
    other_document: int = 0


def pack_lists(
    batches: Iterable[pa.RecordBatch], repairs: Repairs, *, values: Sequence[str] = (), rows: int = 1 << 20
) -> Iterator[PackedLists]:
    """Packs consecutive rows with the same `list` into lists; a list may straddle batches.

    Args:
      batches: rows sorted by list, rank and preference among equal ranks, without nulls: list (int64), rank (int32),
        document (int32), click (int8), and `values`.
      repairs: the counts are added to these.
      values: names of further columns to pack.
      rows: about how many rows to pack at a time.

    Yields:
      whole lists in order; within a list ranks increase and no document comes twice.
    """
    names = ["list", "rank", "document", "click", *values]
    held: list[FlatColumns] = []
    size, enough = 0, rows
    for batch in batches:
        held.append({name: batch[name].to_numpy() for name in names})
        size += len(batch)
        if size < enough:
            continue
        columns = _concatenate(held)
        # The last list may continue in the next batch.
        cut = int(np.searchsorted(columns["list"], columns["list"][-1]))
        if cut:
            yield _pack({name: x[:cut] for name, x in columns.items()}, repairs)
            columns = {name: x[cut:].copy() for name, x in columns.items()}
        held, size = [columns], size - cut
        enough = max(rows, 2 * size)
    if size:
        yield _pack(_concatenate(held), repairs)


def _concatenate(parts: list[FlatColumns]) -> FlatColumns:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _pack(columns: FlatColumns, repairs: Repairs) -> PackedLists:
    starts, number = _list_starts(columns["list"])
    keep = _rows_to_keep(columns, number, repairs)
    if keep is not None:
        columns = {name: x[keep] for name, x in columns.items()}
        starts, number = _list_starts(columns["list"])
    offsets = np.append(starts, len(columns["list"]))
    last = columns["rank"][offsets[1:] - 1]
    repairs.noted["lists_with_gaps_in_ranks"] += int((last != np.diff(offsets)).sum())
    repairs.without_first += int((columns["rank"][starts] > 1).sum())
    flat = {name: x for name, x in columns.items() if name != "list"}
    return PackedLists(columns["list"][starts], offsets, flat)


def _list_starts(lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds where each list starts, and for each row the number of its list, from 0."""
    new = np.empty(len(lists), bool)
    new[0] = True
    np.not_equal(lists[1:], lists[:-1], out=new[1:])
    return np.flatnonzero(new), np.cumsum(new) - 1


def _rows_to_keep(columns: FlatColumns, number: np.ndarray, repairs: Repairs) -> np.ndarray | None:
    """Decides which rows to keep (None: all), and moves the clicks of others to the kept row of the same document."""
    rank, click = columns["rank"], columns["click"]
    # The first of the rows at a rank is kept. Of the rows that are left about a document, the highest is kept.
    twice = np.zeros(len(rank), bool)
    np.logical_and(number[1:] == number[:-1], rank[1:] == rank[:-1], out=twice[1:])
    pair = number * (np.int64(columns["document"].max()) + 1) + columns["document"]
    ordered = np.sort(pair)
    if not (ordered[1:] == ordered[:-1]).any():
        if not twice.any():
            return None
        again = np.zeros(len(rank), bool)
    else:
        # By document, then by rank, with the rows dropped for their rank last.
        order = np.lexsort((rank, twice, pair))
        same = np.zeros(len(rank), bool)
        same[1:] = pair[order][1:] == pair[order][:-1]
        again = np.empty(len(rank), bool)
        again[order] = same
        again &= ~twice
    first = np.maximum.accumulate(np.where(twice, 0, np.arange(len(rank))))
    same = columns["document"][first] == columns["document"]
    repairs.same_place += int((twice & same & (click == 0)).sum())
    repairs.other_document += int((twice & ~same).sum())
    keep = ~(twice | again)
    lost = np.flatnonzero(~keep & (click == 1))
    kept = np.flatnonzero(keep)
    kept = kept[np.argsort(pair[kept], kind="stable")]
    where = np.minimum(np.searchsorted(pair[kept], pair[lost]), max(len(kept) - 1, 0))
    found = pair[kept[where]] == pair[lost]
    columns["click"] = click.copy()
    columns["click"][kept[where[found]]] = 1
    repairs.dropped["duplicate_ranks"] += int(twice.sum())
    repairs.dropped["duplicate_documents"] += int(again.sum())
    repairs.dropped["clicks_on_dropped_rows"] += int((~found).sum())
    repairs.repaired["repeated_clicks"] += int(found.sum())
    return keep
