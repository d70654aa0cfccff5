"""Regression-EM: the position-based model by expectation-maximisation with towers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.baselines.base import Baseline, clicks_of
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logit_and
from ultr.models import PBM
from ultr.sessions import Sessions
from ultr.towers import Frozen, Tower, TowerLike, as_tower


class Steps(nnx.Variable[jax.Array]):
    """Counts the training steps made; not trained itself."""


class RegressionEM(Baseline):
    """Regression-EM (Wang 2018): the towers are fitted to what copies of themselves expect of the latent variables.

    The E-step takes from the held copies (s', b') the probabilities that a document was examined and that it is
    relevant: 1 where it was clicked, else those with logits b' - softplus(s') and s' - softplus(b'). The M-step is the
    cross-entropy of both towers to these. The copies are taken anew at every `every`-th step of training, so that
    between two of them the towers regress on fixed targets; with `every=1` the gradient is exactly that of the PBM's
    likelihood, and the method is no other than `models.PBM`. Wang's own M-step fits trees to relevance drawn from the
    E-step; here it is the expected loss, without the draw.

    Under `model.eval()`, and so when `fit` judges an epoch, the loss is the PBM's negative log-likelihood, which both
    steps increase and which depends on no copy.

    Taking a copy reads all parameters, so tables of these towers are trained densely, not row by row.

    Args:
      relevance: tower of the relevance logits s.
      examination: tower of the examination logits b.
      every: steps of training between two E-steps.

    Raises:
      ConfigError: `every` below 1.
    """

    sufficient_statistics = "rank"
    curve_source = "position-based"
    has_pure_loss = False
    reads_whole_tables = True

    def __init__(self, *, relevance: TowerLike, examination: TowerLike, every: int = 100) -> None:
        super().__init__(relevance=relevance)
        if every < 1:
            raise ConfigError(f"expected every of at least 1 step, found {every}")
        self.examination, self.every = as_tower(examination), int(every)
        self.held_relevance, self.held_examination = Frozen(self.relevance), Frozen(self.examination)
        self.steps = Steps(jnp.zeros((), jnp.int32))
        self.deterministic = False

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, mask = clicks_of(sessions, "RegressionEM"), jnp.asarray(sessions.mask)
        if self.deterministic:
            scores, examination = self.relevance(sessions), self.examination(sessions)
            click = logit_and(examination, scores)
            each = -log_sigmoid(jnp.where(clicks, click, -click))
            return jnp.sum(jnp.where(mask, each, 0.0), axis=1)
        self._copy_towers()
        scores, examination = self.held_relevance(sessions), self.held_examination(sessions)
        relevant = jnp.where(clicks, 1.0, jax.nn.sigmoid(scores - jax.nn.softplus(examination)))
        examined = jnp.where(clicks, 1.0, jax.nn.sigmoid(examination - jax.nn.softplus(scores)))
        each = _cross_entropy(self.relevance(sessions), relevant)
        each += _cross_entropy(self.examination(sessions), examined)
        return jnp.sum(jnp.where(mask, each, 0.0), axis=1)

    def _copy_towers(self) -> None:
        """Makes the E-step, where it is due: copies the towers."""
        now = self.steps[...] % self.every == 0
        for live, frozen in ((self.relevance, self.held_relevance), (self.examination, self.held_examination)):
            for variable, copy in zip(_numbers(live), _numbers(frozen.tower), strict=True):
                copy[...] = jnp.where(now, jax.lax.stop_gradient(variable[...]), copy[...])
        self.steps[...] += 1

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, [ranks]; for towers that read the position alone."""
        return PBM(relevance=self.relevance, examination=self.examination).propensity(ranks)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)


def _numbers(tower: Tower) -> list[nnx.Variable[jax.Array]]:
    """Lists parameters and statistics of a tower, in the order of its copies; no random keys and counts."""
    variables = [node for _, node in nnx.iter_graph(tower) if isinstance(node, nnx.Variable)]
    return [x for x in variables if jnp.issubdtype(x[...].dtype, jnp.floating)]


def _cross_entropy(logits: jax.Array, probability: jax.Array) -> jax.Array:
    """Computes -p log sigmoid(x) - (1 - p) log sigmoid(-x)."""
    return jax.nn.softplus(logits) - probability * logits
