"""Weights of impressions: their tables by rank, clipping, self-normalisation, and the losses that they enter."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ultr.baselines.base import Baseline, softmax_cross_entropy
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.models import Tower
from ultr.sessions import Array, Sessions
from ultr.towers import check
from ultr.towers.networks import Statistic

FORMS = ("listwise", "pointwise")
LARGEST = 1e-3  # by which a click probability of estimated tables may exceed 1


class Weighting(NamedTuple):
    """What a weighted baseline makes of each impression of a batch.

    Attributes:
      weight: [B, K] factor of what the impression says of relevance; 0 where it has none.
      clipped: [B, K] bool, counted ones whose weight was cut down to `clip`.
      counted: [B, K] bool, impressions that the weight matters for: shown, with a weight, and with something to weigh
        (a click, where only clicks are weighed).
      unsupported: [B, K] bool, those that have something to weigh, but no weight, since the log never shows their
        document; None: none.
    """

    weight: jax.Array
    clipped: jax.Array
    counted: jax.Array
    unsupported: jax.Array | None = None


def propensity_table(given: Any, name: str = "propensity") -> np.ndarray:
    """[R] float64 examination of each rank, the first one that of rank 1.

    Args:
      given: numbers above 0, relative to any rank (so they may exceed 1), or `ultr.propensity.Propensities`.
      name: of the argument, for errors.

    Raises:
      ConfigError: none, or one that is not a finite number above 0; names the ranks.
    """
    if hasattr(given, "value") and hasattr(given, "rank"):
        rank = np.asarray(given.rank)
        table = np.full(int(rank.max(initial=0)), np.nan)
        table[rank - 1] = given.value
    else:
        table = _table(given, name)
    bad = ~(np.isfinite(table) & (table > 0))
    if bad.any() or not len(table):
        found = "none" if not len(table) else f"{table[bad][0]:g} at {_ranks(bad)}"
        raise ConfigError(
            f"{name}: expected a finite number above 0 for every rank, found {found}. A click there would weigh "
            "without limit: cut the lists above it, or estimate it in a way that supports it"
        )
    return table


def affine_tables(alpha: Any, beta: Any) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta [R] float64 by rank, where P(click) = alpha relevance + beta (Vardasbi 2020).

    Raises:
      ConfigError: different lengths; alpha not above 0; beta below 0; a click probability above 1.
    """
    high, low = propensity_table(alpha, "alpha"), _table(beta, "beta")
    if len(high) != len(low):
        raise ConfigError(f"expected alpha and beta for the same ranks, found {len(high)} and {len(low)}")
    bad = ~(low >= 0) | ~(low + high <= 1 + LARGEST)
    if bad.any():
        raise ConfigError(
            f"expected beta of at least 0 and alpha + beta, the click probability of a relevant document, of at most "
            f"1, found {high[bad][0]:g} + {low[bad][0]:g} at {_ranks(bad)}"
        )
    return high, low


