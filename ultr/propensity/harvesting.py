"""Intervention harvesting: documents shown at two ranks tell how much more one is examined (Agarwal et al. 2019).

The intervention set of ranks k and k' holds the documents that were shown at both. Their relevance is the same at both,
so that the ratio of their clicks is that of examination. Clicks are weighted by 1 / impressions of the (document, rank)
cell: every document of a set weighs the same, however often the logging policy showed it at either rank. Source:
"Estimating position bias without intrusive interventions" (WSDM 2019).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ultr.data import ClickLog, Counts
from ultr.errors import UltrError
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts
from ultr.propensity.bootstrap import BLOCK_SIZE, MAX_GROUPS, QuerySums, bootstrap_propensities
from ultr.propensity.information import log_relevance_at
from ultr.propensity.interventions import InterventionSets, PairWeights, intervention_sets
from ultr.propensity.likelihood_table import ONE_SIDED, clicks_if_fully_examined
from ultr.propensity.pair_likelihood import maximise_pair_likelihood
from ultr.propensity.propensities import ZERO_COUNT_LIMIT, Propensities, warn_of_one_rank

NO_RANK_VARIATION = (
    "no document was shown at two ranks: without that, a log cannot tell how much a rank is examined from how relevant "
    "its documents are"
)


def pivot_one(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Compares each rank with rank 1, by the documents that were shown at both.

    Args:
      source: a log, its counts or `ArmCounts`; documents that the vocabulary does not know (id 0) are left out.
      replicates: how many times the queries are resampled for errors and intervals.
      seed: of the resampling.
      max_groups: with more queries than this, groups of queries are resampled, as many as this.
      block_size: numbers that a block of replicates may need at once.

    Returns:
      `Propensities`. A rank that was never clicked where it is compared has value 0 and an upper limit; one that is not
      compared with rank 1 has no value.

    Raises:
      DataError: no clicks.
    """
    counts = as_arm_counts(source)
    return _harvest("pivot-one", counts, _pivot_sums(counts, seed, max_groups), replicates, seed, block_size)


