"""What options of commands have in common: finite numbers, names with a suggestion, and errors for options in vain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import click

from ultr.errors import ConfigError
from ultr.text import did_you_mean


class FiniteRange(click.FloatRange):
    """A range of numbers that holds neither NaN, which no comparison excludes, nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, found {value!r}.", param, ctx)
        return number


class Name(click.Choice[str]):
    """One of several names; a misspelt one gets a suggestion."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(str(value), [str(c) for c in self.choices])


class InVain(NamedTuple):
    """A situation in which an option has no effect.

    Attributes:
      option: name of the parameter of the command.
      ignored: whether the situation is there.
      why: what follows on "has no effect", such as "with --valid, ...": says with what the option has one.
    """

    option: str
    ignored: bool
    why: str


def is_given(option: str) -> bool:
    """Tells whether an option of the command that runs was given, and is not merely its default."""
    return click.get_current_context().get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


def refuse_in_vain(cases: Iterable[InVain]) -> None:
    """Refuses options that were given and have no effect.

    Raises:
      ConfigError: names the option and says with what it has an effect.
    """
    for option, ignored, why in cases:
        if ignored and is_given(option):
            raise ConfigError(f"--{option.replace('_', '-')} has no effect {why}")


def check_tables(options: Mapping[str, Any], solver: str) -> None:
    """Refuses a solver that needs plain tables where an option of the method makes something else.

    Raises:
      ConfigError: names the option and the solver to choose.
    """
    for name, given in (("frailty", "--frailty"), ("satisfaction", "--satisfaction monotone")):
        if solver != "gradient" and options.get(name) in (True, "monotone"):
            raise ConfigError(f"--solver {solver} cannot train a model with {given}. Choose --solver gradient")
