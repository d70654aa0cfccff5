"""`Sessions`: a batch of ranked lists with what was shown, clicked and graded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ultr.arguments import LARGEST_ID, as_float32, check_grades, not_whole, not_whole_from, number_array
from ultr.errors import DataError

Array = jax.Array | np.ndarray
_PER_RANK = ("mask", "position", "clicks", "labels", "last_click")
_PER_LIST = ("query", "weight", "session")


class SharedFeature(flax.struct.PyTreeNode):
    """A feature [B, K, ...] of which many impressions have the same values: those of their document.

    A tower may compute once per row of `values`; `whole` gives the plain feature.

    Attributes:
      values: [U, ...], one row per document.
      index: [B, K] int32, the row of each impression.
    """

    values: Array
    index: Array

    def whole(self) -> Array:
        """Returns the feature of each impression, [B, K, ...]."""
        return self.values[self.index]

    def with_index(self, change: Callable[[Array], Array]) -> SharedFeature:
        """Applies a function to the index, such as one that picks or pads lists."""
        return SharedFeature(self.values, change(self.index))

    def distinct(self, rows: int = 0) -> SharedFeature:
        """Drops, on the host, the rows that no impression has, and pads `values` with zeros up to `rows` rows."""
        used, index = np.unique(np.asarray(self.index), return_inverse=True)
        values = np.zeros((max(rows, len(used)), *self.values.shape[1:]), self.values.dtype)
        np.take(self.values, used, axis=0, out=values[: len(used)])
        return SharedFeature(values, index.reshape(self.index.shape).astype(np.int32))


class Sessions(flax.struct.PyTreeNode):
    """B ranked lists of at most K documents, in the order in which they were shown.

    Attributes:
      mask: [B, K] bool; True on shown documents, a prefix of each row.
      position: [B, K] int32, 0-based displayed position (rank minus one).
      features: name -> [B, K, ...]; a tower says by name what it reads. Logs bring
        `document` (int32 id from 1; 0 is padding or a document unseen in training),
        `features` (float32 [B, K, F]) where there are any, and one entry per context column. Features of documents
        may come as a `SharedFeature`.
      clicks: [B, K] int8 or bool, or None.
      labels: [B, K] float32 grades (NaN: not judged), or None.
      query: [B] int32 query id, or None.
      weight: [B] float32, how many identical lists this row stands for (None: 1).
      session: [B] int32, the number of the session that the list belongs to, or None: a session each.
      last_click: [B, K] int32, the 1-based rank of the last click above each document, 0 for none; None: as the
        clicks of the row say. Given where a row is not a whole list (`ultr.collapse`).
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
    session: Array | None = None
    rank_axis: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the arrays over lists and ranks: (B, K), or (K, B) where ranks come first."""
        return self.mask.shape  # type: ignore[return-value]

    def __len__(self) -> int:
        return self.mask.shape[1 - self.rank_axis]

    def rank_first(self) -> Sessions:
        """Holds every [B, K, ...] array as [K, B, ...], with ranks as the first axis.

        The long axis of lists then lies contiguous, which is what a CPU computes fast on. Every method works in both
        layouts, along the lists and ranks that it speaks of.
        """
        return self if self.rank_axis == 0 else self._swapped()

    def list_first(self) -> Sessions:
        """Holds every array as [B, K, ...], with lists as the first axis, as batches come."""
        return self if self.rank_axis == 1 else self._swapped()

    def _swapped(self) -> Sessions:
        return self._map(lambda x: x.swapaxes(0, 1), lambda x: x).replace(rank_axis=1 - self.rank_axis)

    def _map(self, per_rank: Callable[[Array], Array], per_list: Callable[[Array], Array]) -> Sessions:
        """Applies one function to the arrays over lists and ranks, and another to those over lists alone."""
        fields: dict[str, Any] = {
            "features": {
                name: x.with_index(per_rank) if isinstance(x, SharedFeature) else per_rank(x)
                for name, x in self.features.items()
            }
        }
        for names, change in ((_PER_RANK, per_rank), (_PER_LIST, per_list)):
            for name in names:
                value = getattr(self, name)
                fields[name] = None if value is None else change(value)
        return self.replace(**fields)

    def __getitem__(self, rows: Any) -> Sessions:
        """Picks lists by a number, a slice, an index array or a boolean mask; the axis of lists stays.

        Raises:
          IndexError: the number of a list that there is not, which also ends a loop over the lists.
        """
        if isinstance(rows, int | np.integer):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"expected the number of a list from {-len(self)} to {len(self) - 1}, found {rows}")
            rows = slice(rows, rows + 1) if rows != -1 else slice(-1, None)
        return self._map((lambda x: x[rows]) if self.rank_axis else (lambda x: x[:, rows]), lambda x: x[rows])

    @classmethod
    def from_lists(
        cls,
        *,
        features: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
        clicks: Sequence[Sequence[int]] | np.ndarray | None = None,
        labels: Sequence[Sequence[float]] | np.ndarray | None = None,
        positions: Sequence[Sequence[int]] | np.ndarray | None = None,
        query: Sequence[int] | np.ndarray | None = None,
        weight: Sequence[float] | np.ndarray | None = None,
        session: Sequence[int] | np.ndarray | None = None,
    ) -> Sessions:
        """Pads ragged Python lists, one per session, into a batch.

        Args:
          features: name -> one list (or [k, ...] array) per session.
          clicks, labels, positions: one list per session; positions default to 0, 1, 2, ...
          query, weight, session: one number per list.

        Raises:
          DataError: lists of one session differ in length, hold something else than finite numbers, or nothing was
            given.
        """
        if features is not None and not isinstance(features, Mapping):
            raise DataError(f"expected features as name -> lists, found {type(features).__name__}", field="features")
        given = {"clicks": clicks, "labels": labels, "positions": positions}
        named = dict(features or {}) | {k: v for k, v in given.items() if v is not None}
        if not named:
            raise DataError("a batch needs at least one of features, clicks, labels, positions")
        ragged = {name: _rows_of_numbers(name, rows) for name, rows in named.items()}
        first, size = next(iter(ragged)), [len(row) for row in next(iter(ragged.values()))]
        for name, rows in ragged.items():
            if len(rows) != len(size):
                raise DataError(f"expected {len(size)} sessions as in '{first}', found {len(rows)}", field=name)
            for row, (values, m) in enumerate(zip(rows, size, strict=True)):
                if len(values) != m:
                    raise DataError(
                        f"expected {m} values as in '{first}', found {len(values)}", row=row + 1, field=name
                    )
        width = max(size, default=0) or 1
        steps = np.arange(width, dtype=np.int32)
        default = np.broadcast_to(steps, (len(size), width)).copy()
        grades = None if labels is None else _padded("labels", ragged["labels"], width, np.float32)
        if grades is not None:
            check_grades(np.where(np.isinf(grades), 0, grades), "labels")  # `validate` names what is not finite
        made = {name: _finite(_padded(name, ragged[name], width), name) for name in features or {}}
        return cls(
            mask=steps < np.asarray(size, np.int32)[:, None],
            position=default if positions is None else _padded("positions", ragged["positions"], width, np.int32),
            features=made,
            clicks=None if clicks is None else _padded("clicks", ragged["clicks"], width, np.int8),
            labels=grades,
            query=None if query is None else _per_session("query", query, len(size), np.int32),
            weight=None if weight is None else _per_session("weight", weight, len(size), np.float32),
            session=None if session is None else _per_session("session", session, len(size), np.int32),
        )

    def pad(self, *, rows: int | None = None, width: int | None = None) -> Sessions:
        """Adds masked lists up to `rows` and masked ranks up to `width`; never removes any."""
        lists, ranks = len(self), self.shape[self.rank_axis]
        more_lists, more_ranks = max((rows or lists) - lists, 0), max((width or ranks) - ranks, 0)

        def grow(x: Array, *more: int) -> Array:
            widths = [(0, n) for n in more] + [(0, 0)] * (x.ndim - len(more))
            return np.pad(x, widths) if isinstance(x, np.ndarray) else jnp.pad(x, widths)

        added = (more_lists, more_ranks) if self.rank_axis else (more_ranks, more_lists)
        return self._map(lambda x: grow(x, *added), lambda x: grow(x, more_lists))

    def row_weights(self) -> np.ndarray:
        """Returns the weight of each list on the host, [B] float64: 1 where the batch has no weights."""
        return np.ones(len(self)) if self.weight is None else np.asarray(self.weight, np.float64)

    def shown(self) -> np.ndarray:
        """Tells on the host which lists show a document, [B] bool; the others are padding."""
        found: np.ndarray = np.any(np.asarray(self.mask), axis=self.rank_axis)
        return found

    def unbiased(self) -> Sessions:
        """Leaves out clicks and positions, which a ranker must not see."""
        return self.replace(clicks=None, last_click=None, position=np.zeros(self.shape, np.int32))

    def validate(self, *, source: str = "sessions") -> Sessions:
        """Checks shapes and values on the host; returns self.

        Raises:
          DataError: names the field, the 1-based session and what was expected.
        """
        if self.rank_axis == 0:
            self.list_first().validate(source=source)
            return self
        mask = number_array(self.mask, "mask", file=source, objects=False)
        if mask.ndim != 2 or mask.dtype != bool:
            raise DataError(f"expected bool [B, K], found {mask.dtype} {mask.shape}", file=source, field="mask")
        gaps = (~mask[:, :-1] & mask[:, 1:]).any(1)
        self._reject(gaps, "mask", source, "expected the shown documents first and padding after them")
        per_rank: dict[str, Any] = {name: getattr(self, name) for name in _PER_RANK[1:]}
        per_rank |= {f"features[{name}]": x for name, x in self.features.items()}
        for name, value in per_rank.items():
            if value is None:
                if name not in ("clicks", "labels", "last_click"):
                    raise DataError("expected an array [B, K], found none", file=source, field=name)
                continue
            array = _checked_feature(value, mask, name, source)
            if array.shape[:2] != mask.shape or (array.ndim > 2 and not name.startswith("features[")):
                raise DataError(f"expected [B, K] = {mask.shape}, found {array.shape}", file=source, field=name)
            if name == "clicks":
                bad = (array != 0) & (array != 1)
                self._reject((bad & mask).any(1), name, source, "expected clicks of 0 or 1")
            elif name in ("position", "last_click"):
                what = "positions" if name == "position" else "ranks"
                least = f"expected {what} of at least 0"
                self._reject((not_whole(array) & mask).any(1), name, source, f"expected whole numbers as {what}")
                self._reject(((array < 0) & mask).any(1), name, source, least)
                beyond = not_whole_from(array, 0) & mask
                self._reject(beyond.any(1), name, source, f"{least} and up to {LARGEST_ID}")
                if array.dtype.kind not in "iu":
                    raise DataError(
                        f"expected an array of whole numbers (int32), found {array.dtype}",
                        fix="Convert it: .astype(np.int32)",
                        file=source,
                        field=name,
                    )
            elif name == "features[document]" and array.ndim == 2:
                bad = not_whole_from(array, 0)
                self._reject((bad & mask).any(1), name, source, f"expected ids: whole numbers from 0 to {LARGEST_ID}")
            elif array.dtype.kind not in "biu":
                held = as_float32(array)
                bad = np.isinf(held) if name == "labels" else ~np.isfinite(held)
                at = np.argwhere(bad & mask.reshape(*mask.shape, *(1,) * (bad.ndim - 2)))
                bad = bad.any(axis=tuple(range(2, bad.ndim)))
                place = _place_in_list(array, at[0]) if len(at) else ""
                self._reject((bad & mask).any(1), name, source, f"expected finite numbers{place}")
            if name == "labels":
                check_grades(np.where(mask, array, 0), name, file=source)
        for name in _PER_LIST:
            value = getattr(self, name)
            if value is None:
                continue
            array = number_array(value, name, file=source, objects=False)
            if array.shape != mask.shape[:1]:
                raise DataError(f"expected [B] = {mask.shape[:1]}, found {array.shape}", file=source, field=name)
            if name == "weight":
                bad = ~(np.isfinite(as_float32(array)) & (array >= 0))
                self._reject(bad, name, source, "expected finite weights of at least 0")
            else:
                bad = not_whole_from(array, 0)
                self._reject(bad, name, source, f"expected ids: whole numbers from 0 to {LARGEST_ID}")
        return self

    @staticmethod
    def _reject(bad: np.ndarray, field: str, source: str, expected: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad)
            raise DataError(f"{expected}; {len(rows)} sessions differ", file=source, row=int(rows[0]) + 1, field=field)


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """Returns features [B, K, ...] as they are.

    Raises:
      DataError: one is NaN or infinite; names the session, the document and the column.
    """
    if values.dtype.kind == "f" and len(at := np.argwhere(~np.isfinite(values))):
        place = _place_in_list(values, at[0])
        raise DataError(f"expected finite numbers{place}", row=int(at[0][0]) + 1, field=f"features[{name}]")
    return values


def _place_in_list(values: np.ndarray, at: np.ndarray) -> str:
    """Says what stands at an index [list, rank, ...] of values, for errors."""
    column = "".join(f", column {i}" for i in at[2:])
    found = values[tuple(at)]
    size = ", more than float32 holds," if np.isfinite(found) else ""
    return f", found {found}{size} at document {at[1] + 1}{column} of session {at[0] + 1}"


def concatenate(batches: Sequence[Sessions]) -> Sessions:
    """Puts batches one after another, padded to the widest; all must hold the same fields in the same layout.

    Raises:
      DataError: no batch, or batches with different fields or layouts.
    """
    if not batches:
        raise DataError("expected at least one batch to concatenate, found none")
    layouts = {b.rank_axis for b in batches}
    if len(layouts) > 1:
        raise DataError("expected batches of one layout, found some with lists first and some with ranks first")
    width = max(b.shape[b.rank_axis] for b in batches)
    plain = [b.replace(features={n: whole_feature(x) for n, x in b.features.items()}).pad(width=width) for b in batches]
    structures = {jax.tree.structure(b) for b in plain}
    if len(structures) > 1:
        raise DataError(f"expected batches with the same fields, found {len(structures)} different sets")
    lists = 1 - layouts.pop()
    joined: Sessions = jax.tree.map(
        lambda *xs: np.concatenate([np.asarray(x) for x in xs], min(lists, xs[0].ndim - 1)), *plain
    )
    return joined


def whole_feature(x: Any) -> Any:
    """Makes a `SharedFeature` a plain array; other features stay as they are."""
    return x.whole() if isinstance(x, SharedFeature) else x


def _checked_feature(value: Any, mask: np.ndarray, name: str, source: str) -> np.ndarray:
    """Makes one array of numbers of what a field has for the documents, with the rows of shared features picked."""
    if not isinstance(value, SharedFeature):
        return number_array(value, name, file=source, objects=False)
    rows = number_array(value.values, name, file=source, objects=False)
    index = number_array(value.index, name, file=source, objects=False)
    if index.shape != mask.shape or rows.ndim < 1:
        raise DataError(f"expected an index [B, K] = {mask.shape}, found {index.shape}", file=source, field=name)
    bad = not_whole(index) | (index < 0) | (index >= len(rows))
    Sessions._reject((bad & mask).any(1), name, source, f"expected an index of the {len(rows):,} rows of values")
    found: np.ndarray = rows[np.where(mask, index, 0).astype(np.int64)] if len(rows) else np.zeros(mask.shape)
    return found


def _rows_of_numbers(name: str, given: Any) -> list[np.ndarray]:
    """Makes one array of numbers per session of what is given for a field."""
    scalar = isinstance(given, np.ndarray | jax.Array) and given.ndim == 0
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable) or scalar:
        raise DataError(f"expected one list per session, found {type(given).__name__}", field=name)
    rows = []
    for row, values in enumerate(given, 1):
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise DataError(f"expected a list of numbers, found {values!r:.60}", row=row, field=name)
        rows.append(number_array(values if hasattr(values, "__len__") else list(values), name, row=row))
    return rows


def _padded(name: str, rows: list[np.ndarray], width: int, dtype: Any = None) -> np.ndarray:
    """Pads one array per session to [B, width, ...]; values keep their kind, and `dtype` where it is given."""
    filled = [a for a in rows if a.size]
    tail = filled[0].shape[1:] if filled and dtype is None else ()
    for row, a in enumerate(rows, 1):
        if a.size and a.shape[1:] != tail:
            shape = f"numbers of shape [k, {', '.join(map(str, tail))}]" if tail else "one number per document"
            raise DataError(f"expected {shape}, found {a.dtype} of shape {a.shape}", row=row, field=name)
    whole = np.result_type(*filled) if filled else np.dtype(np.float32)
    out = np.zeros((len(rows), width, *tail), whole)
    for i, a in enumerate(rows):
        if a.size:
            out[i, : len(a)] = a
    return _cast(name, out, dtype or {"f": np.float32, "i": np.int32, "u": np.int32}.get(whole.kind, whole))


def _cast(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts values; whole numbers must stay what they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if np.dtype(dtype).kind in "bui":
        lost = (cast != values).any(axis=tuple(range(1, values.ndim)))
        Sessions._reject(lost, name, "sessions", f"expected whole numbers that fit {np.dtype(dtype)}")
    return cast


def _per_session(name: str, given: Any, sessions: int, dtype: Any) -> np.ndarray:
    """Makes an array [B] of one number per session."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"expected one number per session, found {type(given).__name__}", field=name)
    array = number_array(given if hasattr(given, "__len__") else list(given), name)
    if array.shape != (sessions,):
        raise DataError(f"expected one number for each of {sessions:,} sessions, found {array.shape}", field=name)
    return _cast(name, array, dtype)
