"""The queries and (query, document) pairs that the ids of a log or collection stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultr.data.storage import (
    DOCUMENTS_FILE,
    METADATA_FILE,
    PARQUET_OPTIONS,
    QUERIES_FILE,
    check_columns,
    check_records,
    describe,
    numbers,
    open_parquet,
    read_row_groups,
    type_name,
)
from ultr.errors import ConfigError, DataError


class Vocabulary:
    """Names, grades and features behind the ids; everything is read when first asked for.

    Query ids run from 0 to `queries - 1`. A document id stands for a (query, document) pair and runs from 1
    to `documents`; 0 is padding or a document that is not known.

    Attributes:
      queries, documents: how many there are.
      feature_names: names of the document features, F of them.
      fingerprint: hex digest of the names in their order; equal fingerprints mean equal ids.
      parent: `identity` of the vocabulary that this one extends, or None.
    """

    def __init__(
        self,
        *,
        queries: int,
        documents: int,
        feature_names: Sequence[str],
        fingerprint: str,
        parent: Mapping[str, Any] | None,
        columns: Mapping[str, Sequence[str]],
        read: Callable[[str, Sequence[str]], Iterator[pa.Table]],
        path: Path,
    ) -> None:
        self.queries, self.documents = queries, documents
        self.feature_names = tuple(feature_names)
        self.fingerprint, self.parent, self.path = fingerprint, parent, path
        self.has_labels = "label" in columns[DOCUMENTS_FILE]
        self.has_splits = "split" in columns[QUERIES_FILE]
        self.has_own = "own" in columns[QUERIES_FILE]
        self._read = read  # (file, columns) -> its pieces in order

    @classmethod
    def open(cls, path: Path, metadata: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary of a prepared folder, after checking that its files are there and whole.

        Raises:
          DataError: a file is missing, truncated or damaged, or a column is missing or mistyped.
        """
        record = metadata["vocabulary"]
        if not isinstance(record.get("fingerprint"), str):
            raise DataError(
                f"expected the vocabulary's fingerprint, found {record!r}",
                file=path / METADATA_FILE,
                field="vocabulary",
            )
        check_records(record.get("files", []), path / METADATA_FILE)
        known = {file["name"]: file for file in record.get("files", ())}
        rows = {QUERIES_FILE: metadata["queries"], DOCUMENTS_FILE: metadata["documents"]}
        footers = {name: open_parquet(path, known.get(name, {"name": name, "rows": n})) for name, n in rows.items()}
        schemas = {name: footer.schema.to_arrow_schema() for name, footer in footers.items()}
        optional = {
            QUERIES_FILE: {"split": "string", "own": "bool"},
            DOCUMENTS_FILE: {"label": "float", "features": f"list<float>[{len(metadata['features'])}]"},
        }
        for name, schema in schemas.items():
            expected = {"query": "string"} if name == QUERIES_FILE else {"query": "int32", "document": "string"}
            wanted = {n for n in optional[name] if n in schema.names}
            if name == DOCUMENTS_FILE and metadata["features"]:
                wanted.add("features")
            check_columns(schema, expected | {n: optional[name][n] for n in sorted(wanted)}, path / name)

        def read(file: str, columns: Sequence[str]) -> Iterator[pa.Table]:
            for group in range(footers[file].num_row_groups):
                yield read_row_groups(path / file, [group], columns, footer=footers[file])

        return cls(
            queries=metadata["queries"],
            documents=metadata["documents"],
            feature_names=metadata["features"],
            fingerprint=record["fingerprint"],
            parent=record.get("parent"),
            columns={name: schema.names for name, schema in schemas.items()},
            read=read,
            path=path,
        )

    @classmethod
    def from_tables(cls, queries: pa.Table, documents: pa.Table, *, features: Sequence[str] = ()) -> Vocabulary:
        """A vocabulary in memory, of tables with the columns of queries.parquet and documents.parquet."""
        tables = {QUERIES_FILE: queries, DOCUMENTS_FILE: documents}
        return cls(
            queries=len(queries),
            documents=len(documents),
            feature_names=features,
            fingerprint=fingerprint(queries["query"], documents),
            parent=None,
            columns={name: table.column_names for name, table in tables.items()},
            read=lambda file, columns: iter([tables[file].select(columns)]),
            path=Path("memory"),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What a model or a log that extends this one records: fingerprint, counts and parent."""
        return {
            "fingerprint": self.fingerprint,
            "documents": self.documents,
            "queries": self.queries,
            "parent": self.parent,
        }

    @cached_property
    def query_names(self) -> pa.ChunkedArray:
        """[Q] string; row i is query id i."""
        return self.table(QUERIES_FILE, ["query"])["query"]

    @cached_property
    def query_splits(self) -> pa.ChunkedArray | None:
        """[Q] name of each query's split (null: in none); None where queries have no splits."""
        return self.table(QUERIES_FILE, ["split"])["split"] if self.has_splits else None

    @cached_property
    def own_queries(self) -> np.ndarray | None:
        """[Q] whether the data of a collection holds each query, or only what it extends; None: it holds all."""
        return self.table(QUERIES_FILE, ["own"])["own"].to_numpy() if self.has_own else None

    @cached_property
    def document_names(self) -> pa.ChunkedArray:
        """[V] string; row i is document id i + 1."""
        return self.table(DOCUMENTS_FILE, ["document"])["document"]

    @cached_property
    def document_query(self) -> np.ndarray:
        """[V + 1] int32 query id of each document id; -1 for id 0."""
        out = np.full(self.documents + 1, -1, np.int32)
        for start, table in self._pieces(["query"]):
            column = _numpy(table["query"], self.path / DOCUMENTS_FILE, "query", start)
            self._reject((column < 0) | (column >= self.queries), start, "query", f"0 to {self.queries - 1}")
            out[start + 1 : start + 1 + len(column)] = column
        return out

    @cached_property
    def labels(self) -> np.ndarray | None:
        """[V + 1] float32 grades, NaN where not judged and for id 0; None where the data has no grades."""
        if not self.has_labels:
            return None
        out = np.full(self.documents + 1, np.nan, np.float32)
        for start, table in self._pieces(["label"]):
            column = table["label"].to_numpy()
            self._reject(np.isinf(column), start, "label", "finite grades or none")
            out[start + 1 : start + 1 + len(column)] = column
        return out

    @cached_property
    def features(self) -> np.ndarray | None:
        """[V + 1, F] float32 document features, zeros for id 0; None where the data has none."""
        if not self.feature_names:
            return None
        out = np.zeros((self.documents + 1, len(self.feature_names)), np.float32)
        for first, values in self.feature_blocks():
            out[first : first + len(values)] = values
        return out

    def feature_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The document features in blocks, for what must not hold all of them: (first document id, [n, F] float32)."""
        for start, table in self._pieces(["features"]):
            row = start
            for chunk in table["features"].chunks:
                values = fixed_lists(chunk, self.path / DOCUMENTS_FILE, row)
                self._reject(~np.isfinite(values).all(1), row, "features", "finite numbers")
                yield row + 1, values
                row += len(values)

    def table(self, file: str, columns: Sequence[str]) -> pa.Table:
        """Columns of queries.parquet or documents.parquet, whole."""
        pieces = list(self._read(file, columns))
        width = max(len(self.feature_names), 1)
        kinds = {"split": pa.string(), "label": pa.float32(), "features": pa.list_(pa.float32(), width)}
        kinds |= {"own": pa.bool_()}
        kinds |= {"document": pa.string(), "query": pa.int32() if file == DOCUMENTS_FILE else pa.string()}
        return pa.concat_tables(pieces) if pieces else pa.table({n: pa.array([], kinds[n]) for n in columns})

    def tables(self) -> tuple[pa.ChunkedArray, pa.Table]:
        """(queries, documents) as `LogWriter` takes them, so that a new log has the same ids."""
        columns = ["query", "document", *(["label"] if self.has_labels else [])]
        columns += ["features"] if self.feature_names else []
        return self.query_names, self.table(DOCUMENTS_FILE, columns)

    def _pieces(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        start = 0
        for table in self._read(DOCUMENTS_FILE, columns):
            yield start, table
            start += len(table)

    def _reject(self, bad: np.ndarray, start: int, field: str, expected: str) -> None:
        if bad.any():
            raise DataError(
                f"expected {expected}; {int(bad.sum())} rows differ",
                file=self.path / DOCUMENTS_FILE,
                row=start + int(bad.argmax()) + 1,
                field=field,
            )


def known_documents(own: Vocabulary, other: Any, *, file: Path) -> int:
    """How many of `own`'s documents the other vocabulary knows: those with ids of 1 to that number.

    Args:
      other: a Vocabulary, something with a `vocabulary` (a ClickLog, a Collection), or an `identity`.

    Raises:
      DataError: neither extends the other, so that their ids mean different documents.
    """
    theirs, ours = _lineage(identity_of(other)), _lineage(own.identity)
    if (known := ours.get(next(iter(theirs)))) is None:
        known = theirs.get(own.fingerprint)
    if known is None:
        raise DataError(
            f"prepared with other document ids ({own.fingerprint[:12]}) than those of the training data "
            f"({next(iter(theirs))[:12]})",
            fix="Prepare it against the training data: `ultr prepare ... --vocabulary TRAINING_LOG`.",
            file=file,
            field="vocabulary",
        )
    return known


def _lineage(identity: Mapping[str, Any]) -> dict[str, int]:
    """Fingerprint -> documents of a vocabulary and of everything that it extends, itself first."""
    out: dict[str, int] = {}
    link: Mapping[str, Any] | None = identity
    while link is not None:
        out[str(link["fingerprint"])] = int(link["documents"])
        link = link.get("parent")
    return out


def identity_of(source: Any) -> Mapping[str, Any]:
    """The `identity` of a Vocabulary, of anything that has one, or of an identity itself.

    Raises:
      ConfigError: it has none.
    """
    identity = getattr(getattr(source, "vocabulary", source), "identity", source)
    if not isinstance(identity, Mapping) or not {"fingerprint", "documents"} <= set(identity):
        raise ConfigError(
            f"expected an opened ClickLog or Collection, or the identity of a vocabulary, found {source!r}"
        )
    return identity


def fingerprint(queries: pa.Array | pa.ChunkedArray, documents: pa.Table) -> str:
    """Hex SHA-256 of the query names and the (query, document) pairs, in order, whatever the chunking."""
    total = hashlib.sha256()
    for column in (queries, documents["document"]):
        lengths, data = hashlib.sha256(), hashlib.sha256()
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            if len(chunk):
                text = chunk.cast(pa.large_string())
                _, offsets, values = text.buffers()
                edges = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
                lengths.update(np.diff(edges).astype("<i8").tobytes())
                if values is not None:
                    data.update(memoryview(values)[edges[0] : edges[-1]])
        total.update(lengths.digest() + data.digest())
    ids = hashlib.sha256()
    for chunk in documents["query"].chunks:
        ids.update(chunk.to_numpy().astype("<i4").tobytes())
    total.update(ids.digest())
    return total.hexdigest()


def write_vocabulary(
    folder: Path,
    *,
    queries: pa.Array | pa.ChunkedArray,
    documents: pa.Table,
    features: Sequence[str] = (),
    splits: pa.Array | pa.ChunkedArray | None = None,
    own: np.ndarray | None = None,
    parent: Any = None,
) -> dict[str, Any]:
    """Checks and writes queries.parquet and documents.parquet; returns the metadata fields about them.

    Args:
      queries: [Q] string names.
      documents: columns query (int32), document (string), optionally label (float32, null where not judged)
        and features (fixed-size lists of F float32).
      features: F names.
      splits: [Q] string, the split of each query (null: in none), or None.
      own: [Q] bool, the queries of the data itself; None: all.
      parent: the vocabulary that this one extends, as for `known_documents`; None when it stands alone.

    Raises:
      DataError: a column is missing or mistyped, or a value out of range; names the 1-based row.
    """
    queries = _strings(queries, "queries", "query")
    expected = {"query": pa.int32(), "document": pa.string()}
    if "label" in documents.column_names:
        expected["label"] = pa.float32()
    if features or "features" in documents.column_names:
        expected["features"] = pa.list_(pa.float32(), len(features))
    columns: dict[str, Any] = {}
    for name, kind in expected.items():
        if name not in documents.column_names:
            raise DataError(
                f"expected a column of type {type_name(kind)}, found the columns {documents.column_names}",
                file="documents",
                field=name,
            )
        try:
            columns[name] = documents[name] if documents[name].type == kind else documents[name].cast(kind)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"expected {type_name(kind)}, found {type_name(documents[name].type)}",
                file="documents",
                field=name,
            ) from error
        if name != "label" and columns[name].null_count:
            raise DataError("expected a value in every row, found nulls", file="documents", field=name)
    extra = set(documents.column_names) - set(expected)
    if extra:
        raise DataError(f"expected the columns {list(expected)}, found {sorted(extra)} too", file="documents")
    documents = pa.table(columns)
    _check_documents(documents, len(queries))
    file = folder / QUERIES_FILE
    described = {"split": splits, "own": None if own is None else pa.array(own)}
    rows = pa.table({"query": queries} | {name: column for name, column in described.items() if column is not None})
    pq.write_table(rows, file, **PARQUET_OPTIONS)
    group = 1 << 20 if "features" not in columns else max((1 << 24) // max(len(features), 1), 1024)
    pq.write_table(documents, folder / DOCUMENTS_FILE, row_group_size=group, **_document_options(documents))
    return {
        "queries": len(queries),
        "documents": len(documents),
        "features": list(features),
        "vocabulary": {
            "fingerprint": fingerprint(queries, documents),
            "parent": None if parent is None else dict(identity_of(parent)),
            "files": [describe(file, len(queries)), describe(folder / DOCUMENTS_FILE, len(documents))],
        },
    }


def _document_options(documents: pa.Table) -> dict[str, Any]:
    # Names and features hardly repeat: a dictionary would only be built and thrown away.
    return PARQUET_OPTIONS | {"use_dictionary": [n for n in ("query", "label") if n in documents.column_names]}


def _check_documents(documents: pa.Table, queries: int) -> None:
    def reject(bad: np.ndarray, start: int, field: str, expected: str) -> None:
        if bad.any():
            row = start + int(bad.argmax()) + 1
            raise DataError(f"expected {expected}", file="documents", row=row, field=field)

    start = 0
    for batch in documents.to_batches():
        ids = batch["query"].to_numpy()
        reject((ids < 0) | (ids >= queries), start, "query", f"query ids of 0 to {queries - 1}")
        if "label" in documents.column_names:
            label = batch["label"].to_numpy(zero_copy_only=False)
            given = batch["label"].is_valid().to_numpy(zero_copy_only=False)
            reject(given & ~np.isfinite(label), start, "label", "finite grades, or null where not judged")
        if "features" in documents.column_names:
            values = fixed_lists(batch["features"], Path("documents"), start)
            reject(~np.isfinite(values).all(1), start, "features", "finite numbers")
        start += len(batch)


def fixed_lists(chunk: pa.FixedSizeListArray, file: Path, start: int) -> np.ndarray:
    """[n, F] values of a fixed-size list array without a copy."""
    values = chunk.flatten()
    if chunk.null_count or values.null_count:
        row = start + int(pc.index(chunk.is_null(), True).as_py()) + 1 if chunk.null_count else None
        raise DataError("expected finite numbers, found nulls", file=file, row=row, field="features")
    return numbers(values).reshape(len(chunk), chunk.type.list_size)


def _strings(names: pa.Array | pa.ChunkedArray, file: str, field: str) -> pa.Array | pa.ChunkedArray:
    if type_name(names.type) != "string":
        raise DataError(f"expected strings, found {names.type}", file=file, field=field)
    if names.null_count:
        raise DataError("expected a name in every row, found nulls", file=file, field=field)
    return names


def _numpy(column: pa.ChunkedArray, file: Path, field: str, start: int) -> np.ndarray:
    if column.null_count:
        row = start + int(pc.index(column.is_null(), True).as_py()) + 1
        raise DataError("expected a value in every row, found null", file=file, row=row, field=field)
    return column.to_numpy()
