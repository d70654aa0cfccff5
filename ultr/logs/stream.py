"""From padded rows of any number to batches of a few fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ultr.errors import ConfigError

Rows = dict[str, np.ndarray]  # name -> [n] or [n, width]
T = TypeVar("T")


def bucket_widths(longest: int) -> np.ndarray:
    """Widths that lists of up to `longest` documents are padded to: powers of two, then `longest`."""
    powers = 2 ** np.arange(max(int(longest) - 1, 0).bit_length())
    return np.append(powers[powers < longest], longest)


def used_widths(lengths: np.ndarray) -> np.ndarray:
    """Those of the bucket widths that some list falls into."""
    widths = bucket_widths(int(np.max(lengths, initial=1)))
    return widths[np.unique(np.searchsorted(widths, lengths))] if len(lengths) else widths[-1:]


def rebatch(pools: Iterable[tuple[int, Rows]], batch_size: int) -> Iterator[tuple[int, Rows]]:
    """Cuts (width, rows) into pieces of `batch_size` rows; what remains of each width comes last, shorter.

    Raises:
      ConfigError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"expected a batch size of at least 1, found {batch_size}")
    waiting: dict[int, list[Rows]] = {}
    for width, rows in pools:
        left = waiting.setdefault(width, [])
        start, size, held = 0, _size(rows), sum(map(_size, left))
        if held:
            start = min(batch_size - held, size)
            left.append({name: x[:start] for name, x in rows.items()})
            if held + start == batch_size:
                yield width, join(left)
                left.clear()
        while start + batch_size <= size:
            yield width, {name: x[start : start + batch_size] for name, x in rows.items()}
            start += batch_size
        if start < size:
            # A copy, or the few rows that wait would keep their whole pool in memory.
            left.append({name: x[start:].copy() for name, x in rows.items()})
    for width, left in sorted(waiting.items()):
        if left:
            yield width, join(left)


def join(parts: list[Rows]) -> Rows:
    """Rows one after another."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}


def ahead(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Results of the tasks in order, the next one being computed while one is used."""
    with ThreadPoolExecutor(1) as worker:
        pending = None
        for task in tasks:
            following = worker.submit(task)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _size(rows: Rows) -> int:
    return len(rows["length"])
