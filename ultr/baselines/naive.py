"""The naive rankers, which take clicks for relevance, and the full-information skyline."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import rax

from ultr.baselines.base import Baseline, clicks_of, ranks_of, softmax_cross_entropy
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.sessions import Sessions


class NaivePointwise(Baseline):
    """Binary cross-entropy on the clicks, as if every document had been examined."""

    sufficient_statistics = "rank"

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, scores = clicks_of(sessions), self.relevance(sessions)
        each = -log_sigmoid(jnp.where(clicks, scores, -scores))
        return jnp.sum(jnp.where(sessions.mask, each, 0.0), axis=1)


class NaiveListwise(Baseline):
    """Softmax cross-entropy on the clicks; a list without a click contributes 0."""

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions).astype(jnp.float32)
        return softmax_cross_entropy(self.relevance(sessions), clicks, jnp.asarray(sessions.mask))


class NaiveLambdaRank(Baseline):
    """LambdaRank on the clicks: log(1 + exp(score_j - score_i)) over clicked i and unclicked j, times |delta nDCG|.

    Burges 2006. The weight of a pair is what exchanging the two would change in the nDCG of the clicks, in the order
    of the scores as they are; it is not differentiated. Equal scores stand in a random order, not in that of the list.
    A list without a click, or with nothing else, contributes 0.
    """

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, scores = clicks_of(sessions), self.relevance(sessions)
        mask = jnp.asarray(sessions.mask)
        return lambda_loss(scores, clicks.astype(jnp.float32), mask, ranks_of(scores, mask, clicks))


def lambda_loss(scores: jax.Array, gains: jax.Array, mask: jax.Array, ranks: jax.Array) -> jax.Array:
    """Sums log(1 + exp(score_j - score_i)) |delta nDCG_ij| over pairs with gain_i > gain_j, [B].

    Args:
      scores, gains: [B, K]; gains of at least 0.
      mask: [B, K] bool.
      ranks: [B, K] by the scores, without ties (`ultr.baselines.base.ranks_of`).
    """
    order = -ranks.astype(jnp.float32)

    def weight(_: jax.Array, labels: jax.Array, **options: jax.Array) -> jax.Array:
        delta: jax.Array = rax.dcg_lambdaweight(order, labels, normalize=True, gain_fn=lambda gain: gain, **options)
        return jax.lax.stop_gradient(delta / scores.shape[1])  # rax multiplies by the width, padding included

    pairs = rax.pairwise_logistic_loss(scores, gains, where=mask, lambdaweight_fn=weight, reduce_fn=None)
    return jnp.sum(pairs.reshape(len(scores), -1), axis=1)


class FullInformation(Baseline):
    """Softmax cross-entropy on the gains 2^y - 1 of the expert grades y: the skyline that no click log reaches."""

    learns_from_clicks = False

    def loss(self, sessions: Sessions) -> jax.Array:
        if sessions.labels is None:
            raise ConfigError("the full-information ranker learns from labels: these sessions have none")
        judged = jnp.asarray(sessions.mask) & ~jnp.isnan(jnp.asarray(sessions.labels))
        gains = jnp.where(judged, 2.0 ** jnp.where(judged, sessions.labels, 0.0) - 1.0, 0.0)
        return softmax_cross_entropy(self.relevance(sessions), gains, judged)
