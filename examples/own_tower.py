"""A relevance tower of your own, and an examination that depends on the device as well as the rank.

A tower derives from `towers.Tower` and declares what training needs to know of it; any other callable from `Sessions`
to logits [B, K] is a tower too, with the defaults.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ultr
from ultr import models, towers


class Factorised(towers.Tower):
    """Computes relevance as a dot product of a vector per query and one per document, plus a common logit."""

    parameter_group = "table"  # each logit has to travel a distance of its own: the learning rate of tables

    def __init__(self, queries: int, documents: int, dimension: int, *, rngs: nnx.Rngs) -> None:
        self.queries = nnx.Param(0.1 * jax.random.normal(rngs.params(), (queries, dimension)))
        self.documents = nnx.Param(0.1 * jax.random.normal(rngs.params(), (documents + 1, dimension)))
        self.common = nnx.Param(jnp.zeros(()))

    def logits(self, sessions: ultr.Sessions) -> jax.Array:
        query = self.queries[...][jnp.asarray(sessions.query)]
        document = self.documents[...][jnp.asarray(sessions.features["document"])]
        return self.common[...] + jnp.einsum("bd,bkd->bk", query, document)


def log(sessions: int, seed: int) -> ultr.Sessions:
    """Draws sessions of 20 queries, 30 documents and two devices: on a phone examination falls twice as fast."""
    rng = np.random.default_rng(seed)
    taste, appeal = rng.normal(size=(20, 2)), rng.normal(size=(31, 2))
    query, device = rng.integers(20, size=sessions), rng.integers(1, 3, size=sessions)
    document = np.stack([rng.permutation(30)[:6] + 1 for _ in range(sessions)]).astype(np.int32)
    relevance = 1 / (1 + np.exp(-np.einsum("bd,bkd->bk", taste[query], appeal[document])))
    examination = np.arange(1, 7.0)[None, :] ** -device[:, None]
    return ultr.Sessions(
        mask=np.ones((sessions, 6), bool),
        position=np.tile(np.arange(6, dtype=np.int32), (sessions, 1)),
        features={"document": document, "device": np.repeat(device[:, None], 6, axis=1).astype(np.int32)},
        clicks=(rng.random((sessions, 6)) < relevance * examination).astype(np.int8),
        query=query.astype(np.int32),
    )


class DeviceExamination(towers.Tower):
    """Looks up one logit per (device, rank)."""

    parameter_group = "table"
    pointwise = True  # each logit depends on its own impression alone

    def __init__(self, devices: int, ranks: int) -> None:
        self.devices, self.ranks = devices, ranks
        self.table = nnx.Param(jnp.zeros((devices + 1, ranks)))

    @property
    def index_bounds(self) -> tuple[towers.IndexBound, ...]:
        return towers.IndexBound("device", self.devices + 1, "ids"), towers.IndexBound("position", self.ranks, "ranks")

    def logits(self, sessions: ultr.Sessions) -> jax.Array:
        return self.table[...][jnp.asarray(sessions.features["device"]), jnp.asarray(sessions.position)]


def main(sessions: int = 20_000) -> np.ndarray:
    model = models.PBM(relevance=Factorised(20, 30, 2, rngs=nnx.Rngs(0)), examination=DeviceExamination(2, 6))
    train, valid = ultr.InMemory(log(sessions, seed=1)), ultr.InMemory(log(sessions // 5, seed=1))
    fitted = ultr.fit(model, train, valid, epochs=20, batch_size=256, seed=0).model
    examination = np.asarray(jax.nn.sigmoid(fitted.examination.table[...]))[1:]
    relative = examination / examination[:, :1]
    for device, row in zip(("desktop", "phone"), relative, strict=True):
        print(f"{device}: examination relative to rank 1: {np.round(row, 2)}")
    found = ultr.evaluate(fitted, valid, metrics=["perplexity"], key=jax.random.key(0))
    print(f"perplexity: {found['perplexity']}")
    return relative


if __name__ == "__main__":
    main()
