"""What a log may do to clicks beyond a click model: noise, and users who read from the last rank upwards.

Both keep every probability exact. A user is a chain over the list: a small hidden state (still reading or not; the last
click) that goes from one document to the next. Noise hides the state behind the clicks, and reading upwards turns the
chain around; what is asked of the distribution then follows from messages along the chain (Rabiner 1989).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import CascadeClicks, ClickDistribution, MixtureClicks, PositionClicks
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp
from ultr.models import ClickModel
from ultr.sessions import Array, Sessions, SharedFeature


class Noisy(ClickModel):
    """A user whose clicks the log gets wrong now and then.

    First a document that was not clicked is clicked by accident with probability `random_clicks`; then what is
    recorded is the opposite with probability `flip`; independently for each document shown.

    Raises:
      ConfigError: a probability that is not in [0, 1].
    """

    pointwise = False

    def __init__(self, model: ClickModel, *, flip: float = 0.0, random_clicks: float = 0.0) -> None:
        for name, p in (("flip", flip), ("random_clicks", random_clicks)):
            if not 0 <= p <= 1:
                raise ConfigError(f"expected a probability {name} from 0 to 1, found {p}")
        self.model, self.flip, self.random_clicks = model, float(flip), float(random_clicks)

    def __call__(self, sessions: Sessions) -> ClickDistribution:
        extra = self.random_clicks * (1 - self.flip) + (1 - self.random_clicks) * self.flip
        return noisy(self.model(sessions), extra, self.flip)

    def score(self, sessions: Sessions) -> jax.Array:
        return self.model.score(sessions)


class BottomUp(ClickModel):
    """A user who reads a list from its last shown rank upwards, and otherwise behaves as the model says."""

    pointwise = False

    def __init__(self, model: ClickModel) -> None:
        self.model = model

    def __call__(self, sessions: Sessions) -> ClickDistribution:
        index = turned(jnp.asarray(sessions.mask))

        def turn(x: Any) -> Any:
            if isinstance(x, SharedFeature):
                return x.with_index(turn)
            x = jnp.asarray(x)
            return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

        labels = None if sessions.labels is None else turn(sessions.labels)
        features = {name: turn(x) for name, x in sessions.features.items()}
        upwards = sessions.replace(labels=labels, features=features, clicks=None, last_click=None)
        return _upwards(self.model(upwards), index)

    def score(self, sessions: Sessions) -> jax.Array:
        return self.model.score(sessions)


def turned(mask: jax.Array) -> jax.Array:
    """[B, K] indices that turn the shown part of each list around; padding stays."""
    size = jnp.sum(mask, axis=1, keepdims=True)
    at = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(at < size, size - 1 - at, at).astype(jnp.int32)


def noisy(distribution: ClickDistribution, extra: float, missed: float) -> ClickDistribution:
    """The clicks of a distribution with noise: `extra` is P(recorded | no click), `missed` P(not recorded | click)."""
    if isinstance(distribution, MixtureClicks):
        each = tuple(noisy(c, extra, missed) for c in distribution.components)
        return distribution.replace(components=each)  # type: ignore[attr-defined, no-any-return]
    if isinstance(distribution, ScanClicks):
        if distribution.extra or distribution.missed:
            raise ConfigError("noise upon noise: give both rates to one `Noisy`")
        return distribution.replace(extra=extra, missed=missed)  # type: ignore[attr-defined, no-any-return]
    if isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
        yes, no = log_sigmoid(distribution.logits), log_sigmoid(-distribution.logits)
        with np.errstate(divide="ignore"):
            hit, false, loss, rest = (float(x) for x in np.log([1 - missed, extra, missed, 1 - extra]))
        logits = logaddexp(yes + hit, no + false) - logaddexp(yes + loss, no + rest)
        return PositionClicks(jnp.clip(logits, -1e4, 1e4), distribution.mask, distribution.rank_axis)
    if isinstance(distribution, PositionClicks | CascadeClicks):
        return ScanClicks(distribution, distribution.mask, None, extra, missed)
    raise ConfigError(
        f"noise cannot be put on a {type(distribution).__name__}: only on the toolkit's own distributions"
    )


def _upwards(distribution: ClickDistribution, index: jax.Array) -> ClickDistribution:
    """The distribution over displayed lists of one over lists that were turned around."""
    if isinstance(distribution, MixtureClicks):
        each = tuple(_upwards(c, index) for c in distribution.components)
        return distribution.replace(components=each)  # type: ignore[attr-defined, no-any-return]
    if isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
        turned_back = jnp.take_along_axis(jnp.asarray(distribution.logits), index, axis=1)
        return PositionClicks(turned_back, distribution.mask)
    if isinstance(distribution, PositionClicks | CascadeClicks):
        return ScanClicks(distribution, distribution.mask, index)
    if isinstance(distribution, ScanClicks) and distribution.index is None:
        return distribution.replace(index=index)  # type: ignore[attr-defined, no-any-return]
    raise ConfigError(f"a {type(distribution).__name__} cannot be read upwards: only the toolkit's own distributions")


@flax.struct.dataclass
class ScanClicks:
    """Clicks of a cascade or of a user who remembers the last click, with noise, read downwards or upwards.

    Attributes:
      clean: the distribution without noise, over lists in the order of reading.
      mask: [B, K] bool.
      index: [B, K], where reading goes upwards: the displayed index of each step of reading; None: downwards.
      extra, missed: P(recorded | no click) and P(not recorded | click).
    """

    clean: Any
    mask: Array
    index: Array | None = None
    extra: float = flax.struct.field(pytree_node=False, default=0.0)
    missed: float = flax.struct.field(pytree_node=False, default=0.0)

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
        if not (self.extra or self.missed):
            return clicks
        uniform = jax.random.uniform(noise, self.mask.shape)
        recorded = jnp.where(clicks != 0, uniform >= self.missed, uniform < self.extra)
        return (recorded & self.mask).astype(jnp.int8)

    def _turn(self, x: jax.Array) -> jax.Array:
        return x if self.index is None else jnp.take_along_axis(x, jnp.asarray(self.index), axis=1)

    def _chain(self) -> tuple[Any, Any, jax.Array]:
        """The chain, what it needs at each step (first axis), and whether the step shows a document [K, B]."""
        mask = jnp.asarray(self.mask).T
        if isinstance(self.clean, CascadeClicks):
            d = self.clean
            fields = (d.click, d.skip, d.go_after_click, d.stop_after_click, d.go_after_skip, d.stop_after_skip)
            return _Reading, tuple(jnp.exp(jnp.asarray(x)).T for x in fields), mask
        logits = jnp.moveaxis(jnp.asarray(self.clean.logits), 1, 0)
        steps = (jnp.arange(len(logits)), jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
        return _LastClick, steps, mask

    def _recorded(self, click: jax.Array, skip: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (1 - self.missed) * click + self.extra * skip, self.missed * click + (1 - self.extra) * skip

    def _forward(self) -> tuple[jax.Array, jax.Array]:
        """[K, B, S] probability of each state before each step of reading, and [B, K] of a recorded click there."""
        chain, steps, mask = self._chain()

        def step(state: jax.Array, at: Any) -> Any:
            shown, now = at
            click, skip = chain.push(now, state)
            recorded = jnp.sum(self._recorded(click, skip)[0], axis=1)
            return jnp.where(shown[:, None], click + skip, state), (state, recorded)

        _, (states, recorded) = jax.lax.scan(step, chain.start(self.clean), (mask, steps))
        return states, recorded.T

    def _given(self, clicks: Array) -> tuple[jax.Array, jax.Array]:
        """[B, K] log-probabilities of a click and of none at each rank, given the clicks displayed above it."""
        chain, steps, mask = self._chain()
        clicked = self._turn((jnp.asarray(clicks) != 0) & self.mask).T

        def choose(shown: jax.Array, click: jax.Array, yes: jax.Array, no: jax.Array, old: jax.Array) -> jax.Array:
            new = jnp.where(click[:, None], yes, no)
            # Only the proportions matter: they are kept near 1, and left as they are after what cannot happen.
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
            # What is displayed above was read later, and what is displayed below is not known: it is summed out.
            states, _ = self._forward()
            later = (mask, clicked, states, steps)
            _, (yes, no) = jax.lax.scan(upwards, jnp.ones_like(states[0]), later, reverse=True)
        total = yes + no
        yes, no = (jnp.log(x / jnp.where(total > 0, total, 1.0)).T for x in (yes, no))
        return self._turn(yes), self._turn(no)


class _Reading:
    """States: still reading, and not any more."""

    @staticmethod
    def start(clean: CascadeClicks) -> jax.Array:
        return jnp.tile(jnp.asarray([[1.0, 0.0]]), (clean.mask.shape[0], 1))

    @staticmethod
    def push(now: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Probabilities of the next state together with a click, and with none."""
        click, skip, on1, off1, on0, off0 = now
        reading, stopped = state[:, 0], state[:, 1]
        clicked, skipped = reading * click, reading * skip
        return _pair(clicked * on1, clicked * off1), _pair(skipped * on0, stopped + skipped * off0)

    @staticmethod
    def pull(now: Any, later: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From the probabilities of what comes later by the next state: by this state, with a click and with none."""
        click, skip, on1, off1, on0, off0 = now
        reading, stopped = later[:, 0], later[:, 1]
        after_skip = skip * (on0 * reading + off0 * stopped)
        return _pair(click * (on1 * reading + off1 * stopped), jnp.zeros_like(click)), _pair(after_skip, stopped)


class _LastClick:
    """States: no click yet, and the last click at each step of reading."""

    @staticmethod
    def start(clean: PositionClicks) -> jax.Array:
        b, _, states = clean.logits.shape
        return jnp.zeros((b, states)).at[:, 0].set(1.0)

    @staticmethod
    def push(now: Any, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        step, click, skip = now
        clicked = jnp.sum(state * click, axis=1)
        return jnp.zeros_like(state).at[:, step + 1].set(clicked), state * skip

    @staticmethod
    def pull(now: Any, later: jax.Array) -> tuple[jax.Array, jax.Array]:
        step, click, skip = now
        return click * jax.lax.dynamic_slice_in_dim(later, step + 1, 1, axis=1), skip * later


def _pair(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.stack([first, second], axis=1)
