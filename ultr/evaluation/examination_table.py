"""How likely the users of a log were to examine each rank, and to click there without relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions

if TYPE_CHECKING:
    from ultr.propensity import Propensities


class ExaminationTable:
    """Examination by rank, and the probability of false clicks by rank.

    Args:
      propensity: [R], or a `Propensities` table.
      false_clicks: [R] in [0, 1), or None.

    Attributes:
      examined: [R] float64.
      false: [R] float64.

    Raises:
      ConfigError: no numbers [R], or two arrays of different lengths.
    """

    def __init__(
        self,
        propensity: np.ndarray | Sequence[float] | Propensities,
        false_clicks: np.ndarray | Sequence[float] | None,
    ) -> None:
        from ultr.propensity import Propensities

        self._why: Mapping[int, str] = {}
        if isinstance(propensity, Propensities):
            self._why, propensity = propensity.unsupported, propensity.value
        self.examined = _numbers(propensity, "propensity")
        self.false = np.zeros(len(self.examined))
        if false_clicks is not None:
            self.false = _numbers(false_clicks, "false_clicks")
        if self.false.shape != self.examined.shape:
            raise ConfigError(
                f"expected false_clicks [{len(self.examined)}] as propensity has, found [{len(self.false)}]"
            )

    def at(self, batch: Sessions) -> tuple[np.ndarray, np.ndarray]:
        """Looks up [B, K] examination and [B, K] false clicks of the shown documents; zeros on padding.

        Raises:
          DataError: a rank beyond the table.
          ConfigError: a rank that is shown has no propensity above 0, or no probability of false clicks in [0, 1).
        """
        mask, position = np.asarray(batch.mask), np.where(batch.mask, np.asarray(batch.position), 0)
        last = int(position.max(initial=0)) + 1
        if last > len(self.examined):
            raise DataError(
                f"expected ranks up to {len(self.examined)}, the last with a propensity, found rank {last}",
                fix="Estimate propensities for all ranks, or cut the lists of the log",
                field="rank",
            )
        shown = np.unique(position[mask])
        value = self.examined[shown]
        bad = ~((value > 0) & np.isfinite(value) & (self.false[shown] >= 0) & (self.false[shown] < 1))
        if bad.any():
            rank = int(shown[bad][0]) + 1
            why = f" ({self._why[rank]})" if rank in self._why else ""
            raise ConfigError(
                f"rank {rank} is shown and has propensity {self.examined[rank - 1]:g} and a probability of false "
                f"clicks of {self.false[rank - 1]:g}{why}: its clicks can be used with a propensity above 0 and a "
                f"probability in [0, 1) alone; cut the lists above it, or estimate its propensity on other data"
            )
        return np.where(mask, self.examined[position], 0.0), np.where(mask, self.false[position], 0.0)


def _numbers(given: np.ndarray | Sequence[float], name: str) -> np.ndarray:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: expected numbers [R] by rank or a Propensities table, found {given!r}") from error
    if values.ndim != 1 or not len(values):
        raise ConfigError(f"{name}: expected numbers [R] by rank, found shape {values.shape}")
    return values
