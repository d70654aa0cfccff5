"""`evaluate` and `per_query`: ranking metrics over queries and click metrics over sessions, with their uncertainty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ultr.data.dataset import BatchSource as Source
from ultr.data.dataset import InMemory
from ultr.errors import ConfigError, DataError
from ultr.evaluation.calls import Caller, fitting
from ultr.evaluation.clicks import CLICK_METRICS, PERPLEXITIES, ClickTotals, click_terms
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.ranking import EMPTY_QUERIES, RANKING_METRICS, query_metrics
from ultr.sessions import Sessions

_CUTOFFS = (1, 3, 5, 10)
_DEFAULT_RANKING = tuple(f"{name}@{k}" for name in RANKING_METRICS for k in _CUTOFFS)
_DEFAULT_CLICKS = (*CLICK_METRICS[:2], *(f"{name}{part}" for name in PERPLEXITIES for part in ("", "/rank")))
_RANKING = re.compile(rf"({'|'.join(RANKING_METRICS)})(?:@([1-9]\d*))?")
_CLICKS = re.compile(rf"({'|'.join(CLICK_METRICS[:2])})|({'|'.join(PERPLEXITIES)})(/rank(?:-([1-9]\d*))?)?")


def evaluate(
    model: Any,
    data: Source | Sessions,
    *,
    metrics: Sequence[str] | None = None,
    key: jax.Array,
    batch_size: int = 4096,
    empty_queries: str = "skip",
    cluster: str = "session",
    max_grade: float | None = None,
) -> dict[str, Estimate]:
    """How good a model is on data: metric name -> value with standard error, interval and counts.

    Ranking metrics, by `model.score(sessions)` [B, K] where the data has labels:
      `ndcg@k`, `dcg@k`, `mrr@k`, `map@k`, `err@k` for any k (without `@k`: the whole list). Gain 2^y - 1,
      discount log2(rank + 1); MRR and MAP call y >= 1 relevant, and MAP divides by all relevant
      documents; ERR stops with probability (2^y - 1) / 2^max_grade. Documents without a grade (NaN) are
      left out, grades below 0 count as 0. The mean is over queries: a query with several lists counts
      once, with their mean, and weights are not used. A click log is ranked over the judged candidates
      of its queries (`log.collection()`), once per query. Equal scores are ordered at random by the key,
      the query id (or the list's number) and the document's index in the list: the order of the input,
      the batch size and the padding have no say.
    Click metrics, by `model(sessions)` (a click distribution) where the data has clicks:
      `log_likelihood`: mean over sessions of ln P(clicks).
      `log_likelihood_per_document`: the same sum over the number of shown documents.
      `perplexity`: mean over ranks of 2^(-mean log2 P(click at that rank)), by marginals, that is
      without knowledge of the other clicks; `conditional_perplexity`: given the clicks above.
      `perplexity/rank-3`: at rank 3 alone; `perplexity/rank` (and `conditional_...`): at every rank.
      A session of weight w counts as w identical sessions, in value and standard error. Standard
      errors of perplexities are by the delta method. `perplexity` is over all sessions, for any model,
      and infinite where the model rules out what was observed at a rank. The other click metrics leave
      out, and count as excluded, the sessions whose clicks have probability zero under the model.

    Args:
      model: has `score`, is callable as a click model, or both. An `nnx.Module` runs compiled, with
        dropout and the like switched off; anything else is called as it is, with NumPy batches.
      data: a ClickLog, a Collection, any other source, or sessions in memory.
      metrics: names; None: all that model and data allow, at 1, 3, 5 and 10.
      key: decides the order of documents with equal scores.
      batch_size: lists per step.
      empty_queries: what a query without a relevant document gives: "skip" (nothing, and it is counted
        as excluded), "zero", or "one" (0 for DCG, whose best value there is 0).
      cluster: "session" when sessions are independent; "query" when sessions of one query are not
        (standard errors over queries; memory grows with the number of queries).
      max_grade: highest grade of the scale, for ERR; None: the highest in the data.

    Raises:
      ConfigError: an unknown metric or option, or a metric name that is empty or no string.
      DataError: data or model cannot give a metric that was asked for, a document id or rank lies beyond the
        model's tables, or the model gives NaN.
    """
    if cluster not in ("session", "query"):
        raise ConfigError(f"unknown cluster {cluster!r}; known: session, query")
    found = _Collected(
        model,
        data,
        metrics,
        key=key,
        batch_size=batch_size,
        empty_queries=empty_queries,
        by_query=cluster == "query",
        max_grade=max_grade,
    )
    estimates = {}
    for name, metric in found.names():
        if metric in found.values:
            estimates[name] = Estimate.mean(found.values[metric])
        else:
            assert found.totals is not None
            estimates[name] = found.totals.estimate(*metric)
    return estimates


def per_query(
    model: Any,
    data: Source | Sessions,
    *,
    metrics: Sequence[str] | None = None,
    key: jax.Array,
    batch_size: int = 4096,
    empty_queries: str = "skip",
    max_grade: float | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of `evaluate` for each query, for paired comparisons on the same data.

    Returns:
      "query": ids [Q], ascending; and for each metric its values [Q], NaN where a query has none
      (no relevant document under "skip"; of the click metrics that leave out sessions that the model
      cannot produce, no other session). A click metric's value is over the query's own sessions.

    Raises:
      ConfigError, DataError: as `evaluate`.
    """
    found = _Collected(
        model,
        data,
        metrics,
        key=key,
        batch_size=batch_size,
        empty_queries=empty_queries,
        by_query=True,
        max_grade=max_grade,
    )
    columns = {}
    for name, metric in found.names():
        if metric in found.values:
            columns[name] = found.query, found.values[metric]
        else:
            assert found.totals is not None
            columns[name] = found.totals.per_query(*metric)
    query = np.unique(np.concatenate([found.query, found.totals.queries() if found.totals else found.query]))
    table = {"query": query}
    for name, (ids, values) in columns.items():
        table[name] = np.full(len(query), np.nan)
        table[name][np.searchsorted(query, ids)] = values
    return table


class _Collected:
    """One or two passes over the data: click totals, and ranking metrics per query."""

    def __init__(
        self,
        model: Any,
        data: Source | Sessions,
        metrics: Sequence[str] | None,
        *,
        key: jax.Array,
        batch_size: int,
        empty_queries: str,
        by_query: bool,
        max_grade: float | None,
    ) -> None:
        if empty_queries not in EMPTY_QUERIES:
            raise ConfigError(f"unknown empty_queries {empty_queries!r}; known: {', '.join(EMPTY_QUERIES)}")
        if batch_size < 1:
            raise ConfigError(f"expected a batch_size of at least 1, found {batch_size}")
        parsed = None if metrics is None else [parse_metric(name) for name in _asked(metrics)]
        if isinstance(data, Sessions):
            data = InMemory(data)
            batch_size = max(1, min(batch_size, len(data)))
        first = next(iter(data.batches(batch_size)), None)
        if first is None:
            raise DataError("expected at least one session or query to evaluate on, found none")
        call = Caller(model)
        judged, queries = _judged(data, first)
        obstacles = {
            "ranking": _no_ranking(model, judged),
            "clicks": _no_clicks(call, first),
        }
        if parsed is None:
            if None not in obstacles.values():
                raise DataError(f"nothing to evaluate: {obstacles['ranking']}; {obstacles['clicks']}")
            names = (() if obstacles["ranking"] else _DEFAULT_RANKING) + (
                () if obstacles["clicks"] else _DEFAULT_CLICKS
            )
            parsed = [parse_metric(name) for name in names]
        for name, kind, _ in parsed:
            if obstacles[kind]:
                raise DataError(f"metric {name!r} cannot be computed: {obstacles[kind]}")
        self._parsed = parsed
        self.query = np.zeros(0, np.int64)
        self.values: dict[tuple[str, int | None], np.ndarray] = {}
        ranking = tuple(dict.fromkeys(metric for _, kind, metric in parsed if kind == "ranking"))
        if ranking:
            assert judged is not None
            if max_grade is None:
                max_grade = _highest_grade(judged, batch_size) if "err" in dict(ranking) else np.inf
            self.query, self.values = query_metrics(
                call.scores,
                judged.batches(fitting(batch_size, judged)),
                ranking,
                key=key,
                max_grade=max_grade,
                empty_queries=empty_queries,
                queries=queries,
            )
        self.totals: ClickTotals | None = None
        if any(kind == "clicks" for _, kind, _ in parsed):
            chosen = {metric[0] for _, kind, metric in parsed if kind == "clicks"}
            perplexities = tuple(name for name in PERPLEXITIES if name in chosen)
            self.totals = ClickTotals(perplexities, by_query=by_query)
            options = tuple(name in chosen for name in PERPLEXITIES)
            for batch in data.batches(fitting(batch_size, data)):
                self.totals.add(batch, jax.device_get(call(click_terms, batch, *options)))

    def names(self) -> Iterator[tuple[str, tuple[str, int | None]]]:
        """Metric names in the order asked, `/rank` spelt out, with (name, cutoff or rank)."""
        for name, kind, metric in self._parsed:
            if kind == "ranking" or "/rank" not in name:
                yield name, metric
                continue
            assert self.totals is not None
            ranks = self.totals.ranks(metric[0])
            if metric[1] is not None and metric[1] not in ranks:
                raise DataError(
                    f"metric {name!r} cannot be computed: no session shows rank {metric[1]}",
                    fix=f"The ranks shown go from {min(ranks, default=0)} to {max(ranks, default=0)}",
                )
            for rank in ranks if metric[1] is None else [metric[1]]:
                yield f"{metric[0]}/rank-{rank}", (metric[0], rank)


def _asked(metrics: Any) -> list[str]:
    if isinstance(metrics, str):
        return [metrics]
    if not isinstance(metrics, Iterable):
        raise ConfigError(f"expected metric names, found {metrics!r}")
    names = list(metrics)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"expected metric names as strings, found {name!r}")
    return names


