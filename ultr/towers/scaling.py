"""`Scaler`: brings features to one scale, by statistics of the training split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.data.dataset import Dataset, DatasetLike, as_dataset
from ultr.data.input_schema import FEATURES, InputSchema
from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, SharedFeature
from ultr.towers.base import read_feature


class Statistic(nnx.Variable[jax.Array]):
    """A number measured on the training split: saved with the model, not trained."""


class Scaler(nnx.Module):
    """Brings features to mean 0 and variance 1, by statistics of the training split.

    Until `fit` was called it changes nothing but the transform.

    Args:
      size: number of features F.
      transform: `standardise`; or `log1p`: sign(x) log(1 + |x|) first, for counts and other long tails.

    Attributes:
      input_schema: names of the features that were measured; None: not known.
    """

    transforms = ("standardise", "log1p")
    input_schema: InputSchema | None = None

    def __init__(self, size: int, *, transform: str = "standardise") -> None:
        if transform not in self.transforms:
            raise ConfigError(f"unknown transform '{transform}'; known: {', '.join(self.transforms)}")
        self.size, self.transform = size, transform
        self.mean = Statistic(jnp.zeros(size))
        self.scale = Statistic(jnp.ones(size))

    def __call__(self, x: Array) -> jax.Array:
        """Scales features [..., F]."""
        x = jnp.asarray(x)
        if self.transform == "log1p":
            x = jnp.sign(x) * jnp.log1p(jnp.abs(x))
        lead = (1,) * (x.ndim - 1)
        return (x - self.mean[...].reshape(*lead, -1)) / self.scale[...].reshape(*lead, -1)

    def fit(
        self,
        data: DatasetLike,
        *,
        feature: str | Sequence[str] = "features",
        batch_size: int = 8192,
    ) -> Scaler:
        """Measures mean and standard deviation over the shown documents of a training split; returns self.

        Raises:
          DataError: no documents, or a feature that is not finite.
        """
        count, total, square = 0.0, np.zeros(self.size), np.zeros(self.size)
        shift: np.ndarray | None = None
        given = as_dataset(data)
        names = None if given.input_schema is None else given.input_schema.features
        for x, times in _shown_features(given, feature, self.size, batch_size):
            if self.transform == "log1p":
                x = np.sign(x) * np.log1p(np.abs(x))
            if not np.isfinite(x).all():
                column = int(np.argwhere(~np.isfinite(x))[0, 1])
                named = names[column] if names and feature == FEATURES else column
                raise DataError("expected finite features, found NaN or infinity", field=f"{feature}[{named}]")
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
        if given.input_schema is not None:
            measured = given.input_schema.only([feature] if isinstance(feature, str) else feature)
            self.input_schema = measured if measured.fields else None
        return self


def _shown_features(
    data: Dataset, names: str | Sequence[str], size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields features [n, F] of shown documents and how often each was shown [n]; documents of a log come once."""
    table, times = None, np.zeros(0)
    for batch in data.batches(batch_size, share_features=isinstance(names, str)):
        mask = np.asarray(batch.mask)
        known = batch.features.get(names) if isinstance(names, str) else None
        if isinstance(known, SharedFeature):
            table = np.asarray(known.values)
            times = np.zeros(len(table)) if not times.size else times
            times += np.bincount(np.asarray(known.index)[mask], minlength=len(table))
        elif mask.any():
            x = np.asarray(feature_matrix(batch, names, size, "Scaler"), np.float64)[mask]
            yield x, np.ones(len(x))
    if table is not None:
        if table.ndim != 2 or table.shape[1] != size:
            raise ConfigError(f"tower Scaler: expected {size} features, found {table.shape[1:]} in '{names}'")
        used = np.flatnonzero(times)
        for rows in np.array_split(used, max(len(used) // batch_size, 1)):
            yield table[rows].astype(np.float64), times[rows]


def feature_matrix(sessions: Sessions, names: str | Sequence[str], size: int, tower: str) -> jax.Array:
    """Puts the named features side by side, [B, K, F] float32.

    Raises:
      ConfigError: a feature is missing, or there are not `size` numbers; names the tower that asks.
    """
    parts = []
    for name in [names] if isinstance(names, str) else names:
        x = read_feature(sessions, name, tower)
        parts.append(x[..., None] if x.ndim == 2 else x)
    x = parts[0] if len(parts) == 1 else jnp.concatenate([p.astype(jnp.float32) for p in parts], axis=-1)
    if x.ndim != 3 or x.shape[-1] != size:
        raise ConfigError(f"tower {tower}: expected {size} features, found {x.shape[2:]} in '{names}'")
    return x.astype(jnp.float32)
