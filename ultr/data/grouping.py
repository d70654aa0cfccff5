"""Groups rows by an integer key in bounded memory: sorted runs, spilled to disk, merged a range of keys at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ultr import stopping
from ultr.files import write_errors
from ultr.locks import Scratch, sweep

KeyedColumns = tuple[np.ndarray, ...]  # [n] each; the first one is the key, an unsigned integer
Grouping = Callable[[KeyedColumns], KeyedColumns]

_RUN_BYTES = 1 << 24  # rows are grouped in runs of this size: small runs sort fast, and merging sorted runs is cheap
_PIECE_KEYS = 1 << 22  # keys of a dense table that are searched for sums at a time


class SortedGroups:
    """Collects rows and yields their groups in the order of the key, in bounded memory; a context manager.

        with SortedGroups(sum_by_key, memory=1 << 30) as groups:
            groups.add(key, value)
            for key, total in groups: ...

    Rows and groups take at most `memory` bytes, beside the arrays of one call of `add`; what needs more is spilled
    to a temporary folder, which is removed when the block ends.

    Args:
      group: turns rows into groups sorted by the key; must accept its own concatenated results as rows. Keys 2k and
        2k + 1 are always passed to it together, so that it may put them into one group.
      memory: limit in bytes.
      beside: an existing folder in which to make the temporary one; None uses the system's folder for such files.
    """

    def __init__(self, group: Grouping, *, memory: int, beside: Path | None = None) -> None:
        self._group, self._memory, self._beside = group, memory, beside
        self._pending: list[KeyedColumns] = []
        self._runs: list[KeyedColumns] = []
        self._spilled: list[_SpilledRun] = []
        self._scratch: Scratch | None = None
        self._size = 0

    def __enter__(self) -> SortedGroups:
        sweep(self._beside)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending, self._runs, self._spilled = [], [], []
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows: the key, then the columns that the grouping needs; the caller must not change the arrays later."""
        if len(columns[0]):
            self._pending.append(columns)
            self._size += _bytes(columns)
            # Grouping takes several times the memory of the rows that it groups.
            if self._size >= min(self._memory // 16, _RUN_BYTES):
                self._reduce()

    def __iter__(self) -> Iterator[KeyedColumns]:
        """Yields the groups in pieces, in the order of the key."""
        self._reduce()
        if not self._spilled:
            if self._runs:
                yield self._merged()
            return
        self._spill()
        yield from self._ranges()

    def _reduce(self) -> None:
        stopping.check()
        if self._pending:
            joined, self._pending, self._size = _joined(self._pending), [], 0
            self._runs.append(self._group(joined))
        if sum(map(_bytes, self._runs)) > self._memory // 4:
            # Where the same keys come again and again, merging the runs frees enough memory.
            if _bytes(self._merged()) > self._memory // 8:
                self._spill()

    def _merged(self) -> KeyedColumns:
        if len(self._runs) > 1:
            joined, self._runs = _joined(self._runs), []
            self._runs = [self._group(joined)]
        return self._runs[0]

    def _spill(self) -> None:
        if not self._runs:
            return
        if self._scratch is None:
            self._scratch = Scratch(self._beside)
        self._spilled.append(_SpilledRun(self._merged(), self._scratch.path / f"{len(self._spilled)}"))
        self._runs = []

    def _ranges(self) -> Iterator[KeyedColumns]:
        runs = self._spilled
        rows = max(self._memory // 8 // runs[0].row_bytes, 1)
        # The sample holds every stride-th key of every run. Two cuts are len(runs) samples apart, so that at most
        # 2 * len(runs) strides of rows, which is `rows`, lie between them.
        stride = max(rows // (2 * len(runs)), 1)
        sample = np.sort(np.concatenate([run.keys()[::stride] for run in runs]))
        cuts = np.unique((sample[len(runs) :: len(runs)] >> 1) << 1)
        edges = [[0, *np.searchsorted(run.keys(), cuts).tolist(), run.rows] for run in runs]
        for piece in range(len(cuts) + 1):
            stopping.check()
            parts = [run.read(at[piece], at[piece + 1]) for run, at in zip(runs, edges, strict=True)]
            if any(len(part[0]) for part in parts):
                yield self._group(_joined(parts))


class _SpilledRun:
    """A sorted run on disk, one file per column; no file stays open, since there may be many runs."""

    def __init__(self, columns: KeyedColumns, path: Path) -> None:
        self.rows, self.row_bytes = len(columns[0]), sum(column.itemsize for column in columns)
        self._files = [(path.with_suffix(f".{i}"), column.dtype) for i, column in enumerate(columns)]
        for (file, _), column in zip(self._files, columns, strict=True):
            with write_errors(file), open(file, "wb") as stream:
                stream.write(np.ascontiguousarray(column).data)  # `tofile` does not say what went wrong

    def keys(self) -> np.ndarray:
        return np.memmap(*self._files[0], mode="r")

    def read(self, start: int, end: int) -> KeyedColumns:
        return tuple(
            np.fromfile(file, kind, count=end - start, offset=start * kind.itemsize) for file, kind in self._files
        )


class DenseSums:
    """Adds up values by key in an array with one entry per possible key: faster than sorting while that array fits.

    Yields the same as `SortedGroups(sum_by_key, ...)`.

    Args:
      keys: number of possible keys, 0 to `keys - 1`; an even number.
      dtype: dtype of the sums.
    """

    def __init__(self, keys: int, dtype: np.dtype) -> None:
        self._total = np.full(keys, 0, dtype)  # np.zeros would map its pages one by one, at random, in `add`

    def __enter__(self) -> DenseSums:
        return self

    def __exit__(self, *_: Any) -> None:
        self._total = self._total[:0]

    def add(self, key: np.ndarray, value: np.ndarray | None = None) -> None:
        """Adds the value of each row, or 1, to the sum of its key."""
        index = key.view(np.int64) if key.dtype == np.uint64 else key
        np.add.at(self._total, index, self._total.dtype.type(1) if value is None else value)

    def __iter__(self) -> Iterator[KeyedColumns]:
        """Yields (keys, sums) in pieces; keys with a sum of 0 are left out."""
        for start in range(0, len(self._total), _PIECE_KEYS):
            total = self._total[start : start + _PIECE_KEYS]
            key = np.flatnonzero(total != 0)
            if len(key):  # as no group is empty
                yield (key + start).view(np.uint64), total[key]


def sum_by_key(columns: KeyedColumns) -> KeyedColumns:
    """Adds up the values of equal keys; rows without a value, (key,) alone, count 1 each."""
    key, value = columns[0], columns[1] if len(columns) > 1 else None
    if value is None:
        key = np.sort(key)
        start = group_starts(key)
        return key[start], np.diff(start, append=len(key))
    order = np.argsort(key, kind="stable")  # fast on concatenated sorted runs
    key = key[order]
    start = group_starts(key)
    return key[start], np.add.reduceat(value[order], start)


def group_starts(*columns: np.ndarray) -> np.ndarray:
    """Returns the indices at which a new group of equal values begins in columns that are sorted together."""
    new = np.ones(len(columns[0]), bool)
    np.not_equal(columns[0][1:], columns[0][:-1], out=new[1:])
    for column in columns[1:]:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def _joined(parts: Sequence[KeyedColumns]) -> KeyedColumns:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _bytes(columns: KeyedColumns) -> int:
    return sum(column.nbytes for column in columns)
