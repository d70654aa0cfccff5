"""What a linear additive tower over document features could learn: standard errors by rank, and what features cost.

    logit P(click of item d at arm k) = a_k + x_d . beta

With w = n p (1 - p) the information about a, beta profiled out, is

    S = D_a - W^T X (X^T D_b X)^-1 X^T W,   D_a = diag_k(sum_d w_dk),   D_b = diag_d(sum_k w_dk)

It is connected wherever the features do not separate the ranks, also by documents that were never shown twice: features
stand in for the same document at another rank, as far as the tower is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import csr_array

from ultr.propensity.cells import Cells

BLOCK = 1 << 21  # numbers of features that are looked at at a time
SINGULAR = 1e-9  # relative eigenvalue below which a direction is not identified


@dataclasses.dataclass(frozen=True)
class FeatureTower:
    """A linear additive tower, before it is trained.

    Attributes:
      features: how many there are.
      r_squared: share of the variance of rank, over impressions, that a linear function of the features explains; 1:
        rank is a function of the features. NaN where rank does not vary.
      standard_error: [K] the best reachable one of the logit of each rank relative to rank 1; inf where the features
        separate the two.
      inflation: [K] variance of that logit over what it were if relevance were known: what learning relevance from the
        features costs. inf where features separate the ranks, NaN of rank 1.
      effective_impressions: [K] impressions over inflation: how many with known relevance would say as much.
    """

    features: int
    r_squared: float
    standard_error: np.ndarray
    inflation: np.ndarray
    effective_impressions: np.ndarray


def linear_tower(
    cells: Cells, probability: np.ndarray, document: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]]
) -> FeatureTower:
    """Streams the features once; holds one block of them.

    Args:
      cells: of all documents.
      probability: [C] of a click.
      document: [items] document id of each item, increasing.
      blocks: (first document id, [n, F] features), in order of ids.
    """
    sums = _Sums(cells, cells.impressions * probability * (1 - probability))
    width = 0
    for first, values in _pieces(blocks):
        width = values.shape[1]
        low, high = np.searchsorted(document, [first, first + len(values)])
        if low < high:
            sums.add(int(low), int(high), values[document[low:high] - first])
    error, inflation = sums.errors()
    shown = cells.per_arm(cells.impressions)
    with np.errstate(divide="ignore"):
        effective = np.where(np.isnan(inflation), shown, shown / inflation)
    return FeatureTower(width, sums.r_squared(), error, inflation, effective)


def _pieces(blocks: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    for first, values in blocks:
        step = max(BLOCK // max(values.shape[1], 1), 1)
        for start in range(0, len(values), step):
            yield first + start, values[start : start + step]


class _Sums:
    """Weighted products of ranks and of features (with a constant), over blocks of items."""

    def __init__(self, cells: Cells, weight: np.ndarray) -> None:
        self._cells, self._weight = cells, weight
        self._of_arm = cells.per_arm(weight)
        self._total, self._impressions = cells.per_item(weight), cells.per_item(cells.impressions)
        self._ranks = cells.per_item(cells.impressions * (cells.arm + 1))
        self._scale: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, low: int, high: int, values: np.ndarray) -> None:
        """Items from `low` to `high` - 1 with features [high - low, F]."""
        if self._scale is None:  # of the first block: large numbers would lose the digits of the products
            self._scale = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
            size = values.shape[1] + 1
            self._between = np.zeros((self._cells.arms, size))
            self._gram, self._shown, self._moment = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
        mean, spread = self._scale
        x = np.ones((high - low, values.shape[1] + 1))
        x[:, 1:] = (values - mean) / np.where(spread > 0, spread, 1.0)
        start, end = np.searchsorted(self._cells.item, [low, high])
        place = (self._cells.arm[start:end], self._cells.item[start:end] - low)
        w = csr_array((self._weight[start:end], place), shape=(self._cells.arms, high - low))
        self._between += w @ x
        self._gram += x.T @ (x * self._total[low:high, None])
        self._shown += x.T @ (x * self._impressions[low:high, None])
        self._moment += self._ranks[low:high] @ x

    def r_squared(self) -> float:
        """Of the regression of rank on the features, over impressions."""
        cells = self._cells
        count = cells.impressions.sum()
        mean = self._ranks.sum() / count
        variance = cells.impressions @ np.square(cells.arm + 1 - mean)
        if not variance > 1e-12 * count or self._scale is None:
            return float("nan")
        explained = self._moment @ _inverse(self._shown) @ self._moment - count * mean**2
        return float(min(max(explained / variance, 0.0), 1.0))

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """[K] standard errors relative to arm 0, and how much larger their squares are than with known relevance."""
        d = self._of_arm
        error, inflation = np.full(len(d), np.inf), np.full(len(d), np.nan)
        error[0] = 0.0 if d[0] > 0 else np.inf
        rest = np.flatnonzero(d > 0)
        rest = rest[rest > 0]
        if self._scale is None or not d[0] > 0 or not len(rest):
            return error, inflation
        s = np.diag(d) - self._between @ _inverse(self._gram) @ self._between.T
        size = 1 / np.sqrt(d[rest])
        values, vectors = np.linalg.eigh(s[np.ix_(rest, rest)] * size * size[:, None])
        lost = values < SINGULAR
        variance = np.square(vectors) @ np.where(lost, 0.0, 1 / np.where(lost, 1.0, values)) / d[rest]
        variance[np.square(vectors[:, lost]).sum(1) > SINGULAR] = np.inf
        error[rest] = np.sqrt(variance)
        inflation[rest] = variance / (1 / d[rest] + 1 / d[0])
        return error, inflation


def _inverse(gram: np.ndarray) -> np.ndarray:
    """The inverse in the directions that the features have, whatever their units."""
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0, size, 1.0)
    return np.linalg.pinv(gram / size / size[:, None], rcond=1e-10, hermitian=True) / size / size[:, None]
