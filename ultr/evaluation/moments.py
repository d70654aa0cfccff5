"""Weighted sums and products of rows, from which the delta method takes standard errors of ratios."""

from __future__ import annotations

import math

import numpy as np


class WeightedMoments:
    """Weighted sums of rows [C, R] and of their products, in float64 and in bounded memory.

    A ratio, or any other smooth function of the totals that does not change when all of them are scaled, has by the
    delta method the variance sum_i w_i (gradient . row_i)^2: a quadratic form in the products.

    Args:
      channels: C. The width R may grow while rows arrive.
      grouped: whether groups of rows are the independent units; the sums of each group are then kept, and the products
        are formed at the end.

    Attributes:
      totals: [C, R] weighted sums of all rows.
      grouped: as given.
    """

    def __init__(self, channels: int, *, grouped: bool) -> None:
        self.totals = np.zeros((channels, 0))
        self.grouped = grouped
        self._products = None if grouped else np.zeros((channels, 0, channels, 0))
        self._keys = np.zeros(0, np.int64)
        self._rows = np.zeros((0, channels, 0))
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def widen(self, width: int) -> None:
        """Grows R to `width`, with zeros for the rows so far."""
        self.totals = pad_axes(self.totals, width, (1,))
        if self._products is not None:
            self._products = pad_axes(self._products, width, (1, 3))

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
        keys, sums = sum_rows_by_key(group, weighted)
        self._pending.append((keys, sums.reshape(-1, channels, width)))
        # Merging only once as much is waiting as is merged keeps the whole at O(rows log rows).
        if sum(len(k) for k, _ in self._pending) > max(len(self._keys), 1 << 16):
            self._merge()

    def _merge(self) -> None:
        width = self.totals.shape[1]
        keys = np.concatenate([self._keys, *(k for k, _ in self._pending)])
        rows = [pad_axes(r, width, (2,)) for r in (self._rows, *(r for _, r in self._pending))]
        self._pending = []
        if len(keys):
            self._keys, self._rows = sum_rows_by_key(keys, np.concatenate(rows))

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the group ids [G], ascending, and the weighted sums of their rows [G, C, R]."""
        self._merge()
        return self._keys, self._rows

    def standard_error(self, gradient: np.ndarray, units: float) -> float:
        """Computes the standard error of a ratio by the delta method.

        Args:
          gradient: [C, R] derivatives of the ratio with respect to the totals.
          units: how many independent units there are, for the correction units / (units - 1).
        """
        if units <= 1:
            return math.nan
        if self._products is None:
            influence = np.tensordot(self.groups()[1], gradient, 2)
            variance = float(influence @ influence)
        else:
            size = gradient.size
            variance = float(gradient.ravel() @ self._products.reshape(size, size) @ gradient.ravel())
        return math.sqrt(max(variance, 0.0) * units / (units - 1))


def sum_rows_by_key(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys, ascending, and the sum of the rows [n, ...] of each; n is at least 1."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(rows[order], starts, axis=0)


def pad_axes(x: np.ndarray, width: int, axes: tuple[int, ...]) -> np.ndarray:
    """Appends zeros on some axes, all of one length, up to `width`."""
    if all(x.shape[a] == width for a in axes):
        return x
    return np.pad(x, [(0, width - n if a in axes else 0) for a, n in enumerate(x.shape)])
