"""Rankers to compare with: the naive ones, which take clicks for relevance, and the full-information skyline.

Each wraps a relevance tower and has the two methods of everything that can be trained:
`loss(sessions) -> [B]` and `score(sessions) -> [B, K]`.
"""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import rax
from flax import nnx

from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.models import Tower
from ultr.sessions import Array, Sessions


class Baseline(nnx.Module):
    """A relevance tower with a loss of its own; abstract, its subclasses are final.

    Args:
      relevance: tower whose logits are the scores.
    """

    def __init__(self, *, relevance: Tower) -> None:
        self.relevance = relevance

    @abc.abstractmethod
    def loss(self, sessions: Sessions) -> jax.Array:
        """[B] loss of each list."""

    def score(self, sessions: Sessions) -> jax.Array:
        """[B, K] scores to rank by: higher is more relevant; sees neither positions nor clicks."""
        return jnp.asarray(self.relevance(sessions.unbiased()))


def _clicks(sessions: Sessions) -> jax.Array:
    if sessions.clicks is None:
        raise ConfigError("a naive ranker learns from clicks: these sessions have none")
    return (jnp.asarray(sessions.clicks) != 0) & sessions.mask


def _softmax_cross_entropy(scores: Array, targets: Array, mask: Array) -> jax.Array:
    """[B] -sum targets log softmax(scores); 0 for a list without targets."""
    return rax.softmax_loss(scores, targets, where=mask, reduce_fn=None)


class NaivePointwise(Baseline):
    """Binary cross-entropy on the clicks, as if every document had been examined."""

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, scores = _clicks(sessions), jnp.asarray(self.relevance(sessions))
        each = -log_sigmoid(jnp.where(clicks, scores, -scores))
        return jnp.sum(jnp.where(sessions.mask, each, 0.0), axis=1)


class NaiveListwise(Baseline):
    """Softmax cross-entropy on the clicks; a list without a click contributes 0."""

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks = _clicks(sessions).astype(jnp.float32)
        return _softmax_cross_entropy(jnp.asarray(self.relevance(sessions)), clicks, jnp.asarray(sessions.mask))


class FullInformation(Baseline):
    """Softmax cross-entropy on the gains 2^y - 1 of the expert grades y: the skyline that no click log reaches."""

    def loss(self, sessions: Sessions) -> jax.Array:
        if sessions.labels is None:
            raise ConfigError("the full-information ranker learns from labels: these sessions have none")
        judged = jnp.asarray(sessions.mask) & ~jnp.isnan(jnp.asarray(sessions.labels))
        gains = jnp.where(judged, 2.0 ** jnp.where(judged, sessions.labels, 0.0) - 1.0, 0.0)
        return _softmax_cross_entropy(jnp.asarray(self.relevance(sessions)), gains, judged)
