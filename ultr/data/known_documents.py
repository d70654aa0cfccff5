"""The vocabulary that a model was trained with, and which of its documents other data has, by id or by name."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ultr.data.storage import COLLECTION_FORMAT, COUNTS_FORMAT, LOG_FORMAT, read_metadata
from ultr.data.vocabulary import Vocabulary, identity_of, other_ids, shared_documents
from ultr.errors import DataError


@dataclasses.dataclass(frozen=True)
class KnownVocabulary:
    """Names the vocabulary behind document ids without holding its names, which may be larger than a model.

    Attributes:
      identity: the vocabulary's `identity`, as JSON.
      path: the folder that has the names; "memory" for a vocabulary in memory, empty where it is not known.
      names: the vocabulary, where it is at hand; otherwise it is opened at `path` when names are needed.
    """

    identity: str
    path: str = dataclasses.field(compare=False)
    names: Vocabulary | None = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> KnownVocabulary:
        """Describes a vocabulary."""
        path = os.path.abspath(vocabulary.path) if vocabulary.path.is_dir() else str(vocabulary.path)
        return cls(json.dumps(vocabulary.identity, sort_keys=True), path, vocabulary)

    @classmethod
    def from_json(cls, value: Any) -> KnownVocabulary:
        """Reads what `to_json` wrote.

        Raises:
          ConfigError: something else.
        """
        identity = dict(identity_of(value["identity"]))
        return cls(json.dumps(identity, sort_keys=True), str(value["path"]))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for JSON, without the names."""
        return {"identity": json.loads(self.identity), "path": self.path}

    def at(self, vocabulary: Vocabulary) -> KnownVocabulary:
        """Returns the same vocabulary, whose names another folder has.

        Raises:
          DataError: the folder has other names.
        """
        if (wanted := json.loads(self.identity)["fingerprint"]) != vocabulary.fingerprint:
            raise DataError(
                f"expected the documents that the model was trained with ({wanted[:12]}), found others "
                f"({vocabulary.fingerprint[:12]})",
                fix="Give the log that the model was trained on, as it was then",
                file=vocabulary.path,
                field="vocabulary",
            )
        return dataclasses.replace(self, path=os.path.abspath(vocabulary.path), names=vocabulary)

    def without_names(self) -> KnownVocabulary:
        """Returns the same vocabulary, which is opened when names are needed, where a folder has them."""
        return dataclasses.replace(self, names=None) if os.path.isdir(self.path) else self

    @property
    def size(self) -> int:
        """The number of documents."""
        return int(json.loads(self.identity)["documents"])

    def shared(self, other: KnownVocabulary) -> int | None:
        """Counts the documents that have the same ids in both, from 1 on; None where the ids are unrelated."""
        return shared_documents(json.loads(self.identity), json.loads(other.identity))

    def open(self) -> Vocabulary | None:
        """Opens the vocabulary; None where it is not at its path any more."""
        if self.names is not None:
            return self.names
        try:
            found = open_vocabulary(self.path)
        except (DataError, OSError):
            return None
        return found if found.fingerprint == json.loads(self.identity)["fingerprint"] else None

    def ids_of(self, other: KnownVocabulary, *, name: str) -> np.ndarray:
        """Finds the id of each document of other data, [V + 1] int32, by the names of query and document; 0: unknown.

        Args:
          other: the vocabulary of the data, whose ids are unrelated to these.
          name: what to call the data in errors.

        Raises:
          DataError: the names are not at hand, or none of the documents has a name that is known.
        """
        theirs, own = other.open(), self.open()
        if own is not None and theirs is not None:
            ids = theirs.ids_in(own)
            if ids.any() and not (theirs.named_by_place and _have_other_features(theirs, own, ids)):
                return ids
            why = "No query and document of it has a name of the training data"
            if ids.any():
                why = "Its documents have no names, and others than those of the training data stand at their places"
        else:
            lost = f"The names of the training data are not in {self.path} any more"
            why = f"{lost if self.path else 'The model does not know where the training data is'}: say where "
            why += "(--vocabulary LOG; in Python load(..., vocabulary=))"
        identities = json.loads(other.identity), json.loads(self.identity)
        raise other_ids(*identities, name=name, file=Path(other.path), why=why)


def _have_other_features(one: Vocabulary, other: Vocabulary, ids: np.ndarray) -> bool:
    """Tells whether documents [V + 1] have other features than those with the given ids, or none to compare."""
    mine, theirs = one.features, other.features
    if mine is None or theirs is None or one.feature_names != other.feature_names:
        return True
    known = np.flatnonzero(ids)
    return not np.array_equal(mine[known], theirs[ids[known]])


def open_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Opens the vocabulary of a click log, a collection or counts on disk.

    Raises:
      DataError: none of these, or files that are missing or damaged.
    """
    return Vocabulary.open(Path(path), read_metadata(path, [LOG_FORMAT, COLLECTION_FORMAT, COUNTS_FORMAT]))
