"""Reading tables by index: the one place where training learns which rows a batch touches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.errors import ConfigError
from ultr.sessions import Array
from ultr.towers.base import Component

LANES = 16
Reader = Callable[[nnx.Param[jax.Array], jax.Array], jax.Array | None]

_reader: ContextVar[Reader | None] = ContextVar("reader", default=None)


def lookup(table: nnx.Param[jax.Array], index: Array) -> jax.Array:
    """Looks up a table's numbers at the given indices, in the indices' shape.

    A table of several axes is indexed as if flattened; an index beyond the table reads no row, and what is returned
    there must not be used. Towers whose tables shall be trained row by row
    (`ultr.training.lazy_adam`) read them through this function and declare them in `row_tables`.

    Args:
      table: parameter of any shape.
      index: int32 of any shape.
    """
    index = jnp.asarray(index)
    reader = _reader.get()
    values = None if reader is None else reader(table, index)
    return jnp.take(table[...].reshape(-1), index, axis=0, mode="clip") if values is None else values


def spread(index: jax.Array) -> jax.Array:
    """Computes the index into a table whose entries stand 16 times side by side (`jnp.repeat(table, LANES)`).

    Neighbouring impressions then read different copies of one entry, and their gradients are not added up one after
    another at one address, which is slow on a CPU; worth it for tables of few entries.
    """
    lane = jnp.arange(index.shape[-1], dtype=jnp.int32) % LANES
    return index.astype(jnp.int32) * LANES + jnp.broadcast_to(lane, index.shape)


def lookup_small(table: jax.Array, index: Array) -> jax.Array:
    """Looks up a small flat table at the given indices, with a gradient that is quick to add up."""
    index = jnp.asarray(index)
    if index.ndim == 0:
        return table[index]
    # Clipped, since a padding position may lie beyond the table and a NaN there would reach gradients.
    return jnp.take(jnp.repeat(table, LANES), spread(index), axis=0, mode="clip")


@contextlib.contextmanager
def read_by(reader: Reader) -> Iterator[None]:
    """Lets a reader answer `lookup` inside the block; it returns None for tables that it does not know."""
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)


def row_tables(model: nnx.Module) -> dict[tuple[Any, ...], nnx.Param[jax.Array]]:
    """Finds the tables of a model that may be trained row by row, as its modules declare them in `row_tables`.

    A model that reads whole tables (`reads_whole_tables`) has none.

    Returns:
      Path -> table.

    Raises:
      ConfigError: a module declares a table that it does not have.
    """
    if isinstance(model, Component) and model.reads_whole_tables:
        return {}
    found = {}
    for path, module in nnx.iter_modules(model):
        for name in module.row_tables if isinstance(module, Component) else ():
            if name not in vars(module):
                raise ConfigError(
                    f"{type(module).__name__} declares the table '{name}' in row_tables and has no such attribute"
                )
            if isinstance(vars(module)[name], nnx.Param):  # a frozen table is none
                found[(*path, name)] = vars(module)[name]
    return found
