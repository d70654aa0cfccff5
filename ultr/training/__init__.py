"""Training: the loop, its optimizers, `solve` for tables, and models on disk."""

from ultr.training.checkpoint import load, save
from ultr.training.loop import Fitted, fit
from ultr.training.optimizers import adam
from ultr.training.rows import RowAdagrad, RowAdam, RowSparse, lazy_adagrad, lazy_adam
from ultr.training.solve import solve

__all__ = [
    "Fitted",
    "RowAdagrad",
    "RowAdam",
    "RowSparse",
    "adam",
    "fit",
    "lazy_adagrad",
    "lazy_adam",
    "load",
    "save",
    "solve",
]
