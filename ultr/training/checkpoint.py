"""Saved models: a JSON description, an Orbax checkpoint of the arrays, and a checksum of every file.

A model built from the toolkit's own classes is rebuilt from its description; one with a user's towers is
loaded into a template of the same structure. Nothing is unpickled or executed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ultr import baselines, models, towers
from ultr.background import complete
from ultr.data.dataset import Dataset
from ultr.data.document_set import DocumentSet
from ultr.data.input_schema import InputSchema
from ultr.data.known_documents import KnownVocabulary, open_vocabulary
from ultr.data.vocabulary import HasVocabulary
from ultr.errors import CheckpointError, ConfigError
from ultr.files import check_room, file_digest, new_folder
from ultr.towers import Component, note_shown_documents, record_schema, schema_of, shown_documents
from ultr.towers.base import CallableTower
from ultr.training.stored_meta import ARRAYS, SCHEMA, check_meta

_NO_ARRAYS = "no arrays"
_STORED, _STORED_PER_ARRAY = 1 << 15, 1 << 10  # bytes that Orbax writes beside the numbers, at most
UNNAMED = (
    "{}: saved by an earlier version, without the names of its features. Their order cannot be checked, only their "
    "number: give data that was prepared as the training data, or train again"
)
_CLASS, _SHARED = "class", "shared"
_SHOWN = "shown_documents"
_RANKS = ("shown_ranks", "clicked_ranks")  # attributes of components
_VARIABLES: dict[str, Any] = {"Param": nnx.Param, "Variable": nnx.Variable, "array": jnp.asarray}


def _classes() -> dict[str, type]:
    found = {}
    for module in (models, baselines, towers):
        for name, value in vars(module).items():
            if not name.startswith("_") and inspect.isclass(value) and issubclass(value, nnx.Module):
                if not inspect.isabstract(value) and value.__module__.startswith("ultr."):
                    found[name] = value
    return found


def _parameters(kind: type) -> list[str]:
    """Names the constructor's arguments; by convention a module keeps each but rngs under the same name."""
    return list(inspect.signature(kind.__init__).parameters)[1:]  # type: ignore[misc]


def describe(value: Any) -> Any:
    """Describes a model or tower as JSON, from which `build` makes the same again with fresh parameters.

    A module that stands in two places is described once and referred to after that.

    Raises:
      ConfigError: a part is not one of the toolkit's own classes (a user's function or module).
    """
    return _describe(value, {})


def _describe(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, nnx.Variable):
        return {_CLASS: type(value).__name__, "value": np.asarray(value[...]).tolist()}
    if isinstance(value, jax.Array | np.ndarray):
        return {_CLASS: "array", "value": np.asarray(value).tolist()}
    if isinstance(value, CallableTower):
        raise ConfigError(f"{value.name} is not a class of the toolkit: it cannot be described in a file")
    if isinstance(value, nnx.Module) and not isinstance(value, nnx.List):
        if id(value) in seen:
            return {_CLASS: _SHARED, "module": seen[id(value)]}
        kind = type(value).__name__
        if _classes().get(kind) is not type(value):
            raise ConfigError(f"{kind} is not a class of the toolkit: it cannot be described in a file")
        names = [n for n in _parameters(type(value)) if n != "rngs"]
        description = {_CLASS: kind} | {name: _describe(getattr(value, name), seen) for name in names}
        for name in _RANKS if isinstance(value, Component) else ():
            if (ranks := getattr(value, name)) is not None:
                description[name] = list(ranks)
        seen[id(value)] = len(seen)
        return description
    if isinstance(value, list | tuple | nnx.List):
        return [_describe(v, seen) for v in value]
    if isinstance(value, np.generic):
        return _describe(value.item(), seen)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"a {type(value).__name__} ({value!r}) cannot be described in a file")


def build(description: Any) -> Any:
    """Builds the model or tower of a description, with fresh parameters (seed 0).

    Raises:
      ConfigError: an unknown class or argument.
    """
    return _build(description, [], "model")


