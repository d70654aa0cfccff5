"""Options of methods that `ultr train` has as its own: the rows of the registry say which method has which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ultr.cli.options import FiniteRange, Name
from ultr.errors import ConfigError
from ultr.study.registry import METHODS
from ultr.study.specs import MethodSpec

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, tuple[Any, str]] = {
    "clip": (FiniteRange(min=0, min_open=True), "the largest weight."),
    "delta": (
        FiniteRange(0, 1, min_open=True),
        "exposure-crm, safe-doubly-robust: the smaller, the closer to the logging policy; prpo: how far exposure may "
        "be from the logged one, from delta to 1/delta times.",
    ),
    "samples": (click.IntRange(min=4), "rankings drawn per query and step, an even number."),
    "metric": (str, "weights of ranks: clicks or dcg; prs: dcg or rank."),
    "satisfaction": (
        Name(("monotone", "free")),
        "monotone: it rises with relevance; free: a tower of its own [monotone for networks, free for tables].",
    ),
    "frailty": (
        bool,
        "a random effect per list on relevance, for what the features do not tell about a query.",
    ),
}
METHOD_OPTIONS = tuple(_OPTIONS)


def method_options(command: F) -> F:
    """Adds the options of methods to a command, as the keywords of `METHOD_OPTIONS`."""
    for name, (kind, text) in reversed(_OPTIONS.items()):
        given: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        command = click.option(f"--{name}", help=f"Methods with the option {name}: {text}", **given)(command)
    return command


def given_options(spec: MethodSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the options that were given, checked by the row of the method.

    Raises:
      ConfigError: one that the method does not have, or a value out of range.
    """
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        if (option := spec.option(name)) is None:
            having = ", ".join(n for n, other in METHODS.items() if other.trained_on_log and other.option(name))
            raise ConfigError(f"--{name} has no effect with --model {spec.name}, only with {having}")
        found[name] = option.read(value, f"--model {spec.name}")
    if found.get("samples", 0) % 2:
        raise ConfigError(f"expected --samples as an even number, found {found['samples']}")
    return found
