"""Calling models: compiled where they are Flax modules, as they are where they come from elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from typing import Any

import jax
import numpy as np
from flax import nnx

from ultr.data.dataset import BatchSource as Source
from ultr.errors import ConfigError, DataError
from ultr.models import ClickModel
from ultr.sessions import Sessions
from ultr.towers import check_bounds


class Caller:
    """Calls functions of (model, batch), compiled once per shape where the model is a Flax module.

    Dropout and the like are switched off; what is no `nnx.Module` is called as it is, with NumPy batches.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._split: tuple[Any, Any] | None = None
        if isinstance(model, nnx.Module):
            copy = nnx.merge(*nnx.split(model))
            copy.eval()
            self._split = nnx.split(copy)

    def __call__(self, function: Callable[..., Any], batch: Sessions, *options: bool) -> Any:
        if self._split is None:
            return function(self.model, batch, *options)
        # Scores see no positions, so lists of candidates may be longer than the tables over ranks.
        check_bounds(self.model, batch.unbiased() if function is _scores else batch, source="evaluation data")
        return _compiled(function, self._split[0], options, self._split[1], batch)

    def scores(self, batch: Sessions) -> np.ndarray:
        """[B, K] scores of the documents.

        Raises:
          ConfigError: no method `score`, or scores of another shape.
          DataError: NaN for a document, or an id beyond the model's tables.
        """
        if not callable(getattr(self.model, "score", None)):
            what = repr(self.model) if isinstance(self.model, str) else type(self.model).__name__
            raise ConfigError(
                f"expected a model with score(sessions), found {what}, which has none. Open a saved one with "
                "ultr.training.load"
            )
        scores = np.asarray(self(_scores, batch))
        _check_scores(scores, np.asarray(batch.mask), batch.query)
        return scores

    def is_click_model(self, batch: Sessions) -> bool:
        """Whether calling the model gives a click distribution (traced only, where it can be)."""
        if isinstance(self.model, ClickModel):
            return True
        if self._split is None:
            return _is_distribution(self.model(batch))
        graph, state = self._split
        found: list[bool] = []
        jax.eval_shape(lambda s, b: found.append(_is_distribution(nnx.merge(graph, s)(b))), state, batch)
        return found[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(function: Callable[..., Any], graph: Any, options: tuple[bool, ...], state: Any, batch: Sessions) -> Any:
    return function(nnx.merge(graph, state), batch, *options)


def _scores(model: Any, batch: Sessions) -> Any:
    return model.score(batch)


def _is_distribution(x: Any) -> bool:
    return all(callable(getattr(x, name, None)) for name in ("conditional", "marginal", "log_prob"))


def _check_scores(scores: np.ndarray, mask: np.ndarray, query: Any) -> None:
    if scores.shape != mask.shape:
        raise ConfigError(f"the model's score: expected [B, K] = {mask.shape}, found {scores.shape}")
    bad = (np.isnan(scores) & mask).any(1)
    if bad.any():
        first = "" if query is None else f", first in query {np.asarray(query)[bad][0]}"
        raise DataError(
            f"the model scores documents of {bad.sum()} lists as NaN{first}",
            fix="Its parameters or the features are not finite: check them, or lower the learning rate",
        )


def fitting(batch_size: int, source: Source) -> int:
    """A batch size for a source: no larger than it, up to a power of two, since batches are filled up with padding."""
    rows = len(source) if isinstance(source, Sized) else batch_size
    return min(batch_size, 1 << max(rows - 1, 0).bit_length())
