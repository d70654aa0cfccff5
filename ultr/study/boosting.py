"""Boosted trees of LightGBM and XGBoost as methods: the same log, in the order in which it was displayed.

Both learn from rows per displayed document, grouped by session. LightGBM takes positions with the training data alone
(they are dropped silently by its `cv`, `subset` and `save_binary`, none of which is used here); XGBoost takes the order
of the rows within a group for the positions. Sessions without a click, or with clicks on everything, give neither of
them a pair to learn from and are left out.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ultr.errors import ConfigError, DataError
from ultr.evaluation import per_query
from ultr.sessions import Sessions
from ultr.study.learning import CUT, Learnt, choosing_weights, weighted_dcg
from ultr.study.nuisance import DEFAULT
from ultr.study.prepared import Lists, Prepared
from ultr.study.spec import Method, plain

STEP = 10  # rounds between two looks at the validation clicks
LOOKED_AT = 1 << 14  # lists of them


def package(model: str) -> Any:
    """The module of a method.

    Raises:
      ConfigError: it is not installed; says how to.
    """
    name = model.split("-")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed: pip install 'ultr[peers]' (or {name})") from error


def version(model: str) -> str | None:
    """Of the installed package; None: it is not installed."""
    try:
        return str(package(model).__version__)
    except ConfigError:
        return None


class Trees:
    """A ranker by features [D, F] -> scores [D]."""

    def __init__(self, predict: Callable[[np.ndarray], np.ndarray], features: int) -> None:
        self._predict, self._features = predict, features

    def score(self, sessions: Sessions) -> np.ndarray:
        """[B, K]."""
        x = np.asarray(sessions.features["features"], np.float32)
        return self._predict(x.reshape(-1, self._features)).reshape(sessions.shape)


class _Known:
    """Scores of documents by their ids."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def score(self, sessions: Sessions) -> np.ndarray:
        return self.scores[np.asarray(sessions.features["document"])]


class _Rows:
    """Rows in displayed order.

    Attributes:
      x: [N, F]. y: [N]. position: [N] from 0. sizes: [G] rows of each group.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, position: np.ndarray, sizes: np.ndarray) -> None:
        self.x, self.y, self.position, self.sizes = x, y, position, sizes


def boost(method: Method, log: Prepared | None, lists: Lists, *, seed: int, metric: str = "ndcg@10") -> Learnt:
    """Trains every variant of a method of boosted trees; held-out clicks choose the variant and the number of rounds.

    Clicks choose by `weighted_dcg`, with weights by the conditional likelihood of the training part; a method that
    learns from grades chooses by `metric` on the "vali" lists.

    Raises:
      ConfigError: the package is not installed, or there are no features.
      DataError: no session tells clicked from unclicked documents.
    """
    module = package(method.model)
    notes: list[str] = []
    most = max(int({**method.kind.options, **method.options}["most_rows"]), 1)
    if method.kind.learns == "labels":
        rows, judge = _graded(lists), _by_grades(lists, seed, metric)
        by = f"{metric} on the validation grades"
    else:
        assert log is not None
        rows, dropped = _clicked(log, most, seed)
        if dropped:
            notes.append(f"learnt from a sample of sessions: {dropped:.0%} of those with a click are beyond most_rows")
        weights, note = choosing_weights(log.harvest(DEFAULT, "query"))
        notes += [note] if note else []
        judge = _by_clicks(log, weights)
        by = f"weighted DCG@{CUT} of held-out clicks"
    found = []
    for settings, variant in method.variants():
        options = {**method.kind.options, **variant.options}
        began = time.perf_counter()
        train = _lightgbm if method.model.startswith("lightgbm") else _xgboost
        predict = train(module, method.model, rows, options, seed)
        value, rounds = judge(predict, int(options["rounds"]))
        found.append((-value, time.perf_counter() - began, settings, predict, rounds))
    value, seconds, settings, predict, rounds = min(found, key=lambda f: f[0])
    chosen = {"rounds": rounds, "by": by, "settings": plain(settings)}
    if len(found) > 1:
        chosen["values"] = [{"settings": plain(f[2]), "rounds": f[4], "value": -f[0]} for f in found]
    return Learnt(
        ranker=Trees(lambda x: predict(x, rounds), rows.x.shape[1]),
        by=None if log is None else "query",
        chosen=chosen,
        seconds=seconds,
        all_seconds=sum(f[1] for f in found),
        notes=notes,
    )


Predict = Callable[[np.ndarray, int], np.ndarray]


def _lightgbm(module: Any, model: str, rows: _Rows, options: dict[str, Any], seed: int) -> Predict:
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
    booster = module.train(settings, data, num_boost_round=int(options["rounds"]))

    def predict(x: np.ndarray, rounds: int) -> np.ndarray:
        return np.asarray(booster.predict(x, num_iteration=rounds, raw_score=True, num_threads=int(options["threads"])))

    return predict


def _xgboost(module: Any, model: str, rows: _Rows, options: dict[str, Any], seed: int) -> Predict:
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
    table = vocabulary.features
    if table is None:
        raise ConfigError("boosted trees read document features, and the log has none")
    return table


def _clicked(log: Prepared, most: int, seed: int) -> tuple[_Rows, float]:
    """The sessions that tell clicked from unclicked documents, and the share of them that was left out for room."""
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
    dropped = 0.0
    if size.sum() > most:
        order = np.random.default_rng(seed).permutation(len(size))
        keep = np.zeros(len(size), bool)
        keep[order[: max(int(np.searchsorted(np.cumsum(size[order]), most)), 1)]] = True
        dropped = 1 - float(keep.mean())
        rows = np.repeat(keep, size)
        size, document, rank, click = size[keep], document[rows], rank[rows], click[rows]
    return _Rows(table[document], (click != 0).astype(np.float32), rank - 1, size), dropped


def _graded(lists: Lists) -> _Rows:
    train = lists["train"]
    if train.features is None:
        raise ConfigError("boosted trees read document features, and the train lists have none")
    sizes = np.diff(train.offsets)
    y = np.maximum(np.nan_to_num(train.labels), 0)
    position = np.arange(len(y)) - np.repeat(train.offsets[:-1], sizes)
    return _Rows(train.features, y, position, sizes)


def _looks(rounds: int) -> list[int]:
    return [*range(STEP, rounds, STEP), rounds]


def _by_clicks(log: Prepared, weights: np.ndarray) -> Callable[[Predict, int], tuple[float, int]]:
    valid = log.counts("valid", "query")
    table = _features(valid.vocabulary)
    ids = np.unique(valid.document[valid.document > 0])

    def judge(predict: Predict, rounds: int) -> tuple[float, int]:
        scores = np.zeros(len(table))
        found = []
        for n in _looks(rounds):
            scores[ids] = predict(table[ids], n)
            found.append((weighted_dcg(_Known(scores), log, "query", weights, most=LOOKED_AT), n))
        return max(found, key=lambda f: (f[0], -f[1]))

    return judge


def _by_grades(lists: Lists, seed: int, metric: str) -> Callable[[Predict, int], tuple[float, int]]:
    def judge(predict: Predict, rounds: int) -> tuple[float, int]:
        found = []
        vali = lists["vali"]
        assert vali.features is not None
        for n in _looks(rounds):
            trees = Trees(lambda x, n=n: predict(x, n), vali.features.shape[1])  # type: ignore[misc]
            value = per_query(trees, vali, metrics=[metric], key=jax.random.key(seed))[metric]
            found.append((float(np.nanmean(value)), n))
        return max(found, key=lambda f: (f[0], -f[1]))

    return judge
