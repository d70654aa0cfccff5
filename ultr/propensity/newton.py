"""Newton's method for concave functions, with steps that are halved until they gain enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ultr import stopping
from ultr.errors import UltrError

MAX_STEPS = 200
SMALLEST_STEP = 1e-12
SUFFICIENT_GAIN = 1e-4  # the share of the decrement that a step must gain (Armijo's condition)
Iterate = TypeVar("Iterate")
Path = Callable[[float], Iterate]  # from a step size, 1 for the whole Newton step, to the iterate there


def newton_ascent(
    start: Iterate,
    value: Callable[[Iterate], float],
    direction: Callable[[Iterate], tuple[Path[Iterate], float]],
    *,
    tolerance: float,
    alternative: str,
) -> tuple[Iterate, int]:
    """Maximises a concave function; returns the maximum and the number of steps.

    Args:
      start: an iterate with a finite value.
      value: the function; -inf outside its domain.
      direction: from an iterate to the path along its Newton step, and the squared Newton decrement (slope times step).
      tolerance: half the squared decrement at which the search ends.
      alternative: the estimator that the error recommends.

    Raises:
      UltrError: the search does not converge.
    """
    iterate, height = start, value(start)
    for step in range(1, MAX_STEPS + 1):
        stopping.check()
        path, decrement = direction(iterate)
        if decrement / 2 <= tolerance:  # the last, quadratically convergent step is taken too
            last = path(1.0)
            return (last if value(last) >= height else iterate), step
        size = 1.0
        while not (gain := value(moved := path(size)) - height) >= SUFFICIENT_GAIN * size * decrement:
            size /= 2
            if size < SMALLEST_STEP:
                return iterate, step  # no step gains: the limit of floating-point arithmetic
        iterate, height = moved, height + gain
    raise UltrError(
        f"the likelihood of the propensities did not converge in {MAX_STEPS} steps: use {alternative}, or a log of "
        "fewer ranks, without those that were hardly ever clicked"
    )
