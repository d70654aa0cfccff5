"""`GuardedRanker`: a ranker as a correction of the logged order, and the estimate of that order from what was shown."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import check_number
from ultr.data import Counts
from ultr.data.dataset import SufficientStatistics
from ultr.errors import ConfigError, DataError
from ultr.rankers import ImpressionWeights, Ranker
from ultr.sessions import Sessions
from ultr.towers import DocumentTable, Frozen, IndexBound, Linear, Scaler, Statistic, TowerLike, read_feature

RIDGE = 0.01  # of the fit to the logged order, per compared pair
MOST_PAIRS = 100_000
NEWTON_STEPS = 30
ROWS_AT_ONCE = 1 << 16


class GuardedRanker(Ranker):
    """Ranks by the logged order, corrected: (1 - c) logger / spread_L + c ranker / spread_R.

    With c = 0 it ranks as the logger did, with c = 1 as the ranker alone, and in between it moves a document away from
    its logged place as far as the ranker's evidence is strong. c is chosen by held-out clicks (`ultr.study.guarding`).

    Args:
      ranker: a trained ranker; it is left as it is, and loss and examination are its own.
      logger: tower whose logits rank as the logging policy did.
      correction: c, from 0 to 1.
      ranker_spread, logger_spread: standard deviation of each score within queries, by which they are made comparable.
      documents: size of the vocabulary where the ranker knows only the documents that it was trained on; documents
        that are not among `known` [documents + 1] are not corrected, and keep the logged order. 0: it scores any.

    Raises:
      ConfigError: a correction outside [0, 1], or a spread that is not above 0.
    """

    reads_by_towers = True

    def __init__(
        self,
        *,
        ranker: Ranker,
        logger: TowerLike,
        correction: float,
        ranker_spread: float = 1.0,
        logger_spread: float = 1.0,
        documents: int = 0,
    ) -> None:
        self.correction = check_number("correction", correction, least=0)
        if self.correction > 1:
            raise ConfigError(f"expected a correction from 0 to 1, found {correction}")
        self.ranker, self.logger = ranker, logger if isinstance(logger, Frozen) else Frozen(logger)
        self.ranker_spread = check_number("ranker_spread", ranker_spread, least=0)
        self.logger_spread = check_number("logger_spread", logger_spread, least=0)
        if not min(self.ranker_spread, self.logger_spread) > 0:
            raise ConfigError(f"expected spreads above 0, found {ranker_spread} and {logger_spread}")
        self.documents = documents
        self.known = Statistic(jnp.zeros(documents + 1, jnp.bool_))

    @property
    def reads(self) -> frozenset[str] | None:
        found = super().reads
        return found if found is None or not self.documents else found | {"document"}

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("document", self.documents + 1, "ids"),) if self.documents else ()

    @property
    def sufficient_statistics(self) -> SufficientStatistics:
        return self.ranker.sufficient_statistics

    @property
    def corrects_trust_bias(self) -> bool:
        return self.ranker.corrects_trust_bias

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the loss of the ranker, [B]."""
        return self.ranker.loss(sessions)

    def score(self, sessions: Sessions) -> jax.Array:
        sessions = sessions.unbiased()
        logged = self.logger(sessions) / self.logger_spread
        own = jnp.asarray(self.ranker.score(sessions)) / self.ranker_spread
        c: Any = self.correction
        if self.documents:
            ids = read_feature(sessions, "document", "GuardedRanker").astype(jnp.int32)
            c = jnp.where(jnp.take(self.known[...], ids, axis=0), self.correction, 0.0)
        found: jax.Array = (1 - c) * logged + c * own
        return found

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights | None:
        return self.ranker.impression_weights(sessions)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.ranker.examination_curve(ranks)


class EstimatedOrder(NamedTuple):
    """An estimate of the order in which a log shows documents.

    Attributes:
      tower: its logits are higher for documents shown higher.
      scores: [V + 1] these logits by document id, of documents with features; 0 of document 0.
      agreement: share of the pairs of documents whose logged order it has; NaN without any.
      pairs: how many pairs of documents it was fitted to.
    """

    tower: Any
    scores: np.ndarray
    agreement: float
    pairs: int


def logged_places(counts: Counts) -> np.ndarray:
    """Computes how high the log shows each document: [V + 1] mean of R + 1 - rank over the sessions of its query.

    A session that does not show a document counts 0, so that what is shown often stands above what is shown rarely.
    """
    size = counts.vocabulary.documents + 1
    height = np.bincount(counts.document, counts.impressions * (counts.ranks + 1.0 - counts.rank), size)
    query, weight = counts.vocabulary.document_query, counts.query_weights
    sessions = np.where(query >= 0, weight[np.maximum(query, 0)], 0.0)
    found: np.ndarray = np.divide(height, sessions, out=np.zeros(size), where=sessions > 0)
    return found


