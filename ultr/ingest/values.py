"""From the values of a file to those of a log: what is accepted, and what is said about the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine

LARGEST_INT32 = 2**31 - 1
LARGEST_FLOAT32 = 3.4028234e38
LARGEST_GRADE = 31  # the gain of nDCG is 2 ** grade - 1


def key(column: Any) -> Any:
    """A name as a string, null where there is none; whole numbers lose the fraction that a null gave them."""
    if column.type().is_floating():
        whole = column.try_cast("int64")
        return ibis.ifelse(whole == column, whole.cast("string"), column.cast("string"))
    return column.cast("string").nullif("")


def _number(column: Any) -> Any:
    """The number that a value stands for, null where it stands for none."""
    kind = column.type()
    if kind.is_string():
        return column.strip().try_cast("float64")
    if kind.is_boolean() or not kind.is_numeric():
        return ibis.null("float64")
    return column if kind.is_integer() else column.cast("float64")


def _flag(column: Any) -> Any:
    """Like `_number`, with false and true for 0 and 1."""
    kind = column.type()
    if kind.is_boolean():
        return column.cast("int8")
    if not kind.is_string():
        return _number(column)
    # Nearly all are a single digit: only the others are looked at more closely.
    word = column.strip().lower()
    other = ibis.cases((word == "true", 1.0), (word == "false", 0.0), else_=word.try_cast("float64"))
    return ibis.cases((column == "0", 0.0), (column == "1", 1.0), else_=other)


def _moment(column: Any) -> Any:
    """Like `_number`; dates and times become seconds since 1970."""
    kind = column.type()
    if kind.is_timestamp() or kind.is_date():
        return _seconds(column.cast("timestamp"))
    if kind.is_numeric() or kind.is_boolean():
        return column.cast("int64") if kind.is_signed_integer() else _number(column).cast("float64")
    text = column.cast("string").strip()
    # With a zone, or an offset in the text would be lost; text without one is UTC, as the engine is set.
    stamp = text.try_cast("timestamp('UTC')").cast("timestamp")
    return ibis.coalesce(text.try_cast("float64"), _seconds(stamp))


def _seconds(stamp: Any) -> Any:
    return stamp.truncate("s").epoch_seconds().cast("float64") + stamp.microsecond().cast("float64") / 1e6


def _whole(value: Any) -> Any:
    return ibis.literal(True) if value.type().is_integer() else value % 1 == 0


def _finite(value: Any) -> Any:
    # NaN is larger than every number to some engines, and smaller to others.
    return (value <= LARGEST_FLOAT32) & (value >= -LARGEST_FLOAT32)


@dataclass(frozen=True)
class _Kind:
    """How a column is read: text or any type -> a number -> whether it is accepted."""

    read: Callable[[Any], Any]
    accept: Callable[[Any], Any]
    type: str | None
    expected: str
    fix: str = ""
    optional: bool = False
    words: str = ""  # what to do about a value that is no number at all


KINDS: Mapping[str, _Kind] = {
    "rank": _Kind(
        _number,
        lambda x: (x >= 1) & (x <= LARGEST_INT32) & _whole(x),
        "int32",
        f"a whole number from 1 to {LARGEST_INT32:,}",
        "Ranks count from 1.",
    ),
    "click": _Kind(_flag, lambda x: x.isin([0, 1]), "int8", "0 or 1", "Make every click 0 or 1."),
    "time": _Kind(_moment, lambda x: (x < 1e300) & (x > -1e300), None, "a number or a date and time"),
    "label": _Kind(
        _number,
        lambda x: (x >= -LARGEST_GRADE) & (x <= LARGEST_GRADE),
        "float32",
        f"a grade of at most {LARGEST_GRADE}, or nothing",
        "Scale the grades: the gain of nDCG is 2 ** grade - 1.",
        optional=True,
        words="Write the grades as numbers, such as 0 to 4.",
    ),
    "feature": _Kind(
        _number, _finite, "float32", "a finite number", "Fill or drop such rows, or leave the column out."
    ),
}


def typed(table: ir.Table, kinds: Mapping[str, str]) -> ir.Table:
    """The columns checked and converted, with `bad` (the first bad field or null) and `found` (what it held).

    Args:
      kinds: column -> the name in `KINDS` of what it has to be; other columns stay as they are.
    """
    # In two steps, so that a value is parsed once however often the second step looks at it.
    read = table.mutate(**{f"read.{name}": KINDS[kind].read(table[name]) for name, kind in kinds.items()})
    columns: dict[str, Any] = {}
    bad: list[tuple[Any, Any]] = []
    for name in table.columns:
        columns[name] = read[name]
        if name in kinds:
            kind, value = KINDS[kinds[name]], read[f"read.{name}"]
            good = kind.accept(value).fill_null(False)
            if kind.optional:
                text = read[name].type().is_string()
                good = good | read[name].isnull() | (read[name].strip() == "" if text else False)
            columns[name] = value if kind.type is None else value.try_cast(kind.type)
            bad.append((~good, name))
    none = ibis.null("string")
    columns["bad"] = ibis.cases(*((wrong, ibis.literal(name)) for wrong, name in bad), else_=none) if bad else none
    found = [(wrong, read[name].cast("string")) for wrong, name in bad]
    columns["found"] = ibis.cases(*found, else_=none) if found else none
    return read.select(**columns)


def reject(engine: Engine, table: ir.Table, where: Callable[[int], dict[str, Any]], names: Mapping[str, str]) -> None:
    """Raises about the first row of a `typed` table that did not pass.

    Args:
      where: `at` -> file and row.
      names: column -> its name in the file.

    Raises:
      DataError: with file, row, field, what was expected and found.
    """
    first = engine.record(table.filter(table.bad.notnull()).order_by("at").limit(1))
    if first:
        kind = KINDS[first["bad"].split(".")[0]]
        found = "nothing" if first["found"] is None else repr(first["found"])
        field = names.get(first["bad"], first["bad"])
        if kind.words and _wordy(first["found"]):
            found, fix = f"{found}, which is not a number", kind.words
        else:
            fix = kind.fix
        raise DataError(f"expected {kind.expected}, found {found}", fix=fix, field=field, **where(first["at"]))


def _wordy(text: str | None) -> bool:
    try:
        return text is not None and math.isnan(float(text))
    except ValueError:
        return True
