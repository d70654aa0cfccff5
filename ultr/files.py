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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultr import stopping
from ultr.errors import ConfigError, WriteError
from ultr.exhaustion import disk_problem
from ultr.locks import SCRATCH, locked

_LEFT = r"\.[0-9a-f]{8}\.(partial|old)"  # what a name ends with while a file or folder is written or replaced
_LONG_AGO = 3600.0  # seconds; a file that was begun before that was left
_LIVE: set[Path] = set()  # folders that this process is writing


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Gives an empty folder beside `path` that becomes `path` when the block ends without an exception.

    What stood at `path` stays until then, and after an exception. Missing parents are made; a link is followed. What
    killed processes left beside it goes.

    Args:
      path: the folder to make or to replace.
      check: called with the absolute path before the block and once more before anything is replaced; raises where
        something must not be.

    Raises:
      NotADirectoryError: a file stands at `path`.
      ConfigError: another process is writing it.
      WriteError: the disk is full.
    """
    given, target = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    token = secrets.token_hex(4)
    aside, old = (target.with_name(f".{target.name}.{token}.{what}") for what in ("partial", "old"))
    if check is not None:
        check(given)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    with locked(target), write_errors(given):
        recover(target)
        aside.mkdir()
        _LIVE.add(aside)
        try:
            yield aside
            if check is not None:
                check(given)
            with stopping.whole():
                _rename(aside, target, old)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            _LIVE.discard(aside)


def recover(target: Path) -> None:
    """Puts back what stood at `target` if a process was killed while it replaced it, and removes what it left beside.

    Nobody else may be writing there: call it with the lock of the target.
    """
    left = [p for p in _siblings(target) if p.is_dir() and p not in _LIVE]
    for path in sorted(left, key=os.path.getmtime, reverse=True):
        if path.suffix == ".old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _siblings(target: Path) -> list[Path]:
    if not target.parent.is_dir():
        return []
    pattern = re.compile(rf"\.{re.escape(target.name)}{_LEFT}")
    return [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]


def _rename(aside: Path, target: Path, old: Path) -> None:
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
    for left in _siblings(target):
        with contextlib.suppress(OSError):
            if left.is_file() and time.time() - left.stat().st_mtime > _LONG_AGO:
                left.unlink()
    with write_errors(target):
        try:
            aside.write_bytes(content)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the errors of a full disk, however a library words them, into one that names what was to be written.

    Raises:
      WriteError: there is no room.
    """
    try:
        yield
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        raise WriteError(
            f"{os.fspath(path)}: cannot be written: {problem}. Make room, or choose a folder on another disk"
        ) from error


def check_room(folder: Path, size: int) -> None:
    """Checks that a file of a size can be written to a folder, for a library that fails noisily where it cannot.

    Raises:
      OSError: there is no room.
    """
    file = folder / ".room"
    try:
        with open(file, "wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        if disk_problem(error) is not None:  # others are of file systems that cannot reserve
            raise
    finally:
        file.unlink(missing_ok=True)


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
    own = re.compile(rf"\..+({_LEFT}|\.lock)|{re.escape(SCRATCH)}.+")  # of processes that were killed
    if out.is_dir() and not all(own.fullmatch(entry.name) or allowed(entry) for entry in out.iterdir()):
        raise ConfigError(f"{out} holds other files: choose a new or empty folder for --out")


def folder_name(name: str) -> str:
    """Turns a name into part of a path: white space becomes _."""
    return re.sub(r"\s+", "_", name)
