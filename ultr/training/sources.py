"""What training asks of a source: how many rows, of what weight, whether its counts suffice, sums per session."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np

from ultr.errors import ConfigError, DataError, UltrError
from ultr.logs import ClickLog
from ultr.sessions import InMemory, Sessions, Source

ROWS = 1 << 13  # per batch, where rows are only counted


def as_source(given: Source | Sessions, model: Any, name: str) -> Source:
    """What is given, as a source that says all that the model's likelihood depends on.

    Args:
      given: a source, or sessions in memory. Counts say in `by` what they hold; anything else suffices.
      model: what it needs stands in `statistics`; without, counts are taken to suffice.
      name: what to call the source in an error.

    Raises:
      ConfigError: counts that do not suffice.
    """
    source = InMemory(given) if isinstance(given, Sessions) else given
    by = getattr(source, "by", None)
    needs = getattr(model, "statistics", by)
    if by is not None and needs not in ("rank", by):
        raise ConfigError(
            f"{name}: {type(model).__name__} needs more than counts by {by}. Collapse the log by='{needs}', or use it "
            "as it is"
        )
    return source


def count_rows(source: Source, name: str) -> int:
    """How many rows a source has; one without `len` is streamed once.

    Raises:
      DataError: it has none.
    """
    rows = len(source) if isinstance(source, Sized) else sum(int(_shown(b).sum()) for b in source.batches(ROWS))
    if not rows:
        raise DataError("expected at least one session, found none", file=name)
    return rows


def weigh(source: Source, batch_size: int, *, always: bool) -> tuple[float, float]:
    """Weight of all rows, and of the average batch of a shuffled pass; the latter is 0 where rows have no weights.

    A row without documents weighs nothing. A source that knows without streaming says in `weighted` whether its rows
    have weights, and in `extent(batch_size)` the weight of all rows and the number of batches.

    Args:
      source: streamed where it does not say.
      batch_size: rows per batch.
      always: where rows have no weights, count them; else both numbers are 0 then.
    """
    weighted = _weighted(source, batch_size)
    if not weighted and not always:
        return 0.0, 0.0
    if isinstance(source, ClickLog) and not weighted:
        return float(len(source)), 0.0  # none of its lists is empty
    extent = getattr(source, "extent", None)
    total, batches = _extent(source, batch_size) if extent is None else extent(batch_size)
    total = max(total, 1.0)
    return total, total / max(batches, 1) if weighted else 0.0


def _weighted(source: Source, batch_size: int) -> bool:
    if (known := getattr(source, "weighted", None)) is not None:
        return bool(known)
    first = next(iter(source.batches(batch_size)), None)
    return first is not None and first.weight is not None


def _extent(source: Source, batch_size: int) -> tuple[float, int]:
    total, batches = 0.0, 0
    for batch in lean_batches(source, batch_size, seed=0):
        shown = _shown(batch)
        total += float(shown.sum() if batch.weight is None else np.asarray(batch.weight, np.float64)[shown].sum())
        batches += 1
    return total, batches


def _shown(batch: Sessions) -> Any:
    return np.asarray(batch.mask).any(1)


def lean_batches(source: Source, batch_size: int, *, seed: int | None) -> Iterator[Sessions]:
    """The batches of a source for one who does not read its features: as `Shared` they cost nothing."""
    shared = "shared" in inspect.signature(source.batches).parameters
    options: dict[str, Any] = {"shared": True} if shared else {}
    return source.batches(batch_size, seed=seed, **options)


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
