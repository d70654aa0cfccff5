"""Click metrics: how well a model predicts the clicks of a log, in one pass and bounded memory."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import PositionClicks
from ultr.errors import DataError
from ultr.evaluation.estimate import Estimate, Moments, widened
from ultr.logspace import log1mexp
from ultr.sessions import Array, Sessions

PERPLEXITIES = ("perplexity", "conditional_perplexity")
CLICK_METRICS = ("log_likelihood", "log_likelihood_per_document", *PERPLEXITIES)


def click_terms(model: Any, sessions: Sessions, marginal: bool, conditional: bool) -> dict[str, jax.Array]:
    """Log-probabilities of the observed clicks.

    Returns:
      log_likelihood [B], and as asked perplexity and conditional_perplexity: [B, K] log-probabilities
      of what was observed at each rank, from marginals and from conditionals; 0 on padding.
    """
    clicks, mask = sessions.clicks, sessions.mask
    distribution = model(sessions)
    # The chances of a click and of none are separate numbers: where one rounds to 1, the other is not lost.
    exact = distribution.observed(clicks) if hasattr(distribution, "observed") else None
    terms = {"log_likelihood": distribution.log_prob(clicks)}
    if marginal:
        if exact is not None and isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
            at_rank = exact  # Clicks above tell nothing.
        else:
            at_rank = _at_rank(distribution.marginal(), exact, clicks, mask)
        terms["perplexity"] = _below_one(at_rank, mask)
    if conditional:
        given = _at_rank(distribution.conditional(clicks), None, clicks, mask) if exact is None else exact
        terms["conditional_perplexity"] = _below_one(given, mask)
    return terms


@jax.jit
def _at_rank(log_click: Array, exact: Array | None, clicks: Array, mask: Array) -> jax.Array:
    """[B, K] log-probabilities of what was observed, from those of a click.

    The complement of a sum of float32 probabilities close to 1 is noise, down to log 0. No click at a rank
    is at least as probable as no click there together with what was observed above: `exact`, summed.
    """
    log_click = jnp.where(mask, jnp.minimum(log_click, 0.0), -1.0)
    no_click = log1mexp(log_click)
    if exact is not None:
        joint = jnp.cumsum(exact, axis=1)
        # After clicks of probability zero `exact` may be undefined, which says nothing of the marginal.
        no_click = jnp.maximum(no_click, jnp.where(jnp.isnan(joint), -jnp.inf, joint))
    return jnp.where(clicks != 0, log_click, no_click)


@jax.jit
def _below_one(log_prob: Array, mask: Array) -> jax.Array:
    # A probability that rounds to just above 1 would give a perplexity below 1.
    return jnp.where(mask, jnp.minimum(log_prob, 0.0), 0.0)


class ClickTotals:
    """Running totals of the click metrics.

    Args:
      perplexities: which of `PERPLEXITIES` the batches bring.
      by_query: keep the totals of every query (standard errors over queries; `per_query`).
    """

    def __init__(self, perplexities: tuple[str, ...], *, by_query: bool) -> None:
        self._by_query = by_query
        # Per session: 1, shown documents, log-likelihood.
        self._sums = Moments(1, grouped=by_query)
        self._sums.widen(3)
        self._excluded = 0.0
        self._ranks = {name: _RankTotals(by_query) for name in perplexities}

    def add(self, batch: Sessions, terms: dict[str, np.ndarray]) -> None:
        """Adds a host batch with its `click_terms`.

        Raises:
          DataError: a log-probability is NaN, or query ids are needed and missing.
        """
        mask = np.asarray(batch.mask)
        weight = np.ones(len(mask)) if batch.weight is None else np.asarray(batch.weight, np.float64)
        if self._by_query and batch.query is None:
            raise DataError("expected query ids, found none", field="query", fix='Use cluster="session"')
        query = np.asarray(batch.query) if self._by_query else np.zeros(len(mask), np.int64)
        log_prob = np.asarray(terms["log_likelihood"], np.float64)
        real = mask.any(1) & (weight > 0)
        _reject_nan(np.isnan(log_prob) & real)
        possible = real & (log_prob > -np.inf)
        self._excluded += weight[real & ~possible].sum()
        rows = np.stack([np.ones(len(mask)), mask.sum(1), np.where(possible, log_prob, 0.0)], axis=1)
        # An impossible session adds nothing, yet its query stays in the table.
        rows = np.where(possible[:, None], rows, 0.0)[:, None]
        self._sums.add(rows[real], weight[real], query[real])
        for name, totals in self._ranks.items():
            each = np.asarray(terms[name], np.float64)
            # By marginals every session counts, so that different models are measured on the same ones. What the
            # model cannot produce has no conditionals: they are given clicks above of probability zero.
            kept = real if name == "perplexity" else possible
            _reject_nan(np.isnan(each).any(1) & kept)
            totals.excluded += weight[real & ~kept].sum()
            totals.add(each[kept], np.asarray(batch.position)[kept], mask[kept], weight[kept], query[kept])

    def ranks(self, name: str) -> list[int]:
        """1-based ranks, ascending, for which a perplexity was seen."""
        return sorted(r + 1 for r in self._ranks[name].positions.tolist())

    def estimate(self, name: str, rank: int | None = None) -> Estimate:
        """One of `CLICK_METRICS`; perplexities also at one 1-based rank."""
        if name in self._ranks:
            return self._ranks[name].estimate(rank)
        sessions, documents, total = self._sums.totals[0]
        below, at = (documents, 1) if name == "log_likelihood_per_document" else (sessions, 0)
        units = float((self._sums.groups()[1][:, 0, 0] > 0).sum()) if self._by_query else sessions
        if below == 0:
            return Estimate.of(math.nan, math.nan, count=0, excluded=self._excluded)
        gradient = np.zeros((1, 3))
        gradient[0, 2], gradient[0, at] = 1 / below, -total / below**2
        error = self._sums.standard_error(gradient, units)
        return Estimate.of(total / below, error, count=sessions, excluded=self._excluded, freedom=units - 1)

    def per_query(self, name: str, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Query ids [Q], ascending, and the metric over each query's own sessions [Q]."""
        if name in self._ranks:
            return self._ranks[name].per_query(rank)
        query, rows = self._sums.groups()
        below = rows[:, 0, 1 if name == "log_likelihood_per_document" else 0]
        return query, np.where(below > 0, rows[:, 0, 2] / np.where(below > 0, below, 1), np.nan)

    def queries(self) -> np.ndarray:
        """Ids of all queries with a session, ascending, whether or not the model can produce it."""
        return self._sums.groups()[0]


