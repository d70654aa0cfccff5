"""`ClickLog`: open a prepared click log, look at a part of it, stream it as batches."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ultr.background import run_ahead
from ultr.data.batching import WORKERS, PaddedRows, concatenate_rows, rebatch, used_widths
from ultr.data.collection import Collection
from ultr.data.columns import CONTEXT, FEATURE, RaggedRows, check_rows, unpack_columns
from ultr.data.dataset import Coverage, Dataset, Description
from ultr.data.input_schema import InputSchema
from ultr.data.row_groups import (
    RowGroup,
    RowGroupCache,
    WholeLists,
    open_row_groups,
    session_columns,
    whole_lists,
    without_unseen,
)
from ultr.data.splits import (
    OUTSIDE,
    assign_by_time,
    assign_split,
    check_fractions,
    chosen_queries,
    first_rows,
    session_keys,
)
from ultr.data.storage import (
    CONSECUTIVE,
    LOG_FORMAT,
    content_fingerprint,
    missing_split,
    read_metadata,
    read_row_groups,
)
from ultr.data.vocabulary import Vocabulary, known_documents
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions, SharedFeature

POOL_SESSIONS = 125_000  # how many sessions are shuffled among each other,
POOL_VALUES = 1 << 26  # unless they hold more numbers than this


class ClickLog(Dataset):
    """A click log on disk, or the part of one that a split names.

    Attributes:
      path: the folder.
      metadata: metadata.json, of the whole log.
      sessions: how many ranked lists this view holds.
      ranks: the largest 1-based rank of the whole log.
      documents: how many documents it knows; ids run from 1 to this, 0 is padding or unseen. With
        `vocabulary=` those that the other vocabulary knows too.
      queries: how many queries it knows; ids run from 0.
      vocabulary: names, grades and document features behind the ids, read when first asked for.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, Any],
        vocabulary: Vocabulary,
        groups: list[RowGroup],
        *,
        pool_sessions: int = POOL_SESSIONS,
    ) -> None:
        self.path, self.metadata, self.vocabulary = path, metadata, vocabulary
        self.sessions: int = metadata["sessions"]
        self.ranks: int = metadata["ranks"]
        self.queries: int = metadata["queries"]
        self._documents: int = metadata["documents"]
        self._groups = groups
        self._layout = session_columns(path, metadata, groups)
        self._consecutive = all(record.get("ranks") == CONSECUTIVE for record in metadata["files"])
        self._codes: np.ndarray | None = None  # [sessions of the log] uint8; this view has those of self._code
        self._code = self._salt = 0
        self._lineage: str | None = None
        self._cache: RowGroupCache | None = None
        self._sessions: np.ndarray | None = None  # [sessions of the log] int32, where batches have them
        self._pool_sessions = pool_sessions

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        vocabulary: Any = None,
        pool_sessions: int = POOL_SESSIONS,
    ) -> ClickLog:
        """Opens a click log after checking that its files are there and whole.

        Args:
          path: the folder.
          split: the name of one of the splits that it was prepared with; None for all sessions.
          vocabulary: the ClickLog or Collection that a model was trained on (or the identity of its
            vocabulary): documents that it does not know are streamed as id 0.
          pool_sessions: about how many sessions a shuffled pass permutes among each other.

        Raises:
          DataError: not a click log of this schema; a file is missing, truncated or damaged; columns or types
            differ; no such split, or an empty one; or the log was prepared with other ids than `vocabulary`.
        """
        folder = Path(path)
        metadata = read_metadata(folder, [LOG_FORMAT])
        groups = open_row_groups(folder, metadata)
        log = cls(folder, metadata, Vocabulary.open(folder, metadata), groups, pool_sessions=pool_sessions)
        if vocabulary is not None:
            log = log.with_documents(known_documents(log.vocabulary, vocabulary, file=folder))
        return log if split is None else log._named(split)

    def __len__(self) -> int:
        return self.sessions

    @property
    def documents(self) -> int:
        """The largest document id that batches hold; ids run from 1 to this, and 0 is padding or unseen."""
        return self._documents

    @cached_property
    def description(self) -> Description:
        """The description in the metadata; the weight of all sessions is read where they have weights."""
        weight = None
        if self.weighted:
            weight = 0.0
            for rows in self.columns(["weight"]):
                weight += float(rows["weight"].to_numpy().sum(dtype=np.float64))
        return Description(
            rows=self.sessions,
            weight=weight,
            documents=self.documents,
            ranks=self.ranks,
            vocabulary=self.vocabulary,
            identity=self.identity,
        )

    @property
    def input_schema(self) -> InputSchema:
        """Names of the features of documents and impressions, the context columns, and the documents."""
        layout = self._layout
        names = self.vocabulary.feature_names
        return InputSchema.of(names, layout.impression_features, layout.context, vocabulary=self.vocabulary)

    @property
    def identity(self) -> dict[str, Any]:
        """Which sessions these are, as a JSON value that a run can record.

        `fingerprint` is that of the content of the whole log's files, as the metadata records it; `split` is None for
        the whole log, else the name of the split, or the rule by which `split` drew the view. Logs and views with the
        same identity have the same sessions.
        """
        return {"fingerprint": content_fingerprint(self.metadata), "split": self._lineage}

    @property
    def weighted(self) -> bool:
        """Whether sessions have weights."""
        return "weight" in self._layout.optional

    @property
    def weights_are_copies(self) -> bool:
        """Whether a session of weight w stands for w equal sessions that happened, as `collapse` writes them.

        Other weights, such as those of a sample, do not tell how much chance there is in their sums.
        """
        collapsed = self.metadata.get("report", {}).get("collapsed")
        return not self.weighted or (collapsed is not None and bool(collapsed.get("copies", True)))

    def __repr__(self) -> str:
        return f"ClickLog({str(self.path)!r}: {self.sessions:,} sessions, {self.documents:,} documents)"

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Streams every session of the view once, as numpy batches of a few fixed shapes.

        Shapes are [batch_size, width]: lists are put together by length, widths being powers of two up to the
        longest list. The last batch of a width is filled up with masked rows. Batches hold `document` and,
        where the log has them, `features` (document features, then impression features), every context
        column ([B, K], the session's value at each document), clicks, query, weight and labels (NaN: not
        judged). Arrays may be read-only; batches of whole lists share one mask, and one position where ranks are
        1, 2, ... everywhere. Two threads read ahead, a pool of sessions at most.

        Args:
          batch_size: rows per batch.
          seed: None streams in stored order (per width); a number shuffles: row groups are drawn in random
            order and pools of about 125,000 sessions (`pool_sessions`) permuted. The same seed gives the same order.
          share_features: where `features` are those of documents alone, give them as a `SharedFeature`: the whole
            table with the ids.

        Raises:
          DataError: a file is damaged or a value out of range; names the file and row.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        whole = functools.cache(whole_lists)
        for width, rows in rebatch(self._pools(rng), batch_size, rng=rng):
            batch = self._batch(rows, width, whole, share_features)
            yield batch if len(batch) == batch_size else batch.pad(rows=batch_size)

    def count_batches(self, batch_size: int) -> int:
        """Counts the batches of a shuffled pass from the lengths of the lists."""
        widths = used_widths(np.array([int(n) for n in self.metadata["lengths"]]))
        sessions = np.zeros(len(widths), np.int64)
        for rows in self.columns(["documents"]):
            lengths = np.diff(rows["documents"].offsets.to_numpy())
            sessions += np.bincount(np.searchsorted(widths, lengths), minlength=len(widths))
        return int((-(-sessions // batch_size)).sum())

    def coverage(self) -> Coverage:
        queries, documents = np.zeros(self.queries, bool), np.zeros(self.documents + 1, bool)
        for batch in self.columns(["query", "documents"]):
            queries[batch["query"].to_numpy()] = True
            documents[batch["documents"].flatten().to_numpy()] = True
        return Coverage.of(queries, np.flatnonzero(documents[1:]) + 1)

    def cached(self, memory: int) -> ClickLog:
        """Returns the same view, whose passes leave up to `memory` bytes of decoded row groups for later ones."""
        view = copy.copy(self)
        view._cache = RowGroupCache(memory)
        return view

    @property
    def cached_bytes(self) -> int:
        """How many bytes of decoded row groups the passes of `cached` have left in memory so far."""
        return 0 if self._cache is None else self._cache.used

    def with_sessions(self) -> ClickLog:
        """Returns the same view; where a session has several lists, its batches say to which session each belongs."""
        first = self._first_of_session()
        if (first == np.arange(len(first))).all():
            return self
        view = copy.copy(self)
        view._cache = None
        view._sessions = np.zeros(self.metadata["sessions"], np.int32)
        view._sessions[self._inside()] = first
        return view

    def with_documents(self, known: int) -> ClickLog:
        """Returns the same view, which streams documents with ids beyond `known` as id 0."""
        view = copy.copy(self)
        view.__dict__.pop("description", None)
        view._documents = known
        return view

    def split(
        self,
        fractions: Mapping[str, float],
        *,
        by: Literal["session", "query", "time", "list"] = "session",
        seed: int = 0,
    ) -> dict[str, ClickLog]:
        """Splits the log into disjoint views that together hold every session of this one; nothing is written.

        Args:
          fractions: name -> share, adding up to 1.
          by: "session" assigns all lists of a session together, "query" all of a query, "list" each on its own, by a
            hash; "time" gives the earliest lists to the first name, and lists of one time to one name.
          seed: decides on the assignment by hash.

        Raises:
          ConfigError: unusable fractions or an unknown `by`.
          DataError: by time, and the log has no time column.
        """
        check_fractions(fractions)
        inside = self._inside()
        if by == "time":
            chosen = assign_by_time(self._read("time"), fractions)
        elif by in ("session", "query", "list"):
            # A session goes by the row of its first list, which is the list itself where no session has two.
            rows = inside[self._first_of_session()] if by == "session" else inside
            chosen = assign_split(self._read("query") if by == "query" else rows, fractions, seed, salt=self._salt)
        else:
            raise ConfigError(f"expected by='session', 'query', 'time' or 'list', found {by!r}")
        codes = np.full(self.metadata["sessions"], OUTSIDE, np.uint8)
        codes[inside] = chosen
        counts = np.bincount(chosen, minlength=len(fractions))
        drawn = json.dumps({name: float(share) for name, share in fractions.items()})
        rule = f"by {by} {drawn}" + ("" if by == "time" else f" seed {seed}")
        return {
            name: self._view(codes, code, int(counts[code]), f"{self._salt}/{by}/{seed}/{name}", f"{rule}: {name}")
            for code, name in enumerate(fractions)
        }

    def select_queries(self, chosen: np.ndarray) -> ClickLog:
        """Takes the view's sessions of the queries for which `chosen` [Q] bool is true; nothing is written.

        Raises:
          ConfigError: not one truth value per query of the vocabulary.
        """
        chosen, name = chosen_queries(chosen, self.vocabulary.queries)
        codes = np.full(self.metadata["sessions"], OUTSIDE, np.uint8)
        codes[self._inside()[chosen[self._read("query")]]] = 0
        return self._view(codes, 0, int((codes == 0).sum()), f"{self._salt}/{name}", name)

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Streams the view's rows in stored order, one record batch per row group, checked like `batches`.

        Args:
          names: one or more columns of the session files. Document ids beyond `documents` become 0, as in
            `batches`.

        Raises:
          DataError: no such column, a damaged file, or a value out of range.
        """
        for group in self._groups:
            keep = self._keep(group)
            if keep is not None and not keep.any():
                continue
            table = self._table(group, names)
            self._block(group, table)
            batch = table.combine_chunks().to_batches()[0]
            if self.documents < self._layout.documents and "documents" in names:
                batch = without_unseen(batch, self.documents)
            yield batch if keep is None else batch.filter(pa.array(keep))

    def collection(self) -> Collection | None:
        """Collects the judged documents of this log's vocabulary, one list per query; None without grades.

        A log that extends another vocabulary gives the queries that the whole log shows.
        """
        own = None
        if self.vocabulary.parent is not None and self.vocabulary.has_labels:
            own = np.zeros(self.queries, bool)
            for group in self._groups:
                table = self._table(group, ["query"])
                self._block(group, table)
                own[table["query"].to_numpy()] = True
        return Collection.from_vocabulary(self.vocabulary, own=own, known=self.documents)

    def _named(self, split: str) -> ClickLog:
        known = self.metadata["splits"]
        if not known.get(split):
            raise missing_split(split, known, self.path, f"{self.sessions:,} sessions")
        codes = np.full(self.sessions, OUTSIDE, np.uint8)
        for group in self._groups:
            column = self._table(group, ["split"])["split"]
            codes[group.row : group.row + group.rows][column.to_numpy(zero_copy_only=False) == split] = 0
        return self._view(codes, 0, int((codes == 0).sum()), f"{self._salt}/{split}", split)

    def _view(self, codes: np.ndarray, code: int, sessions: int, salt: str, name: str) -> ClickLog:
        view = copy.copy(self)
        view.__dict__.pop("description", None)
        view.sessions = sessions
        view._codes, view._code, view._salt = codes, code, zlib.crc32(salt.encode())
        view._cache = view._sessions = None
        view._lineage = name if self._lineage is None else f"{self._lineage} / {name}"
        return view

    def _inside(self) -> np.ndarray:
        return np.arange(self.sessions) if self._codes is None else np.flatnonzero(self._codes == self._code)

    def _keep(self, group: RowGroup) -> np.ndarray | None:
        if self._codes is None:
            return None
        kept: np.ndarray = self._codes[group.row : group.row + group.rows] == self._code
        return kept

    def _first_of_session(self) -> np.ndarray:
        """Finds for each list of the view the index of the first one of its session."""
        keys = [session_keys(batch["session"]) for batch in self.columns(["session"])]
        return first_rows(np.concatenate(keys) if keys else np.zeros(0, np.int64))

    def _read(self, name: str) -> np.ndarray:
        if name not in self._layout.types:
            raise DataError(
                f"expected a column '{name}', found {list(self._layout.types)}",
                fix=f"Prepare the log with it (--{name} COLUMN), or split by session or query.",
                file=self.path,
                field=name,
            )
        parts = [batch[name].to_numpy(zero_copy_only=False) for batch in self.columns([name])]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _table(self, group: RowGroup, names: Sequence[str], *, threads: bool = True) -> pa.Table:
        if not names or not set(names) <= set(self._layout.types):
            raise DataError(
                f"expected some of the columns {list(self._layout.types)}, found {list(names)}",
                file=self.path,
            )
        return read_row_groups(group.file, [group.index], names, footer=group.footer, threads=threads)

    def _block(self, group: RowGroup, table: pa.Table) -> RaggedRows:
        numeric = {name: table[name] for name in table.column_names if name not in ("session", "split")}
        block = unpack_columns(numeric, file=group.file, start=group.file_row)
        check_rows(block, self._layout, file=group.file, start=group.file_row)
        return block

    def _pools(self, rng: np.random.Generator | None) -> Iterator[tuple[int, PaddedRows]]:
        """Yields (width, rows) of whole pools: row groups in stored order, or unions of several in random order."""
        kept = [g.rows if (keep := self._keep(g)) is None else int(keep.sum()) for g in self._groups]
        used = [g for g, n in zip(self._groups, kept, strict=True) if n]
        pools = [[g] for g in used]
        if rng is not None:
            sizes = [n for n in kept if n]
            values = self._layout.values_per_session(self.metadata["impressions"] / self.metadata["sessions"])
            limit = min(self._pool_sessions, POOL_VALUES / values)
            pools, held = [], limit
            for i in rng.permutation(len(used)):
                if held >= limit:
                    pools.append([])
                    held = 0
                pools[-1].append(used[i])
                held += sizes[i]
        widths = used_widths(np.array([int(n) for n in self.metadata["lengths"]]))
        # So that the next pool is in memory when one ends, or two row groups where they are used one by one.
        loaded = run_ahead(
            (functools.partial(self._load, group, widths) for pool in pools for group in pool),
            depth=max([WORKERS, *map(len, pools)]),
            workers=WORKERS,
        )
        for pool in pools:
            found: dict[int, list[PaddedRows]] = {}
            for parts in itertools.islice(loaded, len(pool)):
                for width, rows in parts:
                    found.setdefault(width, []).append(rows)
            for width in sorted(found):
                yield width, concatenate_rows(found.pop(width))

    def _load(self, group: RowGroup, widths: np.ndarray) -> list[tuple[int, PaddedRows]]:
        """Loads the view's rows of one row group, by width."""
        if self._cache is not None and (cached := self._cache.parts.get(group.row)) is not None:
            return cached
        names = self._layout.streamed(ranks=not self._consecutive)
        block = self._block(group, self._table(group, names, threads=False))
        if self._sessions is not None:
            block.scalars["session"] = self._sessions[group.row : group.row + group.rows]
        keep = self._keep(group)
        lengths = block.lengths
        if lengths.max(initial=0) > widths[-1]:
            raise DataError(
                f"expected lists of at most {widths[-1]} documents, as the metadata says",
                file=group.file,
                row=group.file_row + int((lengths > widths[-1]).argmax()) + 1,
                field="documents",
            )
        bucket = np.searchsorted(widths, np.arange(lengths.max(initial=0) + 1)).take(lengths)
        out = []
        for number, width in enumerate(widths.tolist()):
            inside = bucket == number if keep is None else (bucket == number) & keep
            rows = None if inside.all() else np.flatnonzero(inside)
            if rows is None or len(rows):
                out.append((width, block.padded(rows, width)))
        if self._cache is not None:
            self._cache.add(group.row, out)
        return out

    def _batch(
        self,
        rows: PaddedRows,
        width: int,
        whole: WholeLists,
        share_features: bool,
    ) -> Sessions:
        lengths = rows["length"]
        mask, position = whole(len(lengths), width)
        if (lengths != width).any():
            mask = position < lengths[:, None]
            position = np.where(mask, position, np.int32(0))
        if (ranks := rows.get("ranks")) is not None:
            position = np.maximum(ranks - 1, 0)
        ids = rows["documents"]
        known = ids if self.documents == self._layout.documents else np.where(ids > self.documents, 0, ids)
        features: dict[str, Any] = {"document": known}
        parts: list[Any] = []
        if (table := self.vocabulary.features) is not None:
            alone = share_features and not self._layout.impression_features
            parts.append(SharedFeature(table, ids) if alone else table[ids])
        if self._layout.impression_features:
            names = self._layout.impression_features
            parts.append(np.stack([rows[FEATURE + name] for name in names], -1))
        if parts:
            features["features"] = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        for name in self._layout.context:
            value = rows[CONTEXT + name][:, None]
            features[name] = np.where(mask, value, np.zeros_like(value))
        grades = self.vocabulary.labels
        return Sessions(
            mask=mask,
            position=position,
            features=features,
            clicks=rows["clicks"],
            labels=None if grades is None else np.where(mask, grades[ids], np.float32(0)),
            query=rows["query"],
            weight=rows.get("weight"),
            session=rows.get("session"),
        )
