"""Weights from how the logging policy showed each document over all sessions, not only in the one at hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import clicks_of
from ultr.baselines.displays import Displays
from ultr.baselines.weights import (
    Weighted,
    affine_tables,
    estimated_loss,
    form_statistics,
    propensity_table,
)
from ultr.errors import ConfigError
from ultr.models import Tower
from ultr.sessions import Sessions
from ultr.towers import check
from ultr.towers.networks import Statistic


class DisplayWeighted(Weighted):
    """Weights per document, from its displays; abstract.

    Args:
      relevance: tower whose logits are the scores.
      displays: of the log that is trained on. A document that it never shows has no weight: it contributes nothing,
        and is counted as `unsupported`.
      form: `pointwise`: the cross-entropy of each document; right on average over all documents of a query, also under
        a cut that shows some of them only sometimes, since each display stands for 1/P(shown) sessions.
        `listwise`: the softmax cross-entropy among the documents shown together; right on average where every session
        shows all documents of its query, whatever their order, and with fewer shown relative to what was shown.
      clip: largest weight (pointwise also of a display); None: no limit.
      self_normalised: divide by the mean weight of the batch (see `Weighted`).
    """

    def __init__(
        self, *, relevance: Tower, displays: Displays, form: str, clip: float | None, self_normalised: bool
    ) -> None:
        super().__init__(relevance=relevance, clip=clip, self_normalised=self_normalised)
        if not isinstance(displays, Displays):
            raise ConfigError(f"displays: expected Displays.of(log), found {type(displays).__name__}")
        self.displays, self.form, self.statistics = displays, form, form_statistics(form)
        self.shown = self.per_document(np.ones(displays.ranks))

    def per_document(self, values: np.ndarray) -> Statistic:
        """[V + 1] the exposure of each document, for the given values by rank."""
        return Statistic(jnp.asarray(self.displays.exposure(values), jnp.float32))

    def loss(self, sessions: Sessions) -> jax.Array:
        scores = jnp.asarray(self.relevance(sessions))
        shown = document_values(self, self.shown, sessions)
        times = self.limited(jnp.where(shown == 0, 0.0, 1.0 / jnp.where(shown == 0, 1.0, shown)))
        return estimated_loss(self.form, scores, self.targets(sessions), jnp.asarray(sessions.mask), times)


class PolicyAware(DisplayWeighted):
    """Clicks divided by the chance that the logging policy has their document examined: sum_k P(shown at k) o_k.

    Oosterhuis and de Rijke 2020. Documents that a cut shows only sometimes get the weight that makes up for it, so
    their examination need not be above 0 in each session, but in some.

    Args:
      relevance, displays, form, clip, self_normalised: as of `DisplayWeighted`.
      propensity: [R] examination by rank, all above 0, or `ultr.propensity.Propensities`; absolute if pointwise.

    Raises:
      ConfigError: a propensity that is not a finite number above 0, or fewer than the log shows ranks; an unknown
        form; a clip that is not above 0.
    """

    def __init__(
        self,
        *,
        relevance: Tower,
        displays: Displays,
        propensity: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, displays=displays, form=form, clip=clip, self_normalised=self_normalised)
        table = propensity_table(propensity)
        self.propensity = tuple(table.tolist())
        self.examined = self.per_document(table)

    def evidence(self, sessions: Sessions) -> jax.Array:
        return clicks_of(sessions, type(self).__name__).astype(jnp.float32)

    def chance(self, sessions: Sessions) -> jax.Array:
        return document_values(self, self.examined, sessions)


class InterventionAware(DisplayWeighted):
    """Clicks less what the displays get without relevance, divided by what relevance adds, both over all sessions.

    Oosterhuis and de Rijke 2021: (clicks - sessions E[beta]) / (sessions E[alpha]) is the relevance of a document on
    average, where P(click at k) = alpha_k relevance + beta_k and both are 0 where it is not shown. Here each display
    carries its part, (c - E[beta]/P(shown)) / E[alpha]. The expectations are over the displays in the log, so policies
    that changed on the way count by how much each showed.

    Args:
      relevance, displays, form, clip, self_normalised: as of `DisplayWeighted`.
      alpha, beta: [R] by rank, absolute.

    Raises:
      ConfigError: as of `PolicyAware`; alpha not above 0, beta below 0, or a click probability above 1.
    """

    def __init__(
        self,
        *,
        relevance: Tower,
        displays: Displays,
        alpha: Any,
        beta: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        super().__init__(relevance=relevance, displays=displays, form=form, clip=clip, self_normalised=self_normalised)
        high, low = affine_tables(alpha, beta)
        self.alpha, self.beta = tuple(high.tolist()), tuple(low.tolist())
        self.added = self.per_document(high)
        self.unearned = self.per_document(low)

    def evidence(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, type(self).__name__).astype(jnp.float32)
        shown = document_values(self, self.shown, sessions)
        base = document_values(self, self.unearned, sessions) / jnp.where(shown == 0, 1.0, shown)
        return jnp.where(sessions.mask, clicks - base, 0.0)

    def chance(self, sessions: Sessions) -> jax.Array:
        return document_values(self, self.added, sessions)


def document_values(model: Any, values: Statistic, sessions: Sessions) -> jax.Array:
    """[B, K] the value of the document of each impression; that of id 0, unseen, on padding.

    Args:
      model: what to look through for tables that are too small, where the sessions are on the host.
      values: [V + 1].
      sessions: not compiled, an id beyond the table is an error; compiled, the value there is NaN.

    Raises:
      ConfigError: no feature `document`.
      DataError: names the first id beyond the table.
    """
    if "document" not in sessions.features:
        known = ", ".join(sorted(sessions.features)) or "none"
        raise ConfigError(f"{type(model).__name__} reads the feature 'document'; the sessions have: {known}")
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(sessions)):
        check(model, sessions)
    ids = jnp.where(sessions.mask, jnp.asarray(sessions.features["document"]), 0)
    return jnp.take(values[...], ids, axis=0, mode="fill", fill_value=jnp.nan)
