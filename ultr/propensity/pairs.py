"""Harvested interventions: documents shown at two ranks tell how much more the one is examined (Agarwal et al. 2019).

The intervention set of ranks k and k' holds the documents that were shown at both; their relevance is the same at both,
so that the ratio of their clicks is that of examination. Clicks are weighted by 1 / impressions of the (document, rank)
cell: every document of a set weighs the same, however often the logger showed it where. Source: "Estimating position
bias without intrusive interventions" (WSDM 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ultr.data import ClickLog, Counts
from ultr.errors import ConfigError, UltrError
from ultr.propensity.bootstrap import GROUPS, Estimator, Harvest, bootstrapped, groups_of
from ultr.propensity.cells import Cells, cells_of
from ultr.propensity.fitted import NEVER, ONE_SIDED, clicks_if_examined
from ultr.propensity.likelihood import relevance
from ultr.propensity.pairwise import maximise_pairs
from ultr.propensity.table import Propensities, alone

Weights = Literal["even", "least"]
ENTRIES = 1 << 22  # numbers that are kept of a sum: with very many pairs of ranks, queries are put in fewer groups,
FEWEST_GROUPS = 200  # but not in fewer than these
NO_VARIATION = (
    "no document was shown at two ranks: without that, a log cannot tell how much a rank is examined from how relevant "
    "its documents are"
)


def pivot_one(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """Each rank against rank 1, by the documents that were shown at both.

    Args:
      source: a log, its counts or cells; documents that are not known (id 0) are left out.
      replicates: how many times the queries are resampled for errors and intervals.
      seed: decides the resampling.

    Returns:
      `Propensities`. A rank never clicked where it is compared has value 0 and an upper limit; one that is not compared
      with rank 1 has none.

    Raises:
      DataError: no clicks.
    """
    return _bootstrapped("pivot-one", source, _pivot, replicates, seed)


def adjacent_chain(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """Each rank against the one above it, the ratios multiplied along the chain from rank 1.

    It wants documents that moved by one rank only, but errors add up along the chain, and one missing link ends it.
    Arguments, result and errors are those of `pivot_one`.
    """
    return _bootstrapped("adjacent-chain", source, _chain, replicates, seed)


def all_pairs(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """All pairs of ranks at once, by a likelihood with one relevance per unordered pair.

    Maximises the sum over ordered pairs (k, k') of c log(p_k r) + (not c) log(1 - p_k r), where r belongs to {k, k'}
    and clicks are weighted: ranks may be connected over others, and every document that moved counts. Time grows with
    the third power of the number of ranks. Arguments, result and errors are those of `pivot_one`; a rank whose clicks
    bound its ratio to rank 1 on one side only has no value.
    """
    return _bootstrapped("all-pairs", source, _all_pairs, replicates, seed)


def variance_weighted(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """`all_pairs` where each document counts by how much it tells.

    Clicks at k weigh min(n_k, n_k') / n_k, with n the impressions of the document at the two ranks, instead of
    1 / n_k: documents that were hardly ever shown at one of the ranks add little noise. As unbiased as `all_pairs`.
    Arguments, result and errors are those of `all_pairs`.
    """
    return _bootstrapped("variance-weighted", source, _all_pairs, replicates, seed, "least")


def _bootstrapped(
    method: str,
    source: ClickLog | Counts | Cells,
    harvest: Callable[[Cells, Weights, int], Harvest],
    replicates: int,
    seed: int,
    weights: Weights = "even",
) -> Propensities:
    cells = cells_of(source)
    made = harvest(cells, weights, seed)
    warnings, shown = [], cells.per_arm(cells.impressions)
    if not made.impressions.any() and np.count_nonzero(shown) > 1:
        moved = (np.bincount(cells.item) > 1).any()
        warnings.append("no document was shown at two ranks that this method compares" if moved else NO_VARIATION)
    return alone(bootstrapped(method, made, replicates=replicates, seed=seed, warnings=warnings), shown)


@dataclasses.dataclass(frozen=True)
class _Sets:
    """The intervention sets of P pairs of arms, G groups of queries.

    Attributes:
      low, high: [P] arms, low < high, in order.
      clicks_low, clicks_high, weight: [G, P] weighted clicks at both arms; the weight of the documents, the same at
        both.
      reach: [P] clicks that the high arm would have if it were examined as the low one is.
      impressions: [arms] of the cells that are compared.
    """

    low: np.ndarray
    high: np.ndarray
    clicks_low: np.ndarray
    clicks_high: np.ndarray
    weight: np.ndarray
    reach: np.ndarray
    impressions: np.ndarray

    @property
    def sums(self) -> np.ndarray:
        return np.concatenate([self.clicks_low, self.clicks_high, self.weight], axis=1)

    def harvest(
        self, estimate: Estimator, arms: int, reasons: dict[int, str], limits: dict[int, float], width: int = 0
    ) -> Harvest:
        pair, touched = np.arange(len(self.low)), np.zeros((len(self.low), arms), np.float32)
        touched[pair, self.low] = touched[pair, self.high] = 1
        queries = ((self.weight > 0).astype(np.float32) @ touched > 0).sum(0)
        return Harvest(
            sums=self.sums,
            estimate=estimate,
            width=max(width, arms),
            impressions=self.impressions,
            queries=queries,
            reasons=reasons,
            limits=limits,
        )


def _sets(cells: Cells, weights: Weights, seed: int, chosen: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Sets:
    """The sets of those pairs of arms (low, high) that are chosen."""
    cells = cells.where((np.bincount(cells.item, minlength=cells.items) > 1)[cells.item])
    arms, n, c = cells.arms, cells.impressions, cells.clicks
    compared = np.zeros(len(n), bool)
    there = np.zeros(arms * arms, bool)
    for i, j in _steps(cells, chosen):
        there[cells.arm[i] * arms + cells.arm[j]] = True
        compared[i] = compared[j] = True
    code = np.flatnonzero(there)
    pairs, number = len(code), np.cumsum(there) - 1
    most = min(GROUPS, ENTRIES // max(pairs, 1))
    if most < FEWEST_GROUPS:
        raise ConfigError(
            f"{pairs:,} pairs of ranks are too many to compare at once: use pivot-one, adjacent-chain or "
            "maximum-likelihood"
        )
    group, groups = np.zeros(len(n), np.int64), 0
    group[compared], groups = groups_of(cells.where(compared), seed, most)
    out = np.zeros((4, groups * pairs))
    for i, j in _steps(cells, chosen):
        weight = np.ones(len(i)) if weights == "even" else np.minimum(n[i], n[j])
        pair = number[cells.arm[i] * arms + cells.arm[j]]
        key = group[i] * pairs + pair
        rates = c[i] / n[i], c[j] / n[j]
        for total, values in zip(out, (rates[0] * weight, rates[1] * weight, weight, n[j] * rates[0]), strict=True):
            total += np.bincount(key, values, len(total))
    sums = out.reshape(4, groups, pairs)
    used = cells.where(compared)
    return _Sets(
        low=code // arms,
        high=code % arms,
        clicks_low=sums[0],
        clicks_high=sums[1],
        weight=sums[2],
        reach=sums[3].sum(0),
        impressions=used.per_arm(used.impressions),
    )


def _steps(
    cells: Cells, chosen: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(i, j): indices of two cells of the same item whose arms are chosen, arm[i] < arm[j]; every such pair once."""
    for step in range(1, int(np.bincount(cells.item).max(initial=1))):
        i = np.flatnonzero(cells.item[step:] == cells.item[:-step])
        j = i + step
        keep = chosen(cells.arm[i], cells.arm[j])
        yield i[keep], j[keep]


def _pivot(cells: Cells, weights: Weights, seed: int) -> Harvest:
    sets = _sets(cells, weights, seed, lambda low, high: low == 0)
    clicks_low, clicks_high = sets.clicks_low.sum(0), sets.clicks_high.sum(0)
    at = {int(high): p for p, high in enumerate(sets.high)}
    reasons, limits = _never(cells), dict[int, float]()
    for k in range(1, cells.arms):
        if k in reasons:
            continue
        if (p := at.get(k)) is None:
            reasons[k] = "no document was shown both there and at rank 1"
        elif not clicks_low[p]:
            reasons[k] = "the documents shown both there and at rank 1 were never clicked at rank 1"
        elif not clicks_high[p]:
            limits[k] = NEVER / sets.reach[p]

    def estimate(sums: np.ndarray) -> np.ndarray:
        out = np.full((len(sums), cells.arms), np.nan)
        out[:, 0] = 0.0
        out[:, sets.high] = _log_ratio(sums)
        return out

    return sets.harvest(estimate, cells.arms, reasons, limits)


def _chain(cells: Cells, weights: Weights, seed: int) -> Harvest:
    sets = _sets(cells, weights, seed, lambda low, high: high == low + 1)
    clicks_low, clicks_high = sets.clicks_low.sum(0), sets.clicks_high.sum(0)
    at = {int(high): p for p, high in enumerate(sets.high)}
    reasons, limits = _never(cells), dict[int, float]()
    value, broken = 1.0, ""
    for k in range(1, cells.arms):
        p = at.get(k)
        if broken:
            reasons.setdefault(k, broken)
        elif p is None:
            broken = f"the chain from rank 1 breaks at rank {k + 1}: no document was shown both there and at rank {k}"
            reasons.setdefault(k, broken)
        elif not clicks_low[p]:
            broken = f"the chain from rank 1 breaks at rank {k}: what was shown there and at rank {k + 1} had no clicks"
            reasons.setdefault(k, broken)
        elif not clicks_high[p]:
            broken = f"the chain from rank 1 breaks at rank {k + 1}, which was never clicked where it is compared"
            limits[k] = value * NEVER / sets.reach[p]
        else:
            value *= clicks_high[p] / clicks_low[p]

    def estimate(sums: np.ndarray) -> np.ndarray:
        steps = np.full((len(sums), cells.arms), np.nan)
        steps[:, 0] = 0.0
        steps[:, sets.high] = _log_ratio(sums)
        with np.errstate(invalid="ignore"):
            return np.cumsum(steps, axis=1)

    return sets.harvest(estimate, cells.arms, reasons, limits)


def _all_pairs(cells: Cells, weights: Weights, seed: int) -> Harvest:
    sets = _sets(cells, weights, seed, lambda low, high: low < high)
    reasons, limits = _never(cells), dict[int, float]()
    # Arms without a pair cost time and have no estimate.
    arms = np.union1d(sets.low, sets.high)
    low, high = np.searchsorted(arms, sets.low), np.searchsorted(arms, sets.high)
    value = np.full(cells.arms, np.nan)
    compared = len(arms) > 0 and arms[0] == 0

    def solve(sums: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        out = np.full((len(sums), cells.arms), np.nan)
        if compared:
            parts = np.split(sums, 3, axis=1)
            out[:, arms] = maximise_pairs(low, high, len(arms), (parts[0], parts[1], parts[2]), start=start)
        return out

    if compared:
        value = solve(sets.sums.sum(0, keepdims=True))[0]
        if not np.isfinite(value[0]):
            raise UltrError("the all-pairs likelihood did not converge: use pivot-one, or adjacent-chain")
        _explain(cells, sets, value, reasons, limits)
    for k in range(1, cells.arms):
        if k not in arms:
            reasons.setdefault(k, "no document was shown both there and at another rank")
        elif not compared:
            reasons.setdefault(k, "no document connects it with rank 1")
    return sets.harvest(lambda sums: solve(sums, value[arms]), cells.arms, reasons, limits, len(arms) ** 2)


def _explain(cells: Cells, sets: _Sets, value: np.ndarray, reasons: dict[int, str], limits: dict[int, float]) -> None:
    """Why arms that are compared have no value, or what limits the value of those that were not clicked."""
    arms, near = len(value), np.isfinite(value)
    log_relevance = relevance(cells.where(near[cells.arm]), value)
    links = csr_array((np.ones(len(sets.low)), (sets.low, sets.high)), shape=(arms, arms))
    _, label = connected_components(links, directed=False)
    clicks = np.bincount(sets.low, sets.clicks_low.sum(0), arms)
    clicks += np.bincount(sets.high, sets.clicks_high.sum(0), arms)
    for k in np.union1d(sets.low, sets.high).tolist():
        if np.isfinite(value[k]) or k in reasons or k == 0:
            continue
        if label[k] != label[0]:
            reasons[k] = "no document connects it with rank 1"
        elif not clicks[k]:
            if (expected := clicks_if_examined(cells, near, log_relevance, k)) > 0:
                limits[k] = NEVER / expected
            else:
                reasons[k] = "never clicked, and what it was compared by neither"
        else:
            reasons[k] = ONE_SIDED.format("rank 1")


def _log_ratio(sums: np.ndarray) -> np.ndarray:
    low, high, _ = np.split(sums, 3, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(high) - np.log(low)


def _never(cells: Cells) -> dict[int, str]:
    """Arm -> why it has no value, whatever the comparison."""
    shown, clicks = cells.per_arm(cells.impressions), cells.per_arm(cells.clicks)
    out = {int(k): "no document was shown there" for k in np.flatnonzero(shown == 0)}
    if not clicks[0]:
        out.setdefault(0, "never clicked")
        for k in range(1, cells.arms):
            out.setdefault(k, "rank 1, which it is compared with, was never clicked")
    return out
