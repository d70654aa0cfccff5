"""The search for the swaps that reach a target with the fewest sessions."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from ultr import stopping
from ultr.identifiability.assumed_model import PRIOR_SPREAD
from ultr.identifiability.swap_design import SwapDesign, largest_standard_error, smallest_reaching

MAX_ROUNDS, STEPS_PER_ROUND = 16, 12  # with more steps for more than 30 ranks
UNCHANGED = 0.001  # relative change of the sessions below which a round counts as one without change
MAX_PAIRS = 50  # pairs of ranks that are exchanged in one session, unless the caller says otherwise
SMALLEST_GAIN = 0.05  # of the gain of a session's pairs so far, that another pair must have
PLAN_SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # of the sessions that plans with fewer swaps start from
SPARSE_COST = 1.05  # factor on the sessions that a plan with fewer swaps may cost


@dataclasses.dataclass(frozen=True)
class SwapSessions:
    """N kinds of sessions with swapped ranks, and the largest standard error of the log with all of them.

    Attributes:
      query: [N] number of the query in the design.
      partner: [N, K] rank (from 0) with which each rank is exchanged; itself where it stays.
      sessions: [N] number of sessions.
      error: largest standard error of the log with these sessions.
    """

    query: np.ndarray
    partner: np.ndarray
    sessions: np.ndarray
    error: float = math.inf

    def scaled(self, factor: float) -> SwapSessions:
        """Returns the same kinds with `factor` times the sessions."""
        return dataclasses.replace(self, sessions=self.sessions * factor)

    def select(self, which: np.ndarray | slice, sessions: np.ndarray) -> SwapSessions:
        """Returns some of the kinds, with other numbers of sessions."""
        return SwapSessions(self.query[which], self.partner[which], sessions)


class SwapSearch:
    """Minimises the sessions of a design that bring all ranks to the target, by conditional gradients."""

    def __init__(self, design: SwapDesign, shown: np.ndarray, target: float, pairs: int) -> None:
        """Prepares the search.

        Args:
          design: the queries whose ranks can be swapped.
          shown: [K] bool, ranks with impressions, rank 1 among them.
          target: the largest standard error that is wanted.
          pairs: pairs of ranks that may be exchanged in one session.
        """
        self.design, self.shown, self.target, self.pairs = design, shown, target, pairs
        self.free = np.flatnonzero(shown)[1:]  # without rank 1
        self.limit = np.minimum(design.max_sessions_at[:, :, None], design.max_sessions_at[:, None, :])
        self.limit[:, np.arange(len(shown)), np.arange(len(shown))] = 0.0
        self.total_limit = float(self.limit.max((1, 2)).sum())

    def run(self) -> SwapSessions:
        """Searches for the swaps; those that come closest to the target where it cannot be reached."""
        sessions = np.zeros(self.design.shape)
        total, step, unchanged = self.total_limit / 1000, 0, 0
        steps = max(STEPS_PER_ROUND, 2 * len(self.free) // 5)
        kept: list[SwapSessions] = []
        for turn in range(MAX_ROUNDS):
            for _ in range(steps):
                stopping.check()
                vertex = self._best_vertex(self.design.added_impressions(sessions), total, power=min(3.0 + turn, 8.0))
                size = 2 / (2 + step)
                kept = [v.scaled(1 - size) for v in kept if size < 1] + [vertex.scaled(size)]
                sessions = sessions * (1 - size) + self._as_tensor(kept[-1])
                step += 1
            error = functools.partial(self._error, self.design.added_impressions(sessions))
            scale = smallest_reaching(error, self.target, 1.0, self.total_limit / total)
            scale = scale if math.isfinite(scale) else self.total_limit / total
            kept = [_merge(kept).scaled(scale)]
            sessions, total = sessions * scale, min(total * scale, self.total_limit)
            if not 0.5 < scale < 2:
                step = 0 if scale > 8 else 2
            unchanged = unchanged + 1 if abs(scale - 1) < UNCHANGED else 0
            if unchanged == 3:
                break
        return self._sparsify(kept[0])

    def _as_tensor(self, swaps: SwapSessions) -> np.ndarray:
        """Counts the sessions of each query with two ranks exchanged: [Q, K, K]."""
        out = np.zeros(self.design.shape)
        rank = np.arange(out.shape[1])
        np.add.at(out, (swaps.query[:, None], rank, swaps.partner), swaps.sessions[:, None])
        out[:, rank, rank] = 0.0
        return out

    def _error(self, added: np.ndarray, scale: float = 1.0) -> float:
        return largest_standard_error(self.design.information(scale * added), self.shown)

    def _best_vertex(self, added: np.ndarray, total: float, power: float) -> SwapSessions:
        """Finds the exchanges that lower the errors most, `total` sessions of them, one kind per query.

        They lower the sum of R_eff^power over ranks, which is mostly the worst of them.

        Args:
          added: [D, K] impressions added so far.
        """
        d = self.design
        s = d.information(added)[np.ix_(self.free, self.free)]
        r = np.linalg.inv(s + PRIOR_SPREAD**-2 * np.eye(len(s)))  # finite where nothing connects the ranks yet
        worst = np.diag(r) / np.diag(r).max()
        metric = np.zeros((len(self.shown),) * 2)
        metric[np.ix_(self.free, self.free)] = (r * worst ** (power - 1)) @ r
        gain = np.where(self.limit > 0, d.gain(added, metric), 0.0)
        partner, value, limit = self._pick_exchanges(gain)
        order = np.argsort(-value, kind="stable")
        n = np.clip(total - (np.cumsum(limit[order]) - limit[order]), 0.0, limit[order])
        used = (n > 0) & (value[order] > 0)
        query = order[used]
        return SwapSessions(query, partner[query], n[used])

    def _pick_exchanges(self, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picks the pairs of each query that gain most, one by one: (partner [Q, K], gain [Q], sessions [Q])."""
        queries, ranks = gain.shape[:2]
        every = np.arange(queries)
        partner = np.tile(np.arange(ranks, dtype=np.int16), (queries, 1))
        value, limit = np.zeros(queries), np.full(queries, np.inf)
        for turn in range(min(self.pairs, ranks // 2)):
            i, j = np.divmod(gain.reshape(queries, -1).argmax(1), ranks)
            each = gain[every, i, j]
            picked = np.flatnonzero(each > SMALLEST_GAIN * value)
            if not len(picked):
                break
            i, j = i[picked], j[picked]
            partner[picked, i], partner[picked, j] = j, i
            value[picked] += each[picked]
            if not turn:
                limit[picked] = self.limit[picked, i, j]
                gain = np.where(self.limit < limit[:, None, None], 0.0, gain)
            for taken in (i, j):
                gain[picked, taken] = gain[picked, :, taken] = 0.0
        return partner, value, np.where(np.isfinite(limit), limit, 0.0)

    def _sparsify(self, swaps: SwapSessions) -> SwapSessions:
        """Keeps the fewest kinds, in whole sessions, that cost hardly more than all of them."""
        if not len(swaps.query):
            return swaps
        cumulative = np.cumsum(swaps.sessions)
        found: list[SwapSessions] = []
        sizes = {int(np.searchsorted(cumulative, share * cumulative[-1])) + 1 for share in PLAN_SHARES}
        for size in sorted({min(size, len(cumulative)) for size in sizes}):
            part = swaps.select(slice(size), swaps.sessions[:size])
            start = 1.05 * cumulative[-1] / cumulative[size - 1]
            scale = smallest_reaching(functools.partial(self._rounded_error, part), self.target, start, 1e3)
            found.append(self._rounded(part, scale if math.isfinite(scale) else 1e3))
        good = [swaps for swaps in found if swaps.error <= self.target]
        if not good:
            return min(found, key=lambda swaps: swaps.error)
        fewest = min(swaps.sessions.sum() for swaps in good)
        affordable = (swaps for swaps in good if swaps.sessions.sum() <= SPARSE_COST * fewest)
        return min(affordable, key=lambda swaps: len(swaps.query))

    def _rounded_error(self, swaps: SwapSessions, scale: float) -> float:
        return self._rounded(swaps, scale).error

    def _rounded(self, swaps: SwapSessions, scale: float) -> SwapSessions:
        """Scales, rounds to whole sessions within the limits, drops kinds without any, and computes the exact error."""
        d, rank = self.design, np.arange(self.design.shape[1])
        moves = swaps.partner != rank
        limit = np.where(moves, d.max_sessions_at[swaps.query], np.inf).min(1)
        n = np.minimum(np.rint(swaps.sessions * scale), np.floor(limit))
        used = np.zeros(d.max_sessions_at.shape)
        np.add.at(used, swaps.query, n[:, None] * moves)
        rank_load = used[swaps.query] / np.maximum(d.max_sessions_at[swaps.query], 1e-300)
        query_load = np.bincount(swaps.query, n, len(d.query)) / np.maximum(d.max_sessions, 1e-300)
        load = np.maximum(np.where(moves, rank_load, 0.0).max(1), query_load[swaps.query])
        n = np.floor(n / np.maximum(load, 1.0))
        kept = n > 0
        out = swaps.select(kept, n[kept].astype(np.int64))
        return dataclasses.replace(out, error=self._error(d.added_impressions(self._as_tensor(out))))


def _merge(vertices: list[SwapSessions]) -> SwapSessions:
    """Adds up equal kinds of exchange, most sessions first."""
    query = np.concatenate([v.query for v in vertices])
    partner = np.concatenate([v.partner for v in vertices])
    n = np.concatenate([v.sessions for v in vertices])
    # Equal rows have equal hashes, and others do not: a sum of 64-bit numbers that wraps around.
    factor = np.random.default_rng(0).integers(1, 1 << 63, partner.shape[1], np.uint64) | np.uint64(1)
    hashed = partner.astype(np.uint64) @ factor + query.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    _, first, which = np.unique(hashed, return_index=True, return_inverse=True)
    total = np.bincount(which, n, len(first))
    order = np.argsort(-total, kind="stable")
    return SwapSessions(query[first[order]], partner[first[order]], total[order])
