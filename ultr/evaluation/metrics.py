"""The registry of metrics: all that `evaluate` computes, by name.

A new metric takes one function and one row of `METRICS`, both in this file. JAX is imported inside the functions, so
that the command line can list the metrics without it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from ultr.errors import ConfigError
from ultr.text import did_you_mean

if TYPE_CHECKING:
    import jax

    from ultr.evaluation.contracts import PredictedClicks
    from ultr.sessions import Array, Sessions

DEFAULT_CUTOFFS = (1, 3, 5, 10)


class RankedLists(NamedTuple):
    """B ranked lists of at most K graded documents, as functions of ranking metrics get them.

    Attributes:
      ranks: [B, K] 1-based, without ties; documents outside `where` come last.
      labels: [B, K] grades, at least 0.
      where: [B, K] bool; the graded documents.
      max_grade: the highest grade of the scale.
    """

    ranks: Array
    labels: Array
    where: Array
    max_grade: Array | float

    @property
    def scores(self) -> Array:
        """Returns scores [B, K] that put the documents in the order of the ranks."""
        return -self.ranks.astype("float32")


# A function of ranking metrics takes lists and cutoffs (None: the whole list), and returns the values [B] of the lists
# at each cutoff. One of click metrics returns log-probabilities of the observed clicks.
RankingFunction = Callable[[RankedLists, Sequence[int | None]], list["jax.Array"]]
ClickFunction = Callable[["PredictedClicks", "Sessions"], "jax.Array"]


@dataclasses.dataclass(frozen=True, slots=True)
class RankingMetric:
    """A mean over queries of what a ranking of graded documents is worth; `name@k` counts the first k ranks.

    Attributes:
      name: such as "ndcg".
      description: one line for people.
      function: computes the values of lists.
      binary: whether a document is relevant from grade 1 on; otherwise any grade above 0 counts.
      bounded: whether 1 is the best value; otherwise the best of a query without a relevant document is 0.
      needs_max_grade: whether the function reads the highest grade of the scale.
    """

    kind: ClassVar[str] = "ranking"
    needs: ClassVar[str] = "graded documents and a model that scores documents"

    name: str
    description: str
    function: RankingFunction
    binary: bool = False
    bounded: bool = True
    needs_max_grade: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Returns the least and the greatest value that a query can have."""
        return 0.0, 1.0 if self.bounded else math.inf

    @property
    def forms(self) -> tuple[str, ...]:
        """Returns the ways to write the metric, such as "ndcg@k"."""
        return (f"{self.name}@k",)


