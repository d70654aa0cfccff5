"""Counterfactual evaluation: what a new ranker would be worth to users, from clicks on another one's rankings."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ultr.data.dataset import DatasetLike
from ultr.errors import ConfigError, DataError
from ultr.evaluation.clusters import check_cluster, unit_ids, with_units
from ultr.evaluation.compiled import CompiledModel, evaluation_data
from ultr.evaluation.contracts import Scorer
from ultr.evaluation.estimate import Estimate
from ultr.evaluation.examination_table import ExaminationTable
from ultr.evaluation.moments import WeightedMoments
from ultr.evaluation.ranking import tie_seed
from ultr.evaluation.reranking import LOGGED, Reranking
from ultr.files import json_values

if TYPE_CHECKING:
    from ultr.data import Collection
    from ultr.propensity import Propensities

METHODS = ("ips", "snips", "dr")
_DCG = re.compile(r"dcg(?:@([1-9]\d*))?")


@dataclasses.dataclass(frozen=True, slots=True)
class LogSupport:
    """The part of the log that an estimate rests on.

    Attributes:
      clicks: number of clicks that count: on documents that the ranker places within the cutoff.
      effective_sample_size: Kish's (sum w)^2 / sum w^2 of the weights of those clicks: as many clicks of equal weight
        would give an equally certain estimate.
      clipped: share of those clicks whose weight was clipped.
      unsupported: number of documents within the cutoff that were never shown; their value is that of the regression
        alone ("dr").
      bias: (low, high) what clipped weights, and documents that were never shown, may have put into the numerator of
        the value beyond the truth (high) or left out of it (-low), at most, on average over the sessions; the interval
        is wider by it. (0, 0) where neither happens.
    """

    clicks: float
    effective_sample_size: float
    clipped: float
    unsupported: int = 0
    bias: tuple[float, float] = (0.0, 0.0)


class CounterfactualValues:
    """The values of several rankers from one log, and their differences.

    Attributes:
      method, metric: as asked.
      values: name -> value with the interval, which is wider by what clipped weights may have taken from the value;
        `logged` is the value of the order in which the documents were shown
        (with candidates: of the shown documents alone, at the ranks where they were).
      support: name -> how much of the log the value rests on.
    """

    def __init__(self, method: str, metric: str, support: dict[str, LogSupport], moments: WeightedMoments) -> None:
        self.method, self.metric, self.support = method, metric, support
        self._names, self._moments = list(support), moments
        self.values = {name: self._estimate({name: 1.0}) for name in support}

    def difference(self, a: str, b: str) -> Estimate:
        """Estimates the value of `a` minus that of `b`; paired by session, so mostly more certain than either.

        Where weights were clipped, the interval holds for any bias that the bounds of both allow.

        Raises:
          ConfigError: no such ranker.
        """
        for name in (a, b):
            if name not in self._names:
                raise ConfigError(f"unknown ranker '{name}'; known: {', '.join(self._names)}")
        return self._estimate({a: 1.0, b: -1.0} if a != b else {a: 0.0})

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for JSON; numbers that are not finite become None."""
        rows = {name: self.values[name].to_json() | dataclasses.asdict(self.support[name]) for name in self._names}
        values: dict[str, Any] = json_values({"method": self.method, "metric": self.metric, "values": rows})
        return values

    def _estimate(self, signs: Mapping[str, float]) -> Estimate:
        """Estimates a signed sum of values from the totals of the rows, and bounds it on both sides."""
        totals = self._moments.totals[0]
        units = totals[0]
        if self._moments.grouped:
            units = float((self._moments.groups()[1][:, 0, 0] > 0).sum())
        if any(totals[self._columns(name).below] <= 0 for name in signs):  # no click at any document it could place
            return Estimate.of(math.nan, math.nan, count=totals[0])
        value, gradient = self._sum(signs, 0)
        error = self._moments.standard_error(gradient, units)
        (low, under), (high, over) = self._sum(signs, -1), self._sum(signs, 1)
        reach = [self._moments.standard_error(slope, units) for slope in (under, over)]
        least, most = (-math.inf, math.inf)
        if list(signs.values()) == [1.0]:  # a value, and no difference
            least, most = 0.0, 1.0 if self.method == "snips" else math.inf
        return Estimate.of(
            value,
            error,
            count=totals[0],
            degrees_of_freedom=units - 1,
            lower_bound=least,
            upper_bound=most,
            ends=((low, reach[0]), (high, reach[1])),
        )

    def _columns(self, name: str) -> _Columns:
        weights = 1 + len(_Columns._fields) * self._names.index(name)
        below = weights if self.method == "snips" else 0
        return _Columns(below, weights + 1, weights + 2, weights + 3, weights + 4)

    def _sum(self, signs: Mapping[str, float], side: int) -> tuple[float, np.ndarray]:
        """Computes the signed sum of values, or the end of it that the bias allows, with its gradient by the totals.

        Args:
          side: 0: the value itself; -1, 1: the least and the greatest that the truth can be where the totals are right.
        """
        totals = self._moments.totals[0]
        total, gradient = 0.0, np.zeros((1, len(totals)))
        for name, sign in signs.items():
            at, towards = self._columns(name), side * (1 if sign > 0 else -1)
            above = np.zeros(len(totals))
            below = np.zeros(len(totals))
            above[at.value], below[at.below] = 1.0, 1.0
            if towards > 0:
                above[at.missing] = 1.0
                below[at.missing] = float(self.method == "snips")  # what adds m r to the value adds at least that to r
            elif towards < 0:
                above[at.surplus] = -1.0
                below[at.relevance] = float(self.method == "snips")
            ratio = float(above @ totals / (below @ totals))
            total += sign * ratio
            gradient[0] += sign * (above - ratio * below) / (below @ totals)
        return total, gradient


