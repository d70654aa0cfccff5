"""Learning from a regression's estimates of relevance: as they are, or corrected by the clicks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.baselines.base import Baseline, clicks_of
from ultr.baselines.displays import Displays
from ultr.baselines.policy import document_values
from ultr.baselines.weights import (
    Weighted,
    affine_tables,
    by_rank,
    estimated_loss,
    form_statistics,
    propensity_table,
    rank_values,
)
from ultr.models import Tower
from ultr.sessions import Sessions
from ultr.towers import Frozen
from ultr.towers.networks import Statistic


class DirectMethod(Baseline):
    """The full-information loss with a regression's estimates in the place of the true relevance.

    Oosterhuis 2023, section 4. As good as the regression, whatever the clicks of the sessions at hand: they are not
    read.

    Args:
      relevance: tower whose logits are the scores.
      regression: tower whose logits give the estimates, such as the relevance tower of a fitted `TrustPBM` or `PBM`;
        it is held as it is (`towers.Frozen`).
      form: `listwise`: -sum estimate log softmax(score); `pointwise`: the cross-entropy of each document.

    Raises:
      ConfigError: an unknown form.
    """

    def __init__(self, *, relevance: Tower, regression: Tower, form: str = "listwise") -> None:
        super().__init__(relevance=relevance)
        self.regression = _frozen(regression)
        self.form, self.statistics = form, form_statistics(form)

    def loss(self, sessions: Sessions) -> jax.Array:
        scores = jnp.asarray(self.relevance(sessions))
        return estimated_loss(self.form, scores, _estimates(self.regression, sessions), jnp.asarray(sessions.mask))


class DoublyRobust(Weighted):
    """A regression's estimates, plus what the clicks say against them: R + (c - alpha_k R - beta_k) / rho.

    Oosterhuis 2023. With the right alpha and beta, the average is the true relevance if either the regression R is
    right, or rho, the chance that a document's relevance shows in a click: the sum over ranks of P(shown at k) alpha_k.
    Its variance is that of what the regression does not explain, mostly far below that of inverse propensity scoring.
    Without `displays`, R cancels and this is `AffineIPS`; with the displays of the very log that it learns from and the
    pointwise form, what the regression adds for a document and what it takes away in its corrections cancel over the
    log, and this is `PolicyAware` or `InterventionAware`. So use a `clip`: the regression stands in for what that
    leaves out.

    Args:
      relevance, regression: as of `DirectMethod`.
      alpha, beta: [R] by rank, absolute: P(click at k) = alpha_k relevance + beta_k; beta None: no trust bias.
      displays: of the log that is trained on, for rho and for P(shown); a document that it never shows has no weight
        and contributes nothing. None: rho is alpha of the rank at hand, and every session shows its documents.
      form: as of `DirectMethod`; under a cut that shows some documents only sometimes, only the pointwise one is right
        on average over all documents of a query.
      clip: largest weight 1/rho (pointwise also of a display); None: no limit.
      self_normalised: divide the weights by their mean over the batch (see `Weighted`); the estimates stay.

    Raises:
      ConfigError: alpha not above 0, beta below 0, or a click probability above 1; an unknown form; a clip that is
        not above 0; fewer numbers than the log shows ranks.
    """

    def __init__(
        self,
        *,
        relevance: Tower,
        regression: Tower,
        alpha: Any,
        beta: Any = None,
        displays: Displays | None = None,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, clip=clip, self_normalised=self_normalised)
        high, low = affine_tables(alpha, np.zeros(len(propensity_table(alpha, "alpha"))) if beta is None else beta)
        self.alpha, self.beta = tuple(high.tolist()), tuple(low.tolist())
        self.slope, self.offset = by_rank(self.alpha), by_rank(self.beta)
        self.regression, self.displays = _frozen(regression), displays
        self.form, self.statistics = form, form_statistics(form)
        self.limits = (("position", len(self.alpha), "ranks"),)
        if displays is not None:
            self.added = Statistic(jnp.asarray(displays.exposure(high), jnp.float32))
            self.shown = Statistic(jnp.asarray(displays.exposure(np.ones(displays.ranks)), jnp.float32))

    def evidence(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, type(self).__name__).astype(jnp.float32)
        alpha, beta = (rank_values(self, values[...], sessions) for values in (self.slope, self.offset))
        return jnp.where(sessions.mask, clicks - alpha * _estimates(self.regression, sessions) - beta, 0.0)

    def chance(self, sessions: Sessions) -> jax.Array:
        if self.displays is None:
            return rank_values(self, self.slope[...], sessions)
        return document_values(self, self.added, sessions)

    def loss(self, sessions: Sessions) -> jax.Array:
        scores, mask = jnp.asarray(self.relevance(sessions)), jnp.asarray(sessions.mask)
        times = self._times(sessions)
        targets = times * _estimates(self.regression, sessions) + self.targets(sessions)
        return estimated_loss(self.form, scores, targets, mask, times)

    def _times(self, sessions: Sessions) -> jax.Array:
        """[B, K] how many sessions of its query each display stands for."""
        if self.displays is None:
            return jnp.ones(sessions.shape)
        shown = document_values(self, self.shown, sessions)
        return self.limited(jnp.where(shown == 0, 0.0, 1.0 / jnp.where(shown == 0, 1.0, shown)))


def _frozen(tower: Tower) -> Tower:
    return Frozen(tower) if isinstance(tower, nnx.Module) and not isinstance(tower, Frozen) else tower


def _estimates(regression: Tower, sessions: Sessions) -> jax.Array:
    """[B, K] estimated relevance, not trained; 0 on padding."""
    logits = jax.lax.stop_gradient(jnp.asarray(regression(sessions.unbiased())))
    return jnp.where(sessions.mask, jax.nn.sigmoid(logits), 0.0)
