"""`LoggedOrder`: a relevance tower fitted to the order in which a log shows documents."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ultr.baselines.base import Baseline
from ultr.sessions import Sessions

_FAR = -1e9  # stands for a logit of minus infinity, with gradients that are finite


class LoggedOrder(Baseline):
    """Learns to rank as the logging policy does: Plackett-Luce likelihood of the displayed order (ListMLE, Xia 2008).

    The same loss as that of `LoggingPolicy`, around any relevance tower, which is then where a safe method starts. It
    needs no clicks. The scores have the scale at which drawn rankings vary as the logged ones do.

    Args:
      relevance: tower whose logits are the scores.
    """

    learns_from_clicks = False

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes minus the log-likelihood of the displayed order of each list, [B]."""
        mask = jnp.asarray(sessions.mask)
        scores = jnp.where(mask, self.relevance(sessions.unbiased()), _FAR)
        left = jax.lax.cumlogsumexp(scores, axis=1, reverse=True)
        return jnp.sum(jnp.where(mask, left - scores, 0.0), axis=1)