class _Columns(NamedTuple):
    """The places of a ranker's sums in the rows of the moments.

    Attributes:
      below: what the value is divided by: the number of sessions, or ("snips") the weights of the clicks.
      value: the DCG.
      missing, surplus: how much the clipping may have taken from the DCG, and put into it.
      relevance: how much it may have taken from the weights of the clicks.
    """

    below: int
    value: int
    missing: int
    surplus: int
    relevance: int


def counterfactual(
    log: DatasetLike,
    rankers: Scorer | Mapping[str, Scorer],
    *,
    propensity: np.ndarray | Sequence[float] | Propensities,
    metric: str = "dcg@10",
    method: str = "ips",
    regression: Scorer | None = None,
    false_clicks: np.ndarray | Sequence[float] | None = None,
    clip: float | None = None,
    candidates: Collection | None = None,
    cluster: str = "session",
    key: jax.Array,
    batch_size: int = 4096,
) -> CounterfactualValues:
    """Estimates from a click log the DCG that new rankers would have given the users.

    A click at rank k happens with probability o_k r_d + b_k: examination (or trust) by rank times the relevance of the
    document, plus false clicks. The value of a ranker that places document d at rank k'_d is the mean over sessions of
    the sum of r_d / log2(k'_d + 1) over the documents with k'_d within the cutoff. Note that the gain is the
    probability that an examining user clicks, and not 2^grade - 1.

    Which documents are ranked:
      Without `candidates` those that a session shows, so that k' is the rank among them; documents that a session does
      not show have no value in it. The weight of an impression is 1 / o_k.
      With `candidates` all candidates of the session's query, shown or not; the weight is 1 / (mean over the sessions
      of the query of o at the rank where the document was shown, 0 where it was not), so that documents that only some
      sessions show are weighted right (policy-aware, Oosterhuis and de Rijke 2020). A document that a ranker places
      within the cutoff and that was never shown has no value: an error, except by "dr".

    Methods, each a mean over sessions with w the weight, c the click, m = 1 / log2(k' + 1) within the cutoff, else 0:
      "ips": sum of w (c - b_k) m (Joachims 2017). Unbiased where `propensity` and `false_clicks` are right.
      "snips": "ips" divided by the mean of the sum of w (c - b_k): how high relevant documents stand, from 0 to 1; not
        a DCG. A common factor of all propensities has no effect; consistent, with a small bias (Swaminathan and
        Joachims 2015).
      "dr": sum over documents of m r', and of w (c - o_k r' - b_k) m over impressions, with r' the regression's
        relevance (Oosterhuis 2023). With right `propensity` and `false_clicks` it is unbiased where no weight is
        clipped and all documents are shown, and is then the same number as "ips"; elsewhere it is unbiased where the
        regression is right.

    Args:
      log: sessions with clicks; a session of weight w counts as w sessions.
      rankers: a model with `score(sessions)`, called "new" in the result; or name -> model. Equal scores are ordered
        at random by the key and the query.
      propensity: [R] examination by rank, the first for rank 1; or a `Propensities` table. Relative ones (1 at rank 1)
        give values relative to rank 1.
      metric: "dcg" or "dcg@k"; the method rests on metrics that are sums over documents.
      regression: for "dr": a model whose score is the logit of relevance, such as a PBM trained on another log.
      false_clicks: [R] b by rank, or None for none; with trust bias, P(click) = alpha_k r + beta_k, `propensity` is
        alpha and this is beta (Vardasbi 2020).
      clip: the largest weight, as for the baselines; larger ones are cut off to it. Trades bias for variance: at most
        the sum of (1 - clip o_k) m over the impressions is lost, by which the interval is wider.
      candidates: lists with ids of the log's vocabulary, one per query; the log is then read twice.
      cluster: "session" (all lists of a session of the log together), "list" (each by itself), or "query" where
        sessions of one query are not independent: the intervals then hold for other queries too.
      key: orders equal scores at random.
      batch_size: sessions per step.

    Raises:
      ConfigError: an unknown option; a propensity of zero or NaN at a rank that is shown; a clip below every weight; no
        ranker, or something that is no ranker.
      DataError: no clicks; a rank beyond the table; candidates that are never shown; sessions of queries without
        candidates; or a log and candidates whose ids mean different documents.
    """
    match = _DCG.fullmatch(metric)
    if match is None:
        raise ConfigError(f"expected the metric dcg or dcg@k, which is a sum over documents, found {metric!r}")
    check_cluster(cluster)
    if method not in METHODS:
        raise ConfigError(f"expected method {', '.join(METHODS)}, found {method!r}")
    if (method == "dr") != (regression is not None):
        raise ConfigError("method='dr' needs regression=, a model of relevance, which has no effect with other methods")
    if clip is not None and not 0 < clip < math.inf:
        raise ConfigError(f"expected clip above 0, the largest weight, found {clip}")
    named = rankers if isinstance(rankers, Mapping) else {"new": rankers}
    if not named or LOGGED in named:
        raise ConfigError(f"expected rankers, none of them called '{LOGGED}', found {list(named)}")
    dataset, batch_size = evaluation_data(log, batch_size)
    dataset = with_units(dataset, cluster)
    table = ExaminationTable(propensity, false_clicks)
    least = 1 / max(table.examined[(table.examined > 0) & np.isfinite(table.examined)], default=math.inf)
    if clip is not None and clip < least:
        raise ConfigError(
            f"expected clip, the largest weight 1 / propensity, of at least {least:g}, which is the least weight of "
            f"these propensities, found {clip:g}: all weights would be cut off to it and be equal. Raise it"
        )
    reranking = Reranking(
        {name: CompiledModel(model).on(dataset) for name, model in named.items()},
        table,
        cutoff=int(match[1]) if match[1] else None,
        regression=None if regression is None else CompiledModel(regression).on(dataset),
        clip=math.inf if clip is None else clip,
        seed=tie_seed(key),
    )
    if candidates is not None:
        reranking.rank_candidates(dataset, candidates, batch_size)
    names = [*named, LOGGED]
    moments: WeightedMoments | None = None
    weight_sums = np.zeros((len(names), 4))  # of the clicks that count: number, weights, squared weights, clipped
    clicks, most = 0.0, math.inf if clip is None else clip
    for batch in dataset.batches(batch_size):
        weight = np.where(np.asarray(batch.mask).any(1), batch.row_weights(), 0.0)
        kept = weight > 0
        if not kept.any():
            continue
        if batch.clicks is None:
            raise DataError("expected sessions with clicks, found none", field="clicks")
        unit = unit_ids(batch, cluster)
        if moments is None:
            moments = WeightedMoments(1, grouped=unit is not None)
        click = (np.asarray(batch.clicks) != 0) & np.asarray(batch.mask)
        clicks += float(click[kept].sum())
        rows: list[np.ndarray] = [np.ones(len(weight))]  # then `_Columns` of each ranker
        for i, ranked in enumerate(reranking.ranked(batch, click)):
            chance, discount = ranked.examination, ranked.discount
            whole = np.where(chance > 0, 1 / np.where(chance > 0, chance, 1.0), 0.0)
            w = np.minimum(whole, most)
            rows += [(w * ranked.excess_clicks).sum(1)]
            rows += [(w * ranked.excess_clicks * discount).sum(1) + ranked.regression_value]
            rows += [ranked.bias.below, ranked.bias.above, ranked.bias.relevance]
            counted = (click & (discount > 0) & (w > 0)) * weight[:, None]
            sums = [x.sum() for x in (counted, counted * w, counted * w**2, counted * (whole > most))]
            weight_sums[i] += sums
        moments.add(np.stack(rows, axis=1)[kept][:, None], weight[kept], None if unit is None else unit[kept])
    if clicks == 0 or moments is None:
        raise DataError(
            "expected clicks, found none: every ranker would be worth 0",
            fix="Take a log with clicks, or a larger part of this one",
            field="clicks",
        )
    bias = moments.totals[0, 1:].reshape(len(names), -1)[:, 2:4] / moments.totals[0, 0]
    support = {
        name: LogSupport(
            n,
            first**2 / second if second else 0.0,
            cut / n if n else 0.0,
            reranking.unsupported.get(name, 0),
            (-float(missing), float(surplus)),
        )
        for name, (n, first, second, cut), (missing, surplus) in zip(names, weight_sums.tolist(), bias, strict=True)
    }
    return CounterfactualValues(method, metric, support, moments)
