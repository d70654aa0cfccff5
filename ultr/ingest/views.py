"""Makes lists of rows in which a query comes several times in a session: one list per session, query and view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from ultr.data.columns import CONTEXT, FEATURE
from ultr.errors import ConfigError, DataError
from ultr.ingest.engine import Engine, bit_count
from ultr.ingest.packing import FlatColumns
from ultr.ingest.positions import FileRow
from ultr.ingest.view_assignment import SCHEMA, assign_views, gather_evidence, whole_groups
from ultr.ingest.view_rules import Rules, ViewCounts

PAGES = ("separate", "joined", "first")
FEW = 0.002  # from this share of the rows or lists on, what was told apart by a rule is worth a warning,
MANY = 0.005  # and what could not be told apart is refused
_BITS = 62  # ranks up to this are a bit each


@dataclass(frozen=True)
class Views:
    """The views of a log with repeated ranks.

    Attributes:
      rows: at, `view_list`, `view_rank`, `view_keep` of the rows of sessions and queries with a repeated rank.
      counts: what became of these rows.
    """

    rows: ir.Table
    counts: ViewCounts


def check_pages(pages: str | None) -> None:
    """Checks the name of a way to treat ranks that start again.

    Raises:
      ConfigError: there is none of this name.
    """
    if pages is not None and pages not in PAGES:
        raise ConfigError(f"expected pages of {list(PAGES)}, found {pages!r}")


def list_keys(rows: ir.Table, pages: str | None) -> list[str]:
    """Names the columns whose values a list shares."""
    if "list" in rows.columns:
        return ["list"]
    # Pages of one list may be views of their own, which are joined later, or of which the first rows are kept.
    apart = "view" in rows.columns and pages not in ("joined", "first")
    return ["session", "query", *(["view"] if apart else [])]


def rank_aggregates(rows: ir.Table, keys: list[str]) -> dict[str, Any]:
    """Returns the aggregates of a list by which `repeated_ranks` finds those with a repeated rank."""
    rank = rows["rank"].cast("int64")
    low = rank <= _BITS
    out: dict[str, Any] = {
        "rows": rows.count(),
        "bits": (ibis.literal(1, "int64") << (ibis.least(rank, _BITS) - 1)).bit_or(where=low),
        "most": rank.max(),
        "clicks": rows["click"].sum(),
    }
    if "view" in rows.columns and "view" not in keys:
        out |= {"view": rows["view"].min(), "other_view": rows["view"].max()}
    return out


def repeated_ranks(lists: ir.Table, rows: ir.Table, keys: list[str]) -> ir.Table:
    """Finds the lists with a repeated rank, and where views are to be joined those of several views."""
    plain = lists["most"] <= _BITS
    found = lists.filter(plain & (bit_count(lists["bits"].fill_null(0)) != lists["rows"]))
    deep = lists.filter(~plain & (lists["rows"] > 1))
    inside = rows.semi_join(deep, keys)
    counted = inside.group_by(keys).agg(n=inside.count(), ranks=inside["rank"].nunique())
    found = found.union(deep.semi_join(counted.filter(counted.n > counted.ranks), keys))
    if "other_view" in lists.columns:
        several = lists.filter(lists["view"] != lists["other_view"])
        found = found.union(several.anti_join(found, keys))
    return found


def tell_views_apart(
    engine: Engine,
    rows: ir.Table,
    lists: ir.Table,
    keys: list[str],
    *,
    pages: str | None,
    asks_about_pages: bool,
    where: Callable[[int], FileRow],
) -> Views | None:
    """Tells the views of sessions and queries with repeated ranks apart; None where no rank is repeated.

    Args:
      engine: the engine.
      rows: checked rows.
      lists: one row per value of `keys`, with `rank_aggregates` and `list`.
      keys: of `list_keys`.
      pages: "separate", "joined", "first", or None, which keeps pages apart and warns of them.
      asks_about_pages: whether pages without an answer are an error.
      where: maps a position to the file and row.

    Raises:
      DataError: views that cannot be told apart, or pages without an answer.
    """
    chosen = engine.stage("repeated_ranks", repeated_ranks(lists, rows, keys).select(*keys, "list", "clicks"))
    totals = engine.record(chosen.agg(lists=chosen.count(), clicks=chosen["clicks"].sum()))
    if not totals["lists"]:
        return None
    about = engine.record(lists.agg(lists=lists.count(), rows=lists["rows"].sum(), clicks=lists["clicks"].sum()))
    batches = engine.spool("rows_of_views", _wanted(rows.join(chosen.select(*keys, group="list"), keys), keys))

    def blocks() -> Iterator[FlatColumns]:
        return whole_groups(batches)

    tick = 1.0
    if "time" in rows.columns:
        latest = engine.record(rows.agg(latest=rows["time"].cast("float64").abs().max()))["latest"]
        tick = next((unit for unit, least in ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11)) if latest > least), 1.0)
    rules = Rules.of(
        gather_evidence(blocks(), tick),
        joined=pages == "joined",
        tick=tick,
        timed="time" in rows.columns,
        other_clicks=int(about["clicks"]) - int(totals["clicks"]),
    )
    counts = ViewCounts()
    table = engine.load("views", assign_views(blocks(), rules, counts), SCHEMA)
    _refuse_mixed(counts, int(about["rows"]), where, timed="time" in rows.columns)
    _refuse_unordered(counts, int(about["rows"]), where, timed="time" in rows.columns)
    if pages is None and asks_about_pages and counts.pages >= FEW * int(about["lists"]):
        _ask_about_pages(counts, int(about["lists"]), where)
    named = table.select(at="at", view_list="list", view_rank="rank", view_keep="keep")
    return Views(named, counts)


def _wanted(rows: ir.Table, keys: list[str]) -> ir.Table:
    """Selects what tells views apart, sorted by group and position; names and further values are hashed."""
    wanted: dict[str, Any] = {name: rows[name] for name in ("group", "at", "rank", "click")}
    wanted["document"] = rows["document"].hash()
    if "time" in rows.columns:
        wanted["time"] = rows["time"].cast("float64")
    if "view" in rows.columns and "view" not in keys:
        wanted["view"] = rows["view"].hash()
    if more := [name for name in rows.columns if name.startswith((FEATURE, CONTEXT)) or name == "label"]:
        wanted["rest"] = ibis.literal("\n").join([rows[name].cast("string").fill_null("") for name in more]).hash()
    return rows.select(**wanted).order_by(["group", "at"])


def _refuse_mixed(counts: ViewCounts, rows: int, where: Callable[[int], FileRow], *, timed: bool) -> None:
    # Where most repeated ranks are no sign of further views, a warning is enough.
    if counts.first_mixed < 0 or counts.mixed < max(MANY * rows, counts.repeated / 3):
        return
    neither = "neither the times nor the order of the rows say" if timed else "the order of the rows does not say"
    ways = ["Name a column that numbers the views of a query with --view COLUMN (in Python: columns={'view': ...})"]
    if timed:
        ways.append("give times that are the same within a view and differ between views")
    else:
        ways.append("a time with --time COLUMN")
    if counts.mixed > counts.mixed_at_one_rank:
        ways.append("write the rows of each view together in the order of the ranks")
    raise DataError(
        f"expected each rank once in a session and query, or views that can be told apart: found {counts.mixed:,} of "
        f"{rows:,} rows at a rank that another row of the same session and query has, and {neither} which view they "
        "belong to. As one list, the documents of all views but the first would "
        "be dropped and their clicks moved to where the documents stood in the first: propensities would come out too "
        "flat or too steep",
        fix=f"{', or '.join(ways)}. --pages first (in Python: pages='first') keeps the first row at each rank all the "
        "same.",
        field="rank",
        **where(counts.first_mixed),
    )


def _refuse_unordered(counts: ViewCounts, rows: int, where: Callable[[int], FileRow], *, timed: bool) -> None:
    if counts.first_unordered < 0 or counts.unordered < MANY * rows:
        return
    equal = "begin at the same time, and their rows" if timed else "have no time, and their rows"
    raise DataError(
        f"expected pages whose order is known: found {counts.unordered:,} of {rows:,} rows in sessions and queries "
        f"whose pages {equal} stand between each other's in the file, so that nothing says which page goes on from "
        "which",
        fix="Name a time with --time COLUMN that tells when each page was shown (in Python: columns={'time': ...}), or "
        "write the rows of each page together, the first page first. --pages separate makes each page a list of its "
        "own.",
        field="view",
        **where(counts.first_unordered),
    )


def _ask_about_pages(counts: ViewCounts, lists: int, where: Callable[[int], FileRow]) -> None:
    raise DataError(
        f"ranks start again with other documents under the same query {counts.pages:,} times in {lists:,} queries, "
        "first here: these are either further pages of one list or lists of their own, which give different "
        "propensities",
        fix=f"Say which: {pages_help()}.",
        field="rank",
        **where(counts.first_page),
    )


def pages_help() -> str:
    """Says what the choices of `pages` mean."""
    return (
        "--pages separate makes each page a list, whose ranks count from the top of the page; --pages joined goes on "
        "counting where the page above ended, as for lists that users scroll through; --pages first keeps the first "
        "row at each rank of a session and query and drops the others, those of reloads too (in Python: "
        "pages='separate', ...)"
    )
