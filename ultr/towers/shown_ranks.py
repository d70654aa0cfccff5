"""Which ranks the data of a training showed, and so what a curve over ranks may say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flax import nnx

from ultr.errors import DataError
from ultr.sessions import Sessions
from ultr.towers.base import Component, declared
from ultr.towers.wrappers import Frozen

NO_FIRST_RANK = "rank 1 (position 0) was never shown in training, and values are relative to it"
NOT_SHOWN = "never shown in training"
NO_FIRST_CLICK = "rank 1, which it is compared with, was never clicked in training"
NOT_CLICKED = "never clicked in training: where the fit stopped on its way to 0 says nothing"


def by_rank(model: nnx.Module) -> list[Component]:
    """Lists the modules of a model that have a table by rank of their own."""
    return [m for m in declared(model) if any(bound.field == "position" for bound in m.index_bounds)]


def note_shown_ranks(model: nnx.Module, ranks: Iterable[int], clicked: Iterable[int] | None = None) -> None:
    """Notes in the tables by rank of a model which ranks their training showed, beside those noted before.

    Args:
      model: a model, or a tower.
      ranks: the 1-based ranks that were shown.
      clicked: those with a click; None: not known, or the data has no clicks.

    Frozen tables, which training leaves as they were, are left alone.
    """
    frozen = {id(m) for tower in declared(model) if isinstance(tower, Frozen) for m in declared(tower)}
    for module in by_rank(model):
        if id(module) not in frozen:
            module.shown_ranks = tuple(sorted({*(module.shown_ranks or ()), *(int(rank) for rank in ranks)}))
            if clicked is not None:
                module.clicked_ranks = tuple(sorted({*(module.clicked_ranks or ()), *(int(rank) for rank in clicked)}))


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
    noted = [set(m.clicked_ranks) for m in tables if m.clicked_ranks is not None]
    clicked = set.intersection(*noted) if noted else shown
    found = {}
    for rank in range(1, ranks + 1):
        if rank > known:
            found[rank] = f"beyond the model's table of {known} ranks"
        elif rank not in shown:
            found[rank] = NOT_SHOWN
        elif 1 not in shown:
            found[rank] = NO_FIRST_RANK
        elif rank not in clicked:
            found[rank] = NOT_CLICKED
        elif 1 not in clicked:
            found[rank] = NO_FIRST_CLICK
    return found


def supported_curve(curve: np.ndarray, model: nnx.Module) -> np.ndarray:
    """Copies a curve [ranks], with NaN at the ranks that `withheld_ranks` names."""
    out = np.array(curve)
    out[[rank - 1 for rank in withheld_ranks(model, len(out))]] = np.nan
    return out


class ShownRanks:
    """Finds the ranks that the batches of a pass show, and those with a click, on the host.

    Args:
      model: has the tables by rank; without any, nothing is looked at.
    """

    def __init__(self, model: nnx.Module) -> None:
        bounds = [bound for m in by_rank(model) for bound in m.index_bounds if bound.field == "position"]
        self._seen = np.zeros(max((bound.size for bound in bounds), default=0), bool)
        self._clicked = np.zeros(len(self._seen), bool)
        self._has_clicks, self._any_click = False, False
        self._last: tuple[object, object] = (None, None)

    def add(self, batch: Sessions) -> None:
        """Adds the ranks of a batch with the lists first; lists of weight 0 do not count."""
        mask, position, weight = batch.mask, batch.position, batch.weight
        self._has_clicks |= batch.clicks is not None
        count_clicks = batch.clicks is not None and not (self._any_click and self._clicked.all())
        # A log hands out the same arrays again where all lists are whole.
        again = weight is None and mask is self._last[0] and position is self._last[1]
        if not count_clicks and (self._seen.all() or again):
            return
        self._last = (mask, position)
        shown = np.asarray(mask)
        if weight is not None:
            shown = shown & (np.asarray(weight) > 0)[:, None]
        if len(self._seen):
            self._seen[np.asarray(position)[shown]] = True
        if count_clicks:
            clicked = shown & (np.asarray(batch.clicks) > 0)
            self._any_click |= bool(clicked.any())
            if len(self._clicked):
                self._clicked[np.asarray(position)[clicked]] = True

    @property
    def ranks(self) -> list[int]:
        """The 1-based ranks that were shown, ascending."""
        found: list[int] = (np.flatnonzero(self._seen) + 1).tolist()
        return found

    @property
    def clicked(self) -> list[int] | None:
        """The 1-based ranks with a click, ascending; None where no batch has clicks."""
        found: list[int] = (np.flatnonzero(self._clicked) + 1).tolist()
        return found if self._has_clicks else None

    def check_clicks(self, name: str) -> None:
        """Refuses data that has clicks, every one of them 0: what is learnt from it is where training started.

        Raises:
          DataError: no click in sessions that count.
        """
        if self._has_clicks and not self._any_click:
            raise DataError(
                f"expected clicks to learn from, found none in the {name}",
                fix="Check the click column, or train on a log or split with clicks",
                field="clicks",
            )
