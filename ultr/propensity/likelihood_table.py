"""From the maximum of a likelihood to `Propensities`, with reasons where the log does not support a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.errors import ConfigError
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts
from ultr.propensity.information import arm_components
from ultr.propensity.propensities import (
    NO_CLICK_VARIATION,
    SMALLEST_LOG_ERROR,
    UPPER_LIMIT_ONLY,
    ZERO_COUNT_LIMIT,
    Propensities,
    log_scale_interval,
    warn_of_one_rank,
)
from ultr.text import counted

Errors = Literal["information", "query"]
FEW_IMPRESSIONS, FEW_QUERIES = 100, 30
ONE_SIDED = (
    "the documents that connect it with {} were clicked at one of the two alone, or never, so that any ratio is "
    "possible"
)


@dataclasses.dataclass(frozen=True)
class LikelihoodFit:
    """The maximum of a likelihood of the position-based model.

    Attributes:
      component: [arms] number of the component (`click_components`); -1 for arms without clicks.
      log_propensity: [arms], up to a constant per component.
      log_relevance: [items], up to the same constants.
      covariance: from a reference arm to the covariance of log_propensity relative to it, [arms, arms]; infinite on the
        diagonal where there is no information.
    """

    component: np.ndarray
    log_propensity: np.ndarray
    log_relevance: np.ndarray
    covariance: Callable[[int], np.ndarray]


class LikelihoodFitter(Protocol):
    """A function that maximises a likelihood of the counts."""

    def __call__(self, counts: ArmCounts, *, errors: Errors) -> LikelihoodFit: ...


def estimate_by_likelihood(
    source: ClickLog | Counts | ArmCounts, method: str, fitter: LikelihoodFitter, errors: Errors
) -> Propensities:
    """Estimates propensities relative to rank 1 by maximising a likelihood.

    Raises:
      ConfigError: `errors` is neither "information" nor "query".
      DataError: no clicks.
    """
    check_errors(errors)
    counts = as_arm_counts(source)
    found = tabulate_fit(counts, fitter(counts, errors=errors), method, errors=errors)
    return warn_of_one_rank(found, counts.sum_by_arm(counts.impressions))


def check_errors(errors: str) -> None:
    """Checks the option `errors` of likelihood estimators.

    Raises:
      ConfigError: it is neither "information" nor "query".
    """
    if errors not in ("information", "query"):
        raise ConfigError(f"expected errors of 'information' or 'query', found {errors!r}")


def tabulate_fit(
    counts: ArmCounts, fit: LikelihoodFit, method: str, *, errors: Errors, reference: int = 0, ranks: int | None = None
) -> Propensities:
    """Tabulates a fit: value, error and interval where the log supports them, and a reason where it does not.

    Args:
      reference: the arm to which all others are relative.
      ranks: number of ranks, where arms are ranks in contexts, context by context.
    """
    name = f"rank {reference % (ranks or counts.arms) + 1}"
    value, error, covariance = np.full(counts.arms, np.nan), np.full(counts.arms, np.nan), None
    interval = np.full((counts.arms, 2), np.nan)
    warnings: list[str] = []
    reasons = _unsupported_arms(counts, fit, reference, name)
    usable = np.array([k not in reasons for k in range(counts.arms)])
    if usable[reference]:
        covariance = fit.covariance(reference)
        variance = np.diag(covariance)
        log_error = np.sqrt(np.where(variance >= 0, variance, np.nan))
        value[usable] = np.exp(fit.log_propensity[usable] - fit.log_propensity[reference])
        for k in np.flatnonzero(np.isinf(log_error) & usable).tolist():
            value[k] = np.nan
            reasons[k] = f"the clicks do not connect it with {name}"
        usable &= ~np.isinf(log_error)
        same_component = fit.component[counts.arm] == fit.component[reference]
        always_clicked = bool((counts.clicks == counts.impressions)[same_component].all())
        for k in np.flatnonzero(usable & (np.arange(counts.arms) != reference)).tolist():
            if always_clicked or log_error[k] < SMALLEST_LOG_ERROR:
                reasons[k] = NO_CLICK_VARIATION
            elif np.isnan(log_error[k]):
                few = "fewer than two queries compare ranks" if errors == "query" else "too few clicks for an error"
                reasons[k] = f"no interval: {few}"
        usable &= np.array([k not in reasons for k in range(counts.arms)])
        error[usable] = value[usable] * log_error[usable]
        interval[usable] = log_scale_interval(value[usable], log_error[usable])
        value[reference], error[reference], interval[reference] = 1.0, 0.0, 1.0
        clicks, shown = counts.sum_by_arm(counts.clicks), counts.sum_by_arm(counts.impressions)
        for k in np.flatnonzero((clicks == 0) & (shown > 0)).tolist():
            relevance = fit.log_relevance + fit.log_propensity[reference]
            connected = fit.component == fit.component[reference]
            if (expected := clicks_if_fully_examined(counts, connected, relevance, k)) > 0:
                value[k], interval[k] = 0.0, (0.0, ZERO_COUNT_LIMIT / expected)
                reasons[k] = UPPER_LIMIT_ONLY
        warnings += _warnings(counts, method, errors)
    compared = counts.moved()
    return Propensities(
        method=method,
        rank=np.arange(1, counts.arms + 1),
        value=value,
        standard_error=error,
        interval=interval,
        impressions=compared.sum_by_arm(compared.impressions),
        unsupported={k + 1: text for k, text in sorted(reasons.items())},
        warnings=tuple(warnings),
        covariance=covariance,
        shown=counts.sum_by_arm(counts.impressions),
    )


def clicks_if_fully_examined(counts: ArmCounts, connected: np.ndarray, log_relevance: np.ndarray, arm: int) -> float:
    """Computes how many clicks an arm would have if it were examined as often as the reference arm.

    Args:
      connected: [arms] bool, the arms that clicks connect with the reference; items without clicks there are left out.
      log_relevance: [items] log-probability of a click where an item is examined as at the reference.
    """
    known = counts.sum_by_item(np.where(connected[counts.arm], counts.clicks, 0.0)) > 0
    at = (counts.arm == arm) & known[counts.item]
    gamma = log_relevance[counts.item[at]]
    return float(np.sum(np.where(np.isfinite(gamma), counts.impressions[at] * np.exp(np.minimum(gamma, 0.0)), 0.0)))


def _unsupported_arms(counts: ArmCounts, fit: LikelihoodFit, reference: int, name: str) -> dict[int, str]:
    """Maps each arm (from 0) without a ratio to the reference to the reason."""
    shown, clicked = counts.sum_by_arm(counts.impressions), counts.sum_by_arm(counts.clicks)
    component = arm_components(counts)
    out: dict[int, str] = {}
    for k in range(counts.arms):
        if not shown[k]:
            out[k] = "no document was shown there"
        elif not shown[reference]:
            out[k] = f"{name}, which it is compared with, was never shown"
        elif component[k] != component[reference]:
            out[k] = f"no document connects it with {name}"
        elif not clicked[k]:
            out[k] = "never clicked"
        elif not clicked[reference]:
            out[k] = f"{name}, which it is compared with, was never clicked"
        elif fit.component[k] != fit.component[reference]:
            out[k] = ONE_SIDED.format(name)
    return out


def _warnings(counts: ArmCounts, method: str, errors: Errors) -> list[str]:
    out = []
    shown = counts.sum_by_item(counts.impressions)
    compared = (counts.arms_per_item > 1) & (counts.sum_by_item(counts.clicks) > 0)
    if method == "maximum-likelihood" and compared.any() and np.median(shown[compared]) < FEW_IMPRESSIONS:
        out.append(
            f"half of the documents that are compared were shown at most {np.median(shown[compared]):,.0f} times: "
            "joint maximum likelihood can be biased then; use conditional-likelihood"
        )
    queries = len(np.unique(counts.query[compared]))
    if errors == "query" and queries < FEW_QUERIES:
        out.append(
            f"errors over queries rest on {counted(queries, 'query', 'queries')} that compare ranks, and "
            f"need at least {FEW_QUERIES}: use errors='information', which trusts the model"
        )
    return out
