"""Adam with one learning rate for networks and one for tables: the optimizer of `fit` unless it is given another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import optax
from flax import nnx

from ultr.errors import ConfigError
from ultr.towers import parameter_groups, row_tables

LARGE_TABLE = 100_000  # entries; a larger table is not swept in every step
GROUP = "parameter_group"  # metadata of a parameter: which learning rate it has


def adam(learning_rate: float = 0.003, *, tables: float = 10.0) -> optax.GradientTransformation:
    """Builds Adam with a higher learning rate for tables than for networks.

    A logit in a table has to travel a distance of its own, often several units, while a network moves all its outputs
    at once: at one common rate the examination of a two-tower lags behind, and early stopping picks a biased epoch.
    Which group a parameter is in is declared by its tower (`towers.Component.parameter_group`); `fit` marks the
    parameters accordingly. In a loop of your own call `mark_groups(model)` first: parameters without a mark are taken
    for those of a network.

    Args:
      learning_rate: of the weights of networks.
      tables: how many times higher the rate of tables is: constants, rank and document tables.
    """
    if not (0 < learning_rate < math.inf and 0 < tables < math.inf):
        raise ConfigError(f"expected a learning rate above 0, found {learning_rate:g} (tables: {tables:g} times that)")
    return _adam(float(learning_rate), float(tables))


@cache  # what was compiled for an optimizer is found again by the object
def _adam(learning_rate: float, tables: float) -> optax.GradientTransformation:
    rates = {"network": optax.adam(learning_rate), "table": optax.adam(learning_rate * tables)}
    return optax.partition(rates, _groups)


def mark_groups(model: nnx.Module) -> None:
    """Marks every parameter of a model with its learning-rate group, in place (`towers.parameter_groups`)."""
    groups = parameter_groups(model)
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            node.set_metadata(**{GROUP: groups[tuple(path)]})


def with_prior(gradient: Any, params: Any, strengths: Mapping[str, Any]) -> Any:
    """Adds the gradient of a Gaussian prior around 0, of a strength for each learning-rate group, to a gradient."""

    def add(gradient: Any, leaf: Any) -> Any:
        strength = strengths[_group(leaf)]
        return jax.tree.map(lambda g, p: g + strength * p, gradient, leaf)

    return jax.tree.map(add, gradient, params, is_leaf=_is_variable)


def _groups(params: Any) -> Any:
    return jax.tree.map(_group, params, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _group(leaf: Any) -> str:
    marked = leaf.get_metadata() if _is_variable(leaf) else {}
    return str(marked.get(GROUP, "network"))


def has_large_table(model: nnx.Module) -> bool:
    """Tells whether a table is too large to be swept in every step: then `lazy_adam` is the default optimizer."""
    return any(table[...].size > LARGE_TABLE for table in row_tables(model).values())
