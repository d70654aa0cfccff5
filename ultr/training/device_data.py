"""The data of `solve`: what tables read of it, in blocks that stay on the device from one pass to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from ultr import stopping
from ultr.data import ClickLog, Dataset
from ultr.data.dataset import DatasetLike
from ultr.data.input_schema import InputSchema
from ultr.data.remembered import counts_of
from ultr.errors import ConfigError
from ultr.models import LatentVariableModel
from ultr.sessions import Sessions
from ultr.towers import InputCheck, ShownRanks, matched, read_feature
from ultr.training.feed import BLOCK_SESSIONS, BatchBlock, largest_indices, one_pass
from ultr.training.inputs import count_rows, session_sums, training_data


@dataclasses.dataclass(frozen=True)
class SolverMemory:
    """Sizes of the pieces into which `solve` cuts its data; but for rounding, the result does not depend on them.

    Attributes:
      batch_rows: rows per batch, what a CPU's cache holds.
      block_sessions: about how many sessions are handed to the device at a time.
      device_bytes: data that needs more than this on the device is read again in every pass.
      float64_entries: tables of up to so many entries are summed in float64.
    """

    batch_rows: int = 1 << 13
    block_sessions: int = BLOCK_SESSIONS
    device_bytes: int = 1 << 31
    float64_entries: int = 1 << 12


class DeviceData(Dataset):
    """Streams the fields that a model's tables read, and keeps the blocks of a pass on the device.

    A log is collapsed first where the model's likelihood depends on counts only.

    Args:
      model: decides which data suffice, and which ids are too large.
      features: names of the features that its tables read.
      given: a log, its counts, or sessions in memory.
      name: what to call the data in errors.
      memory: how the data is cut into pieces.
      schema: names of the features of the model; None: what it says itself.

    Raises:
      ConfigError: counts that are not enough for the model.
      DataError: there are no sessions.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        features: set[str],
        given: DatasetLike,
        name: str,
        memory: SolverMemory,
        schema: InputSchema | None = None,
    ) -> None:
        self._model, self._features, self._name, self.memory = model, features, name, memory
        data = self._collapsed(training_data(given, model, name))
        self._data = matched(model, data, name=name, schema=schema)
        self._rows = count_rows(self._data, name)
        self._blocks: list[BatchBlock] | None = None
        self.shown = ShownRanks(model)

    def _collapsed(self, data: Dataset) -> Dataset:
        needed = self._model.sufficient_statistics
        if isinstance(data, ClickLog) and needed in ("rank", "last-click") and self._features <= {"document"}:
            if not data.metadata["impression_features"]:  # which counts cannot have, and no table reads
                return counts_of(data, "rank" if needed == "rank" else "last-click")
        return data

    @property
    def input_schema(self) -> InputSchema | None:
        """The names of the features of the data."""
        return self._data.input_schema

    def blocks(self) -> Iterator[BatchBlock]:
        """Passes over the data once.

        Raises:
          ConfigError: there are no clicks, a feature that a table reads is missing, or the model needs whole lists.
          DataError: an id or rank beyond a table.
        """
        stopping.check()
        if self._blocks is not None:
            yield from self._blocks
            return
        held: list[BatchBlock] = []
        size = 0
        bounds = InputCheck(self._model, self._data, source=self._name, largest=largest_indices(self._data))

        def check(batch: Sessions) -> None:
            bounds(batch)
            self.shown.add(batch)

        for block in one_pass(
            self,
            self.memory.batch_rows,
            seed=None,
            length=self._rows,
            rank_first=True,
            check=check,
            put=jax.device_put,
            block_sessions=self.memory.block_sessions,
        ):
            size += sum(x.nbytes for x in jax.tree.leaves(block.batches))
            if size <= self.memory.device_bytes:
                held.append(block)
            else:
                held.clear()
            yield block
        if size <= self.memory.device_bytes:
            self._blocks = held

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Streams the batches of the data without what no table reads."""
        for batch in self._data.batches(batch_size, seed=seed, share_features=True):
            if batch.clicks is None:
                raise ConfigError(f"{self._name}: a click likelihood needs clicks; these sessions have none")
            if batch.last_click is not None and self._model.sufficient_statistics == "list":
                raise ConfigError(
                    f"{self._name}: {type(self._model).__name__} needs whole lists; these rows are single documents. "
                    "Collapse the log with sufficient_statistics='list', or use it as it is"
                )
            for name in self._features - batch.features.keys():
                read_feature(batch, name, "DocumentTable")  # which raises
            features = {name: batch.features[name] for name in self._features}
            yield batch.replace(features=features, labels=None, query=None)

    def session_sums(self, sums: np.ndarray) -> tuple[float, float, float]:
        """Turns the sums of a pass into loss, sessions counted and impossible sessions (`inputs.session_sums`)."""
        unusable = "the log-likelihood is {}. Start from a model with finite logits"
        return session_sums(sums, self._name, self._data.description.rows_per_session, if_not_finite=unusable)
