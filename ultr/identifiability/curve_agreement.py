"""`agreement`: whether the bias curve of a trained model agrees with estimated propensities within their errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, erfc

from ultr.errors import ConfigError
from ultr.files import JsonResult
from ultr.propensity import Propensities
from ultr.text import ranks_text

if TYPE_CHECKING:
    from ultr.models import PBM, AdditivePBM

LEVEL = 0.05  # of the test


@dataclasses.dataclass(frozen=True)
class Agreement(JsonResult):
    """A bias curve compared with estimated propensities, at the ranks where both are known.

    Both are relative to the first of those ranks; R are the others.

    Attributes:
      rank: [R] 1-based.
      ratio: [R] the curve over the propensity.
      z: [R] log(ratio) over its standard error; at a single rank, a |z| above 2 is more than chance explains.
      chi_square, degrees: Wald's statistic of all ranks together and its degrees of freedom; NaN and 0 where the
        propensities have no covariance.
      p_value: probability of a difference at least as large by chance; without a covariance, Bonferroni's for the
        largest z.
      agrees: whether p_value is at least .05.
      notes: what to know before using the result.
    """

    rank: np.ndarray
    ratio: np.ndarray
    z: np.ndarray
    chi_square: float
    degrees: int
    p_value: float
    agrees: bool
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Says in a sentence or two whether the curve agrees, and where it does not."""
        worst = int(np.argmax(np.abs(np.log(self.ratio))))
        largest = f"the largest difference is {_difference_text(self.ratio[worst])} at rank {self.rank[worst]}"
        test = f"chi-square {self.chi_square:.1f} on {self.degrees}, " if self.degrees else ""
        chance = "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.4f}"
        if self.agrees:
            out = f"The learned curve agrees with the estimated one within its errors ({test}{chance}); {largest}."
        else:
            clear = np.abs(self.z) > 2
            above, below = clear & (self.z > 0), clear & (self.z < 0)
            parts = [f"above it at {ranks_text(self.rank[above])}"] if above.any() else []
            parts += [f"below it at {ranks_text(self.rank[below])}"] if below.any() else []
            out = f"The learned curve differs from the estimated one by more than chance ({test}{chance})"
            out += f": it lies {' and '.join(parts)}; {largest}." if parts else f"; {largest}."
        return " ".join([out, *self.notes])


def agreement(
    curve: PBM | AdditivePBM | Propensities | Sequence[float] | np.ndarray, propensities: Propensities
) -> Agreement:
    """Tests whether a bias curve is compatible with estimated propensities, by Wald's test.

    The curve is taken as exact, unless it is `Propensities` itself: then both have errors, independent of each other
    (estimates from different logs).

    Args:
      curve: [K] propensities up to a factor, for ranks 1 to K; or a model whose examination is a table per rank (PBM,
        AdditivePBM); or `Propensities`.
      propensities: estimated from a log, such as by `ultr.propensity.maximum_likelihood`.

    Returns:
      `Agreement` over the ranks at which both have a value above 0.

    Raises:
      ConfigError: another kind of model, values that are no propensities, or fewer than two ranks to compare.
    """
    values, notes = _curve_values(curve)
    ranks = min(len(values), len(propensities.rank))
    with np.errstate(invalid="ignore", divide="ignore"):
        log_curve, log_estimate = np.log(values[:ranks]), np.log(propensities.value[:ranks])
    covariance, diagonal_only = _log_covariance(propensities, ranks)
    if isinstance(curve, Propensities):
        other, other_diagonal_only = _log_covariance(curve, ranks)
        covariance, diagonal_only = covariance + other, diagonal_only or other_diagonal_only
    error = np.sqrt(np.diag(covariance))
    used = np.flatnonzero(np.isfinite(log_curve) & np.isfinite(log_estimate) & np.isfinite(error))
    if len(used) < 2:
        raise ConfigError(
            f"a curve and propensities are compared at two ranks at least, found values of both at {len(used)}. "
            "Without clicks that compare ranks no propensity can be estimated"
        )
    reference, rest = used[0], used[1:]
    if left_out := sorted(set(range(max(len(values), len(propensities.rank)))) - set(used.tolist())):
        notes.append(f"Not compared: {ranks_text([k + 1 for k in left_out])}, without a value or an error.")
    difference = (log_curve - log_estimate)[rest] - (log_curve - log_estimate)[reference]
    contrast = np.eye(ranks)[rest]
    contrast[:, reference] = -1.0  # relative to the first rank that is compared, which need not be rank 1
    contrast_covariance = contrast[:, used] @ covariance[np.ix_(used, used)] @ contrast[:, used].T
    error = np.sqrt(np.diag(contrast_covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference == 0, 0.0, difference / error)
    if diagonal_only:
        notes.append("These propensities have no covariance between ranks: the p value is that of the largest z alone.")
        chi_square, degrees = math.nan, 0
        p = min(1.0, len(z) * float(erfc(np.abs(z).max() / math.sqrt(2))))
    else:
        scale = 1 / np.where(error > 0, error, 1.0)
        inverse = np.linalg.pinv(contrast_covariance * scale * scale[:, None], rcond=1e-10, hermitian=True)
        chi_square, degrees = float((difference * scale) @ inverse @ (difference * scale)), len(rest)
        p = float(chdtrc(degrees, chi_square))
    return Agreement(rest + 1, np.exp(difference), z, chi_square, degrees, p, p >= LEVEL, tuple(notes))


def _curve_values(
    curve: PBM | AdditivePBM | Propensities | Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, list[str]]:
    """Reads the curve: ([K] values above 0 or NaN, notes on them)."""
    if isinstance(curve, Propensities):
        return np.where(curve.value > 0, curve.value, np.nan), []
    if isinstance(curve, (np.ndarray, Sequence)):
        values = np.asarray(curve, np.float64)
        if values.ndim != 1 or not (values > 0).all() or not np.isfinite(values).all():
            raise ConfigError(f"expected propensities [K] above 0, found {np.array2string(values, threshold=12)}")
        return values, []
    from ultr.models import PBM, AdditivePBM
    from ultr.towers import RankTable

    if not isinstance(curve, (PBM, AdditivePBM)) or not isinstance(curve.examination, RankTable):
        raise ConfigError(
            f"expected a PBM or AdditivePBM whose examination is a RankTable, or its curve as an array, found "
            f"{type(curve).__name__}"
        )
    table = curve.examination
    if isinstance(curve, PBM):
        return np.asarray(curve.propensity(table.ranks), np.float64), []
    logits = np.asarray(table.table[...], np.float64)
    note = "An additive tower has odds, not propensities: the two agree only where clicks are rare."
    return np.exp(logits - logits[0]), [note]


def _log_covariance(propensities: Propensities, ranks: int) -> tuple[np.ndarray, bool]:
    """Returns the covariance of log(value), [ranks, ranks], and whether only its diagonal is known."""
    if propensities.covariance is not None:
        return propensities.covariance[:ranks, :ranks], False
    error = propensities.log_standard_error[:ranks]
    out = np.where(np.eye(ranks, dtype=bool), np.square(np.where(np.isnan(error), np.inf, error))[:, None], 0.0)
    return out, True


def _difference_text(ratio: float) -> str:
    return f"{ratio - 1:+.0%}" if ratio < 3 else f"a factor of {ratio:.1f}"
