"""Is one method better than another, or luckier: paired tests over queries, corrected for how many are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.special import stdtr

from ultr.errors import ConfigError, DataError
from ultr.evaluation.estimate import Estimate, paired_difference

_ROOM = 1 << 23  # signs in memory at a time
_EXACT = 16  # so many differences have all their sign vectors tried


@dataclasses.dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided paired test.

    Attributes:
      p_value: the chance of a mean difference at least as far from 0 if there were none; NaN where fewer than two
        pairs (t) or none (randomisation) have a value in both.
      difference: mean of a - b over those pairs with the interval of the t test; pairs without a value in both are
        its `excluded`.
      statistic: t, or the mean difference.
      rounds: sign vectors drawn at random; 0 where all were tried, and for the t test.
    """

    p_value: float
    difference: Estimate
    statistic: float
    rounds: int = 0


def paired_t(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Student's paired t test of equal means.

    Args:
      a, b: [Q] values of one metric for two models over the same queries, as `per_query` gives them; NaN marks a
        query without a value.

    Returns:
      The test. Where all differences are equal the p-value is 0, or 1 where they are 0.

    Raises:
      DataError: the arrays differ in shape, or a value is infinite.
    """
    found = _difference(a, b)
    if found.count < 2:
        return PairedTest(math.nan, found, math.nan)
    if found.standard_error == 0:
        return PairedTest(float(found.value == 0), found, math.copysign(math.inf, found.value) if found.value else 0.0)
    t = found.value / found.standard_error
    return PairedTest(2 * float(stdtr(found.count - 1, -abs(t))), found, t)


def randomisation(a: np.ndarray, b: np.ndarray, *, seed: int, rounds: int = 10_000) -> PairedTest:
    """Fisher's randomisation test: the signs of the differences are flipped at random (Smucker 2007).

    If the two models were alike, each query's values could as well stand the other way round. The p-value is the
    share of such exchanges whose mean difference is at least as far from 0. With up to 16 differences other than 0
    all exchanges are tried and it is exact; with more, `rounds` are drawn and the observed one is counted with them,
    (1 + those as far) / (1 + rounds), so that it is never 0 (Phipson and Smyth 2010).

    Args:
      a, b: as for `paired_t`.
      seed: decides on the exchanges drawn.
      rounds: how many.

    Raises:
      ConfigError: no rounds, or a seed below 0.
      DataError: as `paired_t`.
    """
    if rounds < 1 or seed < 0:
        raise ConfigError(f"expected at least 1 round and a seed of at least 0, found {rounds} and {seed}")
    found = _difference(a, b)
    if found.count == 0:
        return PairedTest(math.nan, found, math.nan)
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    differences = differences[np.nan_to_num(differences) != 0]  # the sign of 0 is nothing
    n = len(differences)
    largest = float(np.abs(differences).sum())
    # Sums of the same numbers in another order differ by rounding.
    least = abs(float(differences.sum())) - 1e-12 * largest
    step = max(1, _ROOM // max(n, 1))
    if n <= _EXACT:
        every = np.arange(1 << n)
        flips: Iterable[np.ndarray] = ((every[i : i + step, None] >> np.arange(n)) & 1 for i in range(0, 1 << n, step))
        as_far, drawn = _as_far(flips, differences, least), 0
        p = as_far / (1 << n)
    else:
        rng = np.random.default_rng(seed)
        parts = (min(step, rounds - i) for i in range(0, rounds, step))
        flips = (np.unpackbits(rng.integers(0, 256, (m, -(-n // 8)), np.uint8), axis=1)[:, :n] for m in parts)
        as_far, drawn = _as_far(flips, differences, least), rounds
        p = (1 + as_far) / (1 + rounds)
    return PairedTest(p, found, found.value, drawn)


def holm(p_values: Any) -> np.ndarray:
    """Holm's (1979) step-down adjustment: compared with 5 %, the chance of any false alarm is at most 5 %.

    Args:
      p_values: [M] in [0, 1]; NaN is no test, stays NaN and does not count.

    Returns:
      [M] adjusted: the largest of (m - i) p_(i) so far over the ordered p-values, at most 1.

    Raises:
      DataError: a value outside [0, 1], or not one dimension.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise DataError(f"expected p-values [M] between 0 and 1, found {p_values}", field="p_values")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One method against the baseline.

    Attributes:
      name: the method.
      difference: its mean minus the baseline's, over the queries that have a value in both.
      p_t, p_randomisation: of the two tests.
      holm_t, holm_randomisation: the same, adjusted over all methods that were compared.
    """

    name: str
    difference: Estimate
    p_t: float
    p_randomisation: float
    holm_t: float
    holm_randomisation: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`; NaN becomes None."""
        out: dict[str, Any] = {"name": self.name, "difference": self.difference.to_json()}
        for field in ("p_t", "p_randomisation", "holm_t", "holm_randomisation"):
            p = getattr(self, field)
            out[field] = None if math.isnan(p) else p
        return out


def compare(
    values: Mapping[str, np.ndarray], *, baseline: str, seed: int = 0, rounds: int = 10_000
) -> list[Comparison]:
    """Every method against one baseline on the same queries.

    Args:
      values: name -> [Q] values of one metric, as `per_query` gives them; NaN marks a query without a value.
      baseline: the name that the others are compared with.
      seed, rounds: as for `randomisation`.

    Returns:
      One row per other method, in the order of `values`.

    Raises:
      ConfigError: no such baseline, or nothing to compare with it.
      DataError: as `paired_t`.
    """
    if baseline not in values:
        raise ConfigError(f"unknown baseline '{baseline}'; known: {', '.join(values)}")
    others = [name for name in values if name != baseline]
    if not others:
        raise ConfigError(f"expected methods to compare with the baseline '{baseline}', found none")
    base = values[baseline]
    ts = [paired_t(values[name], base) for name in others]
    flips = [randomisation(values[name], base, seed=seed, rounds=rounds) for name in others]
    adjusted = [holm([test.p_value for test in tests]).tolist() for tests in (ts, flips)]
    rows = zip(others, ts, flips, *adjusted, strict=True)
    return [Comparison(name, t.difference, t.p_value, r.p_value, ht, hr) for name, t, r, ht, hr in rows]


def _difference(a: Any, b: Any) -> Estimate:
    if np.isinf(np.asarray(a, np.float64)).any() or np.isinf(np.asarray(b, np.float64)).any():
        raise DataError(
            "expected finite values or NaN, found infinite ones",
            fix="A perplexity is infinite where the model rules out what was observed: compare log_likelihood",
        )
    return paired_difference(a, b)


def _as_far(flips: Iterable[np.ndarray], differences: np.ndarray, least: float) -> int:
    """How many of the sign vectors [m, n], given in pieces with 1 for minus, have a sum that far from 0."""
    total = differences.sum()
    return sum(int((np.abs(total - 2 * (piece.astype(np.float64) @ differences)) >= least).sum()) for piece in flips)
