"""Pairs of a clicked and an unclicked document, weighted for what the ranks of both let the user see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.baselines.base import Baseline, clicks_of, ranks_of
from ultr.baselines.tables import propensity_table
from ultr.baselines.weighted import by_rank, checked_clip, rank_values, relative_curve
from ultr.errors import ConfigError
from ultr.rankers import ImpressionWeights
from ultr.sessions import Array, Sessions
from ultr.towers import IndexBound, TowerLike, supported_curve

SMALLEST_RATIO = 1e-3  # no ratio of PairDebias goes below, nor its inverse above


class RunningMean(nnx.Variable[jax.Array]):
    """A mean that training measures on its way: saved with the model, not trained."""


def pairs(clicks: jax.Array, mask: Array) -> jax.Array:
    """Marks pairs of a clicked document and one shown and not clicked, [B, K, K] bool."""
    skipped = jnp.asarray(mask) & ~clicks
    return clicks[:, :, None] & skipped[:, None, :]


def pair_loss(scores: Array, chosen: Array) -> jax.Array:
    """Computes log(1 + exp(score_j - score_i)) of the chosen pairs (i, j), [B, K, K]; 0 elsewhere."""
    gap = jnp.where(chosen, scores[:, None, :] - scores[:, :, None], 0.0)
    return jnp.where(chosen, jax.nn.softplus(gap), 0.0)


def swap_gain(ranks: jax.Array) -> jax.Array:
    """Computes what swapping two ranks changes of the DCG, |1/log2(1 + rank_i) - 1/log2(1 + rank_j)|, [B, K, K]."""
    discount = 1.0 / jnp.log2(1.0 + ranks)
    return jnp.abs(discount[:, :, None] - discount[:, None, :])


class PairDebias(Baseline):
    """Pairwise debiasing (Hu 2019): the pair loss divided by bias ratios of both ranks, which it estimates.

    The loss of a list is the sum over its clicked documents i and its unclicked ones j of
    log(1 + exp(s_j - s_i)) / (t+_i t-_j). Let L(k, j) be the pair losses summed over all lists in which rank k was
    clicked and rank j was not; then

        t+_k = (sum_j L(k, j) / t-_j  over the same for rank 1)^(1 / (p + 1))
        t-_k = (sum_i L(i, k) / t+_i  over the same for rank 1)^(1 / (p + 1))

    with p = `regularisation`. The sums are running means per session, to which a batch adds its share `momentum`; so
    batches of any size will do, and with `momentum=1` and one batch for all data it is the paper's algorithm.

    With p = 0 the ratios are right where P(i clicked and j not) is t+_i t-_j times the probability that the first
    document is the better one, and ranks say nothing about relevance, as in lists in random order. There t+ is also
    the examination of the PBM; t-_j then stands for how far a missing click at j can be believed, and the less clicks
    there are the nearer it is to 1. Where the logging policy knows relevance, t+ takes some of it for bias. With p = 1,
    the paper's choice, the ratios are about the square roots of these.

    Under `model.eval()`, and so when `fit` judges an epoch, the weights are divided by their mean over all pairs of
    ranks: else the loss would grow with every epoch in which the ratios fall.

    Args:
      relevance: tower of s.
      ranks: number of ranks, the tables' size.
      regularisation: p, at least 0.
      momentum: share of a batch in the running means, above 0 and at most 1.

    Raises:
      ConfigError: a number outside these limits.
    """

    curve_source = "ratios"
    has_pure_loss = False

    def __init__(
        self, *, relevance: TowerLike, ranks: int, regularisation: float = 1.0, momentum: float = 0.05
    ) -> None:
        super().__init__(relevance=relevance)
        if ranks < 1 or not regularisation >= 0 or not 0 < momentum <= 1:
            raise ConfigError(
                "expected ranks >= 1, regularisation >= 0 and momentum above 0 and at most 1, found "
                f"{ranks}, {regularisation} and {momentum}"
            )
        self.ranks, self.regularisation, self.momentum = int(ranks), float(regularisation), float(momentum)
        self.clicked, self.skipped = RunningMean(jnp.ones(ranks)), RunningMean(jnp.ones(ranks))
        self.deterministic = False

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", self.ranks, "ranks"),)

    def _ratio(self, sums: jax.Array) -> jax.Array:
        ratio = jnp.where(sums[0] > 0, sums / jnp.where(sums[0] > 0, sums[0], 1.0), 1.0)
        return jnp.clip(ratio, SMALLEST_RATIO, 1 / SMALLEST_RATIO) ** (1.0 / (self.regularisation + 1.0))

    def ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Computes t+ and t-, [ranks] each, relative to rank 1."""
        return np.asarray(self._ratio(self.clicked[...])), np.asarray(self._ratio(self.skipped[...]))

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes t+, which stands for the examination relative to rank 1, [ranks]; NaN as in `PBM.propensity`."""
        return supported_curve(self.ratios()[0][:ranks], self)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)

    def loss(self, sessions: Sessions) -> jax.Array:
        mask = jnp.asarray(sessions.mask)
        chosen = pairs(clicks_of(sessions, "PairDebias"), mask)
        position = jnp.where(mask, sessions.position, 0)
        each = pair_loss(self.relevance(sessions), chosen)
        clicked = rank_values(self._ratio(self.clicked[...]), sessions)[:, :, None]
        skipped = rank_values(self._ratio(self.skipped[...]), sessions)[:, None, :]
        if not self.deterministic:
            still = jax.lax.stop_gradient(each)
            rows = jnp.any(mask, axis=1).astype(jnp.float32)
            rows = rows if sessions.weight is None else rows * sessions.weight
            for estimate, by_rank in (
                (self.clicked, jnp.sum(still / skipped, axis=2)),
                (self.skipped, jnp.sum(still / clicked, axis=1)),
            ):
                mean = jnp.zeros(self.ranks).at[position].add(by_rank * rows[:, None]) / jnp.maximum(
                    jnp.sum(rows), 1e-9
                )
                share = jnp.where(jnp.any(mean > 0), self.momentum, 0.0)  # a batch without pairs tells nothing
                estimate[...] = (1.0 - share) * estimate[...] + share * mean
        loss = jnp.sum(each / (clicked * skipped), axis=(1, 2))
        if self.deterministic:
            loss = loss / (jnp.mean(1 / self._ratio(self.clicked[...])) * jnp.mean(1 / self._ratio(self.skipped[...])))
        return loss


class PRS(Baseline):
    """Propensity ratio scoring (Wang 2021): clicked against unclicked documents, weighted by o_j / o_i.

    The examination o_i of the clicked document makes up for clicks that its rank did not get. That of the unclicked
    one, o_j, says how far its missing click can be believed: on average over the clicks of relevant (1) and irrelevant
    (0) documents under the PBM, a pair weighs o_j where i is relevant and j is not, and o_j (1 - o_j), at most 1/4,
    where both are relevant, which IPS would weigh 1 - o_j. Two relevant documents are thus hardly compared. Lists
    without a click contribute 0.

    That rests on irrelevant documents never being clicked. Two of relevance r each, as where users click on one in ten
    by mistake, are compared by r o_j (1 - r o_j) one way and r o_i (1 - r o_i) the other: the one that was shown lower
    wins. On a log of mostly such documents, in a nearly fixed order, the ranker learns that order upside down.

    Args:
      relevance: tower whose logits are the scores.
      propensity: [R] examination by rank, all above 0, or `ultr.propensity.Propensities`. Relative ones do: their unit
        cancels.
      metric: `dcg`: LambdaRank, each pair times what swapping the two changes of the DCG; `rank`: pairs as they are.
      clip: largest weight of a pair; None: no limit.

    Raises:
      ConfigError: a propensity that is not a finite number above 0; a clip that is not above 0; an unknown metric.
    """

    metrics = ("dcg", "rank")
    weighs_impressions = True
    curve_source = "given"

    def __init__(
        self, *, relevance: TowerLike, propensity: Any, metric: str = "dcg", clip: float | None = None
    ) -> None:
        super().__init__(relevance=relevance)
        if metric not in self.metrics:
            raise ConfigError(f"unknown metric '{metric}'; known: {', '.join(self.metrics)}")
        self.propensity, self.metric = tuple(propensity_table(propensity).tolist()), metric
        self.examination = by_rank(self.propensity)
        self.clip = checked_clip(clip)

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.propensity), "ranks"),)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return relative_curve(self.propensity, ranks)

    def pair_weights(self, sessions: Sessions) -> tuple[jax.Array, jax.Array]:
        """Computes o_j / o_i, not clipped, and marks the pairs there are; [B, K, K] each."""
        examination = rank_values(self.examination[...], sessions)
        chosen = pairs(clicks_of(sessions, "PRS"), jnp.asarray(sessions.mask))
        return examination[:, None, :] / examination[:, :, None], chosen

    def loss(self, sessions: Sessions) -> jax.Array:
        scores, mask = self.relevance(sessions), jnp.asarray(sessions.mask)
        ratio, chosen = self.pair_weights(sessions)
        weight = jnp.where(chosen, ratio if self.clip is None else jnp.minimum(ratio, self.clip), 0.0)
        gain = swap_gain(ranks_of(scores, mask, clicks_of(sessions))) if self.metric == "dcg" else 1.0
        return jnp.sum(pair_loss(scores, chosen) * weight * gain, axis=(1, 2))

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights:
        """Computes the mean weight of the pairs of each clicked document."""
        ratio, chosen = self.pair_weights(sessions)
        count = jnp.sum(chosen, axis=2)
        clipped = chosen & (ratio > self.clip) if self.clip else jnp.zeros_like(chosen)
        limited = ratio if self.clip is None else jnp.minimum(ratio, self.clip)
        weight = jnp.sum(jnp.where(chosen, limited, 0.0), axis=2) / jnp.maximum(count, 1)
        return ImpressionWeights(weight, jnp.any(clipped, axis=2), count > 0)
