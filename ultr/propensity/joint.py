"""`maximum_likelihood`: the position-based model on (document, rank) counts.

The log-likelihood is concave in the logarithms (a, b) of propensities and relevances: Newton's method with the
relevances eliminated (a diagonal block) finds its maximum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.propensity.cells import Cells
from ultr.propensity.fitted import Errors, Fit, estimated
from ultr.propensity.likelihood import (
    bounded,
    laplacian,
    over_queries,
    profiled,
    relevance,
    resistance,
    sandwich,
    smoothed_relevance,
    weights,
    within,
)
from ultr.propensity.newton import ascend
from ultr.propensity.table import Propensities

# What an item that was clicked whenever it was shown at an arm counts of not being clicked there: a barrier that keeps
# its probability below 1, far below what a single impression weighs. The larger one leads round the corners that the
# likelihood has where an item is close to 1 at two arms.
BARRIERS = (1e-2, 1e-4)
CLOSE = 1e-6  # half the squared Newton decrement per click to which the larger one is followed


def maximum_likelihood(source: ClickLog | Counts | Cells, *, errors: Errors = "information") -> Propensities:
    """Examination by joint maximum likelihood of the position-based model, relevances profiled out.

    P(click) = theta_rank gamma_document, solved to convergence by Newton's method on counts. Among all estimators that
    use no more than the model it has the smallest variance that is possible (Cramer-Rao).

    Args:
      source: a log, its counts by rank or cells.
      errors: standard errors from the information matrix, right where the model is; or "query", robust to a model that
        is not, and to clicks of a query that depend on each other (sandwich over queries).

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit; ranks that no document connects with
      rank 1 have none.

    Raises:
      DataError: no clicks.
    """
    return estimated(source, "maximum-likelihood", fit_jointly, errors)


def fit_jointly(cells: Cells, *, errors: Errors = "information") -> Fit:
    """The maximum of the joint likelihood."""
    solution = maximise(cells)
    return Fit(
        solution.component,
        solution.log_propensity,
        solution.log_relevance,
        lambda reference: _covariance(cells, solution, errors, reference),
    )


def _covariance(cells: Cells, solution: Solution, errors: Errors, reference: int) -> np.ndarray:
    relative = solution.log_propensity - solution.log_propensity[reference]
    inside = solution.component == solution.component[reference]
    known = np.where(inside, relative, np.nan)
    with_rank = cells.where(inside[cells.arm])
    gamma = smoothed_relevance(with_rank, known)
    # The maximum knows nothing of what was never clicked, or only elsewhere.
    gamma[solution.item_component != solution.component[reference]] = -np.inf
    s = laplacian(with_rank, known, gamma)
    bound = resistance(s, reference)
    finite = np.isfinite(np.diag(bound))
    if errors == "information" or not finite.any():
        return bound
    meat = over_queries(cells, np.where(inside[cells.arm], scores(cells, solution), 0.0))
    return sandwich(resistance(observed(with_rank, solution), reference), meat, finite)


@dataclasses.dataclass(frozen=True)
class Solution:
    """The maximum.

    Attributes:
      log_propensity: [arms] log(theta), 0 at the first arm of each component; -inf of an arm that is never clicked,
        NaN of one without impressions.
      log_relevance: [items] log(gamma); -inf of an item that is never clicked, NaN of one without impressions.
      component: [arms] number of the component that an arm belongs to; -1 without clicks. Within one, clicks bound
        ratios on both sides (`bounded`).
      item_component: [items] that of an item; -1 without clicks.
      log_likelihood: of all cells.
      steps: that Newton's method took.
    """

    log_propensity: np.ndarray
    log_relevance: np.ndarray
    component: np.ndarray
    item_component: np.ndarray
    log_likelihood: float
    steps: int

    def log_probability(self, cells: Cells) -> np.ndarray:
        """[C] log of the probability of a click in each cell; -inf or NaN where nothing is known about it."""
        x = self.log_propensity[cells.arm] + self.log_relevance[cells.item]
        return np.where(self.component[cells.arm] == self.item_component[cells.item], x, -np.inf)


def maximise(cells: Cells, *, tolerance: float = 1e-12) -> Solution:
    """The maximum of the likelihood of the cells.

    Args:
      cells: at least one click.
      tolerance: half the squared Newton decrement per click at which the search ends.

    Raises:
      UltrError: the search does not converge.
    """
    clicked_item = cells.per_item(cells.clicks) > 0
    # The maximum has log(theta) or log(gamma) of -inf where nothing was clicked, and between components; what is left
    # of such cells is 1.
    component, item_component = bounded(cells)
    a = np.where(component >= 0, 0.0, np.where(cells.per_arm(cells.impressions) > 0, -np.inf, np.nan))
    b = np.where(clicked_item, 0.0, np.where(cells.per_item(cells.impressions) > 0, -np.inf, np.nan))
    inner, free = within(cells, component, item_component)
    clicks = max(float(inner.clicks.sum()), 1e-300)
    found, steps = _start(inner, free), 0
    for barrier in BARRIERS:
        last = barrier == BARRIERS[-1]
        if last or (inner.clicks > inner.impressions - barrier).any():
            problem = _Problem(inner, free, barrier)
            found, more = ascend(
                problem.below_one(found),
                problem.value,
                problem.direction,
                tolerance=(tolerance if last else CLOSE) * clicks,
                instead="conditional-likelihood",
            )
            steps += more
    a[component >= 0] = found.a[component >= 0]
    b[clicked_item] = found.b[clicked_item]
    return Solution(a, b, component, item_component, problem.value(found), steps)


def observed(cells: Cells, solution: Solution) -> np.ndarray:
    """[arms, arms] minus the second derivative of the profile likelihood at the maximum."""
    x = solution.log_probability(cells)
    odds = weights(1.0, x)
    return profiled(cells, _missed(cells) * odds * (1 + odds))


def scores(cells: Cells, solution: Solution) -> np.ndarray:
    """[cells] derivative of the log-likelihood by a_k + b_d at the maximum; 0 where that is infinite."""
    x = solution.log_probability(cells)
    return np.where(np.isfinite(x), cells.clicks - _missed(cells) * weights(1.0, x), 0.0)


def _missed(cells: Cells, barrier: float = BARRIERS[-1]) -> np.ndarray:
    return np.maximum(cells.impressions - cells.clicks, barrier)


class _State(NamedTuple):
    """Logarithms of propensities [arms] and of relevances [items]."""

    a: np.ndarray
    b: np.ndarray


def _start(cells: Cells, free: np.ndarray) -> _State:
    """Click rates by arm, and the clicks per examination that follow from them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = cells.per_arm(cells.clicks) / cells.per_arm(cells.impressions)
    a, b = np.zeros(cells.arms), np.zeros(cells.items)
    fixed = ~free & (rate > 0)
    if free.any():
        a[free] = np.clip(np.log(rate[free] / rate[fixed].mean()), -8.0, 2.0)
    some = cells.per_item(cells.clicks) > 0
    b[some] = relevance(cells, a)[some]
    return _State(a, b)


