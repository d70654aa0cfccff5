"""Counts the clicks and impressions of a click log per cell: per document and rank, and per a further key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ultr.background import iterate_ahead
from ultr.data.click_log import ClickLog
from ultr.data.columns import flat_lists
from ultr.data.grouping import DenseSums, KeyedColumns, SortedGroups, group_starts, sum_by_key
from ultr.errors import ConfigError

DENSE_KEYS = 16  # an array of all possible keys is faster than sorting up to this many keys per impression


class ExtraKey(NamedTuple):
    """A further key of cells, beside document and rank, such as the rank of the last click.

    Attributes:
      size: its values are 0 to `size - 1`.
      values: maps (batch, offsets [n + 1], rank [i], click [i]) to the value [i] of every impression of the batch.
      columns: further columns of the session files that `values` reads from the batch.
    """

    size: int
    values: Callable[[pa.RecordBatch, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    columns: tuple[str, ...] = ()


class CellCounts(NamedTuple):
    """Clicks and impressions of C cells, sorted by document, rank and further key.

    Attributes:
      document, rank: [C] int32, the rank 1-based.
      extra: [C] int32 value of the further key, or None without one.
      impressions, clicks: [C] int64; float64 sums of session weights where the log has weights.
      weight: total weight of the sessions; their number where the log has no weights.
    """

    document: np.ndarray
    rank: np.ndarray
    extra: np.ndarray | None
    impressions: np.ndarray
    clicks: np.ndarray
    weight: float


def count_cells(
    log: ClickLog,
    extra: ExtraKey | None = None,
    *,
    memory: int = 1 << 30,
    beside: Path | None = None,
    dense_keys: int = DENSE_KEYS,
) -> CellCounts:
    """Counts clicks and impressions per document and rank, and per a further key where one is given.

    Args:
      log: a click log or a view of one; it is streamed once.
      extra: the further key.
      memory: bytes to count in, beside one row group of the log and the result.
      beside: folder in which to make a temporary one; None uses the system's folder for such files.
      dense_keys: as for `cell_sums`.

    Raises:
      ConfigError: there are more possible cells than 64 bits can number.
    """
    weighted = log.weighted
    size = extra.size if extra else 1
    keys = _possible_keys(log, extra)
    if keys > 1 << 63:
        more = "" if extra is None else f" with {size:,} values of the further key"
        raise ConfigError(f"{log.documents:,} documents at {log.ranks:,} ranks{more} are too many cells to count")
    kind: Any = np.uint32 if keys <= 1 << 32 else np.uint64
    total = 0.0
    columns = ["documents", "ranks", "clicks", *(extra.columns if extra else ()), *(["weight"] if weighted else [])]
    with cell_sums(log, extra, memory=memory, beside=beside, dense_keys=dense_keys) as groups:
        for batch in iterate_ahead(log.columns(columns)):
            offsets, (document, rank, click) = flat_lists(batch, ["documents", "ranks", "clicks"])
            key = document.astype(kind)
            key *= kind(log.ranks)
            key += rank.astype(kind)
            key -= kind(1)
            if extra is not None:
                key *= kind(size)
                key += extra.values(batch, offsets, rank, click).astype(kind)
            key <<= kind(1)
            key |= click.view(np.uint8)  # clicked and unclicked impressions are added up separately
            if weighted:
                weight = batch["weight"].to_numpy().astype(np.float64)
                total += float(weight.sum())
                groups.add(key, np.repeat(weight, np.diff(offsets)))
            else:
                groups.add(key)
        pieces = [(np.zeros(0, kind), *[np.zeros(0, np.float64 if weighted else np.int64)] * 2)]
        pieces += [_cells(key.astype(kind, copy=False), sums) for key, sums in groups]
    cell, impressions, clicks = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    del pieces
    further = None
    if extra is not None:
        cell, further = np.divmod(cell, kind(size))
        further = further.astype(np.int32)
    document, rank = np.divmod(cell, kind(log.ranks))
    return CellCounts(
        document.astype(np.int32),
        rank.astype(np.int32) + np.int32(1),
        further,
        impressions,
        clicks,
        total if weighted else float(log.sessions),
    )


def merge_extra(cells: CellCounts, *, keep: bool = False) -> CellCounts:
    """Adds cells up over their further key: one cell per document and rank, as `count_cells` counts without a key.

    Args:
      keep: whether only cells with the same further key are added up, which are next to each other.
    """
    if not len(cells.document):
        return cells if keep else cells._replace(extra=None)
    keys = [cells.document, cells.rank] + ([cells.extra] if keep and cells.extra is not None else [])
    first = np.flatnonzero(np.append(True, np.any([key[1:] != key[:-1] for key in keys], axis=0)))
    impressions, clicks = (np.add.reduceat(x, first) for x in (cells.impressions, cells.clicks))
    document, rank, *extra = (key[first] for key in keys)
    return CellCounts(document, rank, extra[0] if extra else None, impressions, clicks, cells.weight)


def pair_key(one: ExtraKey, other: ExtraKey) -> ExtraKey:
    """Returns the key of cells by two keys: the first times the size of the second, plus the second."""

    def values(batch: pa.RecordBatch, offsets: np.ndarray, rank: np.ndarray, click: np.ndarray) -> np.ndarray:
        first = one.values(batch, offsets, rank, click).astype(np.int64)
        return np.asarray(first * other.size + other.values(batch, offsets, rank, click))

    return ExtraKey(one.size * other.size, values, (*one.columns, *other.columns))


def cell_sums(
    log: ClickLog,
    extra: ExtraKey | None = None,
    *,
    memory: int,
    beside: Path | None = None,
    dense_keys: int = DENSE_KEYS,
) -> DenseSums | SortedGroups:
    """Chooses how the impressions of each cell are added up: in one array of all possible keys, or by sorting.

    Args:
      log, extra, memory, beside: as for `count_cells`.
      dense_keys: the array is chosen up to this many possible keys per impression, where it also fits the memory.
    """
    keys = _possible_keys(log, extra)
    # No key comes more often than there are sessions.
    kind = np.dtype(np.float64 if log.weighted else np.uint32 if log.sessions < 1 << 32 else np.uint64)
    impressions = log.metadata["impressions"] / log.metadata["sessions"] * log.sessions
    if keys * kind.itemsize <= memory // 8 and keys <= dense_keys * impressions:
        return DenseSums(keys, kind)
    return SortedGroups(sum_by_key, memory=memory, beside=beside)


def with_all_documents(log: ClickLog) -> ClickLog:
    """Returns the view with every document under its own id, whatever `vocabulary=` it was opened with."""
    return log.with_documents(log.vocabulary.documents)


def last_click_key(log: ClickLog) -> ExtraKey:
    """Returns the key of cells by the rank of the last click above the document in its list, 0 for none."""
    return ExtraKey(log.ranks + 1, _last_click)


def _possible_keys(log: ClickLog, extra: ExtraKey | None) -> int:
    """Counts the possible keys: two per cell, one with and one without a click."""
    return 2 * (log.documents + 1) * log.ranks * (extra.size if extra else 1)


def _cells(key: np.ndarray, total: np.ndarray) -> KeyedColumns:
    """Turns sums per cell and click into (cell, impressions, clicks)."""
    total = total if total.dtype == np.float64 else total.astype(np.int64)
    cell = key >> key.dtype.type(1)
    first = group_starts(cell)
    last = np.append(first[1:], len(cell)) - 1  # the key with a click, where the cell has clicks
    clicks = np.where(key[last] & key.dtype.type(1), total[last], 0)
    impressions = total[last] + np.where(first < last, total[first], 0)
    shown = impressions > 0  # sessions may have a weight of 0
    return cell[first][shown], impressions[shown], clicks[shown]


def _last_click(_: pa.RecordBatch, offsets: np.ndarray, rank: np.ndarray, click: np.ndarray) -> np.ndarray:
    """Returns the rank of the last click above each impression [i] in its list, 0 for none."""
    if not len(rank):
        return rank
    # One running maximum over all lists: the ranks of each list are moved above those of the lists before it.
    step = int(rank.max()) + 1
    kind = np.dtype(np.int32 if step * len(offsets) < 1 << 31 else np.int64)
    base = np.repeat(np.arange(0, step * (len(offsets) - 1), step, dtype=kind), np.diff(offsets))
    running = np.maximum.accumulate(base + np.where(click, rank, 0).astype(kind))
    last = np.empty_like(base)
    last[1:] = running[:-1]
    last[offsets[:-1]] = base[offsets[:-1]]
    above: np.ndarray = last - base
    return above
