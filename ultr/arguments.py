"""Checks of arguments: numbers of things, numbers in a range, arrays of whole numbers."""

from __future__ import annotations

import math
import reprlib
from numbers import Integral, Real
from typing import Any

import numpy as np

from ultr.errors import ConfigError, DataError

LARGEST_GRADE = 31  # nDCG computes the gain 2 ** grade - 1, err a share of 2 ** grade, in float32
SCALE_GRADES = "Scale the grades: nDCG computes the gain 2 ** grade - 1."
LARGEST_ID = 2**31 - 2  # ids and ranks are int32, and some have one added to them


def check_count(name: str, value: Any, *, least: int = 1, most: float = math.inf) -> int:
    """Checks a number of things, and returns it as an `int`.

    Raises:
      ConfigError: no whole number, or one below `least` or above `most`; names the argument.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or not least <= int(value) <= most:
        limit = f"of at least {least}" if most == math.inf else f"from {least} to {most:,}"
        raise ConfigError(f"expected {name} as a whole number {limit}, found {value!r}")
    return int(value)


def check_number(name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Checks a finite number, and returns it as a `float`.

    Args:
      name: of the argument.
      value: what was given.
      above: what the number must exceed.
      least: the least that it may be.

    Raises:
      ConfigError: no finite number in that range; names the argument.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool | np.bool_) else math.nan
    except OverflowError:  # a whole number beyond all floating-point numbers
        number = math.inf
    if not (math.isfinite(number) and number > above and number >= least):
        limit = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise ConfigError(f"expected {name} as a finite number{limit}, found {value!r}")
    return number


def check_name(name: str, value: Any) -> str:
    """Checks a name, such as that of a feature, and returns it.

    Raises:
      ConfigError: something else than text with a character or more; names the argument.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"expected {name} as a name, found {value!r}")
    return value


def check_names(name: str, value: Any) -> str | tuple[str, ...]:
    """Checks a name or several, and returns the one or a tuple.

    Raises:
      ConfigError: something else than text, or than a sequence of it that is not empty; names the argument.
    """
    if isinstance(value, list | tuple) and value:
        return tuple(check_name(name, each) for each in value)
    return check_name(name, value)


def number_array(
    given: Any, field: str, *, file: str | None = None, row: int | None = None, objects: bool = True
) -> np.ndarray:
    """Makes an array of numbers of what is given: of booleans, whole numbers or floating-point numbers.

    Args:
      given: an array, or lists of numbers; whole Python numbers of any size.
      field, file, row: what errors call it.
      objects: whether lists, and arrays of Python numbers, will do.

    Raises:
      DataError: text, dates, complex numbers, other objects, lists of several lengths, or masked entries.
    """
    if not objects and not hasattr(given, "dtype"):
        raise DataError(f"expected an array, found {type(given).__name__}", file=file, row=row, field=field)
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        raise DataError("expected a number in every place, found masked entries", file=file, row=row, field=field)
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise DataError(
            "expected lists of one length, found several", fix="Sessions.from_lists pads lists of any lengths",
            file=file, row=row, field=field,
        ) from error  # fmt: skip
    if objects and array.dtype.kind == "O" and array.size and all(isinstance(x, Real) for x in array.flat):
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "biuf" and "float" not in array.dtype.name and array.size:
        raise DataError(f"expected numbers, found {_kind_text(array)}", file=file, row=row, field=field)
    return array


def _kind_text(array: np.ndarray) -> str:
    if array.dtype.kind == "O":
        odd = next((x for x in array.flat if not isinstance(x, Real)), None)
        return "Python objects" if odd is None else reprlib.repr(odd)[:60]
    if array.dtype.kind in "US":
        return f"text such as '{array.flat[0]!s:.40}'"
    return f"values of type {array.dtype}"


def whole_array(given: Any, field: str, *, least: int = 0, most: int = LARGEST_ID) -> np.ndarray:
    """Makes an array of whole numbers of what is given: NaN, 1.5 and text are none.

    Args:
      given: an array or lists of numbers; floating-point numbers that are whole become int64.
      field: what errors call it.
      least, most: the range of the numbers.

    Raises:
      DataError: names the first entry that is something else.
    """
    array = number_array(given, field)
    bad = not_whole_from(array, least, most)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        found = array[place] if place else array
        raise DataError(
            f"expected whole numbers from {least} to {most}, found {found}", row=place[0] + 1 if place else None,
            field=field,
        )  # fmt: skip
    return array if array.dtype.kind in "iu" else array.astype(np.int64)


def check_grades(grades: np.ndarray, field: str, *, file: str | None = None) -> None:
    """Checks that no grade is so high that metrics lose it; NaN is none.

    Args:
      grades: by row, along the first axis.
      field, file: what errors call them.

    Raises:
      DataError: a grade above `LARGEST_GRADE`; names its 1-based row.
    """
    above = grades > LARGEST_GRADE
    if above.any():
        place = tuple(int(i) for i in np.argwhere(above)[0])
        raise DataError(
            f"expected a grade of at most {LARGEST_GRADE}, found {grades[place]:g}",
            fix=SCALE_GRADES,
            file=file,
            row=place[0] + 1,
            field=field,
        )


def not_whole_from(values: np.ndarray, least: int, most: int = LARGEST_ID) -> np.ndarray:
    """Tells which numbers are not whole or not from `least` to `most`, in the shape of the values.

    Floating-point numbers are compared as float64, which holds the bounds exactly: float16 has none so large, and to
    float32 the largest id and the number after it are one.
    """
    if values.dtype.kind in "iu":
        return np.asarray((values < least) | (values > most))
    compared = values.astype(np.float64) if values.dtype.itemsize < 8 else values
    return np.asarray(not_whole(values) | (compared < least) | (compared > most))


def as_float32(values: np.ndarray) -> np.ndarray:
    """Casts numbers to float32, in which models compute; those beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def not_whole(values: np.ndarray) -> np.ndarray:
    """Tells which numbers are not whole, such as NaN and 1.5, in the shape of the values."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, bool)
    if values.dtype.kind == "b":
        return np.ones(values.shape, bool)
    found: np.ndarray = ~np.isfinite(values) | (np.rint(values) != values)
    return found
