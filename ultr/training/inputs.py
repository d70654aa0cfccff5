"""What training asks of its data: whether it suffices for the model, its rows and weights, and means per session."""

from __future__ import annotations

import math

import numpy as np
from flax import nnx

from ultr.data import ClickLog, collapse
from ultr.data.dataset import Dataset, DatasetLike, SufficientStatistics, as_dataset
from ultr.errors import ConfigError, DataError, UltrError
from ultr.rankers import Ranker

# What a loss depends on -> what data has to tell for it.
_TOLD_BY: dict[SufficientStatistics, tuple[SufficientStatistics, ...]] = {
    "rank": ("rank", "last-click", "list"),
    "last-click": ("last-click", "list"),
    "query": ("query", "list"),
    "list": ("list",),
}


def training_data(given: DatasetLike, model: nnx.Module, name: str) -> Dataset:
    """Makes a dataset of what is given, and checks that it tells all that the model's loss depends on.

    A log whose model learns per query is collapsed to that.

    Args:
      given: a dataset, an object that streams batches, or sessions in memory.
      model: a `Ranker` says what it needs; for other modules counts are taken to suffice.
      name: what to call the data in an error.

    Raises:
      ConfigError: counts that do not suffice.
    """
    data = as_dataset(given)
    held = data.description.sufficient_statistics
    needs = model.sufficient_statistics if isinstance(model, Ranker) else held
    if isinstance(data, ClickLog) and needs == "query":
        return collapse(data, "query")
    if held not in _TOLD_BY[needs]:
        raise ConfigError(
            f"{name}: {type(model).__name__} needs more than counts by {held}. Collapse the log with "
            f"sufficient_statistics='{needs}', or use it as it is"
        )
    return data


def count_rows(data: Dataset, name: str) -> int:
    """Counts the rows of a dataset.

    Raises:
      DataError: there are none.
    """
    rows = len(data)
    if not rows:
        raise DataError("expected at least one session, found none", file=name)
    return rows


def batch_weight(data: Dataset, batch_size: int) -> float:
    """Computes the weight of the average batch of a shuffled pass; 0 where rows have no weights."""
    about = data.description
    if not about.weighted:
        return 0.0
    return max(about.total_weight, 1.0) / max(data.count_batches(batch_size), 1)


def session_sums(
    sums: np.ndarray, name: str, rows_per_session: float, *, if_not_finite: str
) -> tuple[float, float, float]:
    """Turns the sums of a pass over rows into loss, sessions counted and impossible sessions.

    Args:
      sums: [3] loss, weight counted, weight of what is impossible (`ultr.training.steps.weighted_sums`).
      name: what to call the data in an error.
      rows_per_session: rows that stand for one session; more than 1 for counts.
      if_not_finite: the error in that case, with {} for the loss.

    Raises:
      DataError: nothing was counted.
      UltrError: the loss is not finite.
    """
    loss, used, impossible = (float(x) for x in sums)
    used, impossible = used / rows_per_session, impossible / rows_per_session
    if not used and not impossible:
        raise DataError("expected sessions with documents and a weight above 0, found none", file=name)
    if not used:
        raise DataError(
            f"none of the {impossible:.0f} sessions is possible under the model",
            fix="Choose a model that allows several clicks, such as DCM or DBN",
            file=name,
        )
    if not math.isfinite(loss):
        raise UltrError(f"{name}: {if_not_finite.format(loss)}")
    return loss, used, impossible
