"""How much users examine each rank, estimated from a click log alone, with standard errors."""

from ultr.propensity.click_rates import ctr, randomised
from ultr.propensity.conditional import conditional_likelihood
from ultr.propensity.contexts import contextual
from ultr.propensity.estimators import ESTIMATORS, EstimatorSpec
from ultr.propensity.goodness_of_fit import Check, GoodnessOfFit, goodness_of_fit
from ultr.propensity.harvesting import adjacent_chain, all_pairs, pivot_one, variance_weighted
from ultr.propensity.joint import maximum_likelihood
from ultr.propensity.propensities import Propensities

__all__ = [
    "ESTIMATORS",
    "Check",
    "EstimatorSpec",
    "GoodnessOfFit",
    "Propensities",
    "adjacent_chain",
    "all_pairs",
    "conditional_likelihood",
    "contextual",
    "ctr",
    "goodness_of_fit",
    "maximum_likelihood",
    "pivot_one",
    "randomised",
    "variance_weighted",
]