@dataclasses.dataclass(frozen=True, slots=True)
class ClickMetric:
    """A measure of how well a click model predicts the clicks of sessions.

    Attributes:
      name: such as "perplexity".
      description: one line for people.
      function: computes log-probabilities of the observed clicks: [B] of sessions, or [B, K] for an average of "ranks",
        0 on padding.
      average: sum of the log-probabilities divided by the number of "sessions" or of shown "documents"; or the
        perplexity of each rank, averaged over "ranks".
      over_all_sessions: whether sessions count to whose clicks the model gives probability zero; they are counted as
        excluded otherwise.
    """

    kind: ClassVar[str] = "clicks"
    needs: ClassVar[str] = "sessions with clicks and a click model"
    needs_max_grade: ClassVar[bool] = False

    name: str
    description: str
    function: ClickFunction
    average: Literal["sessions", "documents", "ranks"]
    over_all_sessions: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Returns the least and the greatest value: perplexities are at least 1, log-likelihoods at most 0."""
        return (1.0, math.inf) if self.average == "ranks" else (-math.inf, 0.0)

    @property
    def forms(self) -> tuple[str, ...]:
        """Returns the ways to write the metric, such as "perplexity" and "perplexity/rank-k"."""
        return (self.name, f"{self.name}/rank-k") if self.average == "ranks" else (self.name,)


Metric = RankingMetric | ClickMetric


def ndcg(lists: RankedLists, cutoffs: Sequence[int | None]) -> list[jax.Array]:
    """Computes nDCG: DCG divided by that of the best order of the same documents."""
    import rax

    return [rax.ndcg_metric(lists.scores, lists.labels, where=lists.where, topn=k, reduce_fn=None) for k in cutoffs]


def dcg(lists: RankedLists, cutoffs: Sequence[int | None]) -> list[jax.Array]:
    """Computes DCG: sum of (2^grade - 1) / log2(rank + 1) (Burges 2005)."""
    import rax

    return [rax.dcg_metric(lists.scores, lists.labels, where=lists.where, topn=k, reduce_fn=None) for k in cutoffs]


def reciprocal_rank(lists: RankedLists, cutoffs: Sequence[int | None]) -> list[jax.Array]:
    """Computes 1 / rank of the first document of grade 1 or more; 0 where none is within the cutoff."""
    import rax

    return [rax.mrr_metric(lists.scores, lists.labels, where=lists.where, topn=k, reduce_fn=None) for k in cutoffs]


def average_precision(
    lists: RankedLists, cutoffs: Sequence[int | None], *, pairs_at_once: int = 1 << 25
) -> list[jax.Array]:
    """Computes the mean over all documents of grade 1 or more of the precision at their ranks within the cutoff.

    Args:
      lists, cutoffs: as for any ranking metric.
      pairs_at_once: rax compares all pairs of documents of a list; so many are in memory at a time.
    """
    import jax
    import rax

    def at_cutoffs(one: tuple[Array, Array, Array]) -> list[jax.Array]:
        scores, labels, where = one
        return [rax.ap_metric(scores, labels, where=where, topn=k, reduce_fn=None) for k in cutoffs]

    arrays = (lists.scores, lists.labels, lists.where)
    rows = max(1, pairs_at_once // lists.ranks.shape[1] ** 2)
    if len(lists.ranks) <= rows:
        return at_cutoffs(arrays)
    values: list[jax.Array] = jax.lax.map(at_cutoffs, arrays, batch_size=rows)
    return values


def expected_reciprocal_rank(lists: RankedLists, cutoffs: Sequence[int | None]) -> list[jax.Array]:
    """Computes ERR: sum_r R_r / r prod_{i<r} (1 - R_i), with R = (2^grade - 1) / 2^max_grade (Chapelle 2009)."""
    import jax.numpy as jnp

    stop = jnp.where(lists.where, (jnp.exp2(lists.labels) - 1) / jnp.exp2(lists.max_grade), 0.0)
    ordered = jnp.take_along_axis(stop, jnp.argsort(lists.ranks, axis=1), axis=1)

    def at(cutoff: int | None) -> jax.Array:
        stop = ordered[:, :cutoff]
        arrive = jnp.cumprod(jnp.pad(1 - stop[:, :-1], ((0, 0), (1, 0)), constant_values=1.0), axis=1)
        return jnp.sum(stop * arrive / jnp.arange(1, stop.shape[1] + 1)[None, :], axis=1)

    return [at(cutoff) for cutoff in cutoffs]


def session_log_prob(predicted: PredictedClicks, sessions: Sessions) -> jax.Array:
    """Computes [B] ln P(clicks of the session)."""
    import jax.numpy as jnp

    return jnp.asarray(predicted.log_prob(_clicks(sessions)))


def marginal_log_prob(predicted: PredictedClicks, sessions: Sessions) -> jax.Array:
    """Computes [B, K] ln P(observed click or skip at the rank), given nothing but the list."""
    from ultr.clicks import PositionClicks
    from ultr.evaluation.log_probabilities import at_most_one, observed_from_marginal

    clicks, mask = _clicks(sessions), sessions.mask
    observed: Array = predicted.observed(clicks)
    # Where the clicks above make no difference, conditional and marginal probabilities are the same.
    if not (isinstance(predicted, PositionClicks) and predicted.logits.ndim == 2):
        observed = observed_from_marginal(predicted.marginal(), observed, clicks, mask)
    log_prob: jax.Array = at_most_one(observed, mask)
    return log_prob


def conditional_log_prob(predicted: PredictedClicks, sessions: Sessions) -> jax.Array:
    """Computes [B, K] ln P(observed click or skip at the rank), given the clicks above it."""
    from ultr.evaluation.log_probabilities import at_most_one

    log_prob: jax.Array = at_most_one(predicted.observed(_clicks(sessions)), sessions.mask)
    return log_prob


def _clicks(sessions: Sessions) -> Array:
    assert sessions.clicks is not None
    return sessions.clicks


LOG_LIKELIHOOD = ClickMetric(
    "log_likelihood", "mean over sessions of ln P(clicks of the session)", session_log_prob, average="sessions"
)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        RankingMetric("ndcg", "DCG relative to that of the best order", ndcg),
        RankingMetric("dcg", "sum of (2^grade - 1) / log2(rank + 1)", dcg, bounded=False),
        RankingMetric("mrr", "1 / rank of the first document of grade 1 or more", reciprocal_rank, binary=True),
        RankingMetric(
            "map", "mean precision at the ranks of the documents of grade 1 or more", average_precision, binary=True
        ),
        RankingMetric(
            "err",
            "expected 1 / rank at which a user is satisfied, with chance (2^grade - 1) / 2^highest grade",
            expected_reciprocal_rank,
            needs_max_grade=True,
        ),
        LOG_LIKELIHOOD,
        ClickMetric(
            "log_likelihood_per_document",
            "sum of ln P(clicks of the session) / number of shown documents",
            session_log_prob,
            average="documents",
        ),
        ClickMetric(
            "perplexity",
            "mean over ranks of 2^(-mean log2 P(click or skip)), without knowledge of other clicks",
            marginal_log_prob,
            average="ranks",
            over_all_sessions=True,
        ),
        ClickMetric(
            "conditional_perplexity",
            "the same, given the clicks above the rank",
            conditional_log_prob,
            average="ranks",
        ),
    )
}
RANKING_METRICS = tuple(name for name, metric in METRICS.items() if isinstance(metric, RankingMetric))


class MetricRequest(NamedTuple):
    """A metric as someone asked for it.

    Attributes:
      name: as asked, such as "ndcg@10" or "perplexity/rank".
      metric: the row of the registry.
      at: the cutoff of a ranking metric, or the one rank of a click metric; None: the whole list, or all ranks.
      by_rank: whether a click metric is asked for rank by rank.
    """

    name: str
    metric: Metric
    at: int | None = None
    by_rank: bool = False


_NAME = re.compile(r"(\w+)(?:@([1-9]\d*)|(/rank)(?:-([1-9]\d*))?)?")


def parse_metric(name: str) -> MetricRequest:
    """Finds the metric of a name such as "ndcg", "ndcg@10", "perplexity", "perplexity/rank" or "perplexity/rank-3".

    Raises:
      ConfigError: an unknown or empty name.
    """
    match = _NAME.fullmatch(name)
    metric = METRICS.get(match[1]) if match else None
    if match and isinstance(metric, RankingMetric) and not match[3]:
        return MetricRequest(name, metric, int(match[2]) if match[2] else None)
    if match and isinstance(metric, ClickMetric) and not match[2] and (metric.average == "ranks" or not match[3]):
        return MetricRequest(name, metric, int(match[4]) if match[4] else None, by_rank=bool(match[3]))
    if not name.strip():
        raise ConfigError("an empty metric name was given; is there a comma too many?")
    known = [form for metric in METRICS.values() for form in metric.forms]
    stem = _parts(name)[0]
    hint = "" if stem in METRICS else suggested_metric(name, METRICS)
    raise ConfigError(f"unknown metric {name!r}{hint}; known: {', '.join(known)}")


def suggested_metric(name: str, known: Iterable[str]) -> str:
    """Suggests the metric closest to a misspelt one, with its cutoff or ranks; as `did_you_mean`."""
    stem, rest = _parts(name)
    return did_you_mean(stem.strip().lower(), known, suffix=rest)


def _parts(name: str) -> tuple[str, str]:
    """Splits the name of a metric into that without its cutoff or ranks, and these."""
    end = min((place for sign in "@/" if (place := name.find(sign)) >= 0), default=len(name))
    return name[:end], name[end:]


def default_metrics(kind: str) -> list[MetricRequest]:
    """Returns the metrics that `evaluate` computes unless told: "ranking" at each cutoff, "clicks" also by rank."""
    if kind == RankingMetric.kind:
        names = [f"{name}@{cutoff}" for name in RANKING_METRICS for cutoff in DEFAULT_CUTOFFS]
    else:
        clicks = [metric for metric in METRICS.values() if isinstance(metric, ClickMetric)]
        by_rank = ["", "/rank"]
        names = [m.name + part for m in clicks for part in (by_rank if m.average == "ranks" else [""])]
    return [parse_metric(name) for name in names]
