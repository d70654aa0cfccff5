"""Groups rows into lists, with one session, query, time and context each, in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.columns import CONTEXT
from ultr.data.splits import session_keys
from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import FileRow
from ultr.ingest.values import LARGEST_FLOAT32
from ultr.ingest.view_rules import ViewCounts
from ultr.ingest.views import Views, list_keys, rank_aggregates, tell_views_apart


@dataclass(frozen=True)
class ListTable:
    """The lists of a log: one row with session, query, time and context for each.

    Attributes:
      table: list (increasing in the order of the log), session, query, query_id, at, and where there are any time and
        context.<name>.
      rows: the rows of the log, each with its `list`.
      context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}, as for `LogWriter`.
      views: what became of rows with a repeated rank; None where there are none.
    """

    table: ir.Table
    rows: ir.Table
    context: dict[str, dict[str, Any]]
    views: ViewCounts | None

    def repeated_queries(self, engine: Engine) -> int:
        """Counts the sessions and queries that have several lists."""
        found = self.table.group_by(["session", "query"]).agg(lists=self.table.count())
        return engine.number(found.filter(found["lists"] > 1).count())

    def session_keys(self, engine: Engine) -> np.ndarray:
        """Computes numbers [n] of the lists in order that are equal where their sessions are."""
        sessions = engine.spool("sessions_in_order", self.table.order_by("list").select("session"))
        return np.concatenate([session_keys(batch["session"]) for batch in sessions])

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
    pages: str | None = None,
    asks_about_pages: bool = False,
    where: Callable[[int], FileRow],
) -> ListTable:
    """Groups checked rows into lists: by `list` where they have it, otherwise by session, query and view.

    Args:
      engine: the engine.
      rows: at, session, query, document, rank, click, and where there are any list, view, time and context.<name>
        (strings or float64).
      queries: query and query_id.
      context: names of the context columns.
      text: whether values are text that may stand for numbers: a context column of such numbers is a number.
      known: the context of the log that this one extends: its categories keep their numbers.
      pages, asks_about_pages: as for `tell_views_apart`.
      where: maps a position to the file and row.

    Raises:
      DataError: a context column with two values in one list, or a number that is missing or not finite; or as
        `tell_views_apart`.
    """
    keys = list_keys(rows, pages)
    delimited = keys == ["list"]
    values = _values(rows, context, names=("session", "query") if delimited else ())
    checks = {} if delimited else rank_aggregates(rows, keys)
    table = rows.group_by(keys).agg(**values, **checks)
    if not delimited:
        table = table.mutate(list=table["at"])
    table = engine.stage("lists", table.join(queries, "query"))
    views: Views | None = None
    if not delimited:
        if pages != "first":
            views = tell_views_apart(
                engine, rows, table, keys, pages=pages, asks_about_pages=asks_about_pages, where=where
            )
        numbered = rows.join(table.select(*keys, "list"), keys)
        table = table.drop(*(name for name in checks if name not in keys))
        if views is not None:
            rows, table = _with_views(engine, numbered, table, queries, views.rows, context)
        else:
            rows = numbered
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
    table = table.drop(*(f"other.{name}" for name in context), *(["view"] if "view" in table.columns else []))
    return ListTable(table, rows, kinds, views.counts if views is not None else None)


def _values(rows: ir.Table, context: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Returns the aggregates that make a list of its rows."""
    values: dict[str, Any] = {"at": rows["at"].min()} | {name: rows[name].min() for name in names}
    if "time" in rows.columns:
        values["time"] = rows["time"].min()
    for name in context:
        values |= {CONTEXT + name: rows[CONTEXT + name].min(), f"other.{name}": rows[CONTEXT + name].max()}
    return values


def _with_views(
    engine: Engine, rows: ir.Table, lists: ir.Table, queries: ir.Table, views: ir.Table, context: Sequence[str]
) -> tuple[ir.Table, ir.Table]:
    """Replaces the lists with a repeated rank by their views; returns the rows and the lists."""
    own = rows.join(views, "at")
    own = own.filter(own["view_keep"]).drop("list").rename(list="view_list")
    names = ["session", "query", *(["view"] if "view" in lists.columns else [])]
    made = own.group_by("list").agg(**_values(own, context, names)).join(queries, "query")
    replaced = rows.join(views, "at").select("list").distinct()
    kept = lists.anti_join(replaced, "list")
    table = engine.stage("lists_with_views", kept.union(made.select(kept.columns)))
    rows = rows.left_join(views, "at")
    rows = rows.drop("at_right")
    rows = rows.filter(rows["view_keep"].fill_null(True))
    number = ibis.coalesce(rows["view_list"], rows["list"])
    rank = ibis.coalesce(rows["view_rank"], rows["rank"])
    return rows.mutate(list=number, rank=rank).drop("view_list", "view_rank", "view_keep"), table


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


def list_times(engine: Engine, lists: ListTable) -> np.ndarray:
    """Computes the time of each list [n], in order."""
    times: np.ndarray = engine.table(lists.table.order_by("list").select("time"))["time"].to_numpy()
    return times
