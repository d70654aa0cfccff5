"""The entropy of simulated clicks: the lowest loss and the lowest perplexities that any model can have on a log.

Given a list (with its contexts and the time), the expected -ln P(clicks) is least for the true model, where it is the
entropy; likewise for the click at one rank given nothing, and given the clicks above (Cover and Thomas 2006).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import CascadeClicks, ClickDistribution, PositionClicks
from ultr.logspace import log1mexp
from ultr.sessions import Array
from ultr.simulate.scan_clicks import ScanClicks

ENUMERATED = 6  # ranks up to which all click vectors are enumerated where there is no closed form


class Entropies(NamedTuple):
    """Entropies of the clicks on B lists, in nats; 0 on padding.

    Attributes:
      session: [B] entropy of the click vector.
      marginal: [B, K] entropy of the click at each rank, given nothing but the list.
      conditional: [B, K] expected entropy of the click at each rank given the clicks above.
    """

    session: jax.Array
    marginal: jax.Array
    conditional: jax.Array


class ExactEntropies(NamedTuple):
    """Which of the `Entropies` are exact; those that are not are unbiased estimates from sampled clicks."""

    session: bool
    conditional: bool


def exact_entropies(distribution: ClickDistribution) -> ExactEntropies:
    """Says which entropies of a distribution `entropies` computes exactly."""
    small = distribution.marginal().shape[1] <= ENUMERATED
    known = isinstance(distribution, PositionClicks | CascadeClicks)
    reordered = isinstance(distribution, ScanClicks) and not distribution.noise
    return ExactEntropies(known or reordered or small, known or small)


def entropies(
    distribution: ClickDistribution, clicks: Array, mask: Array, *, enumerated_ranks: int = ENUMERATED
) -> Entropies:
    """Computes the entropies of clicks, in closed form where there is one.

    Without noise and mixtures, the state of the user follows from the last click, or from the last click and how far
    they read on since: sums over K or K^2 cases. Otherwise all 2^K click vectors are enumerated, up to six ranks.
    Beyond that, conditional entropies are given the sampled clicks above; their mean over clicks is the true one.

    Args:
      distribution: the true one.
      clicks: [B, K] drawn from it.
      mask: [B, K] the shown documents.
      enumerated_ranks: up to so many ranks, all click vectors are enumerated where there is no closed form.
    """
    clicks, mask = jnp.asarray(clicks), jnp.asarray(mask)
    marginal = _entropy(distribution.marginal(), mask)
    session = None
    if isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
        conditional = marginal
    elif isinstance(distribution, PositionClicks):
        conditional = _last_click(distribution)
    elif isinstance(distribution, CascadeClicks):
        conditional = _cascade(distribution)
    else:
        # The chain rule gives the same entropy in the order of reading.
        if isinstance(distribution, ScanClicks) and not distribution.noise:
            session = entropies(distribution.clean, clicks, distribution.clean.mask).session
        if mask.shape[1] <= enumerated_ranks:
            conditional = _enumerated(distribution, mask)
        else:
            conditional = _entropy(distribution.conditional(clicks), mask)
    session = jnp.sum(conditional, axis=1) if session is None else session
    return Entropies(session, marginal, conditional)


def _entropy(log_p: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the entropy of a click of log-probability log_p; 0 where it is certain, or not shown."""
    log_p = jnp.where(mask, jnp.minimum(log_p, 0.0), -1.0)
    p = jnp.exp(log_p)
    unsure = mask & (p > 0) & (p < 1)
    inside = jnp.where(unsure, log_p, -1.0)
    return jnp.where(unsure, -p * inside - (1 - p) * log1mexp(inside), 0.0)


def _last_click(distribution: PositionClicks) -> jax.Array:
    """Computes [B, K] conditional entropies of a UBM from the distribution of the last click above each rank."""
    logits = jnp.moveaxis(jnp.asarray(distribution.logits), 1, 0)
    k, b, states = logits.shape

    def step(last: jax.Array, at: Any) -> Any:
        index, logit, shown = at
        each = _entropy(jax.nn.log_sigmoid(logit), jnp.ones(logit.shape, bool))
        clicked = jnp.sum(last * jax.nn.sigmoid(logit), axis=1)
        on = (last * jax.nn.sigmoid(-logit)).at[:, index + 1].set(clicked)
        return jnp.where(shown[:, None], on, last), jnp.where(shown, jnp.sum(last * each, axis=1), 0.0)

    steps = (jnp.arange(k), logits, jnp.asarray(distribution.mask).T)
    conditional: jax.Array = jax.lax.scan(step, jnp.zeros((b, states)).at[:, 0].set(1.0), steps)[1].T
    return conditional


