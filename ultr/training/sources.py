"""What training asks of a source: how many rows, of what weight, whether its counts suffice, sums per session."""

from __future__ import annotations

import math
from typing import Any

from ultr.errors import ConfigError, DataError, UltrError
from ultr.sessions import Sessions, Source, Stream, stream


def as_source(given: Source | Sessions, model: Any, name: str) -> Stream:
    """What is given, where it says all that the model's likelihood depends on.

    Args:
      given: a source, or sessions in memory. Counts say in `by` what they hold; anything else suffices.
      model: what it needs stands in `statistics`; without, counts are taken to suffice.
      name: what to call the source in an error.

    Raises:
      ConfigError: counts that do not suffice.
    """
    source = stream(given)
    needs = getattr(model, "statistics", source.by)
    if source.by is not None and needs not in ("rank", source.by):
        raise ConfigError(
            f"{name}: {type(model).__name__} needs more than counts by {source.by}. Collapse the log by='{needs}', or "
            "use it as it is"
        )
    return source


def count_rows(source: Stream, name: str) -> int:
    """How many rows a source has.

    Raises:
      DataError: it has none.
    """
    rows = len(source)
    if not rows:
        raise DataError("expected at least one session, found none", file=name)
    return rows


def weigh(source: Stream, batch_size: int, *, always: bool) -> tuple[float, float]:
    """Weight of all rows, and of the average batch of a shuffled pass; the latter is 0 where rows have no weights.

    A row without documents weighs nothing.

    Args:
      source: asked for its `extent` where that is needed.
      batch_size: rows per batch.
      always: where rows have no weights, count them; else both numbers are 0 then.
    """
    weighted = source.weighted
    if not weighted and not always:
        return 0.0, 0.0
    total, batches = source.extent(batch_size)
    total = max(total, 1.0)
    return total, total / max(batches, 1) if weighted else 0.0


def per_session(sums: Any, name: str, rows_per_session: float, *, if_not_finite: str) -> tuple[float, float, float]:
    """Sums over the rows of a pass, with weights of sessions in place of those of rows.

    Args:
      sums: loss, weight counted, weight of what is impossible (`ultr.training.steps.losses`).
      name: what to call the source in an error.
      rows_per_session: rows that stand for one session; more than 1 for counts.
      if_not_finite: the error in that case, with {} for the loss.

    Returns:
      Loss, sessions counted, impossible sessions.

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
