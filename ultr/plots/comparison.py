"""Figures of a study: what each method reaches on each log, with its interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultr.plots.style import COLOURS, GRID, NOTE, sheet

SIGNIFICANT = 0.05
# What the paired t test, adjusted by Holm, says of a method against the baseline -> mark, colour, face, words.
MARKS = {
    "differs": ("o", COLOURS[0], COLOURS[0], "differs from {} (p < 5 %, paired t test, Holm)"),
    "alike": ("o", COLOURS[0], "white", "no such difference"),
    "baseline": ("s", COLOURS[1], COLOURS[1], "{}, the baseline"),
    "untested": ("d", COLOURS[7], COLOURS[7], "not tested"),
}
DASHES = ("--", ":", "-.")
# Inches: of a panel without names, of a letter of them, of a row, of a line of text, and of the rest of the height.
PANEL, LETTER, ROW, LINE, REST = 2.9, 0.07, 0.185, 0.16, 0.5
TITLE, BELOW = 36, 48  # letters in a line of text above and below a panel


def draw(results: Mapping[str, Any], path: Path, lines: Sequence[str] = ()) -> None:
    """A panel per log: its methods, the best on top, by the first metric's mean with its 95 % interval.

    Args:
      results: what `ultr.study.collect` gives. Methods without a mean are named below their panel.
      path: the file; its ending says what kind.
      lines: methods, such as the logger, whose means are drawn as thin lines through all rows of a panel too.
    """
    logs = results["logs"]
    panels = [_words(log, results) for log in logs]
    rows = max(max(len(names) for names, _, _ in panels), 4)
    letters = max((len(name) for names, _, _ in panels for name in names), default=0)
    text = max(f"{title}\n{below}".rstrip().count("\n") + 1 for _, title, below in panels)
    width = max(columns(len(logs)) * (PANEL + LETTER * letters), 6.6)
    height = math.ceil(len(logs) / columns(len(logs))) * (REST + ROW * rows + LINE * text) + 0.9
    with sheet(path, width, height) as figure:
        plot(figure, results, lines)


def plot(figure: Any, results: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
    """As `draw`, on an empty figure of matplotlib."""
    logs = results["logs"]
    across = columns(len(logs))
    # One scale: all logs are judged on the same lists.
    grid = figure.subplots(math.ceil(len(logs) / across), across, squeeze=False, sharex=True).ravel()
    legend: dict[str, Any] = {}
    for axes, log in zip(grid, logs, strict=False):
        legend |= _panel(axes, log, results, lines)
    for axes in grid[len(logs) :]:
        axes.set_visible(False)
    says = f"{results['metrics'][0]}: mean over queries with its 95 % interval"
    if {MARKS[kind][-1].format(results["baseline"]) for kind in ("differs", "alike")} & set(legend):
        says += "\n(tests are paired over queries: methods may differ though their intervals overlap)"
    figure.supxlabel(says, fontsize=10)
    order = [name for name in (*(m[-1].format(results["baseline"]) for m in MARKS.values()), *lines) if name in legend]
    if len(order) > 1 or lines:
        handles, many = [legend[name] for name in order], min(len(order), 2 * across)
        figure.legend(handles, order, loc="outside upper center", ncols=many, frameon=False, fontsize=9)


def columns(panels: int) -> int:
    """How many panels stand side by side."""
    return panels if panels <= 2 else 2 if panels == 4 else 3


def ranked(log: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """The methods of a log that have a mean, the best first; among equals, as the study names them."""
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
    """One log; gives what stands in the legend: words -> what was drawn."""
    metric, baseline = results["metrics"][0], results["baseline"]
    rows, drawn = ranked(log, metric), {}
    for i, row in enumerate(rows):
        found = row["metrics"][metric]
        mark, colour, face, words = MARKS[_kind(row, metric, baseline)]
        if None not in found["interval"]:
            axes.hlines(i, *found["interval"], color=colour, lw=1.6, zorder=2)
        (drawn[words.format(baseline)],) = axes.plot(
            found["value"], i, mark, color=colour, mfc=face, ms=5, ls="none", zorder=3
        )
    for i, name in enumerate(lines):
        means = [row["metrics"][metric]["value"] for row in rows if row["name"] == name]
        for mean in means:
            drawn[name] = axes.axvline(mean, color="#444444", lw=0.9, ls=DASHES[i % len(DASHES)], zorder=1)
    names, title, below = _words(log, results)
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


def _words(log: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """The names of the rows, the title and what stands below; the first two with the number of seeds if some lack."""
    rows, seeds = ranked(log, results["metrics"][0]), len(results["seeds"])
    counts = [len(row["seeds"]) for row in rows]
    usual = max(set(counts), key=lambda n: (counts.count(n), n), default=seeds)

    def of(n: int) -> str:
        return f" ({n} of {seeds} seeds)"

    names = [row["name"] + (of(n) if n != usual else "") for row, n in zip(rows, counts, strict=True)]
    absent = [row["name"] for row in log["methods"] if row not in rows]
    below = textwrap.fill(f"without a value: {'; '.join(absent)}", BELOW, break_on_hyphens=False) if absent else ""
    return names, textwrap.fill(log["name"] + (of(usual) if usual != seeds else ""), TITLE), below
