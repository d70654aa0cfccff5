"""From rows sorted by list and rank to list columns: the step that the query engine cannot do in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

Columns = dict[str, np.ndarray]


@dataclass
class Block:
    """n lists: `flat` values of list i are `[offsets[i]:offsets[i + 1]]`; `number` [n] says which lists they are."""

    number: np.ndarray
    offsets: np.ndarray
    flat: Columns

    def lists(self, name: str) -> pa.ListArray:
        """[n] lists of one of the values."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.flat[name]))


@dataclass
class Repairs:
    """What was found while rows became lists.

    Attributes:
      dropped: rows at a rank that another row of their list has, rows of a document that the list has higher up,
        and clicks on documents that a list lost that way.
      repaired: clicks that were moved to the row that was kept of the same document.
      noted: lists whose ranks do not run from 1 without a gap (they stay as they are).
    """

    dropped: dict[str, int] = field(
        default_factory=lambda: {"duplicate_ranks": 0, "duplicate_documents": 0, "clicks_on_dropped_rows": 0}
    )
    repaired: dict[str, int] = field(default_factory=lambda: {"repeated_clicks": 0})
    noted: dict[str, int] = field(default_factory=lambda: {"lists_with_gaps_in_ranks": 0})


def runs(
    batches: Iterable[pa.RecordBatch], repairs: Repairs, *, values: Sequence[str] = (), rows: int = 1 << 20
) -> Iterator[Block]:
    """Turns runs of rows with the same `list` into blocks of lists; a run may straddle batches.

    Args:
      batches: rows sorted by list, rank and preference among equal ranks, without nulls: list (int64), rank (int32),
        document (int32), click (int8), and `values`.
      repairs: counts are added here.
      values: further columns to carry along.
      rows: about how many rows are worked on at a time.

    Yields:
      blocks of whole lists in order; within a list ranks increase and no document comes twice.
    """
    names = ["list", "rank", "document", "click", *values]
    held: list[Columns] = []
    size, enough = 0, rows
    for batch in batches:
        held.append({name: batch[name].to_numpy() for name in names})
        size += len(batch)
        if size < enough:
            continue
        columns = _join(held)
        # The last run may go on in the next batch.
        cut = int(np.searchsorted(columns["list"], columns["list"][-1]))
        if cut:
            yield _block({name: x[:cut] for name, x in columns.items()}, repairs)
            columns = {name: x[cut:].copy() for name, x in columns.items()}
        held, size = [columns], size - cut
        enough = max(rows, 2 * size)
    if size:
        yield _block(_join(held), repairs)


def _join(parts: list[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _block(columns: Columns, repairs: Repairs) -> Block:
    starts, number = _starts(columns["list"])
    keep = _kept(columns, number, repairs)
    if keep is not None:
        columns = {name: x[keep] for name, x in columns.items()}
        starts, number = _starts(columns["list"])
    offsets = np.append(starts, len(columns["list"]))
    last = columns["rank"][offsets[1:] - 1]
    repairs.noted["lists_with_gaps_in_ranks"] += int((last != np.diff(offsets)).sum())
    flat = {name: x for name, x in columns.items() if name != "list"}
    return Block(columns["list"][starts], offsets, flat)


def _starts(lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run starts, and for each row the number of its run."""
    new = np.empty(len(lists), bool)
    new[0] = True
    np.not_equal(lists[1:], lists[:-1], out=new[1:])
    return np.flatnonzero(new), np.cumsum(new) - 1


def _kept(columns: Columns, number: np.ndarray, repairs: Repairs) -> np.ndarray | None:
    """Which rows stay (None: all); moves the clicks of those that go to the same document's row where one stays."""
    rank, click = columns["rank"], columns["click"]
    # The first of equal ranks stays; only then is it known which documents the list holds.
    twice = np.zeros(len(rank), bool)
    np.logical_and(number[1:] == number[:-1], rank[1:] == rank[:-1], out=twice[1:])
    pair = number * (np.int64(columns["document"].max()) + 1) + columns["document"]
    ordered = np.sort(pair)
    if not (ordered[1:] == ordered[:-1]).any():
        if not twice.any():
            return None
        again = np.zeros(len(rank), bool)
    else:
        # Rows in order of document, then of rank, those that already went last.
        order = np.lexsort((rank, twice, pair))
        same = np.zeros(len(rank), bool)
        same[1:] = pair[order][1:] == pair[order][:-1]
        again = np.empty(len(rank), bool)
        again[order] = same
        again &= ~twice
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
