"""Checks that a column of views numbers views: another one, such as flags or ids of rows, cuts lists apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine, bit_count
from ultr.ingest.positions import FileRow
from ultr.ingest.view_rules import FEW_PARTS, cuts_lists

_BITS = 62  # ranks up to this are a bit each


def check_view_column(
    engine: Engine,
    rows: ir.Table,
    *,
    pages: str | None,
    named: str | None,
    where: Callable[[int], FileRow],
) -> tuple[ir.Table, list[str]]:
    """Checks whether the values of `view` number views, by the ranks of their rows.

    A view begins with the first rank, so that two views of a query have ranks in common. Where the rows of all values
    of a session and query are one list instead, in which no rank comes twice and none is missing, the values tell parts
    of a list apart. That is evidence about the column only where it is much more frequent than values with a rank in
    common: in logs of which rows are missing, both happen by chance.

    Args:
      engine: the engine.
      rows: checked rows, with a column `view`.
      pages: as for `prepare`: "separate" takes the values of a named column as they are, "first" does not use them,
        and with "joined" they may number pages whose ranks go on.
      named: the name of the column where it was chosen, rather than found by its name; None otherwise.
      where: maps a position to the file and row.

    Returns:
      the rows, without the column where it was found by its name and cuts lists apart; and sentences for the report.

    Raises:
      DataError: a column that was chosen cuts lists apart.
    """
    if (named is not None and pages == "separate") or pages == "first":
        return rows, []
    first = engine.number(rows["rank"].min())
    found = engine.record(_evidence(rows, first, pages_may_go_on=named is not None and pages == "joined"))
    numbers = {name: int(value or 0) for name, value in found.items()}
    if not cuts_lists(numbers["whole"], numbers["shared"], divided=numbers["divided"], lists=numbers["groups"]):
        return rows, _warning(numbers, pages)
    name = named or "view"
    facts = (
        f"in {numbers['whole']:,} of the {numbers['divided']:,} sessions and queries with several values of '{name}', "
        f"the rows of all values together are whole lists from rank {first} on, while single values are not. Of the "
        f"{numbers['lists']:,} lists that the column makes, {numbers['single']:,} hold one row and {numbers['late']:,} "
        f"begin after rank {first}"
    )
    if named is None:
        note = (
            f"the column 'view' was not used, as it does not seem to number views: {facts}. Use it all the same with "
            "--view view --pages separate, or, where it numbers pages whose ranks go on, with --view view --pages "
            "joined (in Python: columns={'view': 'view'}, pages='separate')"
        )
        return rows.drop("view"), [note]
    raise DataError(
        f"expected a column that numbers the views of a query, found one that cuts lists apart: {facts}",
        fix="Name another column, or leave --view out (and rename the column if it is called 'view'): times and ranks "
        "then tell views apart. Where it numbers pages whose ranks go on, add --pages joined; to make every value a "
        "list all the same, add --pages separate (in Python: pages='separate').",
        field=name,
        **where(numbers["at"]),
    )


def _evidence(rows: ir.Table, first: int, *, pages_may_go_on: bool) -> ir.Table:
    """Counts the sessions and queries of several values, and of which of them the values cut whole lists apart."""
    rank = rows["rank"].cast("int64")
    low = rank <= _BITS
    parts = rows.group_by(["session", "query", "view"]).agg(
        rows=rows.count(),
        bits=(ibis.literal(1, "int64") << (ibis.least(rank, _BITS) - 1)).bit_or(where=low),
        most=rank.max(),
        least=rank.min(),
        at=rows["at"].min(),
    )
    plain = parts["most"] <= _BITS
    parts = parts.mutate(
        bits=parts["bits"].fill_null(0),
        ranks=ibis.ifelse(plain, bit_count(parts["bits"].fill_null(0)).cast("int64"), parts["rows"]),
        begins=(parts["least"] == first).cast("int64"),
        single=(parts["rows"] == 1).cast("int64"),
    )
    parts = parts.mutate(page=parts["ranks"] == parts["most"] - parts["least"] + 1)
    groups = parts.group_by(["session", "query"]).agg(
        parts=parts.count(),
        ranks=parts["ranks"].sum(),
        bits=parts["bits"].bit_or(),
        most=parts["most"].max(),
        begins=parts["begins"].sum(),
        single=parts["single"].sum(),
        pages=parts["page"].all(),
        at=parts["at"].min(),
    )
    length: Any = groups["most"] - first + 1
    distinct = bit_count(groups["bits"]).cast("int64")
    several = groups["parts"] > 1
    complete = (distinct == ibis.least(groups["most"], _BITS) - first + 1) & (groups["begins"] > 0)
    whole = several & complete & (groups["ranks"] == groups["begins"] * length) & (groups["begins"] < groups["parts"])
    shared = several & ~whole & (groups["ranks"] > ibis.ifelse(groups["most"] <= _BITS, distinct, length))
    counted = whole & ~groups["pages"] if pages_may_go_on else whole
    return groups.agg(
        groups=groups.count(),
        lists=groups["parts"].sum(),
        divided=several.sum(),
        whole=counted.sum(),
        shared=shared.sum(),
        single=groups["single"].sum(),
        late=(groups["parts"] - groups["begins"]).sum(),
        at=groups["at"].min(where=counted),
    )


def _warning(numbers: dict[str, int], pages: str | None) -> list[str]:
    """Warns of views that are parts of lists, where they are too few to say that the column has another meaning."""
    if pages is not None or numbers["whole"] < max(FEW_PARTS * numbers["divided"], 1):
        return []
    return [
        f"in {numbers['whole']:,} of the {numbers['divided']:,} sessions and queries with several views, the views "
        "together are one list in which no rank comes twice. If they are pages whose ranks go on, say so with --pages "
        "joined (in Python: pages='joined')"
    ]