def fit_logged_order(counts: Counts, *, score: str | None = None, seed: int = 0) -> EstimatedOrder:
    """Estimates the logger's score of documents from the order in which it shows them.

    With features a linear score, by the logistic likelihood of which of two documents of a query stands higher on
    average (Bradley and Terry 1952), with a ridge; without, the mean place of each document.

    Args:
      counts: of the sessions, by rank.
      score: name of a feature that holds the logger's own score; then that is taken as it is.
      seed: draws the queries that are compared where there are very many documents.

    Raises:
      ConfigError: no feature of that name.
      DataError: a feature that is not finite.
    """
    names, features = counts.vocabulary.feature_names, counts.vocabulary.features
    place = logged_places(counts)
    if score is not None and score not in names:
        raise ConfigError(f"the log has no feature '{score}' with the logger's score; it has: {', '.join(names)}")
    above, below = _compared_pairs(counts, place, seed)
    if features is None:
        tower: Any = DocumentTable(counts.documents)
        tower.table[...] = jnp.asarray(place[: counts.documents + 1], jnp.float32)
        agreement = 1.0 if len(above) else float("nan")
        return EstimatedOrder(tower, place, agreement, len(above))
    if score is not None:
        scaler, weights = _scaler(counts, features, only=names.index(score))
    else:
        shown = np.unique(counts.document)
        scaler, _ = _scaler(counts, features[shown])
        scale = np.asarray(scaler.scale[...], np.float64)
        if len(above):
            weights = _pairwise_weights((features[above].astype(np.float64) - features[below]) / scale)
    mean, scale = (np.asarray(x[...], np.float64) for x in (scaler.mean, scaler.scale))
    values = np.zeros(len(features))
    for start in range(1, len(features), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        values[rows] = ((features[rows] - mean) / scale) @ weights
    tower = Linear(features.shape[1], scaler=scaler, rngs=nnx.Rngs(seed))
    tower.output.kernel[...] = jnp.asarray(weights[:, None], jnp.float32)
    difference = values[above] - values[below]
    agreement = float(np.mean(np.where(difference == 0, 0.5, difference > 0))) if len(above) else float("nan")
    return EstimatedOrder(tower, values, agreement, len(above))


def _scaler(counts: Counts, x: np.ndarray, only: int | None = None) -> tuple[Scaler, np.ndarray]:
    """Measures features [n, F]; also returns weights [F] that pick the one of number `only`."""
    x = np.asarray(x, np.float64)
    if not (finite := np.isfinite(x).all(0)).all():
        name = counts.vocabulary.feature_names[int(finite.argmin())]
        raise DataError("expected finite features, found NaN or infinity", field=f"features[{name}]")
    mean, deviation = x.mean(0), x.std(0)
    scaler = Scaler(x.shape[1])
    deviation = np.where(deviation > 4 * np.finfo(np.float32).eps * np.abs(mean), deviation, 1.0)
    scaler.mean[...], scaler.scale[...] = jnp.asarray(mean, jnp.float32), jnp.asarray(deviation, jnp.float32)
    scaler.input_schema = counts.input_schema.only({"features"})
    weights = np.zeros(x.shape[1])
    if only is not None:
        weights[only] = 1.0
    return scaler, weights


def _compared_pairs(counts: Counts, place: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists pairs of shown documents of one query, the higher one first; of some queries, where there are too many."""
    shown = np.unique(counts.document)
    shown = shown[shown > 0]
    query = counts.vocabulary.document_query[shown]
    order = np.lexsort((-place[shown], query))
    shown, query = shown[order], query[order]
    start = np.flatnonzero(np.append(True, query[1:] != query[:-1])[: len(query)])
    lists = np.split(shown, start[1:])
    above, below, total = list[np.ndarray](), list[np.ndarray](), 0
    for i in np.random.default_rng(seed).permutation(len(lists)):
        a, b = np.triu_indices(len(lists[i]), 1)
        keep = place[lists[i][a]] > place[lists[i][b]]
        above.append(lists[i][a[keep]])
        below.append(lists[i][b[keep]])
        total += int(keep.sum())
        if total >= MOST_PAIRS:
            break
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *above]), np.concatenate([none, *below])


def _pairwise_weights(difference: np.ndarray) -> np.ndarray:
    """Maximises sum log sigmoid(difference @ w) - ridge/2 |w|^2 over w [F] by Newton's method."""
    n, size = difference.shape
    weights = np.zeros(size)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(difference @ weights, -40, 40)))
        slope = difference.T @ (1 - p) - RIDGE * n * weights
        curvature = (difference * (p * (1 - p))[:, None]).T @ difference + RIDGE * n * np.eye(size)
        step = np.linalg.solve(curvature, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    return weights
