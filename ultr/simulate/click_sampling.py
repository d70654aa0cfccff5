"""Drawing simulated sessions, and the clicks on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ultr import stopping
from ultr.data import Collection
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError
from ultr.models import ClickModel
from ultr.sessions import Sessions
from ultr.simulate.entropy import Entropies, EntropyTotals, ExactEntropies, entropies, exact_entropies
from ultr.simulate.examination_curves import Context
from ultr.simulate.ranking_sampler import RankingSampler
from ultr.towers import InputCheck, input_match


class DrawnSessions(NamedTuple):
    """What n sessions show, before the clicks.

    Attributes:
      start: number of the first session.
      query: [n] index of the list in the collection.
      shown: [n, top] rows of the collection, -1 beyond the end.
      time: [n] from 0 to 1.
      context: name -> [n] int32 category from 1.
    """

    start: int
    query: np.ndarray
    shown: np.ndarray
    time: np.ndarray
    context: dict[str, np.ndarray]


def draw_sessions(
    sizes: np.ndarray,
    rankings: RankingSampler,
    contexts: Sequence[Context],
    *,
    sessions: int,
    block: int,
    seed: int,
    zipf: float,
) -> Iterator[DrawnSessions]:
    """Yields sessions in blocks.

    Args:
      sizes: [Q] documents of each list.
      rankings: draws what sessions show.
      contexts: drawn for each session.
      sessions: number of sessions in all.
      block: sessions at a time.
      seed: decides all that is drawn, but for what `rankings` decides.
      zipf: exponent of the query frequencies.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    other = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    popularity = np.where(sizes > 0, np.arange(1, len(sizes) + 1.0) ** -zipf, 0.0)
    cumulative = np.cumsum(popularity) / popularity.sum()
    cumulative[np.flatnonzero(sizes)[-1] :] = 1.0  # against the rounding of the sum
    for start in range(0, sessions, block):
        stopping.check()
        n = min(block, sessions - start)
        query = np.searchsorted(cumulative, rng.random(n), side="right")
        shown = rankings.draw(query, rng)
        context = {}
        for c in contexts:
            edges = np.cumsum(c.chances)[:-1]
            context[c.name] = (1 + np.searchsorted(edges, other.random(n), side="right")).astype(np.int32)
        yield DrawnSessions(start, query, shown, np.arange(start, start + n) / max(sessions - 1, 1), context)


class ClickSampler:
    """Samples the clicks of drawn sessions from a compiled user.

    Args:
      model: the user.
      collection: the documents that sessions show.
      block: sessions of a step; fewer are padded.
      top: ranks.
      seed: decides the clicks.
      contexts: drawn for each session.

    Attributes:
      entropy_totals: running totals of the entropies of the sampled sessions.
    """

    def __init__(
        self,
        model: ClickModel,
        collection: Collection,
        *,
        block: int,
        top: int,
        seed: int,
        contexts: Sequence[Context] = (),
    ) -> None:
        graph, self._state = nnx.split(model)
        self._model, self._collection, self._block = model, collection, block
        drawn = tuple((context.name, tuple(map(str, context.values))) for context in contexts)
        about = collection.input_schema
        schema = InputSchema(about.features, drawn, about.documents)
        self._match = input_match(model, schema, name="collection")
        self._check = InputCheck(model, collection, source="collection")
        self._key = jax.random.key(seed)
        self._step = jax.jit(partial(_sample, graph))
        self._exact_entropies = partial(_exact_entropies, graph)
        self._top = top
        self._features: bool | None = None
        self.entropy_totals = EntropyTotals(top, ExactEntropies(False, False))

    def sample(self, drawn: DrawnSessions) -> tuple[np.ndarray, np.ndarray]:
        """Samples [n, top] clicks and returns them with their log-probabilities [n]."""
        n = len(drawn.query)
        batch = self._batch(drawn)
        self._check(batch)
        clicked, log_prob, found = self._step(self._state, batch, jax.random.fold_in(self._key, drawn.start))
        self.entropy_totals.add(jax.tree.map(lambda x: np.asarray(x)[:n], found), drawn.shown >= 0)
        return np.asarray(clicked)[:n], np.asarray(log_prob)[:n]

    def _batch(self, drawn: DrawnSessions) -> Sessions:
        if self._features is None:
            exact, self._features = self._inspect_user(drawn)
            self.entropy_totals = EntropyTotals(self._top, exact)
        batch = self._matched(drawn, self._features)
        return batch if len(batch) == self._block else batch.pad(rows=self._block)

    def _inspect_user(self, drawn: DrawnSessions) -> tuple[ExactEntropies, bool]:
        """Returns which entropies are exact, and whether the user reads the features of documents.

        The features are most of a batch, and users whose relevance reads grades do not need them.
        """
        context = {name: x[:1] for name, x in drawn.context.items()}
        one = DrawnSessions(0, drawn.query[:1], drawn.shown[:1], drawn.time[:1], context)
        try:
            return self._exact_entropies(self._state, self._matched(one, False)), False
        except (ConfigError, KeyError):
            if self._collection.features is None:
                raise
            return self._exact_entropies(self._state, self._matched(one, True)), True

    def _matched(self, drawn: DrawnSessions, with_features: bool) -> Sessions:
        batch = _batch(self._collection, drawn, with_features)
        return batch if self._match is None else self._match.apply(batch)


def _exact_entropies(graph: Any, state: Any, batch: Sessions) -> ExactEntropies:
    found: list[ExactEntropies] = []
    jax.eval_shape(lambda s, b: found.append(exact_entropies(nnx.merge(graph, s)(b))), state, batch)
    return found[0]


def _sample(graph: Any, state: Any, batch: Sessions, key: Any) -> tuple[jax.Array, jax.Array, Entropies]:
    distribution = nnx.merge(graph, state)(batch)
    clicked = distribution.sample(key)
    return clicked, distribution.log_prob(clicked), entropies(distribution, clicked, batch.mask)


def _batch(collection: Collection, drawn: DrawnSessions, with_features: bool) -> Sessions:
    mask = drawn.shown >= 0
    row = np.where(mask, drawn.shown, 0)
    features: dict[str, Any] = {"document": np.where(mask, collection.document[row], 0).astype(np.int32)}
    if with_features and collection.features is not None:
        features["features"] = np.where(mask[:, :, None], collection.features[row], 0).astype(np.float32)
    per_session: Mapping[str, np.ndarray] = drawn.context | {"time": drawn.time.astype(np.float32)}
    features |= {name: np.broadcast_to(x[:, None], mask.shape) for name, x in per_session.items()}
    return Sessions(
        mask=mask,
        position=np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape),
        features=features,
        labels=np.where(mask, collection.labels[row], 0).astype(np.float32),
        query=collection.query[drawn.query].astype(np.int32),
    )
