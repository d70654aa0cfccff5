"""The figure of a study: what each method reaches on each log, with its interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ultr.plots.style import COLOURS, GRID, NOTE, styled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
# The paired t test, adjusted by Holm, of a method against the baseline -> mark, colour, face, text of the legend.
MARKS = {
    "differs": ("o", COLOURS[0], COLOURS[0], "differs from {} (p < 5 %, paired t test, Holm)"),
    "alike": ("o", COLOURS[0], "white", "no such difference"),
    "baseline": ("s", COLOURS[1], COLOURS[1], "{}, the baseline"),
    "untested": ("d", COLOURS[7], COLOURS[7], "not tested"),
}
DASHES = ("--", ":", "-.")
# Inches: a panel without names, a letter of a name, a row, a line of text, and the rest of the height.
PANEL, LETTER, ROW, LINE, REST = 2.9, 0.07, 0.185, 0.16, 0.5
TITLE, BELOW = 36, 48  # letters in a line above and below a panel


def comparison(results: Mapping[str, Any], lines: Sequence[str] = ()) -> Figure:
    """Draws a panel per log: its methods, the best on top, by the first metric's mean with its 95 % interval.

    Args:
      results: from `ultr.study.collect`. Methods without a mean are named below their panel.
      lines: methods, such as the logger, whose means are also drawn as thin lines through all rows of a panel.
    """
    logs = results["logs"]
    across = columns(len(logs))
    with styled_figure(*_size(results)) as figure:
        # One scale: all logs are judged on the same lists.
        grid = figure.subplots(math.ceil(len(logs) / across), across, squeeze=False, sharex=True).ravel()
        legend: dict[str, Any] = {}
        for axes, log in zip(grid, logs, strict=False):
            legend |= _panel(axes, log, results, lines)
        for axes in grid[len(logs) :]:
            axes.set_visible(False)
        label = f"{results['metrics'][0]}: mean over queries with its 95 % interval"
        if {MARKS[kind][-1].format(results["baseline"]) for kind in ("differs", "alike")} & set(legend):
            label += "\n(tests are paired over queries: methods may differ though their intervals overlap)"
        figure.supxlabel(label, fontsize=10)
        marks = (mark[-1].format(results["baseline"]) for mark in MARKS.values())
        order = [name for name in (*marks, *lines) if name in legend]
        if len(order) > 1 or lines:
            handles, many = [legend[name] for name in order], min(len(order), 2 * across)
            figure.legend(handles, order, loc="outside upper center", ncols=many, frameon=False, fontsize=9)
    return figure


def _size(results: Mapping[str, Any]) -> tuple[float, float]:
    """Computes the width and height, in inches, that the panels need."""
    logs = results["logs"]
    panels = [_panel_text(log, results) for log in logs]
    rows = max(max(len(names) for names, _, _ in panels), 4)
    letters = max((len(name) for names, _, _ in panels for name in names), default=0)
    text = max(f"{title}\n{below}".rstrip().count("\n") + 1 for _, title, below in panels)
    width = max(columns(len(logs)) * (PANEL + LETTER * letters), 6.6)
    height = math.ceil(len(logs) / columns(len(logs))) * (REST + ROW * rows + LINE * text) + 0.9
    return width, height


def columns(panels: int) -> int:
    """Returns how many panels stand side by side."""
    return panels if panels <= 2 else 2 if panels == 4 else 3


def best_first(log: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """Returns the methods of a log that have a mean, the best first; equal ones in the order of the study."""
    rows = [row for row in log["methods"] if _mean(row, metric) is not None]
    return sorted(rows, key=lambda row: -row["metrics"][metric]["value"])


def _mean(row: Mapping[str, Any], metric: str) -> float | None:
    value: float | None = row.get("metrics", {}).get(metric, {}).get("value")
    return value


def _kind(row: Mapping[str, Any], metric: str, baseline: str | None) -> str:
    if row["name"] == baseline:
        return "baseline"
    p = row.get("difference", {}).get(metric, {}).get("holm_t")
    return "untested" if p is None else "differs" if p < SIGNIFICANT else "alike"


def _panel(axes: Any, log: Mapping[str, Any], results: Mapping[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Draws one log, and returns the entries of the legend: text -> what was drawn."""
    metric, baseline = results["metrics"][0], results["baseline"]
    rows, drawn = best_first(log, metric), {}
    for i, row in enumerate(rows):
        found = row["metrics"][metric]
        mark, colour, face, text = MARKS[_kind(row, metric, baseline)]
        if None not in found["interval"]:
            axes.hlines(i, *found["interval"], color=colour, lw=1.6, zorder=2)
        (drawn[text.format(baseline)],) = axes.plot(
            found["value"], i, mark, color=colour, mfc=face, ms=5, ls="none", zorder=3
        )
    for i, name in enumerate(lines):
        means = [row["metrics"][metric]["value"] for row in rows if row["name"] == name]
        for mean in means:
            drawn[name] = axes.axvline(mean, color="#444444", lw=0.9, ls=DASHES[i % len(DASHES)], zorder=1)
    names, title, below = _panel_text(log, results)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(rows)), names, fontsize=8.5)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True, labelsize=8.5)
    axes.grid(axis="both", **GRID)
    if not rows:
        axes.text(0.5, 0.5, f"no method has a {metric}", transform=axes.transAxes, ha="center", va="center", fontsize=9)
    axes.set_xlabel(below, loc="left", **NOTE)
    return drawn


def _panel_text(log: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """Returns the names of the rows, the title, and the text below a panel; with the number of seeds if not all."""
    rows, seeds = best_first(log, results["metrics"][0]), len(results["seeds"])
    counts = [len(row["seeds"]) for row in rows]
    usual = max(set(counts), key=lambda n: (counts.count(n), n), default=seeds)

    def seeds_text(n: int) -> str:
        return f" ({n} of {seeds} seeds)"

    names = [row["name"] + (seeds_text(n) if n != usual else "") for row, n in zip(rows, counts, strict=True)]
    absent = [row["name"] for row in log["methods"] if row not in rows]
    below = textwrap.fill(f"without a value: {'; '.join(absent)}", BELOW, break_on_hyphens=False) if absent else ""
    return names, textwrap.fill(log["name"] + (seeds_text(usual) if usual != seeds else ""), TITLE), below
