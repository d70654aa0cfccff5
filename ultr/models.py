"""The click models: towers wired to one of three distributions over click vectors.

Every constructor takes towers by keyword; a tower is a `towers.Tower` or any other callable from `Sessions` to logits
[B, K] (an `nnx.Module` is trained, a plain function is not). What a tower's logit means is the name of its slot.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.clicks import CascadeClicks, ClickDistribution, MixtureClicks, PositionClicks, last_click
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp, logit_and, logsumexp
from ultr.rankers import Ranker
from ultr.sessions import Array, Sessions
from ultr.towers.base import LastClickTower, Tower, TowerLike, as_tower, tower_name
from ultr.towers.shown_ranks import supported_curve


class LatentVariable(NamedTuple):
    """Log-probabilities [B, K] of the two outcomes of a binary latent variable, such as examined or not."""

    yes: jax.Array
    no: jax.Array


def _latent(logits: jax.Array) -> LatentVariable:
    return LatentVariable(log_sigmoid(logits), log_sigmoid(-logits))


def _logits(tower: Tower, sessions: Sessions, slot: str) -> jax.Array:
    logits = tower(sessions)
    if logits.shape != sessions.shape:
        raise ConfigError(
            f"tower '{slot}' ({tower_name(tower)}): expected logits [B, K] = {sessions.shape}, "
            f"found {logits.shape}. Check what the tower returns"
        )
    return logits


class ClickModel(Ranker):
    """Towers plus a click distribution; abstract, its subclasses are final.

    A subclass names its towers in `slots` and says in `sufficient_statistics` what its likelihood depends on.

    Attributes:
      slots: names of the attributes that hold its towers.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    reads_by_towers = True

    @abc.abstractmethod
    def __call__(self, sessions: Sessions) -> ClickDistribution:
        """Computes the distribution over the click vectors of the given lists."""

    def tower_in(self, slot: str) -> Tower:
        """Returns the tower in a slot."""
        found: Tower = vars(self)[slot]
        return found

    @property
    def pointwise(self) -> bool:
        """Whether every tower is pointwise; False where no slots are named."""
        return bool(self.slots) and all(self.tower_in(slot).pointwise for slot in self.slots)

    def log_prob(self, sessions: Sessions) -> jax.Array:
        """Computes the log-likelihood of each list's clicks, [B]; -inf for clicks that the model cannot produce."""
        if sessions.clicks is None:
            raise ConfigError("a click likelihood needs clicks: these sessions have none")
        # With the lists along the contiguous axis XLA vectorises on a CPU: three to four times as fast.
        sessions = sessions.rank_first() if self.pointwise else sessions.list_first()
        return self._log_prob(sessions, jnp.asarray(sessions.clicks))

    def _log_prob(self, sessions: Sessions, clicks: jax.Array) -> jax.Array:
        if sessions.last_click is not None and self.sufficient_statistics != "rank":
            raise ConfigError(
                f"{type(self).__name__} needs whole lists; these rows are single documents. "
                "Collapse the log with sufficient_statistics='list', or use it as it is"
            )
        return self(sessions).log_prob(clicks)

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes the negative log-likelihood [B]; infinite for lists whose clicks the model cannot produce."""
        return -self.log_prob(sessions)


class LatentVariableModel(ClickModel):
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


class _RelevanceScored(ClickModel):
    """A click model that ranks by its relevance tower; abstract."""

    relevance: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        return _logits(self.relevance, sessions.unbiased(), "relevance")


class _RelevanceAndExamination(_RelevanceScored):
    """A click model of two towers, relevance and examination; abstract."""

    slots = ("relevance", "examination")

    def __init__(self, *, relevance: TowerLike, examination: TowerLike) -> None:
        self.relevance = as_tower(relevance)
        self.examination = as_tower(examination)


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


def _examined(sessions: Sessions, latents: Sequence[LatentVariable]) -> ClickOrSkip:
    relevance, examination = latents
    click = examination.yes + relevance.yes
    skip = logaddexp(examination.no, examination.yes + relevance.no)
    return ClickOrSkip(click, skip, sessions.mask, sessions.rank_axis)


class _CTR(LatentVariableModel):
    """Click-through rate: P(click) = sigmoid(tower). One class, four names for what the tower reads."""

    sufficient_statistics = "rank"
    slots = ("tower",)

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> ClickOrSkip:
        (tower,) = latents
        return ClickOrSkip(tower.yes, tower.no, sessions.mask, sessions.rank_axis)

    def __init__(self, tower: TowerLike) -> None:
        self.tower = as_tower(tower)

    def __call__(self, sessions: Sessions) -> PositionClicks:
        return PositionClicks(_logits(self.tower, sessions, "tower"), sessions.mask, sessions.rank_axis)

    def score(self, sessions: Sessions) -> jax.Array:
        return _logits(self.tower, sessions.unbiased(), "tower")


class GCTR(_CTR):
    """Global CTR: one click probability for all; tower: `towers.Constant`."""


class RCTR(_CTR):
    """CTR by rank; tower: `towers.RankTable`."""


class DCTR(_CTR):
    """CTR by document; tower: `towers.DocumentTable`, or any network over features (the naive ranker)."""


class RDCTR(_CTR):
    """CTR by (rank, document); tower: `towers.RankDocumentTable`. Ranks by the click rate at rank 1."""


class PBM(_RelevanceAndExamination, LatentVariableModel):
    """Position-based model: P(click) = examination_k relevance (Richardson 2007; Craswell 2008).

    Only the examination relative to rank 1 is identified.
    """

    sufficient_statistics = "rank"
    from_latents = staticmethod(_examined)
    curve_source = "position-based"

    def __call__(self, sessions: Sessions) -> PositionClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = _logits(self.examination, sessions, "examination")
        return PositionClicks(logit_and(examination, relevance), sessions.mask, sessions.rank_axis)

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, [ranks]; for towers that read the position alone.

        NaN at ranks that training never showed, all where rank 1 is one: `towers.withheld_ranks` says why.
        """
        lists = Sessions(mask=jnp.ones((1, ranks), bool), position=jnp.arange(ranks, dtype=jnp.int32)[None, :])
        log_examination = log_sigmoid(_logits(self.examination, lists, "examination"))[0]
        return supported_curve(np.asarray(jnp.exp(log_examination - log_examination[0])), self)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)


