"""Unconfounded propensity estimation: the logging policy is learnt first, then held fixed beside the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import check_name, check_names
from ultr.baselines.base import Baseline, clicks_of, softmax_cross_entropy
from ultr.baselines.dual import log_limit, relative_to_first
from ultr.baselines.pairwise import RunningMean
from ultr.baselines.weighted import rank_values
from ultr.errors import ConfigError
from ultr.rankers import ImpressionWeights, Ranker
from ultr.sessions import Sessions
from ultr.towers import Component, IndexBound, Scaler, TowerLike, read_feature, supported_curve
from ultr.towers.scaling import feature_matrix
from ultr.towers.wrappers import held

FAR = -1e9  # stands for a logit of minus infinity, with gradients that are finite


class DocumentEmbedding(Component):
    """Looks up a vector per document.

    Args:
      documents: size of the vocabulary; ids run from 1 to this, 0 is an unseen document.
      width: length of the vectors.
      rngs: for the starting values.
    """

    parameter_group = "table"

    def __init__(self, documents: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.documents, self.width = documents, width
        self.table = nnx.Embed(documents + 1, width, rngs=rngs)

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("document", self.documents + 1, "ids"),)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks up the vectors of ids [...], [..., width]."""
        vectors: jax.Array = self.table(ids)
        return vectors


