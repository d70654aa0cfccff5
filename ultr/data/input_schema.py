"""`InputSchema`: names of features, categories and documents, by which data is matched to a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ultr.data.known_documents import KnownVocabulary
from ultr.data.vocabulary import Vocabulary
from ultr.errors import ConfigError, DataError
from ultr.sessions import Sessions, SharedFeature

FEATURES, DOCUMENT = "features", "document"  # fields of a batch: the numbers and the id of each impression


@dataclasses.dataclass(frozen=True)
class InputSchema:
    """Names what batches bring, or what a model reads: features, contexts and documents.

    Attributes:
      features: names of the columns of the field `features`, in their order: features of documents, then of
        impressions.
      context: (name, categories) of each context column; code i stands for category i - 1 and 0 for an unknown one. The
        categories of a column of numbers are None.
      documents: the vocabulary behind the document ids; None: not known, or not read.
    """

    features: tuple[str, ...] = ()
    context: tuple[tuple[str, tuple[str, ...] | None], ...] = ()
    documents: KnownVocabulary | None = None

    @classmethod
    def of(
        cls,
        documents: Sequence[str] = (),
        impressions: Sequence[str] = (),
        context: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        vocabulary: Vocabulary | None = None,
    ) -> InputSchema:
        """Makes the schema of a dataset.

        Args:
          documents: names of the features of documents.
          impressions: names of the features of impressions; "impression.<name>" where a document feature has the name.
          context: name -> {"kind": "category", "values": [...]} or {"kind": "number"}.
          vocabulary: the documents behind the ids.
        """
        own = [f"impression.{name}" if name in documents else name for name in impressions]
        columns = tuple(
            (name, tuple(str(v) for v in about["values"]) if about["kind"] == "category" else None)
            for name, about in (context or {}).items()
        )
        return cls((*documents, *own), columns, None if vocabulary is None else KnownVocabulary.of(vocabulary))

    @classmethod
    def from_json(cls, value: Any) -> InputSchema:
        """Reads what `to_json` wrote.

        Raises:
          ConfigError: something else.
        """
        try:
            context = tuple((str(n), None if v is None else tuple(map(str, v))) for n, v in value["context"])
            documents = None if value["documents"] is None else KnownVocabulary.from_json(value["documents"])
            return cls(tuple(map(str, value[FEATURES])), context, documents)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"expected the names of features and contexts, found {str(value)[:80]}") from error

    def to_json(self) -> dict[str, Any]:
        """Returns the schema as plain values for JSON."""
        return {
            FEATURES: list(self.features),
            "context": [[name, None if values is None else list(values)] for name, values in self.context],
            "documents": None if self.documents is None else self.documents.to_json(),
        }

    @property
    def positional(self) -> bool:
        """Whether the columns have no names but their numbers 0, 1, ..., as arrays without names give."""
        return self.features == tuple(str(i) for i in range(len(self.features)))

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of a batch that the schema describes."""
        there = [FEATURES] * bool(self.features) + [DOCUMENT] * (self.documents is not None)
        return frozenset([*there, *(name for name, _ in self.context)])

    def only(self, fields: Collection[str] | None) -> InputSchema:
        """Returns the part about these fields of a batch; None: all of it."""
        if fields is None:
            return self
        context = tuple(column for column in self.context if column[0] in fields)
        features = self.features if FEATURES in fields else ()
        return InputSchema(features, context, self.documents if DOCUMENT in fields else None)

    def joined(self, other: InputSchema) -> InputSchema:
        """Adds the fields that another schema describes alone.

        Raises:
          ConfigError: both describe a field, and differently.
        """
        if self.features and other.features and self.features != other.features:
            raise ConfigError(
                f"parts of the model were trained on different features: {_short(self.features)} and "
                f"{_short(other.features)}. Train them on data with the same features in the same order"
            )
        mine, theirs = dict(self.context), dict(other.context)
        for name in mine.keys() & theirs.keys():
            if mine[name] != theirs[name]:
                raise ConfigError(f"parts of the model were trained on different categories of the context '{name}'")
        documents = self.documents or other.documents
        if self.documents is not None and other.documents is not None:
            if (shared := self.documents.shared(other.documents)) is None:
                raise ConfigError("parts of the model were trained with unrelated document ids")
            documents = other.documents if self.documents.size == shared else self.documents  # that with more of them
        return InputSchema(self.features or other.features, tuple((mine | theirs).items()), documents)

    def match(
        self, own: InputSchema, *, required: Collection[str] | None, name: str, file: str | os.PathLike[str] | None
    ) -> InputMatch | None:
        """Finds how the batches of data become those of this schema; None where they are so already.

        Features are found by name: their order does not matter, and further ones are left out. Categories are found by
        their values; those that this schema does not have become code 0, unknown. Columns without names (`positional`)
        are only counted. Documents keep their ids where one vocabulary extends the other; elsewhere they are found by
        the names of query and document, and those that this schema does not have become id 0, unknown.

        Args:
          own: the schema of the data.
          required: fields that the data must have; None: a field that it lacks altogether is left to who reads it.
          name: what to call the data in errors.
          file: where it is.

        Raises:
          DataError: a feature or context is missing or of another kind, naming both lists; or documents have
            unrelated ids, and their names do not help.
        """
        columns = self._columns(own, required, name, file)
        codes: dict[str, np.ndarray] = {}
        unknown: dict[str, tuple[str, ...]] = {}
        if (documents := self._documents(own, required, name)) is not None:
            codes[DOCUMENT] = documents
        theirs = dict(own.context)
        for field, values in self.context:
            if field not in theirs:
                if required is None or field not in required:
                    continue
                raise DataError(
                    f"{name}: the model reads the contexts {_short([n for n, _ in self.context])}, found "
                    f"{_short(list(theirs))}",
                    fix=f"Prepare the data with them: --context {field}",
                    file=file,
                    field=field,
                )
            found = theirs[field]
            if (found is None) != (values is None):
                kinds = ("numbers", "categories") if values is None else ("categories", "numbers")
                raise DataError(
                    f"{name}: the model was trained on {kinds[0]}, found {kinds[1]}",
                    fix="Prepare the column as the training data has it (--vocabulary TRAINING_LOG keeps its kind)",
                    file=file,
                    field=field,
                )
            if values is None or found is None or found == values:
                continue
            place = {value: code for code, value in enumerate(values, 1)}
            codes[field] = np.array([0, *(place.get(value, 0) for value in found)], np.int32)
            unknown[field] = tuple(value for value in found if value not in place)
        if columns is None and not codes:
            return None
        return InputMatch(self, columns, codes, unknown)

    def _documents(self, own: InputSchema, required: Collection[str] | None, name: str) -> np.ndarray | None:
        """Returns the id of each document of the data, [1 + V]; None where the ids are the same."""
        if self.documents is None or own.documents is None or self.documents.shared(own.documents) is not None:
            return None
        try:
            return self.documents.ids_of(own.documents, name=name)
        except DataError:
            if required is None or DOCUMENT not in required:  # documents may not matter; if they do, all are unknown
                return np.zeros(own.documents.size + 1, np.int32)
            raise

    def _columns(
        self, own: InputSchema, required: Collection[str] | None, name: str, file: str | os.PathLike[str] | None
    ) -> np.ndarray | None:
        """Returns the column [F] of the data for each feature; None where all are in place."""
        if not self.features or (not own.features and (required is None or FEATURES not in required)):
            return None
        if own.features == self.features:
            return None
        if own.features and (self.positional or own.positional):
            if len(own.features) == len(self.features):
                return None
            raise DataError(
                f"{name}: the model reads {len(self.features)} features, found {len(own.features)}",
                file=file,
                field=FEATURES,
            )
        place = {feature: i for i, feature in enumerate(own.features)}
        if missing := [feature for feature in self.features if feature not in place]:
            raise DataError(
                f"{name}: the model reads the features {_short(self.features)}, found {_short(own.features)}; missing: "
                f"{_short(missing)}",
                fix="Prepare the data with these columns under the names of the training data, in any order",
                file=file,
                field=FEATURES,
            )
        return np.array([place[feature] for feature in self.features])


