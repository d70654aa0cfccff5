"""Whether a log contradicts what a method assumes of clicks."""

from __future__ import annotations

from typing import Any

from ultr.data import ClickLog, Counts
from ultr.errors import UltrError
from ultr.propensity.goodness_of_fit import CHECKS, GoodnessOfFit, goodness_of_fit
from ultr.study.specs import MethodSpec


def fit_of(source: ClickLog | Counts) -> GoodnessOfFit | None:
    """Checks a log or its counts; None where it cannot be checked at all."""
    try:
        return goodness_of_fit(source)
    except UltrError:
        return None


def check_assumptions(spec: MethodSpec, log: ClickLog | Counts) -> dict[str, Any] | None:
    """Checks whether a log contradicts what a method assumes of clicks; None for a method that assumes nothing.

    Returns:
      The checks as JSON values (`GoodnessOfFit.to_json`), with those that the method `assumes`, and as `text` what
      fails of these, or that nothing does. Where the log cannot be checked at all, `reason` says why.
    """
    assumed = spec.assumes
    if not assumed:
        return None
    try:
        found = goodness_of_fit(log)
    except UltrError as error:
        return {"assumes": list(assumed), "reason": str(error), "text": f"Not checked whether clicks fit: {error}"}
    text = found.text() if assumed == CHECKS else found.text_for(assumed)
    return found.to_json() | {"assumes": list(assumed), "text": text}
