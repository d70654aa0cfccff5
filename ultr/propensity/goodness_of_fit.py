"""`goodness_of_fit`: whether clicks are what the position-based model says, and what follows for a curve if not.

Four checks on counts by document, rank and last click, with p-values adjusted over them (Holm):

  last-click   of two users who clicked above, the one who clicked nearer examines as much (against: browsing models)
  click-above  a click at the first rank leaves the examination below as it is (against: cascades)
  trust        documents of low and high relevance have the same curve (against: false clicks that fall with the rank)
  noise        the same (against: false clicks that are as frequent at every rank)

The first two are exact conditional tests (`clicks_above`), right under trust bias and noise too; the others
(`curve_by_relevance`) allow for an examination that depends on the last click, where the first ones found that.
Where a check fails, curves of the position-based model are wrong by more than their intervals say: `widened` takes the
curves of models that allow for it into the interval, or withholds the curve.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.special import ndtr

from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts
from ultr.errors import UltrError
from ultr.files import json_values
from ultr.holm import holm
from ultr.propensity.alternative_curves import AlternativeCurve, affine_curve, browsing_curve
from ultr.propensity.arm_counts import count_clicks_above
from ultr.propensity.clicks_above import (
    ContextCells,
    after_first,
    classes_of,
    common_ratio,
    context_cells,
    nearness,
    right_below,
    stratified_score,
)
from ultr.propensity.curve_by_relevance import (
    interactions,
    low_over_high,
    main_component,
    noise_shape,
    trust_shape,
)
from ultr.propensity.misfit_text import check_sentence, model_lines, verdict_lines
from ultr.propensity.propensities import NORMAL_QUANTILE, Propensities

LAST_CLICK, CLICK_ABOVE, TRUST, NOISE = CHECKS = ("last-click", "click-above", "trust", "noise")
CASCADES = "cascade"  # the check of clicks above where it fails in the direction of a cascade
LEVEL = 0.02  # of all checks of a log together: of a hundred logs that fit, two are expected to be called misfits
CHECKED_RANKS = 50  # the first ranks, which are checked
FEWEST_SHOWN = (
    10  # times that a document was shown from which its relevance is told; below, the corrections are too rough
)
MOST_CELLS = 400_000  # of the documents that are shown most, which are checked
# A check that would miss a doubling of examination is not made: so many standard errors are found in 80 % of all logs.
NOTICED, DOUBLED = 2.8, math.log(2)
CASCADE = 0.95  # where a click at the first rank leaves less of the examination below than this, curves are withheld

ONLY_BY_RANK = "counts by rank do not tell what was clicked above: give the log, or its counts by last click"
UNEVEN_WEIGHTS = "the weights of sessions are not whole numbers, so that chance is not known"
WEIGHTED = (
    "sessions have weights that need not be copies of equal sessions, so that chance is not known; intervals count a "
    "session of weight w as w sessions"
)
TOO_FEW_RANKS = "the log has too few ranks for it"
ONE_RANK_COMPARED = "no document with clicks connects two ranks"
TOO_FEW_CLICKS = "too few clicks to notice a doubling"
ALL_CLICKED = "every impression was clicked"
ALWAYS_OR_NEVER = "the documents that it compares are always clicked at a rank, or never"
TOO_FEW_UNCLICKED = "too few impressions without a click to tell chance from a misfit"
FEWEST_UNCLICKED = 10  # impressions of the compared documents; with fewer, scores are not normal
NOT_IN_CASCADE = "how far users read depends on the documents above, which no curve by document allows for"
WITHHELD = (
    "withheld: less is examined below a click, as in a cascade, so that no curve by rank holds (--no-check gives that "
    "of the position-based model)"
)
NO_ALTERNATIVE = "no interval: the log does not fit the position-based model, and no other curve can be estimated"


@dataclasses.dataclass(frozen=True)
class Check:
    """A check of one assumption of the position-based model.

    Attributes:
      name: one of `CHECKS`.
      z: the statistic in standard deviations; NaN where the check was not made.
      p_value: two-sided for `last-click` and `click-above`, one-sided for the others, which are about one direction.
      adjusted: the p-value adjusted over the checks that were made (Holm).
      effect: a ratio of examinations, 1 where the assumption holds. `last-click`: right below the last click, over
        farther below it. `click-above`: below a click at the first rank, over no click above. `trust`, `noise`: the
        curve of the least relevant documents over that of the most relevant (half of the clicks each), at `rank`.
      rank: the lowest rank at which documents of both kinds compare with rank 1; None for the first two.
      noticed: the smallest such ratio above 1 that this check finds in about 80 % of logs of this size, made by itself;
        smaller misfits are likely to be missed. For `last-click`, between the nearest and the farthest click.
      reason: why the check was not made; empty where it was.
    """

    name: str
    z: float = math.nan
    p_value: float = math.nan
    adjusted: float = math.nan
    effect: float = math.nan
    rank: int | None = None
    noticed: float = math.nan
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the assumption is rejected."""
        return self.adjusted < LEVEL

    @property
    def sentence(self) -> str:
        """What the check found."""
        return check_sentence(self)


