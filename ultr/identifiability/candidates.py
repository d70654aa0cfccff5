"""`diagnose_candidates`: what a log does not show, what that costs, and which candidates to show to find out."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from ultr.data import ClickLog, Collection, Counts
from ultr.data.counting import merge_extra
from ultr.data.vocabulary import Vocabulary, name_places
from ultr.errors import DataError
from ultr.files import json_values
from ultr.identifiability.assumed_model import assume_model
from ultr.identifiability.feature_support import OUTSIDE, support_of
from ultr.propensity.arm_counts import ArmCounts, as_arm_counts, count_clicks_above
from ultr.text import table

CUTOFF = 10  # of the DCG
REPLICATES = 200  # of the bootstrap over queries
PLAN_ROWS = 20  # candidates of a plan
LOSS_ASSUMPTION = (
    "clicks are examination times relevance, and the relevance of a document that was never shown is what a linear "
    "regression on the features of the shown ones predicts; what else speaks for or against it is not counted"
)


class CandidateSwap(NamedTuple):
    """A candidate to show in place of the last document of its query's list.

    Attributes:
      query, document: names. rank: 1-based, the lowest that the log shows for the query.
      sessions: so many that the error of its relevance is half of what features leave open.
      gain: DCG@10 per session of the query, expected from what is found out.
    """

    query: str
    document: str
    rank: int
    sessions: int
    gain: float


@dataclasses.dataclass(frozen=True)
class CandidateReport:
    """What a log does not show of the candidates of its queries.

    Attributes:
      queries: number of queries shown. candidates, shown: documents of these, and how many of them were ever shown.
      share_by_query: [5] least, quartiles and largest share of a query's candidates that was shown.
      support: [unseen] of the features of each unseen candidate (`support_of`); None without features.
      dcg: mean DCG@10 of all candidates in the best order by expected relevance, in clicks at rank 1.
      loss: how much of that the shown candidates alone lack; NaN where it is not known, and `reason` says why.
      interval: 95 % interval of the loss, by a bootstrap over queries.
      scatter: standard deviation of relevance around the regression.
      plan: the candidates to show first.
      reason: why there is no loss and no plan.
    """

    queries: int
    candidates: int
    shown: int
    share_by_query: tuple[float, ...]
    support: np.ndarray | None = None
    dcg: float = np.nan
    loss: float = np.nan
    interval: tuple[float, float] = (np.nan, np.nan)
    scatter: float = np.nan
    plan: tuple[CandidateSwap, ...] = ()
    reason: str = ""

    @property
    def outside(self) -> float | None:
        """Share of the unseen candidates whose features lie outside those shown; None without features."""
        if self.support is None or not len(self.support):
            return None
        return float((self.support < OUTSIDE).mean())

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values; numbers that are not finite become None."""
        found: dict[str, Any] = json_values(
            {
                "queries": self.queries,
                "candidates": self.candidates,
                "shown": self.shown,
                "share_by_query": self.share_by_query,
                "outside": self.outside,
                "dcg": self.dcg,
                "loss": self.loss,
                "interval": self.interval,
                "scatter": self.scatter,
                "plan": [swap._asdict() for swap in self.plan],
                "assumption": LOSS_ASSUMPTION,
                "reason": self.reason,
            }
        )
        return found

    def text(self) -> str:
        """Says what is not shown, what it costs, and what to show."""
        unseen = self.candidates - self.shown
        least, _, median, _, most = self.share_by_query
        out = [
            f"Candidates: {self.shown:,} of {self.candidates:,} ({self.shown / self.candidates:.0%}) were ever shown, "
            f"{median:.0%} in the median query ({least:.0%} to {most:.0%})."
        ]
        if not unseen:
            return out[0]
        if self.outside is not None:
            out.append(
                f"{self.outside:.0%} of the other {unseen:,} have features farther from the centre of the shown ones "
                f"than {1 - OUTSIDE:.0%} of these: there a ranker extrapolates."
            )
        if np.isfinite(self.loss):
            low, high = self.interval
            out.append(
                f"Expected loss without them: {self.loss:.4f} of a DCG@{CUTOFF} of {self.dcg:.4f} "
                f"({self.loss / self.dcg:.1%}; 95 % interval {low:.4f} to {high:.4f}), if {LOSS_ASSUMPTION}."
            )
        if self.reason:
            out.append(f"What that costs is not known: {self.reason}.")
        if self.plan:
            rows = [["query", "document", "rank", "sessions", "expected gain"]]
            rows += [[s.query, s.document, str(s.rank), f"{s.sessions:,}", f"{s.gain:.4f}"] for s in self.plan]
            out += ["Candidates to show first, in place of the last document of the list:", "", table(rows)]
        return "\n".join(out)


