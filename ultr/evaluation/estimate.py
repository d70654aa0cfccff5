"""A metric's value with its uncertainty."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.special import ndtri, stdtrit

from ultr.errors import DataError
from ultr.files import JsonResult


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate(JsonResult):
    """A metric's value with its standard error; prints as `value ± standard error`, with `-` for NaN.

    Attributes:
      value: the metric; NaN where there was nothing to average (`count` is 0); infinite for the perplexity of a model
        that gives probability 0 to what was observed, or so little that float64 cannot hold the perplexity.
      standard_error: over queries or sessions; NaN where there are fewer than two of them or the value is not finite.
      interval: (low, high), 95 %, from the t quantile; symmetric for means, but cut off at the least and the greatest
        value that the metric can have. For perplexities it is symmetric on the log scale and cut off at 1, the least
        perplexity there is. NaN where the standard error is. Wider where the value may be biased by clipped weights.
      count: queries (ranking metrics) or sessions (click metrics) behind the value, weights included.
      excluded: queries without a graded document, or without a relevant one where those are skipped; sessions to whose
        clicks the model gives probability zero (none for marginal perplexity, which is over all sessions).
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    count: int
    excluded: int = 0

    @classmethod
    def of(
        cls,
        value: float,
        standard_error: float,
        *,
        count: float,
        excluded: float = 0,
        degrees_of_freedom: float | None = None,
        log_scale: bool = False,
        lower_bound: float = -math.inf,
        upper_bound: float = math.inf,
        ends: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ) -> Estimate:
        """Makes an estimate from a value and its standard error by adding the interval.

        Args:
          value, standard_error, count, excluded: the attributes of those names.
          degrees_of_freedom: of the t quantile; None: count - 1.
          log_scale: whether the interval is symmetric on the log scale.
          lower_bound, upper_bound: the least and the greatest value that the metric can have; an interval cut off there
            covers as much. A value beyond them leaves the interval as it is.
          ends: (value, standard error) of the least and of the greatest that the truth can be where the value is
            biased; None: it is not.
        """
        value, standard_error = float(value), float(standard_error)
        freedom = float(count - 1 if degrees_of_freedom is None else degrees_of_freedom)
        low = high = math.nan
        if freedom > 0 and math.isfinite(value) and math.isfinite(standard_error):
            reach = float(stdtrit(freedom, 0.975)) * standard_error
            if log_scale:
                factor = math.exp(min(reach / value, 700.0))
                low, high = value / factor, value * factor
            else:
                low, high = value - reach, value + reach
            if ends is not None:
                quantile = float(stdtrit(freedom, 0.975))
                (least, below), (most, above) = ends
                low, high = least - quantile * below, most + quantile * above
            if lower_bound <= value <= upper_bound:
                low, high = max(low, lower_bound), min(high, upper_bound)
        return cls(value, standard_error, (low, high), round(count), round(excluded))

    @classmethod
    def mean(cls, values: np.ndarray, *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
        """Estimates the mean of independent values [N]; NaN marks one that is missing and counted as excluded.

        Args:
          values: [N].
          bounds: the least and the greatest value that there can be, at which the interval is cut off.
        """
        values = np.asarray(values, np.float64)
        kept = values[~np.isnan(values)]
        n = len(kept)
        value = float(kept.mean()) if n else math.nan
        error = float(kept.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        least, most = bounds
        return cls.of(value, error, count=n, excluded=len(values) - n, lower_bound=least, upper_bound=most)

    def __str__(self) -> str:
        value, error = ("-" if math.isnan(x) else f"{x:.4f}" for x in (self.value, self.standard_error))
        return f"{value} ± {error}"


def paired_difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Estimates the mean of a - b over the queries that have a value in both.

    Args:
      a, b: [Q] values of one metric for two models over the same queries, as `per_query` gives them. NaN marks a query
        without a value; a pair with one is excluded and counted.

    Returns:
      The mean difference; its standard error and interval are those of the paired t test: the two-sided test at 5 %
      rejects exactly when 0 lies outside the interval.

    Raises:
      DataError: the arrays differ in shape.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(
            f"expected two arrays [Q] over the same queries, found {a.shape} and {b.shape}",
            fix="Compute both by per_query on the same data",
        )
    return Estimate.mean(a - b)


def wilson_interval(rate: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ends [C], [C] of the 95 % score intervals of binomial rates (Wilson 1927).

    Unlike rate ± 1.96 standard errors, they stay within 0 and 1 and have a length where the rate is 0 or 1. Written
    out, since counts of weighted impressions are no whole numbers, which `scipy.stats.binomtest` asks for.

    Args:
      rate: [C] successes / count.
      count: [C] trials.
    """
    z = float(ndtri(0.975))
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    # Rounding alone puts a rate of 0 or 1 outside.
    return np.minimum(np.maximum(middle - reach, 0.0), rate), np.maximum(np.minimum(middle + reach, 1.0), rate)
