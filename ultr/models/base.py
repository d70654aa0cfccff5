"""What click models have in common: slots for towers, latent variables, the likelihood of clicks as the loss."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from ultr.clicks import ClickDistribution
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid
from ultr.rankers import Ranker
from ultr.sessions import Array, Sessions
from ultr.towers.base import Tower, tower_name
from ultr.towers.monotone import Increasing

Logits = Mapping[str, jax.Array]


class LatentVariable(NamedTuple):
    """Log-probabilities [B, K] of the two outcomes of a binary latent variable, such as examined or not."""

    yes: jax.Array
    no: jax.Array


def latent(logits: jax.Array) -> LatentVariable:
    """Makes the latent variable that has these logits."""
    return LatentVariable(log_sigmoid(logits), log_sigmoid(-logits))


def checked_logits(logits: jax.Array, tower: Tower, sessions: Sessions, slot: str) -> jax.Array:
    """Returns the logits [B, K] of the tower in a slot.

    Raises:
      ConfigError: they have another shape.
    """
    if logits.shape != sessions.shape:
        raise ConfigError(
            f"tower '{slot}' ({tower_name(tower)}): expected logits [B, K] = {sessions.shape}, "
            f"found {logits.shape}. Check what the tower returns"
        )
    return logits


class ClickModel(Ranker):
    """Towers plus a click distribution; abstract, its subclasses are final.

    A subclass says in `sufficient_statistics` what its likelihood depends on.

    Attributes:
      needs_lists_first: whether its distribution (not its `log_prob`) needs lists as the first axis.
    """

    reads_by_towers = True
    needs_lists_first: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, sessions: Sessions) -> ClickDistribution:
        """Computes the distribution over the click vectors of the given lists."""

    def log_prob(self, sessions: Sessions) -> jax.Array:
        """Computes the log-likelihood of each list's clicks, [B]; -inf for clicks that the model cannot produce."""
        if sessions.clicks is None:
            raise ConfigError("a click likelihood needs clicks: these sessions have none")
        # With the lists along the contiguous axis XLA vectorises on a CPU: three to four times as fast.
        sessions = sessions.rank_first() if self.pointwise else sessions.list_first()
        if sessions.last_click is not None and self.sufficient_statistics == "list":
            raise ConfigError(
                f"{type(self).__name__} needs whole lists; these rows are single documents. "
                "Collapse the log with sufficient_statistics='list', or use it as it is"
            )
        return self.distribution_given(sessions).log_prob(jnp.asarray(sessions.clicks))

    def distribution_given(self, sessions: Sessions) -> ClickDistribution:
        """Computes a distribution that gives the clicks of the sessions the same probability as `self(sessions)`.

        It may be cheaper where it need not be right for other clicks, and may have the ranks as the first axis.
        """
        return self(sessions)

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the negative log-likelihood [B]; infinite for lists whose clicks the model cannot produce."""
        return -self.log_prob(sessions)


class SlotModel(ClickModel):
    """A click model whose distribution is a function of the logits of its slots; abstract.

    Attributes:
      slots: names of the attributes that hold its towers.
      relevance_slot: the one whose logits say what a document is worth a click.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    relevance_slot: ClassVar[str] = "relevance"

    def tower_in(self, slot: str) -> Tower:
        """Returns the tower in a slot."""
        found: Tower = vars(self)[slot]
        return found

    @property
    def pointwise(self) -> bool:
        """Whether every tower is pointwise; False where no slots are named."""
        return bool(self.slots) and all(self.tower_in(slot).pointwise for slot in self.slots)

    @abc.abstractmethod
    def from_logits(self, sessions: Sessions, logits: Logits) -> ClickDistribution:
        """Computes the distribution over clicks from the logits of the slots, by name."""

    def logits(self, sessions: Sessions) -> Logits:
        """Computes the logits of the towers, by slot; a tower that stands in two slots runs once."""
        return self.logits_of(sessions, self.slots)

    def logits_of(self, sessions: Sessions, slots: Sequence[str]) -> Logits:
        """Computes the logits [B, K] of the towers in some slots, by slot.

        Raises:
          ConfigError: a tower returns another shape.
        """
        found: dict[str, jax.Array] = {}
        made: dict[int, jax.Array] = {}  # by tower
        for slot in slots:
            tower = self.tower_in(slot)
            inner = tower.tower if isinstance(tower, Increasing) else tower
            if id(inner) not in made:
                made[id(inner)] = inner(sessions)
            logits = tower.change(made[id(inner)]) if isinstance(tower, Increasing) else made[id(inner)]
            found[slot] = checked_logits(logits, tower, sessions, slot)
        return found

    def logits_given(self, sessions: Sessions) -> Logits:
        """Computes logits for `distribution_given`: those of `logits`, unless some are cheaper given the clicks."""
        return self.logits(sessions)

    def __call__(self, sessions: Sessions) -> ClickDistribution:
        return self.from_logits(sessions, self.logits(sessions))

    def distribution_given(self, sessions: Sessions) -> ClickDistribution:
        return self.from_logits(sessions, self.logits_given(sessions))

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the logits of relevance, [B, K]."""
        return self.logits_of(sessions.unbiased(), [self.relevance_slot])[self.relevance_slot]


class LatentVariableModel(SlotModel):
    """A click model whose towers are the logits of independent binary latent variables; abstract.

    Expectation-maximisation (`ultr.solve`) needs nothing else than `from_latents`.
    """

    @staticmethod
    @abc.abstractmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> ClickDistribution | ClickOrSkip:
        """Computes the distribution over clicks from the latent variables of the slots, in the order of `slots`.

        The two log-probabilities of a latent variable need not belong together: the derivative of `log_prob` by that
        of one outcome is the expected number of times, given the clicks, that it occurred (Fisher's identity).
        """


class ClickOrSkip(flax.struct.PyTreeNode):
    """Clicks that are independent given their rank and the last click above, by the log-probabilities of both outcomes.

    Attributes:
      click, skip: [B, K] log-probabilities of a click and of none; they need not add up to 1.
      mask: [B, K] bool.
      rank_axis: as in `Sessions`.
    """

    click: jax.Array
    skip: jax.Array
    mask: Array
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    def log_prob(self, clicks: Array) -> jax.Array:
        """Computes the sum of the log-probabilities of what happened at each rank, [B]."""
        each = jnp.where(clicks != 0, self.click, self.skip)
        return jnp.sum(jnp.where(self.mask, each, 0.0), axis=self.rank_axis)
