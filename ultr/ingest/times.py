"""Finds times of several kinds in one column: seconds, milliseconds, ... since 1970, and dates."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import FileRow

# Times from 1989 to 2099 in seconds; other units are multiples.
_EARLIEST, _LATEST = 6e8, 4.1e9
_UNITS = (("seconds", 1.0), ("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))
_SMALL, _BETWEEN, _DATE = 0, len(_UNITS) + 1, len(_UNITS) + 2
KIND = "time_kind"


def time_kind(raw: Any, time: Any) -> ir.Value:
    """Returns the kind of each time, from 0.

    Args:
      raw: the column as the file has it.
      time: the column as a number.
    """
    numbers = [
        ((time >= _EARLIEST * unit) & (time <= _LATEST * unit), number)
        for number, (_, unit) in enumerate(_UNITS, _SMALL + 1)
    ]
    kind = ibis.cases((time < _EARLIEST, _SMALL), *numbers, else_=_BETWEEN)
    if raw.type().is_string():
        text = raw.strip()
        date = text.contains(":") | ((text.substr(4, 1) == "-") & ~text.lower().contains("e"))
        kind = ibis.ifelse(date, _DATE, kind)
    elif raw.type().is_timestamp() or raw.type().is_date():
        kind = ibis.literal(_DATE)
    return kind.cast("int8")


def kinds_found(table: ir.Table) -> ir.Value:
    """Returns the aggregate of the kinds of a table, a bit each."""
    return (ibis.literal(1, "int64") << table[KIND].cast("int64")).bit_or()


def reject_mixed_times(
    engine: Engine, table: ir.Table, kinds: int, where: Callable[[int], FileRow], field: str
) -> None:
    """Raises an error about times of several kinds, if there are any.

    Numbers count as times of different units where each is a time of these decades in its unit and none lies between:
    times since the start of a log may lie anywhere.

    Args:
      engine: the engine.
      table: at, time and the kind.
      kinds: of `kinds_found`.
      where: maps a position to the file and row.
      field: the name of the column in the file.

    Raises:
      DataError: names the first row of the second kind, and the first row of the first.
    """
    found = [kind for kind in range(_DATE + 1) if kinds >> kind & 1]
    units = [kind for kind in found if _SMALL < kind < _BETWEEN]
    dates = _DATE in found and len(found) > 1
    if not dates and (len(units) < 2 or _BETWEEN in found):
        return
    chosen = found if dates else units
    first = [
        engine.record(table.filter(table[KIND] == kind).select("at", "time", KIND).order_by("at").limit(1))
        for kind in chosen
    ]
    one, other, *_ = sorted(first, key=lambda row: row["at"])
    if dates and _DATE not in (one[KIND], other[KIND]):
        other = first[chosen.index(_DATE)]
    place = where(one["at"])
    raise DataError(
        f"expected times of one kind, found {_shown(other)} here and {_shown(one)} in row {place['row']} of "
        f"{place['file'].name}: in order of these numbers, times of different units are not in order of time",
        fix="Convert them all to one unit, such as seconds since 1970, or all to dates and times.",
        field=field,
        **where(other["at"]),
    )


def _shown(row: dict[str, Any]) -> str:
    if row[KIND] == _DATE:
        moment = datetime.datetime.fromtimestamp(row["time"], datetime.UTC)
        return f"a date ({moment:%Y-%m-%d %H:%M:%S})"
    name = _UNITS[row[KIND] - 1][0] + " since 1970" if _SMALL < row[KIND] < _BETWEEN else "a number"
    return f"{name} ({row['time']:.15g})"
