"""Held-out clicks choose between settings: the weighted DCG of a ranker on them, without test grades."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultr.errors import UltrError
from ultr.evaluation.compiled import CompiledModel
from ultr.sessions import Sessions
from ultr.study.nuisance import NuisanceEstimates
from ultr.study.prepared import PreparedLog, SplitUnit

CUTOFF = 10  # rank to which the DCG is taken
LOWEST_PROPENSITY = 1e-3  # lower ones count as this much: one click must not decide alone


def choosing_weights(nuisance: NuisanceEstimates) -> tuple[np.ndarray, str]:
    """Computes the [R] weights 1/propensity of clicks that choose between settings.

    Returns:
      The weights, and a note where they had to be all 1 since the propensities are not known.
    """
    try:
        propensity = nuisance.propensity
    except UltrError as error:
        ones = np.ones(nuisance.log.ranks)
        return ones, f"settings were chosen by held-out clicks without weights ({str(error).split(':')[0]})"
    return 1 / np.maximum(propensity / propensity[0], LOWEST_PROPENSITY), ""


def weighted_dcg(
    ranker: Any, log: PreparedLog, by: SplitUnit, weights: np.ndarray, *, max_lists: int = 1 << 16
) -> float:
    """Averages sum_clicked weight / log2(1 + rank that the ranker gives), to rank 10, over held-out sessions.

    Unbiased for the DCG of the ranker among the documents shown, where weights are 1/examination (Joachims 2017).

    Args:
      ranker: has `score(sessions)`.
      weights: [R] by displayed rank.
      max_lists: how many of the distinct lists are judged, the first ones.
    """
    valid = log.distinct("valid", by)
    compiled = CompiledModel(ranker).on(valid)
    total = sessions = 0.0
    lists = 0
    for batch in valid.batches(4096):
        scores = np.asarray(compiled.scores(batch), np.float64)
        total += weighted_gains(scores, batch, weights)
        rows = np.asarray(batch.mask).any(1)
        sessions += float(batch.row_weights()[rows].sum())
        lists += int(rows.sum())
        if lists >= max_lists:
            break
    return total / max(sessions, 1.0)


def weighted_gains(scores: np.ndarray, batch: Sessions, weights: np.ndarray) -> float:
    """Sums the weighted gains of the clicks of a batch, sessions by their weights.

    Args:
      scores: [B, K] of the ranker; the rank of a document is the expected one among those of equal score.
      weights: [R] by displayed rank.
    """
    mask, clicks = np.asarray(batch.mask), np.asarray(batch.clicks) != 0
    scores = np.where(mask, scores, -np.inf)
    # The expected rank among equals, so that a constant score gains nothing from the order of the lists.
    above = (scores[:, None, :] > scores[:, :, None]).sum(2)
    equal = ((scores[:, None, :] == scores[:, :, None]) & mask[:, None, :]).sum(2)
    rank = above + (equal + 1) / 2
    gain = np.where(clicks & mask & (rank <= CUTOFF), weights[np.asarray(batch.position)] / np.log2(1 + rank), 0.0)
    return float((gain * batch.row_weights()[:, None]).sum())
