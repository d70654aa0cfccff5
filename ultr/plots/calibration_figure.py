"""The figure of a calibration: predicted against observed clicks, by rank and by what was predicted there."""

from __future__ import annotations

import dataclasses
import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from ultr.plots.style import COLOURS, GRID, MARKS, NOTE, styled_figure
from ultr.text import ranks_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ultr.evaluation.click_calibration import Calibration, CalibrationBins

LAST_RANKS = (1, 2, 5, 10, 20)  # of the groups of ranks; those below are one more
BINS, CLICKS = 8, 20  # bins of a group, at most about, and clicks in each, at least
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
        _by_prediction(right, result.by_prediction)
        figure.supxlabel(
            "bars: 95 % binomial intervals (Wilson). All chances on square-root scales. On the right, neighbouring "
            "ranks and bins with few clicks are joined",
            **NOTE,
        )
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


def _by_prediction(axes: Any, bins: CalibrationBins) -> None:
    from matplotlib import colormaps

    from ultr.evaluation.estimate import wilson_interval

    groups = rank_groups(bins)
    most = max(max(group.predicted.max(), group.observed.max()) for group in groups)
    tones = colormaps["viridis"](np.linspace(0, LIGHTEST, max(len(groups), 2)))
    axes.plot([0, 1], [0, 1], color="#888888", lw=1.0, ls="--", zorder=1)
    for group, tone, mark in zip(groups, tones, cycle(MARKS), strict=False):
        low, high = wilson_interval(group.observed, group.count)
        axes.vlines(group.predicted, low, high, color=tone, lw=0.9, alpha=0.7)
        axes.plot(
            group.predicted, group.observed, mark, ls="-", color=tone, ms=5.2, lw=0.8, mec="white", mew=0.6,
            label=group.name,
        )  # fmt: skip
    for which in "xy":  # intervals of bins with few impressions may leave the picture
        _square_root_scale(axes, which, most)
    axes.set_box_aspect(1)
    axes.grid(axis="x", **GRID)
    axes.set_xlabel("predicted chance of a click")
    axes.set_ylabel("clicks per impression")
    axes.set_title(_title("by rank and prediction", bins), loc="left", **NOTE)
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=9, loc="best")


@dataclasses.dataclass(frozen=True)
class RankGroup:
    """Bins of neighbouring ranks, joined until each has clicks enough to be drawn.

    Attributes:
      name: of the ranks.
      predicted, observed, count: [C] of the bins, by rising prediction, as of `CalibrationBins`.
    """

    name: str
    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray


def rank_groups(bins: CalibrationBins) -> list[RankGroup]:
    """Joins the bins of neighbouring ranks: 1, 2, 3-5, 6-10, 11-20 and those below, of at most `BINS` bins each."""
    number = np.searchsorted(LAST_RANKS, bins.rank)
    groups = []
    for own in (np.flatnonzero(number == n) for n in np.unique(number)):
        own = own[np.argsort(bins.predicted[own], kind="stable")]
        count = bins.count[own]
        sums = np.stack([count, count * bins.predicted[own], count * bins.observed[own]])
        impressions, predicted, clicks = _joined(sums).T
        name = ranks_text(np.unique(bins.rank[own]).tolist())
        groups.append(RankGroup(name, predicted / impressions, clicks / impressions, impressions))
    return groups


def _joined(sums: np.ndarray) -> np.ndarray:
    """Joins neighbouring bins to at most `BINS` of about equally many impressions, with `CLICKS` clicks each.

    Args:
      sums: [3, C] impressions, predictions and clicks of the bins.

    Returns:
      [C', 3] those of the joined bins.
    """
    found: list[np.ndarray] = []
    full = True
    for bin, so_far in zip(sums.T, np.cumsum(sums[0]) / sums[0].sum(), strict=True):
        if full:
            found.append(bin.copy())
        else:
            found[-1] += bin
        full = so_far >= len(found) / BINS - 1e-9 and found[-1][2] >= CLICKS
    if not full and len(found) > 1:
        last = found.pop()
        found[-1] += last
    return np.stack(found)


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
    span = f"(95 %: {low:.4f} to {high:.4f}), " if math.isfinite(low) and math.isfinite(high) else ""
    return f"{by}: calibration error {bins.error.value:.4f}\n{span}luck alone would give {bins.floor:.4f}"