def parse_metric(name: str) -> tuple[str, str, tuple[str, int | None]]:
    """(name as asked, kind, (metric, cutoff or rank)).

    Raises:
      ConfigError: an unknown name.
    """
    if match := _RANKING.fullmatch(name):
        return name, "ranking", (match[1], int(match[2]) if match[2] else None)
    if match := _CLICKS.fullmatch(name):
        return name, "clicks", (match[1] or match[2], int(match[4]) if match[4] else None)
    if not name.strip():
        raise ConfigError("an empty metric name was given; is there a comma too many?")
    known = [f"{m}@k" for m in RANKING_METRICS] + list(CLICK_METRICS) + [f"{m}/rank-k" for m in PERPLEXITIES]
    raise ConfigError(f"unknown metric {name!r}; known: {', '.join(known)}")


def _judged(data: Source, first: Sessions) -> tuple[Source | None, np.ndarray | None]:
    """Where the labels are, and which queries of it count (None: all)."""
    collection = getattr(data, "collection", None)
    judged = collection() if callable(collection) else None
    if judged is not None:
        # The candidates are the whole vocabulary's; a split of the log shows a part of its queries.
        shown = data.columns(["query"])  # type: ignore[attr-defined]
        return judged, np.unique(np.concatenate([np.unique(rows["query"].to_numpy()) for rows in shown]))
    return (data, None) if first.labels is not None else (None, None)


def _no_ranking(model: Any, judged: Source | None) -> str | None:
    if judged is None:
        return "the data has no labels"
    if not callable(getattr(model, "score", None)):
        return f"{type(model).__name__} has no method score(sessions)"
    return None


def _no_clicks(call: Caller, first: Sessions) -> str | None:
    if first.clicks is None:
        return "the data has no clicks"
    name = type(call.model).__name__
    if not callable(call.model):
        return f"{name} is not a click model (it cannot be called)"
    try:
        return None if call.is_click_model(first) else f"{name} is not a click model (no click distribution)"
    except (TypeError, AttributeError) as error:  # a ranker that is called with something else than sessions
        return f"{name} cannot be called as a click model ({error})"


def _highest_grade(judged: Source, batch_size: int) -> float:
    labels = getattr(judged, "labels", None)
    if labels is not None:
        return float(np.max(labels, where=~np.isnan(labels), initial=0))
    highest = 0.0
    for batch in judged.batches(batch_size):
        labels = np.asarray(batch.labels)
        highest = max(highest, float(np.max(labels, where=batch.mask & ~np.isnan(labels), initial=0)))
    return highest
