"""Clicks of users who scan a list, with noise and in either direction, with exact probabilities.

A user is a Markov chain over the list: a small hidden state (still reading or not; the last click) that passes from one
document to the next. Noise hides the state behind the recorded clicks, and reading upwards runs the chain from the last
rank. Probabilities are computed by messages along the chain (Rabiner 1989).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from ultr.clicks import CascadeClicks, PositionClicks
from ultr.sessions import Array


@flax.struct.dataclass
class ScanClicks:
    """Clicks of a cascade or of a user who remembers the last click, with noise, read downwards or upwards.

    Attributes:
      clean: the distribution without noise, over lists in the order of reading.
      mask: [B, K] bool.
      index: [B, K] the displayed index of each step of reading, where reading goes upwards; None: downwards.
      false_clicks: P(a click is recorded | no click).
      missed_clicks: P(no click is recorded | click).
    """

    clean: PositionClicks | CascadeClicks
    mask: Array
    index: Array | None = None
    false_clicks: float = dataclasses.field(default=0.0, metadata={"pytree_node": False})
    missed_clicks: float = dataclasses.field(default=0.0, metadata={"pytree_node": False})

    @property
    def noise(self) -> bool:
        """Tells whether what is recorded may differ from what was clicked."""
        return bool(self.false_clicks or self.missed_clicks)

    def conditional(self, clicks: Array) -> jax.Array:
        return jnp.where(self.mask, self._given(clicks)[0], -jnp.inf)

    def observed(self, clicks: Array) -> jax.Array:
        click, skip = self._given(clicks)
        return jnp.where(self.mask, jnp.where(clicks != 0, click, skip), 0.0)

    def log_prob(self, clicks: Array) -> jax.Array:
        return jnp.sum(self.observed(clicks), axis=1)

    def marginal(self) -> jax.Array:
        log_click = jnp.log(self._forward()[1])
        return jnp.where(self.mask, self._turn(log_click), -jnp.inf)

    def sample(self, key: Array) -> jax.Array:
        key, noise = jax.random.split(jnp.asarray(key))
        clicks = self._turn(self.clean.sample(key))
        if not self.noise:
            return clicks
        uniform = jax.random.uniform(noise, self.mask.shape)
        recorded = jnp.where(clicks != 0, uniform >= self.missed_clicks, uniform < self.false_clicks)
        return (recorded & self.mask).astype(jnp.int8)

    def _turn(self, x: jax.Array) -> jax.Array:
        """Exchanges the order of reading and the displayed order of [B, K]."""
        return x if self.index is None else jnp.take_along_axis(x, jnp.asarray(self.index), axis=1)

    def _chain(self) -> tuple[_ScanChain, Any, jax.Array]:
        """Returns the chain, its inputs at each step (first axis), and whether the step shows a document [K, B]."""
        mask = jnp.asarray(self.mask).T
        if isinstance(self.clean, CascadeClicks):
            d = self.clean
            fields = (d.click, d.skip, d.go_after_click, d.stop_after_click, d.go_after_skip, d.stop_after_skip)
            return _ReadingChain(), tuple(jnp.exp(jnp.asarray(x)).T for x in fields), mask
        logits = jnp.moveaxis(jnp.asarray(self.clean.logits), 1, 0)
        steps = (jnp.arange(len(logits)), jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
        return _LastClickChain(), steps, mask

    def _recorded(self, click: jax.Array, skip: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Turns probabilities of a click and of none into those of a recorded click and of none."""
        recorded = (1 - self.missed_clicks) * click + self.false_clicks * skip
        return recorded, self.missed_clicks * click + (1 - self.false_clicks) * skip

    def _forward(self) -> tuple[jax.Array, jax.Array]:
        """Computes [K, B, S] probabilities of the states before each step, and [B, K] of a recorded click there."""
        chain, steps, mask = self._chain()

        def step(state: jax.Array, at: Any) -> Any:
            shown, now = at
            click, skip = chain.push(now, state)
            recorded = jnp.sum(self._recorded(click, skip)[0], axis=1)
            return jnp.where(shown[:, None], click + skip, state), (state, recorded)

        _, (states, recorded) = jax.lax.scan(step, chain.start(self.clean), (mask, steps))
        return states, recorded.T

    def _given(self, clicks: Array) -> tuple[jax.Array, jax.Array]:
        """Computes [B, K] log-probabilities of a click and of none at each rank, given the clicks displayed above."""
        chain, steps, mask = self._chain()
        clicked = self._turn((jnp.asarray(clicks) != 0) & self.mask).T

        def choose(shown: jax.Array, click: jax.Array, yes: jax.Array, no: jax.Array, old: jax.Array) -> jax.Array:
            new = jnp.where(click[:, None], yes, no)
            # Only proportions matter: they are scaled to a maximum of 1, and kept after clicks of probability zero.
            total = jnp.max(new, axis=1, keepdims=True)
            return jnp.where(shown[:, None] & (total > 0), new / jnp.where(total > 0, total, 1.0), old)

        def downwards(state: jax.Array, at: Any) -> Any:
            shown, click, now = at
            yes, no = self._recorded(*chain.push(now, state))
            return choose(shown, click, yes, no, state), (jnp.sum(yes, axis=1), jnp.sum(no, axis=1))

        def upwards(below: jax.Array, at: Any) -> Any:
            shown, click, before, now = at
            yes, no = self._recorded(*chain.pull(now, below))
            return choose(shown, click, yes, no, below), (jnp.sum(before * yes, axis=1), jnp.sum(before * no, axis=1))

        if self.index is None:
            _, (yes, no) = jax.lax.scan(downwards, chain.start(self.clean), (mask, clicked, steps))
        else:
            # Documents displayed above are read later; the clicks on those below are not given and are summed over.
            states, _ = self._forward()
            later = (mask, clicked, states, steps)
            _, (yes, no) = jax.lax.scan(upwards, jnp.ones_like(states[0]), later, reverse=True)
        total = yes + no
        yes, no = (jnp.log(x / jnp.where(total > 0, total, 1.0)).T for x in (yes, no))
        return self._turn(yes), self._turn(no)


