"""Errors by resampling queries: estimators that are functions of sums over queries, all replicates at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ultr.errors import ConfigError
from ultr.propensity.cells import Cells
from ultr.propensity.table import LEAST_ERROR, NO_VARIATION, Propensities, ranks_text

GROUPS = 2000  # more queries than this are resampled in so many groups, of equal numbers of queries
FEW_QUERIES, LEAST_QUERIES = 30, 5
MANY_QUERIES = 100  # from which on percentiles cover what they should
MISSING = 0.025  # the share of replicates without an estimate from which on percentiles say nothing
ROOM = 1 << 22  # numbers in a piece of the replicates

# [R, M] sums of R logs -> [R, K] logarithms of propensities relative to rank 1, not finite where there is none.
Estimator = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Harvest:
    """What an estimator makes of the cells.

    Attributes:
      sums: [G, M] per group of queries, all that the estimate depends on.
      estimate: from sums to logarithms of propensities.
      width: numbers that `estimate` needs at once per replicate.
      impressions: [K] behind the estimate of each rank.
      queries: [K] queries (or groups of them) behind each.
      reasons: arm -> why it has no value, known from the sums of the whole log.
      limits: arm -> upper limit of the value of an arm that was never clicked.
    """

    sums: np.ndarray
    estimate: Estimator
    width: int
    impressions: np.ndarray
    queries: np.ndarray
    reasons: Mapping[int, str]
    limits: Mapping[int, float]


def groups_of(cells: Cells, seed: int, most: int = GROUPS) -> tuple[np.ndarray, int]:
    """([cells] group of each cell, number of groups): a query each, or equal numbers of them where there are many.

    Groups of independent queries are as independent as queries are, so that resampling them is as valid.
    """
    queries, group = np.unique(cells.cluster[cells.item], return_inverse=True)
    if len(queries) > most:
        share = np.random.default_rng([seed, 1]).permutation(len(queries)) % most
        return share[group], most
    return group, len(queries)


def resample(sums: np.ndarray, estimate: Estimator, *, replicates: int, seed: int, width: int) -> np.ndarray:
    """[R, K] estimates from logs whose groups are drawn with replacement.

    Args:
      sums: [G, M].
      width: numbers that `estimate` needs at once per replicate.
    """
    rng = np.random.default_rng([seed, 2])
    groups = len(sums)
    step = max(1, ROOM // max(groups, width, sums.shape[1]))
    out = []
    for start in range(0, replicates, step):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(step, replicates - start))
        out.append(estimate(drawn.astype(np.float64) @ sums))
    return np.concatenate(out)


def bootstrapped(
    method: str, harvest: Harvest, *, replicates: int, seed: int, warnings: Sequence[str] = ()
) -> Propensities:
    """The table of an estimator, with errors over queries.

    The standard error of log(value) is its standard deviation over the replicates, that of the value the same times the
    value; the interval goes from the 2.5 % to the 97.5 % quantile.

    Raises:
      ConfigError: too few replicates, or a seed below 0.
    """
    if replicates < 40 or seed < 0:
        raise ConfigError(
            f"expected at least 40 replicates, so that their 95 % can be told, and a seed of at least 0, found "
            f"{replicates} and {seed}"
        )
    arms = len(harvest.impressions)
    value, error = np.full(arms, np.nan), np.full(arms, np.nan)
    interval, covariance = np.full((arms, 2), np.nan), np.full((arms, arms), np.nan)
    reasons = dict(harvest.reasons)
    for k, limit in harvest.limits.items():
        value[k], interval[k], reasons[k] = 0.0, (0.0, limit), "never clicked: an upper limit only"
    warnings = list(warnings)
    if 0 not in reasons:
        log_value = harvest.estimate(harvest.sums.sum(0, keepdims=True))[0] if len(harvest.sums) else np.zeros(arms)
        has = np.array([k not in reasons for k in range(arms)]) & np.isfinite(log_value)
        value[has] = np.exp(log_value[has])
        few = has & (harvest.queries < LEAST_QUERIES) & (np.arange(arms) > 0)
        for k in np.flatnonzero(few).tolist():
            reasons[k] = f"no interval: {_queries(int(harvest.queries[k]))} behind it, too few to resample"
        told = has & ~few
        if told[1:].any():
            draws = resample(harvest.sums, harvest.estimate, replicates=replicates, seed=seed, width=harvest.width)
            draws = draws[:, told]
            missing = 1 - np.isfinite(draws).mean(0)
            for k, share in zip(np.flatnonzero(told).tolist(), missing, strict=True):
                if share > MISSING and k:
                    reasons[k] = f"no interval: {100 * share:.0f} % of the resampled logs cannot tell it"
            draws, at = draws[:, missing <= MISSING], np.flatnonzero(told)[missing <= MISSING]
            if len(at):
                spread = _covariance(draws)
                log_error = np.sqrt(np.diag(spread))
                varies = (log_error >= LEAST_ERROR) | (at == 0)
                reasons |= dict.fromkeys(at[~varies].tolist(), NO_VARIATION)
                draws, at, log_error = draws[:, varies], at[varies], log_error[varies]
                covariance[np.ix_(at, at)] = spread[np.ix_(varies, varies)]
                error[at] = value[at] * log_error
                draws = np.where(np.isfinite(draws), draws, np.nan)
                if len(at):
                    interval[at] = np.exp(np.nanquantile(draws, [0.025, 0.975], axis=0)).T
        value[0], error[0], interval[0] = 1.0, 0.0, 1.0
        thin = np.isfinite(error) & (harvest.queries < MANY_QUERIES) & (np.arange(arms) > 0)
        if thin.any():
            which = "all ranks" if thin[1:].all() else ranks_text(np.flatnonzero(thin) + 1)
            least = int(harvest.queries[thin].min())
            warnings.append(
                f"the intervals of {which} rest on {_queries(least)} or little more: percentile intervals of fewer "
                f"than {MANY_QUERIES} queries cover a few percent less than 95 %"
                + (f"; resampling fewer than {FEW_QUERIES} says too little of the error" * (least < FEW_QUERIES))
            )
    return Propensities(
        method=method,
        rank=np.arange(1, arms + 1),
        value=value,
        standard_error=error,
        interval=interval,
        impressions=harvest.impressions,
        unsupported={k + 1: reasons[k] for k in sorted(reasons)},
        warnings=tuple(warnings),
        covariance=covariance,
    )


def _queries(count: int) -> str:
    return f"{count:,} {'query' if count == 1 else 'queries'}"


def _covariance(draws: np.ndarray) -> np.ndarray:
    """[K, K] of draws [R, K] where both are finite."""
    finite = np.isfinite(draws)
    count = finite.sum(0)
    centred = np.where(finite, draws, 0.0)
    centred = np.where(finite, centred - centred.sum(0) / count, 0.0)
    return centred.T @ centred / (finite.T.astype(np.float64) @ finite - 1)
