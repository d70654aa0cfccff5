"""Click models that wrap another: noise in what is recorded, and reading from the last rank upwards.

Both keep every probability exact.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import CascadeClicks, ClickDistribution, MixtureClicks, PositionClicks
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp
from ultr.models import ClickModel
from ultr.sessions import Array, Sessions, SharedFeature
from ultr.simulate.scan_clicks import ScanClicks


class NoisyUser(ClickModel):
    """A user whose clicks are sometimes recorded wrongly.

    First a document that was not clicked is clicked by accident with probability `random_clicks`; then the opposite is
    recorded with probability `flip`; independently for each document shown.

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
        false_clicks = self.random_clicks * (1 - self.flip) + (1 - self.random_clicks) * self.flip
        return with_noise(self.model(sessions), false_clicks, self.flip)

    def score(self, sessions: Sessions) -> jax.Array:
        return self.model.score(sessions)


class BottomUpUser(ClickModel):
    """A user who reads a list from its last shown rank upwards, and otherwise behaves as the model says."""

    pointwise = False

    def __init__(self, model: ClickModel) -> None:
        self.model = model

    def __call__(self, sessions: Sessions) -> ClickDistribution:
        index = reversal(jnp.asarray(sessions.mask))

        def turn(x: Array) -> jax.Array:
            x = jnp.asarray(x)
            return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

        labels = None if sessions.labels is None else turn(sessions.labels)
        features = {
            name: x.with_index(turn) if isinstance(x, SharedFeature) else turn(x)
            for name, x in sessions.features.items()
        }
        upwards = dataclasses.replace(sessions, labels=labels, features=features, clicks=None, last_click=None)
        return _upwards(self.model(upwards), index)

    def score(self, sessions: Sessions) -> jax.Array:
        return self.model.score(sessions)


def reversal(mask: jax.Array) -> jax.Array:
    """Returns [B, K] indices that reverse the shown part of each list; padding stays."""
    size = jnp.sum(mask, axis=1, keepdims=True)
    at = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(at < size, size - 1 - at, at).astype(jnp.int32)


def with_noise(distribution: ClickDistribution, false_clicks: float, missed_clicks: float) -> ClickDistribution:
    """Adds noise to the clicks of a distribution.

    Args:
      distribution: one of the toolkit's own, without noise.
      false_clicks: P(a click is recorded | no click).
      missed_clicks: P(no click is recorded | click).

    Raises:
      ConfigError: another distribution.
    """
    if isinstance(distribution, MixtureClicks):
        each = tuple(with_noise(c, false_clicks, missed_clicks) for c in distribution.components)
        return dataclasses.replace(distribution, components=each)
    if isinstance(distribution, ScanClicks):
        if distribution.noise:
            raise ConfigError("these clicks have noise already: give both rates to one `NoisyUser`")
        return dataclasses.replace(distribution, false_clicks=false_clicks, missed_clicks=missed_clicks)
    if isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
        yes, no = log_sigmoid(distribution.logits), log_sigmoid(-distribution.logits)
        with np.errstate(divide="ignore"):
            rates = np.log([1 - missed_clicks, false_clicks, missed_clicks, 1 - false_clicks])
        hit, false, miss, rest = (float(x) for x in rates)
        logits = logaddexp(yes + hit, no + false) - logaddexp(yes + miss, no + rest)
        return PositionClicks(jnp.clip(logits, -1e4, 1e4), distribution.mask, distribution.rank_axis)
    if isinstance(distribution, PositionClicks | CascadeClicks):
        return ScanClicks(distribution, distribution.mask, None, false_clicks, missed_clicks)
    raise ConfigError(
        f"noise cannot be added to a {type(distribution).__name__}, only to the toolkit's own distributions"
    )


def _upwards(distribution: ClickDistribution, index: jax.Array) -> ClickDistribution:
    """Turns a distribution over reversed lists into one over the lists as displayed."""
    if isinstance(distribution, MixtureClicks):
        each = tuple(_upwards(c, index) for c in distribution.components)
        return dataclasses.replace(distribution, components=each)
    if isinstance(distribution, PositionClicks) and distribution.logits.ndim == 2:
        logits = jnp.take_along_axis(jnp.asarray(distribution.logits), index, axis=1)
        return PositionClicks(logits, distribution.mask)
    if isinstance(distribution, PositionClicks | CascadeClicks):
        return ScanClicks(distribution, distribution.mask, index)
    if isinstance(distribution, ScanClicks) and distribution.index is None:
        return dataclasses.replace(distribution, index=index)
    raise ConfigError(f"a {type(distribution).__name__} cannot be read upwards, only the toolkit's own distributions")
