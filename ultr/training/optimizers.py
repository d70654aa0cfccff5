"""The optimizer that `fit` uses unless it is given one."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from ultr.errors import ConfigError

NETWORK = frozenset({"kernel", "bias", "scale"})  # what flax calls the parameters of its layers


def adam(learning_rate: float = 0.003, *, tables: float = 10.0) -> optax.GradientTransformation:
    """Adam with a higher learning rate for tables than for networks.

    A logit in a table has to travel a distance of its own, often several units, while a network moves all its outputs
    at once: at one common rate the examination of a two-tower lags behind, and early stopping picks a biased epoch.

    Args:
      learning_rate: of the weights of networks.
      tables: how many times higher that of every other parameter is: constants, rank and document tables.
    """
    if not (0 < learning_rate < math.inf and 0 < tables < math.inf):
        raise ConfigError(f"expected a learning rate above 0, found {learning_rate:g} (tables: {tables:g} times that)")
    rates = {"network": optax.adam(learning_rate), "table": optax.adam(learning_rate * tables)}
    return optax.partition(rates, _kinds)


def _kinds(params: Any) -> Any:
    def kind(path: Any, _: Any) -> str:
        parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return "network" if NETWORK & set(parts) else "table"

    return jax.tree_util.tree_map_with_path(kind, params)
