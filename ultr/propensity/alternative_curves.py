"""Examination by rank under models that allow for what the position-based model does not.

`browsing_curve`: examination by rank and last click (user browsing model), averaged over the last clicks of the log.
`affine_curve`: clicks alpha_k relevance + beta_k (trust bias, noise), of which alpha is the curve.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.sparse import csr_array
from scipy.special import stdtrit

from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.clicks_above import ContextCells, classes_of
from ultr.propensity.conditional import fit_conditional
from ultr.propensity.curve_by_relevance import relevance_score

QUANTILE = 2.5758293035489004  # 99.5 %: of the 99 % intervals of alternative curves, which hold but about
MOST_UNKNOWN = 0.02  # share of a rank's impressions whose examination may be unknown
FEWEST_QUERIES = 10  # for errors over queries
MAX_STEPS, LARGEST_STEP, TOLERANCE = 60, 0.5, 1e-8


@dataclasses.dataclass(frozen=True)
class AlternativeCurve:
    """Examination by rank relative to rank 1 under another model.

    Attributes:
      model: a method of the registry that learns this model.
      value: [K] float64; NaN where the log does not support an estimate.
      interval: [K, 2] float64, 99 % intervals.
    """

    model: str
    value: np.ndarray
    interval: np.ndarray


def browsing_curve(cells: ContextCells) -> AlternativeCurve | None:
    """Estimates examination by rank under the user browsing model: its average over the last clicks above.

    P(click) = theta_(rank, last click) gamma_document by the conditional likelihood; then sum_l P(last click l at rank
    k) theta_kl, relative to rank 1. Errors are the larger of those of the model and those over queries, since what
    a click does to the examination below it may depend on the query. None where the log does not support it.
    """
    counts, classes, shown = cells.by_last_click(), classes_of(cells.ranks), cells.shown
    if shown is None or not counts.clicks.sum():
        return None
    fit = fit_conditional(counts)
    reference = 0  # rank 1, nothing above
    if fit.component[reference] < 0:
        return None
    known = fit.component == fit.component[reference]
    theta = np.where(known, np.exp(np.where(known, fit.log_propensity - fit.log_propensity[reference], 0.0)), 0.0)
    inside = np.where(known.reshape(shown.shape), shown, 0.0)
    total = np.maximum(inside.sum(1), 1e-300)
    examined = inside * theta.reshape(shown.shape)
    value = examined.sum(1) / total
    value[inside.sum(1) < (1 - MOST_UNKNOWN) * shown.sum(1)] = np.nan
    weight = np.zeros((cells.ranks, counts.arms))
    for k in range(cells.ranks):
        weight[k, k * classes : (k + 1) * classes] = examined[k] / max(examined[k].sum(), 1e-300)
    errors, reach = [_log_error(fit.covariance(reference), weight)], QUANTILE
    if (queries := len(np.unique(cells.query))) >= FEWEST_QUERIES:
        errors.append(_log_error(fit_conditional(counts, errors="query").covariance(reference), weight))
        reach = float(stdtrit(queries - 1, 0.995))
    return _alternative("ubm", value, reach * np.max(errors, axis=0))


def _log_error(covariance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Computes the standard errors of the logarithms of weighted averages: [K].

    Args:
      covariance: [arms, arms] of the logarithms that are averaged.
      weight: [K, arms], of the averages.
    """
    out = np.full(len(weight), np.inf)
    finite = np.isfinite(np.diag(covariance))
    part = covariance[np.ix_(finite, finite)]
    for k, w in enumerate(weight):
        if not (w[~finite] > 0).any():
            out[k] = math.sqrt(max(float(w[finite] @ part @ w[finite]), 0.0))
    return out


def affine_curve(counts: ArmCounts) -> AlternativeCurve | None:
    """Estimates alpha by rank, relative to rank 1, where clicks are alpha_k relevance + beta_k.

    With n beta taken from the clicks, where the rest of a document's clicks fell has the shares q_dk of
    `conditional_likelihood`, whatever its relevance: sum_d w_d (c'_dk - q_dk sum_j c'_dj) = 0 for weights w_d of 1 give
    alpha, and for weights that fall with the relevance (each without the click that it weighs) beta. Errors are a
    sandwich with the variance c (n - c) / (n - 1) of each cell. beta is known up to a multiple of alpha, which is
    taken to be 0 at rank 1; alpha does not depend on it. None where the equations have no solution.
    """
    found = _solve_affine(counts)
    return None if found is None else _alternative("trust", np.exp(found[0]), QUANTILE * found[1])


def _alternative(model: str, value: np.ndarray, reach: np.ndarray) -> AlternativeCurve | None:
    """Makes a curve relative to its first rank, with intervals of this reach on the log scale, [K]."""
    if not value[0] > 0:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        value = np.where(np.isfinite(reach) & (value > 0), value / value[0], np.nan)
        interval = np.stack([value * np.exp(-reach), value * np.exp(reach)], axis=1)
    interval[0] = value[0]
    return AlternativeCurve(model, value, interval)


