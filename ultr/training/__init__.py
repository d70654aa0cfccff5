"""Training: the loop, and models on disk."""

from ultr.training.checkpoint import load, save
from ultr.training.loop import Fitted, fit
from ultr.training.optimizers import adam

__all__ = ["Fitted", "adam", "fit", "load", "save"]
