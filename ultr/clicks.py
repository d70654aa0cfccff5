"""The three distributions over click vectors that all click models share.

Each holds logits or log-probabilities of shape [B, K] and answers in log space: `conditional`, `observed`,
`marginal` and `log_prob`; and it draws a `sample`. Padding is never clicked: it has log-probability
-inf of a click in `conditional` and `marginal`, adds nothing to `log_prob`, and clicks given for it are ignored.

With `rank_axis=0` every [B, K] array, given or returned, is held as [K, B] instead (`Sessions.rank_first`).
"""

from __future__ import annotations

from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

from ultr.logspace import exclusive_cumsum, log_sigmoid, logaddexp, logsumexp
from ultr.sessions import Array


class ClickDistribution(Protocol):
    """A distribution over click vectors of B lists of K documents."""

    def conditional(self, clicks: Array) -> jax.Array:
        """Computes log P(C_k = 1 | the clicks above rank k), [B, K], for clicks [B, K]."""
        ...

    def observed(self, clicks: Array) -> jax.Array:
        """Computes log P(C_k = c_k | the clicks above rank k), [B, K]; 0 on padding. Sums to `log_prob`."""
        ...

    def marginal(self) -> jax.Array:
        """Computes log P(C_k = 1), [B, K]."""
        ...

    def log_prob(self, clicks: Array) -> jax.Array:
        """Computes log P(clicks), [B]; -inf for a click vector that cannot happen."""
        ...

    def sample(self, key: Array) -> jax.Array:
        """Draws one click vector per list, [B, K] int8."""
        ...


def last_click(clicked: Array, rank: Array, axis: int = 1) -> jax.Array:
    """Finds the last click above each document, [B, K] int32: its 1-based `rank`, 0 where nothing was clicked above."""
    running = jax.lax.cummax(jnp.where(clicked, rank, 0).astype(jnp.int32), axis=axis)
    return _shifted(running, axis, 0)


