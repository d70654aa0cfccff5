"""Files and folders that stand complete or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


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
