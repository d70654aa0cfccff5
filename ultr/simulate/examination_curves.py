"""How far a simulated user reads: examination by rank, which contexts and time may change.

The position bias of a user is one exponent, eta: a rank whose examination is p at eta = 1 has p^eta. A user of eta = 0
examines everything; the larger eta is, the less is examined below the top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ultr.errors import ConfigError
from ultr.logspace import log1mexp, logit_and
from ultr.sessions import Sessions
from ultr.towers import IndexBound, Tower, TowerLike, as_tower, read_feature

JOACHIMS = (0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06)
EXAMINATIONS = ("inverse", "joachims")
_CERTAIN = 40.0  # the logit of probability 1, as in towers.logits


@dataclasses.dataclass(frozen=True)
class Context:
    """A property of sessions, such as the device, that is drawn at random, logged, and changes how far the user reads.

    Attributes:
      name: name of the property, such as `device`; its column of the log is `context.device`.
      values: names of the values, such as ("desk", "phone").
      factors: what eta is multiplied by under each value.
      shares: relative frequency of each value; None: all equally frequent.
    """

    name: str
    values: tuple[str, ...]
    factors: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "factors", tuple(self.factors))
        if self.shares is not None:
            object.__setattr__(self, "shares", tuple(self.shares))
        sizes = {len(self.values), len(self.factors), len(self.shares or self.values)}
        if len(sizes) > 1 or not self.values or len(set(self.values)) < len(self.values):
            raise ConfigError(
                f"context '{self.name}': expected different values with a factor (and a share) each, found "
                f"{self.values}, {self.factors}, {self.shares}"
            )
        if not all(0 <= x < np.inf for x in self.factors):
            raise ConfigError(f"context '{self.name}': expected finite factors of at least 0, found {self.factors}")
        if not all(0 < x < np.inf for x in self.chances):
            raise ConfigError(f"context '{self.name}': expected shares above 0, found {self.shares}")
        if self.name in ("document", "features", "time", ""):
            raise ConfigError(f"'{self.name}' cannot be the name of a context: another column has that name")

    @property
    def chances(self) -> np.ndarray:
        """Returns the probability [C] of each value."""
        shares = np.ones(len(self.values)) if self.shares is None else np.asarray(self.shares, np.float64)
        return np.asarray(shares / shares.sum())


@dataclasses.dataclass(frozen=True)
class BiasExponent:
    """The exponent of the position bias in a session: (eta + (drift - eta) time) times the factors of its contexts.

    Attributes:
      eta: the exponent at the start of the log (time 0).
      drift: eta at the end of the log (time 1), with the feature `time` [B, K] between; None: eta does not change.
      contexts: properties of sessions whose features [B, K] hold the category, from 1; 0 is unknown, with a factor
        of 1.
    """

    eta: float = 1.0
    drift: float | None = None
    contexts: tuple[Context, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", tuple(self.contexts))
        for name, x in (("eta", self.eta), ("drift", 0.0 if self.drift is None else self.drift)):
            if not 0 <= x < np.inf:
                raise ConfigError(f"expected a finite {name} of at least 0, found {x}")
        names = [context.name for context in self.contexts]
        if len(set(names)) < len(names):
            raise ConfigError(f"expected contexts of different names, found {names}")

    @property
    def constant(self) -> bool:
        """Tells whether every session has the same exponent."""
        return self.drift is None and not self.contexts

    def exponent(self, sessions: Sessions) -> jax.Array:
        """Computes the exponent [B, K] of each impression."""
        eta = jnp.full(sessions.shape, self.eta, jnp.float32)
        if self.drift is not None:
            eta = eta + (self.drift - self.eta) * read_feature(sessions, "time", "RankCurve")
        for context in self.contexts:
            table = jnp.asarray((1.0, *context.factors), jnp.float32)
            eta = eta * jnp.take(table, read_feature(sessions, context.name, "RankCurve").astype(jnp.int32), axis=0)
        return eta


def examination(kind: str, ranks: int) -> np.ndarray:
    """Returns [ranks] examination at eta = 1: `inverse` 1/rank, or `joachims`, the eye tracking of Joachims 2005.

    Raises:
      ConfigError: an unknown kind, or more ranks than the ten of the table.
    """
    if kind not in EXAMINATIONS:
        raise ConfigError(f"unknown examination '{kind}'; known: {', '.join(EXAMINATIONS)}")
    if kind == "inverse":
        return 1.0 / np.arange(1, ranks + 1)
    if ranks > len(JOACHIMS):
        raise ConfigError(
            f"the table 'joachims' has {len(JOACHIMS)} ranks, found {ranks}: cut the lists or use 'inverse'"
        )
    return np.asarray(JOACHIMS[:ranks])


class RankCurve(Tower):
    """A fixed tower that gives the logit of base_k^eta at rank k, with the exponent of each session.

    Args:
      base: [R] probability at each rank for eta = 1.
      bias: the exponent.
      additive: whether to give eta ln(base_k) instead, a summand of an additive logit.
    """

    pointwise = True

    def __init__(self, base: Sequence[float] | np.ndarray, *, bias: BiasExponent, additive: bool = False) -> None:
        self.base, self.bias, self.additive = tuple(float(x) for x in base), bias, additive

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.base), "ranks"),)

    def logits(self, sessions: Sessions) -> jax.Array:
        log_base = jnp.asarray(np.log(self.base), jnp.float32)
        log_p = self.bias.exponent(sessions) * jnp.take(log_base, jnp.asarray(sessions.position), axis=0)
        return log_p if self.additive else _logit(log_p)


class ClickGapCurve(Tower):
    """A fixed tower for UBM that gives logits [B, K, K+1] of base_gap^eta, by the distance to the last click above.

    Args:
      base: [R] probability at each distance, from 1, for eta = 1; without a click, rank k is at distance k.
      bias: the exponent.
    """

    def __init__(self, base: Sequence[float] | np.ndarray, *, bias: BiasExponent) -> None:
        self.base, self.bias = tuple(float(x) for x in base), bias

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.base), "ranks"),)

    def logits(self, sessions: Sessions) -> jax.Array:
        rank = jnp.asarray(sessions.position) + 1
        last = jnp.pad(rank, ((0, 0), (1, 0)))
        gap = jnp.maximum(rank[:, :, None] - last[:, None, :], 1)
        log_base = jnp.asarray(np.log(self.base), jnp.float32)
        return _logit(self.bias.exponent(sessions)[:, :, None] * jnp.take(log_base, gap - 1, axis=0))


class ProductTower(Tower):
    """A tower whose probability is the product of the probabilities of two towers."""

    pointwise = True

    def __init__(self, first: TowerLike, second: TowerLike) -> None:
        self.first, self.second = as_tower(first), as_tower(second)

    def logits(self, sessions: Sessions) -> jax.Array:
        return logit_and(self.first(sessions), self.second(sessions))


def _logit(log_p: jax.Array) -> jax.Array:
    return jnp.clip(log_p - log1mexp(log_p), -_CERTAIN, _CERTAIN)
