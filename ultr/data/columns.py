"""Rows of a session file as flat numpy arrays: types, checks, and the way into padded arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.data.storage import numbers, type_name
from ultr.errors import DataError

CONTEXT, FEATURE = "context.", "feature."
RESERVED = ("document", "features")


@dataclass(frozen=True)
class Layout:
    """Which columns the session files of a log hold, and in which range their values lie.

    Attributes:
      queries, documents: ids run from 0 to queries - 1 and from 0 (unseen) to documents.
      ranks: the largest rank, or None where that is not known yet.
      impression_features: names of the `feature.<name>` columns, in order.
      context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}.
      optional: those of time, split and weight that are there.
    """

    queries: int
    documents: int
    ranks: int | None = None
    impression_features: tuple[str, ...] = ()
    context: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def types(self) -> dict[str, str]:
        """Column name -> its type names joined by " or ", in file order."""
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
        """The columns that a batch is made of; `ranks` where they are not known without."""
        return [n for n in self.types if n not in ("session", "time", "split") and (ranks or n != "ranks")]

    def values_per_session(self, length: float) -> float:
        """How many numbers a session of `length` documents brings, which is what memory is measured by."""
        return length * (3 + len(self.impression_features)) + len(self.context) + 2

    def check_context(self, file: Any) -> None:
        """Raises DataError where `context` does not say of each column what it is."""
        for name, about in self.context.items():
            kind = about.get("kind") if isinstance(about, Mapping) else None
            if kind not in ("category", "number") or (kind == "category" and "values" not in about):
                raise DataError(
                    f'expected {{"kind": "number"}} or {{"kind": "category", "values": [...]}}, found {about!r}',
                    file=file,
                    field=CONTEXT + name,
                )
            if name in RESERVED:
                raise DataError(
                    f"{name!r} is the name of another field of a batch",
                    fix="Rename it.",
                    file=file,
                    field=name,
                )


@dataclass
class Block:
    """n rows.

    Attributes:
      offsets: [n + 1]; the values of row i stand at `[offsets[i]:offsets[i + 1]]` of each list column.
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
        """[n] number of documents of each list."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray | None, width: int) -> dict[str, np.ndarray]:
        """The rows (None: all) as arrays: lists [r, width], 0 beyond their end, scalars [r], `length` [r]."""
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


def unpack(columns: Mapping[str, pa.Array | pa.ChunkedArray], *, file: Any, start: int = 0) -> Block:
    """Flat numpy views of Arrow columns of the right types.

    Args:
      file, start: where the rows come from and how many rows of it precede them, for errors.

    Raises:
      DataError: a null, or lists of one row that differ in length; names the file, row and column.
    """
    offsets: np.ndarray | None = None
    lists: dict[str, np.ndarray] = {}
    scalars: dict[str, np.ndarray] = {}
    reference = ""
    for name, column in columns.items():
        array = _joined(column)
        if array.null_count:
            row = start + pc.index(array.is_null(), True).as_py() + 1
            raise DataError("expected a value in every row, found null", file=file, row=row, field=name)
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            scalars[name] = numbers(array)
            continue
        edges = numbers(array.offsets)
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
        lists[name] = numbers(values)
    if offsets is None:
        offsets = np.zeros(len(next(iter(scalars.values()), ())) + 1, np.int32)
    return Block(offsets, lists, scalars)


def _joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies


def check(block: Block, layout: Layout, *, file: Any, start: int = 0) -> None:
    """Checks the values of whatever columns the block holds.

    Raises:
      DataError: names the file, the 1-based row, the column, what was expected and what was found.
    """
    offsets, lists, scalars = block.offsets, block.lists, block.scalars

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
    # As unsigned numbers the negative ones are too large as well, and the largest tells whether there are any.
    if (clicks := lists.get("clicks")) is not None:
        unsigned = clicks.view(np.uint8)
        if unsigned.max(initial=0) > 1:
            reject_list(unsigned > 1, "clicks", "clicks of 0 or 1")
    if (documents := lists.get("documents")) is not None:
        unsigned = documents.view(np.uint32)
        if unsigned.max(initial=0) > layout.documents:
            reject_list(unsigned > layout.documents, "documents", f"document ids of 0 to {layout.documents}")
    if (ranks := lists.get("ranks")) is not None and len(ranks):
        lowest = np.ones(len(ranks), np.int32)
        np.add(ranks[:-1], 1, out=lowest[1:])
        lowest[offsets[:-1]] = 1
        reject_list(ranks < lowest, "ranks", "strictly increasing ranks of at least 1")
        if layout.ranks is not None:
            reject_list(ranks > layout.ranks, "ranks", f"ranks of at most {layout.ranks}, as the metadata says")
    if (query := scalars.get("query")) is not None:
        reject(query.view(np.uint32) >= layout.queries, "query", f"query ids of 0 to {layout.queries - 1}")
    if (weight := scalars.get("weight")) is not None:
        reject(~(np.isfinite(weight) & (weight >= 0)), "weight", "finite weights of at least 0")
    if (time := scalars.get("time")) is not None and time.dtype.kind == "f":
        reject(~np.isfinite(time), "time", "finite times")
    for name, about in layout.context.items():
        if (value := scalars.get(CONTEXT + name)) is None:
            continue
        if about["kind"] == "category":
            size = len(about["values"])
            reject(value.view(np.uint32) > size, CONTEXT + name, f"category indices of 0 (unknown) to {size}")
        else:
            reject(~np.isfinite(value), CONTEXT + name, "finite numbers")
    for name in layout.impression_features:
        if (value := lists.get(FEATURE + name)) is not None:
            reject_list(~np.isfinite(value), FEATURE + name, "finite numbers")


def _short(values: Sequence[Any]) -> str:
    return str(values) if len(values) <= 12 else f"{values[:12]} and {len(values) - 12} more"


def cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType, *, file: Any, name: str) -> Any:
    """The column as the given type, where that loses nothing.

    Raises:
      DataError: names the column, the expected and the found type.
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
