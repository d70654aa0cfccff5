"""Row groups of the session files of a click log: where they are, their columns, and a cache of their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultr.data.batching import PaddedRows
from ultr.data.columns import SessionColumns
from ultr.data.storage import METADATA_FILE, check_columns, open_parquet
from ultr.errors import DataError

WholeLists = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RowGroup:
    """A row group: where it is, which rows of its file and of the log it holds."""

    file: Path
    footer: pq.FileMetaData
    index: int
    file_row: int
    row: int
    rows: int


def open_row_groups(folder: Path, metadata: Mapping[str, Any]) -> list[RowGroup]:
    """Finds the row groups of the session files that the metadata records, in order.

    Raises:
      DataError: a file is missing or damaged, or there are more or fewer sessions than the metadata says, or none.
    """
    groups: list[RowGroup] = []
    row = 0
    for record in metadata["files"]:
        footer = open_parquet(folder, record)
        file_row = 0
        for index in range(footer.num_row_groups):
            rows = footer.row_group(index).num_rows
            groups.append(RowGroup(folder / record["name"], footer, index, file_row, row, rows))
            file_row += rows
            row += rows
    if row != metadata["sessions"] or not row:
        raise DataError(
            f"expected {metadata['sessions']:,} sessions (at least one) in the files, found {row:,}",
            fix="Prepare the data again.",
            file=folder / METADATA_FILE,
            field="sessions",
        )
    return groups


class RowGroupCache:
    """Keeps the padded rows of row groups, up to so many bytes in all."""

    def __init__(self, size: int) -> None:
        self.parts: dict[int, list[tuple[int, PaddedRows]]] = {}  # by the first row of the group
        self.used = 0  # bytes
        self._size = size
        self._lock = threading.Lock()

    def add(self, row: int, parts: list[tuple[int, PaddedRows]]) -> None:
        """Adds the rows of the group that begins at a row of the log, by width, where there is room for them."""
        size = sum(x.nbytes for _, rows in parts for x in rows.values())
        with self._lock:
            if self.used + size <= self._size:
                self.parts[row] = parts
                self.used += size


def session_columns(path: Path, metadata: Mapping[str, Any], groups: Sequence[RowGroup]) -> SessionColumns:
    """Finds which columns the session files hold, and checks that every file holds them.

    Raises:
      DataError: columns or types differ from what the metadata says.
    """
    files = {group.file: group.footer.schema.to_arrow_schema() for group in groups}
    first = next(iter(files.values()))
    layout = SessionColumns(
        queries=metadata["queries"],
        documents=metadata["documents"],
        ranks=metadata["ranks"],
        impression_features=tuple(metadata["impression_features"]),
        context=metadata["context"],
        optional=frozenset({"time", "split", "weight"} & set(first.names)),
    )
    layout.check_context(path / METADATA_FILE)
    for file, schema in files.items():
        check_columns(schema, layout.types, file)
    return layout


def whole_lists(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes mask and position [rows, width] of lists that are shown whole; read-only, as batches share them."""
    mask = np.ones((rows, width), bool)
    position = np.tile(np.arange(width, dtype=np.int32), (rows, 1))
    mask.flags.writeable = position.flags.writeable = False
    return mask, position


def without_unseen(batch: pa.RecordBatch, documents: int) -> pa.RecordBatch:
    """Replaces document ids beyond `documents` by 0."""
    column = batch["documents"]
    ids = column.flatten().to_numpy()
    ids = np.where(ids > documents, np.int32(0), ids)
    offsets = column.offsets.to_numpy()
    return batch.set_column(
        batch.schema.get_field_index("documents"),
        "documents",
        pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), pa.array(ids, pa.int32())),
    )