def _solve_affine(counts: ArmCounts) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns log(alpha) and its standard errors, [arms] each; NaN and inf for arms without clicks."""
    counts = counts.moved()
    clicked = counts.sum_by_arm(counts.clicks) > 0
    if not clicked[0] or clicked.sum() < 2:
        return None
    counts = counts.select(clicked[counts.arm])
    fit = fit_conditional(counts)
    inside = fit.component == fit.component[0]
    counts = counts.select(inside[counts.arm])
    equations = _AffineEquations(counts, np.where(inside, fit.log_propensity - fit.log_propensity[0], 0.0))
    free = np.flatnonzero(inside)[1:]
    unknown = np.concatenate([free, counts.arms + free])
    a, beta = np.where(inside, fit.log_propensity - fit.log_propensity[0], 0.0), np.zeros(counts.arms)
    try:
        for _ in range(MAX_STEPS):
            value, slope = equations.at(a, beta)
            step = np.zeros(2 * counts.arms)
            step[unknown] = -np.linalg.solve(slope[np.ix_(unknown, unknown)], value[unknown])
            largest = np.abs(step[: counts.arms]).max()
            step *= min(1.0, LARGEST_STEP / max(largest, 1e-300))
            a, beta = a + step[: counts.arms], beta + step[counts.arms :]
            if not np.isfinite(a).all():
                return None
            if largest < TOLERANCE:
                break
        else:
            return None
        inverse = np.linalg.inv(equations.at(a, beta)[1][np.ix_(unknown, unknown)])
    except np.linalg.LinAlgError:
        return None
    covariance = inverse @ equations.variance(a)[np.ix_(unknown, unknown)] @ inverse.T
    error = np.where(np.arange(counts.arms) == 0, 0.0, np.inf)
    error[free] = np.sqrt(np.maximum(np.diag(covariance)[: len(free)], 0.0))
    return np.where(inside, a, np.nan), error


class _AffineEquations:
    """The estimating equations of `affine_curve`, first those with weights of 1, then those by relevance.

    Args:
      counts: cells of the arms that are compared.
      log_propensity: [arms], by which the relevance in the weights is estimated.
    """

    def __init__(self, counts: ArmCounts, log_propensity: np.ndarray) -> None:
        self.counts = counts
        n, c = counts.impressions, counts.clicks
        examined, clicks = counts.sum_by_item(n * np.exp(log_propensity)[counts.arm]), counts.sum_by_item(c)
        average = clicks.sum() / examined.sum()
        whole, without, less = (relevance_score(clicks - x, examined, average) for x in (0, 1, 2))
        centre = float(clicks @ without) / clicks.sum()
        self.weight = without - centre
        share = c / n
        # An impression without a click has the weight of all clicks of its document, one with a click of the others.
        self.weight_of_shown = share * self.weight[counts.item] + (1 - share) * (whole - centre)[counts.item]
        self.change = np.where(clicks > 1, without - less, 0.0)
        self.squares = np.where(n > 1, c * (c - 1) / np.maximum(n - 1, 1.0), 0.0)  # n p^2 without bias
        self.spread = np.where(n > 1, c * (n - c) / np.maximum(n - 1, 1.0), c)  # n p (1 - p) without bias, or at most

    def _shares(self, a: np.ndarray) -> np.ndarray:
        odds = self.counts.impressions * np.exp(a)[self.counts.arm]
        total = self.counts.sum_by_item(odds)
        return np.asarray(odds / np.where(total > 0, total, 1.0)[self.counts.item])

    def _crossed(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Sums x_dk y_dj over items: [arms, arms]."""
        counts = self.counts
        shape = (counts.items, counts.arms)
        left, right = (csr_array((z, (counts.item, counts.arm)), shape=shape) for z in (x, y))
        return np.asarray((left.T @ right).toarray())

    def at(self, a: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the equations [2 arms] and their derivatives by log(alpha) and beta, [2 arms, 2 arms]."""
        counts, n, c = self.counts, self.counts.impressions, self.counts.clicks
        q, item, b = self._shares(a), self.counts.item, beta[self.counts.arm]
        left = c - n * b
        weighted = self.weight[item] * c - self.weight_of_shown * n * b
        correction = -self.change[item] * self._residual(self.squares - b * c, q)
        values = [counts.sum_by_arm(self._residual(left, q))]
        values.append(counts.sum_by_arm(self._residual(weighted, q) - correction))
        rest = counts.sum_by_item(left)[item]
        slopes = []
        for w in (np.ones(counts.items), self.weight):
            expected = w[item] * rest * q
            by_alpha = np.diag(counts.sum_by_arm(expected)) - self._crossed(expected, q)
            by_beta = np.diag(counts.sum_by_arm(w[item] * n)) - self._crossed(w[item] * q, n)
            slopes.append(-np.concatenate([by_alpha, by_beta], axis=1))
        return np.concatenate(values), np.concatenate(slopes)

    def variance(self, a: np.ndarray) -> np.ndarray:
        """Computes the variance of the equations: [2 arms, 2 arms]."""
        counts, q, item = self.counts, self._shares(a), self.counts.item

        def block(w: np.ndarray) -> np.ndarray:
            v = w[item] * self.spread
            crossed = self._crossed(v, q)
            both = self._crossed(q * counts.sum_by_item(v)[item], q)
            return np.asarray(np.diag(counts.sum_by_arm(v)) - crossed - crossed.T + both)

        one, mixed, squared = block(np.ones(counts.items)), block(self.weight), block(self.weight**2)
        return np.block([[one, mixed], [mixed, squared]])

    def _residual(self, x: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Computes x less its document's sum times the shares: [C]."""
        return np.asarray(x - q * self.counts.sum_by_item(x)[self.counts.item])