class TrustPBM(_RelevanceScored):
    """PBM with trust bias: an examined document is clicked with probability e+_k if relevant, e-_k if not.

    Agarwal 2019. P(click) = alpha_k relevance + beta_k, and only alpha and beta are identified.
    """

    sufficient_statistics = "rank"
    curve_source = "affine"
    slots = ("relevance", "examination", "trust_relevant", "trust_irrelevant")

    def __init__(
        self, *, relevance: TowerLike, examination: TowerLike, trust_relevant: TowerLike, trust_irrelevant: TowerLike
    ) -> None:
        self.relevance, self.examination = as_tower(relevance), as_tower(examination)
        self.trust_relevant, self.trust_irrelevant = as_tower(trust_relevant), as_tower(trust_irrelevant)

    def __call__(self, sessions: Sessions) -> PositionClicks:
        logits = (_logits(self.tower_in(slot), sessions, slot) for slot in self.slots)
        relevance, examination, relevant, irrelevant = logits
        yes, no = log_sigmoid(relevance), log_sigmoid(-relevance)
        examined = log_sigmoid(examination)
        click = examined + logaddexp(yes + log_sigmoid(relevant), no + log_sigmoid(irrelevant))
        perceived = logaddexp(yes + log_sigmoid(-relevant), no + log_sigmoid(-irrelevant))
        skip = logaddexp(log_sigmoid(-examination), examined + perceived)
        return PositionClicks(click - skip, sessions.mask, sessions.rank_axis)


class AdditivePBM(_RelevanceAndExamination):
    """The additive two-tower: P(click) = sigmoid(examination + relevance) (Guo 2019; Yan 2022).

    Not the PBM: an additive constant may move between the towers, so pin the examination of rank 1 to 0
    (`towers.RankTable(..., pin_first=True)`).
    """

    sufficient_statistics = "rank"
    curve_source = "additive"

    def __call__(self, sessions: Sessions) -> PositionClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = _logits(self.examination, sessions, "examination")
        return PositionClicks(relevance + examination, sessions.mask, sessions.rank_axis)


