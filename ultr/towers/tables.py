"""Towers that look a logit up: one constant, per rank, per last click, per document, per grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr.errors import ConfigError, DataError
from ultr.sessions import Array, Sessions, Shared
from ultr.towers.lookup import lookup, lookup_small


def logits(probabilities: Sequence[float] | np.ndarray | float) -> np.ndarray:
    """Host-side logits of known probabilities of any shape; certainty becomes +-40, which is 0 or 1 in float64.

    Raises:
      ConfigError: a number outside [0, 1].
    """
    p = np.asarray(probabilities, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"expected probabilities from 0 to 1, found {p.tolist()}")
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -40.0, 40.0)


def read(sessions: Sessions, name: str, tower: str) -> jax.Array:
    """The named feature [B, K, ...], or an error that lists what there is."""
    if name not in sessions.features:
        known = ", ".join(sorted(sessions.features)) or "none"
        raise ConfigError(f"tower {tower} reads the feature '{name}'; the sessions have: {known}")
    value = sessions.features[name]
    return jnp.asarray(value.whole() if isinstance(value, Shared) else value)


def check(
    model: nnx.Module, sessions: Sessions, *, source: str = "sessions", largest: Mapping[str, int] | None = None
) -> None:
    """Rejects ids and positions beyond the tables of a model; on the host, since XLA would clamp them.

    Args:
      model: has towers with `limits`.
      sessions: on the host.
      source: what to call them in an error.
      largest: what no value of a field exceeds, where that is known; such fields are looked at only if it is too large.

    Raises:
      DataError: names the field, the 1-based session and the size of the table.
    """
    mask = np.asarray(sessions.mask)
    for _, module in nnx.iter_modules(model):
        for name, size, what in getattr(module, "limits", ()):
            if largest is not None and largest.get(name, size) < size:
                continue
            own = {"position": sessions.position, "labels": sessions.labels, "last_click": sessions.last_click}
            values = own[name] if name in own else sessions.features.get(name)
            if values is None:
                continue
            bad = (np.asarray(values) >= size) | (np.asarray(values) < 0)
            bad &= mask
            if bad.any():
                row, column = (int(i) for i in np.argwhere(bad)[0])
                found = int(np.asarray(values)[row, column]) + (name == "position")
                last = size if name == "position" else size - 1
                raise DataError(
                    f"expected {what} up to {last} in {type(module).__name__}, found {found}",
                    fix="Build the tower with a larger table, or open the log with vocabulary= the log of training",
                    file=source,
                    row=row + 1,
                    field="rank" if name == "position" else name,
                )


def takes_shared(model: Any) -> bool:
    """Whether all towers of a model are the toolkit's own, which know features that are `Shared`."""
    own = type(model).__module__
    wraps = hasattr(model, "tower") or isinstance(getattr(model, "towers", None), nnx.List)
    if own.startswith("ultr.towers.") and not wraps:
        return True
    parts = [x for part in vars(model).values() for x in (part if isinstance(part, nnx.List) else [part])]
    towers = [part for part in parts if _may_read(part)]
    return own.startswith("ultr.") and all(takes_shared(tower) for tower in towers)


def _may_read(part: Any) -> bool:
    """Whether a part of a model may be a tower or a model; variables and the layers of flax are none."""
    own = isinstance(part, nnx.Variable) or type(part).__module__.startswith("flax.")
    return not own and (callable(part) or hasattr(part, "loss"))


def reads(model: nnx.Module) -> set[str]:
    """What the tables of a model look up: names of integer features, `position` or `labels`."""
    return {name for _, module in nnx.iter_modules(model) for name, _, _ in getattr(module, "limits", ())}


class Constant(nnx.Module):
    """One logit for every document of every list.

    Args:
      initial: the logit at the start.
    """

    pointwise = True

    def __init__(self, initial: float = 0.0) -> None:
        self.initial = float(initial)
        self.value = nnx.Param(jnp.asarray(self.initial))

    def __call__(self, sessions: Sessions) -> jax.Array:
        return jnp.broadcast_to(self.value[...], sessions.shape)


class RankTable(nnx.Module):
    """One logit per displayed rank.

    Args:
      ranks: number of ranks, the table's size.
      initial: logit at the start: one number, or one per rank.
      pin_first: hold the logit of rank 1 at 0, against the constant that may move between additive towers.
    """

    pointwise = True

    def __init__(
        self, ranks: int, *, initial: float | Sequence[float] | np.ndarray = 0.0, pin_first: bool = False
    ) -> None:
        start = np.broadcast_to(np.asarray(initial, np.float32), (ranks,))
        self.ranks = ranks
        self.initial = float(initial) if np.ndim(initial) == 0 else tuple(float(x) for x in start)  # type: ignore[arg-type]
        self.pin_first = pin_first
        self.limits = (("position", ranks, "ranks"),)
        self.table = nnx.Param(jnp.array(start))

    def __call__(self, sessions: Sessions) -> jax.Array:
        table = self.table[...]
        if self.pin_first:
            table = table - table[:1]
        return lookup_small(table, sessions.position)


