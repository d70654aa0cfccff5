"""`ShrunkCTR`: click rates by document, shrunk towards those of the ranks at which the log showed them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ultr.arguments import check_count, check_number
from ultr.baselines.base import clicks_of
from ultr.data.dataset import STREAMED, Dataset, DatasetLike, SufficientStatistics, as_dataset
from ultr.data.document_set import DocumentSet
from ultr.errors import ConfigError, DataError
from ultr.rankers import Ranker
from ultr.sessions import Sessions
from ultr.towers import (
    IndexBound,
    Statistic,
    lookup_small,
    note_shown_documents,
    read_feature,
    record_schema,
    trained_schema,
)

Strength = Literal["held-out", "likely"]
STRENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, np.inf)  # in impressions
FOLDS = 5  # parts of the sessions
HELD_OUT_LISTS = 1 << 17  # with clicks, that choose a strength
_DECODED = 1 << 30  # bytes of rows that stay in memory between passes
LARGEST_STRENGTH = 1e6  # of a fit, from which clicks move no document
_CERTAIN = 1 - 1e-6  # largest predicted probability of a click


class ClickTotals(NamedTuple):
    """What a log says of documents, added up.

    Attributes:
      impressions, clicks: [V + 1, FOLDS] by document id and part of the sessions; 0 for id 0, no single document.
      rank: [V + 1] mean 1-based rank; inf where never shown.
      expected: [V + 1] mean click rate of the ranks at which the document was shown; 0 where never shown.
      rank_rate: [R] click rate of each rank, with half a click and half a skip added.
    """

    impressions: np.ndarray
    clicks: np.ndarray
    rank: np.ndarray
    expected: np.ndarray
    rank_rate: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """[V + 1] impressions of all parts."""
        return np.asarray(self.impressions.sum(1))

    def rates(self, strength: float, without: int | None = None) -> np.ndarray:
        """Computes the posterior mean click rates (c + s m) / (n + s), [V + 1], from all parts or all but one.

        Args:
          strength: s; inf gives m.
          without: the part that is not used.
        """
        if strength == np.inf:
            return self.expected
        used = np.arange(FOLDS) != (-1 if without is None else without)
        return np.asarray(
            (self.clicks[:, used].sum(1) + strength * self.expected) / (self.impressions[:, used].sum(1) + strength)
        )


class ShrunkCTR(Ranker):
    """Ranks documents by their click rate, shrunk towards the click rate of the ranks at which they were shown.

    Clicks on a document are taken as draws with a probability of its own, which has a Beta distribution: its mean is
    the click rate of the document's ranks, m, and its strength s, the same for all, the number of impressions that it
    is worth. From c clicks in n impressions follows the posterior mean (c + s m) / (n + s) (empirical Bayes: Robbins
    1956; Casella 1985). Few clicks leave a document where the logger put it, many move it; documents of a query with
    the same click rate keep the order of their mean ranks. A document that the log never showed scores 0, below all
    others.

    Nothing here corrects for position bias: a document keeps what its rank gives it until clicks contradict. That is
    right where the logger is good and clicks are few, and wrong where the logger is to be overruled.

    A document id stands for a (query, document) pair. Make it by `ultr.solve(ShrunkCTR(...), log, method="counting")`
    or `fitted`; the constructor alone makes room, which `load` fills.

    Args:
      documents: size of the vocabulary; ids run from 1 to this.
      ranks: number of ranks.

    Attributes:
      rate: [V + 1] float32, the scores. Equal rates within a query are told apart by the smallest steps.
      relative: [V + 1] float32, the shrunk click rate as a multiple of that of the document's ranks; 1 where never
        shown.
      rank_rate: [R] float32, click rate by rank.
      strength: s, in impressions.
    """

    takes_shared_features = True

    def __init__(self, *, documents: int, ranks: int) -> None:
        self.documents, self.ranks = check_count("documents", documents, least=0), check_count("ranks", ranks)
        self.rate = Statistic(jnp.zeros(self.documents + 1))
        self.relative = Statistic(jnp.ones(self.documents + 1))
        self.rank_rate = Statistic(jnp.full(self.ranks, 0.5))
        self.strength = Statistic(jnp.zeros(()))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return IndexBound("document", self.documents + 1, "ids"), IndexBound("position", self.ranks, "ranks")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"document"})

    @property
    def sufficient_statistics(self) -> SufficientStatistics:
        """Whole lists: held-out ones choose the strength."""
        return "list"

    def score(self, sessions: Sessions) -> jax.Array:
        """Looks up the shrunk click rates, [B, K]."""
        return jnp.take(self.rate[...], self._document(sessions), mode="clip")

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the cross-entropy of clicks predicted as rank's click rate times `relative`, summed per list [B].

        Raises:
          ConfigError: sessions without clicks or documents.
        """
        clicks = clicks_of(sessions, "ShrunkCTR")
        relative = jnp.take(self.relative[...], self._document(sessions), mode="clip")
        p = jnp.minimum(lookup_small(self.rank_rate[...], sessions.position) * relative, _CERTAIN)
        loss = -jnp.where(clicks, jnp.log(p), jnp.log1p(-p))
        return jnp.where(jnp.asarray(sessions.mask), loss, 0.0).sum(1)

    def fitted(self, data: DatasetLike, *, strength: float | Strength = "held-out") -> ShrunkCTR:
        """Counts a log and returns a copy with its click rates.

        Args:
          data: a click log or sessions with the feature `document`; weights count. Counts of a log by rank where the
            strength is not "held-out", which needs lists.
          strength: impressions that the click rate of the ranks is worth; "held-out": those by which held-out clicks
            stand highest (`choose_strength`); "likely": those under which the clicks are most likely (`fit_strength`).

        Raises:
          ConfigError: a strength that is not above 0; counts where lists are needed.
          DataError: no click, or an id or rank beyond the tables.
        """
        dataset = as_dataset(data).cached(_DECODED)
        totals = count_totals(dataset, self.documents, self.ranks)
        if strength == "held-out":
            s = choose_strength(dataset, totals)
        else:
            s = fit_strength(totals) if strength == "likely" else check_number("strength", strength, above=0)
        rate, found = totals.rates(s), ShrunkCTR(documents=self.documents, ranks=self.ranks)
        relative, shown = rate / np.where(totals.expected > 0, totals.expected, 1.0), totals.shown > 0
        query = np.zeros(self.documents + 1, np.int64)
        if (vocabulary := dataset.description.vocabulary) is not None:
            names = vocabulary.document_query[: self.documents + 1]
            query[: len(names)] = names
        found.rate[...] = jnp.asarray(separated(np.where(shown, rate, 0.0), totals.rank, query))
        found.relative[...] = jnp.asarray(np.where(shown, relative, 1.0), jnp.float32)
        found.rank_rate[...] = jnp.asarray(totals.rank_rate, jnp.float32)
        found.strength[...] = jnp.asarray(s, jnp.float32)
        record_schema(found, trained_schema(found, dataset))
        note_shown_documents(found, DocumentSet.of(shown))
        return found

    def _document(self, sessions: Sessions) -> jax.Array:
        return read_feature(sessions, "document", type(self).__name__).astype(jnp.int32)


