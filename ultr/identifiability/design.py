"""What sessions with other rankings would add to a log's information about propensities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from ultr.identifiability.assumed import Assumed
from ultr.propensity.likelihood import between, laplacian_of, resistance, weights

CLOSE = 0.004  # relative difference of information that ends a search
BLOCK = 1 << 22  # cells of (document, rank) that are looked at at a time


@dataclasses.dataclass(frozen=True)
class Design:
    """Some queries of a log, in which ranks can be swapped; D documents, Q queries, K ranks.

    In a session with ranks i and j swapped the documents that the query has at i come to j and the other way round, in
    the proportions in which the log has them there.

    Attributes:
      query: [Q] query ids.
      share: [Q * K, D] sparse; share of the impressions of a query at a rank that a document of it has.
      odds: [D, K] what one more impression adds to the information.
      weight: [D, K] information that the log has of a document at a rank.
      rest: [K, K] information between ranks from all other documents.
      most: [Q] sessions that may be randomised of each query.
      most_at: [Q, K] those of them that exchange a rank.
    """

    query: np.ndarray
    share: csr_array
    odds: np.ndarray
    weight: np.ndarray
    rest: np.ndarray
    most: np.ndarray
    most_at: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Q, K, K)."""
        queries, ranks = self.most_at.shape
        return queries, ranks, ranks

    def impressions(self, sessions: np.ndarray) -> np.ndarray:
        """[D, K] that so many sessions of each swap, [Q, K, K] symmetric, add to the cells."""
        return self.share.T @ sessions.reshape(-1, sessions.shape[-1])

    def information(self, impressions: np.ndarray) -> np.ndarray:
        """[K, K] Laplacian with impressions [D, K] added."""
        return laplacian_of(dense_between(self.weight + self.odds * impressions) + self.rest)

    def gain(self, impressions: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """[Q, K, K] derivative of trace(metric S), S the information, by sessions that exchange two ranks of a query.

        Args:
          impressions: [D, K] added so far.
          metric: [K, K] symmetric.
        """
        weight = self.weight + self.odds * impressions
        # An impression of document d at rank j adds odds x x^T, x = e_j - where the document stands so far.
        stands = weight / weight.sum(1)[:, None]
        pull = stands @ metric
        each = self.odds * (np.diag(metric) - 2 * pull + np.einsum("dk,dk->d", pull, stands)[:, None])
        moved = (self.share @ each).reshape(self.shape)
        return moved + moved.transpose(0, 2, 1)


def dense_between(weight: np.ndarray) -> np.ndarray:
    """[K, K] `between` of a table of weights [D, K]."""
    total = weight.sum(1)
    scaled = weight / np.sqrt(np.where(total > 0, total, 1.0))[:, None]
    return scaled.T @ scaled


def worst_error(information: np.ndarray, shown: np.ndarray) -> float:
    """The largest standard error of log(propensity) relative to rank 1, of ranks [K] with impressions; may be inf."""
    return float(np.sqrt(np.diag(resistance(information, 0))[shown].max()))


def make_design(assumed: Assumed, share: float, budget: int) -> Design | None:
    """A design over the queries that know most of relevant documents, at all ranks; None without such queries.

    Args:
      assumed: the log.
      share: of the sessions of a query that may be randomised.
      budget: how many numbers each of its tables may hold.
    """
    cells, k = assumed.cells, assumed.cells.arms
    queries, of_item = np.unique(cells.cluster, return_inverse=True)
    query = of_item[cells.item]
    mass = cells.impressions * np.exp(assumed.log_relevance[cells.item])
    mass /= cells.per_arm(mass)[cells.arm]  # so that ranks that few queries show count as much as others
    value = np.bincount(query, mass, len(queries))
    documents = np.bincount(of_item, minlength=len(queries))
    at_rank = csr_array((cells.impressions, (query, cells.arm)), shape=(len(queries), k))
    at_rank.sum_duplicates()
    value[np.diff(at_rank.indptr) < 2] = 0.0
    order = np.argsort(-value, kind="stable")
    size = np.cumsum(np.maximum(documents[order] * k, k * k))
    chosen = order[(size <= max(budget, size[0])) & (value[order] > 0)]
    if not len(chosen):
        return None
    chosen.sort()
    number = np.full(len(queries), -1)
    number[chosen] = np.arange(len(chosen))
    inside = number[query] >= 0
    item, arm, n = cells.item[inside], cells.arm[inside], cells.impressions[inside]
    items, row = np.unique(item, return_inverse=True)
    w = weights(cells.impressions, assumed.log_propensity[cells.arm] + assumed.log_relevance[cells.item])
    of_query = number[query[inside]]
    shown = at_rank[chosen].toarray()
    part = n / shown[of_query, arm]
    return Design(
        query=queries[chosen],
        share=csr_array((part, (of_query * k + arm, row)), shape=(len(chosen) * k, len(items))),
        odds=assumed.planned_odds(items),
        weight=_dense(row, arm, w[inside], (len(items), k)),
        rest=between(cells.where(~inside), w[~inside]),
        most=share * shown.max(1),
        most_at=share * shown,
    )


def _dense(row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape)
    out[row, column] = value
    return out


def epsilon_greedy(assumed: Assumed, sessions: float) -> Callable[[float], np.ndarray]:
    """From a number of randomised sessions to the information [K, K] that a log has with them.

    They are spread over queries as the log's sessions are; in each, the documents that are shown are put at random on
    the ranks that the query shows.

    Args:
      assumed: the log.
      sessions: of the log.
    """
    cells, k = assumed.cells, assumed.cells.arms
    queries, of_item = np.unique(cells.cluster, return_inverse=True)
    spread = csr_array((cells.impressions, (of_item[cells.item], cells.arm)), shape=(len(queries), k))
    spread.sum_duplicates()
    total = np.maximum(spread.sum(1), 1e-300)
    step = max(BLOCK // k, 1)

    def information(randomised: float) -> np.ndarray:
        out = np.zeros((k, k))
        for low in range(0, cells.items, step):
            high = min(low + step, cells.items)
            start, end = np.searchsorted(cells.item, [low, high])
            n = _dense(cells.item[start:end] - low, cells.arm[start:end], cells.impressions[start:end], (high - low, k))
            query = of_item[low:high]
            uniform = spread[query].toarray() / total[query, None]
            x = assumed.log_propensity + assumed.log_relevance[low:high, None]
            held = weights(n, x)
            added = uniform * n.sum(1)[:, None] * (randomised / sessions)
            out += dense_between(held + assumed.planned_odds(np.arange(low, high)) * added)
        return laplacian_of(out)

    return information


def least(error: Callable[[float], float], target: float, start: float, most: float, zero: float = math.inf) -> float:
    """The least number up to `most`, within some parts in a thousand, whose error is at most the target.

    Args:
      error: falls in its argument; 1 / error^2, the information, grows about linearly. May be infinite.
      target: above 0.
      start: a guess, above 0.
      most: above 0.
      zero: error(0), where it is known.

    Returns:
      inf where there is none.
    """

    def information(number: float) -> float:
        # What counts is above 1: what the target asks for.
        return min(target / found, 1e6) ** 2 if math.isfinite(found := error(number)) else 0.0

    low, below = 0.0, (target / zero) ** 2
    high = min(start, most)
    above = information(high)
    while above < 1:
        if high >= most:
            return math.inf
        slope = (above - below) / (high - low)
        further = high + 1.1 * (1 - above) / slope if slope > 0 else 16 * high
        low, below, high = high, above, min(max(further, 2 * high), 1e3 * high, most)
        above = information(high)
    weight = [1.0, 1.0]  # Illinois' method: an end that stays twice counts half
    for _ in range(60):
        if above <= 1 + CLOSE or high - low <= CLOSE * high:
            break
        gap = weight[0] * (1 - below), weight[1] * (above - 1)
        middle = low + (high - low) * gap[0] / (gap[0] + gap[1])
        middle = min(max(middle * (1 + CLOSE / 4), low + 0.01 * (high - low)), high - 0.01 * (high - low))
        found = information(middle)
        if found >= 1:
            high, above, weight = middle, found, [weight[0] / 2, 1.0]
        else:
            low, below, weight = middle, found, [1.0, weight[1] / 2]
    return high
