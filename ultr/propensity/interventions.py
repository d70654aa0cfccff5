"""Intervention sets: for each pair of ranks, the documents that were shown at both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from ultr import stopping
from ultr.errors import ConfigError
from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.bootstrap import MAX_GROUPS, LogPropensities, QuerySums, group_queries

PairWeights = Literal["equal", "smaller-count"]
# With very many pairs of ranks, queries are put into fewer groups, so that each sum holds at most `MAX_SUMS` numbers;
# but not into fewer groups than these.
MAX_SUMS, FEWEST_GROUPS = 1 << 22, 200


@dataclasses.dataclass(frozen=True)
class InterventionSets:
    """Sums over the intervention sets of P pairs of arms, per group of queries (G groups).

    Attributes:
      low, high: [P] the arms of each pair, low < high, in order.
      clicks_low, clicks_high: [G, P] weighted clicks at the two arms.
      weight: [G, P] weight of the documents, the same at both arms.
      expected_high: [P] clicks that the high arm would have if it were examined like the low one.
      impressions: [arms] impressions of the cells that are compared.
    """

    low: np.ndarray
    high: np.ndarray
    clicks_low: np.ndarray
    clicks_high: np.ndarray
    weight: np.ndarray
    expected_high: np.ndarray
    impressions: np.ndarray

    @property
    def sums(self) -> np.ndarray:
        """[G, 3P] weighted clicks at the low arms and at the high arms, and weights."""
        return np.concatenate([self.clicks_low, self.clicks_high, self.weight], axis=1)

    def query_sums(
        self, estimate: LogPropensities, arms: int, reasons: dict[int, str], limits: dict[int, float], width: int = 0
    ) -> QuerySums:
        """Returns the resampling problem of an estimator that is a function of `sums`."""
        pair, touched = np.arange(len(self.low)), np.zeros((len(self.low), arms), np.float32)
        touched[pair, self.low] = touched[pair, self.high] = 1
        queries = ((self.weight > 0).astype(np.float32) @ touched > 0).sum(0)
        return QuerySums(
            sums=self.sums,
            estimate=estimate,
            width=max(width, arms),
            impressions=self.impressions,
            queries=queries,
            reasons=reasons,
            limits=limits,
        )


def intervention_sets(
    counts: ArmCounts,
    weights: PairWeights,
    chosen: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    seed: int,
    max_groups: int = MAX_GROUPS,
) -> InterventionSets:
    """Sums clicks and weights over the intervention sets of the chosen pairs of arms.

    Args:
      counts: of the log.
      weights: of a document in a set: equal, or the smaller of its impressions at the two arms.
      chosen: from (low, high) arms, arrays with low < high, to whether the pair is used.
      seed: of the grouping of queries.
      max_groups: number of groups that queries are put into, at most.

    Raises:
      ConfigError: too many pairs.
    """
    counts = counts.moved()
    arms, n, c = counts.arms, counts.impressions, counts.clicks
    compared = np.zeros(len(n), bool)
    present = np.zeros(arms * arms, bool)
    for i, j in _cell_pairs(counts, chosen):
        present[counts.arm[i] * arms + counts.arm[j]] = True
        compared[i] = compared[j] = True
    code = np.flatnonzero(present)
    pairs, number = len(code), np.cumsum(present) - 1
    groups_that_fit = min(max_groups, MAX_SUMS // max(pairs, 1))
    if groups_that_fit < FEWEST_GROUPS:
        raise ConfigError(
            f"{pairs:,} pairs of ranks are too many to compare at once: use pivot-one, adjacent-chain or "
            "maximum-likelihood"
        )
    group, groups = np.zeros(len(n), np.int64), 0
    group[compared], groups = group_queries(counts.select(compared), seed, groups_that_fit)
    out = np.zeros((4, groups * pairs))
    for i, j in _cell_pairs(counts, chosen):
        weight = np.ones(len(i)) if weights == "equal" else np.minimum(n[i], n[j])
        pair = number[counts.arm[i] * arms + counts.arm[j]]
        key = group[i] * pairs + pair
        rates = c[i] / n[i], c[j] / n[j]
        for total, values in zip(out, (rates[0] * weight, rates[1] * weight, weight, n[j] * rates[0]), strict=True):
            total += np.bincount(key, values, len(total))
    sums = out.reshape(4, groups, pairs)
    used = counts.select(compared)
    return InterventionSets(
        low=code // arms,
        high=code % arms,
        clicks_low=sums[0],
        clicks_high=sums[1],
        weight=sums[2],
        expected_high=sums[3].sum(0),
        impressions=used.sum_by_arm(used.impressions),
    )


def _cell_pairs(
    counts: ArmCounts, chosen: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gives indices (i, j) of two cells of an item with chosen arms, arm[i] < arm[j]; every such pair once."""
    for step in range(1, int(np.bincount(counts.item).max(initial=1))):
        stopping.check()
        i = np.flatnonzero(counts.item[step:] == counts.item[:-step])
        j = i + step
        keep = chosen(counts.arm[i], counts.arm[j])
        yield i[keep], j[keep]
