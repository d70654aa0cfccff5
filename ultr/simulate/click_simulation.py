"""`clicks`: sessions drawn block by block and streamed to disk, with the truth in the metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ultr.arguments import check_count, check_number
from ultr.data import ClickLog, Collection, LogWriter
from ultr.data.columns import CONTEXT
from ultr.errors import ConfigError, DataError
from ultr.models import ClickModel
from ultr.simulate.click_sampling import ClickSampler, DrawnSessions, draw_sessions
from ultr.simulate.examination_curves import Context
from ultr.simulate.ground_truth import bias_exponents, describe_user, user_class
from ultr.simulate.policies import Policy
from ultr.simulate.ranking_sampler import RankingSampler


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
    candidates_at_once: int = 4_000_000,
) -> ClickLog:
    """Simulates sessions and streams them to disk as a click log that holds the ground truth.

    Each session draws a query, ranks its documents by the policy, shows the first `ranks` of them and samples clicks
    from the model. The log's vocabulary keeps the grades and features of the collection. Its `metadata["truth"]` keeps
      `policy`, `seed`, `zipf`, `user` (class of the model, without what wraps it);
      what the user's towers hold: `examination` by rank (where the model has one), `trust`, `contexts`, `drift`,
        `noise`, and for a mixture its `components` with their `share`;
      `log_likelihood`: mean over the sessions of ln P(clicks) under the true model;
      `lowest`: the lowest values that a model can be expected to have on the same lists: `entropy` per session in
        nats, `perplexity` and `conditional_perplexity` as `ultr.evaluation` defines them, with standard errors (0:
        exact). A model that does not know contexts and time stays above them.

    Args:
      collection: annotated lists.
      policy: the logging policy.
      model: the user; any click model, whose towers may read labels, positions, features, documents, contexts and
        `time`.
      sessions: number of sessions.
      seed: decides queries, rankings, contexts and clicks.
      out: folder of the new log.
      ranks: the most documents that a session shows.
      zipf: exponent of the query frequencies 1/i^zipf in the order of the collection; 0: uniform.
      contexts: drawn for each session and written to the log as context columns; None: those of the model's towers.
      times: whether to write the column `time`, from 0 (the first session) to 1 (the last); None: where the user
        changes over time. The towers of the user can read it; a log that is read has no such feature.
      overwrite: whether to replace a log at `out`.
      progress: called with the number of sessions after each block.
      candidates_at_once: candidates ranked at a time, which bounds the memory.

    Raises:
      ConfigError: fewer than one session or rank, or a policy that the collection cannot feed.
      DataError: `out` exists, or a grade or rank beyond the model's tables.
    """
    check_count("sessions", sessions)
    check_count("ranks", ranks)
    check_count("seed", seed, least=0)
    check_number("zipf", zipf, least=0)
    sizes = np.diff(collection.offsets)
    if not (sizes > 0).any():
        raise DataError("expected a collection with documents, found none")
    if contexts is None:
        contexts = tuple(dict.fromkeys(context for bias in bias_exponents(model) for context in bias.contexts))
    if times is None:
        times = any(bias.drift is not None for bias in bias_exponents(model))
    if len({context.name for context in contexts}) < len(contexts):
        raise ConfigError(f"expected one context of each name, found {[context.name for context in contexts]}")
    truth: dict[str, Any] = {
        "policy": dataclasses.asdict(policy),
        "user": user_class(model),
        "seed": seed,
        "zipf": zipf,
    }
    width = int(sizes.max())
    top = min(ranks, width)
    scores = policy.scores(collection, seed=seed)
    rankings = RankingSampler(collection, policy, scores, top=top, seed=seed)
    block = max(1, min(sessions, candidates_at_once // width))
    sampler = ClickSampler(model, collection, block=block, top=top, seed=seed, contexts=contexts)
    truth |= describe_user(model, contexts, top)
    total = 0.0
    queries, documents = collection.vocabulary.tables()
    writer = LogWriter(
        out,
        queries=queries,
        documents=documents,
        features=collection.vocabulary.feature_names,
        context={c.name: {"kind": "category", "values": list(c.values)} for c in contexts},
        max_grade=collection.vocabulary.max_grade or None,
        named_by_place=collection.vocabulary.named_by_place,
        overwrite=overwrite,
    )
    with writer:
        for drawn in draw_sessions(sizes, rankings, contexts, sessions=sessions, block=block, seed=seed, zipf=zipf):
            clicked, log_prob = sampler.sample(drawn)
            total += float(np.asarray(log_prob, np.float64).sum())
            writer.write(_table(drawn, collection, clicked, contexts, times))
            if progress is not None:
                progress(len(drawn.query))
        writer.truth = truth | {"log_likelihood": total / sessions, "lowest": sampler.entropy_totals.to_json()}
        writer.report = {"sessions": sessions}
    return ClickLog.open(out)


def _table(
    drawn: DrawnSessions, collection: Collection, clicked: np.ndarray, contexts: Sequence[Context], times: bool
) -> pa.Table:
    """Makes the rows of the log."""
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