class LoggingPolicy(Ranker):
    """First stage of UPE: a network that tells from the documents in which order the logging policy showed them.

    Where a feature has the scores of the policy, its loss is the softmax cross-entropy to the softmax of these (Luo
    2024). Most logs keep the order only: then it is the negative log-likelihood of the displayed order under a
    Plackett-Luce model (ListMLE). It needs no clicks. What it learns is the effect through which relevance confounds
    the ranks.

    Args:
      size: number of features F; 0: documents by their id.
      documents: size of the vocabulary, where `size` is 0.
      width: numbers that a document is summed up in.
      hidden: width of the layers before and after them.
      feature: name(s) of the features to read.
      scores: name of the feature that has the policy's score of each document; None: learn from the order.
      scaler: transform and statistics of the training split.
      rngs: for the starting values.

    Raises:
      ConfigError: neither features nor documents, or both.
    """

    learns_from_clicks = False

    parameter_group = "network"

    def __init__(
        self,
        size: int,
        *,
        documents: int = 0,
        width: int = 16,
        hidden: int = 64,
        feature: str | Sequence[str] = "features",
        scores: str | None = None,
        scaler: Scaler | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if (size > 0) == (documents > 0):
            raise ConfigError(f"expected features or documents, found size {size} and documents {documents}")
        if scaler is not None and scaler.size != size:
            raise ConfigError(f"expected a scaler of {size} features, found one of {scaler.size}")
        self.size, self.documents, self.width, self.hidden = size, documents, width, hidden
        self.feature = check_names("feature", feature)
        self.scores, self.scaler = None if scores is None else check_name("scores", scores), scaler
        if size:
            self.layer = nnx.Linear(size, hidden, rngs=rngs)
            self.encoder: Callable[[jax.Array], jax.Array] = nnx.Linear(hidden, width, rngs=rngs)
        else:
            self.encoder = DocumentEmbedding(documents, width, rngs=rngs)
        self.inner = nnx.Linear(width, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, 1, rngs=rngs)

    @property
    def reads(self) -> frozenset[str]:
        names = (self.feature,) if isinstance(self.feature, str) else self.feature
        return frozenset([*(names if self.size else ["document"]), *([self.scores] if self.scores else [])])

    def summary(self, sessions: Sessions) -> jax.Array:
        """Sums each document up in a vector, [B, K, width]."""
        if not self.size:
            return self.encoder(read_feature(sessions, "document", "LoggingPolicy").astype(jnp.int32))
        x = feature_matrix(sessions, self.feature, self.size, "LoggingPolicy")
        x = x if self.scaler is None else self.scaler(x)
        return self.encoder(jax.nn.leaky_relu(self.layer(x)))

    def logits(self, summary: jax.Array) -> jax.Array:
        """Computes logits [...] from summaries [..., width]."""
        logits: jax.Array = self.outer(jax.nn.leaky_relu(self.inner(summary)))[..., 0]
        return logits

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes how far the scores are from those of the policy, or from the displayed order, [B]."""
        mask, scores = jnp.asarray(sessions.mask), self.score(sessions)
        if self.scores is not None:
            logged = jnp.where(mask, read_feature(sessions, self.scores, "LoggingPolicy"), FAR)
            return softmax_cross_entropy(scores, jnp.where(mask, jax.nn.softmax(logged, axis=1), 0.0), mask)
        scores = jnp.where(mask, scores, FAR)
        rest = jax.lax.cumlogsumexp(scores, axis=1, reverse=True)
        return jnp.sum(jnp.where(mask, rest - scores, 0.0), axis=1)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes scores [B, K]: documents with higher ones are shown higher."""
        return self.logits(self.summary(sessions))


class UPE(Baseline):
    """Unconfounded propensity estimation (Luo 2024): DLA whose propensities tell ranks from the policy's documents.

    The examination logit of document d at rank k is that of a network of both, b(k, d): the trained `LoggingPolicy`,
    held fixed, with an embedding of the rank added to the summary of the document. Only the embedding learns from
    clicks, by DLA's examination loss. The ranker's weights come from the ranks alone, by backdoor adjustment:
    P(E | do(k)) is the mean, over lists whose documents were moved among the ranks, of softmax(b)_k, relative to that
    of the first document.

    Different from the paper's program: the documents are moved by turns of the list (every document comes to every
    rank, where the list is not longer than `turns`) in place of random shuffles; the mean is a running one over
    batches, which is kept with the model; the network's pretraining is a fit of its own before this one
    (`ultr.fit(LoggingPolicy(...), log)`), on the displayed order.

    Since the documents' part of b is held fixed, the ranks have to make up for whatever of it is not examination: under
    a policy that hardly varies its lists, P(E | do(k)) can rise with the rank, and the weights then favour clicks on
    what the policy preferred anyway. Compare `propensity` with an estimate of `ultr.propensity` before relying on it.

    Args:
      relevance: tower of the ranker.
      policy: trained; it is copied, and the copy is not trained any more.
      ranks: number of ranks, the size of the embedding.
      clip: largest weight; None: exp(60).
      turns: how many moved lists the mean is over, at most.
      momentum: share of a batch in the running mean, above 0 and at most 1.

    Raises:
      ConfigError: a number outside these limits.
    """

    weighs_impressions = True
    curve_source = "ratios"
    has_pure_loss = False

    def __init__(
        self,
        *,
        relevance: TowerLike,
        policy: LoggingPolicy,
        ranks: int,
        clip: float | None = 100.0,
        turns: int = 16,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(relevance=relevance)
        if ranks < 1 or turns < 1 or not 0 < momentum <= 1:
            raise ConfigError(
                f"expected ranks >= 1, turns >= 1 and momentum above 0 and at most 1, found {ranks}, {turns} and "
                f"{momentum}"
            )
        self.policy, self.ranks, self.turns, self.momentum = held(policy), int(ranks), int(turns), float(momentum)
        self._limit = log_limit(clip)
        self.clip = clip
        self.rank = nnx.Param(jnp.zeros((self.ranks, policy.width)))
        self.own, self.first = (RunningMean(jnp.full(self.ranks, 1.0 / self.ranks)) for _ in range(2))
        self.deterministic = False

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", self.ranks, "ranks"),)

    def loss(self, sessions: Sessions) -> jax.Array:
        clicks, mask = clicks_of(sessions, "UPE"), jnp.asarray(sessions.mask)
        scores, summary = self.relevance(sessions), self.policy.summary(sessions)
        examination = self.policy.logits(summary + self._ranks(sessions))
        if not self.deterministic:
            self._adjust(sessions, jax.lax.stop_gradient(summary))
        relevant = jnp.where(clicks, relative_to_first(scores, self._limit), 0.0)
        examined = jnp.where(clicks, relative_to_first(self._intervened(sessions), self._limit), 0.0)
        return softmax_cross_entropy(scores, examined, mask) + softmax_cross_entropy(examination, relevant, mask)

    def _ranks(self, sessions: Sessions) -> jax.Array:
        """Looks up the embeddings of the ranks, [B, K, width]."""
        return jnp.take(self.rank[...], jnp.where(sessions.mask, sessions.position, 0), axis=0, mode="clip")

    def _intervened(self, sessions: Sessions) -> jax.Array:
        """Computes log P(E | do(k)) up to a constant, [B, K]."""
        return rank_values(jnp.log(self.own[...]) - jnp.log(self.first[...]), sessions)

    def _adjust(self, sessions: Sessions, summary: jax.Array) -> None:
        """Adds the batch to the running means of P(E | do(k)) and of that of the first rank, of lists that show k."""
        mask = jnp.asarray(sessions.mask)
        width = mask.shape[1]
        length = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
        turns = min(self.turns, width)
        embedding, index = jax.lax.stop_gradient(self._ranks(sessions)), jnp.arange(width)[None, :]

        def turned(turn: jax.Array, total: jax.Array) -> jax.Array:
            by = jnp.where(length > turns, turn * length // turns, turn)
            source = (index + by) % length
            moved = jnp.take_along_axis(summary, source[:, :, None], axis=1)
            logits = jnp.where(mask, jax.lax.stop_gradient(self.policy.logits(moved + embedding)), FAR)
            return total + jnp.where(turn < length, jax.nn.softmax(logits, axis=1), 0.0)

        share = jax.lax.fori_loop(0, turns, turned, jnp.zeros(mask.shape)) / jnp.minimum(turns, length)
        rows = jnp.where(mask, 1.0 if sessions.weight is None else jnp.asarray(sessions.weight)[:, None], 0.0)
        position = jnp.where(mask, sessions.position, 0)
        for estimate, value in ((self.own, share), (self.first, jnp.broadcast_to(share[:, :1], mask.shape))):
            shown = jnp.zeros(self.ranks).at[position].add(rows)
            mean = jnp.zeros(self.ranks).at[position].add(rows * value) / jnp.where(shown > 0, shown, 1.0)
            moved = (1.0 - self.momentum) * estimate[...] + self.momentum * mean
            estimate[...] = jnp.where((shown > 0) & (mean > 0), moved, estimate[...])

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights:
        """Computes the weights of the ranker's loss."""
        clicks, logits = clicks_of(sessions, "UPE"), self._intervened(sessions)
        weight = jnp.where(sessions.mask, relative_to_first(logits, self._limit), 0.0)
        return ImpressionWeights(weight, clicks & (logits[:, :1] - logits > self._limit), clicks)

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes P(E | do(k)) relative to rank 1, [ranks]; NaN as in `PBM.propensity`."""
        table = np.asarray(self.own[...] / self.first[...])[:ranks]
        return supported_curve(table / table[0], self)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)
