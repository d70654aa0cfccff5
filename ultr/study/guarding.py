"""The guard: a trained ranker as a correction of the logged order, only as strong as held-out clicks vouch for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ultr.baselines import GuardedRanker
from ultr.evaluation.ranking_gains import CONFIDENCE, RankingGain, query_gains, ratio_of_sums
from ultr.files import json_values
from ultr.rankers import Ranker
from ultr.study.candidates import Candidate, PerQuery, pooled
from ultr.study.cross_fitting import CrossFitting
from ultr.study.held_out import document_scores, spread_within, standardised
from ultr.towers import note_shown_documents, record_schema, trained_schema

CORRECTIONS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)  # 0: the logged order alone, 1: the ranker alone


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A guarded ranker and how far it was trusted.

    Attributes:
      ranker: scores any documents of the log, and with features any others.
      correction: the strength that was chosen, of `CORRECTIONS`.
      gains: of every strength over the logged order, on held-out queries.
      reason: why this one.
      agreement: share of the pairs of documents whose logged order the estimate of it has.
      over_chance: what the logged order gains over a random one.
    """

    ranker: GuardedRanker
    correction: float
    gains: tuple[RankingGain, ...]
    reason: str
    agreement: float
    over_chance: RankingGain

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        values = [
            {"correction": c, "gain": g.value, "standard_error": g.standard_error, "lower": g.lower()}
            for c, g in zip(CORRECTIONS, self.gains, strict=True)
        ]
        found: dict[str, Any] = json_values(
            {
                "correction": self.correction,
                "reason": self.reason,
                "confidence": CONFIDENCE,
                "values": values,
                "agreement_with_logged_order": self.agreement,
                "logged_order_over_random": {
                    "gain": self.over_chance.value,
                    "standard_error": self.over_chance.standard_error,
                },
            }
        )
        return found


def corrections_told(candidate: Candidate, data: CrossFitting) -> list[PerQuery]:
    """Computes what each strength of correction gains over the logged order, on every held-out query."""
    told: list[list[PerQuery]] = [[] for _ in CORRECTIONS]
    for fold, scores in enumerate(candidate.scores):
        found = data.held_out(fold)
        query = found.clicks.query
        logged, own = standardised(found.logged, query), standardised(scores, query)
        if data.by == "session":  # a table knows only the documents that it was trained on
            own = np.where(data.trained_on(fold)[found.document], own, logged)
        for c, each in zip(CORRECTIONS, told, strict=True):
            each.append(PerQuery(*query_gains(found.clicks, (1 - c) * logged + c * own, logged)))
    return [pooled(each) for each in told]


def logged_over_chance(data: CrossFitting) -> RankingGain:
    """Estimates what the logged order gains over a random order of the same documents."""
    told = []
    for fold in range(data.folds):
        found = data.held_out(fold)
        gain, base = query_gains(found.clicks, found.logged, np.zeros(len(found.logged)))
        told.append(PerQuery(gain, base))
    return ratio_of_sums(*pooled(told))


def choose_correction(gains: Sequence[RankingGain], over_chance: RankingGain) -> tuple[float, str]:
    """Chooses the strength with the largest gain among those whose gain has a lower bound above 0, if there is one.

    The lower bound guards against the logged order; among what it vouches for, the highest one would choose weak
    corrections for nothing but their small errors.

    Where clicks say that the logged order is worse than a random one, they contradict the very order that the guard
    holds on to, as inverted clicks would: then it stays as it is.
    """
    if over_chance.value + (over_chance.value - over_chance.lower()) < 0:
        return 0.0, (
            "the clicks say that the logged order is worse than a random one, as inverted clicks would: the logged "
            "order is kept. If the logger is known to be bad, train without the guard"
        )
    lower = [gain.lower() for gain in gains]
    vouched = [i for i, bound in enumerate(lower) if bound > 0]
    if not vouched:
        return 0.0, (
            f"no correction is better than the logged order with {CONFIDENCE:.0%} confidence on "
            f"{gains[0].queries:,} held-out queries: the logged order is kept"
        )
    best = max(vouched, key=lambda i: gains[i].value)
    return CORRECTIONS[best], (
        f"the largest gain of those with a lower bound above 0: {gains[best].value:+.1%} of the DCG of the logged "
        f"order, at least {lower[best]:+.1%}"
    )


def guard(ranker: Ranker, candidate: Candidate, data: CrossFitting) -> Guarded:
    """Makes a guarded ranker of one that was trained on all folds.

    Args:
      ranker: trained on the whole log.
      candidate: the same method, judged on every fold.
      data: the folds.
    """
    gains = tuple(ratio_of_sums(*told) for told in corrections_told(candidate, data))
    over_chance = logged_over_chance(data)
    correction, reason = choose_correction(gains, over_chance)
    whole, logged = data.counts("rank"), data.logged()
    shown = np.unique(whole.document)
    shown = shown[(shown > 0) & (shown <= data.log.documents)]
    query = np.unique(whole.vocabulary.document_query[shown], return_inverse=True)[1]
    spreads = (
        spread_within(document_scores(ranker, whole.vocabulary, shown), query),
        spread_within(logged.scores[shown], query),
    )
    made = GuardedRanker(
        ranker=ranker,
        logger=logged.tower,
        correction=correction,
        ranker_spread=spreads[0],
        logger_spread=spreads[1],
        documents=data.log.documents if data.by == "session" else 0,
    )
    if made.documents:
        made.known[...] = jnp.asarray(data.trained_on(None)[: made.documents + 1])
    record_schema(made, trained_schema(made, whole))
    note_shown_documents(made, whole.coverage().shown)
    agreement = logged.agreement if math.isfinite(logged.agreement) else math.nan
    return Guarded(made, correction, gains, reason, agreement, over_chance)
