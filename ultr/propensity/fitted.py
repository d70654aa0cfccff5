"""From a fit of a likelihood to a table, with reasons where the log does not support a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.errors import ConfigError
from ultr.propensity.cells import Cells, cells_of
from ultr.propensity.likelihood import components
from ultr.propensity.table import LEAST_ERROR, NO_VARIATION, Propensities, alone, log_interval

Errors = Literal["information", "query"]
FEW_IMPRESSIONS, FEW_QUERIES = 100, 30
ONE_SIDED = (
    "the documents that connect it with {} were clicked at one of the two alone, or never, so that any ratio is "
    "possible"
)
NEVER = 3.688879454113936  # -log(.025): no click is this likely where so many are expected


@dataclasses.dataclass(frozen=True)
class Fit:
    """What an estimator found.

    Attributes:
      component: [arms] of the arms with clicks; -1 of the others.
      log_propensity: [arms], up to a constant per component.
      log_relevance: [items], up to the same.
      covariance: computes that of log_propensity relative to that of an arm, [arms, arms]; infinite on the diagonal
        where there is no information.
    """

    component: np.ndarray
    log_propensity: np.ndarray
    log_relevance: np.ndarray
    covariance: Callable[[int], np.ndarray]


class Estimator(Protocol):
    """From cells to a fit."""

    def __call__(self, cells: Cells, *, errors: Errors) -> Fit: ...


def estimated(source: ClickLog | Counts | Cells, method: str, fit: Estimator, errors: Errors) -> Propensities:
    """The table of an estimator.

    Raises:
      ConfigError: other errors than there are.
      DataError: no clicks.
    """
    check_errors(errors)
    cells = cells_of(source)
    found = tabulate(cells, fit(cells, errors=errors), method, errors=errors)
    return alone(found, cells.per_arm(cells.impressions))


def check_errors(errors: str) -> None:
    if errors not in ("information", "query"):
        raise ConfigError(f"expected errors of 'information' or 'query', found {errors!r}")


def tabulate(
    cells: Cells, fit: Fit, method: str, *, errors: Errors, reference: int = 0, ranks: int | None = None
) -> Propensities:
    """A table with a value, an error and an interval where the log supports them, and a reason where it does not.

    Args:
      reference: the arm to which all are relative.
      ranks: where arms are ranks in contexts, those of one context after the other: how many ranks there are.
    """
    name = f"rank {reference % (ranks or cells.arms) + 1}"
    value, error, covariance = np.full(cells.arms, np.nan), np.full(cells.arms, np.nan), None
    interval = np.full((cells.arms, 2), np.nan)
    warnings: list[str] = []
    reasons = _unsupported(cells, fit, reference, name)
    usable = np.array([k not in reasons for k in range(cells.arms)])
    if usable[reference]:
        covariance = fit.covariance(reference)
        variance = np.diag(covariance)
        spread = np.sqrt(np.where(variance >= 0, variance, np.nan))
        value[usable] = np.exp(fit.log_propensity[usable] - fit.log_propensity[reference])
        for k in np.flatnonzero(np.isinf(spread) & usable).tolist():
            value[k] = np.nan
            reasons[k] = f"the clicks do not connect it with {name}"
        usable &= ~np.isinf(spread)
        near = fit.component[cells.arm] == fit.component[reference]
        constant = bool((cells.clicks == cells.impressions)[near].all())
        for k in np.flatnonzero(usable & (np.arange(cells.arms) != reference)).tolist():
            if constant or spread[k] < LEAST_ERROR:
                reasons[k] = NO_VARIATION
            elif np.isnan(spread[k]):
                few = "fewer than two queries compare ranks" if errors == "query" else "too few clicks to tell an error"
                reasons[k] = f"no interval: {few}"
        usable &= np.array([k not in reasons for k in range(cells.arms)])
        error[usable] = value[usable] * spread[usable]
        interval[usable] = log_interval(value[usable], spread[usable])
        value[reference], error[reference], interval[reference] = 1.0, 0.0, 1.0
        for k in np.flatnonzero((cells.per_arm(cells.clicks) == 0) & (cells.per_arm(cells.impressions) > 0)).tolist():
            relevance = fit.log_relevance + fit.log_propensity[reference]
            if (expected := clicks_if_examined(cells, fit.component == fit.component[reference], relevance, k)) > 0:
                value[k], interval[k] = 0.0, (0.0, NEVER / expected)
                reasons[k] = "never clicked: an upper limit only"
        warnings += _warnings(cells, method, errors)
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


def _unsupported(cells: Cells, fit: Fit, reference: int, name: str) -> dict[int, str]:
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
            out[k] = f"{name}, which it is compared with, was never clicked"
        elif linked[k] != linked[reference]:
            out[k] = f"no document connects it with {name}"
        elif fit.component[k] != fit.component[reference]:
            out[k] = ONE_SIDED.format(name)
    return out


def clicks_if_examined(cells: Cells, near: np.ndarray, log_relevance: np.ndarray, arm: int) -> float:
    """How many clicks an arm would have if it were examined as often as the reference.

    Args:
      near: [arms] whether they are connected with the reference.
      log_relevance: [items] of a click where an item is examined as at the reference.
    """
    told = cells.per_item(np.where(near[cells.arm], cells.clicks, 0.0)) > 0
    at = (cells.arm == arm) & told[cells.item]
    gamma = log_relevance[cells.item[at]]
    return float(np.sum(np.where(np.isfinite(gamma), cells.impressions[at] * np.exp(np.minimum(gamma, 0.0)), 0.0)))


def _warnings(cells: Cells, method: str, errors: Errors) -> list[str]:
    out = []
    per_item = cells.per_item(cells.impressions)
    ranks = np.bincount(cells.item, minlength=cells.items)
    compared = (ranks > 1) & (cells.per_item(cells.clicks) > 0)
    if method == "maximum-likelihood" and compared.any() and np.median(per_item[compared]) < FEW_IMPRESSIONS:
        out.append(
            f"half of the documents that are compared were shown at most {np.median(per_item[compared]):,.0f} times: "
            "joint maximum likelihood can be biased then; use conditional-likelihood"
        )
    queries = len(np.unique(cells.cluster[compared]))
    if errors == "query" and queries < FEW_QUERIES:
        out.append(
            f"errors over queries rest on {queries} {'query' if queries == 1 else 'queries'} that compare ranks: they "
            f"want at least {FEW_QUERIES}; use errors='information' and trust the model"
        )
    return out
