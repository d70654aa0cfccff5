"""What is assumed of clicks before training: propensities and relevances to plug into the information."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ultr.errors import UltrError
from ultr.propensity.cells import Cells
from ultr.propensity.conditional import fit_conditionally
from ultr.propensity.likelihood import components, laplacian, smoothed_relevance, weights

PRIOR_SPREAD = 1.0  # standard deviation of log(propensity) around 1/rank: a factor of e
MOST = 1 << 18  # cells that the propensities are estimated from
LIKELIEST = 0.75  # no plan counts on a document that is clicked more often than this


@dataclasses.dataclass(frozen=True)
class Assumed:
    """A log's cells with probabilities P(click) = exp(log_propensity[arm] + log_relevance[item]).

    Attributes:
      cells: of all documents.
      varied: those of documents that were shown at two or more ranks; the others compare nothing.
      log_propensity: [arms] relative to the first arm with impressions; NaN of arms without.
      log_relevance: [items].
      component: [arms] as of `ultr.propensity.likelihood.components`.
      information: [arms, arms] about log(propensity), relevances profiled out.
      warnings: what went wrong.
    """

    cells: Cells
    varied: Cells
    log_propensity: np.ndarray
    log_relevance: np.ndarray
    component: np.ndarray
    information: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def shown(self) -> np.ndarray:
        """[arms] bool: whether anything was shown there."""
        return self.component >= 0

    @property
    def probability(self) -> np.ndarray:
        """[cells] of a click."""
        return np.exp(self.log_propensity[self.cells.arm] + self.log_relevance[self.cells.item])

    def planned_odds(self, items: np.ndarray) -> np.ndarray:
        """[n, arms] p / (1 - p), what one more impression of each of the items [n] adds to the information.

        Plans choose documents that look relevant, some by chance: relevance is taken one standard error lower, and p at
        most `LIKELIEST`. 0 at arms without impressions.
        """
        chance = 1 / np.sqrt(self.clicks_of_item[items] + 1)
        propensity = np.where(self.shown, self.log_propensity, -np.inf)
        x = propensity + (self.log_relevance[items] - chance)[:, None]
        return weights(1.0, np.minimum(x, np.log(LIKELIEST)))

    @functools.cached_property
    def clicks_of_item(self) -> np.ndarray:
        """[items]."""
        return self.cells.per_item(self.cells.clicks)


def assume(cells: Cells) -> Assumed:
    """Propensities and relevances that a log makes plausible.

    The propensities are those of largest posterior density: the conditional likelihood of documents that were shown at
    two or more ranks, times a wide prior around 1/rank. What the log identifies comes from the log, the rest from the
    prior. The relevances follow from them (`smoothed_relevance`).
    """
    component = components(cells)
    shown = component >= 0
    varied = cells.where((np.bincount(cells.item, minlength=cells.items) > 1)[cells.item])
    prior = -np.log(np.arange(1.0, cells.arms + 1))
    curve, warnings = prior, []
    if varied.clicks.sum():
        try:
            curve = _posterior(_telling(varied), prior)
        except (UltrError, np.linalg.LinAlgError):
            warnings.append(
                "the likelihood of the clicks has no maximum that was found: propensities of 1/rank assumed"
            )
    curve = np.where(shown, curve - curve[np.flatnonzero(shown)[0]], np.nan)
    relevance = smoothed_relevance(cells, curve)
    information = laplacian(varied, curve, relevance)
    return Assumed(cells, varied, curve, relevance, component, information, tuple(warnings))


def _telling(cells: Cells) -> Cells:
    """About `MOST` of the cells: those of the items with most impressions, as shares of all at their ranks."""
    if len(cells.item) <= MOST:
        return cells
    value = cells.per_item(cells.impressions / cells.per_arm(cells.impressions)[cells.arm])
    order = np.argsort(-value, kind="stable")
    size = np.cumsum(np.bincount(cells.item, minlength=cells.items)[order])
    chosen = np.zeros(cells.items, bool)
    chosen[order[size <= MOST]] = True
    return cells.where(chosen[cells.item])


def _posterior(varied: Cells, prior: np.ndarray) -> np.ndarray:
    """[arms] the mode, by one step from the maximum of the likelihood, whose curvature stands for the whole of it."""
    solution = fit_conditionally(varied)
    found = solution.component >= 0
    curve = np.where(found, solution.log_propensity, np.nan)
    relevance = smoothed_relevance(varied, curve)
    relevance[varied.per_item(varied.clicks) == 0] = -np.inf  # no part of what found this curve
    s = laplacian(varied, curve, relevance)
    precision = PRIOR_SPREAD**-2
    right = s @ np.where(found, curve, 0.0) + precision * prior  # s does not see the factor of each component
    return np.linalg.solve(s + precision * np.eye(len(s)), right)
