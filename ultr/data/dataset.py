"""`Dataset`: what streams batches of sessions and describes itself; `as_dataset` makes one of what a caller gives."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sized
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from ultr import stopping
from ultr.arguments import check_count
from ultr.data.document_set import DocumentSet
from ultr.data.input_schema import DOCUMENT, InputMatch, InputSchema
from ultr.errors import ConfigError
from ultr.sessions import Sessions, whole_feature

if TYPE_CHECKING:
    from ultr.data.vocabulary import Vocabulary

SufficientStatistics = Literal["rank", "last-click", "query", "list"]
STREAMED = 1 << 13  # rows per batch of a pass that only adds up


@dataclasses.dataclass(frozen=True)
class Description:
    """Describes a dataset, so that nobody has to find this out by streaming.

    Attributes:
      rows: number of rows that show a document; a row is a session, or a counted cell.
      weight: total weight of the rows; None where rows have no weights, and each stands for itself.
      rows_per_session: weight of the rows that stand for one session; more than 1 for counts.
      sufficient_statistics: what the rows tell: "list" (whole lists), counts by "rank" or "last-click", or
        displays and clicks per "query".
      documents: the largest document id that batches hold, checked; None: not known.
      ranks: the largest 1-based rank that batches hold, checked; None: not known.
      vocabulary: the queries and documents behind the ids, or None.
      identity: which rows these are, as a JSON value that a run records; None: not known.
    """

    rows: int
    weight: float | None = None
    rows_per_session: float = 1.0
    sufficient_statistics: SufficientStatistics = "list"
    documents: int | None = None
    ranks: int | None = None
    vocabulary: Vocabulary | None = None
    identity: Mapping[str, Any] | None = None

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        return self.weight is not None

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the rows; their number where they have none."""
        return float(self.rows) if self.weight is None else self.weight


class Coverage(NamedTuple):
    """The distinct queries and documents that a dataset shows: what a ranker can learn of, however many sessions.

    Attributes:
      queries, documents: how many there are.
      shown: which documents these are.
      queries_shown: which queries of the vocabulary, [Q] bool; None: there is no vocabulary.
    """

    queries: int
    documents: int
    shown: DocumentSet
    queries_shown: np.ndarray | None = None

    @classmethod
    def of(cls, queries: int | np.ndarray, document: np.ndarray) -> Coverage:
        """Makes it of the ids of documents as often as they come; 0, an unknown one, counts as a document.

        Args:
          queries: how many, or which of the vocabulary, [Q] bool.
          document: ids.
        """
        inside = np.zeros(int(document.max(initial=0)) + 1, bool)
        inside[document] = True
        which = None if isinstance(queries, int) else queries
        count = queries if which is None else int(which.sum())
        return cls(int(count), int(inside.sum()), DocumentSet.of(inside), which)


