"""`conditional_likelihood`: examination from where each document's clicks fell, whatever its relevance.

Given how often a document was clicked in all, the share of its clicks that fell at rank k is expected to be

    q_dk = n_dk theta_k / sum_j n_dj theta_j,

in which its relevance does not occur. The estimator maximises sum_dk c_dk log q_dk (the fixed-effects Poisson
likelihood of Hausman, Hall and Griliches 1984; consistent for any distribution of the counts, Wooldridge 1999). Joint
maximum likelihood has a parameter per document and is biased where documents have few impressions; this has none and is
not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from ultr.data import ClickLog, Counts
from ultr.propensity.cells import Cells
from ultr.propensity.fitted import Errors, Fit, estimated
from ultr.propensity.likelihood import bounded, over_queries, profiled, relevance, resistance, sandwich, within
from ultr.propensity.newton import ascend
from ultr.propensity.table import Propensities

TOLERANCE = 5e-13  # half the squared Newton decrement per click at which the search ends


def conditional_likelihood(source: ClickLog | Counts | Cells, *, errors: Errors = "information") -> Propensities:
    """Examination by the likelihood of where each document's clicks fell, given their number.

    As good as joint maximum likelihood where documents have many impressions and clicks are not nearly certain, and
    right where they have few. Arguments, result and errors are those of `maximum_likelihood`.
    """
    return estimated(source, "conditional-likelihood", fit_conditionally, errors)


def fit_conditionally(cells: Cells, *, errors: Errors = "information") -> Fit:
    """The maximum of the conditional likelihood."""
    component, item_component = bounded(cells)
    own, free = within(cells, component, item_component)
    a, information = _maximise(own, free)
    log_propensity = np.where(component >= 0, a, np.nan)
    return Fit(
        component,
        log_propensity,
        relevance(own, log_propensity),
        lambda reference: _covariance(own, component, log_propensity, information, errors, reference),
    )


class _State(NamedTuple):
    """Logarithms of propensities [arms], the share of each cell in its item's clicks [C], the log-likelihood."""

    a: np.ndarray
    share: np.ndarray
    value: float


def _maximise(cells: Cells, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[arms] log(theta), 0 at the arms that are not free; [arms, arms] minus the Hessian."""
    clicks = cells.per_item(cells.clicks)

    def state(a: np.ndarray) -> _State:
        log_odds = np.log(cells.impressions) + a[cells.arm]
        top = np.full(cells.items, -np.inf)
        np.maximum.at(top, cells.item, log_odds)
        odds = np.exp(log_odds - top[cells.item])
        q = odds / cells.per_item(odds)[cells.item]
        return _State(a, q, float(cells.clicks @ np.log(q)))

    def direction(at: _State) -> tuple[Callable[[float], _State], float]:
        expected = clicks[cells.item] * at.share
        slope, step = cells.per_arm(cells.clicks - expected), np.zeros(cells.arms)
        step[free] = np.linalg.solve(profiled(cells, expected)[np.ix_(free, free)], slope[free])
        return lambda size: state(at.a + size * step), float(slope @ step)

    found = state(np.zeros(cells.arms))
    if free.any():
        found, _ = ascend(
            found,
            lambda at: at.value,
            direction,
            tolerance=TOLERANCE * float(clicks.sum()),
            instead="all-pairs",
        )
    return found.a, profiled(cells, clicks[cells.item] * found.share)


def _covariance(
    cells: Cells,
    component: np.ndarray,
    log_propensity: np.ndarray,
    information: np.ndarray,
    errors: Errors,
    reference: int,
) -> np.ndarray:
    """[arms, arms] covariance of the logarithms: a sandwich, since clicks vary less than Poisson counts."""
    with_rank = component == component[reference]
    bread = resistance(information, reference)
    finite = np.isfinite(np.diag(bread))
    cells = cells.where(with_rank[cells.arm])
    known = np.where(with_rank, log_propensity, np.nan)
    odds = cells.impressions * np.exp(known)[cells.arm]
    q = odds / cells.per_item(odds)[cells.item]
    if errors == "query":
        slope = cells.clicks - cells.per_item(cells.clicks)[cells.item] * q
        meat = over_queries(cells, slope)
    else:
        # Variance of c_k - q_k sum_j c_j, with independent c of variance v, summed over documents.
        v = _variance(cells, known)
        shape = (cells.items, cells.arms)
        by_share, by_variance, by_both = (
            csr_array((x, (cells.item, cells.arm)), shape=shape) for x in (q, v, q * cells.per_item(v)[cells.item])
        )
        crossed = (by_share.T @ by_variance).toarray()
        meat = np.diag(cells.per_arm(v)) - crossed - crossed.T + (by_share.T @ by_both).toarray()
    return sandwich(bread, meat, finite)


def _variance(cells: Cells, log_propensity: np.ndarray) -> np.ndarray:
    """[cells] unbiased estimates of n p (1 - p), however few impressions a document has.

    A relevance gamma is estimated by clicks per examination, its square by pairs of clicks in different sessions.
    """
    theta = np.exp(log_propensity - np.nanmax(log_propensity))[cells.arm]
    examined, clicks = cells.per_item(cells.impressions * theta), cells.per_item(cells.clicks)
    pairs = examined**2 - cells.per_item(cells.impressions * theta**2)
    square = np.where(pairs > 0, (clicks**2 - clicks) / np.where(pairs > 0, pairs, 1.0), 0.0)
    p = theta * (clicks / np.where(examined > 0, examined, 1.0))[cells.item]
    return cells.impressions * (p - theta**2 * np.maximum(square, 0.0)[cells.item])
