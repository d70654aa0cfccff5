"""How a method of a study is trained: its model's description, steps and optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from ultr.study.settings import StudyMethod
from ultr.study.specs import COMPRESSED_TABLES
from ultr.study.tower_factory import ModelConfig
from ultr.training import adam, fit, lazy_adam
from ultr.training.loop import Fitted, has_large_table

STEPS_PER_EPOCH = 100  # at least, where the log allows
BATCH_SIZES = (64, 2048)


class TrainingSteps(NamedTuple):
    """How long a method is trained: `epochs` at most, `patience` without improvement, rows per step."""

    epochs: int
    patience: int
    batch_size: int


def training_steps(method: StudyMethod, rows: int) -> TrainingSteps:
    """Computes how long a method is trained on data with so many rows.

    Its epochs and patience are meant for epochs of a hundred steps: with fewer, there are as many times more.
    """
    size = method.batch_size or batch_size_for(rows)
    times = -(-STEPS_PER_EPOCH // max(-(-rows // size), 1))
    return TrainingSteps(method.epochs * times, method.patience * times, size)


def batch_size_for(rows: int) -> int:
    """Computes a batch size, a power of two from 64 to 2,048, that gives an epoch a hundred steps or more."""
    least, most = BATCH_SIZES
    return min(max(1 << (max(rows // STEPS_PER_EPOCH, 1).bit_length() - 1), least), most)


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
    method: StudyMethod, model: Any, train: Any, valid: Any, seed: int, *, epochs: int | None = None
) -> Fitted:
    """Trains a model with the settings of its method.

    Args:
      valid: what judges the epochs; None: nothing does.
      epochs: how many; None: those of the method, at most.
    """
    steps = training_steps(method, len(train))
    steps = steps if epochs is None else steps._replace(epochs=epochs)
    if has_large_table(model):
        optimizer: Any = lazy_adam(method.learning_rate, tables=method.table_rate)
    else:
        optimizer = adam(method.learning_rate, tables=method.table_rate)
    return fit(
        model, train, valid, optimizer=optimizer, seed=seed, l2=method.l2, progress=False, **steps._asdict()
    )  # fmt: skip