@dataclasses.dataclass(frozen=True)
class GoodnessOfFit:
    """Whether the position-based model fits a log.

    Attributes:
      checks: one of each name in `CHECKS`.
      curve: [K] examination by rank relative to rank 1 under the position-based model (conditional likelihood); NaN
        where the log does not support it.
      alternatives: the curves of models that allow for what was rejected.
      impossible: checks that failed and whose alternative curve cannot be estimated.
    """

    checks: tuple[Check, ...]
    curve: np.ndarray
    alternatives: tuple[AlternativeCurve, ...] = ()
    impossible: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks whose assumption is rejected."""
        return tuple(check.name for check in self.checks if check.failed)

    @property
    def fits(self) -> bool | None:
        """Whether no assumption is rejected; None where no check could be made."""
        if all(check.reason for check in self.checks):
            return None
        return not self.failed

    @property
    def cascade(self) -> bool:
        """Whether clicks end reading so often that no curve by rank is kept."""
        return any(c.name == CLICK_ABOVE and c.failed and c.effect < CASCADE for c in self.checks)

    @property
    def models(self) -> tuple[str, ...]:
        """The methods of the registry that allow for what was rejected."""
        failed = set(self.failed)
        if self.cascade:
            return ("dbn", "sdbn", "ccm")
        above = failed & {LAST_CLICK, CLICK_ABOVE}
        unexplained = failed & {TRUST, NOISE}
        return (("ubm",) if above else ()) + (("trust", "affine-ips") if unexplained else ())

    @property
    def off(self) -> tuple[float, int] | None:
        """The largest relative difference of a curve that is not the position-based model's from it, and its rank."""
        found = None
        for other in self.alternatives:
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = other.value / self.curve - 1
            for k in np.flatnonzero(np.isfinite(ratio)).tolist():
                if found is None or abs(ratio[k]) > abs(found[0]):
                    found = float(ratio[k]), k + 1
        return found

    def text_for(self, checks: Collection[str]) -> str:
        """Says which assumptions of a model fail; empty where none does.

        Args:
          checks: those of `CHECKS` that contradict the model; `CASCADES` for one that has examination depend on clicks
            above, but not end with satisfaction.
        """
        also = (CLICK_ABOVE,) if CASCADES in checks and self.cascade else ()
        return "\n".join(model_lines(self, (*checks, *also)))

    def text(self) -> str:
        """Says whether the model fits, what fails, how far the curve can be trusted, and what to train instead."""
        return "\n".join(verdict_lines(self))

    def to_json(self) -> dict[str, Any]:
        """Converts to numbers, lists and dictionaries for `json.dumps`; numbers that are not finite become None."""
        off = self.off
        checks = [
            {field.name: getattr(check, field.name) for field in dataclasses.fields(check)}
            | {"failed": check.failed, "sentence": check.sentence}
            for check in self.checks
        ]
        converted: dict[str, Any] = json_values(
            {
                "fits": self.fits,
                "level": LEVEL,
                "checks": checks,
                "failed": self.failed,
                "cascade": self.cascade,
                "models": self.models,
                "off": None if off is None else {"relative": off[0], "rank": off[1]},
                "alternatives": self.alternatives,
                "text": self.text(),
            }
        )
        return converted

    def widened(self, found: Propensities) -> Propensities:
        """Returns a curve whose intervals allow for the misfit; the same curve where the model fits.

        The interval of a rank then reaches over the curve's own interval and the 99 % intervals of the alternative
        curves, and the standard error is that of a 95 % interval of this width on the log scale. In a cascade the
        values are withheld, since examination depends on which documents stand above. The reasons are in `unsupported`
        and `warnings`.

        Args:
          found: examination relative to rank 1, by any estimator.
        """
        if not self.failed:
            return found
        value, error, interval = found.value.copy(), found.standard_error.copy(), found.interval.copy()
        reasons = dict(found.unsupported)
        for k in range(1, len(value)):
            if not math.isfinite(value[k]):
                continue
            if self.cascade:
                value[k], reasons[k + 1] = math.nan, WITHHELD
            reach = None if self.cascade else self._reach(k)
            if reach is not None and value[k] > 0:
                interval[k] = np.fmin(interval[k, 0], reach[0]), np.fmax(interval[k, 1], reach[1])
                error[k] = value[k] * math.log(interval[k, 1] / interval[k, 0]) / (2 * NORMAL_QUANTILE)
            elif value[k] != 0:
                interval[k] = error[k] = math.nan
                reasons.setdefault(k + 1, NO_ALTERNATIVE)
        return dataclasses.replace(
            found,
            value=value,
            standard_error=error,
            interval=interval,
            unsupported=dict(sorted(reasons.items())),
            warnings=(*found.warnings, *verdict_lines(self)),
            covariance=None,
        )

    def _reach(self, k: int) -> tuple[float, float] | None:
        """Returns the ends of what the alternatives say of the rank of index k; None where one says nothing."""
        if self.impossible or any(k >= len(a.value) or not np.isfinite(a.interval[k]).all() for a in self.alternatives):
            return None
        ends = np.array([a.interval[k] for a in self.alternatives])
        return float(ends[:, 0].min()), float(ends[:, 1].max())


