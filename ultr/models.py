"""The click models: towers wired to one of three distributions over click vectors.

Every constructor takes towers by keyword; a tower is any callable `Sessions -> logits [B, K]`
(an `nnx.Module` is trained, a plain function is not). What a tower's logit means is the name of its slot.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.clicks import CascadeClicks, ClickDistribution, MixtureClicks, PositionClicks, last_click
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp, logit_and, logsumexp
from ultr.sessions import Array, Sessions

Tower = Callable[[Sessions], Array]


class Coin(NamedTuple):
    """Log-probabilities of the two outcomes of something that the user does out of our sight."""

    yes: jax.Array
    no: jax.Array


def _coin(logits: jax.Array) -> Coin:
    return Coin(log_sigmoid(logits), log_sigmoid(-logits))


def _logits(tower: Tower, sessions: Sessions, slot: str) -> jax.Array:
    logits = jnp.asarray(tower(sessions))
    if logits.shape != sessions.shape:
        raise ConfigError(
            f"tower '{slot}' ({type(tower).__name__}): expected logits [B, K] = {sessions.shape}, "
            f"found {logits.shape}. Check what the tower returns"
        )
    return logits


class ClickModel(nnx.Module):
    """Towers plus a click distribution; abstract, its subclasses are final.

    Attributes:
      statistics: what the likelihood depends on, the `by` of `ultr.data.collapsing`: "rank" (counts per document and
        rank), "last-click" (and last clicked rank), "list" (distinct lists with their clicks).
      slots: names of its towers.
    """

    statistics = "list"
    slots: tuple[str, ...] = ()

    @abc.abstractmethod
    def __call__(self, sessions: Sessions) -> ClickDistribution:
        """The distribution over the click vectors of the given lists."""

    @abc.abstractmethod
    def score(self, sessions: Sessions) -> jax.Array:
        """[B, K] scores to rank by: higher is more relevant; sees neither positions nor clicks."""

    @property
    def pointwise(self) -> bool:
        """Whether every tower's logit depends on its own impression only (the towers say so by `pointwise`)."""
        return all(getattr(tower, "pointwise", False) for tower in vars(self).values() if callable(tower))

    def log_prob(self, sessions: Sessions) -> jax.Array:
        """[B] log-likelihood of each list's clicks; -inf for clicks that the model cannot produce."""
        if sessions.clicks is None:
            raise ConfigError("a click likelihood needs clicks: these sessions have none")
        # With the lists along the contiguous axis XLA vectorises on a CPU: three to four times as fast.
        sessions = sessions.rank_first() if self.pointwise else sessions
        return self._log_prob(sessions, jnp.asarray(sessions.clicks))

    def _log_prob(self, sessions: Sessions, clicks: jax.Array) -> jax.Array:
        if sessions.last_click is not None and self.statistics != "rank":
            raise ConfigError(
                f"{type(self).__name__} needs whole lists; these rows are single documents. "
                "Collapse the log with by='list', or use it as it is"
            )
        return self(sessions).log_prob(clicks)

    def loss(self, sessions: Sessions) -> jax.Array:
        """[B] negative log-likelihood; infinite for lists whose clicks the model cannot produce."""
        return -self.log_prob(sessions)


class CoinModel(ClickModel):
    """A click model whose user flips one coin per tower and impression: what EM can be run on; abstract."""

    @staticmethod
    @abc.abstractmethod
    def from_coins(sessions: Sessions, *coins: Coin) -> ClickDistribution | CoinClicks:
        """The distribution over clicks that the coins of the slots make, in the order of `slots`.

        The two log-probabilities of a coin need not belong together: the derivative of `log_prob` by that of one
        outcome is the expected number of times, given the clicks, that the coin came up so (Fisher's identity).
        """


class _OneRelevance(ClickModel):
    """The models that rank by their relevance tower."""

    relevance: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        return _logits(self.relevance, sessions.unbiased(), "relevance")


@flax.struct.dataclass
class CoinClicks:
    """Clicks that are independent given where the list and the clicks above them are: [B, K] log-probabilities."""

    click: jax.Array
    skip: jax.Array
    mask: Array
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    def log_prob(self, clicks: Array) -> jax.Array:
        """[B]."""
        each = jnp.where(clicks != 0, self.click, self.skip)
        return jnp.sum(jnp.where(self.mask, each, 0.0), axis=self.rank_axis)


