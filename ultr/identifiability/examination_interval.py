"""`examination_interval`: the examination by rank that a model learnt, with 95 % intervals or why there are none.

What the errors are depends on what the curve comes from (`Ranker.curve_source`):

  position-based  with a table of documents: the information on counts, relevances profiled out; with a network: a
                  sandwich over queries, conditional on the ranker
  additive        the same for exp(b_k - b_1), which are odds, not propensities
  listwise, dual  the sandwich over queries of their estimating equations, conditional on the ranker
  browsing        theta by rank and last click, averaged over the last clicks of the log; errors of `browsing_curve`
  affine          alpha of trust bias; errors of `fit_affine`
  given           what the estimator that gave the curve says of it

An interval is no better than the model. It is withheld where training did not end at what the clicks say (stopped
early, drawn to 0 by l2, a ranker that does not fit), found by comparing the curve with an estimate that has no
parameter per document; where the log does not fit the model, it is widened or withheld (`GoodnessOfFit`).
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from scipy.special import chdtrc

from ultr.data import Counts
from ultr.data.dataset import DatasetLike
from ultr.errors import UltrError
from ultr.identifiability.conditional_errors import covariance_given_ranker
from ultr.logspace import log_sigmoid
from ultr.models import UBM, AdditivePBM, TrustPBM
from ultr.propensity import Propensities, conditional_likelihood
from ultr.propensity.affine import fit_affine
from ultr.propensity.alternative_curves import QUANTILE, browsing_curve
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts, count_clicks_above
from ultr.propensity.clicks_above import classes_of, context_cells
from ultr.propensity.goodness_of_fit import CHECKED_RANKS, CLICK_ABOVE, LAST_CLICK, MOST_CELLS, GoodnessOfFit
from ultr.propensity.information import (
    information_laplacian,
    profile_laplacian,
    relative_covariance,
    smoothed_log_relevance,
)
from ultr.propensity.propensities import log_scale_interval
from ultr.rankers import CurveSource, Ranker
from ultr.sessions import Sessions
from ultr.towers import DocumentTable, Frozen, Tower

LEVEL = 0.01  # of the test that training ended at what the clicks say
CONDITIONAL = "the errors take the ranker as known: what is unsure of relevance is not in them"
ODDS = "odds relative to rank 1, not propensities: the two agree only where clicks are rare"
GIVEN = "the curve was given, not learnt from this log"
GIVEN_NUMBER = "no interval: the errors of a likelihood given the number of clicks have not been worked out"
RATIOS = "no interval: ratios of sums over training have no likelihood, and their errors are not known"
AWAY = (
    "no interval: the curve is not where the clicks of the log put it (p = {:.1g}), so that its errors are more than "
    "chance: training stopped early, was drawn to 0 by l2, or the ranker does not fit"
)
TABLE = "no interval: a table of documents learns relevance from the same clicks, and its errors are not known here"
NO_ESTIMATE = "no interval: the log does not tell trust from relevance, so that nothing says how far alpha is off"
ABOVE = "no interval: examination depends on clicks above, which the model does not allow for"


def examination_interval(
    model: Ranker, counts: Counts, *, lists: DatasetLike | None = None, fit: GoodnessOfFit | None = None, seed: int = 0
) -> Propensities | None:
    """Computes the examination by rank that a model learnt, with errors and 95 % intervals; None where it has none.

    Args:
      model: trained.
      counts: of the log that it was trained on, by rank or by last click (needed for a UBM).
      lists: the same log as lists, which listwise losses need; None: they get no interval, others read the counts.
      fit: the goodness of fit of the log; where it rejects what the model assumes, intervals are widened or withheld.
      seed: of what is drawn for alpha of trust bias.

    Returns:
      `Propensities`; `unsupported` says why a rank has no value or interval, `warnings` what is not in the intervals.

    Raises:
      DataError: no clicks.
    """
    source = _source(model)
    if source == "none":
        return None
    learnt = _Learnt(model, counts, as_arm_counts(counts), lists, seed)
    curve = learnt.curve(source)
    if curve is None:
        return None
    found = _CURVES[source](learnt, curve)
    if fit is None or not fit.failed:
        return found
    if source in ("position-based", "listwise", "dual", "given"):
        return fit.widened(found)
    if fit.cascade or (source in ("additive", "affine") and {LAST_CLICK, CLICK_ABOVE} & set(fit.failed)):
        return _withheld(found, ABOVE)
    return found


def _source(model: Ranker) -> CurveSource:
    frozen = isinstance(vars(model).get("examination"), Frozen)
    return "given" if frozen and model.curve_source == "position-based" else model.curve_source


@dataclasses.dataclass(frozen=True)
class _Learnt:
    """A trained model and the log that it was trained on."""

    model: Ranker
    counts: Counts
    arms: ArmCounts
    lists: DatasetLike | None
    seed: int

    def curve(self, source: CurveSource) -> np.ndarray | None:
        """Computes the curve relative to rank 1, [R]; None where the model's towers have no such curve."""
        ranks, model = self.counts.ranks, self.model
        try:
            if isinstance(model, UBM):
                return self._browsing()
            if isinstance(model, TrustPBM):
                examined, yes, no = (
                    np.exp(np.asarray(log_sigmoid(self.by_rank(model.tower_in(slot))), np.float64))
                    for slot in model.slots[1:]
                )
                value: np.ndarray | None = examined * (yes - no)
            elif source == "additive":
                logits = np.asarray(self.by_rank(vars(model)["examination"]), np.float64)
                value = np.exp(logits - logits[0])
            else:
                value = model.examination_curve(ranks)
        except UltrError:  # a tower that reads more than the rank
            return None
        if value is None or not value[0] > 0:
            return None
        return np.asarray(np.asarray(value, np.float64) / value[0])

    def by_rank(self, tower: Tower) -> np.ndarray:
        ranks = self.counts.ranks
        position = jnp.arange(ranks, dtype=jnp.int32)[None, :]
        return np.asarray(tower(Sessions(mask=jnp.ones((1, ranks), bool), position=position))[0])

    def _browsing(self) -> np.ndarray | None:
        """Averages theta over the last clicks of the log."""
        if self.counts.last_click is None:
            return None
        ranks = self.counts.ranks
        shown = np.zeros((ranks, ranks + 1))
        np.add.at(shown, (self.counts.rank - 1, self.counts.last_click), self.counts.impressions)
        position = jnp.arange(ranks, dtype=jnp.int32)[None, :]
        lists = Sessions(mask=jnp.ones((1, ranks), bool), position=position)
        logits = np.asarray(vars(self.model)["examination"](lists)[0], np.float64)
        theta = np.exp(np.asarray(log_sigmoid(logits), np.float64))
        if theta.ndim == 1:
            theta = np.repeat(theta[:, None], ranks + 1, axis=1)
        value = (shown * theta).sum(1) / np.maximum(shown.sum(1), 1e-300)
        return value / value[0] if value[0] > 0 else None

    @property
    def has_table(self) -> bool:
        """Whether relevance is a table with a row per document."""
        tower = vars(self.model).get("relevance")
        return isinstance(tower, DocumentTable) and tower.kind == "full"

    def table(self, curve: np.ndarray, covariance: np.ndarray | None, why: str = "", *notes: str) -> Propensities:
        """Tabulates a curve with the covariance of its logarithm; where there is none, `why` says it."""
        variance = np.full(len(curve), np.nan) if covariance is None else np.diag(covariance)
        with np.errstate(invalid="ignore"):
            error = np.sqrt(np.where(variance >= 0, variance, np.nan))
        known = np.isfinite(curve) & (curve > 0)
        error = np.where(known & np.isfinite(error), error, np.nan)
        interval = log_scale_interval(np.where(known, curve, np.nan), error)
        error[0], interval[0] = 0.0, 1.0
        lacking = np.flatnonzero(~np.isfinite(error))
        reason = why or "no interval: clicks do not compare it with rank 1"
        compared = self.arms.moved()
        return Propensities(
            method=type(self.model).__name__,
            rank=np.arange(1, len(curve) + 1),
            value=curve,
            standard_error=curve * error,
            interval=interval,
            impressions=compared.sum_by_arm(compared.impressions),
            unsupported={int(k) + 1: reason for k in lacking},
            warnings=tuple(note for note in notes if note),
            covariance=covariance,
        )


