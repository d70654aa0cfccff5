"""The interface of readers: how a format describes itself, what it can be asked for, and what it returns.

This module and the registry are imported to print the help: they must not import pyarrow or the query engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ultr.errors import ConfigError, DataError
from ultr.ingest.positions import FileRow, file_and_row
from ultr.text import names_text

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np

    from ultr.ingest.engine import Engine, EngineError

REQUIRED_COLUMNS = ("session", "query", "document", "rank", "click")
COLUMNS = (*REQUIRED_COLUMNS, "time", "label")
VIEW = "view"  # the column of formats that do not delimit their lists


@dataclass(frozen=True)
class Reader:
    """Describes a format of raw files, and reads it.

    Attributes:
      name: the name of the format, as for `ultr prepare --format`.
      kind: what the files hold.
      description: one line for the help.
      function: "module:function" in `ultr.ingest.readers`, imported when files are read. The function takes an
        `Engine`, a list of paths and a `ColumnRequest`, and returns `RawRows` or `GradedPairs`.
      columns: our names of the columns whose names in the files can be chosen; empty where the fields are fixed.
      features, context: columns that can be asked for as features of impressions or as context of lists; None for
        any column of the files.
      counts_features: whether a document has the features 1 to N, of which the files leave out those that are 0.
      may_be_csv: whether files with fixed fields may be CSV or TSV.
    """

    name: str
    kind: Literal["click log", "graded lists"]
    description: str
    function: str
    columns: tuple[str, ...] = ()
    features: tuple[str, ...] | None = ()
    context: tuple[str, ...] | None = ()
    counts_features: bool = False
    may_be_csv: bool = False

    def check(self, request: ColumnRequest) -> None:
        """Checks that files of the format can have the requested columns.

        Raises:
          ConfigError: they cannot.
        """
        if request.columns and not self.columns:
            raise ConfigError(f"the fields of the format {self.name!r} are fixed: it takes no column names")
        if unknown := [name for name in request.columns if name not in self.columns]:
            options = ", ".join(f"--{name}" for name in unknown)
            raise ConfigError(
                f"{options} has no meaning with the format {self.name!r}, of which these columns can be named: "
                f"{', '.join(self.columns)} (in Python: columns={{...}}, found {unknown})"
            )
        if request.feature_count is not None and not self.counts_features:
            how = (
                "Name each of them with --feature COLUMN (in Python: features=[...])"
                if self.features is None
                else "Leave --features out (in Python: feature_count)"
            )
            raise ConfigError(
                f"the format {self.name!r} takes no number of features (--features), since its files name them. {how}"
            )
        for what, asked, known in (
            ("features", request.features, self.features),
            ("context", request.context, self.context),
        ):
            if known is not None and (unknown := [name for name in asked if name not in known]):
                raise ConfigError(f"the format {self.name!r} has {what} {list(known)}, found {unknown}")

    def read(self, engine: Engine, files: list[Path], request: ColumnRequest) -> RawRows | GradedPairs:
        """Reads files as one log or one set of graded lists.

        Raises:
          DataError: the files cannot be used; names the file, row and field where it can.
        """
        module, name = self.function.split(":")
        function: ReadFunction = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return function(engine, files, request)


@dataclass(frozen=True)
class ColumnRequest:
    """The columns that a reader is asked for.

    Attributes:
      columns: our name of a column -> the name in the file.
      features: names of the columns in the file with a feature of each impression.
      context: names of the columns in the file with one value per list.
      quote: whether double quotes enclose values of CSV and TSV; None: unless tabs separate them.
      feature_count: how many features a document has where the files leave out those that are 0; None: as many as
        the largest that is given.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()
    context: Sequence[str] = ()
    quote: bool | None = None
    feature_count: int | None = None

    @property
    def extra(self) -> dict[str, str]:
        """Our names of the feature and context columns -> the names in the file."""
        return {f"feature.{n}": n for n in self.features} | {f"context.{n}": n for n in self.context}

    @property
    def names(self) -> dict[str, str]:
        """Our names of columns -> the names in the file, where they differ."""
        return dict(self.columns) | self.extra


