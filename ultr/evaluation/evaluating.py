"""`evaluate` and `per_query`: ranking metrics over queries and click metrics over sessions, with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from ultr.arguments import LARGEST_GRADE, SCALE_GRADES, check_number
from ultr.data import ClickLog, Collection
from ultr.data.dataset import Dataset, DatasetLike
from ultr.data.input_schema import FEATURES
from ultr.errors import ConfigError, DataError
from ultr.evaluation.click_totals import ClickTotals, observed_log_probs
from ultr.evaluation.clusters import check_cluster, unit_ids, with_units
from ultr.evaluation.compiled import CompiledModel, evaluation_data, fitted_batch_size
from ultr.evaluation.contracts import ClickPredictor, Scorer
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.graded import GradedLists, candidate_lists, candidate_notes, grade_scale_of, graded_lists
from ultr.evaluation.judged import Judged, judged_documents
from ultr.evaluation.metrics import (
    ClickMetric,
    Metric,
    MetricRequest,
    RankingMetric,
    default_metrics,
    parse_metric,
)
from ultr.evaluation.ranking import EMPTY_QUERIES, MetricAt, query_metrics
from ultr.sessions import Sessions
from ultr.towers import Component, schema_of


class Estimates(dict[str, Estimate]):
    """The metrics of a model by name, and those that could not be computed.

    Attributes:
      not_computed: "ranking" where the data has grades and the metrics of rankings can still not be computed -> why.
      documents: of data with document ids of its own, how many documents were found by name among those of the training
        data's vocabulary, whether training showed them or not, and how many are not in it; None: the ids are those of
        the training data, or do not matter.
      judged: what the judged documents tell; None: no ranking metric was asked for, or there are none.
      candidates: what candidates that were given leave out, and where they grade otherwise (`candidate_notes`).
      notes: what a reader of the ranking metrics should know: that training never showed what is judged, that all
        judged documents of a query have one grade, that queries have no candidates.
    """

    not_computed: Mapping[str, str] = {}
    documents: tuple[int, int] | None = None
    judged: Judged | None = None
    candidates: Mapping[str, int] = {}
    notes: Sequence[str] = ()


def evaluate(
    model: Scorer | ClickPredictor,
    data: DatasetLike,
    *,
    metrics: Sequence[str] | None = None,
    key: jax.Array,
    batch_size: int = 4096,
    empty_queries: str = "skip",
    cluster: str = "session",
    max_grade: float | None = None,
    candidates: Collection | None = None,
) -> Estimates:
    """Computes how good a model is on data: metric name -> value with standard error, interval and counts.

    `METRICS` describes the metrics of both kinds.

    Ranking metrics such as `ndcg@10`, by `model.score(sessions)` [B, K] where the data has labels:
      `name@k` counts the first k ranks, for any k; `name` alone the whole list. Documents without a grade (NaN) are
      left out, grades below 0 count as 0, and MAP divides by all relevant documents. The mean is over queries: a query
      with several lists counts once, with their mean, and weights are not used. Of a click log, the graded candidates
      of its queries (`log.collection()`) are ranked, once per query. Equal scores are ordered at random by the key, the
      query id (or the number of the list) and the index of the document in the list: the order of the input, the batch
      size and padding have no influence.
    Click metrics such as `perplexity`, by `model(sessions)` (a click distribution) where the data has clicks:
      A perplexity is the mean over ranks of 2^(-mean log2 P(click or skip at that rank)); `perplexity/rank-3` is that
      of rank 3 alone, and `perplexity/rank` that of every rank by itself. A session of weight w counts as w identical
      sessions, in value and standard error. Standard errors of perplexities are by the delta method. `perplexity` is
      over all sessions, for any model, and infinite where the model gives probability zero to what was observed at a
      rank. The other click metrics leave out, and count as excluded, the sessions whose clicks have probability zero
      under the model.

    Args:
      model: has `score`, is callable as a click model, or both. An `nnx.Module` runs compiled, with dropout and the
        like switched off; anything else is called as it is, with NumPy batches.
      data: a ClickLog, a Collection, any other source, or sessions in memory.
      metrics: names; None: all that model and data allow, ranking metrics at 1, 3, 5 and 10.
      key: decides the order of documents with equal scores.
      batch_size: lists per step.
      empty_queries: the value of a query without a relevant document: "skip" (none, and it is counted as excluded),
        "zero", or "one" (0 for DCG, whose best value there is 0).
      cluster: the independent units of the standard errors of click metrics: "session", all lists of a session of the
        log together; "query", where sessions of one query are not independent; or "list", each list by itself. Memory
        grows with their number, unless every list is one.
      max_grade: highest grade of the scale, for ERR; None: that of the collection or log, which its parts keep, or the
        highest in the data where that has no scale (sessions in memory, and older folders).
      candidates: graded lists to rank in place of those of the data, for its queries (by name). A log whose features
        are per impression has none for its judged candidates: here they are.

    Returns:
      Metric name -> estimate; `not_computed` says which of the metrics that the data is made for are missing, and why,
      `notes` what the ranking metrics leave out.

    Raises:
      ConfigError: an unknown metric or option, or a metric name that is empty or no string.
      DataError: data or model cannot give a metric that was asked for, such as one of rankings by a table of documents
        none of which training showed, a document id or rank lies beyond the model's
        tables, the model gives NaN, or the data lacks a feature or context that the model was trained on.
    """
    check_cluster(cluster)
    evaluation = _Evaluation(
        model,
        data,
        metrics,
        key=key,
        batch_size=batch_size,
        empty_queries=empty_queries,
        cluster=cluster,
        max_grade=max_grade,
        candidates=candidates,
    )
    estimates = Estimates()
    estimates.not_computed, estimates.documents = evaluation.not_computed, evaluation.documents
    estimates.judged, estimates.candidates, estimates.notes = evaluation.judged, evaluation.about, evaluation.notes
    for name, metric, at in evaluation.names():
        if isinstance(metric, RankingMetric):
            estimates[name] = Estimate.mean(evaluation.ranking[metric, at], bounds=metric.bounds)
        else:
            estimates[name] = evaluation.clicks.estimate(metric, at)
    return estimates


def per_query(
    model: Scorer | ClickPredictor,
    data: DatasetLike,
    *,
    metrics: Sequence[str] | None = None,
    key: jax.Array,
    batch_size: int = 4096,
    empty_queries: str = "skip",
    max_grade: float | None = None,
    candidates: Collection | None = None,
) -> dict[str, np.ndarray]:
    """Computes the metrics of `evaluate` for each query, for paired comparisons on the same data.

    Returns:
      "query": ids [Q], ascending; and for each metric its values [Q], NaN where a query has none: no relevant document
      under "skip", or only sessions whose clicks have probability zero under the model, for the click metrics that
      leave these out. A click metric's value is over the query's own sessions.

    Raises:
      ConfigError, DataError: as `evaluate`.
    """
    evaluation = _Evaluation(
        model,
        data,
        metrics,
        key=key,
        batch_size=batch_size,
        empty_queries=empty_queries,
        cluster="query",
        max_grade=max_grade,
        candidates=candidates,
    )
    columns = {}
    for name, metric, at in evaluation.names():
        if isinstance(metric, RankingMetric):
            columns[name] = evaluation.query, evaluation.ranking[metric, at]
        else:
            columns[name] = evaluation.clicks.per_query(metric, at)
    query = np.unique(np.concatenate([evaluation.query, evaluation.clicks.queries()]))
    table = {"query": query}
    for name, (ids, values) in columns.items():
        table[name] = np.full(len(query), np.nan)
        table[name][np.searchsorted(query, ids)] = values
    return table


class _Evaluation:
    """The metrics of a model on data, computed in one pass over graded lists and one over sessions with clicks.

    Attributes:
      query: ids [Q] of the queries with graded lists, ascending; empty where no ranking metric was asked for.
      ranking: (metric, cutoff) -> values [Q].
      clicks: totals of the click metrics; without sessions where none was asked for.
      not_computed, documents, judged, notes: as of `Estimates`; about: its `candidates`.
    """

    def __init__(
        self,
        model: object,
        data: DatasetLike,
        metrics: Sequence[str] | None,
        *,
        key: jax.Array,
        batch_size: int,
        empty_queries: str,
        cluster: str,
        max_grade: float | None,
        candidates: Collection | None,
    ) -> None:
        if empty_queries not in EMPTY_QUERIES:
            raise ConfigError(f"unknown empty_queries {empty_queries!r}; known: {', '.join(EMPTY_QUERIES)}")
        if max_grade is not None:
            max_grade = check_number("max_grade", max_grade, above=0)
            if max_grade > LARGEST_GRADE:
                raise ConfigError(
                    f"expected max_grade (--max-grade) of at most {LARGEST_GRADE}, found {max_grade:g}. {SCALE_GRADES}"
                )
        requests = None if metrics is None else [parse_metric(name) for name in _metric_names(metrics)]
        dataset, batch_size = evaluation_data(data, batch_size)
        dataset = with_units(dataset, cluster)
        first = next(iter(dataset.batches(batch_size)), None)
        if first is None:
            raise DataError("expected at least one session or query to evaluate on, found none")
        compiled = CompiledModel(model).on(dataset)
        self.documents = compiled.documents
        graded = graded_lists(dataset, first) if candidates is None else candidate_lists(candidates, dataset)
        why = _why_no_ranking(compiled, graded, dataset if candidates is None else None)
        self.judged: Judged | None = None
        self.about: dict[str, int] = {}
        self.notes: list[str] = []
        if why is None and graded is not None and _asks_for_ranking(requests):
            self.judged = judged_documents(compiled, graded, batch_size)
            why, self.notes = self.judged.obstacle, self.judged.notes
            if candidates is not None:
                self.about, found = candidate_notes(candidates, dataset)
                self.notes += found
        self.not_computed = {RankingMetric.kind: why} if why is not None and graded is not None else {}
        obstacles = {RankingMetric.kind: why, ClickMetric.kind: _why_no_clicks(compiled, first)}
        self._requests = _possible(requests, obstacles)
        self.query = np.zeros(0, np.int64)
        self.ranking: dict[MetricAt, np.ndarray] = {}
        ranking = dict.fromkeys((r.metric, r.at) for r in self._requests if isinstance(r.metric, RankingMetric))
        if ranking:
            assert graded is not None
            if max_grade is None:
                needed = any(metric.needs_max_grade for metric, _ in ranking)
                max_grade = grade_scale_of(graded.source, batch_size) if needed else np.inf
            self.query, self.ranking = query_metrics(
                compiled.on(graded.source).scores,
                graded.source.batches(fitted_batch_size(batch_size, graded.source)),
                list(ranking),
                key=key,
                max_grade=max_grade,
                empty_queries=empty_queries,
                queries=graded.queries,
            )
        clicks = tuple(dict.fromkeys(r.metric for r in self._requests if isinstance(r.metric, ClickMetric)))
        grouped = bool(clicks) and first.clicks is not None and unit_ids(first, cluster) is not None
        self.clicks = ClickTotals(clicks, cluster=cluster if grouped else None)
        if clicks:
            for batch in dataset.batches(fitted_batch_size(batch_size, dataset)):
                self.clicks.add(batch, jax.device_get(compiled(observed_log_probs, batch, clicks)))

    def names(self) -> Iterator[tuple[str, Metric, int | None]]:
        """Yields name, metric and cutoff or rank in the order asked, with a name for each rank of `/rank`."""
        for name, metric, at, by_rank in self._requests:
            if not by_rank or isinstance(metric, RankingMetric):
                yield name, metric, at
                continue
            ranks = self.clicks.ranks(metric)
            if at is not None and at not in ranks:
                raise DataError(
                    f"metric {name!r} cannot be computed: no session shows rank {at}",
                    fix=f"The ranks shown go from {min(ranks, default=0)} to {max(ranks, default=0)}",
                )
            for rank in ranks if at is None else [at]:
                yield f"{metric.name}/rank-{rank}", metric, rank


def _asks_for_ranking(requests: list[MetricRequest] | None) -> bool:
    return requests is None or any(isinstance(request.metric, RankingMetric) for request in requests)


def _metric_names(metrics: Iterable[str] | str) -> list[str]:
    if isinstance(metrics, str):
        return [metrics]
    if not isinstance(metrics, Iterable):
        raise ConfigError(f"expected metric names, found {metrics!r}")
    names = list(metrics)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"expected metric names as strings, found {name!r}")
    return names


def _possible(requests: list[MetricRequest] | None, obstacles: dict[str, str | None]) -> list[MetricRequest]:
    """Returns the metrics that were asked for, or all that can be computed.

    Args:
      requests: None: all.
      obstacles: kind of metrics -> why they cannot be computed, or None.
    """
    if requests is None:
        if None not in obstacles.values():
            raise DataError(f"nothing to evaluate: {'; '.join(str(why) for why in obstacles.values())}")
        return [request for kind, why in obstacles.items() if why is None for request in default_metrics(kind)]
    for request in requests:
        if why := obstacles[request.metric.kind]:
            raise DataError(f"metric {request.name!r} cannot be computed: {why}")
    return requests


def _why_no_ranking(compiled: CompiledModel, graded: GradedLists | None, data: Dataset | None) -> str | None:
    """Says why a model cannot rank graded lists, those of `data` or others; None where it can."""
    model = compiled.model
    if graded is None:
        return "the data has no labels"
    if not isinstance(model, Scorer):
        return f"{type(model).__name__} has no method score(sessions)"
    own = data.metadata["impression_features"] if isinstance(data, ClickLog) else []
    if not own:
        return None
    reads = model.reads if isinstance(model, Component) else None
    lacks = reads is not None and FEATURES in reads and schema_of(model) is None
    try:
        compiled.on(graded.source, name="judged documents")
    except DataError:
        lacks = True
    if not lacks:
        return None
    return (
        f"the features {', '.join(own)} of the log are of impressions, and its judged documents have none. Give these "
        "with their features: --candidates FILE (in Python: candidates=)"
    )


def _why_no_clicks(compiled: CompiledModel, first: Sessions) -> str | None:
    if first.clicks is None:
        return "the data has no clicks"
    name = type(compiled.model).__name__
    if not callable(compiled.model):
        return f"{name} is not a click model (it cannot be called)"
    try:
        return None if compiled.predicts_clicks(first) else f"{name} is not a click model (no click distribution)"
    except (TypeError, AttributeError) as error:  # a ranker whose call takes something other than sessions
        return f"{name} cannot be called as a click model ({error})"
