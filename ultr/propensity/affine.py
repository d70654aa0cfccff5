"""`fit_affine`: clicks alpha_k relevance + beta_k (trust bias, noise) from counts, without a parameter per document.

With n beta taken from the clicks, where the rest of a document's clicks fell has the shares q_dk of
`conditional_likelihood`, whatever its relevance:

    sum_d w_d (c_dk - n_dk beta_k - q_dk sum_j (c_dj - n_dj beta_j)) = 0     q_dk = n_dk alpha_k / sum_j n_dj alpha_j

for any weight w_d that is independent of these clicks. Weights of 1 give alpha, weights that fall with the relevance
beta. So that they are independent, however few impressions a document has, its impressions are split at random: one
half weighs the other. A maximum of the joint likelihood has a relevance per document and is biased where documents have
few impressions; a prior on those relevances pulls alpha along wherever documents are hardly ever clicked.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.conditional import fit_conditional
from ultr.propensity.curve_by_relevance import relevance_score

MAX_STEPS, LARGEST_STEP, TOLERANCE = 60, 0.5, 1e-8
SPLITS = 2  # random halves over which the equations are averaged


@dataclasses.dataclass(frozen=True)
class AffineFit:
    """alpha and beta by arm, up to what clicks leave open: a factor of alpha, and a multiple of alpha added to beta.

    Attributes:
      log_alpha: [arms] float64, 0 at the first arm; NaN for arms that clicks do not compare with it.
      beta: [arms] float64, 0 at the first arm; NaN likewise.
      log_error: [arms] standard errors of log_alpha; 0 at the first arm, infinite where there is no value.
      covariance: [arms, arms] of log_alpha; NaN where there is none.
    """

    log_alpha: np.ndarray
    beta: np.ndarray
    log_error: np.ndarray
    covariance: np.ndarray

    def scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ([arms] alpha, [arms] beta) as probabilities: the least beta that is nowhere below 0, the most alpha.

        A relevance of 1 is then a document that is always clicked where alpha + beta is largest, as for propensities
        relative to rank 1.
        """
        ratio = np.exp(self.log_alpha)
        beta = self.beta + ratio * max(float(np.nanmax(-self.beta / ratio)), 0.0)
        beta = np.maximum(beta, 0.0)  # rounding
        return ratio * float(np.nanmin((1 - beta) / ratio)), beta


def fit_affine(counts: ArmCounts, *, seed: int = 0) -> AffineFit | None:
    """Solves the equations for alpha and beta; None where they have no solution.

    Errors are a sandwich over documents, whose clicks are independent of each other.

    Args:
      counts: clicks of a log. Of weights that are no whole numbers, the whole part is split.
      seed: of the random halves.

    Raises:
      DataError: no clicks.
    """
    arms = counts.arms
    counts = counts.moved()
    clicked = counts.sum_by_arm(counts.clicks) > 0
    if not clicked[0] or clicked.sum() < 2:
        return None
    counts = counts.select(clicked[counts.arm])
    found = fit_conditional(counts)
    inside = found.component == found.component[0]
    counts = counts.select(inside[counts.arm])
    a = np.where(inside, found.log_propensity - found.log_propensity[0], 0.0)
    beta = np.zeros(arms)
    equations = _Equations(counts, a, seed)
    free = np.flatnonzero(inside)[1:]
    unknown = np.concatenate([free, arms + free])
    try:
        for _ in range(MAX_STEPS):
            value, slope = equations.at(a, beta)
            step = np.zeros(2 * arms)
            step[unknown] = -np.linalg.solve(slope[np.ix_(unknown, unknown)], value[unknown])
            largest = np.abs(step[:arms]).max()
            step *= min(1.0, LARGEST_STEP / max(largest, 1e-300))
            a, beta = a + step[:arms], beta + step[arms:]
            if not np.isfinite(a).all():
                return None
            if largest < TOLERANCE:
                break
        else:
            return None
        inverse = np.linalg.inv(equations.at(a, beta)[1][np.ix_(unknown, unknown)])
    except np.linalg.LinAlgError:
        return None
    spread = inverse @ equations.variance(a, beta)[np.ix_(unknown, unknown)] @ inverse.T
    covariance = np.full((arms, arms), np.nan)
    known = np.flatnonzero(inside)
    covariance[np.ix_(known, known)] = 0.0
    covariance[np.ix_(free, free)] = spread[: len(free), : len(free)]
    error = np.where(inside, np.sqrt(np.maximum(np.nan_to_num(np.diag(covariance)), 0.0)), np.inf)
    return AffineFit(np.where(inside, a, np.nan), np.where(inside, beta, np.nan), error, covariance)


