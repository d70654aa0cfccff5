"""The dual learning algorithm: a ranker and a propensity model, each weighted by the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import Baseline, clicks_of, softmax_cross_entropy
from ultr.errors import ConfigError
from ultr.rankers import ImpressionWeights
from ultr.sessions import Sessions
from ultr.towers import Tower, TowerLike, as_tower, supported_curve

LARGEST = 60.0  # log of a weight that float32 holds after it was multiplied by a loss


def log_limit(clip: float | None) -> float:
    """Computes the logarithm of the largest weight.

    Raises:
      ConfigError: a `clip` below 1, which would clip the weight of the first rank.
    """
    if clip is not None and not clip >= 1:
        raise ConfigError(f"expected clip of at least 1, the weight of the first rank, found {clip}")
    return LARGEST if clip is None else min(float(np.log(clip)), LARGEST)


def relative_to_first(logits: jax.Array, limit: float) -> jax.Array:
    """Computes softmax(logits)_1 / softmax(logits)_k, [B, K], at most exp(limit), without gradient.

    The first document of the list as displayed is the reference: the softmax's sum cancels.
    """
    return jnp.exp(jnp.minimum(jax.lax.stop_gradient(logits[:, :1] - logits), limit))


def relative_examination_logits(examination: Tower, ranks: int) -> np.ndarray:
    """Computes the logits of a tower that reads the position alone minus that of rank 1, [ranks]; NaN as for a PBM."""
    position = jnp.arange(ranks, dtype=jnp.int32)[None, :]
    logits = examination(Sessions(mask=jnp.ones((1, ranks), bool), position=position))[0]
    return supported_curve(np.asarray(logits - logits[0]), examination)


class DLA(Baseline):
    """Dual learning algorithm (Ai 2018): propensities and a ranker from the same clicks.

    The loss of a list with clicks c, ranker logits s and examination logits b is the sum of two cross-entropies,

        -sum c w_o log softmax(s)     w_o = softmax(b)_1 / softmax(b)_k
        -sum c w_r log softmax(b)     w_r = softmax(s)_1 / softmax(s)_k

    in which the weights have no gradient. Each tower's gradient is that of its own loss, so one optimizer with a state
    per parameter (Adam, Adagrad) is the same as one optimizer per tower. Under the PBM, with lists that show the
    documents of a query at several ranks, both losses are stationary where softmax(b) is proportional to examination
    and softmax(s) to relevance. Lists without a click contribute 0.

    That point is right on average over clicks. On a log, a weight is one over an estimate from the same clicks, and
    every document counts alike: with a table of documents the curve is biased where documents have few clicks (they
    agree with any curve), and has about 1.6 times the variance of the likelihood's where they have many.

    The sum says nothing of how good a model is, since its weights are the model's own and grow as b learns. Under
    `model.eval()`, and so when `fit` judges an epoch, the loss is -sum c log softmax(s + b) instead: how likely the
    clicked documents are among those shown, which is greatest at that same point (`AdditiveListwise`).

    Args:
      relevance: tower of s.
      examination: tower of b.
      clip: largest weight w_o and w_r; None: exp(60).

    Raises:
      ConfigError: `clip` below 1.
    """

    weighs_impressions = True
    curve_source = "dual"

    def __init__(self, *, relevance: TowerLike, examination: TowerLike, clip: float | None = 100.0) -> None:
        super().__init__(relevance=relevance)
        self.examination = as_tower(examination)
        self._limit = log_limit(clip)
        self.clip = clip
        self.deterministic = False

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, mask = clicks_of(sessions, "DLA"), jnp.asarray(sessions.mask)
        scores, examination = self.relevance(sessions), self.examination(sessions)
        if self.deterministic:
            return softmax_cross_entropy(scores + examination, clicks.astype(jnp.float32), mask)
        examined = jnp.where(clicks, relative_to_first(examination, self._limit), 0.0)
        relevant = jnp.where(clicks, relative_to_first(scores, self._limit), 0.0)
        return softmax_cross_entropy(scores, examined, mask) + softmax_cross_entropy(examination, relevant, mask)

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights:
        """Computes the weights w_o of the ranker's loss."""
        clicks, examination = clicks_of(sessions, "DLA"), self.examination(sessions)
        weight = jnp.where(sessions.mask, relative_to_first(examination, self._limit), 0.0)
        return ImpressionWeights(weight, clicks & (examination[:, :1] - examination > self._limit), clicks)

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, exp(b_k - b_1), [ranks]; for towers that read the position alone."""
        curve: np.ndarray = np.exp(relative_examination_logits(self.examination, ranks))
        return curve

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)
