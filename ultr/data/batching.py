"""From padded rows of any number to batches of a few fixed shapes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ultr.errors import ConfigError

Rows = dict[str, np.ndarray]  # name -> [n] or [n, width]
T = TypeVar("T")

WORKERS = 2  # threads that read ahead


def bucket_widths(longest: int) -> np.ndarray:
    """Widths that lists of up to `longest` documents are padded to: powers of two, then `longest`."""
    powers = 2 ** np.arange(max(int(longest) - 1, 0).bit_length())
    return np.append(powers[powers < longest], longest)


def used_widths(lengths: np.ndarray) -> np.ndarray:
    """Those of the bucket widths that some list falls into."""
    widths = bucket_widths(int(np.max(lengths, initial=1)))
    return widths[np.unique(np.searchsorted(widths, lengths))] if len(lengths) else widths[-1:]


def rebatch(
    pools: Iterable[tuple[int, Rows]], batch_size: int, *, rng: np.random.Generator | None = None
) -> Iterator[tuple[int, Rows]]:
    """Cuts (width, rows) into pieces of `batch_size` rows; what remains of each width comes last, shorter.

    Args:
      pools: rows that are permuted among each other, if at all.
      rng: draws the order within each pool; None leaves it.

    Raises:
      ConfigError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"expected a batch size of at least 1, found {batch_size}")
    waiting: dict[int, list[Rows]] = {}
    for width, rows in pools:
        left = waiting.setdefault(width, [])
        start, size, held = 0, _size(rows), sum(map(_size, left))
        order = None if rng is None else rng.permutation(size)
        if held:
            start = min(batch_size - held, size)
            left.append(_part(rows, order, slice(start)))
            if held + start == batch_size:
                yield width, join(left)
                left.clear()
        while start + batch_size <= size:
            yield width, _part(rows, order, slice(start, start + batch_size))
            start += batch_size
        if start < size:
            # A copy, or the few rows that wait would keep their whole pool in memory.
            left.append({name: x.copy() for name, x in _part(rows, order, slice(start, None)).items()})
    for width, left in sorted(waiting.items()):
        if left:
            yield width, join(left)


def join(parts: list[Rows]) -> Rows:
    """Rows one after another."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}


def ahead(tasks: Iterable[Callable[[], T]], depth: int) -> Iterator[T]:
    """Results of the tasks in order, the next `depth` being computed by two threads while one is used.

    A consumer that stops early waits for the tasks that run; those that wait are dropped.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="ultr-read") as workers:
        try:
            for task in tasks:
                pending.append(workers.submit(task))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for waiting in pending:
                waiting.cancel()


def _part(rows: Rows, order: np.ndarray | None, part: slice) -> Rows:
    if order is None:
        return {name: x[part] for name, x in rows.items()}
    picked = order[part]
    return {name: x.take(picked, axis=0) for name, x in rows.items()}


def _size(rows: Rows) -> int:
    return len(rows["length"])
