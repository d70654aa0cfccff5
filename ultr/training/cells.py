"""Table towers as flat arrays of logits, for `solve`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.errors import ConfigError
from ultr.models import UBM, CoinModel
from ultr.sessions import Sessions
from ultr.towers import Constant, DocumentTable, LastClickTable, RankDocumentTable, RankTable
from ultr.towers.tables import read


@dataclasses.dataclass(frozen=True)
class Cells:
    """A table tower as a flat array of logits.

    Attributes:
      size: number of cells.
      index: (sessions, last click) -> the cell of each impression.
      read: tower -> logits [size]; write: (tower, logits [size]).
    """

    size: int
    index: Callable[[Sessions, jax.Array], jax.Array]
    read: Callable[[Any], jax.Array]
    write: Callable[[Any, jax.Array], None]


def _set(variable: nnx.Param, value: jax.Array) -> None:
    variable[...] = jnp.asarray(value, jnp.float32).reshape(variable[...].shape)


def _position(sessions: Sessions) -> jax.Array:
    return jnp.asarray(sessions.position, jnp.int32)


def table_cells(model: CoinModel, slot: str) -> Cells:
    """The cells of the tower in a slot of a model.

    Raises:
      ConfigError: it is not a plain table.
    """
    tower = getattr(model, slot)
    if type(tower) is Constant:
        return Cells(
            1,
            lambda s, _: jnp.zeros(s.shape, jnp.int32),
            lambda t: t.value[...].reshape(1),
            lambda t, x: _set(t.value, x),
        )
    if type(tower) is RankTable and not tower.pin_first:
        return Cells(
            tower.ranks,
            lambda s, _: _position(s),
            lambda t: t.table[...],
            lambda t, x: _set(t.table, x),
        )
    if type(tower) is LastClickTable and isinstance(model, UBM) and slot == "examination":
        width = tower.ranks + 1
        return Cells(
            tower.ranks * width,
            lambda s, last: _position(s) * width + last,
            lambda t: t.table[...].reshape(-1),
            lambda t, x: _set(t.table, x),
        )
    if type(tower) is DocumentTable and tower.kind == "full":
        name = tower.feature

        def write(t: Any, x: jax.Array) -> None:
            _set(t.common, x[0])
            _set(t.table, x - x[0])

        return Cells(
            tower.documents + 1,
            lambda s, _: read(s, name, "DocumentTable").astype(jnp.int32),
            lambda t: (t.common[...] + t.table[...]).at[0].set(t.common[...]),
            write,
        )
    if type(tower) is RankDocumentTable:
        ranks = tower.ranks

        def write_both(t: Any, x: jax.Array) -> None:
            _set(t.common, x[:ranks])
            _set(t.table, x.reshape(-1, ranks) - x[None, :ranks])

        return Cells(
            (tower.documents + 1) * ranks,
            lambda s, _: read(s, "document", "RankDocumentTable").astype(jnp.int32) * ranks + _position(s),
            lambda t: (t.common[...][None, :] + t.table[...]).at[0].set(t.common[...]).reshape(-1),
            write_both,
        )
    raise ConfigError(
        f"{type(model).__name__}: tower '{slot}' ({type(tower).__name__}) is not a plain table. solve() takes "
        "Constant, RankTable, LastClickTable (UBM's examination), DocumentTable(kind='full') and RankDocumentTable; "
        "train others with ultr.training.fit"
    )
