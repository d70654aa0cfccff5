"""The progress bar of a training."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from tqdm import tqdm


def progress_bar(progress: bool | None, title: str, total: int) -> Any:
    """Opens a bar over so many rows; `progress` None: where standard error is a terminal."""
    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, desc=title, unit=" sessions", unit_scale=True, leave=False, disable=not show)


def advance(bar: Any, rows: int, sums: Any) -> None:
    """Moves the bar by some rows, and shows the mean loss of the sums (`ultr.training.steps.weighted_sums`)."""
    if bar.disable:
        return
    if bar.update(rows):  # only when the bar is redrawn: reading the loss waits for the device
        total, used = np.asarray(sums)[:2]
        bar.set_postfix(loss=f"{total / max(used, 1):.4f}", refresh=False)
