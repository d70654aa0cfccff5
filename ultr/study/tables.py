"""Writes the results of a study as Markdown, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ultr.text import markdown_table

LEGEND = (
    "Intervals are 95 % over queries, each averaged over the seeds first; differences and shares of the gap are over "
    "the seeds that both have; p-values are adjusted by Holm over a log's methods."
)


def results_markdown(results: Mapping[str, Any]) -> str:
    """Writes the tables of each log, and notes below them.

    Args:
      results: what `ultr.study.collect_results` returns.
    """
    lines: list[str] = []
    for log in results["logs"]:
        lines += [f"## {log['name']}", "", *_about(log["about"]), *_ranking(results, log), *_learning(results, log)]
        lines += _notes(log)
    if results["missing"]:
        lines += [f"Not made yet: {len(results['missing'])} runs, such as {results['missing'][0]}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _number(x: Any, form: str = ".4f") -> str:
    return "-" if x is None else format(x, form)


def _span(interval: Sequence[Any], form: str = ".4f") -> str:
    return "-" if None in interval else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _about(about: Mapping[str, Any]) -> list[str]:
    if not about:
        return []
    text = [f"{_number(about.get('sessions'), ',.0f')} sessions, {_number(about.get('clicks'), ',.0f')} clicks"]
    said = about.get("diagnosis")
    if said:
        text.append(_diagnosis(said))
        text += _misfit(said)
    if lowest := about.get("lowest"):
        text.append("lowest possible: " + ", ".join(f"{name} {_number(x)}" for name, x in lowest.items()))
    return [". ".join(x[0].upper() + x[1:] for x in text) + ".", ""]


def _diagnosis(said: Mapping[str, Any]) -> str:
    seeds, yes = len(said["identified"]), sum(said["identified"])
    if not seeds:
        return f"before training, the diagnosis failed: {'; '.join(said['errors'])}"
    if not yes:
        parts = "; ".join(", ".join(map(str, ranks)) for ranks in said["components"] or [])
        return f"before training, the diagnosis says: not identified (ranks compared: {parts})"
    error = said["worst_standard_error"]
    known = "" if error is None else f", the worst rank at best to {error:.1%}"
    part = "" if yes == seeds else f" in {yes} of {seeds} seeds"
    return f"before training, the diagnosis says: propensities are identified{part}{known}"


def _misfit(said: Mapping[str, Any]) -> list[str]:
    """Says in how many seeds clicks contradict the position-based model, by which checks."""
    found = said.get("misfit") or []
    failed = [names for names in found if names]
    if not failed:
        return []
    checks = ", ".join(dict.fromkeys(name for names in failed for name in names))
    part = "" if len(failed) == len(found) else f" in {len(failed)} of {len(found)} seeds"
    models = f"; models that allow for it: {', '.join(said['models'])}" if said.get("models") else ""
    return [f"clicks do not fit the position-based model{part} (checks that fail: {checks}{models})"]


def _ranking(results: Mapping[str, Any], log: Mapping[str, Any]) -> list[str]:
    """Tabulates how well each method ranks, against the baseline, the logger and the reference."""
    rows, metrics, baseline = log["methods"], results["metrics"], results["baseline"]
    if not any("metrics" in row for row in rows):
        return []
    several = len(results["seeds"]) > 1
    compared, gaps = (any(row.get(key) for row in rows) for key in ("difference", "gap_closed"))
    head = ["method"]
    for metric in metrics:
        head += [metric, "95 %"]
    head += ["seeds ±"] * several
    head += [f"- {baseline}", "p (t)", "p (randomisation)"] * compared
    head += ["gap closed", "95 %"] * gaps
    out = [head]
    for row in rows:
        found = row.get("metrics", {})
        of = f" ({len(row['seeds'])} of {len(results['seeds'])} seeds)"
        cells = [row["name"] + (of if 0 < len(row["seeds"]) < len(results["seeds"]) else "")]
        for metric in metrics:
            cells += [_number(found[metric]["value"]), _span(found[metric]["interval"])] if found else ["-", "-"]
        cells += [_number(found.get(metrics[0], {}).get("seed_deviation"))] * several
        cells += _difference(row, metrics[0]) if compared else []
        gap = row.get("gap_closed") or {"value": None, "interval": [None, None]}
        cells += [_number(gap["value"], ".0%"), _span(gap["interval"], ".0%")] if gaps else []
        out.append(cells)
    return [markdown_table(out), ""]


def _learning(results: Mapping[str, Any], log: Mapping[str, Any]) -> list[str]:
    """Tabulates what each method learnt about examination and clicks, what its weights did, and how long it took."""
    rows = [row for row in log["methods"] if row.get("seconds") or row.get("errors")]
    errors, clicks, weights = (any(row.get(key) for row in rows) for key in ("propensity_error", "clicks", "weighting"))
    head = ["method"]
    head += ["examination off by: mean", "max"] * errors
    head += ["perplexity", "conditional"] * clicks
    head += ["effective sample size", "clipped", "affected"] * weights
    out = [[*head, "epochs", "seconds"]]
    for row in rows:
        found = row.get("propensity_error") or {}
        cells = [row["name"], *([_number(found.get(key), ".3f") for key in ("mean", "max")] if errors else [])]
        found = row.get("clicks") or {}
        cells += [_number(found.get(key)) for key in ("perplexity", "conditional_perplexity")] if clicks else []
        found = row.get("weighting") or {}
        if weights:
            cells.append(_number(found.get("effective_sample_size"), ",.0f"))
            cells += [_number(found.get(key), ".0%") for key in ("clipped", "affected")]
        failed = not row["seeds"] and row.get("errors")
        cells += [_number(row.get("epochs"), ".0f"), "failed" if failed else _number(row.get("seconds"), ".1f")]
        out.append(cells)
    return [markdown_table(out), ""] if rows else []


def _difference(row: Mapping[str, Any], metric: str) -> list[str]:
    found = row.get("difference", {}).get(metric)
    if found is None:
        return ["-", "-", "-"]
    return [f"{found['difference']['value']:+.4f}", *(_p(found[f"holm_{test}"]) for test in ("t", "randomisation"))]


def _p(p: float | None) -> str:
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def _notes(log: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in log["methods"]:
        for error in row.get("errors", ()):
            lines.append(f"- {row['name']} failed: {error}")
        for note in row.get("notes", ()):
            lines.append(f"- {row['name']}: {note}")
        if gap := row.get("gap_closed"):
            if gap.get("reason"):
                lines.append(f"- {row['name']}: no share of the gap: {gap['reason']}")
    return [*lines, ""] if lines else []
