"""Training: the loop, its optimizers, `solve` for tables, and models on disk."""

from ultr.training.checkpoint import load, save
from ultr.training.device_data import SolverMemory
from ultr.training.fitted import Fitted, TrainedOn, Turning
from ultr.training.loop import fit
from ultr.training.optimizers import adam, mark_groups
from ultr.training.rows import RowAdagrad, RowAdam, RowSparse, lazy_adagrad, lazy_adam
from ultr.training.solver import solve, solver_methods

__all__ = [
    "Fitted",
    "RowAdagrad",
    "RowAdam",
    "RowSparse",
    "SolverMemory",
    "TrainedOn",
    "Turning",
    "adam",
    "fit",
    "lazy_adagrad",
    "lazy_adam",
    "load",
    "mark_groups",
    "save",
    "solve",
    "solver_methods",
]
