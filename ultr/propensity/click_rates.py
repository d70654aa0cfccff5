"""`ctr` and `randomised`: click rates by rank, right where lists were shuffled, and a test whether they were."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts
from ultr.propensity.bootstrap import BLOCK_SIZE, MAX_GROUPS, QuerySums, bootstrap_propensities, group_queries
from ultr.propensity.propensities import ZERO_COUNT_LIMIT, Propensities

SUSPICIOUS_Z = 4.0  # standard deviations of the chi-square above its mean
CONFOUNDED = (
    "click rates mix examination with the relevance of the documents at each rank: right only on shuffled lists"
)


def ctr(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Computes clicks per impression at each rank, relative to rank 1, for comparison with better estimators.

    The ratio holds examination times the mean relevance of what was shown at each rank. Unless lists were randomised,
    it is biased by how much more relevant the documents at rank 1 are.

    Args:
      source: a log, its counts or `ArmCounts`; documents that the vocabulary does not know (id 0) are left out.
      replicates: how many times the queries are resampled for errors and intervals.
      seed: of the resampling.
      max_groups: with more queries than this, groups of queries are resampled, as many as this.
      block_size: numbers that a block of replicates may need at once.

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit.

    Raises:
      DataError: no clicks.
    """
    problem = _rate_sums(as_arm_counts(source), seed, max_groups)
    return bootstrap_propensities(
        "ctr", problem, replicates=replicates, seed=seed, block_size=block_size, warnings=[CONFOUNDED]
    )


def randomised(
    source: ClickLog | Counts | ArmCounts,
    *,
    replicates: int = 1000,
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    block_size: int = BLOCK_SIZE,
) -> Propensities:
    """Computes clicks per impression relative to rank 1 of shuffled lists, with a warning where they are not shuffled.

    Where each document is as likely at one rank as at another, mean relevance is the same at all ranks and drops out
    of the ratio (Joachims et al. 2017). `shuffle_test` tells whether the log looks like that. Arguments, result and
    errors are those of `ctr`.
    """
    counts = as_arm_counts(source)
    warning = shuffle_test(counts).warning()
    return bootstrap_propensities(
        "randomised",
        _rate_sums(counts, seed, max_groups),
        replicates=replicates,
        seed=seed,
        block_size=block_size,
        warnings=[warning] if warning else [],
    )


def _rate_sums(counts: ArmCounts, seed: int, max_groups: int) -> QuerySums:
    group, groups = group_queries(counts, seed, max_groups)
    cell = group * counts.arms + counts.arm
    shape = (groups, counts.arms)
    clicks, shown = (
        np.bincount(cell, values, groups * counts.arms).reshape(shape) for values in (counts.clicks, counts.impressions)
    )
    total, clicked = shown.sum(0), clicks.sum(0)
    reasons: dict[int, str] = {}
    limits: dict[int, float] = {}
    for k in range(counts.arms):
        if not total[k]:
            reasons[k] = "no document was shown there"
        elif not clicked[0]:
            never = "clicked" if total[0] else "shown"
            reasons[k] = f"rank 1, which it is compared with, was never {never}" if k else "never clicked"
        elif not clicked[k]:
            limits[k] = ZERO_COUNT_LIMIT * total[0] / (clicked[0] * total[k])

    def estimate(sums: np.ndarray) -> np.ndarray:
        c, n = sums[:, : counts.arms], sums[:, counts.arms :]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.log(c) - np.log(n)
            return np.asarray(rate - rate[:, :1])

    return QuerySums(
        sums=np.concatenate([clicks, shown], axis=1),
        estimate=estimate,
        width=2 * counts.arms,
        impressions=total,
        queries=(shown > 0).sum(0),
        reasons=reasons,
        limits=limits,
    )


@dataclasses.dataclass(frozen=True)
class ShuffleTest:
    """A chi-square test of whether lists were shuffled: documents spread evenly over the ranks of their queries.

    Attributes:
      statistic: sum of the documents' chi-squares.
      expected: its mean for shuffled lists.
      deviation: its standard deviation for shuffled lists; 0 where the log is too small for a test.
      fixed_share: the share of impressions with one rank per document that would explain the statistic, were the
        others shuffled.
    """

    statistic: float
    expected: float
    deviation: float
    fixed_share: float

    def warning(self) -> str | None:
        """Says that lists do not look shuffled, or that the log cannot tell; None where they do."""
        if not self.deviation:
            return "no document was shown often enough to tell whether lists were shuffled: if not, this is biased"
        z = (self.statistic - self.expected) / self.deviation
        if z < SUSPICIOUS_Z:
            return None
        return (
            f"lists do not look shuffled: over the ranks of their queries documents have a chi-square of "
            f"{self.statistic:,.0f} where {self.expected:,.0f} is expected ({z:,.1f} standard deviations more), as if "
            f"{100 * self.fixed_share:.1f} % of the impressions were always at the same rank. Click rates then mix "
            "examination with relevance: use conditional-likelihood"
        )


def shuffle_test(counts: ArmCounts) -> ShuffleTest:
    """Tests whether lists were shuffled, by a chi-square per document.

    It compares the document's impressions over the ranks with those of its query. Its mean under shuffling is exact for
    any number of impressions; its variance is that of the multinomial distribution, corrected for documents of a list
    that exclude each other from ranks.
    """
    _, query = np.unique(counts.query, return_inverse=True)
    queries = int(query.max()) + 1
    place, inverse = np.unique(query[counts.item] * counts.arms + counts.arm, return_inverse=True)
    place_query = place // counts.arms  # a place is a rank of a query
    at_place = np.bincount(inverse, counts.impressions)
    of_query = np.bincount(place_query, at_place, queries)
    share = at_place / of_query[place_query]  # of each rank in the impressions of its query
    n = counts.sum_by_item(counts.impressions)
    ranks = np.bincount(place_query, minlength=queries)
    inverse_shares = np.bincount(place_query, 1 / share, queries)
    shown = n > 0
    documents = np.bincount(query[shown], minlength=queries)
    usable = shown & ((ranks > 1) & (documents > 1))[query]
    n, k, inverse_shares = n[usable], ranks[query][usable].astype(np.float64), inverse_shares[query][usable]
    # The mean under a multinomial distribution is k - 1, whatever n.
    chi_square = counts.sum_by_item(counts.impressions**2 / share[inverse])[usable] / n - n
    variance = np.maximum(2 * (k - 1) + (inverse_shares - k * k - 2 * k + 2) / n, 0.0)
    # Documents of a list exclude each other from ranks: sums over K documents vary by K / (K - 1) more.
    deviation = math.sqrt(float(np.sum(variance * k / (k - 1))))
    expected, statistic = float(np.sum(k - 1)), float(np.sum(chi_square))
    largest = float(np.sum((n - 1) * (k - 1)))
    return ShuffleTest(
        statistic=statistic,
        expected=expected,
        deviation=deviation if deviation > 1e-6 * expected else 0.0,
        fixed_share=math.sqrt(max(statistic - expected, 0.0) / largest) if largest > 0 else 0.0,
    )
