"""Is one method better than another, or luckier: paired tests over queries, corrected for how many are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ultr.errors import ConfigError, DataError
from ultr.evaluation.estimate import Estimate, paired_difference
from ultr.files import JsonResult
from ultr.holm import holm

_EXACT = 16  # up to so many differences, all sign vectors are tried


@dataclasses.dataclass(frozen=True, slots=True)
class PairedTest:
    """The result of a two-sided paired test.

    Attributes:
      p_value: the chance of a mean difference at least as far from 0 if there were none; NaN where fewer than two
        pairs (t) or none (randomisation) have a value in both.
      difference: mean of a - b over those pairs with the interval of the t test; pairs without a value in both are
        its `excluded`.
      statistic: t, or the mean difference.
      rounds: number of sign vectors drawn at random; 0 where all were tried, and for the t test.
    """

    p_value: float
    difference: Estimate
    statistic: float
    rounds: int = 0


def paired_t(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Makes Student's paired t test of equal means.

    Args:
      a, b: [Q] values of one metric for two models over the same queries, as `per_query` gives them; NaN marks a
        query without a value.

    Returns:
      The test. Where all differences are equal the p-value is 0, or 1 where they are 0.

    Raises:
      DataError: the arrays differ in shape, or a value is infinite.
    """
    from scipy.stats import t as t_distribution

    found = _difference(a, b)
    if found.count < 2:
        return PairedTest(math.nan, found, math.nan)
    if found.standard_error == 0:
        return PairedTest(float(found.value == 0), found, math.copysign(math.inf, found.value) if found.value else 0.0)
    t = found.value / found.standard_error
    return PairedTest(2 * float(t_distribution.sf(abs(t), found.count - 1)), found, t)


def randomisation(
    a: np.ndarray, b: np.ndarray, *, seed: int, rounds: int = 10_000, signs_at_once: int = 1 << 23
) -> PairedTest:
    """Makes Fisher's randomisation test, which flips the signs of the differences at random (Smucker 2007).

    If the two models were alike, each query's values could as well be exchanged. The p-value is the share of such
    exchanges whose mean difference is at least as far from 0. With up to 16 differences other than 0 all exchanges are
    tried and it is exact; with more, `rounds` are drawn and the observed one is counted with them, (1 + those as far)
    / (1 + rounds), so that it is never 0 (Phipson and Smyth 2010).

    Args:
      a, b: as for `paired_t`.
      seed: decides the exchanges drawn.
      rounds: how many are drawn.
      signs_at_once: bounds the memory.

    Raises:
      ConfigError: no rounds, or a seed below 0.
      DataError: as `paired_t`.
    """
    from scipy.stats import monte_carlo_test, permutation_test

    if rounds < 1 or seed < 0:
        raise ConfigError(f"expected at least 1 round and a seed of at least 0, found {rounds} and {seed}")
    found = _difference(a, b)
    if found.count == 0:
        return PairedTest(math.nan, found, math.nan)
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    differences = differences[np.nan_to_num(differences) != 0]  # 0 has no sign
    n = len(differences)
    if n < 2:
        return PairedTest(1.0, found, found.value)  # either sign is as far
    batch = max(1, signs_at_once // n)
    if n <= _EXACT:
        test = permutation_test(
            (differences,), _sums, permutation_type="samples", vectorized=True, n_resamples=np.inf, batch=batch
        )
        return PairedTest(float(_as_far(test.null_distribution, differences).mean()), found, found.value)
    rng = np.random.default_rng(seed)

    def exchanged(size: Sequence[int]) -> np.ndarray:
        bits = rng.integers(0, 256, (size[0], -(-n // 8)), np.uint8)
        return np.asarray(differences * (1.0 - 2.0 * np.unpackbits(bits, axis=1)[:, :n]))

    test = monte_carlo_test(differences, exchanged, _sums, vectorized=True, n_resamples=rounds, batch=batch)
    as_far = int(_as_far(test.null_distribution, differences).sum())
    return PairedTest((1 + as_far) / (1 + rounds), found, found.value, rounds)


@dataclasses.dataclass(frozen=True, slots=True)
class BaselineComparison(JsonResult):
    """The comparison of one method with the baseline.

    Attributes:
      name: the method.
      difference: its mean minus the baseline's, over the queries that have a value in both.
      p_t, p_randomisation: p-values of the two tests.
      holm_t, holm_randomisation: these p-values, adjusted over all methods that were compared.
    """

    name: str
    difference: Estimate
    p_t: float
    p_randomisation: float
    holm_t: float
    holm_randomisation: float


def compare(
    values: Mapping[str, np.ndarray], *, baseline: str, seed: int = 0, rounds: int = 10_000
) -> list[BaselineComparison]:
    """Compares every method with one baseline on the same queries.

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
    exchanges = [randomisation(values[name], base, seed=seed, rounds=rounds) for name in others]
    adjusted = [holm([test.p_value for test in tests]).tolist() for tests in (ts, exchanges)]
    rows = zip(others, ts, exchanges, *adjusted, strict=True)
    return [BaselineComparison(name, t.difference, t.p_value, r.p_value, ht, hr) for name, t, r, ht, hr in rows]


def _difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    if np.isinf(np.asarray(a, np.float64)).any() or np.isinf(np.asarray(b, np.float64)).any():
        raise DataError(
            "expected finite values or NaN, found infinite ones",
            fix="A perplexity is infinite where the model rules out what was observed: compare log_likelihood",
        )
    return paired_difference(a, b)


def _sums(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(values.sum(axis))


def _as_far(sums: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Tells [N] which sums of the differences with other signs are at least as far from 0 as their own."""
    # Equal sums differ by rounding, by more than scipy allows for where they cancel almost to 0.
    rounding = 1e-12 * float(np.abs(differences).sum())
    return np.asarray(np.abs(sums) >= abs(float(differences.sum())) - rounding)
