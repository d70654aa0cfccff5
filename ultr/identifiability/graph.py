"""The graph that documents make of ranks: how well each rank is known, and what limits it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ultr.identifiability.assumed import Assumed
from ultr.propensity.cells import Cells
from ultr.propensity.likelihood import resistance
from ultr.propensity.table import ranks_text


@dataclasses.dataclass(frozen=True)
class Component:
    """Ranks that documents connect with each other.

    Attributes:
      ranks: 1-based, in order.
      standard_error: the best reachable standard error of log(propensity) of each, relative to the first of them.
    """

    ranks: tuple[int, ...]
    standard_error: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Two groups of ranks, and what links them.

    Attributes:
      near, far: the ranks on the side of rank 1, and the others.
      conductance: information about the ratio of the two groups, were each of them known.
      documents: how many were shown in both groups.
      impressions: of each of those documents on the side where it has fewer.
      standard_error: of the ratio, were each group known: no rank beyond the cut can be known better.
    """

    near: tuple[int, ...]
    far: tuple[int, ...]
    conductance: float
    documents: int
    impressions: float

    @property
    def standard_error(self) -> float:
        return 1 / math.sqrt(self.conductance) if self.conductance > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "near": list(self.near),
            "far": list(self.far),
            "conductance": self.conductance,
            "documents": self.documents,
            "impressions": self.impressions,
            "standard_error": self.standard_error if self.conductance > 0 else None,
        }

    def text(self) -> str:
        """In words."""
        groups = f"{ranks_text(self.near)} and {ranks_text(self.far)}"
        if not self.documents:
            return f"no document was shown both at {groups}"
        few = f"{self.documents:,} {'document' if self.documents == 1 else 'documents'}"
        only = "only " if self.documents <= 1000 else ""
        rare = f"{self.impressions:,.0f} {'time' if self.impressions == 1 else 'times'}"
        return f"{groups} are compared by {only}{few}, shown {rare} on the rarer side"


def standard_errors(assumed: Assumed) -> np.ndarray:
    """[K] the best reachable standard error of log(propensity) relative to rank 1; inf where there is none."""
    if not assumed.shown[0]:
        return np.full(len(assumed.shown), np.inf)
    return np.sqrt(np.diag(resistance(assumed.information, 0)))


def components_of(assumed: Assumed) -> tuple[Component, ...]:
    """All components, by their first rank."""
    out = []
    for number in range(assumed.component.max() + 1):
        inside = np.flatnonzero(assumed.component == number)
        errors = np.sqrt(np.diag(resistance(assumed.information, int(inside[0]))))[inside]
        out.append(Component(tuple((inside + 1).tolist()), tuple(errors.tolist())))
    return tuple(out)


def weakest_cut(assumed: Assumed, standard_error: np.ndarray) -> Cut | None:
    """What limits the rank that is known worst; None where there is nothing to compare.

    Where ranks are not connected with rank 1, the cut that separates them. Else the ranks are put in the order of
    their potential under a unit current from rank 1 to the worst rank, and cut where the conductance is smallest.
    """
    shown = np.flatnonzero(assumed.shown)
    if len(shown) < 2 or shown[0]:
        return None
    inside = assumed.component == 0
    if inside.sum() < len(shown):
        return _cut(assumed, inside, assumed.shown & ~inside, 0.0)
    s = assumed.information
    worst = shown[np.argmax(standard_error[shown])]
    order = shown[np.argsort(resistance(s, 0)[shown, worst], kind="stable")]  # rank 1 has potential 0
    between = -s[np.ix_(order, order)]
    np.fill_diagonal(between, 0.0)
    # Conductance between the first m ranks and the others: a rank that changes sides brings its links to the others
    # in and takes those to the first m out.
    conductance = np.cumsum(between.sum(1) - 2 * np.tril(between).sum(1))[:-1]
    place = int(np.argmin(conductance))
    near = np.zeros(len(inside), bool)
    near[order[: place + 1]] = True
    return _cut(assumed, near, assumed.shown & ~near, float(between[: place + 1, place + 1 :].sum()))


def _cut(assumed: Assumed, near: np.ndarray, far: np.ndarray, conductance: float) -> Cut:
    cells: Cells = assumed.varied
    sides = [cells.per_item(cells.impressions * side[cells.arm]) for side in (near, far)]
    both = (sides[0] > 0) & (sides[1] > 0)
    return Cut(
        near=tuple((np.flatnonzero(near) + 1).tolist()),
        far=tuple((np.flatnonzero(far) + 1).tolist()),
        conductance=conductance,
        documents=int(both.sum()),
        impressions=float(np.minimum(*sides)[both].sum()),
    )


def sessions_needed(standard_error: np.ndarray, target: float, sessions: float) -> np.ndarray:
    """[K] how many more sessions of the same kind bring each rank to the target; inf where no number does.

    Variances fall as 1 / sessions. The number has no interval: chance in the clicks is not all that it is off by. On
    simulated logs of 600 to 12,000 sessions whose truth is known it varied by 3 to 30 % (one standard deviation), which
    resampling would tell; but where documents were shown a handful of times it came out up to 40 % too large, and what
    is assumed of their relevances causes that, so that intervals from resampling missed the truth.
    """
    with np.errstate(invalid="ignore"):
        more = sessions * (np.square(standard_error / target) - 1)
    return np.where(np.isfinite(standard_error), np.ceil(np.maximum(more, 0.0)), np.inf)
