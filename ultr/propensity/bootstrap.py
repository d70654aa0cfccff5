"""Standard errors by resampling queries, for estimators that are functions of sums over queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ultr import stopping
from ultr.errors import ConfigError
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.propensities import NO_CLICK_VARIATION, SMALLEST_LOG_ERROR, UPPER_LIMIT_ONLY, Propensities
from ultr.text import counted, ranks_text

MAX_GROUPS = 2000  # more queries than this are put into this many groups, of equal numbers of queries
BLOCK_SIZE = 1 << 22  # numbers per block of replicates
FEW_QUERIES, TOO_FEW_QUERIES = 30, 5
MANY_QUERIES = 100  # from which on the coverage of percentile intervals is close to 95 %
MAX_MISSING = 0.025  # share of replicates without an estimate beyond which percentiles mean nothing

# From sums [R, M] of R logs to logarithms of propensities relative to rank 1, [R, K]; not finite where there is none.
LogPropensities = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class QuerySums:
    """Sums per group of queries, from which propensities are estimated, and what is known before resampling them.

    Attributes:
      sums: [G, M] sums per group of queries; the estimate depends on their total only.
      estimate: from sums to logarithms of propensities.
      width: numbers that `estimate` needs at once per replicate.
      impressions: [K] impressions behind the estimate of each rank.
      queries: [K] queries, or groups of them, behind the estimate of each rank.
      reasons: arm -> why it has no value, whatever is resampled.
      limits: arm -> upper limit of the value of an arm that was never clicked.
    """

    sums: np.ndarray
    estimate: LogPropensities
    width: int
    impressions: np.ndarray
    queries: np.ndarray
    reasons: Mapping[int, str]
    limits: Mapping[int, float]


def group_queries(counts: ArmCounts, seed: int, max_groups: int = MAX_GROUPS) -> tuple[np.ndarray, int]:
    """Groups queries for resampling: ([C] group of each cell, number of groups).

    Each query is a group, unless there are more than `max_groups`: then groups hold equal numbers of queries. Groups of
    independent queries are independent too, so that resampling them is as valid.
    """
    queries, group = np.unique(counts.query[counts.item], return_inverse=True)
    if len(queries) > max_groups:
        share = np.random.default_rng([seed, 1]).permutation(len(queries)) % max_groups
        return share[group], max_groups
    return group, len(queries)


def resample_groups(
    sums: np.ndarray, estimate: LogPropensities, *, replicates: int, seed: int, width: int, block_size: int = BLOCK_SIZE
) -> np.ndarray:
    """Estimates log-propensities of logs whose groups are drawn with replacement: [R, K].

    Args:
      sums: [G, M] sums per group.
      estimate: from sums to logarithms of propensities.
      replicates: number of resampled logs, R.
      seed: of the drawing.
      width: numbers that `estimate` needs at once per replicate.
      block_size: numbers that a block of replicates may need at once.
    """
    rng = np.random.default_rng([seed, 2])
    groups = len(sums)
    step = max(1, block_size // max(groups, width, sums.shape[1]))
    out = []
    for start in range(0, replicates, step):
        stopping.check()
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(step, replicates - start))
        out.append(estimate(drawn.astype(np.float64) @ sums))
    return np.concatenate(out)


def bootstrap_propensities(
    method: str,
    problem: QuerySums,
    *,
    replicates: int,
    seed: int,
    block_size: int = BLOCK_SIZE,
    warnings: Sequence[str] = (),
) -> Propensities:
    """Estimates propensities from sums over queries, with errors from resampling queries.

    The standard error of log(value) is its standard deviation over the replicates, and that of the value is the same
    times the value; the interval goes from the 2.5 % to the 97.5 % quantile.

    Raises:
      ConfigError: fewer than 40 replicates, or a seed below 0.
    """
    if replicates < 40 or seed < 0:
        raise ConfigError(
            f"expected at least 40 replicates, which 95 % intervals need, and a seed of at least 0, found "
            f"{replicates} and {seed}"
        )
    arms = len(problem.impressions)
    value, error = np.full(arms, np.nan), np.full(arms, np.nan)
    interval, covariance = np.full((arms, 2), np.nan), np.full((arms, arms), np.nan)
    reasons = dict(problem.reasons)
    for k, limit in problem.limits.items():
        value[k], interval[k], reasons[k] = 0.0, (0.0, limit), UPPER_LIMIT_ONLY
    warnings = list(warnings)
    if 0 not in reasons:
        log_value = problem.estimate(problem.sums.sum(0, keepdims=True))[0] if len(problem.sums) else np.zeros(arms)
        has_value = np.array([k not in reasons for k in range(arms)]) & np.isfinite(log_value)
        value[has_value] = np.exp(log_value[has_value])
        few = has_value & (problem.queries < TOO_FEW_QUERIES) & (np.arange(arms) > 0)
        for k in np.flatnonzero(few).tolist():
            reasons[k] = (
                f"no interval: {counted(problem.queries[k], 'query', 'queries')} behind it, too few to resample"
            )
        resampled = has_value & ~few
        if resampled[1:].any():
            draws = resample_groups(
                problem.sums,
                problem.estimate,
                replicates=replicates,
                seed=seed,
                width=problem.width,
                block_size=block_size,
            )[:, resampled]
            missing = 1 - np.isfinite(draws).mean(0)
            for k, share in zip(np.flatnonzero(resampled).tolist(), missing, strict=True):
                if share > MAX_MISSING and k:
                    reasons[k] = f"no interval: {100 * share:.0f} % of the resampled logs give it no value"
            draws, arm = draws[:, missing <= MAX_MISSING], np.flatnonzero(resampled)[missing <= MAX_MISSING]
            if len(arm):
                spread = _covariance(draws)
                log_error = np.sqrt(np.diag(spread))
                varies = (log_error >= SMALLEST_LOG_ERROR) | (arm == 0)
                reasons |= dict.fromkeys(arm[~varies].tolist(), NO_CLICK_VARIATION)
                draws, arm, log_error = draws[:, varies], arm[varies], log_error[varies]
                covariance[np.ix_(arm, arm)] = spread[np.ix_(varies, varies)]
                error[arm] = value[arm] * log_error
                draws = np.where(np.isfinite(draws), draws, np.nan)
                if len(arm):
                    interval[arm] = np.exp(np.nanquantile(draws, [0.025, 0.975], axis=0)).T
        value[0], error[0], interval[0] = 1.0, 0.0, 1.0
        thin = np.isfinite(error) & (problem.queries < MANY_QUERIES) & (np.arange(arms) > 0)
        if thin.any():
            warnings.append(_few_queries_warning(problem.queries, thin))
    return Propensities(
        method=method,
        rank=np.arange(1, arms + 1),
        value=value,
        standard_error=error,
        interval=interval,
        impressions=problem.impressions,
        unsupported={k + 1: reasons[k] for k in sorted(reasons)},
        warnings=tuple(warnings),
        covariance=covariance,
    )


def _few_queries_warning(queries: np.ndarray, thin: np.ndarray) -> str:
    """Warns that the intervals of the arms `thin`, [K] bool, rest on few queries, [K]."""
    which = "all ranks" if thin[1:].all() else ranks_text(np.flatnonzero(thin) + 1)
    fewest = int(queries[thin].min())
    warning = (
        f"the intervals of {which} rest on {counted(fewest, 'query', 'queries')} or little more: percentile intervals "
        f"of fewer than {MANY_QUERIES} queries cover a few percent less than 95 %"
    )
    if fewest < FEW_QUERIES:
        warning += f"; resampling fewer than {FEW_QUERIES} queries says too little about the error"
    return warning


def _covariance(draws: np.ndarray) -> np.ndarray:
    """Computes the covariance, [K, K], of the pairs that are both finite in draws [R, K]."""
    finite = np.isfinite(draws)
    count = finite.sum(0)
    centred = np.where(finite, draws, 0.0)
    centred = np.where(finite, centred - centred.sum(0) / count, 0.0)
    return np.asarray(centred.T @ centred / (finite.T.astype(np.float64) @ finite - 1))
