"""Click models of the cascade family: a user who scans down the list and may stop after each document."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ultr.clicks import CascadeClicks
from ultr.logspace import logaddexp, logit_and
from ultr.models.base import LatentVariable, LatentVariableModel, Logits, latent
from ultr.sessions import Sessions
from ultr.towers.base import Tower, TowerLike, as_tower


class _CascadeFamily(LatentVariableModel):
    """A model of the cascade family: latent variables are the steps of a Markov chain down the list; abstract."""

    def from_logits(self, sessions: Sessions, logits: Logits) -> CascadeClicks:
        return self.from_latents(sessions, [latent(logits[slot]) for slot in self.slots])

    @staticmethod
    @abc.abstractmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        """Computes the distribution over clicks from the latent variables of the slots."""


def _cascade(
    sessions: Sessions,
    relevance: LatentVariable,
    after_click: LatentVariable | None,
    after_skip: LatentVariable | None,
) -> CascadeClicks:
    """Builds the chain; the user goes on (yes) or stops (no); None: a click always stops, a skip never."""
    zero, never = jnp.zeros_like(relevance.yes), jnp.full_like(relevance.yes, -jnp.inf)
    after_click = after_click or LatentVariable(never, zero)
    after_skip = after_skip or LatentVariable(zero, never)
    return CascadeClicks(*relevance, *after_click, *after_skip, sessions.mask, sessions.rank_axis)


class CascadeModel(_CascadeFamily):
    """Cascade model: the first attractive document is clicked and ends the session (Craswell 2008).

    Sessions with two clicks are impossible.
    """

    slots = ("relevance",)

    def __init__(self, *, relevance: TowerLike) -> None:
        self.relevance = as_tower(relevance)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        (relevance,) = latents
        return _cascade(sessions, relevance, None, None)


class DCM(_CascadeFamily):
    """Dependent click model: after a click at rank k the user goes on with probability continuation_k (Guo 2009)."""

    slots = ("relevance", "continuation")

    def __init__(self, *, relevance: TowerLike, continuation: TowerLike) -> None:
        self.relevance = as_tower(relevance)
        self.continuation = as_tower(continuation)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        relevance, continuation = latents
        return _cascade(sessions, relevance, continuation, None)


class _Satisfaction(_CascadeFamily):
    """A model that ranks by the product of attraction and satisfaction (Chapelle and Zhang 2009); abstract."""

    relevance: Tower
    satisfaction: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the logit of the probability that a document attracts and, clicked, satisfies, [B, K]."""
        found = self.logits_of(sessions.unbiased(), ["relevance", "satisfaction"])
        return logit_and(found["relevance"], found["satisfaction"])


class SDBN(_Satisfaction):
    """Simplified DBN: goes on until satisfied by a clicked document (Chapelle and Zhang 2009)."""

    slots = ("relevance", "satisfaction")

    def __init__(self, *, relevance: TowerLike, satisfaction: TowerLike) -> None:
        self.relevance = as_tower(relevance)
        self.satisfaction = as_tower(satisfaction)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        relevance, satisfaction = latents
        return _cascade(sessions, relevance, LatentVariable(satisfaction.no, satisfaction.yes), None)


class DBN(_Satisfaction):
    """Dynamic Bayesian network: unless satisfied, the user goes on with probability continuation

    after a click and after a skip alike (Chapelle and Zhang 2009).
    """

    slots = ("relevance", "satisfaction", "continuation")

    def __init__(self, *, relevance: TowerLike, satisfaction: TowerLike, continuation: TowerLike) -> None:
        self.relevance = as_tower(relevance)
        self.satisfaction = as_tower(satisfaction)
        self.continuation = as_tower(continuation)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        relevance, satisfaction, continuation = latents
        stop = logaddexp(satisfaction.yes, satisfaction.no + continuation.no)
        after_click = LatentVariable(satisfaction.no + continuation.yes, stop)
        return _cascade(sessions, relevance, after_click, continuation)


class CCM(_CascadeFamily):
    """Click chain model (Guo 2009): the user goes on with probability tau_1 after a skip, tau_2 after a click

    on a document that turns out irrelevant, tau_3 after a click on a relevant one.
    """

    slots = ("relevance", "after_skip", "after_irrelevant_click", "after_relevant_click")

    def __init__(
        self,
        *,
        relevance: TowerLike,
        after_skip: TowerLike,
        after_irrelevant_click: TowerLike,
        after_relevant_click: TowerLike,
    ) -> None:
        self.relevance = as_tower(relevance)
        self.after_skip = as_tower(after_skip)
        self.after_irrelevant_click = as_tower(after_irrelevant_click)
        self.after_relevant_click = as_tower(after_relevant_click)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> CascadeClicks:
        relevance, after_skip, after_irrelevant_click, after_relevant_click = latents
        bad, good = after_irrelevant_click, after_relevant_click
        go = logaddexp(relevance.no + bad.yes, relevance.yes + good.yes)
        stop = logaddexp(relevance.no + bad.no, relevance.yes + good.no)
        return _cascade(sessions, relevance, LatentVariable(go, stop), after_skip)
