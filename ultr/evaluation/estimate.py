"""A number with its uncertainty, and the running sums behind it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ultr.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value with its standard error; prints as `value ± standard error`, with `-` for NaN.

    Attributes:
      value: the metric; NaN when nothing was left to average (`count` is 0); infinite for the perplexity
        of a model that rules out what was observed, or comes so close that float64 cannot hold it.
      standard_error: over queries or sessions; NaN when there are fewer than two of them or the value
        is not finite.
      interval: (low, high), 95 %, from the t quantile; symmetric for means. For perplexities symmetric
        on the log scale and cut off at 1, since no perplexity lies below. NaN where the standard error is.
      count: queries (ranking metrics) or sessions (click metrics) behind the value, weights included.
      excluded: queries without a judged or, by the policy for empty queries, without a relevant
        document; sessions that the model cannot produce (never for marginal perplexity, which is
        over all sessions).
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
        freedom: float | None = None,
        log_scale: bool = False,
        least: float = -math.inf,
    ) -> Estimate:
        """Adds the interval: t quantile with `freedom` degrees (default: count - 1), cut off at `least`.

        `least` is the lowest value that the metric can have, so that the cut takes nothing from the coverage.
        """
        value, standard_error = float(value), float(standard_error)
        freedom = float(count - 1 if freedom is None else freedom)
        low = high = math.nan
        if freedom > 0 and math.isfinite(value) and math.isfinite(standard_error):
            reach = float(stdtrit(freedom, 0.975)) * standard_error
            if log_scale:
                factor = math.exp(min(reach / value, 700.0))
                low, high = value / factor, value * factor
            else:
                low, high = value - reach, value + reach
            low = max(low, least)
        return cls(value, standard_error, (low, high), round(count), round(excluded))

    @classmethod
    def mean(cls, values: np.ndarray) -> Estimate:
        """The mean of independent values [N]; NaN marks one that has no value and is excluded."""
        values = np.asarray(values, np.float64)
        kept = values[~np.isnan(values)]
        n = len(kept)
        value = float(kept.mean()) if n else math.nan
        error = float(kept.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        return cls.of(value, error, count=n, excluded=len(values) - n)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`; what is not finite becomes None."""

        def plain(x: float) -> float | None:
            return x if math.isfinite(x) else None

        return {
            "value": plain(self.value),
            "standard_error": plain(self.standard_error),
            "interval": [plain(x) for x in self.interval],
            "count": self.count,
            "excluded": self.excluded,
        }

    def __str__(self) -> str:
        value, error = ("-" if math.isnan(x) else f"{x:.4f}" for x in (self.value, self.standard_error))
        return f"{value} ± {error}"


def paired_difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of a - b over the queries that have a value in both.

    Args:
      a, b: [Q] values of one metric for two models over the same queries, as `per_query` gives them.
        NaN marks a query without a value; a pair with one is excluded and counted.

    Returns:
      The mean difference; its standard error and interval are those of the paired t test: the
      two-sided test at 5 % rejects exactly when 0 lies outside the interval.

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


class Moments:
    """Weighted sums of rows [C, R] and of their products, in float64 and in bounded memory.

    A smooth function of the totals that does not change when all of them are scaled (a ratio) has, by
    the delta method, the variance sum_i w_i (gradient . row_i)^2: a quadratic form in the products.

    Args:
      channels: C. The width R may grow while rows arrive.
      grouped: sum the rows of a group first and treat the groups as the independent units; keeps
        one row per group, and then the products are formed at the end.
    """

    def __init__(self, channels: int, *, grouped: bool) -> None:
        self.totals = np.zeros((channels, 0))
        self._products = None if grouped else np.zeros((channels, 0, channels, 0))
        self._keys = np.zeros(0, np.int64)
        self._rows = np.zeros((0, channels, 0))
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def widen(self, width: int) -> None:
        """Grows R to `width`; what came before had zeros there."""
        self.totals = widened(self.totals, width, (1,))
        if self._products is not None:
            self._products = widened(self._products, width, (1, 3))

    def add(self, rows: np.ndarray, weight: np.ndarray, group: np.ndarray | None = None) -> None:
        """Adds rows [n, C, R] with frequency weights [n] and, where grouped, group ids [n]."""
        n, channels, width = rows.shape
        if n == 0:
            return
        self.widen(width)
        flat = rows.reshape(n, channels * width)
        weighted = flat * weight[:, None]
        self.totals += weighted.sum(0).reshape(channels, width)
        if self._products is not None:
            # In blocks that BLAS keeps on one thread: starting several costs more than so small a product.
            step = max(1, (1 << 17) // flat.shape[1] ** 2)
            blocks = (slice(i, i + step) for i in range(0, n, step))
            products = sum(flat[rows].T @ weighted[rows] for rows in blocks)
            self._products += np.reshape(products, self._products.shape)
            return
        assert group is not None
        keys, sums = sum_by(group, weighted)
        self._pending.append((keys, sums.reshape(-1, channels, width)))
        # Merging only once as much is waiting as is merged keeps the whole at O(rows log rows).
        if sum(len(k) for k, _ in self._pending) > max(len(self._keys), 1 << 16):
            self._merge()

    def _merge(self) -> None:
        width = self.totals.shape[1]
        keys = np.concatenate([self._keys, *(k for k, _ in self._pending)])
        rows = [widened(r, width, (2,)) for r in (self._rows, *(r for _, r in self._pending))]
        self._pending = []
        if len(keys):
            self._keys, self._rows = sum_by(keys, np.concatenate(rows))

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Group ids [G], ascending, and the weighted sums of their rows [G, C, R]."""
        self._merge()
        return self._keys, self._rows

    def standard_error(self, gradient: np.ndarray, units: float) -> float:
        """Delta method for the gradient [C, R] of a ratio, with the correction for `units` units."""
        if units <= 1:
            return math.nan
        if self._products is None:
            influence = np.tensordot(self.groups()[1], gradient, 2)
            variance = float(influence @ influence)
        else:
            size = gradient.size
            variance = float(gradient.ravel() @ self._products.reshape(size, size) @ gradient.ravel())
        return math.sqrt(max(variance, 0.0) * units / (units - 1))


def sum_by(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sum of the rows [n, ...] of each; n is at least 1."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(rows[order], starts, axis=0)


def widened(x: np.ndarray, width: int, axes: tuple[int, ...]) -> np.ndarray:
    """The array with zeros appended on these axes, all of one length, up to `width`."""
    if all(x.shape[a] == width for a in axes):
        return x
    return np.pad(x, [(0, width - n if a in axes else 0) for a, n in enumerate(x.shape)])
