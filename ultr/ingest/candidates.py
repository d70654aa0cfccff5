"""Reads tables of candidates: the documents of queries with their features, to rank and to judge."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.collection import Collection
from ultr.data.columns import FEATURE
from ultr.data.vocabulary import Vocabulary
from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_and_row
from ultr.ingest.readers.likely_format import other_format_named
from ultr.ingest.readers.qrels import graded_columns
from ultr.ingest.sources import ScannedFiles, expand_inputs, scan_table
from ultr.ingest.values import as_name, convert_columns, raise_first_bad, trimmed

KEYS = ("query", "document")


def read_candidates(
    path: str | os.PathLike[str],
    features: Sequence[str],
    *,
    graded_by: Vocabulary | None = None,
    max_grade: float | None = None,
    graded: bool = True,
) -> Collection:
    """Reads the candidates of queries as a collection: a row of a CSV, TSV or Parquet table each.

    The table has the columns query and document (other usual names are recognised, as in a table of grades), the
    features, and where it has a column label, the grades. Candidates without a grade are left out, unless grades do
    not matter.

    Args:
      path: the file.
      features: names of the columns of features, in the order of the collection.
      graded_by: a vocabulary with grades, which are taken where the table has no column of its own. Their scale is
        that of the candidates.
      max_grade: the highest grade of the scale; None: that of `graded_by`, or without one the highest grade found.
      graded: whether grades matter; False: all candidates have the grade 0.

    Raises:
      DataError: a column is missing, a feature is not a finite number, a candidate comes twice, a grade is above the
        scale, or none has a grade; names the file, row and field.
    """
    (file,) = expand_inputs([path])
    with tempfile.TemporaryDirectory(prefix="ultr-") as folder, Engine(beside=Path(folder)) as engine:
        with other_format_named(file, collection=True):
            raw = scan_table(engine, file, 0)
        scanned = ScannedFiles([raw])
        chosen = _columns(file, list(raw.columns), features, graded)
        if not graded:
            chosen.pop("label", None)
        table = raw.table.select(
            at=raw.at, **{ours: raw.columns[name] for ours, name in chosen.items()}, **scanned.broken(raw)
        )
        types = {name: "label" if name == "label" else "feature" for name in chosen if name not in KEYS}
        named = table.mutate(**{name: _name(table[name]) for name in KEYS})
        try:
            staged = engine.stage("candidates", convert_columns(named, types))
        except EngineError as error:
            raise scanned.explain(error) from error
        if scanned.may_break:
            scanned.check_line_breaks(engine, staged)  # rows that a quote swallowed are an error
        where = partial(file_and_row, [file], reported_row=scanned.reported_row)
        raise_first_bad(engine, staged, where, chosen)
        rows = engine.table(staged.order_by("at"))

        def reject(bad: np.ndarray, problem: str, field: str) -> None:
            if bad.any():
                raise DataError(problem, field=field, **where(rows["at"][int(bad.argmax())].as_py()))

        for name in KEYS:
            reject(rows[name].is_null().to_numpy(), f"expected the name of a {name}, found nothing", chosen[name])
        query, document = (rows[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in KEYS)
        _, first = np.unique(query.astype(np.int64) * (len(rows) + 1) + document, return_index=True)
        again = np.ones(len(rows), bool)
        again[first] = False
        reject(again, "expected each candidate of a query once, found it twice", chosen["document"])
    label = _grades(rows, graded_by) if graded else np.zeros(len(rows), np.float32)
    there = ~np.isnan(label)
    scale = max_grade or (graded_by.max_grade if graded_by is not None else None) or None
    if scale is not None and (above := there & (label > np.float32(scale))).any():
        row = int(above.argmax())
        raise DataError(
            f"expected grades of at most {scale:g}, the highest of the scale, found {label[row]:g}",
            fix="Give the highest grade of the scale as --max-grade, or correct the grade",
            field=chosen.get("label", "label"),
            **where(rows["at"][row].as_py()),
        )
    if not there.any():
        raise DataError(
            "expected candidates with a grade, found none",
            fix="Add a column label, or give a log that was prepared with --labels for these queries and documents",
            file=file,
            field="label",
        )
    kept = rows.filter(pa.array(there))
    columns = [kept[FEATURE + name].to_numpy() for name in features]
    found = Collection.from_arrays(
        query=kept["query"].to_pylist(),
        label=label[there],
        features=np.stack(columns, 1) if columns else None,
        document=kept["document"].to_pylist(),
        feature_names=list(features) if columns else None,
        max_grade=scale,
    )
    found.vocabulary.path = file  # for errors
    return found


def _name(column: Any) -> Any:
    return as_name(trimmed(column) if column.type().is_string() else column)


def _columns(file: Path, found: list[str], features: Sequence[str], graded: bool) -> dict[str, str]:
    """Finds the columns: ours -> the name in the file."""
    with other_format_named(file, collection=True):
        chosen = graded_columns(file, found, optional=("label",))
    if missing := [name for name in features if name not in found]:
        raise DataError(
            f"expected the features that {'the model reads' if graded else 'the log has'}, {list(features)}, found the "
            f"columns {found}",
            fix="Give each candidate every feature, under the name of the training data",
            file=file,
            field=missing[0],
        )
    return chosen | {FEATURE + name: name for name in features}


def _grades(rows: pa.Table, graded_by: Vocabulary | None) -> np.ndarray:
    """Returns the grade of each candidate, [n] float32; NaN: none."""
    if "label" in rows.column_names:
        own = rows["label"].cast(pa.float32())
        values: np.ndarray = pc.fill_null(own, float("nan")).to_numpy()
        return values
    none = np.full(len(rows), np.nan, np.float32)
    if graded_by is None or graded_by.labels is None:
        return none
    coded = rows["query"].combine_chunks().dictionary_encode()
    documents = pa.table({"query": coded.indices.cast(pa.int32()), "document": rows["document"]})
    ids = Vocabulary.from_tables(pa.table({"query": coded.dictionary}), documents).ids_in(graded_by)[1:]
    return np.where(ids > 0, graded_by.labels[ids], none)
