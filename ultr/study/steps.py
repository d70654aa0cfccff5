"""How a method of a study is trained: its model's description, steps and optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from ultr.data import ClickLog, Dataset, collapse
from ultr.rankers import Ranker
from ultr.study.settings import StudyMethod
from ultr.study.specs import COMPRESSED_TABLES
from ultr.study.tower_factory import ModelConfig
from ultr.training import adam, fit, lazy_adam, solve
from ultr.training.fitted import Fitted
from ultr.training.folded import QueryFolds
from ultr.training.optimizers import has_large_table
from ultr.training.schedule import batch_size_for, passes_per_epoch


class TrainingSteps(NamedTuple):
    """How long a method is trained: `epochs` at most, `patience` without improvement, rows per step."""

    epochs: int
    patience: int
    batch_size: int


def training_steps(method: StudyMethod, rows: int) -> TrainingSteps:
    """Computes how long a method is trained on data with so many rows.

    Its epochs and patience are meant for epochs of a hundred steps: with fewer, there are as many times more.
    """
    return steps_for(rows, epochs=method.epochs, patience=method.patience, batch_size=method.batch_size)


def steps_for(rows: int, *, epochs: int, patience: int, batch_size: int | None) -> TrainingSteps:
    """Computes how long to train on so many rows, by epochs and patience that are meant for epochs of a hundred steps.

    Args:
      batch_size: None: `batch_size_for` these rows.
    """
    size = batch_size or batch_size_for(rows)
    times = passes_per_epoch(rows, size)
    return TrainingSteps(epochs * times, patience * times, size)


def learnt_from(model: Ranker, log: ClickLog) -> Dataset:
    """Returns a log as a model learns from it: collapsed to its queries where it learns per query."""
    return collapse(log, "query") if model.sufficient_statistics == "query" else log


def model_config(method: StudyMethod, seed: int) -> ModelConfig:
    """Makes the description of a method's model."""
    return ModelConfig(
        model=method.model,
        relevance=method.relevance,
        rows=method.rows if method.relevance in COMPRESSED_TABLES else None,
        hidden=method.hidden,
        transform=method.transform,
        seed=seed,
        options=method.options,
    )


def fit_method(
    method: StudyMethod,
    model: Any,
    train: Any,
    valid: Any,
    seed: int,
    *,
    epochs: int | None = None,
    folds: QueryFolds | None = None,
) -> Fitted:
    """Trains a model with the settings of its method.

    Args:
      valid: what judges the epochs; None: nothing does.
      epochs: how many; None: those of the method, at most.
      folds: of the queries, which judge the epochs where `valid` is None.
    """
    if not method.spec.by_gradient:
        return solve(model, train, valid, method="counting")
    steps = training_steps(method, len(train))
    steps = steps if epochs is None else steps._replace(epochs=epochs)
    if has_large_table(model):
        optimizer: Any = lazy_adam(method.learning_rate, tables=method.table_rate)
    else:
        optimizer = adam(method.learning_rate, tables=method.table_rate)
    return fit(
        model, train, valid, optimizer=optimizer, seed=seed, l2=method.l2, l2_unit=method.l2_unit, progress=False,
        collapse=False, folds=folds, **steps._asdict()
    )  # fmt: skip
