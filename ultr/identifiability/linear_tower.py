"""What a linear additive tower over document features could learn: standard errors by rank, and what features cost.

    logit P(click of item d at arm k) = a_k + x_d . beta

With w = n p (1 - p) the information about a, beta profiled out, is

    S = D_a - W^T X (X^T D_b X)^-1 X^T W,   D_a = diag_k(sum_d w_dk),   D_b = diag_d(sum_k w_dk)

It connects ranks wherever the features do not separate them, even through documents that were never shown twice: as far
as the tower is right, documents with the same features stand for the same document at another rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import csr_array

from ultr.propensity.arm_counts import ArmCounts

BLOCK_SIZE = 1 << 21  # numbers of features per block
SINGULAR = 1e-9  # relative eigenvalue below which a direction is not identified


@dataclasses.dataclass(frozen=True)
class LinearTowerLimits:
    """What a linear additive tower over document features could learn at best.

    Attributes:
      features: number of features.
      r_squared: share of the variance of rank, over impressions, that a linear function of the features explains; 1:
        rank is a function of the features. NaN where rank does not vary.
      standard_error: [K] of the logit of each rank relative to rank 1, the smallest that is possible; inf where the
        features separate the two.
      inflation: [K] variance of that logit over the variance if relevance were known: what learning relevance from the
        features costs. inf where features separate the ranks, NaN at rank 1.
      effective_impressions: [K] impressions over inflation: as many with known relevance would tell as much.
    """

    features: int
    r_squared: float
    standard_error: np.ndarray
    inflation: np.ndarray
    effective_impressions: np.ndarray


def linear_tower_limits(
    counts: ArmCounts,
    probability: np.ndarray,
    document: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray]],
    *,
    block_size: int = BLOCK_SIZE,
) -> LinearTowerLimits:
    """Computes what a linear tower could learn; streams the features once, a block at a time.

    Args:
      counts: of all documents.
      probability: [C] of a click in each cell.
      document: [items] document id of each item, increasing.
      blocks: (first document id, [n, F] features), in order of ids.
      block_size: numbers of features that are held at once.
    """
    products = _FeatureProducts(counts, counts.impressions * probability * (1 - probability))
    width = 0
    for first, values in _split_blocks(blocks, block_size):
        width = values.shape[1]
        low, high = np.searchsorted(document, [first, first + len(values)])
        if low < high:
            products.add(int(low), int(high), values[document[low:high] - first])
    error, inflation = products.errors()
    shown = counts.sum_by_arm(counts.impressions)
    with np.errstate(divide="ignore"):
        effective = np.where(np.isnan(inflation), shown, shown / inflation)
    return LinearTowerLimits(width, products.r_squared(), error, inflation, effective)


def _split_blocks(blocks: Iterable[tuple[int, np.ndarray]], block_size: int) -> Iterator[tuple[int, np.ndarray]]:
    for first, values in blocks:
        step = max(block_size // max(values.shape[1], 1), 1)
        for start in range(0, len(values), step):
            yield first + start, values[start : start + step]


class _FeatureProducts:
    """Weighted products of ranks with features, and of features with each other, summed over blocks of items.

    A constant is the first of the features.
    """

    def __init__(self, counts: ArmCounts, weight: np.ndarray) -> None:
        self._counts, self._weight = counts, weight
        self._arm_weight = counts.sum_by_arm(weight)
        self._item_weight, self._impressions = counts.sum_by_item(weight), counts.sum_by_item(counts.impressions)
        self._ranks = counts.sum_by_item(counts.impressions * (counts.arm + 1))
        self._scale: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, low: int, high: int, values: np.ndarray) -> None:
        """Adds the items from `low` to `high` - 1, with features [high - low, F]."""
        if self._scale is None:  # standardised by the first block: products of large numbers would lose digits
            self._scale = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
            size = values.shape[1] + 1
            self._by_arm = np.zeros((self._counts.arms, size))
            self._weighted_gram, self._gram, self._moment = (
                np.zeros((size, size)),
                np.zeros((size, size)),
                np.zeros(size),
            )
        mean, spread = self._scale
        x = np.ones((high - low, values.shape[1] + 1))
        x[:, 1:] = (values - mean) / np.where(spread > 0, spread, 1.0)
        start, end = np.searchsorted(self._counts.item, [low, high])
        place = (self._counts.arm[start:end], self._counts.item[start:end] - low)
        w = csr_array((self._weight[start:end], place), shape=(self._counts.arms, high - low))
        self._by_arm += w @ x
        self._weighted_gram += x.T @ (x * self._item_weight[low:high, None])
        self._gram += x.T @ (x * self._impressions[low:high, None])
        self._moment += self._ranks[low:high] @ x

    def r_squared(self) -> float:
        """Computes the R squared of the regression of rank on the features, over impressions."""
        counts = self._counts
        total = counts.impressions.sum()
        mean = self._ranks.sum() / total
        variance = counts.impressions @ np.square(counts.arm + 1 - mean)
        if not variance > 1e-12 * total or self._scale is None:
            return float("nan")
        explained = self._moment @ _scaled_inverse(self._gram) @ self._moment - total * mean**2
        return float(min(max(explained / variance, 0.0), 1.0))

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Computes standard errors relative to arm 0, and the inflation of their squares over known relevance: [K]."""
        d = self._arm_weight
        error, inflation = np.full(len(d), np.inf), np.full(len(d), np.nan)
        error[0] = 0.0 if d[0] > 0 else np.inf
        rest = np.flatnonzero(d > 0)
        rest = rest[rest > 0]
        if self._scale is None or not d[0] > 0 or not len(rest):
            return error, inflation
        s = np.diag(d) - self._by_arm @ _scaled_inverse(self._weighted_gram) @ self._by_arm.T
        size = 1 / np.sqrt(d[rest])
        values, vectors = np.linalg.eigh(s[np.ix_(rest, rest)] * size * size[:, None])
        lost = values < SINGULAR
        variance = np.square(vectors) @ np.where(lost, 0.0, 1 / np.where(lost, 1.0, values)) / d[rest]
        variance[np.square(vectors[:, lost]).sum(1) > SINGULAR] = np.inf
        error[rest] = np.sqrt(variance)
        inflation[rest] = variance / (1 / d[rest] + 1 / d[0])
        return error, inflation


def _scaled_inverse(gram: np.ndarray) -> np.ndarray:
    """Computes the pseudo-inverse of a Gram matrix whose features have any units."""
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0, size, 1.0)
    return np.asarray(np.linalg.pinv(gram / size / size[:, None], rcond=1e-10, hermitian=True) / size / size[:, None])
