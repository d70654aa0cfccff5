"""The additive two-tower as a listwise loss, and its fixes against confounding that are losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.baselines.base import Baseline, clicks_of, softmax_cross_entropy
from ultr.baselines.displays import Displays
from ultr.baselines.dual import relative_examination_logits
from ultr.baselines.weighted import checked_clip
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.rankers import ImpressionWeights, Ranker
from ultr.sessions import Sessions, SharedFeature
from ultr.towers import GradientReversal, TowerLike, as_tower, read_feature


class AdditiveListwise(Baseline):
    """Listwise additive two-tower: softmax cross-entropy of the clicks to b_k + s (Yan 2022).

    An examination that multiplies the click probability is an addend under the softmax: under the PBM the expected
    loss is stationary where softmax(b + s) is proportional to examination times relevance, whatever else is in the
    list. A constant that moves between the towers, or is added to either, changes nothing. Lists without a click
    contribute 0. `models.AdditivePBM` is the pointwise form.

    Args:
      relevance: tower of s.
      examination: tower of b.
    """

    curve_source = "listwise"

    def __init__(self, *, relevance: TowerLike, examination: TowerLike) -> None:
        super().__init__(relevance=relevance)
        self.examination = as_tower(examination)

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, "AdditiveListwise").astype(jnp.float32)
        logits = self.relevance(sessions) + self.examination(sessions)
        return softmax_cross_entropy(logits, clicks, jnp.asarray(sessions.mask))

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, exp(b_k - b_1), [ranks]; for towers that read the position alone."""
        curve: np.ndarray = np.exp(relative_examination_logits(self.examination, ranks))
        return curve

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)


class AdversarialTwoTower(Baseline):
    """Additive two-tower whose bias tower is kept from telling relevance (Zhang 2023).

    To the cross-entropy of sigmoid(b + s) with the clicks it adds the squared error of an adversary, a linear function
    of b that predicts the click. The adversary learns by this error; the bias tower gets its gradient times
    -`strength`. Zhang's adversary predicts a relevance label; a click is the label that every log has. Under
    `model.eval()` the loss is the cross-entropy alone.

    Args:
      relevance: tower of s.
      examination: tower of b.
      strength: of the reversal; 0: `models.AdditivePBM` beside an adversary that changes nothing.
    """

    sufficient_statistics = "rank"
    curve_source = "additive"

    def __init__(self, *, relevance: TowerLike, examination: TowerLike, strength: float = 1.0) -> None:
        super().__init__(relevance=relevance)
        self.examination, self.strength = as_tower(examination), float(strength)
        self.reversed = GradientReversal(self.examination, strength=strength)
        self.adversary = nnx.Param(jnp.zeros(2))
        self.deterministic = False

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, mask = clicks_of(sessions, "AdversarialTwoTower"), jnp.asarray(sessions.mask)
        examination = self.examination(sessions)
        logits = self.relevance(sessions) + examination
        each = -log_sigmoid(jnp.where(clicks, logits, -logits))
        if not self.deterministic:
            slope, offset = self.adversary[...]
            each += (clicks - (slope * self.reversed(sessions) + offset)) ** 2
        return jnp.sum(jnp.where(mask, each, 0.0), axis=1)


class PositionWeighted(Ranker):
    """Any pointwise model with each impression weighted by 1 / P(shown at k | query, document) (Hager 2025).

    Each (document, rank) pair that the log shows then counts as if it had been shown in every session of its query,
    so that where a model cannot fit the clicks its errors do not follow the logging policy. A model that can fit them
    loses precision by it. Where a policy is deterministic every share is 1: then the weights are all 1 and nothing
    changes.

    Args:
      model: its loss is a sum over impressions (its `sufficient_statistics` are "rank"), such as `models.AdditivePBM`,
        `models.PBM` or `NaivePointwise`.
      displays: of the log that is trained on. An impression that it never shows has no weight.
      clip: largest weight; None: no limit.

    Raises:
      ConfigError: a model whose loss is not pointwise; a clip that is not above 0.
    """

    sufficient_statistics = "rank"
    weighs_impressions = True
    reads_by_towers = True

    def __init__(self, model: Ranker, *, displays: Displays, clip: float | None = None) -> None:
        if not isinstance(model, Ranker) or model.sufficient_statistics != "rank":
            raise ConfigError(
                f"{type(model).__name__} judges lists, not impressions: its loss cannot be weighted by rank. Use a "
                "pointwise model, such as AdditivePBM or NaivePointwise"
            )
        if not isinstance(displays, Displays):
            raise ConfigError(f"displays: expected Displays.of(log), found {type(displays).__name__}")
        self.model, self.displays, self.clip = model, displays, checked_clip(clip)

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the weighted sum of the losses of each list's impressions, [B]."""
        # A sum over impressions is that of lists of one document each.
        each = self.model.loss(_impressions(sessions)).reshape(sessions.shape)
        weight = self.impression_weights(sessions).weight
        return jnp.sum(jnp.where(weight > 0, each * weight, 0.0), axis=1)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the scores of the model, [B, K]."""
        return self.model.score(sessions)

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights:
        mask = jnp.asarray(sessions.mask)
        share = self.displays.at(
            jnp.where(mask, read_feature(sessions, "document", "PositionWeighted"), 0), jnp.asarray(sessions.position)
        )
        known = mask & (share > 0)
        weight = jnp.where(known, 1.0 / jnp.where(known, share, 1.0), 0.0)
        clipped = known & (weight > self.clip) if self.clip else jnp.zeros_like(known)
        return ImpressionWeights(jnp.minimum(weight, self.clip) if self.clip else weight, clipped, known, mask & ~known)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.model.examination_curve(ranks)


def _impressions(sessions: Sessions) -> Sessions:
    """Makes every impression a list of its own, [B K, 1]."""
    lists = sessions.mask.shape[0] * sessions.mask.shape[1]

    def flat(x: Any) -> Any:
        return None if x is None else jnp.asarray(x).reshape(lists, 1, *x.shape[2:])

    def feature(x: Any) -> Any:
        return x.with_index(flat) if isinstance(x, SharedFeature) else flat(x)

    return Sessions(
        mask=flat(sessions.mask),
        position=flat(sessions.position),
        features={name: feature(x) for name, x in sessions.features.items()},
        clicks=flat(sessions.clicks),
        labels=flat(sessions.labels),
    )
