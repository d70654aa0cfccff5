"""Columns of session files: their types and checks, and their conversion to flat and to padded numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.storage import as_numpy, type_name
from ultr.errors import DataError

CONTEXT, FEATURE = "context.", "feature."
MAX_RANKS = 1000  # a larger rank is no place in a list, but stands for something else, such as "not shown"
RESERVED_NAMES = ("document", "features")  # fields of a batch, which a context column cannot be called


@dataclass(frozen=True)
class SessionColumns:
    """Describes the columns of a log's session files, and the ranges of their values.

    Attributes:
      queries, documents: query ids run from 0 to queries - 1, document ids from 0 (unseen) to documents.
      ranks: the largest rank, or None where it is not known yet.
      impression_features: names of the `feature.<name>` columns, in order.
      context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}.
      optional: which of the columns time, split and weight the files hold.
    """

    queries: int
    documents: int
    ranks: int | None = None
    impression_features: tuple[str, ...] = ()
    context: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def types(self) -> dict[str, str]:
        """The type of each column, in file order; alternatives are joined by " or "."""
        out = {
            "session": "string or int64",
            "query": "int32",
            "documents": "list<int32>",
            "ranks": "list<int32>",
            "clicks": "list<int8>",
        }
        more = {"time": "double or int64", "split": "string", "weight": "float"}
        out |= {name: kind for name, kind in more.items() if name in self.optional}
        for name, about in self.context.items():
            out[CONTEXT + name] = "int32" if about["kind"] == "category" else "float"
        return out | {FEATURE + name: "list<float>" for name in self.impression_features}

    def streamed(self, *, ranks: bool) -> list[str]:
        """Returns the columns that batches are made of.

        Args:
          ranks: whether the ranks must be read; they need not be where they are 1, 2, ... in every session.
        """
        return [n for n in self.types if n not in ("session", "time", "split") and (ranks or n != "ranks")]

    def values_per_session(self, length: float) -> float:
        """Computes how many numbers a session of `length` documents holds; memory limits are set in these."""
        return length * (3 + len(self.impression_features)) + len(self.context) + 2

    def check_context(self, file: Path) -> None:
        """Checks that `context` describes each of its columns.

        Raises:
          DataError: names the column.
        """
        for name, about in self.context.items():
            kind = about.get("kind") if isinstance(about, Mapping) else None
            if kind not in ("category", "number") or (kind == "category" and "values" not in about):
                raise DataError(
                    f'expected {{"kind": "number"}} or {{"kind": "category", "values": [...]}}, found {about!r}',
                    file=file,
                    field=CONTEXT + name,
                )
            if name in RESERVED_NAMES:
                raise DataError(
                    f"a context column cannot be called {name!r}: it is the name of another field of a batch",
                    fix="Rename the column.",
                    file=file,
                    field=name,
                )


@dataclass
class RaggedRows:
    """Holds n sessions or lists of different lengths as flat arrays.

    Attributes:
      offsets: [n + 1]; row i is `[offsets[i]:offsets[i + 1]]` of each list column.
      lists: name -> flat values.
      scalars: name -> [n] values.
    """

    offsets: np.ndarray
    lists: dict[str, np.ndarray]
    scalars: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of documents of each row, [n]."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray | None, width: int) -> dict[str, np.ndarray]:
        """Pads rows to a common width.

        Args:
          rows: indices [r] of the rows, or None for all.
          width: at least the length of the longest of these rows.

        Returns:
          name -> list columns [r, width], 0 beyond the end of each list, scalars [r], and `length` [r].
        """
        lengths = self.lengths
        if rows is not None:
            lengths = lengths[rows]
        out = {"length": lengths}
        out |= {name: x if rows is None else x[rows] for name, x in self.scalars.items()}
        if len(self) and (self.lengths == width).all():
            for name, flat in self.lists.items():
                grid = flat.reshape(-1, width)
                out[name] = grid if rows is None else grid.take(rows, axis=0)
            return out
        starts = self.offsets[:-1] if rows is None else self.offsets[:-1][rows]
        steps = np.arange(width)
        outside = steps >= lengths[:, None]
        index = starts[:, None] + steps
        index[outside] = 0
        for name, flat in self.lists.items():
            grid = flat[index]
            grid[outside] = 0
            out[name] = grid
        return out


def unpack_columns(columns: Mapping[str, pa.Array | pa.ChunkedArray], *, file: Path, start: int = 0) -> RaggedRows:
    """Converts Arrow columns of the right types to flat numpy arrays, without a copy where possible.

    Args:
      columns: name -> column, all with the same number of rows.
      file: the file that errors name.
      start: number of rows of the file that precede these, for errors.

    Raises:
      DataError: a null, or lists of one row that differ in length; names the file, row and column.
    """
    offsets: np.ndarray | None = None
    lists: dict[str, np.ndarray] = {}
    scalars: dict[str, np.ndarray] = {}
    reference = ""
    for name, column in columns.items():
        array = _one_chunk(column)
        if array.null_count:
            row = start + pc.index(array.is_null(), True).as_py() + 1
            raise DataError("expected a value in every row, found null", file=file, row=row, field=name)
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            scalars[name] = as_numpy(array)
            continue
        edges = as_numpy(array.offsets)
        values = array.values[int(edges[0]) : int(edges[-1])]
        edges = edges - edges[0] if edges[0] else edges
        if values.null_count:
            at = pc.index(values.is_null(), True).as_py()
            row = start + int(np.searchsorted(edges, at, side="right"))
            raise DataError("expected a value for every document, found null", file=file, row=row, field=name)
        if offsets is None:
            offsets, reference = edges, name
        elif not np.array_equal(edges, offsets):
            found, wanted = np.diff(edges), np.diff(offsets)
            row = int((found != wanted).argmax())
            raise DataError(
                f"expected {wanted[row]} values as in '{reference}', found {found[row]}",
                fix="Every list column of a row holds one value per shown document.",
                file=file,
                row=start + row + 1,
                field=name,
            )
        lists[name] = as_numpy(values)
    if offsets is None:
        offsets = np.zeros(len(next(iter(scalars.values()), ())) + 1, np.int32)
    return RaggedRows(offsets, lists, scalars)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # copies


def flat_lists(batch: pa.RecordBatch, names: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the offsets [n + 1] of list columns of equal lengths, from 0, and the flat values of each."""
    offsets = batch[names[0]].offsets.to_numpy()
    return offsets - offsets[0], [batch[name].flatten().to_numpy() for name in names]


