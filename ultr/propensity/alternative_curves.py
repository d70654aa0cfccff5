"""Examination by rank under models that allow for what the position-based model does not.

`browsing_curve`: examination by rank and last click (user browsing model), averaged over the last clicks of the log.
`affine_curve`: clicks alpha_k relevance + beta_k (trust bias, noise), of which alpha is the curve.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.special import stdtrit

from ultr.propensity.affine import fit_affine
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.clicks_above import ContextCells, classes_of
from ultr.propensity.conditional import fit_conditional

QUANTILE = 2.5758293035489004  # 99.5 %: of the 99 % intervals of alternative curves, which hold but about
MOST_UNKNOWN = 0.02  # share of a rank's impressions whose examination may be unknown
FEWEST_QUERIES = 10  # for errors over queries


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
    """Estimates alpha by rank, relative to rank 1, where clicks are alpha_k relevance + beta_k (`fit_affine`).

    beta is known up to a multiple of alpha; alpha does not depend on it. None where the log does not tell.
    """
    found = fit_affine(counts)
    return None if found is None else _alternative("trust", np.exp(found.log_alpha), QUANTILE * found.log_error)


def _alternative(model: str, value: np.ndarray, reach: np.ndarray) -> AlternativeCurve | None:
    """Makes a curve relative to its first rank, with intervals of this reach on the log scale, [K]."""
    if not value[0] > 0:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        value = np.where(np.isfinite(reach) & (value > 0), value / value[0], np.nan)
        interval = np.stack([value * np.exp(-reach), value * np.exp(reach)], axis=1)
    interval[0] = value[0]
    return AlternativeCurve(model, value, interval)
