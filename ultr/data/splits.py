"""Which split a session or query belongs to: by a seeded hash of its key, or by time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ultr.errors import ConfigError

OUTSIDE = 255  # the code of rows that are in no split of a view
_GOLDEN = 0x9E3779B97F4A7C15
_BITS = (1 << 64) - 1


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises ConfigError unless the fractions are positive, at most 254, and add up to 1."""
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
    """Assigns each key to a split by a seeded hash: the same key always goes to the same split.

    Args:
      keys: [N] integers, for example query ids or row numbers.
      fractions: name -> share of the keys; they add up to 1.
      seed: another seed, another assignment.
      salt: decides, beside the seed, on the assignment. A split of a split needs another salt than the first
        one: with the same hash its parts would not be drawn anew.

    Returns:
      [N] uint8 index of the split in the order of `fractions`.

    Raises:
      ConfigError: the fractions are not positive or do not add up to 1.
    """
    check_fractions(fractions)
    start = _mix_int((_mix_int(seed & _BITS) ^ (salt & _BITS)) + _GOLDEN)
    hashed = _mix(_mix(np.asarray(keys).astype(np.uint64) ^ np.uint64(start)))
    uniform = (hashed >> np.uint64(11)) * 2.0**-53
    edges = np.cumsum(np.fromiter(fractions.values(), np.float64))
    return np.searchsorted(edges[:-1] / edges[-1], uniform, side="right").astype(np.uint8)


def assign_by_time(times: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """[N] uint8 index of the split: the earliest go to the first one; ties keep their stored order."""
    check_fractions(fractions)
    edges = np.cumsum(np.fromiter(fractions.values(), np.float64))
    cuts = np.rint(edges[:-1] / edges[-1] * len(times)).astype(np.int64)
    out = np.empty(len(times), np.uint8)
    out[np.argsort(times, kind="stable")] = np.searchsorted(cuts, np.arange(len(times)), side="right")
    return out


# The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit.
def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    return int(_mix(np.array([x & _BITS], np.uint64))[0])
