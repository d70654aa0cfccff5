"""The query engine of `prepare`: runs Ibis expressions on DuckDB, in a scratch folder of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from ultr import stopping
from ultr.errors import ConfigError, DataError
from ultr.exhaustion import disk_problem, memory_problem
from ultr.ingest.memory import available_memory
from ultr.locks import Scratch

_LEAST_MEMORY, _THREAD_MEMORY = 256 << 20, 256 << 20  # bytes
_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|B|bytes?|%)?", re.IGNORECASE)  # of memory, as the engine reads it
BATCH_ROWS = 122_880  # rows per batch of a streamed result: the size of DuckDB's own row groups


class Engine:
    """Runs Ibis expressions on DuckDB; a context manager whose tables and spilled data lie in `scratch` until it ends.

    Readers and `prepare` are written as Ibis expressions: only this class knows how the backend stores, loads and
    streams tables.

    Args:
      beside: an existing folder with room for a copy of the data; the scratch folder is made in it.
      memory_limit: most memory of the engine, such as "4GB"; beyond it the engine works on disk. None takes half of
        what the process may still use (see `available_memory`).

    Raises:
      ConfigError: the memory limit is not one.
    """

    def __init__(self, *, beside: Path, memory_limit: str | None = None) -> None:
        self._folder = Scratch(beside)
        self.scratch = self._folder.path
        self._numbers = itertools.count()
        config: dict[str, str | int] = {"temp_directory": str(self.scratch / "spill")}
        if memory_limit is None:
            most = max(available_memory() // 2, _LEAST_MEMORY)
            config["memory_limit"] = f"{most >> 20}MiB"
            # Every thread sorts and joins in memory of its own.
            config["threads"] = max(1, min(os.cpu_count() or 1, most // _THREAD_MEMORY))
        else:
            config["memory_limit"] = memory_limit
        try:
            with _quiet():
                self.backend: Any = ibis.duckdb.connect(**config)
                self.backend.raw_sql("SET TimeZone = 'UTC'")
                # Joins are written in the order that keeps results small. DuckDB would first join two small tables
                # of a log with each other on the query, which multiplies their rows.
                self.backend.raw_sql("SET disabled_optimizers = 'join_order'")
        except duckdb.Error as error:
            self._folder.remove()
            if memory_limit is None or _SIZE.fullmatch(memory_limit.strip()):
                raise EngineError(error) from error
            raise ConfigError(
                f"expected a memory limit (--memory-limit, in Python: memory_limit) such as 4GB or 500MiB, found "
                f"{memory_limit!r}"
            ) from error

    def __enter__(self) -> Engine:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(stopping.interruptible(self.backend.con.interrupt))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        try:
            self.backend.disconnect()
        finally:
            self._folder.remove()

    def stage(self, name: str, expression: ir.Table) -> ir.Table:
        """Computes a table and stores it on disk under the name; returns the stored table."""
        path = self.scratch / f"{name}.parquet"
        with _quiet(), engine_errors():
            # A Parquet file is written in half the time of a DuckDB table, and read in the same.
            self.backend.to_parquet(expression, path, compression="snappy", dictionary_size_limit=1)
            return self.backend.read_parquet(str(path))

    def load(self, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> ir.Table:
        """Stores record batches on disk under the name, one at a time; returns the stored table."""
        path = self.scratch / f"{name}.parquet"
        with pq.ParquetWriter(path, schema, compression="snappy") as writer:
            for batch in batches:
                stopping.check()
                writer.write_batch(batch)
        with _quiet(), engine_errors():
            return self.backend.read_parquet(str(path))

    def new_path(self) -> Path:
        """Returns a path in the scratch folder at which nothing stands yet."""
        return self.scratch / f"file_{next(self._numbers)}"

    def table(self, expression: ir.Table) -> pa.Table:
        """Computes a result as a table in memory."""
        with _quiet(), engine_errors():
            return self.backend.to_pyarrow(expression)

    def record(self, expression: ir.Table) -> dict[str, Any]:
        """Computes the only row of a result; empty where there is none."""
        rows = self.table(expression).to_pylist()
        return rows[0] if rows else {}

    def number(self, value: ir.IntegerScalar) -> int:
        """Computes a number; 0 where it is null."""
        return int(self.record(value.name("value").as_table())["value"] or 0)

    def stream(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """Yields a result in record batches, computed on demand; the engine can run nothing else until it ends."""
        with _quiet(), engine_errors():
            # Ibis' own reader calls a method that newer versions of DuckDB no longer have.
            relation = self.backend.con.sql(self.backend.compile(expression))
            read = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
            reader = read(BATCH_ROWS)
        while True:
            with engine_errors():
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch

    def spool(self, name: str, expression: ir.Table) -> Iterable[pa.RecordBatch]:
        """Computes a result now; its record batches are read from a file, any number of times, as the engine runs."""
        path = self.scratch / f"{name}.arrow"
        batches = self.stream(expression)
        if (first := next(batches, None)) is not None:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
        return _Spooled(path)

    def read_parquet(self, path: Path, columns: int) -> ir.Table:
        """Opens a Parquet file as a table c0, c1, ... of its columns, and `file_row`: its row numbers, from 0.

        The engine does not tell names apart by case, and takes none that holds a NUL: columns go by their place.
        """
        name = f"parquet_{next(self._numbers)}"
        aliases = ", ".join([*(f"c{i}" for i in range(columns)), "file_row"])
        literal = str(path).replace("'", "''")
        with _quiet(), engine_errors():
            self.backend.raw_sql(
                f"CREATE TEMP VIEW {name} AS SELECT * FROM read_parquet("
                f"'{literal}', file_row_number = true, hive_partitioning = false) AS t({aliases})"
            )
            return self.backend.table(name)

    def read_csv(self, path: Path, columns: int, delimiter: str, *, quoted: bool) -> ir.Table:
        """Opens a CSV file with a header as a table of strings c0, c1, ...; a row of another length is an error."""
        with _quiet(), engine_errors():
            return self.backend.read_csv(
                str(path),
                columns={f"c{i}": "VARCHAR" for i in range(columns)},
                auto_detect=False,
                header=True,
                delim=delimiter,
                quote='"' if quoted else "",
                escape='"' if quoted else "",
                compression="none",
            )

    def read_json(self, path: Path, columns: dict[str, str]) -> ir.Table:
        """Opens a JSON file (an object per line, or one array) as a table of fields with DuckDB types."""
        with _quiet(), engine_errors():
            return self.backend.read_json(str(path), columns=columns, compression="none")

    def json_fields(self, path: Path) -> list[str]:
        """Returns the names of the fields of the objects in a JSON file."""
        with _quiet(), engine_errors():
            return list(self.backend.read_json(str(path), compression="none").columns)


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def bit_count(value: int) -> int:  # type: ignore[empty-body]
    """Counts the bits of a number that are set."""


class _Spooled:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._path.exists():
            with pa.memory_map(str(self._path)) as source, pa.ipc.open_file(source) as reader:
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)


class EngineError(DataError):
    """The engine stopped; `text` is the first line of its own message."""

    def __init__(self, error: BaseException) -> None:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        self.text = lines[0]
        fix = ""
        if disk_problem(error) is not None:
            fix = "Make room on the disk of the output, beside which intermediate files lie."
        elif memory_problem(error) is not None:
            fix = (
                "Let it work on disk earlier with a lower --memory-limit (in Python: memory_limit=...), or, if that is "
                "below what the machine has, give it more."
            )
        super().__init__(f"the engine stopped: {self.text}", fix=fix)


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turns exceptions of the engine into `EngineError`, and an interruption into KeyboardInterrupt."""
    stopping.check()
    try:
        yield
    except (duckdb.InterruptException, pa.ArrowCancelled) as error:
        raise _stop() from error
    except RuntimeError as error:
        # DuckDB's Python client checks for signals itself, and swallows the KeyboardInterrupt.
        if "interrupted" in str(error).lower():
            raise _stop() from error
        raise
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if "interrupt error" in str(error).lower():
            raise _stop() from error
        raise EngineError(error) from error


def _stop() -> KeyboardInterrupt:
    """Makes the exception for what a signal, or Ctrl-C in another program, has interrupted."""
    try:
        stopping.check()
    except stopping.Stopped as stop:
        return stop
    return KeyboardInterrupt()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Ibis calls methods of DuckDB that are deprecated there.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
