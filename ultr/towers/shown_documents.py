"""Which documents the data of a training showed, and so what a table of documents may say."""

from __future__ import annotations

from flax import nnx

from ultr.data.document_set import DocumentSet
from ultr.data.input_schema import DOCUMENT
from ultr.towers.base import Component, declared
from ultr.towers.inputs import schema_of
from ultr.towers.wrappers import Frozen, needs_no_features


def note_shown_documents(model: nnx.Module, shown: DocumentSet | None) -> None:
    """Notes in the parts of a model that read document ids which documents their training showed, beside those before.

    Args:
      model: a model, or a tower.
      shown: the documents, by the ids of the model; None: not known, and nothing is noted.

    Frozen tables, which training leaves as they were, are left alone.
    """
    if shown is None:
        return
    frozen = {id(m) for tower in declared(model) if isinstance(tower, Frozen) for m in declared(tower)}
    for module in declared(model):
        if id(module) not in frozen and DOCUMENT in (module.reads or ()):
            module.shown_documents = module.shown_documents.joined(shown) if module.shown_documents else shown


def shown_documents(model: nnx.Module) -> DocumentSet | None:
    """Returns the documents that the training of some part of a model showed; None: not known."""
    found: DocumentSet | None = None
    for module in declared(model):
        if (own := module.shown_documents) is not None and own is not found:
            found = own if found is None else found.joined(own)
    return found


def ranks_by_table(model: object) -> bool:
    """Tells whether a model knows documents by their ids alone, and so nothing of those that it was not trained on.

    A model that also reads their features, or of which it is not known what it reads, does not.
    """
    if not isinstance(model, Component) or model.reads is None or needs_no_features(model):
        return False
    schema = schema_of(model)
    contexts = {name for name, _ in schema.context} if schema is not None else set()
    return model.reads - contexts == {DOCUMENT}
