"""Which ranks the data of a training showed, and so what a curve over ranks may say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flax import nnx

from ultr.sessions import Array
from ultr.towers.base import Component, declared
from ultr.towers.wrappers import Frozen

NO_FIRST_RANK = "rank 1 (position 0) was never shown in training, and values are relative to it"
NOT_SHOWN = "never shown in training"


def by_rank(model: nnx.Module) -> list[Component]:
    """Lists the modules of a model that have a table by rank of their own."""
    return [m for m in declared(model) if any(bound.field == "position" for bound in m.index_bounds)]


def note_shown_ranks(model: nnx.Module, ranks: Iterable[int]) -> None:
    """Notes in the tables by rank of a model which ranks their training showed, beside those noted before.

    Frozen tables, which training leaves as they were, are left alone.
    """
    frozen = {id(m) for tower in declared(model) if isinstance(tower, Frozen) for m in declared(tower)}
    for module in by_rank(model):
        if id(module) not in frozen:
            module.shown_ranks = tuple(sorted({*(module.shown_ranks or ()), *(int(rank) for rank in ranks)}))


def withheld_ranks(model: nnx.Module, ranks: int) -> dict[int, str]:
    """Says for which of the first ranks a model's curve, relative to rank 1, has no value, and why.

    A table that was never trained, or by a version that did not note it, says nothing of its ranks.

    Args:
      model: a model, or a tower.
      ranks: number of ranks of the curve.
    """
    tables = by_rank(model)
    sizes = [bound.size for m in tables for bound in m.index_bounds if bound.field == "position"]
    noted = [set(m.shown_ranks) for m in tables if m.shown_ranks is not None]
    known = min(sizes, default=ranks)
    shown = set.intersection(*noted) if noted else set(range(1, known + 1))
    found = {}
    for rank in range(1, ranks + 1):
        if rank > known:
            found[rank] = f"beyond the model's table of {known} ranks"
        elif rank not in shown:
            found[rank] = NOT_SHOWN
        elif 1 not in shown:
            found[rank] = NO_FIRST_RANK
    return found


def supported_curve(curve: np.ndarray, model: nnx.Module) -> np.ndarray:
    """Copies a curve [ranks], with NaN at the ranks that `withheld_ranks` names."""
    out = np.array(curve)
    out[[rank - 1 for rank in withheld_ranks(model, len(out))]] = np.nan
    return out


class ShownRanks:
    """Finds the ranks that the batches of a pass show, on the host.

    Args:
      model: has the tables by rank; without any, nothing is looked at.
    """

    def __init__(self, model: nnx.Module) -> None:
        bounds = [bound for m in by_rank(model) for bound in m.index_bounds if bound.field == "position"]
        self._seen = np.zeros(max((bound.size for bound in bounds), default=0), bool)
        self._last: tuple[object, object] = (None, None)

    def add(self, mask: Array, position: Array, weight: Array | None) -> None:
        """Adds the ranks of a batch: mask and 0-based position [B, K], and weight [B], of which 0 does not count."""
        if self._seen.all() or (weight is None and mask is self._last[0] and position is self._last[1]):
            return  # a log hands out the same arrays again where all lists are whole
        self._last = (mask, position)
        shown = np.asarray(mask)
        if weight is not None:
            shown = shown & (np.asarray(weight) > 0)[:, None]
        self._seen[np.asarray(position)[shown]] = True

    @property
    def ranks(self) -> list[int]:
        """The 1-based ranks that were shown, ascending."""
        found: list[int] = (np.flatnonzero(self._seen) + 1).tolist()
        return found
