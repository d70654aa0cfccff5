"""Training: the loop, and models on disk."""

from ultr.training.checkpoint import load, save
from ultr.training.fit import Fitted, fit

__all__ = ["Fitted", "fit", "load", "save"]
