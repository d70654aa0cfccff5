"""Inverse propensity scoring: clicks weigh what the examination of their rank left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ultr.baselines.base import clicks_of
from ultr.baselines.weights import Weighted, by_rank, estimated_loss, propensity_table, rank_values
from ultr.errors import ConfigError
from ultr.models import Tower
from ultr.sessions import Array, Sessions

_LOG2 = 0.6931471805599453


class ClickWeighted(Weighted):
    """Clicks divided by the examination of their rank; abstract.

    Args:
      relevance: tower whose logits are the scores.
      propensity: [R] examination by rank, all above 0, or `ultr.propensity.Propensities`.
      clip: largest weight 1/examination of a click; None: no limit.
      self_normalised: divide by the mean weight of the batch's clicks (see `Weighted`).

    Raises:
      ConfigError: a propensity that is not a finite number above 0; a clip that is not above 0.
    """

    def __init__(
        self, *, relevance: Tower, propensity: Any, clip: float | None = None, self_normalised: bool = False
    ) -> None:
        super().__init__(relevance=relevance, clip=clip, self_normalised=self_normalised)
        self.propensity = tuple(propensity_table(propensity).tolist())
        self.examination = by_rank(self.propensity)
        self.limits = (("position", len(self.propensity), "ranks"),)

    def evidence(self, sessions: Sessions) -> jax.Array:
        return clicks_of(sessions, type(self).__name__).astype(jnp.float32)

    def chance(self, sessions: Sessions) -> jax.Array:
        return rank_values(self, self.examination[...], sessions)


class IPSPointwise(ClickWeighted):
    """Cross-entropy with the weighted click: -(c/o) log r - (1 - c/o) log(1 - r), r = sigmoid(score), o = examination.

    Bekker 2019, Saito 2020. On average over clicks it is the cross-entropy with the true relevance. Propensities must
    be absolute here (that of rank 1 being what it is, not 1 by definition), since the second term is not weighted. A
    click that weighs more than 1 would alone pull its logit up without end: what holds it are the other impressions
    of the document, and `clip`.

    Args and errors: as of `ClickWeighted`.
    """

    statistics = "rank"

    def loss(self, sessions: Sessions) -> jax.Array:
        scores = jnp.asarray(self.relevance(sessions))
        return estimated_loss("pointwise", scores, self.targets(sessions), jnp.asarray(sessions.mask))


class IPSListwise(ClickWeighted):
    """Softmax cross-entropy on the weighted clicks: -sum (c/o) log softmax(score).

    Joachims 2017, Agarwal 2019. The weighted clicks of a list are not normalised to 1: then the weight of a list with
    one click would cancel, and most lists have one. On average over clicks it is the softmax cross-entropy with the
    true relevance. Relative propensities do, since their unit multiplies the whole loss. A list without a click
    contributes 0.

    Args and errors: as of `ClickWeighted`.
    """

    def loss(self, sessions: Sessions) -> jax.Array:
        scores = jnp.asarray(self.relevance(sessions))
        return estimated_loss("listwise", scores, self.targets(sessions), jnp.asarray(sessions.mask))


class IPSPairwise(ClickWeighted):
    """Each clicked document against all others, weighted: an additive bound on a rank metric.

    The rank of a document is at most R = 1 + sum over the others j of log2(1 + exp(score_j - score)), so that what
    its DCG loses to that of rank 1 is at most 1 - 1/log2(1 + R). The loss is the sum of weight times that over the
    clicked documents: on average over clicks that over all documents, times their relevance (Agarwal 2019; with
    `metric="rank"` Joachims 2017).

    Args:
      relevance, propensity, clip, self_normalised: as of `ClickWeighted`.
      metric: `dcg`: bounds the lost DCG; `rank`: bounds the rank itself, which the far end of a list dominates.

    Raises:
      ConfigError: as of `ClickWeighted`; an unknown metric.
    """

    metrics = ("dcg", "rank")

    def __init__(
        self,
        *,
        relevance: Tower,
        propensity: Any,
        metric: str = "dcg",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, propensity=propensity, clip=clip, self_normalised=self_normalised)
        if metric not in self.metrics:
            raise ConfigError(f"unknown metric '{metric}'; known: {', '.join(self.metrics)}")
        self.metric = metric

    def loss(self, sessions: Sessions) -> jax.Array:
        mask = jnp.asarray(sessions.mask)
        bound = rank_bound(jnp.asarray(self.relevance(sessions)), mask)
        lost = bound if self.metric == "rank" else 1.0 - _LOG2 / jnp.log1p(bound)
        return jnp.sum(jnp.where(mask, self.targets(sessions) * lost, 0.0), axis=1)


def rank_bound(scores: Array, mask: Array) -> jax.Array:
    """[B, K] smooth upper bound on the rank of each document in its list: 1 + sum log2(1 + exp(score_j - score))."""
    others = jnp.asarray(mask)[:, None, :] & ~jnp.eye(scores.shape[1], dtype=bool)[None]
    gap = jnp.where(others, scores[:, None, :] - scores[:, :, None], 0.0)
    return 1.0 + jnp.sum(jnp.where(others, jax.nn.softplus(gap), 0.0), axis=2) / _LOG2
