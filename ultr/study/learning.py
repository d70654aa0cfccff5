"""Trains one method on one log, and chooses its settings without test grades."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ultr.data import Counts
from ultr.errors import ConfigError, UltrError
from ultr.evaluation import check_satisfaction, has_satisfaction, per_query
from ultr.files import json_values
from ultr.identifiability import GoodnessOfFit
from ultr.models import ClickModel
from ultr.propensity import ESTIMATORS
from ultr.rankers import Ranker
from ultr.sessions import Sessions
from ultr.study.assumptions import fit_of
from ultr.study.automatic import choose_automatically, choose_by_folds
from ultr.study.building import build_model, build_ranker_of_grades
from ultr.study.choosing import CUTOFF, choosing_weights, weighted_dcg
from ultr.study.cross_fitting import CrossFitting
from ultr.study.curves import learnt_curve
from ultr.study.nuisance import DEFAULT_ESTIMATOR
from ultr.study.prepared import JudgedLists, PreparedLog, SplitUnit
from ultr.study.registry import AUTO
from ultr.study.settings import StudyMethod
from ultr.study.specs import NETWORKS, TABLES, MethodSpec
from ultr.study.steps import fit_method, model_config
from ultr.study.support import check_support
from ultr.study.tower_factory import resolve_relevance

BATCH_SIZE_OF_GRADED_LISTS = 32
PARTS = ("train", "valid")
TABLE_NOTE = "a table of documents: only documents of the log have a score of their own"


@dataclasses.dataclass
class TrainedMethod:
    """The ranker that a method made of one log, and how it came about.

    Attributes:
      ranker: has `score(sessions)`.
      model: the same where it was trained by `fit`, else None.
      by: how the log was split, where it learnt from clicks.
      chosen: the settings of the grid that were chosen, and why: criterion and its value for every variant.
      history: of the training of the chosen variant.
      best: its best epoch.
      propensity: [R] examination that it learnt or was given, relative to rank 1; None: it has none.
      examination: the same with its intervals, or why there are none (`learnt_curve`).
      seconds: of the chosen variant's training; `all_seconds` of all variants.
      notes: what a reader should know.
    """

    ranker: Any
    model: Any = None
    by: SplitUnit | None = None
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: int = 0
    propensity: np.ndarray | None = None
    examination: dict[str, Any] | None = None
    seconds: float = 0.0
    all_seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


def train_method(
    method: StudyMethod, log: PreparedLog | None, lists: JudgedLists, *, seed: int, metric: str = "ndcg@10"
) -> TrainedMethod:
    """Trains every variant of a method and keeps the best.

    Methods that learn from clicks are chosen by cross-fitted, unbiased ranking gains (`ultr.study.candidates`), or,
    where features are those of impressions, click models by their likelihood of the held-out sessions and others by
    `weighted_dcg` there; those that learn from grades by `metric`, the study's first, on the "vali" lists.

    Args:
      log: None for methods that learn from grades.

    Raises:
      UltrError: the log does not allow it; says why.
    """
    from ultr.study.boosting import train_trees

    if method.spec.package:
        return train_trees(method, log, lists, seed=seed, metric=metric)
    if method.spec.learns_from == "grades":
        return _train_on_grades(method, lists, seed, metric)
    assert log is not None
    if method.spec.learns_from == "clicks":
        return _train_on_clicks(method, log, seed)
    if method.model == "random":
        return TrainedMethod(_RandomOrder())
    if log.settings.path is not None:
        raise ConfigError("the ranker of the policy that made a real log is not known: leave the method 'logger' out")
    return TrainedMethod(log.logger)


class _RandomOrder:
    """Scores all documents alike: the evaluation's key decides their order."""

    def score(self, sessions: Sessions) -> np.ndarray:
        return np.zeros(sessions.shape, np.float32)


class _Variant(NamedTuple):
    """A variant of a method after training; lower scores are better."""

    score: float
    seconds: float
    settings: dict[str, Any]
    method: StudyMethod
    fitted: Any
    by: SplitUnit | None = None


