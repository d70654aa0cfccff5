"""`Collection`: queries with graded documents, in memory and on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ultr import stopping
from ultr.data.array_columns import vocabulary_of_arrays
from ultr.data.batching import PaddedRows, rebatch, used_widths
from ultr.data.columns import RaggedRows
from ultr.data.dataset import Dataset, Description
from ultr.data.input_schema import InputSchema
from ultr.data.splits import assign_split
from ultr.data.storage import (
    COLLECTION_FORMAT,
    SCHEMA,
    content_fingerprint,
    missing_split,
    new_data_folder,
    read_metadata,
    write_metadata,
)
from ultr.data.vocabulary import Vocabulary, known_documents, name_places
from ultr.data.vocabulary_writing import write_vocabulary
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions


class Collection(Dataset):
    """Q lists of graded documents, one per query, D documents in all.

    Attributes:
      offsets: [Q + 1] int64; list i is `[offsets[i]:offsets[i + 1]]` of the arrays per document.
      query: [Q] int32 query ids.
      document: [D] int32 document ids from 1, each standing for a (query, document) pair.
      labels: [D] float32 grades.
      features: [D, F] float32, or None.
      documents: how many documents are known; batches give id 0 to those beyond.
      metadata: metadata.json, or an empty dict for a collection made in memory.
    """

    def __init__(
        self,
        *,
        offsets: np.ndarray,
        query: np.ndarray,
        document: np.ndarray,
        labels: np.ndarray,
        features: np.ndarray | None = None,
        vocabulary: Vocabulary,
        documents: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.offsets, self.query, self.document, self.labels = offsets, query, document, labels
        self.features, self.vocabulary = features, vocabulary
        self.documents = vocabulary.documents if documents is None else documents
        self.metadata: Mapping[str, Any] = metadata or {}
        self._lineage: str | None = None  # how the part was picked
        self._query_ids: np.ndarray | None = None  # ids in another vocabulary, which batches give

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, split: str | None = None, vocabulary: Any = None) -> Collection:
        """Opens a collection on disk; everything but the names is read into memory.

        Args:
          path: the folder.
          split: the name of one of the splits that its queries were prepared with; None for all queries.
          vocabulary: what a model was trained on, as for `ClickLog.open`: batches give id 0 to documents
            that it does not know.

        Raises:
          DataError: not a collection of this schema; a file is missing, truncated or damaged; a column is
            missing or mistyped; a grade or feature is not finite; no such split, or an empty one; or other ids
            than `vocabulary`.
        """
        folder = Path(path)
        metadata = read_metadata(folder, [COLLECTION_FORMAT])
        own = Vocabulary.open(folder, metadata)
        known = own.documents if vocabulary is None else known_documents(own, vocabulary, file=folder)
        found = cls.from_vocabulary(own, own=own.own_queries, known=known, metadata=metadata)
        if found is None:
            raise DataError("expected graded documents, found none", fix="Prepare it again.", file=folder)
        if split is None:
            return found
        names = own.query_splits
        there = set(metadata["splits"]) | set([] if names is None else names.drop_null().unique().to_pylist())
        inside = np.zeros(own.queries, bool) if names is None else names.to_numpy() == split
        picked = inside[found.query]
        if split not in there or not picked.any():
            raise missing_split(split, there, folder, f"{len(found):,} graded lists")
        part = found.select(picked)
        part._lineage = split
        return part

    @classmethod
    def from_vocabulary(
        cls,
        vocabulary: Vocabulary,
        *,
        own: np.ndarray | None = None,
        known: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Collection | None:
        """Collects the documents of a vocabulary that have a grade, by query; None where none has.

        Args:
          own: [Q] bool, the queries to take: the others are of what the vocabulary extends; None: all.
          known, metadata: of the collection, `documents` and `metadata`.
        """
        grades = vocabulary.labels
        if grades is None:
            return None
        ids = np.flatnonzero(~np.isnan(grades)).astype(np.int32)
        if own is not None:
            ids = ids[own[vocabulary.document_query[ids]]]
        if not len(ids):
            return None
        owner = vocabulary.document_query[ids]
        if (owner[1:] < owner[:-1]).any():
            order = np.argsort(owner, kind="stable")
            ids, owner = ids[order], owner[order]
        query, starts = np.unique(owner, return_index=True)
        whole = len(ids) == vocabulary.documents and ids[0] == 1 and (np.diff(ids) == 1).all()
        table = vocabulary.features
        return cls(
            offsets=np.append(starts, len(ids)).astype(np.int64),
            query=query,
            document=ids,
            labels=grades[ids],
            features=None if table is None else table[1:] if whole else table[ids],
            vocabulary=vocabulary,
            documents=known,
            metadata=metadata,
        )

    @classmethod
    def from_arrays(
        cls,
        *,
        query: Any,
        label: Any,
        features: Any = None,
        document: Sequence[str] | None = None,
        ids: Any = None,
        feature_names: Sequence[str] | None = None,
        max_grade: float | None = None,
    ) -> Collection:
        """Makes a collection of arrays with one entry per graded document.

        Args:
          query: [D] query ids (integers from 0, kept) or names (strings, numbered as they come). The
            documents of a query need not stand together; lists are ordered by query id.
          label: [D] finite grades.
          features: [D, F] finite numbers, or None.
          document: [D] names; None names documents by their ids.
          ids: [D] document ids, 1 to D in any order; None numbers the documents as they stand.
          feature_names: F names; None names them "0", "1", ...
          max_grade: the highest grade of the scale, which parts of the collection keep; None: the highest grade.

        Raises:
          ConfigError: `max_grade` is no number above 0.
          DataError: arrays differ in length or hold something else, or a grade lies above the scale; names the 1-based
            row and the field.
        """
        words = vocabulary_of_arrays(
            query=query,
            label=label,
            features=features,
            document=document,
            ids=ids,
            feature_names=feature_names,
            max_grade=max_grade,
        )
        made = cls.from_vocabulary(words)
        assert made is not None  # every document has a grade
        return made

    def __len__(self) -> int:
        return len(self.query)

    def __repr__(self) -> str:
        return f"Collection({len(self):,} queries, {len(self.document):,} documents)"

    @cached_property
    def description(self) -> Description:
        """The description of the collection; rows are lists, without weights."""
        return Description(rows=len(self), documents=self.documents, vocabulary=self.vocabulary, identity=self.identity)

    @property
    def input_schema(self) -> InputSchema:
        """Names of the features of the documents, and the documents."""
        names = () if self.features is None else self.vocabulary.feature_names
        return InputSchema.of(names, vocabulary=self.vocabulary)

    @property
    def max_grade(self) -> float:
        """The highest grade of the scale, which parts of the collection keep.

        Of folders that do not tell it (those prepared by versions before it was recorded) the highest grade of these
        lists, at least 0.
        """
        scale = self.vocabulary.max_grade
        highest = np.max(self.labels, where=~np.isnan(self.labels), initial=0)
        return float(highest) if scale is None else scale

    @property
    def queries(self) -> int:
        """How many query ids there are; a collection may hold lists for some of them only."""
        return self.vocabulary.queries

    @property
    def identity(self) -> dict[str, Any]:
        """Which lists these are, as a JSON value that a run can record.

        `fingerprint` is that of the folder's content, or of the arrays where the collection was made in memory;
        `split` is None for a whole collection, the name of a split that it was opened with, or says which lists were
        selected. Collections with the same identity have the same lists.
        """
        if self.metadata:
            return {"fingerprint": content_fingerprint(self.metadata), "split": self._lineage}
        total = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for array in (self.offsets, self.query, self.document, self.labels, self.features):
            if array is not None:
                total.update(f"{array.dtype}{array.shape}".encode())
                total.update(np.ascontiguousarray(array).data)
        total.update(str(self.vocabulary.max_grade).encode())
        return {"fingerprint": total.hexdigest(), "split": self._lineage}

    @property
    def query_names(self) -> pa.Array:
        """[Q] string, the names of the queries of the lists."""
        return self.vocabulary.query_names.take(pa.array(self.query)).combine_chunks()

    @property
    def document_names(self) -> pa.Array:
        """[D] string, the names of the documents."""
        return self.vocabulary.document_names.take(pa.array(self.document - 1)).combine_chunks()

    def select(self, queries: Any) -> Collection:
        """Picks lists by a boolean mask [Q], an index array or a slice, in that order; ids stay."""
        try:
            picked = np.arange(len(self))[queries]
        except (IndexError, TypeError, ValueError) as error:
            raise ConfigError(f"expected a mask, indices or a slice of {len(self):,} lists, found {error}") from error
        if picked.ndim != 1:
            raise ConfigError(f"expected a mask, indices or a slice of {len(self):,} lists, found {queries!r:.60}")
        lengths = np.diff(self.offsets)[picked]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[picked] - offsets[:-1], lengths) + np.arange(offsets[-1])
        part = Collection(
            offsets=offsets,
            query=self.query[picked],
            document=self.document[rows],
            labels=self.labels[rows],
            features=None if self.features is None else self.features[rows],
            vocabulary=self.vocabulary,
            documents=self.documents,
            metadata=self.metadata,
        )
        part._lineage, part._query_ids = self._lineage, self._query_ids
        if not np.array_equal(picked, np.arange(len(self))):
            drawn = hashlib.sha256(np.ascontiguousarray(part.query, "<i4").data).hexdigest()
            part._lineage = f"{len(part)} queries {drawn}"
        return part

    def with_queries_of(self, vocabulary: Vocabulary) -> Collection:
        """Picks the lists of queries that another vocabulary has, by name; batches give their ids there.

        Raises:
          DataError: it has none of them.
        """
        places = name_places(self.vocabulary.query_names, vocabulary.query_names)
        part = self.select(places[self.query] >= 0)
        if not len(part):
            own, others = (
                ", ".join(f"'{name}'" for name in names.slice(0, 3).to_pylist())
                for names in (self.query_names, vocabulary.query_names)
            )
            raise DataError(
                f"expected lists of queries of {vocabulary.path}, such as {others}, found none: those here are such as "
                f"{own}",
                fix="Name the queries in both files alike",
                file=self.vocabulary.path,
                field="query",
            )
        part._query_ids = places.astype(np.int32)
        return part

    def split(self, fractions: Mapping[str, float], *, by: str = "query", seed: int = 0) -> dict[str, Collection]:
        """Splits the lists into disjoint parts that together hold every list, by a seeded hash of the query id.

        Raises:
          ConfigError: the fractions are not positive or do not add up to 1, or `by` is not "query".
        """
        if by != "query":
            raise ConfigError(f"a collection is split by='query', found {by!r}")
        codes = assign_split(self.query, fractions, seed)
        return {name: self.select(codes == i) for i, name in enumerate(fractions)}

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Streams every list once, with labels and without clicks, in batches of a few fixed shapes.

        Shapes and filling up are those of `ClickLog.batches`; position is 0, 1, 2, ... in stored order. With
        a seed all lists are permuted.
        """
        block = RaggedRows(self.offsets, {"row": np.arange(len(self.document))}, {"query": self.query})
        widths = used_widths(block.lengths)
        bucket = np.searchsorted(widths, block.lengths)
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        # In chunks, so that lists of different widths alternate as the order has them.
        step = max(batch_size * 4, 1024)
        pools = (
            (int(width), block.padded(part[bucket[part] == number], int(width)))
            for start in range(0, len(order), step)
            for part in [order[start : start + step]]
            for number, width in enumerate(widths)
        )
        for width, rows in rebatch(pools, batch_size):
            stopping.check()
            batch = self._batch(rows, width)
            yield batch if len(batch) == batch_size else batch.pad(rows=batch_size)

    def _batch(self, rows: PaddedRows, width: int) -> Sessions:
        mask = np.arange(width) < rows["length"][:, None]
        at = rows["row"]
        ids = self.document[at]
        features = {"document": np.where(mask & (ids <= self.documents), ids, np.int32(0))}
        if self.features is not None:
            features["features"] = self.features[at]
            features["features"][~mask] = 0
        return Sessions(
            mask=mask,
            position=np.where(mask, np.arange(width, dtype=np.int32), np.int32(0)),
            features=features,
            labels=np.where(mask, self.labels[at], np.float32(0)),
            query=rows["query"] if self._query_ids is None else self._query_ids[rows["query"]],
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the collection as a folder; a selection keeps the ids of what it was selected from.

        Raises:
          DataError: something stands at `path` that must not be replaced.
        """
        queries, documents = self.vocabulary.tables()
        grades = np.full(len(documents), np.nan, np.float32)
        grades[self.document - 1] = self.labels
        column = documents.schema.get_field_index("label")
        documents = documents.set_column(column, "label", pa.array(grades, mask=np.isnan(grades)))
        write_collection(
            path,
            queries=queries,
            documents=documents,
            features=self.vocabulary.feature_names,
            splits=self.vocabulary.query_splits,
            split_names=list(self.metadata.get("splits", ())),
            parent=self.vocabulary.parent,
            max_grade=self.vocabulary.max_grade or None,
            named_by_place=self.vocabulary.named_by_place,
            report=self.metadata.get("report"),
            overwrite=overwrite,
        )


def write_collection(
    path: str | os.PathLike[str],
    *,
    queries: pa.Array | pa.ChunkedArray,
    documents: pa.Table,
    features: Sequence[str] = (),
    splits: pa.Array | pa.ChunkedArray | None = None,
    split_names: Sequence[str] = (),
    own: np.ndarray | None = None,
    parent: Any = None,
    max_grade: float | None = None,
    named_by_place: bool = False,
    report: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a collection folder, whole or not at all.

    Args:
      path: the folder to make.
      queries: [Q] string names; row i is query id i.
      documents: as for `LogWriter`, with a label column; rows without a grade only hold their id.
      features: the F names of the document features.
      splits: [Q] string, the split of each query (null: in none), or None.
      split_names: splits that the metadata lists even where no graded list is in them.
      own: [Q] bool, the queries of the data itself, whose lists the collection has; the grades of others, those of the
        vocabulary that it extends, are only kept for what is prepared against it. None: all.
      parent: the ClickLog, Collection or vocabulary identity whose ids this collection extends, or None.
      max_grade: the highest grade of the scale; None: that of the parent, or the highest grade where that is higher.
      named_by_place: whether documents without a name have that of their place in their query; those of a parent may.
      report: a JSON value for the metadata.
      overwrite: whether a click log or collection that stands at `path` may be replaced.

    Raises:
      DataError: something stands at `path`, no document has a grade, or a column or value is unusable.
    """
    with new_data_folder(path, overwrite=overwrite) as folder:
        if "label" not in documents.column_names or documents["label"].null_count == len(documents):
            raise DataError("expected graded documents, found none", file=path, field="label")
        described = write_vocabulary(
            folder,
            queries=queries,
            documents=documents,
            features=features,
            splits=splits,
            own=own,
            parent=parent,
            max_grade=max_grade,
            named_by_place=named_by_place,
        )
        listed = documents.select(["query", "label"])
        if own is not None:
            listed = listed.filter(pa.array(own[listed["query"].to_numpy()]))
        grades = listed["label"].drop_null().to_numpy()
        if not len(grades):
            raise DataError("expected graded documents of its own queries, found none", file=path, field="label")
        counts = split_counts(listed, splits, split_names)
        metadata = {"format": COLLECTION_FORMAT, "schema": SCHEMA} | described
        metadata |= {
            "labels": [float(grades.min()), float(grades.max())],
            "splits": counts,
            "report": dict(report or {}),
        }
        write_metadata(folder, metadata)


def split_counts(
    documents: pa.Table, splits: pa.Array | pa.ChunkedArray | None, names: Sequence[str] = ()
) -> dict[str, int]:
    """Counts the lists of each split by name, those of `names` first even where they have none."""
    counts = dict.fromkeys(names, 0)
    if splits is not None and "label" in documents.column_names:
        graded = documents.filter(documents["label"].is_valid())["query"].unique()
        for entry in splits.take(graded).drop_null().value_counts().to_pylist():
            counts[entry["values"]] = entry["counts"]
    return counts
