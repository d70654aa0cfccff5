"""Rankings and grades as TREC files, from which trec_eval and ir_measures compute the numbers of `evaluate`.

In ir_measures, `nDCG(dcg="exp-log2")@10` has the gain 2^y - 1 of `ndcg@10` (by gdeval, which rounds to five decimals);
`nDCG(gains={1: 1, 2: 3, 3: 7, 4: 15})@10` is the same without rounding. `RR@10` is `mrr@10`, and `AP` is `map`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data import ClickLog, Collection
from ultr.errors import ConfigError, DataError
from ultr.evaluation.compiled import CompiledModel, fitted_batch_size
from ultr.evaluation.contracts import Scorer
from ultr.evaluation.graded import shown_queries
from ultr.evaluation.ranking import rank_documents, tie_seed
from ultr.files import write_text
from ultr.sessions import Sessions

_SPACE = re.compile(r"\s")


def write_run(
    path: str | os.PathLike[str],
    model: Scorer | np.ndarray,
    data: Collection | ClickLog,
    *,
    name: str,
    key: jax.Array,
    batch_size: int = 4096,
) -> None:
    """Writes a ranking of every list, one document per line: `query Q0 document rank score name`.

    trec_eval orders by score and not by rank, as float32, and equal scores by the name of the document. The file
    therefore holds the scores of the model for queries whose scores are all different in float32; for the others it
    holds the number of documents minus the rank, so that documents with equal scores stand in the random order in which
    `evaluate` with the same key ranks them. Only the order of the scores of one query has a meaning.

    White space in names is written as %20 and the like, here and in `write_qrels`.

    Args:
      path: the file.
      model: has `score(sessions)`; or [D] finite scores, one per graded document in the order of the collection.
      data: a collection, or a log with graded documents, whose shown queries are ranked.
      name: name of the run, the last column.
      key: orders equal scores at random, as for `evaluate`.
      batch_size: lists per step.

    Raises:
      ConfigError: no name, or one with white space; or scores of another shape.
      DataError: no graded documents, a score that is NaN, or names that are empty or equal in a file.
    """
    if not name or _SPACE.search(name):
        raise ConfigError(f"expected the name of the run without white space, found {name!r}")
    collection = _graded_collection(data)
    score = _scores(model, collection)
    seed = tie_seed(key)
    parts: list[tuple[np.ndarray, ...]] = []
    for start, batch in _batches_with_starts(collection, batch_size):
        mask = np.asarray(batch.mask)
        scores = score(start, batch)
        ranks = rank_documents(scores, mask, seed=seed, query=np.asarray(batch.query))
        length = mask.sum(1)
        # By descending score, as float32; what lies beyond the end of a list is not used.
        order = np.argsort(ranks, axis=1)
        with np.errstate(over="ignore"):
            ordered = np.take_along_axis(scores, order, axis=1).astype(np.float32)
        index = np.arange(mask.shape[1])
        inside = index < length[:, None]
        falls = (ordered[:, 1:] < ordered[:, :-1]) | ~inside[:, 1:]
        apart = falls.all(1) & (np.isfinite(ordered) | ~inside).all(1)
        shown = np.where(apart[:, None], ordered, (length[:, None] - index - 1).astype(np.float32))
        row, place = np.nonzero(inside)
        at = start[row] + order[row, place]
        parts.append((start[row], place, at, shown[row, place]))
    start, place, at, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    sort = np.lexsort((place, start))
    lists = np.searchsorted(collection.offsets, start[sort], side="right") - 1
    queries, documents = _names(collection)
    _write(path, queries.take(lists), "Q0", documents.take(at[sort]), place[sort] + 1, value[sort], name)


def write_qrels(path: str | os.PathLike[str], data: Collection | ClickLog, *, empty_queries: str = "skip") -> None:
    """Writes the grades, one document per line: `query 0 document grade`.

    Args:
      path: the file.
      data: as for `write_run`.
      empty_queries: "skip" leaves out queries without a document of grade 1 or more, which trec_eval would count
        with 0; "zero" writes them.

    Grades below 0 are written as 0, as `evaluate` counts them.

    Raises:
      ConfigError: another value of `empty_queries`.
      DataError: no graded documents, none with a grade of 1 or more, a grade that is no whole number, or names that
        are empty or equal in a file.
    """
    if empty_queries not in ("skip", "zero"):
        raise ConfigError(f"unknown empty_queries {empty_queries!r}; known: skip, zero")
    collection = _graded_collection(data)
    grades = np.maximum(collection.labels, 0)
    if (bad := grades != np.round(grades)).any():
        raise DataError(
            f"expected grades that are whole numbers, found {collection.labels[bad][0]:g}",
            fix="TREC files hold no others: map the grades to whole numbers",
            field="label",
        )
    lists = np.repeat(np.arange(len(collection)), np.diff(collection.offsets))
    kept = np.ones(len(collection), bool)
    if empty_queries == "skip":
        kept = np.maximum.reduceat(grades, collection.offsets[:-1]) > 0
    if not kept.any():
        raise DataError("expected a document with a grade of 1 or more, found none", field="label")
    queries, documents = _names(collection)
    rows = np.flatnonzero(kept[lists])
    _write(path, queries.take(lists[rows]), "0", documents.take(rows), grades[rows].astype(np.int64))


def _graded_collection(data: Collection | ClickLog) -> Collection:
    """Returns the graded lists of a collection, or of the queries that a log shows.

    Raises:
      DataError: there are none.
    """
    found = data.collection() if isinstance(data, ClickLog) else data
    if found is not None and isinstance(data, ClickLog):
        found = found.select(np.isin(found.query, shown_queries(data)))
    if found is None or len(found) == 0:
        raise DataError("expected graded documents, found none", fix="Prepare the grades of the queries too")
    return found


def _scores(model: Scorer | np.ndarray, collection: Collection) -> Callable[[np.ndarray, Sessions], np.ndarray]:
    """Makes a function of (index of each list's first document [B], batch) that returns scores [B, K]."""
    if isinstance(model, Scorer):
        compiled = CompiledModel(model).on(collection)
        return lambda start, batch: compiled.scores(batch)
    values = np.asarray(model)
    if values.dtype.kind not in "biuf" or values.shape != collection.document.shape:
        raise ConfigError(
            f"expected a model with score(sessions), or scores [D] = {collection.document.shape}, found "
            f"{values.dtype} {values.shape}"
        )
    if np.isnan(values).any():
        raise DataError(f"expected scores, found {int(np.isnan(values).sum())} that are NaN", field="score")

    def pick(start: np.ndarray, batch: Sessions) -> np.ndarray:
        at = start[:, None] + np.arange(batch.shape[1])
        return np.where(batch.mask, values[np.minimum(at, len(values) - 1)], 0.0)

    return pick


def _batches_with_starts(collection: Collection, batch_size: int) -> Iterator[tuple[np.ndarray, Sessions]]:
    """Yields batches with the index [B] of each list's first document in the collection; 0 for masked rows."""
    place = dict(zip(collection.query.tolist(), collection.offsets[:-1].tolist(), strict=True))
    for batch in collection.batches(fitted_batch_size(batch_size, collection)):
        real = np.asarray(batch.mask).any(1)
        start = [place[q] if r else 0 for q, r in zip(np.asarray(batch.query).tolist(), np.ravel(real), strict=True)]
        yield np.array(start, np.int64), batch


def _names(collection: Collection) -> tuple[pa.Array, pa.Array]:
    """Returns the names of the queries [Q] and of the documents [D], without white space."""
    out = []
    lists = np.repeat(np.arange(len(collection)), np.diff(collection.offsets)).tolist()
    for what, column in (("query", collection.query_names), ("document", collection.document_names)):
        names = column.to_pylist()
        if "" in names:
            raise DataError("expected names, found an empty one", row=names.index("") + 1, field=what)
        if _SPACE.search("".join(names)):
            names = [_SPACE.sub(lambda found: "".join(f"%{b:02X}" for b in found[0].encode()), name) for name in names]
        if len(set(names if what == "query" else zip(lists, names, strict=True))) < len(names):
            raise DataError(
                f"two names of a {what} are the same, or are once white space is written as %20",
                fix="TREC files identify documents by their names alone: rename one of them",
                field=what,
            )
        out.append(pa.array(names, pa.string()))
    return out[0], out[1]


def _write(path: str | os.PathLike[str], *columns: Any) -> None:
    """Writes columns with a space between them: arrays, and strings that stand in every row."""
    parts = [x if isinstance(x, str | pa.Array) else pa.array(x).cast(pa.string()) for x in columns]
    write_text(path, "\n".join([*pc.binary_join_element_wise(*parts, " ").to_pylist(), ""]))
