"""`holm`: p-values adjusted for how many tests were made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ultr.errors import DataError


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusts p-values by Holm's (1979) step-down method: below 5 %, the chance of any false alarm is at most 5 %.

    Args:
      p_values: [M] in [0, 1]; NaN stands for no test, stays NaN and does not count.

    Returns:
      [M] adjusted: the largest of (m - i) p_(i) so far over the ordered p-values, at most 1.

    Raises:
      DataError: a value outside [0, 1], or not one dimension.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise DataError(f"expected p-values [M] between 0 and 1, found {p_values}", field="p_values")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out
