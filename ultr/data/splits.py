"""Assigns sessions or queries to splits: by a seeded hash of a key, or by time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ultr.errors import ConfigError
from ultr.hashing import splitmix64

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


def assign_by_time(times: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """Assigns times to splits: the earliest to the first name; equal times keep their stored order.

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
    out = np.empty(len(times), np.uint8)
    out[np.argsort(times, kind="stable")] = np.searchsorted(cuts, np.arange(len(times)), side="right")
    return out


def _mix_int(x: int) -> int:
    return int(splitmix64(np.array([x & _BITS], np.uint64))[0])
