"""Typed options with defaults, bounds and one line of help: read from TOML strictly, listed in help texts."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ultr.errors import ConfigError
from ultr.text import did_you_mean


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a method, a log or a study.

    Attributes:
      name: its key in TOML and its keyword in Python.
      type: the type of its value, such as `float` or `tuple[int, ...]`.
      default: its value where none is given.
      help: one line for people.
      minimum: the lowest number allowed (of each number in a list); None: no bound.
      exclusive: whether `minimum` itself is too low.
      zero: what a value of 0 means, where it means something of its own.
      maximum: the highest number allowed; None: no bound.
      below: whether `maximum` itself is too high.
      choices: the names allowed; (): any.
    """

    name: str
    type: Any
    default: Any = None
    help: str = ""
    minimum: float | None = None
    exclusive: bool = False
    zero: str = ""
    maximum: float | None = None
    below: bool = False
    choices: tuple[str, ...] = ()

    def read(self, value: Any, where: str) -> Any:
        """Converts and checks a value from TOML.

        Args:
          where: file and table, for errors.

        Raises:
          ConfigError: a value of another type, beyond a bound, or none of the choices.
        """
        return self._checked(_converted(value, self.type, where, self.name), where)

    def read_several(self, values: Any, where: str) -> tuple[Any, ...]:
        """Converts and checks a list of different values to choose from; errors as of `read`, or for an empty list."""
        found: tuple[Any, ...] = _converted(values, types.GenericAlias(tuple, (self.type, ...)), where, self.name)
        if not found:
            raise ConfigError(f"{where}: '{self.name}' should have at least one value, found {values!r}")
        for value in found:
            if found.count(value) > 1:
                raise ConfigError(f"{where}: '{self.name}' has {value!r} twice: give each value once")
        return tuple(self._checked(value, where) for value in found)

    def _checked(self, value: Any, where: str) -> Any:
        for part in value if isinstance(value, tuple) else (value,):
            if part is None:
                continue
            if self.choices and part not in self.choices:
                hint = did_you_mean(part, self.choices)
                raise ConfigError(f"{where}: unknown {self.name} '{part}'{hint}; known: {', '.join(self.choices)}")
            self._check_bounds(part, where)
        return value

    def _check_bounds(self, number: Any, where: str) -> None:
        least, most = self.minimum, self.maximum
        if least is not None and self.exclusive and not number > least:
            raise ConfigError(f"{where}: expected '{self.name}' above {least:g}, found {number}")
        if least is not None and number < least:
            zero = f"; 0: {self.zero}" if self.zero else ""
            raise ConfigError(f"{where}: expected '{self.name}' of at least {least:g}{zero}, found {number}")
        if most is not None and (number > most or (self.below and number == most)):
            limit = "below" if self.below else "of at most"
            raise ConfigError(f"{where}: expected '{self.name}' {limit} {most:g}, found {number}")


def setting(default: Any, **facts: Any) -> Any:
    """Declares a dataclass field with a default and with further fields of its `Option`, such as `minimum`."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


def options_of(owner: type, *, without: Collection[str] = ()) -> dict[str, Option]:
    """Lists the fields of a dataclass as options by name, with the types of its annotations; paths are read as text."""
    hints = typing.get_type_hints(owner)
    found = {}
    for field in dataclasses.fields(owner):
        if field.name not in without:
            default = None if field.default is dataclasses.MISSING else field.default
            found[field.name] = Option(field.name, readable_type(hints[field.name]), default, **field.metadata)
    return found


def readable_type(annotation: Any) -> Any:
    """Turns an annotation into the type of a value in TOML: without None, sequences as tuples, paths as text."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is not None and typing.get_origin(annotation) is not tuple:
        return types.GenericAlias(tuple, (*typing.get_args(annotation), ...))
    return str if annotation is Path else annotation


def read_options(tree: Mapping[str, Any], options: Iterable[Option], where: str) -> dict[str, Any]:
    """Reads the given ones of some options from a TOML table; errors as of `Option.read`."""
    return {option.name: option.read(tree[option.name], where) for option in options if option.name in tree}


def check_keys(tree: Any, known: Collection[str], where: str) -> Mapping[str, Any]:
    """Checks that a value is a TOML table whose keys are all known, and returns it.

    Raises:
      ConfigError: names the table, the unknown key, the one that may have been meant, and all known keys.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: expected a table, found {tree!r}")
    for key in tree:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}; known: {', '.join(known)}")
    return tree


def _converted(value: Any, kind: Any, where: str, name: str) -> Any:
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        found = None
    if found is None or not _finite(found):
        raise ConfigError(f"{where}: '{name}' should be of kind {_kind_name(kind)}, found {value!r}")
    return found


def _finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _kind_name(kind: Any) -> str:
    inner = typing.get_args(kind)
    return f"list of {_kind_name(inner[0])}" if inner else str(kind.__name__)
