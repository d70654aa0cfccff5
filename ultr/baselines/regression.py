"""Baselines with a regression of relevance: its estimates as they are, or corrected by the clicks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import clicks_of
from ultr.baselines.displays import Displays
from ultr.baselines.tables import affine_tables, propensity_table
from ultr.baselines.weighted import (
    Formed,
    Weighted,
    by_document,
    by_rank,
    document_values,
    estimated_loss,
    inverse,
    rank_values,
    relative_curve,
)
from ultr.sessions import Sessions
from ultr.towers import Frozen, IndexBound, TowerLike, as_tower


class DirectMethod(Formed):
    """Direct method: the full-information loss with a regression's estimates in the place of the true relevance.

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

    def __init__(self, *, relevance: TowerLike, regression: TowerLike, form: str = "listwise") -> None:
        super().__init__(relevance=relevance, form=form)
        self.regression = frozen(regression)

    def loss(self, sessions: Sessions) -> jax.Array:
        targets = estimates(self.regression, sessions)
        return estimated_loss(self.form, self.relevance(sessions), targets, jnp.asarray(sessions.mask))


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
      relevance, regression: as in `DirectMethod`.
      alpha, beta: [R] by rank, absolute: P(click at k) = alpha_k relevance + beta_k; beta None: no trust bias.
      displays: how the log that is trained on showed each document, for rho and for P(shown); a document that it never
        shows has no weight and contributes nothing. None: rho is alpha of the rank at hand, and every session shows its
        documents.
      form: as in `DirectMethod`; under a cut that shows some documents only sometimes, only the pointwise one is right
        on average over all documents of a query.
      clip: largest weight 1/rho (pointwise also of a display); None: no limit.
      self_normalised: divide the weights by their mean over the batch (see `Weighted`); the estimates stay.

    Raises:
      ConfigError: alpha not above 0, beta below 0, or a click probability above 1; an unknown form; a clip that is
        not above 0; fewer numbers than the log shows ranks.
    """

    corrects_trust_bias = True

    def __init__(
        self,
        *,
        relevance: TowerLike,
        regression: TowerLike,
        alpha: Any,
        beta: Any = None,
        displays: Displays | None = None,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, form=form, clip=clip, self_normalised=self_normalised)
        high, low = affine_tables(alpha, np.zeros(len(propensity_table(alpha, "alpha"))) if beta is None else beta)
        self.alpha, self.beta = tuple(high.tolist()), tuple(low.tolist())
        self.slope, self.offset = by_rank(high), by_rank(low)
        self.regression, self.displays = frozen(regression), displays
        self.added = None if displays is None else by_document(displays, high)
        self.shown = None if displays is None else by_document(displays, np.ones(displays.ranks))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.alpha), "ranks"),)

    def evidence(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, type(self).__name__).astype(jnp.float32)
        alpha, beta = (rank_values(values[...], sessions) for values in (self.slope, self.offset))
        return jnp.where(sessions.mask, clicks - alpha * estimates(self.regression, sessions) - beta, 0.0)

    def chance(self, sessions: Sessions) -> jax.Array:
        if self.added is None:
            return rank_values(self.slope[...], sessions)
        return document_values(self.added[...], sessions)

    def sessions_per_display(self, sessions: Sessions) -> jax.Array:
        if self.shown is None:
            return jnp.ones(sessions.shape)
        return self.clipped(inverse(document_values(self.shown[...], sessions)))

    def loss(self, sessions: Sessions) -> jax.Array:
        scores, mask = self.relevance(sessions), jnp.asarray(sessions.mask)
        times = self.sessions_per_display(sessions)
        targets = times * estimates(self.regression, sessions) + self.targets(sessions)
        return estimated_loss(self.form, scores, targets, mask, times)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return relative_curve(self.alpha, ranks)


def frozen(tower: TowerLike) -> Frozen:
    """Holds a tower as it is; one that is held already stays."""
    given = as_tower(tower)
    return given if isinstance(given, Frozen) else Frozen(given)


def estimates(regression: Frozen, sessions: Sessions) -> jax.Array:
    """Computes estimates of relevance, not trained, [B, K]; 0 on padding."""
    logits = jax.lax.stop_gradient(regression(sessions.unbiased()))
    return jnp.where(sessions.mask, jax.nn.sigmoid(logits), 0.0)
