"""Writes every distinct session of a click log once, with the number of its copies as weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ultr.background import iterate_ahead
from ultr.data.click_log import ClickLog
from ultr.data.columns import CONTEXT, FEATURE, flat_lists
from ultr.data.counting import with_all_documents
from ultr.data.grouping import KeyedColumns, SortedGroups, group_starts
from ultr.data.writer import LogWriter
from ultr.hashing import murmur64, splitmix64

SAMPLED_SESSIONS = 50_000  # of which `share_distinct` estimates

HashSessions = Callable[[pa.RecordBatch, list[str], list[str]], tuple[np.ndarray, np.ndarray]]


def session_hashes(batch: pa.RecordBatch, lists: list[str], scalars: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Computes two 64-bit hashes of each session, equal for equal sessions.

    Args:
      batch: n sessions.
      lists: names of the list columns that count: documents, ranks and clicks, then features.
      scalars: names of the columns with one value per session that count.

    Returns:
      two arrays [n] of uint64.
    """
    offsets, (document, rank, click, *features) = flat_lists(batch, lists)
    # Ranks increase within a list, so that a list is the set of its (document, rank, click, features): its hash may
    # be the sum of theirs, whatever their order.
    impression = document.astype(np.uint64)
    impression <<= np.uint64(32)
    impression |= rank.astype(np.uint64) << np.uint64(1)
    impression |= click.view(np.uint8)
    out = []
    for permute in (splitmix64, murmur64):
        each = permute(impression.copy())
        for feature in features:
            each ^= feature.view(np.uint32)
            each = permute(each)
        row = np.add.reduceat(each, offsets[:-1])
        for name in scalars:
            row ^= batch[name].to_numpy().view(np.uint32)
            row = permute(row)
        out.append(row)
    return out[0], out[1]


def share_distinct(log: ClickLog) -> float:
    """Estimates the number of distinct sessions per session of a log.

    All sessions of some queries are looked at, since copies are of one query: of as many queries as have
    `SAMPLED_SESSIONS` together, in an order that a hash decides.
    """
    names = [batch["query"].to_numpy() for batch in log.columns(["query"])]
    sessions = np.bincount(np.concatenate(names), minlength=log.vocabulary.queries) if names else np.zeros(0)
    order = np.argsort(splitmix64(np.arange(len(sessions), dtype=np.uint64)))
    chosen = np.zeros(len(sessions), bool)
    chosen[order[np.cumsum(sessions[order]) - sessions[order] < SAMPLED_SESSIONS]] = True
    lists, scalars = _compared(log)
    view = with_all_documents(log.select_queries(chosen))
    found = [np.stack(session_hashes(batch, lists, scalars), 1) for batch in view.columns([*lists, *scalars])]
    return len(np.unique(np.concatenate(found), axis=0)) / len(view) if found else 1.0


def write_distinct_sessions(
    log: ClickLog, directory: Path, *, memory: int, hash_sessions: HashSessions = session_hashes
) -> ClickLog:
    """Writes every distinct session of a log once, in the order in which they first come, weighted by its copies.

    Args:
      log: a click log or a view of one; it is streamed twice.
      directory: the folder to make, whole or not at all.
      memory: bytes to sort and group in.
      hash_sessions: computes the two hashes that tell sessions apart, see `session_hashes`.

    Returns:
      the opened log of distinct sessions.

    Raises:
      DataError: something stands at `directory`, or the log is damaged.
    """
    about, view, weighted = log.metadata, with_all_documents(log), log.weighted
    lists, scalars = _compared(log)
    queries, documents = log.vocabulary.tables()
    writer = LogWriter(
        directory,
        queries=queries,
        documents=documents,
        features=log.vocabulary.feature_names,
        impression_features=about["impression_features"],
        context=about["context"],
        parent=log.vocabulary.parent,
        max_grade=log.vocabulary.max_grade or None,
        named_by_place=log.vocabulary.named_by_place,
        truth=about.get("truth"),
    )
    with writer:
        beside = directory.absolute().parent
        total, rows, written = 0.0, 0, 0
        with SortedGroups(_sorted_by_key, memory=memory // 2, beside=beside) as kept:
            with SortedGroups(_group_equal, memory=memory // 2, beside=beside) as groups:
                for batch in iterate_ahead(view.columns([*lists, *scalars, *(["weight"] if weighted else [])])):
                    n = len(batch)
                    weight = batch["weight"].to_numpy().astype(np.float64) if weighted else np.ones(n)
                    total += float(weight.sum())
                    number = np.arange(rows, rows + n, dtype=np.uint64)
                    groups.add(*hash_sessions(batch, lists, scalars), number, weight)
                    rows += n
                for _, _, first, weight in groups:
                    kept.add(first, weight)
            for batch, weight in _pick_rows(iterate_ahead(view.columns([*lists, *scalars])), kept):
                columns = {name: batch[name] for name in batch.schema.names}
                columns["session"] = pa.array(np.arange(written, written + len(batch)))
                columns["weight"] = pa.array(weight.astype(np.float32))
                writer.write(pa.table(columns))
                written += len(batch)
        copies = log.weights_are_copies
        writer.report = {
            "collapsed": {"sessions": log.sessions, "weight": total, "log": log.identity, "copies": copies}
        }
    return ClickLog.open(directory).with_documents(log.documents)


def _compared(log: ClickLog) -> tuple[list[str], list[str]]:
    """Names the list columns and the scalar columns in which equal sessions are equal."""
    lists = ["documents", "ranks", "clicks", *(FEATURE + name for name in log.metadata["impression_features"])]
    return lists, ["query", *(CONTEXT + name for name in log.metadata["context"])]


def _group_equal(columns: KeyedColumns) -> KeyedColumns:
    """Groups rows (first hash, second hash, row number, weight) by both hashes: lowest row number, summed weight."""
    first, second, row, weight = columns
    order = np.argsort(first, kind="stable")
    one, two = first[order], second[order]
    if ((one[1:] == one[:-1]) & (two[1:] != two[:-1])).any():  # rare: the first hash alone is equal
        order = np.lexsort((second, first))
        one, two = first[order], second[order]
    start = group_starts(one, two)
    return one[start], two[start], np.minimum.reduceat(row[order], start), np.add.reduceat(weight[order], start)


def _sorted_by_key(columns: KeyedColumns) -> KeyedColumns:
    order = np.argsort(columns[0], kind="stable")
    return tuple(column[order] for column in columns)


def _pick_rows(
    batches: Iterable[pa.RecordBatch], rows: Iterable[KeyedColumns]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yields the rows with the given numbers, which count through all batches, and their weights."""
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
