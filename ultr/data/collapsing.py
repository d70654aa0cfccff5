"""Collapses a click log to the sufficient statistics of a click model, and opens logs and counts alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, overload

from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.data.counting import count_cells, last_click_key, with_all_documents
from ultr.data.counts import COUNTS_BY, Counts
from ultr.data.dataset import SufficientStatistics
from ultr.data.distinct import write_distinct_sessions
from ultr.data.query_lists import QueryLists
from ultr.data.storage import COLLECTION_FORMAT, COUNTS_FORMAT, LOG_FORMAT, new_data_folder, read_metadata
from ultr.errors import ConfigError, DataError

SUFFICIENT_STATISTICS = (*COUNTS_BY, "query", "list")


@overload
def collapse(
    log: ClickLog,
    sufficient_statistics: Literal["rank", "last-click"],
    *,
    directory: str | os.PathLike[str] | None = ...,
    memory: int = ...,
) -> Counts: ...
@overload
def collapse(
    log: ClickLog,
    sufficient_statistics: Literal["query"],
    *,
    directory: None = ...,
    memory: int = ...,
) -> QueryLists: ...
@overload
def collapse(
    log: ClickLog,
    sufficient_statistics: Literal["list"],
    *,
    directory: str | os.PathLike[str] | None,
    memory: int = ...,
) -> ClickLog: ...
def collapse(
    log: ClickLog,
    sufficient_statistics: SufficientStatistics,
    *,
    directory: str | os.PathLike[str] | None = None,
    memory: int = 1 << 30,
) -> Counts | QueryLists | ClickLog:
    """Collapses a click log to sufficient statistics: a model trains on them to the same optimum in less time.

    - "rank": clicks and impressions per (document, rank). Sufficient for CTR models, PBM, TrustPBM and AdditivePBM:
      the sum of their losses on the counts equals that on the log.
    - "last-click": clicks and impressions per (document, rank, rank of the last click above it). Sufficient for UBM.
    - "query": one list per query, with the share of its sessions that showed each document at each rank, and the
      clicks on it per session. Sufficient for what learns a ranking per query from objectives over exposure
      (`ultr.baselines.PolicyGradient`).
    - "list": every distinct session once, with the number of its copies as weight. Sufficient for all models. Two
      sessions are the same where query, documents, ranks, clicks, context columns and impression features are equal,
      which is decided by a 128-bit hash of these. Distinct sessions keep the order in which they first come and have
      new session keys (0, 1, ...). They have neither times nor splits, since one row may stand for sessions of
      several: collapse each split on its own.

    Where the log has session weights, sessions count by their weight. Counts are per document: the context columns
    are left out, so that towers over them, or over anything else of a session than document, rank and last click,
    cannot be trained on counts. A log with impression features cannot be turned into counts at all.

    Args:
      log: a click log or a view of one; it is streamed once ("list": twice).
      sufficient_statistics: "rank", "last-click", "query" or "list".
      directory: the folder to make, whole or not at all; None keeps counts in memory only.
      memory: bytes to sort and group in, beside one row group of the log and the returned counts; what needs more is
        grouped on disk, beside `directory` or in the system's folder for temporary files.

    Raises:
      ConfigError: unknown sufficient statistics; "list" without a directory, "query" with one; counts of a log
        with impression features.
      DataError: something stands at `directory`, or the log is damaged.
    """
    if sufficient_statistics not in SUFFICIENT_STATISTICS:
        known = ", ".join(map(repr, SUFFICIENT_STATISTICS))
        raise ConfigError(f"expected sufficient_statistics of {known}, found {sufficient_statistics!r}")
    if memory < 1:
        raise ConfigError(f"expected memory of at least 1 byte, found {memory}")
    if sufficient_statistics == "list":
        if directory is None:
            raise ConfigError("sufficient_statistics='list' makes a click log: pass directory=, the folder to write")
        return write_distinct_sessions(log, Path(directory), memory=memory)
    if names := log.metadata["impression_features"]:
        raise ConfigError(
            f"the log has impression features ({', '.join(names)}), which differ between the impressions that counts "
            "per document add up: collapse it with sufficient_statistics='list'"
        )
    if sufficient_statistics == "query":
        if directory is not None:
            raise ConfigError("sufficient_statistics='query' stays in memory: leave directory= out")
        return QueryLists.of(log, memory=memory)
    if directory is None:
        return _count(log, sufficient_statistics, memory, None)
    with new_data_folder(directory) as folder:
        counts = _count(log, sufficient_statistics, memory, folder.parent)
        counts._write(folder)
    return counts


def open_counted(path: str | os.PathLike[str], *, split: str | None = None) -> ClickLog | Counts:
    """Opens a folder that holds a click log, or the counts of one.

    Args:
      path: the folder.
      split: name of a split of the log; counts have no splits.

    Raises:
      DataError: the folder cannot be opened (see `ClickLog.open` and `Counts.open`), or a split of counts was asked
        for.
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


def open_data(
    path: str | os.PathLike[str], *, split: str | None = None, vocabulary: Any = None
) -> ClickLog | Collection:
    """Opens a folder as what its metadata.json says it is; arguments and errors as for the two `open`."""
    kind = read_metadata(path, [LOG_FORMAT, COLLECTION_FORMAT])["format"]
    return (ClickLog if kind == LOG_FORMAT else Collection).open(path, split=split, vocabulary=vocabulary)


def _count(log: ClickLog, by: SufficientStatistics, memory: int, beside: Path | None) -> Counts:
    # Documents that the log's `vocabulary=` does not know share id 0, but each has its own features and grade: where
    # there are any, every document is counted under its own id.
    names = log.vocabulary
    view = with_all_documents(log) if names.feature_names or names.has_labels else log
    made = count_cells(view, last_click_key(log) if by == "last-click" else None, memory=memory, beside=beside)
    return Counts(
        sufficient_statistics=by,
        document=made.document,
        rank=made.rank,
        last_click=made.extra,
        impressions=made.impressions,
        clicks=made.clicks,
        sessions=log.sessions,
        weight=made.weight,
        documents=log.documents,
        ranks=log.ranks,
        vocabulary=log.vocabulary,
        identity=log.identity | {"by": by} | ({} if log.weights_are_copies else {"weights": "not copies"}),
    )
