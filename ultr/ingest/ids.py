"""Assigns dense ids to queries and to (query, document) pairs, and makes the tables of names behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from ultr.data.vocabulary import Vocabulary
from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.readers.base import DocumentFeatures, GradedPairs


@dataclass(frozen=True)
class AssignedIds:
    """The ids of the queries and (query, document) pairs of rows.

    Attributes:
      queries: stored table of query and query_id (from 0).
      pairs: stored table of query, document, query_id, document_id (from 1), `new` (whether the parent does not know
        the pair), label where there are grades, slot where rows have one; only the pairs that the rows hold.
      parent: the vocabulary whose ids were kept, or None.
      report: what was done to the grades, where there are any.
      differing: of the first pair that its rows give differing grades: its names, `first` position, label, low and
        high; and how many `pairs` there are. None without any.
    """

    queries: ir.Table
    pairs: ir.Table
    parent: Vocabulary | None
    report: dict[str, int]
    differing: dict[str, Any] | None = None


def assign_ids(
    engine: Engine,
    rows: ir.Table,
    *,
    parent: Vocabulary | None = None,
    grades: GradedPairs | None = None,
    unique_pairs: bool = False,
) -> AssignedIds:
    """Numbers the queries in the order in which they first appear, and query by query the pairs likewise.

    Queries and pairs that the parent knows keep its ids; others come after these.

    Args:
      engine: the engine.
      rows: at, query and document without nulls, and where there are any rank, label, slot.
      parent: the vocabulary whose ids are kept.
      grades: grades of pairs, which come before those of the rows.
      unique_pairs: whether the rows have each pair once, with its final grade: then there is nothing to report about
        the grades.
    """
    known_queries, known_pairs = _parent_tables(engine, parent) if parent is not None else (None, None)
    first = rows.group_by("query").agg(first=rows["at"].min())
    if known_queries is not None:
        first = first.anti_join(known_queries, "query")
    number = ibis.row_number().over(order_by=[first["first"], first["query"]])
    base = parent.queries if parent is not None else 0
    queries = engine.stage("new_queries", first.select("query", query_id=(number + base).cast("int32")))
    if known_queries is not None:
        queries = queries.union(known_queries)

    pairs = _distinct_pairs(rows).join(queries, "query")
    if known_pairs is not None:
        pairs = pairs.left_join(known_pairs, ["query_id", "document"]).drop("query_id_right", "document_right")
    else:
        pairs = pairs.mutate(known=ibis.null("int32"))
    report: dict[str, int] = {}
    if grades is not None:
        given = grades.table.select("query", "document", grade="label")
        pairs = pairs.left_join(given, ["query", "document"]).drop("query_right", "document_right")
        label = ibis.coalesce(pairs.grade, pairs.label) if "label" in pairs.columns else pairs.grade
        pairs = pairs.mutate(label=label)
        report |= grades.report
    pairs = engine.stage("pairs_seen", pairs)
    if grades is not None:
        judged = int(engine.record(pairs.agg(n=pairs.grade.count()))["n"])
        total = int(engine.record(grades.table.agg(n=grades.table.count()))["n"])
        report |= {"pairs_graded": judged, "grades_of_pairs_not_in_the_data": total - judged}
    differing: dict[str, Any] | None = None
    if "label" in rows.columns and not unique_pairs:
        inline = engine.record(pairs.agg(differing=(pairs.low != pairs.high).sum(), negative=pairs.negative.sum()))
        for name, count in (("negative_read_as_0", "negative"), ("pairs_with_differing_grades", "differing")):
            report[name] = int(inline[count] or 0) + report.get(name, 0)
        if inline["differing"]:
            decided = (pairs.low != pairs.high) & (pairs.grade.isnull() if grades is not None else True)
            of_rows = pairs.filter(decided)
            first = engine.record(of_rows.order_by("first").limit(1))
            differing = {**first, "pairs": engine.number(of_rows.count())} if first else None

    new = pairs.filter(pairs.known.isnull())
    order = [new[n] for n in ("query_id", "first", "rank", "document") if n in new.columns]
    number = ibis.row_number().over(order_by=order) + (1 + (parent.documents if parent is not None else 0))
    columns = ["query", "document", "query_id", *(n for n in ("label", "slot") if n in pairs.columns)]
    numbered = new.select(*columns, document_id=number.cast("int32"), new=ibis.literal(True))
    if parent is not None:
        old = pairs.filter(pairs.known.notnull())
        numbered = numbered.union(old.select(*columns, document_id=old.known, new=ibis.literal(False)))
    return AssignedIds(queries, engine.stage("pairs", numbered), parent, report, differing)


def vocabulary_tables(
    engine: Engine, ids: AssignedIds, features: DocumentFeatures | None = None
) -> tuple[pa.ChunkedArray, pa.Table, list[str], dict[str, int]]:
    """Makes the tables of a vocabulary.

    Args:
      engine: the engine.
      ids: of `assign_ids`.
      features: features of the documents of the rows.

    Returns:
      the names of the queries, the table of documents, the names of its features, and counts for the report.

    Raises:
      DataError: the names of the features are others than those of the parent, or documents without a name have other
        features than those of the parent at their places.
    """
    parent = ids.parent
    new_queries = ids.queries if parent is None else ids.queries.filter(ids.queries.query_id >= parent.queries)
    queries = _column(engine.table(new_queries.order_by("query_id")), "query")
    fresh = ids.pairs.filter(ids.pairs.new).order_by("document_id")
    labelled = "label" in fresh.columns
    wanted = ["query_id", "document", *(["label"] if labelled else [])]
    rows = engine.table(fresh.select(*wanted))
    owner, names = [rows["query_id"]], [_column(rows, "document")]
    before = 0
    if parent is not None:
        before = parent.documents
        queries = pa.chunked_array([*parent.query_names.chunks, *queries.chunks], pa.string())
        owner.insert(0, pa.chunked_array([pa.array(parent.document_query[1:])]))
        names.insert(0, parent.document_names)
    documents = pa.table({"query": _chunked(owner, pa.int32()), "document": _chunked(names, pa.string())})
    label = np.full(len(documents), np.nan, np.float32)
    if parent is not None and parent.labels is not None:
        label[:before] = parent.labels[1:]
    if labelled:
        label[before:] = rows["label"].to_numpy()
        old = ids.pairs.filter(~ids.pairs.new & ids.pairs.label.notnull())
        judged = engine.table(old.select("document_id", "label"))
        label[judged["document_id"].to_numpy() - 1] = judged["label"].to_numpy()
    absent = np.isnan(label)
    if not absent.all():
        documents = documents.append_column("label", pa.array(label, mask=absent))
    titles: list[str] = []
    report: dict[str, int] = {}
    if features is not None or (parent is not None and parent.feature_names):
        column, titles, counts = _features(engine, ids, features, len(documents))
        documents = documents.append_column("features", column)
        report |= counts
    return queries, documents, titles, report


def _distinct_pairs(rows: ir.Table) -> ir.Table:
    """Lists each pair of the rows once, with its first position and its first grade."""
    values: dict[str, Any] = {"first": rows["at"].min()}
    if "rank" in rows.columns:
        values["rank"] = rows["rank"].min()
    if "label" in rows.columns:
        first = rows.label.argmin(rows["at"], where=rows.label.notnull())
        positive = ibis.greatest(first, ibis.literal(0.0, "float32"))
        grade = ibis.ifelse(rows.label.count() > 0, positive, ibis.null("float32")).cast("float32")
        values |= {"label": grade, "low": rows.label.min(), "high": rows.label.max()}
        values["negative"] = (rows.label < 0).sum()
    if "slot" in rows.columns:
        values["slot"] = rows.slot.min()
    return rows.group_by(["query", "document"]).agg(**values)


def _parent_tables(engine: Engine, parent: Vocabulary) -> tuple[ir.Table, ir.Table]:
    names = parent.query_names
    table = pa.table({"query": names, "query_id": pa.array(np.arange(len(names), dtype=np.int32))})
    queries = engine.load("known_queries", table.to_batches(), table.schema)
    owner = pa.array(parent.document_query[1:])
    numbers = pa.array(np.arange(1, parent.documents + 1, dtype=np.int32))
    table = pa.table({"query_id": owner, "document": parent.document_names, "known": numbers})
    return queries, engine.load("known_pairs", table.to_batches(), table.schema)


def _features(
    engine: Engine, ids: AssignedIds, features: DocumentFeatures | None, documents: int
) -> tuple[pa.ChunkedArray, list[str], dict[str, int]]:
    """Gathers the features of all documents in a file; returns [V] lists, their names, and counts for the report.

    Documents of the rows have the features that the rows bring, and others those of the parent.
    """
    parent = ids.parent
    known = list(parent.feature_names) if parent is not None else []
    names = features.names if features is not None else known
    if known and features is not None and features.counted and known == counted_names(len(known)):
        if len(names) > len(known):
            raise DataError(
                f"expected at most the {len(known):,} features of the vocabulary, found {len(names):,}",
                fix=(
                    f"Prepare the vocabulary again with --features {len(names)} (in Python: feature_count=...), or "
                    f"leave the further features of these files out with --features {len(known)}."
                ),
                file=parent.path if parent is not None else None,
                field="features",
            )
        names = known  # those that the files leave out are 0
    elif known and names != known:
        raise DataError(
            f"expected the {len(known)} document features of the vocabulary, found {len(names)} with other names",
            file=parent.path if parent is not None else None,
            field="features",
        )
    scratch: Path = engine.scratch / "features.npy"
    out = np.lib.format.open_memmap(scratch, "w+", np.float32, (documents, len(names)))
    table = parent.features if parent is not None else None
    filled = 0
    if table is not None:
        out[: len(table) - 1] = table[1:]
        filled = len(table) - 1
    counts: dict[str, int] = {}
    if features is not None:
        places = engine.table(ids.pairs.order_by("slot").select("slot", "document_id"))
        slots, rows = places["slot"].to_numpy(), places["document_id"].to_numpy() - 1
        known_rows = rows < filled
        filled += len(rows) - int(known_rows.sum())
        if len(features.names) < len(names):
            out[rows[known_rows], len(features.names) :] = 0
        features.fill(slots, rows, out[:, : len(features.names)])
        if table is not None:
            counts = _differing(features, slots[known_rows], rows[known_rows], out, table[1:])
    width = len(names)
    step = max((1 << 28) // max(width, 1), 1)  # a chunk of values stays below the 2^31 of an Arrow array
    chunks = [
        pa.FixedSizeListArray.from_arrays(pa.array(out[i : i + step].reshape(-1)), width)
        for i in range(0, documents, step)
    ]
    counts = {"documents_without_features": documents - filled} | counts
    return pa.chunked_array(chunks, pa.list_(pa.float32(), width)), names, counts


def _differing(
    features: DocumentFeatures, slots: np.ndarray, rows: np.ndarray, out: np.ndarray, table: np.ndarray
) -> dict[str, int]:
    """Counts the known documents whose features are others in the files; empty where there are none.

    Args:
      features: those of the files.
      slots, rows: [n] slot of each known document, and its row in `out` and `table`.
      out: [V, F] features as they are stored now.
      table: [V, F] features of the parent, which are all 0 where it knows none of a document.

    Raises:
      DataError: documents without a name are among them, so that they are others than those of the parent.
    """
    differs = np.zeros(len(rows), bool)
    step = max((1 << 24) // max(out.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        before = table[part]
        differs[start : start + step] = (out[part] != before).any(1) & before.any(1)
    if not differs.any():
        return {}
    by_place = np.zeros(len(rows), bool) if features.by_place is None else features.by_place[slots]
    if (others := differs & by_place).any():
        place = None if features.where is None else features.where(int(slots[others.argmax()]))
        raise DataError(
            f"expected the documents of the vocabulary, found other features for {int(others.sum()):,} of the "
            f"{int(by_place.sum()):,} documents that have no name and stand at the place, in their query, of one that "
            "the vocabulary knows: they are other documents",
            fix="Give the documents names (`# docid = NAME` at the end of a line), or prepare the files without "
            "--vocabulary (in Python: vocabulary=): a model that reads features needs no common ids, as `evaluate` "
            "finds the features by their names.",
            field="features",
            file=None if place is None else place["file"],
            row=None if place is None else place["row"],
        )
    return {"known_documents": len(rows), "known_documents_with_other_features": int(differs.sum())}


def counted_names(number: int) -> list[str]:
    """Lists the names of features that are numbered from 1."""
    return [str(i) for i in range(1, number + 1)]


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table[name].cast(pa.string())


def _chunked(parts: list[pa.ChunkedArray], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind)
