"""Wrappers around a bias tower, against its learning relevance that the logging policy put into the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.errors import ConfigError
from ultr.sessions import Array, Sessions
from ultr.towers.tables import RankTable, logits

Tower = Callable[[Sessions], Array]


def _pointwise(tower: Tower) -> bool:
    """As of the wrapped tower; UBM's table of last clicks is so by `given` only, which the wrappers do not have."""
    return getattr(tower, "pointwise", False) and not hasattr(tower, "given")


class Dropout(nnx.Module):
    """Observation dropout: in training each logit is 0 with probability `rate`, else divided by 1 - `rate`.

    Where the bias tower's logit is 0 the relevance tower has to explain the click alone (Zhang 2023). Under
    `model.eval()`, and so when `fit` judges an epoch, the logits are those of the tower.

    Args:
      tower: the bias tower; logits of any shape.
      rate: from 0 to below 1.
      rngs: draws what is dropped.

    Raises:
      ConfigError: another rate.
    """

    def __init__(self, tower: Tower, *, rate: float = 0.5, rngs: nnx.Rngs) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"expected a dropout rate from 0 to below 1, found {rate}")
        self.tower, self.rate = tower, float(rate)
        self.pointwise = _pointwise(tower)
        self.dropout = nnx.Dropout(self.rate, rngs=rngs)

    def __call__(self, sessions: Sessions) -> jax.Array:
        return self.dropout(jnp.asarray(self.tower(sessions)))


class GradientReversal(nnx.Module):
    """The tower's logits, with its gradient times -`strength`.

    What is trained on these logits finds out what they tell, while the tower forgets it (Zhang 2023, after Ganin and
    Lempitsky 2015). It belongs in front of an adversary, as in `baselines.AdversarialTwoTower`: in the place of a bias
    tower itself, it would have that tower make the click likelihood as small as it can.

    Args:
      tower: the bias tower; logits of any shape.
      strength: at least 0.

    Raises:
      ConfigError: a strength below 0, or not finite.
    """

    def __init__(self, tower: Tower, *, strength: float = 1.0) -> None:
        if not 0 <= strength < float("inf"):
            raise ConfigError(f"expected a finite strength of at least 0, found {strength}")
        self.tower, self.strength = tower, float(strength)
        self.pointwise = _pointwise(tower)

    def __call__(self, sessions: Sessions) -> jax.Array:
        return reverse(jnp.asarray(self.tower(sessions)), self.strength)


def reverse(x: jax.Array, strength: float) -> jax.Array:
    """x, with the gradient times -strength."""
    still = jax.lax.stop_gradient(x)
    return still - strength * (x - still)


class Held(nnx.Variable):
    """A number that was a parameter before its tower was frozen: saved with the model, not trained."""


class Frozen(nnx.Module):
    """A copy of a tower that `fit` leaves as it is: no dropout, fixed statistics, nothing that counts as a parameter.

    With `examination_of` it is the bias tower at harvested propensities, which the clicks at hand cannot confound any
    more.

    Args:
      tower: any tower; the one that is given stays trainable.

    Raises:
      ConfigError: parameters where they cannot be found, in a container other than a module's attribute or `nnx.List`.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower = held(tower) if isinstance(tower, nnx.Module) else tower
        self.pointwise = _pointwise(tower)

    def __call__(self, sessions: Sessions) -> jax.Array:
        return jax.lax.stop_gradient(jnp.asarray(self.tower(sessions)))


def held(module: Any) -> Any:
    """A copy of a module in evaluation mode whose parameters have become `Held`; no table of it is trained by rows."""
    module = nnx.clone(module)
    module.eval()
    done: dict[int, Held] = {}  # by parameter, so that one in two places stays one

    def hold(parameter: nnx.Param) -> Held:
        return done.setdefault(id(parameter), Held(parameter[...]))

    nodes = [node for _, node in nnx.iter_graph(module)]
    parameters = [node for node in nodes if isinstance(node, nnx.Param)]  # alive, or an id would be given again
    for node in nodes:
        if isinstance(node, nnx.List):
            for i, value in enumerate(node):
                if isinstance(value, nnx.Param):
                    node[i] = hold(value)
        elif isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, hold(value))
            if getattr(node, "row_tables", ()):
                node.row_tables = ()  # type: ignore[attr-defined]
    if len(done) < len(parameters):
        raise ConfigError(
            f"{type(module).__name__} keeps {len(parameters) - len(done)} of its parameters where they cannot be "
            "frozen. Keep them as attributes of modules or in an nnx.List"
        )
    return module


def examination_of(propensity: Any, *, additive: bool = False) -> Frozen:
    """A frozen bias tower at known propensities.

    Args:
      propensity: examination by rank relative to rank 1, or as probabilities: [R] numbers above 0, or the
        `ultr.propensity.Propensities` that an estimator returns.
      additive: for the additive models, to which a propensity p is the addend log p; otherwise the logits are those of
        the PBM, with the largest propensity at examination 1 - 1e-6.

    Raises:
      ConfigError: a rank without a propensity above 0, or no rank at all.
    """
    values = np.asarray(getattr(propensity, "value", propensity), np.float64)
    if values.ndim != 1 or not values.size:
        raise ConfigError(f"expected propensities [R], one per rank, found shape {values.shape}")
    bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if bad.size:
        raise ConfigError(
            f"rank {bad[0] + 1} has no propensity above 0 (found {values[bad[0]]}): cut the lists above it, or use an "
            "estimator that supports it"
        )
    numbers: Sequence[float] = (
        np.log(values / values[0]) if additive else logits(values / values.max() * (1 - 1e-6))
    ).tolist()
    return Frozen(RankTable(len(numbers), initial=numbers))
