"""Click rates by rank: right where lists were shuffled, and a check whether they were."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.propensity.bootstrap import Harvest, bootstrapped, groups_of
from ultr.propensity.cells import Cells, cells_of
from ultr.propensity.fitted import NEVER
from ultr.propensity.table import Propensities

SUSPICIOUS = 4.0  # standard deviations of the chi-square above its mean


def ctr(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """Clicks per impression at each rank, relative to rank 1.

    The ratio holds examination times the mean relevance of what was shown at each rank: biased unless lists were
    randomised, and that by how much better the documents at rank 1 are. Here for comparison.

    Args:
      source: a log, its counts or cells; documents that are not known (id 0) are left out.
      replicates: how many times the queries are resampled for errors and intervals.
      seed: decides the resampling.

    Returns:
      `Propensities`. A rank that was never clicked has value 0 and an upper limit.

    Raises:
      DataError: no clicks.
    """
    cells = cells_of(source)
    told = "click rates mix examination with the relevance of what stood at each rank: right only for shuffled lists"
    return bootstrapped("ctr", _rates(cells, seed), replicates=replicates, seed=seed, warnings=[told])


def randomised(source: ClickLog | Counts | Cells, *, replicates: int = 1000, seed: int = 0) -> Propensities:
    """Clicks per impression relative to rank 1 of a log whose lists were shuffled, and a warning where they were not.

    Where each document is as likely at one rank as at another, mean relevance is the same at all ranks and drops out
    of the ratio (Joachims et al. 2017). Whether it is, a chi-square per document tells: of its impressions over the
    ranks, against those of its query. Its mean under shuffling is exact for any number of impressions; its variance is
    that of the multinomial, times what documents of a list have in common.

    Arguments, result and errors are those of `ctr`.
    """
    cells = cells_of(source)
    warning = _evenness(cells).warning()
    return bootstrapped(
        "randomised", _rates(cells, seed), replicates=replicates, seed=seed, warnings=[warning] if warning else []
    )


def _rates(cells: Cells, seed: int) -> Harvest:
    group, groups = groups_of(cells, seed)
    cell = group * cells.arms + cells.arm
    shape = (groups, cells.arms)
    clicks, shown = (
        np.bincount(cell, values, groups * cells.arms).reshape(shape) for values in (cells.clicks, cells.impressions)
    )
    total, clicked = shown.sum(0), clicks.sum(0)
    reasons: dict[int, str] = {}
    limits: dict[int, float] = {}
    for k in range(cells.arms):
        if not total[k]:
            reasons[k] = "no document was shown there"
        elif not clicked[0]:
            reasons[k] = "rank 1, which it is compared with, was never clicked" if k else "never clicked"
        elif not clicked[k]:
            limits[k] = NEVER * total[0] / (clicked[0] * total[k])

    def estimate(sums: np.ndarray) -> np.ndarray:
        c, n = sums[:, : cells.arms], sums[:, cells.arms :]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.log(c) - np.log(n)
            return rate - rate[:, :1]

    return Harvest(
        sums=np.concatenate([clicks, shown], axis=1),
        estimate=estimate,
        width=2 * cells.arms,
        impressions=total,
        queries=(shown > 0).sum(0),
        reasons=reasons,
        limits=limits,
    )


@dataclasses.dataclass(frozen=True)
class _Evenness:
    """How documents are spread over the ranks of their queries.

    Attributes:
      statistic: the sum of the documents' chi-squares.
      freedom: its mean where lists were shuffled.
      deviation: its standard deviation there; 0 where nothing can be told.
      fixed: which share of the impressions would explain it that have one rank per document, the others being even.
    """

    statistic: float
    freedom: float
    deviation: float
    fixed: float

    def warning(self) -> str | None:
        if not self.deviation:
            return "no document was shown often enough to tell whether lists were shuffled: if not, this is biased"
        z = (self.statistic - self.freedom) / self.deviation
        if z < SUSPICIOUS:
            return None
        return (
            f"lists do not look shuffled: over the ranks of their queries documents have a chi-square of "
            f"{self.statistic:,.0f} where {self.freedom:,.0f} is expected ({z:,.1f} standard deviations more), as if "
            f"{100 * self.fixed:.1f} % of the impressions were always at the same rank. Click rates then mix "
            "examination with relevance: use conditional-likelihood"
        )


def _evenness(cells: Cells) -> _Evenness:
    _, query = np.unique(cells.cluster, return_inverse=True)
    count = int(query.max()) + 1
    place, inverse = np.unique(query[cells.item] * cells.arms + cells.arm, return_inverse=True)
    at_place = np.bincount(inverse, cells.impressions)
    of_query = np.bincount(place // cells.arms, at_place, count)
    share = at_place / of_query[place // cells.arms]  # of each rank among the impressions of its query
    n = cells.per_item(cells.impressions)
    ranks = np.bincount(place // cells.arms, minlength=count)
    odds = np.bincount(place // cells.arms, 1 / share, count)
    shown = n > 0
    documents = np.bincount(query[shown], minlength=count)
    usable = shown & ((ranks > 1) & (documents > 1))[query]
    n, k, odds = n[usable], ranks[query][usable].astype(np.float64), odds[query][usable]
    # Of a multinomial: mean k - 1, whatever n.
    chi = cells.per_item(cells.impressions**2 / share[inverse])[usable] / n - n
    variance = np.maximum(2 * (k - 1) + (odds - k * k - 2 * k + 2) / n, 0.0)
    # Documents of a list exclude each other from ranks: sums over K documents vary by K / (K - 1) more.
    deviation = math.sqrt(float(np.sum(variance * k / (k - 1))))
    freedom, statistic = float(np.sum(k - 1)), float(np.sum(chi))
    most = float(np.sum((n - 1) * (k - 1)))
    return _Evenness(
        statistic=statistic,
        freedom=freedom,
        deviation=deviation if deviation > 1e-6 * freedom else 0.0,
        fixed=math.sqrt(max(statistic - freedom, 0.0) / most) if most > 0 else 0.0,
    )
