"""Newton's method with steps that are halved until they gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ultr.errors import UltrError

STEPS = 200
LEAST_STEP = 1e-12
State = TypeVar("State")
Path = Callable[[float], State]  # from a length, 1 for the whole step, to where it leads


def ascend(
    start: State,
    value: Callable[[State], float],
    direction: Callable[[State], tuple[Path[State], float]],
    *,
    tolerance: float,
    instead: str,
) -> tuple[State, int]:
    """The maximum of a concave function, and the steps that it took.

    Args:
      start: where the value is finite.
      value: of a state; -inf outside.
      direction: the Newton step from a state, and its decrement: slope times step.
      tolerance: half the decrement at which the search ends.
      instead: what to use where it does not.

    Raises:
      UltrError: the search does not converge.
    """
    state, height = start, value(start)
    for step in range(1, STEPS + 1):
        path, decrement = direction(state)
        if decrement / 2 <= tolerance:  # the last, quadratically convergent step is taken too
            last = path(1.0)
            return (last if value(last) >= height else state), step
        size = 1.0
        while not (gain := value(moved := path(size)) - height) >= 1e-4 * size * decrement:
            size /= 2
            if size < LEAST_STEP:
                return state, step  # no step gains: the limit of the arithmetic
        state, height = moved, height + gain
    raise UltrError(
        f"the likelihood of the propensities did not converge in {STEPS} steps: use {instead}, or a log of fewer "
        "ranks, without those that were hardly ever clicked"
    )
