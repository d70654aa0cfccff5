"""Towers that compute a logit from features: linear, MLP, DCN-V2; their scaling, and sums of towers."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, Shared, Source, stream
from ultr.towers.tables import read

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Statistic(nnx.Variable):
    """A number measured on the training split: saved with the model, not trained."""


class Scaler(nnx.Module):
    """Brings features to mean 0 and variance 1, by statistics of the training split.

    Until `fit` was called it changes nothing but the transform.

    Args:
      size: number of features F.
      transform: `standardise`; or `log1p`: sign(x) log(1 + |x|) first, for counts and other long tails.
    """

    transforms = ("standardise", "log1p")

    def __init__(self, size: int, *, transform: str = "standardise") -> None:
        if transform not in self.transforms:
            raise ConfigError(f"unknown transform '{transform}'; known: {', '.join(self.transforms)}")
        self.size, self.transform = size, transform
        self.mean = Statistic(jnp.zeros(size))
        self.scale = Statistic(jnp.ones(size))

    def __call__(self, x: Array) -> jax.Array:
        x = jnp.asarray(x)
        if self.transform == "log1p":
            x = jnp.sign(x) * jnp.log1p(jnp.abs(x))
        lead = (1,) * (x.ndim - 1)
        return (x - self.mean[...].reshape(*lead, -1)) / self.scale[...].reshape(*lead, -1)

    def fit(self, source: Source, *, feature: str | Sequence[str] = "features", batch_size: int = 8192) -> Scaler:
        """Measures mean and standard deviation over the shown documents of a training split; returns self.

        Raises:
          DataError: no documents, or a feature that is not finite.
        """
        count, total, square = 0.0, np.zeros(self.size), np.zeros(self.size)
        shift: np.ndarray | None = None
        for x, times in _shown(source, feature, self.size, batch_size):
            if self.transform == "log1p":
                x = np.sign(x) * np.log1p(np.abs(x))
            if not np.isfinite(x).all():
                column = int(np.argwhere(~np.isfinite(x))[0, 1])
                raise DataError("expected finite features, found NaN or infinity", field=f"{feature}[{column}]")
            shift = x.mean(0) if shift is None else shift
            count += times.sum()
            total += times @ (x - shift)
            square += times @ (x - shift) ** 2
        if shift is None:
            raise DataError("cannot measure feature statistics: the training split has no documents")
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0.0))
        constant = deviation <= 4 * np.finfo(np.float32).eps * np.abs(mean + shift)
        self.mean[...] = jnp.asarray(mean + shift, jnp.float32)
        self.scale[...] = jnp.asarray(np.where(constant, 1.0, deviation), jnp.float32)
        return self


def _shown(
    source: Source, names: str | Sequence[str], size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features [n, F] of shown documents and how often each was shown [n]; documents of a log each once."""
    table, times = None, np.zeros(0)
    own = stream(source)
    for batch in own.lean(batch_size, seed=None) if isinstance(names, str) else own.batches(batch_size):
        mask = np.asarray(batch.mask)
        known = batch.features.get(names) if isinstance(names, str) else None
        if isinstance(known, Shared):
            table = np.asarray(known.values)
            times = np.zeros(len(table)) if not times.size else times
            times += np.bincount(np.asarray(known.index)[mask], minlength=len(table))
        elif mask.any():
            x = np.asarray(_features(batch, names, size, "Scaler"), np.float64)[mask]
            yield x, np.ones(len(x))
    if table is not None:
        if table.ndim != 2 or table.shape[1] != size:
            raise ConfigError(f"tower Scaler: expected {size} features, found {table.shape[1:]} in '{names}'")
        used = np.flatnonzero(times)
        for rows in np.array_split(used, max(len(used) // batch_size, 1)):
            yield table[rows].astype(np.float64), times[rows]


def _features(sessions: Sessions, names: str | Sequence[str], size: int, tower: str) -> jax.Array:
    """[B, K, F] float32: the named features side by side."""
    parts = []
    for name in [names] if isinstance(names, str) else names:
        x = read(sessions, name, tower)
        parts.append(x[..., None] if x.ndim == 2 else x)
    x = parts[0] if len(parts) == 1 else jnp.concatenate([p.astype(jnp.float32) for p in parts], axis=-1)
    if x.ndim != 3 or x.shape[-1] != size:
        raise ConfigError(f"tower {tower}: expected {size} features, found {x.shape[2:]} in '{names}'")
    return x.astype(jnp.float32)


class _Network(nnx.Module):
    """Reads, scales and hands [B, K, F] to `logits`."""

    pointwise = True
    size: int
    feature: str | tuple[str, ...]
    scaler: Scaler | None

    def _inputs(self, size: int, feature: str | Sequence[str], scaler: Scaler | None) -> None:
        if scaler is not None and scaler.size != size:
            raise ConfigError(f"expected a scaler of {size} features, found one of {scaler.size}")
        self.size = size
        self.feature = feature if isinstance(feature, str) else tuple(feature)
        self.scaler = scaler

    def __call__(self, sessions: Sessions) -> jax.Array:
        shared = sessions.features.get(self.feature) if isinstance(self.feature, str) else None
        if isinstance(shared, Shared):  # once per document instead of once per impression
            values = self._checked(jnp.asarray(shared.values))
            each = self.logits(values if self.scaler is None else self.scaler(values))
            return jnp.take(each, jnp.asarray(shared.index), axis=0)
        x = _features(sessions, self.feature, self.size, type(self).__name__)
        if self.scaler is not None:
            x = self.scaler(x)
        # Padding must not reach the network: zeros there can be far outside after scaling.
        return self.logits(jnp.where(jnp.asarray(sessions.mask)[:, :, None], x, 0.0))

    def _checked(self, x: jax.Array) -> jax.Array:
        """[U, F] float32."""
        if x.ndim != 2 or x.shape[1] != self.size:
            found = f"expected {self.size} features, found {x.shape[1:]} in '{self.feature}'"
            raise ConfigError(f"tower {type(self).__name__}: {found}")
        return x.astype(jnp.float32)

    @abc.abstractmethod
    def logits(self, x: jax.Array) -> jax.Array:
        """[..., F] scaled features -> [...] logits."""


class Linear(_Network):
    """Weighted sum of the features plus a constant.

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
        self._inputs(size, feature, scaler)
        self.output = nnx.Linear(size, 1, rngs=rngs)

    def logits(self, x: jax.Array) -> jax.Array:
        return self.output(x)[..., 0]


def _dense(size: int, hidden: Sequence[int], rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip((size, *hidden), hidden, strict=False)])


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"unknown activation '{name}'; known: {', '.join(_ACTIVATIONS)}")
    return name


class MLP(_Network):
    """Multi-layer perceptron over the features.

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
        self._inputs(size, feature, scaler)
        self.hidden, self.activation = tuple(hidden), _activation(activation)
        self.layers = _dense(size, self.hidden, rngs)
        self.output = nnx.Linear((size, *self.hidden)[-1], 1, rngs=rngs)

    def logits(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.output(x)[..., 0]


class DCNV2(_Network):
    """Deep and cross network, second version, stacked: cross layers, then an MLP (Wang 2021).

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
        self._inputs(size, feature, scaler)
        self.crosses, self.rank = crosses, rank
        self.hidden, self.activation = tuple(hidden), _activation(activation)
        self.down = nnx.List(
            [nnx.Linear(size, rank, use_bias=False, rngs=rngs) for _ in range(crosses)] if rank else []
        )
        self.cross = nnx.List([nnx.Linear(rank or size, size, rngs=rngs) for _ in range(crosses)])
        self.layers = _dense(size, self.hidden, rngs)
        self.output = nnx.Linear((size, *self.hidden)[-1], 1, rngs=rngs)

    def logits(self, x: jax.Array) -> jax.Array:
        first = x
        for i, cross in enumerate(self.cross):
            x = first * cross(self.down[i](x) if self.rank else x) + x
        for layer in self.layers:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.output(x)[..., 0]


class Sum(nnx.Module):
    """The sum of several towers' logits, e.g. a table plus a network.

    Args:
      towers: towers that return [B, K]; if one returns [B, K, K+1] (UBM's examination), the others are
        added to each last click alike.
    """

    def __init__(self, towers: Sequence[Callable[[Sessions], Array]]) -> None:
        if not towers:
            raise ConfigError("a sum needs at least one tower, found none")
        self.towers = nnx.List(list(towers))
        self.pointwise = all(getattr(tower, "pointwise", False) for tower in towers) and not any(
            hasattr(tower, "given") for tower in towers
        )

    def __call__(self, sessions: Sessions) -> jax.Array:
        parts = [jnp.asarray(tower(sessions)) for tower in self.towers]
        dims = max(p.ndim for p in parts)
        return functools.reduce(jnp.add, (p[:, :, None] if p.ndim < dims else p for p in parts))
