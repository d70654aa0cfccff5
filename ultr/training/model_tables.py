"""The tables of a click model as flat arrays of logits, for `solve`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ultr.errors import ConfigError
from ultr.models import UBM, LatentVariableModel
from ultr.sessions import Sessions
from ultr.towers import Constant, DocumentTable, LastClickTable, RankDocumentTable, RankTable, read_feature
from ultr.towers.base import tower_name


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """Describes how the logits of a table tower lie in a flat array; the logits themselves stand elsewhere.

    Attributes:
      kind: the tower's class.
      size: number of entries.
      ranks: number of ranks, of the tables that have some.
      feature: name of the ids of a table per document.
    """

    kind: type
    size: int
    ranks: int = 1
    feature: str | None = None

    def index(self, sessions: Sessions, last_click: jax.Array) -> jax.Array:
        """Computes which entry each impression reads, [B, K]; `last_click` as in `Sessions`."""
        position = jnp.asarray(sessions.position, jnp.int32)
        if self.feature is not None:
            document = read_feature(sessions, self.feature, self.kind.__name__).astype(jnp.int32)
            return document if self.kind is DocumentTable else document * self.ranks + position
        if self.kind is LastClickTable:
            return position * (self.ranks + 1) + last_click
        return position if self.kind is RankTable else jnp.zeros(sessions.shape, jnp.int32)

    def read(self, tower: Any) -> jax.Array:
        """Reads the logits of the tower, [size] float32."""
        if self.feature is None:
            logits = (tower.value if self.kind is Constant else tower.table)[...]
        else:
            entry = tower.table[...].reshape(-1, self.ranks).at[0].set(0.0)
            logits = tower.common[...].reshape(1, self.ranks) + entry
        return jnp.asarray(logits.reshape(-1), jnp.float32)

    def write(self, tower: Any, logits: jax.Array) -> None:
        """Writes logits [size] into the tower; that of document 0 is common to all documents."""
        if self.feature is None:
            _set(tower.value if self.kind is Constant else tower.table, logits)
        else:
            logits = logits.reshape(-1, self.ranks)
            _set(tower.common, logits[0])
            _set(tower.table, logits - logits[:1])


@dataclasses.dataclass(frozen=True)
class ModelTables:
    """The tables of a model, each once, in the order of the slots that read them.

    Attributes:
      model: the model's class.
      specs: one for each table.
      places: which of the tables each slot reads.
    """

    model: type[LatentVariableModel]
    specs: tuple[TableSpec, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, model: LatentVariableModel) -> ModelTables:
        """Finds the tables of a model.

        Raises:
          ConfigError: a tower is not a plain table.
        """
        found = {id(model.tower_in(slot)): _spec(model, slot) for slot in model.slots}
        order = list(found)
        places = tuple(order.index(id(model.tower_in(slot))) for slot in model.slots)
        return cls(type(model), tuple(found.values()), places)

    @property
    def features(self) -> set[str]:
        """Names of the features that the tables read."""
        return {spec.feature for spec in self.specs if spec.feature is not None}

    def read(self, model: LatentVariableModel) -> list[jax.Array]:
        """Reads the logits of each table of a model with such tables."""
        return [spec.read(tower) for tower, spec in zip(_towers(model), self.specs, strict=True)]

    def with_logits(self, model: LatentVariableModel, logits: list[jax.Array]) -> LatentVariableModel:
        """Copies a model with such tables and writes the given logits into them."""
        model = nnx.clone(model)
        for tower, spec, x in zip(_towers(model), self.specs, logits, strict=True):
            spec.write(tower, x)
        return model


def _towers(model: LatentVariableModel) -> list[Any]:
    towers = (model.tower_in(slot) for slot in model.slots)
    return list({id(tower): tower for tower in towers}.values())


def _set(variable: nnx.Param[jax.Array], value: jax.Array) -> None:
    variable[...] = jnp.asarray(value, jnp.float32).reshape(variable[...].shape)


def _spec(model: LatentVariableModel, slot: str) -> TableSpec:
    """Describes the table in a slot of a model.

    Raises:
      ConfigError: it is not a plain table.
    """
    tower: Any = model.tower_in(slot)
    kind = type(tower)
    if kind is Constant:
        return TableSpec(kind, 1)
    if kind is RankTable and not tower.pin_first:
        return TableSpec(kind, tower.ranks, tower.ranks)
    if kind is LastClickTable and isinstance(model, UBM) and slot == "examination":
        return TableSpec(kind, tower.ranks * (tower.ranks + 1), tower.ranks)
    if kind is DocumentTable and tower.kind == "full":
        return TableSpec(kind, tower.documents + 1, feature=tower.feature)
    if kind is RankDocumentTable:
        return TableSpec(kind, (tower.documents + 1) * tower.ranks, tower.ranks, "document")
    raise ConfigError(
        f"{type(model).__name__}: tower '{slot}' ({tower_name(tower)}) is not a plain table. solve() takes "
        "Constant, RankTable, LastClickTable (UBM's examination), DocumentTable(kind='full') and RankDocumentTable; "
        "train others with ultr.training.fit"
    )