@dataclasses.dataclass(frozen=True, eq=False)
class InputMatch:
    """How batches of data become batches with the features and categories of a model.

    Attributes:
      schema: of the model.
      columns: [F] column of the data for each feature; None: they are in place.
      codes: context -> [1 + categories of the data] code of the model, and "document" -> [1 + V] id of the model.
      unknown: context -> categories of the data that the model does not know.
    """

    schema: InputSchema
    columns: np.ndarray | None
    codes: Mapping[str, np.ndarray]
    unknown: Mapping[str, tuple[str, ...]]
    _picked: list[tuple[Any, np.ndarray]] = dataclasses.field(default_factory=list)  # (shared table, its columns)

    @property
    def documents(self) -> tuple[int, int] | None:
        """How many documents of the data were found by name, and how many were not; None: ids are the same."""
        if (ids := self.codes.get(DOCUMENT)) is None:
            return None
        found = int(np.count_nonzero(ids))
        return found, len(ids) - 1 - found

    def apply(self, batch: Sessions) -> Sessions:
        """Picks the columns and translates the codes of a batch on the host."""
        features = dict(batch.features)
        if self.columns is not None and (given := features.get(FEATURES)) is not None:
            if isinstance(given, SharedFeature):
                features[FEATURES] = SharedFeature(self._table(given.values), given.index)
            else:
                features[FEATURES] = np.asarray(given)[..., self.columns]
        for name, codes in self.codes.items():
            if name in features:
                features[name] = codes[np.asarray(features[name])]
        return batch.replace(features=features)

    def _table(self, values: Any) -> np.ndarray:
        """Picks the columns of a table that all batches share; once."""
        assert self.columns is not None
        for given, picked in self._picked:
            if given is values:
                return picked
        self._picked[:] = [(values, np.ascontiguousarray(np.asarray(values)[:, self.columns]))]
        return self._picked[0][1]


@runtime_checkable
class KnowsInputs(Protocol):
    """Data or a model that knows the names of its inputs: a dataset, a trained model, a fitted scaler."""

    @property
    def input_schema(self) -> InputSchema | None:
        """The names; None: not known."""
        ...


def _short(names: Sequence[str]) -> str:
    if not names:
        return "none"
    shown = list(names) if len(names) <= 12 else [*names[:11], f"... ({len(names):,} in all)"]
    return f"({', '.join(shown)})"
