"""Affine correction: what clicks say of relevance under trust bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ultr.baselines.base import clicks_of
from ultr.baselines.weights import Weighted, affine_tables, by_rank, estimated_loss, form_statistics, rank_values
from ultr.models import Tower
from ultr.sessions import Sessions


class AffineIPS(Weighted):
    """The click less what an irrelevant document gets, divided by what relevance adds: (c - beta_k) / alpha_k.

    Vardasbi 2020: under trust bias P(click at k) = alpha_k relevance + beta_k, so that this is the relevance on
    average; with beta = 0 it is inverse propensity scoring. A document that was not clicked then counts below 0: the
    loss of a single list may be negative, and has a minimum only where the targets of a document are on average from
    0 to 1 (pointwise), or not negative (listwise).

    Args:
      relevance: tower whose logits are the scores.
      alpha, beta: [R] by rank, absolute; `trust_tables` makes them of examination and trust.
      form: `listwise`: -sum target log softmax(score); `pointwise`: the cross-entropy of each document.
      clip: largest weight 1/alpha; None: no limit.
      self_normalised: divide by the mean weight of the batch (see `Weighted`).

    Raises:
      ConfigError: alpha not above 0, beta below 0, or a click probability above 1; an unknown form; a clip that is
        not above 0.
    """

    def __init__(
        self,
        *,
        relevance: Tower,
        alpha: Any,
        beta: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, clip=clip, self_normalised=self_normalised)
        high, low = affine_tables(alpha, beta)
        self.alpha, self.beta = tuple(high.tolist()), tuple(low.tolist())
        self.slope, self.offset = by_rank(self.alpha), by_rank(self.beta)
        self.form, self.statistics = form, form_statistics(form)
        self.limits = (("position", len(self.alpha), "ranks"),)

    def evidence(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, type(self).__name__)
        return jnp.where(sessions.mask, clicks.astype(jnp.float32) - rank_values(self, self.offset[...], sessions), 0.0)

    def chance(self, sessions: Sessions) -> jax.Array:
        return rank_values(self, self.slope[...], sessions)

    def loss(self, sessions: Sessions) -> jax.Array:
        scores = jnp.asarray(self.relevance(sessions))
        return estimated_loss(self.form, scores, self.targets(sessions), jnp.asarray(sessions.mask))
