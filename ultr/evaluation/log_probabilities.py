"""Log-probabilities of observed clicks that keep their precision near 0 and 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ultr.logspace import log1mexp
from ultr.sessions import Array


@jax.jit
def observed_from_marginal(log_click: Array, observed: Array, clicks: Array, mask: Array) -> jax.Array:
    """Computes [B, K] marginal log-probabilities of what was observed, from those of a click.

    The complement of a sum of float32 probabilities close to 1 is noise, down to log 0. But no click at a rank is at
    least as probable as no click there together with what was observed above, the sum of the conditionals.

    Args:
      log_click: [B, K] marginal log-probabilities of a click.
      observed: [B, K] conditional log-probabilities of what was observed, given the clicks above.
      clicks, mask: [B, K].
    """
    log_click = jnp.where(mask, jnp.minimum(log_click, 0.0), -1.0)
    joint = jnp.cumsum(observed, axis=1)
    # Below clicks of probability zero, conditionals may be NaN; they then bound nothing.
    no_click = jnp.maximum(log1mexp(log_click), jnp.where(jnp.isnan(joint), -jnp.inf, joint))
    return jnp.where(clicks != 0, log_click, no_click)


@jax.jit
def at_most_one(log_prob: Array, mask: Array) -> jax.Array:
    """Caps probabilities [B, K] that rounding puts above 1, with 0 on padding: no perplexity is below 1."""
    return jnp.where(mask, jnp.minimum(log_prob, 0.0), 0.0)
