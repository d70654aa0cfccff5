"""`Sessions`: a batch of ranked lists with what was shown, clicked and graded."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ultr.errors import DataError

Array = jax.Array | np.ndarray
STREAMED = 1 << 13  # rows per batch, where a source is only asked for its size
_PER_RANK = ("mask", "position", "clicks", "labels", "last_click")


@flax.struct.dataclass
class Shared:
    """A feature [B, K, ...] of which many impressions have the same values: those of their document.

    A tower may compute once per row of `values`; `whole()` is the plain feature.

    Attributes:
      values: [U, ...].
      index: [B, K] int32, the row of each impression.
    """

    values: Array
    index: Array

    def whole(self) -> Array:
        """[B, K, ...]."""
        return self.values[self.index]

    def swapaxes(self, first: int, second: int) -> Shared:
        """With two axes of the index swapped."""
        return Shared(self.values, self.index.swapaxes(first, second))

    def distinct(self, rows: int = 0) -> Shared:
        """The same on the host, with every row that an impression has once, and zeros up to `rows`."""
        used, index = np.unique(np.asarray(self.index), return_inverse=True)
        values = np.zeros((max(rows, len(used)), *self.values.shape[1:]), self.values.dtype)
        np.take(self.values, used, axis=0, out=values[: len(used)])
        return Shared(values, index.reshape(self.index.shape).astype(np.int32))


@flax.struct.dataclass
class Sessions:
    """B ranked lists of at most K documents, in the order in which they were shown.

    Attributes:
      mask: [B, K] bool; True on shown documents, a prefix of each row.
      position: [B, K] int32, 0-based displayed position (rank minus one).
      features: name -> [B, K, ...]; a tower says by name what it reads. Logs bring
        `document` (int32 id from 1; 0 is padding or a document unseen in training),
        `features` (float32 [B, K, F]) where there are any, and one entry per context column. `fit` hands features
        of documents to the toolkit's own towers as `Shared`.
      clicks: [B, K] int8 or bool, or None.
      labels: [B, K] float32 grades (NaN: not judged), or None.
      query: [B] int32 query id, or None.
      weight: [B] float32, how many identical lists this row stands for (None: 1).
      last_click: [B, K] int32, the 1-based rank of the last click above each document, 0 for none; None: as the
        clicks of the row say. Given where a row is not a whole list (`ultr.data.collapsing`).
      rank_axis: 1; or 0 where every [B, K, ...] array is held as [K, B, ...] (see `rank_first`).
    """

    mask: Array
    position: Array
    features: Mapping[str, Any] = flax.struct.field(default_factory=dict)
    clicks: Array | None = None
    labels: Array | None = None
    query: Array | None = None
    weight: Array | None = None
    last_click: Array | None = None
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K); (K, B) where ranks come first."""
        return self.mask.shape  # type: ignore[return-value]

    def __len__(self) -> int:
        return self.mask.shape[1 - self.rank_axis]

    def rank_first(self) -> Sessions:
        """The same lists with ranks as the first axis: [K, B, ...].

        The long axis of lists then lies contiguous, which is what a CPU computes fast on.
        """
        if self.rank_axis == 0:
            return self
        fields: dict[str, Any] = {"features": {n: x.swapaxes(0, 1) for n, x in self.features.items()}, "rank_axis": 0}
        for name in _PER_RANK:
            value = getattr(self, name)
            fields[name] = None if value is None else value.swapaxes(0, 1)
        return self.replace(**fields)  # type: ignore[attr-defined]

    def __getitem__(self, rows: Any) -> Sessions:
        """The given rows (a slice, an index array or a boolean mask); the batch axis stays."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1) if rows != -1 else slice(-1, None)
        return jax.tree.map(lambda x: x[rows], self)

    @classmethod
    def from_lists(
        cls,
        *,
        features: Mapping[str, Sequence[Any]] | None = None,
        clicks: Sequence[Sequence[int]] | None = None,
        labels: Sequence[Sequence[float]] | None = None,
        positions: Sequence[Sequence[int]] | None = None,
        query: Sequence[int] | None = None,
        weight: Sequence[float] | None = None,
    ) -> Sessions:
        """Pads ragged Python lists, one per session, into a batch.

        Args:
          features: name -> one list (or [k, ...] array) per session.
          clicks, labels, positions: one list per session; positions default to 0, 1, 2, ...
          query, weight: one number per session.

        Raises:
          DataError: lists of one session differ in length, or nothing was given.
        """
        ragged: dict[str, Sequence[Any]] = dict(features or {})
        given = {"clicks": clicks, "labels": labels, "positions": positions}
        named = ragged | {k: v for k, v in given.items() if v is not None}
        if not named:
            raise DataError("a batch needs at least one of features, clicks, labels, positions")
        lengths = {name: [len(row) for row in rows] for name, rows in named.items()}
        first = next(iter(lengths))
        for name, found in lengths.items():
            if len(found) != len(lengths[first]):
                raise DataError(
                    f"expected {len(lengths[first])} sessions as in '{first}', found {len(found)}", field=name
                )
            for row, (n, m) in enumerate(zip(found, lengths[first], strict=True)):
                if n != m:
                    raise DataError(f"expected {m} values as in '{first}', found {n}", row=row + 1, field=name)
        size = np.asarray(lengths[first], np.int32)
        width = int(size.max(initial=1))

        def pad(name: str, rows: Sequence[Any], dtype: Any = None) -> np.ndarray:
            arrays = [np.asarray(row) for row in rows]
            filled = [a for a in arrays if a.size]
            tail = filled[0].shape[1:] if filled else ()
            for i, a in enumerate(arrays):
                if a.size and (a.dtype.kind not in "buif" or a.shape[1:] != tail):
                    found = f"{a.dtype} of shape {a.shape}"
                    raise DataError(f"expected numbers of shape [k, {', '.join(map(str, tail))}], found {found}"
                                    if tail else f"expected one number per document, found {found}",
                                    row=i + 1, field=name)  # fmt: skip
            whole = np.result_type(*filled) if filled else np.dtype(np.float32)
            out = np.zeros((len(arrays), width, *tail), whole)
            for i, a in enumerate(arrays):
                if a.size:
                    out[i, : len(a)] = a
            kind = dtype or {"f": np.float32, "i": np.int32, "u": np.int32}.get(whole.kind, whole)
            with np.errstate(over="ignore", invalid="ignore"):
                cast = out.astype(kind)
            if np.dtype(kind).kind in "bui":
                lost = (cast != out).reshape(len(out), -1).any(1)
                Sessions._reject(lost, name, "sessions", f"expected whole numbers that fit {np.dtype(kind)}")
            return cast

        steps = np.arange(width, dtype=np.int32)
        default = np.broadcast_to(steps, (len(size), width)).copy()
        return cls(
            mask=steps < size[:, None],
            position=default if positions is None else pad("positions", positions, np.int32),
            features={name: pad(name, rows) for name, rows in ragged.items()},
            clicks=None if clicks is None else pad("clicks", clicks, np.int8),
            labels=None if labels is None else pad("labels", labels, np.float32),
            query=None if query is None else np.asarray(query, np.int32),
            weight=None if weight is None else np.asarray(weight, np.float32),
        )

    def pad(self, *, rows: int | None = None, width: int | None = None) -> Sessions:
        """Adds masked rows up to `rows` and masked ranks up to `width`; never removes any."""
        b, k = self.shape
        more_rows, more_width = max((rows or b) - b, 0), max((width or k) - k, 0)

        def grow(x: Any, per_rank: bool) -> Any:
            if isinstance(x, Shared):
                return Shared(x.values, grow(x.index, per_rank))
            widths = [(0, more_rows)] + ([(0, more_width)] if per_rank else [])
            widths += [(0, 0)] * (x.ndim - len(widths))
            return (np if isinstance(x, np.ndarray) else jnp).pad(x, widths)

        fields: dict[str, Any] = {"features": {n: grow(x, True) for n, x in self.features.items()}}
        for name in (*_PER_RANK, "query", "weight"):
            value = getattr(self, name)
            fields[name] = None if value is None else grow(value, name in _PER_RANK)
        return Sessions(**fields)

    def row_weights(self) -> np.ndarray:
        """Returns the weight of each list, [B] float64 on the host; 1 where the batch has no weights."""
        return np.ones(len(self)) if self.weight is None else np.asarray(self.weight, np.float64)

    def unbiased(self) -> Sessions:
        """The same lists without clicks and positions: what a ranker may see."""
        return self.replace(clicks=None, last_click=None, position=np.zeros(self.shape, np.int32))  # type: ignore[attr-defined]

    def validate(self, *, source: str = "sessions") -> Sessions:
        """Checks shapes and values on the host; returns self.

        Raises:
          DataError: names the field, the 1-based session and what was expected.
        """
        mask = np.asarray(self.mask)
        if mask.ndim != 2 or mask.dtype != bool:
            raise DataError(f"expected bool [B, K], found {mask.dtype} {mask.shape}", file=source, field="mask")
        gaps = (~mask[:, :-1] & mask[:, 1:]).any(1)
        self._reject(gaps, "mask", source, "expected the shown documents first and padding after them")
        per_rank: dict[str, Any] = {name: getattr(self, name) for name in _PER_RANK[1:]}
        per_rank |= {f"features[{name}]": x for name, x in self.features.items()}
        for name, value in per_rank.items():
            if value is None:
                continue
            array = np.asarray(value)
            if array.shape[:2] != mask.shape:
                raise DataError(f"expected [B, K] = {mask.shape}, found {array.shape}", file=source, field=name)
            if name == "clicks":
                bad = (array != 0) & (array != 1)
                self._reject((bad & mask).any(1), name, source, "expected clicks of 0 or 1")
            elif name in ("position", "last_click"):
                what = "positions" if name == "position" else "ranks"
                self._reject(((array < 0) & mask).any(1), name, source, f"expected {what} of at least 0")
            elif np.issubdtype(array.dtype, np.floating):
                bad = np.isinf(array) if name == "labels" else ~np.isfinite(array)
                bad = bad.any(axis=tuple(range(2, bad.ndim)))
                self._reject((bad & mask).any(1), name, source, "expected finite numbers")
        for name in ("query", "weight"):
            value = getattr(self, name)
            if value is not None and np.asarray(value).shape != mask.shape[:1]:
                raise DataError(
                    f"expected [B] = {mask.shape[:1]}, found {np.asarray(value).shape}", file=source, field=name
                )
        if self.weight is not None:
            weight = np.asarray(self.weight)
            bad = ~(np.isfinite(weight) & (weight >= 0))
            self._reject(bad, "weight", source, "expected finite weights of at least 0")
        return self

    @staticmethod
    def _reject(bad: np.ndarray, field: str, source: str, expected: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad)
            raise DataError(f"{expected}; {len(rows)} sessions differ", file=source, row=int(rows[0]) + 1, field=field)


def concatenate(batches: Sequence[Sessions]) -> Sessions:
    """Puts batches one after another, padded to the widest; all must hold the same fields."""
    if not batches:
        raise DataError("expected at least one batch to concatenate, found none")
    width = max(b.shape[1] for b in batches)
    padded = [b.pad(width=width) for b in batches]
    structures = {jax.tree.structure(b) for b in padded}
    if len(structures) > 1:
        raise DataError(f"expected batches with the same fields, found {len(structures)} different sets")
    return jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *padded)


class Source(Protocol):
    """Anything that streams batches: a ClickLog, its Counts, a Collection, `InMemory`, or one of your own.

    One that can say more than its batches derives from `Stream`.
    """

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """Yields host batches of fixed shapes; with a seed in an order that the seed decides."""
        ...


class Stream(abc.ABC):
    """A source that answers what training asks of one; what it does not know is found out by streaming.

    Attributes:
      shares: `batches` also takes `shared=True`, and gives features of documents as `Shared` then.
      by: of counts, what they are counted by; None: rows are sessions.
      documents, ranks: the largest document id and rank that it hands out, checked; None: not known.
      vocabulary: what is behind its ids, or None.
      identity: which sessions these are, as a JSON value that a run records; None: not known.
    """

    shares: bool = False
    by: str | None = None
    documents: int | None = None
    ranks: int | None = None
    vocabulary: Any = None
    identity: dict[str, Any] | None = None

    @abc.abstractmethod
    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """As of a `Source`."""

    def __len__(self) -> int:
        """Rows that show a document."""
        return sum(int(_shown(batch).sum()) for batch in self.batches(STREAMED))

    @property
    def rows_per_session(self) -> float:
        """Rows that stand for one session, by weight; more than 1 for counts."""
        return 1.0

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        first = next(iter(self.batches(STREAMED)), None)
        return first is not None and first.weight is not None

    def extent(self, batch_size: int) -> tuple[float, int]:
        """Weight of all rows that show a document, and in how many batches of a shuffled pass the rows come."""
        total, batches = 0.0, 0
        for batch in self.lean(batch_size, seed=0):
            shown = _shown(batch)
            total += float(shown.sum() if batch.weight is None else np.asarray(batch.weight, np.float64)[shown].sum())
            batches += 1
        return total, batches

    def keeping(self, size: int) -> Self:
        """The same source, which leaves up to `size` bytes of what a pass decodes in memory for the next one."""
        return self

    def lean(self, batch_size: int, *, seed: int | None) -> Iterator[Sessions]:
        """The batches for one who does not read features: as `Shared` they cost nothing."""
        options: dict[str, Any] = {"shared": True} if self.shares else {}
        return self.batches(batch_size, seed=seed, **options)


def stream(source: Source | Sessions) -> Stream:
    """A source or sessions as a `Stream`, which most are."""
    if isinstance(source, Sessions):
        return InMemory(source)
    return source if isinstance(source, Stream) else _Plain(source)


class _Plain(Stream):
    """A source that says nothing of itself but, perhaps, how long it is."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: int | None = len(source) if isinstance(source, Sized) else None

    def __len__(self) -> int:
        if self._rows is None:
            self._rows = super().__len__()
        return self._rows

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """As of the source."""
        return self._source.batches(batch_size, seed=seed)


def _shown(batch: Sessions) -> Any:
    return np.asarray(batch.mask).any(1)


class InMemory(Stream):
    """A source over one batch that is already in memory."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = jax.tree.map(np.asarray, sessions).validate()

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        return self.sessions.weight is not None

    def extent(self, batch_size: int) -> tuple[float, int]:
        """Weight of all rows that show a document, and in how many batches the rows come."""
        shown, weight = self.sessions.mask.any(1), self.sessions.weight
        total = shown.sum() if weight is None else np.asarray(weight, np.float64)[shown].sum()
        return float(total), -(-len(self) // batch_size)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """Yields batches of exactly `batch_size` rows, the last one padded with masked rows."""
        n = len(self.sessions)
        order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
        for start in range(0, n, batch_size):
            yield self.sessions[order[start : start + batch_size]].pad(rows=batch_size)
