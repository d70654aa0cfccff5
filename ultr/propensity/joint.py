"""`maximum_likelihood`: joint maximum likelihood of the position-based model on (document, rank) counts.

The log-likelihood is concave in the logarithms (a, b) of propensities and relevances: Newton's method with the
relevances eliminated (a diagonal block of the Hessian) finds its maximum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.information import (
    click_components,
    information_laplacian,
    information_weights,
    log_relevance_at,
    profile_laplacian,
    relative_covariance,
    sandwich_covariance,
    score_products_by_query,
    smoothed_log_relevance,
    split_free_arms,
)
from ultr.propensity.likelihood_table import Errors, LikelihoodFit, estimate_by_likelihood
from ultr.propensity.newton import newton_ascent
from ultr.propensity.propensities import Propensities

# The non-clicks that a cell counts as having at least. They keep the probability of an item below 1 that was clicked
# whenever it was shown at an arm, and weigh far less than a single impression. The larger number leads around the
# corners that the likelihood has where an item is close to 1 at two arms.
BARRIERS = (1e-2, 1e-4)
BARRIER_TOLERANCE = 1e-6  # half the squared Newton decrement per click at which the search with the larger one ends


def maximum_likelihood(source: ClickLog | Counts | ArmCounts, *, errors: Errors = "information") -> Propensities:
    """Estimates examination by joint maximum likelihood of the position-based model, relevances profiled out.

    P(click) = theta_rank gamma_document, solved to convergence by Newton's method on counts. Asymptotically no unbiased
    estimator under this model has a smaller variance (Cramer-Rao).

    Args:
      source: a log, its counts by rank or last click, or `ArmCounts`.
      errors: "information": standard errors from the information matrix, right where the model is; "query": robust to a
        wrong model and to clicks of a query that depend on each other (sandwich over queries).

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit; ranks that no document connects with
      rank 1 have no value.

    Raises:
      DataError: no clicks.
    """
    return estimate_by_likelihood(source, "maximum-likelihood", fit_joint, errors)


def fit_joint(counts: ArmCounts, *, errors: Errors = "information") -> LikelihoodFit:
    """Maximises the joint likelihood, and prepares its covariance."""
    solution = maximise_joint(counts)
    return LikelihoodFit(
        solution.component,
        solution.log_propensity,
        solution.log_relevance,
        lambda reference: _covariance(counts, solution, errors, reference),
    )


@dataclasses.dataclass(frozen=True)
class JointMaximum:
    """The maximum of the joint likelihood.

    Attributes:
      log_propensity: [arms] log(theta), 0 at the first arm of each component; -inf for an arm that is never clicked,
        NaN for one without impressions.
      log_relevance: [items] log(gamma); -inf for an item that is never clicked, NaN for one without impressions.
      component: [arms] number of the arm's component (`click_components`); -1 without clicks.
      item_component: [items] number of the item's component; -1 without clicks.
      log_likelihood: of all cells.
      steps: number of Newton steps.
    """

    log_propensity: np.ndarray
    log_relevance: np.ndarray
    component: np.ndarray
    item_component: np.ndarray
    log_likelihood: float
    steps: int

    def log_probability(self, counts: ArmCounts) -> np.ndarray:
        """Computes the log-probability of a click in each cell, [C]; -inf or NaN where it is not identified."""
        x = self.log_propensity[counts.arm] + self.log_relevance[counts.item]
        return np.where(self.component[counts.arm] == self.item_component[counts.item], x, -np.inf)


def maximise_joint(counts: ArmCounts, *, tolerance: float = 1e-12) -> JointMaximum:
    """Maximises the joint likelihood of propensities and relevances.

    Args:
      counts: at least one click.
      tolerance: half the squared Newton decrement per click at which the search ends.

    Raises:
      UltrError: the search does not converge.
    """
    clicked_item = counts.sum_by_item(counts.clicks) > 0
    # At the maximum log(theta) or log(gamma) is -inf where nothing was clicked, and probabilities are 0 between
    # components: the likelihood of those cells is 1.
    component, item_component = click_components(counts)
    a = np.where(component >= 0, 0.0, np.where(counts.sum_by_arm(counts.impressions) > 0, -np.inf, np.nan))
    b = np.where(clicked_item, 0.0, np.where(counts.sum_by_item(counts.impressions) > 0, -np.inf, np.nan))
    inner, free = split_free_arms(counts, component, item_component)
    clicks = max(float(inner.clicks.sum()), 1e-300)
    found, steps = _starting_point(inner, free), 0
    for barrier in BARRIERS:
        last = barrier == BARRIERS[-1]
        if last or (inner.clicks > inner.impressions - barrier).any():
            objective = _JointObjective(inner, free, barrier)
            found, more = newton_ascent(
                objective.below_one(found),
                objective.value,
                objective.direction,
                tolerance=(tolerance if last else BARRIER_TOLERANCE) * clicks,
                alternative="conditional-likelihood",
            )
            steps += more
    a[component >= 0] = found.a[component >= 0]
    b[clicked_item] = found.b[clicked_item]
    return JointMaximum(a, b, component, item_component, objective.value(found), steps)


def observed_information(counts: ArmCounts, solution: JointMaximum) -> np.ndarray:
    """Computes minus the second derivative of the profile likelihood at the maximum: [arms, arms]."""
    odds = information_weights(1.0, solution.log_probability(counts))
    return profile_laplacian(counts, _non_clicks(counts) * odds * (1 + odds))


def cell_scores(counts: ArmCounts, solution: JointMaximum) -> np.ndarray:
    """Computes the derivative of the log-likelihood by a_k + b_d at the maximum, [C]; 0 where that is infinite."""
    x = solution.log_probability(counts)
    return np.where(np.isfinite(x), counts.clicks - _non_clicks(counts) * information_weights(1.0, x), 0.0)


def _covariance(counts: ArmCounts, solution: JointMaximum, errors: Errors, reference: int) -> np.ndarray:
    relative = solution.log_propensity - solution.log_propensity[reference]
    inside = solution.component == solution.component[reference]
    known = np.where(inside, relative, np.nan)
    with_reference = counts.select(inside[counts.arm])
    gamma = smoothed_log_relevance(with_reference, known)
    # Items that were never clicked, or only in other components, have no part in the maximum.
    gamma[solution.item_component != solution.component[reference]] = -np.inf
    bound = relative_covariance(information_laplacian(with_reference, known, gamma), reference)
    finite = np.isfinite(np.diag(bound))
    if errors == "information" or not finite.any():
        return bound
    meat = score_products_by_query(counts, np.where(inside[counts.arm], cell_scores(counts, solution), 0.0))
    bread = relative_covariance(observed_information(with_reference, solution), reference)
    return sandwich_covariance(bread, meat, finite)


def _non_clicks(counts: ArmCounts, barrier: float = BARRIERS[-1]) -> np.ndarray:
    return np.asarray(np.maximum(counts.impressions - counts.clicks, barrier))


class _JointIterate(NamedTuple):
    """Logarithms of propensities [arms] and of relevances [items]."""

    a: np.ndarray
    b: np.ndarray


def _starting_point(counts: ArmCounts, free: np.ndarray) -> _JointIterate:
    """Starts from click rates by arm, and the clicks per examination that follow from them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = counts.sum_by_arm(counts.clicks) / counts.sum_by_arm(counts.impressions)
    a, b = np.zeros(counts.arms), np.zeros(counts.items)
    fixed = ~free & (rate > 0)
    if free.any():
        a[free] = np.clip(np.log(rate[free] / rate[fixed].mean()), -8.0, 2.0)
    some = counts.sum_by_item(counts.clicks) > 0
    b[some] = log_relevance_at(counts, a)[some]
    return _JointIterate(a, b)