def _examined(sessions: Sessions, relevance: Coin, examination: Coin) -> CoinClicks:
    click = examination.yes + relevance.yes
    skip = logaddexp(examination.no, examination.yes + relevance.no)
    return CoinClicks(click, skip, sessions.mask, sessions.rank_axis)


class _CTR(CoinModel):
    """Click-through rate: P(click) = sigmoid(tower). One class, four names for what the tower reads."""

    statistics = "rank"
    slots = ("tower",)

    @staticmethod
    def from_coins(sessions: Sessions, tower: Coin) -> CoinClicks:  # type: ignore[override]
        return CoinClicks(tower.yes, tower.no, sessions.mask, sessions.rank_axis)

    def __init__(self, tower: Tower) -> None:
        self.tower = tower

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


class PBM(_OneRelevance, CoinModel):
    """Position-based model: P(click) = examination_k relevance (Richardson 2007; Craswell 2008).

    Only the examination relative to rank 1 is identified.
    """

    statistics = "rank"
    slots = ("relevance", "examination")
    from_coins = staticmethod(_examined)  # type: ignore[assignment]

    def __init__(self, *, relevance: Tower, examination: Tower) -> None:
        self.relevance = relevance
        self.examination = examination

    def __call__(self, sessions: Sessions) -> PositionClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = _logits(self.examination, sessions, "examination")
        return PositionClicks(logit_and(examination, relevance), sessions.mask, sessions.rank_axis)

    def propensity(self, ranks: int) -> np.ndarray:
        """[ranks] examination relative to rank 1; for towers that read the position alone."""
        position = jnp.arange(ranks, dtype=jnp.int32)[None, :]
        lists = Sessions(mask=jnp.ones((1, ranks), bool), position=position)
        log_examination = log_sigmoid(_logits(self.examination, lists, "examination"))[0]
        return np.asarray(jnp.exp(log_examination - log_examination[0]))


class TrustPBM(_OneRelevance):
    """PBM with trust bias: an examined document is clicked with probability e+_k if relevant, e-_k if not.

    Agarwal 2019. P(click) = alpha_k relevance + beta_k, and only alpha and beta are identified.
    """

    statistics = "rank"

    def __init__(self, *, relevance: Tower, examination: Tower, trust_relevant: Tower, trust_irrelevant: Tower) -> None:
        self.relevance = relevance
        self.examination = examination
        self.trust_relevant = trust_relevant
        self.trust_irrelevant = trust_irrelevant

    def __call__(self, sessions: Sessions) -> PositionClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = _logits(self.examination, sessions, "examination")
        relevant = _logits(self.trust_relevant, sessions, "trust_relevant")
        irrelevant = _logits(self.trust_irrelevant, sessions, "trust_irrelevant")
        yes, no = log_sigmoid(relevance), log_sigmoid(-relevance)
        examined = log_sigmoid(examination)
        click = examined + logaddexp(yes + log_sigmoid(relevant), no + log_sigmoid(irrelevant))
        perceived = logaddexp(yes + log_sigmoid(-relevant), no + log_sigmoid(-irrelevant))
        skip = logaddexp(log_sigmoid(-examination), examined + perceived)
        return PositionClicks(click - skip, sessions.mask, sessions.rank_axis)


class AdditivePBM(_OneRelevance):
    """The additive two-tower: P(click) = sigmoid(examination + relevance) (Guo 2019; Yan 2022).

    Not the PBM: an additive constant may move between the towers, so pin the examination of rank 1 to 0
    (`towers.RankTable(..., pin_first=True)`).
    """

    statistics = "rank"

    def __init__(self, *, relevance: Tower, examination: Tower) -> None:
        self.relevance = relevance
        self.examination = examination

    def __call__(self, sessions: Sessions) -> PositionClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = _logits(self.examination, sessions, "examination")
        return PositionClicks(relevance + examination, sessions.mask, sessions.rank_axis)


