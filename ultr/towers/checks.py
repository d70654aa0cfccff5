"""What a model cannot read is rejected on the host: ids beyond its tables, its own or a user's, and NaN features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jax.experimental import checkify

from ultr.data import ClickLog, Collection
from ultr.data.dataset import STREAMED, Dataset
from ultr.data.input_schema import DOCUMENT, FEATURES
from ultr.data.vocabulary import HasVocabulary
from ultr.errors import DataError
from ultr.sessions import Sessions, SharedFeature
from ultr.towers.base import (
    CallableTower,
    IndexBound,
    NamedBound,
    Tower,
    Violation,
    bounds_error,
    find_violation,
    still,
)

LARGE_ID = 1 << 30
_COLUMNS = {"document": "documents", "position": "ranks"}  # of a log, by the field of a batch


class InputCheck:
    """Checks batches of data before a model reads them.

    Tables that declare no `index_bounds`, in a module of the user's own, are found by asking that module for a document
    far beyond any table: compiled code would give NaN there, or the value of another document.

    Args:
      model: its modules declare `index_bounds`.
      data: the batches are of this dataset, which errors name rows and columns of.
      source: what to call it in errors.
      largest: what no value of a field exceeds, where that is known; such fields are looked at only if it is too large.
    """

    def __init__(
        self, model: nnx.Module, data: Dataset, *, source: str, largest: Mapping[str, int] | None = None
    ) -> None:
        self._model, self._data, self._source, self._largest = model, data, source, largest
        self._own: tuple[NamedBound, ...] | None = None  # bounds of modules that declare none

    def __call__(self, batch: Sessions) -> None:
        """Checks a batch on the host.

        Raises:
          DataError: an id or rank beyond a table, or a feature that is not finite; names the row, the field and what to
            do.
        """
        batch = batch.list_first()
        if self._own is None:
            self._own = inferred_bounds(self._model, batch)
        if (found := self._violation(batch)) is not None:
            found, row = self._first(found)
            raise bounds_error(found, source=self._source, row=row, name=self._name_of(found))
        if not isinstance(self._data, ClickLog):  # whose values are checked where they are read
            self._check_finite(batch)

    def _check_finite(self, batch: Sessions) -> None:
        for field, value in batch.features.items():
            if not isinstance(value, SharedFeature) and (at := first_not_finite(value, batch.mask)) is not None:
                value = np.asarray(value)
                column = at[2] if len(at) > 2 else None
                name = field if column is None else f"{field}[{self._feature_name(field, column)}]"
                query = "" if batch.query is None else f", query {np.asarray(batch.query)[at[0]]}"
                raise DataError(
                    f"expected finite numbers, found {value[at]} at document {at[1] + 1} of its list{query}",
                    fix="Fill such values, or leave the documents out",
                    file=self._source,
                    row=self._first_not_finite_row(field),
                    field=name,
                )

    def _feature_name(self, field: str, column: int) -> str:
        schema = self._data.input_schema
        names = schema.features if schema is not None and field == FEATURES else ()
        return names[column] if column < len(names) else str(column)

    def _violation(self, batch: Sessions) -> Violation | None:
        return find_violation(self._model, batch, largest=self._largest, more=self._own or ())

    def _first(self, found: Violation) -> tuple[Violation, int | None]:
        """Finds the first value beyond the table in the stored order of the dataset, and its row, from 1."""
        bound = found.bound.bound
        if isinstance(self._data, ClickLog):
            if bound.field in _COLUMNS and (at := _first_in_log(self._data, bound)) is not None:
                return found._replace(found=at[1]), at[0]
            return found, None
        for start, batch in self._in_order():
            if (first := self._violation(batch)) is not None:
                return first, start + int(batch.shown()[: first.row].sum()) + 1
        return found, None

    def _first_not_finite_row(self, field: str) -> int | None:
        for start, batch in self._in_order():
            if (at := first_not_finite(batch.features[field], batch.mask)) is not None:
                return start + int(batch.shown()[: at[0]].sum()) + 1
        return None

    def _in_order(self) -> Iterator[tuple[int, Sessions]]:
        """Streams the dataset in its stored order, with the number of rows before each batch; lists come by width."""
        start = 0
        for batch in () if isinstance(self._data, Collection) else self._data.batches(STREAMED):
            yield start, batch.list_first()
            start += int(batch.list_first().shown().sum())

    def _name_of(self, found: Violation) -> str:
        """Names the document that is beyond a table, where the dataset has names."""
        if found.bound.bound.field != DOCUMENT or not isinstance(self._data, HasVocabulary) or found.found < 1:
            return ""
        names = self._data.vocabulary
        document = int(found.found)
        query = names.query_names[int(names.document_query[document])].as_py()
        return f"document '{names.document_names[document - 1].as_py()}' of query '{query}'"


def first_not_finite(values: Any, mask: Any) -> tuple[int, ...] | None:
    """Finds the first number [B, K, ...] of a shown document that is not finite; None where there is none."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum()):  # which every bad number would spoil
            return None
    bad = ~np.isfinite(array) & np.asarray(mask).reshape(*mask.shape, *(1,) * (array.ndim - 2))
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None