def count_totals(data: Dataset, documents: int, ranks: int) -> ClickTotals:
    """Adds up clicks, impressions and ranks by document, in two passes.

    Raises:
      DataError: no click, or an id or rank beyond the tables.
    """
    shown, clicked, ranked = np.zeros((documents + 1, FOLDS)), np.zeros((documents + 1, FOLDS)), np.zeros(documents + 1)
    by_rank = np.zeros((2, ranks))
    for sessions, weight in _in_parts(data):
        mask, clicks = np.asarray(sessions.mask), np.asarray(clicks_of(sessions, "ShrunkCTR"))
        ids, position = _ids(sessions)[mask], np.asarray(sessions.position)[mask]
        for name, values, most in (("document", ids, documents), ("rank", position, ranks - 1)):
            if len(values) and not 0 <= values.min() <= values.max() <= most:
                more = int(name == "rank")
                raise DataError(f"expected at most {most + more}, found {values.max() + more}", field=name)
        each = np.repeat(weight.sum(1), mask.sum(1))
        ranked += np.bincount(ids, each * (position + 1.0), documents + 1)
        for row, value in enumerate((each, each * clicks[mask])):
            by_rank[row] += np.bincount(position, value, ranks)
        for part in range(FOLDS):
            each = np.repeat(weight[:, part], mask.sum(1))
            shown[:, part] += np.bincount(ids, each, documents + 1)
            clicked[:, part] += np.bincount(ids, each * clicks[mask], documents + 1)
    if not by_rank[1].any():
        raise DataError("expected clicks to learn from, found none", fix="Check the click column.", field="clicks")
    rate, expected = (by_rank[1] + 0.5) / (by_rank[0] + 1), np.zeros(documents + 1)
    for sessions, weight in _in_parts(data):
        mask = np.asarray(sessions.mask)
        each = np.repeat(weight.sum(1), mask.sum(1)) * rate[np.asarray(sessions.position)[mask]]
        expected += np.bincount(_ids(sessions)[mask], each, documents + 1)
    shown[0], clicked[0] = 0.0, 0.0
    total = shown.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        place, mean = np.where(total > 0, ranked / total, np.inf), np.where(total > 0, expected / total, 0.0)
    return ClickTotals(shown, clicked, place, mean, rate)


def _in_parts(data: Dataset) -> Iterator[tuple[Sessions, np.ndarray]]:
    """Yields batches in an order by chance, with the weight of each list in each part of the sessions [B, FOLDS].

    Every session of a list is put into one of the parts by chance, always the same; a weight that is not whole leaves
    its fraction in one of them.
    """
    rng = np.random.default_rng(0)
    for sessions in data.batches(STREAMED, seed=0, share_features=True):
        weight = np.where(np.asarray(sessions.mask).any(1), sessions.row_weights(), 0.0).astype(np.float64)
        whole = np.floor(weight)
        parts = rng.multinomial(whole.astype(np.int64), np.full(FOLDS, 1 / FOLDS)).astype(np.float64)
        parts[np.arange(len(parts)), rng.integers(0, FOLDS, len(parts))] += weight - whole
        yield sessions, parts


