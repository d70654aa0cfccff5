"""Two-towers learnt from which documents of a list were clicked, given how many were.

How many clicks a list gets depends on its query and its user, of which features may tell little. Which of its
documents get them depends on relevance and examination. `ultr.propensity.conditional` conditions on the clicks of a
document, over the ranks where it was shown, to be rid of its relevance; here those of a list, to be rid of its query.
"""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import Baseline, clicks_of
from ultr.baselines.dual import relative_examination_logits
from ultr.logspace import log_prob_given_count, log_sigmoid, logit_and
from ultr.sessions import Sessions
from ultr.towers import TowerLike, as_tower, supported_curve


class _Conditional(Baseline):
    """A two-tower whose loss is -log P(the clicked documents | their number); abstract.

    Args:
      relevance, examination: towers.
    """

    curve_source = "conditional"

    def __init__(self, *, relevance: TowerLike, examination: TowerLike) -> None:
        super().__init__(relevance=relevance)
        self.examination = as_tower(examination)

    @abc.abstractmethod
    def click_logits(self, relevance: jax.Array, examination: jax.Array) -> jax.Array:
        """Computes the logits of clicks that are independent of each other, [B, K], from those of the towers."""

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the loss of each list, [B]; 0 where no document was clicked, or every one."""
        clicks = clicks_of(sessions, type(self).__name__)
        logits = self.click_logits(self.relevance(sessions), self.examination(sessions))
        return -log_prob_given_count(logits, clicks, jnp.asarray(sessions.mask))


class ConditionalPBM(_Conditional):
    """The PBM by the likelihood of which documents of a list were clicked, given how many were.

    Clicks are independent with p_k = examination_k relevance_k; given their number, a set of documents has the product
    of their odds p / (1 - p) as its weight (the conditional Poisson distribution, Chen, Dempster and Liu 1994), summed
    exactly over all sets of as many. Where clicks are rare the odds are the products themselves, and a factor that all
    relevances of a list have in common cancels, as do the levels of examination and relevance: relevance is identified
    within a query, and examination relative to rank 1, as in the PBM. The levels are told by 1 - p alone, weakly, and
    what the model says of click rates means nothing. Lists without a click contribute 0.
    """

    def click_logits(self, relevance: jax.Array, examination: jax.Array) -> jax.Array:
        return logit_and(examination, relevance)

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, [ranks]; for towers that read the position alone."""
        lists = Sessions(mask=jnp.ones((1, ranks), bool), position=jnp.arange(ranks, dtype=jnp.int32)[None, :])
        log_examination = log_sigmoid(self.examination(lists))[0]
        return supported_curve(np.asarray(jnp.exp(log_examination - log_examination[0])), self.examination)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)


class ConditionalAdditive(_Conditional):
    """The additive two-tower by the likelihood of which documents of a list were clicked, given how many were.

    Exact conditional logistic regression (Cox 1970) with a free intercept for every list, which cancels: a set of
    documents has exp(sum of relevance + examination) as its weight. `AdditiveListwise` takes every click for one of a
    softmax of its own, as if a document could be clicked twice; with one click in a list both are the same. Lists
    without a click, or with nothing else, contribute 0.
    """

    def click_logits(self, relevance: jax.Array, examination: jax.Array) -> jax.Array:
        return relevance + examination

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, exp(b_k - b_1), [ranks]; for towers that read the position alone."""
        curve: np.ndarray = np.exp(relative_examination_logits(self.examination, ranks))
        return curve

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)
