"""The true examination and trust of a simulated user, as the metadata of its log has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Truth = Mapping[str, Any]


def true_examination(truth: Truth | None) -> np.ndarray | None:
    """Returns the [R] examination by rank of a simulated user; None where no single curve is true.

    There is none for users without such a curve, mixtures, users who read from the last rank upwards, and where the
    curve changes with a context or in the course of the log. Noise leaves it as it is.
    """
    return None if why_no_examination(truth) else np.asarray((truth or {})["examination"], np.float64)


def true_alpha(truth: Truth | None) -> np.ndarray | None:
    """Returns the [R] alpha by rank of a simulated user with trust bias, without noise.

    None for users without trust bias, and where no single curve is true.
    """
    trust = (truth or {}).get("trust")
    return None if trust is None or _why_several_curves(truth) else np.asarray(trust["alpha"], np.float64)


def true_affine(truth: Truth | None, examination: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes ([R] alpha, [R] beta) of the user and of the noise that was put on the clicks.

    Args:
      examination: [R] alpha of the user alone: its trust parameter, or its examination where it has no trust bias.
    """
    trust, noise = (truth or {}).get("trust", {}), (truth or {}).get("noise", {})
    flip, extra = noise.get("flip", 0.0), noise.get("random_clicks", 0.0)
    left = (1 - 2 * flip) * (1 - extra)  # the share that noise leaves of the difference that relevance makes
    beta = left * np.asarray(trust.get("beta", np.zeros(len(examination))), np.float64)
    return left * examination, beta + extra * (1 - flip) + (1 - extra) * flip


def why_no_examination(truth: Truth | None) -> str:
    """Says why no single examination by rank is true; empty where one is."""
    truth = truth or {}
    if (why := _why_several_curves(truth)) or truth.get("examination") is not None:
        return why
    return "this one has trust (alpha and beta) and none apart from it" if "trust" in truth else "this one has none"


def _why_several_curves(truth: Truth | None) -> str:
    """Says why the user's curve is not the same in all sessions; empty where it is, or where there is no curve."""
    truth = truth or {}
    if "components" in truth:
        return "this one is a mixture of users"
    if truth.get("examination") is None and "trust" not in truth:
        return ""
    if truth.get("bottom_up"):
        return "this one reads from the last rank upwards, so that its curve depends on the length of a list"
    for name, curves in {"drift": truth.get("drift", {}), **truth.get("contexts", {})}.items():
        if any(curve.get("examination") != truth.get("examination") for curve in curves.values()):
            return "that of this one drifts" if name == "drift" else f"that of this one depends on the context '{name}'"
    return ""
