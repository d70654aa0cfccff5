"""Click models whose clicks depend on the rank and the last click above: CTR models, PBM, trust bias, UBM."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ultr.clicks import PositionClicks, last_click
from ultr.errors import ConfigError
from ultr.logspace import log_sigmoid, logaddexp, logit_and
from ultr.models.base import (
    ClickOrSkip,
    LatentVariable,
    LatentVariableModel,
    Logits,
    SlotModel,
    checked_logits,
)
from ultr.sessions import Sessions
from ultr.towers.base import LastClickTower, TowerLike, as_tower
from ultr.towers.shown_ranks import supported_curve

_LISTS_FIRST = (
    "the distribution of UBM has an axis of last clicks, and needs lists as the first axis: give it "
    "sessions.list_first()"
)


class _RelevanceAndExamination(SlotModel):
    """A click model of two towers, relevance and examination; abstract."""

    slots = ("relevance", "examination")

    def __init__(self, *, relevance: TowerLike, examination: TowerLike) -> None:
        self.relevance = as_tower(relevance)
        self.examination = as_tower(examination)


def _examined(sessions: Sessions, latents: Sequence[LatentVariable]) -> ClickOrSkip:
    relevance, examination = latents
    click = examination.yes + relevance.yes
    skip = logaddexp(examination.no, examination.yes + relevance.no)
    return ClickOrSkip(click, skip, sessions.mask, sessions.rank_axis)


class _CTR(LatentVariableModel):
    """Click-through rate: P(click) = sigmoid(tower). One class, four names for what the tower reads."""

    sufficient_statistics = "rank"
    slots = ("tower",)
    relevance_slot = "tower"

    @staticmethod
    def from_latents(sessions: Sessions, latents: Sequence[LatentVariable]) -> ClickOrSkip:
        (tower,) = latents
        return ClickOrSkip(tower.yes, tower.no, sessions.mask, sessions.rank_axis)

    def __init__(self, tower: TowerLike) -> None:
        self.tower = as_tower(tower)

    def from_logits(self, sessions: Sessions, logits: Logits) -> PositionClicks:
        return PositionClicks(logits["tower"], sessions.mask, sessions.rank_axis)


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
    curve_source = "position-based"
    from_latents = staticmethod(_examined)

    def from_logits(self, sessions: Sessions, logits: Logits) -> PositionClicks:
        both = logit_and(logits["examination"], logits["relevance"])
        return PositionClicks(both, sessions.mask, sessions.rank_axis)

    def propensity(self, ranks: int) -> np.ndarray:
        """Computes examination relative to rank 1, [ranks]; for towers that read the position alone.

        NaN at ranks that training never showed, all where rank 1 is one: `towers.withheld_ranks` says why.
        """
        lists = Sessions(mask=jnp.ones((1, ranks), bool), position=jnp.arange(ranks, dtype=jnp.int32)[None, :])
        log_examination = log_sigmoid(self.logits_of(lists, ["examination"])["examination"])[0]
        return supported_curve(np.asarray(jnp.exp(log_examination - log_examination[0])), self)

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return self.propensity(ranks)


class TrustPBM(SlotModel):
    """PBM with trust bias: an examined document is clicked with probability e+_k if relevant, e-_k if not.

    Agarwal 2019. P(click) = alpha_k relevance + beta_k, and only alpha and beta are identified.
    """

    sufficient_statistics = "rank"
    curve_source = "affine"
    slots = ("relevance", "examination", "trust_relevant", "trust_irrelevant")

    def __init__(
        self, *, relevance: TowerLike, examination: TowerLike, trust_relevant: TowerLike, trust_irrelevant: TowerLike
    ) -> None:
        self.relevance = as_tower(relevance)
        self.examination = as_tower(examination)
        self.trust_relevant = as_tower(trust_relevant)
        self.trust_irrelevant = as_tower(trust_irrelevant)

    def from_logits(self, sessions: Sessions, logits: Logits) -> PositionClicks:
        relevance, examination, relevant, irrelevant = (logits[slot] for slot in self.slots)
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

    def from_logits(self, sessions: Sessions, logits: Logits) -> PositionClicks:
        return PositionClicks(logits["relevance"] + logits["examination"], sessions.mask, sessions.rank_axis)


class UBM(_RelevanceAndExamination, LatentVariableModel):
    """User browsing model: examination depends on the rank and the last clicked rank (Dupret 2008).

    The examination tower returns logits [B, K, K+1], last axis: no click above, then the last click
    at index 0..K-1 (`towers.LastClickTable`); logits [B, K] hold for every last click.
    """

    sufficient_statistics = "last-click"
    curve_source = "browsing"
    needs_lists_first = True
    from_latents = staticmethod(_examined)

    def logits(self, sessions: Sessions) -> Logits:
        if sessions.rank_axis == 0:
            raise ConfigError(_LISTS_FIRST)
        return self._logits_with(sessions, self.examination(sessions))

    def from_logits(self, sessions: Sessions, logits: Logits) -> PositionClicks:
        relevance, examination = logits["relevance"], logits["examination"]
        if examination.ndim > relevance.ndim:
            relevance = relevance[:, :, None]
        return PositionClicks(logit_and(examination, relevance), sessions.mask, sessions.rank_axis)

    def logits_given(self, sessions: Sessions) -> Logits:
        """Computes the logits of the last click that happened, not of all K + 1, where the tower can."""
        if isinstance(self.examination, LastClickTower):
            last = sessions.last_click
            if last is None:
                clicked = (jnp.asarray(sessions.clicks) != 0) & sessions.mask
                last = last_click(clicked, jnp.asarray(sessions.position) + 1, sessions.rank_axis)
            return self._logits_with(sessions, self.examination.logits_after(sessions, jnp.asarray(last)))
        examination = self.examination(sessions)
        if examination.ndim == 3 and sessions.rank_axis == 0:
            raise ConfigError(_LISTS_FIRST)
        if examination.ndim == 3 and sessions.last_click is not None:
            raise ConfigError(
                "UBM with such an examination tower needs whole lists; these rows are single documents. Use "
                "towers.LastClickTable, or collapse the log with sufficient_statistics='list'"
            )
        return self._logits_with(sessions, examination)

    def _logits_with(self, sessions: Sessions, examination: jax.Array) -> Logits:
        """Adds logits of relevance to those of examination, whose shape is checked."""
        if examination.shape not in (sessions.shape, (*sessions.shape, sessions.shape[sessions.rank_axis] + 1)):
            b, k = len(sessions), sessions.shape[sessions.rank_axis]
            raise ConfigError(
                f"tower 'examination' of UBM: expected logits [B, K, K+1] = {(b, k, k + 1)} or [B, K], "
                f"found {examination.shape}. Use towers.LastClickTable or check what the tower returns"
            )
        relevance = checked_logits(self.relevance(sessions), self.relevance, sessions, "relevance")
        return {"relevance": relevance, "examination": examination}
