"""Groups rows into lists, with one session, query, time and context each, in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.columns import CONTEXT
from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import FileRow
from ultr.ingest.values import LARGEST_FLOAT32


@dataclass(frozen=True)
class ListTable:
    """The lists of a log: one row with session, query, time and context for each.

    Attributes:
      table: list (increasing in the order of the log), session, query, query_id, at, and where there are any time and
        context.<name>.
      context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}, as for `LogWriter`.
    """

    table: ir.Table
    context: dict[str, dict[str, Any]]

    def stream(self, engine: Engine) -> Iterator[pa.Table]:
        """Yields the lists in order, with the columns that `LogWriter` takes, and `list`."""
        columns = self.table.drop("query", "at").order_by("list")
        return map(self._encode, engine.spool("lists_in_order", columns))

    def _encode(self, batch: pa.RecordBatch) -> pa.Table:
        table = pa.table(batch).rename_columns({"query_id": "query"})
        for name, about in self.context.items():
            column = table[CONTEXT + name]
            if about["kind"] == "number":
                column = column.cast(pa.float32(), safe=False)
            else:
                found = pc.index_in(column, value_set=pa.array(about["values"], pa.string()))
                column = pc.fill_null(pc.add(found, 1), 0).cast(pa.int32())
            table = table.set_column(table.schema.get_field_index(CONTEXT + name), CONTEXT + name, column)
        return table


def group_into_lists(
    engine: Engine,
    rows: ir.Table,
    queries: ir.Table,
    *,
    context: Sequence[str] = (),
    text: bool = False,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    where: Callable[[int], FileRow],
) -> ListTable:
    """Groups checked rows into lists: by `list` where they have it, otherwise by session and query.

    Args:
      engine: the engine.
      rows: at, session, query, and where there are any list, time and context.<name> (strings or float64).
      queries: query and query_id.
      context: names of the context columns.
      text: whether values are text that may stand for numbers: a context column of such numbers is a number.
      known: the context of the log that this one extends: its categories keep their numbers.
      where: maps a position to the file and row.

    Raises:
      DataError: a context column with two values in one list, or a number that is missing or not finite.
    """
    keys = ["list"] if "list" in rows.columns else ["session", "query"]
    values: dict[str, Any] = {"at": rows["at"].min()}
    if "list" in rows.columns:
        values |= {name: rows[name].min() for name in ("session", "query")}
    if "time" in rows.columns:
        values["time"] = rows["time"].min()
    for name in context:
        values |= {CONTEXT + name: rows[CONTEXT + name].min(), f"other.{name}": rows[CONTEXT + name].max()}
    table = rows.group_by(keys).agg(**values)
    if "list" not in table.columns:
        table = table.mutate(list=table["at"])
    table = engine.stage("lists", table.join(queries, "query"))
    for name in context:
        own, other = table[CONTEXT + name], table[f"other.{name}"]
        found = engine.record(table.filter(own != other).select("at", own=own, other=other).order_by("at").limit(1))
        if found:
            raise DataError(
                f"expected one value per list, found {found['own']!r} and {found['other']!r}",
                fix="A column that changes within a list is a feature: --feature (in Python: features=[...]).",
                field=name,
                **where(found["at"]),
            )
    kinds = {name: _context_type(engine, table, name, text, (known or {}).get(name), where) for name in context}
    for name, about in kinds.items():
        if about["kind"] == "number" and table[CONTEXT + name].type().is_string():
            table = table.mutate(**{CONTEXT + name: table[CONTEXT + name].strip().cast("float64")})
    return ListTable(table.drop(*(f"other.{name}" for name in context)), kinds)


def _context_type(
    engine: Engine,
    table: ir.Table,
    name: str,
    text: bool,
    known: Mapping[str, Any] | None,
    where: Callable[[int], FileRow],
) -> dict[str, Any]:
    """Decides whether a context column holds categories or numbers; a number that is not finite is an error."""
    value: Any = table[CONTEXT + name]
    category = known is not None and known["kind"] == "category"
    if value.type().is_string() and text and not category:
        number = value.strip().try_cast("float64")
        category = bool(engine.record(table.agg(words=(value.notnull() & number.isnull()).any()))["words"])
        value = value if category else number
    if value.type().is_string() or category:
        distinct = engine.table(table.select(value=value.cast("string")).distinct().order_by("value"))
        old = list(known["values"]) if known is not None and category else []
        new = [v for v in distinct["value"].drop_null().to_pylist() if v not in set(old)]
        return {"kind": "category", "values": old + new}
    good = (value.abs() <= LARGEST_FLOAT32).fill_null(False) & ~value.isnan().fill_null(True)
    bad = engine.record(table.filter(~good).select("at", value=value).order_by("at").limit(1))
    if bad:
        found = "nothing" if bad["value"] is None else bad["value"]
        raise DataError(
            f"expected a finite number, found {found}",
            fix="Fill it in, or make the column text: text may be missing.",
            field=name,
            **where(bad["at"]),
        )
    return {"kind": "number"}


class TableStream:
    """Reads a stream of tables in pieces of any number of rows."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: list[pa.Table] = []
        self._rows = 0

    def take(self, rows: int) -> pa.Table:
        """Returns the next `rows` rows, or those that are left."""
        while self._rows < rows and (table := next(self._tables, None)) is not None:
            self._held.append(table)
            self._rows += len(table)
        whole = pa.concat_tables(self._held)
        self._held, self._rows = [whole.slice(rows)], max(len(whole) - rows, 0)
        return whole.slice(0, rows)


def with_lists(rows: ir.Table, lists: ListTable) -> ir.Table:
    """Adds to each row the `list` that it belongs to."""
    if "list" in rows.columns:
        return rows
    return rows.join(lists.table.select("session", "query", "list"), ["session", "query"])


def list_times(engine: Engine, lists: ListTable) -> np.ndarray:
    """Computes the time of each list [n], in order."""
    times: np.ndarray = engine.table(lists.table.order_by("list").select("time"))["time"].to_numpy()
    return times
