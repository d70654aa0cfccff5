"""Opens models and the data that they are applied to, with notes about what does not match."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ultr.text import counted

if TYPE_CHECKING:
    from ultr.data import ClickLog, Collection
    from ultr.data.dataset import Dataset
    from ultr.data.input_schema import InputMatch


def load_model(run: Path, *, vocabulary: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """Loads the model of a run, or a saved model, and what was kept with it; says where the names of its inputs lack.

    Args:
      run: the folder of `ultr train`, or of `ultr.save`.
      vocabulary: the log that the model was trained on, where it has moved.
    """
    from ultr.training import load
    from ultr.training.checkpoint import model_folder, read_meta

    folder = model_folder(run)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        model = load(folder, vocabulary=vocabulary)
    for warning in raised:
        click.echo(f"note: {warning.message}", err=True)
    return model, read_meta(folder)["extra"]


def open_known(path: Path, known: Any, *, split: str | None = None) -> ClickLog | Collection:
    """Opens data, with documents beyond those of a related vocabulary as unknown.

    Data with unrelated document ids is opened as it is: a model finds its documents by name.

    Args:
      path: the folder.
      known: the vocabulary of the training data, or its identity; None: ids do not matter.
      split: only this split.
    """
    from ultr.data import open_data
    from ultr.data.known_documents import open_vocabulary
    from ultr.data.vocabulary import identity_of, shared_documents

    related = known is not None and shared_documents(open_vocabulary(path).identity, identity_of(known)) is not None
    return open_data(path, split=split, vocabulary=known if related else None)


def other_inputs(model: object, data: Dataset) -> str | None:
    """Says that a model was trained on other features than data has, where only its curve over ranks is used."""
    from ultr.errors import DataError
    from ultr.towers import input_match

    try:
        input_match(model, data, name="this log")
    except DataError as error:
        return f"The run was trained on other data, perhaps of other users ({str(error).rstrip('.')})."
    return None


def match_notes(match: InputMatch | None) -> list[str]:
    """Says which documents and categories of the data the model does not know."""
    if match is None:
        return []
    notes = []
    if match.documents is not None and match.documents[0]:  # where none is found, the model reads none
        found, unknown = match.documents
        notes.append(
            f"the data has document ids of its own: {counted(found, 'document')} found by name in the vocabulary of "
            f"the training data, whether training showed them or not; {unknown:,} not in it"
        )
    for name, values in match.unknown.items():
        if values:
            shown = ", ".join(values[:5]) + (f", ... ({len(values):,} in all)" if len(values) > 5 else "")
            notes.append(f"context '{name}': the model does not know {shown}; they count as unknown")
    return notes
