"""Batches on their way to the device: stacked into blocks, in the background, while the last block is trained on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ultr.sessions import Array, Sessions, Shared, Source, Stream, stream

BLOCK_SESSIONS = 1 << 16  # a block holds about so many sessions, whatever the size of a batch
BLOCK_VALUES = 1 << 26  # unless they hold more numbers than this
T = TypeVar("T")


@flax.struct.dataclass
class Batches:
    """Batches of one shape, one after another, without what follows from the lengths of the lists.

    Attributes:
      lengths: [S, B] int32, documents of each list.
      sessions: arrays [S, ...]; no mask, and no position where that is the place in the list.
      width: K.
    """

    lengths: Array
    sessions: Any
    width: int = flax.struct.field(pytree_node=False)

    def at(self, i: Array) -> Sessions:
        """Batch number `i`, in compiled code."""
        lengths, one = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), (self.lengths, self.sessions)
        )
        lengths = jnp.expand_dims(lengths, one.rank_axis)
        index = jnp.expand_dims(jnp.arange(self.width, dtype=jnp.int32), 1 - one.rank_axis)
        mask = index < lengths
        # Padding reads rank 1, since a batch may be wider than a table of ranks is long.
        position = jnp.where(mask, index, 0) if one.position is None else one.position
        return one.replace(mask=mask, position=position)  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Block:
    """Several batches of one shape.

    Attributes:
      batches: S batches.
      count: how many of the S are there; the others are empty.
      sessions: how many lists they hold.
    """

    batches: Batches
    count: int
    sessions: int


def bounds(source: Stream) -> dict[str, int]:
    """The largest values that a source can hand out: it has checked them itself (`towers.check`)."""
    known = {} if source.documents is None else {"document": source.documents}
    return known if source.ranks is None else known | {"position": source.ranks - 1, "last_click": source.ranks}


def passes(
    source: Source,
    batch_size: int,
    *,
    seeds: Iterable[int | None],
    length: int,
    rank_first: bool,
    look: Callable[[Sessions], None],
    put: Callable[[Batches], Batches],
    shared: bool = False,
    without: Collection[str] = (),
) -> Generator[Block | None, None, None]:
    """Every batch of a source once for each seed, in blocks of fixed shapes; None at the end of each pass.

    The next two blocks are made while one is used, be they of the next pass.

    Args:
      source: streams the batches.
      batch_size: sessions per batch.
      seeds: order of the sessions in each pass; None: stored order.
      length: rows in the source; a block is not made much longer than that.
      rank_first: hand the batches over as [K, B] arrays.
      look: called with every batch, on the host; raises where a value does not fit the model.
      put: moves the stacked arrays to the device.
      shared: take features of documents as `Shared`, each document of a batch once, where the source offers that.
      without: features that are left out.
    """

    def items() -> Iterator[Block | None]:
        for seed in seeds:
            batches = _batches(stream(source), batch_size, seed, shared, frozenset(without))
            yield from _blocks(batches, batch_size, length, rank_first, look, put)
            yield None

    return _ahead(items())


def blocks(source: Source, batch_size: int, *, seed: int | None, **options: Any) -> Iterator[Block]:
    """One pass of `passes`."""
    with contextlib.closing(passes(source, batch_size, seeds=[seed], **options)) as items:
        yield from (block for block in items if block is not None)


def _batches(
    source: Stream, batch_size: int, seed: int | None, shared: bool, without: frozenset[str]
) -> Iterator[Sessions]:
    if not without:
        yield from source.batches(batch_size, seed=seed, **({"shared": True} if shared and source.shares else {}))
        return
    for batch in source.lean(batch_size, seed=seed):  # what is thrown away is not made
        kept = {name: value for name, value in batch.features.items() if name not in without}
        if not shared:
            kept = {name: x.whole() if isinstance(x, Shared) else x for name, x in kept.items()}
        yield batch.replace(features=kept)  # type: ignore[attr-defined]


def _blocks(
    batches: Iterable[Sessions],
    batch_size: int,
    length: int,
    rank_first: bool,
    look: Callable[[Sessions], None],
    put: Callable[[Batches], Batches],
) -> Iterator[Block]:
    # Powers of two, so that what was compiled for one source serves another of about the same length.
    most = 1 << (-(-length // batch_size) - 1).bit_length()
    waiting: dict[Any, tuple[list[Sessions], int]] = {}

    def block(held: list[Sessions], steps: int) -> Block:
        shown = sum(int(np.count_nonzero(b.mask[:, 0])) for b in held) if held[0].shape[1] else 0
        return Block(put(_stack(held, steps, rank_first)), len(held), shown)

    rows: dict[Any, int] = {}  # of shared features, so that batches can be stacked
    for batch in batches:
        look(batch)
        batch = _compact(batch, rows)
        kind = (jax.tree.structure(batch), *((x.shape, x.dtype) for x in jax.tree.leaves(batch)))
        if kind not in waiting:
            values = sum(np.size(x) for x in jax.tree.leaves(batch))
            steps = min(BLOCK_SESSIONS // batch_size, BLOCK_VALUES // max(values, 1), most)
            waiting[kind] = ([], max(steps, 1))
        held, steps = waiting[kind]
        held.append(batch)
        if len(held) == steps:
            yield block(held, steps)
            held.clear()
    for held, steps in waiting.values():
        if held:
            yield block(held, steps)


def _compact(batch: Sessions, rows: dict[Any, int]) -> Sessions:
    """Each row of shared features once; with a margin, so that few batches need other shapes (`rows`, which grows)."""
    features = dict(batch.features)
    for name, value in batch.features.items():
        if isinstance(value, Shared):
            kind = (name, value.index.shape)
            found = value.distinct(rows.get(kind, 0))
            if len(found.values) > rows.get(kind, 0):
                rows[kind] = min(-(-len(found.values) * 9 // 8 // 64) * 64, value.index.size)
                found = value.distinct(rows[kind])
            features[name] = found
    return batch.replace(features=features)  # type: ignore[attr-defined, no-any-return]


def _stack(batches: list[Sessions], steps: int, rank_first: bool) -> Batches:
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
    first, *others = (_lean(b, implied, rank_first) for b in batches)

    def stack(*arrays: np.ndarray) -> np.ndarray:
        out = np.empty((steps, *arrays[0].shape), arrays[0].dtype)
        for i, x in enumerate(arrays):
            out[i] = x
        out[len(arrays) :] = 0
        return out

    return Batches(lengths, jax.tree.map(stack, first, *others), width)


def _lean(batch: Sessions, implied: bool, rank_first: bool) -> Sessions:
    lists = batch.rank_first() if rank_first else batch
    return lists.replace(mask=None, position=None if implied else lists.position)  # type: ignore[attr-defined]


def _ahead(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The items, the next `depth` being computed while one is used."""
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ultr-feed") as worker:
        pending = deque(worker.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(worker.submit(next, items, end))
            yield item
