"""Writes graded documents as a collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.collection import Collection, split_counts, write_collection
from ultr.data.splits import assign_split
from ultr.data.storage import NAMED_BY_PLACE
from ultr.ingest.engine import Engine
from ultr.ingest.ids import assign_ids, vocabulary_tables
from ultr.ingest.notices import (
    collection_warnings,
    differing_in_rows,
    feature_warnings,
    grade_warnings,
    one_grade_warnings,
)
from ultr.ingest.output import Output, split_names
from ultr.ingest.positions import FileRow
from ultr.ingest.readers.base import DocumentFeatures


def write_graded_lists(
    engine: Engine,
    output: Output,
    table: ir.Table,
    features: DocumentFeatures | None,
    *,
    unique_pairs: bool,
    report: Mapping[str, Any],
    where: Callable[[int], FileRow] | None = None,
) -> Collection:
    """Writes graded documents as a collection.

    Args:
      engine: the engine.
      output: the folder to make.
      table: at, query, document, label, and `slot` where there are features.
      features: features of the documents.
      unique_pairs: as for `assign_ids`.
      report: the first entries of the collection's report, and "warnings".
      where: maps a position to the file and row; None where each pair comes once.

    Raises:
      DataError: no document has a grade.
    """
    ids = assign_ids(engine, table, parent=output.vocabulary, unique_pairs=unique_pairs)
    queries, documents, names, counts = vocabulary_tables(engine, ids, features)
    made = dict(report)
    for name, count in (ids.report | counts).items():
        made[name] = made.get(name, 0) + count
    splits = own = None
    if output.parent is not None:
        own = np.zeros(len(queries), bool)
        own[engine.table(ids.pairs.select("query_id").distinct())["query_id"].to_numpy()] = True
    if output.split:
        codes = assign_split(np.arange(len(queries)), output.split, output.seed)
        splits = split_names(codes, output.split)
        if own is not None:
            splits = pc.if_else(pa.array(own), splits, None)
    graded = documents if own is None else documents.filter(pa.array(own[documents["query"].to_numpy()]))
    counted = split_counts(documents, splits, list(output.split or ()))
    made["warnings"] = [
        *report.get("warnings", ()),
        *differing_in_rows(ids.differing, where),
        *feature_warnings(counts),
        *collection_warnings(made, splits=counted),
        *grade_warnings(graded, made),
        *one_grade_warnings(graded),
    ]
    write_collection(
        output.path,
        queries=queries,
        documents=documents,
        features=names,
        splits=splits,
        split_names=list(counted),
        own=own,
        parent=output.parent,
        max_grade=output.max_grade,
        named_by_place=bool(made.get(NAMED_BY_PLACE)),
        report=made,
        overwrite=output.overwrite,
    )
    return Collection.open(output.path)
