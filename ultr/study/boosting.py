"""Boosted trees of LightGBM and XGBoost as methods: they learn from documents in the order in which they were shown.

Both learn from rows per displayed document, grouped by session. LightGBM takes positions with the training data alone
(they are dropped silently by its `cv`, `subset` and `save_binary`, none of which is used here); XGBoost takes the order
of the rows within a group for the positions. Sessions without a click, or with clicks on everything, give neither of
them a pair to learn from and are left out.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ultr import stopping
from ultr.data import Collection
from ultr.data.input_schema import FEATURES, InputSchema
from ultr.errors import ConfigError, DataError
from ultr.evaluation import per_query
from ultr.files import json_values
from ultr.sessions import Sessions
from ultr.study.choosing import CUTOFF, choosing_weights, weighted_dcg
from ultr.study.learning import TrainedMethod, support_note
from ultr.study.nuisance import DEFAULT_ESTIMATOR
from ultr.study.prepared import JudgedLists, PreparedLog
from ultr.study.settings import StudyMethod
from ultr.study.specs import MethodSpec

ROUNDS_BETWEEN = 10  # two judgements by held-out clicks or grades
MAX_LISTS = 1 << 14  # of held-out clicks that judge

Predict = Callable[[np.ndarray, int], np.ndarray]  # [D, F] features, rounds -> [D] scores
Judge = Callable[[Predict, int], tuple[float, int]]  # trees of so many rounds -> best value, its rounds


def import_package(spec: MethodSpec) -> Any:
    """Imports the package that trains a method.

    Raises:
      ConfigError: it is not installed; says how to.
    """
    name = str(spec.package)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed: pip install 'ultr[peers]' (or {name})") from error


def package_version(spec: MethodSpec) -> str | None:
    """Returns the version of the package that trains a method; None where it is not installed."""
    try:
        return str(import_package(spec).__version__)
    except ConfigError:
        return None


class TreeRanker:
    """Ranks by the first rounds of boosted trees over features [D, F], whose names it may know."""

    def __init__(self, predict: Predict, rounds: int, features: int, input_schema: InputSchema | None = None) -> None:
        self._predict, self._rounds, self._features = predict, rounds, features
        self.input_schema = input_schema

    def score(self, sessions: Sessions) -> np.ndarray:
        """Computes the scores [B, K]."""
        x = np.asarray(sessions.features["features"], np.float32)
        return self._predict(x.reshape(-1, self._features), self._rounds).reshape(sessions.shape)


class _ScoresByDocument:
    """Ranks documents by scores given by document id."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def score(self, sessions: Sessions) -> np.ndarray:
        return np.asarray(self.scores[np.asarray(sessions.features["document"])])


@dataclasses.dataclass(frozen=True)
class TreeRows:
    """Documents to learn from, in displayed order.

    Attributes:
      x: [N, F] features. y: [N] clicks or gains. position: [N] from 0. sizes: [G] rows of each group.
      left_out: share of the sessions with a click that was left out for room.
      schema: names of the features.
    """

    x: np.ndarray
    y: np.ndarray
    position: np.ndarray
    sizes: np.ndarray
    left_out: float = 0.0
    schema: InputSchema | None = None


class _TreeVariant(NamedTuple):
    value: float
    seconds: float
    settings: dict[str, Any]
    predict: Predict
    rounds: int


