"""Click metrics over a stream of sessions: one pass, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ultr.errors import DataError
from ultr.evaluation.clusters import unit_ids
from ultr.evaluation.contracts import ClickPredictor
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.metrics import LOG_LIKELIHOOD, ClickFunction, ClickMetric
from ultr.evaluation.moments import WeightedMoments, pad_axes
from ultr.sessions import Array, Sessions


def observed_log_probs(model: ClickPredictor, sessions: Sessions, metrics: Sequence[ClickMetric]) -> dict[str, Array]:
    """Computes what each metric averages: metric name -> log-probabilities of the observed clicks.

    The log-likelihood is always among them: it tells which sessions are impossible under the model.
    """
    predicted = model(sessions)
    return {metric.name: metric.function(predicted, sessions) for metric in (LOG_LIKELIHOOD, *metrics)}


class ClickTotals:
    """Running totals of click metrics.

    Args:
      metrics: those to keep totals for.
      cluster: the units whose totals are kept, a name of `CLUSTERS`, for standard errors over them and for
        `per_query`; None: every list is one, and nothing is kept.
    """

    def __init__(self, metrics: Sequence[ClickMetric], *, cluster: str | None) -> None:
        self._cluster, self._by_query = cluster, cluster is not None
        by_query = self._by_query
        self._excluded = 0.0
        # Metrics that differ only in what they divide by share their totals: per session, the number of sessions, of
        # shown documents, and the log-probability.
        self._sums: dict[ClickFunction, tuple[str, WeightedMoments]] = {}
        self._ranks: dict[str, _RankTotals] = {}
        for metric in (LOG_LIKELIHOOD, *metrics):
            if metric.average == "ranks":
                self._ranks[metric.name] = _RankTotals(by_query, over_all_sessions=metric.over_all_sessions)
            elif metric.function not in self._sums:
                moments = WeightedMoments(1, grouped=by_query)
                moments.widen(3)
                self._sums[metric.function] = metric.name, moments

    def add(self, batch: Sessions, log_probs: dict[str, np.ndarray]) -> None:
        """Adds a host batch with its `observed_log_probs`.

        Raises:
          DataError: a log-probability is NaN, or query ids are needed and missing.
        """
        mask, weight = np.asarray(batch.mask), batch.row_weights()
        unit = None if self._cluster is None else unit_ids(batch, self._cluster)
        query = np.zeros(len(mask), np.int64) if unit is None else unit
        real = mask.any(1) & (weight > 0)
        log_likelihood = np.asarray(log_probs[LOG_LIKELIHOOD.name], np.float64)
        possible = real & (log_likelihood > -np.inf)
        for name, moments in self._sums.values():
            log_prob = np.asarray(log_probs[name], np.float64)
            _reject_nan(np.isnan(log_prob) & real)
            rows = np.stack([np.ones(len(mask)), mask.sum(1), np.where(possible, log_prob, 0.0)], axis=1)
            # An impossible session adds nothing, yet its query stays in the table.
            rows = np.where(possible[:, None], rows, 0.0)[:, None]
            moments.add(rows[real], weight[real], query[real])
        self._excluded += weight[real & ~possible].sum()
        for name, totals in self._ranks.items():
            each = np.asarray(log_probs[name], np.float64)
            # By marginals every session counts, so that different models are measured on the same ones. Impossible
            # sessions have no conditionals: they would be conditioned on clicks of probability zero.
            kept = real if totals.over_all_sessions else possible
            _reject_nan(np.isnan(each).any(1) & kept)
            totals.excluded += weight[real & ~kept].sum()
            totals.add(each[kept], np.asarray(batch.position)[kept], mask[kept], weight[kept], query[kept])

    def ranks(self, metric: ClickMetric) -> list[int]:
        """Returns the 1-based ranks, ascending, at which sessions were counted for a metric that averages ranks."""
        return sorted(r + 1 for r in self._ranks[metric.name].positions.tolist())

    def estimate(self, metric: ClickMetric, rank: int | None = None) -> Estimate:
        """Estimates a metric; one that averages ranks also at a single 1-based rank."""
        if metric.name in self._ranks:
            return self._ranks[metric.name].estimate(rank)
        _, moments = self._sums[metric.function]
        sessions, documents, total = moments.totals[0]
        below, column = (documents, 1) if metric.average == "documents" else (sessions, 0)
        units = float((moments.groups()[1][:, 0, 0] > 0).sum()) if self._by_query else sessions
        if below == 0:
            return Estimate.of(math.nan, math.nan, count=0, excluded=self._excluded)
        gradient = np.zeros((1, 3))
        gradient[0, 2], gradient[0, column] = 1 / below, -total / below**2
        error = moments.standard_error(gradient, units)
        return Estimate.of(
            total / below,
            error,
            count=sessions,
            excluded=self._excluded,
            degrees_of_freedom=units - 1,
            upper_bound=metric.bounds[1],
        )

    def per_query(self, metric: ClickMetric, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns query ids [Q], ascending, and the metric over each query's own sessions [Q]."""
        if metric.name in self._ranks:
            return self._ranks[metric.name].per_query(rank)
        query, rows = self._sums[metric.function][1].groups()
        below = rows[:, 0, 1 if metric.average == "documents" else 0]
        return query, np.where(below > 0, rows[:, 0, 2] / np.where(below > 0, below, 1), np.nan)

    def queries(self) -> np.ndarray:
        """Returns the ids of all queries with a session, ascending, impossible sessions included."""
        return self._sums[LOG_LIKELIHOOD.function][1].groups()[0]


