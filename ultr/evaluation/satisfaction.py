"""Whether the satisfaction that a click model learnt can be believed: against attraction, and against a constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from ultr.data.dataset import Dataset, DatasetLike, as_dataset
from ultr.evaluation.compiled import CompiledModel, fitted_batch_size
from ultr.files import JsonResult
from ultr.models import Frailty, SlotModel
from ultr.sessions import Sessions

LISTS = 20_000  # of the training data that are looked at, at most, drawn by the seed
CONSTANTS = np.linspace(-6.0, 6.0, 25)
Z = 1.959964


@dataclasses.dataclass(frozen=True, slots=True)
class SatisfactionCheck(JsonResult):
    """What the satisfaction of a click model is worth.

    Attributes:
      documents, queries: how many of the training data it was looked at on.
      correlation: Spearman's, of attraction and satisfaction over these documents; None: one of them does not vary.
      interval: 95 % of it, with queries as the independent units.
      gain: held-out log-likelihood per session, in nats, over the same model with the constant satisfaction that fits
        the training sessions best; None: no sessions were held out, or satisfaction does not vary.
      gain_interval: 95 % of it.
    """

    documents: int
    queries: int
    correlation: float | None
    interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know; empty where nothing speaks against satisfaction."""
        found = []
        if self.correlation is not None and self.interval is not None and self.interval[1] < 0:
            low, high = self.interval
            found.append(
                f"satisfaction falls where attraction rises (rank correlation {self.correlation:.2f}, {low:.2f} to "
                f"{high:.2f}, over {self.documents:,} documents of {self.queries:,} queries): what the features do not "
                "tell about queries looks like satisfaction. Choose satisfaction 'monotone'"
            )
        if self.gain is not None and self.gain_interval is not None and self.gain_interval[0] <= 0:
            low, high = self.gain_interval
            found.append(
                f"satisfaction explains held-out clicks no better than a constant ({self.gain:+.5f} nats per session, "
                f"{low:+.5f} to {high:+.5f}): it may not be worth ranking by"
            )
        return tuple(found)


def check_satisfaction(
    model: object, train: DatasetLike, valid: DatasetLike | None = None, *, seed: int = 0
) -> SatisfactionCheck | None:
    """Checks the satisfaction that a click model learnt; None for a model without.

    Args:
      model: a trained click model.
      train: what it was trained on.
      valid: sessions that were held out, of other queries where the towers are networks; None: none.
      seed: decides which lists of `train` are looked at, where there are many.
    """
    if not has_satisfaction(model):
        return None
    trained = as_dataset(train)
    compiled, size = CompiledModel(model).on(trained, name="training data"), fitted_batch_size(2048, trained)
    parts, totals = [], np.zeros(len(CONSTANTS))
    for batch in _some(trained, size, seed):
        attraction, satisfaction, log_prob = compiled(_logits_and_constants, batch)
        shown = np.asarray(batch.mask)
        document = batch.features.get("document")
        ids = np.arange(shown.size).reshape(shown.shape) if document is None else np.asarray(document)
        query = np.zeros(len(batch), np.int64) if batch.query is None else np.asarray(batch.query)
        columns = (ids, np.repeat(query[:, None], shown.shape[1], 1), attraction, satisfaction)
        parts.append(np.stack([np.asarray(x, np.float64)[shown] for x in columns]))
        # Lists that a constant cannot produce are those that no satisfaction can.
        totals += np.where(np.isfinite(log_prob), log_prob, 0.0) @ (batch.row_weights() * batch.shown())
    ids, query, attraction, satisfaction = np.concatenate(parts, axis=1)
    _, first = np.unique(np.stack([ids, query]), axis=1, return_index=True)
    found = _rank_correlation(attraction[first], satisfaction[first], query[first])
    gain = None
    if valid is not None and np.ptp(satisfaction) > 1e-6:
        gain = _gain(model, as_dataset(valid), float(CONSTANTS[np.argmax(totals)]))
    return SatisfactionCheck(
        len(first), len(np.unique(query)), *(found or (None, None)), *(gain or (None, None))
    )  # fmt: skip