class UBM(_OneRelevance, CoinModel):
    """User browsing model: examination depends on the rank and the last clicked rank (Dupret 2008).

    The examination tower returns logits [B, K, K+1], last axis: no click above, then the last click
    at index 0..K-1 (`towers.LastClickTable`); logits [B, K] hold for every last click.
    """

    statistics = "last-click"
    slots = ("relevance", "examination")
    from_coins = staticmethod(_examined)  # type: ignore[assignment]

    def __init__(self, *, relevance: Tower, examination: Tower) -> None:
        self.relevance = relevance
        self.examination = examination

    def __call__(self, sessions: Sessions) -> PositionClicks:
        b, k = sessions.shape
        relevance = _logits(self.relevance, sessions, "relevance")
        examination = jnp.asarray(self.examination(sessions))
        if examination.shape == (b, k):
            examination = jnp.broadcast_to(examination[:, :, None], (b, k, k + 1))
        if examination.shape != (b, k, k + 1):
            raise ConfigError(
                f"tower 'examination' of UBM: expected logits [B, K, K+1] = {(b, k, k + 1)} or [B, K], "
                f"found {examination.shape}. Use towers.LastClickTable or check what the tower returns"
            )
        return PositionClicks(logit_and(examination, relevance[:, :, None]), sessions.mask)

    def _log_prob(self, sessions: Sessions, clicks: jax.Array) -> jax.Array:
        given = getattr(self.examination, "given", None)
        if given is not None:  # the logits of the one last click that happened, instead of all K + 1
            last = sessions.last_click
            if last is None:
                clicked = (clicks != 0) & sessions.mask
                last = last_click(clicked, jnp.asarray(sessions.position) + 1, sessions.rank_axis)
            examination = jnp.asarray(given(sessions, jnp.asarray(last)))
        else:
            examination = jnp.asarray(self.examination(sessions))
            if examination.shape != sessions.shape:
                return super()._log_prob(sessions, clicks)
        relevance = _logits(self.relevance, sessions, "relevance")
        return PositionClicks(logit_and(examination, relevance), sessions.mask, sessions.rank_axis).log_prob(clicks)


class _Chain(CoinModel):
    """The cascade family: the coins make the steps of one chain."""

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        return self.from_coins(sessions, *(_coin(_logits(getattr(self, slot), sessions, slot)) for slot in self.slots))

    @staticmethod
    @abc.abstractmethod
    def from_coins(sessions: Sessions, *coins: Coin) -> CascadeClicks:
        """As in `CoinModel`."""


def _cascade(sessions: Sessions, relevance: Coin, after_click: Coin | None, after_skip: Coin | None) -> CascadeClicks:
    """after_click, after_skip: going on (yes) and stopping (no); None: a click always stops, a skip never."""
    zero, never = jnp.zeros_like(relevance.yes), jnp.full_like(relevance.yes, -jnp.inf)
    after_click = after_click or Coin(never, zero)
    after_skip = after_skip or Coin(zero, never)
    return CascadeClicks(*relevance, *after_click, *after_skip, sessions.mask, sessions.rank_axis)


class CascadeModel(_OneRelevance, _Chain):
    """Cascade model: the first attractive document is clicked and ends the session (Craswell 2008).

    Sessions with two clicks are impossible.
    """

    slots = ("relevance",)

    def __init__(self, *, relevance: Tower) -> None:
        self.relevance = relevance

    @staticmethod
    def from_coins(sessions: Sessions, relevance: Coin) -> CascadeClicks:  # type: ignore[override]
        return _cascade(sessions, relevance, None, None)


class DCM(_OneRelevance, _Chain):
    """Dependent click model: after a click at rank k the user goes on with probability continuation_k (Guo 2009)."""

    slots = ("relevance", "continuation")

    def __init__(self, *, relevance: Tower, continuation: Tower) -> None:
        self.relevance = relevance
        self.continuation = continuation

    @staticmethod
    def from_coins(sessions: Sessions, relevance: Coin, continuation: Coin) -> CascadeClicks:  # type: ignore[override]
        return _cascade(sessions, relevance, continuation, None)


class _Satisfaction(_Chain):
    """The models that tell attraction from satisfaction and rank by their product (Chapelle and Zhang 2009)."""

    relevance: Tower
    satisfaction: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        lists = sessions.unbiased()
        return logit_and(_logits(self.relevance, lists, "relevance"), _logits(self.satisfaction, lists, "satisfaction"))


class SDBN(_Satisfaction):
    """Simplified DBN: goes on until satisfied by a clicked document (Chapelle and Zhang 2009)."""

    slots = ("relevance", "satisfaction")

    def __init__(self, *, relevance: Tower, satisfaction: Tower) -> None:
        self.relevance = relevance
        self.satisfaction = satisfaction

    @staticmethod
    def from_coins(sessions: Sessions, relevance: Coin, satisfaction: Coin) -> CascadeClicks:  # type: ignore[override]
        return _cascade(sessions, relevance, Coin(satisfaction.no, satisfaction.yes), None)


