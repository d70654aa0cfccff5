"""Weighted baselines: what an impression says of relevance, divided by the chance that relevance shows in a click.

One rule makes them all. Clicks at rank k have probability alpha_k relevance + beta_k; without trust bias alpha is the
examination and beta is 0. The evidence of an impression is its click less what it would get without relevance; its
chance is alpha of its rank, or, with `Displays`, the mean of alpha over all displays of its document. Evidence over
chance is the relevance on average, and takes its place in a pointwise, listwise or pairwise loss.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import Baseline, clicks_of, softmax_cross_entropy
from ultr.baselines.displays import Displays
from ultr.baselines.tables import affine_tables, propensity_table
from ultr.data.dataset import SufficientStatistics
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.rankers import ImpressionWeights
from ultr.sessions import Array, Sessions
from ultr.towers import IndexBound, Statistic, TowerLike, read_feature

_LOG2 = 0.6931471805599453


class Formed(Baseline):
    """A baseline whose loss has a form; abstract.

    Attributes:
      forms: the forms that it allows.
      form: `listwise`: -sum target log softmax(score); `pointwise`: the cross-entropy of each document.
    """

    forms: ClassVar[tuple[str, ...]] = ("listwise", "pointwise")

    def __init__(self, *, relevance: TowerLike, form: str) -> None:
        super().__init__(relevance=relevance)
        if form not in self.forms:
            raise ConfigError(f"unknown form of the loss '{form}'; known: {', '.join(self.forms)}")
        self.form = form

    @property
    def sufficient_statistics(self) -> SufficientStatistics:
        return "rank" if self.form == "pointwise" else "list"


class Weighted(Formed):
    """A baseline whose impressions give `evidence` of relevance, which is divided by a `chance`; abstract.

    Args:
      relevance: tower whose logits are the scores.
      form: see the subclasses.
      clip: largest weight that an impression may have, at the price of bias; None: no limit.
      self_normalised: divide the weights by their mean over the counted impressions of the batch, each row counting by
        its session weight and padding not at all. Steadies the size of a step where weights vary; the loss then holds
        for relevance up to that factor, and the smaller the batch, the more it is biased (a batch with one counted
        impression weighs nothing).

    Raises:
      ConfigError: an unknown form, or a clip that is not above 0.
    """

    weighs_impressions = True
    curve_source = "given"

    def __init__(self, *, relevance: TowerLike, form: str, clip: float | None, self_normalised: bool) -> None:
        super().__init__(relevance=relevance, form=form)
        self.clip = checked_clip(clip)
        self.self_normalised = bool(self_normalised)

    @property
    def has_pure_loss(self) -> bool:
        return not self.self_normalised

    @abc.abstractmethod
    def evidence(self, sessions: Sessions) -> jax.Array:
        """Computes what each impression says of relevance before it is weighed, [B, K]; 0 on padding."""

    @abc.abstractmethod
    def chance(self, sessions: Sessions) -> jax.Array:
        """Computes what the evidence is divided by, [B, K]; 0: the impression has no weight."""

    def sessions_per_display(self, sessions: Sessions) -> jax.Array | None:
        """Computes how many sessions of its query each display stands for, [B, K]; None: one."""
        return None

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights:
        chance, mask = self.chance(sessions), jnp.asarray(sessions.mask)
        none = chance == 0  # a NaN shall be seen
        weight = self.clipped(inverse(chance))
        something = mask & (self.evidence(sessions) != 0)
        counted = something & ~none
        clipped = counted & (chance < 1.0 / self.clip) if self.clip else jnp.zeros_like(counted)
        if self.self_normalised:
            rows = 1.0 if sessions.weight is None else jnp.asarray(sessions.weight, jnp.float32)[:, None]
            share = counted * rows
            total = jnp.sum(jnp.where(counted, weight, 0.0) * share)
            weight = weight * jnp.where(total > 0, jnp.sum(share) / jnp.where(total > 0, total, 1.0), 1.0)
        return ImpressionWeights(jnp.where(mask, weight, 0.0), clipped, counted, something & none)

    def clipped(self, weight: jax.Array) -> jax.Array:
        """Limits weights to `clip`."""
        return jnp.minimum(weight, self.clip) if self.clip else weight

    def targets(self, sessions: Sessions) -> jax.Array:
        """Computes evidence times weight, [B, K]: an estimate of relevance, right on average; negative ones occur."""
        weight = self.impression_weights(sessions).weight
        return jax.lax.stop_gradient(jnp.where(sessions.mask, self.evidence(sessions) * weight, 0.0))

    def loss(self, sessions: Sessions) -> jax.Array:
        scores, mask = self.relevance(sessions), jnp.asarray(sessions.mask)
        return estimated_loss(self.form, scores, self.targets(sessions), mask, self.sessions_per_display(sessions))


class ClickWeighted(Weighted):
    """Clicks less beta, divided by alpha: by rank, or by document over all its displays; abstract.

    Args:
      alpha: [R] what relevance adds to the click probability at each rank.
      beta: [R] the click probability of an irrelevant document; None: 0.
      displays: how the log that is trained on showed each document; None: weights by rank. A document that the log
        never shows has no weight: it contributes nothing, and is counted as `unsupported`.
      relevance, form, clip, self_normalised: as in `Weighted`; with displays and the pointwise form `clip` also limits
        how many sessions a display stands for.
    """

    def __init__(
        self,
        *,
        relevance: TowerLike,
        alpha: np.ndarray,
        beta: np.ndarray | None = None,
        displays: Displays | None = None,
        form: str,
        clip: float | None,
        self_normalised: bool,
    ) -> None:
        super().__init__(relevance=relevance, form=form, clip=clip, self_normalised=self_normalised)
        self.displays, self.alpha = displays, tuple(alpha.tolist())
        if displays is None:
            self.added, self.unearned, self.shown = by_rank(alpha), None if beta is None else by_rank(beta), None
            return
        if not isinstance(displays, Displays):
            raise ConfigError(f"displays: expected Displays.of(log), found {type(displays).__name__}")
        self.added = by_document(displays, alpha)
        self.unearned = None if beta is None else by_document(displays, beta)
        self.shown = by_document(displays, np.ones(displays.ranks))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.alpha), "ranks"),) if self.displays is None else ()

    def _values(self, values: Statistic, sessions: Sessions) -> jax.Array:
        return rank_values(values[...], sessions) if self.displays is None else document_values(values[...], sessions)

    def evidence(self, sessions: Sessions) -> jax.Array:
        clicks = clicks_of(sessions, type(self).__name__).astype(jnp.float32)
        if self.unearned is None:
            return clicks
        base = self._values(self.unearned, sessions)
        if self.shown is not None:
            shown = self._values(self.shown, sessions)
            base = base / jnp.where(shown == 0, 1.0, shown)
        return jnp.where(sessions.mask, clicks - base, 0.0)

    def chance(self, sessions: Sessions) -> jax.Array:
        return self._values(self.added, sessions)

    def sessions_per_display(self, sessions: Sessions) -> jax.Array | None:
        return None if self.shown is None else self.clipped(inverse(self._values(self.shown, sessions)))

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return relative_curve(self.alpha, ranks)


class IPS(ClickWeighted):
    """Inverse propensity scoring: clicks divided by the examination of their rank.

    `listwise` (Joachims 2017, Agarwal 2019): the softmax cross-entropy -sum (c/o) log softmax(score). The weighted
    clicks of a list are not normalised to 1: then the weight of a list with one click would cancel, and most lists have
    one. On average over clicks it is the softmax cross-entropy with the true relevance. Relative propensities suffice,
    since their unit multiplies the whole loss. A list without a click contributes 0.

    `pointwise` (Bekker 2019, Saito 2020): the cross-entropy -(c/o) log r - (1 - c/o) log(1 - r), r = sigmoid(score). On
    average over clicks it is the cross-entropy with the true relevance. Propensities must be absolute here (that of
    rank 1 being what it is, not 1 by definition), since the second term is not weighted. A click that weighs more than
    1 would alone pull its logit up without end: the other impressions of the document hold it back, and `clip`.

    `pairwise`: each clicked document against all others, an additive bound on a rank metric. The rank of a document is
    at most R = 1 + sum over the others j of log2(1 + exp(score_j - score)), so that its DCG loses at most
    1 - 1/log2(1 + R) to that of rank 1. The loss is the sum of weight times that over the clicked documents: on average
    over clicks that over all documents, times their relevance (Agarwal 2019; with `metric="rank"` Joachims 2017).

    Args:
      relevance: tower whose logits are the scores.
      propensity: [R] examination by rank, all above 0, or `ultr.propensity.Propensities`.
      form: `listwise`, `pointwise` or `pairwise`.
      metric: of the pairwise form: `dcg` bounds the lost DCG; `rank` bounds the rank itself, which the far end of a
        list dominates.
      clip: largest weight 1/examination of a click; None: no limit.
      self_normalised: divide by the mean weight of the batch's clicks (see `Weighted`).

    Raises:
      ConfigError: a propensity that is not a finite number above 0; a clip that is not above 0; an unknown form or
        metric.
    """

    forms = ("listwise", "pointwise", "pairwise")
    metrics = ("dcg", "rank")

    def __init__(
        self,
        *,
        relevance: TowerLike,
        propensity: Any,
        form: str = "listwise",
        metric: str = "dcg",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        table = propensity_table(propensity)
        super().__init__(
            relevance=relevance,
            alpha=table,
            form=form,
            clip=clip,
            self_normalised=self_normalised,
        )
        if metric not in self.metrics:
            raise ConfigError(f"unknown metric '{metric}'; known: {', '.join(self.metrics)}")
        self.propensity, self.metric = tuple(table.tolist()), metric

    def loss(self, sessions: Sessions) -> jax.Array:
        if self.form != "pairwise":
            return super().loss(sessions)
        mask = jnp.asarray(sessions.mask)
        bound = rank_bound(self.relevance(sessions), mask)
        lost = bound if self.metric == "rank" else 1.0 - _LOG2 / jnp.log1p(bound)
        return jnp.sum(jnp.where(mask, self.targets(sessions) * lost, 0.0), axis=1)


class AffineIPS(ClickWeighted):
    """Affine correction: the click less that of an irrelevant document, over what relevance adds: (c - beta) / alpha.

    Vardasbi 2020: under trust bias P(click at k) = alpha_k relevance + beta_k, so that this is the relevance on
    average; with beta = 0 it is inverse propensity scoring. A document that was not clicked then counts below 0: the
    loss of a single list may be negative, and has a minimum only where the targets of a document are on average from
    0 to 1 (pointwise), or not negative (listwise).

    Args:
      relevance: tower whose logits are the scores.
      alpha, beta: [R] by rank, absolute; `trust_tables` makes them of examination and trust.
      form: `listwise`: -sum target log softmax(score); `pointwise`: the cross-entropy of each document.
      clip: largest weight 1/alpha; None: no limit.
      self_normalised: divide by the mean weight of the batch (see `Weighted`).

    Raises:
      ConfigError: alpha not above 0, beta below 0, or a click probability above 1; an unknown form; a clip that is
        not above 0.
    """

    corrects_trust_bias = True

    def __init__(
        self,
        *,
        relevance: TowerLike,
        alpha: Any,
        beta: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        high, low = affine_tables(alpha, beta)
        super().__init__(
            relevance=relevance,
            alpha=high,
            beta=low,
            form=form,
            clip=clip,
            self_normalised=self_normalised,
        )
        self.beta = tuple(low.tolist())


class PolicyAware(ClickWeighted):
    """Clicks divided by the chance that the logging policy has their document examined: sum_k P(shown at k) o_k.

    Oosterhuis and de Rijke 2020. Documents that a cut shows only sometimes get the weight that makes up for it, so
    their examination need not be above 0 in each session, but in some.

    Args:
      relevance: tower whose logits are the scores.
      displays: how the log that is trained on showed each document.
      propensity: [R] examination by rank, all above 0, or `ultr.propensity.Propensities`; absolute if pointwise.
      form: `pointwise`: the cross-entropy of each document; right on average over all documents of a query, also under
        a cut that shows some of them only sometimes, since each display stands for 1/P(shown) sessions.
        `listwise`: the softmax cross-entropy among the documents shown together; right on average where every session
        shows all documents of its query, whatever their order, and with fewer shown relative to what was shown.
      clip: largest weight (pointwise also of a display); None: no limit.
      self_normalised: divide by the mean weight of the batch (see `Weighted`).

    Raises:
      ConfigError: a propensity that is not a finite number above 0, or fewer than the log shows ranks; an unknown
        form; a clip that is not above 0.
    """

    def __init__(
        self,
        *,
        relevance: TowerLike,
        displays: Displays,
        propensity: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        table = propensity_table(propensity)
        super().__init__(
            relevance=relevance,
            alpha=table,
            displays=displays,
            form=form,
            clip=clip,
            self_normalised=self_normalised,
        )
        self.propensity = tuple(table.tolist())


class InterventionAware(ClickWeighted):
    """Clicks less what the displays get without relevance, divided by what relevance adds, both over all sessions.

    Oosterhuis and de Rijke 2021: (clicks - sessions E[beta]) / (sessions E[alpha]) is the relevance of a document on
    average, where P(click at k) = alpha_k relevance + beta_k and both are 0 where it is not shown. Here each display
    carries its part, (c - E[beta]/P(shown)) / E[alpha]. The expectations are over the displays in the log, so policies
    that changed on the way count by how much each showed.

    Args:
      relevance, displays, form, clip, self_normalised: as in `PolicyAware`.
      alpha, beta: [R] by rank, absolute.

    Raises:
      ConfigError: what `PolicyAware` raises; alpha not above 0, beta below 0, or a click probability above 1.
    """

    corrects_trust_bias = True

    def __init__(
        self,
        *,
        relevance: TowerLike,
        displays: Displays,
        alpha: Any,
        beta: Any,
        form: str = "listwise",
        clip: float | None = None,
        self_normalised: bool = False,
    ) -> None:
        high, low = affine_tables(alpha, beta)
        super().__init__(
            relevance=relevance,
            alpha=high,
            beta=low,
            displays=displays,
            form=form,
            clip=clip,
            self_normalised=self_normalised,
        )
        self.beta = tuple(low.tolist())


def checked_clip(clip: float | None) -> float | None:
    """Checks the largest weight that an impression may have.

    Raises:
      ConfigError: it is not above 0.
    """
    if clip is not None and not clip > 0:
        raise ConfigError(f"expected clip, the largest weight, above 0, found {clip}. None: no limit")
    return None if clip is None else float(clip)


def by_rank(values: Any) -> Statistic:
    """Holds values by rank, [R] float32, not trained: an argument of what is compiled, not a constant in it."""
    return Statistic(jnp.asarray(values, jnp.float32))


def by_document(displays: Displays, values: np.ndarray) -> Statistic:
    """Holds the exposure of each document, [V + 1] float32, for values by rank."""
    return Statistic(jnp.asarray(displays.exposure(values), jnp.float32))


def rank_values(values: Array, sessions: Sessions) -> jax.Array:
    """Looks up the value of the rank of each impression, [B, K]; that of rank 1 on padding.

    Args:
      values: [R], one per rank.
      sessions: a rank beyond the table gives NaN, never the value of another rank (see `towers.check_bounds`).
    """
    position = jnp.where(sessions.mask, sessions.position, 0)
    return jnp.take(jnp.asarray(values, jnp.float32), position, axis=0, mode="fill", fill_value=jnp.nan)


def document_values(values: Array, sessions: Sessions) -> jax.Array:
    """Looks up the value of the document of each impression, [B, K]; that of id 0, unseen, on padding.

    Args:
      values: [V + 1].
      sessions: an id beyond the table gives NaN (see `towers.check_bounds`).

    Raises:
      ConfigError: no feature `document`.
    """
    ids = jnp.where(sessions.mask, read_feature(sessions, "document", "Displays"), 0)
    return jnp.take(jnp.asarray(values), ids, axis=0, mode="fill", fill_value=jnp.nan)


def relative_curve(values: Any, ranks: int) -> np.ndarray:
    """Divides a curve by its value at rank 1 and cuts it to [ranks]."""
    table = np.asarray(values, np.float64)[:ranks]
    curve: np.ndarray = table / table[0]
    return curve


def rank_bound(scores: Array, mask: Array) -> jax.Array:
    """Bounds the rank of each document from above, smoothly: 1 + sum log2(1 + exp(score_j - score)), [B, K]."""
    others = jnp.asarray(mask)[:, None, :] & ~jnp.eye(scores.shape[1], dtype=bool)[None]
    gap = jnp.where(others, scores[:, None, :] - scores[:, :, None], 0.0)
    return 1.0 + jnp.sum(jnp.where(others, jax.nn.softplus(gap), 0.0), axis=2) / _LOG2


def estimated_loss(form: str, scores: Array, targets: Array, mask: Array, shown: Array | None = None) -> jax.Array:
    """Computes the loss of each list as if the targets were the relevances, [B].

    It is linear in the targets, so it is unbiased where they are.

    Args:
      form: `listwise`: -sum target log softmax(score), not normalised by the targets; `pointwise`: the sum of
        -target log r - (shown - target) log(1 - r) with r = sigmoid(score).
      scores, targets: [B, K]; targets may be negative and may exceed 1.
      mask: [B, K] bool.
      shown: [B, K] how many impressions each one stands for (None: 1), pointwise only.
    """
    if form == "listwise":
        return softmax_cross_entropy(scores, targets, mask)
    rest = (1.0 if shown is None else shown) - targets
    each = -targets * log_sigmoid(scores) - rest * log_sigmoid(-scores)
    return jnp.sum(jnp.where(mask, each, 0.0), axis=1)


def inverse(chance: jax.Array) -> jax.Array:
    """Computes 1 / chance; 0 where the chance is 0."""
    return jnp.where(chance == 0, 0.0, 1.0 / jnp.where(chance == 0, 1.0, chance))
