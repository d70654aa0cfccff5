"""`ranking_gain`: by how much one ranker is better than another, from held-out clicks alone, with its uncertainty.

A document d that users examined E_d times (impressions at each rank, times the examination of that rank) and clicked
C_d times has the relevance C_d / E_d, right on average whatever the logger showed where (Joachims 2017; by document, as
here, Oosterhuis and de Rijke 2020). Where E_d is below `LEAST_EXPOSURE`, a regression r_d that was fitted to other
queries stands in for what is missing (doubly robust, Oosterhuis 2023):

    rel_d = r_d + (C_d - E_d r_d) / max(E_d, LEAST_EXPOSURE).

The DCG of a ranker is sum_d rel_d / log2(1 + rank_d). What counts are differences of two rankers on the same queries:
what the log says wrongly of a document cancels where both rank it alike, and so does a click probability that all
documents have in common. Only relative examination is needed, since the difference is divided by the DCG of the
reference (self-normalised).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from ultr.arguments import check_number
from ultr.errors import ConfigError

CUTOFF = 10  # rank to which the DCG is taken
LEAST_EXPOSURE = 1.0  # examined impressions below which a regression stands in for clicks
CONFIDENCE = 0.9  # of the one-sided lower bounds by which rankers are chosen

Weighting = str  # "sessions" or "queries"


class RankingGain(NamedTuple):
    """By how much a ranker is better than a reference.

    Attributes:
      value: the difference of their DCGs, divided by the DCG of the reference.
      standard_error: of the value, over queries; infinite with less than two queries.
      queries: number of queries with something to tell.
    """

    value: float
    standard_error: float
    queries: int

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """Computes a one-sided lower confidence bound of the value.

        Raises:
          ConfigError: a confidence not between 0 and 1.
        """
        if not 0 < check_number("confidence", confidence) < 1:
            raise ConfigError(f"expected a confidence between 0 and 1, found {confidence}")
        reach = float(ndtri(confidence)) * self.standard_error if self.standard_error > 0 else 0.0
        return self.value - reach if math.isfinite(reach) else -math.inf


@dataclasses.dataclass(frozen=True)
class DocumentClicks:
    """What held-out clicks say of the documents of each query.

    Attributes:
      query: [D] int64, 0 to Q - 1; documents of a query stand together or apart.
      clicks: [D] clicks.
      exposure: [D] examined impressions: impressions times examination of their ranks, relative to rank 1.
      sessions: [Q] weight of the sessions of each query.
      regression: [D] relevance according to a regression on other queries, in the unit of clicks / exposure; None: 0.
    """

    query: np.ndarray
    clicks: np.ndarray
    exposure: np.ndarray
    sessions: np.ndarray
    regression: np.ndarray | None = None

    @property
    def queries(self) -> int:
        """Number of queries Q."""
        return len(self.sessions)

    @property
    def relevance(self) -> np.ndarray:
        """[D] relevance, right on average for documents with an exposure of `LEAST_EXPOSURE` or more."""
        prior = np.zeros(len(self.query)) if self.regression is None else np.asarray(self.regression, np.float64)
        missed = self.clicks - self.exposure * prior
        found: np.ndarray = prior + missed / np.maximum(self.exposure, LEAST_EXPOSURE)
        return found

    def joined(self, other: DocumentClicks) -> DocumentClicks:
        """Joins these documents with those of other queries, which come after them."""
        mine, theirs = (np.zeros(len(x.query)) if x.regression is None else x.regression for x in (self, other))
        return DocumentClicks(
            np.concatenate([self.query, other.query + self.queries]),
            np.concatenate([self.clicks, other.clicks]),
            np.concatenate([self.exposure, other.exposure]),
            np.concatenate([self.sessions, other.sessions]),
            np.concatenate([mine, theirs]),
        )


def expected_discounts(query: np.ndarray, scores: np.ndarray, *, cutoff: int = CUTOFF) -> np.ndarray:
    """Computes the discount 1/log2(1 + rank) that each document gets, 0 beyond a cutoff: [D].

    Documents of a query with equal scores share the mean of their discounts, as in an order drawn by chance.

    Args:
      query: [D] whole numbers from 0. scores: [D], higher ranks first.
      cutoff: the last rank that counts.
    """
    query, scores = np.asarray(query, np.int64), np.asarray(scores, np.float64)
    if not len(query):
        return np.zeros(0)
    order = np.lexsort((-scores, query))
    q, s = query[order], scores[order]
    first = np.append(True, q[1:] != q[:-1])
    start = np.flatnonzero(first)
    rank = np.arange(len(q)) - np.repeat(start, np.diff(np.append(start, len(q)))) + 1
    each = np.where(rank <= cutoff, 1 / np.log2(1.0 + rank), 0.0)
    tie = np.cumsum(first | np.append(True, s[1:] != s[:-1])) - 1
    shared = np.bincount(tie, each) / np.bincount(tie)
    out = np.empty(len(q))
    out[order] = shared[tie]
    return out


def query_gains(
    clicks: DocumentClicks, scores: np.ndarray, reference: np.ndarray, *, weighting: Weighting = "sessions"
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the difference of two rankers' DCGs on each query, and the DCG of the second, both by weight: [Q], [Q].

    Args:
      clicks: of held-out queries.
      scores: [D] of the ranker. reference: [D] scores of the one that it is compared with.
      weighting: "sessions": each query counts as often as it was searched, as in the mean over sessions; "queries":
        each counts once.

    Raises:
      ConfigError: another weighting.
    """
    if weighting not in ("sessions", "queries"):
        raise ConfigError(f"unknown weighting '{weighting}'; known: sessions, queries")
    weight = clicks.sessions if weighting == "sessions" else (clicks.sessions > 0).astype(np.float64)
    relevance = clicks.relevance * weight[clicks.query]
    base = expected_discounts(clicks.query, reference)
    gain = expected_discounts(clicks.query, scores) - base
    q = clicks.queries
    return np.bincount(clicks.query, relevance * gain, q), np.bincount(clicks.query, relevance * base, q)


def ratio_of_sums(gain: np.ndarray, base: np.ndarray) -> RankingGain:
    """Computes sum(gain) / sum(base) with the standard error over queries, by the delta method.

    Args:
      gain, base: [Q] per query, such as those of `query_gains`.
    """
    told = (gain != 0) | (base != 0)
    gain, base = gain[told], base[told]
    n, total = len(gain), float(base.sum())
    if not n or not total > 0:
        return RankingGain(0.0, math.inf, n)
    value = float(gain.sum()) / total
    if n < 2:
        return RankingGain(value, math.inf, n)
    spread = float(np.square(gain - value * base).sum()) * n / (n - 1)
    return RankingGain(value, math.sqrt(spread) / total, n)


def ranking_gain(
    clicks: DocumentClicks, scores: np.ndarray, reference: np.ndarray, *, weighting: Weighting = "sessions"
) -> RankingGain:
    """Estimates by how much a ranker is better than another, relative to the other's DCG; arguments as `query_gains`.

    Right on average up to the ratio, where examination is and each document has an exposure of `LEAST_EXPOSURE`. The
    rankers must not have learnt from these clicks.
    """
    return ratio_of_sums(*query_gains(clicks, scores, reference, weighting=weighting))
