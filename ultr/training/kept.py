"""A source for `solve`: what tables read of it, in blocks that stay on the device from one pass to the next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from ultr.data import ClickLog, collapse
from ultr.errors import ConfigError
from ultr.models import CoinModel
from ultr.sessions import Sessions, Source, Stream
from ultr.towers import check
from ultr.towers.tables import read
from ultr.training.feed import Block, blocks, bounds
from ultr.training.sources import as_source, count_rows, per_session

ROWS = 1 << 13  # per batch: what a CPU's cache holds
KEPT_BYTES = 1 << 31  # a source that needs more than this is read again in every pass


class Kept:
    """The blocks of a source; a log is collapsed first where the model's likelihood depends on counts only.

    Args:
      model: decides which sources suffice, and which ids are too large.
      features: what its tables read.
      given: a log, its counts, or sessions in memory.
      name: what to call it in errors.

    Raises:
      ConfigError: counts that are not enough for the model.
      DataError: there are no sessions.
    """

    def __init__(self, model: CoinModel, features: set[str], given: Source | Sessions, name: str) -> None:
        self._model, self._features, self._name = model, features, name
        self._source = self._collapsed(as_source(given, model, name))
        self._rows = count_rows(self._source, name)
        self._rows_per_session = self._source.rows_per_session
        self._blocks: list[Block] | None = None

    def _collapsed(self, source: Stream) -> Stream:
        by = self._model.statistics
        if isinstance(source, ClickLog) and by in ("rank", "last-click") and self._features <= {"document"}:
            if not source.metadata["impression_features"]:  # which counts cannot have, and no table reads
                return collapse(source, "rank" if by == "rank" else "last-click")
        return source

    def __iter__(self) -> Iterator[Block]:
        """One pass.

        Raises:
          ConfigError: there are no clicks, not what a table reads, or no whole lists where the model needs them.
          DataError: an id or rank beyond a table.
        """
        if self._blocks is not None:
            yield from self._blocks
            return
        held: list[Block] = []
        size = 0
        look = partial(check, self._model, source=self._name, largest=bounds(self._source))
        for block in blocks(self, ROWS, seed=None, length=self._rows, rank_first=True, look=look, put=jax.device_put):
            size += sum(x.nbytes for x in jax.tree.leaves(block.batches))
            if size <= KEPT_BYTES:
                held.append(block)
            else:
                held.clear()
            yield block
        if size <= KEPT_BYTES:
            self._blocks = held

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """The source's, without what no table reads."""
        for batch in self._source.lean(batch_size, seed=seed):
            if batch.clicks is None:
                raise ConfigError(f"{self._name}: a click likelihood needs clicks; these sessions have none")
            if batch.last_click is not None and self._model.statistics == "list":
                raise ConfigError(
                    f"{self._name}: {type(self._model).__name__} needs whole lists; these rows are single documents. "
                    "Collapse the log by='list', or use it as it is"
                )
            for name in self._features - batch.features.keys():
                read(batch, name, "DocumentTable")  # which raises
            features = {name: batch.features[name] for name in self._features}
            yield batch.replace(features=features, labels=None, query=None)  # type: ignore[attr-defined]

    def per_session(self, sums: np.ndarray) -> tuple[float, float, float]:
        """`ultr.training.sources.per_session` of the sums of a pass."""
        unusable = "the log-likelihood is {}. Start from a model with finite logits"
        return per_session(sums, self._name, self._rows_per_session, if_not_finite=unusable)
