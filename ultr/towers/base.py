"""`Tower`: maps sessions to logits, and declares what training needs to know of it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import not_whole, number_array
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, SharedFeature, whole_feature

ParameterGroup = Literal["network", "table"]


class IndexBound(NamedTuple):
    """The size of a table that is indexed by a field of the sessions.

    Attributes:
      field: name of an integer feature, or `position`, `last_click` or `labels`.
      size: number of entries; the field holds whole numbers from 0 to below this.
      noun: what the field holds, for errors: "ids", "ranks" or "grades".
    """

    field: str
    size: int
    noun: str


class Component(nnx.Module):
    """Declares what training needs to know of a tower, or of a model made of towers.

    A subclass overrides what differs from the defaults, as a class attribute or a property.

    Attributes:
      parameter_group: which learning rate of `ultr.training.adam` the module's own parameters have: "network" or
        "table". A logit in a table has to travel a distance of its own, while a network moves all its outputs at once.
        The parameters of a tower inside have the group of that tower.
      takes_shared_features: whether features may come as `SharedFeature`, once per document, rather than as plain
        arrays.
      reads_whole_tables: whether training reads tables other than by `towers.lookup`, so that none of them, be they of
        towers inside, can be trained row by row.
      input_schema: names of the features that the module was trained on, where it reads some; None: not known.
      shown_ranks: the 1-based ranks that training showed a module with a table by rank (`note_shown_ranks`); None: not
        known.
    """

    parameter_group: ClassVar[ParameterGroup] = "network"
    takes_shared_features: ClassVar[bool] = False
    reads_whole_tables: ClassVar[bool] = False
    input_schema: InputSchema | None = None

    @property
    def reads(self) -> frozenset[str] | None:
        """Names of the features that the module reads; None: not known."""
        return None

    shown_ranks: tuple[int, ...] | None = None

    @property
    def pointwise(self) -> bool:
        """Whether each logit depends on its own impression alone.

        A pointwise module may be given `[K, B]` arrays (`Sessions.rank_first`) and returns what it is given. False
        unless declared.
        """
        return False

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        """Sizes of the tables that the module indexes by fields of the sessions.

        What exceeds them is rejected on the host (`check_bounds`), since compiled code would read another entry.
        """
        return ()

    @property
    def row_tables(self) -> tuple[str, ...]:
        """Names of parameters that `lazy_adam` may update row by row; they are read by `towers.lookup` alone."""
        return ()


class Tower(Component):
    """Maps sessions to logits; abstract.

    A subclass defines `logits`. Any other callable from `Sessions` to logits is a tower too (`as_tower`), with the
    defaults of what is declared here.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A subclass with logits of its own may read features itself, and says so if it takes them shared.
        first = next(base for base in cls.__mro__ if {"logits", "takes_shared_features"} & vars(base).keys())
        if "takes_shared_features" not in vars(first):
            cls.takes_shared_features = False

    @abc.abstractmethod
    def logits(self, sessions: Sessions) -> Array:
        """Computes the logit of each impression, [B, K]; in the slots that say so, of other shapes."""

    def __call__(self, sessions: Sessions) -> jax.Array:
        """Computes the logits [B, K] of the sessions."""
        return jnp.asarray(self.logits(sessions if self.takes_shared_features else whole_features(sessions)))


class LastClickTower(Tower):
    """Maps sessions to logits that depend on the last click above each document (UBM's examination); abstract.

    Its `logits` are [B, K, K+1], with the last axis for the last click: none, then the document at index 0..K-1.
    It is pointwise by `logits_after` only.
    """

    @abc.abstractmethod
    def logits_after(self, sessions: Sessions, last_click: jax.Array) -> jax.Array:
        """Computes the logits [B, K] given the last clicks [B, K]: 1-based ranks, 0 for none."""


class CallableTower(Tower):
    """Makes a tower of a function, or of an `nnx.Module` of another class, that maps sessions to logits.

    Args:
      function: from `Sessions`, with plain arrays as features, to logits.
    """

    def __init__(self, function: Callable[[Sessions], Array]) -> None:
        self.function = function

    def logits(self, sessions: Sessions) -> Array:
        return self.function(sessions)

    @property
    def name(self) -> str:
        """The name of the function or of its class."""
        return type(self.function).__name__


TowerLike = Tower | Callable[[Sessions], Array]