def goodness_of_fit(source: ClickLog | Counts, *, ranks: int | None = None) -> GoodnessOfFit:
    """Checks whether the clicks of a log are what the position-based model says.

    Args:
      source: a log, which is streamed once, or its counts; those by rank allow for two of the four checks.
      ranks: look at ranks 1 to this only; None: at all ranks, up to `CHECKED_RANKS`.

    Raises:
      ConfigError: neither a log nor counts.
      DataError: no clicks, no document that the vocabulary knows, or more than `MAX_RANKS` ranks.
    """
    return goodness_of_fit_of_cells(source, count_clicks_above(source), ranks=ranks)


def goodness_of_fit_of_cells(
    source: ClickLog | Counts, counted: CellCounts, *, ranks: int | None = None
) -> GoodnessOfFit:
    """Checks the position-based model as `goodness_of_fit` does, on counts that are there.

    Args:
      source: gives the documents and the vocabulary.
      counted: what `count_clicks_above` returns for it.
    """
    looked_at = min(source.ranks, CHECKED_RANKS, ranks or source.ranks)
    cells = context_cells(source, counted, ranks=looked_at, most=MOST_CELLS)
    nothing = np.full(looked_at, np.nan)
    whole = (np.mod(cells.impressions, 1) == 0).all() and (np.mod(cells.clicks, 1) == 0).all()
    copies = _weights_are_copies(source)
    if len(cells.clicks) and (cells.clicks == cells.impressions).all():
        return GoodnessOfFit(tuple(Check(name, reason=ALL_CLICKED) for name in CHECKS), nothing)
    if not copies or not whole or not cells.clicks.sum():
        reason = WEIGHTED if not copies else TOO_FEW_CLICKS if whole else UNEVEN_WEIGHTS
        return GoodnessOfFit(tuple(Check(name, reason=reason) for name in CHECKS), nothing)
    above = [_check_last_click(cells), _check_click_above(cells)]
    dependent = bool((holm([check.p_value for check in above]) < LEVEL).any())
    try:
        main = main_component(cells.by_rank())
        checks = [*above, *_check_relevance(cells.shown_often(FEWEST_SHOWN), dependent)]
    except (UltrError, np.linalg.LinAlgError) as error:
        return GoodnessOfFit((*above, *(Check(name, reason=str(error)) for name in (TRUST, NOISE))), nothing)
    adjusted = holm([check.p_value for check in checks]).tolist()
    checks = [dataclasses.replace(check, adjusted=p) for check, p in zip(checks, adjusted, strict=True)]
    a = main.log_propensity
    found = GoodnessOfFit(tuple(checks), np.exp(a - a[0]) if math.isfinite(a[0]) else nothing)
    if found.cascade:  # under which the others are not known to be right
        rest = (Check(check.name, reason=check.reason or NOT_IN_CASCADE) for check in checks[2:])
        return dataclasses.replace(found, checks=(*checks[:2], *rest))
    return _with_alternatives(found, cells) if found.failed else found


