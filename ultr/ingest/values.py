"""Converts the values of raw files to those of a log, and rejects values that are not accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.arguments import LARGEST_GRADE, SCALE_GRADES
from ultr.data.columns import MAX_RANKS
from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import FileRow

LARGEST_FLOAT32 = 3.4028234e38
LARGEST_FEATURE = 1 << 16  # number of a feature


_BLANK = r"[\s\p{Z}\x{0085}\x{FEFF}]"  # no-break and other blanks of Unicode too, as web pages and spreadsheets have


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def strlen(text: str) -> int:  # type: ignore[empty-body]
    """Counts the bytes of a text."""


def trimmed(text: Any) -> Any:
    """Takes white space off both ends of a column of strings, that of Unicode too."""
    # Most values have none, and looking for one takes a fifth of the time of taking it off.
    plain = ibis.ifelse(ibis.or_(*(text.contains(sign) for sign in " \t\r\n")), text.strip(), text)
    return ibis.ifelse(_beyond_ascii(text), text.re_replace(f"^{_BLANK}+|{_BLANK}+$", ""), plain)


def _beyond_ascii(text: Any) -> Any:
    return strlen(text) != text.length()


def padded(text: Any) -> Any:
    """Tells of each string of a column whether white space stands at its ends, or else than blanks anywhere."""
    inside = [text.contains(sign) for sign in "\t\r\n"]
    wide = _beyond_ascii(text) & text.re_search(f"^{_BLANK}|{_BLANK}$")
    return ibis.or_(text.startswith(" "), text.endswith(" "), wide, *inside)


def as_name(column: Any) -> ir.Value:
    """Converts a column to names: strings, null where they are empty.

    Floats that are whole are written as integers; those that are not finite are no names.
    """
    if column.type().is_floating():
        whole = column.try_cast("int64")
        text = ibis.ifelse(whole == column, whole.cast("string"), column.cast("string"))
        return ibis.ifelse(column.isnan() | column.isinf(), ibis.null("string"), text)
    return column.cast("string").nullif("")


def check_key(column: Any, file: Path, field: str) -> None:
    """Checks that the values of a column can be names or categories.

    Raises:
      DataError: they are lists, times or other things than text, numbers and truth values.
    """
    kind = column.type()
    if not (kind.is_string() or kind.is_numeric() or kind.is_boolean() or kind.is_uuid()):
        raise DataError(f"expected text or numbers, found {kind}", file=file, field=field)


def _number(column: Any) -> Any:
    """Converts a column to numbers, null where a value is no number."""
    kind = column.type()
    if kind.is_string():
        return column.try_cast("float64")  # which takes white space at the ends
    if kind.is_boolean() or not kind.is_numeric():
        return ibis.null("float64")
    return column if kind.is_integer() else column.cast("float64")


def _flag(column: Any) -> Any:
    """Converts a column like `_number`, and false and true to 0 and 1."""
    kind = column.type()
    if kind.is_boolean():
        return column.cast("int8")
    if not kind.is_string():
        return _number(column)
    # Nearly all values are "0" or "1": the others alone are parsed, which is slow.
    word = column.strip().lower()
    other = ibis.cases((word == "true", 1.0), (word == "false", 0.0), else_=word.try_cast("float64"))
    return ibis.cases((column == "0", 0.0), (column == "1", 1.0), else_=other)


def _moment(column: Any) -> Any:
    """Converts a column like `_number`, and dates and times to seconds since 1970."""
    kind = column.type()
    if kind.is_timestamp() or kind.is_date():
        return _seconds(column.cast("timestamp"))
    if kind.is_numeric() or kind.is_boolean():
        return column.cast("int64") if kind.is_signed_integer() else _number(column).cast("float64")
    text = column.cast("string").strip()
    # Cast with a time zone: otherwise an offset in the text would be ignored. Text without one is read as UTC.
    stamp = text.try_cast("timestamp('UTC')").cast("timestamp")
    return ibis.coalesce(text.try_cast("float64"), _seconds(stamp))


def read_time(column: Any) -> Any:
    """Converts a column of times to float64: numbers as they are, dates in seconds since 1970, null for others."""
    return _moment(column).cast("float64")


def _seconds(stamp: Any) -> Any:
    return stamp.truncate("s").epoch_seconds().cast("float64") + stamp.microsecond().cast("float64") / 1e6


def _grade(column: Any) -> Any:
    """Converts a column like `_number`; NaN is no grade."""
    value = _number(column)
    return (
        ibis.ifelse(value.isnan(), ibis.null("float64"), value)
        if column.type().is_floating()
        else value.cast("float64")
    )


def _whole(value: Any) -> Any:
    return ibis.literal(True) if value.type().is_integer() else value % 1 == 0


def _finite(value: Any) -> Any:
    # Two bounds: NaN is larger than every number to some engines, and smaller to others.
    return (value <= LARGEST_FLOAT32) & (value >= -LARGEST_FLOAT32)


@dataclass(frozen=True)
class ValueType:
    """Describes the values of a column: how they are read, which are accepted, and what errors say about others.

    Attributes:
      read: converts a column of any type to numbers, null where a value is none.
      accept: maps these numbers to whether they are accepted.
      type: type of the converted column; None keeps that of the numbers.
      expected: what an error says was expected.
      fix: what an error suggests.
      optional: whether a value may be missing.
      fix_word: what an error suggests about a value that is no number at all, where that is something else.
    """

    read: Callable[[Any], Any]
    accept: Callable[[Any], Any]
    type: str | None
    expected: str
    fix: str = ""
    optional: bool = False
    fix_word: str = ""


VALUE_TYPES: Mapping[str, ValueType] = {
    "rank": ValueType(
        _number,
        lambda x: (x >= 1) & (x <= MAX_RANKS) & _whole(x),
        "int32",
        f"a whole number from 1 to {MAX_RANKS:,}",
        "Ranks count from 1 and are places in a list: add 1 to ranks that count from 0, and leave out rows whose rank "
        "stands for 'not shown', such as 999999999.",
    ),
    "click": ValueType(_flag, lambda x: x.isin([0, 1]), "int8", "0 or 1", "Make every click 0 or 1."),
    "time": ValueType(_moment, lambda x: (x < 1e300) & (x > -1e300), None, "a number or a date and time"),
    "label": ValueType(
        _grade,
        lambda x: (x >= -LARGEST_GRADE) & (x <= LARGEST_GRADE),
        "float32",
        f"a grade of at most {LARGEST_GRADE}, or nothing",
        SCALE_GRADES,
        optional=True,
        fix_word="Write the grades as numbers, such as 0 to 4.",
    ),
    "feature": ValueType(
        _number, _finite, "float32", "a finite number", "Fill or drop such rows, or leave the column out."
    ),
}


def convert_columns(table: ir.Table, types: Mapping[str, str]) -> ir.Table:
    """Converts and checks columns; `raise_first_bad` raises the error about values that are not accepted.

    Args:
      table: the raw rows.
      types: column -> its name in `VALUE_TYPES`; other columns stay as they are.

    Returns:
      the table with the further columns `bad` (name of the first column with a bad value, or null) and `found` (that
      value as text).
    """
    # In two steps, so that a value is parsed only once although the second step uses it several times.
    read = table.mutate(**{f"read.{name}": VALUE_TYPES[kind].read(table[name]) for name, kind in types.items()})
    columns: dict[str, Any] = {}
    bad: list[tuple[Any, Any]] = []
    for name in table.columns:
        columns[name] = read[name]
        if name in types:
            kind, value = VALUE_TYPES[types[name]], read[f"read.{name}"]
            good = kind.accept(value).fill_null(False)
            if kind.optional:
                raw = read[name]
                nothing = raw.isnan() if raw.type().is_floating() else ibis.literal(False)
                good = good | raw.isnull() | (raw.strip() == "" if raw.type().is_string() else nothing)
            columns[name] = value if kind.type is None else value.try_cast(kind.type)
            bad.append((~good, name))
    none = ibis.null("string")
    columns["bad"] = ibis.cases(*((wrong, ibis.literal(name)) for wrong, name in bad), else_=none) if bad else none
    found = [(wrong, read[name].cast("string")) for wrong, name in bad]
    columns["found"] = ibis.cases(*found, else_=none) if found else none
    return read.select(**columns)


def raise_first_bad(engine: Engine, table: ir.Table, where: Callable[[int], FileRow], names: Mapping[str, str]) -> None:
    """Raises an error about the first row of a converted table with a bad value, if there is one.

    Args:
      engine: the engine.
      table: of `convert_columns`, with a column `at`.
      where: maps a position to the file and row.
      names: column -> its name in the file.

    Raises:
      DataError: there is a bad value; names file, row, field, what was expected and found.
    """
    first = engine.record(table.filter(table.bad.notnull()).order_by("at").limit(1))
    if first:
        kind = VALUE_TYPES[first["bad"].split(".")[0]]
        found = "nothing" if first["found"] is None else repr(first["found"][:80])
        field = names.get(first["bad"], first["bad"])
        if kind.fix_word and _is_word(first["found"]):
            found, fix = f"{found}, which is not a number", kind.fix_word
        else:
            fix = kind.fix
        found += _others(engine, table.filter(table.bad == first["bad"]))
        raise DataError(f"expected {kind.expected}, found {found}", fix=fix, field=field, **where(first["at"]))


def _others(engine: Engine, bad: ir.Table) -> str:
    """Says how many rows have such values, and which, where there are several."""
    rows = engine.number(bad.count())
    if rows < 2:
        return ""
    values = bad.filter(bad.found.notnull()).group_by("found").agg(at=bad["at"].min())
    some = engine.table(values.order_by("at").limit(3))["found"].to_pylist()
    such = f", such as {', '.join(repr(value[:40]) for value in some)}" if len(some) > 1 else ""
    return f" ({rows:,} rows have such a value there{such})"


def _is_word(text: str | None) -> bool:
    try:
        return text is not None and math.isnan(float(text))
    except ValueError:
        return True
