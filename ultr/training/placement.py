"""Where training puts its arrays: on one device, or split over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ultr.errors import ConfigError
from ultr.training.feed import StackedBatches


def placement(
    mesh: Mesh | None, batch_size: int, rank_first: bool
) -> tuple[Callable[[Any], Any], Callable[[StackedBatches], StackedBatches]]:
    """Returns functions that place the state (on every device) and stacked batches (split over their rows).

    Raises:
      ConfigError: a batch size that the devices do not share evenly.
    """
    if mesh is None:
        return (lambda tree: tree), jax.device_put
    if batch_size % mesh.size:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the mesh's {mesh.size} devices")
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(batches: StackedBatches) -> StackedBatches:
        def rows(x: np.ndarray) -> NamedSharding:
            lead = (None, None) if rank_first and x.ndim > 2 else (None,)
            return NamedSharding(mesh, PartitionSpec(*lead, mesh.axis_names[0]))

        placed: StackedBatches = jax.device_put(batches, jax.tree.map(rows, batches))
        return placed

    return (lambda tree: jax.device_put(tree, everywhere)), put
