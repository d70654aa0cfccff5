"""How the logging policy showed documents: how much it varied their ranks, and how far rank follows relevance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ultr.identifiability.assumed_model import AssumedModel


@dataclasses.dataclass(frozen=True)
class RankVariation:
    """How much the ranks of documents vary.

    Attributes:
      queries: share of the queries with a document that was shown at two or more ranks.
      impressions: share of the impressions that are of such documents.
      documents: share of the documents that were shown at two or more ranks.
      shown_once: share of the impressions that are the only one of their document.
      largest_share: mean over impressions of the largest share that one rank has of the document's impressions; 1 for
        a deterministic logging policy.
      entropy: mean over impressions of the entropy of the document's rank, relative to that of the uniform
        distribution over all ranks with impressions; 0 for a deterministic policy, NaN where there is only one rank.
    """

    queries: float
    impressions: float
    documents: float
    shown_once: float
    largest_share: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class Confounding:
    """How strongly rank and relevance are confounded, under the assumed propensities.

    Where the log does not identify propensities, it cannot tell the confounding either.

    Attributes:
      correlation: of a document's mean log(rank) with its log(relevance), weighted by impressions; -1: the policy ranks
        by relevance, 0: rank tells nothing about relevance. Chance in the relevances of documents with few impressions
        pulls it towards 0. NaN where one of the two does not vary.
      slope: of the logarithm of `relevance_by_rank` on log(rank), weighted by impressions: relevance falls as
        rank^slope. Not pulled towards 0. NaN where there is one rank only.
      relevance_by_rank: [K] mean relevance of the documents shown at a rank, relative to the first rank with
        impressions; NaN without impressions.
    """

    correlation: float
    slope: float
    relevance_by_rank: np.ndarray


def measure_variation(model: AssumedModel) -> RankVariation:
    """Measures how much the ranks of documents vary, from impressions only."""
    counts = model.counts
    ranks = counts.arms_per_item
    total = counts.sum_by_item(counts.impressions)
    moved = ranks > 1
    present = ranks > 0
    largest = np.zeros(counts.items)
    start = np.flatnonzero(np.append(True, counts.item[1:] != counts.item[:-1]))  # cells are sorted by item
    largest[counts.item[start]] = np.maximum.reduceat(counts.impressions, start)
    surprise = np.log(total[counts.item] / counts.impressions)
    uniform = math.log(np.count_nonzero(model.shown))
    queries = np.unique(counts.query[present])
    everything = total.sum()
    return RankVariation(
        queries=len(np.unique(counts.query[moved])) / len(queries),
        impressions=float(total[moved].sum() / everything),
        documents=float(moved.sum() / present.sum()),
        shown_once=float(total[present & (total <= 1)].sum() / everything),
        largest_share=float(largest.sum() / everything),
        entropy=float(counts.impressions @ surprise / everything / uniform) if uniform > 0 else math.nan,
    )


def measure_confounding(model: AssumedModel) -> Confounding:
    """Measures how strongly rank and relevance are confounded, at the assumed propensities and relevances."""
    counts, relevance = model.counts, model.log_relevance
    total = counts.sum_by_item(counts.impressions)
    present = total > 0
    log_rank = np.zeros(counts.items)
    weighted = counts.sum_by_item(counts.impressions * np.log(counts.arm + 1.0))
    log_rank[present] = weighted[present] / total[present]
    impressions = counts.sum_by_arm(counts.impressions)
    mean = np.full(counts.arms, np.nan)
    relevant = counts.sum_by_arm(counts.impressions * np.exp(relevance[counts.item]))
    mean[model.shown] = relevant[model.shown] / impressions[model.shown]
    x = np.log(np.arange(1.0, counts.arms + 1))[model.shown]
    centre, weight = np.average(x, weights=impressions[model.shown]), impressions[model.shown]
    spread = weight @ np.square(x - centre)
    return Confounding(
        correlation=_weighted_correlation(log_rank[present], relevance[present], total[present]),
        slope=float(weight @ ((x - centre) * np.log(mean[model.shown])) / spread) if spread > 0 else math.nan,
        relevance_by_rank=mean / mean[model.shown][0],
    )


def _weighted_correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    weight = weight / weight.sum()
    x, y = x - weight @ x, y - weight @ y
    spread = math.sqrt(weight @ (x * x)), math.sqrt(weight @ (y * y))
    return float(weight @ (x * y) / (spread[0] * spread[1])) if min(spread) > 1e-9 else math.nan
