"""What sessions with other rankings would add to a log's information about propensities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from ultr import stopping
from ultr.identifiability.assumed_model import AssumedModel
from ultr.propensity.information import (
    arm_conductances,
    information_weights,
    laplacian_of_conductances,
    relative_covariance,
)

TOLERANCE = 0.004  # relative width of the bracket, or excess of information, at which a search for a number ends
BLOCK_SIZE = 1 << 22  # (document, rank) cells per block


@dataclasses.dataclass(frozen=True)
class SwapDesign:
    """Queries of a log in which ranks can be swapped; D documents, Q queries, K ranks.

    In a session with ranks i and j swapped, the documents that the query has at i move to j and those at j to i, in the
    proportions in which the log has them there.

    Attributes:
      query: [Q] query ids.
      share: [Q * K, D] sparse; a document's share of the impressions of its query at a rank.
      odds: [D, K] information that one more impression adds.
      weight: [D, K] information that the log has of a document at a rank.
      other_conductance: [K, K] conductances between ranks from all other documents.
      max_sessions: [Q] sessions of each query that may be randomised.
      max_sessions_at: [Q, K] those of them that may exchange a rank.
    """

    query: np.ndarray
    share: csr_array
    odds: np.ndarray
    weight: np.ndarray
    other_conductance: np.ndarray
    max_sessions: np.ndarray
    max_sessions_at: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Q, K, K), of arrays of sessions per query and pair of ranks."""
        queries, ranks = self.max_sessions_at.shape
        return queries, ranks, ranks

    def added_impressions(self, sessions: np.ndarray) -> np.ndarray:
        """Computes the impressions, [D, K], that sessions of each swap, [Q, K, K] symmetric, add."""
        return np.asarray(self.share.T @ sessions.reshape(-1, sessions.shape[-1]))

    def information(self, impressions: np.ndarray) -> np.ndarray:
        """Computes the information with impressions, [D, K], added: Laplacian [K, K]."""
        conductance = dense_conductances(self.weight + self.odds * impressions)
        return laplacian_of_conductances(conductance + self.other_conductance)

    def gain(self, impressions: np.ndarray, metric: np.ndarray) -> np.ndarray:
        """Differentiates trace(metric S), S the information, by sessions that swap two ranks of a query: [Q, K, K].

        Args:
          impressions: [D, K] added so far.
          metric: [K, K] symmetric.
        """
        weight = self.weight + self.odds * impressions
        # An impression of document d at rank j adds odds x x^T, with x = e_j minus the distribution of d over ranks.
        distribution = weight / weight.sum(1)[:, None]
        pull = distribution @ metric
        each = self.odds * (np.diag(metric) - 2 * pull + np.einsum("dk,dk->d", pull, distribution)[:, None])
        moved = (self.share @ each).reshape(self.shape)
        return np.asarray(moved + moved.transpose(0, 2, 1))


def dense_conductances(weight: np.ndarray) -> np.ndarray:
    """Computes `arm_conductances`, [K, K], from a dense table of weights [D, K]."""
    total = weight.sum(1)
    scaled = weight / np.sqrt(np.where(total > 0, total, 1.0))[:, None]
    return np.asarray(scaled.T @ scaled)


def largest_standard_error(information: np.ndarray, shown: np.ndarray) -> float:
    """Computes the largest standard error of log(propensity) relative to rank 1, over ranks `shown` [K]; may be inf."""
    return float(np.sqrt(np.diag(relative_covariance(information, 0))[shown].max()))


