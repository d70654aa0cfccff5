"""Recognises files of other formats that are read as tables by mistake, by their first line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from ultr.errors import DataError
from ultr.ingest.sources import is_parquet
from ultr.ingest.text_files import byte_blocks

_START = 1 << 16  # bytes that are looked at
# Format -> what its first line looks like.
_LINES = {
    "yandex": re.compile(r"[^\t]*\t[^\t]*\t(Q\t[^\t]*\t[^\t]*(\t[^\t]+)+|C\t[^\t]+)"),
    "letor": re.compile(r"-?[\d.]+\s+qid:\S+(\s+\d+:\S+)*\s*(#.*)?"),
    "qrels": re.compile(r"[^\s,;|]+\s+[^\s,;|]+\s+[^\s,;|]+\s+-?\d+"),
    "ubi": re.compile(r'\s*\[?\s*\{.*"(action_name|query_id)".*'),
}


def likely_format(path: Path) -> str | None:
    """Tells which other format than a table the first line of a text file looks like; None for none."""
    if is_parquet(path):
        return None
    start = next(byte_blocks(path, _START), b"").removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    line = next((line.strip("\r\n ") for line in re.split(r"[\r\n]+", start) if line.strip()), "")
    return next((name for name, pattern in _LINES.items() if pattern.fullmatch(line)), None)


@contextlib.contextmanager
def other_format_named(path: Path) -> Iterator[None]:
    """Turns an error about a file that is no table into one that names the format that it seems to have."""
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
            fix=f"Add --format {found} (in Python: format={found!r}).",
            file=path,
            row=1,
        ) from error