def _train_on_clicks(method: StudyMethod, log: PreparedLog, seed: int) -> TrainedMethod:
    """Trains a method on clicks: by folds where something is to be chosen or guarded, else on one part for another."""
    variants = method.variants()
    if method.model != AUTO.name and len(variants) == 1 and not method.safe:
        return _by_one_split(method, log, seed)
    if log.log.metadata["impression_features"] and method.model != AUTO.name and not method.safe:
        return _by_one_split(method, log, seed)

    def folds(by: SplitUnit) -> CrossFitting:
        return log.cross_fitting(by, method.logger_score)

    if method.model == AUTO.name:
        chosen = choose_automatically(method, log.log, folds, seed=seed, safe=method.safe)
    else:
        chosen = choose_by_folds(variants, log.log, folds, seed=seed, safe=method.safe)
    curve = curve_of(chosen.fitted.model, log.log.ranks)
    return TrainedMethod(
        ranker=chosen.ranker,
        model=chosen.fitted.model,
        by=chosen.by,
        chosen=chosen.facts,
        history=chosen.fitted.history,
        best=chosen.fitted.best,
        propensity=curve,
        seconds=chosen.seconds,
        all_seconds=chosen.all_seconds,
        notes=chosen.notes + ([] if chosen.by == "query" else [TABLE_NOTE]),
    )


def _by_one_split(method: StudyMethod, log: PreparedLog, seed: int) -> TrainedMethod:
    variants = method.variants()
    found: list[_Variant] = []
    criterion, notes = "", list[str]()
    for settings, variant in variants:
        # A table knows nothing of queries that it was not trained on; a network is judged on how it carries over.
        is_table = not variant.spec.by_gradient or resolve_relevance(variant.relevance, log.log) in TABLES
        by: SplitUnit = "session" if is_table else "query"
        nuisance = log.nuisance(variant.propensity, by)
        began = time.perf_counter()
        warning = support_note(variant.spec, log, by, by_features=not is_table)
        notes += [warning] if warning and warning not in notes else []
        model = build_model(model_config(variant, seed), log.part("train", by), nuisance, stored=log.stored)
        train, valid = (log.sufficient(part, by, model) for part in ("train", "valid"))
        fitted = fit_method(variant, model, train, valid, seed)
        seconds = time.perf_counter() - began
        if not fitted.best:
            notes += [note] if (note := _start_kept(settings)) not in notes else []
        score = fitted.history[max(fitted.best, 1) - 1]["valid_loss"]
        criterion = "likelihood of held-out sessions" if isinstance(model, ClickModel) else "its own held-out loss"
        if len(variants) > 1 and not isinstance(model, ClickModel):
            weights, note = choosing_weights(nuisance)
            notes += [note] if note and note not in notes else []
            criterion = f"weighted DCG@{CUTOFF} of held-out clicks"
            score = -weighted_dcg(fitted.model, log, by, weights)
        found.append(_Variant(score, seconds, settings, variant, fitted, by))
    best = min(found, key=lambda v: v.score)
    assert best.by is not None
    trained = _trained(found, criterion)
    nuisance = log.nuisance(best.method.propensity, best.by)
    trained.propensity = curve_of(best.fitted.model, nuisance.log.ranks)
    trained.examination = _examination(best, log, seed)
    trained.notes = notes + ([] if best.by == "query" else [TABLE_NOTE])
    if has_satisfaction(best.fitted.model):
        checked = check_satisfaction(best.fitted.model, *(log.distinct(p, best.by) for p in PARTS), seed=seed)
        trained.notes += checked.warnings if checked else ()
    return trained


def _start_kept(settings: dict[str, Any]) -> str:
    of = f" ({', '.join(f'{name} {value}' for name, value in settings.items())})" if settings else ""
    return f"no step improved the held-out loss{of}, so that the ranker is as it was before training"