class _Problem:
    """The likelihood of the cells of clicked items and arms, `free` of which move."""

    def __init__(self, cells: Cells, free: np.ndarray, barrier: float) -> None:
        self.cells, self.free = cells, free
        self.missed = _missed(cells, barrier)
        # The clicks of an item are at best the sum over its cells of missed p / (1 - p): p is at most so far below 1.
        self.room = np.log1p(self.missed / cells.per_item(cells.clicks)[cells.item])

    def below_one(self, state: _State) -> _State:
        """With relevances that are no larger than the best ones can be.

        Those of items that were always clicked are next to a probability of 1: were a step shortened for all until it
        is below 1 for each of them, the nearest would hold up all others.
        """
        most = np.full(len(state.b), np.inf)
        np.minimum.at(most, self.cells.item, -state.a[self.cells.arm] - self.room)
        return _State(state.a, np.minimum(state.b, most))

    def value(self, state: _State) -> float:
        x = state.a[self.cells.arm] + state.b[self.cells.item]
        if not (x < 0).all():
            return -np.inf
        return float(np.sum(self.cells.clicks * x + self.missed * np.log(-np.expm1(x))))

    def direction(self, state: _State) -> tuple[Callable[[float], _State], float]:
        cells, free = self.cells, self.free
        odds = 1 / np.expm1(-(state.a[cells.arm] + state.b[cells.item]))
        slope = cells.clicks - self.missed * odds
        h = self.missed * odds * (1 + odds)
        slope_a, slope_b = cells.per_arm(slope), cells.per_item(slope)
        total = cells.per_item(h)
        inverse = np.where(total > 0, 1 / np.where(total > 0, total, 1.0), 0.0)
        da = np.zeros(cells.arms)
        if free.any():
            s = profiled(cells, h)[np.ix_(free, free)]
            right = (slope_a - cells.per_arm(h * (slope_b * inverse)[cells.item]))[free]
            scale = 1 / np.sqrt(np.maximum(np.diag(s), 1e-300))
            da[free] = scale * np.linalg.solve(s * scale * scale[:, None], scale * right)
        db = (slope_b - cells.per_item(h * da[cells.arm])) * inverse

        def path(size: float) -> _State:
            return self.below_one(_State(state.a + size * da, state.b + size * db))

        return path, float(slope_a @ da + slope_b @ db)
