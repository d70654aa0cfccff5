"""Which assumptions of the position-based model a method makes, and whether a log contradicts them."""

from __future__ import annotations

from typing import Any

from ultr.data import ClickLog
from ultr.errors import UltrError
from ultr.propensity.goodness_of_fit import CASCADES, CHECKS, CLICK_ABOVE, LAST_CLICK, NOISE, TRUST, goodness_of_fit
from ultr.study.specs import MethodSpec

ABOVE, UNEXPLAINED = (LAST_CLICK, CLICK_ABOVE), (TRUST, NOISE)

# Class that is trained -> the checks of `ultr.propensity.goodness_of_fit` whose failure contradicts it.
_ASSUMED: dict[str, tuple[str, ...]] = {
    "PBM": CHECKS,
    "DLA": CHECKS,
    "RegressionEM": CHECKS,
    "TrustPBM": ABOVE,
    "AdditivePBM": ABOVE,
    "AdditiveListwise": ABOVE,
    "AdversarialTwoTower": ABOVE,
    "PositionWeighted": ABOVE,
    "UBM": (CASCADES, *UNEXPLAINED),
}


def assumed_checks(spec: MethodSpec) -> tuple[str, ...]:
    """Lists the checks whose failure contradicts what a method assumes of clicks; none for one that assumes nothing.

    A method that is given propensities assumes what their estimators assume, one with trust parameters that clicks do
    not depend on clicks above.
    """
    if {"propensity", "ranks"} & set(spec.needs):
        return CHECKS
    if "affine" in spec.needs:
        return ABOVE
    return _ASSUMED.get(spec.makes.rpartition(".")[2], ())


def check_assumptions(spec: MethodSpec, log: ClickLog) -> dict[str, Any] | None:
    """Checks whether a log contradicts what a method assumes of clicks; None for a method that assumes nothing.

    Returns:
      The checks as JSON values (`GoodnessOfFit.to_json`), with those that the method `assumes`, and as `text` what
      fails of these, or that nothing does. Where the log cannot be checked at all, `reason` says why.
    """
    assumed = assumed_checks(spec)
    if not assumed:
        return None
    try:
        found = goodness_of_fit(log)
    except UltrError as error:
        return {"assumes": list(assumed), "reason": str(error), "text": f"Not checked whether clicks fit: {error}"}
    text = found.text() if assumed == CHECKS else found.text_for(assumed)
    return found.to_json() | {"assumes": list(assumed), "text": text}
