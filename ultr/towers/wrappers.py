"""Towers around other towers: sums, dropout, gradient reversal, frozen copies, features that the model holds."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import as_float32, number_array
from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, SharedFeature
from ultr.towers.base import LastClickTower, Tower, TowerLike, as_tower
from ultr.towers.scaling import Statistic
from ultr.towers.tables import RankTable, logits_of


class TowerWrapper(Tower):
    """Computes its logits from those of one other tower, by `change`; abstract.

    Args:
      tower: the wrapped tower.
    """

    takes_shared_features = True  # the wrapped tower gets what it declares for itself

    def __init__(self, tower: TowerLike) -> None:
        self.tower = as_tower(tower)

    @property
    def pointwise(self) -> bool:
        return self.tower.pointwise and not isinstance(self.tower, LastClickTower)

    @property
    def reads(self) -> frozenset[str] | None:
        return self.tower.reads

    @abc.abstractmethod
    def change(self, logits: jax.Array) -> jax.Array:
        """Computes the logits from those of the wrapped tower, of the same shape."""

    def logits(self, sessions: Sessions) -> jax.Array:
        return self.change(self.tower(sessions))


class Sum(Tower):
    """Adds up the logits of several towers, e.g. a table plus a network.

    Args:
      towers: towers that return [B, K]; if one returns [B, K, K+1] (UBM's examination), the others are
        added to each last click alike.
    """

    takes_shared_features = True

    def __init__(self, towers: Sequence[TowerLike]) -> None:
        if not towers:
            raise ConfigError("a sum needs at least one tower, found none")
        self.towers = nnx.List([as_tower(tower) for tower in towers])

    @property
    def pointwise(self) -> bool:
        return all(tower.pointwise and not isinstance(tower, LastClickTower) for tower in self.towers)

    @property
    def reads(self) -> frozenset[str] | None:
        found = [tower.reads for tower in self.towers]
        return None if None in found else frozenset().union(*(names for names in found if names is not None))

    def logits(self, sessions: Sessions) -> jax.Array:
        parts = [tower(sessions) for tower in self.towers]
        dims = max(p.ndim for p in parts)
        return functools.reduce(jnp.add, (p[:, :, None] if p.ndim < dims else p for p in parts))


class Dropout(TowerWrapper):
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

    def __init__(self, tower: TowerLike, *, rate: float = 0.5, rngs: nnx.Rngs) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"expected a dropout rate from 0 to below 1, found {rate}")
        super().__init__(tower)
        self.rate = float(rate)
        self.dropout = nnx.Dropout(self.rate, rngs=rngs)

    def change(self, logits: jax.Array) -> jax.Array:
        return self.dropout(logits)


class GradientReversal(TowerWrapper):
    """Gives the tower's logits, with its gradient times -`strength`.

    What is trained on these logits finds out what they tell, while the tower forgets it (Zhang 2023, after Ganin and
    Lempitsky 2015). It belongs in front of an adversary, as in `baselines.AdversarialTwoTower`: in the place of a bias
    tower itself, it would have that tower make the click likelihood as small as it can.

    Args:
      tower: the bias tower; logits of any shape.
      strength: at least 0.

    Raises:
      ConfigError: a strength below 0, or not finite.
    """

    def __init__(self, tower: TowerLike, *, strength: float = 1.0) -> None:
        if not 0 <= strength < float("inf"):
            raise ConfigError(f"expected a finite strength of at least 0, found {strength}")
        super().__init__(tower)
        self.strength = float(strength)

    def change(self, logits: jax.Array) -> jax.Array:
        return reverse(logits, self.strength)


def reverse(x: jax.Array, strength: float) -> jax.Array:
    """Returns x, with the gradient times -strength."""
    still = jax.lax.stop_gradient(x)
    return still - strength * (x - still)


class Held(nnx.Variable[jax.Array]):
    """A number that was a parameter before its tower was frozen: saved with the model, not trained."""


class Frozen(TowerWrapper):
    """A copy of a tower that `fit` leaves as it is: no dropout, fixed statistics, nothing that counts as a parameter.

    With `examination_of` it is the bias tower at harvested propensities, which the clicks at hand cannot confound any
    more.

    Args:
      tower: any tower; the one that is given stays trainable.

    Raises:
      ConfigError: parameters where they cannot be found, in a container other than a module's attribute or `nnx.List`.
    """

    def __init__(self, tower: TowerLike) -> None:
        super().__init__(held(as_tower(tower)))

    def change(self, logits: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(logits)


Module = TypeVar("Module", bound=nnx.Module)


def held(module: Module) -> Module:
    """Copies a module in evaluation mode, with its parameters as `Held`; no table of the copy is trained."""
    module = nnx.clone(module)
    nnx.Module.eval(module)
    done: dict[int, Held] = {}  # by parameter, so that one in two places stays one

    def hold(parameter: nnx.Param[jax.Array]) -> Held:
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
    if len(done) < len(parameters):
        raise ConfigError(
            f"{type(module).__name__} keeps {len(parameters) - len(done)} of its parameters where they cannot be "
            "frozen. Keep them as attributes of modules or in an nnx.List"
        )
    return module


@runtime_checkable
class HasPropensities(Protocol):
    """An estimate of examination by rank, such as `ultr.propensity.Propensities`."""

    @property
    def rank(self) -> np.ndarray:
        """[R] 1-based ranks."""
        ...

    @property
    def value(self) -> np.ndarray:
        """[R] examination of each rank."""
        ...


def examination_of(propensity: Sequence[float] | np.ndarray | HasPropensities, *, additive: bool = False) -> Frozen:
    """Makes a frozen bias tower at known propensities.

    Args:
      propensity: examination by rank relative to rank 1, or as probabilities: [R] numbers above 0, or the
        `ultr.propensity.Propensities` that an estimator returns.
      additive: for the additive models, to which a propensity p is the addend log p; otherwise the logits are those of
        the PBM, with the largest propensity at examination 1 - 1e-6.

    Raises:
      ConfigError: a rank without a propensity above 0, or no rank at all.
    """
    values = np.asarray(propensity.value if isinstance(propensity, HasPropensities) else propensity, np.float64)
    if values.ndim != 1 or not values.size:
        raise ConfigError(f"expected propensities [R], one per rank, found shape {values.shape}")
    bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if bad.size:
        raise ConfigError(
            f"rank {bad[0] + 1} has no propensity above 0 (found {values[bad[0]]}): cut the lists above it, or use an "
            "estimator that supports it"
        )
    numbers: Sequence[float] = (
        np.log(values / values[0]) if additive else logits_of(values / values.max() * (1 - 1e-6))
    ).tolist()
    return Frozen(RankTable(len(numbers), initial=numbers))


class Stored(TowerWrapper):
    """A tower over features that it looks up by document where the sessions do not bring them.

    So a small collection's features need not be copied into every batch. Sessions that bring features, such as those
    of other lists with ids of their own, are scored by these.

    Args:
      tower: reads the feature `features`.
      values: [V + 1, F] by document id.

    Raises:
      DataError: a value is not finite.
    """

    takes_shared_features = True

    def __init__(self, tower: TowerLike, *, values: Array) -> None:
        super().__init__(tower)
        table = as_float32(number_array(values, "values"))
        if len(bad := np.argwhere(~np.isfinite(table))):
            document, column = (int(i) for i in bad[0])
            raise DataError(
                f"expected finite features, found {table[document, column]} of document {document}",
                field=f"features[{column}]",
            )
        self.values = Statistic(jnp.asarray(table))

    def change(self, logits: jax.Array) -> jax.Array:
        return logits

    def logits(self, sessions: Sessions) -> jax.Array:
        if "features" in sessions.features:
            return self.tower(sessions)
        values, index = self.values[...], jnp.asarray(sessions.features["document"])
        shared = SharedFeature(values, index)
        found = shared if len(values) <= index.size else shared.whole()  # each document once, or each impression
        return self.tower(sessions.replace(features={**sessions.features, "features": found}))


def needs_no_features(model: nnx.Module) -> bool:
    """Tells whether a model reads `features` from what it holds itself (`Stored`), and never from the sessions."""
    towers = [(tuple(path), module) for path, module in nnx.iter_modules(model) if isinstance(module, Tower)]
    holding = [path for path, tower in towers if isinstance(tower, Stored)]
    outside = [
        tower
        for path, tower in towers
        if not any(path[: len(h)] == h for h in holding) and not isinstance(tower, Sum | TowerWrapper)
    ]
    return bool(holding) and all(tower.reads is not None and "features" not in tower.reads for tower in outside)
