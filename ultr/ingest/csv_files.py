"""Reads the header of CSV and TSV files, finds the rows that errors name, and the quotes that swallowed rows.

In a file whose values are separated by tabs, a double quote is a sign like any other, unless the caller says that
quotes enclose values; in other files quotes enclose values, unless the caller says that they do not.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir

from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_number_and_row
from ultr.ingest.text_files import byte_blocks, line_end, mixed_line_ends, not_utf8, open_text, undecodable_line
from ultr.text import names_text

DELIMITERS = "\t,;|"
LARGEST_HEADER = 1 << 20  # bytes
_BREAK = re.compile(r"\r\n|\n|\r")
_NO_HEADER = "The first line must name the columns: put such a line above the data where there is none."


@dataclass(frozen=True)
class CsvFile:
    """Describes a CSV or TSV file by its first line.

    Attributes:
      path: the file.
      delimiter: what separates its values.
      names: the names in its first line.
      quoted: whether double quotes enclose values.
    """

    path: Path
    delimiter: str
    names: list[str]
    quoted: bool

    def check(self) -> CsvFile:
        """Returns the file itself where its first line names each column once.

        Raises:
          DataError: it does not.
        """
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise _bad_header(self.path, f"found {names_text(twice)} twice", fix=_NO_HEADER)
        if any("\0" in name for name in self.names):
            raise _bad_header(
                self.path, "found a NUL in it", fix="Export the file again, as UTF-8; UTF-16 text has such bytes."
            )
        if not self.quoted and any(len(name) > 1 and name[0] == name[-1] == '"' for name in self.names):
            raise _bad_header(
                self.path,
                f"found names in quotes, which are not read as such here: {self.names[0][:80]}",
                fix="Say that quotes enclose values with --quote (in Python: quote=True).",
            )
        return self

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields (first line, values) of each record that is not blank, the first line of the file included.

        Raises:
          DataError: text that is not UTF-8, or a quote that is never closed or closed within a value.
        """
        limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        line = 1
        try:
            with open_text(self.path) as text:
                reader = csv.reader(
                    text,
                    delimiter=self.delimiter,
                    quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
                    skipinitialspace=self.quoted,
                    strict=True,
                )
                while True:
                    line = reader.line_num + 1
                    if (record := next(reader, None)) is None:
                        return
                    if record:
                        yield line, record
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, undecodable_line(self.path)) from error
        except csv.Error as error:
            raise DataError(
                f"expected quotes around whole values, found one that is never closed, or is closed within a value "
                f"({error})",
                fix=_QUOTES_FIX,
                file=self.path,
                row=line,
            ) from error
        finally:
            csv.field_size_limit(limit)

    def line_of(self, number: int) -> int:
        """Finds the line in which record `number` (from 1, after the first line) starts."""
        try:
            for count, (line, _) in enumerate(self.records()):
                if count == number:
                    return line
        except DataError:
            pass  # the engine read further: the place is approximate
        return number + 1


_QUOTES_FIX = (
    "Write a quote within a quoted value twice; where quotes enclose nothing, say so with --no-quote (in Python: "
    "quote=False)."
)


def csv_file(path: Path, quote: bool | None = None) -> CsvFile:
    """Finds out what separates the values of a CSV file, and the names in its first line.

    The separator is the one of tab, comma, semicolon and bar that the first line has most of; one that makes as many
    values of the second line goes first.

    Args:
      path: the file.
      quote: whether double quotes enclose values; None: unless tabs separate them.

    Raises:
      DataError: the first line is empty, too long, or not UTF-8.
    """
    start = next(byte_blocks(path, LARGEST_HEADER), b"").removeprefix(b"\xef\xbb\xbf")
    first, second, *_ = [*start.split(line_end(path), 2), b"", b""]
    if len(first) == len(start) >= LARGEST_HEADER - 3:
        raise _bad_header(path, f"found a first line of more than {LARGEST_HEADER - 4:,} bytes")
    try:
        line = first.decode().strip("\r\n")
    except UnicodeDecodeError as error:
        raise not_utf8(path, 1) from error
    below = second.decode(errors="replace").strip("\r\n")
    if not line.strip():
        raise _bad_header(path, "found an empty line")

    def choice(delimiter: str) -> tuple[bool, int]:
        quoted = _encloses(delimiter, quote)
        size = len(_split(line, delimiter, quoted))
        return size > 1 and size == len(_split(below, delimiter, quoted)), size

    delimiter = max(DELIMITERS, key=choice)
    quoted = _encloses(delimiter, quote)
    return CsvFile(path, delimiter, [name.strip() for name in _split(line, delimiter, quoted)], quoted)


