"""Trains a ranker on all queries and, in the same steps, one copy per fold of them that never sees the fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.data.dataset import Dataset
from ultr.data.splits import query_folds
from ultr.errors import ConfigError
from ultr.rankers import ImpressionWeights, Ranker
from ultr.sessions import Sessions
from ultr.towers import Statistic, read_feature, row_tables


class QueryFolds(NamedTuple):
    """Folds of the queries for `fit`.

    Attributes:
      fold: [Q] the fold of each query of the vocabulary, from 0; -1: of none.
      copies: a ranker for each fold, of the structure of the one that is trained, such as one with the propensities
        that the other folds tell; none: copies of that one.
    """

    fold: np.ndarray
    copies: tuple[Ranker, ...] = ()


class FoldedRanker(Ranker):
    """A ranker with a copy of it for each fold of the queries, which learns from the others and judges the fold.

    All copies are trained by the same steps, side by side: cross-validation costs little more than one training, and
    the step at which it is best is one that the ranker itself has passed.

    Args:
      ranker: learns from all queries; it is copied.
      copies: one per fold, of the same structure.
      fold_of_document: [V + 1] the fold of each document's query, from 0; -1: of none.

    Raises:
      ConfigError: a copy of another structure.
    """

    def __init__(self, ranker: Ranker, copies: Sequence[Ranker], fold_of_document: np.ndarray) -> None:
        members = [_parts(each) for each in (*copies, ranker)]
        graph, _, rest = members[-1]
        if not all(has_structure_of(copy, ranker) for copy in copies):
            raise ConfigError("the copies of the folds have another structure than the ranker")
        params = jax.tree.map(lambda *each: jnp.stack(each), *(params for _, params, _ in members))
        # What all members have alike, such as the features of the documents, is kept once.
        found = list(zip(*(jax.tree.leaves(other) for _, _, other in members), strict=True))
        # Which leaves beside the parameters are one per member, the last of which is the ranker's.
        self._stacked = tuple(not all(_equal(x, own) for x in others) for *others, own in found)
        leaves = [jnp.stack(each) if s else each[-1] for s, each in zip(self._stacked, found, strict=True)]
        self.members: Ranker = nnx.merge(graph, params, jax.tree.unflatten(jax.tree.structure(rest), leaves), copy=True)
        self.folds = len(copies)
        self.fold_of_document = Statistic(jnp.asarray(fold_of_document, jnp.int8))

    @property
    def pointwise(self) -> bool:
        return bool(self.members.pointwise)

    @property
    def weighs_impressions(self) -> bool:
        return bool(self.members.weighs_impressions)

    def whole(self) -> Ranker:
        """Returns a copy of the ranker that learns from all queries."""
        return self.member(self.folds)

    def member(self, number: int) -> Ranker:
        """Returns a copy of the ranker that learns from all folds but one."""
        graph, params, rest = _parts(self.members)
        leaves, structure = jax.tree.flatten(rest)
        leaves = [x[number] if stacked else x for x, stacked in zip(leaves, self._stacked, strict=True)]
        rest = jax.tree.unflatten(structure, leaves)
        found: Ranker = nnx.merge(graph, jax.tree.map(lambda x: x[number], params), rest, copy=True)
        return found

    def loss(self, sessions: Sessions) -> jax.Array:
        losses = self._losses(sessions)
        learns = (jnp.arange(self.folds)[:, None] != self._fold(sessions)[None]) & jnp.isfinite(losses[:-1])
        others = jnp.sum(jnp.where(learns, losses[:-1], 0.0), axis=0)
        return losses[-1] + (others - jax.lax.stop_gradient(others))  # the others' gradients, and the ranker's value

    def held_out_loss(self, sessions: Sessions) -> jax.Array:
        losses, fold = self._losses(sessions), self._fold(sessions)
        chosen = jnp.where(fold < 0, self.folds, fold)
        return jnp.take_along_axis(losses, chosen[None], axis=0)[0]

    def score(self, sessions: Sessions) -> jax.Array:
        return self.whole().score(sessions)

    def impression_weights(self, sessions: Sessions) -> ImpressionWeights | None:
        return self.whole().impression_weights(sessions)

    def _losses(self, sessions: Sessions) -> jax.Array:
        """Computes the losses [folds + 1, B] of all members."""
        graph, params, rest = _parts(self.members)
        leaves, structure = jax.tree.flatten(rest)
        axes = [0 if stacked else None for stacked in self._stacked]

        def loss(own: Any, others: list[jax.Array]) -> jax.Array:
            each: Ranker = nnx.merge(graph, own, jax.tree.unflatten(structure, others), copy=True)
            return each.loss(sessions)

        losses: jax.Array = jax.vmap(loss, in_axes=(0, axes))(params, leaves)
        return losses

    def _fold(self, sessions: Sessions) -> jax.Array:
        """Finds the fold of each list, [B]; its documents are all of one query."""
        fold = self.fold_of_document[...][read_feature(sessions, "document", type(self).__name__)]
        shown = jnp.asarray(sessions.mask)
        return jnp.max(jnp.where(shown, fold, -1), axis=sessions.rank_axis).astype(jnp.int32)


def check_foldable(ranker: Any) -> None:
    """Checks that a ranker can be trained beside copies of it that know nothing of some queries.

    Raises:
      ConfigError: it cannot; says why.
    """
    name = type(ranker).__name__
    if not isinstance(ranker, Ranker) or not ranker.has_pure_loss or _draws(ranker):
        raise ConfigError(
            f"{name} keeps statistics or draws numbers while it is trained, so that folds of the queries (--folds; in "
            "Python: folds=) cannot judge its steps. Hold some sessions out (--valid-fraction; in Python: valid=)"
        )
    if row_tables(ranker):
        raise ConfigError(
            f"{name} has a table over documents, which knows nothing of the queries of a fold (--folds; in Python: "
            "folds=). Hold some sessions out (--valid-fraction; in Python: valid=), or give it a network over features"
        )


def can_fold(ranker: Any) -> bool:
    """Tells whether folds of the queries can judge the steps of a ranker (`check_foldable`)."""
    try:
        check_foldable(ranker)
    except ConfigError:
        return False
    return True


def folded(ranker: Ranker, data: Dataset, shown: np.ndarray | None, folds: int | QueryFolds, seed: int) -> FoldedRanker:
    """Makes a ranker with its copies for the folds of the queries that a dataset shows.

    Args:
      shown: [Q] bool, the queries of the dataset's vocabulary that it shows; None: not known.
      folds: how many, fewer where there are fewer queries; or which.
      seed: decides which query goes where.

    Raises:
      ConfigError: data that does not tell its queries, or shows one alone.
    """
    vocabulary = data.description.vocabulary
    if vocabulary is None or shown is None:
        raise ConfigError("folds= needs data that tells its queries, such as a click log or its counts")
    queries = int(shown.sum())
    if queries < 2:
        raise ConfigError(f"folds of the queries need at least two queries, found {queries}")
    if not isinstance(folds, QueryFolds):
        folds = QueryFolds(query_folds(shown, min(folds, queries), seed))
    copies = folds.copies or (ranker,) * (int(folds.fold.max()) + 1)
    return FoldedRanker(ranker, copies, np.append(folds.fold, -1)[vocabulary.document_query].astype(np.int8))


def _parts(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Splits a module into its structure, its parameters, and everything else."""
    found: Any = nnx.split(module, nnx.Param, ...)
    return found[0], found[1], found[2]


def has_structure_of(one: nnx.Module, other: nnx.Module) -> bool:
    """Tells whether two modules differ in arrays alone."""
    return bool(nnx.graphdef(one) == nnx.graphdef(other))


def _equal(one: jax.Array, other: jax.Array) -> bool:
    return one is other or (one.shape == other.shape and bool(jnp.array_equal(one, other)))


def _draws(ranker: nnx.Module) -> bool:
    """Tells whether a module draws random numbers, as dropout does."""
    return any(isinstance(node, nnx.RngState) for _, node in nnx.iter_graph(ranker))
