"""`Mixture`: several kinds of users, each with a click model of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.clicks import MixtureClicks
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logsumexp
from ultr.models.base import ClickModel
from ultr.sessions import Array, Sessions
from ultr.towers.base import as_tower


class Mixture(ClickModel):
    """Several kinds of users: each session follows one of the component models.

    Args:
      components: click models over the same lists.
      prior_logits: [M] array (trained when an `nnx.Param`), or a callable Sessions -> [B, M]; None: trained,
        starting at equal shares.
    """

    def __init__(
        self,
        *,
        components: Sequence[ClickModel],
        prior_logits: Array | nnx.Variable[jax.Array] | Callable[[Sessions], Array] | None = None,
    ) -> None:
        if not components:
            raise ConfigError("a mixture needs at least one component, found none")
        self.components = nnx.List(list(components))
        if prior_logits is None:
            prior_logits = nnx.Param(jnp.zeros(len(components)))
        elif not isinstance(prior_logits, nnx.Variable):
            given = as_tower(prior_logits) if callable(prior_logits) else nnx.Variable(jnp.asarray(prior_logits))
            prior_logits = given
        self.prior_logits = prior_logits

    def _log_prior(self, sessions: Sessions) -> jax.Array:
        shape = (len(sessions), len(self.components))
        prior = self.prior_logits
        if isinstance(prior, nnx.Variable):
            if prior[...].shape != shape[1:]:
                raise ConfigError(f"expected {shape[1]} prior logits, one per component, found {prior[...].shape}")
            logits = jnp.broadcast_to(prior[...][None, :], shape)
        else:
            logits = jnp.asarray(prior(sessions))
        if logits.shape != shape:
            raise ConfigError(f"prior_logits: expected [B, M] = {shape}, found {logits.shape}")
        return jax.nn.log_softmax(logits, axis=1)

    def __call__(self, sessions: Sessions) -> MixtureClicks:
        each = tuple(c(sessions) for c in self.components)
        return MixtureClicks(each, self._log_prior(sessions), sessions.mask, sessions.rank_axis)

    @property
    def pointwise(self) -> bool:
        """Whether every component is pointwise, and its distribution too may have the ranks as the first axis."""
        fixed = isinstance(self.prior_logits, nnx.Variable)
        return fixed and all(c.pointwise and not c.needs_lists_first for c in self.components)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the logit of the relevance that an average user finds, [B, K]."""
        lists = sessions.unbiased().list_first()
        prior = self._log_prior(lists)[:, :, None]
        each = jnp.stack([c.score(lists) for c in self.components], axis=1)
        score = logsumexp(prior + log_sigmoid(each), axis=1) - logsumexp(prior + log_sigmoid(-each), axis=1)
        return score if sessions.rank_axis else score.T