class _ScanChain(Protocol):
    """Describes how documents change the distribution [B, S] of a user's hidden state."""

    def start(self, clean: Any) -> jax.Array:
        """Returns the distribution [B, S] of the state before the first document."""
        ...

    def push(self, now: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes [B, S] probabilities of the next state together with a click, and together with none."""
        ...

    def pull(self, now: Any, later: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes, for each state [B, S], the probability of a click with all that comes later, and of none with it.

        Args:
          now: inputs of the step.
          later: [B, S] probabilities of what comes later by the next state.
        """
        ...


class _ReadingChain:
    """A cascade user, whose states are: still reading, and not any more."""

    def start(self, clean: CascadeClicks) -> jax.Array:
        return jnp.tile(jnp.asarray([[1.0, 0.0]]), (clean.mask.shape[0], 1))

    def push(self, now: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        click, skip, on1, off1, on0, off0 = now
        reading, stopped = state[:, 0], state[:, 1]
        clicked, skipped = reading * click, reading * skip
        return _pair(clicked * on1, clicked * off1), _pair(skipped * on0, stopped + skipped * off0)

    def pull(self, now: Any, later: jax.Array) -> tuple[jax.Array, jax.Array]:
        click, skip, on1, off1, on0, off0 = now
        reading, stopped = later[:, 0], later[:, 1]
        after_skip = skip * (on0 * reading + off0 * stopped)
        return _pair(click * (on1 * reading + off1 * stopped), jnp.zeros_like(click)), _pair(after_skip, stopped)


class _LastClickChain:
    """A UBM user, whose states are: no click yet, and the last click at each step of reading."""

    def start(self, clean: PositionClicks) -> jax.Array:
        b, _, states = clean.logits.shape
        return jnp.zeros((b, states)).at[:, 0].set(1.0)

    def push(self, now: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        step, click, skip = now
        clicked = jnp.sum(state * click, axis=1)
        return jnp.zeros_like(state).at[:, step + 1].set(clicked), state * skip

    def pull(self, now: Any, later: jax.Array) -> tuple[jax.Array, jax.Array]:
        step, click, skip = now
        return click * jax.lax.dynamic_slice_in_dim(later, step + 1, 1, axis=1), skip * later


def _pair(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.stack([first, second], axis=1)
