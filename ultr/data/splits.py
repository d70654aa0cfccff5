"""Assigns lists to splits: by a seeded hash of a key, such as their session or query, or by time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ultr.errors import ConfigError
from ultr.hashing import hash_strings, splitmix64

OUTSIDE = 255  # code of the sessions that a view does not hold
_GOLDEN = 0x9E3779B97F4A7C15
_BITS = (1 << 64) - 1


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Checks that there are 1 to 254 fractions, which are positive and add up to 1.

    Raises:
      ConfigError: otherwise.
    """
    if not fractions or len(fractions) >= OUTSIDE:
        raise ConfigError(f"expected 1 to {OUTSIDE - 1} splits, found {len(fractions)}")
    bad = {name: value for name, value in fractions.items() if not value > 0}
    if bad:
        raise ConfigError(f"expected positive fractions, found {bad}")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise ConfigError(
            f"expected fractions that add up to 1, found {dict(fractions)} with a sum of {total:g}. "
            "Name what is left over too, for example train=.8,rest=.2 (in Python: {'train': 0.8, 'rest': 0.2})."
        )


def assign_split(keys: np.ndarray, fractions: Mapping[str, float], seed: int, *, salt: int = 0) -> np.ndarray:
    """Assigns each key to a split by a seeded hash: equal keys go to the same split.

    Args:
      keys: [N] integers, for example query ids or row numbers.
      fractions: name -> share of the keys; they add up to 1.
      seed: decides the assignment.
      salt: decides the assignment together with the seed. A split of a split needs another salt than the first: with
        the same hash its keys would not be drawn independently.

    Returns:
      [N] uint8 index of the split in the order of `fractions`.

    Raises:
      ConfigError: the fractions are not positive or do not add up to 1.
    """
    check_fractions(fractions)
    start = _mix_int((_mix_int(seed & _BITS) ^ (salt & _BITS)) + _GOLDEN)
    hashed = splitmix64(splitmix64(np.asarray(keys).astype(np.uint64) ^ np.uint64(start)))
    uniform = (hashed >> np.uint64(11)) * 2.0**-53
    edges = np.cumsum(np.fromiter(fractions.values(), np.float64))
    return np.searchsorted(edges[:-1] / edges[-1], uniform, side="right").astype(np.uint8)


def query_folds(shown: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deals the shown queries out to folds of equal size, up to one query.

    Args:
      shown: [Q] bool, the queries to deal out.
      folds: number of folds.
      seed: decides which query goes where.

    Returns:
      [Q] fold of each query, -1 of those that are not shown.

    Raises:
      ConfigError: fewer queries than folds.
    """
    queries = np.flatnonzero(shown)
    if not 1 <= folds <= len(queries):
        raise ConfigError(f"expected from 1 fold to as many as there are queries, {len(queries)}; found {folds}")
    found = np.full(len(shown), -1, np.int64)
    found[np.random.default_rng(seed).permutation(queries)] = np.arange(len(queries)) % folds
    return found


def chosen_queries(chosen: np.ndarray, queries: int) -> tuple[np.ndarray, str]:
    """Checks that there is one truth value per query.

    Returns:
      The values, bool [Q], and a name that tells this choice from others.

    Raises:
      ConfigError: otherwise.
    """
    found = np.asarray(chosen)
    if found.shape != (queries,) or found.dtype != np.bool_:
        raise ConfigError(f"expected a truth value for each of {queries} queries, found {found.dtype} {found.shape}")
    return found, f"queries {hashlib.sha256(np.packbits(found).tobytes()).hexdigest()}"


def assign_by_time(times: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """Assigns times to splits: the earliest to the first name; equal times go to one split.

    No time of a split is later than one of the next. Of several equal times in which a split ends, all go to the side
    on which the middle one stands.

    Args:
      times: [N] numbers.
      fractions: name -> share of the times; they add up to 1.

    Returns:
      [N] uint8 index of the split in the order of `fractions`.

    Raises:
      ConfigError: the fractions are not positive or do not add up to 1.
    """
    check_fractions(fractions)
    edges = np.cumsum(np.fromiter(fractions.values(), np.float64))
    cuts = np.rint(edges[:-1] / edges[-1] * len(times)).astype(np.int64)
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))[: len(times)]
    end = np.append(start[1:], len(times))
    middle = np.repeat((start + end - 1) / 2, end - start)
    out = np.empty(len(times), np.uint8)
    out[order] = np.searchsorted(cuts, middle, side="right")
    return out


def session_keys(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns numbers [n] that are equal where the sessions of a column (int64 or string) are: hashes of strings."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_string(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return hash_strings(np.frombuffer(data if data is not None else b"", np.uint8), edges)


def first_rows(keys: np.ndarray) -> np.ndarray:
    """Finds the index of the first row with the same key as each row, [n]: the rows themselves where keys differ."""
    rows = np.arange(len(keys))
    if (keys[1:] > keys[:-1]).all():
        return rows
    ordered = np.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():
        return rows
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])


def _mix_int(x: int) -> int:
    return int(splitmix64(np.array([x & _BITS], np.uint64))[0])
