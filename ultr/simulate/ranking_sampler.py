"""Rankings drawn from a policy, for many sessions at a time."""

from __future__ import annotations

import numpy as np

from ultr import stopping
from ultr.data import Collection
from ultr.simulate.policies import Policy

_SMALLEST = 16  # lists of at most 16, 32, 64, ... candidates are ranked together


class RankingSampler:
    """Draws the ranked lists that a policy shows.

    Args:
      collection: the documents.
      policy: the policy.
      scores: [D] scores of the documents by the policy.
      top: the most documents shown.
      seed: decides the exploration (`epsilon`, `swaps`).
    """

    def __init__(self, collection: Collection, policy: Policy, scores: np.ndarray, *, top: int, seed: int) -> None:
        self._offsets, self._scores, self._policy, self._top = collection.offsets, scores, policy, top
        self._temperature = 1.0 if policy.ranker == "random" else policy.temperature
        self._explore = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        self._best: np.ndarray | None = None

    def draw(self, query: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws [n, top] rows of the collection in displayed order, -1 beyond the end of a list.

        Args:
          query: [n] indices of lists.
          rng: draws the rankings where there is a temperature, and the order of equal scores.
        """
        start, size = self._offsets[query], np.diff(self._offsets)[query]
        places = self._places(size) if self._policy.epsilon > 0 else None
        rows = self._sampled(start, size, places, rng) if self._temperature > 0 else self._fixed(start, places, rng)
        inside = np.arange(self._top) < size[:, None]
        shown = np.where(inside, rows, -1)
        return self._swapped(shown, np.minimum(size, self._top)) if self._policy.swaps > 0 else shown

    def _fixed(self, start: np.ndarray, places: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        # Equal scores are ordered at random, the same in each session, and not by the order of the file.
        tie = rng.random(len(self._scores))
        if self._best is None:
            owner = np.repeat(np.arange(len(self._offsets) - 1), np.diff(self._offsets))
            self._best = np.lexsort((tie, -self._scores, owner))
        places = np.arange(self._top) if places is None else places
        return np.asarray(self._best[np.minimum(start[:, None] + places, len(self._best) - 1)])

    def _sampled(
        self, start: np.ndarray, size: np.ndarray, places: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        # By rising cost. -log of an exponential variable is Gumbel: adding it to score / temperature samples
        # Plackett-Luce.
        exponential = rng.standard_exponential((len(size), int(size.max())))
        out = np.zeros((len(size), self._top), np.int64)
        low, width = 0, _SMALLEST
        while low < size.max():
            stopping.check()
            part = np.flatnonzero((size > low) & (size <= width))
            if len(part):
                wide = min(width, exponential.shape[1])
                at = None if places is None else places[part]
                out[part] = self._sorted(start[part], size[part], exponential[part, :wide], at)
            low, width = width, width * 2
        return out

    def _sorted(
        self, start: np.ndarray, size: np.ndarray, exponential: np.ndarray, places: np.ndarray | None
    ) -> np.ndarray:
        width = exponential.shape[1]
        column = np.arange(width)
        inside = column < size[:, None]
        row = np.where(inside, start[:, None] + column, 0)
        cost = np.where(inside, np.log(exponential) - self._scores[row] / self._temperature, np.inf)
        keep = width if places is not None else min(self._top, width)
        first = np.broadcast_to(column, row.shape)
        if keep < width:
            first = np.argpartition(cost, keep - 1, axis=1)[:, :keep]
        order = np.argsort(np.take_along_axis(cost, first, 1), axis=1, kind="stable")
        first = np.take_along_axis(first, order, 1)
        if places is None:
            places = np.broadcast_to(np.minimum(np.arange(self._top), keep - 1), (len(row), self._top))
        return np.take_along_axis(row, np.take_along_axis(first, np.minimum(places, keep - 1), 1), 1)

    def _places(self, size: np.ndarray) -> np.ndarray:
        """Draws [n, top] the place in the policy's ranking that each rank shows; anything beyond the end of a list."""
        rng, n = self._explore, len(size)
        explored = rng.random((n, self._top)) < self._policy.epsilon
        pick = rng.random((n, self._top))
        out = np.zeros((n, self._top), np.int64)
        taken = np.zeros((n, 0), np.int64)  # places shown so far, in increasing order
        for rank in range(self._top):
            left = np.maximum(size - rank, 1)
            # The index among the documents that are left, then the place among all.
            place = np.where(explored[:, rank], np.minimum((pick[:, rank] * left).astype(np.int64), left - 1), 0)
            for i in range(rank):
                place = place + (taken[:, i] <= place)
            out[:, rank] = place
            taken = np.sort(np.concatenate([taken, place[:, None]], axis=1), axis=1)
        return out

    def _swapped(self, shown: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Exchanges pairs of neighbours at random."""
        rng, n = self._explore, len(size)
        first = rng.integers(0, 2, n)[:, None]
        chosen = rng.random((n, self._top // 2 + 1)) < self._policy.swaps
        place = np.arange(self._top)
        number, second = np.divmod(place - first, 2)
        partner = place + 1 - 2 * second
        there = (number >= 0) & (partner < size[:, None])
        swap = there & np.take_along_axis(chosen, np.maximum(number, 0), 1)
        return np.take_along_axis(shown, np.where(swap, partner, place), 1)
