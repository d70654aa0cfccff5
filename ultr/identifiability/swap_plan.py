"""The swap plan: in which queries to exchange which ranks, so that few randomised sessions identify propensities.

A document that the log shows at one rank says nothing about propensities until it is shown at another. Sessions in
which ranks i and j of a query are exchanged add impressions to the cells (document at i, j) and (document at j, i); one
more impression of document d at rank j adds p / (1 - p) x x^T to the information, where x is e_j minus the distribution
of d over ranks so far. The expected number of sessions is minimised under R_eff(1, k) <= target^2 for all ranks k: a
convex problem, solved by conditional gradients (Frank and Wolfe). Each step fills the swaps that gain most, under a
limit per query.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.identifiability.assumed_model import AssumedModel
from ultr.identifiability.swap_design import (
    SwapDesign,
    epsilon_greedy_information,
    largest_standard_error,
    make_swap_design,
    smallest_reaching,
)
from ultr.identifiability.swap_search import MAX_PAIRS, SwapSearch, SwapSessions

BUDGETS = (1 << 19, 1 << 22)  # numbers per table of a design: more queries where fewer do not suffice


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
      sessions: randomised sessions of all swaps.
      queries: number of queries with randomised sessions.
      standard_error: the largest of the log with them.
      reached: whether that is the target.
      reason: why there are no swaps, or why they do not suffice; else empty.
      epsilon_greedy_error: the largest standard error with as many epsilon-greedy sessions instead; NaN without swaps.
      epsilon_greedy_sessions: how many epsilon-greedy sessions reach the target; inf where no number does.
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
        """Pairs of ranks -> number of sessions that exchange them, most first."""
        out: dict[tuple[int, int], int] = {}
        for swap in self.swaps:
            for pair in swap.ranks:
                out[pair] = out.get(pair, 0) + swap.sessions
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    def to_json(self) -> list[dict[str, Any]]:
        """Lists the swaps for `json.dumps`."""
        return [
            {"query": swap.query, "ranks": [list(pair) for pair in swap.ranks], "sessions": swap.sessions}
            for swap in self.swaps
        ]


def plan_swaps(
    model: AssumedModel,
    query_names: pa.ChunkedArray,
    *,
    target: float,
    sessions: float,
    share: float,
    pairs: int | None = None,
) -> SwapPlan:
    """Plans swaps that bring all ranks to the target.

    Args:
      model: of the log.
      query_names: of the vocabulary, by query id.
      target: the largest standard error of log(propensity) relative to rank 1 that is wanted.
      sessions: of the log.
      share: of the log's sessions of a query that may be randomised.
      pairs: pairs of ranks that may be exchanged in one session; None: up to `MAX_PAIRS`.
    """
    shown = model.shown
    if not shown[0]:
        return SwapPlan((), 0, 0, math.inf, False, "nothing was shown at rank 1, with which ranks are compared")
    if shown.sum() < 2:
        return SwapPlan((), 0, 0, math.nan, False, "documents were shown at one rank only")
    before = largest_standard_error(model.information, shown)
    if before <= target:
        return SwapPlan((), 0, 0, before, True, "the log reaches the target without swaps")
    randomised = epsilon_greedy_information(model, sessions)

    def error(number: float) -> float:
        return largest_standard_error(randomised(number), shown)

    best, design = None, None
    for budget in BUDGETS:
        larger = make_swap_design(model, share, budget)
        if larger is None or (design is not None and len(larger.query) == len(design.query)):
            break
        design = larger
        best = SwapSearch(design, shown, target, pairs or MAX_PAIRS).run()
        if best.error <= target:
            break
    if design is None or best is None or not len(best.query):
        return SwapPlan((), 0, 0, before, False, "no query shows documents at two ranks often enough to exchange them")
    total, reached = int(best.sessions.sum()), best.error <= target
    enough = smallest_reaching(error, target, 2.0 * total, 1e15, error_at_zero=before)
    return SwapPlan(
        swaps=_named_swaps(best, design, query_names),
        sessions=total,
        queries=len(np.unique(best.query)),
        standard_error=best.error,
        reached=reached,
        reason="" if reached else _limit_reason(share, len(design.query), model),
        epsilon_greedy_error=error(total),
        epsilon_greedy_sessions=math.ceil(enough) if math.isfinite(enough) else math.inf,
    )


def _limit_reason(share: float, queries: int, model: AssumedModel) -> str:
    every = queries == len(np.unique(model.counts.query))
    which = "each query" if every else f"the {queries:,} most informative queries"
    return f"{share:.0%} of the sessions of {which}, the most that is allowed, do not suffice"


def _named_swaps(found: SwapSessions, design: SwapDesign, query_names: pa.ChunkedArray) -> tuple[Swap, ...]:
    names = query_names.take(pa.array(design.query[found.query])).to_pylist()
    out = []
    for query, partner, n in zip(names, found.partner.tolist(), found.sessions.tolist(), strict=True):
        out.append(Swap(query, tuple((i + 1, j + 1) for i, j in enumerate(partner) if i < j), n))
    return tuple(sorted(out, key=lambda swap: -swap.sessions))