class _Shown(NamedTuple):
    """What a log has shown, by cell (document, rank), and the names behind the ids."""

    document: np.ndarray
    rank: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray
    vocabulary: Vocabulary
    arms: ArmCounts


class _Candidates(NamedTuple):
    """Candidates [N]: query and document ids of the log (0: it does not know the document), names, features [N, F]."""

    query: np.ndarray
    document: np.ndarray
    name: np.ndarray
    features: np.ndarray | None


def diagnose_candidates(
    source: ClickLog | Counts, candidates: Collection | None = None, *, share: float = 0.5, seed: int = 0
) -> CandidateReport:
    """Diagnoses which candidates a log never shows, and what that costs.

    Args:
      source: a log, or its counts by rank.
      candidates: the lists that rankings are made of, whose queries are found by name; None: the documents that the
        log's vocabulary has for the queries shown.
      share: of the sessions of a query that the plan may change.
      seed: of the bootstrap.

    Raises:
      DataError: no query of the candidates is in the log, or no clicks.
    """
    cells, names = merge_extra(count_clicks_above(source)), source.vocabulary
    document = np.where(cells.document > names.documents, 0, cells.document)
    counts = _Shown(document, cells.rank, cells.impressions, cells.clicks, names, as_arm_counts(source))
    owner = names.document_query
    impressions = np.bincount(counts.document, counts.impressions, names.documents + 1)
    impressions[0] = 0
    queries = np.unique(owner[impressions > 0])
    found = _of_vocabulary(counts, queries) if candidates is None else _of_collection(counts, candidates, queries)
    if not len(found.query):
        raise DataError("expected candidates of queries of the log, found none", fix="Check the names of the queries.")
    seen = impressions[found.document] > 0
    place = np.unique(found.query, return_inverse=True)[1]
    by_query = np.bincount(place, seen) / np.bincount(place)
    report = CandidateReport(
        queries=len(by_query),
        candidates=len(seen),
        shown=int(seen.sum()),
        share_by_query=tuple(float(x) for x in np.quantile(by_query, [0, 0.25, 0.5, 0.75, 1])),
    )
    if found.features is None:
        missing = "" if seen.all() else "there are no features to predict relevance by"
        return dataclasses.replace(report, reason=missing)
    if seen.all():
        return dataclasses.replace(report, support=np.zeros(0))
    support = support_of(found.features[seen], found.features[~seen])
    return _with_loss(dataclasses.replace(report, support=support), counts, found, seen, place, share, seed)


def _of_vocabulary(counts: _Shown, queries: np.ndarray) -> _Candidates:
    names = counts.vocabulary
    ids = np.flatnonzero(np.isin(names.document_query, queries) & (np.arange(names.documents + 1) > 0))
    features = None if names.features is None else names.features[ids]
    return _Candidates(names.document_query[ids], ids, np.asarray(names.document_names.to_pylist())[ids - 1], features)


