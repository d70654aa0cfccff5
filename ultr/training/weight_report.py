"""What a ranker's impression weights do to a pass over the training data, as numbers of its history."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ultr.rankers import Ranker
from ultr.sessions import Sessions

WEIGHT_SUMS = 6
TOLERANCE = 1e-6  # by which a weight that counts as 1 may differ from it


def weight_sums(model: Ranker, batch: Sessions) -> jax.Array:
    """Adds up the impression weights of a batch, [WEIGHT_SUMS] float32; rows count by their weight.

    The sums of the batches of a pass are added and read by `weight_facts`.
    """
    found = model.impression_weights(batch)
    assert found is not None  # a ranker that weighs impressions says how
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


def weight_facts(sums: np.ndarray, sessions: float, *, whole_lists: bool) -> dict[str, float | None]:
    """Computes what the history of `fit` says of an epoch's weights.

    Args:
      sums: [WEIGHT_SUMS] of the pass.
      sessions: number of sessions of the pass.
      whole_lists: whether rows are whole sessions; those of counts are single documents.

    Returns:
      effective_sample_size, clipped, affected and unsupported, as `Fitted` explains them.
    """
    weight, square, counted, clipped, unsupported, affected = np.asarray(sums, np.float64).tolist()
    return {
        "effective_sample_size": weight**2 / square if square > 0 else 0.0,
        "clipped": clipped / counted if counted > 0 else None,
        "affected": affected / sessions if whole_lists and sessions > 0 else None,
        "unsupported": unsupported,
    }