def check_rows(rows: RaggedRows, columns: SessionColumns, *, file: Path, start: int = 0) -> None:
    """Checks the values of those columns of a log that the rows hold.

    Args:
      file, start: as for `unpack_columns`.

    Raises:
      DataError: names the file, the 1-based row, the column, what was expected and what was found.
    """
    offsets, lists, scalars = rows.offsets, rows.lists, rows.scalars

    def reject_list(bad: np.ndarray, name: str, expected: str) -> None:
        if bad.any():
            at = int(bad.argmax())
            row = int(np.searchsorted(offsets, at, side="right"))
            shown = lists[name][offsets[row - 1] : offsets[row]].tolist()
            raise DataError(f"expected {expected}, found {_short(shown)}", file=file, row=start + row, field=name)

    def reject(bad: np.ndarray, name: str, expected: str) -> None:
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"expected {expected}, found {scalars[name][at]}", file=file, row=start + at + 1, field=name
            )

    if lists:
        empty = offsets[1:] == offsets[:-1]
        if empty.any():
            raise DataError(
                "expected at least one document, found an empty list",
                file=file,
                row=start + int(empty.argmax()) + 1,
                field=next(iter(lists)),
            )
    # Viewed as unsigned, negative numbers are too large as well; the maximum shows fast whether any value is bad.
    if (clicks := lists.get("clicks")) is not None:
        unsigned = clicks.view(np.uint8)
        if unsigned.max(initial=0) > 1:
            reject_list(unsigned > 1, "clicks", "clicks of 0 or 1")
    if (documents := lists.get("documents")) is not None:
        unsigned = documents.view(np.uint32)
        if unsigned.max(initial=0) > columns.documents:
            reject_list(unsigned > columns.documents, "documents", f"document ids of 0 to {columns.documents}")
    if (ranks := lists.get("ranks")) is not None and len(ranks):
        lowest = np.ones(len(ranks), np.int32)
        np.add(ranks[:-1], 1, out=lowest[1:])
        lowest[offsets[:-1]] = 1
        reject_list(ranks < lowest, "ranks", "strictly increasing ranks of at least 1")
        if columns.ranks is None:  # of a log that is being written: older ones may hold more
            hint = f"places in a list, at most {MAX_RANKS:,}: a larger number often means 'not shown'"
            reject_list(ranks > MAX_RANKS, "ranks", f"ranks that are {hint}")
        else:
            reject_list(ranks > columns.ranks, "ranks", f"ranks of at most {columns.ranks}, as the metadata says")
    if (query := scalars.get("query")) is not None:
        reject(query.view(np.uint32) >= columns.queries, "query", f"query ids of 0 to {columns.queries - 1}")
    if (weight := scalars.get("weight")) is not None:
        reject(~(np.isfinite(weight) & (weight >= 0)), "weight", "finite weights of at least 0")
    if (time := scalars.get("time")) is not None and time.dtype.kind == "f":
        reject(~np.isfinite(time), "time", "finite times")
    for name, about in columns.context.items():
        if (value := scalars.get(CONTEXT + name)) is None:
            continue
        if about["kind"] == "category":
            size = len(about["values"])
            reject(value.view(np.uint32) > size, CONTEXT + name, f"category indices of 0 (unknown) to {size}")
        else:
            reject(~np.isfinite(value), CONTEXT + name, "finite numbers")
    for name in columns.impression_features:
        if (value := lists.get(FEATURE + name)) is not None:
            reject_list(~np.isfinite(value), FEATURE + name, "finite numbers")


def _short(values: Sequence[Any]) -> str:
    return str(values) if len(values) <= 12 else f"{values[:12]} and {len(values) - 12} more"


def cast_column(
    column: pa.Array | pa.ChunkedArray, kind: pa.DataType, *, file: Path, name: str
) -> pa.Array | pa.ChunkedArray:
    """Converts a column to the given type.

    Raises:
      DataError: the conversion would lose something; names the column, the expected and the found type.
    """
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowException, ValueError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"expected {type_name(kind)}, found {type_name(column.type)} ({text})", file=file, field=name
        ) from error
