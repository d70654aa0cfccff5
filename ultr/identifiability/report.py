"""`report`: what a click log can tell about examination, before anything is trained on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts
from ultr.errors import ConfigError
from ultr.identifiability.assumed import assume
from ultr.identifiability.features import FeatureTower, linear_tower
from ultr.identifiability.graph import (
    Component,
    Cut,
    components_of,
    sessions_needed,
    standard_errors,
    weakest_cut,
)
from ultr.identifiability.logger import Confounding, Variation, confounding, plain, variation
from ultr.identifiability.swaps import SwapPlan, plan
from ultr.identifiability.words import ASSUMPTION, numbers, words
from ultr.propensity.cells import Cells, first_ranks, known_cells, tally_of
from ultr.propensity.likelihood import bounded
from ultr.propensity.table import ranks_text

LEAST = 0.001  # target


@dataclasses.dataclass(frozen=True)
class Report:
    """What a log can tell about how much its K ranks are examined.

    Attributes:
      target: the relative standard error of propensities that is wanted.
      sessions: of the log (the sum of their weights).
      components: ranks that documents connect, with their errors relative to the first rank of their own component.
      impressions, clicks: [K] of documents that the vocabulary knows.
      standard_error: [K] the best reachable standard error of log(propensity) relative to rank 1, which is about its
        relative error; inf where the log does not connect the two.
      sessions_needed: [K] more sessions of the same kind that bring a rank to the target; inf where no number does.
      propensity: [K] relative to rank 1, as assumed for these numbers; NaN without impressions.
      cut: what limits the rank that is known worst; None where there is nothing to compare.
      variation: how much ranks vary.
      confounding: how rank and relevance go together.
      features: what a linear tower over document features could learn; None without features.
      plan: the swaps that reach the target.
      unsupported: 1-based ranks that documents connect with rank 1, but clicks do not: never clicked, or clicked on one
        side only, so that any propensity above or below some value is as likely. Theirs is assumed, not measured; the
        errors there are those of a log with more clicks. All connected ranks but rank 1 where that was never clicked.
      cells: the clicks and impressions that were looked at.
      warnings: what to know before using the numbers.
    """

    target: float
    sessions: float
    components: tuple[Component, ...]
    impressions: np.ndarray
    clicks: np.ndarray
    standard_error: np.ndarray
    sessions_needed: np.ndarray
    propensity: np.ndarray
    cut: Cut | None
    variation: Variation
    confounding: Confounding
    features: FeatureTower | None
    plan: SwapPlan
    cells: Cells = dataclasses.field(repr=False)
    unsupported: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def swaps(self) -> tuple[Any, ...]:
        """Those of the plan."""
        return self.plan.swaps

    @property
    def worst(self) -> int:
        """The 1-based rank with impressions that is known worst."""
        shown = np.flatnonzero(self.impressions > 0)
        return int(shown[np.argmax(self.standard_error[shown])]) + 1

    @property
    def identified(self) -> bool:
        """Whether documents and clicks connect every rank with impressions, at least two of them, with rank 1."""
        shown = self.impressions > 0
        return bool(shown[0]) and int(shown.sum()) > 1 and len(self.components) == 1 and not self.unsupported

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`; what is not finite becomes None."""
        worst = self.worst - 1
        needed = [int(n) if np.isfinite(n) else None for n in self.sessions_needed]
        return {
            "identified": self.identified,
            "assumption": ASSUMPTION,
            "target": self.target,
            "sessions": self.sessions,
            "components": [list(c.ranks) for c in self.components],
            "unsupported": list(self.unsupported),
            "standard_error": plain(self.standard_error),
            "standard_error_within": [plain(c) for c in self.components],
            "sessions_needed": needed,
            "worst": {
                "rank": self.worst,
                "standard_error": plain(float(self.standard_error[worst])),
                "sessions_needed": needed[worst],
            },
            "impressions": plain(self.impressions),
            "clicks": plain(self.clicks),
            "assumed_propensity": plain(self.propensity),
            "cut": self.cut.to_json() if self.cut else None,
            "variation": plain(self.variation),
            "confounding": plain(self.confounding),
            "features": plain(self.features),
            "swaps": self.plan.to_json(),
            "swap_plan": {
                "sessions": self.plan.sessions,
                "queries": self.plan.queries,
                "standard_error": plain(self.plan.standard_error),
                "reached": self.plan.reached,
                "reason": self.plan.reason,
                "epsilon_greedy": {
                    "standard_error": plain(self.plan.epsilon_greedy_error),
                    "sessions": plain(float(self.plan.epsilon_greedy_sessions)),
                },
            },
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """For people: plain words first, then the numbers."""
        return "\n".join([*words(self), "", *numbers(self)])


def report(
    source: ClickLog | Counts,
    *,
    target: float = 0.05,
    ranks: int | None = None,
    share: float = 0.5,
    pairs: int | None = None,
) -> Report:
    """What a click log can tell about examination, from its counts alone, before training.

    Documents that were shown at several ranks make a graph of the ranks, whose links are what they say about ratios of
    propensities; the effective resistance between two ranks is the least variance that any estimator without bias
    can have of the logarithm of their ratio (Cramer-Rao), under the position-based model: without trust bias, which
    would make clicks alpha relevance + beta.

    Args:
      source: a log, or its counts by rank or last click. Of a log, counts are made first.
      target: the relative standard error of propensities that is wanted, from .001.
      ranks: look at ranks 1 to this alone; None: at all.
      share: the swap plan randomises at most so many sessions of a query, as a share of those that the log has.
      pairs: at most so many pairs of ranks are exchanged in one of its sessions; None: up to 50.

    Raises:
      ConfigError: neither a log nor counts; a target, ranks or a share that make no sense.
      DataError: no clicks, or no document that the vocabulary knows.
    """
    if not LEAST <= target < 1:
        raise ConfigError(f"expected a target from {LEAST} to below 1, such as .05 for 5 %, found {target}")
    if pairs is not None and pairs < 1:
        raise ConfigError(f"expected at least one pair of ranks to exchange, found {pairs}")
    if not 0 < share <= 1:
        raise ConfigError(f"expected a share above 0 and at most 1, found {share}")
    counted, names = tally_of(source), source.vocabulary
    everything = known_cells(source, counted)
    cells = first_ranks(everything, ranks)
    assumed = assume(cells)
    error = standard_errors(assumed)
    unknown = float(counted.impressions.sum()) - float(everything.impressions.sum())
    tower = None
    if names.feature_names:
        document = _documents(counted, source.documents)
        tower = linear_tower(cells, assumed.probability, document, names.feature_blocks())
    planned = plan(assumed, names.query_names, target=target, sessions=counted.weight, share=share, pairs=pairs)
    return Report(
        target=target,
        sessions=counted.weight,
        components=components_of(assumed),
        impressions=cells.per_arm(cells.impressions),
        clicks=cells.per_arm(cells.clicks),
        standard_error=error,
        sessions_needed=sessions_needed(error, target, counted.weight),
        propensity=np.exp(assumed.log_propensity),
        cut=weakest_cut(assumed, error),
        variation=variation(assumed),
        confounding=confounding(assumed),
        features=tower,
        plan=planned,
        unsupported=_unsupported(cells, assumed.component),
        cells=cells,
        warnings=(*assumed.warnings, *_warnings(cells, unknown)),
    )


def _documents(counted: CellCounts, documents: int) -> np.ndarray:
    """[items] document id of each item of `known_cells`."""
    ids = counted.document[(counted.document > 0) & (counted.document <= documents)]
    return ids[np.append(True, ids[1:] != ids[:-1])]


def _unsupported(cells: Cells, component: np.ndarray) -> tuple[int, ...]:
    """1-based ranks of the component [arms] of rank 1 whose ratio to rank 1 clicks do not bound on both sides."""
    by_clicks = bounded(cells)[0]
    same = (by_clicks == by_clicks[0]) & (by_clicks[0] >= 0)
    same[0] = True
    return tuple((np.flatnonzero((component == component[0]) & (component >= 0) & ~same) + 1).tolist())


def _warnings(cells: Cells, unknown: float) -> list[str]:
    shown, clicked = cells.per_arm(cells.impressions), cells.per_arm(cells.clicks)
    out = []
    if len(empty := np.flatnonzero(shown == 0) + 1):
        out.append(f"nothing was shown at {ranks_text(empty)}")
    if len(never := np.flatnonzero((shown > 0) & (clicked == 0)) + 1):
        out.append(f"never clicked: {ranks_text(never)}; the errors there assume that examination falls as 1/rank")
    if unknown > 0:
        out.append(f"{unknown:,.0f} impressions of documents that the vocabulary does not know are left out")
    per_item = cells.per_item(cells.impressions)
    varied = per_item[np.bincount(cells.item, minlength=cells.items) > 1]
    if len(varied) and np.median(varied) < 10:
        out.append(
            f"half of the documents that are compared were shown at most {np.median(varied):.0f} times: the errors are "
            "those of a large log, and an estimate on this one may be further off, and biased"
        )
    return out
