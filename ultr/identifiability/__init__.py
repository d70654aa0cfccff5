"""What a click log can tell about examination, before training; whether a trained model agrees with it, after."""

from ultr.identifiability.candidates import CandidateReport, diagnose_candidates
from ultr.identifiability.curve_agreement import Agreement, agreement
from ultr.identifiability.diagnosis import Report, report
from ultr.identifiability.examination_interval import examination_interval
from ultr.identifiability.feature_support import support_of
from ultr.identifiability.swap_plan import Swap, SwapPlan
from ultr.propensity.goodness_of_fit import GoodnessOfFit, goodness_of_fit

__all__ = [
    "Agreement",
    "CandidateReport",
    "GoodnessOfFit",
    "Report",
    "Swap",
    "SwapPlan",
    "agreement",
    "diagnose_candidates",
    "examination_interval",
    "goodness_of_fit",
    "report",
    "support_of",
]
