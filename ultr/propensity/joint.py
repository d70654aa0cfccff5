"""`maximum_likelihood`: the position-based model on (document, rank) counts."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ultr.errors import ConfigError
from ultr.logs import ClickLog, Counts
from ultr.propensity.cells import Cells, cells_of
from ultr.propensity.likelihood import (
    Solution,
    components,
    laplacian,
    maximise,
    resistance,
    scores,
    smoothed_relevance,
)
from ultr.propensity.table import Propensities, log_interval

NEVER = 3.688879454113936  # -log(.025): no click is this likely where so many are expected


def maximum_likelihood(
    source: ClickLog | Counts, *, errors: Literal["information", "query"] = "information"
) -> Propensities:
    """Examination by joint maximum likelihood of the position-based model, relevances profiled out.

    P(click) = theta_rank gamma_document, solved to convergence by Newton's method on counts. Among all estimators that
    use no more than the model it has the smallest variance that is possible (Cramer-Rao).

    Args:
      source: a log or its counts by rank.
      errors: standard errors from the information matrix, right where the model is; or "query", robust to a model that
        is not, and to clicks of a query that depend on each other (sandwich over queries).

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit; ranks that no document connects with
      rank 1 have none.

    Raises:
      DataError: no clicks.
    """
    if errors not in ("information", "query"):
        raise ConfigError(f"expected errors of 'information' or 'query', found {errors!r}")
    cells = cells_of(source)
    return estimate(cells, "maximum-likelihood", errors=errors)


def estimate(cells: Cells, method: str, *, errors: str = "information", reference: int = 0) -> Propensities:
    """The table of all arms relative to one of them."""
    solution = maximise(cells)
    value, error, covariance = np.full(cells.arms, np.nan), np.full(cells.arms, np.nan), None
    interval = np.full((cells.arms, 2), np.nan)
    warnings: list[str] = []
    reasons = _unsupported(cells, solution, reference)
    usable = np.array([k not in reasons for k in range(cells.arms)])
    if usable[reference]:
        relative = solution.log_propensity - solution.log_propensity[reference]
        covariance = _covariance(cells, solution, relative, errors, reference)
        spread = np.sqrt(np.diag(covariance))
        value[usable] = np.exp(relative[usable])
        usable &= np.isfinite(spread)
        for k in np.flatnonzero(~np.isfinite(spread) & np.isfinite(value)):
            value[k] = np.nan
            reasons[int(k)] = "connected with rank 1 only by documents that were never clicked"
        error[usable] = value[usable] * spread[usable]
        interval[usable] = log_interval(value[usable], spread[usable])
        value[reference], error[reference], interval[reference] = 1.0, 0.0, 1.0
        for k in np.flatnonzero((cells.per_arm(cells.clicks) == 0) & (cells.per_arm(cells.impressions) > 0)):
            reached = _clicks_if_examined(cells, solution, reference, int(k))
            if reached > 0:
                value[k], interval[k] = 0.0, (0.0, NEVER / reached)
                reasons[int(k)] = "never clicked: an upper limit only"
        warnings += _warnings(cells, usable, reference)
    compared = cells.where((np.bincount(cells.item, minlength=cells.items) > 1)[cells.item])
    return Propensities(
        method=method,
        rank=np.arange(1, cells.arms + 1),
        value=value,
        standard_error=error,
        interval=interval,
        impressions=compared.per_arm(compared.impressions),
        unsupported={k + 1: text for k, text in sorted(reasons.items())},
        warnings=tuple(warnings),
        covariance=covariance,
    )


def _unsupported(cells: Cells, solution: Solution, reference: int) -> dict[int, str]:
    """Arm (from 0) -> why it has no ratio to the reference."""
    shown, clicked = cells.per_arm(cells.impressions), cells.per_arm(cells.clicks)
    linked = components(cells)
    out: dict[int, str] = {}
    for k in range(cells.arms):
        if not shown[k]:
            out[k] = "no document was shown there"
        elif not clicked[k]:
            out[k] = "never clicked"
        elif not clicked[reference]:
            out[k] = f"rank {reference + 1}, which it is compared with, was never clicked"
        elif linked[k] != linked[reference]:
            out[k] = f"no document connects it with rank {reference + 1}"
        elif solution.component[k] != solution.component[reference]:
            out[k] = f"connected with rank {reference + 1} only by documents that were never clicked"
    return out


def _covariance(cells: Cells, solution: Solution, relative: np.ndarray, errors: str, reference: int) -> np.ndarray:
    inside = solution.component == solution.component[reference]
    known = np.where(inside, relative, np.nan)
    with_rank = cells.where(inside[cells.arm])
    gamma = smoothed_relevance(with_rank, known)
    gamma[cells.per_item(cells.clicks) == 0] = -np.inf  # the maximum knows nothing of what was never clicked
    s = laplacian(with_rank, known, gamma)
    bound = resistance(s, reference)
    if errors == "information":
        return bound
    slope = scores(cells, solution)
    order = np.unique(cells.cluster, return_inverse=True)[1][cells.item]
    table = np.zeros((order.max() + 1, cells.arms))
    np.add.at(table, (order, cells.arm), np.where(inside[cells.arm], slope, 0.0))
    clusters = np.count_nonzero(np.any(table != 0, axis=1))
    meat = table.T @ table * (clusters / max(clusters - 1, 1))
    finite = np.isfinite(np.diag(bound))
    out = np.full_like(bound, np.nan)
    np.fill_diagonal(out, np.where(finite, 0.0, np.inf))
    part = np.ix_(finite, finite)
    out[part] = bound[part] @ meat[part] @ bound[part]
    return out


def _clicks_if_examined(cells: Cells, solution: Solution, reference: int, arm: int) -> float:
    """How many clicks an arm would have if it were examined as often as the reference."""
    at = cells.arm == arm
    gamma = solution.log_relevance[cells.item[at]] + solution.log_propensity[reference]
    return float(np.sum(np.where(np.isfinite(gamma), cells.impressions[at] * np.exp(np.minimum(gamma, 0.0)), 0.0)))


def _warnings(cells: Cells, usable: np.ndarray, reference: int) -> list[str]:
    out = []
    per_item = cells.per_item(cells.impressions)
    ranks = np.bincount(cells.item, minlength=cells.items)
    compared = per_item[(ranks > 1) & (cells.per_item(cells.clicks) > 0)]
    if len(compared) and np.median(compared) < 10:
        out.append(
            f"half of the documents that are compared were shown fewer than {np.median(compared) + 1:.0f} times: with so "
            "few impressions per document the estimate can be biased; compare it with all-pairs"
        )
    return out