class DBN(_Satisfaction):
    """Dynamic Bayesian network: unless satisfied, the user goes on with probability continuation

    after a click and after a skip alike (Chapelle and Zhang 2009).
    """

    slots = ("relevance", "satisfaction", "continuation")

    def __init__(self, *, relevance: Tower, satisfaction: Tower, continuation: Tower) -> None:
        self.relevance = relevance
        self.satisfaction = satisfaction
        self.continuation = continuation

    @staticmethod
    def from_coins(  # type: ignore[override]
        sessions: Sessions, relevance: Coin, satisfaction: Coin, continuation: Coin
    ) -> CascadeClicks:
        stop = logaddexp(satisfaction.yes, satisfaction.no + continuation.no)
        after_click = Coin(satisfaction.no + continuation.yes, stop)
        return _cascade(sessions, relevance, after_click, continuation)


class CCM(_OneRelevance, _Chain):
    """Click chain model (Guo 2009): the user goes on with probability tau_1 after a skip, tau_2 after a click

    on a document that turns out irrelevant, tau_3 after a click on a relevant one.
    """

    slots = ("relevance", "after_skip", "after_irrelevant_click", "after_relevant_click")

    def __init__(
        self, *, relevance: Tower, after_skip: Tower, after_irrelevant_click: Tower, after_relevant_click: Tower
    ) -> None:
        self.relevance = relevance
        self.after_skip = after_skip
        self.after_irrelevant_click = after_irrelevant_click
        self.after_relevant_click = after_relevant_click

    @staticmethod
    def from_coins(  # type: ignore[override]
        sessions: Sessions, relevance: Coin, after_skip: Coin, after_irrelevant_click: Coin, after_relevant_click: Coin
    ) -> CascadeClicks:
        bad, good = after_irrelevant_click, after_relevant_click
        go = logaddexp(relevance.no + bad.yes, relevance.yes + good.yes)
        stop = logaddexp(relevance.no + bad.no, relevance.yes + good.no)
        return _cascade(sessions, relevance, Coin(go, stop), after_skip)


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
        prior_logits: Array | nnx.Variable | Callable[[Sessions], Array] | None = None,
    ) -> None:
        if not components:
            raise ConfigError("a mixture needs at least one component, found none")
        self.components = nnx.List(list(components))
        if prior_logits is None:
            prior_logits = nnx.Param(jnp.zeros(len(components)))
        elif not callable(prior_logits) and not isinstance(prior_logits, nnx.Variable):
            prior_logits = nnx.Variable(jnp.asarray(prior_logits))
        self.prior_logits = prior_logits

    def _log_prior(self, sessions: Sessions) -> jax.Array:
        shape = (len(sessions), len(self.components))
        prior = self.prior_logits
        if isinstance(prior, nnx.Variable):
            if prior[...].shape != shape[1:]:
                raise ConfigError(f"expected {shape[1]} prior logits, one per component, found {prior[...].shape}")
            logits = jnp.broadcast_to(prior[...][None, :], shape)
        else:
            logits = jnp.asarray(prior(sessions))  # type: ignore[operator]
        if logits.shape != shape:
            raise ConfigError(f"prior_logits: expected [B, M] = {shape}, found {logits.shape}")
        return jax.nn.log_softmax(logits, axis=1)

    def __call__(self, sessions: Sessions) -> MixtureClicks:
        each = tuple(c(sessions) for c in self.components)
        return MixtureClicks(each, self._log_prior(sessions), sessions.mask, sessions.rank_axis)

    @property
    def pointwise(self) -> bool:
        """As in every model; UBM's distribution over all last clicks needs lists as the first axis."""
        fixed = isinstance(self.prior_logits, nnx.Variable)
        return fixed and all(c.pointwise and not isinstance(c, UBM) for c in self.components)

    def score(self, sessions: Sessions) -> jax.Array:
        """[B, K] logit of the relevance that an average user finds."""
        lists = sessions.unbiased()
        prior = self._log_prior(lists)[:, :, None]
        each = jnp.stack([c.score(lists) for c in self.components], axis=1)
        return logsumexp(prior + log_sigmoid(each), axis=1) - logsumexp(prior + log_sigmoid(-each), axis=1)