def _examination(best: _Variant, log: PreparedLog, seed: int) -> dict[str, Any] | None:
    """Computes the intervals of the curve that the best variant learnt."""
    by = best.by
    assert by is not None
    nuisance = log.nuisance(best.method.propensity, by)

    def counts() -> Counts:
        return log.counts("train", by, "last-click")

    def fit() -> GoodnessOfFit | None:
        return nuisance.cached("goodness of fit", lambda: fit_of(counts()))

    model = best.fitted.model
    return learnt_curve(model, counts, lists=lambda: log.distinct("train", by), fit=fit, seed=seed)


def support_note(spec: MethodSpec, log: PreparedLog, by: SplitUnit, *, by_features: bool) -> str | None:
    """Returns a warning where a log hardly supports what a method learns of examination.

    Raises:
      ConfigError: it does not support it at all.
    """
    if spec.examination not in ("learnt", "modelled"):
        return None
    part = log.part("train", by)
    estimate = ESTIMATORS[DEFAULT_ESTIMATOR].estimate(part)
    return check_support(spec, estimate, part, by_features=by_features)


def _train_on_grades(method: StudyMethod, lists: JudgedLists, seed: int, metric: str) -> TrainedMethod:
    train, vali = lists["train"], lists["vali"]
    found: list[_Variant] = []
    for settings, variant in method.variants():
        if resolve_relevance(variant.relevance, train) in TABLES:
            raise ConfigError(
                "full information learns from the train lists, whose documents are not those judged on: its relevance "
                f"should be a network ({', '.join(NETWORKS)})"
            )
        began = time.perf_counter()
        model = build_ranker_of_grades(model_config(variant, seed), train)
        variant = dataclasses.replace(variant, batch_size=variant.batch_size or BATCH_SIZE_OF_GRADED_LISTS)
        fitted = fit_method(variant, model, train, vali, seed)
        seconds = time.perf_counter() - began
        value = per_query(fitted.model, vali, metrics=[metric], key=jax.random.key(seed))[metric]
        found.append(_Variant(-float(np.nanmean(value)), seconds, settings, variant, fitted))
    return _trained(found, f"{metric} on the validation grades")


def _trained(found: Sequence[_Variant], criterion: str) -> TrainedMethod:
    """Takes the best of the variants, and tells how it was chosen where there are several."""
    best = min(found, key=lambda v: v.score)
    at = best.fitted.best
    epoch = best.fitted.history[at - 1]["epoch"] if at else 0
    chosen: dict[str, Any] = {"epoch": epoch, "settings": json_values(best.settings)}
    if len(found) > 1:
        # Losses are as they are, values of a DCG or a metric are scores with the sign changed: none is below 0.
        values = [{"settings": json_values(v.settings), "value": abs(v.score)} for v in found]
        chosen |= {"by": criterion, "values": values}
    return TrainedMethod(
        ranker=best.fitted.model,
        model=best.fitted.model,
        by=best.by,
        chosen=chosen,
        history=best.fitted.history,
        best=best.fitted.best,
        seconds=best.seconds,
        all_seconds=sum(v.seconds for v in found),
    )


def curve_of(model: Ranker, ranks: int) -> np.ndarray | None:
    """Returns the [R] examination relative to rank 1 that a method learnt or was given; None where it has none."""
    try:
        curve = model.examination_curve(ranks)
    except UltrError:  # a tower that reads more than the rank
        return None
    if curve is None or not len(curve) or not curve[0] > 0:
        return None
    values = np.asarray(curve, np.float64)
    return np.asarray(values / values[0])


def propensity_error(found: np.ndarray | None, truth: Any) -> dict[str, float] | None:
    """Computes mean and max |log ratio| of examination, relative to rank 1, to the truth, over ranks from 2."""
    if found is None or truth is None:
        return None
    true = np.asarray(truth, np.float64)
    n = min(len(found), len(true))
    if n < 2 or not (true[:n] > 0).all():
        return None
    if np.isnan(found[:n]).any():  # ranks that training never showed
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.log(found[1:n] / found[0]) - np.log(true[1:n] / true[0]))
    if not np.isfinite(error).all():
        return {"mean": math.inf, "max": math.inf}
    return {"mean": float(error.mean()), "max": float(error.max())}