def _build(description: Any, made: list[Any], field: str) -> Any:
    """Builds a part of a description; `made` collects the modules, `field` names the part in errors."""
    if isinstance(description, list):
        return [_build(d, made, f"{field}.{i}") for i, d in enumerate(description)]
    if not isinstance(description, dict):
        return description
    kind = description.get(_CLASS)
    if not isinstance(kind, str):
        raise ConfigError(f"field '{field}.{_CLASS}': expected the name of a class, found {kind!r}")
    if kind == _SHARED:
        number = description.get("module")
        if not isinstance(number, int) or not 0 <= number < len(made):
            raise ConfigError(
                f"field '{field}.module': expected the number of one of {len(made)} modules before it, found {number!r}"
            )
        return made[number]
    if kind in _VARIABLES:
        try:
            return _VARIABLES[kind](jnp.asarray(description.get("value"), jnp.float32))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"field '{field}.value': expected numbers, found {error}") from error
    known = _classes()
    if kind not in known:
        raise ConfigError(f"field '{field}': unknown model or tower '{kind}'; known: {', '.join(sorted(known))}")
    arguments = {
        name: _build(v, made, f"{field}.{name}") for name, v in description.items() if name not in (_CLASS, *_RANKS)
    }
    parameters = _parameters(known[kind])
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise ConfigError(f"field '{field}': {kind} has no argument '{unknown[0]}'; known: {', '.join(parameters)}")
    if "rngs" in parameters:
        arguments["rngs"] = nnx.Rngs(0)
    try:
        made.append(known[kind](**arguments))
    except Exception as error:  # whatever a constructor makes of values that it was never given
        raise ConfigError(f"field '{field}': {kind}: {' '.join(str(error).split())[:300]}") from error
    for name in _RANKS:
        ranks = description.get(name)
        if isinstance(ranks, list) and all(isinstance(rank, int) for rank in ranks):
            setattr(made[-1], name, tuple(ranks))
    return made[-1]


def named_arrays(tree: Any) -> dict[str, Any]:
    """Maps paths to leaves of any pytree, with names that are stable over processes."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _plain(leaf: Any) -> np.ndarray:
    """Converts a leaf to a NumPy array; random keys (of dropout, say) to their data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _plain_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Maps paths to the arrays to store; to one of its own where there is none, since Orbax stores no empty tree."""
    arrays = {name: _plain(leaf) for name, leaf in named_arrays(tree).items()}
    return arrays or {_NO_ARRAYS: np.zeros(1, np.float32)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def save_arrays(directory: Path, tree: Any, meta: dict[str, Any]) -> None:
    """Writes a pytree's arrays and a JSON of meta data with checksums; aside first, then by renaming.

    The previous content of `directory`, if any, stays until the new one is complete.
    """
    # A checkpoint is written by threads that cannot be stopped half-way.
    complete(partial(_save_arrays, Path(directory), tree, meta))


def _save_arrays(directory: Path, tree: Any, meta: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    arrays = _plain_arrays(tree)
    with new_folder(directory) as aside:
        check_room(aside, _STORED + sum(_STORED_PER_ARRAY + x.nbytes * 17 // 16 for x in arrays.values()))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((aside / ARRAYS).resolve(), arrays)
        written = (path for path in sorted((aside / ARRAYS).rglob("*")) if path.is_file())
        files = {str(path.relative_to(aside)): file_digest(path) for path in written}
        (aside / "meta.json").write_text(json.dumps(meta | {"schema": SCHEMA, "files": files}, indent=1) + "\n")


def read_meta(directory: Path) -> dict[str, Any]:
    """Reads the JSON beside the arrays, after checking its schema, its fields and every file's checksum.

    Raises:
      CheckpointError: names the file that is missing, damaged, without a checksum or of another schema, and the field.
    """
    file = Path(directory) / "meta.json"
    if not file.is_file():
        raise CheckpointError(f"{directory}: expected a saved model (meta.json), found none. Give the folder of a run")
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the file is damaged, it is not JSON. Train or copy the model again") from error
    check_meta(meta, Path(directory))
    return meta


def restore_arrays(directory: Path, like: Any) -> Any:
    """Restores the saved arrays in the structure of `like`; call `read_meta` first, which checks the files.

    Raises:
      CheckpointError: names and shapes differ from `like`.
    """
    import orbax.checkpoint as ocp

    leaves = named_arrays(like)
    target = _plain_arrays(like)
    path = (Path(directory) / ARRAYS).resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        item = checkpointer.metadata(path).item_metadata
        saved = {str(k): tuple(v.shape) for k, v in dict(getattr(item, "tree", item)).items()}
        expected = {k: v.shape for k, v in target.items()}
        if saved != expected:
            name = sorted(k for k in saved.keys() | expected.keys() if saved.get(k) != expected.get(k))[0]
            raise CheckpointError(
                f"{directory}: array '{name}' is {saved.get(name, 'absent')} in the file and "
                f"{expected.get(name, 'absent')} in the model. Build the model as it was when saved"
            )
        arrays = checkpointer.restore(path, target)
    restored = [
        jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else jnp.asarray(arrays[name])
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def save(model: nnx.Module, directory: str | Path, *, extra: dict[str, Any] | None = None) -> Path:
    """Saves a model so that `load` brings it back ready to score.

    Args:
      model: a click model or baseline.
      directory: folder to write; an older model there is replaced only when the new one is complete.
      extra: further JSON-able facts to keep; `fit` keeps the identities of the training data and its vocabulary.

    The names of features and categories are kept too, and of a model that reads document ids the place of the training
    data's vocabulary; not the names of the documents, which may be larger than the model.
    """
    try:
        description = describe(model)
    except ConfigError as error:
        description = {"custom": str(error)}
    directory = Path(directory)
    schema = schema_of(model)
    meta = {"format": "ultr-model", "model": description, "extra": extra or {}}
    if (shown := shown_documents(model)) is not None:
        meta[_SHOWN] = shown.to_text()
    save_arrays(directory, nnx.state(model), meta | {"inputs": None if schema is None else schema.to_json()})
    return directory


def facts_of(train: Dataset) -> dict[str, Any]:
    """Collects what a saved model keeps of its training data: its identity and that of its vocabulary."""
    vocabulary = train.description.vocabulary
    known = None if vocabulary is None else vocabulary.identity
    return {"vocabulary": known, "train": train.description.identity}


def model_folder(directory: str | Path) -> Path:
    """Returns the folder of the saved model of a run, or the folder itself where it is no run's."""
    inside = Path(directory) / "model"
    return inside if inside.is_dir() else Path(directory)


