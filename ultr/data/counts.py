"""`Counts`: clicks and impressions per cell, in memory and on disk, and the batches they stream as."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultr import stopping
from ultr.arguments import check_count, number_array
from ultr.data.dataset import Coverage, Dataset, Description, SufficientStatistics
from ultr.data.grouping import group_starts
from ultr.data.input_schema import InputSchema
from ultr.data.splits import chosen_queries
from ultr.data.storage import (
    COUNTS_FORMAT,
    DOCUMENTS_FILE,
    METADATA_FILE,
    PARQUET_OPTIONS,
    QUERIES_FILE,
    SCHEMA,
    check_columns,
    file_record,
    new_data_folder,
    open_parquet,
    prepared_format,
    read_metadata,
    read_row_groups,
    write_metadata,
)
from ultr.data.vocabulary import Vocabulary
from ultr.errors import DataError
from ultr.sessions import Sessions, SharedFeature

COUNTS_FILE = "counts.parquet"
COUNTS_BY = ("rank", "last-click")

LARGEST_SHARE = 1 / 64  # of a batch that one document may weigh,
USUAL = 4.0  # unless that is less than so many times the median of the documents


class Counts(Dataset):
    """Clicks and impressions per cell: (document, rank), or (document, rank, last click).

    Cells are sorted by document, rank and last click; those without impressions are left out.

    Attributes:
      sufficient_statistics: what the cells are counted by, "rank" or "last-click".
      document: [C] int32 document id of each cell; 0 is a document that is not known, and so are those beyond
        `documents`.
      rank: [C] int32, 1-based.
      last_click: [C] int32, the 1-based rank of the last click above the document in its list, 0 for none; None by
        rank.
      impressions, clicks: [C] int64; float64 sums of session weights where the log has weights.
      sessions: how many sessions they were made from.
      weight: the sum of the weights of those; their number without weights.
      documents, ranks, vocabulary: those of the log.
      identity: the log's identity, and what the cells are counted by.

    Raises:
      DataError: a column holds something else, or cells are not sorted; names `source` (of the constructor; None: the
        counts were made in memory), the field and the row.
    """

    def __init__(
        self,
        *,
        sufficient_statistics: SufficientStatistics,
        document: np.ndarray,
        rank: np.ndarray,
        last_click: np.ndarray | None,
        impressions: np.ndarray,
        clicks: np.ndarray,
        sessions: int,
        weight: float,
        documents: int,
        ranks: int,
        vocabulary: Vocabulary,
        identity: Mapping[str, Any],
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        self.sufficient_statistics = sufficient_statistics
        self.document, self.rank, self.last_click = document, rank, last_click
        self.impressions, self.clicks = impressions, clicks
        self.sessions, self.weight = sessions, weight
        self.documents, self.ranks, self.vocabulary = documents, ranks, vocabulary
        self.identity: dict[str, Any] = dict(identity)
        self._check(source)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Counts:
        """Reads the counts that `collapse` or `save` wrote.

        Raises:
          DataError: not counts of this schema; a file is missing, truncated or damaged; a column is missing or
            mistyped, or a value out of range.
        """
        folder = Path(path)
        if (other := prepared_format(folder)) is not None:
            raise DataError(
                f"expected counts ({COUNTS_FORMAT}), found {other}",
                fix="`ultr.data.collapsing` makes counts of a click log.",
                file=folder,
            )
        metadata = read_metadata(folder, [COUNTS_FORMAT])
        file = folder / METADATA_FILE
        names = [record["name"] for record in metadata["files"]]
        if metadata["by"] not in COUNTS_BY or names != [COUNTS_FILE]:
            raise DataError(
                f"expected counts by one of {COUNTS_BY} in {COUNTS_FILE}, found {metadata['by']!r} in {names}",
                fix="Collapse the log again.",
                file=file,
            )
        footer = open_parquet(folder, metadata["files"][0])
        schema, file = footer.schema.to_arrow_schema(), folder / COUNTS_FILE
        types = {"document": "int32", "rank": "int32"}
        types |= {"last_click": "int32"} if metadata["by"] == "last-click" else {}
        types |= dict.fromkeys(("impressions", "clicks"), "int64 or double")
        check_columns(schema, types, file)
        table = read_row_groups(file, range(footer.num_row_groups), list(types), footer=footer)
        columns: dict[str, Any] = {"last_click": None} | {name: _plain(table[name], file, name) for name in types}
        return cls(
            **columns,
            sufficient_statistics=metadata["by"],
            sessions=metadata["sessions"],
            weight=metadata["weight"],
            documents=metadata["known"],
            ranks=metadata["ranks"],
            vocabulary=Vocabulary.open(folder, metadata),
            identity=metadata["identity"],
            source=file,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a folder that `open` reads, whole or not at all.

        Raises:
          DataError: something stands at `path`.
        """
        with new_data_folder(path) as folder:
            self._write(folder)

    def __len__(self) -> int:
        return len(self.document)

    @property
    def rows(self) -> int:
        """Number of rows of a pass in the order of the cells: two for a cell with and without clicks, else one."""
        return len(self._rows)

    def coverage(self) -> Coverage:
        queries = np.zeros(self.vocabulary.queries, bool)
        queries[self.query[self.query >= 0]] = True
        return Coverage.of(queries, self.document[self.document > 0])

    @cached_property
    def description(self) -> Description:
        """The description of the counts; a session is worth as many rows as it has impressions, by weight."""
        impressions = float(self.impressions.sum(dtype=np.float64))
        return Description(
            rows=len(self),
            weight=impressions,
            rows_per_session=impressions / self.weight,
            sufficient_statistics=self.sufficient_statistics,
            documents=self.documents,
            ranks=self.ranks,
            vocabulary=self.vocabulary,
            identity=self.identity,
        )

    @cached_property
    def query(self) -> np.ndarray:
        """Query id of each cell [C] int32, that of its document; -1 of document 0, which belongs to none."""
        found: np.ndarray = self.vocabulary.document_query[self.document]
        return found

    @cached_property
    def query_weights(self) -> np.ndarray:
        """Weight of the sessions of each query of the vocabulary, [Q] float64; 0: the counts do not show it.

        Counts keep no sessions: it is the most that the query's documents were shown at any one rank, which is exact
        where every list shows that rank, as lists without gaps show the first.
        """
        shown = np.zeros((self.vocabulary.queries, self.ranks))
        known = self.query >= 0
        np.add.at(shown, (self.query[known], self.rank[known] - 1), self.impressions[known])
        found: np.ndarray = shown.max(1, initial=0.0)
        return found

    def select_queries(self, chosen: np.ndarray) -> Counts:
        """Takes the cells of some queries: the counts of their sessions, without another pass over the log.

        A document belongs to one query, so that a split of the queries splits the cells.

        Args:
          chosen: [Q] bool, whether to take each query of the vocabulary.

        Returns:
          The counts; sessions and weight as `query_weights` tells them.

        Raises:
          ConfigError: not one truth value per query.
        """
        chosen, name = chosen_queries(chosen, self.vocabulary.queries)
        keep = np.append(chosen, False)[self.query]  # the last entry is that of query -1
        weight = float(self.query_weights[chosen].sum())
        return Counts(
            sufficient_statistics=self.sufficient_statistics,
            document=self.document[keep],
            rank=self.rank[keep],
            last_click=None if self.last_click is None else self.last_click[keep],
            impressions=self.impressions[keep],
            clicks=self.clicks[keep],
            sessions=round(self.sessions * weight / self.weight) if self.weight else 0,
            weight=weight,
            documents=self.documents,
            ranks=self.ranks,
            vocabulary=self.vocabulary,
            identity=self.identity | {"part": name},
        )

    @property
    def input_schema(self) -> InputSchema:
        """Names of the features of the documents, and the documents."""
        return InputSchema.of(self.vocabulary.feature_names, vocabulary=self.vocabulary)

    def __repr__(self) -> str:
        by = self.sufficient_statistics
        return f"Counts(by {by}: {len(self):,} cells, {self.sessions:,} sessions, {self.documents:,} documents)"

    def count_batches(self, batch_size: int) -> int:
        """Counts the batches of a shuffled pass, in which heavy documents come several times."""
        rows = int(np.diff(self._first, append=len(self._rows)) @ self._parts(batch_size))
        return -(-rows // batch_size)

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Rows of one document each, in host batches of `batch_size`, the last one padded with masked rows.

        A cell gives up to two rows: one with a click, weighing its clicks, and one without, weighing its impressions
        without a click. Fields: mask [B, 1], position (rank - 1), features `document` and, where the vocabulary has
        them, `features` (document features), labels (grades; NaN: not judged) where the vocabulary has them, clicks,
        last_click by last click, weight.

        Args:
          batch_size: rows per batch.
          seed: None gives the order of the cells; a number shuffles the documents, of which each keeps its rows
            together. A document that alone would weigh much of a batch comes several times, with equal parts of its
            weight, so that no step follows a single document. The same seed gives the same order.
          share_features: give `features` as a `SharedFeature`: the whole table with the ids.

        Raises:
          ConfigError: a batch size below 1.
        """
        check_count("batch_size", batch_size)
        rows, parts = self._rows, np.ones(0)
        if seed is not None:
            first = self._first
            sizes = np.diff(first, append=len(rows))
            times = self._parts(batch_size)
            order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(first)), times))
            sizes = sizes[order]
            # Row i of the new order is as far from the start of its document as before.
            shift = first[order] - (np.cumsum(sizes) - sizes)
            rows = rows[np.repeat(shift, sizes) + np.arange(sizes.sum())]
            parts = np.repeat(times[order], sizes)
        for start in range(0, len(rows), batch_size):
            stopping.check()
            part = slice(start, start + batch_size)
            yield self._batch(rows[part], parts[part], share_features).pad(rows=batch_size)

    def _parts(self, batch_size: int) -> np.ndarray:
        """Computes over how many batches each document is spread."""
        rows, first = self._rows, self._first
        cell = rows >> 1
        weight = np.where(rows & 1, self.clicks[cell], self.impressions[cell] - self.clicks[cell])
        each = np.add.reduceat(weight.astype(np.float64), first) if len(first) else np.zeros(0)
        batch = each.sum() / max(len(rows) / batch_size, 1.0)
        most = max(batch * LARGEST_SHARE, USUAL * np.median(each)) if len(each) else 1.0
        return np.maximum(np.ceil(each / most), 1).astype(np.int64)

    @cached_property
    def _first(self) -> np.ndarray:
        """Where in `_rows` the rows of each document begin."""
        return group_starts(self.document[self._rows >> 1])

    @cached_property
    def _rows(self) -> np.ndarray:
        """For each row, twice its cell, plus one for a click."""
        present = np.stack([self.impressions > self.clicks, self.clicks > 0], axis=1)
        return np.flatnonzero(present.ravel())

    def _batch(self, rows: np.ndarray, parts: np.ndarray, share_features: bool) -> Sessions:
        cell, clicked = rows >> 1, (rows & 1).astype(np.int8)
        ids, clicks = self.document[cell], self.clicks[cell]
        features: dict[str, Any] = {"document": np.where(ids > self.documents, np.int32(0), ids)[:, None]}
        if (table := self.vocabulary.features) is not None:
            features["features"] = SharedFeature(table, ids[:, None]) if share_features else table[ids][:, None]
        grades = self.vocabulary.labels
        weight = np.where(clicked, clicks, self.impressions[cell] - clicks)
        weight = weight / parts if len(parts) else weight
        return Sessions(
            mask=np.ones((len(rows), 1), bool),
            position=self.rank[cell][:, None] - np.int32(1),
            features=features,
            clicks=clicked[:, None],
            labels=None if grades is None else grades[ids][:, None],
            weight=weight.astype(np.float32),
            last_click=None if self.last_click is None else self.last_click[cell][:, None],
        )

    def _columns(self) -> dict[str, np.ndarray]:
        names = ("document", "rank", "last_click", "impressions", "clicks")
        return {name: column for name in names if (column := getattr(self, name)) is not None}

    def _write(self, folder: Path) -> None:
        options = PARQUET_OPTIONS | {"use_dictionary": ["rank", "last_click", "impressions", "clicks"]}
        columns = self._columns()
        options["use_dictionary"] = [name for name in options["use_dictionary"] if name in columns]
        pq.write_table(pa.table(columns), folder / COUNTS_FILE, row_group_size=1 << 20, **options)
        rows = {QUERIES_FILE: self.vocabulary.queries, DOCUMENTS_FILE: self.vocabulary.documents}
        for name in rows:
            shutil.copyfile(self.vocabulary.path / name, folder / name)
        write_metadata(
            folder,
            {
                "format": COUNTS_FORMAT,
                "schema": SCHEMA,
                "by": self.sufficient_statistics,
                "sessions": self.sessions,
                "weight": self.weight,
                "queries": self.vocabulary.queries,
                "documents": self.vocabulary.documents,
                "known": self.documents,
                "ranks": self.ranks,
                "features": list(self.vocabulary.feature_names),
                "max_grade": self.vocabulary.max_grade,
                "files": [file_record(folder / COUNTS_FILE, len(self))],
                "identity": self.identity,
                "vocabulary": {
                    "fingerprint": self.vocabulary.fingerprint,
                    "parent": self.vocabulary.parent,
                    "files": [file_record(folder / name, n) for name, n in rows.items()],
                    "named_by_place": self.vocabulary.named_by_place,
                },
            },
        )

    def _check(self, file: str | os.PathLike[str] | None) -> None:
        def reject(bad: np.ndarray, field: str, expected: str) -> None:
            if bad.any():
                row = int(bad.argmax())
                found = self._columns()[field][row]
                raise DataError(f"expected {expected}, found {found}", file=file, row=row + 1, field=field)

        for name, column in self._columns().items():
            values = number_array(column, name, file=None if file is None else os.fspath(file), objects=False)
            if values.shape != (len(self.document),):
                raise DataError(f"expected a number per cell, found {values.shape}", file=file, field=name)
            if name in ("document", "rank", "last_click") and values.dtype.kind not in "iu":
                raise DataError(f"expected whole numbers, found {values.dtype}", file=file, field=name)
        known = self.vocabulary.documents
        reject((self.document < 0) | (self.document > known), "document", f"document ids of 0 to {known}")
        reject((self.rank < 1) | (self.rank > self.ranks), "rank", f"ranks of 1 to {self.ranks}")
        reject(~(np.isfinite(self.impressions) & (self.impressions > 0)), "impressions", "a finite number above 0")
        reject(~((self.clicks >= 0) & (self.clicks <= self.impressions)), "clicks", "from 0 to the impressions")
        keys = [self.document, self.rank]
        if self.last_click is not None:
            above = (self.last_click >= 0) & (self.last_click < self.rank)
            reject(~above, "last_click", "0 or a rank above the document")
            keys.append(self.last_click)
        later = np.zeros(max(len(self) - 1, 0), bool)
        for key in reversed(keys):
            later = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & later)
        reject(np.append(False, ~later), "document", "cells sorted by document, rank and last click, each once")


def _plain(column: pa.ChunkedArray, file: Path, name: str) -> np.ndarray:
    if column.null_count:
        raise DataError("expected a value in every row, found null", file=file, field=name)
    values: np.ndarray = column.to_numpy()
    return values
