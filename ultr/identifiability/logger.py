"""How the logging policy showed documents: whether it varied ranks, and how far rank follows relevance."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ultr.identifiability.assumed import Assumed


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much the ranks of documents vary.

    Attributes:
      queries: share of the queries with a document that was shown at two or more ranks.
      impressions: share of the impressions that are of such documents.
      documents: share of the documents.
      shown_once: share of the impressions that are the only one of their document.
      largest_share: mean over impressions of the largest share that one rank has of the document's impressions; 1 for
        a deterministic logger.
      entropy: mean over impressions of the entropy of the document's rank, relative to that of the uniform
        distribution over all ranks with impressions; 0 for a deterministic logger, NaN where there is only one rank.
    """

    queries: float
    impressions: float
    documents: float
    shown_once: float
    largest_share: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class Confounding:
    """How strongly rank and relevance go together.

    Both are under the propensities that are assumed: where the log does not identify those, it cannot tell this either.

    Attributes:
      correlation: of a document's mean log(rank) and its log(relevance), weighted by impressions; -1: the logger ranks
        by relevance, 0: rank says nothing about it. Pulled towards 0 by chance in the relevances of documents that were
        shown a few times. NaN where one of them does not vary.
      slope: of the logarithm of `relevance_by_rank` on log(rank), weighted by impressions: relevance falls as
        rank^slope. Not pulled towards 0. NaN where there is one rank only.
      relevance_by_rank: [K] mean relevance of the documents shown at a rank, relative to the first rank with
        impressions; NaN without impressions.
    """

    correlation: float
    slope: float
    relevance_by_rank: np.ndarray


def variation(assumed: Assumed) -> Variation:
    """From counts alone."""
    cells = assumed.cells
    ranks = np.bincount(cells.item, minlength=cells.items)
    total = cells.per_item(cells.impressions)
    varied = ranks > 1
    present = ranks > 0
    # Cells are sorted by item.
    largest = np.zeros(cells.items)
    start = np.flatnonzero(np.append(True, cells.item[1:] != cells.item[:-1]))
    largest[cells.item[start]] = np.maximum.reduceat(cells.impressions, start)
    each = np.log(total[cells.item] / cells.impressions)
    uniform = math.log(np.count_nonzero(assumed.shown))
    queries = np.unique(cells.cluster[present])
    everything = total.sum()
    return Variation(
        queries=len(np.unique(cells.cluster[varied])) / len(queries),
        impressions=float(total[varied].sum() / everything),
        documents=float(varied.sum() / present.sum()),
        shown_once=float(total[present & (total <= 1)].sum() / everything),
        largest_share=float(largest.sum() / everything),
        entropy=float(cells.impressions @ each / everything / uniform) if uniform > 0 else math.nan,
    )


def confounding(assumed: Assumed) -> Confounding:
    """At the assumed propensities and relevances."""
    cells, relevance = assumed.cells, assumed.log_relevance
    total = cells.per_item(cells.impressions)
    present = total > 0
    place = np.zeros(cells.items)
    place[present] = cells.per_item(cells.impressions * np.log(cells.arm + 1.0))[present] / total[present]
    impressions = cells.per_arm(cells.impressions)
    mean = np.full(cells.arms, np.nan)
    mean[assumed.shown] = (
        cells.per_arm(cells.impressions * np.exp(relevance[cells.item]))[assumed.shown] / impressions[assumed.shown]
    )
    rank = np.log(np.arange(1.0, cells.arms + 1))[assumed.shown]
    center, shown = np.average(rank, weights=impressions[assumed.shown]), impressions[assumed.shown]
    spread = shown @ np.square(rank - center)
    return Confounding(
        correlation=_correlation(place[present], relevance[present], total[present]),
        slope=float(shown @ ((rank - center) * np.log(mean[assumed.shown])) / spread) if spread > 0 else math.nan,
        relevance_by_rank=mean / mean[assumed.shown][0],
    )


def _correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    weight = weight / weight.sum()
    x, y = x - weight @ x, y - weight @ y
    spread = math.sqrt(weight @ (x * x)), math.sqrt(weight @ (y * y))
    return float(weight @ (x * y) / (spread[0] * spread[1])) if min(spread) > 1e-9 else math.nan


def plain(value: Any) -> Any:
    """The numbers of dataclasses, arrays, tuples and dicts for `json.dumps`; what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
