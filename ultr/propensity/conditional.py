"""`conditional_likelihood`: examination from where each document's clicks fell, whatever its relevance.

Given how often a document was clicked in all, the share of its clicks that fell at rank k is expected to be

    q_dk = n_dk theta_k / sum_j n_dj theta_j,

in which its relevance does not occur. The estimator maximises sum_dk c_dk log q_dk (the fixed-effects Poisson
likelihood of Hausman, Hall and Griliches 1984; consistent for any distribution of the counts, Wooldridge 1999). Joint
maximum likelihood has a parameter per document and is biased where documents have few impressions; this has none and is
not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from ultr.errors import ConfigError, UltrError
from ultr.logs import ClickLog, Counts
from ultr.propensity.cells import Cells, cells_of
from ultr.propensity.joint import Fit, tabulate
from ultr.propensity.likelihood import bounded, over_queries, profiled, relevance, resistance, sandwich
from ultr.propensity.table import Propensities

STEPS = 100


def conditional_likelihood(
    source: ClickLog | Counts, *, errors: Literal["information", "query"] = "information"
) -> Propensities:
    """Examination by the likelihood of where each document's clicks fell, given their number.

    As good as joint maximum likelihood where documents have many impressions and clicks are not nearly certain, and
    right where they have few.

    Args:
      source: a log or its counts by rank.
      errors: standard errors under the position-based model; or "query", robust to a model that is not right, and to
        clicks of a query that depend on each other (sandwich over queries).

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit; ranks that no document connects with
      rank 1 have none.

    Raises:
      DataError: no clicks.
    """
    if errors not in ("information", "query"):
        raise ConfigError(f"expected errors of 'information' or 'query', found {errors!r}")
    cells = cells_of(source)
    return tabulate(cells, fit_conditionally(cells, errors=errors), "conditional-likelihood", errors=errors)


def fit_conditionally(cells: Cells, *, errors: str = "information") -> Fit:
    """The maximum of the conditional likelihood."""
    component, item_component = bounded(cells)
    inside = cells.where((component >= 0)[cells.arm] & (component[cells.arm] == item_component[cells.item]))
    log_propensity, information = _maximise(inside, component)
    return Fit(
        component,
        log_propensity,
        relevance(inside, log_propensity),
        lambda reference: _covariance(inside, component, log_propensity, information, errors, reference),
    )


def _maximise(cells: Cells, component: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[arms] log(theta), 0 at the first arm of each component and NaN outside; [arms, arms] minus the Hessian."""
    free = component >= 0
    for number in range(component.max(initial=-1) + 1):
        free[np.flatnonzero(component == number)[0]] = False
    clicks = cells.per_item(cells.clicks)
    a = np.zeros(cells.arms)

    def shares(a: np.ndarray) -> tuple[np.ndarray, float]:
        log_odds = np.log(cells.impressions) + a[cells.arm]
        top = np.full(cells.items, -np.inf)
        np.maximum.at(top, cells.item, log_odds)
        odds = np.exp(log_odds - top[cells.item])
        q = odds / cells.per_item(odds)[cells.item]
        return q, float(cells.clicks @ np.log(q))

    q, value = shares(a)
    for _ in range(STEPS):
        expected = clicks[cells.item] * q
        slope = cells.per_arm(cells.clicks - expected)
        information = profiled(cells, expected)
        if not free.any():
            break
        part = information[np.ix_(free, free)]
        step = np.zeros(cells.arms)
        step[free] = np.linalg.solve(part, slope[free])
        decrement = float(slope @ step)
        size = 1.0
        while size > 1e-10:
            moved, gain = shares(a + size * step)
            if gain - value >= 1e-4 * size * decrement or decrement < 1e-10 * clicks.sum():
                break
            size /= 2
        a, q, value = a + size * step, moved, gain
        if decrement < 1e-12 * clicks.sum():
            break
    else:
        raise UltrError(
            f"the propensities did not converge in {STEPS} steps: use all-pairs, or a log of fewer ranks, without "
            "those that were hardly ever clicked"
        )
    return np.where(component >= 0, a, np.nan), information


def _covariance(
    cells: Cells,
    component: np.ndarray,
    log_propensity: np.ndarray,
    information: np.ndarray,
    errors: str,
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
