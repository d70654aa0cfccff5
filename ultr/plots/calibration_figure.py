"""The figure of a calibration: predicted against observed clicks, by rank and by what was predicted there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ultr.plots.style import COLOURS, GRID, NOTE, styled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ultr.evaluation.click_calibration import Calibration, CalibrationBins

LIGHTEST = 0.88  # the end of the colour map that is used: lighter points are hard to see on white


def calibration(result: Calibration) -> Figure:
    """Draws click probabilities by rank, and observed against predicted ones by rank and bin of the prediction.

    Probabilities are on square-root scales, on which intervals of equally many impressions are equally long and 0 has a
    place.

    Args:
      result: from `ultr.evaluation.calibration`.
    """
    with styled_figure(10.4, 5.0) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.05))
        _by_rank(left, result.by_rank)
        _by_prediction(figure, right, result.by_prediction)
        figure.supxlabel("bars: 95 % binomial intervals (Wilson). All chances on square-root scales", **NOTE)
    return figure


def _by_rank(axes: Any, bins: CalibrationBins) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = bins.interval()
    axes.plot(bins.rank, bins.predicted, "D-", color=COLOURS[1], ms=6, mfc="none", lw=1.0, label="predicted")
    axes.vlines(bins.rank, low, high, color=COLOURS[0], lw=1.8)
    axes.plot(bins.rank, bins.observed, "o", color=COLOURS[0], ms=3.6, label="observed")
    axes.set_xlim(bins.rank.min() - 0.6, bins.rank.max() + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    _square_root_scale(axes, "y", max(bins.predicted.max(), high.max()))
    axes.set_xlabel("rank")
    axes.set_ylabel("chance of a click")
    axes.set_title(_title("by rank", bins), loc="left", **NOTE)
    axes.legend(frameon=False, fontsize=9)


def _by_prediction(figure: Figure, axes: Any, bins: CalibrationBins) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    ranks = np.unique(bins.rank)
    colours = LinearSegmentedColormap.from_list("ranks", colormaps["viridis"](np.linspace(0, LIGHTEST, 64)))
    scale = Normalize(ranks[0], max(ranks[-1], ranks[0] + 1))
    low, high = bins.interval()
    most = max(bins.predicted.max(), bins.observed.max())
    axes.plot([0, 1], [0, 1], color="#888888", lw=1.0, ls="--", zorder=1)
    for rank in ranks:
        own, colour = bins.rank == rank, colours(scale(rank))
        axes.plot(bins.predicted[own], bins.observed[own], "o-", color=colour, ms=3.6, lw=0.8, label=f"rank {rank}")
        axes.vlines(bins.predicted[own], low[own], high[own], color=colour, lw=1.0, alpha=0.6)
    for which in "xy":  # intervals of bins with few impressions may leave the picture
        _square_root_scale(axes, which, most)
    axes.set_box_aspect(1)
    axes.grid(axis="x", **GRID)
    axes.set_xlabel("predicted chance of a click")
    axes.set_ylabel("clicks per impression")
    axes.set_title(_title("by rank and prediction", bins), loc="left", **NOTE)
    if len(ranks) > 1:
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="rank", aspect=30)
        bar.ax.invert_yaxis()
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        bar.outline.set_visible(False)


def _square_root_scale(axes: Any, which: str, most: float) -> None:
    """Sets a square-root scale from 0 to a little above the largest probability."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    top = min(max(most, 1e-6) * 1.12, 1.02)
    set_scale, set_limits, axis = (
        (axes.set_xscale, axes.set_xlim, axes.xaxis) if which == "x" else (axes.set_yscale, axes.set_ylim, axes.yaxis)
    )
    set_scale("function", functions=(_root, np.square))
    set_limits(0.0, top)
    axis.set_major_locator(FixedLocator(root_ticks(top)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis=which, **GRID)


def _root(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.maximum(x, 0.0)))


def root_ticks(top: float) -> list[float]:
    """Chooses round probabilities from 0 to `top`, far enough apart on a square-root scale."""
    step = 10.0 ** math.floor(math.log10(top))
    round_ones = [m * step / 10**k for k in range(3) for m in (8, 6, 4, 3, 2, 1)]
    kept: list[float] = []
    for value in [x for x in round_ones if x <= top]:
        if not kept or math.sqrt(kept[-1]) - math.sqrt(value) >= 0.085 * math.sqrt(top):
            kept.append(float(f"{value:.12g}"))
    return [0.0, *(x for x in reversed(kept) if math.sqrt(x) >= 0.085 * math.sqrt(top))]


def _title(by: str, bins: CalibrationBins) -> str:
    low, high = bins.error.interval
    span = f" (95 %: {low:.4f} to {high:.4f})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{by}: calibration error {bins.error.value:.4f}{span},\nluck alone would give {bins.floor:.4f}"
