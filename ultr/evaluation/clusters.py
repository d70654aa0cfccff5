"""The independent units of standard errors: sessions, queries, or single lists."""

from __future__ import annotations

import numpy as np

from ultr.data.dataset import Dataset
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions

CLUSTERS = ("session", "query", "list")


def check_cluster(cluster: str) -> None:
    """Checks the name of a kind of independent units.

    Raises:
      ConfigError: there is none of this name.
    """
    if cluster not in CLUSTERS:
        raise ConfigError(f"unknown cluster {cluster!r}; known: {', '.join(CLUSTERS)}")


def with_units(dataset: Dataset, cluster: str) -> Dataset:
    """Returns the dataset such that `unit_ids` finds the units in its batches."""
    return dataset.with_sessions() if cluster == "session" else dataset


def unit_ids(batch: Sessions, cluster: str) -> np.ndarray | None:
    """Returns the number of the independent unit of each list [B], or None where every list is one by itself.

    Raises:
      DataError: query ids are needed and missing.
    """
    if cluster == "query" and batch.query is None:
        raise DataError("expected query ids, found none", field="query", fix='Use cluster="session"')
    ids = {"query": batch.query, "session": batch.session, "list": None}[cluster]
    return None if ids is None else np.asarray(ids)
