"""The result of `ultr train`, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultr.text import counted, ranks_text, table


def training_report(result: dict[str, Any]) -> str:
    """Writes the result of a training for people."""
    epochs, choice = result["history"], result.get("tower") or {}
    rows = [["epoch", "steps", "loss", "validation loss", "seconds"]]
    for number, epoch in enumerate(epochs, start=1):
        name = f"{epoch['epoch']:g}" + ("*" if number == result["best_judgement"] else "")
        valid = "-" if epoch["valid_loss"] is None else f"{epoch['valid_loss']:.5f}"
        steps = f"{epoch['steps']:,}" if "steps" in epoch else "-"
        rows.append([name, steps, f"{epoch['loss']:.5f}", valid, f"{epoch['seconds']:.1f}"])
    text = []
    if "values" in choice:
        text += candidates_text(choice, name=result["config"]["model"])
        if choice["judged_with"] != result["config"]["model"]:
            text.append(
                f"tower and prior were judged with {choice['judged_with']}, which learns from counts of the log"
            )
    elif choice:
        setting = ", ".join(f"{key} {value}" for key, value in choice["settings"].items())
        text.append(f"{setting}: {choice['reason']}")
    text += [table(rows), f"* best, kept in {Path(result['out'], 'model')}"]
    if "trained_on" in result:
        text.append(f"trained on {result['trained_on']['text']}")
    if "turning" in result:
        text.append(result["turning"]["text"])
    impossible = epochs[-1]["impossible"] if epochs else 0
    if impossible:
        text.append(f"{impossible:,.0f} sessions are impossible under this model and were left out of the loss")
    if "frailty" in result:
        text.append(f"standard deviation of the effect per list, in logits of relevance: {result['frailty']:.3f}")
    if "propensity" in result:
        if "examination" not in result:
            text.append(propensity_line(result["propensity"]))
        reasons: dict[str, list[int]] = {}
        for rank, reason in result["unsupported"].items():
            reasons.setdefault(reason, []).append(rank)
        text += [f"{ranks_text(ranks)}: {reason}" for reason, ranks in reasons.items()]
    if "examination" in result:
        text += ["examination by rank that the model learnt:", result["examination"]["text"]]
    text += [f"warning: {warning}" for warning in result.get("warnings", ())]
    if said := result.get("goodness_of_fit", {}).get("text"):
        text.append(said)
    return "\n".join(text)


def candidates_text(chosen: Mapping[str, Any], *, name: str) -> list[str]:
    """Writes what was chosen among candidates by folds of the queries, and what they are worth, in lines.

    Args:
      chosen: the facts of a choice (`ultr.study.automatic`, `ultr.study.tower_choice`).
      name: what to call a candidate that differs from no other.
    """
    rows = [["candidate", "gain", "standard error", "lower bound", "held-out loss", "seconds"]]
    errors = []
    for value in chosen["values"]:
        title = ", ".join(f"{key} {x}" for key, x in value["settings"].items()) or name
        if "error" in value:
            errors.append(f"{title}: not trained: {value['error']}")
            continue
        mark = "*" if value["settings"] == chosen["settings"] else ""
        part = "" if value["folds"] == chosen["folds"] else f" (given up after {counted(value['folds'], 'fold')})"
        gains = [percent(value[key]) for key in ("gain", "standard_error", "lower")]
        loss = "-" if value["loss"] is None else f"{value['loss']:.5f}"
        rows.append([title + mark + part, *gains, loss, f"{value['seconds']:.1f}"])
    text = [table(rows), f"gain: {chosen['by']}, relative to the DCG of that order; lower bound: one-sided, 90 %"]
    text += errors
    if reason := chosen.get("reason"):
        text.append(f"* chosen: {reason}")
    return text


def propensity_line(by_rank: Sequence[float | None]) -> str:
    """Writes examination by rank, relative to the first, in a line."""
    shown = ["-" if x is None or x != x else f"{x:.3f}" for x in by_rank]
    return "propensity by rank, relative to rank 1: " + " ".join(shown)


def percent(value: float | None) -> str:
    """Writes a share with its sign."""
    return "-" if value is None else f"{value:+.2%}"