class _Half(NamedTuple):
    """Half of the impressions: [C] impressions and clicks, and [items] weights by the other half."""

    impressions: np.ndarray
    clicks: np.ndarray
    weight: np.ndarray


class _Equations:
    """The estimating equations, first those with weights of 1, then those by relevance.

    Args:
      counts: cells of the arms that are compared.
      log_propensity: [arms], by which the relevance in the weights is estimated.
      seed: of the random halves.
    """

    def __init__(self, counts: ArmCounts, log_propensity: np.ndarray, seed: int) -> None:
        self.counts = counts
        self.starts = np.searchsorted(counts.item, np.arange(counts.items + 1))  # cells are sorted by item
        n, c = counts.impressions, counts.clicks
        whole, clicked = np.floor(n).astype(np.int64), np.floor(c).astype(np.int64)
        theta = np.exp(log_propensity)[counts.arm]
        average = float(c.sum() / (n * theta).sum())
        rng = np.random.default_rng([seed, 3])
        self.halves: list[_Half] = []
        for _ in range(SPLITS):
            shown = rng.binomial(whole, 0.5)
            first = shown.astype(np.float64), rng.hypergeometric(clicked, whole - clicked, shown).astype(np.float64)
            second = n - first[0], c - first[1]
            for weighing, weighed in ((first, second), (second, first)):
                examined, clicks = counts.sum_by_item(weighing[0] * theta), counts.sum_by_item(weighing[1])
                score = relevance_score(clicks, examined, average)
                centre = float(clicks @ score) / max(float(clicks.sum()), 1e-300)
                self.halves.append(_Half(*weighed, score - centre))

    def at(self, a: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the equations [2 arms] and their derivatives by log(alpha) and beta, [2 arms, 2 arms]."""
        counts, item = self.counts, self.counts.item
        size = 2 * counts.arms
        values, slopes = np.zeros(size), np.zeros((size, size))
        for half in self.halves:
            q = self._shares(half, a)
            left = half.clicks - half.impressions * beta[counts.arm]
            residual, rest = self._residual(left, q), counts.sum_by_item(left)[item]
            for at, w in self._weights(half):
                values[at] += counts.sum_by_arm(w[item] * residual)
                expected, shown = w[item] * rest * q, w[item] * half.impressions
                by_alpha = np.diag(counts.sum_by_arm(expected)) - self._crossed(expected, q)
                by_beta = np.diag(counts.sum_by_arm(shown)) - self._crossed(w[item] * q, half.impressions)
                slopes[at] -= np.concatenate([by_alpha, by_beta], axis=1)
        return values, slopes

    def variance(self, a: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Computes the variance of the equations from their squares over documents: [2 arms, 2 arms]."""
        counts, item = self.counts, self.counts.item
        terms = np.zeros((2, len(item)))
        for half in self.halves:
            left = half.clicks - half.impressions * beta[counts.arm]
            residual = self._residual(left, self._shares(half, a))
            for row, (_, w) in zip(terms, self._weights(half), strict=True):
                row += w[item] * residual
        return np.block([[self._crossed(x, y) for y in terms] for x in terms])

    def _weights(self, half: _Half) -> tuple[tuple[slice, np.ndarray], tuple[slice, np.ndarray]]:
        arms = self.counts.arms
        return (slice(0, arms), np.ones(self.counts.items)), (slice(arms, 2 * arms), half.weight)

    def _shares(self, half: _Half, a: np.ndarray) -> np.ndarray:
        odds = half.impressions * np.exp(a)[self.counts.arm]
        total = self.counts.sum_by_item(odds)
        return np.asarray(odds / np.where(total > 0, total, 1.0)[self.counts.item])

    def _crossed(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Sums x_dk y_dj over items: [arms, arms]."""
        shape = (self.counts.items, self.counts.arms)
        left, right = (csr_array((z, self.counts.arm, self.starts), shape=shape) for z in (x, y))
        return np.asarray((left.T @ right).toarray())

    def _residual(self, x: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Computes x less its document's sum times the shares: [C]."""
        return np.asarray(x - q * self.counts.sum_by_item(x)[self.counts.item])
