"""Joint maximum likelihood of the position-based model on counts, its information, and what follows from it.

    P(click of item d at arm k) = theta_k gamma_d,   log = a_k + b_d < 0

Both theta and gamma are known up to one factor per connected component of arms, so that only ratios of theta are
reported. The log-likelihood is concave in (a, b): Newton's method with the relevances eliminated (a diagonal block)
finds its maximum. The information about a with b profiled out is the Laplacian of a graph over arms,

    S = diag_k(sum_d w_dk) - sum_d w_dk w_dj / sum_i w_di,   w = n p / (1 - p),

and the variance of log(theta_k / theta_1) at best the effective resistance between k and 1 (Chen 2024).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ultr.errors import UltrError
from ultr.propensity.cells import Cells

# What an item that was clicked whenever it was shown at an arm counts of not being clicked there: a barrier that keeps
# its probability below 1, far below what a single impression weighs.
BARRIER = 1e-4
STEPS = 200


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


def components(cells: Cells) -> np.ndarray:
    """[arms] number of the connected component of each arm, -1 for arms without impressions.

    Two arms are connected where an item was shown at both, or over other arms. Components are numbered by their first
    arm.
    """
    shown = np.zeros(cells.arms, bool)
    shown[cells.arm] = True
    links = _incidence(cells, np.ones(len(cells.item)))
    _, label = connected_components((links.T @ links), directed=False)
    order = dict.fromkeys(label[shown].tolist())
    number = {old: new for new, old in enumerate(order)}
    return np.array([number[c] if s else -1 for c, s in zip(label.tolist(), shown, strict=True)], np.int64)


def bounded(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """[arms], [items] number of the component in which clicks bound all ratios, -1 for what was never clicked.

    An item that was clicked at one arm and shown at another without a click says that the former is examined more, by
    any factor: its most likely value is infinite. Only clicks the other way round, of another item perhaps, or over
    other arms, make it finite. Components are those of the graph in which the item leads from each arm where it was
    shown to each where it was clicked, there and back. They are numbered by their first arm.
    """
    clicked = cells.clicks > 0
    arm, item = cells.arm, cells.arms + cells.item
    nodes = cells.arms + cells.items
    edges = np.concatenate([arm, item[clicked]]), np.concatenate([item, arm[clicked]])
    graph = csr_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    _, label = connected_components(graph, directed=True, connection="strong")
    some = np.append(cells.per_arm(cells.clicks), cells.per_item(cells.clicks)) > 0
    number = np.full(nodes, -1)
    order = np.array(list(dict.fromkeys(label[: cells.arms][some[: cells.arms]].tolist())), np.int64)
    number[order] = np.arange(len(order))
    out = np.where(some, number[label], -1)
    return out[: cells.arms], out[cells.arms :]


def maximise(cells: Cells, *, tolerance: float = 1e-9) -> Solution:
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
    inside = cells.where((component >= 0)[cells.arm] & (component[cells.arm] == item_component[cells.item]))
    a = np.where(component >= 0, 0.0, np.where(cells.per_arm(cells.impressions) > 0, -np.inf, np.nan))
    b = np.where(clicked_item, 0.0, np.where(cells.per_item(cells.impressions) > 0, -np.inf, np.nan))
    free = component >= 0
    for number in range(component.max(initial=-1) + 1):
        free[np.flatnonzero(component == number)[0]] = False  # the reference of the component
    problem = _Problem(inside, free)
    a_in, b_in, value, steps = problem.solve(tolerance)
    a[component >= 0] = a_in[component >= 0]
    b[clicked_item] = b_in[clicked_item]
    return Solution(a, b, component, item_component, value, steps)


def laplacian(cells: Cells, log_propensity: np.ndarray, log_relevance: np.ndarray) -> np.ndarray:
    """[arms, arms] information about log(theta) with the relevances profiled out, at the given probabilities.

    Cells whose probability is 0 or unknown bring none.
    """
    x = log_propensity[cells.arm] + log_relevance[cells.item]
    with np.errstate(over="ignore"):
        w = np.where(np.isfinite(x), cells.impressions / np.expm1(-np.minimum(x, -1e-12)), 0.0)
    return profiled(cells, w)


def observed(cells: Cells, solution: Solution) -> np.ndarray:
    """[arms, arms] minus the second derivative of the profile likelihood at the maximum."""
    x = solution.log_probability(cells)
    finite = np.isfinite(x)
    odds = 1 / np.expm1(-np.where(finite, x, -1.0))
    return profiled(cells, np.where(finite, _missed(cells) * odds * (1 + odds), 0.0))


def profiled(cells: Cells, weight: np.ndarray) -> np.ndarray:
    """[arms, arms] the Laplacian over arms of weights [C] between items and arms, the items eliminated."""
    weight = np.where(np.isfinite(weight), weight, 0.0)
    total = cells.per_item(weight)
    scaled = _incidence(cells, weight / np.sqrt(np.where(total > 0, total, 1.0))[cells.item])
    between = (scaled.T @ scaled).toarray()
    np.fill_diagonal(between, 0.0)
    return np.diag(between.sum(1)) - between  # rows of a Laplacian add up to 0 exactly


def resistance(s: np.ndarray, reference: int = 0) -> np.ndarray:
    """[arms, arms] covariance of log(theta_k / theta_reference) from the Laplacian S; its diagonal is R_eff.

    Infinite variances and NaN covariances where an arm is not connected with the reference, by its own weights.
    """
    arms = len(s)
    out = np.full((arms, arms), np.nan)
    _, label = connected_components(csr_array(s < 0), directed=False)
    inside = label == label[reference]
    np.fill_diagonal(out, np.where(inside, 0.0, np.inf))
    rest = np.flatnonzero(inside & (np.arange(arms) != reference))
    out[np.ix_(inside, inside)] = 0.0
    if len(rest):
        part = s[np.ix_(rest, rest)]
        scale = 1 / np.sqrt(np.diag(part))
        out[np.ix_(rest, rest)] = np.linalg.inv(part * scale * scale[:, None]) * scale * scale[:, None]
    return out


def over_queries(cells: Cells, slope: np.ndarray) -> np.ndarray:
    """[arms, arms] sum over queries of the outer products of their sums of slopes [C]; NaN with fewer than two queries.

    Memory grows with the number of cells, whatever the number of queries.
    """
    _, query = np.unique(cells.cluster, return_inverse=True)
    table = csr_array((slope, (query[cells.item], cells.arm)), shape=(int(query.max()) + 1, cells.arms))
    table.eliminate_zeros()
    used = int(np.count_nonzero(np.diff(table.indptr)))
    if used < 2:
        return np.full((cells.arms, cells.arms), np.nan)
    return (table.T @ table).toarray() * (used / (used - 1))


def sandwich(bread: np.ndarray, meat: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """[arms, arms] bread meat bread of the arms that are finite [arms]; infinite variances of the others."""
    out = np.full_like(bread, np.nan)
    np.fill_diagonal(out, np.where(finite, 0.0, np.inf))
    part = np.ix_(finite, finite)
    out[part] = bread[part] @ meat[part] @ bread[part]
    return out


def relevance(cells: Cells, log_propensity: np.ndarray) -> np.ndarray:
    """[items] log of clicks per examination; arms without a propensity (NaN) count as never examined."""
    examined = cells.per_item(cells.impressions * np.exp(np.nan_to_num(log_propensity, nan=-np.inf))[cells.arm])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(cells.per_item(cells.clicks)) - np.log(examined)


def smoothed_relevance(cells: Cells, log_propensity: np.ndarray, outcomes: float = 1.0) -> np.ndarray:
    """[items] log(gamma) with so many examined impressions of average relevance added, for arms of known propensity.

    Where an item was shown once, the maximum of the likelihood is a relevance of 0 or 1, which would claim to bring no
    information or any amount of it.
    """
    theta = np.exp(np.where(np.isfinite(log_propensity), log_propensity, -np.inf))
    examined = cells.per_item(cells.impressions * theta[cells.arm])
    clicks = cells.per_item(cells.clicks)
    average = clicks.sum() / max(examined.sum(), 1e-300)
    top = np.full(cells.items, 0.0)
    np.maximum.at(top, cells.item, theta[cells.arm])
    with np.errstate(divide="ignore"):
        gamma = np.log((clicks + outcomes * average) / (examined + outcomes))
        return np.minimum(gamma, -np.log(np.maximum(top, 1e-300)) - 1e-3)  # a probability stays below 1


def scores(cells: Cells, solution: Solution) -> np.ndarray:
    """[cells] derivative of the log-likelihood by a_k + b_d at the maximum; 0 where that is infinite."""
    x = solution.log_probability(cells)
    finite = np.isfinite(x)
    odds = 1 / np.expm1(-np.where(finite, x, -1.0))
    return np.where(finite, cells.clicks - _missed(cells) * odds, 0.0)


def _missed(cells: Cells) -> np.ndarray:
    return np.maximum(cells.impressions - cells.clicks, BARRIER)


def _incidence(cells: Cells, values: np.ndarray) -> Any:
    return csr_array((values, (cells.item, cells.arm)), shape=(cells.items, cells.arms))


class _Problem:
    """Newton's method on the cells of clicked items and arms, `free` of which move."""

    def __init__(self, cells: Cells, free: np.ndarray) -> None:
        self.cells, self.free = cells, free
        self.missed = _missed(cells)
        self.clicks_of_item = cells.per_item(cells.clicks)

    def solve(self, tolerance: float) -> tuple[np.ndarray, np.ndarray, float, int]:
        cells = self.cells
        clicks = max(float(cells.clicks.sum()), 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = cells.per_arm(cells.clicks) / cells.per_arm(cells.impressions)
        a = np.zeros(cells.arms)
        fixed = ~self.free & (rate > 0)
        if self.free.any():
            a[self.free] = np.clip(np.log(rate[self.free] / rate[fixed].mean()), -8.0, 2.0)
        b = self._start(a)
        value = self._value(a, b)
        for step in range(1, STEPS + 1):
            da, db, decrement = self._direction(a, b)
            if decrement / 2 <= tolerance * clicks:
                # The last, quadratically convergent step is taken too.
                moved = self._value(a + da, b + db)
                return (a + da, b + db, moved, step) if moved >= value else (a, b, value, step)
            size, gain = 1.0, -np.inf
            while size > 1e-12:
                gain = self._value(a + size * da, b + size * db) - value
                if gain >= 1e-4 * size * decrement:
                    break
                size /= 2
            else:
                return a, b, value, step  # no step gains: the limit of the arithmetic
            a, b, value = a + size * da, b + size * db, value + gain
        raise UltrError(
            f"the likelihood of the propensities did not converge in {STEPS} steps: use conditional-likelihood, or a "
            "log of fewer ranks, without those that were hardly ever clicked"
        )

    def _start(self, a: np.ndarray) -> np.ndarray:
        cells = self.cells
        examined = cells.per_item(cells.impressions * np.exp(a[cells.arm]))
        some = self.clicks_of_item > 0
        b = np.zeros(cells.items)
        b[some] = np.log(self.clicks_of_item[some] / examined[some])
        top = np.full(cells.items, -np.inf)
        np.maximum.at(top, cells.item, a[cells.arm])
        return np.where(some, np.minimum(b, -top - 0.05), 0.0)

    def _value(self, a: np.ndarray, b: np.ndarray) -> float:
        x = a[self.cells.arm] + b[self.cells.item]
        if not (x < 0).all():
            return -np.inf
        return float(np.sum(self.cells.clicks * x + self.missed * np.log(-np.expm1(x))))

    def _direction(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The Newton step of both, and its decrement: slope times step."""
        cells, free = self.cells, self.free
        x = a[cells.arm] + b[cells.item]
        odds = 1 / np.expm1(-x)
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
        return da, db, float(slope_a @ da + slope_b @ db)
