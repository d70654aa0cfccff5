"""The schema of meta.json: what stands beside the arrays of a saved model or of an interrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ultr.data.schema import Count, Identity, describe_problem
from ultr.errors import CheckpointError
from ultr.files import file_digest

SCHEMA = 1
ARRAYS = "arrays"  # the folder of the arrays
_AGAIN = "Train or copy the model again"

Files = Annotated[dict[str, str], msgspec.Meta(min_length=1)]  # name -> hex SHA-256


class _Extra(msgspec.Struct):
    vocabulary: Identity | None = None
    train: dict[str, Any] | None = None


class _ModelMeta(msgspec.Struct):
    files: Files
    model: dict[str, Any]
    extra: _Extra


class _Partial(msgspec.Struct):
    blocks: Count
    block_sessions: Count
    sums: list[float]
    waiting: float
    seconds: float
    before: float = 0.0


class _Run(msgspec.Struct):
    history: list[dict[str, Any]]
    best: Count
    best_loss: float | None
    epochs: Count | None = None
    partial: _Partial | None = None


class _StateMeta(msgspec.Struct):
    files: Files
    run: _Run


_FORMATS: dict[str, type[msgspec.Struct]] = {"ultr-model": _ModelMeta, "ultr-state": _StateMeta}


def check_meta(meta: Any, directory: Path) -> None:
    """Checks the facts of meta.json, then the checksum of every file of arrays.

    Raises:
      CheckpointError: names the field, or the file that is missing, damaged or has no checksum.
    """
    file = directory / "meta.json"
    if not isinstance(meta, Mapping):
        raise CheckpointError(f"{file}: the file is damaged, expected facts about a model. {_AGAIN}")
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{file}: saved with schema {meta.get('schema')}, this version reads {SCHEMA}. "
            "Load it with the version that saved it, or train again"
        )
    if (kind := _FORMATS.get(str(meta.get("format")))) is None:
        known = " or ".join(_FORMATS)
        raise CheckpointError(f"{file}, field 'format': expected {known}, found {meta.get('format')!r}. {_AGAIN}")
    try:
        msgspec.convert(meta, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        field, problem = describe_problem(error, meta)
        place = f"{file}, field '{field}'" if field else str(file)
        raise CheckpointError(f"{place}: the file is damaged: {problem}. {_AGAIN}") from error
    _check_files(meta["files"], directory)


def _check_files(expected: Mapping[str, str], directory: Path) -> None:
    for name, digest in expected.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{directory / 'meta.json'}, field 'files': {name!r} is outside the folder. {_AGAIN}")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing from the saved model. Copy it again, with all its files")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path}: checksum differs from meta.json: the file is damaged. Copy it again")
    for path in sorted((directory / ARRAYS).rglob("*")):
        if path.is_file() and not path.name.startswith(".") and str(path.relative_to(directory)) not in expected:
            raise CheckpointError(
                f"{path}: meta.json has no checksum of this file, which it lists all of: one of the two is not the "
                "one that was saved. Copy the model again"
            )
