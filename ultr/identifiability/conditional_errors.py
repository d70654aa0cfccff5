"""`covariance_given_ranker`: errors of a curve by rank where the scores of documents are taken as known.

With documents' scores s fixed, the parameters of the ranks are the root of a sum over lists of equations g; their
covariance is H^-1 (sum over queries of g g^T) H^-1 with H the derivative of the sum, which holds too where the clicks
of a query depend on each other, or the model is wrong.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.baselines.dual import DLA
from ultr.data.dataset import DatasetLike, as_dataset
from ultr.logspace import log_sigmoid
from ultr.rankers import Ranker
from ultr.sessions import Sessions

BATCH = 4096
FEWEST_QUERIES = 10


def covariance_given_ranker(
    model: Ranker, data: DatasetLike, document_query: np.ndarray, curve: np.ndarray
) -> np.ndarray | None:
    """Computes the covariance of log(curve) relative to rank 1, [R, R], given the scores of the ranker.

    Args:
      model: trained, with a relevance tower; what its curve comes from decides the equations.
      data: what it was trained on: counts, or lists for listwise losses.
      document_query: [V] query of each document, id 1 first.
      curve: [R] relative to rank 1.

    Returns:
      None with fewer than ten queries.
    """
    ranks, source = len(curve), model.curve_source
    relevance, limit = vars(model)["relevance"], np.log(model.clip or 1e26) if isinstance(model, DLA) else 0.0
    absolute = vars(model).get("examination")
    queries = int(document_query.max(initial=0)) + 1
    score, slope = np.zeros((queries, ranks)), np.zeros((ranks, ranks))
    for batch in as_dataset(data).batches(BATCH):
        documents = np.asarray(batch.features["document"])
        query = document_query[np.maximum(documents[:, 0], 1) - 1]
        s, b = (np.asarray(x, np.float64) for x in _logits((relevance, absolute), batch))
        mask = np.asarray(batch.mask) & (documents > 0)
        weight = np.ones(len(mask)) if batch.weight is None else np.asarray(batch.weight, np.float64)
        clicks, position = (np.asarray(batch.clicks) != 0) & mask, np.where(mask, np.asarray(batch.position), 0)
        if source in ("listwise", "dual"):
            x = b + s if source == "listwise" else b
            q = np.exp(np.where(mask, x, -np.inf) - np.max(np.where(mask, x, -1e300), axis=1, keepdims=True))
            q = np.where(mask, q, 0.0) / np.maximum(q.sum(1, keepdims=True), 1e-300)
            given = clicks * (np.exp(np.minimum(s[:, :1] - s, limit)) if source == "dual" else 1.0)
            total = (weight * given.sum(1))[:, None]
            g, h = weight[:, None] * given - total * q, total * q
            by_rank = np.zeros((len(mask), ranks))
            np.add.at(by_rank, (np.arange(len(mask))[:, None], position), np.where(mask, q, 0.0))
            slope -= by_rank.T @ (total * by_rank)
        else:
            p = np.exp(log_sigmoid(s) + log_sigmoid(b)) if source == "position-based" else 1 / (1 + np.exp(-(s + b)))
            p = np.minimum(np.asarray(p), 1 - 1e-9)
            odds = p / (1 - p)
            g = np.where(clicks, 1.0, -odds) if source == "position-based" else clicks - p
            h = odds if source == "position-based" else p * (1 - p)
            g, h = weight[:, None] * g, weight[:, None] * h
        np.add.at(score, (np.repeat(query, mask.shape[1]), position.ravel()), np.where(mask, g, 0.0).ravel())
        slope[np.arange(ranks), np.arange(ranks)] += np.bincount(
            position.ravel(), np.where(mask, h, 0.0).ravel(), ranks
        )
    used = int((score != 0).any(1).sum())
    if used < FEWEST_QUERIES:
        return None
    return _relative(slope, score.T @ score * (used / (used - 1)), fixed=source in ("listwise", "dual"))


@nnx.jit
def _logits(towers: Any, batch: Sessions) -> tuple[jax.Array, jax.Array]:
    relevance, examination = towers
    return jnp.asarray(relevance(batch)), jnp.asarray(examination(batch))


def _relative(slope: np.ndarray, meat: np.ndarray, *, fixed: bool) -> np.ndarray:
    """Computes the sandwich relative to rank 1; `fixed`: only differences between ranks are identified."""
    ranks = len(slope)
    out = np.full((ranks, ranks), np.nan)
    np.fill_diagonal(out, np.inf)
    known = np.flatnonzero(np.diag(slope) > 0)
    if not len(known) or known[0] != 0:
        return out
    free = known[1:] if fixed else known
    inverse = np.linalg.inv(slope[np.ix_(free, free)])
    spread = inverse @ meat[np.ix_(free, free)] @ inverse
    if fixed:
        out[np.ix_(known, known)] = 0.0
        out[np.ix_(free, free)] = spread
        return out
    contrast = np.eye(len(known))
    contrast[:, 0] -= 1.0
    out[np.ix_(known, known)] = contrast @ spread @ contrast.T
    return out
