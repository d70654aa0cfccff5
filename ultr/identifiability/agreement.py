"""After training: does a learned bias curve agree with harvested propensities within their errors?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import chdtrc, erfc

from ultr.errors import ConfigError
from ultr.identifiability.logger import plain
from ultr.propensity import Propensities
from ultr.propensity.table import ranks_text

LEVEL = 0.05  # of the test


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A curve against harvested propensities, at the R ranks where both are known, but the first of them.

    Attributes:
      rank: [R] 1-based.
      ratio: [R] the curve over the harvested propensity, both relative to the same rank.
      z: [R] log(ratio) over its standard error; beyond +-2 it is more than chance would do at one rank alone.
      chi_square, degrees: Wald's statistic of all of them together and its degrees of freedom; NaN and 0 where the
        propensities have no covariance.
      p_value: probability of so large a difference by chance; without a covariance, Bonferroni's of the largest z.
      agrees: p_value is at least .05.
      notes: what to know before using it.
    """

    rank: np.ndarray
    ratio: np.ndarray
    z: np.ndarray
    chi_square: float
    degrees: int
    p_value: float
    agrees: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        return plain(self)  # type: ignore[no-any-return]

    def text(self) -> str:
        """In words."""
        worst = int(np.argmax(np.abs(np.log(self.ratio))))
        far = f"the largest difference is {_percent(self.ratio[worst])} at rank {self.rank[worst]}"
        test = f"chi-square {self.chi_square:.1f} on {self.degrees}, " if self.degrees else ""
        chance = "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.4f}"
        if self.agrees:
            out = f"The learned curve agrees with the harvested one within its errors ({test}{chance}); {far}."
        else:
            clear = np.abs(self.z) > 2
            up, down = clear & (self.z > 0), clear & (self.z < 0)
            parts = [f"above it at {ranks_text(self.rank[up])}"] if up.any() else []
            parts += [f"below it at {ranks_text(self.rank[down])}"] if down.any() else []
            out = f"The learned curve differs from the harvested one by more than chance ({test}{chance})"
            out += f": it lies {' and '.join(parts)}; {far}." if parts else f"; {far}."
        return " ".join([out, *self.notes])


def agreement(curve: Any, propensities: Propensities) -> Agreement:
    """Tests whether a bias curve is one of those that harvested propensities leave possible.

    The curve is taken as exact, unless it is `Propensities` itself: then both have errors, independent of each other
    (of different logs).

    Args:
      curve: [K] propensities up to a factor, for ranks 1 to K; or a model whose examination is a table per rank (PBM,
        AdditivePBM); or `Propensities`.
      propensities: harvested, such as by `ultr.propensity.maximum_likelihood`.

    Returns:
      `Agreement` over the ranks at which both have a value above 0.

    Raises:
      ConfigError: another kind of model, values that are no propensities, or fewer than two ranks to compare.
    """
    values, notes = _curve(curve, len(propensities.rank))
    ranks = min(len(values), len(propensities.rank))
    with np.errstate(invalid="ignore", divide="ignore"):
        log = np.log(values[:ranks]), np.log(propensities.value[:ranks])
    covariance, independent = _covariance(propensities, ranks)
    if isinstance(curve, Propensities):
        other, alone = _covariance(curve, ranks)
        covariance, independent = covariance + other, independent or alone
    error = np.sqrt(np.diag(covariance))
    both = np.isfinite(log[0]) & np.isfinite(log[1]) & np.isfinite(error)
    used = np.flatnonzero(both)
    if len(used) < 2:
        raise ConfigError(
            f"a curve and propensities are compared at two ranks at least, found values of both at {len(used)}. "
            "Without clicks that compare ranks no propensity is harvested"
        )
    reference, rest = used[0], used[1:]
    if left := sorted(set(range(max(len(values), len(propensities.rank)))) - set(used.tolist())):
        notes.append(f"Nothing is said about {ranks_text([k + 1 for k in left])}: no value there, or no error.")
    difference = (log[0] - log[1])[rest] - (log[0] - log[1])[reference]
    change = np.eye(ranks)[rest]
    change[:, reference] = -1.0  # where rank 1 is not compared, the first rank that is
    part = change[:, used] @ covariance[np.ix_(used, used)] @ change[:, used].T
    error = np.sqrt(np.diag(part))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference == 0, 0.0, difference / error)
    if independent:
        notes.append("These propensities have no covariance between ranks: the p value is that of the largest z alone.")
        chi_square, degrees = math.nan, 0
        p = min(1.0, len(z) * float(erfc(np.abs(z).max() / math.sqrt(2))))
    else:
        scale = 1 / np.where(error > 0, error, 1.0)
        inverse = np.linalg.pinv(part * scale * scale[:, None], rcond=1e-10, hermitian=True)
        chi_square, degrees = float((difference * scale) @ inverse @ (difference * scale)), len(rest)
        p = float(chdtrc(degrees, chi_square))
    return Agreement(rest + 1, np.exp(difference), z, chi_square, degrees, p, p >= LEVEL, tuple(notes))


def _curve(curve: Any, ranks: int) -> tuple[np.ndarray, list[str]]:
    """[K] values above 0 or NaN, and what to say about them."""
    if isinstance(curve, Propensities):
        return np.where(curve.value > 0, curve.value, np.nan), []
    if isinstance(curve, (np.ndarray, Sequence)):
        values = np.asarray(curve, np.float64)
        if values.ndim != 1 or not (values > 0).all() or not np.isfinite(values).all():
            raise ConfigError(f"expected propensities [K] above 0, found {np.array2string(values, threshold=12)}")
        return values, []
    from ultr.models import PBM, AdditivePBM
    from ultr.towers import RankTable

    table = getattr(curve, "examination", None)
    if not isinstance(curve, (PBM, AdditivePBM)) or not isinstance(table, RankTable):
        raise ConfigError(
            f"expected a PBM or AdditivePBM whose examination is a RankTable, or its curve as an array, found "
            f"{type(curve).__name__}"
        )
    if isinstance(curve, PBM):
        return np.asarray(curve.propensity(table.ranks), np.float64), []
    logits = np.asarray(table.table[...], np.float64)
    note = "An additive tower has odds, not propensities: the two agree only where clicks are rare."
    return np.exp(logits - logits[0]), [note]


def _covariance(propensities: Propensities, ranks: int) -> tuple[np.ndarray, bool]:
    """[ranks, ranks] of log(value), and whether what is between ranks is missing from it."""
    if propensities.covariance is not None:
        return propensities.covariance[:ranks, :ranks], False
    error = propensities.log_standard_error[:ranks]
    out = np.where(np.eye(ranks, dtype=bool), np.square(np.where(np.isnan(error), np.inf, error))[:, None], 0.0)
    return out, True


def _percent(ratio: float) -> str:
    return f"{ratio - 1:+.0%}" if ratio < 3 else f"a factor of {ratio:.1f}"
