"""Towers that look a logit up: one constant, per rank, per last click, per document, per grade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.arguments import as_float32, check_count, check_name, check_number, number_array
from ultr.errors import ConfigError, DataError
from ultr.hashing import murmur32
from ultr.sessions import Array, Sessions
from ultr.towers.base import IndexBound, LastClickTower, ParameterGroup, Tower, read_feature
from ultr.towers.lookup import lookup, lookup_small


def logits_of(probabilities: Sequence[float] | np.ndarray | float) -> np.ndarray:
    """Computes logits of known probabilities of any shape on the host; certainty becomes +-40, 0 or 1 in float64.

    Raises:
      ConfigError: a number outside [0, 1].
    """
    p = np.asarray(probabilities, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"expected probabilities from 0 to 1, found {p.tolist()}")
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.clip(np.log(p) - np.log1p(-p), -40.0, 40.0)
    return found


def _logits(initial: Any) -> np.ndarray:
    """Makes float32 of logits that are given; NaN of what is no number."""
    try:
        return as_float32(number_array(initial, "initial"))
    except DataError:
        return np.full((), np.nan, np.float32)


class TableTower(Tower):
    """Looks logits up in tables of its own; abstract."""

    pointwise = True
    parameter_group: ClassVar[ParameterGroup] = "table"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()


class Constant(TableTower):
    """Gives one logit to every document of every list.

    Args:
      initial: the logit at the start.
    """

    takes_shared_features = True

    def __init__(self, initial: float = 0.0) -> None:
        start = _logits(initial)
        if start.shape or not np.isfinite(start):
            raise ConfigError(f"expected initial as one finite logit, found {initial!r:.80}")
        self.initial = float(initial)
        self.value = nnx.Param(jnp.asarray(self.initial))

    def logits(self, sessions: Sessions) -> jax.Array:
        return jnp.broadcast_to(self.value[...], sessions.shape)


class RankTable(TableTower):
    """Looks up one logit per displayed rank.

    Args:
      ranks: number of ranks, the table's size.
      initial: logit at the start: one number, or one per rank.
      pin_first: hold the logit of rank 1 at 0, against the constant that may move between additive towers.
    """

    takes_shared_features = True

    def __init__(
        self, ranks: int, *, initial: float | Sequence[float] | np.ndarray = 0.0, pin_first: bool = False
    ) -> None:
        ranks = check_count("ranks", ranks)
        start = _logits(initial)
        if start.shape not in ((), (ranks,)) or not np.isfinite(start).all():
            raise ConfigError(
                f"expected initial as one finite logit or one for each of {ranks} ranks, found {initial!r:.80}"
            )
        start = np.broadcast_to(start, (ranks,))
        self.ranks = ranks
        self.initial = float(start[0]) if np.ndim(initial) == 0 and ranks else tuple(start.tolist())
        self.pin_first = pin_first
        self.table = nnx.Param(jnp.array(start))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", self.ranks, "ranks"),)

    def logits(self, sessions: Sessions) -> jax.Array:
        table = self.table[...]
        if self.pin_first:
            table = table - table[:1]
        return lookup_small(table, sessions.position)


class LastClickTable(LastClickTower):
    """Looks up one logit per (rank, rank of the last click above it), for UBM: logits [B, K, K+1].

    Args:
      ranks: number of ranks; the table is [ranks, ranks + 1], column 0: no click above.
      initial: logit at the start.
    """

    takes_shared_features = True
    pointwise = True
    parameter_group: ClassVar[ParameterGroup] = "table"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def __init__(self, ranks: int, *, initial: float = 0.0) -> None:
        self.ranks = check_count("ranks", ranks)
        self.initial = check_number("initial", initial)
        self.table = nnx.Param(jnp.full((ranks, ranks + 1), self.initial))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return IndexBound("position", self.ranks, "ranks"), IndexBound("last_click", self.ranks + 1, "ranks")

    def logits_after(self, sessions: Sessions, last_click: jax.Array) -> jax.Array:
        index = jnp.asarray(sessions.position) * (self.ranks + 1) + last_click
        return lookup_small(self.table[...].reshape(-1), index)

    def logits(self, sessions: Sessions) -> jax.Array:
        position = jnp.asarray(sessions.position)
        last = jnp.pad(position + 1, ((0, 0), (1, 0)))
        return self.table[...][position[:, :, None], last[:, None, :]]


class DocumentTable(TableTower):
    """Looks up one logit per document, and a common one for documents unseen in training (id 0).

    The logit is `common + entry(document)`; entries start at 0, so a document without data keeps the common logit.

    Args:
      documents: number of documents in the vocabulary; ids run from 1 to this.
      kind: `full` (one row each), `hashed` (rows shared by hashing), `quotient-remainder`
        (Shi 2020: dot product of two small tables), `robe` (Desai 2022: blocks of one shared array).
      rows: number of rows (`hashed`), of remainders (`quotient-remainder`) or of array cells (`robe`);
        required for these kinds.
      dimension: length of the vectors of `quotient-remainder` and `robe`.
      initial: common logit at the start.
      feature: name of the integer feature to look up; context categories work too.
      rngs: needed for `quotient-remainder` and `robe`.
    """

    takes_shared_features = True
    kinds = ("full", "hashed", "quotient-remainder", "robe")

    def __init__(
        self,
        documents: int,
        *,
        kind: str = "full",
        rows: int | None = None,
        dimension: int = 8,
        initial: float = 0.0,
        feature: str = "document",
        rngs: nnx.Rngs | None = None,
    ) -> None:
        if kind not in self.kinds:
            raise ConfigError(f"unknown kind of document table '{kind}'; known: {', '.join(self.kinds)}")
        if kind != "full" and not rows:
            raise ConfigError(f"a document table of kind '{kind}' needs rows=, the number of shared rows")
        check_count("documents", documents, least=0)
        check_count("dimension", dimension)
        if rows is not None:
            check_count("rows", rows)
        self.documents, self.kind, self.rows, self.dimension = documents, kind, rows, dimension
        self.initial, self.feature = check_number("initial", initial), check_name("feature", feature)
        self.common = nnx.Param(jnp.asarray(self.initial))
        size = documents + 1 if kind == "full" else rows or 1
        if kind in ("full", "hashed"):
            self.table = nnx.Param(jnp.zeros(size))
            return
        if rngs is None:
            raise ConfigError(f"a document table of kind '{kind}' needs rngs= for its starting values")
        direction = jax.random.normal(rngs.params(), (size if kind == "quotient-remainder" else 1, dimension))
        self.direction = nnx.Param(direction * dimension**-0.5)
        if kind == "quotient-remainder":
            self.table = nnx.Param(jnp.zeros((documents // size + 1, dimension)))
        else:
            self.table = nnx.Param(jnp.zeros(size))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound(self.feature, self.documents + 1, "ids"),)

    @property
    def row_tables(self) -> tuple[str, ...]:
        return () if self.kind == "quotient-remainder" else ("table",)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.feature})

    def logits(self, sessions: Sessions) -> jax.Array:
        ids = read_feature(sessions, self.feature, "DocumentTable").astype(jnp.int32)
        return self.common[...] + jnp.where(ids == 0, 0.0, self._entry(ids))

    def _entry(self, ids: jax.Array) -> jax.Array:
        if self.kind == "full":
            return lookup(self.table, ids)
        rows = self.rows or 1
        hashed = (murmur32(ids.astype(jnp.uint32)) % rows).astype(jnp.int32)
        if self.kind == "hashed":
            return lookup(self.table, jnp.where(ids == 0, rows, hashed))
        direction = self.direction[...]
        if self.kind == "quotient-remainder":
            quotient = jnp.take(self.table[...], ids // rows, axis=0)
            return jnp.sum(quotient * jnp.take(direction, ids % rows, axis=0), axis=-1)
        cells = jnp.stack([(hashed + i) % rows for i in range(self.dimension)], axis=-1)
        return lookup(self.table, jnp.where(ids[..., None] == 0, rows, cells)) @ direction[0]


class RankDocumentTable(TableTower):
    """Looks up one logit per (rank, document), and a common one per rank for unseen documents.

    Args:
      documents: number of documents in the vocabulary; ids run from 1 to this.
      ranks: number of ranks.
      initial: common logit at the start.
    """

    row_tables = ("table",)

    takes_shared_features = True

    def __init__(self, documents: int, *, ranks: int, initial: float = 0.0) -> None:
        self.documents, self.ranks = check_count("documents", documents, least=0), check_count("ranks", ranks)
        self.initial = check_number("initial", initial)
        self.common = nnx.Param(jnp.full(ranks, self.initial))
        self.table = nnx.Param(jnp.zeros((documents + 1, ranks)))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return IndexBound("document", self.documents + 1, "ids"), IndexBound("position", self.ranks, "ranks")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"document"})

    def logits(self, sessions: Sessions) -> jax.Array:
        ids = read_feature(sessions, "document", "RankDocumentTable").astype(jnp.int32)
        position = jnp.asarray(sessions.position)
        entry = lookup(self.table, ids * self.ranks + position)
        return jnp.take(self.common[...], position, axis=0) + jnp.where(ids == 0, 0.0, entry)


class GradeTable(TableTower):
    """Looks up one fixed logit per expert grade: the relevance tower of a simulated user. Not trained.

    Args:
      grades: one logit per grade 0, 1, 2, ...
    """

    takes_shared_features = True

    def __init__(self, grades: Sequence[float]) -> None:
        self.grades = tuple(float(x) for x in grades)

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("labels", len(self.grades), "grades"),)

    @classmethod
    def from_probabilities(cls, probabilities: Sequence[float] | np.ndarray) -> GradeTable:
        """Makes a table from probabilities, one per grade."""
        return cls(logits_of(probabilities).tolist())

    def logits(self, sessions: Sessions) -> Array:
        if sessions.labels is None:
            raise ConfigError("GradeTable reads the labels of the documents; these sessions have none")
        labels = jnp.asarray(sessions.labels)
        grade = jnp.where(jnp.isnan(labels), 0, labels).astype(jnp.int32)
        return jnp.take(jnp.asarray(self.grades, jnp.float32), grade, axis=0)