def _of_collection(counts: _Shown, lists: Collection, queries: np.ndarray) -> _Candidates:
    names, own = counts.vocabulary, lists.vocabulary
    query_in_log = name_places(own.query_names, names.query_names)
    query = query_in_log[np.repeat(lists.query, np.diff(lists.offsets))]
    kept = np.isin(query, queries)
    document = np.asarray(lists.document)[kept]
    features = lists.features if lists.features is None else lists.features[kept]
    if features is not None and names.feature_names and own.feature_names != names.feature_names:
        features = None
    title = np.asarray(own.document_names.to_pylist())[document - 1]
    return _Candidates(query[kept], own.ids_in(names)[document], title, features)


def _with_loss(
    report: CandidateReport, counts: _Shown, found: _Candidates, seen: np.ndarray, place: np.ndarray, share: float,
    seed: int,
) -> CandidateReport:  # fmt: skip
    """Adds the expected loss and the plan."""
    assert found.features is not None
    size = counts.vocabulary.documents + 1
    propensity = np.exp(assume_model(counts.arms).log_propensity)
    examined = np.bincount(counts.document, counts.impressions * np.nan_to_num(propensity)[counts.rank - 1], size)
    clicks = np.bincount(counts.document, counts.clicks, size).astype(float)
    n, c = np.where(seen, examined[found.document], 0.0), np.where(seen, clicks[found.document], 0.0)
    x = _design(found.features, seen)
    if seen.sum() < 2 * x.shape[1]:
        few = f"{seen.sum():,} shown documents are too few for {x.shape[1] - 1} features"
        return dataclasses.replace(report, reason=few)
    sessions = _sessions_of(counts, found.query)
    weight = np.zeros(place.max() + 1)
    weight[place] = sessions
    each, scatter, predicted = _losses(x, n, c, seen, place, np.ones(len(weight)))
    loss, dcg = (np.average(values, weights=weight) for values in each)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(REPLICATES):
        times = np.bincount(rng.integers(0, len(weight), len(weight)), minlength=len(weight)).astype(float)
        (losses, _), _, _ = _losses(x, n, c, seen, place, times)
        drawn.append(float(np.average(losses, weights=weight * times)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    plan = plan_candidates(counts, found, seen, place, predicted, scatter, propensity, share)
    return dataclasses.replace(
        report, dcg=float(dcg), loss=float(loss), interval=(float(low), float(high)), scatter=scatter, plan=plan
    )


def _design(features: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Standardises features by those shown, after a constant: [N, F + 1]."""
    values = np.asarray(features, np.float64)
    mean, spread = values[seen].mean(0), values[seen].std(0)
    return np.column_stack([np.ones(len(values)), (values - mean) / np.where(spread > 0, spread, 1.0)])


def predict_relevance(x: np.ndarray, n: np.ndarray, c: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Predicts relevance, in clicks per examined impression, by weighted least squares and each document's own clicks.

    A relevance is x . beta plus a scatter of variance t^2; clicks over examined impressions, c / n, scatter around it
    with variance mean / n. t^2 comes from the squared residuals less that; a shown document's prediction is drawn
    to its own rate by t^2 / (t^2 + mean / n).

    Args:
      x: [N, F]. n, c: [N] examined impressions (0: never shown) and clicks. weight: [N] how often each counts.

    Returns:
      Predictions [N] of at least 0 and at most 1, and t.
    """
    used = (n > 0) & (weight > 0)
    rate = np.where(n > 0, c / np.where(n > 0, n, 1.0), 0.0)
    noise = np.where(n > 0, c.sum() / n.sum() / np.where(n > 0, n, 1.0), np.inf)
    variance = 0.0
    for _ in range(20):
        w = np.where(used, weight / (variance + noise), 0.0)
        gram = (x * w[:, None]).T @ x
        beta = np.linalg.solve(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ (w * rate))
        excess = (rate - x @ beta) ** 2 - noise
        before, variance = variance, max(float(np.average(excess[used], weights=w[used])), 0.0)
        if abs(variance - before) < 1e-9:
            break
    mean = x @ beta
    own = variance / (variance + noise)
    return np.clip(mean + np.where(n > 0, own, 0.0) * (rate - mean), 0.0, 1.0), float(np.sqrt(variance))


def _losses(
    x: np.ndarray, n: np.ndarray, c: np.ndarray, seen: np.ndarray, place: np.ndarray, times: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], float, np.ndarray]:
    """Computes what each query loses without its unseen candidates and its DCG with them, [Q] each."""
    predicted, scatter = predict_relevance(x, n, c, times[place])
    whole = best_dcg(predicted, place, len(times))
    return (whole - best_dcg(np.where(seen, predicted, 0.0), place, len(times)), whole), scatter, predicted


def best_dcg(relevance: np.ndarray, place: np.ndarray, queries: int, cutoff: int = CUTOFF) -> np.ndarray:
    """Computes sum relevance / log2(1 + rank) of the first documents by falling relevance, [queries].

    Args:
      relevance, place: [N] of documents, and the number of their query.
    """
    order = np.lexsort((-relevance, place))
    owner = place[order]
    first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order))) + 1
    gain = np.where(rank <= cutoff, relevance[order] / np.log2(1 + rank), 0.0)
    return np.bincount(owner, gain, queries)


