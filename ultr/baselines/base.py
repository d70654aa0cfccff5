"""What every baseline is: a relevance tower with a loss of its own."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import rax
from flax import nnx

from ultr.errors import ConfigError
from ultr.models import Tower
from ultr.sessions import Array, Sessions


class Baseline(nnx.Module):
    """A relevance tower with a loss of its own; abstract, its subclasses are final.

    Args:
      relevance: tower whose logits are the scores.

    Attributes:
      statistics: what of a log the loss needs: "rank", "last-click" or "list" (see `ultr.data.collapsing`).
    """

    statistics = "list"

    def __init__(self, *, relevance: Tower) -> None:
        self.relevance = relevance

    @abc.abstractmethod
    def loss(self, sessions: Sessions) -> jax.Array:
        """[B] loss of each list."""

    def score(self, sessions: Sessions) -> jax.Array:
        """[B, K] scores to rank by: higher is more relevant; sees neither positions nor clicks."""
        return jnp.asarray(self.relevance(sessions.unbiased()))


def clicks_of(sessions: Sessions, what: str = "a ranker learnt from clicks") -> jax.Array:
    """[B, K] bool, False on padding.

    Raises:
      ConfigError: the sessions have no clicks.
    """
    if sessions.clicks is None:
        raise ConfigError(f"{what} needs clicks: these sessions have none")
    return (jnp.asarray(sessions.clicks) != 0) & jnp.asarray(sessions.mask)


def softmax_cross_entropy(scores: Array, targets: Array, mask: Array) -> jax.Array:
    """[B] -sum targets log softmax(scores) over the masked documents; 0 for a list without targets."""
    return rax.softmax_loss(scores, targets, where=mask, reduce_fn=None)


def ranks_of(scores: Array, mask: Array, salt: Array) -> jax.Array:
    """[B, K] int32 1-based ranks by falling score, padding last; equal scores in an order drawn by chance.

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
    place = _mixed(_mixed(row) + column)
    bits = jnp.where(mask, jax.lax.bitcast_convert_type(scores, jnp.uint32), jnp.uint32(0))
    seed = jnp.sum(
        jnp.where(mask, _mixed(bits + place) * (1 + 2 * jnp.asarray(salt).astype(jnp.uint32)), jnp.uint32(0))
    )
    chance = _mixed(place ^ seed)
    order = jax.lax.sort((~mask, -scores, chance, column.astype(jnp.int32)), dimension=1, num_keys=3)[3]
    return jnp.argsort(order, axis=1).astype(jnp.int32) + 1


def _mixed(x: jax.Array) -> jax.Array:
    """Spreads 32-bit numbers (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
