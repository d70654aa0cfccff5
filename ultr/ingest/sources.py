"""Opens raw files as tables and lines, with the position of every row (see `positions`)."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultr.data.storage import LOG_FORMAT, prepared_format
from ultr.errors import DataError
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_start

BLOCK_BYTES = 1 << 24  # bytes of text that are split into lines at a time
PARQUET_SUFFIXES = (".parquet", ".pq")
DELIMITERS = "\t,;|"


def expand_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Lists the input files: those that are named, and the data files of named folders in the order of their names.

    Raises:
      DataError: nothing was named, a file is missing or empty, or a folder is empty or a prepared one.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            if (kind := prepared_format(path)) is not None:
                what = "click log" if kind == LOG_FORMAT else "collection"
                raise DataError(
                    f"expected raw data, found a folder that is a prepared {what} already ({kind})",
                    fix="Use it as it is, or give the raw files that it was made from.",
                    file=path,
                )
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(("_", ".")))
            if not inside:
                raise DataError("expected data files in this folder, found none", file=path)
            files += inside
        else:
            files.append(path)
    if not files:
        raise DataError("expected at least one input file, found none")
    for path in files:
        if not path.is_file():
            raise DataError("no such file", fix="Check the path.", file=path)
        if not path.stat().st_size:
            raise DataError("expected data, found an empty file", file=path)
    return files


def is_parquet(path: Path) -> bool:
    """Tells whether a file is Parquet by its suffix or its first bytes, which a truncated file still has."""
    if path.suffix in PARQUET_SUFFIXES:
        return True
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def parquet_schema(path: Path) -> pa.Schema:
    """Reads the schema of a Parquet file.

    Raises:
      DataError: it is truncated or not Parquet.
    """
    try:
        with pq.ParquetFile(path) as source:
            return source.schema_arrow
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"expected a complete Parquet file, found one that cannot be read: {text}",
            fix="Copy or export it again; a file that was cut off has no footer.",
            file=path,
        ) from error


def open_bytes(path: Path) -> Any:
    """Opens a file as a binary stream, decompressed where its name ends in .gz, .zst, ..."""
    return pa.input_stream(str(path), compression="detect")


@dataclass(frozen=True)
class ScannedTable:
    """A raw file as an Ibis table.

    Attributes:
      path: the file.
      table: the table.
      columns: column names of the file -> expressions of `table`.
      at: expression of the position of each row.
    """

    path: Path
    table: ir.Table
    columns: dict[str, ir.Column]
    at: ir.IntegerColumn


def scan_table(engine: Engine, path: Path, number: int) -> ScannedTable:
    """Opens a Parquet file, or a CSV file with a header, as a table; the values of CSV are strings.

    Args:
      engine: the engine.
      path: the file; CSV may be delimited by tabs, commas, semicolons or bars.
      number: the number of the file among the inputs.

    Raises:
      DataError: truncated Parquet, or a header that is empty or names a column twice.
    """
    base = file_start(number)
    if is_parquet(path):
        names = parquet_schema(path).names
        table = engine.read_parquet(path)
        return ScannedTable(path, table, {n: table[n] for n in names}, table.file_row_number + (base + 1))
    delimiter, names = header(path)
    table = engine.read_csv(path, len(names), delimiter)
    table = table.mutate(at=ibis.row_number() + (base + 1))
    return ScannedTable(path, table, {n: table[f"c{i}"] for i, n in enumerate(names)}, table.at)


def header(path: Path) -> tuple[str, list[str]]:
    """Reads the delimiter and the column names from the first line of a CSV file.

    Raises:
      DataError: the line is empty, not UTF-8, or names a column twice.
    """
    with open_bytes(path) as stream:
        start = stream.read(1 << 20)
    first = start.split(b"\n", 1)[0].rstrip(b"\r").removeprefix(b"\xef\xbb\xbf")
    try:
        line = first.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text, found {error}", file=path, row=1) from error
    delimiter = max(DELIMITERS, key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not line.strip() or doubled:
        found = f"{doubled} twice" if doubled else "an empty line"
        raise DataError(f"expected a header that names each column once, found {found}", file=path, row=1)
    return delimiter, names


def csv_line(path: Path, number: int) -> int:
    """Finds the line in which record `number` (from 1, after the header) of a CSV file starts."""
    for count, (line, _) in enumerate(_records(path)):
        if count == number:
            return line
    return number + 1


def csv_error(files: Sequence[Path], error: EngineError) -> DataError:
    """Finds the row at which the engine's CSV reader stopped; returns `error` where it stopped for another reason."""
    for path in files:
        if is_parquet(path):
            continue
        width = len(header(path)[1])
        try:
            for line, record in _records(path):
                if len(record) != width:
                    return DataError(
                        f"expected {width} values as in the header, found {len(record)}",
                        fix="Give every row every column, and quote values that hold the delimiter.",
                        file=path,
                        row=line,
                    )
        except _Undecodable as bad:
            return DataError("expected UTF-8 text, found other bytes", file=path, row=bad.line)
        except csv.Error as bad:
            return DataError(f"expected CSV, found {bad}", file=path)
    if not re.search(r"\bCSV\b", error.text):
        return error
    return DataError(
        f"expected CSV, and the reader stopped: {error.text}",
        fix="Check the quotes, and that all lines end alike.",
        file=files[0] if len(files) == 1 else None,
    )


class _Undecodable(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line, values) of each record of a CSV file that is not blank, the header included."""
    delimiter, _ = header(path)
    with open_bytes(path) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise _Undecodable(_bad_line(path)) from error
            if record:
                yield line, record


def _bad_line(path: Path) -> int:
    """Finds the first line that is not UTF-8."""
    with open_bytes(path) as stream, io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="\n") as text:
        return next((row for row, line in enumerate(text, 1) if re.search("[\udc80-\udcff]", line)), 1)


LINES = pa.schema([("at", pa.int64()), ("text", pa.string())])


def read_lines(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Yields every line that is not blank, in batches with the schema `LINES`.

    Raises:
      DataError: text that is not UTF-8.
    """
    for number, path in enumerate(files):
        for row, text in line_blocks(path):
            at = np.arange(row, row + len(text), dtype=np.int64) + file_start(number)
            yield pa.record_batch([pa.array(at), text], schema=LINES).filter(pc.not_equal(text, ""))


def line_blocks(path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, pa.StringArray]]:
    """Yields blocks of lines without white space at their ends, each with the number of its first line.

    Args:
      path: the file.
      block_bytes: bytes of text to read at a time.

    Raises:
      DataError: text that is not UTF-8.
    """
    row, rest = 1, b""
    with open_bytes(path) as stream:
        while True:
            block = stream.read(block_bytes)
            data = rest + block
            if not data:
                return
            cut = data.rfind(b"\n") + 1 if block else len(data)
            rest = data[cut:]
            if not cut:
                continue
            ends = np.flatnonzero(np.frombuffer(data, np.uint8, cut) == ord("\n")) + 1
            if not len(ends) or ends[-1] != cut:
                ends = np.append(ends, cut)
            offsets = np.concatenate([[0], ends])
            text = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
            try:
                text.validate(full=True)
            except pa.ArrowInvalid as error:
                raise DataError("expected UTF-8 text, found other bytes", file=path, row=_bad_line(path)) from error
            yield row, pc.ascii_rtrim_whitespace(text).cast(pa.string())
            row += len(ends)


def reported_row(path: Path, row: int) -> int:
    """Returns the row that errors report for row `row` (from 1) of a scanned table: the line of a CSV file."""
    return row if is_parquet(path) else csv_line(path, row)
