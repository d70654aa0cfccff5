"""Candidates for a ranker, judged by cross-fitted, unbiased ranking gains over the logged order, without any grades."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ultr.errors import UltrError
from ultr.evaluation.ranking_gains import CONFIDENCE, RankingGain, query_gains, ratio_of_sums
from ultr.files import json_values
from ultr.models import ClickModel
from ultr.study.building import build_model
from ultr.study.cross_fitting import CrossFitting
from ultr.study.held_out import document_scores
from ultr.study.nuisance import NuisanceEstimates
from ultr.study.settings import StudyMethod
from ultr.study.steps import fit_method, model_config
from ultr.training.fitted import Fitted
from ultr.training.folded import QueryFolds, can_fold, has_structure_of
from ultr.training.sufficient import statistics_for

CRITERION = "gain in DCG@10 over the logged order on held-out queries, by debiased clicks"
NEAR = 0.25  # standard errors of the difference within which the held-out likelihood decides instead
FAR = 2.0  # standard errors of the difference beyond which a candidate is given up before all folds have judged it
FOLDS_BEFORE_GIVING_UP = 2


class PerQuery(NamedTuple):
    """What a candidate gains over the logged order on each held-out query, and the DCG of that order there: [Q]."""

    gain: np.ndarray
    base: np.ndarray


@dataclasses.dataclass
class Candidate:
    """A method with settings, and what the folds say of it so far.

    Attributes:
      method: with all settings.
      settings: those in which it differs from the other candidates.
      scores: per fold, [D] of the fold's documents.
      epochs: per fold, the best; 0: none was better than the start.
      losses: per fold, the held-out loss per session.
      told: per fold, the gains on its queries.
      seconds: of its training.
      fitted: of the training on all folds, where one training told of every fold; None: each fold had one.
      error: why it could not be trained; empty where it could.
    """

    method: StudyMethod
    settings: dict[str, Any]
    scores: list[np.ndarray] = dataclasses.field(default_factory=list)
    epochs: list[int] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    told: list[PerQuery] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    is_click_model: bool = False
    fitted: Fitted | None = None
    error: str = ""

    @property
    def gain(self) -> RankingGain:
        """What it gains over the logged order, over all folds that judged it."""
        return ratio_of_sums(*pooled(self.told))

    @property
    def loss(self) -> float:
        """The mean over folds of the held-out loss per session; NaN where a fold has none."""
        return float(np.mean(self.losses)) if self.losses else math.nan

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values: settings, gain with error and lower bound, held-out loss, epochs and seconds."""
        if self.error:
            return {"settings": json_values(self.settings), "error": self.error}
        found = self.gain
        values: dict[str, Any] = json_values(
            {
                "settings": self.settings,
                "gain": found.value,
                "standard_error": found.standard_error,
                "lower": found.lower(),
                "confidence": CONFIDENCE,
                "queries": found.queries,
                "folds": len(self.told),
                "loss": self.loss,
                "epochs": self.epochs,
                "seconds": round(self.seconds, 2),
            }
        )
        return values


def pooled(told: Sequence[PerQuery]) -> PerQuery:
    """Puts the queries of several folds side by side."""
    none = [np.zeros(0)]
    return PerQuery(np.concatenate(none + [t.gain for t in told]), np.concatenate(none + [t.base for t in told]))


def difference(one: Candidate, other: Candidate) -> RankingGain:
    """Computes by how much a candidate gains more than another, on the folds that judged both, with paired errors."""
    n = min(len(one.told), len(other.told))
    a, b = pooled(one.told[:n]), pooled(other.told[:n])
    return ratio_of_sums(a.gain - b.gain, a.base)


def judge_on_fold(candidate: Candidate, data: CrossFitting, fold: int, nuisance: NuisanceEstimates, seed: int) -> None:
    """Trains a candidate on all folds but one and adds what the clicks of that one say; an error is noted there."""
    began = time.perf_counter()
    try:
        config = model_config(candidate.method, seed)
        model = build_model(
            config, data.sessions(fold), nuisance, stored=data.stored, scaler=data.scaler(config.transform)
        )
        statistics = statistics_for(model, data.log)
        train, valid = (data.sufficient(statistics, fold, held_out=held_out) for held_out in (False, True))
        fitted = fit_method(candidate.method, model, train, valid, seed)
        held_out = data.held_out(fold)
        scores = document_scores(fitted.model, data.log.vocabulary, held_out.document)
    except UltrError as error:
        candidate.error = " ".join(str(error).split())
        return
    _note_training(candidate, fitted)
    candidate.scores.append(scores)
    candidate.told.append(PerQuery(*query_gains(held_out.clicks, scores, held_out.logged)))
    candidate.seconds += time.perf_counter() - began


def _note_training(candidate: Candidate, fitted: Fitted) -> None:
    candidate.is_click_model = isinstance(fitted.model, ClickModel)
    best = fitted.history[fitted.best - 1] if fitted.best else {"epoch": 0, "valid_loss": math.nan}
    candidate.epochs.append(int(best["epoch"]))
    candidate.losses.append(float(best["valid_loss"]))


