"""The inputs that a model knows by name, features, contexts and documents, and the match of data to them."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from ultr.data.dataset import Dataset, Matched
from ultr.data.input_schema import DOCUMENT, FEATURES, InputMatch, InputSchema, KnowsInputs
from ultr.data.vocabulary import HasVocabulary
from ultr.towers.base import Component
from ultr.towers.wrappers import needs_no_features


def schema_of(model: object) -> InputSchema | None:
    """Finds the names of the features that a model, or the towers and scalers in it, were trained on; None: not known.

    Raises:
      ConfigError: parts of the model were trained on different features.
    """
    if not isinstance(model, nnx.Module):
        return model.input_schema if isinstance(model, KnowsInputs) else None
    found: InputSchema | None = None
    for _, module in nnx.iter_modules(model):
        if isinstance(module, KnowsInputs) and (own := module.input_schema) is not None:
            found = own if found is None else found.joined(own)
    return found


def trained_schema(model: nnx.Module, train: Dataset) -> InputSchema | None:
    """Returns what a model knows of its features once it is trained on a dataset that was matched to it."""
    known, own = schema_of(model), train.input_schema
    if own is None:
        return known
    read = own.only(_records(model))
    if read.documents is not None:  # a model shall not hold what may be larger than itself
        read = dataclasses.replace(read, documents=read.documents.without_names())
    # What is known of features and contexts stays; a vocabulary may have grown.
    return read if known is None else known.joined(read.only(read.fields - known.fields | {DOCUMENT}))


def record_schema(model: nnx.Module, schema: InputSchema | None) -> None:
    """Writes the names of its features into a model and into the towers that read them."""
    if schema is None:
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Component):
            own = schema.only(_records(module))
            module.input_schema = own if own.fields else None
    if not isinstance(model, Component):
        whole: Any = model  # a module of the user's own
        whole.input_schema = schema


def input_match(
    model: object, data: Dataset | InputSchema, *, name: str, schema: InputSchema | None = None
) -> InputMatch | None:
    """Finds how the batches of data become those that a model reads, by the names of features and categories.

    Args:
      model: a model, or another ranker that knows its features.
      data: the data, or the names that it has; data without names is left as it is.
      name: what to call the data in errors.
      schema: what the model knows; None: what it says itself.

    Returns:
      None where nothing has to be changed, or one of the two does not know names.

    Raises:
      DataError: the data lacks a feature or context that the model reads; names both lists.
    """
    wanted, own = schema or schema_of(model), data.input_schema if isinstance(data, Dataset) else data
    if wanted is None or own is None:
        return None
    required = _reads(model) if isinstance(model, nnx.Module) else wanted.fields
    if required is not None and isinstance(model, nnx.Module) and needs_no_features(model):
        # It looks features up by the id of the document, where the data does not bring them.
        if not own.features:
            required = required - {FEATURES} | {DOCUMENT}
        elif DOCUMENT not in required:
            wanted = wanted.only(wanted.fields - {DOCUMENT})
    file = data.vocabulary.path if isinstance(data, HasVocabulary) else None
    return wanted.match(own, required=required, name=name, file=file)


def matched(model: object, data: Dataset, *, name: str, schema: InputSchema | None = None) -> Dataset:
    """Returns the data with the features of a model, in their order; arguments and errors as of `input_match`."""
    match = input_match(model, data, name=name, schema=schema)
    return data if match is None else Matched(data, match)


def _reads(model: nnx.Module) -> frozenset[str] | None:
    return model.reads if isinstance(model, Component) else None


def _records(model: nnx.Module) -> frozenset[str] | None:
    """Names the fields that a model reads, from the data or from what it holds by document id; None: not known."""
    reads = _reads(model)
    return reads if reads is None or not needs_no_features(model) else reads | {DOCUMENT}
