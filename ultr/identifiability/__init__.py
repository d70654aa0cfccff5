"""What a click log can tell about examination, before training; whether a trained model agrees with it, after."""

from ultr.identifiability.agreement import Agreement, agreement
from ultr.identifiability.report import Report, report
from ultr.identifiability.swaps import Swap, SwapPlan

__all__ = ["Agreement", "Report", "Swap", "SwapPlan", "agreement", "report"]
