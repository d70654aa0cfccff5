"""Errors that say where, what was expected, what was found and what to do."""

from __future__ import annotations

from os import PathLike, fspath

LONGEST_MESSAGE = 1500  # signs; what was found may be a whole file


class UltrError(Exception):
    """Base of every error that the toolkit raises on purpose; the middle of a message that is very long is left out."""

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)


class ConfigError(UltrError, ValueError):
    """An option, model or tower that does not exist or does not fit the others."""


class DataError(UltrError, ValueError):
    """Input that cannot be used, with the place where it stands.

    Args:
      problem: what was expected and what was found.
      fix: what the reader should do about it.
      file: the file or folder that holds the problem.
      row: 1-based row (line) of that file.
      field: name of the column or field.
    """

    def __init__(
        self,
        problem: str,
        *,
        fix: str = "",
        file: str | PathLike[str] | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        place = [
            *([fspath(file)] if file is not None else []),
            *([f"row {row}"] if row is not None else []),
            *([f"field '{field}'"] if field is not None else []),
        ]
        text = f"{', '.join(place)}: {problem}" if place else problem
        super().__init__(f"{text}. {fix}" if fix else text)
        self.file, self.row, self.field = file, row, field


class CheckpointError(UltrError):
    """A saved model that is damaged, incomplete or of another schema."""


class WriteError(UltrError, OSError):
    """A file or folder that cannot be written, such as on a full disk."""
