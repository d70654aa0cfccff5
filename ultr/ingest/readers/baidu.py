"""Reads Baidu-ULTR as published by the University of Amsterdam: clicks, grades and query-document embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import file_start
from ultr.ingest.readers.base import ColumnRequest, DocumentFeatures, RawRows, missing_columns
from ultr.ingest.sources import check_once, is_parquet, parquet_schema

EMBEDDING = "query_document_embedding"
LIST_NUMBER = "query_no"  # numbers the lists in files with one document per row
# Our names -> those in the files, of which the first that a file has is taken.
NAMES = {
    "query": ("query_md5", "query_id"),
    "document": ("url_md5", "text_md5"),
    "rank": ("position",),
    "click": ("click",),
    "label": ("label",),
}
BATCH_ROWS = 4096


@dataclass(frozen=True)
class _File:
    path: Path
    schema: pa.Schema
    number: int

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            if is_parquet(self.path):
                with pq.ParquetFile(self.path) as source:
                    yield from source.iter_batches(BATCH_ROWS, columns=list(columns))
                return
            with pa.memory_map(str(self.path)) as stream, pa.ipc.open_file(stream) as source:
                for index in range(source.num_record_batches):
                    batch = source.get_batch(index).select(list(columns))
                    batch.validate(full=True)  # the format has no checksums
                    for start in range(0, len(batch), BATCH_ROWS):
                        yield batch.slice(start, BATCH_ROWS)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            text = " ".join(str(error).split())
            raise DataError(f"the file cannot be read: {text}", fix="Copy it again.", file=self.path) from error

    def check(self, names: dict[str, str]) -> None:
        """Checks that the file has the columns, each with one value per list or per document as it should be.

        Raises:
          DataError: names the column.
        """
        lists = names["document"] in self.schema.names and self.listed(names["document"])
        wanted = names if lists else names | {"": LIST_NUMBER}
        if missing := {ours: theirs for ours, theirs in wanted.items() if theirs not in self.schema.names}:
            raise missing_columns(self.path, missing, self.schema.names)
        for ours, theirs in wanted.items():
            per_list = ours in ("session", "query", "time") or ours.startswith("context.")
            if self.listed(theirs) != (lists and not per_list):
                found = self.schema.field(theirs).type
                what = "one value per list" if per_list else "one value per document, as in the document column"
                raise DataError(f"expected {what}, found {found}", file=self.path, field=theirs)
        if EMBEDDING in self.schema.names and _depth(self.schema.field(EMBEDDING).type)[0] != 1 + lists:
            what = "a list of numbers per document" + (", in a list per row" if lists else "")
            raise DataError(
                f"expected {what}, found {self.schema.field(EMBEDDING).type}", file=self.path, field=EMBEDDING
            )

    def listed(self, name: str) -> bool:
        """Tells whether a column holds a list per row rather than one value."""
        return _is_list(self.schema.field(name).type)


def read_baidu(engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows:
    """Reads Baidu-ULTR (UvA) files, as Parquet or as the published Feather parts.

    A row is either a list, with list columns (url_md5, position, click, ...), or a document, where query_no changes
    with each new list. The query is query_md5, the rank position, the document url_md5, or text_md5 where there is no
    url, as in the annotations: map `document` to it to join clicks and annotations. Files with `label` instead of
    `click` are annotations, which give graded documents. query_document_embedding becomes the document features;
    other number columns (bm25, media_type, serp_height, ...) can be asked for as features, columns with one value per
    list as context.
    """
    opened = [_File(path, _schema(path), number) for number, path in enumerate(files)]
    first = opened[0]
    names = {
        ours: request.columns.get(ours) or next((n for n in known if n in first.schema.names), known[0])
        for ours, known in NAMES.items()
    }
    annotated = "click" not in request.columns and names["click"] not in first.schema.names
    for absent in ("click", "rank") if annotated else ("label",):
        names.pop(absent)
    names |= {ours: request.columns[ours] for ours in ("session", "time") if ours in request.columns}
    names |= request.extra
    for file in opened:
        file.check(names)
    schema = _flat_schema(first, names)
    read = _ReadCounts()
    table = engine.load("raw", _flat(opened, names, schema, read), schema)
    if "session" not in names:
        table = table.mutate(session=table["list"])
    dropped = {"empty_lists": read.empty}
    return RawRows(
        parts=[table],
        files=files,
        read=read.rows,
        dropped=dropped,
        slow=False,
        graded=annotated,
        features=_embeddings(opened, names["document"]),
    )


@dataclass
class _ReadCounts:
    rows: int = 0
    empty: int = 0
    lists: int = 0


def _schema(path: Path) -> pa.Schema:
    """Reads the schema of a file, whose columns have each a name of its own.

    Raises:
      DataError: neither Parquet nor Feather, a column twice, or embeddings that are no lists of numbers.
    """
    if is_parquet(path):
        schema = parquet_schema(path)
    else:
        try:
            with pa.memory_map(str(path)) as stream, pa.ipc.open_file(stream) as source:
                schema = source.schema
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"expected Parquet or Feather, found a file that is neither or is cut off ({error})", file=path
            ) from error
    check_once(schema.names, path)
    if EMBEDDING in schema.names:
        depth, kind = _depth(schema.field(EMBEDDING).type)
        if not depth or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(
                f"expected a list of numbers per document, found {schema.field(EMBEDDING).type}",
                file=path,
                field=EMBEDDING,
            )
    return schema


def _flat_schema(file: _File, names: dict[str, str]) -> pa.Schema:
    fields = [("at", pa.int64()), ("list", pa.int64()), ("slot", pa.int64())]
    for ours, theirs in names.items():
        kind = file.schema.field(theirs).type
        fields.append((ours, kind.value_type if file.listed(theirs) else kind))
    return pa.schema(fields)


def _flat(files: list[_File], names: dict[str, str], schema: pa.Schema, read: _ReadCounts) -> Iterator[pa.RecordBatch]:
    """Yields one row per document; `slot` is the position of the document among those of all files."""
    for file in files:
        base = file_start(file.number)
        row = slot = 0
        last: object = None
        lists = file.listed(names["document"])
        columns = list(dict.fromkeys(names.values())) + ([] if lists else [LIST_NUMBER])
        for batch in file.batches(columns):
            if lists:
                offsets = _offsets(file, batch, names["document"], row)
                lengths = np.diff(offsets)
                parent = np.repeat(np.arange(len(batch)), lengths)
                number = parent + read.lists
                at = base + 1 + row + parent
                read.lists += len(batch)
                read.empty += int((lengths == 0).sum())
            else:
                parent = np.arange(len(batch))
                key = batch[LIST_NUMBER].to_numpy(zero_copy_only=False)
                new = np.concatenate([[not len(key) or key[0] != last], key[1:] != key[:-1]])
                number = read.lists + np.cumsum(new) - 1 if len(key) else parent
                at = base + 1 + row + parent
                if len(key):
                    read.lists, last = int(number[-1]), key[-1]
            values: list[pa.Array] = [pa.array(x) for x in (at, number, base + slot + np.arange(len(at)))]
            for ours, theirs in names.items():
                column = batch[theirs]
                if file.listed(theirs):
                    if not np.array_equal(_offsets(file, batch, theirs, row), offsets):
                        found = np.diff(_offsets(file, batch, theirs, row))
                        bad = int((found != lengths).argmax())
                        raise DataError(
                            f"expected {lengths[bad]} values as in '{names['document']}', found {found[bad]}",
                            file=file.path,
                            row=row + bad + 1,
                            field=theirs,
                        )
                    column = column.flatten()
                elif lists:
                    column = column.take(pa.array(parent))
                values.append(_cast(file, column, schema.field(ours).type, theirs))
            yield pa.record_batch(values, schema=schema)
            row += len(batch)
            slot += len(at)
        read.rows += row
        read.lists += not lists and row > 0


def _cast(file: _File, column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return column if column.type == kind else column.cast(kind)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"expected {kind} as in the first file, found {column.type}", file=file.path, field=name
        ) from error


def _offsets(file: _File, batch: pa.RecordBatch, name: str, row: int) -> np.ndarray:
    column = batch[name]
    if column.null_count:
        bad = pc.index(column.is_null(), True).as_py()
        raise DataError("expected a list, found null", file=file.path, row=row + bad + 1, field=name)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)])


def _depth(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """Tells how many lists of lists a type is, and the type of the innermost values."""
    if isinstance(kind, pa.BaseExtensionType):  # such as a fixed-shape tensor
        kind = kind.storage_type
    depth = 0
    while _is_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth, kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _embeddings(files: list[_File], document: str) -> DocumentFeatures | None:
    having = [EMBEDDING in file.schema.names for file in files]
    if not any(having):
        return None
    if not all(having):
        bad = files[having.index(False)]
        raise missing_columns(bad.path, {"": EMBEDDING}, bad.schema.names)
    width = next((len(matrix[0]) for file in files for _, matrix in _matrices(file, document, None) if len(matrix)), 0)

    def fill(slots: np.ndarray, targets: np.ndarray, out: np.ndarray) -> None:
        for file in files:
            start = file_start(file.number)
            for row, matrix in _matrices(file, document, width):
                low, high = np.searchsorted(slots, [start, start + len(matrix)])
                chosen = matrix[slots[low:high] - start]
                bad = ~np.isfinite(chosen).all(1)
                if bad.any():
                    raise DataError(
                        "expected finite numbers, found others",
                        fix="Leave such documents out, or repair them.",
                        file=file.path,
                        row=row(int(slots[low + int(bad.argmax())]) - start),
                        field=EMBEDDING,
                    )
                out[targets[low:high]] = chosen
                start += len(matrix)

    return DocumentFeatures([f"embedding_{i}" for i in range(width)], fill)


def _matrices(file: _File, document: str, width: int | None) -> Iterator[tuple[Callable[[int], int], np.ndarray]]:
    """Yields the embeddings [n, F] of the documents of each batch, and a function from a document to its row."""
    start = 0
    lists = file.listed(document)
    for batch in file.batches([EMBEDDING, document] if lists else [EMBEDDING]):
        column = batch[EMBEDDING]
        if isinstance(column, pa.ExtensionArray):  # such as a fixed-shape tensor
            column = column.storage
        ends = np.arange(1, len(column) + 1)
        if lists:
            ends = _offsets(file, batch, EMBEDDING, start)[1:]
            shown = _offsets(file, batch, document, start)[1:]
            if (ends != shown).any():
                bad = int((ends != shown).argmax())
                lengths = [int(np.diff(x, prepend=0)[bad]) for x in (shown, ends)]
                raise DataError(
                    f"expected {lengths[0]} embeddings as there are documents, found {lengths[1]}",
                    file=file.path,
                    row=start + bad + 1,
                    field=EMBEDDING,
                )
            column = column.flatten()

        def row(index: int, ends: np.ndarray = ends, start: int = start) -> int:
            return start + int(np.searchsorted(ends, index, side="right")) + 1

        if column.null_count:
            bad = pc.index(column.is_null(), True).as_py()
            raise DataError("expected a list of numbers, found null", file=file.path, row=row(bad), field=EMBEDDING)
        sizes = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        expected = width or (int(sizes[0]) if len(sizes) else 0)
        if (sizes != expected).any():
            bad = int((sizes != expected).argmax())
            raise DataError(
                f"expected {expected} numbers per document, found {sizes[bad]}",
                file=file.path,
                row=row(bad),
                field=EMBEDDING,
            )
        flat = column.flatten()
        if flat.null_count:
            bad = pc.index(flat.is_null(), True).as_py() // max(expected, 1)
            raise DataError("expected numbers, found null", file=file.path, row=row(bad), field=EMBEDDING)
        yield row, flat.to_numpy(zero_copy_only=False).reshape(-1, expected).astype(np.float32)
        start += len(batch)
