"""Cuts padded rows of any number into batches of a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ultr.arguments import check_count

PaddedRows = dict[str, np.ndarray]  # name -> [n] or [n, width]; "length" [n] is always there

WORKERS = 2  # threads that read and decode row groups ahead of the consumer


def bucket_widths(longest: int) -> np.ndarray:
    """Returns the widths that lists of up to `longest` documents are padded to: powers of two, then `longest`."""
    powers = 2 ** np.arange(max(int(longest) - 1, 0).bit_length())
    return np.append(powers[powers < longest], longest)


def used_widths(lengths: np.ndarray) -> np.ndarray:
    """Returns those of the bucket widths that at least one list is padded to."""
    widths = bucket_widths(int(np.max(lengths, initial=1)))
    return widths[np.unique(np.searchsorted(widths, lengths))] if len(lengths) else widths[-1:]


def rebatch(
    pools: Iterable[tuple[int, PaddedRows]], batch_size: int, *, rng: np.random.Generator | None = None
) -> Iterator[tuple[int, PaddedRows]]:
    """Cuts (width, rows) into pieces of `batch_size` rows; the shorter rest of each width comes last.

    Args:
      pools: padded rows; rows are permuted within their pool only.
      rng: draws the order within each pool; None keeps the given order.

    Raises:
      ConfigError: `batch_size` is not positive.
    """
    check_count("batch_size", batch_size)
    waiting: dict[int, list[PaddedRows]] = {}
    for width, rows in pools:
        left = waiting.setdefault(width, [])
        start, size, held = 0, _size(rows), sum(map(_size, left))
        order = None if rng is None else rng.permutation(size)
        if held:
            start = min(batch_size - held, size)
            left.append(_take(rows, order, slice(start)))
            if held + start == batch_size:
                yield width, concatenate_rows(left)
                left.clear()
        while start + batch_size <= size:
            yield width, _take(rows, order, slice(start, start + batch_size))
            start += batch_size
        if start < size:
            # A copy: a view of these few rows would keep their whole pool in memory.
            left.append({name: x.copy() for name, x in _take(rows, order, slice(start, None)).items()})
    for width, left in sorted(waiting.items()):
        if left:
            yield width, concatenate_rows(left)


def concatenate_rows(parts: list[PaddedRows]) -> PaddedRows:
    """Concatenates rows of the same width."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}


def _take(rows: PaddedRows, order: np.ndarray | None, part: slice) -> PaddedRows:
    if order is None:
        return {name: x[part] for name, x in rows.items()}
    picked = order[part]
    return {name: x.take(picked, axis=0) for name, x in rows.items()}


def _size(rows: PaddedRows) -> int:
    return len(rows["length"])
