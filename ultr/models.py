"""The click models: towers wired to one of three distributions over click vectors.

Every constructor takes towers by keyword; a tower is any callable `Sessions -> logits [B, K]`
(an `nnx.Module` is trained, a plain function is not). What a tower's logit means is the name of its slot.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.clicks import CascadeClicks, ClickDistribution, MixtureClicks, PositionClicks, last_click
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp, logit_and, logsumexp
from ultr.sessions import Array, Sessions

Tower = Callable[[Sessions], Array]


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
      statistics: what the likelihood depends on, the `by` of `ultr.logs.collapse`: "rank" (counts per document and
        rank), "last-click" (and last clicked rank), "list" (distinct lists with their clicks).
    """

    statistics = "list"

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


class _OneRelevance(ClickModel):
    """The models that rank by their relevance tower."""

    relevance: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        return _logits(self.relevance, sessions.unbiased(), "relevance")


class _CTR(ClickModel):
    """Click-through rate: P(click) = sigmoid(tower). One class, four names for what the tower reads."""

    statistics = "rank"

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


class PBM(_OneRelevance):
    """Position-based model: P(click) = examination_k relevance (Richardson 2007; Craswell 2008).

    Only the examination relative to rank 1 is identified.
    """

    statistics = "rank"

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


class UBM(_OneRelevance):
    """User browsing model: examination depends on the rank and the last clicked rank (Dupret 2008).

    The examination tower returns logits [B, K, K+1], last axis: no click above, then the last click
    at index 0..K-1 (`towers.LastClickTable`); logits [B, K] hold for every last click.
    """

    statistics = "last-click"

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


def _cascade(
    sessions: Sessions,
    relevance: jax.Array,
    after_click: tuple[jax.Array, jax.Array] | None,
    after_skip: jax.Array | None = None,
) -> CascadeClicks:
    """after_click: log-probabilities of going on and stopping (None: always stop); after_skip: logit (None: go on)."""
    zero = jnp.zeros_like(relevance)
    never = jnp.full_like(relevance, -jnp.inf)
    go, stop = after_click or (never, zero)
    go_skip, stop_skip = (zero, never) if after_skip is None else (log_sigmoid(after_skip), log_sigmoid(-after_skip))
    return CascadeClicks(relevance, go, stop, go_skip, stop_skip, sessions.mask, sessions.rank_axis)


class CascadeModel(_OneRelevance):
    """Cascade model: the first attractive document is clicked and ends the session (Craswell 2008).

    Sessions with two clicks are impossible.
    """

    def __init__(self, *, relevance: Tower) -> None:
        self.relevance = relevance

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        return _cascade(sessions, _logits(self.relevance, sessions, "relevance"), None)


class DCM(_OneRelevance):
    """Dependent click model: after a click at rank k the user goes on with probability continuation_k (Guo 2009)."""

    def __init__(self, *, relevance: Tower, continuation: Tower) -> None:
        self.relevance = relevance
        self.continuation = continuation

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        go = _logits(self.continuation, sessions, "continuation")
        return _cascade(sessions, _logits(self.relevance, sessions, "relevance"), (log_sigmoid(go), log_sigmoid(-go)))


class _Satisfaction(ClickModel):
    """The models that tell attraction from satisfaction and rank by their product (Chapelle and Zhang 2009)."""

    relevance: Tower
    satisfaction: Tower

    def score(self, sessions: Sessions) -> jax.Array:
        lists = sessions.unbiased()
        return logit_and(_logits(self.relevance, lists, "relevance"), _logits(self.satisfaction, lists, "satisfaction"))


class SDBN(_Satisfaction):
    """Simplified DBN: goes on until satisfied by a clicked document (Chapelle and Zhang 2009)."""

    def __init__(self, *, relevance: Tower, satisfaction: Tower) -> None:
        self.relevance = relevance
        self.satisfaction = satisfaction

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        satisfied = _logits(self.satisfaction, sessions, "satisfaction")
        return _cascade(
            sessions,
            _logits(self.relevance, sessions, "relevance"),
            (log_sigmoid(-satisfied), log_sigmoid(satisfied)),
        )


class DBN(_Satisfaction):
    """Dynamic Bayesian network: unless satisfied, the user goes on with probability continuation

    after a click and after a skip alike (Chapelle and Zhang 2009).
    """

    def __init__(self, *, relevance: Tower, satisfaction: Tower, continuation: Tower) -> None:
        self.relevance = relevance
        self.satisfaction = satisfaction
        self.continuation = continuation

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        satisfied = _logits(self.satisfaction, sessions, "satisfaction")
        go = _logits(self.continuation, sessions, "continuation")
        both = logit_and(-satisfied, go)
        return _cascade(
            sessions, _logits(self.relevance, sessions, "relevance"), (log_sigmoid(both), log_sigmoid(-both)), go
        )


class CCM(_OneRelevance):
    """Click chain model (Guo 2009): the user goes on with probability tau_1 after a skip, tau_2 after a click

    on a document that turns out irrelevant, tau_3 after a click on a relevant one.
    """

    def __init__(
        self, *, relevance: Tower, after_skip: Tower, after_irrelevant_click: Tower, after_relevant_click: Tower
    ) -> None:
        self.relevance = relevance
        self.after_skip = after_skip
        self.after_irrelevant_click = after_irrelevant_click
        self.after_relevant_click = after_relevant_click

    def __call__(self, sessions: Sessions) -> CascadeClicks:
        relevance = _logits(self.relevance, sessions, "relevance")
        bad = _logits(self.after_irrelevant_click, sessions, "after_irrelevant_click")
        good = _logits(self.after_relevant_click, sessions, "after_relevant_click")
        yes, no = log_sigmoid(relevance), log_sigmoid(-relevance)
        go = logaddexp(no + log_sigmoid(bad), yes + log_sigmoid(good))
        stop = logaddexp(no + log_sigmoid(-bad), yes + log_sigmoid(-good))
        return _cascade(sessions, relevance, (go, stop), _logits(self.after_skip, sessions, "after_skip"))


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