class _RankTotals:
    """Sums of log2 P(observed) and of the sessions shown, by rank; what has probability 0 is counted apart.

    Args:
      by_query: whether to keep the sums of every query.
      over_all_sessions: whether impossible sessions are to be added too.

    Attributes:
      positions: 0-based ranks that occurred, in the order of the columns.
      sessions: weight of the sessions added.
      excluded: weight of the sessions left out.
    """

    def __init__(self, by_query: bool, *, over_all_sessions: bool) -> None:
        self.over_all_sessions = over_all_sessions
        self._by_query = by_query
        self._moments = WeightedMoments(2, grouped=by_query)
        # Apart, since an infinite term in a product of sums would turn the errors of all ranks into NaN.
        self._impossible = WeightedMoments(1, grouped=by_query)
        self._column = np.zeros(0, np.int64)
        self.positions = np.zeros(0, np.int64)
        self.sessions = 0.0
        self.excluded = 0.0

    def add(
        self, log_prob: np.ndarray, position: np.ndarray, mask: np.ndarray, weight: np.ndarray, query: np.ndarray
    ) -> None:
        self.sessions += weight.sum()
        row, at = np.nonzero(mask)
        place = position[row, at]
        if len(place) == 0:
            return
        # Ranks may be sparse (page 7 of a result list): a column per rank that occurs.
        grow = max(int(place.max()) + 1 - len(self._column), 0)
        self._column = np.pad(self._column, (0, grow), constant_values=-1)
        new = np.unique(place[self._column[place] < 0])
        self._column[new] = len(self.positions) + np.arange(len(new))
        self.positions = np.concatenate([self.positions, new])
        rows = np.zeros((len(mask), 2, len(self.positions)))
        column = self._column[place]
        each = log_prob[row, at]
        impossible = np.isneginf(each)
        rows[row, 0, column] = np.where(impossible, 0.0, each) / math.log(2)
        rows[row, 1, column] = 1
        self._moments.add(rows, weight, query)
        if impossible.any():
            apart = np.zeros((len(mask), 1, len(self.positions)))
            apart[row[impossible], 0, column[impossible]] = 1
            self._impossible.add(apart, weight, query)

    def _chosen(self, rank: int | None) -> np.ndarray:
        return np.arange(len(self.positions)) if rank is None else np.flatnonzero(self.positions == rank - 1)

    def estimate(self, rank: int | None) -> Estimate:
        log2, shown = self._moments.totals
        chosen = self._chosen(rank)
        count = self.sessions if rank is None else float(shown[chosen].sum())
        if len(chosen) == 0:
            return Estimate.of(math.nan, math.nan, count=0, excluded=self.excluded)
        self._impossible.widen(len(log2))
        with np.errstate(over="ignore"):
            each = np.exp2(-log2[chosen] / shown[chosen])
            each = np.where(self._impossible.totals[0, chosen] > 0, np.inf, each)
            value = float(each.mean())
        if not math.isfinite(value):
            return Estimate.of(value, math.nan, count=count, excluded=self.excluded)
        # Relative to the value: the square of a large one would overflow.
        gradient = np.zeros((2, len(log2)))
        gradient[0, chosen] = -math.log(2) * (each / value) / (shown[chosen] * len(chosen))
        gradient[1, chosen] = -gradient[0, chosen] * log2[chosen] / shown[chosen]
        units = count
        if self._by_query:
            units = float((self._moments.groups()[1][:, 1, chosen] > 0).any(1).sum())
        return Estimate.of(
            value,
            value * self._moments.standard_error(gradient, units),
            count=count,
            excluded=self.excluded,
            degrees_of_freedom=units - 1,
            log_scale=True,
            lower_bound=1.0,
        )

    def per_query(self, rank: int | None) -> tuple[np.ndarray, np.ndarray]:
        query, rows = self._moments.groups()
        chosen = self._chosen(rank)
        log2, shown = np.moveaxis(rows[:, :, chosen], 1, 0)
        there = shown > 0
        with np.errstate(over="ignore"):
            each = np.where(there, np.exp2(-log2 / np.where(there, shown, 1)), 0.0)
        with_impossible, impossible = self._impossible.groups()
        if len(with_impossible):
            at = np.searchsorted(query, with_impossible)
            infinite = pad_axes(impossible, len(self.positions), (2,))[:, 0, chosen] > 0
            each[at] = np.where(infinite, np.inf, each[at])
        ranks = there.sum(1)
        with np.errstate(over="ignore"):
            return query, np.where(ranks > 0, each.sum(1) / np.maximum(ranks, 1), np.nan)


def _reject_nan(bad: np.ndarray) -> None:
    if bad.any():
        raise DataError(
            f"the model gives {bad.sum()} of {len(bad)} sessions of a batch a log-probability of NaN",
            fix="Its parameters or the features are not finite: check them, or lower the learning rate",
        )
