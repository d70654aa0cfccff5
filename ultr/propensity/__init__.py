"""How much users examine each rank, from a click log alone, with standard errors."""

from collections.abc import Callable

from ultr.propensity.conditional import conditional_likelihood
from ultr.propensity.contextual import contextual
from ultr.propensity.joint import maximum_likelihood
from ultr.propensity.pairs import adjacent_chain, all_pairs, pivot_one, variance_weighted
from ultr.propensity.rates import ctr, randomised
from ultr.propensity.table import Propensities

# By their names on the command line.
METHODS: dict[str, Callable[..., Propensities]] = {
    "maximum-likelihood": maximum_likelihood,
    "conditional-likelihood": conditional_likelihood,
    "all-pairs": all_pairs,
    "variance-weighted": variance_weighted,
    "adjacent-chain": adjacent_chain,
    "pivot-one": pivot_one,
    "randomised": randomised,
    "ctr": ctr,
}

__all__ = [
    "METHODS",
    "Propensities",
    "adjacent_chain",
    "all_pairs",
    "conditional_likelihood",
    "contextual",
    "ctr",
    "maximum_likelihood",
    "pivot_one",
    "randomised",
    "variance_weighted",
]
