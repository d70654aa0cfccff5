"""A tower over features that the model itself holds, so that they need not travel with every batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.sessions import Sessions, Shared
from ultr.towers.networks import Statistic


class Stored(nnx.Module):
    """A tower over features that it looks up by document where the sessions do not bring them.

    So a small collection's features need not be copied into every batch. Sessions that bring features, such as those
    of other lists with ids of their own, are scored by these.

    Args:
      tower: reads the feature `features`.
      values: [V + 1, F] by document id.
    """

    def __init__(self, tower: Any, *, values: Any) -> None:
        self.tower = tower
        self.pointwise = bool(getattr(tower, "pointwise", False))
        self.values = Statistic(jnp.asarray(values, jnp.float32))

    def __call__(self, sessions: Sessions) -> jax.Array:
        if "features" in sessions.features:
            return self.tower(sessions)
        values, index = self.values[...], jnp.asarray(sessions.features["document"])
        shared = Shared(values, index)
        found = shared if len(values) <= index.size else shared.whole()  # each document once, or each impression
        return self.tower(sessions.replace(features={**sessions.features, "features": found}))  # type: ignore[attr-defined]


def only_stored(model: nnx.Module) -> bool:
    """Whether a model needs no features with its sessions, since every tower over them is `Stored`."""
    modules = list(nnx.iter_modules(model))
    holding = [tuple(path) for path, module in modules if isinstance(module, Stored)]
    readers = [tuple(path) for path, module in modules if hasattr(module, "feature")]
    return bool(holding) and all(any(path[: len(h)] == h for h in holding) for path in readers)
