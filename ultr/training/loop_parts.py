"""Parts of the training loop that stand on their own: sums of an epoch, facts of the data, interruptions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from ultr.data.dataset import Dataset
from ultr.locks import locked
from ultr.training.feed import BatchBlock
from ultr.training.inputs import batch_weight, session_sums
from ultr.training.weight_report import weight_facts

P = ParamSpec("P")
T = TypeVar("T")


def alone_in_directory(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function work alone in the folder that its argument `directory` names."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        directory = cast(str | Path | None, kwargs.get("directory"))
        with contextlib.nullcontext() if directory is None else locked(directory, inside=True):
            return function(*args, **kwargs)

    return alone


@contextlib.contextmanager
def at_interrupt(keep: Callable[[KeyboardInterrupt], None]) -> Iterator[None]:
    """Calls a function with an interruption of the block before it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        keep(stop)
        raise


def have_same_ids(data: Dataset, train: Dataset) -> bool:
    """Tells whether the document ids of two datasets are known to be the same."""
    own, other = data.description.vocabulary, train.description.vocabulary
    return own is not None and other is not None and own.identity == other.identity


def data_facts(train: Dataset, batch_size: int, l2: float, l2_of_tables: float) -> dict[str, jax.Array]:
    """Computes what a step has to know of the whole dataset.

    `weight`: that of an average batch where the rows have weights, since dividing by the weight of each batch itself
    would make light those that hold much; 0 where they have none. `prior`, `prior_of_tables`: strength of l2 per
    session.
    """
    priors = {"prior": l2, "prior_of_tables": l2_of_tables}
    total = max(train.description.total_weight, 1.0)
    facts = {name: jnp.float32(strength / total) for name, strength in priors.items()}
    return facts | {"weight": jnp.float32(batch_weight(train, batch_size))}


def timed_blocks(items: Iterator[BatchBlock | None]) -> Iterator[tuple[BatchBlock, float]]:
    """Yields the blocks up to the next None, with the seconds that each was waited for."""
    began = time.perf_counter()
    while (block := next(items, None)) is not None:
        yield block, time.perf_counter() - began
        began = time.perf_counter()


def mean_loss(sums: np.ndarray, name: str, epoch: int, data: Dataset) -> tuple[float, float, float]:
    """Computes the loss per session, the sessions counted and the impossible sessions."""
    unusable = (
        f"the loss is {{}} in epoch {epoch}. Lower the learning rate, scale the features (towers.Scaler), or check "
        "them for extreme values"
    )
    rows_per_session = data.description.rows_per_session
    total, used, impossible = session_sums(sums, name, rows_per_session, if_not_finite=unusable)
    return total / used, used, impossible


def epoch_weights(sums: np.ndarray, sessions: float, train: Dataset) -> dict[str, Any]:
    """Computes what the history tells of the weights of impressions; nothing where the loss has none."""
    whole = train.description.sufficient_statistics == "list"  # rows of counts are single documents
    return weight_facts(sums, sessions, whole_lists=whole) if len(sums) else {}


def is_exhausted(run: dict[str, Any], patience: int | None) -> bool:
    """Tells whether as many judgements as patience allows brought nothing better."""
    return patience is not None and bool(run["history"]) and len(run["history"]) - run["best"] >= max(patience, 1)
