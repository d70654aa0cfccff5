"""`report`: what a click log can tell about examination, before training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ultr import stopping
from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts, merge_extra
from ultr.errors import ConfigError
from ultr.files import json_values
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.linear_tower import LinearTowerLimits, linear_tower_limits
from ultr.identifiability.logging_policy import Confounding, RankVariation, measure_confounding, measure_variation
from ultr.identifiability.rank_graph import (
    RankComponent,
    RankCut,
    rank_components,
    sessions_needed,
    smallest_standard_errors,
    weakest_cut,
)
from ultr.identifiability.report_text import ASSUMPTION, number_tables, summary_lines
from ultr.identifiability.swap_plan import Swap, SwapPlan, plan_swaps
from ultr.propensity.arm_counts import ArmCounts, arm_counts_of_cells, count_clicks_above, first_ranks
from ultr.propensity.goodness_of_fit import GoodnessOfFit, goodness_of_fit_of_cells
from ultr.propensity.information import click_components
from ultr.text import ranks_text

SMALLEST_TARGET = 0.001
ALL_CLICKED = "every impression was clicked, so that nothing tells examination from attraction"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a log can tell about how much its K ranks are examined.

    Attributes:
      target: the relative standard error of propensities that is wanted.
      sessions: of the log (the sum of their weights).
      components: ranks that documents connect, with errors relative to the first rank of their own component.
      impressions, clicks: [K] of documents that the vocabulary knows.
      standard_error: [K] the smallest possible standard error of log(propensity) relative to rank 1, which is about its
        relative error; inf where the log does not connect the two.
      sessions_needed: [K] more sessions of the same kind that bring a rank to the target; inf where no number does.
      propensity: [K] relative to rank 1, as assumed for these numbers; NaN without impressions.
      cut: what limits the rank that is known worst; None where there is nothing to compare.
      variation: how much ranks vary.
      confounding: how strongly rank and relevance are confounded.
      features: what a linear tower over document features could learn; None without features.
      plan: the swaps that reach the target.
      counts: clicks and impressions that all this is computed from.
      fit: whether clicks are what the position-based model says, on which all these numbers rest.
      unsupported: 1-based ranks that documents connect with rank 1, but clicks do not: never clicked, or clicked on one
        side only, so that any propensity above or below some value is as likely. Their propensity is assumed, not
        measured; their errors are those of a log with more clicks. All connected ranks below rank 1 where rank 1 was
        never clicked, or where every impression was clicked.
      warnings: what to know before using the numbers.
    """

    target: float
    sessions: float
    components: tuple[RankComponent, ...]
    impressions: np.ndarray
    clicks: np.ndarray
    standard_error: np.ndarray
    sessions_needed: np.ndarray
    propensity: np.ndarray
    cut: RankCut | None
    variation: RankVariation
    confounding: Confounding
    features: LinearTowerLimits | None
    plan: SwapPlan
    counts: ArmCounts = dataclasses.field(repr=False)
    fit: GoodnessOfFit
    unsupported: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps of the plan."""
        return self.plan.swaps

    @property
    def worst(self) -> int:
        """The 1-based rank with impressions that is known worst."""
        shown = np.flatnonzero(self.impressions > 0)
        return int(shown[np.argmax(self.standard_error[shown])]) + 1

    @property
    def all_clicked(self) -> bool:
        """Whether every impression was clicked, so that nothing tells examination from attraction."""
        return bool((self.clicks == self.impressions).all())

    @property
    def identified(self) -> bool:
        """Whether documents and clicks connect every rank with impressions, at least two of them, with rank 1."""
        shown = self.impressions > 0
        return bool(shown[0]) and int(shown.sum()) > 1 and len(self.components) == 1 and not self.unsupported

    def to_json(self) -> dict[str, Any]:
        """Converts to numbers, lists and dictionaries for `json.dumps`; numbers that are not finite become None."""
        worst = self.worst - 1
        needed = [int(n) if np.isfinite(n) else None for n in self.sessions_needed]
        converted: dict[str, Any] = json_values(
            {
                "identified": self.identified,
                "assumption": ASSUMPTION,
                "target": self.target,
                "sessions": self.sessions,
                "components": [component.ranks for component in self.components],
                "unsupported": self.unsupported,
                "standard_error": self.standard_error,
                "standard_error_within": self.components,
                "sessions_needed": needed,
                "worst": {
                    "rank": self.worst,
                    "standard_error": self.standard_error[worst],
                    "sessions_needed": needed[worst],
                },
                "impressions": self.impressions,
                "clicks": self.clicks,
                "assumed_propensity": self.propensity,
                "cut": self.cut.to_json() if self.cut else None,
                "variation": self.variation,
                "confounding": self.confounding,
                "features": self.features,
                "swaps": self.plan.to_json(),
                "swap_plan": {
                    "sessions": self.plan.sessions,
                    "queries": self.plan.queries,
                    "standard_error": self.plan.standard_error,
                    "reached": self.plan.reached,
                    "reason": self.plan.reason,
                    "epsilon_greedy": {
                        "standard_error": self.plan.epsilon_greedy_error,
                        "sessions": float(self.plan.epsilon_greedy_sessions),
                    },
                },
                "goodness_of_fit": self.fit.to_json(),
                "warnings": self.warnings,
            }
        )
        return converted

    def text(self) -> str:
        """Formats the report: sentences first, then tables."""
        return "\n".join([*summary_lines(self), "", *number_tables(self)])


def report(
    source: ClickLog | Counts,
    *,
    target: float = 0.05,
    ranks: int | None = None,
    share: float = 0.5,
    pairs: int | None = None,
) -> Report:
    """Diagnoses what a click log can tell about examination, from its counts alone, before training.

    Documents that were shown at several ranks connect the ranks in a graph, whose conductances are the information
    about ratios of propensities. The effective resistance between two ranks is the smallest variance that an unbiased
    estimator of the logarithm of their ratio can have (Cramer-Rao) under the position-based model: without trust bias,
    which would make clicks alpha relevance + beta.

    Args:
      source: a log, or its counts by rank or last click. A log is counted first, in one pass. Counts by rank tell less
        about whether the model fits.
      target: the relative standard error of propensities that is wanted, from .001.
      ranks: look at ranks 1 to this only; None: at all ranks.
      share: of the log's sessions of a query that the swap plan may randomise.
      pairs: pairs of ranks that may be exchanged in one session of the plan; None: up to 50.

    Raises:
      ConfigError: neither a log nor counts; a target, ranks, share or pairs outside its range.
      DataError: no clicks, or no document that the vocabulary knows.
    """
    if not SMALLEST_TARGET <= target < 1:
        raise ConfigError(f"expected a target from {SMALLEST_TARGET} to below 1, such as .05 for 5 %, found {target}")
    if pairs is not None and pairs < 1:
        raise ConfigError(f"expected at least one pair of ranks to exchange, found {pairs}")
    if not 0 < share <= 1:
        raise ConfigError(f"expected a share above 0 and at most 1, found {share}")
    above, names = count_clicks_above(source), source.vocabulary
    counted = merge_extra(above)
    every_rank = arm_counts_of_cells(source, counted)
    counts = first_ranks(every_rank, ranks)
    model = assume_model(counts)
    stopping.check()
    error = smallest_standard_errors(model)
    unknown = float(counted.impressions.sum()) - float(every_rank.impressions.sum())
    tower = None
    if names.feature_names:
        document = item_documents(counted, source.documents)
        stopping.check()
        tower = linear_tower_limits(counts, model.click_probability, document, names.feature_blocks())
    stopping.check()
    plan = plan_swaps(model, names.query_names, target=target, sessions=counted.weight, share=share, pairs=pairs)
    cut = weakest_cut(model, error)
    stopping.check()
    if np.array_equal(counts.clicks, counts.impressions):
        error = np.where(np.arange(len(error)) > 0, np.inf, error)
        plan = dataclasses.replace(plan, swaps=(), sessions=0, reached=False, reason=ALL_CLICKED)
    return Report(
        target=target,
        sessions=counted.weight,
        components=rank_components(model),
        impressions=counts.sum_by_arm(counts.impressions),
        clicks=counts.sum_by_arm(counts.clicks),
        standard_error=error,
        sessions_needed=sessions_needed(error, target, counted.weight),
        propensity=np.exp(model.log_propensity),
        cut=cut,
        variation=measure_variation(model),
        confounding=measure_confounding(model),
        features=tower,
        plan=plan,
        unsupported=_unsupported_ranks(counts, model.component),
        counts=counts,
        fit=goodness_of_fit_of_cells(source, above, ranks=ranks),
        warnings=(*model.warnings, *_warnings(counts, unknown)),
    )


def item_documents(counted: CellCounts, documents: int) -> np.ndarray:
    """Returns the document id of each item of `arm_counts_of_cells`: [items]."""
    ids = counted.document[(counted.document > 0) & (counted.document <= documents)]
    return np.asarray(ids[np.append(True, ids[1:] != ids[:-1])])


def _unsupported_ranks(counts: ArmCounts, component: np.ndarray) -> tuple[int, ...]:
    """Lists the 1-based ranks that documents connect with rank 1, but clicks do not.

    Args:
      component: [arms] number of the component that documents connect.
    """
    by_clicks = click_components(counts)[0]
    supported = (by_clicks == by_clicks[0]) & (by_clicks[0] >= 0)
    supported[1:] &= not np.array_equal(counts.clicks, counts.impressions)
    supported[0] = True
    return tuple((np.flatnonzero((component == component[0]) & (component >= 0) & ~supported) + 1).tolist())


def _warnings(counts: ArmCounts, unknown: float) -> list[str]:
    shown, clicked = counts.sum_by_arm(counts.impressions), counts.sum_by_arm(counts.clicks)
    out = []
    if np.array_equal(counts.clicks, counts.impressions):
        out.append("every impression was clicked: check the click column, and whether rows without a click are missing")
    if len(empty := np.flatnonzero(shown == 0) + 1):
        out.append(f"nothing was shown at {ranks_text(empty)}")
    if len(never := np.flatnonzero((shown > 0) & (clicked == 0)) + 1):
        out.append(f"never clicked: {ranks_text(never)}; the errors there assume that examination falls as 1/rank")
    if unknown > 0:
        out.append(f"{unknown:,.0f} impressions of documents that the vocabulary does not know are left out")
    shown_per_item = counts.sum_by_item(counts.impressions)
    moved = shown_per_item[counts.arms_per_item > 1]
    if len(moved) and np.median(moved) < 10:
        out.append(
            f"half of the documents that are compared were shown at most {np.median(moved):.0f} times: the errors are "
            "those of a large log, and an estimate on this one may be further off, and biased"
        )
    return out
