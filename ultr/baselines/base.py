"""`Baseline`: a relevance tower with a loss of its own, and what several losses need."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import rax

from ultr.errors import ConfigError
from ultr.hashing import murmur32
from ultr.rankers import Ranker
from ultr.sessions import Array, Sessions
from ultr.towers import TowerLike, as_tower


class Baseline(Ranker):
    """A relevance tower with a loss of its own; abstract, its subclasses are final.

    Args:
      relevance: tower whose logits are the scores.
    """

    reads_by_towers = True

    def __init__(self, *, relevance: TowerLike) -> None:
        self.relevance = as_tower(relevance)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes scores to rank by, the logits of the relevance tower [B, K]."""
        return self.relevance(sessions.unbiased())


def clicks_of(sessions: Sessions, what: str = "a ranker learnt from clicks") -> jax.Array:
    """Reads the clicks, [B, K] bool, False on padding.

    Raises:
      ConfigError: the sessions have no clicks.
    """
    if sessions.clicks is None:
        raise ConfigError(f"{what} needs clicks: these sessions have none")
    return (jnp.asarray(sessions.clicks) != 0) & jnp.asarray(sessions.mask)


def softmax_cross_entropy(scores: Array, targets: Array, mask: Array) -> jax.Array:
    """Computes -sum targets log softmax(scores) over the documents of each list, [B]; 0 for a list without targets."""
    loss: jax.Array = rax.softmax_loss(scores, targets, where=mask, reduce_fn=None)
    return loss


def ranks_of(scores: Array, mask: Array, salt: Array) -> jax.Array:
    """Ranks documents by falling score, [B, K] int32 from 1, padding last; equal scores in an order drawn by chance.

    The order is drawn from the scores themselves and `salt`, so that it is another one in every step and batch, the
    same for the same ones, and that of padded lists too.

    Args:
      scores: [B, K].
      mask: [B, K] bool.
      salt: [B, K] whole numbers or bool, such as the clicks.
    """
    scores, mask = jnp.asarray(jax.lax.stop_gradient(scores), jnp.float32), jnp.asarray(mask)
    row = jax.lax.broadcasted_iota(jnp.uint32, scores.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, scores.shape, 1)
    place = murmur32(murmur32(row) + column)
    bits = jnp.where(mask, jax.lax.bitcast_convert_type(scores, jnp.uint32), jnp.uint32(0))
    seed = jnp.sum(
        jnp.where(mask, murmur32(bits + place) * (1 + 2 * jnp.asarray(salt).astype(jnp.uint32)), jnp.uint32(0))
    )
    chance = murmur32(place ^ seed)
    order = jax.lax.sort((~mask, -scores, chance, column.astype(jnp.int32)), dimension=1, num_keys=3)[3]
    return jnp.argsort(order, axis=1).astype(jnp.int32) + 1