def _weights_are_copies(source: ClickLog | Counts) -> bool:
    if isinstance(source, ClickLog):
        return source.weights_are_copies
    return (source.identity or {}).get("weights") is None


def _with_alternatives(found: GoodnessOfFit, cells: ContextCells) -> GoodnessOfFit:
    """Adds the curves of models that allow for what failed."""
    alternatives, impossible = list[AlternativeCurve](), list[str]()
    for names in ((LAST_CLICK, CLICK_ABOVE), (TRUST, NOISE)):
        if failed := [name for name in names if name in found.failed]:
            try:
                curve = affine_curve(cells.by_rank()) if TRUST in names else browsing_curve(cells)
            except UltrError:
                curve = None
            if curve is None:
                impossible += failed
            else:
                alternatives.append(curve)
    return dataclasses.replace(found, alternatives=tuple(alternatives), impossible=tuple(impossible))


def _check_last_click(cells: ContextCells) -> Check:
    if cells.last is None:
        return Check(LAST_CLICK, reason=ONLY_BY_RANK)
    if cells.ranks < 3:
        return Check(LAST_CLICK, reason=TOO_FEW_RANKS)
    return _dependence(LAST_CLICK, cells, nearness(cells), right_below(cells))


def _check_click_above(cells: ContextCells) -> Check:
    if cells.last is None:
        return Check(CLICK_ABOVE, reason=ONLY_BY_RANK)
    if cells.ranks < 2:
        return Check(CLICK_ABOVE, reason=TOO_FEW_RANKS)
    return _dependence(CLICK_ABOVE, cells, after_first(cells), after_first(cells))


def _dependence(name: str, cells: ContextCells, contrast: np.ndarray, groups: np.ndarray) -> Check:
    """Tests a contrast within documents and ranks, and estimates the ratio between its two groups."""
    score = stratified_score(cells, contrast)
    if not DOUBLED * math.sqrt(score.variance) > NOTICED:
        used = np.isfinite(contrast)
        return Check(name, reason=_too_little(cells.impressions[used], cells.clicks[used]))
    noticed = math.exp(NOTICED / math.sqrt(score.variance))
    return Check(name, score.z, float(2 * ndtr(-abs(score.z))), effect=common_ratio(cells, groups), noticed=noticed)


def _check_relevance(cells: ContextCells, dependent: bool) -> list[Check]:
    """Makes the checks of trust and noise.

    Args:
      cells: of documents that were shown often enough to tell their relevance.
      dependent: whether examination depends on the last click; then each last click has a curve of its own.
    """
    if not cells.clicks.sum():
        return [Check(name, reason=TOO_FEW_CLICKS) for name in (TRUST, NOISE)]
    main = main_component(cells.by_rank())
    by_rank = np.arange(1, cells.ranks + 1.0)
    shapes = np.stack([trust_shape(by_rank), noise_shape(main.log_propensity)])
    tested = main
    if dependent:
        tested = main_component(cells.by_last_click())
        shapes = np.repeat(shapes, classes_of(cells.ranks), axis=1)
    compared = np.flatnonzero(np.isfinite(main.log_propensity))
    impressions, clicks = tested.counts.impressions, tested.counts.clicks
    certain = impressions.sum() - clicks.sum() < FEWEST_UNCLICKED
    checks, effect = [], None
    for name, test in zip((TRUST, NOISE), interactions(tested, shapes), strict=True):
        if len(compared) < 2:
            checks.append(Check(name, reason=TOO_FEW_RANKS if cells.ranks < 2 else ONE_RANK_COMPARED))
        elif certain or not NOTICED * test.log_error < DOUBLED:
            checks.append(Check(name, reason=_too_little(impressions, clicks)))
        else:
            lowest = int(compared[-1])
            effect = low_over_high(main, lowest, int(compared[0])) if effect is None else effect
            noticed = math.exp(NOTICED * test.log_error)
            checks.append(Check(name, test.z, float(ndtr(-test.z)), effect=effect, rank=lowest + 1, noticed=noticed))
    return checks


def _too_little(impressions: np.ndarray, clicks: np.ndarray) -> str:
    """Says why chance leaves nothing to see in cells, or why it is not known there."""
    clicked = clicks > 0
    if clicked.any() and (clicks == impressions)[clicked].all():
        return ALWAYS_OR_NEVER
    return TOO_FEW_CLICKS if clicks.sum() <= (impressions - clicks).sum() else TOO_FEW_UNCLICKED