def as_tower(given: TowerLike) -> Tower:
    """Makes a tower of a callable; a `Tower` stays as it is.

    Raises:
      ConfigError: something that cannot be called.
    """
    if isinstance(given, Tower):
        return given
    if not callable(given):
        raise ConfigError(
            f"expected a tower (ultr.towers.Tower, or a callable from Sessions to logits [B, K]), found {given!r}"
        )
    return CallableTower(given)


def tower_name(tower: Tower) -> str:
    """Names the class of a tower as its author wrote it, for errors."""
    return tower.name if isinstance(tower, CallableTower) else type(tower).__name__


def whole_features(sessions: Sessions) -> Sessions:
    """Replaces every `SharedFeature` by a plain array."""
    if not any(isinstance(x, SharedFeature) for x in sessions.features.values()):
        return sessions
    return sessions.replace(features={n: whole_feature(x) for n, x in sessions.features.items()})


def read_feature(sessions: Sessions, name: str, tower: str) -> jax.Array:
    """Reads a feature [B, K, ...] by name.

    Raises:
      ConfigError: the sessions lack it; lists what there is, and names the tower that asks.
    """
    if name not in sessions.features:
        known = ", ".join(sorted(sessions.features)) or "none"
        raise ConfigError(f"tower {tower} reads the feature '{name}'; the sessions have: {known}")
    return jnp.asarray(whole_feature(sessions.features[name]))


def declared(model: nnx.Module) -> list[Component]:
    """Lists the modules of a model that declare what training needs to know, the model itself included."""
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Component)]


def indexed_fields(model: nnx.Module) -> set[str]:
    """Names what the tables of a model are indexed by: integer features, `position`, `last_click` or `labels`."""
    return {bound.field for module in declared(model) for bound in module.index_bounds}


def check_bounds(
    model: nnx.Module, sessions: Sessions, *, source: str = "sessions", largest: Mapping[str, int] | None = None
) -> None:
    """Rejects ids and positions that are not whole or lie beyond the tables of a model; compiled code would clamp them.

    Args:
      model: its modules declare `index_bounds`.
      sessions: on the host.
      source: what to call the sessions in an error.
      largest: what no value of a field exceeds, where that is known; such fields are looked at only if it is too large.

    Raises:
      DataError: names the field, the 1-based session and the size of the table.
    """
    sessions = sessions.list_first()
    mask = np.asarray(sessions.mask)
    own = {"position": sessions.position, "labels": sessions.labels, "last_click": sessions.last_click}
    for module in declared(model):
        for field, size, noun in module.index_bounds:
            if largest is not None and largest.get(field, size) < size:
                continue
            values = own[field] if field in own else sessions.features.get(field)
            if values is None:
                continue
            array = number_array(whole_feature(values), field, file=source)
            if array.shape != mask.shape:
                raise DataError(f"expected [B, K] = {mask.shape}, found {array.shape}", file=source, field=field)
            bad = ((array >= size) | (array < 0)) & mask
            if array.dtype.kind not in "iu":
                missing = np.isnan(array) if field == "labels" else np.zeros(mask.shape, bool)
                bad |= not_whole(array) & mask & ~missing
            if bad.any():
                row, column = (int(i) for i in np.argwhere(bad)[0])
                found = array[row, column] + (field == "position")
                last = size if field == "position" else size - 1
                if not_whole(array[row, column]):
                    raise DataError(
                        f"expected {noun} as whole numbers in {type(module).__name__}, found {found}",
                        file=source,
                        row=row + 1,
                        field="rank" if field == "position" else field,
                    )
                raise DataError(
                    f"expected {noun} up to {last} in {type(module).__name__}, found {found:.0f}",
                    fix="Build the tower with a larger table, or open the log with vocabulary= the log of training",
                    file=source,
                    row=row + 1,
                    field="rank" if field == "position" else field,
                )


def parameter_groups(model: nnx.Module) -> dict[tuple[Any, ...], ParameterGroup]:
    """Finds the learning-rate group of every parameter: that of the innermost module which declares one.

    A parameter of a module that declares nothing is in the group "network".

    Returns:
      Path of the parameter in the model -> group.
    """
    modules = [(len(path), module) for path, module in nnx.iter_modules(model) if isinstance(module, Component)]
    found: dict[int, ParameterGroup] = {}
    for _, module in sorted(modules, key=lambda item: item[0]):  # those inside come later, and have the last word
        for _, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Param):
                found[id(node)] = module.parameter_group
    nodes = ((tuple(path), node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param))
    return {path: found.get(id(node), "network") for path, node in nodes}
