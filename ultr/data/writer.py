"""`LogWriter`: writes a click log folder, whole or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultr import stopping
from ultr.data.columns import CONTEXT, FEATURE, SessionColumns, cast_column, check_rows, unpack_columns
from ultr.data.storage import CONSECUTIVE, LOG_FORMAT, SCHEMA, file_record, new_data_folder, write_metadata
from ultr.data.vocabulary import VocabularyLike
from ultr.data.vocabulary_writing import write_vocabulary
from ultr.errors import DataError

GROUP_ROWS = 1 << 16  # sessions per row group, the unit of reading,
GROUP_VALUES = 1 << 24  # or fewer where these hold more numbers than this
FILE_GROUPS = 64  # row groups per file


class LogWriter:
    """Writes tables of sessions to a `ClickLog` folder, whole or not at all; a context manager.

        with LogWriter(path, queries=queries, documents=documents) as writer:
            writer.write(table)
            writer.report = {"rows": 1000}

    A table has one row per session: session (string or int64), query (int32), documents (list of int32 ids), ranks
    (list of 1-based int32, strictly increasing, at most 1,000), clicks (list of int8, 0 or 1), and, in every table or
    in none: time (float64 or int64), split (string), weight (float32), `context.<name>`, `feature.<name>`. Other number
    types are converted where that loses nothing.

    Args:
      path: the folder to make.
      queries: [Q] string names; row i is query id i.
      documents: columns query (int32 id), document (string), optionally label (float32, null: not judged) and
        features (fixed-size lists of F float32); row i is document id i + 1.
      features: the F names of the document features.
      impression_features: names of the `feature.<name>` columns in the order in which batches have them; None takes
        the order of the first table.
      context: name of each `context.<name>` column -> {"kind": "category", "values": [...]} (int32, index
        from 1, 0 for unknown) or {"kind": "number"} (float32).
      parent: the ClickLog, Collection or vocabulary identity whose ids this log extends, or None.
      splits: names of splits that the metadata lists even where no session is in them; others are added as they come.
      report, truth: JSON values for the metadata; both attributes may be set until the block ends.
      max_grade: the highest grade of the scale of the labels; None: that of the parent, or the highest label where that
        is higher.
      named_by_place: whether documents without a name have that of their place in their query; those of a parent may.
      overwrite: whether a click log or collection that stands at `path` may be replaced.
      group_rows: most sessions per row group.
      group_values: most numbers per row group, beyond 256 sessions.
      file_groups: row groups per file.

    Raises:
      DataError: something stands at `path`; names or features are unusable; on `write`, a column or value is;
        at the end, nothing was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        queries: pa.Array | pa.ChunkedArray,
        documents: pa.Table,
        features: Sequence[str] = (),
        impression_features: Sequence[str] | None = None,
        context: Mapping[str, Mapping[str, Any]] | None = None,
        parent: VocabularyLike | None = None,
        splits: Sequence[str] = (),
        report: Mapping[str, Any] | None = None,
        truth: Mapping[str, Any] | None = None,
        max_grade: float | None = None,
        named_by_place: bool = False,
        overwrite: bool = False,
        group_rows: int = GROUP_ROWS,
        group_values: int = GROUP_VALUES,
        file_groups: int = FILE_GROUPS,
    ) -> None:
        self.path = Path(path)
        self.report: Mapping[str, Any] = report or {}
        self.truth = truth
        self._impression_features = impression_features
        self._context = dict(context or {})
        self._vocabulary = {
            "queries": queries, "documents": documents, "features": tuple(features), "parent": parent,
            "max_grade": max_grade, "named_by_place": named_by_place,
        }  # fmt: skip
        self._stage: AbstractContextManager[Path] = new_data_folder(self.path, overwrite=overwrite)
        self._most_rows, self._most_values, self._file_groups = group_rows, group_values, file_groups
        self._folder: Path | None = None
        self._columns: SessionColumns | None = None
        self._schema: pa.Schema | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._files: list[dict[str, Any]] = []
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._file_rows = self._group_rows = 0
        self._lengths: Counter[int] = Counter()
        self._splits: Counter[str] = Counter(dict.fromkeys(splits, 0))
        self._consecutive = True
        self._sessions = self._clicks = self._impressions = self._ranks = 0

    def __enter__(self) -> LogWriter:
        self._folder = self._stage.__enter__()
        try:
            self._described = write_vocabulary(self._folder, **self._vocabulary)
        except BaseException as error:
            self._stage.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    @property
    def splits(self) -> dict[str, int]:
        """Numbers of sessions written so far, by the name of their split."""
        return dict(self._splits)

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Appends the sessions of a table, in its order.

        Raises:
          DataError: a column is missing, unexpected or mistyped, lists of a row differ in length, or a value
            is out of range; rows are counted from the first one written.
        """
        stopping.check()
        if self._folder is None:
            raise RuntimeError("LogWriter.write outside its `with` block")
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if self._columns is None or self._schema is None:
            self._columns = self._columns_of_first(table.column_names)
            self._schema = _schema(self._columns, table)
        if set(table.column_names) != set(self._schema.names):
            missing = sorted(set(self._schema.names) - set(table.column_names))
            extra = sorted(set(table.column_names) - set(self._schema.names))
            raise DataError(
                f"expected the columns {self._schema.names}; missing: {missing}, unexpected: {extra}",
                fix="Context columns are declared with context=, and every table has the same columns.",
                file=self.path,
            )
        columns = [cast_column(table[kind.name], kind.type, file=self.path, name=kind.name) for kind in self._schema]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        for begin in range(0, len(table), self._most_rows):
            self._count(table.slice(begin, self._most_rows))
        if self._sessions and not self._group_rows:
            values = self._columns.values_per_session(self._impressions / self._sessions)
            self._group_rows = int(min(max(self._most_values // values, 256), self._most_rows))
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._group_rows and self._waiting_rows >= self._group_rows:
            self._flush(self._waiting_rows // self._group_rows * self._group_rows)

    def _columns_of_first(self, names: Sequence[str]) -> SessionColumns:
        if self._impression_features is None:
            found = [n.removeprefix(FEATURE) for n in names if n.startswith(FEATURE)]
        else:
            found = list(self._impression_features)
        columns = SessionColumns(
            queries=self._described["queries"],
            documents=self._described["documents"],
            impression_features=tuple(found),
            context=self._context,
            optional=frozenset({"time", "split", "weight"} & set(names)),
        )
        columns.check_context(self.path)
        return columns

    def _count(self, table: pa.Table) -> None:
        assert self._columns is not None
        columns = {name: table[name] for name in table.column_names}
        for name in ("session", "split"):
            if name in columns and columns.pop(name).null_count:
                raise DataError("expected a value in every row, found null", file=self.path, field=name)
        rows = unpack_columns(columns, file=self.path, start=self._sessions)
        check_rows(rows, self._columns, file=self.path, start=self._sessions)
        if not len(rows):
            return
        sizes, counts = np.unique(rows.lengths, return_counts=True)
        self._lengths.update(dict(zip(sizes.tolist(), counts.tolist(), strict=True)))
        if "split" in table.column_names:
            for entry in pc.value_counts(table["split"]).to_pylist():
                self._splits[entry["values"]] += entry["counts"]
        self._sessions += len(rows)
        self._impressions += len(rows.lists["clicks"])
        self._clicks += int(rows.lists["clicks"].sum(dtype=np.int64))
        # Ranks increase strictly from at least 1: they have no gap where the last one is the length of the list.
        last = rows.lists["ranks"][rows.offsets[1:] - 1]
        self._ranks = max(self._ranks, int(last.max()))
        self._consecutive = self._consecutive and np.array_equal(last, rows.lengths)

    def _flush(self, rows: int) -> None:
        assert self._folder is not None
        assert self._schema is not None
        table = pa.concat_tables(self._waiting)
        now, rest = table.slice(0, rows), table.slice(rows)
        self._waiting, self._waiting_rows = [rest], len(rest)
        while len(now):
            if self._parquet is None:
                name = f"sessions-{len(self._files):05d}.parquet"
                self._files.append({"name": name, "rows": 0})
                self._parquet = pq.ParquetWriter(self._folder / name, self._schema, **_options(self._schema))
                self._file_rows = 0
            room = self._file_groups * self._group_rows - self._file_rows
            part = now.slice(0, room)
            self._parquet.write_table(part, row_group_size=self._group_rows)
            self._file_rows += len(part)
            now = now.slice(room)
            if len(part) == room:
                self._close_file()

    def _close_file(self) -> None:
        assert self._folder is not None
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
            self._files[-1] = file_record(self._folder / self._files[-1]["name"], self._file_rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            if kind is None:
                self._folder = folder
                self._finish()
        except BaseException as late:
            kind, error, trace = type(late), late, late.__traceback__
            raise
        finally:
            self._folder = None
            if self._parquet is not None:
                self._parquet.close()
                self._parquet = None
            self._stage.__exit__(kind, error, trace)

    def _finish(self) -> None:
        assert self._folder is not None
        if self._columns is None or not self._sessions:
            raise DataError("expected at least one session, found none", fix="Nothing was written.", file=self.path)
        self._flush(self._waiting_rows)
        self._close_file()
        if self._consecutive:
            self._files = [record | {"ranks": CONSECUTIVE} for record in self._files]
        sizes = sorted(self._lengths)
        write_metadata(
            self._folder,
            {
                "format": LOG_FORMAT,
                "schema": SCHEMA,
                "sessions": self._sessions,
                "queries": self._described["queries"],
                "documents": self._described["documents"],
                "ranks": self._ranks,
                "lengths": {str(n): self._lengths[n] for n in sizes},
                "clicks": self._clicks,
                "impressions": self._impressions,
                "files": self._files,
                "features": self._described["features"],
                "impression_features": list(self._columns.impression_features),
                "context": {name: dict(about) for name, about in self._context.items()},
                "max_grade": self._described["max_grade"],
                "splits": dict(self._splits),
                "vocabulary": self._described["vocabulary"],
                "report": dict(self.report),
                "truth": self.truth,
            },
        )


def _schema(columns: SessionColumns, table: pa.Table) -> pa.Schema:
    exact = {"int32": pa.int32(), "float": pa.float32(), "string": pa.string()}
    fields = []
    for name, kinds in columns.types.items():
        if kinds.startswith("list<"):
            value = {"int32": pa.int32(), "int8": pa.int8(), "float": pa.float32()}[kinds[5:-1]]
            kind: pa.DataType = pa.list_(pa.field("element", value, nullable=False))
        elif name == "session":
            found = table.schema.field(name).type if name in table.column_names else pa.string()
            kind = pa.int64() if pa.types.is_integer(found) else pa.string()
        elif name == "time":
            kind = pa.int64() if pa.types.is_integer(table.schema.field(name).type) else pa.float64()
        else:
            kind = exact[kinds]
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields)


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Chooses the encoding of each column: fast to read for those that batches are made of, small for the others."""
    # Measured on lists of 10: byte-stream-split ids and delta-packed ranks decode faster than dictionaries do, and
    # compress better.
    split_bytes, deltas = "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"
    encodings = {"query": split_bytes, "documents": split_bytes, "ranks": deltas, "clicks": deltas}
    encodings |= {name: split_bytes for name in schema.names if name == "weight" or name.startswith(FEATURE)}
    paths = {kind.name: kind.name + ".list.element" * pa.types.is_list(kind.type) for kind in schema}
    unread = ("session", "time", "split")
    return {
        "write_page_checksum": True,
        "use_dictionary": [name for name in schema.names if name == "split" or name.startswith(CONTEXT)],
        "column_encoding": {paths[name]: encoding for name, encoding in encodings.items() if name in paths},
        "compression": {path: "zstd" if name in unread else "lz4" for name, path in paths.items()},
    }
