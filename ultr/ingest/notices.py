"""Warnings in the report of a prepared folder: sentences about signs that something went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.ingest.packing import Repairs
from ultr.ingest.positions import FileRow
from ultr.ingest.view_rules import ViewCounts
from ultr.ingest.views import FEW
from ultr.text import counted

LOST = 0.02  # share of what was read from which on its loss is a warning


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
    elif report["clicks"] == report["impressions"]:
        out.append(
            "every impression of the log was clicked: probably only the clicked rows were exported. Propensities and "
            "relevance need the documents that were shown and not clicked as well"
        )
    if graded_by is not None and report["documents"]["pairs_graded"]:
        out += _grades_lost(report["documents"], graded_by)
    # Rows at a repeated rank, and documents twice in a list, have warnings of their own.
    out += _lost("rows", shown, dropped, ("rows_without_keys",))
    if "events_without_keys" in dropped:
        events = report["rows"] - dropped["other_events"]
        out += _lost("impressions and clicks", events, dropped, ("events_without_keys",))
    out += _lost("lists", report["sessions"] + dropped["empty_lists"], dropped, ("empty_lists",))
    clicks = ("clicks_on_documents_not_shown", "clicks_on_dropped_rows")
    read = report["clicks"] + repaired.get("repeated_clicks", 0) + sum(dropped[name] for name in clicks)
    out += _lost("clicks", read, dropped, clicks)
    return out + _empty(splits)


def collection_warnings(report: Mapping[str, Any], *, splits: Mapping[str, int]) -> list[str]:
    """Writes the warnings about a collection; `splits` is name -> number of lists."""
    counts = dict(report) | report.get("dropped", {})
    reasons = ("rows_without_keys", "duplicate_documents", "without_query_document_or_grade", "repeated_pairs")
    read = report["rows"] if "rows" in report else report["grades_read"]
    return _lost("rows", read, counts, reasons) + _empty(splits)


def _grades_lost(counts: Mapping[str, int], graded_by: str) -> list[str]:
    """Warns of grades in a file that are not used."""
    out = _lost(f"grades in {graded_by}", counts["grades_read"], counts, ("without_query_document_or_grade",))
    unused = counts["grades_of_pairs_not_in_the_data"]
    pairs = unused + counts["pairs_graded"]
    if unused >= LOST * pairs:
        out.append(
            f"{unused:,} of the {pairs:,} graded pairs in {graded_by} ({unused / pairs:.0%}) are not in the data, and "
            f"their grades are not used (from {LOST:.0%} on, this is a warning). That is so where documents were "
            "judged and never shown; if you expected them, check that both files name queries and documents alike"
        )
    return out


def differing_grades(pairs: int, first: Mapping[str, Any], where: FileRow) -> str:
    """Writes the warning about pairs of query and document that have several grades.

    Args:
      pairs: how many there are.
      first: query, document and label of the first of them, and the lowest and highest of its grades, low and high.
      where: where it stands.
    """
    several = "a pair of query and document has" if pairs == 1 else f"{pairs:,} pairs of query and document have"
    return (
        f"{several} differing grades, of which the first counts: query {first['query']!r} with document "
        f"{first['document']!r} ({where['file'].name}, row {where['row']}) has {first['low']:g} to {first['high']:g}, "
        f"and {first['label']:g} counts"
    )


def differing_in_rows(first: Mapping[str, Any] | None, where: Callable[[int], FileRow] | None) -> list[str]:
    """Writes the warning about pairs whose rows have several grades; `first` is `AssignedIds.differing`."""
    if first is None or where is None:
        return []
    return [differing_grades(first["pairs"], first, where(first["first"]))]


def grade_warnings(documents: pa.Table, report: Mapping[str, Any]) -> list[str]:
    """Writes the warnings about grades below 0, which some formats have for unjudged documents and some for others.

    Args:
      documents: with a column label, null where a document is not judged.
      report: counts of what was read: `not_judged`, labels of -1 that were read so; `negative_read_as_0`, of the
        `grades_read`, or of the rows where these have a grade each.
    """
    if "label" not in documents.column_names:
        return []
    grades = documents["label"].drop_null().to_numpy()
    counts = dict(report) | report.get("documents", {})
    out, left_out, negative = [], counts.get("not_judged", 0), counts.get("negative_read_as_0", 0)
    if left_out and not (grades == 0).any():
        out.append(
            f"{left_out:,} of {left_out + len(grades):,} labels are -1 and none is 0: -1 is read as not judged, and "
            "metrics leave these documents out. If -1 means not relevant, write 0 in its place"
        )
    elif left_out >= LOST * (left_out + len(grades)):
        out.append(
            f"{left_out:,} of {left_out + len(grades):,} labels are -1, which this format (LETOR, SVMlight) has for "
            "documents that are not judged: metrics leave them out. Qrels and tables of labels are read otherwise, a "
            "grade below 0 counts as 0 there. If -1 means not relevant here, write 0 in its place"
        )
    read = counts.get("grades_read") or counts.get("rows", 0)
    if negative and negative >= LOST * read:
        out.append(
            f"{negative:,} of {read:,} grades are below 0 and count as 0, not relevant. If they stand for "
            "documents that are not judged, as -1 does in LETOR and SVMlight files, leave these rows out"
        )
    return out


def one_grade_warnings(documents: pa.Table) -> list[str]:
    """Writes the warning about lists that tell nothing of a ranker; arguments as of `grade_warnings`."""
    if "label" not in documents.column_names:
        return []
    judged = documents.select(["query", "label"]).filter(documents["label"].is_valid())
    lists = judged.group_by("query").aggregate([("label", "min"), ("label", "max")])
    least, most = (np.maximum(lists[name].to_numpy(), 0) for name in ("label_min", "label_max"))
    same = int((least == most).sum())
    if 2 * same <= len(lists):
        return []
    return [
        f"in {same:,} of {counted(len(lists), 'list')} all judged documents have one grade: metrics of rankings are "
        "the same there for every ranker. Grade the documents that are not relevant as well, with 0"
    ]


def feature_warnings(counts: Mapping[str, int]) -> list[str]:
    """Writes the warning about features of documents that a vocabulary knows; `counts` are of `vocabulary_tables`."""
    other = counts.get("known_documents_with_other_features", 0)
    if not other:
        return []
    return [
        f"{other:,} of the {counts['known_documents']:,} documents that the vocabulary knows have other features in "
        "these files: those of the files were taken. If they are other documents under the same names, give them names "
        "of their own"
    ]


def view_warnings(counts: ViewCounts | None, *, shown: int, lists: int, pages: str | None) -> list[str]:
    """Writes the warnings about queries that come several times in a session.

    Args:
      counts: what became of rows with a repeated rank; None where there are none.
      shown: number of rows about shown documents.
      lists: number of lists.
      pages: the answer about ranks that start again with other documents, or None.
    """
    if counts is None:
        return []
    out = []
    if pages is None and counts.pages >= FEW * lists:
        out.append(
            f"ranks start again with other documents within a session and query: {counts.pages:,} of {lists:,} lists "
            "were made of such rows. If they are further pages of one list, add --pages joined. If they are lists of "
            "their own, --pages separate keeps them so; --pages first drops them (in Python: "
            "pages='joined', ...). It then makes one list of reloads, too"
        )
    if 0 < counts.copies < FEW * shown:
        out.append(f"{counted(counts.copies, 'row')} of {shown:,} were dropped as copies of others")
    elif counts.copies:
        out.append(
            f"{counts.copies:,} of {shown:,} rows are copies of others (the same document, rank and click, and time "
            "where there is one) and were dropped. Were they delivered twice? If they are views of their own, number "
            "the views in a column and name it with --view"
        )
    if counts.unordered:
        out.append(
            f"{counts.unordered:,} of {shown:,} rows belong to pages of which nothing says which goes on from which: "
            "they were joined in the order of their first rows. A time, named with --time, would tell"
        )
    if counts.mixed >= FEW * shown:
        out.append(
            f"{counts.mixed:,} of {shown:,} rows belong to views of a query within a session that cannot be told "
            f"apart, and count as one list: {_EFFECT}. Number the views in a column and name it with --view"
        )
    return out


def rank_warnings(report: Mapping[str, Any], repairs: Repairs, *, shown: int, lists: int) -> list[str]:
    """Writes the warnings about ranks and documents that come twice in a list, and about missing ranks.

    Args:
      report: counts of what was read, kept, dropped and repaired.
      repairs: counts of the packing.
      shown: number of rows about shown documents.
      lists: number of lists.
    """
    out = []
    if repairs.other_document:
        few = repairs.other_document < FEW * shown
        why = "they are too few to change estimates by much" if few else _EFFECT
        out.append(
            f"{repairs.other_document:,} of {shown:,} rows stand at a rank of their list that an earlier row has with "
            f"another document, and were dropped: {why}. Give every row a rank of its own, or number the views in a "
            "column and name it with --view"
        )
    if repairs.same_place:
        why = "if the list was shown again, propensities come out wrong"
        if repairs.same_place < FEW * shown:
            why = "they are too few to change estimates by much"
        out.append(
            f"{repairs.same_place:,} of {shown:,} rows show a document again at its rank in the same list, and count "
            f"once: {why}. Number the views in a column and name it with --view"
        )
    again = report["dropped"]["duplicate_documents"]
    if again >= FEW * shown:
        out.append(
            f"{again:,} of {shown:,} rows show a document a second time in their list; the highest is kept, and "
            "clicks on the others count there, which makes propensities too steep"
        )
    if repairs.without_first == lists:
        out.append("no list shows rank 1: propensities relative to rank 1 have no meaning")
    elif repairs.without_first >= 0.05 * lists:
        out.append(
            f"{repairs.without_first:,} of {lists:,} lists do not show rank 1: do ranks count from 1, and are rows "
            "missing?"
        )
    gaps = report["noted"]["lists_with_gaps_in_ranks"] - repairs.without_first
    if gaps >= 0.2 * lists:
        out.append(
            f"{gaps:,} of {lists:,} lists have gaps between their ranks, which are kept: models of clicks further up "
            "(cascade, DBN, UBM) take a missing rank for one without a click"
        )
    return out


# What a list of several views does to estimates.
_EFFECT = (
    "their clicks count where their documents stand in the list, if they do, so that propensities come out too flat or "
    "too steep"
)


def _lost(unit: str, total: int, counts: Mapping[str, int], reasons: tuple[str, ...]) -> list[str]:
    """Warns where a share of `LOST` was dropped for any of the reasons."""
    gone = {name: counts.get(name, 0) for name in reasons}
    lost = sum(gone.values())
    if not lost or lost < LOST * total:
        return []
    top = max(gone, key=lambda name: gone[name])
    return [
        f"{lost:,} of {total:,} {unit} ({lost / total:.0%}) were dropped, {gone[top]:,} of them as "
        f"{_REASONS.get(top, top.replace('_', ' '))} (from {LOST:.0%} on, this is a warning)"
    ]


_REASONS = {
    "rows_without_keys": "rows without a session, query or document",
    "events_without_keys": "events without a session or document",
    "without_query_document_or_grade": "rows without a query, document or grade",
    "empty_lists": "lists without a document",
}


def _empty(splits: Mapping[str, int]) -> list[str]:
    return [f"the split '{name}' is empty" for name, count in splits.items() if not count]
