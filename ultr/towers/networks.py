"""Towers that compute a logit from features: linear, MLP, DCN-V2."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.arguments import check_count, check_names
from ultr.errors import ConfigError
from ultr.sessions import Sessions, SharedFeature
from ultr.towers.base import Tower
from ultr.towers.scaling import Scaler, feature_matrix

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class FeatureNetwork(Tower):
    """Scales the features of each document and computes its logit by `forward`; abstract.

    Features that come once per document (`SharedFeature`) are computed once per document.

    Args:
      size: number of features F.
      feature: name or names of the features to read.
      scaler: brings the features to one scale.

    Raises:
      ConfigError: a scaler of another size.
    """

    pointwise = True
    takes_shared_features = True

    def __init__(self, size: int, *, feature: str | Sequence[str], scaler: Scaler | None) -> None:
        if scaler is not None and scaler.size != size:
            raise ConfigError(f"expected a scaler of {size} features, found one of {scaler.size}")
        self.size = size
        self.feature = check_names("feature", feature)
        self.scaler = scaler

    @property
    def reads(self) -> frozenset[str]:
        return frozenset([self.feature] if isinstance(self.feature, str) else self.feature)

    @abc.abstractmethod
    def forward(self, x: jax.Array) -> jax.Array:
        """Computes logits [...] from scaled features [..., F]."""

    def logits(self, sessions: Sessions) -> jax.Array:
        shared = sessions.features.get(self.feature) if isinstance(self.feature, str) else None
        if isinstance(shared, SharedFeature):
            values = self._checked(jnp.asarray(shared.values))
            each = self.forward(values if self.scaler is None else self.scaler(values))
            return jnp.take(each, jnp.asarray(shared.index), axis=0)
        x = feature_matrix(sessions, self.feature, self.size, type(self).__name__)
        if self.scaler is not None:
            x = self.scaler(x)
        # Padding must not reach the network: zeros there can be far outside after scaling.
        return self.forward(jnp.where(jnp.asarray(sessions.mask)[:, :, None], x, 0.0))

    def _checked(self, x: jax.Array) -> jax.Array:
        if x.ndim != 2 or x.shape[1] != self.size:
            found = f"expected {self.size} features, found {x.shape[1:]} in '{self.feature}'"
            raise ConfigError(f"tower {type(self).__name__}: {found}")
        return x.astype(jnp.float32)


class Linear(FeatureNetwork):
    """Computes a weighted sum of the features plus a constant.

    Args:
      size: number of features F.
      feature: name or names of the features to read.
      scaler: brings the features to one scale.
      rngs: decides the starting weights.
    """

    def __init__(
        self,
        size: int,
        *,
        feature: str | Sequence[str] = "features",
        scaler: Scaler | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(size, feature=feature, scaler=scaler)
        self.output = nnx.Linear(size, 1, rngs=rngs)

    def forward(self, x: jax.Array) -> jax.Array:
        return self.output(x)[..., 0]


def _dense(size: int, hidden: Sequence[int], rngs: nnx.Rngs) -> nnx.List[nnx.Linear]:
    for width in hidden:
        check_count("hidden", width)
    return nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip((size, *hidden), hidden, strict=False)])


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"unknown activation '{name}'; known: {', '.join(_ACTIVATIONS)}")
    return name


class MLP(FeatureNetwork):
    """A multi-layer perceptron over the features.

    Args:
      size: number of features F.
      hidden: widths of the hidden layers.
      activation: relu, elu, gelu, silu or tanh.
      feature: name or names of the features to read.
      scaler: brings the features to one scale.
      rngs: decides the starting weights.
    """

    def __init__(
        self,
        size: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "elu",
        feature: str | Sequence[str] = "features",
        scaler: Scaler | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(size, feature=feature, scaler=scaler)
        self.hidden, self.activation = tuple(hidden), _activation(activation)
        self.layers = _dense(size, self.hidden, rngs)
        self.output = nnx.Linear((size, *self.hidden)[-1], 1, rngs=rngs)

    def forward(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.output(x)[..., 0]


class DCNV2(FeatureNetwork):
    """A deep and cross network, second version, stacked: cross layers, then an MLP (Wang 2021).

    Cross layer: x_{l+1} = x_0 * (U V x_l + b) + x_l, with U V of the given rank (None: one full matrix).

    Args:
      size: number of features F.
      crosses: number of cross layers.
      rank: rank of the cross matrices; None: full.
      hidden, activation, feature, scaler, rngs: as in `MLP`.
    """

    def __init__(
        self,
        size: int,
        *,
        crosses: int = 2,
        rank: int | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        feature: str | Sequence[str] = "features",
        scaler: Scaler | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(size, feature=feature, scaler=scaler)
        self.crosses, self.rank = crosses, rank
        self.hidden, self.activation = tuple(hidden), _activation(activation)
        self.down = nnx.List(
            [nnx.Linear(size, rank, use_bias=False, rngs=rngs) for _ in range(crosses)] if rank else []
        )
        self.cross = nnx.List([nnx.Linear(rank or size, size, rngs=rngs) for _ in range(crosses)])
        self.layers = _dense(size, self.hidden, rngs)
        self.output = nnx.Linear((size, *self.hidden)[-1], 1, rngs=rngs)

    def forward(self, x: jax.Array) -> jax.Array:
        first = x
        for i, cross in enumerate(self.cross):
            x = first * cross(self.down[i](x) if self.rank else x) + x
        for layer in self.layers:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.output(x)[..., 0]
