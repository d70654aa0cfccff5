"""Plackett-Luce rankings: exposure of documents under a stochastic ranker, and gradients of what depends on it.

A ranking is drawn document by document, each with probability proportional to exp(score) among those left. The exposure
of a document is the mean of the weight of its rank. Short lists are enumerated; of longer ones rankings are drawn by
adding Gumbel noise to the scores, and gradients come from the score function, with rewards to go and a leave-one-out
baseline (Oosterhuis 2021; Gupta, Oosterhuis and de Rijke 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ultr.sessions import Array

ENUMERATED = 4  # lists of up to so many documents are enumerated: 24 rankings
LARGEST_GAP = (
    60.0  # a score further below the highest of its list counts as this far below, which single precision holds
)
_KEYS = 96.0  # noisy scores, relative to the highest score, lie within an interval of this length
_TOP = 24.0  # whose upper end this is: Gumbel noise of single precision does not exceed it

Objective = Callable[[jax.Array], jax.Array]


class Exposures(NamedTuple):
    """Two estimates of the exposure [B, K] that do not depend on each other, or the same exact one twice."""

    first: jax.Array
    second: jax.Array

    @property
    def mean(self) -> jax.Array:
        """Their mean."""
        return (self.first + self.second) / 2


def policy_value(
    objective: Objective, scores: Array, mask: Array, weights: Array, *, key: jax.Array, samples: int
) -> tuple[jax.Array, Exposures]:
    """Computes an objective over exposure, [B], whose gradient by the scores is right on average.

    Lists of up to four documents are enumerated. Of longer ones, half of the drawn rankings give the exposure at which
    the objective's slopes are taken, and these reward the rankings of the other half: with the same rankings for both,
    the gradient would be biased. Each half serves both ends, and the gradient is the mean of the two.

    Args:
      objective: exposure [B, K] -> [B]; the value of a list depends on its own exposure alone.
      scores: [B, K].
      mask: [B, K] bool, a prefix of each row.
      weights: [R] of ranks 1 to R; lower ranks have none.
      key: draws the rankings.
      samples: how many rankings are drawn; even, at least 4.
    """
    scores, mask = jnp.asarray(scores, jnp.float32), jnp.asarray(mask)
    width = mask.shape[1]
    by_place = jnp.zeros(width).at[: len(weights)].set(jnp.asarray(weights, jnp.float32)[:width])
    short = min(width, ENUMERATED)
    exact = enumerated_exposure(scores[:, :short], mask[:, :short], by_place[:short])
    exact = jnp.pad(exact, ((0, 0), (0, width - short)))
    value = objective(exact)
    if width == short:
        return value, Exposures(exact, exact)
    sampled, exposures = _sampled_value(objective, scores, mask, by_place, key, samples)
    few = jnp.sum(mask, axis=1) <= ENUMERATED
    halves = Exposures(*(jax.lax.stop_gradient(jnp.where(few[:, None], exact, half)) for half in exposures))
    return jnp.where(few, value, sampled), halves


def enumerated_exposure(scores: jax.Array, mask: jax.Array, weights: jax.Array) -> jax.Array:
    """Computes the exposure of documents, [B, K], by enumerating all K! rankings; differentiable.

    Args:
      scores: [B, K], K small.
      mask: [B, K] bool, a prefix of each row.
      weights: [K] of the ranks.
    """
    width = mask.shape[1]
    order = np.array(list(itertools.permutations(range(width))), np.int32).reshape(-1, width)
    ranked, shown = jnp.where(mask, scores, 0.0)[:, order], mask[:, order]  # [B, K!, K]
    # Of the rankings that differ in where the padding stands only the one with all of it behind, in order, counts.
    last = jnp.asarray(order == np.arange(width))[None]
    valid = jnp.all(shown == mask[:, None, :], axis=2) & jnp.all(shown | last, axis=2)
    far = jnp.where(shown, ranked, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(far, axis=2, keepdims=True, initial=-1e30))
    gap = jnp.where(shown, ranked - top, -1e9)
    left = jax.lax.cumlogsumexp(gap, axis=2, reverse=True)
    log = jnp.sum(jnp.where(shown, gap - left, 0.0), axis=2)
    chance = jnp.where(valid, jnp.exp(jnp.where(valid, log, 0.0)), 0.0)
    rank_weight = jnp.asarray(weights)[np.argsort(order, axis=1)]  # [K!, K] of each document
    return jnp.where(mask, jnp.einsum("bp,pk->bk", chance, rank_weight), 0.0)


def drawn_rankings(scores: jax.Array, mask: jax.Array, key: jax.Array, samples: int) -> jax.Array:
    """Draws rankings, [B, samples, K] int32: the documents from rank 1 on, padding last.

    Args:
      scores: [B, K], of which the highest of each list is 0.
      mask: [B, K] bool.
      key: draws the noise.
      samples: how many rankings per list.
    """
    width = scores.shape[1]
    bits = max((width - 1).bit_length(), 1)
    noisy = scores[:, None, :] + jax.random.gumbel(key, (scores.shape[0], samples, width))
    # Documents are sorted with their numbers in the low bits: one number each, which a CPU sorts ten times as fast.
    places = jnp.clip((_TOP - noisy) / _KEYS, 0.0, 1.0) * float((1 << (32 - bits)) - (1 << 8))
    place = jnp.where(mask[:, None, :], places.astype(jnp.uint32), jnp.uint32((1 << (32 - bits)) - 1))
    packed = jnp.sort((place << bits) | jnp.arange(width, dtype=jnp.uint32)[None, None], axis=2)
    order: jax.Array = (packed & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    return order


def _sampled_value(
    objective: Objective, scores: jax.Array, mask: jax.Array, weights: jax.Array, key: jax.Array, samples: int
) -> tuple[jax.Array, Exposures]:
    fixed = jax.lax.stop_gradient(jnp.where(mask, scores, 0.0))
    top = jnp.max(jnp.where(mask, fixed, -jnp.inf), axis=1, keepdims=True, initial=-1e30)
    gap = jnp.where(mask, jnp.maximum(fixed - top, -LARGEST_GAP), 0.0)
    order = drawn_rankings(gap, mask, key, samples)
    half = samples // 2
    rankings = order[:, :half], order[:, half : 2 * half]
    weight = jnp.where(
        mask, weights[None], 0.0
    )  # padding is ranked last, so that the prefix of ranks is that of documents
    exposures = Exposures(*(_mean_by_document(jnp.broadcast_to(weight[:, None], y.shape), y) for y in rankings))
    slopes = jax.grad(lambda exposure: jnp.sum(objective(exposure)))
    odds = jnp.where(mask, jnp.exp(gap), 0.0)
    gradient = sum(
        _score_gradient(odds, mask, weight, slopes(exposure), ranking) / 2
        for exposure, ranking in zip(exposures, rankings[::-1], strict=True)
    )
    value = jax.lax.stop_gradient(objective(exposures.mean))
    moved = jnp.where(mask, scores - jax.lax.stop_gradient(scores), 0.0)  # 0, with the gradient of the scores
    return value + jnp.sum(jax.lax.stop_gradient(gradient) * moved, axis=1), exposures


def _score_gradient(
    odds: jax.Array, mask: jax.Array, weight: jax.Array, slope: jax.Array, order: jax.Array
) -> jax.Array:
    """Computes the gradient [B, K] of the mean reward of drawn rankings by the scores, from the score function.

    Args:
      odds: [B, K] exp(score), 0 on padding.
      mask: [B, K] bool.
      weight: [B, K] of the ranks.
      slope: [B, K] reward of a document per unit of exposure.
      order: [B, M, K] rankings.
    """
    reward = weight[:, None] * _ranked(slope, order)
    to_go = jnp.cumsum(reward[..., ::-1], axis=2)[..., ::-1]
    others = (jnp.sum(to_go, axis=1, keepdims=True) - to_go) / (order.shape[1] - 1)
    advantage = jnp.where(mask[:, None], to_go - others, 0.0)
    ranked = _ranked(odds, order)
    left = jnp.cumsum(ranked[..., ::-1], axis=2)[..., ::-1]
    # d/ds of log pi(y_k | y_<k) is 1 for the document at k, less exp(score) over what is left, for k and all below.
    pulled = jnp.cumsum(advantage / jnp.where(left > 0, left, 1.0), axis=2)
    return _mean_by_document(advantage - ranked * pulled, order)


def _ranked(values: jax.Array, order: jax.Array) -> jax.Array:
    """Looks up values [B, K] of documents in the order of rankings, [B, M, K]."""
    return jnp.take_along_axis(jnp.broadcast_to(values[:, None], order.shape), order, axis=2)


def _mean_by_document(values: jax.Array, order: jax.Array) -> jax.Array:
    """Averages values [B, M, K] by rank over the rankings, for each document, [B, K]."""
    rows = jax.lax.broadcasted_iota(jnp.int32, order.shape, 0)
    return jnp.zeros((order.shape[0], order.shape[2])).at[rows, order].add(values) / order.shape[1]
