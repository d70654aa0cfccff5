"""One pass over data: the expected outcomes of every cell, from which the steps of EM and the gradient follow."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import CascadeClicks, last_click
from ultr.models import Coin
from ultr.sessions import Sessions
from ultr.towers.lookup import LANES, spread
from ultr.training.cells import Layout
from ultr.training.feed import Batches
from ultr.training.kept import Kept
from ultr.training.rows import settled
from ultr.training.steps import tally

SMALL = 1 << 12  # tables of up to so many cells are summed in float64


@dataclasses.dataclass
class Expected:
    """What a pass finds: expected outcomes of every cell, and the log-likelihood of the logits that it used.

    `weight` and `impossible` count sessions.
    """

    yes: list[jax.Array]
    no: list[jax.Array]
    log_likelihood: float
    weight: float
    impossible: float


def expect(layout: Layout, data: Kept, logits: list[jax.Array], *, stopping: bool = False) -> Expected:
    """Passes over the data once.

    Args:
      layout: the model and its tables.
      data: its blocks.
      logits: [size] of each table.
      stopping: take the last click for the end of examination, as counting does.

    Raises:
      DataError, UltrError: as `ultr.training.sources.per_session`.
    """
    coins = [(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in logits]
    large = [(jnp.zeros(c.size), jnp.zeros(c.size)) for c in layout.cells if c.size > SMALL]
    small = [np.zeros((2, c.size)) for c in layout.cells if c.size <= SMALL]
    sums = np.zeros(3)
    for block in data:
        large, found, new = _pass(layout, stopping, SMALL, coins, large, block.batches, block.count)
        sums += np.asarray(new, np.float64)
        for total, part in zip(small, found, strict=True):
            total += np.asarray(part, np.float64).reshape(*total.shape, LANES).sum(2)
    many, few = iter(large), iter(small)
    outcomes = [next(many) if c.size > SMALL else jnp.asarray(next(few), jnp.float32) for c in layout.cells]
    yes, no = ([x[side] for x in outcomes] for side in (0, 1))
    loss, weight, impossible = data.per_session(sums)
    return Expected(yes, no, -loss, weight, impossible)


def _block(layout: Layout, stopping: bool, limit: int, coins: Any, large: Any, batches: Batches, count: Any) -> Any:
    """The outcomes in one block: added to `large`, and of the small tables, whose cells stand LANES times."""
    small = [(jnp.zeros(c.size * LANES),) * 2 for c in layout.cells if c.size <= limit]

    def body(i: jax.Array, carry: Any) -> Any:
        large, small, sums = carry
        batch = batches.at(i)
        clicks = jnp.asarray(batch.clicks)
        last = batch.last_click
        if last is None:
            clicked = (clicks != 0) & batch.mask
            last = last_click(clicked, jnp.asarray(batch.position) + 1, batch.rank_axis)
        index = [cells.index(batch, jnp.asarray(last)) for cells in layout.cells]
        read = [[jnp.take(x, at, mode="clip") for x in pair] for pair, at in zip(coins, index, strict=True)]
        outcomes, new = jax.grad(partial(_log_likelihood, layout, stopping, batch), has_aux=True)(read)
        outcomes = settled(outcomes, i)

        def add(sums: Any, at: jax.Array, pair: Any) -> Any:
            return tuple(s.at[at].add(jnp.where(batch.mask, x, 0.0)) for s, x in zip(sums, pair, strict=True))

        many, few = iter(large), iter(small)
        found: tuple[list[Any], list[Any]] = ([], [])
        for cells, at, pair in zip(layout.cells, index, outcomes, strict=True):
            if cells.size > limit:
                found[0].append(add(next(many), at, pair))
            else:
                found[1].append(add(next(few), spread(at), pair))
        return *found, sums + new

    return jax.lax.fori_loop(0, count, body, (large, small, jnp.zeros(3)))


_pass = jax.jit(_block, static_argnums=(0, 1, 2), donate_argnums=4)


def _log_likelihood(layout: Layout, stopping: bool, batch: Sessions, read: Any) -> Any:
    """Its derivative by the log-probabilities of the coins are the expected outcomes; also the sums of `tally`."""
    clicks = layout.model.from_coins(batch, *(Coin(*read[place]) for place in layout.places))
    if stopping and isinstance(clicks, CascadeClicks):
        log_prob = clicks.log_prob_stopping(jnp.asarray(batch.clicks))
    else:
        log_prob = clicks.log_prob(jnp.asarray(batch.clicks))
    loss, sums = tally(-log_prob, batch)
    return -loss, sums
