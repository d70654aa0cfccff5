"""Feeds batches to the device: stacked into blocks in the background, while the last block is trained on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ultr import stopping
from ultr.background import iterate_ahead
from ultr.data.dataset import Dataset
from ultr.sessions import Array, Sessions, SharedFeature
from ultr.towers.base import whole_features

BLOCK_SESSIONS = 1 << 16  # a block holds about so many sessions, whatever the size of a batch
BLOCK_VALUES = 1 << 26  # unless they hold more numbers than this


class StackedBatches(flax.struct.PyTreeNode):
    """Batches of one shape, stacked, without what follows from the lengths of the lists.

    Attributes:
      lengths: [S, B] int32, documents of each list.
      sessions: arrays [S, ...]; no mask, and no position where that is the place in the list.
      width: K.
    """

    lengths: Array
    sessions: Any
    width: int = flax.struct.field(pytree_node=False)

    def at(self, i: Array) -> Sessions:
        """Picks batch number `i`, in compiled code."""
        lengths, one = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), (self.lengths, self.sessions)
        )
        lengths = jnp.expand_dims(lengths, one.rank_axis)
        index = jnp.expand_dims(jnp.arange(self.width, dtype=jnp.int32), 1 - one.rank_axis)
        mask = index < lengths
        # Padding reads rank 1, since a batch may be wider than a table of ranks is long.
        position = jnp.where(mask, index, 0) if one.position is None else one.position
        picked: Sessions = one.replace(mask=mask, position=position)
        return picked


@dataclasses.dataclass(frozen=True)
class BatchBlock:
    """Several batches of one shape, as they are handed to the device.

    Attributes:
      batches: S batches.
      count: how many of the S batches are there; the others are empty.
      sessions: how many lists they hold.
    """

    batches: StackedBatches
    count: int
    sessions: int


def largest_indices(data: Dataset) -> dict[str, int]:
    """Names the largest values that a dataset can hand out, having checked them itself (`towers.check_bounds`)."""
    about = data.description
    known = {} if about.documents is None else {"document": about.documents}
    return known if about.ranks is None else known | {"position": about.ranks - 1, "last_click": about.ranks}


def stream_blocks(
    data: Dataset,
    batch_size: int,
    *,
    seeds: Iterable[int | None],
    length: int,
    rank_first: bool,
    check: Callable[[Sessions], None],
    put: Callable[[StackedBatches], StackedBatches],
    share_features: bool = False,
    without: Collection[str] = (),
    skip: int = 0,
    block_sessions: int = BLOCK_SESSIONS,
    block_values: int = BLOCK_VALUES,
) -> Generator[BatchBlock | None, None, None]:
    """Streams every batch of a dataset once for each seed, in blocks of fixed shapes; None ends each pass.

    The next two blocks are made while one is used, be they of the next pass.

    Args:
      data: streams the batches.
      batch_size: sessions per batch.
      seeds: order of the sessions in each pass; None: stored order.
      length: rows of the dataset; a block is not made much longer than that.
      rank_first: hand the batches over as [K, B] arrays.
      check: called with every batch, on the host; raises where a value does not fit the model.
      put: moves the stacked arrays to the device.
      share_features: take features of documents once per document of a batch, where the dataset offers that.
      without: names of features that are left out.
      skip: how many blocks of the first pass are left out.
      block_sessions: about how many sessions a block holds, whatever the size of a batch,
      block_values: unless they hold more numbers than this.
    """

    def blocks() -> Iterator[BatchBlock | None]:
        left_out = skip
        for seed in seeds:
            batches = _batches(data, batch_size, seed, share_features, frozenset(without))
            make = partial(_block, rank_first=rank_first, put=put)
            for held, steps in _held(batches, batch_size, length, check, (block_sessions, block_values)):
                if left_out:
                    left_out -= 1
                else:
                    yield make(held, steps)
            yield None

    return iterate_ahead(blocks(), depth=2)


def one_pass(data: Dataset, batch_size: int, *, seed: int | None, **options: Any) -> Iterator[BatchBlock]:
    """Streams one pass over a dataset; options as for `stream_blocks`."""
    with contextlib.closing(stream_blocks(data, batch_size, seeds=[seed], **options)) as blocks:
        yield from (block for block in blocks if block is not None)


def _batches(
    data: Dataset, batch_size: int, seed: int | None, share_features: bool, without: frozenset[str]
) -> Iterator[Sessions]:
    # As shared features, those that are left out cost nothing.
    for batch in data.batches(batch_size, seed=seed, share_features=share_features or bool(without)):
        if without:
            kept = {name: value for name, value in batch.features.items() if name not in without}
            batch = batch.replace(features=kept)
        yield batch if share_features else whole_features(batch)


def _held(
    batches: Iterable[Sessions],
    batch_size: int,
    length: int,
    check: Callable[[Sessions], None],
    block_size: tuple[int, int],
) -> Iterator[tuple[list[Sessions], int]]:
    """Yields the batches of each block, of one shape, with the number of batches that a block of that shape has."""
    # Powers of two, so that what was compiled for one dataset serves another of about the same length.
    most = 1 << (-(-length // batch_size) - 1).bit_length()
    waiting: dict[Any, tuple[list[Sessions], int]] = {}
    rows: dict[Any, int] = {}  # of shared features, so that batches can be stacked
    for batch in batches:
        stopping.check()
        check(batch)
        batch = _compact(batch, rows)
        kind = (jax.tree.structure(batch), *((x.shape, x.dtype) for x in jax.tree.leaves(batch)))
        if kind not in waiting:
            values = sum(np.size(x) for x in jax.tree.leaves(batch))
            steps = min(block_size[0] // batch_size, block_size[1] // max(values, 1), most)
            waiting[kind] = ([], max(steps, 1))
        held, steps = waiting[kind]
        held.append(batch)
        if len(held) == steps:
            yield held, steps
            held.clear()
    for held, steps in waiting.values():
        if held:
            yield held, steps


def _block(
    held: list[Sessions], steps: int, *, rank_first: bool, put: Callable[[StackedBatches], StackedBatches]
) -> BatchBlock:
    shown = sum(int(np.count_nonzero(b.mask[:, 0])) for b in held) if held[0].shape[1] else 0
    return BatchBlock(put(_stack(held, steps, rank_first)), len(held), shown)


def _compact(batch: Sessions, rows: dict[Any, int]) -> Sessions:
    """Keeps each row of shared features once, with a margin, so that few batches need other shapes.

    Args:
      batch: on the host.
      rows: number of rows by feature and shape of the batch, which grows.
    """
    features = dict(batch.features)
    for name, value in batch.features.items():
        if isinstance(value, SharedFeature):
            kind = (name, value.index.shape)
            found = value.distinct(rows.get(kind, 0))
            if len(found.values) > rows.get(kind, 0):
                rows[kind] = min(-(-len(found.values) * 9 // 8 // 64) * 64, value.index.size)
                found = value.distinct(rows[kind])
            features[name] = found
    return batch.replace(features=features)


def _stack(batches: list[Sessions], steps: int, rank_first: bool) -> StackedBatches:
    width = batches[0].shape[1]
    lengths = np.zeros((steps, len(batches[0])), np.int32)
    index = np.arange(width, dtype=np.int32)
    implied, before = True, None
    for i, batch in enumerate(batches):
        mask, position = np.asarray(batch.mask), np.asarray(batch.position)
        if before is not None and mask is before.mask and position is before.position:
            lengths[i] = lengths[i - 1]  # a log hands out the same arrays again where all lists are whole
            continue
        lengths[i] = width if mask.all() else mask.sum(1)
        implied = implied and bool(((position == index) | ~mask).all())
        before = batch
    first, *others = (_without_implied(b, implied, rank_first) for b in batches)

    def stack(*arrays: np.ndarray) -> np.ndarray:
        out = np.empty((steps, *arrays[0].shape), arrays[0].dtype)
        for i, x in enumerate(arrays):
            out[i] = x
        out[len(arrays) :] = 0
        return out

    return StackedBatches(lengths, jax.tree.map(stack, first, *others), width)


def _without_implied(batch: Sessions, implied: bool, rank_first: bool) -> Sessions:
    lists = batch.rank_first() if rank_first else batch
    return lists.replace(mask=None, position=None if implied else lists.position)