def _sessions_of(counts: _Shown, query: np.ndarray) -> np.ndarray:
    """Counts the sessions of queries: the most that any of their ranks was shown in."""
    owner = counts.vocabulary.document_query[counts.document].astype(np.int64)
    known = owner >= 0
    cell, number = np.unique(owner[known] * counts.arms.arms + counts.rank[known] - 1, return_inverse=True)
    total = np.zeros(counts.vocabulary.queries)
    np.maximum.at(total, cell // counts.arms.arms, np.bincount(number, counts.impressions[known]))
    return np.asarray(total[query])


def plan_candidates(
    counts: _Shown, found: _Candidates, seen: np.ndarray, place: np.ndarray, predicted: np.ndarray, scatter: float,
    propensity: np.ndarray, share: float,
) -> tuple[CandidateSwap, ...]:  # fmt: skip
    """Picks the unseen candidates from which most is expected per session that they cost.

    A candidate's relevance is taken as normal around its prediction with the scatter. What is expected of it is the
    mean by which it exceeds the first document below the top 10 of the shown ones (0 where there are fewer), times
    the discount of the last rank of these; its cost the sessions at the lowest rank of its query after which the error
    of its relevance is half the scatter.
    """
    from scipy.stats import norm

    if not scatter > 0:
        return ()
    names, sessions = counts.vocabulary, _sessions_of(counts, found.query)
    owner = names.document_query[counts.document]
    lowest = np.zeros(names.queries, np.int64)
    np.maximum.at(lowest, owner[owner >= 0], counts.rank[owner >= 0])
    floor = np.zeros(place.max() + 1)
    for query in range(len(floor)):
        top = np.sort(predicted[(place == query) & seen])[::-1]
        floor[query] = top[CUTOFF - 1] if len(top) >= CUTOFF else 0.0
    z = (predicted - floor[place]) / scatter
    gain = scatter * (z * norm.cdf(z) + norm.pdf(z)) / np.log2(1 + CUTOFF)
    rank = lowest[found.query]
    examined = propensity[rank - 1]
    p = np.clip(examined * predicted, 1e-4, 0.75)
    needed = np.ceil(p * (1 - p) / (examined * scatter / 2) ** 2)
    possible = ~seen & (needed <= share * sessions) & np.isfinite(needed)
    value = np.where(possible, gain * sessions / needed, 0.0)
    order = np.argsort(-value, kind="stable")[:PLAN_ROWS]
    queries = names.query_names
    return tuple(
        CandidateSwap(
            str(queries[int(found.query[i])]), str(found.name[i]), int(rank[i]), int(needed[i]), float(gain[i])
        )
        for i in order
        if value[i] > 0
    )