def load(
    directory: str | Path, *, like: nnx.Module | None = None, vocabulary: str | Path | HasVocabulary | None = None
) -> Any:
    """Loads a saved model with its parameters, feature statistics and the names of its inputs.

    Args:
      directory: folder that `save` wrote, or the folder of a run of `fit` or `ultr train`, which has one inside.
      like: a model of the same structure; needed only when it has towers of your own classes.
      vocabulary: the training data, opened or its folder, where it is not in its place any more: its names tell which
        documents of data with other ids the model knows.

    Raises:
      CheckpointError: missing or damaged files, another schema, or arrays that do not fit.
      DataError: a vocabulary that is not that of the training data.

    Warns:
      UserWarning: an earlier version saved it, without the names of its features.
    """
    directory = model_folder(directory)
    meta = read_meta(directory)
    if meta.get("format") != "ultr-model":
        raise CheckpointError(f"{directory}: expected a saved model, found format {meta.get('format')!r}")
    if like is None:
        if "custom" in meta["model"]:
            raise CheckpointError(f"{directory}: {meta['model']['custom']}. Pass like=, a model of the same structure")
        try:
            like = build(meta["model"])
        except (ConfigError, RecursionError) as error:
            raise CheckpointError(f"{directory / 'meta.json'}: {error}. Train or copy the model again") from error
        if not isinstance(like, nnx.Module):
            raise CheckpointError(f"{directory / 'meta.json'}, field 'model': expected a model, found {like!r}")
    graphdef, state = nnx.split(like)
    model = nnx.merge(graphdef, restore_arrays(directory, state))
    try:
        schema = _saved_schema(meta)
        shown = DocumentSet.from_text(str(meta[_SHOWN])) if _SHOWN in meta else None
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'meta.json'}: the file is damaged: {error}") from error
    if vocabulary is not None and schema.documents is not None:
        names = vocabulary.vocabulary if isinstance(vocabulary, HasVocabulary) else open_vocabulary(vocabulary)
        schema = dataclasses.replace(schema, documents=schema.documents.at(names))
    record_schema(model, schema)
    note_shown_documents(model, shown)
    reads = model.reads if isinstance(model, Component) else None
    if "inputs" not in meta and (reads is None or reads - {"document"}):
        warnings.warn(UNNAMED.format(directory), stacklevel=2)
    return model


def _saved_schema(meta: dict[str, Any]) -> InputSchema:
    """Reads what a saved model knows of its inputs; of an earlier version, the identity of its documents alone."""
    found = meta.get("inputs")
    schema = InputSchema() if found is None else InputSchema.from_json(found)
    known = meta["extra"].get("vocabulary") if isinstance(meta.get("extra"), dict) else None
    if schema.documents is None and known is not None:
        schema = dataclasses.replace(schema, documents=KnownVocabulary.from_json({"identity": known, "path": ""}))
    return schema
