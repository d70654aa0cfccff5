"""Looks at the first line of a raw file, to say how the file can be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_START = 1 << 16  # bytes that are looked at
# Column names that are recognised in the header of a table of grades.
QUERY = ("query", "query_id", "qid", "topic")
DOCUMENT = ("document", "document_id", "doc_id", "docid", "url", "object_id")
LABEL = ("label", "relevance", "grade", "rating", "judgment", "judgement")
_CLICK = re.compile(r".*click.*|rank|position")  # columns that a table of grades has not
# Format -> what its first line looks like.
_LINES = {
    "yandex": re.compile(r"[^\t]*\t[^\t]*\t(Q\t[^\t]*\t[^\t]*(\t[^\t]+)+|C\t[^\t]+)"),
    "letor": re.compile(r"-?[\d.]+\s+qid:\S+(\s+\d+:\S+)*\s*(#.*)?"),
    "qrels": re.compile(r"[^\s,;|]+\s+[^\s,;|]+\s+[^\s,;|]+\s+-?\d+"),
    "ubi": re.compile(r'\s*\[?\s*\{.*"(action_name|query_id)".*'),
}
_GRADED = ("letor", "qrels")


def format_of_line(line: str) -> str | None:
    """Tells which format other than a table the first line of a file looks like; None for none."""
    return next((name for name, pattern in _LINES.items() if pattern.fullmatch(line)), None)


def is_graded_header(names: Sequence[str]) -> bool:
    """Tells whether the columns of a table are those of grades (query, document, label) rather than of clicks."""
    lower = {name.lower() for name in names}
    graded = all(lower & set(known) for known in (QUERY, DOCUMENT, LABEL))
    return graded and not any(_CLICK.fullmatch(name) for name in lower)


def preparing_hint(file: Path, *, log: bool, collection: bool) -> str:
    """Says how to make what is needed of a raw file, going by its first line.

    Args:
      file: the file.
      log, collection: whether a click log, and whether a collection of graded lists is what is needed; at least one.
    """
    line = _first_line(file)
    names = _columns(file, line)
    kind = "qrels" if is_graded_header(names) else format_of_line(line)
    option = f" --format {kind}" if kind else ""
    made = "collection" if kind in _GRADED else "log"
    command = f"`ultr prepare {file}{option} --out {made}`"
    if kind in _GRADED:
        if not collection:
            return f"It looks like grades, of which clicks can only be simulated: {command} and `ultr simulate`."
        hint = f"Prepare it first: {command}, and give the folder collection here."
        known = (*QUERY, *DOCUMENT, *LABEL, "")
        if other := [name for name in names if name.lower() not in known]:
            hint += (
                f" The columns {', '.join(other[:5])} are not kept there: to rank by them, give the table as "
                "--candidates of `ultr evaluate` or `ultr diagnose`."
            )
        return hint
    if not log:
        return (
            "It does not look like graded lists, which are LETOR lines, qrels, or a table with the columns query, "
            "document and label: give such a file to `ultr prepare`, with --format letor or qrels."
        )
    return f"Prepare it first: {command}, and give the folder log here."


def _columns(file: Path, line: str) -> list[str]:
    """Reads the names of the columns of a table; empty for other files."""
    if line.startswith("PAR1"):
        try:
            return list(pq.read_schema(file).names)
        except (OSError, ValueError, pa.ArrowException):
            return []
    names = [name.strip(' "') for name in re.split(r"[\t,;|]", line)]
    return names if len(names) > 1 else []


def _first_line(file: Path) -> str:
    """Reads the first line that is not blank, decompressed where the file's name tells how; empty where it cannot."""
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            start = stream.read(_START)
    except (OSError, pa.ArrowException):
        return ""
    return first_line(start)


def first_line(start: bytes) -> str:
    """Finds the first line that is not blank in the bytes that a file begins with."""
    text = start.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    return next((line.strip("\r\n ") for line in re.split(r"[\r\n]+", text) if line.strip()), "")
