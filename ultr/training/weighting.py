"""What a model's weights do to a pass over the training data, as numbers of its history."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.sessions import Sessions

SUMS = 6
TOLERANCE = 1e-6  # of a weight that counts as 1


def has_weights(model: Any) -> bool:
    """Whether a model says in `weighting(sessions)` how it weighs impressions (`ultr.baselines.Weighting`)."""
    return hasattr(model, "weighting")


def weight_sums(model: Any, batch: Sessions) -> jax.Array:
    """[SUMS] float32 of a batch, to be added up over a pass and read by `weight_facts`; rows count by their weight."""
    found = model.weighting(batch)
    ranks = batch.rank_axis
    rows = jnp.any(jnp.asarray(batch.mask), axis=ranks).astype(jnp.float32)
    if batch.weight is not None:
        rows = rows * batch.weight
    weight = jnp.where(found.counted, found.weight, 0.0)
    affected = jnp.any(found.counted & (jnp.abs(found.weight - 1.0) > TOLERANCE), axis=ranks)
    unsupported = jnp.zeros_like(found.counted) if found.unsupported is None else found.unsupported
    each = [weight, weight**2, found.counted, found.clipped & found.counted, unsupported]
    sums = [jnp.sum(x.astype(jnp.float32) * jnp.expand_dims(rows, ranks)) for x in each]
    return jax.lax.stop_gradient(jnp.stack([*sums, jnp.sum(jnp.where(affected, rows, 0.0))]))


def weight_facts(sums: Any, sessions: float, *, whole: bool) -> dict[str, float | None]:
    """What the history of `fit` says of an epoch's weights.

    Args:
      sums: [SUMS] of the pass.
      sessions: that it had.
      whole: whether rows are whole sessions; those of counts are single documents.

    Returns:
      effective_sample_size, clipped, affected and unsupported, as `Fitted` explains them.
    """
    weight, square, counted, clipped, unsupported, affected = np.asarray(sums, np.float64).tolist()
    return {
        "effective_sample_size": weight**2 / square if square > 0 else 0.0,
        "clipped": clipped / counted if counted > 0 else None,
        "affected": affected / sessions if whole and sessions > 0 else None,
        "unsupported": unsupported,
    }
