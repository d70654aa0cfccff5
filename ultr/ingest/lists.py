"""What is known once per list: session, query, time and context; one row per list, in the order of the log."""

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
from ultr.ingest.values import LARGEST_FLOAT32


@dataclass
class Lists:
    """The lists of a log.

    Attributes:
      table: staged; list (increasing in the order of the log), session, query, query_id, and if there are any time
        and context.<name>.
      context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}.
    """

    table: ir.Table
    context: dict[str, dict[str, Any]]

    def stream(self, engine: Engine) -> Iterator[pa.Table]:
        """The lists in order, columns as a `LogWriter` takes them, and `list`."""
        columns = self.table.drop("query", "at").order_by("list")
        return map(self._coded, engine.spool("lists_in_order", columns))

    def _coded(self, batch: pa.RecordBatch) -> pa.Table:
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


def gather(
    engine: Engine,
    rows: ir.Table,
    queries: ir.Table,
    *,
    context: Sequence[str] = (),
    text: bool = False,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    where: Callable[[int], dict[str, Any]],
) -> Lists:
    """Groups checked rows into lists: by `list` where they have it, by session and query otherwise.

    Args:
      rows: at, session, query, and if there are any list, time and context.<name> (strings or float64).
      queries: query and query_id.
      context: names of the context columns.
      text: whether a context of strings that are all numbers is a number.
      known: context of the log that this one extends: its categories keep their numbers.
      where: `at` -> file and row.

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
    kinds = {name: _kind(engine, table, name, text, (known or {}).get(name), where) for name in context}
    for name, about in kinds.items():
        if about["kind"] == "number" and table[CONTEXT + name].type().is_string():
            table = table.mutate(**{CONTEXT + name: table[CONTEXT + name].strip().cast("float64")})
    return Lists(table.drop(*(f"other.{name}" for name in context)), kinds)


def _kind(
    engine: Engine,
    table: ir.Table,
    name: str,
    text: bool,
    known: Mapping[str, Any] | None,
    where: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
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


class Cursor:
    """Takes rows from a stream of tables, any number at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: list[pa.Table] = []
        self._rows = 0

    def take(self, rows: int) -> pa.Table:
        """The next `rows` rows, or what is left."""
        while self._rows < rows and (table := next(self._tables, None)) is not None:
            self._held.append(table)
            self._rows += len(table)
        whole = pa.concat_tables(self._held)
        self._held, self._rows = [whole.slice(rows)], max(len(whole) - rows, 0)
        return whole.slice(0, rows)


def number_rows(rows: ir.Table, lists: Lists) -> ir.Table:
    """The rows with the `list` that they belong to."""
    if "list" in rows.columns:
        return rows
    return rows.join(lists.table.select("session", "query", "list"), ["session", "query"])


def times(engine: Engine, lists: Lists) -> np.ndarray:
    """[n] time of each list, in order."""
    return engine.table(lists.table.order_by("list").select("time"))["time"].to_numpy()