def _ids(sessions: Sessions) -> np.ndarray:
    return np.asarray(read_feature(sessions, "document", "ShrunkCTR")).astype(np.int64)


def choose_strength(data: Dataset, totals: ClickTotals) -> float:
    """Chooses the strength by whose click rates held-out clicks stand highest; inf where none beats the ranks alone.

    Each session is in one of `FOLDS` parts. The click rates of the others order its list, and a click gains
    1 / log2(1 + rank) there. Clicks prefer documents that the logger put high, for which this does not correct: it errs
    on the logger's side, so that an order that gains more than the logged one does so against the bias.
    `fit_strength`, by the likelihood, shrinks less: clicks differ between documents for more reasons than relevance.
    Of strengths that gain the same, the largest is chosen.

    Args:
      data: lists; `HELD_OUT_LISTS` with clicks, or somewhat more, are looked at.
      totals: of the same data.

    Raises:
      ConfigError: counts in place of lists.
    """
    if (kind := data.description.sufficient_statistics) != "list":
        raise ConfigError(f"held-out lists choose the strength, and these are counts by {kind}. Give one, or the log")
    rates = np.stack([[totals.rates(s, part) for part in range(FOLDS)] for s in STRENGTHS])
    gains, seen = np.zeros(len(STRENGTHS)), 0
    for sessions, weight in _in_parts(data):
        clicks = np.asarray(clicks_of(sessions, "ShrunkCTR"))
        row = np.flatnonzero(clicks.any(1))
        row, part = (x.ravel() for x in np.meshgrid(row, np.arange(FOLDS), indexing="ij"))
        used = weight[row, part] > 0
        row, part = row[used], part[used]
        ids, mask, position = _ids(sessions)[row], np.asarray(sessions.mask)[row], np.asarray(sessions.position)[row]
        mean = np.where(ids > 0, totals.rank[ids], position + 1.0)
        for i, rate in enumerate(rates):
            score = np.where(ids > 0, rate[part[:, None], ids], totals.rank_rate[position])
            rank = _ranks(score, mean, mask)
            gains[i] += ((clicks[row] / np.log2(1 + rank)).sum(1) * weight[row, part]).sum()
        seen += len(row)
        if seen >= HELD_OUT_LISTS:
            break
    return STRENGTHS[int(np.flatnonzero(gains >= gains.max() * (1 - 1e-12))[-1])]


def _ranks(score: np.ndarray, place: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Computes ranks [B, K] from 1 by falling score, then by place."""
    order = np.lexsort((place, -score, ~mask), axis=1)
    out = np.empty(order.shape)
    np.put_along_axis(out, order, np.arange(1.0, order.shape[1] + 1)[None, :], 1)
    return out


def strength_log_likelihood(totals: ClickTotals, strength: float) -> float:
    """Computes the log-likelihood of the clicks under Beta-binomial counts of a strength, up to a constant.

    log B(s m + c, s (1 - m) + n - c) - log B(s m, s (1 - m)), summed over documents, m the click rate of their ranks.
    """
    from scipy.special import betaln

    shown = totals.shown > 0
    n, c = totals.shown[shown], totals.clicks.sum(1)[shown]
    mean = np.minimum(totals.expected[shown], _CERTAIN)
    a, b = strength * mean, strength * (1 - mean)
    return float((betaln(a + c, b + n - c) - betaln(a, b)).sum())


def fit_strength(totals: ClickTotals) -> float:
    """Finds the strength under which the clicks are most likely; inf where documents differ no more than by chance."""
    from scipy.optimize import minimize_scalar

    bounds = (np.log(1e-3), np.log(LARGEST_STRENGTH))
    found = minimize_scalar(
        lambda x: -strength_log_likelihood(totals, float(np.exp(x))), bounds=bounds, method="bounded",
        options={"xatol": 1e-4},
    )  # fmt: skip
    best = float(np.exp(found.x))
    return best if -found.fun > strength_log_likelihood(totals, LARGEST_STRENGTH) + 1e-6 else np.inf


def separated(rate: np.ndarray, place: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Rounds rates to float32 such that within a query no two are equal: of equal ones, the lower place is higher.

    Args:
      rate: [N] at least 0; 0 stays 0.
      place: [N] by which equal rates are ordered, then by index.
      query: [N].
    """
    order = np.lexsort((place, -rate, query))
    first = rate[order].astype(np.float32).view(np.int32).astype(np.int64)  # as whole numbers, in the same order
    step = np.arange(len(order))
    # The smallest so far of a query, less one per document; queries are far enough apart to leave each other alone.
    far = np.cumsum(np.append(0, np.diff(query[order]) != 0)) << 33
    bits = np.minimum.accumulate(first + step - far) - step + far
    out = np.zeros(len(rate), np.float32)
    out[order] = np.maximum(bits, 0).astype(np.int32).view(np.float32)
    return np.where(rate > 0, out, np.float32(0))
