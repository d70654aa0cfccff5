"""`conditional_likelihood`: examination from where each document's clicks fell, whatever its relevance.

Given how often a document was clicked in total, the share of its clicks that is expected at rank k is

    q_dk = n_dk theta_k / sum_j n_dj theta_j,

in which its relevance does not occur. The estimator maximises sum_dk c_dk log q_dk (the fixed-effects Poisson
likelihood of Hausman, Hall and Griliches 1984; consistent for any distribution of the counts, Wooldridge 1999). Joint
maximum likelihood has a parameter per document, and is biased where documents have few impressions; this has none, and
is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from ultr.data import ClickLog, Counts
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.information import (
    click_components,
    log_relevance_at,
    profile_laplacian,
    relative_covariance,
    sandwich_covariance,
    score_products_by_query,
    split_free_arms,
)
from ultr.propensity.likelihood_table import Errors, LikelihoodFit, estimate_by_likelihood
from ultr.propensity.newton import newton_ascent
from ultr.propensity.propensities import Propensities

TOLERANCE = 5e-13  # half the squared Newton decrement per click at which the search ends


def conditional_likelihood(source: ClickLog | Counts | ArmCounts, *, errors: Errors = "information") -> Propensities:
    """Estimates examination by the likelihood of where each document's clicks fell, given their number.

    As good as joint maximum likelihood where documents have many impressions and clicks are not nearly certain; without
    bias where they have few. Arguments, result and errors are those of `maximum_likelihood`.
    """
    return estimate_by_likelihood(source, "conditional-likelihood", fit_conditional, errors)


def fit_conditional(counts: ArmCounts, *, errors: Errors = "information") -> LikelihoodFit:
    """Maximises the conditional likelihood."""
    component, item_component = click_components(counts)
    inner, free = split_free_arms(counts, component, item_component)
    a, information = _maximise(inner, free)
    log_propensity = np.where(component >= 0, a, np.nan)
    return LikelihoodFit(
        component,
        log_propensity,
        log_relevance_at(inner, log_propensity),
        lambda reference: _covariance(inner, component, log_propensity, information, errors, reference),
    )


def unbiased_click_variance(counts: ArmCounts, log_propensity: np.ndarray) -> np.ndarray:
    """Estimates n p (1 - p) of each cell without bias, however few impressions a document has: [C].

    A relevance gamma is estimated by clicks per examination, and its square by pairs of clicks in different sessions.
    """
    theta = np.exp(log_propensity - np.nanmax(log_propensity))[counts.arm]
    examined, clicks = counts.sum_by_item(counts.impressions * theta), counts.sum_by_item(counts.clicks)
    pairs = examined**2 - counts.sum_by_item(counts.impressions * theta**2)
    square = np.where(pairs > 0, (clicks**2 - clicks) / np.where(pairs > 0, pairs, 1.0), 0.0)
    p = theta * (clicks / np.where(examined > 0, examined, 1.0))[counts.item]
    return np.asarray(counts.impressions * (p - theta**2 * np.maximum(square, 0.0)[counts.item]))


class _ConditionalIterate(NamedTuple):
    """An iterate of the search: log(theta) [arms], each cell's share of its item's clicks [C], the log-likelihood."""

    a: np.ndarray
    share: np.ndarray
    value: float


def _maximise(counts: ArmCounts, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log(theta), [arms], 0 at the arms that are not free, and minus the Hessian there, [arms, arms]."""
    clicks = counts.sum_by_item(counts.clicks)

    def iterate(a: np.ndarray) -> _ConditionalIterate:
        log_odds = np.log(counts.impressions) + a[counts.arm]
        top = np.full(counts.items, -np.inf)
        np.maximum.at(top, counts.item, log_odds)
        odds = np.exp(log_odds - top[counts.item])
        q = odds / counts.sum_by_item(odds)[counts.item]
        with np.errstate(divide="ignore", invalid="ignore"):  # a step too far gives -inf or NaN, and is halved
            return _ConditionalIterate(a, q, float(counts.clicks @ np.log(q)))

    def direction(at: _ConditionalIterate) -> tuple[Callable[[float], _ConditionalIterate], float]:
        expected = clicks[counts.item] * at.share
        slope, step = counts.sum_by_arm(counts.clicks - expected), np.zeros(counts.arms)
        step[free] = np.linalg.solve(profile_laplacian(counts, expected)[np.ix_(free, free)], slope[free])
        return lambda size: iterate(at.a + size * step), float(slope @ step)

    found = iterate(np.zeros(counts.arms))
    if free.any():
        found, _ = newton_ascent(
            found,
            lambda at: at.value,
            direction,
            tolerance=TOLERANCE * float(clicks.sum()),
            alternative="all-pairs",
        )
    return found.a, profile_laplacian(counts, clicks[counts.item] * found.share)


def _covariance(
    counts: ArmCounts,
    component: np.ndarray,
    log_propensity: np.ndarray,
    information: np.ndarray,
    errors: Errors,
    reference: int,
) -> np.ndarray:
    """Computes the covariance of log(theta): a sandwich, since clicks vary less than Poisson counts. [arms, arms]."""
    with_reference = component == component[reference]
    bread = relative_covariance(information, reference)
    finite = np.isfinite(np.diag(bread))
    counts = counts.select(with_reference[counts.arm])
    known = np.where(with_reference, log_propensity, np.nan)
    odds = counts.impressions * np.exp(known)[counts.arm]
    q = odds / counts.sum_by_item(odds)[counts.item]
    if errors == "query":
        score = counts.clicks - counts.sum_by_item(counts.clicks)[counts.item] * q
        meat = score_products_by_query(counts, score)
    else:
        # The variance of c_k - q_k sum_j c_j, with independent c of variance v, summed over documents.
        v = unbiased_click_variance(counts, known)
        shape = (counts.items, counts.arms)
        by_share, by_variance, by_both = (
            csr_array((x, (counts.item, counts.arm)), shape=shape)
            for x in (q, v, q * counts.sum_by_item(v)[counts.item])
        )
        crossed = (by_share.T @ by_variance).toarray()
        meat = np.diag(counts.sum_by_arm(v)) - crossed - crossed.T + (by_share.T @ by_both).toarray()
    return sandwich_covariance(bread, meat, finite)
