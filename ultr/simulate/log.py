"""`clicks`: sessions drawn block by block and streamed to disk, with the truth in the metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
from flax import nnx

from ultr.data import ClickLog, Collection, LogWriter
from ultr.data.columns import CONTEXT
from ultr.errors import ConfigError, DataError
from ultr.models import ClickModel
from ultr.sessions import Sessions
from ultr.simulate.curves import Context
from ultr.simulate.entropy import Entropies, Lowest, entropies, exactness
from ultr.simulate.policies import Policy
from ultr.simulate.rankings import Rankings
from ultr.simulate.truth import biases, truth_of, user_of
from ultr.towers import check_bounds

_BLOCK_CELLS = 4_000_000  # candidates ranked at a time: bounds the memory


def clicks(
    collection: Collection,
    policy: Policy,
    model: ClickModel,
    *,
    sessions: int,
    seed: int,
    out: str | Path,
    ranks: int = 10,
    zipf: float = 0.0,
    contexts: Sequence[Context] | None = None,
    times: bool | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ClickLog:
    """Simulates sessions and streams them to disk as a click log that holds the truth.

    Each session draws a query, ranks its documents by the policy, shows the first `ranks` of them and samples clicks
    from the model. The log's vocabulary keeps the grades and features of the collection. Its `metadata["truth"]` keeps
      `policy`, `seed`, `zipf`, `user` (class of the model below noise and direction of reading);
      what the user's towers say: `examination` by rank (where the model has one), `trust`, `contexts`, `drift`,
        `noise`, and for a mixture its `components` with their `share`;
      `log_likelihood`: mean over the sessions of ln P(clicks) under the true model;
      `lowest`: the entropy of the process, and with it the perplexities (as `ultr.evaluation` defines them) below
        which no model can be expected to come, given the same lists: `entropy` per session in nats,
        `perplexity`, `conditional_perplexity`, with standard errors (0: exact). A model that sees less than
        contexts and time stays above.

    Args:
      collection: annotated lists.
      policy: the logging policy.
      model: the user; any click model, whose towers may read labels, positions, features, documents, contexts and
        `time`.
      sessions: how many.
      seed: decides queries, rankings, contexts and clicks.
      out: folder of the new log.
      ranks: how many documents are shown at most.
      zipf: exponent of the query frequencies 1/i^zipf in the order of the collection; 0: uniform.
      contexts: drawn for each session, and written to the log as context columns; None: those of the model's towers.
      times: whether to write the column `time`, from 0 (the first session) to 1 (the last); None: where the user
        changes over time. The towers of the user see it; those of a log that is read do not.
      overwrite: replace a log at `out`.
      progress: called with the number of sessions after each block.

    Raises:
      ConfigError: fewer than one session or rank, or a policy that the collection cannot feed.
      DataError: `out` exists, or a grade or rank beyond the model's tables.
    """
    if sessions < 1 or ranks < 1:
        raise ConfigError(f"expected at least one session and one rank, found {sessions} and {ranks}")
    if seed < 0 or not 0 <= zipf < np.inf:
        raise ConfigError(f"expected seed >= 0 and a finite zipf >= 0, found {seed} and {zipf}")
    sizes = np.diff(collection.offsets)
    if not (sizes > 0).any():
        raise DataError("expected a collection with documents, found none")
    if contexts is None:
        contexts = tuple(dict.fromkeys(context for bias in biases(model) for context in bias.contexts))
    if times is None:
        times = any(bias.drift is not None for bias in biases(model))
    if len({context.name for context in contexts}) < len(contexts):
        raise ConfigError(f"expected one context of each name, found {[context.name for context in contexts]}")
    truth: dict[str, Any] = {
        "policy": dataclasses.asdict(policy),
        "user": user_of(model),
        "seed": seed,
        "zipf": zipf,
    }
    width = int(sizes.max())
    top = min(ranks, width)
    scores = policy.scores(collection, seed=seed)
    rankings = Rankings(collection, policy, scores, top=top, seed=seed)
    block = max(1, min(sessions, _BLOCK_CELLS // width))
    process = _Process(model, collection, block=block, top=top, seed=seed)
    truth |= truth_of(model, contexts, top)
    total = 0.0
    queries, documents = collection.vocabulary.tables()
    writer = LogWriter(
        out,
        queries=queries,
        documents=documents,
        features=collection.vocabulary.feature_names,
        context={c.name: {"kind": "category", "values": list(c.values)} for c in contexts},
        overwrite=overwrite,
    )
    with writer:
        for drawn in _draws(sizes, rankings, contexts, sessions=sessions, block=block, seed=seed, zipf=zipf):
            clicked, log_prob = process.sample(drawn)
            total += float(np.asarray(log_prob, np.float64).sum())
            writer.write(_table(drawn, collection, clicked, contexts, times))
            if progress is not None:
                progress(len(drawn.query))
        writer.truth = truth | {"log_likelihood": total / sessions, "lowest": process.lowest.to_json()}
        writer.report = {"sessions": sessions}
    return ClickLog.open(out)


class _Drawn(NamedTuple):
    """What is drawn of n sessions before the clicks.

    Attributes:
      start: number of the first session.
      query: [n] index of the list.
      shown: [n, top] rows of the collection, -1 beyond the end.
      time: [n] from 0 to 1.
      context: name -> [n] int32 category from 1.
    """

    start: int
    query: np.ndarray
    shown: np.ndarray
    time: np.ndarray
    context: dict[str, np.ndarray]


def _draws(
    sizes: np.ndarray,
    rankings: Rankings,
    contexts: Sequence[Context],
    *,
    sessions: int,
    block: int,
    seed: int,
    zipf: float,
) -> Iterator[_Drawn]:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    other = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    popularity = np.where(sizes > 0, np.arange(1, len(sizes) + 1.0) ** -zipf, 0.0)
    cumulative = np.cumsum(popularity) / popularity.sum()
    cumulative[np.flatnonzero(sizes)[-1] :] = 1.0  # against the rounding of the sum
    for start in range(0, sessions, block):
        n = min(block, sessions - start)
        query = np.searchsorted(cumulative, rng.random(n), side="right")
        shown = rankings.draw(query, rng)
        context = {}
        for c in contexts:
            edges = np.cumsum(c.chances)[:-1]
            context[c.name] = (1 + np.searchsorted(edges, other.random(n), side="right")).astype(np.int32)
        yield _Drawn(start, query, shown, np.arange(start, start + n) / max(sessions - 1, 1), context)


class _Process:
    """The compiled user: clicks of drawn sessions, their likelihood, and running sums of their entropy.

    Args:
      model: the user.
      collection: where rows of drawn sessions are.
      block: rows of a step; fewer are filled up.
      top: ranks.
      seed: of the clicks.
    """

    def __init__(self, model: ClickModel, collection: Collection, *, block: int, top: int, seed: int) -> None:
        graph, self._state = nnx.split(model)
        self._model, self._collection, self._block = model, collection, block
        self._key = jax.random.key(seed)
        self._step = jax.jit(partial(_sample, graph))
        self._exactness = partial(_exactness, graph)
        self._top = top
        self._features: bool | None = None
        self.lowest = Lowest(top, (False, False))

    def sample(self, drawn: _Drawn) -> tuple[np.ndarray, np.ndarray]:
        """[n, top] clicks and [n] their log-probabilities."""
        n = len(drawn.query)
        batch = self._batch(drawn)
        check_bounds(self._model, batch, source="collection")
        clicked, log_prob, found = self._step(self._state, batch, jax.random.fold_in(self._key, drawn.start))
        self.lowest.add(jax.tree.map(lambda x: np.asarray(x)[:n], found), drawn.shown >= 0)
        return np.asarray(clicked)[:n], np.asarray(log_prob)[:n]

    def _batch(self, drawn: _Drawn) -> Sessions:
        if self._features is None:
            exact, self._features = self._examine(drawn)
            self.lowest = Lowest(self._top, exact)
        batch = _lists(self._collection, drawn, self._features)
        return batch if len(batch) == self._block else batch.pad(rows=self._block)

    def _examine(self, drawn: _Drawn) -> tuple[tuple[bool, bool], bool]:
        """What of the entropies is exact, and whether the user looks at the features of documents.

        These are most of a batch, and users who read grades do without.
        """
        context = {name: x[:1] for name, x in drawn.context.items()}
        one = _Drawn(0, drawn.query[:1], drawn.shown[:1], drawn.time[:1], context)
        try:
            return self._exactness(self._state, _lists(self._collection, one, False)), False
        except (ConfigError, KeyError):
            if self._collection.features is None:
                raise
            return self._exactness(self._state, _lists(self._collection, one, True)), True


def _exactness(graph: Any, state: Any, batch: Sessions) -> tuple[bool, bool]:
    found: list[tuple[bool, bool]] = []
    jax.eval_shape(lambda s, b: found.append(exactness(nnx.merge(graph, s)(b))), state, batch)
    return found[0]


def _sample(graph: Any, state: Any, batch: Sessions, key: Any) -> tuple[jax.Array, jax.Array, Entropies]:
    distribution = nnx.merge(graph, state)(batch)
    clicked = distribution.sample(key)
    return clicked, distribution.log_prob(clicked), entropies(distribution, clicked)


def _lists(collection: Collection, drawn: _Drawn, with_features: bool) -> Sessions:
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


def _table(
    drawn: _Drawn, collection: Collection, clicked: np.ndarray, contexts: Sequence[Context], times: bool
) -> pa.Table:
    mask = drawn.shown >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(mask.sum(1))]), pa.int32())
    rank = np.broadcast_to(np.arange(1, mask.shape[1] + 1, dtype=np.int32), mask.shape)

    def lists(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values[mask], kind))

    columns: dict[str, Any] = {
        "session": pa.array(np.arange(drawn.start, drawn.start + len(mask)), pa.int64()),
        "query": pa.array(collection.query[drawn.query], pa.int32()),
        "documents": lists(collection.document[np.where(mask, drawn.shown, 0)], pa.int32()),
        "ranks": lists(rank, pa.int32()),
        "clicks": lists(clicked, pa.int8()),
    }
    if times:
        columns["time"] = pa.array(drawn.time, pa.float64())
    return pa.table(columns | {CONTEXT + c.name: pa.array(drawn.context[c.name], pa.int32()) for c in contexts})
