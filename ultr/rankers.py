"""`Ranker`: what can be trained on sessions and ranks documents, and what it declares of itself."""

from __future__ import annotations

import abc
from typing import ClassVar, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from ultr.data.dataset import SufficientStatistics
from ultr.sessions import Sessions
from ultr.towers.base import Component, ParameterGroup, Tower

# What a curve of examination comes from, and so what its errors are: no curve; one that was given; the maximum of the
# likelihood of the position-based, the additive, or the user browsing model; listwise softmax cross-entropy, or that
# with weights by relevance (dual learning); a likelihood given the number of clicks; alpha of trust bias; ratios of
# sums that training measures on its way.
CurveSource = Literal[
    "none", "given", "position-based", "additive", "browsing", "listwise", "dual", "conditional", "affine", "ratios"
]


class ImpressionWeights(NamedTuple):
    """The weights that a ranker gives the impressions of a batch.

    Attributes:
      weight: [B, K] factor of what the impression says of relevance; 0 where it has none.
      clipped: [B, K] bool, counted impressions whose weight was cut down to the largest weight allowed.
      counted: [B, K] bool, impressions that the weight matters for: shown, with a weight, and with something to weigh
        (a click, where only clicks are weighed).
      unsupported: [B, K] bool, impressions that have something to weigh but no weight, since the log never shows their
        document; None: none.
    """

    weight: jax.Array
    clipped: jax.Array
    counted: jax.Array
    unsupported: jax.Array | None = None


class Ranker(Component):
    """Learns from sessions by a loss, and ranks documents by a score; abstract.

    Click models and baselines are rankers. `ultr.fit` trains any `nnx.Module` with `loss` and `score`; one that derives
    from this class says more of itself.

    Attributes:
      reads_by_towers: whether all the features that the ranker reads are read by the towers and rankers inside it.
      learns_from_clicks: whether its loss depends on clicks, so that data without any teaches it nothing.
    """

    parameter_group: ClassVar[ParameterGroup] = "table"
    takes_shared_features = True  # features are read by towers, or by `towers.read_feature`
    reads_by_towers: ClassVar[bool] = False
    learns_from_clicks: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str] | None:
        if not self.reads_by_towers:
            return None
        inside = [module for path, module in nnx.iter_modules(self) if path and isinstance(module, Tower | Ranker)]
        found = [module.reads for module in inside]
        return None if None in found else frozenset().union(*(names for names in found if names is not None))

    @property
    def sufficient_statistics(self) -> SufficientStatistics:
        """The least of a log that the loss depends on.

        "rank": clicks and impressions per document and rank; "last-click": per document, rank and last clicked rank;
        "query": displays and clicks of each document over all sessions of its query (`ultr.data.QueryLists`); "list":
        whole lists, which always suffice.
        """
        return "list"

    @property
    def has_pure_loss(self) -> bool:
        """Whether the loss of a list depends on parameters and that list alone, and changes nothing.

        It depends on no running statistics, draws or other lists then, so that copies can be trained side by side.
        """
        return True

    @property
    def weighs_impressions(self) -> bool:
        """Whether `impression_weights` says how the loss weighs impressions."""
        return False

    @property
    def curve_source(self) -> CurveSource:
        """What `examination_curve` comes from, which decides its errors (`identifiability.examination_interval`)."""
        return "none"

    @property
    def corrects_trust_bias(self) -> bool:
        """Whether its examination curve is alpha of trust bias rather than examination alone."""
        return False

    @abc.abstractmethod
    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the loss of each list, [B]."""

    def held_out_loss(self, sessions: Sessions) -> jax.Array:
        """Computes the loss [B] by which lists judge a training; that of lists that it did not learn from."""
        return self.loss(sessions)

    @abc.abstractmethod
    def score(self, sessions: Sessions) -> jax.Array:
        """Computes scores to rank by, [B, K]: higher is more relevant; it sees neither positions nor clicks."""

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights | None:
        """Computes the weight of each impression as it enters the loss; None where the loss has no weights."""
        return None

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        """Computes the examination by rank that the ranker learnt or was given, [ranks] relative to rank 1.

        None where it has no such curve.
        """
        return None
