"""Objectives over exposure: what a stochastic ranker is worth by a log, and how far it goes from the logging policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LEAST_SESSIONS = 100.0  # below so many, proximal ranking policy optimisation stays at the logging policy


class LoggedExposure(NamedTuple):
    """What a log says of the documents of each list.

    Attributes:
      exposure: [B, K] under the logging policy, the mean weight of the ranks shown; 0: never shown.
      relevance: [B, K] estimates, right on average; 0 on padding, and where never shown: there is no reward for those.
      mask: [B, K] bool.
      delta: how far the ranker may go, from 0 (nowhere) to 1, [B, 1] or a scalar; proximal optimisation turns it
        around: the exposure of a document may pay from delta to 1/delta times that under the logging policy.
      penalty: factor of the root of the mean divergence.
      divergence: scalar, an estimate of the mean divergence over all lists, at which its root is linearised.
    """

    exposure: jax.Array
    relevance: jax.Array
    mask: jax.Array
    delta: jax.Array | float = 1.0
    penalty: jax.Array | float = 0.0
    divergence: jax.Array | float = 1.0


def utility(exposure: jax.Array, logged: LoggedExposure) -> jax.Array:
    """Computes the sum of exposure times estimated relevance, [B]: the expected clicks, or DCG, of a ranker."""
    return jnp.sum(jnp.where(logged.mask, exposure * logged.relevance, 0.0), axis=1)


def divergence(exposure: jax.Array, logged: jax.Array, mask: jax.Array, *, other: jax.Array | None = None) -> jax.Array:
    """Computes the Renyi divergence d2 of exposure from that of the logging policy, [B]: at least 1, equal: 1.

    sum of p^2 / q, where p and q are the exposures divided by their sums. A document that was never shown has no q and
    is left out.

    Args:
      exposure, logged: [B, K].
      mask: [B, K] bool.
      other: another estimate of `exposure`, independent of it; with it the product is right on average.
    """
    shown = mask & (logged > 0)
    whole = jnp.sum(jnp.where(shown, logged, 0.0), axis=1, keepdims=True)
    whole = jnp.where(whole > 0, whole, 1.0)
    q = jnp.where(shown, logged, 1.0) / whole
    total = jnp.sum(jnp.where(mask, exposure, 0.0), axis=1, keepdims=True)  # that of any exposure of these lists
    total = jnp.where(total > 0, total, 1.0)
    again = exposure if other is None else other
    return jnp.sum(jnp.where(shown, exposure / total * again / total / q, 0.0), axis=1)


def penalised(exposure: jax.Array, logged: LoggedExposure) -> jax.Array:
    """Computes the utility less the penalty on the root of the mean divergence, [B].

    The root is linearised where the mean divergence is now, so that lists add up, and their mean has its gradient.
    """
    now = jnp.asarray(logged.divergence)
    own = divergence(exposure, logged.exposure, logged.mask)
    return utility(exposure, logged) - logged.penalty * (jnp.sqrt(now) + (own - now) / (2 * jnp.sqrt(now)))


def proximal(exposure: jax.Array, logged: LoggedExposure) -> jax.Array:
    """Computes the utility in which exposure pays only as long as it is near that under the logging policy, [B].

    With x = exposure / logged exposure and r = relevance x logged exposure, the sum of min(x, 1/delta) r where r >= 0
    and of max(x, delta) r elsewhere. Written without the ratio, so that a document that was never shown has no reward.
    """
    most, least = logged.exposure / logged.delta, logged.exposure * logged.delta
    counted = jnp.where(logged.relevance >= 0, jnp.minimum(exposure, most), jnp.maximum(exposure, least))
    return jnp.sum(jnp.where(logged.mask, counted * logged.relevance, 0.0), axis=1)


class ExposureObjective(NamedTuple):
    """An objective over exposure.

    Attributes:
      value: (exposure, what was logged) -> [B], to maximise.
      doubly_robust: whether a regression and trust bias enter the estimates of relevance.
      delta: its default; None: 100 / sessions, at most 1.
      penalty_factor: what the variance that the penalty bounds is multiplied by; 0: there is no penalty.
    """

    value: Callable[[jax.Array, LoggedExposure], jax.Array]
    doubly_robust: bool
    delta: float | None = 1.0
    penalty_factor: float = 0.0


# Gupta, Oosterhuis and de Rijke: exposure-crm 2023; safe-doubly-robust and prpo 2024.
EXPOSURE_OBJECTIVES: Mapping[str, ExposureObjective] = {
    "ips": ExposureObjective(utility, doubly_robust=False),
    "doubly-robust": ExposureObjective(utility, doubly_robust=True),
    "exposure-crm": ExposureObjective(penalised, doubly_robust=False, delta=0.1, penalty_factor=1.0),
    "safe-doubly-robust": ExposureObjective(penalised, doubly_robust=True, delta=0.1, penalty_factor=2.0),
    "prpo": ExposureObjective(proximal, doubly_robust=True, delta=None),
}


def penalty(
    objective: ExposureObjective,
    *,
    weights: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    delta: float,
    sessions: float,
) -> float:
    """Computes the factor of the root of the mean divergence: a bound on the estimate's error that holds with delta.

    (1 + max beta/alpha) sqrt(c Z/N (1 - delta)/delta), where Z is the sum of the weights of the ranks, N the number of
    sessions, and c that of the objective.
    """
    variance = objective.penalty_factor * float(np.sum(weights)) / sessions
    return (1.0 + float(np.max(beta / alpha))) * float(np.sqrt(variance * (1 - delta) / delta))