def _cascade(distribution: CascadeClicks) -> jax.Array:
    """Computes [B, K] conditional entropies of a cascade from the distribution of the last click above each rank.

    Below the last click, each document skipped makes it likelier that reading has ended.
    """
    d = distribution
    fields = (d.click, d.skip, d.go_after_click, d.stop_after_click, d.go_after_skip, d.stop_after_skip)
    steps = tuple(jnp.exp(jnp.asarray(x)).T for x in fields)
    k, b = steps[0].shape

    # [B, K+1] P(last click at each rank above, still reading), and with reading ended; index 0: no click.
    def step(state: Any, at: Any) -> Any:
        reading, ended = state
        index, shown, (click, skip, on1, off1, on0, off0) = at
        total = reading + ended
        chance = jnp.where(total > 0, reading / jnp.where(total > 0, total, 1.0), 0.0) * click[:, None]
        found = total * _entropy(jnp.log(chance), jnp.ones(chance.shape, bool))
        clicked = jnp.sum(reading, axis=1) * click
        skipped = reading * skip[:, None]
        reading_on = (skipped * on0[:, None]).at[:, index + 1].set(clicked * on1)
        ended_on = (ended + skipped * off0[:, None]).at[:, index + 1].set(clicked * off1)
        keep = shown[:, None]
        state = jnp.where(keep, reading_on, reading), jnp.where(keep, ended_on, ended)
        return state, jnp.where(shown, jnp.sum(found, axis=1), 0.0)

    start = jnp.zeros((b, k + 1)).at[:, 0].set(1.0), jnp.zeros((b, k + 1))
    conditional: jax.Array = jax.lax.scan(step, start, (jnp.arange(k), jnp.asarray(d.mask).T, steps))[1].T
    return conditional


def _enumerated(distribution: ClickDistribution, mask: jax.Array) -> jax.Array:
    """Computes [B, K] conditional entropies by a sum over all click vectors."""
    k = mask.shape[1]
    # Vectors that differ on padding alone are the same clicks: each is counted this many times.
    times = jnp.exp2(k - jnp.sum(mask, axis=1, keepdims=True))

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        clicks = jnp.broadcast_to((number >> jnp.arange(k))[None, :] & 1, mask.shape).astype(jnp.int8)
        p = jnp.exp(distribution.log_prob(clicks))[:, None]
        each = p * _entropy(distribution.conditional(clicks), mask)
        return total + jnp.where(p > 0, each, 0.0)

    conditional: jax.Array = jax.lax.fori_loop(0, 2**k, add, jnp.zeros(mask.shape)) / times
    return conditional


class EntropyTotals:
    """Running totals of the entropies of a log's sessions, and the lowest loss and perplexities that follow.

    Args:
      ranks: K.
      exact: which entropies are exact.
    """

    def __init__(self, ranks: int, exact: ExactEntropies) -> None:
        self._exact = exact
        self._count = 0
        self._shown = np.zeros(ranks)
        self._session = np.zeros(2)
        self._marginal = np.zeros(ranks)
        self._conditional = np.zeros((2, ranks))

    def add(self, found: Entropies, mask: np.ndarray) -> None:
        """Adds the entropies of sessions that show `mask` [B, K]."""
        session, marginal, conditional = (np.asarray(x, np.float64) for x in found)
        self._count += len(session)
        self._shown += mask.sum(0)
        self._session += session.sum(), (session**2).sum()
        self._marginal += marginal.sum(0)
        self._conditional += conditional.sum(0), (conditional**2).sum(0)

    def to_json(self) -> dict[str, Any]:
        """Returns `entropy` per session in nats, `perplexity` and `conditional_perplexity`, for JSON.

        Entropy and conditional perplexity have standard errors, 0 where the value is exact; the perplexities, which are
        defined as in `ultr.evaluation`, have values of every rank.
        """
        shown = self._shown > 0
        count = self._shown[shown]
        marginal = np.exp(self._marginal[shown] / count)
        given = self._conditional[0, shown] / count
        spread = np.sqrt(np.maximum(self._conditional[1, shown] / count - given**2, 0) / count)
        given = np.exp(given)
        mean, square = self._session / self._count
        session_error = 0.0 if self._exact.session else math.sqrt(max(square - mean**2, 0) / self._count)
        # Ranks of one session are dependent: the error of their mean is at most the mean of their errors.
        given_error = 0.0 if self._exact.conditional else float((given * spread).mean())
        return {
            "entropy": float(mean),
            "entropy_standard_error": session_error,
            "perplexity": float(marginal.mean()),
            "perplexity_by_rank": marginal.tolist(),
            "conditional_perplexity": float(given.mean()),
            "conditional_perplexity_standard_error": given_error,
            "conditional_perplexity_by_rank": given.tolist(),
        }
