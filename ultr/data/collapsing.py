"""Sufficient statistics of a click log: what it says, each fact once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa

from ultr.data.click_log import ClickLog
from ultr.data.columns import CONTEXT, FEATURE
from ultr.data.counts import COUNTS_BY, COUNTS_FORMAT, Counts
from ultr.data.dataset import SufficientStatistics
from ultr.data.grouping import Columns, Groups, Table, starts, sums
from ultr.data.storage import COLLECTION_FORMAT, LOG_FORMAT, read_metadata, staged
from ultr.data.writer import LogWriter
from ultr.errors import ConfigError, DataError

_BY = (*COUNTS_BY, "list")
_DENSE = 16  # a table of all keys is quicker than sorting up to this many keys per impression
T = TypeVar("T")


@overload
def collapse(
    log: ClickLog,
    by: Literal["rank", "last-click"],
    *,
    directory: str | os.PathLike[str] | None = ...,
    memory: int = ...,
) -> Counts: ...
@overload
def collapse(
    log: ClickLog, by: Literal["list"], *, directory: str | os.PathLike[str] | None, memory: int = ...
) -> ClickLog: ...
def collapse(
    log: ClickLog,
    by: Literal["rank", "last-click", "list"],
    *,
    directory: str | os.PathLike[str] | None = None,
    memory: int = 1 << 30,
) -> Counts | ClickLog:
    """Makes the sufficient statistics of a click log, on which a model trains to the same optimum in less time.

    - `rank`: clicks and impressions per (document, rank). All of the log for CTR models, PBM, TrustPBM and
      AdditivePBM: the sum of their losses is the same on the counts as on the log.
    - `last-click`: the same per (document, rank, rank of the last click above it): for UBM.
    - `list`: every different session once, with its number as weight: for all models. Sessions are the same where
      query, documents, ranks, clicks, context columns and impression features are; they are told apart by a 128-bit
      hash of those. They keep the order in which they first come, and have new session keys (0, 1, ...) but neither
      times nor splits, since one row stands for sessions of several: collapse each split on its own.

    Sessions count by their weight where the log has weights. Counts are per document, so that towers over context
    columns or over anything else of the session than document, rank and last click cannot be trained on them: the
    columns are left out. Towers over impression features could not either, and those are refused.

    Args:
      log: a click log or a view of one; it is streamed, once (`list`: twice).
      by: which statistics.
      directory: the folder to make, whole or not at all; counts may also be kept in memory only (None).
      memory: bytes to sort and group in, beside one row group of the log and the counts that are returned; what needs
        more is grouped on disk, beside `directory` or where the system has its temporary files.

    Raises:
      ConfigError: another `by`; `list` without a directory; counts of a log with impression features.
      DataError: something stands at `directory`, or the log is damaged.
    """
    if by not in _BY:
        raise ConfigError(f"expected by={', '.join(map(repr, _BY))}, found {by!r}")
    if memory < 1:
        raise ConfigError(f"expected memory of at least 1 byte, found {memory}")
    if by == "list":
        if directory is None:
            raise ConfigError("by='list' makes a click log: pass directory=, the folder to write it to")
        return _distinct(log, Path(directory), memory)
    if names := log.metadata["impression_features"]:
        raise ConfigError(
            f"the log has impression features ({', '.join(names)}), which differ between impressions that counts per "
            f"document add up: collapse it by='list'"
        )
    if directory is None:
        return _counted(log, by, memory, None)
    with staged(directory) as folder:
        counts = _counted(log, by, memory, folder.parent)
        counts._write(folder)
    return counts


def open_counted(path: str | os.PathLike[str], *, split: str | None = None) -> ClickLog | Counts:
    """Opens a folder that is a click log, or the counts of one.

    Args:
      path: the folder.
      split: of a log, the name of one of its splits.

    Raises:
      DataError: as of `ClickLog.open` and `Counts.open`; or a split of counts, which have none.
    """
    kind = read_metadata(path, [LOG_FORMAT, COLLECTION_FORMAT, COUNTS_FORMAT])["format"]
    if kind != COUNTS_FORMAT:
        return ClickLog.open(path, split=split)
    if split is not None:
        raise DataError(
            f"expected a log to take the split '{split}' of, found counts, which have none",
            fix="Collapse that split of the log, or leave --split out.",
            file=path,
        )
    return Counts.open(path)


def _counted(log: ClickLog, by: SufficientStatistics, memory: int, beside: Path | None) -> Counts:
    # All unseen documents have one id, but each its own features and grade, where there are any.
    names = log.vocabulary
    view = _stored(log) if names.feature_names or names.has_labels else log
    lasts = Part(log.ranks + 1, _last_click) if by == "last-click" else None
    made = tally(view, lasts, memory=memory, beside=beside)
    return Counts(
        sufficient_statistics=by,
        document=made.document,
        rank=made.rank,
        last_click=made.part,
        impressions=made.impressions,
        clicks=made.clicks,
        sessions=log.sessions,
        weight=made.weight,
        documents=log.documents,
        ranks=log.ranks,
        vocabulary=log.vocabulary,
        identity=log.identity | {"by": by},
    )


class Part(NamedTuple):
    """A third key of cells, beside document and rank.

    Attributes:
      values: they are 0 to this number - 1.
      of: (batch, offsets [n + 1], rank [i], click [i]) -> [i] the value of every impression.
      columns: of the session files, which `of` reads from the batch.
    """

    values: int
    of: Callable[[pa.RecordBatch, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    columns: tuple[str, ...] = ()


class Tally(NamedTuple):
    """Clicks and impressions of C cells, sorted by document, rank and part.

    Attributes:
      document, rank: [C] int32, the rank 1-based.
      part: [C] int32, or None without one.
      impressions, clicks: [C] int64; float64 where sessions have weights.
      weight: the sum of the weights of the sessions; their number without weights.
    """

    document: np.ndarray
    rank: np.ndarray
    part: np.ndarray | None
    impressions: np.ndarray
    clicks: np.ndarray
    weight: float


def tally(log: ClickLog, part: Part | None = None, *, memory: int = 1 << 30, beside: Path | None = None) -> Tally:
    """Clicks and impressions per document and rank, and per a third key, whatever else the log holds.

    Args:
      log: a click log or a view of one; it is streamed, once.
      part: the third key.
      memory: bytes to sort and group in, beside one row group of the log and the result.
      beside: where to make a temporary folder; None: where the system has its temporary files.

    Raises:
      ConfigError: more cells than 64 bits can number.
    """
    weighted = log.weighted
    values = part.values if part else 1
    keys = 2 * (log.documents + 1) * log.ranks * values
    if keys > 1 << 63:
        by = "" if part is None else f" in {values:,} parts"
        raise ConfigError(f"{log.documents:,} documents at {log.ranks:,} ranks{by} are too many cells to count")
    kind: Any = np.uint32 if keys <= 1 << 32 else np.uint64
    total = 0.0
    columns = ["documents", "ranks", "clicks", *(part.columns if part else ()), *(["weight"] if weighted else [])]
    with _sums(log, keys, weighted, memory, beside) as groups:
        for batch in _ahead(log.columns(columns)):
            offsets, (document, rank, click) = _flat(batch, ["documents", "ranks", "clicks"])
            key = document.astype(kind)
            key *= kind(log.ranks)
            key += rank.astype(kind)
            key -= kind(1)
            if part is not None:
                key *= kind(values)
                key += part.of(batch, offsets, rank, click).astype(kind)
            key <<= kind(1)
            key |= click.view(np.uint8)  # what was clicked adds up on its own
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
    third = None
    if part is not None:
        cell, third = np.divmod(cell, kind(values))
        third = third.astype(np.int32)
    document, rank = np.divmod(cell, kind(log.ranks))
    return Tally(
        document.astype(np.int32),
        rank.astype(np.int32) + np.int32(1),
        third,
        impressions,
        clicks,
        total if weighted else float(log.sessions),
    )


def _sums(log: ClickLog, keys: int, weighted: bool, memory: int, beside: Path | None) -> Table | Groups:
    # No key comes more often than there are sessions.
    kind = np.dtype(np.float64 if weighted else np.uint32 if log.sessions < 1 << 32 else np.uint64)
    impressions = log.metadata["impressions"] / log.metadata["sessions"] * log.sessions
    if keys * kind.itemsize <= memory // 8 and keys <= _DENSE * impressions:
        return Table(keys, kind)
    return Groups(sums, memory=memory, beside=beside)


def _cells(key: np.ndarray, total: np.ndarray) -> Columns:
    """From sums per cell and click to (cell, impressions, clicks)."""
    total = total if total.dtype == np.float64 else total.astype(np.int64)
    cell = key >> key.dtype.type(1)
    first = starts(cell)
    last = np.append(first[1:], len(cell)) - 1  # the one with clicks, where there is any
    clicks = np.where(key[last] & key.dtype.type(1), total[last], 0)
    impressions = total[last] + np.where(first < last, total[first], 0)
    shown = impressions > 0  # sessions may have a weight of 0
    return cell[first][shown], impressions[shown], clicks[shown]


def _last_click(_: pa.RecordBatch, offsets: np.ndarray, rank: np.ndarray, click: np.ndarray) -> np.ndarray:
    """[impressions] rank of the last click above each document in its list, 0 for none."""
    if not len(rank):
        return rank
    # One running maximum over all lists: each starts above all that stands before it.
    step = int(rank.max()) + 1
    kind = np.dtype(np.int32 if step * len(offsets) < 1 << 31 else np.int64)
    base = np.repeat(np.arange(0, step * (len(offsets) - 1), step, dtype=kind), np.diff(offsets))
    running = np.maximum.accumulate(base + np.where(click, rank, 0).astype(kind))
    last = np.empty_like(base)
    last[1:] = running[:-1]
    last[offsets[:-1]] = base[offsets[:-1]]
    return last - base


def _distinct(log: ClickLog, directory: Path, memory: int) -> ClickLog:
    about, view, weighted = log.metadata, _stored(log), log.weighted
    lists = ["documents", "ranks", "clicks", *(FEATURE + name for name in about["impression_features"])]
    scalars = ["query", *(CONTEXT + name for name in about["context"])]
    queries, documents = log.vocabulary.tables()
    writer = LogWriter(
        directory,
        queries=queries,
        documents=documents,
        features=log.vocabulary.feature_names,
        impression_features=about["impression_features"],
        context=about["context"],
        parent=log.vocabulary.parent,
        truth=about.get("truth"),
    )
    with writer:
        beside = directory.absolute().parent
        total, rows, written = 0.0, 0, 0
        with Groups(_in_order, memory=memory // 2, beside=beside) as kept:
            with Groups(_equal, memory=memory // 2, beside=beside) as groups:
                for batch in _ahead(view.columns([*lists, *scalars, *(["weight"] if weighted else [])])):
                    n = len(batch)
                    weight = batch["weight"].to_numpy().astype(np.float64) if weighted else np.ones(n)
                    total += float(weight.sum())
                    groups.add(*_hashed(batch, lists, scalars), np.arange(rows, rows + n, dtype=np.uint64), weight)
                    rows += n
                for _, _, first, weight in groups:
                    kept.add(first, weight)
            for batch, weight in _picked(_ahead(view.columns([*lists, *scalars])), kept):
                columns = {name: batch[name] for name in batch.schema.names}
                columns["session"] = pa.array(np.arange(written, written + len(batch)))
                columns["weight"] = pa.array(weight.astype(np.float32))
                writer.write(pa.table(columns))
                written += len(batch)
        writer.report = {"collapsed": {"sessions": log.sessions, "weight": total, "log": log.identity}}
    return ClickLog.open(directory).with_documents(log.documents)


def _equal(columns: Columns) -> Columns:
    """Rows of equal hash: (hash, other half of it, first row, weight)."""
    first, second, row, weight = columns
    order = np.argsort(first, kind="stable")
    one, two = first[order], second[order]
    if ((one[1:] == one[:-1]) & (two[1:] != two[:-1])).any():  # half a hash is hardly ever equal alone
        order = np.lexsort((second, first))
        one, two = first[order], second[order]
    start = starts(one, two)
    return one[start], two[start], np.minimum.reduceat(row[order], start), np.add.reduceat(weight[order], start)


def _in_order(columns: Columns) -> Columns:
    order = np.argsort(columns[0], kind="stable")
    return tuple(column[order] for column in columns)


def _picked(
    batches: Iterable[pa.RecordBatch], rows: Iterable[tuple[np.ndarray, ...]]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The given rows, numbered through all batches, with their weights."""
    pieces = iter(rows)
    number, weight = np.zeros(0, np.uint64), np.zeros(0)
    start = 0
    for batch in batches:
        end = np.uint64(start + len(batch))
        while not len(number) or number[-1] < end:
            piece = next(pieces, None)
            if piece is None:
                break
            number, weight = np.concatenate([number, piece[0]]), np.concatenate([weight, piece[1]])
        cut = int(np.searchsorted(number, end))
        if cut:
            keep = np.zeros(len(batch), bool)
            keep[(number[:cut] - np.uint64(start)).astype(np.int64)] = True
            yield batch.filter(pa.array(keep)), weight[:cut]
        number, weight = number[cut:], weight[cut:]
        start += len(batch)


