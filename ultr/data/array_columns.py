"""Makes the vocabulary of a collection from arrays that a caller gives, and checks these."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.arguments import as_float32, number_array, whole_array
from ultr.data.grade_scale import grade_scale
from ultr.data.vocabulary import Vocabulary
from ultr.errors import DataError

LARGEST_QUERY = (1 << 26) - 1  # id of a query; all below it get names


def vocabulary_of_arrays(
    *,
    query: Any,
    label: Any,
    features: Any,
    document: Sequence[str] | None,
    ids: Any,
    feature_names: Sequence[str] | None,
    max_grade: float | None,
) -> Vocabulary:
    """Makes a vocabulary in memory of arrays with one entry per graded document.

    Arguments and errors are those of `Collection.from_arrays`.
    """
    given = np.asarray(query, object) if isinstance(query, list | tuple) else np.asanyarray(query)
    count = len(given) if given.ndim == 1 else -1
    if count < 1:
        raise DataError(f"expected [D] query ids or names, found shape {given.shape}", field="query")
    if given.dtype.kind in "SU" or (given.dtype.kind in "OT" and isinstance(given[0], str)):
        coded = pa.array(_names(given, "query")).dictionary_encode()
        owner, names = coded.indices.to_numpy(), coded.dictionary
    else:
        keys = whole_array(given, "query", most=LARGEST_QUERY)
        owner, names = keys.astype(np.int32), pa.array(np.arange(int(keys.max()) + 1)).cast(pa.string())
    grades = _column(label, "label", (count,))
    _reject(~np.isfinite(grades), "label", "finite grades")
    table = None
    if features is not None:
        table = _column(features, "features", (count, -1))
        if not (finite := np.isfinite(table)).all():
            at = int((~finite).any(0).argmax())
            named = at if feature_names is None or at >= len(feature_names) else feature_names[at]
            _reject(~finite[:, at], f"features[{named}]", f"finite numbers, found {table[~finite[:, at], at][0]}")
    numbers = np.arange(1, count + 1, dtype=np.int32)
    if ids is not None:
        own = whole_array(ids, "ids", least=1)
        if own.shape != (count,) or not np.array_equal(np.sort(own), numbers):
            raise DataError(f"expected every id of 1 to {count} once", field="ids")
        numbers = own.astype(np.int32)
    titles = numbers.astype(str).tolist() if document is None else _names(document, "document")
    if len(titles) != count:
        raise DataError(f"expected {count} names, found {len(titles)}", field="document")
    width = 0 if table is None else table.shape[1]
    titled = (
        [str(i) for i in range(width)] if feature_names is None else _array(feature_names, "feature_names").tolist()
    )
    if not isinstance(titled, list) or not all(isinstance(name, str) for name in titled):
        raise DataError(f"expected a list of names, found {reprlib.repr(titled)}", field="feature_names")
    if len(titled) != width:
        raise DataError(f"expected {width} names, found {len(titled)}", field="feature_names")
    back = np.argsort(numbers)
    columns: dict[str, Any] = {
        "query": pa.array(owner[back]),
        "document": pa.array(titles, pa.string()).take(pa.array(back)),
        "label": pa.array(grades[back]),
    }
    if table is not None:
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(table[back].ravel()), width)
    rows = pa.table({"query": names})
    scale = grade_scale(grades, stated=max_grade)
    return Vocabulary.from_tables(rows, pa.table(columns), features=titled, max_grade=scale)


def _column(values: Any, field: str, shape: tuple[int, ...]) -> np.ndarray:
    array = number_array(values, field)
    if array.ndim != len(shape) or array.shape[0] != shape[0]:
        raise DataError(f"expected shape {shape}, found {array.shape}", field=field)
    return as_float32(array)


def _names(given: Any, field: str) -> list[str]:
    """Makes names of strings and whole numbers."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise DataError(f"expected names, found {type(given).__name__}", field=field)
    found = [x.decode() if isinstance(x, bytes) else x for x in given]
    for row, name in enumerate(found, 1):
        if isinstance(name, bool | np.bool_) or not isinstance(name, str | Integral):
            raise DataError(f"expected names (text or whole numbers), found {reprlib.repr(name)}", row=row, field=field)
    return [str(name) for name in found]


def _array(values: Any, field: str) -> np.ndarray:
    """Makes an array of values of one form.

    Raises:
      DataError: they differ in form.
    """
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"expected one value per document, found {error}", field=field) from error


def _reject(bad: np.ndarray, field: str, expected: str) -> None:
    if bad.any():
        raise DataError(f"expected {expected}", row=int(bad.argmax()) + 1, field=field)
