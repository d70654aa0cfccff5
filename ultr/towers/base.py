"""`Tower`: maps sessions to logits, and declares what training needs to know of it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import not_whole_from, number_array
from ultr.data.document_set import DocumentSet
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, SharedFeature, whole_feature

Module = TypeVar("Module", bound=nnx.Module)
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
      clicked_ranks: those of them with a click; None: not known.
      shown_documents: the documents that training showed a module that reads their ids (`note_shown_documents`); None:
        not known.
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
    clicked_ranks: tuple[int, ...] | None = None
    shown_documents: DocumentSet | None = None

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


def still(model: Module) -> Module:
    """Copies a model with dropout and the like switched off; the copy shares its arrays."""
    copy = nnx.merge(*nnx.split(model))
    # What `copy.eval()` does, which has no type annotations.
    copy.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
    return copy


def indexed_fields(model: nnx.Module) -> set[str]:
    """Names what the tables of a model are indexed by: integer features, `position`, `last_click` or `labels`."""
    return {bound.field for module in declared(model) for bound in module.index_bounds}


class NamedBound(NamedTuple):
    """The size of a table, and the name of the module that has it."""

    name: str
    bound: IndexBound


class Violation(NamedTuple):
    """The first value that is beyond a table or not whole: whose table, its list [B] in the batch, and the value."""

    bound: NamedBound
    row: int
    found: float


def find_violation(
    model: nnx.Module,
    sessions: Sessions,
    *,
    largest: Mapping[str, int] | None = None,
    more: Sequence[NamedBound] = (),
) -> Violation | None:
    """Finds an id or position that is not whole or beyond the tables of a model; compiled code would clamp it.

    Args:
      model: its modules declare `index_bounds`.
      sessions: on the host.
      largest: what no value of a field exceeds, where that is known; such fields are looked at only if it is too large.
      more: further bounds.

    Raises:
      DataError: a field holds something else than one number per document.
    """
    sessions = sessions.list_first()
    mask = np.asarray(sessions.mask)
    own = {"position": sessions.position, "labels": sessions.labels, "last_click": sessions.last_click}
    bounds = [NamedBound(type(module).__name__, bound) for module in declared(model) for bound in module.index_bounds]
    for named in (*bounds, *more):
        field, size, _ = named.bound
        if largest is not None and largest.get(field, size) < size:
            continue
        values = own[field] if field in own else sessions.features.get(field)
        if values is None:
            continue
        array = number_array(whole_feature(values), field)
        if array.shape != mask.shape:
            raise DataError(f"expected [B, K] = {mask.shape}, found {array.shape}", field=field)
        bad = not_whole_from(array, 0, size - 1) & mask
        if field == "labels" and array.dtype.kind not in "biu":
            bad &= ~np.isnan(array)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            return Violation(named, row, array[row, column].item())
    return None


def bounds_error(found: Violation, *, source: str, row: int | None, name: str = "") -> DataError:
    """Makes the error about a value beyond a table.

    Args:
      found: the value.
      source: what to call the data.
      row: the 1-based row that holds the value.
      name: what the value stands for.
    """
    field, size, noun = found.bound.bound
    place = field == "position"
    shown, last = (found.found + 1, size) if place else (found.found, size - 1)
    if not float(found.found).is_integer():
        return DataError(
            f"expected {noun} as whole numbers in {found.bound.name}, found {shown}",
            file=source,
            row=row,
            field="rank" if place else field,
        )
    other = "open the log with vocabulary= the log of training" if noun == "ids" else "cut the lists to these ranks"
    return DataError(
        f"expected {noun} up to {last} in {found.bound.name}, found {shown:.0f}{f' ({name})' if name else ''}",
        fix="Build the tower with a larger table" + (f", or {other}" if noun != "grades" else ""),
        file=source,
        row=row,
        field="rank" if place else field,
    )


def check_bounds(
    model: nnx.Module, sessions: Sessions, *, source: str = "sessions", largest: Mapping[str, int] | None = None
) -> None:
    """Rejects ids and positions that are not whole or lie beyond the tables of a model; compiled code would clamp them.

    Args:
      model, sessions, largest: as for `find_violation`.
      source: what to call the sessions in an error.

    Raises:
      DataError: names the field, the 1-based session and the size of the table.
    """
    if (found := find_violation(model, sessions, largest=largest)) is not None:
        raise bounds_error(found, source=source, row=found.row + 1)


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
