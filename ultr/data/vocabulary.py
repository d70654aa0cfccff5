"""Vocabularies: the queries and (query, document) pairs that the ids of a log or collection stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.storage import (
    DOCUMENTS_FILE,
    METADATA_FILE,
    NAMED_BY_PLACE,
    QUERIES_FILE,
    as_numpy,
    check_columns,
    open_parquet,
    read_row_groups,
)
from ultr.errors import ConfigError, DataError


class Vocabulary:
    """Names, grades and features behind the ids of a log or collection; all are read on first use.

    Query ids run from 0 to `queries - 1`. A document id stands for a (query, document) pair and runs from 1
    to `documents`; 0 is padding or an unknown document.

    Attributes:
      queries, documents: numbers of query ids (Q) and document ids (V).
      feature_names: the F names of the document features.
      fingerprint: hex digest of the names in their order, and of the features where documents are named by place; equal
        fingerprints mean equal ids.
      parent: `identity` of the vocabulary that this one extends, or None.
      path: the folder; "memory" for a vocabulary in memory.
      named_by_place: whether documents without a name have that of their place in their query, which another document
        may have in other data.
      max_grade: the highest grade of the scale, whatever grades are there; None where there are no grades, or in
        folders that do not tell it.
      has_labels, has_splits, has_own: whether documents have grades, queries have splits, and queries are marked as
        belonging to the data or only to the vocabulary that it extends.
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
        max_grade: float | None = None,
        named_by_place: bool = False,
    ) -> None:
        self.queries, self.documents = queries, documents
        self.feature_names = tuple(feature_names)
        self.fingerprint, self.parent, self.path = fingerprint, parent, path
        self.max_grade = max_grade
        self.has_labels = "label" in columns[DOCUMENTS_FILE]
        self.has_splits = "split" in columns[QUERIES_FILE]
        self.has_own = "own" in columns[QUERIES_FILE]
        self.named_by_place = named_by_place
        self._ids_in: tuple[str, np.ndarray] | None = None
        self._read = read  # (file, columns) -> the tables of its row groups in order

    @classmethod
    def open(cls, path: Path, metadata: Mapping[str, Any]) -> Vocabulary:
        """Opens the vocabulary of a prepared folder, after checking that its files are there and whole.

        Args:
          path: the folder.
          metadata: its metadata.json.

        Raises:
          DataError: a file is missing, truncated or damaged, or a column is missing or mistyped.
        """
        record = metadata["vocabulary"]
        known = {file["name"]: file for file in record.get("files", ())}
        rows = {QUERIES_FILE: metadata["queries"], DOCUMENTS_FILE: metadata["documents"]}
        footers = {name: open_parquet(path, known.get(name, {"name": name, "rows": n})) for name, n in rows.items()}
        for name, footer in footers.items():
            if footer.num_rows != rows[name]:
                raise DataError(
                    f"expected {rows[name]:,} rows, as the metadata say, found {footer.num_rows:,}",
                    fix="Copy or prepare it again.",
                    file=path / name,
                )
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
            max_grade=_stored_scale(metadata.get("max_grade"), path / METADATA_FILE),
            named_by_place=bool(record.get("named_by_place") or metadata.get("report", {}).get(NAMED_BY_PLACE)),
        )

    @classmethod
    def from_tables(
        cls,
        queries: pa.Table,
        documents: pa.Table,
        *,
        features: Sequence[str] = (),
        max_grade: float | None = None,
    ) -> Vocabulary:
        """Makes a vocabulary in memory from tables with the columns of queries.parquet and documents.parquet."""
        tables = {QUERIES_FILE: queries, DOCUMENTS_FILE: documents}
        return cls(
            queries=len(queries),
            documents=len(documents),
            feature_names=features,
            fingerprint=names_fingerprint(queries["query"], documents),
            parent=None,
            columns={name: table.column_names for name, table in tables.items()},
            read=lambda file, columns: iter([tables[file].select(columns)]),
            path=Path("memory"),
            max_grade=max_grade,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The fingerprint, counts and parent, which a model or a log that extends this vocabulary records."""
        return {
            "fingerprint": self.fingerprint,
            "documents": self.documents,
            "queries": self.queries,
            "parent": self.parent,
        }

    @cached_property
    def query_names(self) -> pa.ChunkedArray:
        """Names of the queries, [Q] string; row i is query id i."""
        return self.table(QUERIES_FILE, ["query"])["query"]

    @cached_property
    def query_splits(self) -> pa.ChunkedArray | None:
        """Names of the queries' splits, [Q] string (null: in none); None where queries have no splits."""
        return self.table(QUERIES_FILE, ["split"])["split"] if self.has_splits else None

    @cached_property
    def own_queries(self) -> np.ndarray | None:
        """Whether each query [Q] belongs to the data or only to the vocabulary that it extends; None: all belong."""
        if not self.has_own:
            return None
        own: np.ndarray = self.table(QUERIES_FILE, ["own"])["own"].to_numpy()
        return own

    @cached_property
    def document_names(self) -> pa.ChunkedArray:
        """Names of the documents, [V] string; row i is document id i + 1."""
        return self.table(DOCUMENTS_FILE, ["document"])["document"]

    @cached_property
    def document_query(self) -> np.ndarray:
        """Query id of each document id, [V + 1] int32; -1 for id 0."""
        out = np.full(self.documents + 1, -1, np.int32)
        for start, table in self._pieces(["query"]):
            column = self._integers(table["query"], "query", start)
            self._reject((column < 0) | (column >= self.queries), start, "query", f"0 to {self.queries - 1}")
            out[start + 1 : start + 1 + len(column)] = column
        return out

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Grades by document id, [V + 1] float32, NaN where not judged and for id 0; None without grades."""
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
        """Document features by document id, [V + 1, F] float32, zeros for id 0; None without features."""
        if not self.feature_names:
            return None
        out = np.zeros((self.documents + 1, len(self.feature_names)), np.float32)
        for first, values in self.feature_blocks():
            out[first : first + len(values)] = values
        return out

    def ids_in(self, other: Vocabulary) -> np.ndarray:
        """Finds the id in another vocabulary of each document, [V + 1] int32, by name; 0: it does not have it.

        What was found is kept for the next call.
        """
        if self._ids_in is None or self._ids_in[0] != other.fingerprint:
            self._ids_in = other.fingerprint, _match_names(self, other)
        return self._ids_in[1]

    def feature_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the document features in blocks, without holding all: (first document id, features [n, F])."""
        for start, table in self._pieces(["features"]):
            row = start
            for chunk in table["features"].chunks:
                values = feature_rows(chunk, self.path / DOCUMENTS_FILE, row)
                if not (finite := np.isfinite(values)).all():
                    name = self.feature_names[int((~finite).any(0).argmax())]
                    self._reject(~finite.all(1), row, f"features[{name}]", "finite numbers")
                yield row + 1, values
                row += len(values)

    def table(self, file: str, columns: Sequence[str]) -> pa.Table:
        """Reads whole columns of queries.parquet or documents.parquet."""
        pieces = list(self._read(file, columns))
        width = max(len(self.feature_names), 1)
        kinds = {"split": pa.string(), "label": pa.float32(), "features": pa.list_(pa.float32(), width)}
        kinds |= {"own": pa.bool_()}
        kinds |= {"document": pa.string(), "query": pa.int32() if file == DOCUMENTS_FILE else pa.string()}
        return pa.concat_tables(pieces) if pieces else pa.table({n: pa.array([], kinds[n]) for n in columns})

    def tables(self) -> tuple[pa.ChunkedArray, pa.Table]:
        """Returns (queries, documents) as `LogWriter` takes them, to write another log with the same ids."""
        columns = ["query", "document", *(["label"] if self.has_labels else [])]
        columns += ["features"] if self.feature_names else []
        return self.query_names, self.table(DOCUMENTS_FILE, columns)

    def _pieces(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        start = 0
        for table in self._read(DOCUMENTS_FILE, columns):
            yield start, table
            start += len(table)

    def _integers(self, column: pa.ChunkedArray, field: str, start: int) -> np.ndarray:
        if column.null_count:
            row = start + int(pc.index(column.is_null(), True).as_py()) + 1
            file = self.path / DOCUMENTS_FILE
            raise DataError("expected a value in every row, found null", file=file, row=row, field=field)
        values: np.ndarray = column.to_numpy()
        return values

    def _reject(self, bad: np.ndarray, start: int, field: str, expected: str) -> None:
        if bad.any():
            raise DataError(
                f"expected {expected}; {int(bad.sum())} rows differ",
                file=self.path / DOCUMENTS_FILE,
                row=start + int(bad.argmax()) + 1,
                field=field,
            )


def _stored_scale(found: Any, file: Path) -> float | None:
    """Checks the scale of the grades as metadata.json has it; None in folders that do not tell it."""
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < np.inf:
        raise DataError(
            f"expected the highest grade of the scale, found {found!r}",
            fix="Prepare it again.",
            file=file,
            field="max_grade",
        )
    return float(found)


@runtime_checkable
class HasVocabulary(Protocol):
    """Data with a vocabulary, such as a ClickLog or a Collection."""

    vocabulary: Vocabulary


VocabularyLike = Vocabulary | HasVocabulary | Mapping[str, Any]  # the mapping being an `identity`


def known_documents(own: Vocabulary, other: VocabularyLike, *, file: Path) -> int:
    """Counts the documents of a vocabulary that another one knows: those with ids of 1 to that number.

    Args:
      own: the vocabulary.
      other: the other vocabulary, data that has it (a ClickLog, a Collection), or its `identity`.
      file: the folder that errors name.

    Raises:
      DataError: neither vocabulary extends the other, so that their ids stand for different documents.
    """
    identity = identity_of(other)
    if (known := shared_documents(own.identity, identity)) is None:
        raise other_ids(own.identity, identity, file=file)
    return known


def shared_documents(own: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """Counts the documents that two vocabularies know by the same ids, those of 1 to that number.

    Args:
      own, other: their `identity`.

    Returns:
      None where neither extends the other.
    """
    theirs, ours = _lineage(other), _lineage(own)
    known = ours.get(next(iter(theirs)))
    return theirs.get(str(own["fingerprint"])) if known is None else known


def other_ids(
    own: Mapping[str, Any], other: Mapping[str, Any], *, file: Path, name: str = "", why: str = ""
) -> DataError:
    """Makes the error about data whose document ids are unrelated to those of the training data.

    Args:
      own, other: `identity` of the vocabularies of the data and of the training data.
      file: the folder of the data.
      name: what to call the data.
      why: why its documents are not found by name.
    """
    called = f"{name}: " if name else ""
    return DataError(
        f"{called}prepared with other document ids ({own['fingerprint'][:12]}) than those of the training data "
        f"({other['fingerprint'][:12]}){'. ' if why else ''}{why}",
        fix="Prepare it against the training data: `ultr prepare ... --vocabulary TRAINING_LOG`.",
        file=file,
        field="vocabulary",
    )


def _lineage(identity: Mapping[str, Any]) -> dict[str, int]:
    """Maps the fingerprints of a vocabulary and of all that it extends, itself first, to numbers of documents."""
    out: dict[str, int] = {}
    link: Mapping[str, Any] | None = identity
    while link is not None:
        out[str(link["fingerprint"])] = int(link["documents"])
        link = link.get("parent")
    return out


def identity_of(source: VocabularyLike) -> Mapping[str, Any]:
    """Returns the `identity` of a vocabulary, of the vocabulary of data, or an identity as it is.

    Raises:
      ConfigError: `source` is none of these.
    """
    vocabulary = source.vocabulary if isinstance(source, HasVocabulary) else source
    identity = vocabulary.identity if isinstance(vocabulary, Vocabulary) else vocabulary
    if not isinstance(identity, Mapping) or not {"fingerprint", "documents"} <= set(identity):
        raise ConfigError(
            f"expected an opened ClickLog or Collection, or the identity of a vocabulary, found {source!r}"
        )
    return identity


def names_fingerprint(queries: pa.Array | pa.ChunkedArray, documents: pa.Table, *, named_by_place: bool = False) -> str:
    """Computes the hex SHA-256 of the query names and the (query, document) pairs, in order, whatever the chunking.

    Args:
      queries: [Q] string names.
      documents: columns query (int32 id), document (string) and, where there are any, features (lists of float32).
      named_by_place: whether names do not tell the documents apart from those of other data, so that their features
        count too.
    """
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
    if named_by_place and "features" in documents.column_names:
        features = hashlib.sha256()
        for chunk in documents["features"].chunks:
            features.update(np.ascontiguousarray(feature_rows(chunk, Path("documents"), 0), "<f4").tobytes())
        total.update(features.digest())
    return total.hexdigest()


def feature_rows(chunk: pa.FixedSizeListArray, file: Path, start: int) -> np.ndarray:
    """Converts a fixed-size list array to its values [n, F] without a copy.

    Args:
      chunk: [n] lists of F float32.
      file: the file that errors name.
      start: number of rows of the file that precede these.

    Raises:
      DataError: there are nulls.
    """
    values = chunk.flatten()
    if chunk.null_count or values.null_count:
        row = start + int(pc.index(chunk.is_null(), True).as_py()) + 1 if chunk.null_count else None
        raise DataError("expected finite numbers, found nulls", file=file, row=row, field="features")
    return as_numpy(values).reshape(len(chunk), chunk.type.list_size)


def _match_names(own: Vocabulary, other: Vocabulary) -> np.ndarray:
    """Finds the id in another vocabulary of each document of one, [V + 1] int32; 0: it has no such query or document.

    Both lists of names are in memory meanwhile.
    """
    query = name_places(own.query_names, other.query_names)
    distinct = other.document_names.unique()
    size = max(len(distinct), 1)
    keys = other.document_query[1:].astype(np.int64) * size + name_places(other.document_names, distinct)
    order = np.argsort(keys, kind="stable")
    owner, document = query[own.document_query[1:]], name_places(own.document_names, distinct)
    known = (owner >= 0) & (document >= 0)
    wanted = np.where(known, owner * size + document, -1)
    place = np.minimum(np.searchsorted(keys[order], wanted), max(len(keys) - 1, 0))
    out = np.zeros(own.documents + 1, np.int32)
    if len(keys):
        found = order[place]
        out[1:] = np.where(known & (keys[found] == wanted), found + 1, 0)
    return out


def name_places(values: pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Finds where each value [n] stands among others, int64; -1: nowhere."""
    among = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    found = pc.fill_null(pc.index_in(values, value_set=among), -1)
    out: np.ndarray = found.to_numpy().astype(np.int64)
    return out
