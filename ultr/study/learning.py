"""Trains one method on one log, and chooses its settings without test grades."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from ultr import baselines
from ultr.errors import ConfigError, UltrError
from ultr.evaluation import per_query
from ultr.models import ClickModel
from ultr.study.nuisance import DEFAULT, Harvest
from ultr.study.prepared import FEWEST_STEPS, By, Lists, Prepared, batch_size_for
from ultr.study.registry import TABLES, ModelConfig, Slots, build_model, relevance_kind
from ultr.study.spec import Method, plain
from ultr.training import adam, fit, lazy_adam
from ultr.training.loop import has_large_table

CUT = 10  # of the weighted DCG that chooses
LEAST = 1e-3  # propensities below it count as this much when they choose: one click must not decide alone


@dataclasses.dataclass
class Learnt:
    """What came of a method on one log.

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
    by: By | None = None
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: int = 0
    propensity: np.ndarray | None = None
    seconds: float = 0.0
    all_seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


def learn(method: Method, log: Prepared | None, lists: Lists, *, seed: int, metric: str = "ndcg@10") -> Learnt:
    """Trains every variant of a method and keeps the best.

    Click models are chosen by their likelihood of the held-out sessions; other methods that learn from clicks by
    `weighted_dcg` there; those that learn from grades by `metric`, the study's first, on the "vali" lists.

    Args:
      log: None for methods that learn from grades.

    Raises:
      UltrError: the log does not allow it; says why.
    """
    if method.model == "full-information":
        return _from_labels(method, lists, seed, metric)
    assert log is not None
    return _from_clicks(method, log, seed)


def _config(method: Method, seed: int) -> ModelConfig:
    return ModelConfig(
        model=method.model,
        relevance=method.relevance,
        rows=method.rows,
        hidden=method.hidden,
        transform=method.transform,
        seed=seed,
        options=method.options,
    )