# The finalisers of splitmix64 and of MurmurHash3: every input bit moves every output bit, in each its own way.
_MIXERS = (
    (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31, 0x9E3779B97F4A7C15),
    (33, 0xFF51AFD7ED558CCD, 33, 0xC4CEB9FE1A85EC53, 33, 0xD1B54A32D192ED03),
)


def _hashed(batch: pa.RecordBatch, lists: list[str], scalars: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """[n] uint64 twice: a hash of the named columns of each row, equal for equal rows."""
    offsets, (document, rank, click, *features) = _flat(batch, lists)
    # Ranks increase within a list, so that it is the set of its (document, rank, click, features): a sum does.
    place = document.astype(np.uint64)
    place <<= np.uint64(32)
    place |= rank.astype(np.uint64) << np.uint64(1)
    place |= click.view(np.uint8)
    out = []
    for mixer in _MIXERS:
        each = _mixed(place.copy(), mixer)
        for feature in features:
            each ^= feature.view(np.uint32)
            each = _mixed(each, mixer)
        row = np.add.reduceat(each, offsets[:-1])
        for name in scalars:
            row ^= batch[name].to_numpy().view(np.uint32)
            row = _mixed(row, mixer)
        out.append(row)
    return out[0], out[1]


def _mixed(x: np.ndarray, mixer: tuple[int, ...]) -> np.ndarray:
    shift1, times1, shift2, times2, shift3, add = map(np.uint64, mixer)
    x += add
    x ^= x >> shift1
    x *= times1
    x ^= x >> shift2
    x *= times2
    x ^= x >> shift3
    return x


def _flat(batch: pa.RecordBatch, names: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(offsets [n + 1] from 0, the flat values of each of the list columns)."""
    offsets = batch[names[0]].offsets.to_numpy()
    return offsets - offsets[0], [batch[name].flatten().to_numpy() for name in names]


def _stored(log: ClickLog) -> ClickLog:
    """The view with all documents under their own ids, whatever vocabulary it was opened with."""
    return log.with_documents(log.vocabulary.documents)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, the next one being made while one is used."""
    end = object()
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = worker.submit(next, items, end)
            yield item  # type: ignore[misc]
