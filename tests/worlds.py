"""A world of a few queries: their documents in every order with every click vector, as likely as the PBM makes them."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from narrowing import split_parameters

from ultr import baselines, fit, towers
from ultr.sessions import Sessions

Q, K = 4, 3
EXAMINATION = np.array([0.9, 0.5, 0.25])
RELEVANCE = np.random.default_rng(1).uniform(0.2, 0.9, (Q, K))
ORDERS = np.array(list(itertools.permutations(range(K))))  # document at each rank
VECTORS = np.array(list(itertools.product([0, 1], repeat=K)))


def shares(strength: float) -> np.ndarray:
    """[Q, orders] of a Plackett-Luce policy that knows relevance; 0: random orders."""
    s = RELEVANCE[:, ORDERS] ** strength
    return np.prod(s / np.cumsum(s[..., ::-1], -1)[..., ::-1], -1)


def world(strength: float, sessions: float, *, sample: int | None = None) -> Sessions:
    """Clicks of the PBM: as many of each kind as expected, or, with a seed, as many as came."""
    click = (EXAMINATION * RELEVANCE[:, ORDERS])[:, :, None]
    chance = np.where(VECTORS == 1, click, 1 - click).prod(-1) * shares(strength)[:, :, None] / Q
    weight = chance * sessions
    if sample is not None:
        drawn = np.random.default_rng(sample).multinomial(int(sessions), chance.ravel() / chance.sum())
        weight = drawn.reshape(chance.shape)
    query, order, vector = (x.ravel() for x in np.indices(chance.shape))
    return Sessions(
        mask=np.ones((len(query), K), bool),
        position=np.tile(np.arange(K, dtype=np.int32), (len(query), 1)),
        features={"document": (query[:, None] * K + ORDERS[order] + 1).astype(np.int32)},
        clicks=VECTORS[vector].astype(np.int8),
        query=query.astype(np.int32),
        weight=weight.ravel().astype(np.float32),
    )


def documents(logits: np.ndarray | None = None) -> towers.DocumentTable:
    tower = towers.DocumentTable(Q * K)
    if logits is not None:
        tower.table[...] = jnp.asarray(np.concatenate([[0], np.ravel(logits)]), jnp.float32)
    return tower


def ranks(logits: Any = 0.0) -> towers.RankTable:
    return towers.RankTable(K, initial=logits)


def gradients(model: Any, sessions: Sessions) -> Any:
    """Of the weighted sum of the losses, by the parameters."""
    graph, params, rest = split_parameters(model)
    weight = 1.0 if sessions.weight is None else sessions.weight

    def total(params: Any, rest: Any, sessions: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graph, params, rest, copy=True).loss(sessions) * weight)

    return jax.jit(jax.grad(total))(params, rest, sessions)


compiled_loss = nnx.jit(lambda model, sessions: model.loss(sessions))


def fitted(model: Any, sessions: Sessions, steps: int = 200) -> Any:
    """Trained on all rows at once."""
    return fit(model, sessions, optimizer=optax.adam(0.1), epochs=steps, batch_size=len(sessions), seed=0).model


def policy(**options: Any) -> baselines.LoggingPolicy:
    return baselines.LoggingPolicy(0, documents=Q * K, width=3, hidden=4, rngs=nnx.Rngs(0), **options)