def train_trees(
    method: StudyMethod, log: PreparedLog | None, lists: JudgedLists, *, seed: int, metric: str = "ndcg@10"
) -> TrainedMethod:
    """Trains every variant of a method of boosted trees; held-out clicks choose the variant and the number of rounds.

    Clicks choose by `weighted_dcg`, with weights by the conditional likelihood of the training part; a method that
    learns from grades chooses by `metric` on the "vali" lists.

    Raises:
      ConfigError: the package is not installed, or there are no features.
      DataError: no session has both clicked and unclicked documents.
    """
    module = import_package(method.spec)
    notes: list[str] = []
    if method.spec.learns_from == "grades":
        rows = rows_of_grades(lists["train"])
        judge = judge_by_grades(lists["vali"], metric=metric, seed=seed, schema=rows.schema)
        criterion = f"{metric} on the validation grades"
    else:
        assert log is not None
        if (warning := support_note(method.spec, log, "query", by_features=True)) is not None:
            notes.append(warning)
        rows = rows_of_clicks(log, max_rows=max(int(method.all_options()["most_rows"]), 1), seed=seed)
        if rows.left_out:
            notes.append(
                f"learnt from a sample of sessions: {rows.left_out:.0%} of those with a click are beyond most_rows"
            )
        weights, note = choosing_weights(log.nuisance(DEFAULT_ESTIMATOR, "query"))
        notes += [note] if note else []
        judge = judge_by_clicks(log, weights)
        criterion = f"weighted DCG@{CUTOFF} of held-out clicks"
    found = []
    for settings, variant in method.variants():
        options = variant.all_options()
        began = time.perf_counter()
        train = _lightgbm if method.spec.package == "lightgbm" else _xgboost
        predict = train(module, method.model, rows, options, seed)
        value, rounds = judge(predict, int(options["rounds"]))
        found.append(_TreeVariant(value, time.perf_counter() - began, settings, predict, rounds))
    best = max(found, key=lambda v: v.value)
    chosen = {"rounds": best.rounds, "by": criterion, "settings": json_values(best.settings)}
    if len(found) > 1:
        chosen["values"] = [
            {"settings": json_values(v.settings), "rounds": v.rounds, "value": v.value} for v in found
        ]  # fmt: skip
    return TrainedMethod(
        ranker=TreeRanker(best.predict, best.rounds, rows.x.shape[1], rows.schema),
        by=None if log is None else "query",
        chosen=chosen,
        seconds=best.seconds,
        all_seconds=sum(v.seconds for v in found),
        notes=notes,
    )


