"""The features that a model knows by name, and the match of data to them."""

from __future__ import annotations

from typing import Any

from flax import nnx

from ultr.data.dataset import Dataset, Matched
from ultr.data.feature_schema import FEATURES, FeatureMatch, FeatureSchema, KnowsFeatures
from ultr.data.vocabulary import HasVocabulary
from ultr.towers.base import Component
from ultr.towers.wrappers import needs_no_features


def schema_of(model: object) -> FeatureSchema | None:
    """Finds the names of the features that a model, or the towers and scalers in it, were trained on; None: not known.

    Raises:
      ConfigError: parts of the model were trained on different features.
    """
    if not isinstance(model, nnx.Module):
        return model.feature_schema if isinstance(model, KnowsFeatures) else None
    found: FeatureSchema | None = None
    for _, module in nnx.iter_modules(model):
        if isinstance(module, KnowsFeatures) and (own := module.feature_schema) is not None:
            found = own if found is None else found.joined(own)
    return found


def trained_schema(model: nnx.Module, train: Dataset) -> FeatureSchema | None:
    """Returns what a model knows of its features once it is trained on a dataset that was matched to it."""
    known, own = schema_of(model), train.feature_schema
    if own is None:
        return known
    read = own.only(_reads(model))
    return read if known is None else known.joined(read.only(read.fields - known.fields))


def record_schema(model: nnx.Module, schema: FeatureSchema | None) -> None:
    """Writes the names of its features into a model and into the towers that read them."""
    if schema is None:
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Component):
            own = schema.only(module.reads)
            module.feature_schema = own if own.fields else None
    if not isinstance(model, Component):
        whole: Any = model  # a module of the user's own
        whole.feature_schema = schema


def feature_match(
    model: object, data: Dataset | FeatureSchema, *, name: str, schema: FeatureSchema | None = None
) -> FeatureMatch | None:
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
    wanted, own = schema or schema_of(model), data.feature_schema if isinstance(data, Dataset) else data
    if wanted is None or own is None:
        return None
    required = _reads(model) if isinstance(model, nnx.Module) else wanted.fields
    if required is not None and isinstance(model, nnx.Module) and needs_no_features(model):
        required -= {FEATURES}
    file = data.vocabulary.path if isinstance(data, HasVocabulary) else None
    return wanted.match(own, required=required, name=name, file=file)


def matched(model: object, data: Dataset, *, name: str, schema: FeatureSchema | None = None) -> Dataset:
    """Returns the data with the features of a model, in their order; arguments and errors as of `feature_match`."""
    match = feature_match(model, data, name=name, schema=schema)
    return data if match is None else Matched(data, match)


def _reads(model: nnx.Module) -> frozenset[str] | None:
    return model.reads if isinstance(model, Component) else None
