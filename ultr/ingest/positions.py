"""Positions of raw rows: one number that tells the file and the row in it, so that errors can name both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

# The number of the file stands above these bits, the 1-based row in the file below.
_ROW_BITS = 40
_ROW_MASK = (1 << _ROW_BITS) - 1


class FileRow(TypedDict):
    """The `file` and `row` of a DataError."""

    file: Path
    row: int


def file_start(number: int) -> int:
    """Returns the position before the first row of the file with this number (from 0): row i stands at it plus i."""
    return number << _ROW_BITS


def file_number_and_row(at: int) -> tuple[int, int]:
    """Splits a position into the number of the file (from 0) and the row in it (from 1)."""
    return at >> _ROW_BITS, at & _ROW_MASK


def file_and_row(files: Sequence[Path], at: int, reported_row: Callable[[Path, int], int] | None = None) -> FileRow:
    """Finds the file and the row that stand at a position.

    Args:
      files: the files in the order of their numbers.
      at: the position.
      reported_row: maps (file, row) to the row that an error reports, such as a line of a CSV file; None reports
        the row as it is.
    """
    number, row = file_number_and_row(at)
    path = files[number]
    return {"file": path, "row": row if reported_row is None else reported_row(path, row)}