def _position_based(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    if why := _away(learnt, curve):
        return learnt.table(curve, None, why)
    if not learnt.has_table:
        return _given_ranker(learnt, curve)
    with np.errstate(divide="ignore"):
        log_curve = np.log(curve)
    gamma = smoothed_log_relevance(learnt.arms, log_curve)
    gamma[learnt.arms.sum_by_item(learnt.arms.clicks) == 0] = -np.inf  # they have no part in the maximum
    return learnt.table(curve, relative_covariance(information_laplacian(learnt.arms, log_curve, gamma)))


def _additive(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    if not isinstance(learnt.model, AdditivePBM) or not learnt.has_table:
        return dataclasses.replace(_given_ranker(learnt, curve), warnings=(CONDITIONAL, ODDS))
    counts = learnt.arms
    p = _additive_rates(counts, np.log(curve))
    covariance = relative_covariance(profile_laplacian(counts, counts.impressions * p * (1 - p)))
    return learnt.table(curve, covariance, "", ODDS)


def _additive_rates(counts: ArmCounts, log_odds: np.ndarray) -> np.ndarray:
    """Computes click probabilities of the additive model, [C], each document with one more average impression."""
    n, b = counts.impressions, log_odds[counts.arm]
    shown = counts.sum_by_item(n)
    average = counts.clicks.sum() / n.sum()
    wanted = (counts.sum_by_item(counts.clicks) + average) / np.maximum(shown + 1, 1e-300) * shown
    low, high = np.full(counts.items, -40.0), np.full(counts.items, 40.0)
    for _ in range(60):
        s = (low + high) / 2
        expected = counts.sum_by_item(n / (1 + np.exp(-(b + s[counts.item]))))
        low, high = np.where(expected < wanted, s, low), np.where(expected < wanted, high, s)
    return np.asarray(1 / (1 + np.exp(-(b + s[counts.item]))))


def _given_ranker(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    source = learnt.model.curve_source
    data: DatasetLike = learnt.counts if learnt.lists is None else learnt.lists
    if source in ("listwise", "dual") and learnt.lists is None:
        return learnt.table(curve, None, "no interval: its loss needs whole lists, and counts were given")
    query = learnt.counts.vocabulary.document_query
    return learnt.table(curve, covariance_given_ranker(learnt.model, data, query, curve), "", CONDITIONAL)


def _listwise(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    if why := _away(learnt, curve):
        return learnt.table(curve, None, why)
    return learnt.table(curve, None, TABLE) if learnt.has_table else _given_ranker(learnt, curve)


def _affine(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    found = fit_affine(learnt.arms, seed=learnt.seed)
    if found is None:
        return learnt.table(curve, None, NO_ESTIMATE)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = _p_value(np.log(curve) - found.log_alpha, found.covariance)
    return learnt.table(curve, None, AWAY.format(p)) if p < LEVEL else learnt.table(curve, found.covariance)


def _browsing(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    ranks = min(learnt.counts.ranks, CHECKED_RANKS)
    cells = context_cells(learnt.counts, count_clicks_above(learnt.counts), ranks=ranks, most=MOST_CELLS)
    assert cells.shown is None or cells.shown.shape == (ranks, classes_of(ranks))
    found = browsing_curve(cells)
    if found is None:
        return learnt.table(curve, None, "no interval: the log does not support the curve of a browsing model")
    error = np.full(len(curve), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        error[:ranks] = np.log(found.interval[:, 1] / found.value) / QUANTILE
        z = np.log(curve[:ranks] / found.value)[1:] / error[1:ranks]
    worst = float(np.nanmax(np.abs(z), initial=0.0))
    p = min(1.0, len(z) * math.erfc(worst / math.sqrt(2)))
    if p < LEVEL:
        return learnt.table(curve, None, AWAY.format(p))
    covariance = np.full((len(curve), len(curve)), np.nan)
    np.fill_diagonal(covariance, error**2)
    return dataclasses.replace(learnt.table(curve, covariance), covariance=None)


def _given(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    estimate = conditional_likelihood(learnt.arms)
    if np.allclose(estimate.value, curve, rtol=1e-5):
        return dataclasses.replace(estimate, method=f"{type(learnt.model).__name__}, by {estimate.method}")
    found = fit_affine(learnt.arms, seed=learnt.seed) if learnt.model.corrects_trust_bias else None
    if found is not None and np.allclose(np.exp(found.log_alpha), curve, rtol=1e-5):
        return learnt.table(curve, found.covariance)
    return learnt.table(curve, None, GIVEN)


def _ratios(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    return learnt.table(curve, None, RATIOS)


def _conditional(learnt: _Learnt, curve: np.ndarray) -> Propensities:
    return learnt.table(curve, None, GIVEN_NUMBER)


_CURVES = {
    "position-based": _position_based,
    "additive": _additive,
    "listwise": _listwise,
    "dual": _listwise,
    "affine": _affine,
    "browsing": _browsing,
    "given": _given,
    "ratios": _ratios,
    "conditional": _conditional,
}


def _away(learnt: _Learnt, curve: np.ndarray) -> str:
    """Tests whether a curve is where the clicks of the log put it; the reason for no interval, empty where it is."""
    estimate = conditional_likelihood(learnt.arms)
    if estimate.covariance is None:
        return next(iter(estimate.unsupported.values()), "no interval: clicks do not compare ranks")
    with np.errstate(divide="ignore", invalid="ignore"):
        p = _p_value(np.log(curve) - np.log(estimate.value), estimate.covariance)
    return AWAY.format(p) if p < LEVEL else ""


def _p_value(difference: np.ndarray, covariance: np.ndarray) -> float:
    """Computes Wald's p-value of differences [R] relative to the first, over the ranks with an error."""
    used = np.flatnonzero(np.isfinite(difference) & np.isfinite(np.diag(covariance)) & (np.diag(covariance) > 0))
    if not len(used):
        return 1.0
    part, d = covariance[np.ix_(used, used)], difference[used]
    scale = 1 / np.sqrt(np.diag(part))
    inverse = np.linalg.pinv(part * scale * scale[:, None], rcond=1e-10, hermitian=True)
    return float(chdtrc(len(used), (d * scale) @ inverse @ (d * scale)))


def _withheld(found: Propensities, why: str) -> Propensities:
    error, interval = np.full_like(found.standard_error, np.nan), np.full_like(found.interval, np.nan)
    error[0], interval[0] = 0.0, 1.0
    reasons = dict.fromkeys(range(2, len(found.value) + 1), why)
    return dataclasses.replace(
        found, standard_error=error, interval=interval, unsupported=found.unsupported | reasons, covariance=None
    )