def _fit(method: Method, model: Any, train: Any, valid: Any, seed: int) -> Any:
    size = method.batch_size or batch_size_for(len(train))
    times = -(-FEWEST_STEPS // max(-(-len(train) // size), 1))  # passes that make up an epoch of a small log
    if has_large_table(model):
        optimizer: Any = lazy_adam(method.learning_rate)
    else:
        optimizer = adam(method.learning_rate, tables=method.table_rate)
    return fit(
        model,
        train,
        valid,
        optimizer=optimizer,
        epochs=method.epochs * times,
        patience=method.patience * times,
        batch_size=size,
        seed=seed,
        l2=method.l2,
        progress=False,
    )


def _from_clicks(method: Method, log: Prepared, seed: int) -> Learnt:
    variants = method.variants()
    found: list[tuple[float, float, dict[str, Any], Method, Any, By]] = []
    criterion, notes = "", list[str]()
    for settings, variant in variants:
        # A table knows nothing of queries that it was not trained on; a network is judged on how it carries over.
        by: By = "session" if relevance_kind(variant.relevance, log.log) in TABLES else "query"
        harvest = log.harvest(variant.propensity, by)
        began = time.perf_counter()
        model = build_model(_config(variant, seed), log.part("train", by), harvest, stored=log.stored)
        statistics = model.sufficient_statistics
        train, valid = (log.source(part, by, statistics) for part in ("train", "valid"))
        fitted = _fit(variant, model, train, valid, seed)
        seconds = time.perf_counter() - began
        if not fitted.best:
            raise UltrError("no epoch improved on the start: lower the learning rate, or check the log")
        value = fitted.history[fitted.best - 1]["valid_loss"]
        criterion = "likelihood of held-out sessions" if isinstance(model, ClickModel) else "its own held-out loss"
        if len(variants) > 1 and not isinstance(model, ClickModel):
            weights, note = choosing_weights(harvest)
            notes += [note] if note and note not in notes else []
            criterion = f"weighted DCG@{CUT} of held-out clicks"
            value = -weighted_dcg(fitted.model, log, by, weights)
        found.append((value, seconds, settings, variant, fitted, by))
    _, seconds, settings, variant, fitted, by = min(found, key=lambda f: f[0])
    chosen: dict[str, Any] = {"epoch": fitted.best, "settings": plain(settings)}
    if len(variants) > 1:
        chosen |= {"by": criterion, "values": [{"settings": plain(f[2]), "value": abs(f[0])} for f in found]}
    return Learnt(
        ranker=fitted.model,
        model=fitted.model,
        by=by,
        chosen=chosen,
        history=fitted.history,
        best=fitted.best,
        propensity=curve(fitted.model, variant, log.harvest(variant.propensity, by)),
        seconds=seconds,
        all_seconds=sum(f[1] for f in found),
        notes=notes + ([] if by == "query" else [_TABLES]),
    )


_TABLES = "a table of documents: only documents of the log have a score of their own"


def _from_labels(method: Method, lists: Lists, seed: int, metric: str) -> Learnt:
    train, vali = lists["train"], lists["vali"]
    log: Any = _Graded(train)
    found = []
    for settings, variant in method.variants():
        if relevance_kind(variant.relevance, log) in TABLES:
            raise ConfigError("full information learns from the train lists, whose documents are not those judged on: "
                              "its relevance should be a network (linear, mlp, dcn)")  # fmt: skip
        began = time.perf_counter()
        slots = Slots(_config(variant, seed), log, None, {})  # type: ignore[arg-type]
        model = baselines.FullInformation(relevance=slots.document())
        size = dataclasses.replace(variant, batch_size=variant.batch_size or 32)
        fitted = _fit(size, model, train, vali, seed)
        seconds = time.perf_counter() - began
        value = per_query(fitted.model, vali, metrics=[metric], key=jax.random.key(seed))[metric]
        found.append((-float(np.nanmean(value)), seconds, settings, fitted))
    _, seconds, settings, fitted = min(found, key=lambda f: f[0])
    chosen: dict[str, Any] = {"epoch": fitted.best, "settings": plain(settings)}
    if len(found) > 1:
        values = [{"settings": plain(f[2]), "value": -f[0]} for f in found]
        chosen |= {"by": f"{metric} on the validation grades", "values": values}
    return Learnt(
        ranker=fitted.model,
        model=fitted.model,
        chosen=chosen,
        history=fitted.history,
        best=fitted.best,
        seconds=seconds,
        all_seconds=sum(f[1] for f in found),
    )


class _Graded:
    """A collection in the place of the log that towers are made for."""

    def __init__(self, lists: Any) -> None:
        self.documents, self.ranks, self.batches = lists.documents, 1, lists.batches
        width = 0 if lists.features is None else lists.features.shape[1]
        self.metadata = {"features": [""] * width, "impression_features": []}


def choosing_weights(harvest: Harvest) -> tuple[np.ndarray, str]:
    """([R] weights 1/propensity of clicks that choose between settings, a note where they had to be all 1)."""
    try:
        propensity = harvest.propensity
    except UltrError as error:
        ones = np.ones(harvest.log.ranks)
        return ones, f"settings were chosen by held-out clicks without weights ({str(error).split(':')[0]})"
    return 1 / np.maximum(propensity / propensity[0], LEAST), ""


def weighted_dcg(ranker: Any, log: Prepared, by: By, weights: np.ndarray, *, most: int = 1 << 16) -> float:
    """Mean over held-out sessions of sum_clicked weight / log2(1 + rank that the ranker gives it), to rank 10.

    Unbiased for the DCG of the ranker among the documents shown, where weights are 1/examination (Joachims 2017).

    Args:
      ranker: has `score(sessions)`.
      weights: [R] by displayed rank.
      most: lists that are looked at, the first of the distinct ones.
    """
    from ultr.evaluation.compiled import CompiledModel

    compiled = CompiledModel(ranker)
    total = sessions = 0.0
    lists = 0
    for batch in log.distinct("valid", by).batches(4096):
        scores = np.asarray(compiled.scores(batch), np.float64)
        total += float(_gains(scores, batch, weights))
        rows = np.asarray(batch.mask).any(1)
        sessions += float(rows.sum() if batch.weight is None else np.asarray(batch.weight, np.float64)[rows].sum())
        lists += int(rows.sum())
        if lists >= most:
            break
    return total / max(sessions, 1.0)


def _gains(scores: np.ndarray, batch: Any, weights: np.ndarray) -> float:
    mask, clicks = np.asarray(batch.mask), np.asarray(batch.clicks) != 0
    scores = np.where(mask, scores, -np.inf)
    # The expected rank among equals, so that a constant score gains nothing from the order of the lists.
    above = (scores[:, None, :] > scores[:, :, None]).sum(2)
    equal = ((scores[:, None, :] == scores[:, :, None]) & mask[:, None, :]).sum(2)
    rank = above + (equal + 1) / 2
    gain = np.where(clicks & mask & (rank <= CUT), weights[np.asarray(batch.position)] / np.log2(1 + rank), 0.0)
    times = 1.0 if batch.weight is None else np.asarray(batch.weight, np.float64)[:, None]
    return float((gain * times).sum())


def curve(model: Any, method: Method, harvest: Harvest) -> np.ndarray | None:
    """[R] examination relative to rank 1 that a method learnt or was given; None where it has none."""
    try:
        values = model.examination_curve(harvest.log.ranks)
    except UltrError:  # a tower that reads more than the rank
        return None
    if values is None or not len(values) or not values[0] > 0:
        return None
    return values / values[0]


def propensity_error(found: np.ndarray | None, truth: Any) -> dict[str, float] | None:
    """How far examination is from the truth, relative to rank 1: |log ratio|, mean and max over ranks 2 and on."""
    if found is None or truth is None:
        return None
    true = np.asarray(truth, np.float64)
    n = min(len(found), len(true))
    if n < 2 or not (true[:n] > 0).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.log(found[1:n] / found[0]) - np.log(true[1:n] / true[0]))
    if not np.isfinite(error).all():
        return {"mean": math.inf, "max": math.inf}
    return {"mean": float(error.mean()), "max": float(error.max())}


__all__ = ["DEFAULT", "Learnt", "choosing_weights", "curve", "learn", "propensity_error", "weighted_dcg"]