class UBM(_RelevanceAndExamination, LatentVariableModel):
    """User browsing model: examination depends on the rank and the last clicked rank (Dupret 2008).

    The examination tower returns logits [B, K, K+1], last axis: no click above, then the last click
    at index 0..K-1 (`towers.LastClickTable`); logits [B, K] hold for every last click.
    """

    sufficient_statistics = "last-click"
    from_latents = staticmethod(_examined)
    curve_source = "browsing"

    def __call__(self, sessions: Sessions) -> PositionClicks:
        if sessions.rank_axis == 0:
            raise ConfigError(
                "the distribution of UBM has an axis of last clicks, and needs lists as the first axis: give it "
                "sessions.list_first()"
            )
        b, k = sessions.shape
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = self.examination(sessions)
        if examination.shape == (b, k):
            examination = jnp.broadcast_to(examination[:, :, None], (b, k, k + 1))
        if examination.shape != (b, k, k + 1):
            raise ConfigError(
                f"tower 'examination' of UBM: expected logits [B, K, K+1] = {(b, k, k + 1)} or [B, K], "
                f"found {examination.shape}. Use towers.LastClickTable or check what the tower returns"
            )
        return PositionClicks(logit_and(examination, relevance[:, :, None]), sessions.mask)

    def _log_prob(self, sessions: Sessions, clicks: jax.Array) -> jax.Array:
        if isinstance(self.examination, LastClickTower):  # logits of the last click that happened, not of all K + 1
            last = sessions.last_click
            if last is None:
                clicked = (clicks != 0) & sessions.mask
                last = last_click(clicked, jnp.asarray(sessions.position) + 1, sessions.rank_axis)
            examination = self.examination.logits_after(sessions, jnp.asarray(last))
        else:
            examination = self.examination(sessions)
            if examination.shape != sessions.shape:
                return super()._log_prob(sessions, clicks)
        relevance = _logits(self.relevance, sessions, "relevance")
        return PositionClicks(logit_and(examination, relevance), sessions.mask, sessions.rank_axis).log_prob(clicks)


class _CascadeFamily(LatentVariableModel):
    """A model of the cascade family: latent variables are the steps of a Markov chain down the list; abstract."""

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        return self.from_latents(
            sessions, [_latent(_logits(self.tower_in(slot), sessions, slot)) for slot in self.slots]
        )

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


class CascadeModel(_RelevanceScored, _CascadeFamily):
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


class DCM(_RelevanceScored, _CascadeFamily):
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
        lists = sessions.unbiased()
        return logit_and(_logits(self.relevance, lists, "relevance"), _logits(self.satisfaction, lists, "satisfaction"))


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


class CCM(_RelevanceScored, _CascadeFamily):
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


class Mixture(ClickModel):
    """Several kinds of users: each session follows one of the component models.

    Args:
      components: click models over the same lists.
      prior_logits: [M] array (trained when an `nnx.Param`), or a callable Sessions -> [B, M]; None: trained,
        starting at equal shares.
    """

    def __init__(
        self,
        *,
        components: Sequence[ClickModel],
        prior_logits: Array | nnx.Variable[jax.Array] | Callable[[Sessions], Array] | None = None,
    ) -> None:
        if not components:
            raise ConfigError("a mixture needs at least one component, found none")
        self.components = nnx.List(list(components))
        if prior_logits is None:
            prior_logits = nnx.Param(jnp.zeros(len(components)))
        elif not isinstance(prior_logits, nnx.Variable):
            given = as_tower(prior_logits) if callable(prior_logits) else nnx.Variable(jnp.asarray(prior_logits))
            prior_logits = given
        self.prior_logits = prior_logits

    def _log_prior(self, sessions: Sessions) -> jax.Array:
        shape = (len(sessions), len(self.components))
        prior = self.prior_logits
        if isinstance(prior, nnx.Variable):
            if prior[...].shape != shape[1:]:
                raise ConfigError(f"expected {shape[1]} prior logits, one per component, found {prior[...].shape}")
            logits = jnp.broadcast_to(prior[...][None, :], shape)
        else:
            logits = jnp.asarray(prior(sessions))
        if logits.shape != shape:
            raise ConfigError(f"prior_logits: expected [B, M] = {shape}, found {logits.shape}")
        return jax.nn.log_softmax(logits, axis=1)

    def __call__(self, sessions: Sessions) -> MixtureClicks:
        each = tuple(c(sessions) for c in self.components)
        return MixtureClicks(each, self._log_prior(sessions), sessions.mask, sessions.rank_axis)

    @property
    def pointwise(self) -> bool:
        """Whether every component is pointwise; UBM's distribution over last clicks needs lists as the first axis."""
        fixed = isinstance(self.prior_logits, nnx.Variable)
        return fixed and all(c.pointwise and not isinstance(c, UBM) for c in self.components)

    def score(self, sessions: Sessions) -> jax.Array:
        """Computes the logit of the relevance that an average user finds, [B, K]."""
        lists = sessions.unbiased().list_first()
        prior = self._log_prior(lists)[:, :, None]
        each = jnp.stack([c.score(lists) for c in self.components], axis=1)
        score = logsumexp(prior + log_sigmoid(each), axis=1) - logsumexp(prior + log_sigmoid(-each), axis=1)
        return score if sessions.rank_axis else score.T