@dataclass(frozen=True)
class RawRows:
    """Rows about documents with values as the files have them: shown documents, or graded ones.

    Attributes:
      parts: tables with the same columns, of the types of their files: at (position), session, query, document,
        rank, click, and where there are any time, label, view, feature.<name>, context.<name>. `list` numbers the
        lists where the format delimits them (otherwise a session, query and view make a list); `slot` numbers the
        documents where there are document features.
      files: the files, in the order that the positions refer to.
      read: rows or lines of the input; None where every row of the parts is one.
      dropped, repaired: kind -> how many rows the reader left out or repaired.
      slow: whether reading the parts again would be slow, so that they had better be stored first.
      text: whether values are text that may stand for numbers, as in CSV.
      graded: whether the documents are graded (label, neither rank nor click) rather than shown.
      asks_about_pages: whether the format has pages of a query under one key, so that ranks that start again with
        other documents need an answer.
      features: features of the documents, or None.
      reported_row: as for `file_and_row`.
      explain: turns an error of the engine while it reads the files into one that names the place.
      check_line_breaks: where the parts have the column `broken` (the values of a record one of which holds a line
        break, or null): raises where a quote swallowed rows, returns sentences for the report otherwise.
      warnings: sentences for the report.
    """

    parts: list[ir.Table]
    files: list[Path]
    read: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    repaired: Mapping[str, int] = field(default_factory=dict)
    slow: bool = True
    text: bool = False
    graded: bool = False
    asks_about_pages: bool = False
    features: DocumentFeatures | None = None
    reported_row: Callable[[Path, int], int] | None = None
    explain: Callable[[EngineError], DataError] = lambda error: error
    check_line_breaks: Callable[[Engine, ir.Table], list[str]] | None = None
    warnings: Sequence[str] = ()

    def where(self, at: int) -> FileRow:
        """Returns the file and row of a position, as errors report them."""
        return file_and_row(self.files, at, self.reported_row)


@dataclass(frozen=True)
class GradedPairs:
    """Grades of (query, document) pairs, in the order of their files.

    Attributes:
      table: at, query, document, label, and `slot` where there are features; each pair once.
      report: how many grades were read, and what was done to them.
      features: features of the documents, or None.
      warnings: sentences for the report.
    """

    table: ir.Table
    report: Mapping[str, int]
    features: DocumentFeatures | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class DocumentFeatures:
    """Features of documents, which are read once the document ids are known.

    Attributes:
      names: the F names.
      fill: (slots [n] ascending, targets [n], out [V, F]) writes the features of the document in slots[i] to
        out[targets[i]].
      counted: whether the names are 1 to F, and a document may leave out features that are 0, so that files may differ
        in F.
      by_place: [n] whether the document in each slot has no name in the files, and is named by its place in its query;
        None: all have names.
      where: maps a slot to the file and row; None: not known.
    """

    names: list[str]
    fill: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
    counted: bool = False
    by_place: np.ndarray | None = None
    where: Callable[[int], FileRow] | None = None


ReadFunction = Callable[["Engine", "list[Path]", ColumnRequest], "RawRows | GradedPairs"]


def column_option(*names: str) -> str:
    """Says how to choose the columns of the files that hold some of our columns."""
    options = " and ".join(f"--{name} COLUMN" for name in names)
    ours = ", ".join(f"'{name}': ..." for name in names)
    return f"Name {'it' if len(names) == 1 else 'them'} with {options} (in Python: columns={{{ours}}})."


def missing_columns(path: Path, names: Mapping[str, str], found: Sequence[str]) -> DataError:
    """Makes the error about columns that a file does not have, all of them.

    Args:
      path: the file.
      names: our names of the columns, "feature.<name>" or "context.<name>", or empty where the name in the file is
        fixed -> the names that they should have in the file.
      found: names of the columns of the file.
    """
    from ultr.data.raw_files import is_graded_header

    ours = [name for name in names if name and not name.startswith(("feature.", "context."))]
    wanted = ", ".join(
        f"'{theirs}'" + (f" for '{name}'" if name in ours and name != theirs else "") for name, theirs in names.items()
    )
    if len(ours) == len(names):
        fix = column_option(*ours)
    else:
        fix = f"{column_option(*ours)} Check the other names." if ours else "Check its name."
    if found and all(_is_number(column) or not column for column in found[-2:]):
        fix = "The first line seems to hold data: put a line with the names of the columns above it."
    elif is_graded_header(found):
        fix = (
            "It looks like a table of grades: --format qrels makes a collection of it, and --labels FILE gives its "
            "grades to a log of clicks (in Python: format='qrels', labels=...)."
        )
    columns = "a column" if len(names) == 1 else "the columns"
    field = ", ".join(names.values())
    return DataError(
        f"expected {columns} {wanted}, found the columns {names_text(found)}", fix=fix, file=path, field=field
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
