"""From the values of a file to those of a log: what is accepted, and what is said about the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.logs.engine import Engine

LARGEST_INT32 = 2**31 - 1
LARGEST_FLOAT32 = 3.4028234e38
LARGEST_GRADE = 31  # the gain of nDCG is 2 ** grade - 1

Checked = tuple[Any, Any]  # the value (null where it is bad), and whether it is good


def key(column: Any) -> Any:
    """A name as a string, null where there is none; whole numbers lose the fraction that a null gave them."""
    if column.type().is_floating():
        whole = column.try_cast("int64")
        return ibis.ifelse(whole == column, whole.cast("string"), column.cast("string"))
    return column.cast("string").nullif("")


def whole(column: Any, lowest: int, highest: int, kind: str) -> Checked:
    """A whole number of a range."""
    if column.type().is_integer():
        good = ((column >= lowest) & (column <= highest)).fill_null(False)
        return column.try_cast(kind), good
    value = _number(column)
    good = ((value >= lowest) & (value <= highest) & (value % 1 == 0)).fill_null(False)
    return ibis.ifelse(good, value, ibis.null()).try_cast(kind), good


def flag(column: Any) -> Checked:
    """0 or 1, also written false and true."""
    if column.type().is_boolean():
        return column.cast("int8"), column.notnull()
    if column.type().is_string():
        words = ibis.cases(
            (column.strip().lower() == "true", "1"), (column.strip().lower() == "false", "0"), else_=column
        )
        return whole(words, 0, 1, "int8")
    return whole(column, 0, 1, "int8")


def number(column: Any) -> Checked:
    """A finite number that float32 can hold."""
    value = _number(column)
    good = (value.abs() <= LARGEST_FLOAT32).fill_null(False) & ~value.isnan().fill_null(True)
    return ibis.ifelse(good, value, ibis.null("float64")).cast("float32"), good


def grade(column: Any) -> Checked:
    """A grade, or nothing where nobody judged. Grades below 0 are left to the caller."""
    value = _number(column)
    absent = column.isnull() | (column.strip() == "") if column.type().is_string() else column.isnull()
    good = (value.abs() <= LARGEST_GRADE).fill_null(False) & ~value.isnan().fill_null(True)
    return ibis.ifelse(good, value, ibis.null("float64")).cast("float32"), good | absent


def moment(column: Any) -> Checked:
    """A time: numbers stay as they are, dates and times become seconds since 1970."""
    kind = column.type()
    if kind.is_integer() and not kind.is_unsigned_integer():
        return column.cast("int64"), column.notnull()
    if kind.is_timestamp() or kind.is_date():
        value = _seconds(column.cast("timestamp"))
    elif kind.is_string():
        text = column.strip()
        stamp = text.try_cast("timestamp")  # in UTC where the text has an offset
        value = ibis.coalesce(text.try_cast("float64"), _seconds(stamp))
    else:
        value = _number(column)
    good = value.notnull() & ~value.isnan().fill_null(True) & ~value.isinf().fill_null(True)
    return ibis.ifelse(good, value, ibis.null("float64")), good


def _seconds(stamp: Any) -> Any:
    return stamp.truncate("s").epoch_seconds().cast("float64") + stamp.microsecond().cast("float64") / 1e6


def _number(column: Any) -> Any:
    kind = column.type()
    if kind.is_string():
        return column.strip().try_cast("float64")
    if kind.is_numeric():
        return column.cast("float64")
    return ibis.null("float64")


EXPECTED = {
    "rank": f"a whole number from 1 to {LARGEST_INT32:,}",
    "click": "0 or 1",
    "time": "a number or a date and time",
    "label": f"a grade of at most {LARGEST_GRADE}, or nothing",
    "feature": "a finite number",
}
FIXES = {
    "rank": "Ranks count from 1.",
    "click": "Make every click 0 or 1.",
    "label": "Scale the grades: the gain of nDCG is 2 ** grade - 1.",
    "feature": "Fill or drop such rows, or leave the column out.",
}
CHECKS: Mapping[str, Callable[[Any], Checked]] = {
    "rank": lambda column: whole(column, 1, LARGEST_INT32, "int32"),
    "click": flag,
    "time": moment,
    "label": grade,
    "feature": number,
}


def typed(table: ir.Table, kinds: Mapping[str, str]) -> ir.Table:
    """The columns checked and converted, with `bad` (the first bad field or null) and `found` (what it held).

    Args:
      kinds: column -> the check of `CHECKS` that it has to pass; other columns stay as they are.
    """
    columns: dict[str, Any] = {}
    bad: list[tuple[Any, Any]] = []
    found: list[tuple[Any, Any]] = []
    for name in table.columns:
        if name not in kinds:
            columns[name] = table[name]
            continue
        columns[name], good = CHECKS[kinds[name]](table[name])
        bad.append((~good, ibis.literal(name)))
        found.append((~good, table[name].cast("string")))
    none = ibis.null("string")
    columns["bad"] = ibis.cases(*bad, else_=none) if bad else none
    columns["found"] = ibis.cases(*found, else_=none) if found else none
    return table.select(**columns)


def reject(engine: Engine, table: ir.Table, where: Callable[[int], dict[str, Any]], names: Mapping[str, str]) -> None:
    """Raises about the first row of a `typed` table that did not pass.

    Args:
      where: `at` -> file and row.
      names: column -> its name in the file.

    Raises:
      DataError: with file, row, field, what was expected and found.
    """
    first = engine.record(table.filter(table.bad.notnull()).order_by("at").limit(1))
    if not first:
        return
    kind = first["bad"].split(".")[0]
    found = "nothing" if first["found"] is None else repr(first["found"])
    place = where(first["at"])
    assert isinstance(place["file"], Path)
    raise DataError(
        f"expected {EXPECTED[kind]}, found {found}",
        fix=FIXES.get(kind, ""),
        field=names.get(first["bad"], first["bad"]),
        **place,
    )