def trust_tables(examination: Any, relevant: Any, irrelevant: Any) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, beta), [R] each, of a user with trust bias (Agarwal 2019).

    Args:
      examination: [R] probability that a rank is examined.
      relevant, irrelevant: [R] or one number: probability that an examined document is clicked, if relevant and if
        not.

    Returns:
      alpha = examination (relevant - irrelevant), beta = examination irrelevant.

    Raises:
      ConfigError: as of `affine_tables`.
    """
    theta = propensity_table(examination, "examination")
    yes, no = (np.broadcast_to(np.asarray(x, np.float64), theta.shape) for x in (relevant, irrelevant))
    return affine_tables(theta * (yes - no), theta * no)


def _table(given: Any, name: str) -> np.ndarray:
    table = np.asarray(given, np.float64)
    if table.ndim != 1:
        raise ConfigError(f"{name}: expected one number per rank, found an array of shape {table.shape}")
    return table


def _ranks(bad: np.ndarray) -> str:
    ranks = (np.flatnonzero(bad) + 1).tolist()
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


class Weighted(Baseline):
    """A baseline whose impressions say `evidence` of relevance, which is divided by a `chance`; abstract.

    Args:
      relevance: tower whose logits are the scores.
      clip: largest weight that an impression may have, at the price of bias; None: no limit.
      self_normalised: divide the weights by their mean over the counted impressions of the batch, each row counting by
        its session weight and padding not at all. Steadies the size of a step where weights vary; the loss then holds
        for relevance up to that factor, and the smaller the batch, the more it is biased (a batch with one counted
        impression weighs nothing).

    Raises:
      ConfigError: a clip that is not above 0.
    """

    def __init__(self, *, relevance: Tower, clip: float | None, self_normalised: bool) -> None:
        super().__init__(relevance=relevance)
        if clip is not None and not clip > 0:
            raise ConfigError(f"expected clip, the largest weight, above 0, found {clip}. None: no limit")
        self.clip = None if clip is None else float(clip)
        self.self_normalised = bool(self_normalised)

    @abc.abstractmethod
    def evidence(self, sessions: Sessions) -> jax.Array:
        """[B, K] what each impression says of relevance before it is weighed; 0 on padding."""

    @abc.abstractmethod
    def chance(self, sessions: Sessions) -> jax.Array:
        """[B, K] what the evidence is divided by; 0: the impression has no weight."""

    def weighting(self, sessions: Sessions) -> Weighting:
        """The weight of each impression as it enters the loss."""
        chance, mask = self.chance(sessions), jnp.asarray(sessions.mask)
        none = chance == 0  # a NaN shall be seen
        weight = self.limited(jnp.where(none, 0.0, 1.0 / jnp.where(none, 1.0, chance)))
        something = mask & (self.evidence(sessions) != 0)
        counted = something & ~none
        clipped = counted & (chance < 1.0 / self.clip) if self.clip else jnp.zeros_like(counted)
        if self.self_normalised:
            rows = 1.0 if sessions.weight is None else jnp.asarray(sessions.weight, jnp.float32)[:, None]
            share = counted * rows
            total = jnp.sum(jnp.where(counted, weight, 0.0) * share)
            weight = weight * jnp.where(total > 0, jnp.sum(share) / jnp.where(total > 0, total, 1.0), 1.0)
        return Weighting(jnp.where(mask, weight, 0.0), clipped, counted, something & none)

    def limited(self, weight: jax.Array) -> jax.Array:
        """Weights, none above `clip`."""
        return jnp.minimum(weight, self.clip) if self.clip else weight

    def targets(self, sessions: Sessions) -> jax.Array:
        """[B, K] evidence times weight: an estimate of relevance, right on average; negative ones occur."""
        found = self.weighting(sessions)
        return jax.lax.stop_gradient(jnp.where(sessions.mask, self.evidence(sessions) * found.weight, 0.0))


def by_rank(values: Sequence[float]) -> Statistic:
    """[R] float32, not trained: an argument of what is compiled, so that other logs need no other program."""
    return Statistic(jnp.asarray(values, jnp.float32))


def rank_values(model: Baseline, values: Array, sessions: Sessions) -> jax.Array:
    """[B, K] the value of the rank of each impression; that of rank 1 on padding.

    Args:
      model: what to look through for tables that are too small, where the sessions are on the host.
      values: [R], one per rank.
      sessions: not compiled, a rank beyond the table is an error; compiled, the value there is NaN, never that of
        another rank.

    Raises:
      DataError: names the first rank beyond the table.
    """
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(sessions)):
        check(model, sessions)
    position = jnp.where(sessions.mask, sessions.position, 0)
    return jnp.take(jnp.asarray(values, jnp.float32), position, axis=0, mode="fill", fill_value=jnp.nan)


def form_statistics(form: str) -> str:
    """What a loss of the given form needs of a log: "rank" if pointwise, else "list".

    Raises:
      ConfigError: an unknown form.
    """
    if form not in FORMS:
        raise ConfigError(f"unknown form of the loss '{form}'; known: {', '.join(FORMS)}")
    return "rank" if form == "pointwise" else "list"


def estimated_loss(form: str, scores: Array, targets: Array, mask: Array, shown: Array | None = None) -> jax.Array:
    """[B] the loss of each list if the targets were the relevances; linear in them, so unbiased where they are.

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
