"""Trains one method on one log, and chooses its settings without test grades."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ultr.errors import ConfigError, UltrError
from ultr.evaluation import per_query
from ultr.files import json_values
from ultr.models import ClickModel
from ultr.propensity import ESTIMATORS
from ultr.rankers import Ranker
from ultr.sessions import Sessions
from ultr.study.building import build_model, build_ranker_of_grades
from ultr.study.choosing import CUTOFF, choosing_weights, weighted_dcg
from ultr.study.nuisance import DEFAULT_ESTIMATOR
from ultr.study.prepared import JudgedLists, PreparedLog, SplitUnit
from ultr.study.settings import StudyMethod
from ultr.study.specs import COMPRESSED_TABLES, NETWORKS, TABLES, MethodSpec
from ultr.study.support import check_support
from ultr.study.tower_factory import ModelConfig, resolve_relevance
from ultr.training import adam, fit, lazy_adam, solve
from ultr.training.loop import has_large_table

STEPS_PER_EPOCH = 100  # at least, where the log allows
BATCH_SIZES = (64, 2048)
BATCH_SIZE_OF_GRADED_LISTS = 32
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
    seconds: float = 0.0
    all_seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


def train_method(
    method: StudyMethod, log: PreparedLog | None, lists: JudgedLists, *, seed: int, metric: str = "ndcg@10"
) -> TrainedMethod:
    """Trains every variant of a method and keeps the best.

    Click models are chosen by their likelihood of the held-out sessions; other methods that learn from clicks by
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


class TrainingSteps(NamedTuple):
    """How long a method is trained: `epochs` at most, `patience` without improvement, rows per step."""

    epochs: int
    patience: int
    batch_size: int


def training_steps(method: StudyMethod, rows: int) -> TrainingSteps:
    """Computes how long a method is trained on data with so many rows.

    Its epochs and patience are meant for epochs of a hundred steps: with fewer, there are as many times more.
    """
    size = method.batch_size or batch_size_for(rows)
    times = -(-STEPS_PER_EPOCH // max(-(-rows // size), 1))
    return TrainingSteps(method.epochs * times, method.patience * times, size)


def batch_size_for(rows: int) -> int:
    """Computes a batch size, a power of two from 64 to 2,048, that gives an epoch a hundred steps or more."""
    least, most = BATCH_SIZES
    return min(max(1 << (max(rows // STEPS_PER_EPOCH, 1).bit_length() - 1), least), most)


def _config(method: StudyMethod, seed: int) -> ModelConfig:
    return ModelConfig(
        model=method.model,
        relevance=method.relevance,
        rows=method.rows if method.relevance in COMPRESSED_TABLES else None,
        hidden=method.hidden,
        transform=method.transform,
        seed=seed,
        options=method.options,
    )


def _fit(method: StudyMethod, model: Any, train: Any, valid: Any, seed: int) -> Any:
    if not method.spec.by_gradient:
        return solve(model, train, valid, method="counting")
    steps = training_steps(method, len(train))
    if has_large_table(model):
        optimizer: Any = lazy_adam(method.learning_rate, tables=method.table_rate)
    else:
        optimizer = adam(method.learning_rate, tables=method.table_rate)
    return fit(
        model, train, valid, optimizer=optimizer, seed=seed, l2=method.l2, progress=False, **steps._asdict()
    )  # fmt: skip


class _Variant(NamedTuple):
    """A variant of a method after training; lower scores are better."""

    score: float
    seconds: float
    settings: dict[str, Any]
    method: StudyMethod
    fitted: Any
    by: SplitUnit | None = None


def _train_on_clicks(method: StudyMethod, log: PreparedLog, seed: int) -> TrainedMethod:
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
        model = build_model(_config(variant, seed), log.part("train", by), nuisance, stored=log.stored)
        train, valid = (log.sufficient(part, by, model.sufficient_statistics) for part in ("train", "valid"))
        fitted = _fit(variant, model, train, valid, seed)
        seconds = time.perf_counter() - began
        if not fitted.best:
            raise UltrError("no epoch improved on the start: lower the learning rate, or check the log")
        score = fitted.history[fitted.best - 1]["valid_loss"]
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
    trained.notes = notes + ([] if best.by == "query" else [TABLE_NOTE])
    return trained


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
        model = build_ranker_of_grades(_config(variant, seed), train)
        variant = dataclasses.replace(variant, batch_size=variant.batch_size or BATCH_SIZE_OF_GRADED_LISTS)
        fitted = _fit(variant, model, train, vali, seed)
        seconds = time.perf_counter() - began
        value = per_query(fitted.model, vali, metrics=[metric], key=jax.random.key(seed))[metric]
        found.append(_Variant(-float(np.nanmean(value)), seconds, settings, variant, fitted))
    return _trained(found, f"{metric} on the validation grades")


def _trained(found: Sequence[_Variant], criterion: str) -> TrainedMethod:
    """Takes the best of the variants, and tells how it was chosen where there are several."""
    best = min(found, key=lambda v: v.score)
    chosen: dict[str, Any] = {"epoch": best.fitted.best, "settings": json_values(best.settings)}
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