class Dataset(abc.ABC):
    """Streams batches of sessions, and describes itself; abstract.

    A class of your own needs `batches` alone: what it does not say in `description` is found by one pass.
    """

    @abc.abstractmethod
    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Yields host batches of a few fixed shapes, padded with masked rows, each row once.

        Args:
          batch_size: rows per batch.
          seed: None gives the stored order; a number shuffles, the same number in the same way.
          share_features: features of documents may come as `SharedFeature`; a dataset may ignore this.
        """

    @cached_property
    def description(self) -> Description:
        """The description of the dataset; found here by streaming once."""
        rows, weight, weighted = 0, 0.0, False
        for batch in self.batches(STREAMED, share_features=True):
            shown = batch.shown()
            rows += int(shown.sum())
            weighted = weighted or batch.weight is not None
            weight += float(batch.row_weights()[shown].sum())
        return Description(rows, weight if weighted else None)

    @property
    def input_schema(self) -> InputSchema | None:
        """Names of the features, contexts and documents that batches bring; None: not known."""
        return None

    def __len__(self) -> int:
        """Returns the number of rows; it may count padding, which shows no document."""
        return self.description.rows

    def count_batches(self, batch_size: int) -> int:
        """Counts the batches of a shuffled pass."""
        return sum(1 for _ in self.batches(batch_size, seed=0, share_features=True))

    def content_identity(self) -> Mapping[str, Any] | None:
        """Returns which rows these are, as a JSON value; of rows in memory a digest of them; None: not known."""
        return self.description.identity

    def coverage(self) -> Coverage | None:
        """Finds the distinct queries and documents that the rows show; None: not known."""
        return None

    def with_sessions(self) -> Dataset:
        """Returns the same rows, whose batches say to which session each list belongs, where that is known."""
        return self

    def cached(self, memory: int) -> Dataset:
        """Returns the same rows, of which up to `memory` bytes stay decoded in memory for later passes."""
        return self


class InMemory(Dataset):
    """A dataset over one batch of sessions that is already in memory.

    Args:
      sessions: checked by `Sessions.validate`.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions: Sessions = jax.tree.map(np.asarray, sessions.list_first().validate())

    def __len__(self) -> int:
        return len(self.sessions)

    @cached_property
    def description(self) -> Description:
        """Counts rows and weights, without those of padding."""
        shown = self.sessions.shown()
        weight = None if self.sessions.weight is None else float(self.sessions.row_weights()[shown].sum())
        return Description(int(shown.sum()), weight)

    def content_identity(self) -> Mapping[str, Any]:
        """Computes a digest of the arrays, unless the description has an identity."""
        if self.description.identity is not None:
            return self.description.identity
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.sessions):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
            digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
        return {"fingerprint": digest.hexdigest()}

    def coverage(self) -> Coverage | None:
        query, document = self.sessions.query, self.sessions.features.get("document")
        if query is None or document is None:
            return None
        shown, mask = self.sessions.shown(), np.asarray(self.sessions.mask)
        return Coverage.of(len(np.unique(query[shown])), np.asarray(whole_feature(document))[mask].astype(np.int64))

    def count_batches(self, batch_size: int) -> int:
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Yields batches of exactly `batch_size` rows, the last one padded with masked rows."""
        check_count("batch_size", batch_size)
        n = len(self.sessions)
        order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
        for start in range(0, n, batch_size):
            stopping.check()
            yield self.sessions[order[start : start + batch_size]].pad(rows=batch_size)


@runtime_checkable
class BatchSource(Protocol):
    """Anything with `batches(batch_size, seed=...)`: what `as_dataset` makes a dataset of."""

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Sessions]:
        """Yields host batches, in an order that the seed decides."""
        ...


class _FromSource(Dataset):
    """A dataset over an object of another class that has `batches(batch_size, seed=...)`."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source) if isinstance(self._source, Sized) else super().__len__()

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Yields the batches of the object."""
        return self._source.batches(batch_size, seed=seed)


class Matched(Dataset):
    """A dataset whose batches have the features and categories of a model, found by their names.

    Args:
      data: the dataset.
      match: how its batches become those of the model.
    """

    def __init__(self, data: Dataset, match: InputMatch) -> None:
        self._data, self._match = data, match

    def __len__(self) -> int:
        return len(self._data)

    @cached_property
    def description(self) -> Description:
        """The description of the dataset, but for the largest id of a document where these are those of the model."""
        about = self._data.description
        return about if self._match.documents is None else dataclasses.replace(about, documents=None)

    @property
    def input_schema(self) -> InputSchema:
        """The names that the model knows."""
        return self._match.schema

    def batches(self, batch_size: int, *, seed: int | None = None, share_features: bool = False) -> Iterator[Sessions]:
        """Streams the batches of the dataset with the features of the model."""
        return map(self._match.apply, self._data.batches(batch_size, seed=seed, share_features=share_features))

    def count_batches(self, batch_size: int) -> int:
        return self._data.count_batches(batch_size)

    def coverage(self) -> Coverage | None:
        """Finds the same queries and documents, these by the ids of the model."""
        found, codes = self._data.coverage(), self._match.codes.get(DOCUMENT)
        if found is None or codes is None:
            return found
        return found._replace(shown=Coverage.of(found.queries, codes[np.flatnonzero(found.shown.inside())]).shown)

    def cached(self, memory: int) -> Dataset:
        return Matched(self._data.cached(memory), self._match)


DatasetLike = Dataset | BatchSource | Sessions


def as_dataset(given: DatasetLike) -> Dataset:
    """Makes a dataset of sessions in memory or of an object that streams batches; a dataset stays as it is.

    Raises:
      ConfigError: something else.
    """
    if isinstance(given, Dataset):
        return given
    if isinstance(given, Sessions):
        return InMemory(given)
    if isinstance(given, BatchSource):
        return _FromSource(given)
    raise ConfigError(
        f"expected a dataset (a ClickLog, Counts, a Collection), Sessions, or an object with batches(batch_size, "
        f"seed=...), found {type(given).__name__}"
    )
