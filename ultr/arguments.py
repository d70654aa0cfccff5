"""Checks of arguments: numbers of things, numbers in a range, arrays of whole numbers."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from ultr.errors import ConfigError


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Checks a number of things, and returns it as an `int`.

    Raises:
      ConfigError: no whole number, or one below `least`; names the argument.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"expected {name} as a whole number of at least {least}, found {value!r}")
    return int(value)


def check_number(name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Checks a finite number, and returns it as a `float`.

    Args:
      name: of the argument.
      value: what was given.
      above: what the number must exceed.
      least: the least that it may be.

    Raises:
      ConfigError: no finite number in that range; names the argument.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool | np.bool_) else math.nan
    if not (math.isfinite(number) and number > above and number >= least):
        limit = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise ConfigError(f"expected {name} as a finite number{limit}, found {value!r}")
    return number


def not_whole(values: np.ndarray) -> np.ndarray:
    """Tells which values are no whole numbers, such as NaN and 1.5, in the shape of the values; text is none."""
    if values.dtype.kind in "iu":
        return np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        return np.ones(values.shape, bool)
    found: np.ndarray = ~np.isfinite(values) | (np.rint(values) != values)
    return found
