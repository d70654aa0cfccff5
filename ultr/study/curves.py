"""The curve of examination that a method learnt, with intervals or the reasons why it has none, for commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ultr.data import Counts
from ultr.data.dataset import DatasetLike
from ultr.errors import UltrError
from ultr.identifiability import GoodnessOfFit, examination_interval
from ultr.propensity import Propensities
from ultr.rankers import Ranker
from ultr.text import table

LISTWISE = ("listwise", "dual")  # sources of curves whose errors need whole lists


def learnt_curve(
    model: Any,
    counts: Callable[[], Counts],
    *,
    lists: Callable[[], DatasetLike],
    fit: Callable[[], GoodnessOfFit | None],
    seed: int = 0,
) -> dict[str, Any] | None:
    """Computes what `ultr train` and `ultr compare` keep of a learnt curve: `Propensities.to_json` and a `text`.

    Args:
      model: trained.
      counts: gives the counts by last click of what it was trained on; asked for where the model has a curve.
      lists: gives the same as lists; asked for where the loss is listwise.
      fit: gives the goodness of fit of the log; None: not known.
      seed: of what is drawn for alpha of trust bias.

    Returns:
      None for a model without a curve. `reason` and no curve where it cannot be computed.
    """
    if not isinstance(model, Ranker) or model.curve_source == "none":
        return None
    try:
        needed = lists() if model.curve_source in LISTWISE else None
        found = examination_interval(model, counts(), lists=needed, fit=fit(), seed=seed)
    except (UltrError, np.linalg.LinAlgError) as error:
        return {"reason": str(error), "text": f"Examination by rank: no intervals ({error})"}
    return None if found is None else found.to_json() | {"text": _text(found)}


def _text(found: Propensities) -> str:
    """Writes a curve for people: its ranks with intervals, reasons and warnings."""
    rows = [[row[0], row[1], row[3]] for row in found.table_rows()]
    return "\n".join([table(rows), *found.unsupported_lines(), *(f"note: {text}" for text in found.warnings)])
