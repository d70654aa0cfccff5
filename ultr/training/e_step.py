"""The E-step: one pass over the data for the expected outcomes of every table entry, which EM and L-BFGS use."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr import stopping
from ultr.clicks import CascadeClicks, last_click
from ultr.models import LatentVariable
from ultr.sessions import Sessions
from ultr.towers.lookup import LANES, spread
from ultr.training.device_data import DeviceData
from ultr.training.feed import StackedBatches
from ultr.training.model_tables import ModelTables
from ultr.training.rows import materialised
from ultr.training.steps import weighted_sums


@dataclasses.dataclass
class ExpectedOutcomes:
    """The expected outcomes of the latent variable of every table entry, and the log-likelihood at the logits used.

    Attributes:
      yes, no: for each table [size], how often its variable is expected to come out so.
      log_likelihood: of all sessions that are possible.
      weight: number of sessions, by weight.
      impossible: number of sessions that the model cannot produce, by weight.
    """

    yes: list[jax.Array]
    no: list[jax.Array]
    log_likelihood: float
    weight: float
    impossible: float


def expected_outcomes(
    tables: ModelTables, data: DeviceData, logits: list[jax.Array], *, last_click_ends: bool = False
) -> ExpectedOutcomes:
    """Computes the expected outcomes of every table entry in one pass over the data.

    Args:
      tables: the model and its tables.
      data: in blocks on the device.
      logits: [size] of each table.
      last_click_ends: take the last click for the end of examination, as the counting estimators do.

    Raises:
      DataError: no session counts.
      UltrError: the likelihood is not finite.
    """
    limit = data.memory.float64_entries
    latents = [(jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)) for x in logits]
    large = [(jnp.zeros(c.size), jnp.zeros(c.size)) for c in tables.specs if c.size > limit]
    small = [np.zeros((2, c.size)) for c in tables.specs if c.size <= limit]
    sums = np.zeros(3)
    for block in data.blocks():
        stopping.check()
        large, found, new = _pass(tables, last_click_ends, limit, latents, large, block.batches, block.count)
        sums += np.asarray(new, np.float64)
        for total, part in zip(small, found, strict=True):
            total += np.asarray(part, np.float64).reshape(*total.shape, LANES).sum(2)
    many, few = iter(large), iter(small)
    outcomes = [next(many) if c.size > limit else jnp.asarray(next(few), jnp.float32) for c in tables.specs]
    yes, no = ([x[side] for x in outcomes] for side in (0, 1))
    loss, weight, impossible = data.session_sums(sums)
    return ExpectedOutcomes(yes, no, -loss, weight, impossible)


def _block(
    tables: ModelTables,
    last_click_ends: bool,
    limit: int,
    latents: Any,
    large: Any,
    batches: StackedBatches,
    count: Any,
) -> Any:
    """Adds the outcomes of one block to those of the large tables, and returns those of the small ones.

    Entries of the small tables stand LANES times side by side (`towers.lookup.spread`).
    """
    small = [(jnp.zeros(c.size * LANES),) * 2 for c in tables.specs if c.size <= limit]

    def body(i: jax.Array, carry: Any) -> Any:
        large, small, sums = carry
        batch = batches.at(i)
        clicks = jnp.asarray(batch.clicks)
        last = batch.last_click
        if last is None:
            clicked = (clicks != 0) & batch.mask
            last = last_click(clicked, jnp.asarray(batch.position) + 1, batch.rank_axis)
        index = [spec.index(batch, jnp.asarray(last)) for spec in tables.specs]
        read = [[jnp.take(x, at, mode="clip") for x in pair] for pair, at in zip(latents, index, strict=True)]
        outcomes, new = jax.grad(partial(_log_likelihood, tables, last_click_ends, batch), has_aux=True)(read)
        outcomes = materialised(outcomes, i)

        def add(sums: Any, at: jax.Array, pair: Any) -> Any:
            return tuple(s.at[at].add(jnp.where(batch.mask, x, 0.0)) for s, x in zip(sums, pair, strict=True))

        many, few = iter(large), iter(small)
        found: tuple[list[Any], list[Any]] = ([], [])
        for spec, at, pair in zip(tables.specs, index, outcomes, strict=True):
            if spec.size > limit:
                found[0].append(add(next(many), at, pair))
            else:
                found[1].append(add(next(few), spread(at), pair))
        return *found, sums + new

    return jax.lax.fori_loop(0, count, body, (large, small, jnp.zeros(3)))


_pass = jax.jit(_block, static_argnums=(0, 1, 2), donate_argnums=4)


def _log_likelihood(tables: ModelTables, last_click_ends: bool, batch: Sessions, read: Any) -> Any:
    """Computes the log-likelihood, whose derivative by the log-probabilities are the expected outcomes.

    Also returns the sums of `weighted_sums`.
    """
    clicks = tables.model.from_latents(batch, [LatentVariable(*read[place]) for place in tables.places])
    if last_click_ends and isinstance(clicks, CascadeClicks):
        log_prob = clicks.log_prob_stopping(jnp.asarray(batch.clicks))
    else:
        log_prob = clicks.log_prob(jnp.asarray(batch.clicks))
    loss, sums = weighted_sums(-log_prob, batch)
    return -loss, sums
