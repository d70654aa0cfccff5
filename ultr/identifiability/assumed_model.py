"""The position-based model that is assumed of a log before training: its probabilities decide the information."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ultr.errors import UltrError
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.conditional import fit_conditional
from ultr.propensity.information import (
    arm_components,
    information_laplacian,
    information_weights,
    smoothed_log_relevance,
)

PRIOR_SPREAD = 1.0  # standard deviation of log(propensity) around 1/rank: a factor of e
MAX_CELLS = 1 << 18  # cells that the propensities are estimated from
MAX_PLANNED_PROBABILITY = 0.75  # plans do not count on documents that are clicked more often than this


@dataclasses.dataclass(frozen=True)
class AssumedModel:
    """A log's counts with assumed probabilities P(click) = exp(log_propensity[arm] + log_relevance[item]).

    Attributes:
      counts: of all documents.
      moved: counts of the documents that were shown at two or more ranks; the others compare nothing.
      log_propensity: [arms] relative to the first arm with impressions; NaN for arms without impressions.
      log_relevance: [items].
      component: [arms] number of the component (`ultr.propensity.information.arm_components`).
      information: [arms, arms] about log(propensity), relevances profiled out.
      warnings: what went wrong.
    """

    counts: ArmCounts
    moved: ArmCounts
    log_propensity: np.ndarray
    log_relevance: np.ndarray
    component: np.ndarray
    information: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def shown(self) -> np.ndarray:
        """[arms] bool: whether there are impressions."""
        return self.component >= 0

    @property
    def click_probability(self) -> np.ndarray:
        """[C] probability of a click in each cell."""
        return np.asarray(np.exp(self.log_propensity[self.counts.arm] + self.log_relevance[self.counts.item]))

    @functools.cached_property
    def item_clicks(self) -> np.ndarray:
        """[items] clicks of each item."""
        return self.counts.sum_by_item(self.counts.clicks)

    def planned_odds(self, items: np.ndarray) -> np.ndarray:
        """Computes p / (1 - p), the information of one more impression of items [n] at each arm: [n, arms].

        Plans choose documents that look relevant, and some look so by chance: relevance is taken one standard error
        lower, and p at most `MAX_PLANNED_PROBABILITY`. 0 at arms without impressions.
        """
        log_error = 1 / np.sqrt(self.item_clicks[items] + 1)
        propensity = np.where(self.shown, self.log_propensity, -np.inf)
        x = propensity + (self.log_relevance[items] - log_error)[:, None]
        return information_weights(1.0, np.minimum(x, np.log(MAX_PLANNED_PROBABILITY)))


def assume_model(counts: ArmCounts, *, max_cells: int = MAX_CELLS) -> AssumedModel:
    """Assumes propensities and relevances that a log makes plausible.

    The propensities maximise the posterior density: the conditional likelihood of documents that were shown at two or
    more ranks, times a wide prior around 1/rank. What the log identifies comes from the log, the rest from the prior.
    The relevances follow from them (`smoothed_log_relevance`).

    Args:
      counts: of the log.
      max_cells: number of cells that the propensities are estimated from, those of the documents with most impressions.
    """
    component = arm_components(counts)
    shown = component >= 0
    moved = counts.moved()
    prior = -np.log(np.arange(1.0, counts.arms + 1))
    curve, warnings = prior, []
    if moved.clicks.sum():
        try:
            curve = _posterior_mode(_most_informative(moved, max_cells), prior)
        except (UltrError, np.linalg.LinAlgError):
            warnings.append("the search for the maximum likelihood did not converge: propensities of 1/rank assumed")
    curve = np.where(shown, curve - curve[np.flatnonzero(shown)[0]], np.nan)
    relevance = smoothed_log_relevance(counts, curve)
    information = information_laplacian(moved, curve, relevance)
    return AssumedModel(counts, moved, curve, relevance, component, information, tuple(warnings))


def _most_informative(counts: ArmCounts, max_cells: int) -> ArmCounts:
    """Keeps about `max_cells` cells: those of the items with the largest shares of the impressions at their arms."""
    if len(counts.item) <= max_cells:
        return counts
    value = counts.sum_by_item(counts.impressions / counts.sum_by_arm(counts.impressions)[counts.arm])
    order = np.argsort(-value, kind="stable")
    size = np.cumsum(counts.arms_per_item[order])
    chosen = np.zeros(counts.items, bool)
    chosen[order[size <= max_cells]] = True
    return counts.select(chosen[counts.item])


def _posterior_mode(moved: ArmCounts, prior: np.ndarray) -> np.ndarray:
    """Computes the mode, [arms], by one step from the maximum of the likelihood, taken as quadratic around it."""
    solution = fit_conditional(moved)
    found = solution.component >= 0
    curve = np.where(found, solution.log_propensity, np.nan)
    relevance = smoothed_log_relevance(moved, curve)
    relevance[moved.sum_by_item(moved.clicks) == 0] = -np.inf  # these documents had no part in the estimate
    s = information_laplacian(moved, curve, relevance)
    precision = PRIOR_SPREAD**-2
    right = s @ np.where(found, curve, 0.0) + precision * prior  # s ignores the factor of each component
    return np.linalg.solve(s + precision * np.eye(len(s)), right)
