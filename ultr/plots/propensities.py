"""Figures of propensities by rank, drawn with matplotlib where that is installed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultr.plots.style import COLOURS, GRID, MARKS, NOTE, sheet

if TYPE_CHECKING:
    from ultr.propensity import Propensities


def draw(found: Mapping[str, Propensities], path: Path) -> None:
    """Curves with 95 % intervals by rank, on a logarithmic scale; arrows down are upper limits, open marks have none.

    Args:
      found: name -> curve, all over the same ranks.
      path: the file; its ending says what kind.
    """
    with sheet(path, 7.2, 4.4) as figure:
        plot(figure, found)


def plot(figure: Any, found: Mapping[str, Propensities]) -> None:
    """As `draw`, on an empty figure of matplotlib."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes = figure.add_subplot()
    ranks = next(iter(found.values())).rank
    # Side by side, so that intervals do not hide each other; but all are 1 at rank 1.
    spread = min(0.5, 0.08 * (len(found) - 1))
    shift = np.linspace(-spread / 2, spread / 2, len(found)) if len(found) > 1 else [0.0]
    for i, (name, curve) in enumerate(found.items()):
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[(i + i // len(COLOURS)) % len(MARKS)]
        _one(axes, curve, ranks + np.where(ranks > 1, shift[i], 0.0), colour, mark, name)
    axes.set_yscale("log")
    axes.set_ylim(*_limits(found))
    axes.set_xlim(ranks[0] - 0.6, ranks[-1] + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", **GRID)
    axes.set_xlabel("rank")
    axes.set_ylabel("examination relative to rank 1")
    title = "with 95 % intervals" if len(found) > 1 else f"{next(iter(found))}, with 95 % intervals"
    if any(((c.value > 0) & ~np.isfinite(c.interval).all(1)).any() for c in found.values()):
        title += " (open marks: no interval)"
    axes.set_title(title, loc="left", **NOTE)
    _say_what_is_missing(axes, found)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=9)


def _one(axes: Any, curve: Propensities, x: np.ndarray, colour: str, mark: str, name: str) -> None:
    low, high = curve.interval.T
    known, bounded = curve.value > 0, np.isfinite(low) & np.isfinite(high)
    joined = np.where(known, curve.value, np.nan)  # a rank without a value interrupts the line
    axes.plot(x, joined, color=colour, lw=1.1, alpha=0.5, zorder=2)
    axes.plot(x, np.where(bounded, joined, np.nan), mark, color=colour, ms=4.5, label=name, zorder=3)
    axes.plot(x, np.where(bounded, np.nan, joined), mark, color=colour, ms=4.5, mfc="white", zorder=3)
    bar = known & bounded
    axes.vlines(x[bar], np.maximum(low[bar], 1e-12), high[bar], color=colour, lw=1.6, zorder=2)
    limit = (curve.value == 0) & bounded
    if limit.any():
        reach = 0.35 * high[limit]
        axes.errorbar(x[limit], high[limit], yerr=reach, uplims=True, fmt="_", ms=7, color=colour, zorder=3)


def _say_what_is_missing(axes: Any, found: Mapping[str, Propensities]) -> None:
    """Why curves have no value but that of rank 1: in the middle of an empty figure, else below it."""
    lines, empty = [], 0
    for name, curve in found.items():
        by_reason = curve.by_reason()
        if np.isfinite(curve.value[1:]).any() or not by_reason:
            continue
        empty += 1
        lines += textwrap.wrap(f"{name} has no values. {'; '.join(by_reason)}", 85)
    if empty == len(found):
        axes.text(0.5, 0.6, "\n".join(lines), transform=axes.transAxes, ha="center", va="center", fontsize=9, zorder=4)
    elif lines:
        axes.set_xlabel("\n".join([axes.get_xlabel(), *lines]))


def _limits(found: Mapping[str, Propensities]) -> tuple[float, float]:
    """All values, and of their intervals up to so much that the values do not shrink to a line."""
    values, ends = [1.0], [1.0]
    for curve in found.values():
        values += curve.value[curve.value > 0].tolist()
        ends += [*curve.interval[curve.interval > 0].tolist(), *curve.value[curve.value > 0].tolist()]
        limits = curve.interval[curve.value == 0, 1]
        ends += (0.5 * limits[np.isfinite(limits)]).tolist()  # the ends of their arrows
        values += (0.5 * limits[np.isfinite(limits)]).tolist()
    return max(min(ends), min(values) / 8) / 1.25, min(max([*ends, *values]), max(values) * 8) * 1.25