class _RankTotals:
    """Sums of log2 P(observed) and of the sessions shown, by rank; what has probability 0 is counted apart."""

    def __init__(self, by_query: bool) -> None:
        self._by_query = by_query
        self._moments = Moments(2, grouped=by_query)
        # Apart, since an infinite term in a product of sums would turn the errors of all ranks into NaN.
        self._never = Moments(1, grouped=by_query)
        self._column = np.zeros(0, np.int64)
        self.positions = np.zeros(0, np.int64)
        self.sessions = 0.0
        self.excluded = 0.0

    def add(
        self, terms: np.ndarray, position: np.ndarray, mask: np.ndarray, weight: np.ndarray, query: np.ndarray
    ) -> None:
        self.sessions += weight.sum()
        row, at = np.nonzero(mask)
        place = position[row, at]
        if len(place) == 0:
            return
        # Ranks may be sparse (page 7 of a result list): a column per rank that occurs.
        grow = max(int(place.max()) + 1 - len(self._column), 0)
        self._column = np.pad(self._column, (0, grow), constant_values=-1)
        new = np.unique(place[self._column[place] < 0])
        self._column[new] = len(self.positions) + np.arange(len(new))
        self.positions = np.concatenate([self.positions, new])
        rows = np.zeros((len(mask), 2, len(self.positions)))
        column = self._column[place]
        term = terms[row, at]
        never = np.isneginf(term)
        rows[row, 0, column] = np.where(never, 0.0, term) / math.log(2)
        rows[row, 1, column] = 1
        self._moments.add(rows, weight, query)
        if never.any():
            apart = np.zeros((len(mask), 1, len(self.positions)))
            apart[row[never], 0, column[never]] = 1
            self._never.add(apart, weight, query)

    def _chosen(self, rank: int | None) -> np.ndarray:
        return np.arange(len(self.positions)) if rank is None else np.flatnonzero(self.positions == rank - 1)

    def estimate(self, rank: int | None) -> Estimate:
        log2, shown = self._moments.totals
        chosen = self._chosen(rank)
        count = self.sessions if rank is None else float(shown[chosen].sum())
        if len(chosen) == 0:
            return Estimate.of(math.nan, math.nan, count=0, excluded=self.excluded)
        self._never.widen(len(log2))
        with np.errstate(over="ignore"):
            each = np.exp2(-log2[chosen] / shown[chosen])
            each = np.where(self._never.totals[0, chosen] > 0, np.inf, each)
            value = float(each.mean())
        if not math.isfinite(value):
            return Estimate.of(value, math.nan, count=count, excluded=self.excluded)
        # Relative to the value: the square of a large one would overflow.
        gradient = np.zeros((2, len(log2)))
        gradient[0, chosen] = -math.log(2) * (each / value) / (shown[chosen] * len(chosen))
        gradient[1, chosen] = -gradient[0, chosen] * log2[chosen] / shown[chosen]
        units = count
        if self._by_query:
            units = float((self._moments.groups()[1][:, 1, chosen] > 0).any(1).sum())
        error = value * self._moments.standard_error(gradient, units)
        return Estimate.of(
            value, error, count=count, excluded=self.excluded, freedom=units - 1, log_scale=True, least=1.0
        )

    def per_query(self, rank: int | None) -> tuple[np.ndarray, np.ndarray]:
        query, rows = self._moments.groups()
        chosen = self._chosen(rank)
        log2, shown = np.moveaxis(rows[:, :, chosen], 1, 0)
        there = shown > 0
        with np.errstate(over="ignore"):
            each = np.where(there, np.exp2(-log2 / np.where(there, shown, 1)), 0.0)
        never_in, never = self._never.groups()
        if len(never_in):
            at = np.searchsorted(query, never_in)
            each[at] = np.where(widened(never, len(self.positions), (2,))[:, 0, chosen] > 0, np.inf, each[at])
        ranks = there.sum(1)
        with np.errstate(over="ignore"):
            return query, np.where(ranks > 0, each.sum(1) / np.maximum(ranks, 1), np.nan)


def _reject_nan(bad: np.ndarray) -> None:
    if bad.any():
        raise DataError(
            f"the model gives {bad.sum()} of {len(bad)} sessions of a batch a log-probability of NaN",
            fix="Its parameters or the features are not finite: check them, or lower the learning rate",
        )