def adjacent_chain(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Compares each rank with the one above it, and multiplies the ratios along the chain from rank 1.

    It needs documents that moved by one rank only, but errors add up along the chain, and one missing link ends it.
    Arguments, result and errors are those of `pivot_one`.
    """
    counts = as_arm_counts(source)
    return _harvest("adjacent-chain", counts, _chain_sums(counts, seed, max_groups), replicates, seed, block_size)


def all_pairs(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Compares all pairs of ranks at once, by a likelihood with one relevance per unordered pair.

    Maximises the sum over ordered pairs (k, k') of c log(p_k r) + (1 - c) log(1 - p_k r), where r belongs to {k, k'}
    and clicks c are weighted: ranks may be connected through others, and every document that moved counts. Time grows
    with the third power of the number of ranks. Arguments, result and errors are those of `pivot_one`; a rank whose
    ratio to rank 1 clicks bound on one side only has no value.
    """
    counts = as_arm_counts(source)
    problem = _all_pairs_sums(counts, "equal", seed, max_groups)
    return _harvest("all-pairs", counts, problem, replicates, seed, block_size)


def variance_weighted(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Compares all pairs of ranks like `all_pairs`, with documents weighted by how much they tell.

    Clicks at k have the weight min(n_k, n_k') / n_k, with n the impressions of the document at the two ranks, instead
    of 1 / n_k: documents that were hardly ever shown at one of the ranks add little noise. As unbiased as `all_pairs`.
    Arguments, result and errors are those of `all_pairs`.
    """
    counts = as_arm_counts(source)
    problem = _all_pairs_sums(counts, "smaller-count", seed, max_groups)
    return _harvest("variance-weighted", counts, problem, replicates, seed, block_size)


def _harvest(
    method: str, counts: ArmCounts, problem: QuerySums, replicates: int, seed: int, block_size: int
) -> Propensities:
    warnings, shown = [], counts.sum_by_arm(counts.impressions)
    if not problem.impressions.any() and np.count_nonzero(shown) > 1:
        moved = (counts.arms_per_item > 1).any()
        warnings.append("no document was shown at two ranks that this method compares" if moved else NO_RANK_VARIATION)
    found = bootstrap_propensities(
        method, problem, replicates=replicates, seed=seed, block_size=block_size, warnings=warnings
    )
    return warn_of_one_rank(found, shown)


def _pivot_sums(counts: ArmCounts, seed: int, max_groups: int) -> QuerySums:
    sets = intervention_sets(counts, "equal", lambda low, high: low == 0, seed=seed, max_groups=max_groups)
    clicks_low, clicks_high = sets.clicks_low.sum(0), sets.clicks_high.sum(0)
    pair_of = {int(high): p for p, high in enumerate(sets.high)}
    reasons, limits = _without_value(counts), dict[int, float]()
    for k in range(1, counts.arms):
        if k in reasons:
            continue
        if (p := pair_of.get(k)) is None:
            reasons[k] = "no document was shown both there and at rank 1"
        elif not clicks_low[p]:
            reasons[k] = "the documents shown both there and at rank 1 were never clicked at rank 1"
        elif not clicks_high[p]:
            limits[k] = ZERO_COUNT_LIMIT / sets.expected_high[p]

    def estimate(sums: np.ndarray) -> np.ndarray:
        out = np.full((len(sums), counts.arms), np.nan)
        out[:, 0] = 0.0
        out[:, sets.high] = _log_click_ratio(sums)
        return out

    return sets.query_sums(estimate, counts.arms, reasons, limits)


def _chain_sums(counts: ArmCounts, seed: int, max_groups: int) -> QuerySums:
    sets = intervention_sets(counts, "equal", lambda low, high: high == low + 1, seed=seed, max_groups=max_groups)
    clicks_low, clicks_high = sets.clicks_low.sum(0), sets.clicks_high.sum(0)
    pair_of = {int(high): p for p, high in enumerate(sets.high)}
    reasons, limits = _without_value(counts), dict[int, float]()
    value, broken = 1.0, ""
    for k in range(1, counts.arms):
        p = pair_of.get(k)
        if broken:
            reasons.setdefault(k, broken)
        elif p is None:
            broken = f"the chain from rank 1 breaks at rank {k + 1}: no document was shown both there and at rank {k}"
            reasons.setdefault(k, broken)
        elif not clicks_low[p]:
            broken = (
                f"the chain from rank 1 breaks at rank {k}: the documents shown both there and at rank {k + 1} had no "
                "clicks there"
            )
            reasons.setdefault(k, broken)
        elif not clicks_high[p]:
            broken = f"the chain from rank 1 breaks at rank {k + 1}, which was never clicked where it is compared"
            limits[k] = value * ZERO_COUNT_LIMIT / sets.expected_high[p]
        else:
            value *= clicks_high[p] / clicks_low[p]

    def estimate(sums: np.ndarray) -> np.ndarray:
        steps = np.full((len(sums), counts.arms), np.nan)
        steps[:, 0] = 0.0
        steps[:, sets.high] = _log_click_ratio(sums)
        with np.errstate(invalid="ignore"):
            return np.cumsum(steps, axis=1)

    return sets.query_sums(estimate, counts.arms, reasons, limits)


def _all_pairs_sums(counts: ArmCounts, weights: PairWeights, seed: int, max_groups: int) -> QuerySums:
    sets = intervention_sets(counts, weights, lambda low, high: low < high, seed=seed, max_groups=max_groups)
    reasons, limits = _without_value(counts), dict[int, float]()
    # Arms without a pair have no estimate, and would cost time.
    arms = np.union1d(sets.low, sets.high)
    low, high = np.searchsorted(arms, sets.low), np.searchsorted(arms, sets.high)
    log_value = np.full(counts.arms, np.nan)
    compared = len(arms) > 0 and arms[0] == 0

    def solve(sums: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        out = np.full((len(sums), counts.arms), np.nan)
        if compared:
            clicks_low, clicks_high, weight = np.split(sums, 3, axis=1)
            out[:, arms] = maximise_pair_likelihood(
                low, high, len(arms), (clicks_low, clicks_high, weight), start=start
            )
        return out

    if compared:
        log_value = solve(sets.sums.sum(0, keepdims=True))[0]
        if not np.isfinite(log_value[0]):
            raise UltrError("the all-pairs likelihood did not converge: use pivot-one, or adjacent-chain")
        _explain_missing(counts, sets, log_value, reasons, limits)
    for k in range(1, counts.arms):
        if k not in arms:
            reasons.setdefault(k, "no document was shown both there and at another rank")
        elif not compared:
            reasons.setdefault(k, "no document connects it with rank 1")
    return sets.query_sums(lambda sums: solve(sums, log_value[arms]), counts.arms, reasons, limits, len(arms) ** 2)


def _explain_missing(
    counts: ArmCounts, sets: InterventionSets, log_value: np.ndarray, reasons: dict[int, str], limits: dict[int, float]
) -> None:
    """Adds why compared arms have no value, and upper limits of the arms that were not clicked."""
    arms, known = len(log_value), np.isfinite(log_value)
    log_relevance = log_relevance_at(counts.select(known[counts.arm]), log_value)
    links = csr_array((np.ones(len(sets.low)), (sets.low, sets.high)), shape=(arms, arms))
    _, component = connected_components(links, directed=False)
    clicks = np.bincount(sets.low, sets.clicks_low.sum(0), arms)
    clicks += np.bincount(sets.high, sets.clicks_high.sum(0), arms)
    for k in np.union1d(sets.low, sets.high).tolist():
        if known[k] or k in reasons or k == 0:
            continue
        if component[k] != component[0]:
            reasons[k] = "no document connects it with rank 1"
        elif not clicks[k]:
            if (expected := clicks_if_fully_examined(counts, known, log_relevance, k)) > 0:
                limits[k] = ZERO_COUNT_LIMIT / expected
            else:
                reasons[k] = "never clicked, and no clicks of its documents at other ranks give an upper limit"
        else:
            reasons[k] = ONE_SIDED.format("rank 1")


def _log_click_ratio(sums: np.ndarray) -> np.ndarray:
    low, high, _ = np.split(sums, 3, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(high) - np.log(low))


def _without_value(counts: ArmCounts) -> dict[int, str]:
    """Maps arms that have no value, whatever they are compared with, to the reason."""
    shown, clicks = counts.sum_by_arm(counts.impressions), counts.sum_by_arm(counts.clicks)
    out = {int(k): "no document was shown there" for k in np.flatnonzero(shown == 0)}
    if not clicks[0]:
        out.setdefault(0, "never clicked")
        for k in range(1, counts.arms):
            out.setdefault(k, f"rank 1, which it is compared with, was never {'clicked' if shown[0] else 'shown'}")
    return out
