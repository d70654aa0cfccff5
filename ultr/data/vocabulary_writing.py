"""Writes the vocabulary of a data folder: queries.parquet and documents.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultr.data.grade_scale import grade_scale
from ultr.data.storage import DOCUMENTS_FILE, PARQUET_OPTIONS, QUERIES_FILE, file_record, type_name
from ultr.data.vocabulary import (
    HasVocabulary,
    Vocabulary,
    VocabularyLike,
    feature_rows,
    identity_of,
    names_fingerprint,
)
from ultr.errors import DataError


def write_vocabulary(
    folder: Path,
    *,
    queries: pa.Array | pa.ChunkedArray,
    documents: pa.Table,
    features: Sequence[str] = (),
    splits: pa.Array | pa.ChunkedArray | None = None,
    own: np.ndarray | None = None,
    parent: VocabularyLike | None = None,
    max_grade: float | None = None,
    named_by_place: bool = False,
) -> dict[str, Any]:
    """Checks and writes queries.parquet and documents.parquet, and returns the metadata fields about them.

    Args:
      folder: the data folder.
      queries: [Q] string names.
      documents: columns query (int32), document (string), optionally label (float32, null where not judged)
        and features (fixed-size lists of F float32).
      features: F names.
      splits: [Q] string, the split of each query (null: in none), or None.
      own: [Q] bool, which queries belong to the data itself rather than only to the vocabulary that it extends;
        None: all.
      parent: the vocabulary that this one extends, data that has it, or its identity; None where it extends none.
      max_grade: the highest grade of the scale; None: that of the parent, or the highest grade where that is higher.
      named_by_place: whether documents without a name have that of their place in their query; those of a parent may.

    Raises:
      ConfigError: `max_grade` without grades, or below that of the parent.
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
    labels = documents["label"] if "label" in documents.column_names else None

    def named(row: int) -> str:
        return f"document '{documents['document'][row]}' of query '{queries[documents['query'][row].as_py()]}'"

    extended = _vocabulary_of(parent)
    least = None if extended is None else extended.max_grade
    scale = grade_scale(labels, stated=max_grade, least=least, file="documents", document=named)
    file = folder / QUERIES_FILE
    optional = {"split": splits, "own": None if own is None else pa.array(own)}
    rows = pa.table({"query": queries} | {name: column for name, column in optional.items() if column is not None})
    pq.write_table(rows, file, **PARQUET_OPTIONS)
    group = 1 << 20 if "features" not in columns else max((1 << 24) // max(len(features), 1), 1024)
    pq.write_table(documents, folder / DOCUMENTS_FILE, row_group_size=group, **_document_options(documents))
    by_place = named_by_place or (extended is not None and extended.named_by_place)
    return {
        "queries": len(queries),
        "documents": len(documents),
        "features": list(features),
        "max_grade": scale,
        "vocabulary": {
            "fingerprint": names_fingerprint(queries, documents, named_by_place=by_place),
            "parent": None if parent is None else dict(identity_of(parent)),
            "files": [file_record(file, len(queries)), file_record(folder / DOCUMENTS_FILE, len(documents))],
        }
        | ({"named_by_place": True} if by_place else {}),
    }


def _vocabulary_of(parent: VocabularyLike | None) -> Vocabulary | None:
    """Returns the parent vocabulary, where more of it than its identity is at hand."""
    vocabulary = parent.vocabulary if isinstance(parent, HasVocabulary) else parent
    return vocabulary if isinstance(vocabulary, Vocabulary) else None


def _document_options(documents: pa.Table) -> dict[str, Any]:
    # Names and features hardly repeat: the writer would build a dictionary and then discard it.
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
            values = feature_rows(batch["features"], Path("documents"), start)
            reject(~np.isfinite(values).all(1), start, "features", "finite numbers")
        start += len(batch)


def _strings(names: pa.Array | pa.ChunkedArray, file: str, field: str) -> pa.Array | pa.ChunkedArray:
    if type_name(names.type) != "string":
        raise DataError(f"expected strings, found {names.type}", file=file, field=field)
    if names.null_count:
        raise DataError("expected a name in every row, found nulls", file=file, field=field)
    return names
