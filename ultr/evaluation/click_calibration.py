"""Calibration of a click model: predicted against observed clicks, by rank and by what was predicted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.data.dataset import Dataset, DatasetLike
from ultr.errors import ConfigError, DataError
from ultr.evaluation.clusters import CLUSTERS, unit_ids, with_units
from ultr.evaluation.compiled import CompiledModel, evaluation_data
from ultr.evaluation.contracts import ClickPredictor
from ultr.evaluation.estimate import Estimate, wilson_interval
from ultr.files import json_values
from ultr.sessions import Sessions

_FINE = 1024  # fine bins of the logit of the prediction, which are joined to those of the table
_REACH = 16.0  # logits beyond this size are in the first and the last fine bin
_GROUPS = 64  # of sessions or queries, between which the standard error is taken
BY = ("click", "relevance")


@dataclasses.dataclass(frozen=True)
class CalibrationBins:
    """C bins of impressions, with predicted and observed clicks, and the calibration error over all of them.

    Attributes:
      rank: [C] 1-based.
      bin: [C] number of the bin among those of its rank, from 0, by rising prediction; None in the table by rank.
      low, high: [C] the least and the highest prediction (or relevance) that the bin can hold, as probabilities.
      predicted: [C] mean predicted probability of a click.
      observed: [C] clicks per impression.
      standard_error: [C] of `observed`, binomial; sessions are independent, and a bin has one impression of each.
      count: [C] impressions, weights included.
      error: expected calibration error: the mean over impressions of |observed - predicted| of their bin
        (Naeini 2015).
      floor: the mean of the error if the model were right: chance alone makes bins differ.
      excess: (error - floor) / the standard deviation that chance gives the error (bins taken for independent); above
        2 or 3 the model is off.
    """

    rank: np.ndarray
    bin: np.ndarray | None
    low: np.ndarray
    high: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    standard_error: np.ndarray
    count: np.ndarray
    error: Estimate
    floor: float
    excess: float

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Computes the ends [C], [C] of the 95 % binomial intervals (Wilson) of `observed`."""
        return wilson_interval(self.observed, self.count)

    def rows(self) -> list[list[str]]:
        """Returns the table for people: a head, then one row per bin."""
        head = ["rank", *(["prediction"] if self.bin is not None else [])]
        out = [[*head, "predicted", "observed", "standard error", "impressions"]]
        for i, rank in enumerate(self.rank.tolist()):
            span = [f"{self.low[i]:.3f} to {self.high[i]:.3f}"] if self.bin is not None else []
            numbers = [f"{x[i]:.4f}" for x in (self.predicted, self.observed, self.standard_error)]
            out.append([str(rank), *span, *numbers, f"{self.count[i]:,.0f}"])
        return out

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for JSON, with an object per bin; numbers that are not finite become None."""
        columns = {
            "rank": self.rank,
            **({} if self.bin is None else {"bin": self.bin}),
            "low": self.low,
            "high": self.high,
            "predicted": self.predicted,
            "observed": self.observed,
            "standard_error": self.standard_error,
            "count": self.count,
        }
        bins = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        values: dict[str, Any] = json_values(
            {"error": self.error, "floor": self.floor, "excess": self.excess, "bins": bins}
        )
        return values


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predicted against observed clicks.

    Attributes:
      by_rank: a bin per rank.
      by_prediction: bins per rank by what was predicted there.
    """

    by_rank: CalibrationBins
    by_prediction: CalibrationBins

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for JSON; numbers that are not finite become None."""
        return {"by_rank": self.by_rank.to_json(), "by_prediction": self.by_prediction.to_json()}


def calibration(
    model: ClickPredictor,
    log: DatasetLike,
    *,
    bins: int = 10,
    by: str = "click",
    conditional: bool = False,
    cluster: str = "session",
    batch_size: int = 4096,
) -> Calibration:
    """Compares predicted click probabilities with clicks, in one pass.

    A model may be right on average at every rank and still wrong for good and bad documents: the usual sign of
    confounded position and relevance. The bins of a rank hold about equally many impressions each, but impressions
    with (nearly) equal predictions stay together: bins are unions of 1,024 steps of a logit from -16 to 16.

    Args:
      model: a click model: called with sessions, it gives a click distribution.
      log: sessions with clicks; a session of weight w counts as w sessions.
      bins: number of bins of every rank.
      by: whether bins are of the predicted probability of a click ("click"), or of the relevance that `model.score`
        gives ("relevance"; the same bins at all ranks).
      conditional: whether predictions are given the clicks above, in place of before any click.
      cluster: as for `evaluate`, which units the standard error of `error` takes for independent. It is computed
        between 64 groups of them.

    Raises:
      ConfigError: an unknown option.
      DataError: no sessions, no clicks, not a click model, or a prediction that is NaN.
    """
    if by not in BY or cluster not in CLUSTERS or bins < 1:
        raise ConfigError(
            f"expected by click or relevance, cluster {', '.join(CLUSTERS)}, and at least 1 bin, found {by!r}, "
            f"{cluster!r} and {bins}"
        )
    dataset, batch_size = evaluation_data(log, batch_size)
    dataset = with_units(dataset, cluster)
    compiled = CompiledModel(model).on(dataset)
    sums = _FineBins()
    for batch, unit in _sessions_with_clicks(compiled, dataset, batch_size, cluster):
        log_prob = np.asarray(jax.device_get(compiled(_log_prob_of_click, batch, conditional)), np.float64)
        predicted = np.exp(np.minimum(log_prob, 0.0))
        logit = _logit(log_prob)
        if by == "relevance":
            logit = compiled.scores(batch.unbiased()).astype(np.float64)
        bad = np.isnan(predicted) & np.asarray(batch.mask)
        if bad.any():
            raise DataError(
                f"the model predicts NaN for {int(bad.sum())} impressions of a batch",
                fix="Its parameters or the features are not finite: check them, or lower the learning rate",
            )
        sums.add(batch, predicted, logit, unit)
    return sums.calibration(bins, within_rank=by == "click")


def _log_prob_of_click(model: ClickPredictor, sessions: Sessions, conditional: bool) -> jax.Array:
    """Computes [B, K] log-probabilities of a click."""
    predicted = model(sessions)
    if conditional:
        assert sessions.clicks is not None
        return jnp.asarray(predicted.conditional(sessions.clicks))
    return jnp.asarray(predicted.marginal())


def _sessions_with_clicks(
    compiled: CompiledModel, log: Dataset, batch_size: int, cluster: str
) -> Iterator[tuple[Sessions, np.ndarray]]:
    """Yields batches with clicks, and [B] the number of the independent unit of each list."""
    number = 0
    for batch in log.batches(batch_size):
        if number == 0:
            if batch.clicks is None:
                raise DataError("expected sessions with clicks, found none", field="clicks")
            if not compiled.predicts_clicks(batch):
                raise DataError(f"{type(compiled.model).__name__} is not a click model: it predicts no clicks")
        own = unit_ids(batch, cluster)
        yield batch, np.arange(number, number + len(batch)) if own is None else own
        number += len(batch)
    if number == 0:
        raise DataError("expected at least one session, found none")


def _logit(log_prob: np.ndarray) -> np.ndarray:
    log_prob = np.minimum(log_prob, -1e-12)
    return np.asarray(log_prob - np.log(-np.expm1(log_prob)))


class _FineBins:
    """Sums of impressions, predictions, clicks and variances per rank and fine bin, and of errors per group too."""

    def __init__(self) -> None:
        self._positions = np.zeros(0, np.int64)
        self._sums = np.zeros((4, 0, _FINE))
        self._errors = np.zeros((0, _FINE, _GROUPS))
        self._weights = np.zeros(_GROUPS)

    def add(self, batch: Sessions, predicted: np.ndarray, logit: np.ndarray, unit: np.ndarray) -> None:
        """Adds a batch with [B, K] probabilities, [B, K] logits to bin by, and [B] numbers of the independent units."""
        mask, weight = np.asarray(batch.mask), batch.row_weights()
        row, at = np.nonzero(mask & (weight > 0)[:, None])
        position = np.asarray(batch.position)[row, at]
        new = np.setdiff1d(position, self._positions)
        if len(new):
            self._positions = np.concatenate([self._positions, new])
            self._sums = np.pad(self._sums, [(0, 0), (0, len(new)), (0, 0)])
            self._errors = np.pad(self._errors, [(0, len(new)), (0, 0), (0, 0)])
        order = np.argsort(self._positions)
        rank = order[np.searchsorted(self._positions, position, sorter=order)] if len(position) else position
        place = np.clip((logit[row, at] + _REACH) / (2 * _REACH) * _FINE, 0, _FINE - 1).astype(np.int64)
        w, p = weight[row], predicted[row, at]
        click = np.asarray(batch.clicks)[row, at] != 0
        for total, each in zip(self._sums, (w, w * p, w * click, w * p * (1 - p)), strict=True):
            np.add.at(total, (rank, place), each)
        # A multiplicative hash: neighbouring numbers are in different groups.
        group = (unit[row].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58)
        np.add.at(self._errors, (rank, place, group.astype(np.int64)), w * (click - p))
        self._weights += np.bincount(group.astype(np.int64), w, _GROUPS)

    def calibration(self, bins: int, *, within_rank: bool) -> Calibration:
        """Joins fine bins to `bins` of every rank, equally full within each rank or over all ranks."""
        order = np.argsort(self._positions)
        rank, sums, errors = self._positions[order] + 1, self._sums[:, order], self._errors[order]
        count = sums[0]
        if not count.sum() > 0:
            raise DataError("expected impressions, found none")
        over = count if within_rank else np.broadcast_to(count.sum(0), count.shape)
        before = np.cumsum(over, axis=1) - over
        total = over.sum(1, keepdims=True)
        # A fine bin goes where the middle of its impressions stands among those of the rank.
        bin = np.minimum(((before + over / 2) * bins / np.maximum(total, 1e-300)).astype(np.int64), bins - 1)
        cell = np.arange(len(rank))[:, None] * bins + bin
        used = np.flatnonzero(count.ravel() > 0)
        names, cells = np.unique(cell.ravel()[used], return_inverse=True)
        edges = 1 / (1 + np.exp(-np.linspace(-_REACH, _REACH, _FINE + 1)))
        edges[[0, -1]] = 0.0, 1.0
        fine = used % _FINE
        low, high = np.ones(len(names)), np.zeros(len(names))
        np.minimum.at(low, cells, edges[fine])
        np.maximum.at(high, cells, edges[fine + 1])
        flat = sums.reshape(4, -1)[:, used]
        grouped = np.stack([np.bincount(cells, x, len(names)) for x in flat])
        errors_of = np.zeros((len(names), _GROUPS))
        np.add.at(errors_of, cells, errors.reshape(-1, _GROUPS)[used])
        by_rank = _bins(rank, None, np.zeros(len(rank)), np.ones(len(rank)), sums.sum(2), errors.sum(1), self._weights)
        return Calibration(
            by_rank, _bins(rank[names // bins], names % bins, low, high, grouped, errors_of, self._weights)
        )


def _bins(
    rank: np.ndarray,
    bin: np.ndarray | None,
    low: np.ndarray,
    high: np.ndarray,
    sums: np.ndarray,
    errors: np.ndarray,
    weights: np.ndarray,
) -> CalibrationBins:
    kept = sums[0] > 0
    rank, low, high, sums, errors = rank[kept], low[kept], high[kept], sums[:, kept], errors[kept]
    count, predicted, observed = sums[0], sums[1] / sums[0], sums[2] / sums[0]
    total = count.sum()
    value = float(np.abs(sums[2] - sums[1]).sum() / total)
    # The error is a ratio of sums, with the signs of the differences taken as fixed: right unless one is close to 0.
    own = (np.sign(sums[2] - sums[1])[:, None] * errors).sum(0) - value * weights
    groups = int((weights > 0).sum())
    spread = math.sqrt(float((own**2).sum()) * groups / (groups - 1)) / total if groups > 1 else math.nan
    by_chance = np.sqrt(sums[3])  # standard deviation of the clicks of a bin, if the model were right
    floor = float(math.sqrt(2 / math.pi) * by_chance.sum() / total)
    deviation = math.sqrt(float((1 - 2 / math.pi) * sums[3].sum())) / total
    return CalibrationBins(
        rank=rank,
        bin=None if bin is None else bin[kept],
        low=low,
        high=high,
        predicted=predicted,
        observed=observed,
        standard_error=np.sqrt(np.maximum(observed * (1 - observed), 0.0) / count),
        count=count,
        error=Estimate.of(value, spread, count=total, degrees_of_freedom=groups - 1, lower_bound=0.0),
        floor=floor,
        excess=(value - floor) / deviation if deviation > 0 else math.nan,
    )
