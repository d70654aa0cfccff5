"""The goodness of fit as text: which assumption fails, how far a curve can be trusted, what to train instead."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ultr.propensity.goodness_of_fit import Check, GoodnessOfFit

_TESTED = {
    "last-click": "dependence on the last click above",
    "click-above": "dependence on clicks above at all",
    "trust": "trust in high ranks",
    "noise": "clicks at random",
}
NEGLIGIBLE = 0.02  # share by which a curve may be off without a warning to train another model
_CURVES = {"ubm": "a curve that depends on the last click", "trust": "a curve with false clicks taken out"}


def check_sentence(check: Check) -> str:
    """Says what a check found."""
    if check.reason:
        return f"Not checked: {_TESTED[check.name]} ({check.reason})."
    if not check.failed:
        return f"No sign of {_TESTED[check.name]} ({chance(check)})."
    times = f"{check.effect:.2f} times" if math.isfinite(check.effect) else "not"
    if check.name == "last-click":
        return (
            "Examination depends on the last click above: the same document at the same rank is clicked "
            f"{times} as often right below the last click as farther below it ({chance(check)})."
        )
    if check.name == "click-above":
        how = "ends reading" if check.effect < 1 else "comes with more reading"
        return (
            f"A click {how}: below a click at the first rank, the same document at the same rank is clicked {times} "
            f"as often as without a click above ({chance(check)})."
        )
    why = (
        "documents are clicked for their rank, relevant or not (trust bias)"
        if check.name == "trust"
        else "there are clicks at every rank that have nothing to do with relevance (noise)"
    )
    at = f"at rank {check.rank}, relative to the top, that of the least relevant is {times} that of the most relevant"
    return f"The curve is not the same for all documents: {at} ({chance(check)}). So it is where {why}."


def chance(check: Check) -> str:
    """Formats the adjusted p-value of a check."""
    return "adjusted p < 0.0001" if check.adjusted < 1e-4 else f"adjusted p = {check.adjusted:.4f}"


def verdict_lines(found: GoodnessOfFit) -> list[str]:
    """Says whether the position-based model fits a log, and what follows where it does not."""
    withheld = [check.sentence for check in found.checks if check.reason]
    if found.fits is None:
        reasons = dict.fromkeys(check.reason for check in found.checks)
        return [f"Whether the position-based model fits cannot be checked: {'; '.join(reasons)}."]
    if found.fits:
        made = [check.adjusted for check in found.checks if not check.reason]
        checks = f"{len(made)} of {len(found.checks)} checks" if withheld else "all checks"
        fits = f"The position-based model fits as far as {checks} can tell (smallest adjusted p {min(made):.2f})."
        weakest = max((check for check in found.checks if not check.reason), key=lambda check: check.noticed)
        power = (
            f"In a log of this size, misfits that change examination by less than about {weakest.noticed - 1:.0%} "
            f"may be missed ({_TESTED[weakest.name]} is the hardest to see)."
        )
        return [fits, power, *withheld]
    failed = [check.sentence for check in found.checks if check.failed]
    advice = _advice(found.models)
    if not found.cascade and found.off is not None and abs(found.off[0]) < NEGLIGIBLE:
        advice = f"To predict clicks, --model {found.models[0]} may do better."
    return ["The position-based model does not fit this log.", *failed, _trust(found), advice, *withheld]


def model_lines(found: GoodnessOfFit, checks: Collection[str]) -> list[str]:
    """Says which assumptions of a model fail; nothing where none does.

    Args:
      checks: those whose assumptions the model makes.
    """
    failed = [check for check in found.checks if check.failed and check.name in checks]
    if not failed:
        return []
    head = "The clicks do not fit what this model assumes."
    return [head, *(check.sentence for check in failed), _advice(found.models)]


def _trust(found: GoodnessOfFit) -> str:
    """Says how far a curve of the position-based model can be trusted."""
    if found.cascade:
        return (
            "So it is where a satisfying click ends reading: how far a user reads then depends on the documents above, "
            "no curve by rank can be trusted, and `ultr propensity` withholds it. So it is, too, where users differ in "
            "how far they read: --context gives each kind of them a curve."
        )
    if found.impossible or found.off is None:
        return "How far the curve is off cannot be estimated: `ultr propensity` withholds its intervals."
    others = " and ".join(_CURVES[other.model] for other in found.alternatives)
    (off, rank), curve = found.off, found.curve
    there = f"{others} has {curve[rank - 1] * (1 + off):.3f} there in place of {curve[rank - 1]:.3f}"
    if abs(off) < NEGLIGIBLE:
        return (
            f"That hardly matters to the curve, which is off by {abs(off):.1%} at most, at rank {rank}: {there}. "
            "It can be used, and the model kept."
        )
    return (
        f"The curve may be off by {abs(off):.0%}, most at rank {rank}: {there}. `ultr propensity` widens its intervals "
        "to hold both."
    )


def _advice(models: Collection[str]) -> str:
    """Says what to train."""
    first, *others = models
    if first == "ubm" and others:
        return f"Train with --model ubm; false clicks need --model {others[0]}, and no one model has both."
    return f"Train with --model {first}" + (f" (or {', '.join(others)})." if others else ".")
