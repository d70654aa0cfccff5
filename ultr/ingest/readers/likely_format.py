"""Recognises files of other formats that are read as tables by mistake, by their first line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ultr.data.raw_files import first_line, format_of_line, preparing_hint
from ultr.errors import DataError
from ultr.ingest.sources import is_parquet
from ultr.ingest.text_files import byte_blocks

_START = 1 << 16  # bytes that are looked at


def likely_format(path: Path) -> str | None:
    """Tells which other format than a table the first line of a text file looks like; None for none."""
    if is_parquet(path):
        return None
    return format_of_line(first_line(next(byte_blocks(path, _START), b"")))


@contextlib.contextmanager
def other_format_named(path: Path, *, collection: bool = False) -> Iterator[None]:
    """Turns an error about a file that is no table into one that names the format that it seems to have.

    Args:
      path: the file.
      collection: whether a prepared collection would do as well, so that the error says how to make one.
    """
    try:
        yield
    except DataError as error:
        try:
            found = likely_format(path)
        except DataError:
            found = None
        if found is None:
            raise
        raise DataError(
            "expected a table whose first line names the columns, found a file that looks like another format",
            fix=preparing_hint(path, log=False, collection=True)
            if collection
            else f"Add --format {found} (in Python: format={found!r}).",
            file=path,
            row=1,
        ) from error
