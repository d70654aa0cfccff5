"""Opens raw files as tables, with the position of every row (see `positions`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from ultr.data.storage import LOG_FORMAT, prepared_format
from ultr.errors import DataError
from ultr.ingest.csv_files import CsvFile, csv_error, csv_file, quoted_line_breaks
from ultr.ingest.engine import Engine, EngineError
from ultr.ingest.positions import file_start
from ultr.ingest.text_files import plain_file
from ultr.ingest.values import padded
from ultr.text import names_text

PARQUET_SUFFIXES = (".parquet", ".pq")


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
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"expected a complete Parquet file, found one that cannot be read: {text}",
            fix="Copy or export it again; a file that was cut off has no footer.",
            file=path,
        ) from error


def column_names(path: Path) -> list[str]:
    """Lists the names of the columns of a Parquet file.

    Raises:
      DataError: as of `parquet_schema`, or two columns have the same name.
    """
    names: list[str] = parquet_schema(path).names
    check_once(names, path)
    return names


def table_columns(path: Path) -> list[str]:
    """Lists the names of the columns of a table: CSV, TSV or Parquet.

    Raises:
      DataError: as of `csv_file` and `parquet_schema`.
    """
    return column_names(path) if is_parquet(path) else csv_file(path).names


def check_once(names: Sequence[str], path: Path) -> None:
    """Checks that each column of a file has a name of its own.

    Raises:
      DataError: two have the same.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"expected each column once, found {names_text(twice)} twice",
            fix="Rename or drop one of the two.",
            file=path,
            field=twice[0][:80],
        )


@dataclass(frozen=True)
class ScannedTable:
    """A raw file as an Ibis table.

    Attributes:
      path: the file.
      read: what the engine reads: the file itself, or its decompressed copy.
      table: the table.
      columns: column names of the file -> expressions of `table`.
      at: expression of the position of each row.
      csv: what is known of a CSV file; None for other files.
      broken: expression of the values of a record one of which holds a line break, else null; None where no value of
        the file can hold one.
    """

    path: Path
    read: Path
    table: ir.Table
    columns: dict[str, ir.Column]
    at: ir.IntegerColumn
    csv: CsvFile | None = None
    broken: ir.Column | None = None


def scan_table(engine: Engine, path: Path, number: int, *, quote: bool | None = None) -> ScannedTable:
    """Opens a Parquet file, or a CSV file with a header, as a table; the values of CSV are strings.

    Args:
      engine: the engine.
      path: the file; CSV may be delimited by tabs, commas, semicolons or bars.
      number: the number of the file among the inputs.
      quote: whether double quotes enclose values of CSV; None: unless tabs separate them.

    Raises:
      DataError: truncated Parquet, or a header that is empty or names a column twice.
    """
    base = file_start(number)
    if is_parquet(path):
        names = column_names(path)
        if "file_row_number" in map(str.lower, names):
            raise DataError(
                "expected columns of other names, found 'file_row_number', which the engine adds",
                fix="Rename it.",
                file=path,
            )
        table = engine.read_parquet(path, len(names))
        columns = {n: _any_number(table[f"c{i}"]) for i, n in enumerate(names)}
        return ScannedTable(path, path, table, columns, table.file_row + (base + 1))
    file = csv_file(path, quote).check()
    plain = plain_file(path, engine.new_path())
    quoted = file.quoted and plain.has_quotes
    table = engine.read_csv(plain.path, len(file.names), file.delimiter, quoted=quoted)
    table = table.mutate(at=ibis.row_number() + (base + 1))
    values = [table[f"c{i}"] for i in range(len(file.names))]
    broken: ir.Column | None = None
    if quoted:
        breaks = [value.contains(end) for value in values for end in "\n\r"]
        broken = ibis.ifelse(ibis.or_(*breaks), ibis.array(values), ibis.null("array<string>"))
    columns = dict(zip(file.names, values, strict=True))
    return ScannedTable(path, plain.path, table, columns, table.at, file, broken)


def _any_number(column: Any) -> Any:
    """Keeps the engine from deciding by a file's least and largest values, of which NaN is none, what is a number."""
    return ibis.ifelse(column.isnull(), ibis.null(column.type()), column) if column.type().is_floating() else column


class ScannedFiles:
    """Scanned tables in the order of the positions of their rows: finds the places that errors and reports name."""

    def __init__(self, tables: Sequence[ScannedTable]) -> None:
        self.tables = tables
        self._csv = {table.path: table.csv for table in tables if table.csv is not None}

    @property
    def may_break(self) -> bool:
        """Whether values of any of the files can hold line breaks."""
        return any(table.broken is not None for table in self.tables)

    def reported_row(self, path: Path, row: int) -> int:
        """Returns the row that errors report for row `row` (from 1) of a table: the line of a CSV file."""
        return self._csv[path].line_of(row) if path in self._csv else row

    def explain(self, error: EngineError) -> DataError:
        """Turns an error of the engine while it reads the files into one that names the place."""
        if self._csv or len(self.tables) != 1:
            return csv_error(list(self._csv.values()), error)
        return DataError(str(error), file=self.tables[0].path)

    def check_line_breaks(self, engine: Engine, rows: ir.Table) -> list[str]:
        """Looks at the rows with line breaks, as `quoted_line_breaks` does; `rows` have the columns at and broken."""
        return quoted_line_breaks(engine, rows, [table.csv for table in self.tables])

    def has_padding(self, engine: Engine, table: ScannedTable, texts: Mapping[str, ir.Column]) -> bool:
        """Tells whether any of the texts of a table has white space at its ends.

        Raises:
          DataError: the file is damaged.
        """
        if not texts:
            return False
        some = table.table.filter(ibis.or_(*map(padded, texts.values()))).limit(1)
        try:
            return engine.number(some.count()) > 0
        except EngineError as error:
            raise self.explain(error) from error

    def broken(self, table: ScannedTable) -> dict[str, ir.Value]:
        """Returns the column `broken` of a table, where any of the files needs it."""
        if not self.may_break:
            return {}
        return {"broken": ibis.null("array<string>") if table.broken is None else table.broken}
