"""Models made ready for evaluation: compiled where they are Flax modules, called as they are otherwise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from ultr import stopping
from ultr.arguments import check_count
from ultr.data.dataset import Dataset, DatasetLike, as_dataset
from ultr.data.input_schema import InputMatch
from ultr.errors import ConfigError, DataError
from ultr.evaluation.contracts import PredictedClicks, Scorer
from ultr.models import ClickModel
from ultr.sessions import Array, Sessions
from ultr.towers import InputCheck, check_bounds, input_match
from ultr.towers.base import still

PROGRAMS = 48  # functions of models that stay compiled


class CompiledModel:
    """Applies functions of (model, batch) to batches, compiled once per shape where the model is a Flax module.

    A copy of a Flax module is used, with dropout and the like switched off. Any other model is called as it is, with
    NumPy batches.

    Attributes:
      model: the model that was given.
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self._match: InputMatch | None = None
        self._check: InputCheck | None = None
        self._split: tuple[Any, Any] | None = None
        if isinstance(model, nnx.Module):
            self._split = nnx.split(still(model))

    def on(self, data: Dataset, *, name: str = "evaluation data") -> CompiledModel:
        """Returns the same model for the batches of a dataset, whose features it finds by name.

        Raises:
          DataError: the dataset lacks a feature or context that the model was trained on; names both lists.
        """
        bound = copy.copy(self)
        bound._match = input_match(self.model, data, name=name)
        if isinstance(self.model, nnx.Module):
            bound._check = InputCheck(self.model, data, source=name)
        return bound

    @property
    def documents(self) -> tuple[int, int] | None:
        """Returns how many documents of the dataset were found by name and how many are unknown; None: by id.

        Where none was found, the model reads no documents.
        """
        found = None if self._match is None else self._match.documents
        return found if found is not None and found[0] else None

    def matched(self, batch: Sessions) -> Sessions:
        """Returns a batch of the dataset with the features and ids of the model."""
        return batch if self._match is None else self._match.apply(batch)

    def __call__(self, function: Callable[..., Any], batch: Sessions, *options: Hashable) -> Any:
        """Computes `function(model, batch, *options)`; a function is compiled once for each value of the options.

        Raises:
          DataError: an id or a rank beyond the tables of the model.
        """
        stopping.check()
        batch = self.matched(batch)
        if self._split is None or not isinstance(self.model, nnx.Module):
            return function(self.model, batch, *options)
        # Scores do not depend on positions, so lists of candidates may be longer than the tables over ranks.
        check = self._check or partial(check_bounds, self.model, source="evaluation data")
        check(batch.unbiased() if function is _scores else batch)
        return _compiled(function, self._split[0], options)(self._split[1], batch)

    def scores(self, batch: Sessions) -> np.ndarray:
        """Computes the scores [B, K] of the documents.

        Raises:
          ConfigError: the model has no method `score`, or it returns another shape.
          DataError: a document is scored as NaN, or has an id beyond the tables of the model.
        """
        if not isinstance(self.model, Scorer):
            found = repr(self.model) if isinstance(self.model, str) else type(self.model).__name__
            raise ConfigError(
                f"expected a model with score(sessions), found {found}, which has none. Open a saved one with "
                "ultr.training.load"
            )
        scores = np.asarray(self(_scores, batch))
        _check_scores(scores, np.asarray(batch.mask), batch.query)
        return scores

    def predicts_clicks(self, batch: Sessions) -> bool:
        """Tells whether calling the model gives a distribution over clicks; a Flax module is traced and not run."""
        if isinstance(self.model, ClickModel):
            return True
        if not callable(self.model):
            return False
        batch = self.matched(batch)
        if self._split is None:
            return isinstance(self.model(batch), PredictedClicks)
        graph, state = self._split
        found: list[bool] = []
        jax.eval_shape(lambda s, b: found.append(isinstance(nnx.merge(graph, s)(b), PredictedClicks)), state, batch)
        return found[0]


@functools.lru_cache(maxsize=PROGRAMS)
def _compiled(function: Callable[..., Any], graph: Any, options: tuple[Hashable, ...]) -> Callable[..., Any]:
    """Compiles a function for models of one structure; those used last are found again, older ones are let go of."""

    def apply(state: Any, batch: Sessions) -> Any:
        return function(nnx.merge(graph, state), batch, *options)

    return jax.jit(apply)


def _scores(model: Scorer, batch: Sessions) -> Array:
    return model.score(batch)


def _check_scores(scores: np.ndarray, mask: np.ndarray, query: Array | None) -> None:
    if scores.shape != mask.shape:
        raise ConfigError(f"the model's score: expected [B, K] = {mask.shape}, found {scores.shape}")
    bad = (np.isnan(scores) & mask).any(1)
    if bad.any():
        first = "" if query is None else f", first in query {np.asarray(query)[bad][0]}"
        raise DataError(
            f"the model scores documents of {bad.sum()} lists as NaN{first}",
            fix="Its parameters or the features are not finite: check them, or lower the learning rate",
        )


def evaluation_data(given: DatasetLike, batch_size: int) -> tuple[Dataset, int]:
    """Makes a dataset of what is given, with a batch size no larger than sessions in memory.

    Raises:
      ConfigError: no dataset, or a batch size that is no whole number of at least 1.
    """
    batch_size = check_count("batch_size", batch_size)
    data = as_dataset(given)
    return data, max(1, min(batch_size, len(data))) if isinstance(given, Sessions) else batch_size


def fitted_batch_size(batch_size: int, data: Dataset) -> int:
    """Returns a batch size no larger than the dataset, rounded up to a power of two, since batches are padded."""
    rows = len(data)
    return min(batch_size, 1 << max(rows - 1, 0).bit_length())
