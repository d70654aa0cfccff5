"""The figure of propensities: examination by rank, with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ultr.plots.style import COLOURS, GRID, MARKS, NOTE, styled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ultr.propensity import Propensities


def propensities(found: Mapping[str, Propensities]) -> Figure:
    """Draws curves with 95 % intervals by rank, on a logarithmic scale.

    Arrows that point down are upper limits; open marks have no interval.

    Args:
      found: name -> curve, all over the same ranks.
    """
    with styled_figure(7.2, 4.4) as figure:
        _plot_curves(figure, found)
    return figure


def _plot_curves(figure: Figure, found: Mapping[str, Propensities]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes = figure.add_subplot()
    ranks = next(iter(found.values())).rank
    # Side by side, so that intervals do not hide each other; at rank 1 all curves are 1.
    spread = min(0.5, 0.08 * (len(found) - 1))
    shift = np.linspace(-spread / 2, spread / 2, len(found)) if len(found) > 1 else [0.0]
    for i, (name, curve) in enumerate(found.items()):
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[(i + i // len(COLOURS)) % len(MARKS)]
        _plot_curve(axes, curve, ranks + np.where(ranks > 1, shift[i], 0.0), colour, mark, name)
    axes.set_yscale("log")
    axes.set_ylim(*axis_limits(found))
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
    _explain_missing(axes, found)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=9)


def _plot_curve(axes: Any, curve: Propensities, x: np.ndarray, colour: str, mark: str, name: str) -> None:
    """Draws one curve: values, intervals and upper limits."""
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


def _explain_missing(axes: Any, found: Mapping[str, Propensities]) -> None:
    """Writes why curves have no value below rank 1: in the middle of an empty figure, else below the axis."""
    lines, empty = [], 0
    for name, curve in found.items():
        reasons = curve.unsupported_lines()
        if np.isfinite(curve.value[1:]).any() or not reasons:
            continue
        empty += 1
        lines += textwrap.wrap(f"{name} has no values. {'; '.join(reasons)}", 85)
    if empty == len(found):
        axes.text(0.5, 0.6, "\n".join(lines), transform=axes.transAxes, ha="center", va="center", fontsize=9, zorder=4)
    elif lines:
        axes.set_xlabel("\n".join([axes.get_xlabel(), *lines]))


def axis_limits(found: Mapping[str, Propensities]) -> tuple[float, float]:
    """Chooses the limits of the vertical axis: all values, and intervals as far as the values stay readable."""
    values, ends = [1.0], [1.0]
    for curve in found.values():
        values += curve.value[curve.value > 0].tolist()
        ends += [*curve.interval[curve.interval > 0].tolist(), *curve.value[curve.value > 0].tolist()]
        limits = curve.interval[curve.value == 0, 1]
        ends += (0.5 * limits[np.isfinite(limits)]).tolist()  # where their arrows end
        values += (0.5 * limits[np.isfinite(limits)]).tolist()
    return max(min(ends), min(values) / 8) / 1.25, min(max([*ends, *values]), max(values) * 8) * 1.25
