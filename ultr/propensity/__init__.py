"""How much users examine each rank, from a click log alone, with standard errors."""

from ultr.propensity.joint import maximum_likelihood
from ultr.propensity.table import Propensities

__all__ = ["Propensities", "maximum_likelihood"]
