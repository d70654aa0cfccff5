"""Figures of calibration: predicted against observed clicks, by rank and by what was predicted there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultr.plots.style import COLOURS, GRID, NOTE, sheet

if TYPE_CHECKING:
    from ultr.evaluation.calibration import Calibration, Cells

Z = 1.959963984540054  # the normal quantile at 97.5 %
PALEST = 0.88  # of the colour map: beyond it, points are hardly seen on white


def draw(found: Calibration, path: Path) -> None:
    """Chances of clicks by rank, and observed against predicted ones by rank and bin of the prediction.

    Args:
      found: what `ultr.evaluation.calibration` gives. Its chances are drawn on scales of square roots, on which
        intervals of equally many impressions are equally long, and 0 has a place.
      path: the file; its ending says what kind.
    """
    with sheet(path, 10.4, 5.0) as figure:
        plot(figure, found)


def plot(figure: Any, found: Calibration) -> None:
    """As `draw`, on an empty figure of matplotlib."""
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.05))
    _by_rank(left, found.by_rank)
    _by_prediction(figure, right, found.by_prediction)
    figure.supxlabel("bars: 95 % binomial intervals (Wilson). All chances on square-root scales", **NOTE)


def wilson(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """[C] lower and upper ends of the 95 % score interval of clicks per impression (Wilson 1927).

    Unlike that of the standard error, it stays within 0 and 1 and has a length where all or none were clicked.
    """
    p, n = cells.observed, cells.count
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # Rounding alone puts an observed 0 or 1 outside.
    return np.minimum(np.maximum(middle - reach, 0.0), p), np.maximum(np.minimum(middle + reach, 1.0), p)


def _by_rank(axes: Any, cells: Cells) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = wilson(cells)
    axes.plot(cells.rank, cells.predicted, "D-", color=COLOURS[1], ms=6, mfc="none", lw=1.0, label="predicted")
    axes.vlines(cells.rank, low, high, color=COLOURS[0], lw=1.8)
    axes.plot(cells.rank, cells.observed, "o", color=COLOURS[0], ms=3.6, label="observed")
    axes.set_xlim(cells.rank.min() - 0.6, cells.rank.max() + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    _chances(axes, "y", max(cells.predicted.max(), high.max()))
    axes.set_xlabel("rank")
    axes.set_ylabel("chance of a click")
    axes.set_title(_title("by rank", cells), loc="left", **NOTE)
    axes.legend(frameon=False, fontsize=9)


def _by_prediction(figure: Any, axes: Any, cells: Cells) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    ranks = np.unique(cells.rank)
    colours = LinearSegmentedColormap.from_list("ranks", colormaps["viridis"](np.linspace(0, PALEST, 64)))
    scale = Normalize(ranks[0], max(ranks[-1], ranks[0] + 1))
    low, high = wilson(cells)
    most = max(cells.predicted.max(), cells.observed.max())
    axes.plot([0, 1], [0, 1], color="#888888", lw=1.0, ls="--", zorder=1)
    for rank in ranks:
        own, colour = cells.rank == rank, colours(scale(rank))
        axes.plot(cells.predicted[own], cells.observed[own], "o-", color=colour, ms=3.6, lw=0.8, label=f"rank {rank}")
        axes.vlines(cells.predicted[own], low[own], high[own], color=colour, lw=1.0, alpha=0.6)
    for which in "xy":  # of bins with few impressions, intervals may run out of the picture
        _chances(axes, which, most)
    axes.set_box_aspect(1)
    axes.grid(axis="x", **GRID)
    axes.set_xlabel("predicted chance of a click")
    axes.set_ylabel("clicks per impression")
    axes.set_title(_title("by rank and prediction", cells), loc="left", **NOTE)
    if len(ranks) > 1:
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="rank", aspect=30)
        bar.ax.invert_yaxis()
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        bar.outline.set_visible(False)


def _chances(axes: Any, which: str, most: float) -> None:
    """A scale of square roots from 0 to a little above the largest chance."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    top = min(max(most, 1e-6) * 1.12, 1.02)
    set_scale, set_limits, axis = (
        (axes.set_xscale, axes.set_xlim, axes.xaxis) if which == "x" else (axes.set_yscale, axes.set_ylim, axes.yaxis)
    )
    set_scale("function", functions=(_root, np.square))
    set_limits(0.0, top)
    axis.set_major_locator(FixedLocator(ticks(top)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis=which, **GRID)


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))


def ticks(top: float) -> list[float]:
    """Round chances from 0 to `top`, far enough apart on a scale of square roots."""
    step = 10.0 ** math.floor(math.log10(top))
    round_ones = [m * step / 10**k for k in range(3) for m in (8, 6, 4, 3, 2, 1)]
    kept: list[float] = []
    for value in [x for x in round_ones if x <= top]:
        if not kept or math.sqrt(kept[-1]) - math.sqrt(value) >= 0.085 * math.sqrt(top):
            kept.append(float(f"{value:.12g}"))
    return [0.0, *(x for x in reversed(kept) if math.sqrt(x) >= 0.085 * math.sqrt(top))]


def _title(by: str, cells: Cells) -> str:
    low, high = cells.error.interval
    span = f" (95 %: {low:.4f} to {high:.4f})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{by}: calibration error {cells.error.value:.4f}{span},\nluck alone would give {cells.floor:.4f}"
