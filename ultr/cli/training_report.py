"""The result of `ultr train`, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultr.text import ranks_text, table


def training_report(result: dict[str, Any]) -> str:
    """Writes the result of a training for people."""
    epochs = result["history"]
    rows = [["epoch", "steps", "loss", "validation loss", "seconds"]]
    for number, epoch in enumerate(epochs, start=1):
        name = f"{epoch['epoch']:g}" + ("*" if number == result["best_judgement"] else "")
        valid = "-" if epoch["valid_loss"] is None else f"{epoch['valid_loss']:.5f}"
        steps = f"{epoch['steps']:,}" if "steps" in epoch else "-"
        rows.append([name, steps, f"{epoch['loss']:.5f}", valid, f"{epoch['seconds']:.1f}"])
    text = [table(rows), f"* best, kept in {Path(result['out'], 'model')}"]
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
        shown = ["-" if x is None or x != x else f"{x:.3f}" for x in result["propensity"]]
        text.append("propensity by rank, relative to rank 1: " + " ".join(shown))
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
