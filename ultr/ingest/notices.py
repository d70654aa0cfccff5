"""Warnings in the report of a prepared folder: sentences about signs that something went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def log_warnings(
    report: Mapping[str, Any], *, shown: int, splits: Mapping[str, int], graded_by: str | None
) -> list[str]:
    """Writes the warnings about a click log.

    Args:
      report: counts of what was read, kept, dropped and repaired.
      shown: number of rows about shown documents before any were dropped.
      splits: name -> number of sessions.
      graded_by: name of the file of grades, or None without one.
    """
    dropped, repaired = report["dropped"], report["repaired"]
    out: list[str] = []
    if graded_by is not None and not report["documents"]["pairs_graded"]:
        out.append(
            f"none of the {report['documents']['grades_read']:,} grades in {graded_by} is about a query and document "
            "of the data: check that both files name queries and documents alike"
        )
    if not report["clicks"]:
        out.append("the log has not a single click: nothing can be learned from it")
    rows = ("rows_without_keys", "duplicate_ranks", "duplicate_documents")
    out += _mostly("rows", shown, dropped, rows)
    if "events_without_keys" in dropped:
        events = report["rows"] - dropped["other_events"]
        out += _mostly("impressions and clicks", events, dropped, ("events_without_keys",))
    out += _mostly("lists", report["sessions"] + dropped["empty_lists"], dropped, ("empty_lists",))
    clicks = ("clicks_on_documents_not_shown", "clicks_on_dropped_rows")
    read = report["clicks"] + repaired.get("repeated_clicks", 0) + sum(dropped[name] for name in clicks)
    out += _mostly("clicks", read, dropped, clicks)
    return out + _empty(splits)


def collection_warnings(report: Mapping[str, Any], *, splits: Mapping[str, int]) -> list[str]:
    """Writes the warnings about a collection; `splits` is name -> number of lists."""
    counts = dict(report) | report.get("dropped", {})
    reasons = ("rows_without_keys", "duplicate_documents", "without_query_document_or_grade", "repeated_pairs")
    read = report["rows"] if "rows" in report else report["grades_read"]
    return _mostly("rows", read, counts, reasons) + _empty(splits)


def _mostly(unit: str, total: int, counts: Mapping[str, int], reasons: tuple[str, ...]) -> list[str]:
    gone = {name: counts.get(name, 0) for name in reasons}
    lost = sum(gone.values())
    if 2 * lost <= total:
        return []
    top = max(gone, key=lambda name: gone[name])
    return [f"{lost:,} of {total:,} {unit} were dropped, {gone[top]:,} of them as {top.replace('_', ' ')}"]


def _empty(splits: Mapping[str, int]) -> list[str]:
    return [f"the split '{name}' is empty" for name, count in splits.items() if not count]