class _JointObjective:
    """The joint log-likelihood of clicked items and arms, of which the `free` arms, [arms] bool, move."""

    def __init__(self, counts: ArmCounts, free: np.ndarray, barrier: float) -> None:
        self.counts, self.free = counts, free
        self.non_clicks = _non_clicks(counts, barrier)
        # At the best relevance, an item's clicks are the sum over its cells of non-clicks times p / (1 - p): hence
        # -log(p) of each cell is at least this.
        self.margin = np.log1p(self.non_clicks / counts.sum_by_item(counts.clicks)[counts.item])

    def below_one(self, iterate: _JointIterate) -> _JointIterate:
        """Lowers relevances to what the best ones can be at most.

        Items that were always clicked have probabilities next to 1. If the whole step were shortened until each of them
        is below 1, the nearest would hold up all others.
        """
        most = np.full(len(iterate.b), np.inf)
        np.minimum.at(most, self.counts.item, -iterate.a[self.counts.arm] - self.margin)
        return _JointIterate(iterate.a, np.minimum(iterate.b, most))

    def value(self, iterate: _JointIterate) -> float:
        """Computes the log-likelihood; -inf where a probability is not below 1."""
        x = iterate.a[self.counts.arm] + iterate.b[self.counts.item]
        if not (x < 0).all():
            return -np.inf
        return float(np.sum(self.counts.clicks * x + self.non_clicks * np.log(-np.expm1(x))))

    def direction(self, iterate: _JointIterate) -> tuple[Callable[[float], _JointIterate], float]:
        """Computes the path along the Newton step, and the squared decrement."""
        counts, free = self.counts, self.free
        odds = 1 / np.expm1(-(iterate.a[counts.arm] + iterate.b[counts.item]))
        slope = counts.clicks - self.non_clicks * odds
        h = self.non_clicks * odds * (1 + odds)
        slope_a, slope_b = counts.sum_by_arm(slope), counts.sum_by_item(slope)
        total = counts.sum_by_item(h)
        inverse = np.where(total > 0, 1 / np.where(total > 0, total, 1.0), 0.0)
        da = np.zeros(counts.arms)
        if free.any():
            s = profile_laplacian(counts, h)[np.ix_(free, free)]
            right = (slope_a - counts.sum_by_arm(h * (slope_b * inverse)[counts.item]))[free]
            scale = 1 / np.sqrt(np.maximum(np.diag(s), 1e-300))
            da[free] = scale * np.linalg.solve(s * scale * scale[:, None], scale * right)
        db = (slope_b - counts.sum_by_item(h * da[counts.arm])) * inverse

        def path(size: float) -> _JointIterate:
            return self.below_one(_JointIterate(iterate.a + size * da, iterate.b + size * db))

        return path, float(slope_a @ da + slope_b @ db)