class LastClickTable(nnx.Module):
    """One logit per (rank, rank of the last click above it), for UBM: logits [B, K, K+1].

    Args:
      ranks: number of ranks; the table is [ranks, ranks + 1], column 0: no click above.
      initial: logit at the start.
    """

    pointwise = True  # `given` is

    def __init__(self, ranks: int, *, initial: float = 0.0) -> None:
        self.ranks = ranks
        self.initial = float(initial)
        self.limits = (("position", ranks, "ranks"), ("last_click", ranks + 1, "ranks"))
        self.table = nnx.Param(jnp.full((ranks, ranks + 1), self.initial))

    def given(self, sessions: Sessions, last_click: jax.Array) -> jax.Array:
        """[B, K] logits after the given last clicks [B, K]: 1-based ranks, 0 for none."""
        index = jnp.asarray(sessions.position) * (self.ranks + 1) + last_click
        return lookup_small(self.table[...].reshape(-1), index)

    def __call__(self, sessions: Sessions) -> jax.Array:
        position = jnp.asarray(sessions.position)
        last = jnp.pad(position + 1, ((0, 0), (1, 0)))
        return self.table[...][position[:, :, None], last[:, None, :]]


class DocumentTable(nnx.Module):
    """One logit per document, and a common one for documents unseen in training (id 0).

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

    kinds = ("full", "hashed", "quotient-remainder", "robe")
    pointwise = True

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
        self.documents, self.kind, self.rows, self.dimension = documents, kind, rows, dimension
        self.initial, self.feature = float(initial), feature
        self.limits = ((feature, documents + 1, "ids"),)
        self.row_tables = () if kind == "quotient-remainder" else ("table",)
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

    def __call__(self, sessions: Sessions) -> jax.Array:
        ids = read(sessions, self.feature, "DocumentTable").astype(jnp.int32)
        return self.common[...] + jnp.where(ids == 0, 0.0, self._entry(ids))

    def _entry(self, ids: jax.Array) -> jax.Array:
        if self.kind == "full":
            return lookup(self.table, ids)
        rows = self.rows or 1
        if self.kind == "hashed":
            return lookup(self.table, jnp.where(ids == 0, rows, (_mix(ids) % rows).astype(jnp.int32)))
        direction = self.direction[...]
        if self.kind == "quotient-remainder":
            quotient = jnp.take(self.table[...], ids // rows, axis=0)
            return jnp.sum(quotient * jnp.take(direction, ids % rows, axis=0), axis=-1)
        start = (_mix(ids) % rows).astype(jnp.int32)
        cells = jnp.stack([(start + i) % rows for i in range(self.dimension)], axis=-1)
        return lookup(self.table, jnp.where(ids[..., None] == 0, rows, cells)) @ direction[0]


def _mix(ids: jax.Array) -> jax.Array:
    """Murmur3's finaliser: spreads consecutive ids over 32 bits."""
    x = ids.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


class RankDocumentTable(nnx.Module):
    """One logit per (rank, document), and a common one per rank for unseen documents.

    Args:
      documents: number of documents in the vocabulary; ids run from 1 to this.
      ranks: number of ranks.
      initial: common logit at the start.
    """

    pointwise = True
    row_tables = ("table",)

    def __init__(self, documents: int, *, ranks: int, initial: float = 0.0) -> None:
        self.documents, self.ranks, self.initial = documents, ranks, float(initial)
        self.limits = (("document", documents + 1, "ids"), ("position", ranks, "ranks"))
        self.common = nnx.Param(jnp.full(ranks, self.initial))
        self.table = nnx.Param(jnp.zeros((documents + 1, ranks)))

    def __call__(self, sessions: Sessions) -> jax.Array:
        ids = read(sessions, "document", "RankDocumentTable").astype(jnp.int32)
        position = jnp.asarray(sessions.position)
        entry = lookup(self.table, ids * self.ranks + position)
        return jnp.take(self.common[...], position, axis=0) + jnp.where(ids == 0, 0.0, entry)


class GradeTable(nnx.Module):
    """One fixed logit per expert grade: the relevance tower of a simulated user. Not trained.

    Args:
      logits: one logit per grade 0, 1, 2, ...
    """

    pointwise = True

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = tuple(float(x) for x in logits)
        self.limits = (("labels", len(self.logits), "grades"),)

    @classmethod
    def from_probabilities(cls, probabilities: Sequence[float] | np.ndarray) -> GradeTable:
        """A table from probabilities, one per grade."""
        return cls(logits(probabilities).tolist())

    def __call__(self, sessions: Sessions) -> Array:
        if sessions.labels is None:
            raise ConfigError("GradeTable reads the labels of the documents; these sessions have none")
        labels = jnp.asarray(sessions.labels)
        grade = jnp.where(jnp.isnan(labels), 0, labels).astype(jnp.int32)
        return jnp.take(jnp.asarray(self.logits, jnp.float32), grade, axis=0)