def judge_in_one_training(candidate: Candidate, data: CrossFitting, seed: int) -> bool:
    """Trains a candidate on all folds, and beside it a copy without each fold (`FoldedRanker`), and judges all folds.

    Copies of methods that take estimates of the log have those of their own folds.

    Returns:
      Whether that was possible: not for tables of documents, for rankers whose loss is not a function of the list
      alone, and where the copies differ in more than numbers.
    """
    method, config = candidate.method, model_config(candidate.method, seed)
    if data.by != "query" or not method.spec.by_gradient:
        return False
    began = time.perf_counter()

    def built(fold: int | None) -> Any:
        scaler, nuisance = data.scaler(config.transform), data.nuisance(method.propensity, fold)
        return build_model(config, data.sessions(fold), nuisance, stored=data.stored, scaler=scaler)

    try:
        model = built(None)
        if not can_fold(model):
            return False
        estimates = bool(set(method.spec.needs) - {"ranks"}) or method.spec.builder != "towers"
        copies = tuple(built(fold) for fold in range(data.folds)) if estimates else ()
        if not all(has_structure_of(copy, model) for copy in copies):  # estimates are in the structure of some
            return False
        train = data.sufficient(statistics_for(model, data.log))
        fitted = fit_method(method, model, train, None, seed, folds=QueryFolds(data.fold_of_query, copies))
        for fold, held_out_model in enumerate(fitted.held_out):
            held_out = data.held_out(fold)
            scores = document_scores(held_out_model, data.log.vocabulary, held_out.document)
            candidate.scores.append(scores)
            candidate.told.append(PerQuery(*query_gains(held_out.clicks, scores, held_out.logged)))
    except UltrError as error:
        candidate.error = " ".join(str(error).split())
        return True
    _note_training(candidate, fitted)
    candidate.fitted = fitted
    candidate.seconds += time.perf_counter() - began
    return True


def judge(candidates: Sequence[Candidate], data: CrossFitting, seed: int) -> None:
    """Judges candidates in one training each, or fold by fold; these are given up where two folds show them far behind.

    What is judged fold by fold is compared with what is known of the others.
    """
    one_by_one = [candidate for candidate in candidates if not judge_in_one_training(candidate, data, seed)]
    for fold in range(data.folds):
        alive = [c for c in one_by_one if not c.error and len(c.told) == fold]
        told = [c for c in candidates if not c.error and len(c.told) >= fold]
        if fold >= FOLDS_BEFORE_GIVING_UP and len(told) > 1:
            best = max(told, key=lambda c: c.gain.value)
            alive = [c for c in alive if c is best or not _far_behind(c, best)]
        for candidate in alive:
            judge_on_fold(candidate, data, fold, data.nuisance(candidate.method.propensity, fold), seed)


def _far_behind(one: Candidate, best: Candidate) -> bool:
    found = difference(one, best)
    return found.value + FAR * found.standard_error < 0


class Choice(NamedTuple):
    """The candidate that was chosen, and why."""

    candidate: Candidate
    reason: str


def choose(candidates: Sequence[Candidate]) -> Choice:
    """Chooses the candidate with the largest gain; among click models as good as it, that of the best likelihood.

    Raises:
      UltrError: none could be trained; says why.
    """
    trained = [c for c in candidates if not c.error and c.told]
    if not trained:
        raise UltrError("no candidate could be trained: " + "; ".join(dict.fromkeys(c.error for c in candidates)))
    folds = max(len(c.told) for c in trained)
    whole = [c for c in trained if len(c.told) == folds]
    best = max(whole, key=lambda c: c.gain.value)
    if len(whole) == 1:
        return Choice(best, "the only candidate that was not far behind after two folds" if len(trained) > 1 else "")
    near = [
        c
        for c in whole
        if c.is_click_model
        and not math.isnan(c.loss)
        and (d := difference(c, best)).value + NEAR * d.standard_error >= 0
    ]
    if best.is_click_model and len(near) > 1:
        likely = min(near, key=lambda c: c.loss)
        if likely is not best:
            return Choice(
                likely, "the best likelihood of held-out sessions among candidates whose gains cannot be told apart"
            )
    return Choice(best, "the largest gain")


def refit(candidate: Candidate, data: CrossFitting, seed: int) -> Fitted:
    """Trains a candidate on all folds, for the median of the folds' best epochs: steadier than one held-out tenth.

    Where one training told of all folds, its own parameters at the step that the folds chose are the result.
    """
    if candidate.fitted is not None:
        return candidate.fitted
    method, config = candidate.method, model_config(candidate.method, seed)
    nuisance = data.nuisance(method.propensity)
    model = build_model(config, data.sessions(), nuisance, stored=data.stored, scaler=data.scaler(config.transform))
    epochs = max(1, round(float(np.median(candidate.epochs))))
    return fit_method(method, model, data.sufficient(statistics_for(model, data.log)), None, seed, epochs=epochs)