def _encloses(delimiter: str, quote: bool | None) -> bool:
    return delimiter != "\t" if quote is None else quote


def _split(line: str, delimiter: str, quoted: bool) -> list[str]:
    """Splits a line at the delimiters that stand outside of quotes."""
    if not quoted or '"' not in line:
        return line.split(delimiter)
    parts = re.findall(rf'\s*("(?:[^"]|"")*"\s*(?={re.escape(delimiter)})|[^{delimiter}]*){re.escape(delimiter)}',
                       line + delimiter)  # fmt: skip
    return [p.strip()[1:-1].replace('""', '"') if p[:1] == '"' == p.strip()[-1:] else p for p in parts]


def _bad_header(path: Path, found: str, fix: str = _NO_HEADER) -> DataError:
    return DataError(f"expected a header that names each column once, {found}", fix=fix, file=path, row=1)


def csv_error(files: Sequence[CsvFile], error: EngineError) -> DataError:
    """Finds the row at which the engine's CSV reader stopped; returns `error` where it stopped for another reason."""
    for file in files:
        try:
            for line, record in file.records():
                if len(record) != len(file.names):
                    return DataError(
                        f"expected {len(file.names)} values as in the header, found {len(record)}",
                        fix="Give every row every column, and quote values that hold the delimiter.",
                        file=file.path,
                        row=line,
                    )
        except DataError as bad:
            return bad
        if row := _other_line_end(file.path):
            return mixed_line_ends(file.path, row)
    if not re.search(r"\bCSV\b", error.text):
        return error
    stopped = re.search(r"\bLine: (\d+)", error.text) if len(files) == 1 else None
    return DataError(
        f"expected CSV, and the reader stopped: {error.text}",
        fix="Check the quotes; a value, or a line, of more than two million bytes is not read.",
        file=files[0].path if len(files) == 1 else None,
        row=int(stopped[1]) if stopped else None,
    )


def _other_line_end(path: Path) -> int | None:
    """Finds the first line that ends otherwise than the first line does; None where all end alike."""
    row, usual = 0, b""
    with open_text(path) as text:
        for row, line in enumerate(text, 1):
            end = line[len(line.rstrip("\r\n")) :].encode()
            usual = usual or end
            if end not in (usual, b""):
                return row
    return None


def quoted_line_breaks(engine: Engine, table: ir.Table, files: Sequence[CsvFile | None]) -> list[str]:
    """Looks at values with line breaks for quotes that swallowed rows.

    A lone quote makes one value of all text up to the next quote: the rest of its row, whole rows, and the start of
    another. In column i of n, the parts between the line breaks of such a value then hold n - 1 - i delimiters, n - 1
    of them each, and i.

    Args:
      engine: the engine.
      table: at, and `broken`: the values of a record one of which has a line break, or null.
      files: the files in the order of their numbers; None for those that are no CSV.

    Returns:
      a sentence for the report where values have line breaks and swallowed nothing.

    Raises:
      DataError: a value swallowed rows; names the row where it begins.
    """
    count, first = 0, None
    for batch in engine.stream(table.filter(table.broken.notnull()).select("at", "broken").order_by("at")):
        for at, values in zip(batch["at"].to_pylist(), batch["broken"].to_pylist(), strict=True):
            number, row = file_number_and_row(at)
            if (file := files[number]) is None:
                continue
            for column, value in enumerate(values):
                parts = _BREAK.split(value or "")
                if len(parts) == 1:
                    continue
                if _swallowed(parts, column, file):
                    raise DataError(
                        f"expected a value, found one that goes on over {len(parts)} lines and holds the rows there: "
                        f"{parts[0][:60]!r} and so on",
                        fix=f"A quote stands alone. {_QUOTES_FIX}",
                        file=file.path,
                        row=file.line_of(row),
                        field=file.names[column],
                    )
                count += 1
                first = first or (file, row, file.names[column])
    if first is None:
        return []
    file, row, name = first
    where = f"the first of them in {file.path.name}, row {file.line_of(row)}, field '{name}'"
    several = "value holds line breaks" if count == 1 else "values hold line breaks"
    return [f"{count:,} quoted {several}, {where}: check that no quote stands alone there"]


def _swallowed(parts: Sequence[str], column: int, file: CsvFile) -> bool:
    held = [part.count(file.delimiter) for part in parts]
    whole = len(file.names) - 1
    middle = all(n == whole or not part.strip() for n, part in zip(held[1:-1], parts[1:-1], strict=True))
    return held[0] == whole - column and held[-1] == column and middle
