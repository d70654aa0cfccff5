"""The tables of a model as flat arrays of logits, for `solve`."""

from __future__ import annotations

import dataclasses
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
    """A table tower as a flat array of logits; its logits themselves stand elsewhere.

    Attributes:
      kind: the tower's class.
      size: number of cells.
      ranks: of the tables that have some.
      feature: name of the ids of a table per document.
    """

    kind: type
    size: int
    ranks: int = 1
    feature: str | None = None

    def index(self, sessions: Sessions, last_click: jax.Array) -> jax.Array:
        """[B, K] the cell of each impression; `last_click` as in `Sessions`."""
        position = jnp.asarray(sessions.position, jnp.int32)
        if self.feature is not None:
            document = read(sessions, self.feature, self.kind.__name__).astype(jnp.int32)
            return document if self.kind is DocumentTable else document * self.ranks + position
        if self.kind is LastClickTable:
            return position * (self.ranks + 1) + last_click
        return position if self.kind is RankTable else jnp.zeros(sessions.shape, jnp.int32)

    def read(self, tower: Any) -> jax.Array:
        """[size] float32 logits."""
        if self.feature is None:
            logits = (tower.value if self.kind is Constant else tower.table)[...]
        else:
            entry = tower.table[...].reshape(-1, self.ranks).at[0].set(0.0)
            logits = tower.common[...].reshape(1, self.ranks) + entry
        return jnp.asarray(logits.reshape(-1), jnp.float32)

    def write(self, tower: Any, logits: jax.Array) -> None:
        """Puts logits [size] into the tower's table; those of document 0 are common to all."""
        if self.feature is None:
            _set(tower.value if self.kind is Constant else tower.table, logits)
        else:
            logits = logits.reshape(-1, self.ranks)
            _set(tower.common, logits[0])
            _set(tower.table, logits - logits[:1])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tables of a model as cells, each table once, in the order of the slots that read them.

    Attributes:
      model: its class.
      cells: of each table.
      places: which of them each slot reads.
    """

    model: type[CoinModel]
    cells: tuple[Cells, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, model: CoinModel) -> Layout:
        """That of a model.

        Raises:
          ConfigError: a tower is not a plain table.
        """
        found = {id(getattr(model, slot)): _cells(model, slot) for slot in model.slots}
        order = list(found)
        places = tuple(order.index(id(getattr(model, slot))) for slot in model.slots)
        return cls(type(model), tuple(found.values()), places)

    @property
    def features(self) -> set[str]:
        """Names of the features that the tables read."""
        return {cells.feature for cells in self.cells if cells.feature is not None}

    def read(self, model: CoinModel) -> list[jax.Array]:
        """The logits of each table of a model of this layout."""
        return [cells.read(tower) for tower, cells in zip(_tables(model), self.cells, strict=True)]

    def written(self, model: CoinModel, logits: list[jax.Array]) -> CoinModel:
        """A copy of a model of this layout, with the given logits in its tables."""
        model = nnx.clone(model)
        for tower, cells, x in zip(_tables(model), self.cells, logits, strict=True):
            cells.write(tower, x)
        return model


def _tables(model: CoinModel) -> list[Any]:
    towers = (getattr(model, slot) for slot in model.slots)
    return list({id(tower): tower for tower in towers}.values())


def _set(variable: nnx.Param, value: jax.Array) -> None:
    variable[...] = jnp.asarray(value, jnp.float32).reshape(variable[...].shape)


def _cells(model: CoinModel, slot: str) -> Cells:
    """The cells of the tower in a slot of a model.

    Raises:
      ConfigError: it is not a plain table.
    """
    tower = getattr(model, slot)
    kind = type(tower)
    if kind is Constant:
        return Cells(kind, 1)
    if kind is RankTable and not tower.pin_first:
        return Cells(kind, tower.ranks, tower.ranks)
    if kind is LastClickTable and isinstance(model, UBM) and slot == "examination":
        return Cells(kind, tower.ranks * (tower.ranks + 1), tower.ranks)
    if kind is DocumentTable and tower.kind == "full":
        return Cells(kind, tower.documents + 1, feature=tower.feature)
    if kind is RankDocumentTable:
        return Cells(kind, (tower.documents + 1) * tower.ranks, tower.ranks, "document")
    raise ConfigError(
        f"{type(model).__name__}: tower '{slot}' ({kind.__name__}) is not a plain table. solve() takes "
        "Constant, RankTable, LastClickTable (UBM's examination), DocumentTable(kind='full') and RankDocumentTable; "
        "train others with ultr.training.fit"
    )
