"""What evaluation asks of a model: scores of documents, or a distribution over clicks, or both."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ultr.sessions import Array, Sessions


@runtime_checkable
class Scorer(Protocol):
    """A model that scores documents: what ranking metrics need."""

    def score(self, sessions: Sessions) -> Array:
        """Computes scores [B, K], higher for documents to be ranked higher; those on padding are not looked at."""
        ...


@runtime_checkable
class PredictedClicks(Protocol):
    """A distribution over the clicks on B lists of K documents: the part of `ClickDistribution` that metrics need.

    Log-probabilities on padding are not looked at.
    """

    def conditional(self, clicks: Array) -> Array:
        """Computes [B, K] log P(C_k = 1 | the clicks above rank k), for clicks [B, K]."""
        ...

    def observed(self, clicks: Array) -> Array:
        """Computes [B, K] log P(C_k = c_k | the clicks above rank k)."""
        ...

    def marginal(self) -> Array:
        """Computes [B, K] log P(C_k = 1)."""
        ...

    def log_prob(self, clicks: Array) -> Array:
        """Computes [B] log P(clicks); -inf for clicks that cannot happen."""
        ...


class ClickPredictor(Protocol):
    """A click model: called with sessions, it predicts their clicks. Click metrics need one."""

    def __call__(self, sessions: Sessions) -> PredictedClicks:
        """Predicts the clicks on lists of documents."""
        ...