def has_satisfaction(model: object) -> bool:
    """Tells whether a model is one of attraction and satisfaction, such as DBN and SDBN."""
    inside = model.model if isinstance(model, Frailty) else model
    return isinstance(inside, SlotModel) and {"relevance", "satisfaction"} <= set(inside.slots)


def _some(data: Dataset, size: int, seed: int) -> Iterator[Sessions]:
    for number, batch in enumerate(data.batches(size, seed=seed)):
        if number * size >= LISTS:
            return
        yield batch


def _with_constant(model: Any, sessions: Sessions, logits: Any, value: Any) -> jax.Array:
    constant = {**logits, "satisfaction": jnp.full_like(logits["satisfaction"], value)}
    log_prob: jax.Array = model.from_logits(sessions, constant).log_prob(jnp.asarray(sessions.clicks))
    return log_prob


def _logits_and_constants(model: Any, sessions: Sessions) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the logits of attraction and satisfaction, [B, K], and log-probabilities under constants, [C, B]."""
    logits = (model.model if isinstance(model, Frailty) else model).logits(sessions)
    each = jax.lax.map(lambda c: _with_constant(model, sessions, logits, c), jnp.asarray(CONSTANTS, jnp.float32))
    return logits["relevance"], logits["satisfaction"], each


def _difference(model: Any, sessions: Sessions, constant: float) -> jax.Array:
    """Computes log P(clicks) minus that under a constant satisfaction, [B]."""
    logits = (model.model if isinstance(model, Frailty) else model).logits(sessions)
    difference: jax.Array = model.log_prob(sessions) - _with_constant(model, sessions, logits, constant)
    return difference


def _gain(model: object, data: Dataset, constant: float) -> tuple[float, tuple[float, float]] | None:
    """Computes the mean gain over a constant per held-out session, and its interval with queries as the units."""
    compiled, gains, weights, queries = CompiledModel(model).on(data, name="validation data"), [], [], []
    for number, batch in enumerate(data.batches(fitted_batch_size(2048, data))):
        gain = np.asarray(compiled(_difference, batch, constant), np.float64)
        weight = batch.row_weights() * batch.shown() * np.isfinite(gain)
        gains.append(np.where(weight > 0, gain, 0.0))
        weights.append(weight)
        queries.append(np.arange(len(batch)) + number * len(batch) if batch.query is None else np.asarray(batch.query))
    gain, weight, query = (np.concatenate(x) for x in (gains, weights, queries))
    if not weight.sum() > 0:
        return None
    mean = float(gain @ weight / weight.sum())
    _, unit = np.unique(query[weight > 0], return_inverse=True)
    error = _clustered_error(((gain - mean) * weight)[weight > 0] / weight.sum(), unit)
    return mean, (mean - Z * error, mean + Z * error)


def _rank_correlation(a: np.ndarray, b: np.ndarray, query: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """Computes Spearman's correlation and its interval by the delta method, with queries as independent units."""
    if len(a) < 3 or np.ptp(a) < 1e-6 or np.ptp(b) < 1e-6:
        return None
    u, v = (rankdata(x) for x in (a, b))
    u, v = ((x - x.mean()) / x.std() for x in (u, v))
    r = float(np.mean(u * v))
    _, unit = np.unique(query, return_inverse=True)
    error = _clustered_error((u * v - r / 2 * (u**2 + v**2)) / len(u), unit)
    return r, (max(r - Z * error, -1.0), min(r + Z * error, 1.0))


def _clustered_error(influence: np.ndarray, unit: np.ndarray) -> float:
    """Computes the standard error of a statistic from what each observation adds to it, summed by unit."""
    sums = np.bincount(unit, influence)
    return float(np.sqrt(len(sums) / max(len(sums) - 1, 1) * np.sum(sums**2)))
