"""Sums by key in bounded memory: sorted runs, on disk where they must be, merged a range of keys at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Columns = tuple[np.ndarray, ...]  # [n] each; the first one is the key, unsigned
Grouping = Callable[[Columns], Columns]

_RUN = 1 << 24  # bytes that are grouped at a time: what is sorted in small runs is merged in no time
_PIECE = 1 << 22  # keys of a table that are looked at at a time


class Groups:
    """A context manager that takes rows and gives their groups in the order of the key.

        with Groups(group, memory=1 << 30) as groups:
            groups.add(key, value)
            for key, total in groups: ...

    Memory holds up to `memory` bytes at a time, beside what one call of `add` brings; the rest lies in a temporary
    folder until the block ends.

    Args:
      group: from rows to their groups, sorted by the key; has to accept its own results, one after another, as rows.
        Rows of one group have the same key up to its lowest bit: keys 2k and 2k + 1 come in the same piece.
      memory: bytes.
      beside: an existing folder to make the temporary one in; None: where the system has its temporary files.
    """

    def __init__(self, group: Grouping, *, memory: int, beside: Path | None = None) -> None:
        self._group, self._memory, self._beside = group, memory, beside
        self._pending: list[Columns] = []
        self._runs: list[Columns] = []
        self._spilled: list[_Run] = []
        self._scratch: Path | None = None
        self._size = 0

    def __enter__(self) -> Groups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending, self._runs, self._spilled = [], [], []
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def add(self, *columns: np.ndarray) -> None:
        """Takes rows: the key, then whatever the grouping needs; the arrays belong to the groups from then on."""
        if len(columns[0]):
            self._pending.append(columns)
            self._size += _bytes(columns)
            # Grouping takes several times the room of what it groups.
            if self._size >= min(self._memory // 16, _RUN):
                self._reduce()

    def __iter__(self) -> Iterator[Columns]:
        """The groups, piece after piece."""
        self._reduce()
        if not self._spilled:
            if self._runs:
                yield self._merged()
            return
        self._spill()
        yield from self._ranges()

    def _reduce(self) -> None:
        if self._pending:
            joined, self._pending, self._size = _joined(self._pending), [], 0
            self._runs.append(self._group(joined))
        if sum(map(_bytes, self._runs)) > self._memory // 4:
            # Where groups come back again and again, merging them may be all that is needed.
            if _bytes(self._merged()) > self._memory // 8:
                self._spill()

    def _merged(self) -> Columns:
        if len(self._runs) > 1:
            joined, self._runs = _joined(self._runs), []
            self._runs = [self._group(joined)]
        return self._runs[0]

    def _spill(self) -> None:
        if not self._runs:
            return
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix=".ultr-", dir=self._beside))
        self._spilled.append(_Run(self._merged(), self._scratch / f"{len(self._spilled)}"))
        self._runs = []

    def _ranges(self) -> Iterator[Columns]:
        runs = self._spilled
        rows = max(self._memory // 8 // runs[0].row_bytes, 1)
        # Of every run each stride-th key: between two cuts, which are as many of those apart as there are runs,
        # lie at most twice that many strides.
        stride = max(rows // (2 * len(runs)), 1)
        sample = np.sort(np.concatenate([run.keys()[::stride] for run in runs]))
        cuts = np.unique((sample[len(runs) :: len(runs)] >> 1) << 1)
        edges = [[0, *np.searchsorted(run.keys(), cuts).tolist(), run.rows] for run in runs]
        for piece in range(len(cuts) + 1):
            parts = [run.read(at[piece], at[piece + 1]) for run, at in zip(runs, edges, strict=True)]
            if any(len(part[0]) for part in parts):
                yield self._group(_joined(parts))


class _Run:
    """Sorted groups on disk, one file per column; none stays open, since there may be many."""

    def __init__(self, columns: Columns, path: Path) -> None:
        self.rows, self.row_bytes = len(columns[0]), sum(column.itemsize for column in columns)
        self._files = [(path.with_suffix(f".{i}"), column.dtype) for i, column in enumerate(columns)]
        for (file, _), column in zip(self._files, columns, strict=True):
            column.tofile(file)

    def keys(self) -> np.ndarray:
        return np.memmap(*self._files[0], mode="r")

    def read(self, start: int, end: int) -> Columns:
        return tuple(
            np.fromfile(file, kind, count=end - start, offset=start * kind.itemsize) for file, kind in self._files
        )


class Table:
    """`Groups` of `sums` where one number per possible key is held in memory: quicker, while that fits.

    Args:
      keys: keys are below this number, which is even.
      dtype: of the sums.
    """

    def __init__(self, keys: int, dtype: np.dtype) -> None:
        self._total = np.full(keys, 0, dtype)  # written to now: page after page would come in at random later

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: Any) -> None:
        self._total = self._total[:0]

    def add(self, key: np.ndarray, value: np.ndarray | None = None) -> None:
        """Takes rows: their keys, and what each counts (None: 1)."""
        index = key.view(np.int64) if key.dtype == np.uint64 else key
        np.add.at(self._total, index, self._total.dtype.type(1) if value is None else value)

    def __iter__(self) -> Iterator[Columns]:
        """The keys with a sum that is not 0 and those sums, piece after piece."""
        for start in range(0, len(self._total), _PIECE):
            total = self._total[start : start + _PIECE]
            key = np.flatnonzero(total != 0)
            yield (key + start).view(np.uint64), total[key]


def sums(columns: Columns) -> Columns:
    """A grouping that adds up what has the same key: rows (key,) count as one each, (key, value) as their value."""
    key, value = columns[0], columns[1] if len(columns) > 1 else None
    if value is None:
        key = np.sort(key)
        start = starts(key)
        return key[start], np.diff(start, append=len(key))
    order = np.argsort(key, kind="stable")  # quick on runs that are sorted already
    key = key[order]
    start = starts(key)
    return key[start], np.add.reduceat(value[order], start)


def starts(*columns: np.ndarray) -> np.ndarray:
    """Where another value begins in columns that are sorted together; [0, ...] unless they are empty."""
    new = np.ones(len(columns[0]), bool)
    np.not_equal(columns[0][1:], columns[0][:-1], out=new[1:])
    for column in columns[1:]:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def _joined(parts: Sequence[Columns]) -> Columns:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _bytes(columns: Columns) -> int:
    return sum(column.nbytes for column in columns)
