"""Files and folders that stand complete or not at all: written aside, then renamed; JSON values and checksums."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultr.errors import ConfigError


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], *, check: Callable[[Path], None] | None = None, single: bool = False
) -> Iterator[Path]:
    """Gives an empty folder beside `path` that becomes `path` when the block ends without an exception.

    What stood at `path` stays until then, and after an exception. Missing parents are made; a link is followed.

    Args:
      path: the folder to make or to replace.
      check: called with the absolute path before the block and once more before anything is replaced; raises where
        something must not be.
      single: whether nobody else writes this folder: the place aside then has a fixed name, so that what a killed
        process left there goes.

    Raises:
      NotADirectoryError: a file stands at `path`.
    """
    given, target = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    token = "" if single else f".{secrets.token_hex(4)}"
    aside, old = (target.with_name(f".{target.name}{token}.{what}") for what in ("partial", "old"))
    if check is not None:
        check(given)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if check is not None:
            check(given)
        _rename(aside, target, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename(aside: Path, target: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if not target.exists() or not any(target.iterdir()):
        os.replace(aside, target)
        return
    try:
        target.rename(old)
        aside.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file in UTF-8; what stood there stays until the new one is complete."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file; what stood there stays until the new one is complete."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        aside.write_bytes(content)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `json_values` of a value as an indented JSON file, whole or not at all."""
    write_text(path, json.dumps(json_values(value), indent=1, allow_nan=False) + "\n")


def json_values(value: Any) -> Any:
    """Converts dataclasses, mappings, sequences, paths and numpy values to what JSON holds.

    Numbers that are not finite become None, since JSON has none of them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): json_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class JsonResult:
    """A result that converts itself for JSON; base class of dataclasses."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Converts to numbers, lists and dictionaries for `json.dumps`; numbers that are not finite become None."""
        converted: dict[str, Any] = json_values(self)
        return converted


def json_digest(value: Any) -> str:
    """Computes the hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Computes the hex SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_output_folder(out: Path, *, may_hold: Callable[[Path], bool] | Iterable[str] = ()) -> None:
    """Refuses an output folder that is a file, or that holds what the command did not write itself.

    Args:
      out: the folder that a command is asked to write to; it need not exist.
      may_hold: which entries may stand in it: their names, or a test of an entry.

    Raises:
      ConfigError: names the folder and says what to choose instead.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give --out a folder")
    names = may_hold if callable(may_hold) else set(may_hold)
    allowed = names if callable(names) else lambda entry: entry.name in names
    if out.is_dir() and not all(allowed(entry) for entry in out.iterdir()):
        raise ConfigError(f"{out} holds other files: choose a new or empty folder for --out")


def folder_name(name: str) -> str:
    """Turns a name into part of a path: white space becomes _."""
    return re.sub(r"\s+", "_", name)
