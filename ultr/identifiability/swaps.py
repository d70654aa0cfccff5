"""The swap plan: in which queries to exchange which ranks, so that few randomised sessions identify propensities.

A document that the log shows at one rank says nothing about propensities until it is shown at another. Sessions in
which ranks i and j of a query are exchanged add impressions to the cells (document of i, j) and (document of j, i); one
more impression of document d at rank j moves the information by p / (1 - p) x x^T, x = e_j minus where d stands so far.
The expected number of sessions is minimised under R_eff(1, k) <= target^2 for all ranks: a convex problem, solved by
conditional gradients (Frank and Wolfe), each step of which fills the swaps that gain most, under a limit per query.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.identifiability.assumed import PRIOR_SPREAD, Assumed
from ultr.identifiability.design import Design, epsilon_greedy, least, make_design, worst_error

BUDGETS = (1 << 19, 1 << 22)  # numbers per table: more queries where fewer do not suffice
ROUNDS, STEPS = 16, 12  # and more steps for more than 30 ranks
STILL = 0.001  # relative change of the sessions below which a round changes nothing
TOGETHER = 50  # pairs of ranks that are exchanged in one session, where nothing else is said
LITTLE = 0.05  # of the gain of the pairs so far that another pair of the same session must have
PARTS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # of the sessions that a plan of fewer swaps starts from
SPARSE = 1.05  # what that may cost in sessions


@dataclasses.dataclass(frozen=True)
class Swap:
    """Sessions of a query in which ranks are exchanged.

    Attributes:
      query: its name.
      ranks: pairs of 1-based ranks, all of which are exchanged in each of these sessions; no rank is in two pairs.
      sessions: how many.
    """

    query: str
    ranks: tuple[tuple[int, int], ...]
    sessions: int


@dataclasses.dataclass(frozen=True)
class SwapPlan:
    """The swaps that bring all ranks to the target with few randomised sessions.

    Attributes:
      swaps: most sessions first; empty where none are needed or none help.
      sessions: randomised ones, of all swaps.
      queries: how many have some.
      standard_error: the worst that the log has with them.
      reached: whether that is the target.
      reason: why there are no swaps, or why they do not suffice; else empty.
      epsilon_greedy_error: the worst standard error with as many epsilon-greedy sessions instead; NaN without swaps.
      epsilon_greedy_sessions: how many of those reach the target; inf where no number does.
    """

    swaps: tuple[Swap, ...]
    sessions: int
    queries: int
    standard_error: float
    reached: bool
    reason: str = ""
    epsilon_greedy_error: float = math.nan
    epsilon_greedy_sessions: float = math.nan

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """Pairs of ranks -> in how many sessions they are exchanged, most first."""
        out: dict[tuple[int, int], int] = {}
        for swap in self.swaps:
            for pair in swap.ranks:
                out[pair] = out.get(pair, 0) + swap.sessions
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    def to_json(self) -> list[dict[str, Any]]:
        """The swaps."""
        return [
            {"query": swap.query, "ranks": [list(pair) for pair in swap.ranks], "sessions": swap.sessions}
            for swap in self.swaps
        ]


def plan(
    assumed: Assumed, names: pa.ChunkedArray, *, target: float, sessions: float, share: float, pairs: int | None = None
) -> SwapPlan:
    """Plans swaps.

    Args:
      assumed: the log.
      names: [queries] of the vocabulary.
      target: the largest standard error of log(propensity) relative to rank 1 that is wanted.
      sessions: of the log.
      share: of the sessions that the log has of a query, how many may be randomised.
      pairs: at most so many pairs of ranks are exchanged in a session; None: up to 50.
    """
    shown = assumed.shown
    if not shown[0]:
        return SwapPlan((), 0, 0, math.inf, False, "nothing was shown at rank 1, with which ranks are compared")
    if shown.sum() < 2:
        return SwapPlan((), 0, 0, math.nan, False, "documents were shown at one rank only")
    before = worst_error(assumed.information, shown)
    if before <= target:
        return SwapPlan((), 0, 0, before, True, "the log reaches the target without swaps")
    randomised = epsilon_greedy(assumed, sessions)

    def error(number: float) -> float:
        return worst_error(randomised(number), shown)

    best, design = None, None
    for budget in BUDGETS:
        larger = make_design(assumed, share, budget)
        if larger is None or (design is not None and len(larger.query) == len(design.query)):
            break
        design = larger
        best = _Search(design, shown, target, pairs or TOGETHER).run()
        if best.error <= target:
            break
    if design is None or best is None or not len(best.query):
        return SwapPlan((), 0, 0, before, False, "no query shows documents at two ranks often enough to exchange them")
    total, reached = int(best.sessions.sum()), best.error <= target
    enough = least(error, target, 2.0 * total, 1e15, zero=before)
    return SwapPlan(
        swaps=_named(best, design, names),
        sessions=total,
        queries=len(np.unique(best.query)),
        standard_error=best.error,
        reached=reached,
        reason="" if reached else _short_of(share, len(design.query), assumed),
        epsilon_greedy_error=error(total),
        epsilon_greedy_sessions=math.ceil(enough) if math.isfinite(enough) else math.inf,
    )


def _short_of(share: float, queries: int, assumed: Assumed) -> str:
    of = "each query" if queries == len(np.unique(assumed.cells.cluster)) else f"the {queries:,} most telling queries"
    return f"{share:.0%} of the sessions of {of}, the most that is allowed, do not suffice"


@dataclasses.dataclass(frozen=True)
class _Entries:
    """N times some sessions of a query, with the worst standard error that all of them bring.

    query [N] of the design, partner [N, K] rank (from 0) with which each rank is exchanged, sessions [N].
    """

    query: np.ndarray
    partner: np.ndarray
    sessions: np.ndarray
    error: float = math.inf

    def times(self, factor: float) -> _Entries:
        return dataclasses.replace(self, sessions=self.sessions * factor)

    def take(self, which: Any, sessions: np.ndarray, error: float = math.inf) -> _Entries:
        return _Entries(self.query[which], self.partner[which], sessions, error)


class _Search:
    def __init__(self, design: Design, shown: np.ndarray, target: float, pairs: int) -> None:
        self.design, self.shown, self.target, self.pairs = design, shown, target, pairs
        self.free = np.flatnonzero(shown)[1:]  # without rank 1
        self.room = np.minimum(design.most_at[:, :, None], design.most_at[:, None, :])
        self.room[:, np.arange(len(shown)), np.arange(len(shown))] = 0.0
        self.all = float(self.room.max((1, 2)).sum())

    def run(self) -> _Entries:
        sessions = np.zeros(self.design.shape)
        total, step, still = self.all / 1000, 0, 0
        steps = max(STEPS, 2 * len(self.free) // 5)
        kept: list[_Entries] = []
        for turn in range(ROUNDS):
            for _ in range(steps):
                vertex = self._best(self.design.impressions(sessions), total, power=min(3.0 + turn, 8.0))
                size = 2 / (2 + step)
                kept = [v.times(1 - size) for v in kept if size < 1] + [vertex.times(size)]
                sessions = sessions * (1 - size) + self._tensor(kept[-1])
                step += 1
            error = functools.partial(self._error, self.design.impressions(sessions))
            scale = least(error, self.target, 1.0, self.all / total)
            scale = scale if math.isfinite(scale) else self.all / total
            kept = [_merged(kept).times(scale)]
            sessions, total = sessions * scale, min(total * scale, self.all)
            if not 0.5 < scale < 2:
                step = 0 if scale > 8 else 2
            still = still + 1 if abs(scale - 1) < STILL else 0
            if still == 3:
                break
        return self._sparse(kept[0])

    def _tensor(self, entries: _Entries) -> np.ndarray:
        """[Q, K, K] sessions of each query with two ranks exchanged."""
        out = np.zeros(self.design.shape)
        rank = np.arange(out.shape[1])
        np.add.at(out, (entries.query[:, None], rank, entries.partner), entries.sessions[:, None])
        out[:, rank, rank] = 0.0
        return out

    def _error(self, added: np.ndarray, scale: float = 1.0) -> float:
        return worst_error(self.design.information(scale * added), self.shown)

    def _best(self, added: np.ndarray, total: float, power: float) -> _Entries:
        """The exchanges that lower the errors most, `total` sessions of them, one kind for each query.

        What is lowered is the sum of R_eff^power over ranks: mostly the worst.
        """
        d = self.design
        s = d.information(added)[np.ix_(self.free, self.free)]
        r = np.linalg.inv(s + PRIOR_SPREAD**-2 * np.eye(len(s)))  # finite where nothing connects the ranks yet
        worst = np.diag(r) / np.diag(r).max()
        metric = np.zeros((len(self.shown),) * 2)
        metric[np.ix_(self.free, self.free)] = (r * worst ** (power - 1)) @ r
        gain = np.where(self.room > 0, d.gain(added, metric), 0.0)
        partner, value, room = self._exchanges(gain)
        order = np.argsort(-value, kind="stable")
        n = np.clip(total - (np.cumsum(room[order]) - room[order]), 0.0, room[order])
        used = (n > 0) & (value[order] > 0)
        query = order[used]
        return _Entries(query, partner[query], n[used])

    def _exchanges(self, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(partner [Q, K], gain [Q], sessions [Q]) of the pairs of each query that gain most, picked one by one."""
        queries, ranks = gain.shape[:2]
        every = np.arange(queries)
        partner = np.tile(np.arange(ranks, dtype=np.int16), (queries, 1))
        value, room = np.zeros(queries), np.full(queries, np.inf)
        for turn in range(min(self.pairs, ranks // 2)):
            i, j = np.divmod(gain.reshape(queries, -1).argmax(1), ranks)
            each = gain[every, i, j]
            picked = np.flatnonzero(each > LITTLE * value)
            if not len(picked):
                break
            i, j = i[picked], j[picked]
            partner[picked, i], partner[picked, j] = j, i
            value[picked] += each[picked]
            if not turn:
                room[picked] = self.room[picked, i, j]
                gain = np.where(self.room < room[:, None, None], 0.0, gain)
            for taken in (i, j):
                gain[picked, taken] = gain[picked, :, taken] = 0.0
        return partner, value, np.where(np.isfinite(room), room, 0.0)

    def _sparse(self, entries: _Entries) -> _Entries:
        """The fewest of the entries, in whole sessions, that cost hardly more than all of them."""
        if not len(entries.query):
            return entries
        whole = np.cumsum(entries.sessions)
        found: list[_Entries] = []
        sizes = {int(np.searchsorted(whole, part * whole[-1])) + 1 for part in PARTS}
        for size in sorted({min(size, len(whole)) for size in sizes}):
            part = entries.take(slice(size), entries.sessions[:size])
            start = 1.05 * whole[-1] / whole[size - 1]
            scale = least(functools.partial(self._whole_error, part), self.target, start, 1e3)
            found.append(self._whole(part, scale if math.isfinite(scale) else 1e3))
        good = [e for e in found if e.error <= self.target]
        if not good:
            return min(found, key=lambda e: e.error)
        fewest = min(e.sessions.sum() for e in good)
        return min((e for e in good if e.sessions.sum() <= SPARSE * fewest), key=lambda e: len(e.query))

    def _whole_error(self, entries: _Entries, scale: float) -> float:
        return self._whole(entries, scale).error

    def _whole(self, entries: _Entries, scale: float) -> _Entries:
        """Scaled, rounded to whole sessions within the limits, without those of none, with their exact error."""
        d, rank = self.design, np.arange(self.design.shape[1])
        moves = entries.partner != rank
        room = np.where(moves, d.most_at[entries.query], np.inf).min(1)
        n = np.minimum(np.rint(entries.sessions * scale), np.floor(room))
        used = np.zeros(d.most_at.shape)
        np.add.at(used, entries.query, n[:, None] * moves)
        of_rank = used[entries.query] / np.maximum(d.most_at[entries.query], 1e-300)
        of_query = np.bincount(entries.query, n, len(d.query)) / np.maximum(d.most, 1e-300)
        over = np.maximum(np.where(moves, of_rank, 0.0).max(1), of_query[entries.query])
        n = np.floor(n / np.maximum(over, 1.0))
        kept = n > 0
        out = entries.take(kept, n[kept].astype(np.int64))
        return out.take(slice(None), out.sessions, self._error(d.impressions(self._tensor(out))))


def _merged(vertices: list[_Entries]) -> _Entries:
    """Each kind of exchange of a query once, most sessions first."""
    query, partner, n = (
        np.concatenate([getattr(v, name) for v in vertices]) for name in ("query", "partner", "sessions")
    )
    # Equal rows have equal hashes, and others have not: a sum of 64-bit numbers that wraps around.
    factor = np.random.default_rng(0).integers(1, 1 << 63, partner.shape[1], np.uint64) | np.uint64(1)
    hashed = partner.astype(np.uint64) @ factor + query.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    _, first, which = np.unique(hashed, return_index=True, return_inverse=True)
    total = np.bincount(which, n, len(first))
    order = np.argsort(-total, kind="stable")
    return _Entries(query[first[order]], partner[first[order]], total[order])


def _named(entries: _Entries, design: Design, names: pa.ChunkedArray) -> tuple[Swap, ...]:
    name = names.take(pa.array(design.query[entries.query])).to_pylist()
    out = []
    for query, partner, n in zip(name, entries.partner.tolist(), entries.sessions.tolist(), strict=True):
        out.append(Swap(query, tuple((i + 1, j + 1) for i, j in enumerate(partner) if i < j), n))
    return tuple(sorted(out, key=lambda swap: -swap.sessions))