def make_swap_design(model: AssumedModel, share: float, budget: int) -> SwapDesign | None:
    """Makes a design over the queries that tell most about relevant documents, at all ranks; None without such queries.

    Args:
      model: of the log.
      share: of the sessions of a query that may be randomised.
      budget: how many numbers each table of the design may hold.
    """
    counts, k = model.counts, model.counts.arms
    queries, item_query = np.unique(counts.query, return_inverse=True)
    query = item_query[counts.item]
    mass = counts.impressions * np.exp(model.log_relevance[counts.item])
    mass /= counts.sum_by_arm(mass)[counts.arm]  # so that ranks that few queries show count as much as others
    value = np.bincount(query, mass, len(queries))
    documents = np.bincount(item_query, minlength=len(queries))
    at_rank = csr_array((counts.impressions, (query, counts.arm)), shape=(len(queries), k))
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
    item, arm, n = counts.item[inside], counts.arm[inside], counts.impressions[inside]
    items, row = np.unique(item, return_inverse=True)
    log_probability = model.log_propensity[counts.arm] + model.log_relevance[counts.item]
    w = information_weights(counts.impressions, log_probability)
    of_query = number[query[inside]]
    shown = at_rank[chosen].toarray()
    part = n / shown[of_query, arm]
    return SwapDesign(
        query=queries[chosen],
        share=csr_array((part, (of_query * k + arm, row)), shape=(len(chosen) * k, len(items))),
        odds=model.planned_odds(items),
        weight=_dense(row, arm, w[inside], (len(items), k)),
        other_conductance=arm_conductances(counts.select(~inside), w[~inside]),
        max_sessions=share * shown.max(1),
        max_sessions_at=share * shown,
    )


def _dense(row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape)
    out[row, column] = value
    return out


def epsilon_greedy_information(
    model: AssumedModel, sessions: float, *, block_size: int = BLOCK_SIZE
) -> Callable[[float], np.ndarray]:
    """Returns a function from a number of randomised sessions to the log's information with them, [K, K].

    They are distributed over queries like the log's sessions; each puts the documents that are shown at random on the
    ranks that the query shows.

    Args:
      model: of the log.
      sessions: of the log.
      block_size: (document, rank) cells that are held at once.
    """
    counts, k = model.counts, model.counts.arms
    queries, item_query = np.unique(counts.query, return_inverse=True)
    at_rank = csr_array((counts.impressions, (item_query[counts.item], counts.arm)), shape=(len(queries), k))
    at_rank.sum_duplicates()
    total = np.maximum(at_rank.sum(1), 1e-300)
    step = max(block_size // k, 1)

    def information(randomised: float) -> np.ndarray:
        out = np.zeros((k, k))
        for low in range(0, counts.items, step):
            stopping.check()
            high = min(low + step, counts.items)
            start, end = np.searchsorted(counts.item, [low, high])
            place = counts.item[start:end] - low, counts.arm[start:end]
            n = _dense(*place, counts.impressions[start:end], (high - low, k))
            query = item_query[low:high]
            uniform = at_rank[query].toarray() / total[query, None]
            log_probability = model.log_propensity + model.log_relevance[low:high, None]
            held = information_weights(n, log_probability)
            added = uniform * n.sum(1)[:, None] * (randomised / sessions)
            out += dense_conductances(held + model.planned_odds(np.arange(low, high)) * added)
        return laplacian_of_conductances(out)

    return information


def smallest_reaching(
    error: Callable[[float], float], target: float, start: float, largest: float, *, error_at_zero: float = math.inf
) -> float:
    """Finds the smallest number up to `largest` whose error is at most the target, to 0.4 %; inf where there is none.

    The number that is returned reaches the target.

    Args:
      error: falls in its argument; 1 / error^2, the information, grows about linearly. May be infinite.
      target: above 0.
      start: a guess, above 0.
      largest: above 0.
      error_at_zero: error(0), where it is known.
    """
    from scipy.optimize import brentq

    def information(number: float) -> float:
        # In units of the information at the target; much more than that need not be told apart.
        return min(target / found, 1e6) ** 2 if math.isfinite(found := error(number)) else 0.0

    low, below = 0.0, (target / error_at_zero) ** 2
    if below >= 1:
        return 0.0
    high = min(start, largest)
    above = information(high)
    while above < 1:
        if high >= largest:
            return math.inf
        slope = (above - below) / (high - low)
        further = high + 1.1 * (1 - above) / slope if slope > 0 else 16 * high
        low, below, high = high, above, min(max(further, 2 * high), 1e3 * high, largest)
        above = information(high)
    evaluated = {low: below, high: above}

    def excess(number: float) -> float:
        if number not in evaluated:
            evaluated[number] = information(number)
        if 1 <= evaluated[number] <= 1 + TOLERANCE:
            return 0.0  # ends the search
        return evaluated[number] - (1 + 1e-9)  # just above the target, which rounding may miss

    brentq(excess, low, high, rtol=TOLERANCE)
    return min(number for number, found in evaluated.items() if found >= 1)