def _lightgbm(module: Any, model: str, rows: TreeRows, options: dict[str, Any], seed: int) -> Predict:
    settings = {
        "objective": "lambdarank",
        "learning_rate": options["learning_rate"],
        "num_leaves": int(options["leaves"]),
        "min_data_in_leaf": int(options["least_in_leaf"]),
        "lambdarank_truncation_level": 30,
        "num_threads": int(options["threads"]),
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    position = None
    if model == "lightgbm-position":
        position = rows.position.astype(np.int32)
        settings["lambdarank_position_bias_regularization"] = options["position_regularisation"]
    data = module.Dataset(rows.x, label=rows.y, group=rows.sizes, position=position, params={"verbosity": -1})
    rounds, check = int(options["rounds"]), [lambda _: stopping.check()]
    booster = module.train(settings, data, num_boost_round=rounds, callbacks=check)

    def predict(x: np.ndarray, rounds: int) -> np.ndarray:
        return np.asarray(booster.predict(x, num_iteration=rounds, raw_score=True, num_threads=int(options["threads"])))

    return predict


def _xgboost(module: Any, model: str, rows: TreeRows, options: dict[str, Any], seed: int) -> Predict:
    settings = {
        "objective": "rank:ndcg",
        "eta": options["learning_rate"],
        "max_leaves": int(options["leaves"]),
        "max_depth": 0,
        "grow_policy": "lossguide",
        "tree_method": "hist",
        "lambdarank_pair_method": "topk",
        "lambdarank_num_pair_per_sample": 30,
        "nthread": int(options["threads"]),
        "seed": seed,
        "verbosity": 0,
    }
    if model == "xgboost-unbiased":
        settings |= {"lambdarank_unbiased": True, "lambdarank_bias_norm": options["bias_norm"]}
    data = module.DMatrix(rows.x, label=rows.y, group=rows.sizes, nthread=int(options["threads"]))
    booster = module.train(settings, data, num_boost_round=int(options["rounds"]))

    def predict(x: np.ndarray, rounds: int) -> np.ndarray:
        matrix = module.DMatrix(x, nthread=int(options["threads"]))
        return np.asarray(booster.predict(matrix, output_margin=True, iteration_range=(0, rounds)))

    return predict


def _features(vocabulary: Any) -> np.ndarray:
    table: np.ndarray | None = vocabulary.features
    if table is None:
        raise ConfigError("boosted trees read document features, and the log has none")
    return table


def rows_of_clicks(log: PreparedLog, *, max_rows: int, seed: int) -> TreeRows:
    """Collects the training sessions that have both clicked and unclicked documents.

    Args:
      max_rows: documents, at most, of sessions drawn by the seed from more (at least one session).

    Raises:
      ConfigError: the documents of the log have no features.
      DataError: there is no such session.
    """
    part = log.part("train", "query")
    table = _features(part.vocabulary)
    pieces: list[tuple[np.ndarray, ...]] = []
    for batch in part.columns(["documents", "ranks", "clicks"]):
        offsets = batch["documents"].offsets.to_numpy()
        size = np.diff(offsets)
        document, rank, click = (batch[n].flatten().to_numpy() for n in ("documents", "ranks", "clicks"))
        clicks = np.add.reduceat(click != 0, offsets[:-1] - offsets[0])
        keep = (clicks > 0) & (clicks < size)
        rows = np.repeat(keep, size)
        pieces.append((size[keep], document[rows], rank[rows], click[rows]))
    size, document, rank, click = (np.concatenate(part) for part in zip(*pieces, strict=True))
    if not len(size):
        raise DataError(
            "expected sessions with both clicked and unclicked documents, found none",
            fix="There is nothing to rank by in this log.",
        )
    left_out = 0.0
    if size.sum() > max_rows:
        order = np.random.default_rng(seed).permutation(len(size))
        keep = np.zeros(len(size), bool)
        keep[order[: max(int(np.searchsorted(np.cumsum(size[order]), max_rows)), 1)]] = True
        left_out = 1 - float(keep.mean())
        rows = np.repeat(keep, size)
        size, document, rank, click = size[keep], document[rows], rank[rows], click[rows]
    return TreeRows(
        table[document],
        (click != 0).astype(np.float32),
        rank - 1,
        size,
        left_out,
        InputSchema(part.vocabulary.feature_names),
    )


def rows_of_grades(train: Collection) -> TreeRows:
    """Collects the documents of graded lists.

    Raises:
      ConfigError: they have no features.
    """
    if train.features is None:
        raise ConfigError("boosted trees read document features, and the train lists have none")
    sizes = np.diff(train.offsets)
    y = np.maximum(np.nan_to_num(train.labels), 0)
    position = np.arange(len(y)) - np.repeat(train.offsets[:-1], sizes)
    return TreeRows(train.features, y, position, sizes, schema=train.input_schema.only({FEATURES}))


def _judged_rounds(rounds: int) -> list[int]:
    return [*range(ROUNDS_BETWEEN, rounds, ROUNDS_BETWEEN), rounds]


def judge_by_clicks(log: PreparedLog, weights: np.ndarray) -> Judge:
    """Returns a judge of trees by the weighted DCG of held-out clicks; of equal values, the fewest rounds win."""
    valid = log.counts("valid", "query")
    table = _features(valid.vocabulary)
    ids = np.unique(valid.document[valid.document > 0])

    def judge(predict: Predict, rounds: int) -> tuple[float, int]:
        scores = np.zeros(len(table))
        found = []
        for n in _judged_rounds(rounds):
            scores[ids] = predict(table[ids], n)
            found.append((weighted_dcg(_ScoresByDocument(scores), log, "query", weights, max_lists=MAX_LISTS), n))
        return max(found, key=lambda f: (f[0], -f[1]))

    return judge


def judge_by_grades(lists: Collection, *, metric: str, seed: int, schema: InputSchema | None = None) -> Judge:
    """Returns a judge of trees by a metric on graded lists with features; of equal values, the fewest rounds win.

    Args:
      schema: names of the features of the trees, by which those of the lists are found; None: they are the same.
    """
    assert lists.features is not None
    features = lists.features.shape[1] if schema is None else len(schema.features)

    def judge(predict: Predict, rounds: int) -> tuple[float, int]:
        found = []
        for n in _judged_rounds(rounds):
            values = per_query(
                TreeRanker(predict, n, features, schema), lists, metrics=[metric], key=jax.random.key(seed)
            )
            found.append((float(np.nanmean(values[metric])), n))
        return max(found, key=lambda f: (f[0], -f[1]))

    return judge
