"""Figures of propensities, calibration and comparisons: each function takes results and returns a matplotlib figure.

    from ultr import plots
    figure = plots.calibration(result)
    plots.save_figure(figure, "calibration.png")

matplotlib is imported when a figure is drawn; the extra `figures` installs it.
"""

from typing import TYPE_CHECKING

from ultr.lazy import lazy_exports

if TYPE_CHECKING:
    from ultr.plots.calibration_figure import calibration as calibration
    from ultr.plots.comparison_figure import comparison as comparison
    from ultr.plots.propensity_figure import propensities as propensities
    from ultr.plots.style import check_figure as check_figure
    from ultr.plots.style import save_figure as save_figure

_EXPORTS = {
    "calibration_figure": ("calibration",),
    "comparison_figure": ("comparison",),
    "propensity_figure": ("propensities",),
    "style": ("check_figure", "save_figure"),
}
__all__ = [name for names in _EXPORTS.values() for name in names]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
