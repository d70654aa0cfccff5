"""`Frailty`: a random effect per list in the relevance slot of a click model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import check_count, check_number
from ultr.clicks import MixtureClicks
from ultr.errors import ConfigError
from ultr.models.base import ClickModel, Logits, SlotModel
from ultr.sessions import Sessions


class Frailty(ClickModel):
    """A click model with a random effect per list: all logits of relevance of a list are moved by one Gaussian number.

    What the features do not tell about a query or its user (queries that nobody clicks on, say) moves the clicks of a
    whole list together. A model without such an effect explains that by what its ranks and clicks above do, and its
    relevance pays for it. The effect has mean 0 and a learnt standard deviation; the likelihood integrates it out by
    Gauss-Hermite quadrature, so that each answer is that of a mixture of as many kinds of lists as there are nodes
    (Bock and Aitkin 1981). The towers run once, the click distribution once per node. Clicks above a rank tell of the
    effect: conditional probabilities use its posterior. Scores are those of the model.

    Args:
      model: a click model of towers; a mixture has no relevance of its own: give its components an effect each.
      nodes: of the quadrature; 1: no effect.
      deviation: standard deviation at the start, above 0.

    Raises:
      ConfigError: another kind of model, or a number out of range.
    """

    def __init__(self, model: ClickModel, *, nodes: int = 7, deviation: float = 1.0) -> None:
        if not isinstance(model, SlotModel):
            raise ConfigError(
                f"expected a click model with a relevance tower, found {type(model).__name__}. Give the components of "
                "a mixture an effect each"
            )
        self.model, self.nodes = model, check_count("nodes", nodes)
        self.deviation = check_number("deviation", deviation, above=0)
        # Its sign means nothing, since the nodes are symmetric: it needs no bound, and a prior pulls it to 0.
        self.scale = nnx.Param(jnp.asarray(self.deviation, jnp.float32))

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the effect, in the unit of a logit."""
        return abs(float(self.scale[...]))

    @property
    def pointwise(self) -> bool:
        return self.model.pointwise

    @property
    def needs_lists_first(self) -> bool:  # type: ignore[override]
        return self.model.needs_lists_first

    def __call__(self, sessions: Sessions) -> MixtureClicks:
        return self.from_logits(sessions, self.model.logits(sessions))

    def distribution_given(self, sessions: Sessions) -> MixtureClicks:
        return self.from_logits(sessions, self.model.logits_given(sessions))

    def from_logits(self, sessions: Sessions, logits: Logits) -> MixtureClicks:
        """Computes the distribution over clicks from the logits of the model's slots at an effect of 0, by name."""
        slot = self.model.relevance_slot
        effects, log_weight = gaussian_nodes(self.nodes)
        dtype = logits[slot].dtype
        scale = self.scale[...].astype(dtype)
        each = tuple(
            self.model.from_logits(sessions, {**logits, slot: logits[slot] + scale * effect})
            for effect in effects.tolist()
        )
        log_prior = jnp.broadcast_to(jnp.asarray(log_weight, dtype)[None, :], (len(sessions), self.nodes))
        return MixtureClicks(each, log_prior, sessions.mask, sessions.rank_axis)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the scores of the model, [B, K], whatever the effect."""
        return self.model.score(sessions)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.model.examination_curve(ranks)


def gaussian_nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the nodes of the Gauss-Hermite quadrature of a standard Gaussian, and the logarithms of their weights.

    With n nodes, expectations of polynomials up to degree 2n - 1 are exact.

    Returns:
      ([n] ascending, [n] float64).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, np.log(weights / weights.sum())
