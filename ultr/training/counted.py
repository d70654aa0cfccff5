"""`count_rates`: `ShrunkCTR` as `solve` trains it, by counting, with the loss of what it counted and of other data."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

from ultr.baselines import ShrunkCTR
from ultr.data.dataset import STREAMED, Dataset, DatasetLike, as_dataset
from ultr.errors import DataError
from ultr.towers import matched
from ultr.training.fitted import Fitted


def count_rates(
    model: ShrunkCTR, train: DatasetLike, valid: DatasetLike | None, strength: float | Literal["held-out"]
) -> Fitted:
    """Counts the click rates of a log; its history is one pass, with the `strength` in impressions (inf: no clicks).

    Raises:
      ConfigError: counts in place of lists where held-out lists choose the strength.
      DataError: no click, or an id or rank beyond the tables.
    """
    began = time.perf_counter()
    fitted = model.fitted(train, strength=strength)
    loss, sessions = _mean_loss(fitted, as_dataset(train))
    valid_loss = None
    if valid is not None:
        valid_loss = _mean_loss(fitted, matched(fitted, as_dataset(valid), name="validation data"))[0]
    row = {
        "epoch": 1,
        "loss": loss,
        "objective": -loss,
        "valid_loss": valid_loss,
        "sessions": sessions,
        "impossible": 0.0,
        "strength": float(fitted.strength[...]),
        "seconds": round(time.perf_counter() - began, 3),
    }
    return Fitted(fitted, [row], best=1)


def _mean_loss(model: ShrunkCTR, data: Dataset) -> tuple[float, float]:
    """Computes the mean loss per session, and the weight of the sessions."""
    total = weight = 0.0
    for batch in data.batches(STREAMED, share_features=True):
        each = np.where(batch.shown(), batch.row_weights(), 0.0)
        total += float(np.asarray(model.loss(batch), np.float64) @ each)
        weight += float(each.sum())
    weight /= data.description.rows_per_session
    if not weight:
        raise DataError("expected sessions, found none")
    return total / weight, weight