def inferred_bounds(model: nnx.Module, sessions: Sessions) -> tuple[NamedBound, ...]:
    """Finds the sizes of the tables over documents in modules that do not declare them: those of a user's own.

    Args:
      model: its modules are asked one by one.
      sessions: some lists of the kind that the model reads.
    """
    if DOCUMENT not in sessions.features or not sessions.shape[0]:
        return ()
    far = np.full((1, sessions.shape[1]), LARGE_ID, np.int32)
    one = sessions[:1]
    one = one.replace(features={**one.features, DOCUMENT: far})
    found = []
    for name, function in _undeclared(still(model)):
        size = _table_size(function, one)
        if size is not None:
            found.append(NamedBound(name, IndexBound(DOCUMENT, size, "ids")))
    return tuple(found)


@runtime_checkable
class _Scorer(Protocol):
    """A model that scores documents."""

    def score(self, sessions: Sessions) -> Any: ...


def _undeclared(model: nnx.Module) -> Iterator[tuple[str, Callable[[Sessions], Any]]]:
    """Yields the functions of sessions in a model that may hold tables without declaring them."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, CallableTower):
            yield module.name, module.function
        elif type(module).__module__.startswith("ultr."):
            continue
        elif isinstance(module, Tower) and not module.index_bounds:
            yield type(module).__name__, module
        elif not path and isinstance(module, _Scorer):
            yield type(module).__name__, module.score


def _table_size(function: Callable[[Sessions], Any], sessions: Sessions) -> int | None:
    """Computes below which number ids must stay for a function that looks them up; None: it looks up nothing by them.

    Args:
      function: of sessions.
      sessions: one list whose document ids are all `LARGE_ID`.
    """
    try:
        error, _ = checkify.checkify(function, errors=checkify.index_checks)(sessions)
        raised: Any = error.get_exception()
    except Exception:  # what fails here fails again, with its own error, where the model is used
        return None
    if raised is None:
        return None
    index, _, size = (int(x) for x in np.asarray(vars(raised)["_payload"]))
    return size - (index - LARGE_ID) if abs(index - LARGE_ID) <= 2 else None


def _first_in_log(log: ClickLog, bound: IndexBound) -> tuple[int, int] | None:
    """Finds the first session of a log, from 1, with a value beyond a table, and that value."""
    column, first, start = _COLUMNS[bound.field], bound.size + (bound.field == "position"), 0
    for rows in log.columns([column]):
        values = rows[column].flatten().to_numpy()
        bad = np.flatnonzero(values >= first)
        if len(bad):
            offsets = rows[column].offsets.to_numpy()
            row = start + int(np.searchsorted(offsets - offsets[0], bad[0], side="right"))
            return row, int(values[bad[0]]) - (bound.field == "position")
        start += len(rows)
    return None