def _shifted(x: jax.Array, axis: int, first: float) -> jax.Array:
    """Moves every value one rank further down, with `first` at the top."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (min(x.shape[axis], 1), 0)
    return jnp.pad(jax.lax.slice_in_dim(x, 0, max(x.shape[axis] - 1, 0), axis=axis), pads, constant_values=first)


def _index(mask: Array, axis: int) -> jax.Array:
    """Counts 0, 1, 2, ... along the ranks, with length 1 along the lists."""
    index = jnp.arange(mask.shape[axis], dtype=jnp.int32)
    return jnp.expand_dims(index, 1 - axis)


@flax.struct.dataclass
class PositionClicks:
    """Clicks that depend on the rank and, optionally, on the last click above it.

    Attributes:
      logits: [B, K] click logits; or [B, K, K+1], the last axis chosen by the last click
        above rank k: 0 for none, 1 + j for the document at index j (with `rank_axis=1` only).
      mask: [B, K] bool.
    """

    logits: Array
    mask: Array
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    def _given(self, clicks: Array) -> jax.Array:
        logits = jnp.asarray(self.logits)
        if logits.ndim == 3:
            last = last_click((clicks != 0) & self.mask, _index(self.mask, 1) + 1)
            logits = jnp.take_along_axis(logits, last[:, :, None], axis=2)[:, :, 0]
        return jnp.where(self.mask, logits, 0.0)

    def conditional(self, clicks: Array) -> jax.Array:
        return jnp.where(self.mask, log_sigmoid(self._given(clicks)), -jnp.inf)

    def observed(self, clicks: Array) -> jax.Array:
        logits = self._given(clicks)
        each = log_sigmoid(jnp.where(clicks != 0, logits, -logits))
        return jnp.where(self.mask, each, 0.0)

    def log_prob(self, clicks: Array) -> jax.Array:
        return jnp.sum(self.observed(clicks), axis=self.rank_axis)

    def marginal(self) -> jax.Array:
        logits = jnp.asarray(self.logits)
        if logits.ndim == 2:
            return jnp.where(self.mask, log_sigmoid(jnp.where(self.mask, logits, 0.0)), -jnp.inf)
        b, k, _ = logits.shape

        def step(log_last: jax.Array, rank: tuple[jax.Array, jax.Array, jax.Array]):  # type: ignore[no-untyped-def]
            index, logit, shown = rank
            click = jnp.where(shown, logsumexp(log_last + log_sigmoid(logit)), -jnp.inf)
            stays = log_last + jnp.where(shown[:, None], log_sigmoid(-logit), 0.0)
            return stays.at[:, index + 1].set(click), click

        start = jnp.full((b, k + 1), -jnp.inf, logits.dtype).at[:, 0].set(0.0)
        steps = (jnp.arange(k), jnp.moveaxis(logits, 1, 0), jnp.moveaxis(jnp.asarray(self.mask), 1, 0))
        log_click: jax.Array = jax.lax.scan(step, start, steps)[1].T
        return log_click

    def sample(self, key: Array) -> jax.Array:
        logits = jnp.asarray(self.logits)
        if logits.ndim == 2:
            draw = jax.random.bernoulli(key, jax.nn.sigmoid(logits), logits.shape)
            return (draw & self.mask).astype(jnp.int8)
        b, k, _ = logits.shape
        uniform = jax.random.uniform(key, (b, k), logits.dtype)

        def step(last: jax.Array, rank: tuple[jax.Array, ...]):  # type: ignore[no-untyped-def]
            index, logit, shown, u = rank
            given = jnp.take_along_axis(logit, last[:, None], axis=1)[:, 0]
            click = (u < jax.nn.sigmoid(given)) & shown
            return jnp.where(click, index + 1, last), click

        steps = (
            jnp.arange(k, dtype=jnp.int32),
            jnp.moveaxis(logits, 1, 0),
            jnp.moveaxis(jnp.asarray(self.mask), 1, 0),
            uniform.T,
        )
        clicks: jax.Array = jax.lax.scan(step, jnp.zeros(b, jnp.int32), steps)[1].T
        return clicks.astype(jnp.int8)


@flax.struct.dataclass
class CascadeClicks:
    """A user who scans from the top, clicks what attracts, and goes on or stops after each document.

    The likelihood is in closed form: with l the last click, everything up to l was examined, and the
    tail marginalises over where the user stopped (Guo 2009; Chapelle and Zhang 2009).

    Attributes:
      click, skip: [B, K] log-probabilities of what the user does with an examined document, complements.
      go_after_click, stop_after_click: [B, K] log-probabilities, complements of each other.
      go_after_skip, stop_after_skip: [B, K] log-probabilities, complements of each other.
      mask: [B, K] bool.
    """

    click: Array
    skip: Array
    go_after_click: Array
    stop_after_click: Array
    go_after_skip: Array
    stop_after_skip: Array
    mask: Array
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    def _attraction(self) -> tuple[jax.Array, jax.Array]:
        return jnp.where(self.mask, self.click, 0.0), jnp.where(self.mask, self.skip, 0.0)

    def log_prob(self, clicks: Array) -> jax.Array:
        axis = self.rank_axis
        if self.mask.shape[axis] == 0:
            return jnp.zeros(self.mask.shape[1 - axis])
        index, last = self._last(clicks)
        _, ignore = self._attraction()
        after = (index > last) & self.mask
        step = jnp.where(after, ignore + self.go_after_skip, 0.0)
        stop = exclusive_cumsum(step, axis) + jnp.where(after, ignore + self.stop_after_skip, 0.0)
        nothing_more = logaddexp(logsumexp(stop, axis, where=after), jnp.sum(step, axis=axis))
        # A sum with one term: the value at the last click, without a gather.
        stopped = jnp.sum(jnp.where(index == last, self.stop_after_click, 0.0), axis=axis)
        went_on = jnp.sum(jnp.where(index == last, self.go_after_click, 0.0), axis=axis)
        clicked_at_all = jnp.squeeze(last, axis) >= 0
        tail = jnp.where(clicked_at_all, logaddexp(stopped, went_on + nothing_more), nothing_more)
        return self._until(clicks, index, last) + tail

    def log_prob_stopping(self, clicks: Array) -> jax.Array:
        """Computes log P(clicks, nothing below the last click is examined), [B]; without a click, all is examined.

        What the counting estimators of SDBN and DCM maximise (Chapelle and Zhang 2009; Guo 2009).
        """
        index, last = self._last(clicks)
        last_rank = jnp.sum(jnp.asarray(self.mask), axis=self.rank_axis, keepdims=True) - 1
        end = jnp.where(last >= 0, last, last_rank)
        stopped = jnp.sum(jnp.where(index == last, self.stop_after_click, 0.0), axis=self.rank_axis)
        return self._until(clicks, index, end) + stopped

    def _last(self, clicks: Array) -> tuple[jax.Array, jax.Array]:
        """Indices of the ranks, and that of the last click of each list, -1 for none."""
        index = _index(self.mask, self.rank_axis)
        clicked = (clicks != 0) & self.mask
        return index, jnp.max(jnp.where(clicked, index, -1), axis=self.rank_axis, keepdims=True, initial=-1)

    def _until(self, clicks: Array, index: jax.Array, end: jax.Array) -> jax.Array:
        """Computes the log-probability of examining up to index `end` and of the clicks there, [B]."""
        attract, ignore = self._attraction()
        clicked = (clicks != 0) & self.mask
        seen = jnp.where(index <= end, jnp.where(clicked, attract, ignore), 0.0)
        went = jnp.where(index < end, jnp.where(clicked, self.go_after_click, self.go_after_skip), 0.0)
        return jnp.sum(seen + went, axis=self.rank_axis)

    def _examining(self, clicks: Array) -> tuple[jax.Array, jax.Array]:
        """Computes log-weights of examining each rank and of stopping above it, given the clicks above; [B, K] each."""
        _, ignore = self._attraction()
        clicked = (clicks != 0) & self.mask
        on = jnp.where(clicked, self.go_after_click, ignore + self.go_after_skip)
        off = jnp.where(clicked, self.stop_after_click, ignore + self.stop_after_skip)

        # (on, off) are log P(examining / having stopped, clicks since the reset); a click resets both.
        def join(first, second):  # type: ignore[no-untyped-def]
            reset1, on1, off1 = first
            reset2, on2, off2 = second
            return (
                reset1 | reset2,
                jnp.where(reset2, on2, on1 + on2),
                jnp.where(reset2, off2, logaddexp(off1, on1 + off2)),
            )

        _, on, off = jax.lax.associative_scan(join, (clicked, on, off), axis=self.rank_axis)
        return _shifted(on, self.rank_axis, 0.0), _shifted(off, self.rank_axis, -jnp.inf)

    def conditional(self, clicks: Array) -> jax.Array:
        on, off = self._examining(clicks)
        attract, _ = self._attraction()
        return jnp.where(self.mask, attract + on - logaddexp(on, off), -jnp.inf)

    def observed(self, clicks: Array) -> jax.Array:
        on, off = self._examining(clicks)
        attract, ignore = self._attraction()
        given = jnp.where(clicks != 0, attract + on, logaddexp(ignore + on, off)) - logaddexp(on, off)
        return jnp.where(self.mask, given, 0.0)

    def marginal(self) -> jax.Array:
        attract, ignore = self._attraction()
        go = logaddexp(attract + self.go_after_click, ignore + self.go_after_skip)
        return jnp.where(self.mask, attract + exclusive_cumsum(jnp.where(self.mask, go, 0.0), self.rank_axis), -jnp.inf)

    def sample(self, key: Array) -> jax.Array:
        attracted, goes = jax.random.uniform(key, (2, *self.mask.shape))
        attract, _ = self._attraction()
        would_click = jnp.log(attracted) < attract
        go = jnp.log(goes) < jnp.where(would_click, self.go_after_click, self.go_after_skip)
        stopped = jnp.cumsum(~go, axis=self.rank_axis) - ~go
        return (would_click & (stopped == 0) & self.mask).astype(jnp.int8)


@flax.struct.dataclass
class MixtureClicks:
    """Sessions of several kinds of users, each with a click distribution of its own.

    Attributes:
      components: M distributions over the same lists.
      log_prior: [B, M] log-probabilities of the components.
      mask: [B, K] bool.
    """

    components: tuple[ClickDistribution, ...]
    log_prior: Array
    mask: Array
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    def log_prob(self, clicks: Array) -> jax.Array:
        each = jnp.stack([c.log_prob(clicks) for c in self.components], axis=1)
        return logsumexp(self.log_prior + each, axis=1)

    def conditional(self, clicks: Array) -> jax.Array:
        click = jnp.stack([c.conditional(clicks) for c in self.components])
        return jnp.where(self.mask, self._mixed(clicks, click), -jnp.inf)

    def observed(self, clicks: Array) -> jax.Array:
        each = jnp.stack([c.observed(clicks) for c in self.components])
        return jnp.where(self.mask, self._mixed(clicks, each), 0.0)

    def _mixed(self, clicks: Array, event: jax.Array) -> jax.Array:
        """Mixes log P(event at rank k | clicks above) of the components, [M, B, K]."""
        # Responsibilities from the clicks above only: the whole session would leak the click predicted.
        above = exclusive_cumsum(jnp.stack([c.observed(clicks) for c in self.components]), 1 + self.rank_axis)
        log_weight = self._log_prior() + above
        total = logsumexp(log_weight, axis=0)
        possible = total > -jnp.inf
        return jnp.where(possible, logsumexp(log_weight + event, axis=0) - jnp.where(possible, total, 0.0), -jnp.inf)

    def marginal(self) -> jax.Array:
        each = jnp.stack([c.marginal() for c in self.components])
        return logsumexp(self._log_prior() + each, axis=0)

    def _log_prior(self) -> jax.Array:
        """Shapes the log-probabilities of the components as [M, B, 1]."""
        return jnp.expand_dims(self.log_prior.T, 1 + self.rank_axis)

    def sample(self, key: Array) -> jax.Array:
        choice_key, *keys = jax.random.split(key, len(self.components) + 1)
        choice = jax.random.categorical(choice_key, self.log_prior, axis=1)
        each = jnp.stack([c.sample(k) for c, k in zip(self.components, keys, strict=True)])
        return jnp.take_along_axis(each, jnp.expand_dims(choice, (0, 1 + self.rank_axis)), axis=0)[0]
